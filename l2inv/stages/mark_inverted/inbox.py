"""inbox: records each ready file that science puts into a folder, once, and moves it to done/ or rejected/.

A ready event is recorded before its file is moved. If the process is killed in between, the next run finds the event
already recorded and only moves the file.
"""

import fcntl
import hashlib
import os
import shlex
import signal
import stat
import time
from collections.abc import Callable
from datetime import datetime
from itertools import count
from pathlib import Path

from l2inv import wording
from l2inv.config.settings import Publish, Settings
from l2inv.config.yamlfile import MAX_BYTES
from l2inv.database.connection import Connection
from l2inv.database.runs import Run, stage_run
from l2inv.documents import Json
from l2inv.errors import L2invError, Refused, Unavailable
from l2inv.files import replace
from l2inv.stages.mark_inverted import ready_event

SUFFIXES = (".yaml", ".yml", ".json")
OPEN_SECONDS = 3600  # on some network file systems every file seems open: one unchanged for this long is read
LONGEST_NAME = 150  # bytes: leaves space for a number and the reason's suffix within 255


class _Waiting(Exception):
    """The file is still being written, or was replaced: the next run reads it."""


def inbox(
    connection: Connection,
    settings: Settings,
    folder: Path,
    actor: str,
    now: datetime,
    rejected: Callable[[str, str], None] = lambda file, reason: None,
) -> Json:
    """Record each ready file of the folder and return the stage's report; call `rejected` for each rejected file.

    A file whose ready event is refused is rejected, with the reason in a file beside it. If its outputs are on a mount
    that is missing, it waits, the others are recorded, and Unavailable is raised at the end. Raise Busy, DatabaseError,
    L2invError if the folder is missing, and OSError if a file cannot be moved; this file and those after it then remain
    for the next run.
    """
    if not folder.is_dir():
        raise L2invError(f"{folder}: no such folder", "name the folder of the ready files")
    with stage_run(connection, "inbox", actor) as run:
        counts = {"done": 0, "rejected": 0, "waiting": 0}
        run.report |= {"files": counts, "rejected": [], "warnings": []}
        for place in ("done", "rejected"):
            (folder / place).mkdir(mode=0o755, exist_ok=True)
            _must_not_be_a_link(folder / place)
        unavailable: list[Unavailable] = []
        for path in _ready_files(folder):
            try:
                was = _identity(path.lstat())
                reason = _refusal(connection, settings.publish, run, path, was, now)
                if reason:
                    again = shlex.quote(str(folder / "rejected" / path.name))
                    reason = reason.replace("mark-inverted …", f"mark-inverted --from {wording.clean(again)}")
                _move(path, folder / ("rejected" if reason else "done"), was, reason)
            except (_Waiting, FileNotFoundError):
                counts["waiting"] += 1
                continue
            except Unavailable as problem:
                counts["waiting"] += 1
                unavailable.append(Unavailable(f"{path.name}: {problem.message}", problem.hint))
                continue
            counts["rejected" if reason else "done"] += 1
            if reason:
                name = wording.clean(path.name)
                run.report["rejected"].append({"file": name, "reason": reason})
                rejected(name, reason)
        if unavailable:
            raise unavailable[0]
    return run.report


def _must_not_be_a_link(place: Path) -> None:
    """Raise L2invError for a link that another user made, who could choose where the files are moved."""
    found = place.lstat()
    if stat.S_ISLNK(found.st_mode) and found.st_uid not in (0, os.geteuid()):
        raise L2invError(f"{place}: is a link that another user made", "remove it: l2inv creates the folder")


def _ready_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix in SUFFIXES
        and not path.name.startswith(".")
        and (path.is_symlink() or not path.is_dir())
    )


def _refusal(
    connection: Connection, publish: Publish, run: Run, path: Path, was: tuple[int, ...], now: datetime
) -> str | None:
    """Record a file's ready event for the holder of the OP; return why it is refused, or None."""
    try:
        content = _content(path, was)
        ready_event.mark_inverted(
            connection,
            ready_event.read(content, path.name),
            run.actor,
            now,
            publish=publish,
            for_holder=True,
            file_sha256=hashlib.sha256(content).hexdigest(),
            run_id=run.run_id,
            warn=lambda text: run.report["warnings"].append(f"{path.name}: {text}"),
        )
    except Refused as refusal:
        return wording.clean(f"{refusal.message}; {refusal.hint}")
    return None


def _content(path: Path, was: tuple[int, ...]) -> bytes:
    """Read a file, at most one byte beyond the limit. Raise _Waiting if it is not complete, Refused and OSError."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise Refused(f"{path.name}: is not a regular file", "put the file itself here")
    try:
        # A link is not followed, and opening a pipe must not wait for its writer.
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as problem:
        raise Refused(f"{path.name}: cannot be read: {problem.strerror}", "make it readable") from problem
    with os.fdopen(number, "rb") as file:
        if _is_open_for_writing(number) and time.time() - os.fstat(number).st_mtime < OPEN_SECONDS:
            raise _Waiting
        content = file.read(MAX_BYTES + 1)
        if _identity(os.fstat(number)) != was:
            raise _Waiting
    return content


def _is_open_for_writing(number: int) -> bool:
    """Return whether some process has the file open for writing: then a read lease is refused (fcntl(2), F_SETLEASE)."""
    # Sent when a writer opens it; the default, SIGIO, would end this process.
    fcntl.fcntl(number, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except (
        OSError
    ):  # another user's file, or a file system without leases: trust that it was renamed into place
        return False
    fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _move(path: Path, folder: Path, was: tuple[int, ...], reason: str | None) -> None:
    """Write the reason, then move the file that was read to a free name. Raise _Waiting if it was replaced."""
    target = _free(folder, path.name)
    if reason:
        beside = folder / f"{target.name}.reason.txt"
        beside.unlink(missing_ok=True)  # of a killed run, or a link that leads elsewhere
        replace(beside, f"{reason}\n")
    path.rename(target)
    if _identity(target.lstat()) != was:
        target.rename(_free(path.parent, path.name))
        raise _Waiting


def _free(folder: Path, name: str) -> Path:
    """Return a path that does not exist: the name, or the name with a number. The stage's lock keeps it free."""
    path = folder / name
    stem = os.fsdecode(os.fsencode(path.stem)[:LONGEST_NAME])
    names = (f"{stem}{f'.{n}' if n else ''}{path.suffix}" for n in count())
    return next(folder / free for free in names if not os.path.lexists(folder / free))
