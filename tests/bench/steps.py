"""What is measured whatever there is already: the rules, steps over many OPs at once, scans."""

import json
import os
import statistics
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec

from l2inv.config.settings import Qualification
from l2inv.database import migrate
from l2inv.database.connection import Connection
from l2inv.domain import criteria, inventory
from l2inv.record import event_log
from l2inv.sample.inventory import make
from l2inv.sample.server import Store, serving
from l2inv.services.graphql import read
from l2inv.services.metadata_store import DATASETS
from tests.bench import load
from tests.bench.figures import make_plain
from tests.bench.measure import Figure, Place, l2inv, milliseconds, seconds

STEP = 100_000  # OPs or datasets


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


def many_at_once(place: Place, of: list[load.Life]) -> Iterator[Figure]:
    """100,000 OPs discovered, and judged, each in one statement, beside COPY of the same rows."""
    lives = list(load.copies(of, 0, STEP))
    first = [
        event_log.Event(life.op_id, 0, "discovered", "discovered", json.loads(life.events[0][3]))
        for life in lives
    ]
    judged = [
        event_log.Event(life.op_id, 1, *_kind_and_state(life), json.loads(life.events[1][3]))
        for life in lives
        if len(life.events) > 1 and life.events[1][0] == "judged"
    ]
    ours, copied = [], []
    for number in range(3):
        schema = f"step{number}"
        with place._replace(schema=schema).connect() as connection:
            migrate.apply(connection, schema)
            ours.append(
                [
                    seconds(lambda e=events: event_log.add(connection, e, "cron", 1))
                    for events in (first, judged)
                ]
            )  # type: ignore[misc]
            make_plain(connection)
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


def _copy(connection: Connection, events: list[event_log.Event]) -> None:
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
    """A first scan of 100,000 datasets and one where nothing changed, from a saved answer: the bytes are here.

    Beside it: the same bytes decoded into typed records and nothing else, and COPY of them as they are.
    """
    datasets = make(ops=STEP * 10 // 44, now=load.NOW)[:STEP]
    answer = json.dumps({"data": {"datasetInventories": datasets}}).encode()
    saved = place.folder / "saved.json"
    saved.write_bytes(answer)
    here = place._replace(schema="scanned")
    config = here.config(store_url=str(saved), max_answer_mb=2000)
    l2inv(config, "migrate")
    first = l2inv(config, "scan", "--json")
    again = statistics.median(l2inv(config, "scan").seconds for _ in range(3))
    decoder = msgspec.json.Decoder(inventory.Dataset)

    def decode() -> None:
        for raw in read(answer, DATASETS, "here"):
            with suppress(msgspec.ValidationError):  # the few that scan sets aside
                decoder.decode(raw)

    with here.connect() as connection:
        connection.execute(
            "create table l2inv.raw (like l2inv.dataset_version including all excluding constraints)"
        )
        texts = [
            bytes(raw).decode()
            for raw in read(answer, DATASETS, "here")
            if isinstance(inventory.read(raw), inventory.Record)
        ]
        decoding = statistics.median(seconds(decode) for _ in range(3))
        copying = seconds(lambda: _copy_raw(connection, texts))
    bare = decoding + copying
    yield Figure(
        f"first scan of {len(datasets):,} datasets", "2 x (decode + COPY)",
        f"{first.seconds:.1f} s, {bare:.1f} s: {first.seconds / bare:.1f} x", first.seconds <= 2 * bare,
    )  # fmt: skip
    yield Figure(
        "scan where nothing changed", "3 x decode",
        f"{again:.1f} s, {decoding:.1f} s: {again / decoding:.1f} x", again <= 3 * decoding,
    )  # fmt: skip
    ops = json.loads(first.out)["ops"]["new"]
    judging = l2inv(config, "qualify", "--as-of", "2099-01-01", "--json")
    yield Figure(
        f"qualify of {ops:,} OPs", "", f"{judging.seconds:.1f} s, {ops / judging.seconds:,.0f} OPs a second"
    )
    with here.connect() as connection:
        connection.execute("drop schema scanned cascade")
    for number in (STEP // 10, STEP):
        with serving(Store(datasets[:number])) as url:
            config = here.config(store_url=url, page_size=2000, total_timeout_seconds=3600)
            l2inv(config, "migrate")
            done = l2inv(config, "scan")
        yield Figure(
            f"memory of scan, {number:,} datasets", "400 MB",
            f"{done.peak_mb:.0f} MB, {done.seconds:.0f} s over HTTP", done.peak_mb < 400,
        )  # fmt: skip
        with here.connect() as connection:
            connection.execute("drop schema scanned cascade")


def _copy_raw(connection: Connection, texts: list[str]) -> None:
    with (
        connection.cursor() as cursor,
        cursor.copy(load.DATASETS.replace("dataset_version", "raw")) as rows,
    ):
        for number, text in enumerate(texts):
            rows.write_row([f"D{number}", 1, "op", b"0" * 32, text, 1])
