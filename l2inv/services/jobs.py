"""One attempt at one OP as a process that outlives l2inv: what is left in the OP's folder tells any later run.

A POSIX shell script runs the command; beside it in .l2inv/ lie, under the job's name, `.pid` from when it began
(process id and host), `.err` with what it wrote to stderr, and `.exit` from when it ended. The same script runs here
and on a cluster. Here, it holds a lock on `.lock` for as long as it or its command lives: the kernel lets go of it
whatever happens to them.
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
UNTOLD = {"FAILED", "COMPLETED"}  # states that add nothing to a job's own exit code

Fate = Literal["done", "failed", "again", "running"]

OWN = ".l2inv"  # what l2inv keeps in an OP's folder for itself
LOG = "preprocess.log"
_PAUSE_SECONDS = 0.05
# All that a command gets of l2inv's environment; LC_* beside it. No token or password of l2inv's is among it.
ENVIRONMENT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR")

# Here, l2inv gives the lock as standard input and the two ends of a pipe as the other streams (writing, reading); on a
# cluster, the script makes a named pipe. An end that is there already, from a run that gave the job up, means that it
# must not begin. What the command left running in its group ends with it: only here is the group the script's own. In
# the shell, a wait that a signal ends leaves the child: it is waited for again.
#
# Both streams go into the log. What comes through stderr is kept apart as well: a program may hold back its stdout
# until it ends, so that the last line of the log need not be its last word. grep passes whole lines on, which stdout's
# would tear otherwise (busybox's cannot: then cat does without). The copying ignores every signal but SIGKILL, or else
# the command would be killed by writing to it; it is waited for, but not for long: what the command left running may
# hold its stderr open. A file system without named pipes has the log alone.
#
# A process costs a millisecond, as much as many a command: the shell does by itself what it can. A reader may meet
# an end that is not written yet: see ended().
_SCRIPT = """#!/bin/sh
cd {folder} || exit 1
job={own}/{name}
[ ! -e "$job.exit" ] || exit 0
child= told=null
end() {{
    told='"TERM"'
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
[ "$told" = null ] || kill -TERM "$child"
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
printf '{{"exit_code": %s, "signal": %s, "host": "%s"}}\\n' "$code" "$told" "$host" >"$job.exit" || exit 1
[ "$1" != here ] || kill -KILL 0
exit "$code"
"""


class Stopped(Exception):
    """l2inv was told to end while it waited."""


class TookTooLong(Exception):
    """The job has run for longer than it may."""


class Job(msgspec.Struct, frozen=True):
    """One attempt at one OP: the command and the OP's folder. The name is that of no other job in the folder.

    What the command prints goes into the file `log` there.
    """

    name: str
    folder: Path
    argv: Sequence[str]
    log: str = LOG


class Ended(msgspec.Struct, frozen=True):
    """How a job ended. A shell's exit code: 128 and the number of the signal that killed the command.

    `signal` is TERM where the job was told to end.
    """

    exit_code: int | None = None
    signal: str | None = None
    host: str = ""

    @property
    def how(self) -> str:
        """Return how the command ended, in words."""
        if self.exit_code is None:
            return "ended without leaving its exit code"
        with suppress(ValueError):
            return f"was killed by {signal.Signals(self.exit_code - 128).name}"
        return f"ended with exit code {self.exit_code}"


def new_name() -> str:
    """Return a name that no other job has."""
    return f"l2inv-{secrets.token_hex(6)}"


def prepare(job: Job) -> Path:
    """Write a job's script and return its path. No part of the command is read by a shell. Raise OSError."""
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
    with os.fdopen(
        os.open(path, flags, 0o700), "wb"
    ) as file:  # nobody knows its name yet: it needs no other first
        file.write(os.fsencode(script))
    (job.folder / job.log).unlink(missing_ok=True)  # an earlier attempt's words are not this one's
    return path


def start(job: Job) -> "subprocess.Popen[bytes]":
    """Start a job on this machine, in a session of its own: it goes on when l2inv is killed. Raise OSError."""
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
    """Return what a command gets of l2inv's own environment."""
    return {k: v for k, v in os.environ.items() if k in ENVIRONMENT or k.startswith("LC_")}


def ended(folder: Path, name: str) -> Ended | None:
    """Return how a job ended; None while it runs, waits, or was lost. Raise OSError."""
    try:
        content = _file(folder, name, "exit").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not content:  # about to be written, or the disk was full
        return None
    try:
        return msgspec.json.decode(content, type=Ended)
    except msgspec.DecodeError:  # the command may write where it likes
        return Ended()


def fate(end: Ended | None, state: str) -> Fate:
    """Return what a job came to, by what it left of how it ended and by its state as Slurm names it.

    Two states are not Slurm's: LOST, where nothing runs that began, and UNKNOWN, where nothing began. A job that is
    COMPLETED and left nothing left it on another host, from where it is yet to be seen. Why a job did not end well
    is for its last state to say: it may have been told to end before it could write that down.
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
    running = is_running(folder, name)  # asked first: what ends meanwhile has left how
    end = ended(folder, name)
    return end, "RUNNING" if running else "LOST" if end is None else "FAILED"


def state_forgotten(folder: Path, name: str, end: Ended | None, limit_seconds: float) -> str:
    """Return the state of a job that Slurm does not know (any more), from what the job itself left. Raise OSError."""
    if end is None:
        return "UNKNOWN" if began(folder, name) is None else "LOST"
    if end.signal is None:
        return "FAILED"
    return "TIMEOUT" if took_seconds(folder, name) >= limit_seconds - 60 else "CANCELLED"


def failure(command: str, folder: Path, name: str, end: Ended | None, state: str, log: str = LOG) -> str:
    """Return why a job failed: its state, its exit code, its last words, its log. Raise OSError."""
    what = "" if state in UNTOLD else f"{state}: "
    how = (end or Ended()).how
    return f"{what}{command} {how}: {last_word(folder, name, log)} (log: {folder / log})"


def began(folder: Path, name: str) -> float | None:
    """Return when a job began, in seconds since 1970; None if it did not. Raise OSError."""
    try:
        return _file(folder, name, "pid").stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None


def took_seconds(folder: Path, name: str) -> float:
    """Return how long an ended job ran, by the clock of the file system. Raise OSError."""
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
    """Wait for a job on this machine: return how it ended, None if that cannot be told any more.

    Where it is a child of this process, its pid lets its end be seen at once. Raise TookTooLong, and Stopped when stop
    is set: the job runs on. Raise OSError.
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
    """Lend a function that lets a moment pass, no longer than until a child of this process ends."""
    if pid is None or not hasattr(os, "pidfd_open"):  # Linux alone has it
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
    """Kill a job on this machine with all its group; False if a part of it runs on, as on another host. Raise OSError."""
    deadline = time.monotonic() + patience_seconds
    while is_running(folder, name):
        # The lock is held, so that the group is still the job's and no stranger's.
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):  # not yet begun; ended meanwhile
            pid, host = _file(folder, name, "pid").read_text().split()
            if host == os.uname().nodename:
                os.killpg(int(pid), signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def forget_end(folder: Path, name: str) -> None:
    """Remove how a job ended: a later run finds it lost, and has it begin again. Raise OSError."""
    _file(folder, name, "exit").unlink(missing_ok=True)


def give_up(folder: Path, name: str) -> None:
    """Return that a job ended, in its place: it begins no more, and no later run looks for it. Raise OSError."""
    if folder.exists():
        _file(folder, name, "sh").parent.mkdir(mode=0o700, exist_ok=True)
        replace(_file(folder, name, "exit"), msgspec.json.encode(Ended(signal="TERM")).decode())


def last_word(folder: Path, name: str, log: str = LOG) -> str:
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
