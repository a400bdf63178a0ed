"""Connections to PostgreSQL, and its errors as messages with hints.

Statements in l2inv name the schema as `l2inv.`. A connection to another schema replaces it when it sends a statement,
so that the statements in the code can be read, searched and pasted into psql.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import DictRow

from l2inv.config.settings import Settings, redact
from l2inv.database import session
from l2inv.errors import DatabaseError, Refused

Connection = session.Connection
Row = DictRow  # of a query: its values by the names of its columns

_SCHEMA = re.compile(r"\bl2inv\.")

# psycopg logs errors that it also raises; without a handler, Python would print them on stderr.
logging.getLogger("psycopg").addHandler(logging.NullHandler())


class Renaming:
    """A cursor that replaces the schema's name in its statements."""

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
    """Return a statement of l2inv's for a schema of another name."""
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
    report: Callable[[str], None] = lambda line: None,
) -> Connection:
    """Return a connection in autocommit mode to the settings' database, or to another server with the same schema; its
    session is pinned (session.py) and has the application's name. The embedded server is started if needed.

    A wait for a lock is reported. Raise DatabaseError if it cannot be opened.
    """
    url = url or settings.database.url
    alone: AbstractContextManager[None] = nullcontext()
    if url == "embedded":
        from l2inv.database import embedded

        url, alone = embedded.start(server_folder(settings)), embedded.undisturbed()
    limits = settings.database.lock_timeout_seconds, settings.database.statement_timeout_seconds
    try:
        with alone:
            connection = session.opened(url, application, *limits, report)
    except psycopg.Error as problem:
        raise in_words(problem, settings) from problem
    own = {"schema": settings.database.schema}
    connection.cursor_factory = type("Cursor", (Renaming, psycopg.Cursor), own)
    connection.server_cursor_factory = type("ServerCursor", (Renaming, psycopg.ServerCursor), own)
    return connection


@contextmanager
def translated(settings: Settings) -> Iterator[None]:
    """Raise PostgreSQL's errors as a DatabaseError with one line and a hint; those raised by l2inv's own triggers as
    Refused."""
    try:
        yield
    except psycopg.Error as problem:
        if problem.diag.sqlstate == "L2INV":
            raise Refused(problem.diag.message_primary or "", problem.diag.message_hint or "") from problem
        raise in_words(problem, settings) from problem


# Patterns match the SQLSTATE, or the text where there is none: before a session begins, or after it ended.
_HINTS = (
    ("password authentication failed", "check user and password in database.url"),
    ("no password supplied", "set the password in database.url, ~/.pgpass or PGPASSWORD"),
    ("definition of service", "name a service of pg_service.conf in database.url"),
    (
        "^53300|too many clients|too many connections|connection slots are reserved|no more connections allowed",
        "end sessions that nobody needs (pg_stat_activity), or raise max_connections; then run it again",
    ),
    ("^57P03|is starting up|is shutting down", "run it again when the server is up"),
    (
        "statement timeout",
        "raise database.statement_timeout_seconds, or find out what keeps the server busy",
    ),
    ("^57014", "somebody canceled the statement: ask the database administrator, then run it again"),
    (
        "^25P03|idle-in-transaction timeout|^25P04|transaction timeout|^57P05|idle-session timeout",
        "l2inv was idle, perhaps stopped, for longer than its session may last; run it again",
    ),
    (
        "^57P01|administrator command",
        "somebody ended the session: ask the database administrator, then run it again",
    ),
    ("^40001|^40P01", "it conflicted with another transaction; run it again"),
    ("^25006|read-only transaction", "database.url must name a server that takes writes, not a standby"),
    ("^42501|permission denied", "run as a role with the privileges, or ask the database administrator"),
    ("^53100|No space left", "free space on the database server's disk"),
    ("^3D000", "create the database, or name another in database.url"),
)


def hint_for(signs: str) -> str:
    """Return what to do about an error, by its SQLSTATE or words; nothing where none is known."""
    return next((hint for sign, hint in _HINTS if re.search(sign, signs)), "")


def in_words(problem: psycopg.Error, settings: Settings) -> DatabaseError:
    if isinstance(problem, psycopg.errors.LockNotAvailable):
        return _lock_timeout(problem, settings)
    message = str(problem).partition("\nCONTEXT: ")[0]  # without the function in which it happened
    text = " ".join(message.split()) or type(problem).__name__
    signs = f"{problem.sqlstate or ''} {text}"
    hint = hint_for(signs)
    if not hint and isinstance(problem, psycopg.OperationalError):
        hint = "check database.url, and that the server runs and can be reached"
    return DatabaseError(f"database: {redact(text, settings)}", hint or "run again with -vv for the details")


def _lock_timeout(problem: psycopg.Error, settings: Settings) -> DatabaseError:
    """Return the error for a lock not obtained. The problem's notes name its holders, which the session found."""
    holders = "".join(getattr(problem, "__notes__", ())) or "another session"
    return DatabaseError(
        f"database: waited {settings.database.lock_timeout_seconds:g} s for a lock held by {holders}",
        "run it again when that has ended; an administrator of the database can end it: select pg_terminate_backend(PID)",
        key="database: lock",  # the message names a process
    )
