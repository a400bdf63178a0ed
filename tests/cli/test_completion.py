"""Completion in real shells: commands, options, states, files, and the OPs that a command could act on."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from l2inv.cli import completion, main
from l2inv.cli.context import App
from l2inv.database.connection import Connection
from tests.helpers.commands import Commands
from tests.helpers.terminals import on_terminal

BIN = Path(sys.executable).parent


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"no {shell} here")


def environment(l2inv: Commands) -> dict[str, str]:
    return {"PATH": f"{BIN}:{os.environ['PATH']}", "L2INV_CONFIG": str(l2inv.config), "L2INV_ACTOR": "han"}


def run(l2inv: Commands, *argv: str, **how: Any) -> list[str]:
    """The lines that a program prints, which says nothing else."""
    env = os.environ | environment(l2inv)
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True, timeout=60, **how)
    assert done.stderr == ""
    return str(done.stdout).splitlines()


def in_bash(l2inv: Commands, *words: str) -> list[str]:
    code = (
        'eval "$(_L2INV_COMPLETE=bash_source l2inv)"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1));'
        ' _l2inv_completion l2inv; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    return [line for line in run(l2inv, "bash", "-c", code, "bash", "l2inv", *words) if line]


def app_of(l2inv: Commands) -> App:
    context = main.make_context("l2inv", ["--config", str(l2inv.config), "--actor", "han", "status"])
    assert isinstance(context.obj, App)
    return context.obj


@needs("bash")
def test_bash_completes_commands_options_and_states(l2inv: Commands) -> None:
    assert in_bash(l2inv, "cl") == ["claim", "clean"]
    assert in_bash(l2inv, "server", "") == ["status", "stop"]
    assert in_bash(l2inv, "list", "--state", "pre") == ["preprocessed"]
    assert "--min-r0-cm" in in_bash(l2inv, "next", "--")


@needs("bash")
def test_bash_completes_the_ops_that_the_command_could_act_on(l2inv: Commands, ready: list[str]) -> None:
    l2inv("claim", ready[0])
    l2inv("claim", ready[1], actor="ann")
    free = sorted(ready[2:])
    assert in_bash(l2inv, "claim", "eid_2") == [op for op in free if op.startswith("eid_2")]
    assert in_bash(l2inv, "--actor", "ann", "release", "") == ready[1:2]
    app = app_of(l2inv)
    assert completion.ops(app, "claim", "") == free
    assert completion.ops(app, "release", "") == ready[:1]
    assert completion.ops(app, "take-over", "") == sorted(ready[:2])
    assert completion.ops(app, "retry", "") == []
    everything = sorted(op["op_id"] for op in l2inv.json("list")["ops"])
    assert completion.ops(app, "history", "eid_2") == [op for op in everything if op.startswith("eid_2")]


def test_no_more_than_fifty_ops_are_offered_and_none_that_a_shell_would_mangle(
    l2inv: Commands, connection: Connection
) -> None:
    odd = ["-op", "a b", "a:b", "a'b", "a*", "a$b", "a;b", "a,b", "~a", "a\\b", "a%b", "ä"]
    for op_id in [*odd, "a_b", *(f"b{number:03}" for number in range(60))]:
        connection.execute(
            "insert into l2inv.event (op_id, seq, kind, state, actor, detail) values (%s, 1, 'discovered', 'discovered', 'cron', '{}')",
            [op_id],
        )
    app = app_of(l2inv)
    assert completion.ops(app, "show", "a") == ["a_b"]
    assert completion.ops(app, "show", "a_") == ["a_b"]
    assert completion.ops(app, "show", "b") == [f"b{number:03}" for number in range(50)]


@needs("bash")
def test_without_a_database_nothing_is_printed_and_no_server_is_started(
    l2inv: Commands, tmp_path: Path
) -> None:
    folder = tmp_path / "server"
    for database in ({"url": "postgresql:///nowhere?host=/nowhere"}, {"embedded_folder": str(folder)}):
        l2inv.settings["database"] = database
        l2inv.save()
        assert in_bash(l2inv, "claim", "") == []
    assert not folder.exists()
    l2inv.config.write_text("databse: {}\n")
    assert in_bash(l2inv, "claim", "") == []
    l2inv.config.chmod(0o666)
    assert in_bash(l2inv, "claim", "") == []


@needs("bash")
def test_a_server_that_does_not_answer_is_given_up_soon(l2inv: Commands) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/d"
        l2inv.config.write_text(yaml.safe_dump({"database": {"url": url}}))
        begun = time.monotonic()
        assert in_bash(l2inv, "claim", "") == []
        assert time.monotonic() - begun < completion.GIVE_UP_SECONDS + 10  # two starts of Python among it


@pytest.mark.parametrize("shell", [pytest.param(s, marks=needs(s)) for s in ("bash", "zsh")])
def test_tab_on_a_terminal_completes_the_op(
    l2inv: Commands, ready: list[str], tmp_path: Path, shell: str
) -> None:
    op = ready[0]
    beginning = next(op[:n] for n in range(len(op)) if sum(o.startswith(op[:n]) for o in ready) == 1)
    env = environment(l2inv) | {"HOME": str(tmp_path), "ZDOTDIR": str(tmp_path), "PS1": "$ "}
    argv = {"bash": ["bash", "--norc", "-i"], "zsh": ["zsh", "-f", "-i"]}[shell]
    with on_terminal(argv, 200, env) as (terminal, _):
        if shell == "zsh":
            terminal.type("autoload -U compinit; compinit -u\n")
        terminal.type(f'eval "$(_L2INV_COMPLETE={shell}_source l2inv)"; echo on"ward"\n')
        terminal.read_until(lambda text: "onward" in text)
        terminal.type(f"l2inv claim {beginning}\t")
        terminal.read_until(lambda text: op in text)
        terminal.type("\n")
        terminal.read_until(lambda text: f"claimed {op} for han" in text)


@needs("fish")
def test_fish_completes_ops_and_describes_commands(l2inv: Commands, ready: list[str]) -> None:
    def offered(line: str) -> list[str]:
        return run(
            l2inv,
            "fish",
            "--no-config",
            "-c",
            f"_L2INV_COMPLETE=fish_source l2inv | source; complete -C '{line}'",
        )

    assert sorted(offered("l2inv claim ")) == sorted(ready)  # fish has an order of its own
    assert offered("l2inv cla") == ["claim\tTake an OP to work on: exactly one person gets it."]


@needs("bash")
def test_files_are_completed_where_a_path_is_meant(l2inv: Commands, tmp_path: Path) -> None:
    (tmp_path / "kept.gz").touch()
    env = environment(l2inv) | {"PS1": "$ "}
    with on_terminal(["bash", "--norc", "-i"], 200, env) as (terminal, _):
        terminal.type(f'cd {tmp_path}; eval "$(_L2INV_COMPLETE=bash_source l2inv)"; echo on"ward"\n')
        terminal.read_until(lambda text: "onward" in text)
        terminal.type("l2inv restore ke\t")
        terminal.read_until(lambda text: "restore kept.gz" in text)
