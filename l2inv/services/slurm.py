"""Slurm by its commands: submits a job array and looks up, by the job's name, the state of each task.

The output read is plain text in named columns (squeue(1), sacct(1)): not every Slurm has --json, and its shape differs
between versions. Only the user's own jobs are considered, since anybody can use a job's name.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from l2inv.config.settings import Slurm
from l2inv.files import replace

# "JOB STATE CODES" of squeue(1): a task in any other state has not ended.
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"}
    | {"NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"}
)
TIMEOUT_SECONDS = 60.0
_DAYS_BACK = 30
_ACCOUNTING = "accounting_storage/slurmdbd"  # AccountingStorageType of slurm.conf(5), if there is one
# Lines of another form are of jobs that are not arrays, or name the cluster.
_LIVE = re.compile(r"^(\S+) +(\d+) +(\d+|N/A) +([A-Z_]+) +(\d+) +(\S.*?)? *$", re.ASCII | re.MULTILINE)
_PAST = re.compile(
    r"^([^|\n]+)\|(\d+)(?:_(\d+|\[[^|\n]*\]))?\|([A-Z_]+)[^|\n]*\|(\d+):(\d+)$", re.ASCII | re.MULTILINE
)
_REFUSED = ("FAILED", "BadConstraints")  # the controller lists jobs that sbatch refused as failed

# Job name, array index (None: the tasks of a canceled array that did not begin), id of the array, state.
_Task = tuple[str, int | None, int, "TaskState"]


class SlurmDown(Exception):
    """The cluster cannot be reached now; the text is one line."""


class SlurmRefused(Exception):
    """sbatch refused the job; the text is its message, in one line."""


class TaskState(msgspec.Struct, frozen=True):
    """A task's state as Slurm names it, and once it ended its exit code; None if a signal ended it."""

    state: str
    exit_code: int | None


def submit(
    settings: Slurm, name: str, time_minutes: int, batch_folder: Path, scripts: Sequence[Path]
) -> None:
    """Submit one job array: task i runs scripts[i] by /bin/sh. The nodes must see the same paths.

    A task that fails to start leaves its message in I.out in the batch folder. Raise SlurmRefused, OSError, and
    SlurmDown, after which the jobs may exist anyway: see states().
    """
    # exec, because a shell would end by the SIGTERM of scancel and of the time limit, and the task with it, before the
    # script recorded how it ended. Slurm interprets % and \ in paths, so it gets none.
    tasks = "".join(f"{i}) exec /bin/sh {shlex.quote(str(path))} ;;\n" for i, path in enumerate(scripts))
    batch = batch_folder / "batch.sh"
    replace(
        batch,
        "#!/bin/sh\n"
        "unset SLURM_EXPORT_ENV\n"  # else an srun in the command would get no environment
        f'exec >{shlex.quote(str(batch_folder))}/"$SLURM_ARRAY_TASK_ID".out 2>&1 || exit 1\n'
        f'case "$SLURM_ARRAY_TASK_ID" in\n{tasks}esac\n',
        0o700,
    )
    throttle = f"%{settings.array_throttle}" if settings.array_throttle else ""
    asked = {
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "mem": settings.memory_mb and f"{settings.memory_mb}M",
        "cpus-per-task": settings.cpus,
    }
    argv = [
        "sbatch",
        "--parsable",
        "--no-requeue",  # l2inv counts how often a task begins again
        f"--job-name={name}",
        f"--array=0-{len(scripts) - 1}{throttle}",
        f"--time={time_minutes}",
        "--ntasks=1",
        "--export=NONE",  # the login environment: the cluster must not store a password of l2inv's
        "--chdir=/",
        "--input=/dev/null",
        "--output=/dev/null",
        *[f"--{option}={value}" for option, value in asked.items() if value is not None],
        str(batch),
    ]
    done = _run(argv)
    if done.returncode != 0:
        _live([name])  # raises SlurmDown if the controller does not answer
        raise SlurmRefused(_one_line(done.stderr))


