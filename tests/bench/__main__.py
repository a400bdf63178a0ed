"""Measures what users wait for, and compares it with targets: python -m tests.bench [--only NAME] [--ops N].

Everything runs on one private PostgreSQL in --folder, which needs about 12 GB for a million OPs.
Each module of this package registers its own measurements: see measure.py.
"""

import importlib
import pkgutil
import shutil
import tempfile
from pathlib import Path

import click
import psycopg

from l2inv.database import embedded
from tests import bench
from tests.bench import load
from tests.bench.measure import MEASUREMENTS, Figure, Measurement, Place, seconds

for _module in pkgutil.iter_modules(bench.__path__, "tests.bench."):
    if not _module.name.endswith("__main__"):
        importlib.import_module(_module.name)


@click.command()
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    type=click.Choice(list(MEASUREMENTS)),
    help=", ".join(MEASUREMENTS),
)
@click.option(
    "--ops", multiple=True, metavar="N", type=int, default=(10_000,), show_default=True, help="How many OPs."
)
@click.option("--folder", type=click.Path(path_type=Path), help="Where the server's data are kept meanwhile.")
@click.option("--keep", is_flag=True, help="Keep the folder and what was filled for the next run.")
def main(only: tuple[str, ...], ops: tuple[int, ...], folder: Path | None, keep: bool) -> None:
    """Measure l2inv, all of it or each NAME, with N OPs where the number matters."""
    wanted = {name: MEASUREMENTS[name] for name in only or MEASUREMENTS}
    folder = folder or Path(tempfile.mkdtemp(prefix="l2inv-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    url = embedded.start(folder / "server")
    try:
        # What a disk takes to sync differs from machine to machine.
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("alter database l2inv set synchronous_commit = off")
        click.echo(f"{'what':58} {'measured':>10} {'target':>8} met")
        for number in sorted(ops):
            on_filled(wanted, Place(url, f"ops_{number}", number, folder), keep)
        for name, one in wanted.items():
            if not one.filled:
                place = Place(url, name, 0, folder)
                show(one, place)
                drop(place)
    finally:
        embedded.stop(folder / "server")
        if not keep:
            shutil.rmtree(folder)


def on_filled(wanted: dict[str, Measurement], place: Place, keep: bool) -> None:
    filled = [one for one in wanted.values() if one.filled]
    if not filled:
        return
    with place.connect() as connection:
        row = connection.execute("select to_regclass(%s) as it", [f"{place.schema}.op_state"]).fetchone()
        took = 0.0
        if row is None or row["it"] is None:
            of = load.lives(place.url, place.folder)
            took = seconds(lambda: load.fill(connection, of, place.ops))
    click.echo(f"{place.ops:,} OPs, filled in {took:.0f} s:")
    for one in filled:
        show(one, place)
    if not keep:
        drop(place)


def show(one: Measurement, place: Place) -> None:
    for figure in one.function(place):
        click.echo(line(figure))


def line(figure: Figure) -> str:
    met = {True: "yes", False: "NO", None: ""}[figure.met]
    target = "" if figure.target is None else f"{figure.target:g}"
    return f"{f'{figure.name}, {figure.unit}':58} {figure.measured:>10.4g} {target:>8} {met}".rstrip()


def drop(place: Place) -> None:
    with psycopg.connect(place.url, autocommit=True) as connection:
        connection.execute(f'drop schema if exists "{place.schema}" cascade')


if __name__ == "__main__":
    main()
