"""A connection to a database whose schema is that of this version: checked, and migrated where it is the embedded one."""

from collections.abc import Iterator
from contextlib import contextmanager

from l2inv.config.settings import Settings
from l2inv.database.connection import Connection, open_connection, translated
from l2inv.database.schema import ahead, applied_migrations, shipped_migrations
from l2inv.errors import DatabaseError


@contextmanager
def connected(settings: Settings, url: str | None = None) -> Iterator[Connection]:
    """Lend a connection, as open_connection gives it, whose schema is that of this l2inv. An embedded database is
    migrated by itself.

    Raise DatabaseError for whatever PostgreSQL refuses while it is lent.
    """
    with translated(settings), open_connection(settings, url) as connection:
        mend = _mend_of(connection, settings.database.schema)
        if mend and (url or settings.database.url) == "embedded" and "migrate" in mend.hint:
            from l2inv.database import migrate

            migrate.apply(connection, settings.database.schema)
        elif mend:
            raise mend
        yield connection


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
