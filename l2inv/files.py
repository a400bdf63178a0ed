"""Atomic file writes: to a temporary file with an unguessable name in the same folder, then renamed."""

import errno
import fcntl
import glob
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from l2inv.errors import L2invError


@contextmanager
def replacing(path: Path, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Yield a new file that replaces `path` on success; a symbolic link stays, and leads to the new file.

    Its permissions are `mode`, whatever the umask. Leftovers of killed writers are removed. Raise L2invError if `path`
    is a device, a pipe, a folder or another user's link, and OSError.
    """
    _must_be_no_link_of_another(path)
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():  # root would put a file in place of /dev/null
        raise L2invError(f"{path}: is not a regular file", "name a file, new or to be replaced")
    _remove_leftovers(path)
    with _beside(path, mode) as file:
        yield file


def private_folder(path: Path) -> None:
    """Create a folder if it is missing, and set its mode to 0700, whatever the umask.

    Raise OSError if that fails, if another user owns it, or if it is a symbolic link.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(number).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "is another user's folder: remove it", str(path))
        os.fchmod(number, 0o700)
    finally:
        os.close(number)


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Yield a file opened for reading. Raise OSError, and L2invError for anything that could block, such as a pipe."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(number, "rb") as file:
        _must_be_regular(number, path)
        yield file


@contextmanager
def appending(path: Path, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Yield a file opened for appending, one writer at a time; create it with `mode` if it is missing.

    A line that a killed writer left unfinished is ended first. Raise L2invError as replacing() does, and OSError.
    """
    _must_be_no_link_of_another(path)
    path = Path(os.path.realpath(path))
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    number = os.open(path, flags, mode)
    with os.fdopen(number, "ab") as file:
        _must_be_regular(number, path)
        found = os.fstat(number)
        if found.st_size == 0 and found.st_uid not in (0, os.geteuid()):  # planted: that user could change it
            raise L2invError(f"{path}: is another user's file", "remove it, or name another file")
        fcntl.flock(file, fcntl.LOCK_EX)
        with reading(path) as before:
            size = before.seek(0, os.SEEK_END)
            before.seek(max(0, size - 1))
            if size and before.read() != b"\n":
                file.write(b"\n")
        yield file
        file.flush()
        os.fsync(number)


def _must_be_regular(number: int, path: Path) -> None:
    if not stat.S_ISREG(os.fstat(number).st_mode):
        raise L2invError(f"{path}: is not a regular file", "name a file, new or to be replaced")


def _must_be_no_link_of_another(path: Path) -> None:
    if path.is_symlink() and path.lstat().st_uid not in (0, os.geteuid()):
        raise L2invError(f"{path}: is a link that another user made", "remove it, or name another file")


@contextmanager
def _beside(path: Path, mode: int) -> Iterator[BinaryIO]:
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    number = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(number, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # other writers see that this is not a leftover
            os.fchmod(number, mode)
            yield file
            file.flush()
            os.fsync(number)
            new.replace(path)
            _sync(path.parent)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _remove_leftovers(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 16}.new"):
        with suppress(OSError):  # of another user, or written at this moment
            number = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(number, "rb") as file:
                if os.fstat(number).st_uid == os.geteuid():
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    left.unlink()


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def replace(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a text file atomically, so that it survives a crash of the machine, too. Raise OSError."""
    with _beside(path, mode) as file:
        file.write(text.encode("utf-8", "surrogateescape"))
