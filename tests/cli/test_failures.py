"""Under -q, a lasting failure is printed when it starts, once a day, and when it is over; exit codes do not change."""

import re
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from l2inv.cli import failures
from l2inv.database.connection import Connection
from l2inv.database.runs import stage_run
from tests.helpers.commands import Commands
from tests.helpers.terminals import on_terminal

NOW = datetime.now(UTC)
DOWN = "database: connection to server at 127.0.0.1, port 5432 failed: Connection refused; check that the server runs"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "l2inv"


@pytest.fixture
def down(l2inv: Commands) -> dict[str, Any]:
    """Where the database is, while the settings name a port on which nobody listens."""
    there: dict[str, Any] = l2inv.settings["database"]
    l2inv.settings["database"] = {"url": "postgresql://127.0.0.1:9/l2inv"}
    l2inv.save()
    return there


def test_a_day_without_the_database_is_a_handful_of_lines_however_many_commands_run() -> None:
    printed = []
    for minute in range(0, 24 * 60 + 60, 5):
        now = NOW + timedelta(minutes=minute)
        commands = ["inbox"] + ["preprocess", "publish", "report"] * (minute % 60 == 5)
        lines = [
            failures.to_print("config", command, "down", DOWN.replace("5432", str(minute)), now)
            for command in commands
        ]
        printed += [line for line in lines if line]
    assert [DOWN.replace("5432", "0")] == printed[:1]
    assert len(printed) == 2
    assert re.search(r" \(since .* UTC, \d{3} times: inbox, preprocess, publish, report\)$", printed[1])
    (over,) = failures.over("config", "inbox")
    assert over.startswith("over: database: ")
    assert "report" in over
    assert failures.over("config", "report") == failures.over("config", "inbox") == []


def test_another_failure_is_printed_at_once_and_ends_the_one_before() -> None:
    assert failures.to_print("config", "publish", DOWN, DOWN, NOW) == DOWN
    full = "the disk is full"
    assert failures.to_print("config", "publish", full, full, NOW) == full
    assert [line[:22] for line in failures.over("config", "publish")] == ["over: the disk is full"]


def test_success_of_another_command_or_with_other_settings_does_not_end_a_failure() -> None:
    failures.to_print("config", "publish", DOWN, DOWN, NOW)
    assert failures.over("config", "report") == []
    assert failures.over("other", "publish") == []
    assert failures.to_print("other", "publish", DOWN, DOWN, NOW) == DOWN
    assert len(failures.over("config", "publish")) == 1


def test_the_commands_print_it_once_and_that_it_is_over_with_the_same_exit_codes(
    l2inv: Commands, down: dict[str, Any], state: Path
) -> None:
    first, second, third = (
        l2inv("-q", command, expect=1) for command in ("publish", "publish", "preprocess")
    )
    assert first.stderr.startswith("l2inv: database: ")
    assert first.stderr.count("\n") == 1
    assert (second.stderr, third.stderr, second.stdout, third.stdout) == ("", "", "", "")
    assert stat.S_IMODE((state / "failures.json").stat().st_mode) == 0o600
    l2inv.settings["database"] = down
    l2inv.save()
    over = l2inv("-q", "preprocess").stderr
    assert re.fullmatch(r"l2inv: over: database: .* \(since .* UTC, 3 times: preprocess, publish\)\n", over)
    assert l2inv("-q", "publish").stderr == ""
    assert l2inv("-q", "preprocess").stderr == ""


def test_a_mistake_in_the_settings_is_printed_once_too(l2inv: Commands) -> None:
    good = l2inv.settings
    l2inv.settings = {"databse": {}}
    l2inv.save()
    assert "databse" in l2inv("-q", "publish", expect=10).stderr
    assert l2inv("-q", "inbox", "/nowhere", expect=10).stderr == ""
    l2inv.settings = good
    l2inv.save()
    assert "over: " in l2inv("-q", "publish").stderr


def test_without_q_under_json_and_on_a_terminal_everything_is_printed_each_time(
    l2inv: Commands, down: dict[str, Any], state: Path
) -> None:
    for _ in range(2):
        assert "database: " in l2inv("publish", expect=1).stderr
        assert l2inv("-q", "publish", "--json", expect=1).json["error"]["code"] == 1
    import sys

    argv = [sys.executable, "-m", "l2inv", "--config", str(l2inv.config), "-q", "publish"]
    for _ in range(2):
        with on_terminal(argv) as (terminal, process):
            assert "database: " in terminal.read_until(lambda text: False)
            assert process.wait() == 1
    assert not state.exists()


@pytest.mark.parametrize(
    "kept", ["", "{", "[]", '{"x": 1}', '{"x": {"y": {}}}', '{"config": {"a": {"line": 1}}}']
)
def test_a_file_that_cannot_be_read_keeps_nothing_back(state: Path, kept: str) -> None:
    state.mkdir(parents=True)
    (state / "failures.json").write_text(kept)
    assert failures.to_print("config", "publish", DOWN, DOWN, NOW) == DOWN
    assert failures.to_print("config", "publish", DOWN, DOWN, NOW) is None


def test_if_nothing_can_be_stored_each_failure_is_printed(state: Path) -> None:
    state.parent.mkdir()
    state.write_text("a file where the folder should be")
    assert failures.to_print("config", "publish", DOWN, DOWN, NOW) == DOWN
    assert failures.to_print("config", "publish", DOWN, DOWN, NOW) == DOWN
    assert failures.over("config", "publish") == []


def test_a_second_run_is_silent_until_the_first_has_run_for_longer_than_its_limit(
    l2inv: Commands, connection: Connection
) -> None:
    with stage_run(connection, "publish", "cron"):
        silent = l2inv("-q", "publish", expect=75)
        assert (silent.stdout, silent.stderr) == ("", "")
        assert "another run holds the lock" in l2inv("publish", expect=75).stderr
        l2inv.settings["monitoring"] = {"run_limit_hours": 1e-9}
        l2inv.save()
        assert "another run holds the lock" in l2inv("-q", "publish", expect=75).stderr
