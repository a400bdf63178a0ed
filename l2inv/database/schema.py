"""The migrations: those of this version, and those that a database has."""

from pathlib import Path

import psycopg

from l2inv.database.connection import Connection
from l2inv.errors import DatabaseError, SchemaBehind


def migrations_folder() -> Path:
    """Return the folder of the migrations: inside an installed package, or at the top of a checkout."""
    inside = Path(__file__).parents[1] / "_migrations"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "migrations"


def shipped_migrations() -> set[str]:
    """Return the ids of this version's migrations."""
    return {path.stem for path in migrations_folder().glob("*.sql") if not path.stem.endswith(".rollback")}


def applied_migrations(connection: Connection) -> set[str]:
    """Return the ids of the migrations that the database has; none if the schema is missing.

    This is every command's second statement, so it detects a session that changed since the first: raise DatabaseError.
    """
    try:
        found = connection.execute(
            "select pg_backend_pid() as pid, array_agg(migration_id::text) as ids from l2inv._yoyo_migration"
        ).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return set()
    assert found is not None
    connection.must_be_as_before(found)
    return set(found["ids"] or ())


def ahead(applied: set[str], schema: str) -> DatabaseError | None:
    """Return the error for a schema with migrations that this l2inv does not know, or None.

    Migrations of a later l2inv sort after all of this one's. Others were never released.
    """
    shipped = shipped_migrations()
    unknown = sorted(applied - shipped)
    if not unknown:
        return None
    if unknown[0] < max(shipped):
        return DatabaseError(
            f"schema {schema} was created by a development version of l2inv: it has {', '.join(unknown)}",
            "create a new one: name another database, or another database.schema, in the settings",
        )
    return DatabaseError(
        f"schema {schema} is ahead of this l2inv: it has {', '.join(unknown)}", "upgrade l2inv"
    )


def wrong(applied: set[str], schema: str) -> DatabaseError | None:
    """Return the error for a schema whose migrations are not those of this version, or None."""
    if not applied:
        return SchemaBehind(f"schema {schema} is not in the database yet", "run: l2inv migrate")
    unknown = ahead(applied, schema)
    missing = ", ".join(sorted(shipped_migrations() - applied))
    if unknown is None and missing:
        return SchemaBehind(f"schema {schema} is behind this l2inv: it lacks {missing}", "run: l2inv migrate")
    return unknown
