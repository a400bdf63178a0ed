"""The files of an inversion as they were delivered: the folder they lie in, and what the check of products finds there."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from l2inv import wording
from l2inv.config.settings import Mount, Publish
from l2inv.database.connection import Connection
from l2inv.products import check as check_products
from l2inv.products import issued
from l2inv.services import outputs

MOST_NAMED = 3  # findings in a line; l2inv check names all
Inversion = Mapping[str, Any]


class Scattered(Exception):
    """The outputs of an inversion lie in several folders, and its files are to lie in one; the text names it."""


def folder(inversion: Inversion, mounts: Sequence[Mount]) -> str:
    """Return the folder of an inversion's files, as a path: where it is mounted, or else as its URI has it.

    Raise Scattered where its outputs name none, or several.
    """
    found = set()
    for output in inversion["outputs"]:
        uri = output["uri"]
        path = outputs.mounted(uri, mounts)
        shown = str(path) if path else unquote(urlsplit(uri).path) or uri
        is_file = path.is_file() if path and path.exists() else bool(re.search(r"\.\w{1,8}$", shown))
        found.add(str(Path(shown).parent) if is_file else shown.rstrip("/"))
    if len(found) != 1:
        raise Scattered(
            f"{inversion['inversion_id']}: its outputs lie in {wording.plural(len(found), 'folder')}, "
            "and the files of an inversion lie in one"
        )
    return found.pop()


def mounted_folder(inversion: Inversion, mounts: Sequence[Mount]) -> Path | None:
    """Return the folder of an inversion's files where it can be looked at and holds products; None elsewhere.

    Raise Scattered.
    """
    if not any(outputs.mounted(o["uri"], mounts) for o in inversion["outputs"]):
        return None
    place = Path(folder(inversion, mounts))
    if not place.is_dir() or not any(path.suffix.lower() in (".fits", ".asdf") for path in place.iterdir()):
        return None
    return place


def described(connection: Connection, op_id: str, inversion: Inversion) -> issued.Issued:
    """Return an inversion as the check of its files takes it."""
    rows = connection.execute(
        "select dataset_id, proposal_id, record from l2inv.dataset where dataset_id = any(%s) order by dataset_id",
        [inversion["dataset_ids"]],
    ).fetchall()
    names = [
        issued.Output(Path(unquote(urlsplit(o["uri"]).path)).name, o.get("size_bytes"), o.get("sha256"))
        for o in inversion["outputs"]
        if re.search(r"\.(fits|asdf)$", o["uri"], re.IGNORECASE)
    ]
    return issued.Issued(
        inversion["inversion_id"],
        next((row["proposal_id"] for row in rows if row["proposal_id"]), ""),
        op_id,
        inversion["instrument_program_id"],
        tuple(_dataset(row) for row in rows),
        tuple(names),
        inversion["asdf_object_key"],
    )


class _Record(msgspec.Struct, rename="camel"):
    frame_count: int | None = None
    stokes_parameters: str | None = None
    wavelength_min: float | None = None
    wavelength_max: float | None = None
    start_time: Any = None
    end_time: Any = None


def _dataset(row: Mapping[str, Any]) -> issued.Dataset:
    r = msgspec.convert(row["record"], _Record, strict=False)
    return issued.Dataset(
        row["dataset_id"],
        r.frame_count,
        r.stokes_parameters,
        r.wavelength_min,
        r.wavelength_max,
        datetime.fromisoformat(r.start_time) if r.start_time else None,
        datetime.fromisoformat(r.end_time) if r.end_time else None,
    )


class Checked(msgspec.Struct, frozen=True):
    """What a check of products came to: the inversions looked at, those that could not be, and what is `wrong` in a line."""

    inversion_ids: list[str] = []
    elsewhere: list[str] = []  # no folder of these with FITS or ASDF files is mounted
    lacking: list[str] = []  # packages, without which nothing was checked
    wrong: str = ""

    @property
    def why_not(self) -> str:
        """Why products were not checked, in a line; nothing where all were."""
        if self.lacking:
            words = f"products are not checked without {' and '.join(self.lacking)}"
            return f"{words}: pip install 'l2inv[products]', or set publish.check_products: false"
        if self.elsewhere:
            words = f"products of {wording.some(self.elsewhere)} are not checked"
            return f"{words}: no folder of theirs with FITS or ASDF files is mounted (publish.mounts)"
        return ""


def check(
    connection: Connection,
    settings: Publish,
    op_id: str,
    inversions: Iterable[Inversion],
    progress: Callable[[int, int], None] = lambda done_mb, of_mb: None,
) -> Checked:
    """Check the products of inversions where they can be looked at, as publish.check_products has it.

    Raise Scattered, and L2invError where a folder cannot be read: that says nothing of the products.
    """
    if not settings.check_products:
        return Checked()
    places = [(one, mounted_folder(one, settings.mounts)) for one in inversions]
    here = [(one, place) for one, place in places if place is not None]
    elsewhere = [one["inversion_id"] for one, place in places if place is None]
    if here and (lacking := [name for name in ("astropy", "asdf") if find_spec(name) is None]):
        return Checked(lacking=lacking)
    wrong = [
        finding
        for one, place in here
        for finding in check_products(place, described(connection, op_id, one), progress)
        if finding.result == "fail"
    ]
    said = "; ".join(
        f"{f.file or 'folder'}: {f.what}: {f.measured}, required: {f.required}" for f in wrong[:MOST_NAMED]
    )
    more = f"; and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
    ids = [one["inversion_id"] for one, _ in here]
    return Checked(ids, elsewhere, wrong=f"products: {said}{more}" if wrong else "")
