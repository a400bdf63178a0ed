"""preprocess: a command for each invertible OP, in a folder of its own, with its result in the event."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2inv.database.connection import Connection
from l2inv.record import event_log
from l2inv.services import jobs
from l2inv.stages.preprocess.bundle import folder_name, unquoted
from tests.helpers import slurm_cluster
from tests.helpers.commands import NOW, Commands
from tests.helpers.steps import kinds
from tests.helpers.waiting import until
from tests.helpers.warm import Warm

BUNDLE = {"op.json", "manifest.json", "globus-batch.txt"}


@pytest.fixture
def invertible(l2inv: Commands) -> list[str]:
    l2inv("scan")
    l2inv("qualify", "--as-of", NOW.isoformat())
    return [op["op_id"] for op in l2inv.json("list", "--state", "invertible")["ops"]]


def command(l2inv: Commands, code: str, **more: object) -> None:
    """Make a Python program the configured command."""
    argv = [sys.executable, "-c", code, "{folder}", "{description}", "{op_id}"]
    l2inv.settings["preprocess"] |= {"command": argv, **more}
    l2inv.save()


def test_without_a_command_the_state_advances_and_the_event_says_that_none_was_needed(
    l2inv: Commands, invertible: list[str]
) -> None:
    report = l2inv.json("preprocess")
    assert report["stage"] == "preprocess"
    assert report["ops"] == {"done": len(invertible), "failed": 0, "skipped": 0}
    last = l2inv.json("history", invertible[0])["events"][-1]
    assert (last["kind"], last["state"]) == ("preprocessed", "preprocessed")
    assert last["detail"]["needed"] is False
    files = {file["path"]: file["sha256"] for file in last["detail"]["files"]}
    assert set(files) == BUNDLE
    for path, sha256 in files.items():
        content = Path(last["detail"]["folder"], path).read_bytes()
        assert hashlib.sha256(content).hexdigest() == sha256
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
        assert set(files) == {*BUNDLE, "preprocess.log", "sub/list.txt"}
        assert files["sub/list.txt"]["sha256"] == hashlib.sha256(op.encode()).hexdigest()
        assert files["sub/list.txt"]["size_bytes"] == len(op)
        assert Path(detail["folder"], detail["log"]).read_text().startswith("made ")


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import sys; print('almost'); sys.exit('no such calibration')", "exit code 1: no such calibration"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("print('all that it says'); sys.exit(3)", "exit code 3: all that it says"),
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
def test_a_failure_common_to_every_op_is_a_mistake_in_the_settings_and_affects_none(
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


def test_the_cause_is_the_last_line_of_stderr_and_the_log_has_both_streams(tmp_path: Path) -> None:
    code = "import sys; print('begun', flush=True); print('held back'); sys.exit('a: first\\nno such calibration')"
    for name, argv in (("l2inv-1", [sys.executable, "-c", code]), ("l2inv-2", ["/bin/echo", "fine"])):
        jobs.start(jobs.Job(name, tmp_path, argv)).wait()
        log = (tmp_path / jobs.LOG).read_text().splitlines()
        if name == "l2inv-1":
            assert jobs.last_line(tmp_path, name) == "no such calibration"
            assert (log[0], sorted(log)) == (
                "begun", ["a: first", "begun", "held back", "no such calibration"],
            )  # fmt: skip
        else:
            assert (jobs.last_line(tmp_path, name), log) == ("fine", ["fine"])
    assert not list(tmp_path.rglob("*.pipe"))


def test_all_of_a_long_stderr_is_there_when_the_job_has_ended(tmp_path: Path) -> None:
    code = "import sys; sys.stderr.write('x' * 100 + chr(10)); " * 2000 + "sys.exit('the cause')"
    jobs.start(jobs.Job("l2inv-1", tmp_path, [sys.executable, "-c", code])).wait()
    assert jobs.ended(tmp_path, "l2inv-1") is not None
    assert jobs.last_line(tmp_path, "l2inv-1") == "the cause"
    assert len((tmp_path / jobs.LOG).read_text().splitlines()) == 2001


def test_a_process_left_running_with_stderr_open_delays_the_end_only_briefly(
    tmp_path: Path,
) -> None:
    started = time.monotonic()
    argv = ["/bin/sh", "-c", "sleep 60 & echo $! >child; echo gone >&2; exit 4"]
    jobs.start(jobs.Job("l2inv-1", tmp_path, argv)).wait()
    assert time.monotonic() - started < 30
    end = jobs.ended(tmp_path, "l2inv-1")
    assert end is not None
    assert (end.exit_code, jobs.last_line(tmp_path, "l2inv-1")) == (4, "gone")
    until(lambda: not is_running(int((tmp_path / "child").read_text())), "it ended, too")


def test_a_command_gets_no_secret_of_l2invs_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "STORE_TOKEN",
        "PGPASSWORD",
        "PGUSER",
        "L2INV_DB_PASSWORD",
        "PING_KEY",
        "AWS_SECRET_ACCESS_KEY",
    ):
        monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("LC_TIME", "C")
    jobs.start(jobs.Job("l2inv-1", tmp_path, ["/usr/bin/env"])).wait()
    told = dict(line.split("=", 1) for line in (tmp_path / jobs.LOG).read_text().splitlines())
    assert {"PATH", "TMPDIR", "LC_TIME"} <= set(told)
    own = {"PWD", "OLDPWD", "SHLVL", "_"}  # the shell's
    assert {n for n in told if not n.startswith("LC_")} <= {*jobs.ENVIRONMENT} | own


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


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
    until(lambda: not any(map(is_running, children)), "the children are gone")


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal_it_ends_its_commands_and_leaves_their_ops_as_they_were(
    l2inv: Commands, warm: Warm, invertible: list[str], tmp_path: Path, sign: signal.Signals
) -> None:
    command(l2inv, HANG, parallel=2)
    pid = warm.start(l2inv, "preprocess")
    until(lambda: len(list((tmp_path / "work").rglob("child"))) == 2, "two commands run")
    assert l2inv("preprocess", expect=75).stderr.startswith("l2inv: preprocess: another run holds the lock")
    os.kill(pid, sign)
    assert warm.ended(pid) == (1, "", "l2inv: stopped; run it again: nothing was left half-written\n")
    children = [int(path.read_text()) for path in (tmp_path / "work").rglob("child") if path.read_text()]
    until(lambda: not any(map(is_running, children)), "the children are gone")
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


# Says in a file above the folders that it began, and goes on once another file is there.
WAIT = """
import pathlib, sys, time
top = pathlib.Path(sys.argv[1]).parent.parent
with (top / "runs").open("a") as runs:
    runs.write(sys.argv[3] + "\\n")
