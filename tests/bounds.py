"""Tests l2inv with its oldest and its newest dependencies: python -m tests.bounds [oldest] [newest] [--keep].

Each set gets an environment of its own in a temporary folder: the lowest version that pyproject.toml allows of each direct
dependency, or what pip picks. `newest --keep` writes what pip picked to tests/constraints.txt.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import click

from l2inv import __version__

TOP = Path(__file__).parents[1]
CONSTRAINTS = TOP / "tests" / "constraints.txt"
# Between them these use every dependency, the extras' too.
TESTED = (
    "cli/test_terminal.py", "database/test_database.py", "products", "project/test_tutorial.py", "queries/test_report.py",
    "services/test_metadata_store.py", "services/test_notify.py", "stages/test_scan.py",
)  # fmt: skip
HEADING = "# What l2inv {version} was tested with on Python {python}: pip install -e '.[test]' -c tests/constraints.txt\n"


# What a user of l2inv installs: the dependencies and these extras.
EXTRAS = ("amqp", "demo", "embedded", "notify", "plots", "products")


def requirements(*extras: str) -> list[str]:
    """Return what pyproject.toml names for the extras, l2inv itself left out."""
    optional = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return [one for extra in extras for one in optional[extra] if not one.startswith("l2inv")]


def direct() -> list[str]:
    """Return each direct dependency of a user's installation."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *requirements(*EXTRAS)]


def lowest() -> str:
    """Return pip's constraints that pin each direct dependency to its lower bound."""
    pins = []
    for one in direct():
        found = re.match(r"([\w.-]+)(?:\[[^\]]*\])?>=([\w.]+)", one)
        if found is None:
            raise click.ClickException(f"pyproject.toml: {one} has no lower bound; write NAME>=VERSION")
        pins.append(f"{found[1]}=={found[2]}\n")
    return "".join(pins)


def passes(name: str, folder: Path, keep: bool) -> bool:
    python = str(folder / name / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q"]
    if name == "newest":
        install += ["-e", f"{TOP}[test]"]
    else:
        pins = folder / "oldest.txt"
        pins.write_text(lowest())
        # The package dkist, which only reads what tests wrote, asks for newer ones itself.
        tools = [one for one in requirements("test") if not one.startswith("dkist")]
        install += ["-c", str(pins), "-e", f"{TOP}[{','.join(EXTRAS)}]", *tools]
    subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
    if subprocess.run(install, check=False).returncode != 0:
        return False
    listed = [python, "-m", "pip", "freeze", "--exclude-editable"]
    freeze = subprocess.run(listed, check=True, capture_output=True, text=True).stdout
    click.echo(f"{name}:\n{freeze}")
    tests = [f"tests/{path}" for path in TESTED]
    done = subprocess.run([python, "-m", "pytest", "-p", "no:cacheprovider", *tests], cwd=TOP, check=False)
    if keep and name == "newest" and done.returncode == 0:
        CONSTRAINTS.write_text(HEADING.format(version=__version__, python=sys.version.split()[0]) + freeze)
    return done.returncode == 0


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(["oldest", "newest"]), metavar="[oldest] [newest]")
@click.option("--keep", is_flag=True, help="Write what passed as newest to tests/constraints.txt.")
def main(names: tuple[str, ...], keep: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="l2inv-bounds-") as folder:
        results = {name: passes(name, Path(folder), keep) for name in names or ("oldest", "newest")}
    for name, passed in results.items():
        click.echo(f"{name}: {'passed' if passed else 'FAILED'}")
    sys.exit(not all(results.values()))


if __name__ == "__main__":
    main()
