"""Waiting for another process or thread."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from tests.helpers import sessions

# Whoever waits for a lock in this database: other tests use the same server at the same time. pg_stat_activity
# would be read once a transaction, and the lock of a row, which is a transaction's, names no database.
WAITS_FOR_A_LOCK = """
    select from pg_locks where not granted and pid in (
        select pid from pg_locks
        where database = (select oid from pg_database where datname = current_database())
    )
    """


def until(holds: Callable[[], object], what: str = "", seconds: float = 30) -> None:
    """Return once something holds; fail where it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what or holds}"
        time.sleep(0.01)


def until_alone(connection: psycopg.Connection[Any], but: int = 0) -> None:
    """Wait until whoever else was connected to a database has left it; all but one process of the server."""
    others = """
        select from pg_stat_activity where datname = current_database() and pid not in (pg_backend_pid(), %s)
            and backend_type = 'client backend'
        """
    sessions.end_all()
    until(lambda: connection.execute(others, [but]).fetchone() is None)


def has_ended(pid: int) -> bool:
    """Return whether a process has ended, and its parent may not have asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True
