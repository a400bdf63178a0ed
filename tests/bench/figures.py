"""What is measured at each number of OPs: a function for each, on a filled schema."""

import json
import os
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from l2inv.config.settings import Qualification
from l2inv.database.connection import Connection
from l2inv.queries import observing_programs
from l2inv.queries.filters import Wanted
from l2inv.record import event_log
from l2inv.stages.mark_working import claiming, offers
from tests.bench.measure import Figure, Peer, Place, l2inv, milliseconds, process, server_ms, together

NOTE = {"note": "looked at by eye, see the movie of the slit jaw camera"}
PLAIN = (
    "insert into l2inv.plain (op_id, seq, kind, actor, detail, hash) values (%s, %s, 'noted', 'han', %s, %s)"
)


def reads(place: Place) -> Iterator[Figure]:
    """What people ask, with nothing prepared: the server's time for each."""
    some = [row["op_id"] for row in some_ops(place)]
    asked: list[tuple[str, float, int, Callable[[Connection, str], object]]] = [
        ("next", 1, 500, lambda connection, _: offers.offered(connection, "age", 10, Qualification())),
        ("history OP", 1, 500, observing_programs.history),
        ("show OP", 1, 500, observing_programs.show),
        ("status", 300, 20, lambda connection, _: observing_programs.status(connection)),
    ]
    for name, most_ms, times, act in asked:
        took = _asking(place, act, some[:times])
        yield Figure(name, f"{most_ms:g} ms", f"{took:.2f} ms", took <= most_ms)


def _asking(place: Place, act: Callable[[Connection, str], object], op_ids: list[str]) -> float:
    def ask() -> None:
        with place.connect() as connection:
            for op_id in op_ids:
                act(connection, op_id)

    return server_ms(place.url, ask) / len(op_ids)


