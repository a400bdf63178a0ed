"""What is measured, a function for each: on a filled schema, in rounds, beside what one would use instead."""

import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psycopg

from l2inv import criteria, inventory, migrate, offers, record, science, views
from l2inv.database import Connection, open_connection
from l2inv.graphql import read
from l2inv.metadata_store import DATASETS
from l2inv.sample.inventory import make
from l2inv.settings import Database, Qualification, Settings
from tests.bench import load

STEP = 100_000  # OPs or datasets in what is done to many at once


class Figure(NamedTuple):
    what: str
    target: str
    figure: str
    met: bool | None = None


class Place(NamedTuple):
    """Where it is measured: a server, a schema on it with so many OPs, and a folder for files."""

    url: str
    schema: str
    ops: int
    folder: Path

    def connect(self) -> Connection:
        return open_connection(Settings(database=Database(url=self.url, schema=self.schema)))

    def config(self, **store: Any) -> Path:
        return load.config(self.folder, self.url, self.schema, **store)


def milliseconds(act: Callable[[], object], rounds: int = 21) -> float:
    """The median of so many rounds, after one that is not counted."""
    act()
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        act()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1000


class Process(NamedTuple):
    seconds: float
    peak_mb: float
    out: str


def l2inv(config: Path, *argv: str) -> Process:
    """Runs a command in a process of its own."""
    return process([sys.executable, "-m", "l2inv", "--config", str(config), *argv])


def process(command: Sequence[str], codes: tuple[int, ...] = (0,)) -> Process:
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout
        out = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in codes:
        raise RuntimeError(f"{command} ended with {child.returncode}")
    return Process(time.perf_counter() - begun, usage.ru_maxrss / 1024, out)


def reads(place: Place) -> Iterator[Figure]:
    """What people ask, on a connection that is there, as seen by the client."""
    with place.connect() as connection:
        rows = connection.execute("select op_id from l2inv.op_state order by random() limit 200").fetchall()
        some = [row["op_id"] for row in rows]
        asked: list[tuple[str, float, Callable[[], object]]] = [
            ("next", 1, lambda: offers.offered(connection, "age", 10)),
            ("history OP", 1, lambda: views.history(connection, random.choice(some))),
            ("show OP", 1, lambda: views.show(connection, random.choice(some))),
            ("status", 300, lambda: views.status(connection)),
        ]
        for name, most_ms, act in asked:
            took = milliseconds(act)
            yield Figure(name, f"{most_ms:g} ms", f"{took:.2f} ms", took <= most_ms)


def claims(place: Place) -> Iterator[Figure]:
    """`next --claim` on warm connections, the transaction's end included."""
    for processes, each in ((1, 400), (8, 100)):
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            begun = time.perf_counter()
            took = pool.map(_claims, [(place, each)] * processes, chunksize=1)
            del begun
        rate = sum(each / seconds for seconds in took)
        yield Figure(
            f"claims, {processes} at once", "", f"{rate:.0f} a second, {1000 * processes / rate:.2f} ms each"
        )


def _claims(job: tuple[Place, int]) -> float:
    place, number = job
    due_at = datetime.now(UTC) + timedelta(days=14)
    with place.connect() as connection:
        science.claim_first(connection, "age", offers.Wanted(), f"han{os.getpid()}", due_at)
        begun = time.perf_counter()
        for _ in range(number):
            if science.claim_first(connection, "age", offers.Wanted(), f"han{os.getpid()}", due_at) is None:
                raise RuntimeError("there are not enough OPs to claim")
        return time.perf_counter() - begun


PLAIN = (
    "insert into l2inv.plain (op_id, seq, kind, actor, detail, hash) values (%s, %s, 'noted', 'han', %s, %s)"
)


def append(place: Place) -> Iterator[Figure]:
    """One event, and a plain INSERT into the same columns and indexes. Neither waits for the disk."""
    detail = {"note": "looked at by eye, see the movie of the slit jaw camera"}
    with place.connect() as connection, plain(connection):
        connection.execute("set synchronous_commit = off")
        rows = connection.execute(
            "select op_id, seq from l2inv.op_state order by random() limit 5000"
        ).fetchall()
        ours, theirs, digest = iter(rows), iter(rows), os.urandom(32)

        def event() -> None:
            row = next(ours)
            added = record.add(
                connection, [record.Event(row["op_id"], row["seq"], "noted", None, detail)], "han", None
            )
            assert added

        def insert() -> None:
            row = next(theirs)
            connection.execute(PLAIN, [row["op_id"], row["seq"] + 1, json.dumps(detail), digest])

        mine, its = milliseconds(event, 2000), milliseconds(insert, 2000)
    yield Figure(
        "one event appended",
        "0.4 x a plain INSERT",
        f"{mine:.2f} ms, {its:.2f} ms: {its / mine:.2f} x",
        its / mine >= 0.4,
    )


@contextmanager
def plain(connection: Connection) -> Iterator[None]:
    """A table with the columns and indexes of the events, and without what guards them."""
    connection.execute("create table l2inv.plain (like l2inv.event including all)")
    yield
    connection.execute("drop table l2inv.plain")


