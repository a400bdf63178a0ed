"""Connections to PostgreSQL: opened, checked against the migrations, locked per stage, errors put in words.

Statements in l2inv say `l2inv.` for the schema. A connection to another schema renames it on the way out, so that
what the code says can be read, searched and pasted into psql unchanged.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psycopg

from l2inv.config.settings import Settings, redact
from l2inv.database import session
from l2inv.errors import DatabaseError, Refused

Connection = session.Connection

_SCHEMA = re.compile(r"\bl2inv\.")

# psycopg logs beside what it raises; without a handler Python would print that on stderr, beyond the one line.
logging.getLogger("psycopg").addHandler(logging.NullHandler())


class Renaming:
    """Makes a cursor's statements speak of the connection's own schema."""

    schema = "l2inv"

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return super().execute(self.renamed(query), *args, **kwargs)  # type: ignore[misc]

    def executemany(self, query: Any, *args: Any, **kwargs: Any) -> None:
        super().executemany(self.renamed(query), *args, **kwargs)  # type: ignore[misc]

    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        return super().copy(self.renamed(statement), *args, **kwargs)  # type: ignore[misc]

    def renamed(self, query: Any) -> Any:
        return in_schema(query, self.schema) if isinstance(query, str) else query


def in_schema(query: str, schema: str) -> str:
    """Return a statement of l2inv's as it reads for a schema of another name."""
    return query if schema == "l2inv" else _SCHEMA.sub(f'"{schema}".', query)


def server_folder(settings: Settings) -> Path:
    """Return the folder of the embedded server that the settings name."""
    from l2inv.database import embedded

    folder = settings.database.embedded_folder
    return Path(folder) if folder else embedded.default_folder()


def open_connection(
    settings: Settings,
    url: str | None = None,
    application: str = "l2inv",
    told: Callable[[str], None] = lambda line: None,
) -> Connection:
    """Return a connection in autocommit mode to what the settings name, or to another server with the same schema; its
    session is pinned, under the name of the application. The embedded server is started where it is named.

    What waits for a lock is told. Raise DatabaseError when there is none to be had.
    """
    url = url or settings.database.url
    alone: AbstractContextManager[None] = nullcontext()
    if url == "embedded":
        from l2inv.database import embedded

        url, alone = embedded.start(server_folder(settings)), embedded.undisturbed()
    limits = settings.database.lock_timeout_seconds, settings.database.statement_timeout_seconds
    try:
        with alone:
            connection = session.opened(url, application, *limits, told)
    except psycopg.Error as problem:
        raise in_words(problem, settings) from problem
    own = {"schema": settings.database.schema}
    connection.cursor_factory = type("Cursor", (Renaming, psycopg.Cursor), own)
    connection.server_cursor_factory = type("ServerCursor", (Renaming, psycopg.ServerCursor), own)
    return connection


@contextmanager
def translated(settings: Settings) -> Iterator[None]:
    """Put what PostgreSQL says into one line and the hint that helps, as a DatabaseError; what the record's own
    triggers refuse, as Refused."""
    try:
        yield
    except psycopg.Error as problem:
        if problem.diag.sqlstate == "L2INV":
            raise Refused(problem.diag.message_primary or "", problem.diag.message_hint or "") from problem
        raise in_words(problem, settings) from problem


# A sign is an SQLSTATE, or words where there is none: before a session begins, or behind its end.
_HINTS = (
    ("password authentication failed", "check user and password in database.url"),
    ("no password supplied", "give the password in database.url, ~/.pgpass or PGPASSWORD"),
    ("definition of service", "name a service of pg_service.conf in database.url"),
    (
        "^53300|too many clients|too many connections|connection slots are reserved|no more connections allowed",
        "end sessions that nobody needs (pg_stat_activity), or raise max_connections; then run it again",
    ),
    ("^57P03|is starting up|is shutting down", "run it again when the server is up"),
    (
        "statement timeout",
        "give it longer in database.statement_timeout_seconds, or see what keeps the server busy",
    ),
    ("^57014", "somebody canceled the statement: ask who runs the database, then run it again"),
    (
        "^25P03|idle-in-transaction timeout|^25P04|transaction timeout|^57P05|idle-session timeout",
        "l2inv was kept waiting, perhaps stopped, for longer than its session may last; run it again",
    ),
    (
        "^57P01|administrator command",
        "somebody ended the session: ask who runs the database, then run it again",
    ),
    ("^40001|^40P01", "two at once were in each other's way; run it again"),
    ("^25006|read-only transaction", "database.url must name a server that takes writes, not a standby"),
    ("^42501|permission denied", "run as a role that has the rights, or ask who runs the database"),
    ("^53100|No space left", "free space on the database server's disk"),
    ("^3D000", "make the database, or name another in database.url"),
)


def hint_for(signs: str) -> str:
    """Return what to do about an error, by its SQLSTATE or words; nothing where none is known."""
    return next((hint for sign, hint in _HINTS if re.search(sign, signs)), "")


def in_words(problem: psycopg.Error, settings: Settings) -> DatabaseError:
    if isinstance(problem, psycopg.errors.LockNotAvailable):
        return _lock_not_had(problem, settings)
    said = str(problem).partition("\nCONTEXT: ")[0]  # not which function of l2inv's it was
    text = " ".join(said.split()) or type(problem).__name__
    signs = f"{problem.sqlstate or ''} {text}"
    hint = hint_for(signs)
    if not hint and isinstance(problem, psycopg.OperationalError):
        hint = "check database.url, and that the server runs and can be reached"
    return DatabaseError(f"database: {redact(text, settings)}", hint or "run again with -vv for the details")


def _lock_not_had(problem: psycopg.Error, settings: Settings) -> DatabaseError:
    """The notes of the problem are who held the lock, as the session found while it waited."""
    holders = "".join(getattr(problem, "__notes__", ())) or "another session"
    return DatabaseError(
        f"database: waited {settings.database.lock_timeout_seconds:g} s in vain for a lock held by {holders}",
        "run it again when that has ended; an administrator of the database can end it: select pg_terminate_backend(PID)",
        key="database: lock",  # the message names a process
    )
