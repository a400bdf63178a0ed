"""Science's outputs, looked at where they are mounted: present, of the size and with the checksum that was said."""

import errno
import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from l2inv.config.settings import Mount
from l2inv.errors import Unavailable

_HERE = [Mount(uri, "/") for uri in ("/", "file:///", "file://localhost/")]


def problems(outputs: Sequence[Mapping[str, Any]], mounts: Sequence[Mount]) -> list[str]:
    """Return what is wrong with the outputs (`uri`, `size_bytes`, `sha256`) that can be looked at from here, a line each.

    Raise Unavailable when the folder of a mount is not there: that says nothing of the outputs.
    """
    found = [(output["uri"], _problem(output, mounts)) for output in outputs]
    return [f"{uri}: {problem}" for uri, problem in found if problem]


def mounted(uri: str, mounts: Sequence[Mount]) -> Path | None:
    """Return where a URI can be looked at: below the mount with the longest URI that it lies under, or at its own path
    (file:/// or absolute). None where it cannot, or where .. may lead out of the mount."""
    mount = _mount_of(uri, mounts)
    if mount is None:
        return None
    inside = _inside(uri, mount)
    return None if ".." in inside.split("/") else Path(mount.path) / inside


def _mount_of(uri: str, mounts: Sequence[Mount]) -> Mount | None:
    fitting = [m for m in [*mounts, *_HERE] if f"{uri}/".startswith(f"{m.uri.removesuffix('/')}/")]
    return max(fitting, key=lambda mount: len(mount.uri.removesuffix("/")), default=None)


def _inside(uri: str, mount: Mount) -> str:
    rest = uri[len(mount.uri) :]
    # A URI is percent-encoded, a path is not; surrogates stand for bytes of a name that are no UTF-8.
    return (unquote(rest, errors="surrogateescape") if "://" in mount.uri else rest).lstrip("/")


def _problem(output: Mapping[str, Any], mounts: Sequence[Mount]) -> str | None:
    mount = _mount_of(output["uri"], mounts)
    if mount is None:
        return None
    path = mounted(output["uri"], mounts)
    if path is None:
        return "must not hold .."
    if not os.path.isdir(mount.path):  # noqa: PTH112 - Path.is_dir raises PermissionError
        raise Unavailable(f"publish.mounts: {mount.path} is no folder that can be read", "mount it again")
    try:
        return _differs(path, output.get("size_bytes"), output.get("sha256"))
    except ValueError:  # a NUL in the name, or half of a surrogate pair
        return "is not there"
    except OSError as problem:
        gone = problem.errno in (errno.ENOENT, errno.ENOTDIR)
        return "is not there" if gone else f"cannot be read: {problem.strerror}"


def _differs(path: Path, size_bytes: int | None, sha256: str | None) -> str | None:
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        is_file = size_bytes is not None or sha256 is not None
        return "is a folder: size_bytes and sha256 are of files alone" if is_file else None
    if not stat.S_ISREG(found.st_mode):  # reading a pipe or a device may never end
        return "is neither a file nor a folder"
    if size_bytes is not None and found.st_size != size_bytes:
        return f"has {found.st_size} bytes, not {size_bytes}"
    if sha256 is None:
        return None
    with path.open("rb") as file:
        is_so = hashlib.file_digest(file, "sha256").hexdigest() == sha256.lower()
    return None if is_so else "has another sha256"
