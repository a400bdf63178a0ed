"""docs/tutorial.md, executed in full."""

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from l2inv.cli import main
from l2inv.database import embedded
from l2inv.sample import inventory
from l2inv.sample.server import Store, serving
from tests.helpers.database import quick_folder
from tests.helpers.documents import TOP, blocks, same, steps

TUTORIAL = TOP / "docs" / "tutorial.md"


class Terminal:
    """Runs a command line as a shell would: l2inv in this process, what else there is by the shell."""

    def __init__(self) -> None:
        self.env: dict[str, str] = {}
        self.exit_code = 0

    def run(self, line: str) -> str:
        words = shlex.split(line)
        match words:
            case ["export", assignment]:
                name, value = assignment.split("=", 1)
                self.env[name] = value
                return ""
            case ["echo", "$?"]:
                said, self.exit_code = f"{self.exit_code}\n", 0
                return said
            case ["l2inv", *argv]:
                result = CliRunner().invoke(main, argv, env=self.env)
                self.exit_code = result.exit_code
                return result.stdout + result.stderr
        done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
        self.exit_code = done.returncode
        return done.stdout + done.stderr


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder with the settings that the page gives, and a sample store where they say."""
    (settings,) = blocks(TUTORIAL, "yaml")
    folder = quick_folder()
    with serving(Store(inventory.make(now=datetime.now(UTC)))) as url:
        assert "http://127.0.0.1:8777/graphql" in settings
        (folder / "tutorial.yaml").write_text(settings.replace("http://127.0.0.1:8777/graphql", url))
        monkeypatch.chdir(folder)
        yield folder
        embedded.stop(folder / "server")
    shutil.rmtree(folder)


def test_the_tutorial_shows_what_happens(folder: Path) -> None:
    terminal = Terminal()
    for line, shown in steps(TUTORIAL):
        assert terminal.exit_code == 0 or line == "echo $?", (
            f"before {line!r}: exit code {terminal.exit_code}"
        )
        said = terminal.run(line)
        assert same(said, shown), f"$ {line}\nsaid:\n{said}\nshown:\n{shown}"
    assert terminal.exit_code == 0


def test_the_tutorial_shows_every_step_from_scan_to_backup() -> None:
    shown = {line.removeprefix("l2inv ").removeprefix("-q ").split()[0] for line, _ in steps(TUTORIAL)}
    assert shown >= {
        "scan", "qualify", "overrule", "preprocess", "retry", "next", "claim", "release", "mark-inverted",
        "publish", "export", "verify", "history", "backup",
    }  # fmt: skip
