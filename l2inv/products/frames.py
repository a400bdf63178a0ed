"""The generated FITS files of Level 2: one per frame, with eleven quantities and the profiles of each arm."""

import re
from collections import Counter
from collections.abc import Generator, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

from l2inv.products import fitsfile
from l2inv.products.files import Folder, reading
from l2inv.products.findings import Finding, Unfit, finding
from l2inv.products.fitsfile import Hdu
from l2inv.products.issued import SCIENCE_FILES, Issued
from l2inv.products.science import (
    LEAST_WING_NM,
    LINES,
    MOST_LENGTH,
    STOKES,
    Delivered,
    checksums,
    direction,
    frames_required,
)


class Quantity(NamedTuple):
    """A quantity of Level 2, as the FITS files and the ASDF call it."""

    key: str  # in the ASDF
    unit: str
    btype: str


# In the order of their HDUs, from the first extension on.
QUANTITIES = (
    Quantity("optical_depth", "", "phys.absorption.opticalDepth"),
    Quantity("temperature", "K", "phys.temperature"),
    Quantity("electron_pressure", "N/m^2", "phys.electron;phys.pressure"),
    Quantity("microturbulence", "km/s", "phys.veloc.microturb"),
    Quantity("mag_strength", "T", "phys.magField"),
    Quantity("velocity", "km/s", "spect.dopplerVeloc"),
    Quantity("mag_inclination", "deg", "phys.magField;pos.angDistance"),
    Quantity("mag_azimuth", "deg", "phys.magField;pos.azimuth"),
    Quantity("geo_height", "km", "phys.distance"),
    Quantity("gas_pressure", "N/m^2", "phys.pressure"),
    Quantity("density", "kg/m^3", "phys.density"),
)
FIRST_PROFILE = len(QUANTITIES) + 1
OPTICAL_DEPTH = 1  # its HDU
ANGLES = (7, 8)  # HDUs of inclination and azimuth
MOST_DATA_BYTES = 2**30  # of one HDU; a frame's are a few megabytes
CLOCK = timedelta(seconds=1)  # by which a frame may be outside its dataset's times
NEAR_LINE_NM = 0.1

_DATE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?", re.ASCII)
_LIKE_A_FRAME = re.compile(r"INV_.*_L2\.fits", re.IGNORECASE | re.DOTALL)
_KINDS = ("Original", "Fit")  # of profiles, in their order; SPECPFTP

Layout = tuple[tuple[int, tuple[int, ...]], ...]  # BITPIX and shape of each HDU


class Frames(NamedTuple):
    """The frames' files in order of time, and what most of them look like."""

    names: list[str]
    layout: Layout | None


def named(folder: Folder) -> list[str]:
    """Return the names of the frames' files, as issued, in order of time."""
    times = {name: folder.issued.frame_time(name) for name in folder.files()}
    found = [(time, name) for name, time in times.items() if time is not None]
    return [name for _, name in sorted(found)]


def is_like_a_frame(name: str) -> bool:
    """Return whether a name looks like that of a frame, of any inversion."""
    return name not in SCIENCE_FILES and bool(_LIKE_A_FRAME.fullmatch(name))


def check(folder: Folder, delivered: Delivered | None) -> Generator[Finding, None, Frames]:
    """Yield what is wrong with the frames, and return them; `delivered` describes science's files, if they exist."""
    names = named(folder)
    layouts: dict[Layout, list[str]] = {}
    directions: dict[int, list[str]] = {1: [], -1: [], 0: []}
    yield from _count(len(names), folder.issued, delivered)
    for name in names:
        try:
            with reading(folder, name) as (file, size_bytes):
                hdus = fitsfile.read_hdus(file, size_bytes)
                layouts.setdefault(tuple((hdu.bitpix, hdu.shape) for hdu in hdus), []).append(name)
                for line in fitsfile.breaches(file):
                    yield finding(name, None, "fits_standard", line, "as the standard has it")
                yield from _primary(name, hdus[0], folder.issued)
                yield from _images(name, hdus, folder.issued, delivered)
                directions[(yield from _values(folder, name, file, hdus))].append(name)
        except Unfit as unfit:
            yield finding(name, unfit.hdu, unfit.what, unfit.measured, unfit.required)
    usual = max(layouts, key=lambda layout: len(layouts[layout]), default=None)
    for layout, odd in layouts.items():
        if usual is not None and layout != usual:
            for name in odd:
                yield finding(
                    name, None, "shape_differs", _difference(layout, usual), "as most frames have it"
                )
    for name in min(directions[1], directions[-1], key=len):
        yield finding(
            name, OPTICAL_DEPTH, "optical_depth", "in the other direction", "in that of most frames"
        )
    yield from _sizes(folder, names)
    return Frames(names, usual)


