"""Connections to PostgreSQL: opened, checked against the migrations, locked per stage, errors put in words.

Statements in l2inv say `l2inv.` for the schema. A connection to another schema renames it on the way out, so that
what the code says can be read, searched and pasted into psql as it stands.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row

from l2inv.config.settings import Settings, redact
from l2inv.errors import DatabaseError, Refused

Connection = psycopg.Connection[DictRow]

# Unless the URL says otherwise. A host that vanished sends no word of it: without keepalives, l2inv would wait for hours.
PATIENCE = {
    "connect_timeout": 10,  # seconds, as the next two
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
}
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


def open_connection(settings: Settings, url: str | None = None) -> Connection:
    """Return a connection in autocommit mode to what the settings name, or to another server with the same schema.
    The embedded server is started where it is named.

    Raise DatabaseError when there is none to be had.
    """
    url = url or settings.database.url
    alone: AbstractContextManager[None] = nullcontext()
    if url == "embedded":
        from l2inv.database import embedded

        url, alone = embedded.start(server_folder(settings)), embedded.undisturbed()
    patience: dict[str, Any] = {name: value for name, value in PATIENCE.items() if name not in url}
    try:
        with alone:
            connection = psycopg.connect(
                url,
                autocommit=True,
                row_factory=dict_row,
                fallback_application_name="l2inv",
                **patience,
            )
        # A day is 24 hours, and no time that Python knows is beyond its years, in UTC alone.
        # Compiling a plan takes longer than all that l2inv ever asks.
        connection.execute("set timezone to 'UTC'; set jit to off")
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


def in_words(problem: psycopg.Error, settings: Settings) -> DatabaseError:
    text = " ".join(str(problem).split()) or type(problem).__name__
    hints = (
        ("password authentication failed", "check user and password in database.url"),
        ("no password supplied", "give the password in database.url, ~/.pgpass or PGPASSWORD"),
        ("definition of service", "name a service of pg_service.conf in database.url"),
        ("read-only transaction", "database.url must name a server that takes writes, not a standby"),
        ("permission denied", "run as a role that has the rights, or ask who runs the database"),
        ("No space left", "make room on the database server's disk"),
    )
    hint = next((hint for sign, hint in hints if sign in text), "")
    if not hint and isinstance(problem, psycopg.OperationalError):
        hint = "check database.url, and that the server runs and can be reached"
    elif not hint and isinstance(problem, psycopg.errors.InvalidCatalogName):
        hint = "make the database, or name another in database.url"
    return DatabaseError(f"database: {redact(text, settings)}", hint or "run again with -vv for the details")
