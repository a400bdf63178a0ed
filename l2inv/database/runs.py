"""Runs of stages: one at a time, recorded with their reports."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from l2inv.database import session
from l2inv.database.connection import Connection
from l2inv.documents import Json
from l2inv.errors import Busy, DatabaseError


@dataclass
class Run:
    """One run of a stage, and its report."""

    run_id: int
    stage: str
    actor: str
    report: Json = field(default_factory=dict)
    notes: Json = field(default_factory=dict)  # kept with the report, for the next run


@contextmanager
def stage_lock(connection: Connection, stage: str, hint: str) -> Iterator[None]:
    """Hold a stage's lock, which only one process on any host can.

    Raise Busy with the hint if another process holds it, and DatabaseError if it was lost because the session changed.
    """
    if not _one(connection, "select l2inv.take_lock(%s)", [stage]):
        since = _one(
            connection,
            # A run that is not recorded yet has just started.
            """
            select coalesce((select case when finished_at is null then started_at end from l2inv.run
                             where stage = %s order by run_id desc limit 1), clock_timestamp()) as since
            """,
            [stage],
        )
        raise Busy(f"{stage}: another run holds the lock", hint, since)
    lock: Json | None = {"pid": connection.pid, "held": True}
    try:
        yield
    finally:
        with suppress(psycopg.Error):  # a lost connection has given up its lock
            unlock = "select pid, pg_advisory_unlock(key) as held from l2inv.lock where name = %s"
            lock = connection.execute(unlock, [stage]).fetchone()
    if lock is None or lock["pid"] != connection.pid:
        raise DatabaseError(
            f"{stage}: the schema was replaced while it ran",
            "its latest events are in the new schema: run l2inv verify, then run it again",
        )
    if not lock["held"]:
        raise DatabaseError(*session.POOLED)


@contextmanager
def stage_run(connection: Connection, stage: str, actor: str) -> Iterator[Run]:
    """Yield a recorded run of a stage, holding the stage's lock.

    The report begins with run_id and stage and ends with the seconds it took. Raise Busy if another run of this stage,
    on any host, holds the lock.
    """
    with stage_lock(connection, stage, "nothing to do: that run does the work"):
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
            # The cause is raised again. If the connection failed, the run remains without an end.
            with suppress(psycopg.Error):
                incomplete = {"complete": False} if "complete" in run.report else {}
                failed = {"failed": str(problem) or type(problem).__name__}
                _finish(connection, run, run.report | incomplete | failed)
            raise
        run.report["seconds"] = round(time.monotonic() - started, 3)
        _finish(connection, run, run.report)


def _finish(connection: Connection, run: Run, result: Json) -> None:
    connection.execute(
        "update l2inv.run set finished_at = clock_timestamp(), result = %s where run_id = %s",
        [Jsonb(result | run.notes), run.run_id],
    )


def _one(connection: Connection, query: str, values: list[Any]) -> Any:
    row = connection.execute(query, values).fetchone()
    assert row is not None
    return next(iter(row.values()))