def _count(count: int, issued: Issued, delivered: Delivered | None) -> Iterator[Finding]:
    wanted, required = frames_required(issued)
    if delivered and delivered.frames is not None:
        wanted, required = {delivered.frames}, f"{delivered.frames}, as science's files have frames"
    if not wanted:
        words = "as Level 1 has scan positions, which is not known here"
        yield finding(None, None, "frames", f"{count} files of frames", words, "unknown")
    elif count not in wanted:
        yield finding(None, None, "frames", f"{count} files of frames", required)


def _sizes(folder: Folder, names: list[str]) -> Iterator[Finding]:
    sizes = {name: folder.entries[name].size_bytes for name in names}
    ((usual, _),) = Counter(sizes.values()).most_common(1) or [(0, 0)]
    for name, size_bytes in sizes.items():
        if size_bytes != usual:
            yield finding(name, None, "size_differs", f"{size_bytes} bytes", f"{usual} bytes, as most frames")


def _difference(layout: Layout, usual: Layout) -> str:
    if len(layout) != len(usual):
        return f"{len(layout)} HDUs instead of {len(usual)}"
    pairs = zip(layout, usual, strict=True)
    number, (one, other) = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
    return f"HDU {number}: BITPIX {one[0]}, shape {one[1]} instead of BITPIX {other[0]}, shape {other[1]}"


def _primary(name: str, hdu: Hdu, issued: Issued) -> Iterator[Finding]:
    if hdu.data_bytes:
        yield finding(name, 0, "primary", f"shape {hdu.shape}", "no data")
    required = {
        "DSETID": issued.inversion_id,
        "PROCTYPE": "L2",
        "LEVEL": 2,
        "PROP_ID": issued.proposal_id,
        "OBSPR_ID": issued.op_id,
        "IP_ID": issued.instrument_program_id,
    }
    if "FILENAME" in hdu.header:
        required["FILENAME"] = name
    for key, wanted in required.items():
        found = fitsfile.value(hdu.header, key)
        if found != wanted or isinstance(found, bool):
            yield finding(name, 0, key, found, wanted)
    system = fitsfile.value(hdu.header, "TIMESYS")
    if system not in (None, "UTC"):  # the standard's default is UTC
        yield finding(name, 0, "time", f"TIMESYS {system}", "UTC")
    value = fitsfile.value(hdu.header, "DATE-BEG")
    begin = _time(value)
    if begin is None:
        yield finding(name, 0, "time", value, "DATE-BEG in UTC, such as 2022-06-03T18:03:43.89")
        return
    if issued.frame_file(begin) != name:
        yield finding(name, 0, "name", f"DATE-BEG {value}", issued.frame_file(begin))
    starts = [d.start_time for d in issued.datasets if d.start_time]
    ends = [d.end_time for d in issued.datasets if d.end_time]
    if (starts and begin < min(starts) - CLOCK) or (ends and begin > max(ends) + CLOCK):
        shown = [f"{min(starts):%FT%T}" if starts else "?", f"{max(ends):%FT%T}" if ends else "?"]
        yield finding(name, 0, "time", f"DATE-BEG {value}", f"within the observation, {' to '.join(shown)}")


def _time(value: object) -> datetime | None:
    found = _DATE.fullmatch(value) if isinstance(value, str) else None
    try:
        return (
            datetime.fromisoformat(f"{found[1]}.{(found[2] or '').ljust(6, '0')}").replace(tzinfo=UTC)
            if found
            else None
        )
    except ValueError:
        return None


