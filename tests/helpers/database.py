"""The PostgreSQL of the tests: where it is, and databases copied from a template within milliseconds."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Composed
from pytest_postgresql.janitor import DatabaseJanitor

from tests.helpers import sessions

SERVER = "L2INV_TEST_SERVER"  # the environment variable with its URL
MIGRATED = "L2INV_TEST_TEMPLATE"  # and with the name of a database that is migrated and empty


def quick_folder() -> Path:
    """Create a folder in memory, if there is space: databases and files are made ten times as fast there."""
    memory = Path("/dev/shm")
    has_room = (
        memory.is_dir()
        and os.access(memory, os.W_OK)
        and not os.statvfs(memory).f_flag & os.ST_NOEXEC
        and shutil.disk_usage(memory).free > 2**31
    )
    return Path(tempfile.mkdtemp(prefix="l2inv-tests-", dir=memory if has_room else None))


def url_of(name: str) -> str:
    """Return how a database of the server is reached, in so many words as a person would."""
    given = conninfo_to_dict(os.environ[SERVER])
    where = {part: str(given[part]) for part in ("host", "port", "user", "password") if given.get(part)}
    return make_conninfo("", dbname=name, **where)


def copy(name: str, template: str) -> str:
    """Make a database as another one is, and return its URL."""
    sessions.end_all()  # of a database in use, PostgreSQL makes no copy
    _janitor(name, template).init()
    return url_of(name)


def drop(name: str) -> None:
    _janitor(name).drop()


@cache
def _server() -> psycopg.Connection:
    """Return this process's one connection for making and dropping: a new one for each costs as much as the copy."""
    server = psycopg.connect(url_of("postgres"), autocommit=True)
    atexit.register(server.close)
    return server


class _Janitor(DatabaseJanitor):
    @contextmanager
    def cursor(self, dbname: str | None = None) -> Iterator[psycopg.Cursor]:
        with _server().cursor() as cursor:
            yield cursor

    def _build_create_database_sql(self) -> Composed:
        # Copied through the log, as is the default from PostgreSQL 15 on, a database costs twice as much.
        strategy = " strategy file_copy" if _server().info.server_version >= 150000 else ""
        return super()._build_create_database_sql() + SQL(strategy)


def _janitor(name: str, template: str | None = None) -> DatabaseJanitor:
    where = {part: str(given) for part, given in conninfo_to_dict(url_of(name)).items()}
    return _Janitor(
        user=where.get("user", ""),
        host=where.get("host", ""),
        port=where.get("port", ""),
        password=where.get("password"),
        dbname=name,
        template_dbname=template,
    )


@contextmanager
def copied(name: str, template: str) -> Iterator[str]:
    """Yield a copy of a database."""
    try:
        yield copy(name, template)
    finally:
        drop(name)
