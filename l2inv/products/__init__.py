"""Checks of an inversion's products: what science delivers and what is published.

Nothing here knows the database. It needs the extra `products` (astropy, asdf), which nothing else imports.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from l2inv.errors import L2invError
from l2inv.products.files import Folder, opened, sha256
from l2inv.products.findings import WHAT, Finding, Unfit, finding
from l2inv.products.issued import SCIENCE_FILES, Dataset, Issued, Output

__all__ = ["WHAT", "Dataset", "Finding", "Issued", "Output", "check"]

MB = 1_000_000


def check(
    folder: Path, issued: Issued, progress: Callable[[int, int], None] = lambda done_mb, of_mb: None
) -> Iterator[Finding]:
    """Yield findings about the products of an inversion in a folder; none for correct ones.

    Science's three files are checked if any of them exists, or nothing else does; the generated Level 2, FITS and ASDF,
    if any file of it exists. Every file is read once in pieces, and once more if a checksum was recorded; progress is in
    MB. Raise L2invError if the folder cannot be read or a package is not installed, which is no finding about the
    products.
    """
    lacking = [name for name in ("astropy", "asdf") if find_spec(name) is None]
    if lacking:
        raise L2invError(
            f"products cannot be checked without {' and '.join(lacking)}", "pip install 'l2inv[products]'"
        )
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        progress(min(done, total) // MB, total // MB)

    total = 0
    with opened(folder, issued, tick) as look:
        summed = {output.name for output in issued.outputs if output.sha256}
        total = sum(look.entries[name].size_bytes * (1 + (name in summed)) for name in look.files())
        yield from _check(look)
        progress(total // MB, total // MB)


def _check(folder: Folder) -> Iterator[Finding]:
    from l2inv.products import frames, metadata, science

    issued = folder.issued
    named = frames.named(folder)
    is_generated = bool(named) or any(
        name == issued.metadata_file or frames.is_like_a_frame(name) for name in folder.entries
    )
    yield from _entries(folder, set(named), is_generated)
    yield from _recorded(folder)
    delivered = None
    if not is_generated or any(name in folder.entries for name in SCIENCE_FILES):
        delivered = yield from science.check(folder)
    if is_generated:
        found = yield from frames.check(folder, delivered)
        yield from _key(folder)
        if issued.metadata_file in folder.files():
            yield from metadata.check(folder, found)


def _entries(folder: Folder, named: set[str], is_generated: bool) -> Iterator[Finding]:
    """Yield entries that must not be in the folder."""
    from l2inv.products.frames import is_like_a_frame

    issued = folder.issued
    expected = {*SCIENCE_FILES, issued.metadata_file, *named, *(output.name for output in issued.outputs)}
    for name, entry in folder.entries.items():
        if name in expected or issued.frame_time(name):
            # A whole folder may be recorded as an output.
            if entry.kind and not (entry.kind == "a folder" and Output(name) in issued.outputs):
                yield finding(name, None, "not_a_file", entry.kind, "a file")
        elif is_like_a_frame(name):
            yield finding(name, None, "name", name, f"{issued.stem}_2022_06_03T18_03_43_89_L2.fits, or so")
        elif is_generated or name.lower().endswith((".fits", ".asdf")):
            yield finding(name, None, "extra", entry.kind or "a file", "only what was issued")


def _recorded(folder: Folder) -> Iterator[Finding]:
    """Yield recorded outputs that are missing or differ from what was recorded."""
    for output in folder.issued.outputs:
        name, entry = output.name, folder.entries.get(output.name)
        if entry is None:
            yield finding(name, None, "missing", None, "it was recorded as an output")
        elif entry.kind is None:
            if output.size_bytes not in (None, entry.size_bytes):
                yield finding(name, None, "size", f"{entry.size_bytes} bytes", f"{output.size_bytes} bytes")
            if output.sha256 is not None:
                yield from _sum(folder, name, output.sha256.lower())


def _sum(folder: Folder, name: str, required: str) -> Iterator[Finding]:
    try:
        if (measured := sha256(folder, name)) != required:
            yield finding(name, None, "sha256", measured, required)
    except Unfit as unfit:
        yield finding(name, None, unfit.what, unfit.measured, unfit.required)


def _key(folder: Folder) -> Iterator[Finding]:
    """Yield a finding if the asdfObjectKey does not name the ASDF, and if the ASDF is not in the folder."""
    issued = folder.issued
    if issued.asdf_object_key not in (None, issued.metadata_key):
        yield finding(None, None, "asdf_object_key", issued.asdf_object_key, issued.metadata_key)
    if issued.metadata_file not in folder.entries:
        yield finding(issued.metadata_file, None, "missing", None, "the ASDF of the inversion")
