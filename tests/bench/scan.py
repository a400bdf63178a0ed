"""A scan in which nothing changed, as cron runs it every night."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

from l2inv.domain import inventory
from l2inv.sample.inventory import make
from l2inv.sample.server import Store, serving
from l2inv.services.graphql import read
from l2inv.services.metadata_store import DATASETS
from tests.bench import load
from tests.bench.measure import Figure, Place, l2inv, measurement, median

DATASET_COUNT = 100_000


@measurement
def unchanged_scan(place: Place) -> Iterator[Figure]:
    """100,000 datasets from a saved response and over HTTP, beside a scan that decodes all, and the bytes read and hashed."""
    datasets = make(ops=DATASET_COUNT * 10 // 44, now=load.NOW)[:DATASET_COUNT]
    answer = json.dumps({"data": {"datasetInventories": datasets}}).encode()
    saved = place.folder / "saved.json"
    saved.write_bytes(answer)
    config = place.config(store_url=str(saved), max_answer_mb=2000)
    l2inv(config, "migrate")
    first = l2inv(config, "scan")
    rounds = [(_forgetting(place, config), l2inv(config, "scan").seconds) for _ in range(3)]
    decoding, again = (statistics.median(one) for one in zip(*rounds, strict=True))

    def read_and_hash() -> None:
        for raw in read(answer, DATASETS, "here"):
            inventory.raw_hash(raw)

    floor = median(read_and_hash, 3)
    each_us = 1e6 / len(datasets)
    yield Figure("first scan from a file", first.seconds * each_us, "µs a dataset")
    yield Figure("unchanged scan from a file", again * each_us, "µs a dataset")
    yield Figure("unchanged scan from a file", again / decoding, "x a scan that decodes all", 0.4)
    yield Figure("unchanged scan from a file", again / floor, "x (read + hash)", 2.5)
    with serving(Store(datasets)) as url:
        config = place.config(store_url=url, page_size=2000, total_timeout_seconds=3600)
        l2inv(config, "scan")  # over HTTP, they arrive in other bytes
        done = l2inv(config, "scan")
    yield Figure("unchanged scan over HTTP", done.seconds * each_us, "µs a dataset, sample store included")
    yield Figure("memory of scan over HTTP", done.peak_mb, "MB", 100)


def _forgetting(place: Place, config: Path) -> float:
    """Return the seconds of a scan that knows no bytes and so decodes every record."""
    with place.connect() as connection:
        connection.execute("delete from l2inv.received")
    return l2inv(config, "scan").seconds
