"""Slurm: the states of tasks on a real cluster, and how preprocess handles them."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from l2inv.config.settings import Slurm
from l2inv.services import slurm
from l2inv.services.slurm import TaskState
from tests.helpers import slurm_cluster
from tests.helpers.commands import NOW, Commands
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.waiting import until

ENDLESS = "echo >$0.began; trap 'sleep 0.5; echo >$0.told; exit 7' TERM; while :; do sleep 0.1; done"


@pytest.fixture(scope="module")
def one_cluster() -> Iterator[Cluster]:
    if why := slurm_cluster.missing(*slurm_cluster.DAEMONS):
        pytest.skip(why)
    with slurm_cluster.running() as cluster:
        yield cluster


@pytest.fixture
def cluster(one_cluster: Cluster) -> Iterator[Cluster]:
    """A cluster with nothing on it."""
    yield one_cluster
    one_cluster.cancel_all()


@pytest.fixture
def name() -> str:
    """A job name that no other test has."""
    return f"l2inv-{os.urandom(6).hex()}"


def submitted(folder: Path, name: str, *scripts: str, minutes: int = 5, **settings: Any) -> list[Path]:
    """Return the cluster an array of shell scripts; their paths."""
    paths = [folder / f"{i} of the scripts" for i in range(len(scripts))]
    for path, script in zip(paths, scripts, strict=True):
        path.write_text(script)
    slurm.submit(Slurm(**settings), name, minutes, folder, paths)
    return paths


def ended(name: str, *tasks: int) -> list[TaskState]:
    """Wait until the tasks have ended, and return how."""
    until(
        lambda: all(slurm.states([name])[name, task].state in slurm.ENDED for task in tasks),
        "the tasks end",
        50,
    )
    known = slurm.states([name])
    return [known[name, task] for task in tasks]


def began(script: Path) -> None:
    until(Path(f"{script}.began").exists, "the task begins")


def down(cluster: Cluster) -> None:
    """Fail the node under what runs on it, and lets it come back."""
    cluster.tell("scontrol", "update", f"NodeName={cluster.node}", "State=DOWN", "Reason=test")
    cluster.tell("scontrol", "update", f"NodeName={cluster.node}", "State=RESUME")


def out_of_time(cluster: Cluster, name: str) -> None:
    """End the time of a job: Slurm counts it in minutes, and looks every 30 s."""
    running = cluster.tell(
        "squeue", "--noheader", "--array", "--states=R", f"--name={name}", "--format=%F_%K"
    )
    for job in running.split():
        cluster.tell("scontrol", "update", f"JobId={job}", "EndTime=now")


def test_each_task_runs_its_script_and_ends_in_its_own_way(
    cluster: Cluster, tmp_path: Path, name: str
) -> None:
    folder = 'it\'s a %a \\ %% "$HOME"\nand a second line'
    (tmp_path / folder).mkdir()
    scripts = submitted(
        tmp_path / folder, name, "echo >$0.ran", "exit 3", "kill -KILL $$", "echo words; exit 99"
    )
    assert ended(name, 0, 1, 2, 3) == [
        TaskState("COMPLETED", 0),
        TaskState("FAILED", 3),
        TaskState("FAILED", None),
        TaskState("FAILED", 99),
    ]
    assert Path(f"{scripts[0]}.ran").exists()
    assert (tmp_path / folder / "3.out").read_text() == "words\n"


def test_a_canceled_task_is_reported_and_the_others_continue(
    cluster: Cluster, tmp_path: Path, name: str
) -> None:
    scripts = submitted(tmp_path, name, ENDLESS, ENDLESS, ENDLESS, ENDLESS, array_throttle=2)
    began(scripts[0])
    began(scripts[1])
    assert slurm.states([name])[name, 2] == TaskState("PENDING", None)
    slurm.cancel(name, 2)
    assert (name, 2) not in slurm.states([name])  # an array forgets what never began
    slurm.cancel(name, 3)
    slurm.cancel(name, 1)
    assert [standing.state for standing in ended(name, 1)] == ["CANCELLED"]
    assert Path(f"{scripts[1]}.told").exists()
    assert not Path(f"{scripts[2]}.began").exists()
    assert not Path(f"{scripts[3]}.began").exists()
    assert slurm.states([name])[name, 0] == TaskState("RUNNING", None)
    slurm.cancel(name, 0)
    slurm.cancel(name, 1)  # as good as done
    slurm.cancel(name, 77)


def test_an_array_that_was_cancelled_before_it_began_has_been_heard_of(
    cluster: Cluster, tmp_path: Path, name: str
) -> None:
    names = [f"{name}-{what}" for what in ("whole", "part", "refused", "none")]
    cluster.tell("scontrol", "update", f"NodeName={cluster.node}", "State=DRAIN", "Reason=test")
    try:
        for one in names[:2]:
            submitted(tmp_path, one, "exit 0", "exit 0")
        with pytest.raises(slurm.SlurmRefused):
            submitted(tmp_path, names[2], "exit 0", memory_mb=1_000_000)
        cluster.tell("scancel", f"--name={names[0]}")
        slurm.cancel(names[1], 0)
        assert set(slurm.states(names)) == {(names[1], 1)}
        assert slurm.has_heard_of(names) == set(names[:2])
    finally:
        cluster.tell("scontrol", "update", f"NodeName={cluster.node}", "State=RESUME")


def test_a_failed_node_is_distinguished_from_a_failed_command(
    cluster: Cluster, tmp_path: Path, name: str
) -> None:
    (script,) = submitted(tmp_path, name, ENDLESS)
    began(script)
    down(cluster)
    assert [standing.state for standing in ended(name, 0)] == ["NODE_FAIL"]


def test_a_job_that_makes_room_for_others_is_preempted(cluster: Cluster, tmp_path: Path, name: str) -> None:
    (script,) = submitted(tmp_path, name, ENDLESS, cpus=32, partition="main")
    began(script)
    (tmp_path / "urgent").mkdir()
    submitted(tmp_path / "urgent", f"{name}-urgent", "exit 0", cpus=32, partition="urgent")
    assert [standing.state for standing in ended(name, 0)] == ["PREEMPTED"]
    assert ended(f"{name}-urgent", 0) == [TaskState("COMPLETED", 0)]


def test_the_job_gets_what_the_settings_ask_for(cluster: Cluster, tmp_path: Path, name: str) -> None:
    submitted(tmp_path, name, "exit 0", minutes=61, partition="urgent", memory_mb=17, cpus=3)
    (job,) = cluster.tell("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%A").split()
    told = dict(
        part.partition("=")[::2] for part in cluster.tell("scontrol", "show", "job", "-o", job).split()
    )
    assert (told["Partition"], told["NumCPUs"], told["MinMemoryNode"]) == ("urgent", "3", "17M")
    assert (told["TimeLimit"], told["Requeue"], told["JobName"]) == ("01:01:00", "0", name)


def test_the_newest_of_several_jobs_of_a_name_counts(cluster: Cluster, tmp_path: Path, name: str) -> None:
    submitted(tmp_path, name, "exit 3", "exit 4")
    ended(name, 0, 1)
    submitted(tmp_path, name, "exit 5")
    assert ended(name, 0, 1) == [TaskState("FAILED", 5), TaskState("FAILED", 4)]


def test_only_tasks_of_those_names_and_of_this_user_are_known(
    cluster: Cluster, tmp_path: Path, name: str
) -> None:
    a_strangers = ["sbatch", "--uid=nobody", "--array=0-1", "--output=/dev/null", "--chdir=/", "--wrap=true"]
    cluster.tell(*a_strangers, f"--job-name={name}")
    cluster.tell("sbatch", "--output=/dev/null", f"--job-name={name}", "--wrap=true")  # no array
    submitted(tmp_path, f"{name}-other", "exit 0")
    assert slurm.states([name, f"{name}-none"]) == {}
    assert slurm.states([]) == {}


def test_no_variable_leads_the_commands_astray_and_no_secret_leaves_with_the_job(
    cluster: Cluster, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in {"SQUEUE_STATES": "PD", "SQUEUE_PARTITION": "none", "SBATCH_HOLD": "1"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("L2INV_TOKEN", "of-the-store")
    submitted(tmp_path, name, "env")
    assert ended(name, 0) == [TaskState("COMPLETED", 0)]
    environment = (tmp_path / "0.out").read_text()
    assert "of-the-store" not in environment
    assert "\nPATH=" in environment
    assert "\nHOME=" in environment
    assert "SLURM_EXPORT_ENV" not in environment  # an srun in the command would pass nothing on


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"partition": "nowhere"}, "Invalid partition name specified"),
        ({"memory_mb": 1_000_000}, "Requested node configuration is not available"),
    ],
)
def test_a_job_refused_by_the_cluster_is_reported_in_its_words(
    cluster: Cluster, tmp_path: Path, name: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(slurm.SlurmRefused, match=words) as refusal:
        submitted(tmp_path, name, "exit 0", **settings)
    assert "\n" not in str(refusal.value)
    assert slurm.states([name]) == {}


def test_more_tasks_than_an_array_may_have_are_refused(cluster: Cluster, tmp_path: Path, name: str) -> None:
    with pytest.raises(slurm.SlurmRefused, match="Invalid job array specification"):
        slurm.submit(Slurm(), name, 1, tmp_path, [tmp_path] * 1002)


def each_command(folder: Path, name: str) -> list[Callable[[], object]]:
    return [
        lambda: submitted(folder, name, "exit 0"),
        lambda: slurm.states([name]),
        lambda: slurm.cancel(name, 0),
    ]


def test_a_controller_that_is_down_is_no_refusal(cluster: Cluster, tmp_path: Path, name: str) -> None:
    cluster.stop_controller()
    try:
        for command in each_command(tmp_path, name):
            with pytest.raises(slurm.SlurmDown, match="Unable to contact slurm controller") as problem:
                command()
            assert "\n" not in str(problem.value)
    finally:
        cluster.start_controller()
    assert slurm.states([name]) == {}


def test_a_controller_that_hangs_is_not_waited_for(
    cluster: Cluster, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "TIMEOUT_SECONDS", 0.5)
    with cluster.frozen_controller():
        for command in each_command(tmp_path, name):
            with pytest.raises(slurm.SlurmDown, match=r"did not answer within 0\.5 s"):
                command()


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Put shell scripts in place of Slurm's programs."""
    for program, script in scripts.items():
        (folder / program).write_text(f"#!/bin/sh\n{script}\n")
        (folder / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_whether_the_controller_is_down_is_asked_of_it_and_not_read_from_a_message(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs(tmp_path, monkeypatch, sbatch="echo munge: connection timed out >&2; exit 1", squeue="exit 0")
    with pytest.raises(slurm.SlurmRefused, match="munge: connection timed out"):
        submitted(tmp_path, name, "exit 0")
    programs(tmp_path, monkeypatch, squeue="echo no answer >&2; exit 1")
    with pytest.raises(slurm.SlurmDown, match="no answer"):
        submitted(tmp_path, name, "exit 0")


def test_an_accounting_that_is_not_configured_is_not_missed(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = "echo 'AccountingStorageType   = {}'"
    programs(
        tmp_path,
        monkeypatch,
        squeue="exit 0",
        sacct="echo disabled >&2; exit 1",
        scontrol=shown.format("(null)"),
    )
    assert slurm.states([name]) == {}
    programs(tmp_path, monkeypatch, scontrol=shown.format("accounting_storage/slurmdbd"))
    with pytest.raises(slurm.SlurmDown, match="disabled"):
        slurm.states([name])


def test_a_cluster_that_cannot_be_asked_is_down(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for command in each_command(tmp_path, name):
        with pytest.raises(slurm.SlurmDown, match="cannot be started: No such file or directory"):
            command()


@pytest.mark.slow
def test_a_task_that_takes_too_long_is_reported_as_timed_out(
    cluster: Cluster, tmp_path: Path, name: str
) -> None:
    (script,) = submitted(tmp_path, name, ENDLESS)
    began(script)
    out_of_time(cluster, name)
    assert [standing.state for standing in ended(name, 0)] == ["TIMEOUT"]
    assert Path(f"{script}.told").exists()


@pytest.mark.slow
def test_a_task_that_takes_too_much_memory_is_distinguished_from_one_that_fails(
    tmp_path: Path, name: str
) -> None:
    why = slurm_cluster.missing(*slurm_cluster.DAEMONS) or slurm_cluster.cannot_limit_memory()
    if why:
        pytest.skip(why)
    with slurm_cluster.running(memory_limits=True):
        submitted(tmp_path, name, "exec python3 -c 'print(len(b\"x\" * 90_000_000))'", memory_mb=30)
        assert ended(name, 0) == [TaskState("OUT_OF_MEMORY", None)]


@pytest.mark.slow
def test_the_accounting_remembers_what_the_controller_forgot(tmp_path: Path, name: str) -> None:
    if why := slurm_cluster.missing(*slurm_cluster.DAEMONS, *slurm_cluster.ACCOUNTING):
        pytest.skip(why)
    with slurm_cluster.running(accounting=True) as cluster:
        scripts = submitted(tmp_path, name, "exit 0", "exit 3", "kill -KILL $$", ENDLESS, ENDLESS)
        seen = ended(name, 0, 1, 2)
        began(scripts[3])
        began(scripts[4])
        slurm.cancel(name, 3)
        out_of_time(cluster, name)
        (tmp_path / "waited").mkdir()
        submitted(tmp_path / "waited", f"{name}-waited", "exit 0", cpus=32)
        until(lambda: "-waited" in cluster.tell("sacct", "--format=JobName%50"), "the accounting knows it")
        slurm.cancel(f"{name}-waited", 0)
        assert [standing.state for standing in ended(name, 3, 4)] == ["CANCELLED", "TIMEOUT"]
        cluster.stop_controller()
        cluster.start_controller("-c")
        assert cluster.tell("squeue", "--noheader", "--states=all") == ""
        remembered = slurm.states([name])
        assert [remembered[name, task] for task in range(3)] == seen
        assert [remembered[name, task].state for task in (3, 4)] == ["CANCELLED", "TIMEOUT"]
        assert slurm.has_heard_of([name, f"{name}-waited"]) == {name, f"{name}-waited"}
        cluster.stop("slurmdbd")
        with pytest.raises(slurm.SlurmDown, match="Connection refused"):  # it might know the job
            slurm.states([name])


@pytest.fixture
def invertible(l2inv: Commands, cluster: Cluster) -> list[str]:
    """OPs to be preprocessed on the cluster, by a command that runs on until `go` is in the folder of them all."""
    l2inv("scan")
    l2inv("qualify", "--as-of", NOW.isoformat())
    code = (
        "import sys, time, pathlib; folder = pathlib.Path(sys.argv[1]); work = folder.parent;"
        "open(work / 'runs', 'a').write(folder.name + '\\n')\n"
        "while not (work / 'go').exists(): time.sleep(0.05)\n"
        "sys.exit(9 if (work / 'fail').exists() else 0)"
    )
    l2inv.settings["preprocess"] |= {"executor": "slurm", "command": [sys.executable, "-c", code, "{folder}"]}
    l2inv.save()
    return [op["op_id"] for op in l2inv.json("list", "--state", "invertible")["ops"]]


def runs(work: Path) -> int:
    return len((work / "runs").read_text().splitlines()) if (work / "runs").exists() else 0


def causes(l2inv: Commands, ops: list[str]) -> set[str]:
    """The first words of why the OPs are in error."""
    last = [l2inv.json("history", op)["events"][-1] for op in ops]
    return {event["detail"]["cause"].partition(":")[0] for event in last}


def preprocessed_until(l2inv: Commands, state: str, number: int) -> None:
    """Run preprocess as cron would, until so many OPs are in a state."""
    until(
        lambda: bool(l2inv("preprocess", expect=None)) and l2inv.json("status")["states"][state] == number,
        f"{number} OPs are {state}",
        60,
    )


def test_a_command_that_fails_on_the_cluster_puts_its_op_into_error(
    l2inv: Commands, invertible: list[str], tmp_path: Path
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "go").touch()
    (tmp_path / "work" / "fail").touch()
    preprocessed_until(l2inv, "error", len(invertible))
    assert runs(tmp_path / "work") == len(invertible)
    cause = l2inv.json("history", invertible[0])["events"][-1]["detail"]["cause"]
    assert "ended with exit code 9" in cause


@pytest.mark.parametrize("sbatch", ["", '{sbatch} "$@"; '], ids=["before", "after"])
def test_a_submitter_that_dies_around_sbatch_leaves_each_op_to_run_once(
    l2inv: Commands, invertible: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sbatch: str
) -> None:
    deadly = tmp_path / "bin" / "sbatch"
    deadly.parent.mkdir()
    deadly.write_text(f"#!/bin/sh\n{sbatch.format(sbatch=shutil.which('sbatch'))}kill -KILL $PPID\n")
    deadly.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{deadly.parent}:{os.environ['PATH']}")
        process = l2inv.start("preprocess")
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    report = l2inv.json("preprocess")
    assert report["jobs"]["submitted"] == (0 if sbatch else len(invertible))
    (tmp_path / "work" / "go").touch()
    preprocessed_until(l2inv, "preprocessed", len(invertible))
    assert runs(tmp_path / "work") == len(invertible)


def test_a_job_cut_off_by_a_failed_node_is_restarted_up_to_the_limit_and_then_an_error(
    l2inv: Commands, invertible: list[str], cluster: Cluster, tmp_path: Path
) -> None:
    l2inv.settings["preprocess"]["slurm"] = {"max_requeues": 1}
    l2inv.save()
    for attempt in (1, 2):
        assert l2inv.json("preprocess")["jobs"]["submitted"] == len(invertible)
        expected = attempt * len(invertible)
        until(lambda: runs(tmp_path / "work") == expected, "all run")  # noqa: B023 - called at once
        down(cluster)
    assert l2inv.json("preprocess", expect=4)["ops"]["failed"] == len(invertible)
    assert causes(l2inv, invertible) == {"NODE_FAIL"}
    started = [
        event["detail"]
        for event in l2inv.json("history", invertible[0])["events"]
        if event["kind"] == "preprocess_started"
    ]
    assert [(detail["attempt"], detail["after"]) for detail in started] == [(1, None), (2, "NODE_FAIL")]


@pytest.mark.slow
def test_a_job_that_ran_out_of_time_is_restarted_and_then_done(
    l2inv: Commands, invertible: list[str], cluster: Cluster, tmp_path: Path
) -> None:
    l2inv("preprocess")
    until(lambda: runs(tmp_path / "work") == len(invertible), "all run")
    name = l2inv.json("history", invertible[0])["events"][-1]["detail"]["job"]
    out_of_time(cluster, name)
    ended(name, *range(len(invertible)))
    (tmp_path / "work" / "go").touch()
    assert l2inv.json("preprocess")["jobs"]["submitted"] == len(invertible)
    preprocessed_until(l2inv, "preprocessed", len(invertible))
    last_start = [
        e for e in l2inv.json("history", invertible[0])["events"] if e["kind"] == "preprocess_started"
    ][-1]
    assert (last_start["detail"]["attempt"], last_start["detail"]["after"]) == (2, "TIMEOUT")
