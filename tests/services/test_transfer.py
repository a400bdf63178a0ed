"""Transfers by real programs: compared at the destination, and reported or repeated if they end early."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event as Flag
from typing import Any

import msgspec
import pytest
import yaml

from l2inv.config.settings import Mount, Preprocess, Publish, Settings, Slurm, Transfer, load
from l2inv.errors import ConfigError, L2invError
from l2inv.services import jobs, slurm
from l2inv.services.jobs import OWN, Ended
from l2inv.stages.preprocess import bundle
from l2inv.stages.publish import transfer
from l2inv.stages.publish.transfer import Failed, File, Job, Move
from tests.helpers import slurm_cluster
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.waiting import until

CP = ["sh", "-c", 'mkdir -p "$2" && cp -r "$1/." "$2"', "sh", "{source}"]
RSYNC = ["rsync", "-a", "--mkpath", "{source}/"]
NO_RSYNC = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
NAMES = ["INV_7QK2ZD_1_L2.fits", "a b.fits", "-rf", "$(touch ran)", "100%25.fits", "é.asdf", "below/c.fits"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "it's; science's $(touch ran)"
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes([number]) * 1000)
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    return folder


def settings(archive: Path, command: list[str], **other: Any) -> Settings:
    """Settings by which the archive is looked at where it is mounted."""
    uri = "globus://archive/{bucket}/{destination}"
    moved = Transfer(command, destination_uri=uri, **other)
    return Settings(publish=Publish(mounts=[Mount("globus://archive/", str(archive))], transfer=moved))


def to_archive(archive: Path, command: list[str], **other: Any) -> Settings:
    return settings(archive, [*command, f"{archive}/{{bucket}}/{{destination}}"], **other)


def move(source: Path) -> Move:
    return Move(str(source), "data", "pid_1_118/inv_7QK2ZD")


def begun(how: Settings, source: Path) -> Job:
    (one,) = transfer.planned(how, source.parent / "work", [move(source)])
    return one


def run(how: Settings, one: Job, stop: Flag | None = None) -> str:
    """Start a job and return its outcome."""
    (process,) = transfer.start(how, [one])
    try:
        return transfer.outcome(how, one, stop or Flag())
    finally:
        process.wait()


def described(folder: Path) -> list[File]:
    return [File(**bundle.describe_file(path, folder)) for path in bundle.files(folder)]


# What is brought, and compared


@pytest.mark.parametrize("command", [CP, pytest.param(RSYNC, marks=NO_RSYNC)], ids=["cp", "rsync"])
def test_every_file_is_transferred_whatever_its_name(source: Path, archive: Path, command: list[str]) -> None:
    how, files = to_archive(archive, command), described(source)
    assert {file.path for file in files} == set(NAMES)
    assert len(transfer.differences(how, move(source), files) or []) == len(NAMES)
    for _ in range(2):  # and once more, over what is there
        assert run(how, begun(how, source)) == "done"
        assert transfer.differences(how, move(source), files) == []
    assert not list(source.parent.rglob("ran"))


def test_each_difference_is_named(source: Path, archive: Path) -> None:
    how, files = to_archive(archive, CP), described(source)
    run(how, begun(how, source))
    there = archive / "data/pid_1_118/inv_7QK2ZD"
    (there / NAMES[0]).write_bytes(b"")
    (there / NAMES[1]).write_bytes(b"x" * 1000)
    (there / NAMES[5]).unlink()
    (there / "below/d.fits").touch()
    where = "globus://archive/data/pid_1_118/inv_7QK2ZD"
    assert sorted(transfer.differences(how, move(source), files) or []) == [
        f"{where}/%C3%A9.asdf: is missing",
        f"{where}/INV_7QK2ZD_1_L2.fits: has 0 bytes, not 1000",
        f"{where}/a%20b.fits: has another sha256",
        f"{where}/below/d.fits: is there, but was not sent",
    ]


def test_a_destination_that_cannot_be_read_is_not_reported_as_different(source: Path, archive: Path) -> None:
    how, files = to_archive(archive, CP), described(source)
    elsewhere = msgspec.structs.replace(how, publish=Publish(transfer=how.publish.transfer))
    assert transfer.differences(elsewhere, move(source), files) is None
    assert transfer.differences(Settings(), move(source), files) is None
    archive.rmdir()
    with pytest.raises(L2invError, match="is not a readable folder"):
        transfer.differences(how, move(source), files)


def test_a_destination_that_is_a_path_is_looked_at_there(source: Path, archive: Path) -> None:
    how = to_archive(archive, CP)
    moved = msgspec.structs.replace(
        how.publish.transfer, destination_uri=f"{archive}/{{bucket}}/{{destination}}/"
    )
    how = Settings(publish=Publish(transfer=moved))
    run(how, begun(how, source))
    assert transfer.differences(how, move(source), described(source)) == []


# How a job ends


def test_a_failed_command_is_reported_with_its_last_line(source: Path, archive: Path) -> None:
    how = to_archive(archive, ["sh", "-c", "echo first; echo no room >&2; exit 3", "sh", "{source}"])
    one = begun(how, source)
    with pytest.raises(Failed) as caught:
        run(how, one)
    assert str(caught.value) == f"sh ended with exit code 3: no room (log: {one.folder}/transfer.log)"


def test_a_command_that_takes_too_long_is_ended(source: Path, archive: Path) -> None:
    how = to_archive(archive, ["sh", "-c", "sleep 60 & wait", "sh", "{source}"], timeout_seconds=0.3)
    one = begun(how, source)
    with pytest.raises(Failed, match=r"sh took longer than 0\.3 s \(log: "):
        run(how, one)
    assert not jobs.is_running(Path(one.folder), one.job)


def test_a_stopped_run_ends_its_command_and_the_next_run_starts_it_again(source: Path, archive: Path) -> None:
    how = to_archive(archive, ["sh", "-c", "sleep 60", "sh", "{source}"])
    one, stop = begun(how, source), Flag()
    stop.set()
    with pytest.raises(jobs.Stopped):
        run(how, one, stop)
    assert not jobs.is_running(Path(one.folder), one.job)
    assert transfer.outcome(how, one, Flag()) == "again"


def test_a_job_that_was_recorded_and_not_started_is_to_begin_again(source: Path, archive: Path) -> None:
    how = to_archive(archive, CP)
    one = begun(how, source)
    assert transfer.outcome(how, one, Flag()) == "again"
    second = transfer.again(how, source.parent / "work", one)
    assert (second.attempt, second.move, second.folder) == (2, one.move, one.folder)
    assert second.job != one.job
    assert run(how, second) == "done"


def test_a_job_that_is_lost_too_often_fails(source: Path, archive: Path) -> None:
    how = to_archive(archive, CP)
    how = msgspec.structs.replace(how, preprocess=Preprocess(slurm=Slurm(max_requeues=1)))
    first = begun(how, source)
    assert transfer.outcome(how, first, Flag()) == "again"
    with pytest.raises(Failed, match="LOST: sh ended without recording its exit code: it did not begin"):
        transfer.outcome(how, transfer.again(how, source.parent / "work", first), Flag())


STARTER = """
import sys, msgspec
from l2inv.stages.publish import transfer
from l2inv.config.settings import Settings
how, one = msgspec.json.decode(sys.argv[1], type=Settings), msgspec.json.decode(sys.argv[2], type=transfer.Job)
transfer.start(how, [one])
print("started", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def killed(source: Path, archive: Path) -> Iterator[tuple[Settings, Job, Path]]:
    """A job whose l2inv was killed while it ran; it waits for the file `go`."""
    go = source.parent / "go"
    script = 'while [ ! -e "$3" ]; do sleep 0.05; done; mkdir -p "$2" && cp -r "$1/." "$2"'
    command = ["sh", "-c", script, "sh", "{source}", f"{archive}/{{bucket}}/{{destination}}", str(go)]
    how = settings(archive, command)
    one = begun(how, source)
    argv = [
        sys.executable,
        "-c",
        STARTER,
        msgspec.json.encode(how).decode(),
        msgspec.json.encode(one).decode(),
    ]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "started\n"
        starter.kill()
    try:
        yield how, one, go
    finally:
        jobs.kill(Path(one.folder), one.job)


def test_a_job_continues_when_l2inv_is_killed(source: Path, killed: tuple[Settings, Job, Path]) -> None:
    how, one, go = killed
    assert jobs.is_running(Path(one.folder), one.job)
    go.touch()
    assert transfer.outcome(how, one, Flag()) == "done"
    assert transfer.differences(how, one.move, described(source)) == []
    assert transfer.outcome(how, one, Flag()) == "done"  # however often it is asked for


def test_a_job_that_is_killed_itself_is_to_begin_again(killed: tuple[Settings, Job, Path]) -> None:
    how, one, go = killed
    pid = Path(one.folder) / OWN / f"{one.job}.pid"
    until(pid.exists, seconds=20)
    os.killpg(int(pid.read_text().split()[0]), signal.SIGKILL)
    assert transfer.outcome(how, one, Flag()) == "again"
    go.touch()
    second = transfer.again(how, Path(one.folder).parent.parent, one)
    assert run(how, second) == "done"


@pytest.mark.parametrize(
    ("end", "state", "found"),
    [
        (Ended(0), "COMPLETED", "done"),
        (Ended(0), "NODE_FAIL", "done"),
        (Ended(0), "FAILED", "done"),
        (Ended(0, "TERM"), "CANCELLED", "failed"),
        (Ended(0, "TERM"), "TIMEOUT", "again"),
        (Ended(143, "TERM"), "PREEMPTED", "again"),
        (Ended(143, "TERM"), "COMPLETED", "failed"),
        (Ended(143, "TERM"), "COMPLETING", "running"),
        (Ended(1), "RUNNING", "running"),
        (Ended(143), "COMPLETING", "running"),  # told to end, and did before it could say so
        (Ended(143), "TIMEOUT", "again"),
        (Ended(143), "CANCELLED", "failed"),
        (Ended(1), "FAILED", "failed"),
        (Ended(1), "NODE_FAIL", "again"),
        (Ended(137), "OUT_OF_MEMORY", "failed"),
        (Ended(), "FAILED", "failed"),
        (None, "COMPLETED", "running"),  # its word is on the way
        (None, "PENDING", "running"),
        (None, "RUNNING", "running"),
        (None, "CANCELLED", "failed"),
        (None, "OUT_OF_MEMORY", "failed"),
        (None, "NODE_FAIL", "again"),
        (None, "LOST", "again"),
        (None, "UNKNOWN", "again"),
    ],
)
def test_the_outcome_of_a_job(end: Ended | None, state: str, found: str) -> None:
    assert jobs.fate(end, state) == found


# What is refused


@pytest.mark.parametrize(
    "destination", ["", "a//b", "../a", "a/..", "-a/b", "a/.b", "a/b;c", "a/b c", "a/b\n", "/a", "é"]
)
def test_a_destination_that_may_be_another_is_refused(destination: str) -> None:
    with pytest.raises(L2invError, match="cannot transfer to"):
        transfer.planned(Settings(), Path("/work"), [Move("/source", "data", destination)])


@pytest.mark.parametrize("source", ["", "-delete", "relative/folder", "/a\0b"])
def test_a_source_that_may_be_an_option_is_refused(source: str) -> None:
    with pytest.raises(L2invError, match="cannot transfer from"):
        transfer.planned(Settings(), Path("/work"), [Move(source, "data", "pid/inv")])


@pytest.mark.parametrize(
    ("command", "good"),
    [
        (["cp", "{source}", "{destination}"], True),
        (["sh", "-c", "x {a,b} ${}", "{source}", "/{bucket}/{destination}"], True),
        (["cp", "{source}", "/there"], False),
        (["cp", "{source}", "{destination}", "{dest}"], False),
        ([], False),
    ],
)
def test_the_command_names_where_from_and_where_to(tmp_path: Path, command: list[str], good: bool) -> None:
    path = tmp_path / "config.yaml"
    escaped = [part.replace("${", "$${") for part in command]
    path.write_text(yaml.safe_dump({"publish": {"transfer": {"command": escaped}}}))
    if good:
        assert load(path, {}).settings.publish.transfer.command == command
        return
    with pytest.raises(
        ConfigError, match=r"publish\.transfer\.command: must hold \{source\} and \{destination\}"
    ):
        load(path, {})


def test_a_program_that_is_not_there_is_a_mistake_in_the_settings(archive: Path) -> None:
    transfer.check(Settings())
    transfer.check(to_archive(archive, CP))
    with pytest.raises(ConfigError, match="there is no program /nowhere/globus"):
        transfer.check(to_archive(archive, ["/nowhere/globus", "{source}"]))
    with pytest.raises(ConfigError, match="executor slurm needs one"):
        transfer.check(Settings(publish=Publish(transfer=Transfer(executor="slurm"))))


# As the example has it

# What `globus transfer --help` and `globus task wait --help` (globus-cli 4) say of these two.
GLOBUS = """#!/bin/sh
echo "$@" >>"$0.told"
case "$1 $2" in
    "transfer -r") [ "$3 $4 $5 $6 $7 $8" = "-s checksum --jq task_id -F unix" ] && echo 7a2c-task ;;
    "task wait") [ "$3" = 7a2c-task ] && [ ! -e "$0.fails" ] ;;
    *) exit 2 ;;
esac
"""


def test_the_examples_globus_line_submits_a_task_and_waits_for_it(
    source: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = (Path(__file__).parents[2] / "config.example.yaml").read_text().split("  transfer:\n")[1]
    lines = [line.strip().removeprefix("#") for line in example.splitlines()]
    first = next(i for i, line in enumerate(lines) if "globus transfer" in line)
    command = yaml.safe_load("\n".join(lines[first : first + 2]))["command"]
    programs = source.parent / "programs"
    programs.mkdir()
    globus = programs / "globus"
    globus.write_text(GLOBUS)
    globus.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    how = settings(archive, command)
    assert run(how, begun(how, source)) == "done"
    submitted, waited = (programs / "globus.told").read_text().splitlines()
    assert submitted.endswith(f" SOURCE_ID:{source}/ DESTINATION_ID:/data/pid_1_118/inv_7QK2ZD/")
    assert waited == "task wait 7a2c-task"
    (programs / "globus.fails").touch()
    with pytest.raises(Failed, match="sh ended with exit code 1"):
        run(how, begun(how, source))


# On a cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if why := slurm_cluster.missing(*slurm_cluster.DAEMONS):
        pytest.skip(why)
    with slurm_cluster.running() as cluster:
        yield cluster


@pytest.mark.slow
def test_transfers_on_a_cluster(cluster: Cluster, source: Path, archive: Path, tmp_path: Path) -> None:
    script = 'case "$2" in *good) mkdir -p "$2" && cp -r "$1/." "$2" ;; *bad) echo no room; exit 4 ;; *) sleep 60 ;; esac'
    how = to_archive(archive, ["sh", "-c", script, "sh", "{source}"], executor="slurm")
    moves = [Move(str(source), "data", f"pid/{name}") for name in ("good", "bad", "cancelled", "failed_node")]
    work = transfer.planned(how, tmp_path / "work", moves)
    assert transfer.start(how, work) == []
    good, bad, cancelled, lost = work

    def found(one: Job) -> str:
        try:
            return transfer.outcome(how, one, Flag())
        except Failed as problem:
            return str(problem)

    def when(holds: Callable[[], bool]) -> None:
        until(holds, "the jobs end", 50)

    when(lambda: found(good) != "running" and found(bad) != "running")
    assert found(good) == "done"
    assert transfer.differences(how, good.move, described(source)) == []
    assert found(bad).startswith("sh ended with exit code 4: no room (log: ")
    when(lambda: jobs.began(Path(cancelled.folder), cancelled.job) is not None)
    assert found(cancelled) == found(lost) == "running"
    slurm.cancel(cancelled.job, cancelled.task or 0)
    when(lambda: found(cancelled) != "running")
    assert found(cancelled).startswith("CANCELLED: sh ")
    when(lambda: jobs.began(Path(lost.folder), lost.job) is not None)
    cluster.tell("scontrol", "update", f"NodeName={cluster.node}", "State=DOWN", "Reason=test")
    cluster.tell("scontrol", "update", f"NodeName={cluster.node}", "State=RESUME")
    when(lambda: found(lost) != "running")
    assert found(lost) == "again"
    never = transfer.planned(how, tmp_path / "work", [move(source)])[0]
    assert found(never) == "again"
    # slurmd does not end before its steps, and they do not before slurmctld heard of their end.
    when(lambda: not list((cluster.folder / "spool").glob(f"{cluster.node}_*")))
