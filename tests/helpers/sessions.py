"""Sessions with PostgreSQL that the commands of one test hand on to each other, as through a pooler in session mode.

A short command spends most of its time on a new session, which reads PostgreSQL's catalogs and compiles its triggers.
With L2INV_TEST_COLD each command has a session of its own, as each process has anyway.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self
from unittest import mock

import psycopg
from psycopg.pq import ExecStatus, PGconn, TransactionStatus, abc

from l2inv.database import session

_idle: dict[tuple[str, ...], abc.PGconn] = {}  # by what decides where a session is, and whose
_ended = PGconn.connect_start(b"host=/")
_ended.finish()


class _Lent(session.Connection):
    """A connection that leaves its session to the next one, reset as PgBouncer does it."""

    key: tuple[str, ...]

    @classmethod
    def connect(cls, conninfo: str = "", **parameters: Any) -> Self:
        key = (conninfo, *(f"{name}={value}" for name, value in os.environ.items() if name.startswith("PG")))
        connection = cls._again(key, parameters) or super().connect(conninfo, **parameters)
        connection.key = key
        return connection

    @classmethod
    def _again(cls, key: tuple[str, ...], parameters: dict[str, Any]) -> Self | None:
        pgconn = _idle.pop(key, None)
        if pgconn is None:
            return None
        connection = cls(pgconn, parameters["row_factory"])
        connection._autocommit = True
        named = "select pg_catalog.set_config('application_name', %s, false)"
        try:
            connection.execute(named, [parameters["application_name"]])
        except psycopg.OperationalError:  # the session was ended meanwhile
            return None
        return connection

    def close(self) -> None:
        if (
            self.pgconn.transaction_status == TransactionStatus.IDLE
            and self.key not in _idle
            and self.pgconn.exec_(b"discard all").status == ExecStatus.COMMAND_OK
        ):
            _idle[self.key], self.pgconn = self.pgconn, _ended
        super().close()


@contextmanager
def handed_on() -> Iterator[None]:
    """Have connections that are opened here leave their sessions to later ones, until end_all()."""
    if os.environ.get("L2INV_TEST_COLD"):
        yield
    else:
        with mock.patch.object(session, "Connection", _Lent):
            yield


def end_all() -> None:
    while _idle:
        _idle.popitem()[1].finish()
