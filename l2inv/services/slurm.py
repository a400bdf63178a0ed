"""Slurm by its commands: gives it a job array and asks, by the job's name, what became of each task.

What is read is plain text in columns that are asked for by name (squeue(1), sacct(1)): --json is not in every
Slurm, and its shape differs between versions. Only jobs of the user's own are looked at: names are public.
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

# "JOB STATE CODES" of squeue(1): a task in any other state is not at its end.
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"}
    | {"NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"}
)
TIMEOUT_SECONDS = 60.0
_DAYS_BACK = 30
# How sbatch says that it is the cluster that fails, and not that it was asked for what cannot be had.
_DOWN = re.compile(
    r"contact slurm|timed out|connection|transmitted|authenticat|munge|configuration file|temporarily|standby",
    re.IGNORECASE,
)
_NO_ACCOUNTING = "accounting storage is disabled"
# Lines of another form are of jobs that are no array, or name the cluster.
_LIVE = re.compile(r"^(\S+) +(\d+) +(\d+|N/A) +([A-Z_]+) +(\d+) +(\S.*?)? *$", re.ASCII | re.MULTILINE)
_PAST = re.compile(
    r"^([^|\n]+)\|(\d+)(?:_(\d+|\[[^|\n]*\]))?\|([A-Z_]+)[^|\n]*\|(\d+):(\d+)$", re.ASCII | re.MULTILINE
)
_REFUSED = ("FAILED", "BadConstraints")  # what sbatch refused stays with the controller as a job that failed

# Job name, array index (None: what was left to begin of an array that was cancelled), id of the array, what is known.
_Task = tuple[str, int | None, int, "Standing"]


class SlurmDown(Exception):
    """The cluster cannot be asked now; the text says so in one line."""


class SlurmRefused(Exception):
    """sbatch will not have the job; the text is its words, in one line."""


class Standing(msgspec.Struct, frozen=True):
    """A task's state as Slurm names it, and once it ended its exit code; None where a signal ended it."""

    state: str
    exit_code: int | None


def submit(
    settings: Slurm, name: str, time_minutes: int, batch_folder: Path, scripts: Sequence[Path]
) -> None:
    """Return the cluster one job array: task i runs scripts[i] by /bin/sh. Nodes must see the paths as they are here.

    A task that fails to start leaves its words in I.out in the batch folder. Raise SlurmRefused; SlurmDown, after
    which the jobs may be there all the same (standing() tells); and OSError.
    """
    # The shell becomes the script: it would end by the SIGTERM of scancel and of the time limit, and the task with it,
    # before the script has said how it ended. Slurm reads % and \ of a path as its own: it is given none.
    tasks = "".join(f"{i}) exec /bin/sh {shlex.quote(str(path))} ;;\n" for i, path in enumerate(scripts))
    batch = batch_folder / "batch.sh"
    replace(
        batch,
        "#!/bin/sh\n"
        "unset SLURM_EXPORT_ENV\n"  # or else an srun of the command's would get no environment
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
        "--no-requeue",  # who asks counts how often a task begins again
        f"--job-name={name}",
        f"--array=0-{len(scripts) - 1}{throttle}",
        f"--time={time_minutes}",
        "--ntasks=1",
        "--export=NONE",  # the login environment, whoever submits; and no password of l2inv's is kept by the cluster
        "--chdir=/",
        "--input=/dev/null",
        "--output=/dev/null",
        *[f"--{option}={value}" for option, value in asked.items() if value is not None],
        str(batch),
    ]
    done = _run(argv)
    if done.returncode != 0:
        words = _one_line(done.stderr)
        raise SlurmDown(words) if _DOWN.search(words) else SlurmRefused(words)


def standing(names: Collection[str]) -> dict[tuple[str, int], Standing]:
    """Return for each job name and array index the newest that is known; a task that is not known is absent.

    The controller knows what waits and runs, and for a while (MinJobAge, 5 minutes by default) what ended; the
    accounting, where there is one, knows the rest, but says 128 too little of an exit code above 127. A task that
    was cancelled while it waited is absent as well: see has_heard_of(). Raise SlurmDown when either does not answer.
    """
    found: dict[tuple[str, int], tuple[int, Standing]] = {}
    for name, task, job, known in _known(names):
        if task is not None and job >= found.get((name, task), (0,))[0]:
            found[name, task] = job, known
    return {key: known for key, (_, known) in found.items()}


def has_heard_of(names: Collection[str]) -> set[str]:
    """Return those names of which the cluster was given an array, also if it was cancelled before it began.

    A task of such an array that never began, and that standing() does not know, was cancelled. Raise SlurmDown.
    """
    return {name for name, *_ in _known(names)}


def cancel(name: str, index: int) -> None:
    """End a task, if it waits or runs: it gets a SIGTERM, and later (KillWait) a SIGKILL. Raise SlurmDown."""
    for _, task, job, known in _live([name]):
        if task == index and known.state not in ENDED:
            _answer(["scancel", "--quiet", f"{job}_{task}"])


def _known(names: Collection[str]) -> list[_Task]:
    """What the accounting knows, and then what the controller does."""
    if not names:
        return []
    live = _live(names)  # asked first: what ends and is forgotten meanwhile is in the accounting
    return _past(names) + live


def _live(names: Collection[str]) -> list[_Task]:
    """What the controller knows."""
    columns = "Name:80,ArrayJobID:20,ArrayTaskID:20,State:20,exit_code:20,Reason:40"
    text = _answer(["squeue", *_ours(names), "--noheader", "--array", "--states=all", f"--Format={columns}"])
    return [
        (
            name,
            _index(task),
            int(job),
            _standing(state, os.WEXITSTATUS(int(status)), os.WTERMSIG(int(status))),
        )
        for name, job, task, state, status, reason in _LIVE.findall(text)
        if (state, reason) != _REFUSED
    ]


def _past(names: Collection[str]) -> list[_Task]:
    """What the accounting knows to have ended; nothing where there is no accounting."""
    asked = ["--noheader", "--parsable2", "--allocations", "--format=JobName,JobID,State,ExitCode"]
    done = _run(["sacct", *_ours(names), *asked, f"--starttime=now-{_DAYS_BACK}days"])
    if done.returncode != 0 and _NO_ACCOUNTING in done.stderr:
        return []
    if done.returncode != 0:
        raise SlurmDown(_one_line(done.stderr))
    return [
        (name, _index(task), int(job), _standing(state, int(code), int(by_signal)))
        for name, job, task, state, code, by_signal in _PAST.findall(done.stdout)
        if state in ENDED
    ]


def _index(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _standing(state: str, code: int, by_signal: int) -> Standing:
    return Standing(state, code if state in ENDED and not by_signal else None)


def _ours(names: Collection[str]) -> list[str]:
    return [f"--user={os.getuid()}", f"--name={','.join(sorted(names))}"]


def _answer(argv: list[str]) -> str:
    done = _run(argv)
    if done.returncode != 0:
        raise SlurmDown(_one_line(done.stderr))
    return done.stdout


def _run(argv: list[str]) -> "subprocess.CompletedProcess[str]":
    # What these variables ask for, the options of the commands here do not all undo.
    own = ("SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(own)} | {"LC_ALL": "C"}
    try:
        return subprocess.run(  # noqa: S603 - an argv, and never a shell
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
    """What a command of Slurm's complained of, in one line that is safe to print."""
    line = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    return line[:300] or "no reason given"
