"""The possible findings of a check of products."""

import math
from collections.abc import Iterable
from typing import Any, Literal

from msgspec import Struct

from l2inv.wording import clean, value

LONGEST = 200  # characters of what was measured: text in a file may be of any length
MOST_NAMED = 20

# Every kind of finding, and its meaning; docs/products.md has the same.
WHAT = {
    # any file
    "missing": "a file that must be there is not",
    "extra": "a file or folder that was not issued is among the products, and would be published with them",
    "name": "a file of Level 2 has another name than was issued for it",
    "not_a_file": "a link, folder, pipe, socket or device is where a file must be",
    "unreadable": "the file cannot be read",
    "format": "the file's format is not that of its name",
    "structure": "the file ends early, goes on after its end, or its parts contradict its headers",
    "fits_standard": "the file breaks the FITS standard",
    "checksum": "CHECKSUM or DATASUM (FITS), or a block's MD5 sum (ASDF), does not match the content",
    "size": "the file has another size than was recorded",
    "sha256": "the file has another SHA-256 sum than was recorded",
    "size_differs": "a frame's file has another size than most of the frames' files",
    "shape_differs": "a frame's images have other shapes than those of most frames",
    # values
    "data_type": "the values are of another type than float32, are scaled, or are no image",
    "shape": "an array has another shape than it must have, or its axes are in another order",
    "frames": "the number of frames differs between files, or from the number of scan positions of Level 1",
    "nan_plane": "a whole plane holds no number",
    "optical_depth": "log optical depth neither rises nor falls all along the depth axis: the axes may be swapped",
    "angle": "an inclination or azimuth is out of 0 to 360 degrees, or too large to be brought there",
    # science's profiles
    "extensions": "a file of profiles has not exactly two image extensions, each as long as the wavelength axis",
    "line_id": "a line id is unknown, comes twice, or differs between the fit and the observed profiles",
    "offsets": "the wavelength offsets of an arm do not increase, are no numbers, or differ between fit and observed",
    "spectral_range": "an arm holds only part of its line, or its wavelengths belong to no known line",
    "line": "no dataset of the inversion observed the line",
    "DESR-BIN": "the fit does not say how many pixels were binned",
    "DESR-FID": "the fiducial arm is not that of a dataset of the inversion",
    # generated FITS
    "primary": "the primary HDU is not empty",
    "DSETID": "DSETID is not the inversion id that was issued",
    "PROCTYPE": "PROCTYPE is not L2",
    "LEVEL": "LEVEL is not 2",
    "PROP_ID": "PROP_ID is not the proposal",
    "OBSPR_ID": "OBSPR_ID is not the OP",
    "IP_ID": "IP_ID is not the instrument program",
    "FILENAME": "FILENAME is not the file's name",
    "time": "DATE-BEG cannot be read, or is outside the observation",
    "hdus": "the file has not 11 quantities and then pairs of profiles",
    "quantity": "another quantity is at this place",
    "unit": "a quantity has another unit than it must have",
    "profiles": "observed and fitted profiles do not alternate or match, or the arms are not science's, or two are of one line",
    # ASDF
    "tree": "the ASDF's tree cannot be read, or lacks what the published schema and readers need",
    "tag": "a node has not the tag of the published schema",
    "inversion_id": "the ASDF names another inversion",
    "proposal_id": "the ASDF names another proposal",
    "datasets": "the ASDF names other datasets than those that were inverted",
    "files": "the ASDF lists other files than the folder holds",
    "order": "the ASDF lists the files, or their headers, in another order than that of time",
    "quantities": "the ASDF has not the 11 quantities, or observed and fitted profiles of each arm",
    "target": "the ASDF points at another HDU than the quantity's",
    "arrays": "arrays of the ASDF have another length than the blocks that hold them: their values are read wrongly",
    "asdf_object_key": "the asdfObjectKey does not name the ASDF",
}


class Finding(Struct, frozen=True):
    """What is wrong (fail), unusual (warn) or cannot be checked here (unknown), like a criterion of a verdict.

    `file` is None for the folder as a whole, `hdu` for a file as a whole; HDUs count from 0, the primary.
    """

    file: str | None
    hdu: int | None
    what: str  # a key of WHAT
    measured: Any
    required: Any
    result: Literal["fail", "warn", "unknown"] = "fail"


class Unfit(Exception):
    """Nothing more in a file can be checked."""

    def __init__(self, what: str, measured: object, required: object, hdu: int | None = None) -> None:
        super().__init__(what)
        self.what, self.measured, self.required, self.hdu = what, measured, required, hdu


def finding(
    file: str | None,
    hdu: int | None,
    what: str,
    measured: object,
    required: object,
    result: Literal["fail", "warn", "unknown"] = "fail",
) -> Finding:
    """Return a finding whose values can be printed and written as JSON, whatever was measured."""
    return Finding(plain(file), hdu, what, plain(measured), plain(required), result)


def plain(value: object) -> Any:
    """Return a value for JSON: short text without control characters, finite numbers, lists of these."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return (
            value
            if abs(value) < 2**53
            else shortened(str(value) if abs(value) < 10**300 else "a huge number")
        )
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return shortened(value)
    if isinstance(value, (list, tuple)):
        shown = [plain(one) for one in value[:MOST_NAMED]]
        return shown + ([f"and {len(value) - MOST_NAMED} more"] if len(value) > MOST_NAMED else [])
    return shortened(type(value).__name__)


def shortened(text: str) -> str:
    """Return a text as one short line."""
    text = clean(text[: LONGEST + 1])
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def place(found: Finding, files: int) -> str:
    """Return the file with a finding, and the number of others that have it, too."""
    return (found.file or "the folder") + (f" and {files - 1} more" if files > 1 else "")


def line(found: Finding, files: int = 1) -> str:
    """Return a finding as a line: where, what, measured and required; `files` is the number of files it was found in."""
    where = place(found, files) + (f", HDU {found.hdu}" if found.hdu is not None else "")
    unlike = {"fail": "must be", "warn": "should be", "unknown": "not checked:"}[found.result]
    return clean(f"{where}: {found.what}: {value(found.measured)}, {unlike} {value(found.required)}")


def grouped(found: Iterable[Finding]) -> list[tuple[Finding, int]]:
    """Return the first finding of each kind and the number of files with it: a fault in one frame is usually in all, with
    different numbers."""
    groups: dict[tuple[object, ...], tuple[Finding, int]] = {}
    for one in found:
        file = "a frame" if one.file and one.file.endswith("_L2.fits") else one.file
        first, count = groups.get(key := (file, one.hdu, one.what, one.result), (one, 0))
        groups[key] = first, count + 1
    return list(groups.values())


def some(names: Iterable[str]) -> str:
    """Return the first few names, and how many more there are."""
    named = sorted(names)
    return ", ".join(named[:4]) + (f" and {len(named) - 4} more" if len(named) > 4 else "")
