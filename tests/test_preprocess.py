"""preprocess: a command for each invertible OP, in a folder of its own; what it did is on the event."""

import hashlib
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import NOW, Commands
from hypothesis import given
from hypothesis import strategies as st

from l2inv.preprocess import folder_name, unquoted


@pytest.fixture
def invertible(l2inv: Commands) -> list[str]:
    l2inv("scan")
    l2inv("qualify", "--as-of", NOW.isoformat())
    return [op["op_id"] for op in l2inv.json("list", "--state", "invertible")["ops"]]


def command(l2inv: Commands, code: str, **more: object) -> None:
    """Makes a Python program the configured command."""
    argv = [sys.executable, "-c", code, "{folder}", "{description}", "{op_id}"]
    l2inv.settings["preprocess"] |= {"command": argv, **more}
    l2inv.save()


def test_without_a_command_the_state_moves_on_and_says_that_none_was_needed(
    l2inv: Commands, invertible: list[str]
) -> None:
    report = l2inv.json("preprocess")
    assert report["stage"] == "preprocess"
    assert report["ops"] == {"done": len(invertible), "failed": 0, "skipped": 0}
    last = l2inv.json("history", invertible[0])["events"][-1]
    assert (last["kind"], last["state"], last["detail"]) == (
        "preprocessed",
        "preprocessed",
        {"needed": False},
    )
    assert l2inv.json("preprocess")["ops"]["done"] == 0


def test_the_command_gets_the_op_and_its_files_are_on_the_event(
    l2inv: Commands, invertible: list[str]
) -> None:
    command(
        l2inv,
        "import sys, json, pathlib; folder, description, op = sys.argv[1:];"
        "told = json.load(open(description)); assert told['op_id'] == op and told['verdict']['invertible'];"
        "print('made', len(told['datasets'])); pathlib.Path(folder, 'sub').mkdir();"
        "pathlib.Path(folder, 'sub', 'list.txt').write_text(op)",
    )
    assert l2inv.json("preprocess")["ops"] == {"done": len(invertible), "failed": 0, "skipped": 0}
    for op in invertible:
        detail = l2inv.json("history", op)["events"][-1]["detail"]
        assert detail["exit_code"] == 0
        files = {f["path"]: f for f in detail["files"]}
        assert set(files) == {"preprocess.log", "sub/list.txt"}
        assert files["sub/list.txt"]["sha256"] == hashlib.sha256(op.encode()).hexdigest()
        assert files["sub/list.txt"]["size_bytes"] == len(op)
        assert Path(detail["folder"], detail["log"]).read_text().startswith("made ")


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import sys; print('almost'); sys.exit('no such calibration')", "exit code 1: no such calibration"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
    ],
)
def test_a_command_that_fails_puts_its_op_into_error_and_the_rest_go_on(
    l2inv: Commands, invertible: list[str], code: str, cause: str
) -> None:
    unlucky = invertible[0]
    command(l2inv, f"import sys\nif sys.argv[3] == {unlucky!r}:\n  {code}")
    answer = l2inv("preprocess", "--json", expect=4)
    assert answer.json["ops"] == {"done": len(invertible) - 1, "failed": 1, "skipped": 0}
    assert "1 OP failed" in answer.stderr
    last = l2inv.json("history", unlucky)["events"][-1]
    assert (last["kind"], last["state"]) == ("failed", "error")
    assert (last["detail"]["stage"], last["detail"]["attempt"]) == ("preprocess", 1)
    assert cause in last["detail"]["cause"]
    assert cause in l2inv("show", unlucky).stdout
    assert l2inv.json("retry")["ops"] == [{"op_id": unlucky, "state": "invertible"}]
    l2inv("preprocess", expect=4)
    assert l2inv.json("history", unlucky)["events"][-1]["detail"]["attempt"] == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"command": ["/nowhere/prepare"]}, "there is no program /nowhere/prepare"),
        ({"command": ["true"], "work_dir": "/dev/null/work"}, "preprocess.work_dir"),
    ],
)
def test_what_would_fail_for_every_op_is_a_mistake_of_the_settings_and_touches_none(
    l2inv: Commands, invertible: list[str], change: dict[str, object], said: str
) -> None:
    l2inv.settings["preprocess"] |= change
    l2inv.save()
    assert said in l2inv("preprocess", expect=10).stderr
    assert l2inv.json("status")["states"]["invertible"] == len(invertible)


