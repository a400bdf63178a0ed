"""Prints what l2inv's users wait for, beside its targets: python -m tests.bench [--ops 10000 --ops 1000000].

Everything runs on one private PostgreSQL in --folder, which needs about 6 GB for a million OPs.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from l2inv import embedded
from l2inv.database import open_connection
from l2inv.settings import Database, Settings
from tests.bench import figures, load

OF_EACH: list[Callable[[figures.Place], Iterator[figures.Figure]]] = [
    figures.reads, figures.whole_processes, figures.append, figures.claims, figures.disk, figures.long_reads,
]  # fmt: skip


@click.command()
@click.option("--ops", multiple=True, type=int, default=(10_000, 100_000, 1_000_000), help="How many OPs.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the server's data lie meanwhile.")
def main(ops: tuple[int, ...], folder: Path | None) -> None:
    """Measure l2inv at each number of OPs, and what does not depend on it."""
    folder = folder or Path(tempfile.mkdtemp(prefix="l2inv-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    url = embedded.start(folder / "server")
    try:
        of = load.lives(url, folder)
        for number in ops:
            place = figures.Place(url, f"ops_{number}", number, folder)
            with open_connection(Settings(database=Database(url=url, schema=place.schema))) as connection:
                seconds = figures.seconds(lambda c=connection, n=number: load.fill(c, of, n))  # type: ignore[misc]
            click.echo(f"\n{number:,} OPs (filled in {seconds:.0f} s)")
            for figure in OF_EACH:
                tell(figure(place))
            with open_connection(Settings(database=Database(url=url, schema=place.schema))) as connection:
                connection.execute(f"drop schema {place.schema} cascade")
        click.echo("\nwhatever there is already")
        place = figures.Place(url, "none", 0, folder)
        tell(figures.rules())
        tell(figures.many_at_once(place, of))
        tell(figures.scans(place))
    finally:
        embedded.stop(folder / "server")
        shutil.rmtree(folder)


def tell(rows: Iterator[figures.Figure]) -> None:
    for row in rows:
        word = {True: "yes", False: "NO", None: ""}[row.met]
        click.echo(f"{row.what:34} {row.target:26} {row.figure:42} {word}")


if __name__ == "__main__":
    main()