def _images(name: str, hdus: list[Hdu], issued: Issued, delivered: Delivered | None) -> Iterator[Finding]:
    extensions = hdus[1:]
    for hdu in extensions:
        if not hdu.is_image or hdu.bitpix not in (-32, -64) or fitsfile.is_scaled(hdu):
            kind = f"BITPIX {hdu.bitpix}" if hdu.is_image else str(fitsfile.value(hdu.header, "XTENSION"))
            kind += ", scaled" if fitsfile.is_scaled(hdu) else ""
            yield finding(
                name, hdu.number, "data_type", kind, "an image of floating-point numbers, not scaled"
            )
    profiles = hdus[FIRST_PROFILE:]
    if len(hdus) < FIRST_PROFILE + 2 or len(profiles) % 2:
        required = "a primary, 11 quantities, then observed and fitted profiles of each arm"
        yield finding(name, None, "hdus", f"{len(hdus)} HDUs", required)
        return
    slit, depth = yield from _shape_of_quantities(name, extensions[0], delivered)
    for quantity, hdu in zip(QUANTITIES, extensions, strict=False):
        if hdu.shape != (1, slit, depth) and hdu.number > 1:
            yield finding(name, hdu.number, "shape", str(hdu.shape), f"{(1, slit, depth)}, as HDU 1")
        btype = fitsfile.value(hdu.header, "BTYPE")
        if btype not in (None, quantity.btype):
            yield finding(name, hdu.number, "quantity", btype, f"{quantity.btype} ({quantity.key})")
        unit = fitsfile.value(hdu.header, "BUNIT")
        if not is_unit(unit or "", quantity.unit):
            yield finding(name, hdu.number, "unit", unit, unit_required(quantity))
    yield from _profiles(name, profiles, slit, issued, delivered)


def _shape_of_quantities(
    name: str, hdu: Hdu, delivered: Delivered | None
) -> Generator[Finding, None, tuple[int, int]]:
    """Yield a finding unless the first quantity has the required shape, and return its two lengths."""
    slit, depth = hdu.shape[1:] if len(hdu.shape) == 3 else (0, 0)
    wanted = (delivered.slit, delivered.depth) if delivered else (None, None)
    known = all(one in (None, other) for one, other in zip(wanted, (slit, depth), strict=True))
    if len(hdu.shape) != 3 or hdu.shape[0] != 1 or not slit or not depth or not known:
        shown = [str(one) if one else word for one, word in zip(wanted, ("slit", "depth"), strict=True)]
        yield finding(name, 1, "shape", str(hdu.shape), f"(1, {', '.join(shown)})")
    return slit, depth


def _profiles(
    name: str, profiles: list[Hdu], slit: int, issued: Issued, delivered: Delivered | None
) -> Iterator[Finding]:
    lengths = []
    centers: list[float] = []
    for number, hdu in enumerate(profiles):
        fits = (
            len(hdu.shape) == 4 and hdu.shape[:2] == (1, slit) and hdu.shape[3] == STOKES and hdu.shape[2] > 0
        )
        if not fits:
            yield finding(name, hdu.number, "shape", str(hdu.shape), f"(1, {slit}, wavelength, {STOKES})")
        kind, wanted = fitsfile.value(hdu.header, "SPECPFTP"), _KINDS[number % 2]
        if kind not in (None, wanted):
            yield finding(name, hdu.number, "profiles", kind, f"{wanted}: observed and fitted alternate")
        if number % 2 and hdu.shape != profiles[number - 1].shape:
            required = f"{profiles[number - 1].shape}, as the observed one before it"
            yield finding(name, hdu.number, "profiles", str(hdu.shape), required)
        if fits and number % 2 == 0:
            lengths.append(hdu.shape[2])
        axis = _axis(hdu)
        if axis is None:
            continue
        yield from _wavelengths(name, hdu, axis)
        if number % 2 == 0:
            if any(abs(axis.center - one) < NEAR_LINE_NM for one in centers):
                yield finding(name, hdu.number, "profiles", f"{axis.center:g} nm again", "a line of its own")
            centers.append(axis.center)
        elif (observed := _axis(profiles[number - 1])) and not axis.is_near(observed):
            measured = f"{axis.first:.4f} to {axis.last:.4f} nm"
            required = f"{observed.first:.4f} to {observed.last:.4f} nm, as the observed one before it"
            yield finding(name, hdu.number, "profiles", measured, required)
    arms = len(profiles) // 2
    if delivered and delivered.arms is not None and sorted(delivered.arms) != sorted(lengths):
        yield finding(
            name, None, "profiles", f"arms of {lengths} wavelengths", f"{delivered.arms}, as science's"
        )
    elif arms > len(issued.datasets):
        yield finding(
            name, None, "profiles", f"{arms} arms", f"at most {len(issued.datasets)}, one a dataset"
        )


class _Axis(NamedTuple):
    """The wavelengths of a profile, in nm."""

    center: float  # of the line
    first: float
    last: float
    step: float

    def is_near(self, other: "_Axis") -> bool:
        most = abs(other.step) / 2
        return abs(self.first - other.first) < most and abs(self.last - other.last) < most