def test_output_and_file_names_that_are_no_text_fail_or_pass_like_any_other(
    l2inv: Commands, invertible: list[str]
) -> None:
    command(
        l2inv,
        "import os, sys; os.chdir(sys.argv[1]); open(b'bad\\xff', 'w').close();"
        f"os.write(1, b'boom \\0 \\xff'); sys.exit(sys.argv[3] == {invertible[0]!r})",
    )
    assert l2inv("preprocess", "--json", expect=4).json["ops"] == {
        "done": len(invertible) - 1, "failed": 1, "skipped": 0,
    }  # fmt: skip
    assert "boom \\x00" in l2inv.json("history", invertible[0])["events"][-1]["detail"]["cause"]
    files = l2inv.json("history", invertible[1])["events"][-1]["detail"]["files"]
    assert "bad\\udcff" in [file["path"] for file in files]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(what: str, true: object, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


HANG = "import subprocess, sys, pathlib; child = subprocess.Popen(['sleep', '600']);" \
       "pathlib.Path(sys.argv[1], 'child').write_text(str(child.pid)); child.wait()"  # fmt: skip


def test_a_command_that_takes_too_long_ends_with_all_its_processes(
    l2inv: Commands, invertible: list[str], tmp_path: Path
) -> None:
    command(l2inv, HANG, timeout_seconds=1.5, parallel=32)
    l2inv("preprocess", expect=4)
    assert "took longer than 1.5 s" in l2inv.json("history", invertible[0])["events"][-1]["detail"]["cause"]
    children = [int(path.read_text()) for path in (tmp_path / "work").rglob("child")]
    assert len(children) == len(invertible)
    wait_until("the children are gone", lambda: not any(map(is_running, children)))


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal_it_ends_its_commands_and_leaves_their_ops_as_they_were(
    l2inv: Commands, invertible: list[str], tmp_path: Path, sign: signal.Signals
) -> None:
    command(l2inv, HANG, parallel=2)
    process = l2inv.start("preprocess")
    wait_until("two commands run", lambda: len(list((tmp_path / "work").rglob("child"))) == 2)
    assert l2inv("preprocess", expect=75).stderr.startswith("l2inv: preprocess: another run holds the lock")
    process.send_signal(sign)
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (1, "")
    assert stderr == "l2inv: stopped; run it again: nothing was left half-written\n"
    children = [int(path.read_text()) for path in (tmp_path / "work").rglob("child") if path.read_text()]
    wait_until("the children are gone", lambda: not any(map(is_running, children)))
    assert l2inv.json("status")["states"]["invertible"] == len(invertible)
    command(l2inv, "pass")
    assert l2inv.json("preprocess")["ops"]["done"] == len(invertible)


def test_no_part_of_the_command_is_given_to_a_shell(
    l2inv: Commands, invertible: list[str], tmp_path: Path
) -> None:
    l2inv.settings["preprocess"]["command"] = ["echo", f"$(touch {tmp_path}/owned); {{op_id}} {{unknown}}"]
    l2inv.save()
    l2inv("preprocess")
    log = Path(l2inv.json("history", invertible[0])["events"][-1]["detail"]["folder"], "preprocess.log")
    assert log.read_text() == f"$(touch {tmp_path}/owned); {invertible[0]} {{unknown}}\n"
    assert not (tmp_path / "owned").exists()


@given(st.text(min_size=1, max_size=80))
def test_any_op_id_gives_a_safe_folder_name_and_comes_back(op_id: str) -> None:
    with suppress(UnicodeEncodeError):
        name = folder_name(op_id)
        assert unquoted(name) == op_id
        assert os.sep not in name
        assert name not in (".", "..")
        assert name.isascii()
        assert name.isprintable()
        assert not name.startswith(("-", "~", "."))
