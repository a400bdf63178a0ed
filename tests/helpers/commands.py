"""l2inv as users call it, in this process or another, and a list of its commands."""

import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import yaml
from click.testing import CliRunner

from l2inv.cli import main
from tests.helpers import sessions

# The required parts of a ready event: as options of mark-inverted, and as text of a ready file.
READY = {"--output": "globus://science/l2", "--software": "DeSIRe", "--software-version": "4.1"}
READY_TEXT = "software: {name: DeSIRe, version: '4.1'}\noutputs: [{uri: 'globus://science/l2'}]\n"
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)  # the time as of which the tests judge completeness
AS_OF = ("qualify", "--as-of", NOW.isoformat())


@dataclass
class Answer:
    """A command's exit code and output."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


def completed(argv: tuple[str, ...]) -> tuple[str, ...]:
    """Return a mark-inverted with the required options that it lacks."""
    if argv[:1] != ("mark-inverted",) or "--from" in argv:
        return argv
    lacking = {name: value for name, value in READY.items() if name not in argv}
    return (argv[0], *(word for pair in lacking.items() for word in pair), *argv[1:])


class Commands:
    """l2inv as its users call it, on the test's database and store, in this process or in one of its own."""

    def __init__(self, config: Path, settings: dict[str, Any]) -> None:
        self.config = config
        self.settings = settings
        self.save()

    def save(self) -> None:
        self.config.write_text(yaml.safe_dump(self.settings))

    def __call__(
        self, *argv: str, actor: str = "han", expect: int | None = 0, complete: bool = True
    ) -> Answer:
        argv = completed(argv) if complete else argv
        with sessions.handed_on():
            result = CliRunner().invoke(main, [*self._common(actor), *argv])
        answer = Answer(result.exit_code, result.stdout, result.stderr)
        assert expect is None or answer.exit_code == expect, f"{argv}: {answer}"
        return answer

    def json(self, *argv: str, **how: Any) -> Any:
        return self(*argv, "--json", **how).json

    def start(self, *argv: str, actor: str = "han") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "l2inv", *self._common(actor), *completed(argv)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def _common(self, actor: str) -> list[str]:
        return ["--config", str(self.config), "--actor", actor]


def subcommands(group: click.Group) -> dict[str, click.Command]:
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def all_commands(group: click.Group = main, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in sorted(subcommands(group).items()):
        if isinstance(command, click.Group):
            found += all_commands(command, (*path, name))
        else:
            found.append((*path, name))
    return found