def states(names: Collection[str]) -> dict[tuple[str, int], TaskState]:
    """Return the newest state by job name and array index; unknown tasks are absent.

    The controller knows waiting and running tasks, and ended ones for a while (MinJobAge, 5 minutes by default). The
    accounting, if there is one, knows the rest, but reports exit codes above 127 too low by 128. A task that was
    canceled while it waited is absent, too: see has_heard_of(). Raise SlurmDown if either does not answer.
    """
    found: dict[tuple[str, int], tuple[int, TaskState]] = {}
    for name, task, job, known in _known(names):
        if task is not None and job >= found.get((name, task), (0,))[0]:
            found[name, task] = job, known
    return {key: known for key, (_, known) in found.items()}


def has_heard_of(names: Collection[str]) -> set[str]:
    """Return those names that the cluster has an array of, even one canceled before it began.

    A task of such an array that is absent from states() was canceled. Raise SlurmDown.
    """
    return {name for name, *_ in _known(names)}


def cancel(name: str, index: int) -> None:
    """Cancel a task, if it waits or runs: it gets a SIGTERM, and later (KillWait) a SIGKILL. Raise SlurmDown."""
    for _, task, job, known in _live([name]):
        if task == index and known.state not in ENDED:
            _answer(["scancel", "--quiet", f"{job}_{task}"])


def _known(names: Collection[str]) -> list[_Task]:
    """Return the tasks in the accounting, and then those of the controller."""
    if not names:
        return []
    live = _live(names)  # first: what it forgets meanwhile is in the accounting
    return _past(names) + live


def _live(names: Collection[str]) -> list[_Task]:
    """Return the controller's tasks."""
    columns = "Name:80,ArrayJobID:20,ArrayTaskID:20,State:20,exit_code:20,Reason:40"
    text = _answer(["squeue", *_ours(names), "--noheader", "--array", "--states=all", f"--Format={columns}"])
    return [
        (
            name,
            _index(task),
            int(job),
            _task_state(state, os.WEXITSTATUS(int(status)), os.WTERMSIG(int(status))),
        )
        for name, job, task, state, status, reason in _LIVE.findall(text)
        if (state, reason) != _REFUSED
    ]


def _past(names: Collection[str]) -> list[_Task]:
    """Return the ended tasks in the accounting; none if there is no accounting."""
    asked = ["--noheader", "--parsable2", "--allocations", "--format=JobName,JobID,State,ExitCode"]
    done = _run(["sacct", *_ours(names), *asked, f"--starttime=now-{_DAYS_BACK}days"])
    if done.returncode != 0:
        if _ACCOUNTING not in _answer(["scontrol", "show", "config"]):
            return []
        raise SlurmDown(_one_line(done.stderr))
    return [
        (name, _index(task), int(job), _task_state(state, int(code), int(by_signal)))
        for name, job, task, state, code, by_signal in _PAST.findall(done.stdout)
        if state in ENDED
    ]


def _index(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _task_state(state: str, code: int, by_signal: int) -> TaskState:
    return TaskState(state, code if state in ENDED and not by_signal else None)


def _ours(names: Collection[str]) -> list[str]:
    return [f"--user={os.getuid()}", f"--name={','.join(sorted(names))}"]


def _answer(argv: list[str]) -> str:
    done = _run(argv)
    if done.returncode != 0:
        raise SlurmDown(_one_line(done.stderr))
    return done.stdout


def _run(argv: list[str]) -> "subprocess.CompletedProcess[str]":
    # The options used here do not override all that these variables can set.
    own = ("SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(own)} | {"LC_ALL": "C"}
    try:
        return subprocess.run(  # noqa: S603 - an argv, no shell
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SlurmDown(f"{argv[0]} did not answer within {TIMEOUT_SECONDS:g} s") from None
    except OSError as problem:
        raise SlurmDown(f"{argv[0]} cannot be started: {problem.strerror}") from problem


def _one_line(words: str) -> str:
    """Return an error message of a Slurm command as one printable line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    return line[:300] or "no reason given"
