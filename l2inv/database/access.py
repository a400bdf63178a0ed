"""A connection to a database whose schema is that of this version: checked, and migrated where it is the embedded one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from l2inv.config.settings import Settings
from l2inv.database.connection import Connection, open_connection, translated
from l2inv.database.schema import applied_migrations, wrong
from l2inv.errors import SchemaBehind


@contextmanager
def connected(
    settings: Settings,
    url: str | None = None,
    application: str = "l2inv",
    told: Callable[[str], None] = lambda line: None,
) -> Iterator[Connection]:
    """Lend a connection, as open_connection gives it, whose schema is that of this l2inv. An embedded database is
    migrated by itself.

    Raise DatabaseError for whatever PostgreSQL refuses while it is lent.
    """
    with translated(settings), open_connection(settings, url, application, told) as connection:
        try:
            problem = wrong(applied_migrations(connection), settings.database.schema)
        except psycopg.errors.InsufficientPrivilege:  # who may only read the views can rely on them
            problem = None
        if isinstance(problem, SchemaBehind) and (url or settings.database.url) == "embedded":
            from l2inv.database import migrate

            migrate.apply(connection, settings.database.schema)
        elif problem:
            raise problem
        yield connection
