"""The files of an inversion as delivered: their folder, and what the check of products finds there."""

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from l2inv import wording
from l2inv.config.settings import Mount, Publish
from l2inv.database.connection import Connection, Row
from l2inv.products import check as check_products
from l2inv.products import issued
from l2inv.services import outputs
from l2inv.services.outputs import Output

MOST_NAMED = 3  # findings in a line; l2inv check lists all


class Inversion(msgspec.Struct, frozen=True):
    """An inversion, as far as the check of its files depends on it."""

    inversion_id: str
    instrument_program_id: str
    dataset_ids: list[str]
    outputs: list[Output]
    asdf_object_key: str | None


class Scattered(Exception):
    """The outputs of an inversion are in several folders; its files must be in one. The message names the inversion."""


def folder(inversion: Inversion, mounts: Sequence[Mount]) -> str:
    """Return the path of the folder of an inversion's files: where it is mounted, or else the path of its URI.

    Raise Scattered if its outputs are in none, or in several.
    """
    found = set()
    for output in inversion.outputs:
        uri = output["uri"]
        path = outputs.mounted(uri, mounts)
        shown = str(path) if path else unquote(urlsplit(uri).path) or uri
        is_file = path.is_file() if path and path.exists() else bool(re.search(r"\.\w{1,8}$", shown))
        found.add(str(Path(shown).parent) if is_file else shown.rstrip("/"))
    if len(found) != 1:
        raise Scattered(
            f"{inversion.inversion_id}: its outputs are in {wording.plural(len(found), 'folder')}, "
            "but the files of an inversion must be in one"
        )
    return found.pop()


def mounted_folder(inversion: Inversion, mounts: Sequence[Mount]) -> Path | None:
    """Return the folder of an inversion's files if it is mounted and has products; else None.

    Raise Scattered.
    """
    if not any(outputs.mounted(o["uri"], mounts) for o in inversion.outputs):
        return None
    place = Path(folder(inversion, mounts))
    if not place.is_dir() or not any(path.suffix.lower() in (".fits", ".asdf") for path in place.iterdir()):
        return None
    return place


def described(connection: Connection, op_id: str, inversion: Inversion) -> issued.Issued:
    """Return an inversion as the check of its files needs it."""
    rows = connection.execute(
        "select dataset_id, proposal_id, record from l2inv.dataset where dataset_id = any(%s) order by dataset_id",
        [inversion.dataset_ids],
    ).fetchall()
    names = [
        issued.Output(Path(unquote(urlsplit(o["uri"]).path)).name, o.get("size_bytes"), o.get("sha256"))
        for o in inversion.outputs
        if re.search(r"\.(fits|asdf)$", o["uri"], re.IGNORECASE)
    ]
    return issued.Issued(
        inversion.inversion_id,
        next((row["proposal_id"] for row in rows if row["proposal_id"]), ""),
        op_id,
        inversion.instrument_program_id,
        tuple(_dataset(row) for row in rows),
        tuple(names),
        inversion.asdf_object_key,
    )


class _Record(msgspec.Struct, rename="camel"):
    frame_count: int | None = None
    stokes_parameters: str | None = None
    wavelength_min: float | None = None
    wavelength_max: float | None = None
    start_time: Any = None
    end_time: Any = None


def _dataset(row: Row) -> issued.Dataset:
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
    """The result of a check of products: the inversions checked, those that could not be, and what is `wrong`, as a line."""

    inversion_ids: list[str] = []
    elsewhere: list[str] = []  # no folder of theirs with FITS or ASDF files is mounted
    lacking: list[str] = []  # missing packages, without which nothing was checked
    wrong: str = ""

    @property
    def why_not(self) -> str:
        """Return why products were not checked, as a line; empty if all were."""
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
    """Check the products of inversions whose folders are mounted, if publish.check_products is true.

    Raise Scattered, and L2invError if a folder cannot be read, which is no finding about the products.
    """
    if not settings.check_products:
        return Checked()
    places = [(one, mounted_folder(one, settings.mounts)) for one in inversions]
    here = [(one, place) for one, place in places if place is not None]
    elsewhere = [one.inversion_id for one, place in places if place is None]
    if here and (lacking := [name for name in ("astropy", "asdf") if find_spec(name) is None]):
        return Checked(lacking=lacking)
    wrong = [
        finding
        for one, place in here
        for finding in check_products(place, described(connection, op_id, one), progress)
        if finding.result == "fail"
    ]
    lines = "; ".join(
        f"{f.file or 'folder'}: {f.what}: {f.measured}, required: {f.required}" for f in wrong[:MOST_NAMED]
    )
    more = f"; and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
    ids = [one.inversion_id for one, _ in here]
    return Checked(ids, elsewhere, wrong=f"products: {lines}{more}" if wrong else "")