while not (top / "go").exists():
    time.sleep(0.02)
print("went on")
"""


def runs(top: Path) -> list[str]:
    return sorted((top / "runs").read_text().split()) if (top / "runs").exists() else []


def killed_while_commands_run(l2inv: Commands, warm: Warm, top: Path, number: int) -> None:
    pid = warm.start(l2inv, "preprocess")
    until(lambda: len(runs(top)) == number, "the commands run")
    warm.killed(pid)


def last_run(l2inv: Commands) -> int:
    return next(int(run["run_id"]) for run in l2inv.json("status")["runs"] if run["stage"] == "preprocess")


def test_a_command_left_running_by_a_killed_l2inv_is_waited_for_and_runs_only_once(
    l2inv: Commands, warm: Warm, invertible: list[str], tmp_path: Path
) -> None:
    command(l2inv, WAIT, parallel=2)
    killed_while_commands_run(l2inv, warm, tmp_path, 2)
    before = last_run(l2inv)
    pid = warm.start(l2inv, "preprocess")
    until(lambda: last_run(l2inv) > before, "the next run has begun")
    assert len(runs(tmp_path)) == 2
    (tmp_path / "go").touch()
    code, _, stderr = warm.ended(pid)
    assert (code, stderr) == (0, "")
    assert runs(tmp_path) == sorted(invertible)
    for op in invertible:
        assert kinds(l2inv, op)[-2:] == ["preprocess_started", "preprocessed"]
        assert kinds(l2inv, op).count("preprocess_started") == 1


def test_a_command_that_ended_after_l2inv_was_killed_is_recorded_and_not_run_again(
    l2inv: Commands, warm: Warm, invertible: list[str], tmp_path: Path
) -> None:
    command(l2inv, WAIT, parallel=2)
    killed_while_commands_run(l2inv, warm, tmp_path, 2)
    begun = runs(tmp_path)
    (tmp_path / "go").touch()
    until(lambda: len(list((tmp_path / "work").rglob("*.exit"))) == 2, "both ended")
    command(l2inv, "pass")
    assert l2inv.json("preprocess")["ops"]["done"] == len(invertible)
    assert runs(tmp_path) == begun
    detail = l2inv.json("history", begun[0])["events"][-1]["detail"]
    assert Path(detail["folder"], detail["log"]).read_text() == "went on\n"


def test_a_command_whose_script_alone_was_killed_still_counts_as_running(
    l2inv: Commands, warm: Warm, invertible: list[str], tmp_path: Path
) -> None:
    command(l2inv, WAIT, parallel=1)
    killed_while_commands_run(l2inv, warm, tmp_path, 1)
    (pid_file,) = (tmp_path / "work").rglob("*.pid")
    folder, name = pid_file.parent.parent, pid_file.stem
    os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)
    assert jobs.is_running(folder, name)
    (tmp_path / "go").touch()
    until(lambda: not jobs.is_running(folder, name), "it ended")
    assert jobs.ended(folder, name) is None
    assert l2inv.json("preprocess")["ops"]["done"] == len(invertible)  # how it ended, nobody knows
    assert len(runs(tmp_path)) == len(invertible) + 1


def test_a_job_that_was_recorded_and_never_began_begins_in_the_next_run(
    l2inv: Commands, invertible: list[str], tmp_path: Path, connection: Connection
) -> None:
    (tmp_path / "go").touch()
    command(l2inv, WAIT)
    op = invertible[0]
    seq = l2inv.json("history", op)["events"][-1]["seq"]
    detail: dict[str, Any] = {
        "executor": "local",
        "job": "l2inv-0",
        "task": None,
        "folder": str(tmp_path / "work" / op),
    }
    detail |= {"command": ["x"], "attempt": 1, "after": None}
    event_log.add(connection, [event_log.Event(op, seq, "preprocess_started", None, detail)], "cron", None)
    assert l2inv.json("preprocess")["ops"]["done"] == len(invertible)
    assert runs(tmp_path) == sorted(invertible)
    again = l2inv.json("history", op)["events"][-2]["detail"]
    assert (again["attempt"], again["after"]) == (2, "LOST")
    assert "after LOST" in l2inv("history", op).stdout


def test_a_commands_time_limit_counts_from_its_start_whichever_run_waits(
    l2inv: Commands, warm: Warm, invertible: list[str], tmp_path: Path
) -> None:
    command(l2inv, HANG, parallel=1)
    pid = warm.start(l2inv, "preprocess")
    until(lambda: any(path.read_text() for path in (tmp_path / "work").rglob("child")), "one runs")
    warm.killed(pid)
    (pid_file,) = (tmp_path / "work").rglob("*.pid")
    os.utime(pid_file, (time.time() - 1000, time.time() - 1000))
    command(l2inv, "pass", timeout_seconds=900)
    assert l2inv("preprocess", "--json", expect=4).json["ops"]["failed"] == 1
    assert "took longer than 900 s" in l2inv("list", "--state", "error").stdout + "".join(
        l2inv("history", op).stdout for op in invertible
    )
    (child,) = [int(path.read_text()) for path in (tmp_path / "work").rglob("child")]
    until(lambda: not is_running(child), "the child is gone")


@pytest.mark.parametrize("now_is", ["--invertible", "--not-invertible"])
def test_a_job_of_an_outdated_verdict_is_ended_before_another_starts(
    l2inv: Commands, warm: Warm, invertible: list[str], tmp_path: Path, now_is: str
) -> None:
    command(l2inv, HANG, parallel=1)
    pid = warm.start(l2inv, "preprocess")
    until(lambda: any(path.read_text() for path in (tmp_path / "work").rglob("child")), "one runs")
    warm.killed(pid)
    (child_file,) = (tmp_path / "work").rglob("child")
    child, op = int(child_file.read_text()), unquoted(child_file.parent.name)
    l2inv("overrule", op, now_is, "--reason", "seen by eye")
    code = f"import pathlib, sys; assert not pathlib.Path('/proc/{child}/cmdline').exists() or " \
           f"not pathlib.Path('/proc/{child}/cmdline').read_bytes()"  # fmt: skip
    command(l2inv, code)
    done = len(invertible) - (now_is == "--not-invertible")
    assert l2inv.json("preprocess")["ops"]["done"] == done
    assert not is_running(child)
    assert kinds(l2inv, op).count("preprocess_started") == 1 + (now_is == "--invertible")


def test_an_op_on_hold_is_skipped_until_it_is_not(l2inv: Commands, invertible: list[str]) -> None:
    l2inv("hold", invertible[0], "--reason", "calibration to come")
    assert l2inv.json("preprocess")["ops"] == {"done": len(invertible) - 1, "failed": 0, "skipped": 1}
    l2inv("unhold", invertible[0])
    assert l2inv.json("preprocess")["ops"] == {"done": 1, "failed": 0, "skipped": 0}


def test_a_note_while_the_command_runs_changes_nothing(
    l2inv: Commands, warm: Warm, invertible: list[str], tmp_path: Path
) -> None:
    command(l2inv, WAIT, parallel=64)
    pid = warm.start(l2inv, "preprocess")
    until(lambda: len(runs(tmp_path)) == len(invertible), "all run")
    l2inv("note", invertible[0], "seen")
    (tmp_path / "go").touch()
    assert warm.ended(pid)[0] == 0
    assert l2inv.json("status")["states"]["invertible"] == 0


def test_a_database_that_goes_down_stops_the_stage_and_fails_no_op(
    l2inv: Commands, warm: Warm, invertible: list[str], tmp_path: Path, connection: Connection
) -> None:
    command(l2inv, WAIT, parallel=2)
    pid = warm.start(l2inv, "preprocess")
    until(lambda: len(runs(tmp_path)) == 2, "two run")
    connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where pid <> pg_backend_pid() and datname = current_database()"
    )
    (tmp_path / "go").touch()
    code, _, stderr = warm.ended(pid)
    assert (code, stderr.count("\n")) == (1, 1), stderr
    assert l2inv.json("status")["states"]["error"] == 0
    assert l2inv.json("preprocess")["ops"] == {"done": len(invertible), "failed": 0, "skipped": 0}


@pytest.mark.parametrize("program", ["A=b", "exec", "-n", 'it\'s $(x) "y"', "a b\nc"])
def test_any_name_of_a_program_is_a_program_to_the_script(tmp_path: Path, program: str) -> None:
    path = tmp_path / "a folder's" / program
    path.parent.mkdir()
    path.write_text('#!/bin/sh\nprintf "%s|" "$@"; exit 7\n')
    path.chmod(0o755)
    job = jobs.Job("l2inv-1", path.parent, [str(path), "a  b", "", "*", "\\n"])
    jobs.start(job).wait()
    end = jobs.ended(path.parent, "l2inv-1")
    assert end is not None
    assert (end.exit_code, end.signal, end.how) == (7, None, "ended with exit code 7")
    assert jobs.last_line(path.parent, "l2inv-1") == "a  b||*|\\n|"


def test_a_script_that_is_signaled_to_end_passes_the_signal_on_and_reports_it(tmp_path: Path) -> None:
    trap = "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    script = jobs.prepare(jobs.Job("l2inv-1", tmp_path, ["/bin/sh", "-c", trap]))
    with subprocess.Popen(["/bin/sh", str(script)]) as process:
        log = tmp_path / jobs.LOG
        until(lambda: log.exists() and "ready" in log.read_text(), "it is ready")
        process.terminate()
    end = jobs.ended(tmp_path, "l2inv-1")
    assert end is not None
    assert (end.exit_code, end.signal, jobs.last_line(tmp_path, "l2inv-1")) == (3, "TERM", "told")
    assert process.returncode == 3


def test_a_job_that_was_given_up_begins_no_more(tmp_path: Path) -> None:
    job = jobs.Job("l2inv-1", tmp_path, ["touch", "ran"])
    jobs.give_up(tmp_path, job.name)
    jobs.start(job).wait()
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm_cluster.Cluster]:
    if why := slurm_cluster.missing(*slurm_cluster.DAEMONS):
        pytest.skip(why)
    with slurm_cluster.running() as cluster:
        yield cluster


@pytest.fixture
def on_cluster(l2inv: Commands, invertible: list[str], cluster: slurm_cluster.Cluster) -> list[str]:
    l2inv.settings["preprocess"] |= {"executor": "slurm", "slurm": {"max_requeues": 0}}
    command(l2inv, WAIT)
    return invertible


def collected(l2inv: Commands, number: int) -> None:
    """Run preprocess as cron would until so many OPs are no longer invertible."""
    until(
        lambda: l2inv("preprocess", expect=None) and l2inv.json("status")["states"]["invertible"] <= number,
        "they are collected",
        60,
    )


def test_the_cluster_runs_each_op_once_and_later_runs_collect(
    l2inv: Commands, on_cluster: list[str], tmp_path: Path
) -> None:
    report = l2inv.json("preprocess")
    assert report["ops"] == {"done": 0, "failed": 0, "skipped": 0}
    assert report["jobs"] == {"submitted": len(on_cluster), "running": 0}
    assert l2inv.json("preprocess")["jobs"] == {"submitted": 0, "running": len(on_cluster)}
    (tmp_path / "go").touch()
    collected(l2inv, 0)
    assert runs(tmp_path) == sorted(on_cluster)
    detail = l2inv.json("history", on_cluster[0])["events"][-1]["detail"]
    assert (detail["executor"], detail["exit_code"]) == ("slurm", 0)
    assert {file["path"] for file in detail["files"]} == {*BUNDLE, "preprocess.log"}
    assert l2inv.json("preprocess")["jobs"] == {"submitted": 0, "running": 0}


def test_on_the_cluster_too_the_cause_is_the_last_line_of_stderr(
    l2inv: Commands, on_cluster: list[str]
) -> None:
    command(l2inv, "import sys; print('held back'); sys.exit('no such calibration')")
    l2inv("preprocess")
    collected(l2inv, 0)
    detail = l2inv.json("history", on_cluster[0])["events"][-1]["detail"]
    assert "ended with exit code 1: no such calibration (log: " in detail["cause"]


def test_a_canceled_job_fails_with_that_cause_and_an_outdated_job_is_canceled(
    l2inv: Commands, on_cluster: list[str], tmp_path: Path, cluster: slurm_cluster.Cluster
) -> None:
    l2inv("preprocess")
    until(lambda: len(runs(tmp_path)) > 2, "some run")
    unlucky, unwanted = runs(tmp_path)[:2]
    where = {op: l2inv.json("history", op)["events"][-1]["detail"] for op in (unlucky, unwanted)}
    live = cluster.tell("squeue", "--noheader", "--array", "--format=%j %K %A %F").splitlines()
    (array,) = {line.split()[3] for line in live if line.split()[0] == where[unlucky]["job"]}
    cluster.tell("scancel", f"{array}_{where[unlucky]['task']}")
    l2inv("overrule", unwanted, "--not-invertible", "--reason", "seen by eye")
    until(
        lambda: l2inv("preprocess", expect=None) and l2inv.json("status")["states"]["error"], "it is in error"
    )
    assert "CANCELLED: " in l2inv.json("history", unlucky)["events"][-1]["detail"]["cause"]
    ended = Path(where[unwanted]["folder"], ".l2inv", f"{where[unwanted]['job']}.exit")
    until(ended.exists, "the other is gone")
    (tmp_path / "go").touch()
    collected(l2inv, 0)
    assert runs(tmp_path) == sorted(on_cluster)


def test_a_recorded_job_is_submitted_later_and_a_controller_that_is_down_is_waited_for(
    l2inv: Commands, on_cluster: list[str], tmp_path: Path, cluster: slurm_cluster.Cluster
) -> None:
    (tmp_path / "go").touch()
    cluster.stop_controller()
    try:
        answer = l2inv("preprocess", expect=1)
    finally:
        cluster.start_controller()
    assert answer.stderr.count("\n") == 1
    assert "the cluster cannot be reached" in answer.stderr
    assert l2inv.json("status")["states"]["error"] == 0
    collected(l2inv, 0)
    assert runs(tmp_path) == sorted(on_cluster)
    assert [e["detail"].get("after") for e in l2inv.json("history", on_cluster[0])["events"]][-2] == "UNKNOWN"


def test_a_cluster_that_refuses_is_one_error_and_no_op_is_blamed(
    l2inv: Commands, on_cluster: list[str]
) -> None:
    l2inv.settings["preprocess"]["slurm"]["partition"] = "nowhere"
    l2inv.save()
    assert "sbatch refused" in l2inv("preprocess", expect=1).stderr
    assert l2inv.json("status")["states"]["invertible"] == len(on_cluster)


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
