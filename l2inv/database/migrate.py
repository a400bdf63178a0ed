"""Migrates the database's schema to this version: the files of migrations/, applied by yoyo."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from yoyo import read_migrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI

from l2inv.database.connection import Connection, in_schema
from l2inv.database.schema import ahead, applied_migrations, migrations_folder, shipped_migrations


class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]
    """yoyo's backend on l2inv's own connection and schema: no URL, so no password in one."""

    def __init__(self, connection: Connection, schema: str) -> None:
        self.ours = connection
        super().__init__(DatabaseURI("postgresql+psycopg", None, None, None, None, "", {}), "_yoyo_migration")
        self.schema = f'"{schema}", pg_temp'  # the search path: yoyo names its tables without their schema
        self._is_locked = True  # apply() holds an advisory lock, which ends with the session

    def connect(self, dburi: DatabaseURI) -> Any:
        from psycopg.rows import tuple_row

        self.ours.row_factory = tuple_row  # type: ignore[assignment]
        return self.ours

    def apply_one(self, migration: Any, force: bool = False, mark: bool = True) -> None:
        """Apply one migration and record it in the same transaction: a failed one leaves no trace."""
        with self.transaction():
            migration.process_steps(self, "apply", force=force)
            self.log_migration(migration, "apply")
            self.mark_one(migration, log=False)


def apply(connection: Connection, schema: str) -> list[str]:
    """Apply the missing migrations in order and return their ids. A second caller waits for the first.

    Raise DatabaseError if the database is ahead, and psycopg's errors; then neither the failed migration nor those
    after it are applied.
    """
    with _locked(connection):
        pending = _pending(connection, schema)
        if pending:
            _apply_all(connection, schema, pending)
        return pending


def pending_sql(connection: Connection, schema: str) -> Iterator[tuple[str, str]]:
    """Yield id and SQL of each migration that apply() would apply. Raise DatabaseError if the database is ahead."""
    for name in _pending(connection, schema):
        yield name, in_schema((migrations_folder() / f"{name}.sql").read_text(), schema)


def _pending(connection: Connection, schema: str) -> list[str]:
    applied = applied_migrations(connection)
    if problem := ahead(applied, schema):
        raise problem
    return sorted(shipped_migrations() - applied)


def _apply_all(connection: Connection, schema: str, pending: list[str]) -> None:
    row_factory = connection.row_factory
    search_path = connection.execute("show search_path").fetchone()
    assert search_path is not None
    try:
        if not _exists(connection, schema):
            connection.execute(f'create schema "{schema}"')  # yoyo's own tables go into it first
        backend = Backend(connection, schema)
        backend.init_connection(connection)
        backend.init_database()
        backend.ensure_internal_schema_updated()
        for migration in read_migrations(str(migrations_folder())):
            if migration.id in pending:
                backend.apply_one(migration)
    finally:
        connection.row_factory = row_factory
        if not connection.closed:
            connection.execute("select set_config('search_path', %s, false)", list(search_path.values()))


def _exists(connection: Connection, schema: str) -> bool:
    found = connection.execute("select 1 as found from pg_namespace where nspname = %s", [schema]).fetchone()
    return found is not None


@contextmanager
def _locked(connection: Connection) -> Iterator[None]:
    key = "hashtext('l2inv migrate'), hashtext('l2inv.')"
    found = connection.execute(f"select pg_backend_pid() as pid, pg_advisory_lock({key})").fetchone()
    connection.must_be_as_before(found)
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute(f"select pg_advisory_unlock({key})")
