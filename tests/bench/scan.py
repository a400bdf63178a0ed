"""A scan where nothing has changed, which is what cron runs every night."""

import hashlib
import json
import statistics
from collections.abc import Iterator

from l2inv.sample.inventory import make
from l2inv.sample.server import Store, serving
from l2inv.services.graphql import read
from l2inv.services.metadata_store import DATASETS
from tests.bench import load
from tests.bench.measure import Figure, Place, l2inv, measurement, median

DATASET_COUNT = 100_000


@measurement
def unchanged_scan(place: Place) -> Iterator[Figure]:
    """100,000 datasets from a saved response and over HTTP, beside reading and hashing the same bytes."""
    datasets = make(ops=DATASET_COUNT * 10 // 44, now=load.NOW)[:DATASET_COUNT]
    answer = json.dumps({"data": {"datasetInventories": datasets}}).encode()
    saved = place.folder / "saved.json"
    saved.write_bytes(answer)
    config = place.config(store_url=str(saved), max_answer_mb=2000)
    l2inv(config, "migrate")
    first = l2inv(config, "scan")
    again = statistics.median(l2inv(config, "scan").seconds for _ in range(3))

    def read_and_hash() -> None:
        for raw in read(answer, DATASETS, "here"):
            hashlib.sha256(bytes(raw)).digest()

    floor = median(read_and_hash, 3)
    each_us = 1e6 / len(datasets)
    yield Figure("first scan from a file", first.seconds * each_us, "µs a dataset")
    yield Figure("unchanged scan from a file", again * each_us, "µs a dataset")
    yield Figure("unchanged scan from a file", again / floor, "x (read + hash)", 2.5)
    with serving(Store(datasets)) as url:
        config = place.config(store_url=url, page_size=2000, total_timeout_seconds=3600)
        done = l2inv(config, "scan")
    yield Figure("scan over HTTP", done.seconds * each_us, "µs a dataset, sample store included")
    yield Figure("memory of scan over HTTP", done.peak_mb, "MB")
