"""One attempt at one OP as a process that outlives l2inv: a later run learns its outcome from files in the OP's folder.

A POSIX shell script runs the command. Beside it in .l2inv/, under the job's name, are `.pid` from its start (process id
and host), `.err` with its stderr, and `.exit` from its end. The same script runs here and on a cluster. Here, it holds
a lock on `.lock` while it or its command runs; the kernel releases the lock in any case.
"""

import fcntl
import os
import secrets
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event as Flag
from typing import Literal

import msgspec

from l2inv.files import private_folder, replace
from l2inv.services import slurm

REQUEUED = {"TIMEOUT", "NODE_FAIL", "PREEMPTED", "LOST"}
UNINFORMATIVE = {"FAILED", "COMPLETED"}  # states that add nothing to a job's own exit code

Fate = Literal["done", "failed", "again", "running"]

OWN = ".l2inv"  # l2inv's own folder in an OP's folder
LOG = "preprocess.log"
_PAUSE_SECONDS = 0.05
# The variables that a command gets from l2inv's environment, besides LC_*. No token or password is among them.
ENVIRONMENT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR")

# Here, l2inv passes the lock as standard input and the two ends of a pipe as the other streams (writing, reading); on a
# cluster, the script creates a named pipe. If `.exit` exists already, a run gave the job up, and it must not begin. What
# the command left running in its group is killed at its end: only here is the group the script's own. In the shell, a
# wait interrupted by a signal leaves the child running, so the script waits again.
#
# Both streams go into the log. stderr is also kept separately: a program may buffer its stdout until it ends, so that the
# last line of the log need not be its last message. grep passes on whole lines, which stdout would break otherwise
# (busybox's cannot: then cat is used). The copying process ignores every signal but SIGKILL, or else the command would be
# killed by writing to it. The script waits for it, but not for long: what the command left running may hold its stderr
# open. On a file system without named pipes there is only the log.
#
# A process costs a millisecond, as long as many commands take, so the shell does what it can itself. A reader may find
# an empty `.exit`: see ended().
_SCRIPT = """#!/bin/sh
cd {folder} || exit 1
job={own}/{name}
[ ! -e "$job.exit" ] || exit 0
child= signal=null
end() {{
    signal='"TERM"'
    [ -z "$child" ] || kill -TERM "$child"
}}
trap end TERM
exec 9<&0 7<&2 8>&1 </dev/null || exit 1
: >{log} && exec >>{log} 2>&1 || exit 1
read -r host </proc/sys/kernel/hostname || host=$(uname -n)
echo "$$ $host" >"$job.pid" || exit 1
pipe=yes
if [ "$1" != here ]; then
    if mkfifo "$job.pipe" 2>/dev/null; then
        exec 7<>"$job.pipe" 8>"$job.pipe" 7<"$job.pipe"
        rm "$job.pipe"
    else
        exec 8>&2 7<&-
        pipe=
    fi
fi
tee=
if [ "$pipe" ]; then
    trap '' HUP INT TERM
    {{
        exec <&7 7<&- 8>&- 9<&-
        LC_ALL=C grep -a --line-buffered '' 2>/dev/null || cat
    }} | tee -a {log} >"$job.err" 7<&- 8>&- 9<&- &
    tee=$!
    trap - HUP INT
    trap end TERM
fi
exec {argv} 2>&8 7<&- 8>&- &
child=$!
exec 7<&- 8>&-
[ "$signal" = null ] || kill -TERM "$child"
while :; do
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break
done
trap '' TERM
polls=0 nap=0.001
while [ "$tee" ] && kill -0 "$tee" 2>/dev/null && [ "$polls" -lt 100 ]; do
    sleep "$nap"
    polls=$((polls + 1))
    [ "$polls" -lt 5 ] || nap=0.02
done
printf '{{"exit_code": %s, "signal": %s, "host": "%s"}}\\n' "$code" "$signal" "$host" >"$job.exit" || exit 1
[ "$1" != here ] || kill -KILL 0
exit "$code"
"""


class Stopped(Exception):
    """l2inv was stopped while it waited."""


class TookTooLong(Exception):
    """The job exceeded its time limit."""


