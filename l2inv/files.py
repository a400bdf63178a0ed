"""A file written whole or not at all: under another name, brought to disk, then put in place of the one before."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from l2inv.errors import L2invError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Lend the file that takes the place of `path` once all went well; a link stays, and leads to the new file.

    Raise L2invError where a device, a pipe or a folder is there, or while another process writes the same; OSError.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():  # root would put a file in place of /dev/null
        raise L2invError(f"{path}: is no regular file", "name a file, new or to be replaced")
    new = path.with_name(path.name + ".new")
    number = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(number, "wb") as file:
        if not _is_ours(number, new):
            raise L2invError(f"{new}: another process writes it", "try again when it has ended")
        try:
            file.truncate()
            yield file
            file.flush()
            os.fsync(number)
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise


def _is_ours(number: int, new: Path) -> bool:
    """Lock what was opened, unless it is locked, or in place already by whoever wrote it."""
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(number), new.lstat())
    except (BlockingIOError, FileNotFoundError):
        return False


def replace(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, never meets half of it. Raise OSError."""
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_bytes(text.encode("utf-8", "surrogateescape"))
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
