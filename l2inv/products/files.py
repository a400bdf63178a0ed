"""The files of a folder, listed without following links or waiting for pipes, and read in pieces."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from l2inv.errors import L2invError
from l2inv.products.findings import Unfit
from l2inv.products.issued import Issued

PIECE_BYTES = 4 * 2**20

Tick = Callable[[int], None]  # called with the number of bytes read

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Entry(NamedTuple):
    """An entry of a folder."""

    name: str
    kind: str | None  # in words; None for a file
    size_bytes: int


class Folder(NamedTuple):
    """An open folder of products, with what was issued for them."""

    descriptor: int
    entries: dict[str, Entry]
    issued: Issued
    tick: Tick

    def files(self) -> list[str]:
        """Return the names of the files alone."""
        return [name for name, entry in self.entries.items() if entry.kind is None]


@contextmanager
def opened(path: Path, issued: Issued, tick: Tick) -> Iterator[Folder]:
    """Open a folder. Raise L2invError if it cannot be read, which is no finding about the products."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as problem:
        raise L2invError(
            f"{path} is not a readable folder: {_message(problem)}", "mount it again"
        ) from problem
    try:
        try:
            names = sorted(os.listdir(descriptor))  # noqa: PTH208 - of a descriptor, not a path
            entries = {name: _entry(descriptor, name) for name in names}
        except OSError as problem:
            raise L2invError(f"{path} cannot be listed: {_message(problem)}", "mount it again") from problem
        yield Folder(descriptor, entries, issued, tick)
    finally:
        os.close(descriptor)


def _message(problem: Exception) -> str:
    return problem.strerror or str(problem) if isinstance(problem, OSError) else str(problem)


def _entry(descriptor: int, name: str) -> Entry:
    try:
        found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
    except FileNotFoundError:  # gone since it was listed
        return Entry(name, "gone", 0)
    return Entry(name, _kind(found), found.st_size)


def _kind(found: os.stat_result) -> str | None:
    return None if stat.S_ISREG(found.st_mode) else _KINDS.get(stat.S_IFMT(found.st_mode), "not a file")


@contextmanager
def reading(folder: Folder, name: str) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file of the folder and yield it with its size in bytes. Raise Unfit if it cannot be read.

    It may have become a link or a pipe since the folder was listed: neither is opened.
    """
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.fdopen(os.open(name, flags, dir_fd=folder.descriptor), "rb", buffering=0)
    except OSError as problem:
        if problem.errno in (errno.ELOOP, errno.ENXIO):
            raise Unfit("not_a_file", "a link, a pipe or a device", "a file") from problem
        raise Unfit("unreadable", _message(problem), "a file that can be read") from problem
    with file:
        found = os.fstat(file.fileno())
        if kind := _kind(found):
            raise Unfit("not_a_file", kind, "a file")
        try:
            yield file, found.st_size
        except OSError as problem:
            raise Unfit("unreadable", _message(problem), "a file that can be read") from problem


def read_into(file: BinaryIO, buffer: memoryview) -> int:
    """Fill the buffer from the file's position and return how many bytes were read."""
    filled = 0
    while filled < len(buffer):
        count = file.readinto(buffer[filled:])  # type: ignore[attr-defined]
        if not count:
            break
        filled += count
    return filled


def read_at(file: BinaryIO, at: int, count: int) -> bytes:
    """Return `count` bytes from a position in the file; fewer if it ends before."""
    file.seek(at)
    buffer = bytearray(count)
    return bytes(buffer[: read_into(file, memoryview(buffer))])


def sha256(folder: Folder, name: str) -> str:
    """Return the SHA-256 of a file as hexadecimal digits. Raise Unfit if it cannot be read."""
    total = hashlib.sha256()
    buffer = memoryview(bytearray(PIECE_BYTES))
    with reading(folder, name) as (file, _):
        while count := read_into(file, buffer):
            total.update(buffer[:count])
            folder.tick(count)
    return total.hexdigest()