class Job(msgspec.Struct, frozen=True):
    """One attempt at one OP: the command and the OP's folder. The name is unique in the folder.

    The command's output goes into the file `log` there.
    """

    name: str
    folder: Path
    argv: Sequence[str]
    log: str = LOG


class Ended(msgspec.Struct, frozen=True):
    """How a job ended. The exit code is a shell's: 128 plus the signal that killed the command.

    `signal` is TERM if the job was terminated.
    """

    exit_code: int | None = None
    signal: str | None = None
    host: str = ""

    @property
    def how(self) -> str:
        """Return how the command ended, as a phrase."""
        if self.exit_code is None:
            return "ended without recording its exit code"
        with suppress(ValueError):
            return f"was killed by {signal.Signals(self.exit_code - 128).name}"
        return f"ended with exit code {self.exit_code}"


def new_name() -> str:
    """Return a unique name for a job."""
    return f"l2inv-{secrets.token_hex(6)}"


def prepare(job: Job) -> Path:
    """Write a job's script and return its path. No shell interprets the command. Raise OSError."""
    script = _SCRIPT.format(
        folder=shlex.quote(str(job.folder)),
        own=OWN,
        name=job.name,
        log=shlex.quote(job.log),
        argv=shlex.join(job.argv),
    )
    path = _file(job.folder, job.name, "sh")
    private_folder(path.parent)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o700), "wb") as file:
        file.write(os.fsencode(script))
    (job.folder / job.log).unlink(missing_ok=True)  # of an earlier attempt
    return path


def start(job: Job) -> "subprocess.Popen[bytes]":
    """Start a job on this machine, in a session of its own: it keeps running if l2inv is killed. Raise OSError."""
    script = prepare(job)
    reading, writing = os.pipe()
    try:
        with _file(job.folder, job.name, "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return subprocess.Popen(  # noqa: S603 - a script of l2inv's own
                ["/bin/sh", str(script), "here"],
                env=environment(),
                stdin=lock,
                stdout=writing,
                stderr=reading,
                start_new_session=True,
            )
    finally:
        os.close(reading)
        os.close(writing)


def environment() -> dict[str, str]:
    """Return the environment of a command."""
    return {k: v for k, v in os.environ.items() if k in ENVIRONMENT or k.startswith("LC_")}


def ended(folder: Path, name: str) -> Ended | None:
    """Return how a job ended; None while it runs, waits, or was lost. Raise OSError."""
    try:
        content = _file(folder, name, "exit").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not content:  # not written yet, or the disk was full
        return None
    try:
        return msgspec.json.decode(content, type=Ended)
    except msgspec.DecodeError:  # the command may have overwritten it
        return Ended()


def fate(end: Ended | None, state: str) -> Fate:
    """Return a job's outcome, from its recorded end and its state as Slurm names it.

    Two states are not Slurm's: LOST, of a job that began and no longer runs, and UNKNOWN, of one that did not begin. If a
    job is COMPLETED without a recorded end, that was written on another host and is not visible here yet. The state
    says why a job failed: it may have been killed before it could record its end.
    """
    if end is not None and end.exit_code == 0 and end.signal is None:
        return "done"
    if state == "UNKNOWN" or state in REQUEUED:
        return "again"
    if state in slurm.ENDED and (end is not None or state != "COMPLETED"):
        return "failed"
    return "running"


def state_here(folder: Path, name: str) -> tuple[Ended | None, str]:
    """Return how a job on this machine ended, and its state as Slurm would name it. Raise OSError."""
    running = is_running(folder, name)  # checked first: a job that ends meanwhile has recorded it
    end = ended(folder, name)
    return end, "RUNNING" if running else "LOST" if end is None else "FAILED"


def state_forgotten(folder: Path, name: str, end: Ended | None, limit_seconds: float) -> str:
    """Return the state of a job that Slurm does not know (any more), from the job's files. Raise OSError."""
    if end is None:
        return "UNKNOWN" if began(folder, name) is None else "LOST"
    if end.signal is None:
        return "FAILED"
    return "TIMEOUT" if took_seconds(folder, name) >= limit_seconds - 60 else "CANCELLED"


