"""Queries as processes: compared with the bare imports, or in seconds and megabytes."""

import statistics
import sys
from collections.abc import Iterator

from l2inv.config.settings import Settings
from l2inv.stages.mark_working import offers
from tests.bench.measure import Figure, Place, l2inv, measurement, median, on_a_terminal, process


@measurement(filled=True)
def start_up(place: Place) -> Iterator[Figure]:
    """CPU time of short commands on a terminal, beside a process that imports click and psycopg, connects and runs one query."""
    config = str(place.config())
    query = f"import click, psycopg; psycopg.connect({place.url!r}).execute('select 1').fetchone()"
    with place.connect() as connection:
        row = connection.execute("select min(op_id) as op_id from l2inv.op_state").fetchone()
    assert row
    for name, argv, bare, most in (
        ("next", ["--config", config, "next"], query, 1.3),
        ("status", ["--config", config, "status"], query, 1.3),
        ("history", ["--config", config, "history", row["op_id"]], query, 1.3),
        ("--help", ["--help"], "import click", None),
    ):
        ratios = []
        for _ in range(11):
            ours = on_a_terminal([sys.executable, "-m", "l2inv", *argv])
            ratios.append(ours.cpu_seconds / process([sys.executable, "-c", bare]).cpu_seconds)
        unit = "x the imports and one query" if bare is query else "x import click"
        yield Figure(f"{name} on a terminal", statistics.median(ratios), unit, most)


# What `list --json` cannot do without: each row of l2inv.op, read by a server-side cursor and printed.
BARE_LIST = """
import click, psycopg
with psycopg.connect({url!r}) as connection, connection.cursor("bare") as cursor:
    cursor.itersize = 1000
    for row in cursor.execute('select * from "{schema}".op order by op_id'):
        print(row)
"""


@measurement(filled=True)
def listing(place: Place) -> Iterator[Figure]:
    """`list --json`, measures of every dataset included, beside the same rows of l2inv.op without them."""
    done = l2inv(place.config(), "list", "--json")
    bare = process([sys.executable, "-c", BARE_LIST.format(url=place.url, schema=place.schema)])
    yield Figure("list --json", done.seconds / bare.seconds, "x l2inv.op by a server-side cursor", 2)
    yield Figure("list --json, memory", done.peak_mb, "MB", 100)


@measurement(filled=True)
def next_query(place: Place) -> Iterator[Figure]:
    """What `next` reads: an index leads to its rows, and those that are ready are counted."""
    rules = Settings().qualification
    with place.connect() as connection:
        took = median(lambda: offers.offered(connection, "r0_class", 20, rules), 21)
    yield Figure("next, read", took * 1000, "ms")


@measurement(filled=True)
def report(place: Place) -> Iterator[Figure]:
    page = place.folder / f"{place.schema}.html"
    done = l2inv(place.config(), "report", str(page))
    yield Figure("report", done.seconds, "s", 15 if place.ops >= 1_000_000 else None)
    page.unlink()