def many_at_once(place: Place, of: list[load.Life]) -> Iterator[Figure]:
    """100,000 OPs discovered, and judged, each in one statement, beside COPY of the same rows."""
    lives = list(load.copies(of, 0, STEP))
    first = [
        record.Event(life.op_id, 0, "discovered", "discovered", json.loads(life.events[0][3]))
        for life in lives
    ]
    judged = [
        record.Event(life.op_id, 1, *_kind_and_state(life), json.loads(life.events[1][3]))
        for life in lives
        if len(life.events) > 1 and life.events[1][0] == "judged"
    ]
    ours, copied = [], []
    for number in range(3):
        schema = f"step{number}"
        with open_connection(Settings(database=Database(url=place.url, schema=schema))) as connection:
            migrate.apply(connection, schema)
            ours.append(
                [seconds(lambda e=events: record.add(connection, e, "cron", 1)) for events in (first, judged)]
            )  # type: ignore[misc]
            with plain(connection):
                copied.append([seconds(lambda e=events: _copy(connection, e)) for events in (first, judged)])  # type: ignore[misc]
            connection.execute(f"drop schema {schema} cascade")
    for which, (name, most) in enumerate([("OPs discovered", 2.5), ("OPs judged", 5.0)]):
        mine, its = (statistics.median(round[which] for round in rounds) for rounds in (ours, copied))
        number = len((first, judged)[which])
        yield Figure(
            f"{number:,} {name} at once",
            f"{most:g} x COPY",
            f"{mine:.1f} s, {its:.1f} s: {mine / its:.1f} x",
            mine / its <= most,
        )


def _kind_and_state(life: load.Life) -> tuple[str, Any]:
    return life.events[1][0], life.events[1][1]


def seconds(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def _copy(connection: Connection, events: list[record.Event]) -> None:
    digest = os.urandom(32)
    with (
        connection.cursor() as cursor,
        cursor.copy(
            "copy l2inv.plain (op_id, seq, kind, state, actor, run_id, detail, hash) from stdin"
        ) as copy,
    ):
        for event in events:
            copy.write_row(
                [
                    event.op_id,
                    event.after + 1,
                    event.kind,
                    event.state,
                    "cron",
                    1,
                    json.dumps(event.detail),
                    digest,
                ]
            )


def scans(place: Place) -> Iterator[Figure]:
    """A first scan of 100,000 datasets and one where nothing changed, from a saved answer: the bytes are here."""
    datasets = make(ops=STEP * 10 // 44, now=load.NOW)[:STEP]
    answer = json.dumps({"data": {"datasetInventories": datasets}}).encode()
    saved = place.folder / "saved.json"
    saved.write_bytes(answer)
    here = place._replace(schema="scanned")
    config = here.config(store_url=str(saved), max_answer_mb=2000)
    l2inv(config, "migrate")
    first, again = (l2inv(config, "scan", "--json") for _ in range(2))
    with here.connect() as connection:
        connection.execute("create table l2inv.raw (like l2inv.dataset_version including all)")

        def decode() -> list[bytes]:
            return [
                kept.text
                for one in read(answer, DATASETS, "here")
                if isinstance(kept := inventory.read(one), inventory.Record)
            ]

        texts = decode()
        decoding = statistics.median(seconds(decode) for _ in range(3))

        def copy() -> None:
            with (
                connection.cursor() as cursor,
                cursor.copy(load.DATASETS.replace("dataset_version", "raw")) as rows,
            ):
                for number, text in enumerate(texts):
                    rows.write_row([f"D{number}", 1, "op", b"0" * 32, text.decode(), 1])

        copying = seconds(copy)
    bare = decoding + copying
    yield Figure(
        f"first scan of {len(datasets):,} datasets", "2 x decode + COPY",
        f"{first.seconds:.1f} s, {bare:.1f} s: {first.seconds / bare:.1f} x", first.seconds <= 2 * bare,
    )  # fmt: skip
    yield Figure(
        "scan where nothing changed", "3 x decode", f"{again.seconds:.1f} s, {decoding:.1f} s: {again.seconds / decoding:.1f} x",
        again.seconds <= 3 * decoding,
    )  # fmt: skip
    yield Figure(
        "memory of scan, the answer in one piece",
        "400 MB",
        f"{first.peak_mb:.0f} MB of {len(answer) / 1e6:.0f}",
        None,
    )
    ops = json.loads(first.out)["ops"]["new"]
    judging = l2inv(config, "qualify", "--as-of", "2099-01-01", "--json")
    yield Figure(
        f"qualify of {ops:,} OPs", "", f"{judging.seconds:.1f} s, {ops / judging.seconds:,.0f} OPs a second"
    )
    with here.connect() as connection:
        connection.execute("drop schema scanned cascade")


def rules() -> Iterator[Figure]:
    """The rules alone, on one core."""
    by_op: dict[str, list[inventory.Dataset]] = {}
    for raw in make(now=load.NOW):
        if isinstance(one := inventory.read(msgspec.json.encode(raw)), inventory.Record):
            by_op.setdefault(str(raw["observingProgramExecutionId"]), []).append(one.dataset)
    ops, judged = list(by_op.values()), Qualification()

    def once() -> None:
        for datasets in ops:
            criteria.judge(datasets, judged)

    rate = len(ops) / milliseconds(once) * 1000
    yield Figure("the rules", "20,000 OPs a second", f"{rate:,.0f} OPs a second", rate >= 20_000)


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
    copy = place.folder / f"{place.schema}.gz"
    copy.unlink(missing_ok=True)
    for name, done in {
        "verify": checked,
        "export": l2inv(config, "export"),
        "backup": l2inv(config, "backup", str(copy)),
        "qualify": l2inv(config, "qualify"),
        "list --json": l2inv(config, "list", "--json"),
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


def analysed(connection: Connection, statement: str) -> float:
    """Milliseconds that the server says a statement took."""
    plan = psycopg.Cursor(connection).execute(f"explain (analyze, format json) {statement}").fetchone()
    assert plan
    return float(plan[0][0]["Execution Time"])