def failure(command: str, folder: Path, name: str, end: Ended | None, state: str, log: str = LOG) -> str:
    """Return why a job failed: its state, its exit code, its last message, its log. Raise OSError."""
    what = "" if state in UNINFORMATIVE else f"{state}: "
    how = (end or Ended()).how
    return f"{what}{command} {how}: {last_line(folder, name, log)} (log: {folder / log})"


def began(folder: Path, name: str) -> float | None:
    """Return when a job began, in seconds since 1970; None if it did not. Raise OSError."""
    try:
        return _file(folder, name, "pid").stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None


def took_seconds(folder: Path, name: str) -> float:
    """Return how long an ended job ran in seconds, by the file system's clock. Raise OSError."""
    end = _file(folder, name, "exit").stat().st_mtime
    return round(max(0.0, end - (began(folder, name) or end)), 3)


def is_running(folder: Path, name: str) -> bool:
    """Return whether a job that was started on this machine runs, or a part of it that kept the lock. Raise OSError."""
    try:
        with _file(folder, name, "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except BlockingIOError:
        return True
    return False


def wait(folder: Path, name: str, timeout_seconds: float, stop: Flag, pid: int | None = None) -> Ended | None:
    """Wait for a job on this machine: return how it ended, None if that is unknown.

    If it is a child of this process, its pid makes its end visible at once. Raise TookTooLong, Stopped when stop is set
    (the job keeps running), and OSError.
    """
    with _pausing(pid) as pause:
        while True:
            end, state = state_here(folder, name)
            if end is not None or state != "RUNNING":
                return end
            if time.time() - (began(folder, name) or time.time()) > timeout_seconds:
                raise TookTooLong
            if stop.is_set():
                raise Stopped
            pause()


@contextmanager
def _pausing(pid: int | None) -> Iterator[Callable[[], object]]:
    """Yield a function that waits a moment, at most until a child of this process ends."""
    if pid is None or not hasattr(os, "pidfd_open"):  # only on Linux
        yield lambda: time.sleep(_PAUSE_SECONDS)
        return
    number = os.pidfd_open(pid)
    try:
        ends = select.poll()
        ends.register(number, select.POLLIN)
        yield lambda: ends.poll(_PAUSE_SECONDS * 1000)
    finally:
        os.close(number)


def kill(folder: Path, name: str, patience_seconds: float = 5.0) -> bool:
    """Kill a job's process group on this machine; return False if some of it keeps running, such as on another host, or
    if the job is another user's. Raise OSError."""
    deadline = time.monotonic() + patience_seconds
    while is_running(folder, name):
        # The lock is held, so the group id still belongs to the job; if it is another user's, anybody may have written it.
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):  # not started yet; ended meanwhile
            is_own = _file(folder, name, "lock").stat().st_uid == os.geteuid()
            pid, host = _file(folder, name, "pid").read_text().split() if is_own else ("", "")
            if host == os.uname().nodename:
                os.killpg(int(pid), signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def forget_end(folder: Path, name: str) -> None:
    """Remove a job's recorded end: a later run finds it lost, and starts it again. Raise OSError."""
    _file(folder, name, "exit").unlink(missing_ok=True)


def give_up(folder: Path, name: str) -> None:
    """Record in a job's place that it ended: it will not begin, and no later run looks for it. Raise OSError."""
    if folder.exists():
        _file(folder, name, "sh").parent.mkdir(mode=0o700, exist_ok=True)
        replace(_file(folder, name, "exit"), msgspec.json.encode(Ended(signal="TERM")).decode())


def last_line(folder: Path, name: str, log: str = LOG) -> str:
    """Return the last line that a job wrote to stderr, else to its log: at most 300 characters. Raise OSError."""
    if not (folder / log).exists():
        return "it did not begin"
    for path in (_file(folder, name, "err"), folder / log):
        with suppress(FileNotFoundError), path.open("rb") as content:
            content.seek(max(0, os.fstat(content.fileno()).st_size - 2000))
            if lines := content.read().decode("utf-8", "replace").strip().splitlines():
                return lines[-1][:300]
    return "it printed nothing"


def _file(folder: Path, name: str, what: str) -> Path:
    return folder / OWN / f"{name}.{what}"
