"""Publications with a real RabbitMQ, killed and cut off wherever it hurts: each file is catalogued at least once, each
inversion recorded exactly once.

L2INV_ATTACKS_SEED names other random points than the usual ones.
"""

import copy
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from msgspec import convert

from l2inv.config.settings import Settings
from l2inv.database.connection import Connection
from l2inv.queries.filters import Wanted
from l2inv.queries.observing_programs import list_ops
from l2inv.record import issued
from l2inv.sample.cataloger import cataloging
from l2inv.sample.server import Fault, Store
from l2inv.stages.mark_inverted import ready_event
from l2inv.stages.mark_working import claiming
from tests.helpers.commands import NOW, Commands
from tests.helpers.rabbitmq import Broker

SEED = int(os.environ.get("L2INV_ATTACKS_SEED", "1"))
PUBLICATIONS, FRAMES = 200, 5
INVERTED = "select from l2inv.op_state where state = 'inverted'"
Values = dict[str, Any]

pytestmark = pytest.mark.slow


class Catalog:
    """What the catalogers filed, and how often each file was named to them."""

    def __init__(self, store: Store) -> None:
        self.store, self.times = store, Counter[str]()

    def add_object(self, record: Values) -> None:
        self._add(self.store.objects, record)

    def add_frame(self, record: Values) -> None:
        self._add(self.store.frames, record)

    def _add(self, table: list[Values], record: Values) -> None:
        self.times[record["objectKey"]] += 1
        if self.times[record["objectKey"]] == 1:
            table.append(record)


@contextmanager
def cataloged(broker: Broker, store: Store) -> Iterator[Catalog]:
    with broker.connected() as channel:
        broker.declare(channel, **{"x-queue-type": "quorum"})
    catalog = Catalog(store)
    with cataloging(broker.url(), catalog.add_object, catalog.add_frame) as cataloger:
        yield catalog
    assert cataloger.refused == []


def many(store: Store, count: int) -> None:
    """Fill the store with so many OPs that are alike: each with the ViSP datasets of one that is invertible."""
    by_op: dict[str, list[Values]] = {}
    for dataset in store.datasets:
        if dataset["instrumentName"] == "VISP":
            by_op.setdefault(dataset["observingProgramExecutionId"], []).append(dataset)
    pattern = next(
        rows for rows in by_op.values() if len({row["instrumentProgramExecutionId"] for row in rows}) == 1
    )
    store.datasets = []
    for number in range(count):
        for n, row in enumerate(copy.deepcopy(pattern)):
            frames = row["frameCount"]
            row |= {
                "datasetInventoryId": number * 10 + n + 1, "datasetId": f"D{n}X{number:04}", "productId": f"L1-D{n}X{number:04}",
                "observingProgramExecutionId": f"eid_1_1_opMany_R001.{number:05}.1", "instrumentProgramExecutionId": f"id.{number}.1",
                "health": {"good": frames, "bad": None, "ill": None, "unknown": None}, "aoLocked": frames,
                "gosStatus": {"open": frames, "opening": None, "closed": None, "closing": None, "undefined": None},
                "boundingBox": "(10,10),(-10,-10)", "stokesParameters": "IQUV", "wavelengthMin": 629.5, "wavelengthMax": 630.9,
                "spectralLines": None,
            }  # fmt: skip
            store.datasets.append(row)


def deliver(connection: Connection, op_id: str) -> list[str]:
    """Claim an OP and record its ready event, with every file of the inversion named; return the files' keys."""
    claiming.claim(connection, op_id, "han", datetime.now(UTC) + timedelta(days=30))
    (one,) = issued.of_cycle(connection, op_id)
    row = connection.execute("select proposal_id from l2inv.op where op_id = %s", [op_id]).fetchone()
    assert row is not None
    folder, stem = issued.folder(row["proposal_id"], one.inversion_id), issued.stem(one.inversion_id)
    names = [f"{stem}_2022_06_03T18_03_{second:02}_89_L2.fits" for second in range(FRAMES)]
    names.append(f"{stem}_L2_metadata.asdf")
    ready = ready_event.Ready(
        op_id=op_id,
        software=ready_event.Software("DeSIRe", "4.1"),
        outputs=[ready_event.Output(f"globus://science/{folder}/{name}") for name in names],
    )
    assert ready_event.mark_inverted(connection, ready, "han", datetime.now(UTC))
    return [f"{folder}/{name}" for name in names]


def told(connection: Connection) -> Counter[tuple[str, str]]:
    rows = connection.execute("select op_id, kind from l2inv.event where run_id is not null")
    return Counter((row["op_id"], row["kind"]) for row in rows)


def test_200_publications_killed_and_cut_off_at_random(
    l2inv: Commands, store: Store, connection: Connection, broker: Broker
) -> None:
    random = Random(SEED)
    many(store, PUBLICATIONS)
    l2inv.settings["publish"] = {"catalog": {"url": broker.url(), "batch_size": 2, "await_seconds": 0}}
    l2inv.save()
    for stage in (("scan",), ("qualify", "--as-of", NOW.isoformat()), ("preprocess",)):
        l2inv(*stage)
    rules = convert({}, Settings).qualification
    op_ids = [op["op_id"] for op in list_ops(connection, Wanted(state="preprocessed"), rules, "ids")]
    assert len(op_ids) == PUBLICATIONS
    keys = [key for op_id in op_ids for key in deliver(connection, op_id)]

    def cut_off(operation: str, nth: int) -> Fault | None:
        """One answer in ten is lost, after the store did what it was asked, or before."""
        lost = random.random() < 0.1 and operation in ("Create", "Find", "Known")
        return Fault(drop=random.choice(("before", "after"))) if lost else None

    store.fault = cut_off
    kills = 0
    with cataloged(broker, store) as catalog:
        until = time.monotonic() + 200
        while connection.execute(INVERTED).fetchone() is not None:
            assert time.monotonic() < until, "it does not come to an end"
            publisher = l2inv.start("publish")
            began = time.monotonic()
            if kills < 25:
                time.sleep(random.uniform(0.6, 1.6))  # beyond the start of Python, somewhere in the work
                kills += publisher.poll() is None
                publisher.kill()
            said = publisher.communicate(timeout=120)[1]
            print(f"{publisher.returncode} after {time.monotonic() - began:.1f} s: {said.strip()[:200]}")
            assert "Traceback" not in said
        assert kills >= 10
        assert set(catalog.times) == set(keys), "each file was catalogued"
    again = {key: times for key, times in catalog.times.items() if times > 1}
    assert len(again) <= 2 * kills, "only the one batch that a kill kept from being recorded is sent again"
    assert len(store.inversions) == PUBLICATIONS
    recorded = told(connection)
    for op_id in op_ids:
        for kind in ("inversion_named", "inversion_created", "published"):
            assert recorded[op_id, kind] == 1, (op_id, kind)
    assert l2inv.json("status")["states"]["published"] == PUBLICATIONS
    assert l2inv.json("verify")["findings"] == []
