"""What people ask for, as processes: beside the bare imports, or in seconds and megabytes."""

import statistics
import sys
from collections.abc import Iterator

from tests.bench.measure import Figure, Place, l2inv, measurement, process


@measurement(filled=True)
def start_up(place: Place) -> Iterator[Figure]:
    """Short commands, beside a process that imports click and psycopg, connects and runs one query."""
    config = str(place.config())
    query = f"import click, psycopg; psycopg.connect({place.url!r}).execute('select 1').fetchone()"
    for name, argv, bare, most in (
        ("next", ["--config", config, "next"], query, 1.3),
        ("status", ["--config", config, "status"], query, 1.3),
        ("--help", ["--help"], "import click", None),
    ):
        ours, floor = [], []
        for _ in range(11):
            ours.append(process([sys.executable, "-m", "l2inv", *argv]).seconds)
            floor.append(process([sys.executable, "-c", bare]).seconds)
        ratio = statistics.median(ours) / statistics.median(floor)
        yield Figure(name, ratio, "x the imports and one query" if bare is query else "x import click", most)


@measurement(filled=True)
def report(place: Place) -> Iterator[Figure]:
    page = place.folder / f"{place.schema}.html"
    done = l2inv(place.config(), "report", str(page))
    yield Figure("report", done.seconds, "s", 15 if place.ops >= 1_000_000 else None)
    page.unlink()