def claims(place: Place) -> Iterator[Figure]:
    """`next --claim` beside what fetches a job from a queue of as many as OPs are ready: the server's time for each.

    Everybody keeps a connection and what is prepared on it: the peers are made for that.
    """
    with place.connect() as connection:
        row = connection.execute(
            "select count(*) as ops from l2inv.op_state where state = 'preprocessed'"
        ).fetchone()
    assert row
    some = min(800, row["ops"] // 10)
    for peer, batch, factor in (("procrastinate", 1, 2.5), ("pgqueuer", 10, 1.5)):
        with Peer(peer, place).filled(row["ops"]) as other:
            for processes in (1, 8):
                each = some // processes // batch
                theirs = other.server_ms_each("claim", processes, each, batch)
                ours = _claiming(place, processes, each, batch)
                what = "a claim" if batch == 1 else f"claims, {batch} in a batch"
                yield Figure(
                    f"{what}, {processes} at once",
                    f"{factor:g} x {peer}",
                    f"{ours:.2f} ms, {theirs:.2f} ms: {theirs / ours:.1f} x",
                    theirs / ours >= factor,
                )


def _claiming(place: Place, processes: int, each: int, batch: int) -> float:
    command = [sys.executable, "-m", "tests.bench.figures", place.url, place.schema, str(each), str(batch)]
    return server_ms(place.url, lambda: together([command] * processes)) / (processes * each)


def claim_some(url: str, schema: str, number: int, batch: int) -> None:
    due_at = datetime.now(UTC) + timedelta(days=14)
    with Place(url, schema, 0, Path()).connect(prepares=True) as connection:
        for _ in range(number):
            claimed = claiming.claim_first(
                connection, "age", Qualification(), Wanted(), f"han{os.getpid()}", due_at, batch
            )
            if len(claimed) != batch:
                raise RuntimeError("there are not enough OPs to claim")


def after_claims(place: Place) -> Iterator[Figure]:
    """`next` again after a tenth of all OPs was claimed, without a VACUUM by hand."""
    _claiming(place, 1, place.ops // 100, 10)
    took = _asking(
        place, lambda connection, _: offers.offered(connection, "age", 10, Qualification()), [""] * 500
    )
    yield Figure(f"next after {place.ops // 10:,} claims", "1 ms", f"{took:.2f} ms", took <= 1)


def one_event(place: Place) -> Iterator[Figure]:
    """One event with all that guards it, and one OP's history, as a client that keeps its connection sees them.

    Beside it an INSERT into the same columns and indexes of as many rows, and the same in eventsourcing.
    """
    rows, digest, detail = some_ops(place), os.urandom(32), json.dumps(NOTE)
    fresh = iter(rows)
    with place.connect(prepares=True) as connection:
        make_plain(connection)
        fill_plain(connection)

        def append() -> None:
            row = next(fresh)
            event = event_log.Event(row["op_id"], row["seq"], "noted", None, NOTE)
            assert event_log.append(connection, event, "han", None)

        def insert() -> None:
            row = random.choice(rows)
            seq = random.randrange(1000, 2**31)
            connection.execute(PLAIN, [row["op_id"], seq, detail, digest])

        history_ms = milliseconds(
            lambda: observing_programs.history(connection, random.choice(rows)["op_id"]), 1000
        )
        append_ms, insert_ms = milliseconds(append, 1900), milliseconds(insert, 1900)
        connection.execute("drop table l2inv.plain")
    yield Figure(
        "one event appended", "0.4 x a plain INSERT",
        f"{append_ms:.3f} ms, {insert_ms:.3f} ms: {insert_ms / append_ms:.2f} x", insert_ms / append_ms >= 0.4,
    )  # fmt: skip
    with Peer("eventsourcing", place).filled(place.ops) as other:
        for what, mine, act, factor in (
            ("one event appended", append_ms, "append", 2.0),
            ("history OP", history_ms, "load", 1.0),
        ):
            its = other.client_ms_each(act, 2000)
            yield Figure(
                what, f"{factor:g} x eventsourcing's {act}",
                f"{mine:.3f} ms, {its:.3f} ms: {its / mine:.1f} x", its / mine >= factor,
            )  # fmt: skip


def some_ops(place: Place) -> list[dict[str, Any]]:
    with place.connect() as connection:
        return connection.execute(
            "select op_id, seq from l2inv.op_state order by random() limit 2000"
        ).fetchall()


def make_plain(connection: Connection) -> None:
    """A table with the columns and indexes of the events, and without what guards them."""
    connection.execute("create table l2inv.plain (like l2inv.event including all)")


def fill_plain(connection: Connection) -> None:
    connection.execute("insert into l2inv.plain overriding system value select * from l2inv.event")
    connection.execute(
        "select setval(pg_get_serial_sequence('l2inv.plain', 'event_id'), max(event_id)) from l2inv.plain"
    )
    connection.execute("vacuum analyze l2inv.plain")


def whole_processes(place: Place) -> Iterator[Figure]:
    """What a person waits for, beside the bare imports."""
    python, config = sys.executable, place.config()
    connecting = f"import click, psycopg; psycopg.connect({place.url!r}).close()"
    pairs = [
        ("l2inv next", ["--config", str(config), "next"], connecting, 60),
        ("l2inv --help", ["--help"], "import click", 40),
        ("a usage error", ["next", "--nonsense"], "import click", 40),
    ]
    for name, argv, bare, most_ms in pairs:
        ours, theirs = [], []
        for _ in range(15):
            ours.append(process([python, "-m", "l2inv", *argv], (0, 2)).seconds)
            theirs.append(process([python, "-c", bare]).seconds)
        over = 1000 * (statistics.median(ours) - statistics.median(theirs))
        yield Figure(
            name,
            f"{most_ms} ms over the imports",
            f"{over:.0f} ms over {1000 * statistics.median(theirs):.0f}",
            over <= most_ms,
        )


def long_reads(place: Place) -> Iterator[Figure]:
    """What reads everything: how fast, and in how much memory."""
    config = place.config()
    checked = l2inv(config, "verify", "--json")
    told = json.loads(checked.out)
    if told["findings"]:
        raise RuntimeError(f"verify finds {told['findings'][:3]}")
    rate = told["checked"]["events"] / checked.seconds * 60
    yield Figure(
        "verify, all of it", "1,000,000 events a minute", f"{rate:,.0f}, {checked.seconds:.0f} s", rate >= 1e6
    )
    alone = l2inv(config, "verify", "events", "--json")
    yield Figure(
        "verify events",
        "",
        f"{told['checked']['events'] / alone.seconds * 60:,.0f} a minute, {alone.seconds:.0f} s",
    )
    copy = place.folder / f"{place.schema}.dump"
    copy.unlink(missing_ok=True)
    for name, done in {
        "verify": checked,
        "export": l2inv(config, "export"),
        "backup": l2inv(config, "backup", "--no-verify", str(copy)),
        "qualify": l2inv(config, "qualify"),
    }.items():
        yield Figure(
            f"memory of {name}", "400 MB", f"{done.peak_mb:.0f} MB, {done.seconds:.0f} s", done.peak_mb < 400
        )
    copy.unlink()


def disk(place: Place) -> Iterator[Figure]:
    with place.connect() as connection:
        rows = connection.execute(
            "select c.relname, pg_total_relation_size(c.oid) as total, pg_indexes_size(c.oid) as indexes, "
            "greatest(c.reltuples, 1) as rows from pg_class c where c.oid in ('l2inv.event'::regclass, 'l2inv.dataset_version'::regclass)"
        ).fetchall()
    for row in rows:
        each = row["total"] / row["rows"]
        target = "300 bytes" if row["relname"] == "event" else ""
        yield Figure(
            f"disk, one {row['relname'].replace('_', ' ')}", target,
            f"{each:.0f} bytes, {row['indexes'] / row['rows']:.0f} of them indexes", each <= 300 if target else None,
        )  # fmt: skip


if __name__ == "__main__":
    claim_some(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