def _axis(hdu: Hdu) -> _Axis | None:
    """Return a profile's wavelength axis; None if the header does not describe one."""
    keys = [fitsfile.value(hdu.header, key) for key in ("CTYPE2", "CUNIT2", "CRVAL2", "CRPIX2", "CDELT2")]
    center, pixel, step = (_float(one) for one in keys[2:])
    if keys[:2] != ["AWAV", "nm"] or len(hdu.shape) != 4 or center is None or pixel is None or not step:
        return None
    return _Axis(center, center - (pixel - 1) * step, center + (hdu.shape[2] - pixel) * step, step)


def _wavelengths(name: str, hdu: Hdu, axis: _Axis) -> Iterator[Finding]:
    """Yield a finding unless the wavelengths contain a known line with both wings."""
    center = axis.center
    if not any(abs(center - nm) < NEAR_LINE_NM for _, nm in LINES.values()):
        known = ", ".join(f"{line} ({nm:g} nm)" for line, nm in LINES.values())
        yield finding(name, hdu.number, "spectral_range", f"CRVAL2 {center:g} nm", f"a line: {known}")
        return
    sides = [center - axis.first, axis.last - center]
    if min(sides) < LEAST_WING_NM:
        measured = f"{sides[0]:.4f} nm to the blue of {center:g} nm, {sides[1]:.4f} nm to the red"
        yield finding(
            name, hdu.number, "spectral_range", measured, f"at least {LEAST_WING_NM} nm on either side"
        )


def _float(found: Any) -> float | None:
    return float(found) if isinstance(found, (int, float)) and abs(found) < 1e9 else None


def _values(folder: Folder, name: str, file: BinaryIO, hdus: list[Hdu]) -> Generator[Finding, None, int]:
    """Yield what is wrong with a frame's values, and return the direction of its log optical depth."""
    import numpy as np

    way = 0
    for hdu in hdus:
        if hdu.data_bytes > MOST_DATA_BYTES:
            raise Unfit(
                "shape", f"{hdu.data_bytes} bytes", f"at most {MOST_DATA_BYTES} in a frame's HDU", hdu.number
            )
        yield from checksums(name, file, hdu)
        if not hdu.data_bytes or not hdu.number or hdu.bitpix > 0:
            folder.tick(hdu.data_bytes)
            continue
        is_depth = hdu.number == OPTICAL_DEPTH and len(hdu.shape) == 3 and hdu.shape[2] <= MOST_LENGTH
        is_profile = hdu.number >= FIRST_PROFILE and hdu.shape[-1] == STOKES
        # A profile has four planes, one per Stokes parameter, and log optical depth one per depth; others have one.
        planes = hdu.shape[2] if is_depth else STOKES if is_profile else 1
        counts, sums = np.zeros(planes), np.zeros(planes)
        low, high = np.inf, -np.inf
        for piece in fitsfile.pieces(file, hdu, folder.tick, planes):
            values = piece.reshape(-1, planes)
            finite = np.isfinite(values)
            counts += finite.sum(axis=0)
            if is_depth:
                sums += values.sum(axis=0, dtype=np.float64, where=finite)
            if hdu.number in ANGLES:
                low = min(low, float(piece.min(where=finite[:, 0], initial=np.inf)))
                high = max(high, float(piece.max(where=finite[:, 0], initial=-np.inf)))
        empty = int((counts == 0).sum())
        if empty and (not is_depth or empty == planes):
            measured = f"none in {empty} Stokes parameters" if is_profile else "none"
            yield finding(name, hdu.number, "nan_plane", measured, "numbers")
        elif is_depth:
            means = sums[counts > 0] / counts[counts > 0]
            way = direction(means)
            if not way and len(means) > 1:
                shown = [round(float(one), 4) for one in means]
                yield finding(
                    name, hdu.number, "optical_depth", shown, "rising or falling all along the last axis"
                )
        if low < 0 or high > 360:
            measured = f"{low:g} to {high:g} degrees"
            yield finding(name, hdu.number, "angle", measured, "0 to 360 degrees")
    return way


def unit_required(quantity: Quantity) -> str:
    return f"{quantity.unit or 'none'} ({quantity.key})"


@lru_cache(maxsize=1000)
def is_unit(value: object, required: str) -> bool:
    """Return whether a unit is the one required, however it is written."""
    from astropy import units

    if not isinstance(value, str) or len(value) > 80:
        return False
    try:
        return bool(units.Unit(value) == units.Unit(required))
    except (ValueError, TypeError):
        return value == required
