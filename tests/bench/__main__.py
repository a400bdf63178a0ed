"""Prints what l2inv's users wait for, beside its targets: python -m tests.bench [--ops 10000 --ops 1000000].

Everything runs on one private PostgreSQL in --folder, which needs about 15 GB for a million OPs.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import psycopg

from l2inv.database import embedded
from tests.bench import figures, load, steps
from tests.bench.measure import Figure, Place, seconds

OF_EACH: list[Callable[[Place], Iterator[Figure]]] = [
    figures.reads, figures.whole_processes, figures.long_reads, figures.disk, figures.one_event, figures.claims, figures.after_claims,
]  # fmt: skip


@click.command()
@click.option("--ops", multiple=True, type=int, default=(10_000, 100_000, 1_000_000), help="How many OPs.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the server's data lie meanwhile.")
@click.option("--keep", is_flag=True, help="Leave the folder for another run, which then need not fill it.")
@click.option("--each/--no-each", default=True, help="Measure at each number of OPs.")
@click.option("--steps/--no-steps", "others", default=True, help="Measure what does not depend on it.")
def main(ops: tuple[int, ...], folder: Path | None, keep: bool, each: bool, others: bool) -> None:
    """Measure l2inv at each number of OPs, and what does not depend on it."""
    folder = folder or Path(tempfile.mkdtemp(prefix="l2inv-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    url = embedded.start(folder / "server")
    try:
        # Claims and appends do not wait for the disk.
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("alter database l2inv set synchronous_commit = off")
        of = load.lives(url, folder)
        for number in ops if each else ():
            measure_at(Place(url, f"ops_{number}", number, folder), of, keep)
        if others:
            click.echo("\nwhatever there is already")
            place = Place(url, "none", 0, folder)
            tell(steps.rules())
            tell(steps.many_at_once(place, of))
            tell(steps.scans(place))
    finally:
        embedded.stop(folder / "server")
        if not keep:
            shutil.rmtree(folder)


def measure_at(place: Place, of: list[load.Life], keep: bool) -> None:
    with place.connect() as connection:
        filled = connection.execute("select to_regclass(%s) as it", [f"{place.schema}.event"]).fetchone()
        assert filled
        took = 0.0 if filled["it"] else seconds(lambda: load.fill(connection, of, place.ops))
    click.echo(f"\n{place.ops:,} OPs (filled in {took:.0f} s)")
    for figure in OF_EACH:
        tell(figure(place))
    if not keep:
        with place.connect() as connection:
            connection.execute(f"drop schema {place.schema} cascade")


def tell(rows: Iterator[Figure]) -> None:
    for row in rows:
        word = {True: "yes", False: "NO", None: ""}[row.met]
        click.echo(f"{row.what:34} {row.target:26} {row.figure:42} {word}")


if __name__ == "__main__":
    main()
