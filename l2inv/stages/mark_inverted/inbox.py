"""inbox: takes the ready files that science drops into a folder, each once, and files them under done/ or rejected/.

A ready event is recorded before its file is moved. Whoever is killed in between leaves a file that the next run finds
said already.
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
from typing import Any

from l2inv import wording
from l2inv.config.settings import Publish, Settings
from l2inv.config.yamlfile import MAX_BYTES
from l2inv.database.connection import Connection
from l2inv.database.runs import Run, stage_run
from l2inv.errors import L2invError, Refused, Unavailable
from l2inv.files import replace
from l2inv.stages.mark_inverted import ready_event

SUFFIXES = (".yaml", ".yml", ".json")
OPEN_SECONDS = 3600  # some network file systems call every file open: what is unchanged for so long is read
LONGEST_NAME = 150  # bytes: room for a number and the reason's suffix, where file systems end at 255


class _Waiting(Exception):
    """The file is still being written, or was replaced: the next run looks at it."""


def inbox(
    connection: Connection,
    settings: Settings,
    folder: Path,
    actor: str,
    now: datetime,
    rejected: Callable[[str, str], None] = lambda file, reason: None,
) -> dict[str, Any]:
    """Take each ready file of the folder, return the report of the stage, and report each file as it is rejected.

    A file is rejected with its reason beside it when its ready event is refused. One whose outputs lie on a mount
    that is not there waits, the others are taken, and Unavailable is raised at the end. Raise Busy, DatabaseError,
    L2invError when the folder is not there, and OSError when a file cannot be moved; the file at hand and those after
    it then stay for the next run.
    """
    if not folder.is_dir():
        raise L2invError(f"{folder}: no such folder", "name the folder that ready files are dropped into")
    with stage_run(connection, "inbox", actor) as run:
        counts = {"done": 0, "rejected": 0, "waiting": 0}
        run.report |= {"files": counts, "rejected": [], "warnings": []}
        for place in ("done", "rejected"):
            (folder / place).mkdir(mode=0o755, exist_ok=True)
            _must_not_be_led_away(folder / place)
        unseen: list[Unavailable] = []
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
                unseen.append(Unavailable(f"{path.name}: {problem.message}", problem.hint))
                continue
            counts["rejected" if reason else "done"] += 1
            if reason:
                told = {"file": wording.clean(path.name), "reason": reason}
                run.report["rejected"].append(told)
                rejected(told["file"], reason)
        if unseen:
            raise unseen[0]
    return run.report


def _must_not_be_led_away(place: Path) -> None:
    """Raise L2invError where somebody else made a link of it: who drops files here would choose where they land."""
    found = place.lstat()
    if stat.S_ISLNK(found.st_mode) and found.st_uid not in (0, os.geteuid()):
        raise L2invError(f"{place}: is a link that another user made", "remove it: l2inv makes the folder")


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
    """Read a file, one byte beyond the limit at most. Raise _Waiting when it is not whole, Refused and OSError."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise Refused(f"{path.name}: is no regular file", "drop the file itself")
    try:
        # A link would lead elsewhere, and opening a pipe waits for its writer.
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
    """Return whether some process has the file open for writing, which no read lease is given on (fcntl(2), F_SETLEASE)."""
    fcntl.fcntl(
        number, fcntl.F_SETSIG, signal.SIGURG
    )  # sent when a writer comes: SIGIO would end this process
    try:
        fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:  # another's file, or a file system without leases: the rename is trusted
        return False
    fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _move(path: Path, folder: Path, was: tuple[int, ...], reason: str | None) -> None:
    """Move the file that was read to a free name, its reason written first. Raise _Waiting when it was replaced."""
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
    """Return a path that nothing has yet: the name, or the name with a number. The stage's lock keeps it free."""
    path = folder / name
    stem = os.fsdecode(os.fsencode(path.stem)[:LONGEST_NAME])
    names = (f"{stem}{f'.{n}' if n else ''}{path.suffix}" for n in count())
    return next(folder / free for free in names if not os.path.lexists(folder / free))
