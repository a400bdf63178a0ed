"""Checks of science's outputs where they are mounted: existence, size and checksum."""

import errno
import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict
from urllib.parse import unquote

from l2inv.config.settings import Mount
from l2inv.errors import Unavailable

_HERE = [Mount(uri, "/") for uri in ("/", "file:///", "file://localhost/")]


class Output(TypedDict):
    """A file or folder of an inversion, as the ready event names it. This is JSON: events and views contain it."""

    uri: str
    size_bytes: NotRequired[int]
    sha256: NotRequired[str]


def problems(outputs: Sequence[Output], mounts: Sequence[Mount]) -> list[str]:
    """Return what is wrong with the outputs that are mounted here, a line each.

    Raise Unavailable if the folder of a mount is missing, which is no finding about the outputs.
    """
    found = [(output["uri"], _problem(output, mounts)) for output in outputs]
    return [f"{uri}: {problem}" for uri, problem in found if problem]


def mounted(uri: str, mounts: Sequence[Mount]) -> Path | None:
    """Return the local path of a URI: below the mount with the longest matching URI, or its own path (file:/// or
    absolute). None if there is none, or if .. could lead out of the mount."""
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
    # A URI is percent-encoded, a path is not; surrogates represent bytes of a name that are not UTF-8.
    return (unquote(rest, errors="surrogateescape") if "://" in mount.uri else rest).lstrip("/")


def _problem(output: Output, mounts: Sequence[Mount]) -> str | None:
    mount = _mount_of(output["uri"], mounts)
    if mount is None:
        return None
    path = mounted(output["uri"], mounts)
    if path is None:
        return "must not contain .."
    if not os.path.isdir(mount.path):  # noqa: PTH112 - Path.is_dir raises PermissionError
        raise Unavailable(f"publish.mounts: {mount.path} is not a readable folder", "mount it again")
    try:
        return _differs(path, output.get("size_bytes"), output.get("sha256"))
    except ValueError:  # a NUL in the name, or half of a surrogate pair
        return "is missing"
    except OSError as problem:
        gone = problem.errno in (errno.ENOENT, errno.ENOTDIR)
        return "is missing" if gone else f"cannot be read: {problem.strerror}"


def _differs(path: Path, size_bytes: int | None, sha256: str | None) -> str | None:
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        is_file = size_bytes is not None or sha256 is not None
        return "is a folder: only files have size_bytes and sha256" if is_file else None
    if not stat.S_ISREG(found.st_mode):  # reading a pipe or a device may never end
        return "is neither a file nor a folder"
    if size_bytes is not None and found.st_size != size_bytes:
        return f"has {found.st_size} bytes, not {size_bytes}"
    if sha256 is None:
        return None
    with path.open("rb") as file:
        matches = hashlib.file_digest(file, "sha256").hexdigest() == sha256.lower()
    return None if matches else "has another sha256"
