"""Connections to a database with this version's schema: checked, and for the embedded server migrated."""

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
    report: Callable[[str], None] = lambda line: None,
) -> Iterator[Connection]:
    """Yield a connection from open_connection() to a schema of this version. The embedded database is migrated if needed.

    Raise DatabaseError for PostgreSQL's errors, also inside the with block.
    """
    with translated(settings), open_connection(settings, url, application, report) as connection:
        try:
            problem = wrong(applied_migrations(connection), settings.database.schema)
        except psycopg.errors.InsufficientPrivilege:  # a role that may only read the views can rely on them
            problem = None
        if isinstance(problem, SchemaBehind) and (url or settings.database.url) == "embedded":
            from l2inv.database import migrate

            migrate.apply(connection, settings.database.schema)
        elif problem:
            raise problem
        yield connection
