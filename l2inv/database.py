"""Connections to PostgreSQL: opened, checked against the migrations, locked per stage, errors put in words.

Statements in l2inv say `l2inv.` for the schema. A connection to another schema renames it on the way out, so that
what the code says can be read, searched and pasted into psql as it stands.
"""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb

from l2inv.errors import Busy, DatabaseError, Refused
from l2inv.settings import Settings, redact

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
    """Gives a statement of l2inv's as it reads for a schema of another name."""
    return query if schema == "l2inv" else _SCHEMA.sub(f'"{schema}".', query)


def server_folder(settings: Settings) -> Path:
    """Gives the folder of the embedded server that the settings name."""
    from l2inv import embedded

    folder = settings.database.embedded_folder
    return Path(folder) if folder else embedded.default_folder()


def open_connection(settings: Settings, url: str | None = None) -> Connection:
    """Gives a connection in autocommit mode to what the settings name, or to another server with the same schema.
    The embedded server is started where it is named.

    Raises DatabaseError when there is none to be had.
    """
    url = url or settings.database.url
    if url == "embedded":
        from l2inv import embedded

        url = embedded.start(server_folder(settings))
    patience: dict[str, Any] = {name: value for name, value in PATIENCE.items() if name not in url}
    try:
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
def connected(settings: Settings, url: str | None = None) -> Iterator[Connection]:
    """Lends a connection, as open_connection gives it, whose schema is that of this l2inv. An embedded database is
    migrated by itself.

    Raises DatabaseError for whatever PostgreSQL refuses while it is lent.
    """
    with translated(settings), open_connection(settings, url) as connection:
        mend = _mend_of(connection, settings.database.schema)
        if mend and (url or settings.database.url) == "embedded" and "migrate" in mend.hint:
            from l2inv import migrate

            migrate.apply(connection, settings.database.schema)
        elif mend:
            raise mend
        yield connection


@contextmanager
def translated(settings: Settings) -> Iterator[None]:
    """Puts what PostgreSQL says into one line and the hint that helps, as a DatabaseError; what the record's own
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


def migrations_folder() -> Path:
    """Gives where the migrations are: inside an installed package, at the top of a checkout."""
    inside = Path(__file__).parent / "_migrations"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "migrations"


def shipped_migrations() -> set[str]:
    """Gives the ids of the migrations that this l2inv knows."""
    return {path.stem for path in migrations_folder().glob("*.sql") if not path.stem.endswith(".rollback")}


def applied_migrations(connection: Connection) -> set[str]:
    """Gives the ids of the migrations that the database has; none when the schema is missing."""
    try:
        rows = connection.execute("select migration_id from l2inv._yoyo_migration").fetchall()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return set()
    return {row["migration_id"] for row in rows}


def ahead(applied: set[str], schema: str) -> DatabaseError | None:
    """Gives the error that a schema with migrations unknown to this l2inv is, or None."""
    extra = ", ".join(sorted(applied - shipped_migrations()))
    return (
        DatabaseError(f"schema {schema} is ahead of this l2inv: it has {extra}", "upgrade l2inv")
        if extra
        else None
    )


def _mend_of(connection: Connection, schema: str) -> DatabaseError | None:
    applied, shipped = applied_migrations(connection), shipped_migrations()
    if not applied:
        return DatabaseError(f"schema {schema} is not in the database yet", "run: l2inv migrate")
    if shipped - applied:
        missing = ", ".join(sorted(shipped - applied))
        return DatabaseError(
            f"schema {schema} is behind this l2inv: it lacks {missing}", "run: l2inv migrate"
        )
    return ahead(applied, schema)


@dataclass
class Run:
    """One run of a stage: what it reports, kept with the run."""

    run_id: int
    stage: str
    actor: str
    report: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)  # kept with the report, for the next run


@contextmanager
def stage_lock(connection: Connection, stage: str, hint: str) -> Iterator[None]:
    """Holds a stage's lock: none other on any host does meanwhile. Raises Busy, with the hint, when another holds it."""
    key = "hashtext('l2inv run'), hashtext('l2inv.' || %s)"  # the schema's name makes it this l2inv's own
    if not _one(connection, f"select pg_try_advisory_lock({key})", [stage]):
        raise Busy(f"{stage}: another run holds the lock", hint)
    try:
        yield
    finally:
        with suppress(psycopg.Error):  # a lost connection has given up its lock
            connection.execute(f"select pg_advisory_unlock({key})", [stage])


@contextmanager
def stage_run(connection: Connection, stage: str, actor: str) -> Iterator[Run]:
    """Lends the run under which a stage records, while it holds the stage's lock.

    The report begins with run_id and stage and ends with the seconds it took. Raises Busy when another run of
    this stage holds the lock, on any host.
    """
    with stage_lock(connection, stage, "nothing to do: it will do the work"):
        started = time.monotonic()
        run_id = _one(
            connection,
            "insert into l2inv.run (stage, actor) values (%s, %s) returning run_id",
            [stage, actor],
        )
        run = Run(run_id, stage, actor, {"run_id": run_id, "stage": stage})
        try:
            yield run
        except BaseException as problem:
            # The cause goes on its way; where the connection is what failed, the run stays open in the table.
            with suppress(psycopg.Error):
                incomplete = {"complete": False} if "complete" in run.report else {}
                failed = {"failed": str(problem) or type(problem).__name__}
                _finish(connection, run, run.report | incomplete | failed)
            raise
        run.report["seconds"] = round(time.monotonic() - started, 3)
        _finish(connection, run, run.report)


def _finish(connection: Connection, run: Run, result: dict[str, Any]) -> None:
    connection.execute(
        "update l2inv.run set finished_at = clock_timestamp(), result = %s where run_id = %s",
        [Jsonb(result | run.notes), run.run_id],
    )


def _one(connection: Connection, query: str, values: list[Any]) -> Any:
    row = connection.execute(query, values).fetchone()
    assert row is not None
    return next(iter(row.values()))
