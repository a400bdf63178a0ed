"""What one would use instead, through its public API: run by the Python of an environment that has it, as a program.

    python peers.py PEER ACT URI NUMBER [BATCH]

It does the act NUMBER times; eventsourcing prints the median of the milliseconds. It imports nothing of l2inv's.
"""

import asyncio
import hashlib
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

PACKAGES = ("procrastinate>=3.5,<4", "pgqueuer[asyncpg]>=1,<2", "eventsourcing[postgres]>=9.4,<10")
AT_ONCE = 10_000
EVENTS_EACH = 5  # of an aggregate, in eventsourcing
NAMES = UUID("00000000-0000-0000-0000-000000000000")


def milliseconds(times: int, act: Callable[[int], Any]) -> float:
    took = []
    for number in range(times):
        begun = time.perf_counter()
        act(number)
        took.append(time.perf_counter() - begun)
    return 1000 * statistics.median(took)


def procrastinate(act: str, uri: str, number: int, batch: int) -> float:
    from procrastinate import App, PsycopgConnector

    async def run() -> float:
        app = App(connector=PsycopgConnector(conninfo=uri, min_size=1, max_size=1))
        task = app.task(name="invert", pass_context=False)(print)
        async with app.open_async():
            if act == "fill":
                await app.schema_manager.apply_schema_async()
                for start in range(0, number, AT_ONCE):
                    jobs = [{"op": n} for n in range(start, min(start + AT_ONCE, number))]
                    await task.configure().batch_defer_async(*jobs)
                return 0.0
            worker_id = await app.job_manager.register_worker()
            for _ in range(number):
                assert await app.job_manager.fetch_job(None, worker_id)
            return 0.0

    return asyncio.run(run())


def pgqueuer(act: str, uri: str, number: int, batch: int) -> float:
    import asyncpg
    from pgqueuer.db import AsyncpgDriver
    from pgqueuer.ports.repository import EntrypointExecutionParameter
    from pgqueuer.queries import Queries

    async def run() -> float:
        queries = Queries(AsyncpgDriver(await asyncpg.connect(uri)))
        if act == "fill":
            await queries.install()
            for start in range(0, number, AT_ONCE):
                many = min(AT_ONCE, number - start)
                await queries.enqueue(["invert"] * many, [b"{}"] * many, [0] * many)
            return 0.0
        for _ in range(number):
            jobs = await queries.dequeue(
                batch_size=batch,
                entrypoints={"invert": EntrypointExecutionParameter(0)},
                queue_manager_id=NAMES,
                global_concurrency_limit=None,
                heartbeat_timeout=timedelta(days=1),
            )
            assert len(jobs) == batch
        return 0.0

    return asyncio.run(run())


def eventsourcing(act: str, uri: str, number: int, batch: int) -> float:
    from eventsourcing.persistence import StoredEvent
    from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore

    parts, options = urlsplit(uri), parse_qs(urlsplit(uri).query)
    store = PostgresDatastore(
        parts.path[1:], options["host"][0], options["port"][0], options["user"][0], "unused", pool_size=1
    )
    recorder = PostgresApplicationRecorder(store, events_table_name="stored_events")

    def event(aggregate: int, version: int) -> StoredEvent:
        return StoredEvent(named(aggregate), version, "l2inv.events:Noted", b"x" * 170)

    if act == "fill":  # one by one its own way to insert them would take hours
        recorder.create_table()
        with store.get_connection() as connection:
            connection.execute(
                "insert into stored_events (originator_id, originator_version, topic, state) "
                "select md5(a::text)::uuid, v, 'l2inv.events:Noted', convert_to(repeat('x', 170), 'UTF8') "
                f"from generate_series(0, {number - 1}) a, generate_series(1, {EVENTS_EACH}) v"
            )
        return 0.0
    if act == "append":
        return milliseconds(number, lambda n: recorder.insert_events([event(n % number, EVENTS_EACH + 1)]))
    return milliseconds(number, lambda n: recorder.select_events(named(n % number)))


def named(aggregate: int) -> UUID:
    return UUID(hashlib.md5(str(aggregate).encode()).hexdigest())


if __name__ == "__main__":
    peer, act, uri, number, *rest = sys.argv[1:]
    what = {"procrastinate": procrastinate, "pgqueuer": pgqueuer, "eventsourcing": eventsourcing}[peer]
    print(what(act, uri, int(number), int(rest[0]) if rest else 1))
