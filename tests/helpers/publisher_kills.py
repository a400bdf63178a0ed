"""publish, killed with SIGKILL between any two of its steps."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from l2inv.database.connection import Connection
from l2inv.sample.server import Fault, Store
from tests.helpers.commands import Commands
from tests.helpers.waiting import WAITS_FOR_A_LOCK, has_ended, until, until_alone
from tests.helpers.warm import Warm

# What one instrument program is told with, in order, and what is recorded of it.
REQUESTS = ("Known", "Create", "Find")
SUBSTEPS = ("inversion_named", "inversion_created")
BORDERS = [
    *((when, n) for n in range(2 * len(REQUESTS)) for when in ("before request", "after request")),
    *(
        ("before event", n) for n in range(2 * len(SUBSTEPS) + 2)
    ),  # the last: published, but the run is not ended
]
Border = tuple[str, int]


def killed_at(border: Border, l2inv: Commands, store: Store, connection: Connection, warm: Warm) -> None:
    """Run publish and kills it at the n-th request, before or after the store does what it asks, or at the n-th
    event that it records, before that is committed: so after all that came before it."""
    when, n = border
    if when == "before event":
        _killed_while_recording(n, l2inv, connection, warm)
    else:
        _killed_while_asking(n, "before" if when == "before request" else "after", l2inv, store, warm)
    until_alone(connection)


def _killed_while_asking(
    n: int, drop: Literal["before", "after"], l2inv: Commands, store: Store, warm: Warm
) -> None:
    begun, started = len(store.requests), threading.Event()
    publisher: list[int] = []
    held, asked = len(store.inversions), ""

    def fault(operation: str, nth: int) -> Fault | None:
        nonlocal asked
        if len(store.requests) - begun <= n:
            return None
        assert started.wait(10)
        asked = operation
        os.kill(publisher[0], signal.SIGKILL)
        until(lambda: has_ended(publisher[0]))
        return Fault(drop=drop)

    store.fault = fault
    publisher.append(warm.start(l2inv, "publish"))
    started.set()
    assert warm.ended(publisher[0])[0] == -signal.SIGKILL
    if (drop, asked) == ("after", "Create"):  # the store does what nobody waits for any more
        until(lambda: len(store.inversions) > held)
    store.fault = None


def _killed_while_recording(n: int, l2inv: Commands, connection: Connection, warm: Warm) -> None:
    row = connection.execute("select count(*) as events from l2inv.event").fetchone()
    assert row is not None
    with blocking(connection, row["events"] + n):
        publisher = warm.start(l2inv, "publish")
        try:
            until(lambda: _waits(connection))
        finally:
            os.kill(publisher, signal.SIGKILL)
            warm.ended(publisher)


@contextmanager
def blocking(connection: Connection, events: int) -> Iterator[None]:
    """Let whoever records an event, or the end of a run, wait once there are so many events."""
    connection.execute(
        f"""
        create function l2inv.wait() returns trigger language plpgsql as $$ begin
            if (select count(*) from l2inv.event) >= {events} then perform pg_advisory_xact_lock(42); end if;
            return new;
        end $$;
        create trigger wait before insert on l2inv.event for each row execute function l2inv.wait();
        create trigger wait before update on l2inv.run for each row execute function l2inv.wait();
        select pg_advisory_lock(42);
        """
    )
    try:
        yield
    finally:
        connection.execute("select pg_advisory_unlock(42)")
        until_alone(connection)
        connection.execute("drop function l2inv.wait() cascade")


def _waits(connection: Connection) -> bool:
    return connection.execute(WAITS_FOR_A_LOCK).fetchone() is not None
