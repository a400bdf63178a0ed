"""The three files that science delivers for an inversion: one with quantities, two with profiles."""

from collections.abc import Generator, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from l2inv.products import fitsfile
from l2inv.products.files import Folder, reading
from l2inv.products.findings import Finding, Unfit, finding
from l2inv.products.fitsfile import Hdu
from l2inv.products.issued import FIT_FILE, OBSERVED_FILE, QUANTITIES_FILE, SCIENCE_FILES, Issued

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# DeSIRe's ids of the lines, and their wavelengths in air, in nm.
LINES = {23: ("Fe I 630.15", 630.15012), 9: ("Na I D2", 588.995095), 4: ("Ca II 854.2", 854.2091)}
NEAR_NM = 0.5  # tolerance for a dataset's range: many begin at 630.239 and contain the line at 630.15
MA_PER_NM = 10_000.0
LEAST_WING_NM = 0.01  # on either side of the line's center; with less, half of the line is missing
MOST_DEGREES = 65_536.0  # above this, float32 cannot represent a hundredth of a degree
QUANTITIES = 11
INCLINATION, AZIMUTH = 6, 7
STOKES = 4
ARMS = (1, 2, 3)  # of ViSP
MOST_LENGTH = 100_000  # of any axis


class Delivered(NamedTuple):
    """What the generated files must agree with; None if science's files do not tell."""

    frames: int | None
    slit: int | None
    depth: int | None
    arms: list[int] | None  # the number of wavelengths of each, in order


class _Profiles(NamedTuple):
    shape: tuple[int, ...]
    offsets: "NDArray[np.float64]"
    line_ids: "NDArray[np.float64]"


def check(folder: Folder) -> Generator[Finding, None, Delivered]:
    """Yield what is wrong with science's files, and return what they deliver."""
    shapes: dict[str, tuple[int, ...]] = {}
    profiles: dict[str, _Profiles] = {}
    for name in SCIENCE_FILES:
        if name not in folder.entries:
            yield finding(name, None, "missing", None, "what science delivers: " + ", ".join(SCIENCE_FILES))
        elif name in folder.files():
            try:
                with reading(folder, name) as (file, size_bytes):
                    hdus = fitsfile.read_hdus(file, size_bytes)
                    for line in fitsfile.breaches(file):
                        yield finding(name, None, "fits_standard", line, "as the standard has it")
                    if name == QUANTITIES_FILE:
                        shapes[name] = yield from _quantities(folder, file, hdus)
                    else:
                        profiles[name] = yield from _profiles(folder, name, file, hdus)
                        shapes[name] = profiles[name].shape
            except Unfit as unfit:
                yield finding(name, unfit.hdu, unfit.what, unfit.measured, unfit.required)
    yield from _frames(shapes, folder.issued)
    arms = yield from _arms(profiles, folder.issued)
    frames, slits = {shape[2] for shape in shapes.values()}, {shape[3] for shape in shapes.values()}
    if len(slits) > 1:
        measured = ", ".join(f"{shape[3]} in {name}" for name, shape in shapes.items())
        yield finding(None, None, "shape", f"along the slit {measured}", "as many in each file")
    return Delivered(
        frames.pop() if len(frames) == 1 else None,
        slits.pop() if len(slits) == 1 else None,
        shapes[QUANTITIES_FILE][1] if QUANTITIES_FILE in shapes else None,
        arms,
    )


def _quantities(folder: Folder, file: BinaryIO, hdus: list[Hdu]) -> Generator[Finding, None, tuple[int, ...]]:
    shape = _cube(hdus[0], QUANTITIES, "(11, depth, frames, slit)")
    yield from _data_type(QUANTITIES_FILE, hdus[0])
    for hdu in hdus:
        yield from checksums(QUANTITIES_FILE, file, hdu)
    if _streamable(hdus[0], folder.issued):
        yield from _planes(folder, QUANTITIES_FILE, file, hdus[0], ("quantity", "depth"))
    return shape


def _profiles(
    folder: Folder, name: str, file: BinaryIO, hdus: list[Hdu]
) -> Generator[Finding, None, _Profiles]:
    shape = _cube(hdus[0], STOKES, "(4, wavelength, frames, slit)")
    yield from _data_type(name, hdus[0])
    for hdu in hdus:
        yield from checksums(name, file, hdu)
    wanted = [(shape[1],)] * 2
    if [hdu.shape for hdu in hdus[1:]] != wanted or not all(hdu.is_image for hdu in hdus):
        measured = [_shown(hdu.shape) if hdu.is_image else "no image" for hdu in hdus[1:]]
        raise Unfit("extensions", measured, [_shown(one) for one in wanted])
    if name == FIT_FILE:
        yield from _slice(hdus[0].header, folder.issued)
    if _streamable(hdus[0], folder.issued):
        yield from _planes(folder, name, file, hdus[0], ("Stokes parameter", "wavelength"))
    return _Profiles(shape, _whole(file, hdus[1]), _whole(file, hdus[2]))


def _cube(hdu: Hdu, first: int, words: str) -> tuple[int, ...]:
    shape = hdu.shape
    if len(shape) != 4 or shape[0] != first or not all(0 < length <= MOST_LENGTH for length in shape):
        raise Unfit("shape", _shown(shape), words, 0)
    return shape


def _shown(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def _data_type(name: str, hdu: Hdu) -> Iterator[Finding]:
    if hdu.bitpix != -32 or fitsfile.is_scaled(hdu):
        scaled = ", scaled" if fitsfile.is_scaled(hdu) else ""
        yield finding(
            name, 0, "data_type", f"BITPIX {hdu.bitpix}{scaled}", "BITPIX -32 (float32), not scaled"
        )


def checksums(name: str, file: BinaryIO, hdu: Hdu) -> Iterator[Finding]:
    for key, right in fitsfile.wrong_sums(file, hdu):
        yield finding(
            name, hdu.number, "checksum", f"{key} {fitsfile.value(hdu.header, key)}", f"{key} {right}"
        )


def _streamable(hdu: Hdu, issued: Issued) -> bool:
    """Return whether to read the values: a file with other dimensions may contain terabytes of nothing."""
    wanted = _wanted_frames(issued)
    return hdu.bitpix == -32 and (not wanted or hdu.shape[2] in wanted)


def _planes(folder: Folder, name: str, file: BinaryIO, hdu: Hdu, axes: tuple[str, str]) -> Iterator[Finding]:
    """Yield planes that contain no number: those at one index of the first two axes, and those of one frame."""
    import numpy as np

    outer, inner, frames, slit = hdu.shape
    by_plane = np.zeros((outer, inner), bool)
    by_frame = np.zeros((outer, frames), bool)
    tau_sums, tau_counts = np.zeros(inner), np.zeros(inner)
    too_large = dict.fromkeys((INCLINATION, AZIMUTH), 0.0)
    row = 0
    for piece in fitsfile.pieces(file, hdu, folder.tick, slit):
        values = piece.reshape(-1, slit)
        done = 0
        while done < len(values):  # plane by plane, since a piece may end within one
            plane, frame = divmod(row, frames)
            first, second = divmod(plane, inner)
            part = values[done : done + frames - frame]
            finite = np.isfinite(part)
            rows = finite.any(axis=1)
            by_plane[first, second] |= rows.any()
            by_frame[first, frame : frame + len(part)] |= rows
            if name == QUANTITIES_FILE and first == 0:
                tau_sums[second] += part.sum(dtype=np.float64, where=finite)
                tau_counts[second] += finite.sum()
            elif name == QUANTITIES_FILE and first in too_large and rows.any():
                largest = float(np.abs(part).max(where=finite, initial=0))
                too_large[first] = max(too_large[first], largest)
            done += len(part)
            row += len(part)
    for what, alive in ((axes[1], by_plane), ("frame", by_frame)):
        if not alive.all():
            index, other = (int(one) for one in np.argwhere(~alive)[0])
            measured = f"{int((~alive).sum())} planes, the first at {axes[0]} {index}, {what} {other}"
            yield finding(name, 0, "nan_plane", measured, "numbers in each")
    if name == QUANTITIES_FILE:
        yield from _tau(tau_sums, tau_counts)
    for index, largest in too_large.items():
        if largest > MOST_DEGREES:
            what = {INCLINATION: "inclination", AZIMUTH: "azimuth"}[index]
            yield finding(name, 0, "angle", f"{what} of {largest:g}", f"at most {MOST_DEGREES:g} degrees")


def _tau(sums: "NDArray[np.float64]", counts: "NDArray[np.float64]") -> Iterator[Finding]:
    """Yield a finding unless the mean log optical depth is monotonic. Means, because failed pixels are zero."""
    if not counts.all():  # an empty plane, which is a finding already
        return
    means = sums / counts
    if not direction(means) and len(means) > 1:
        measured = [round(float(one), 4) for one in means]
        yield finding(
            QUANTITIES_FILE, 0, "optical_depth", measured, "rising or falling all along the second axis"
        )


def direction(means: "NDArray[np.float64]") -> int:
    """Return 1 if each value is larger than the one before, -1 if each is smaller, else 0."""
    import numpy as np

    steps = np.sign(np.diff(means))
    return int(steps[0]) if len(steps) and (steps == steps[0]).all() else 0


def _whole(file: BinaryIO, hdu: Hdu) -> "NDArray[np.float64]":
    import numpy as np

    read = [piece.astype(np.float64) for piece in fitsfile.pieces(file, hdu, lambda count: None)]
    return np.concatenate(read) * fitsfile.scale(hdu) + fitsfile.zero(hdu)  # unsigned integers have a BZERO


def _slice(header: Any, issued: Issued) -> Iterator[Finding]:
    """Yield what is wrong with the fit's description of its arm and binning."""
    binned, arm = (fitsfile.value(header, key) for key in ("DESR-BIN", "DESR-FID"))
    if not isinstance(binned, int) or isinstance(binned, bool) or binned < 1:
        yield finding(FIT_FILE, 0, "DESR-BIN", binned, "a number of pixels, at least 1")
    known = {dataset.vsparmid: dataset.dataset_id for dataset in issued.datasets}
    named = ", ".join(dataset.dataset_id for dataset in issued.datasets)
    if not isinstance(arm, int) or isinstance(arm, bool) or arm not in ARMS:
        yield finding(FIT_FILE, 0, "DESR-FID", arm, f"an arm of ViSP: {', '.join(map(str, ARMS))}")
    elif arm not in known and None in known:
        required = f"the VSPARMID of one of {named}, which is not known here"
        yield finding(FIT_FILE, 0, "DESR-FID", arm, required, "unknown")
    elif arm not in known:
        required = ", ".join(f"{arm_id} ({dataset})" for arm_id, dataset in known.items())
        yield finding(FIT_FILE, 0, "DESR-FID", arm, f"a VSPARMID: {required}")


def _wanted_frames(issued: Issued) -> set[int]:
    """Return the possible numbers of frames: one per scan position, or one less; none if Level 1 does not tell."""
    positions = {dataset.positions for dataset in issued.datasets} - {None}
    return {count - less for count in positions if count for less in (0, 1)}


def frames_required(issued: Issued) -> tuple[set[int], str]:
    """Return the possible numbers of frames, and how to say that."""
    wanted = _wanted_frames(issued)
    return wanted, f"{' or '.join(map(str, sorted(wanted)))}, as Level 1 has scan positions"


def _frames(shapes: dict[str, tuple[int, ...]], issued: Issued) -> Iterator[Finding]:
    counts = {name: shape[2] for name, shape in shapes.items()}
    wanted, required = frames_required(issued)
    if len(set(counts.values())) > 1:
        measured = ", ".join(f"{count} in {name}" for name, count in counts.items())
        yield finding(None, None, "frames", measured, "as many in each file")
    for name, count in counts.items():
        if not wanted:
            words = "as Level 1 has scan positions, which is not known here"
            yield finding(name, 0, "frames", count, words, "unknown")
        elif count not in wanted:
            yield finding(name, 0, "frames", count, required)


def _arms(profiles: dict[str, _Profiles], issued: Issued) -> Generator[Finding, None, list[int] | None]:
    """Yield what is wrong with the wavelengths, and return their number in each arm; None if unknown."""
    import numpy as np

    lengths = None
    for name, found in profiles.items():
        blocks = _blocks(found.line_ids)
        ids = [line_id for line_id, _, _ in blocks]
        if any(line_id not in LINES for line_id in ids) or len(set(ids)) < len(ids):
            shown = [f"{line_id:g}" for line_id in ids]
            yield finding(name, 2, "line_id", shown, "each of 23 (Fe I), 9 (Na I), 4 (Ca II) at most once")
            continue
        lengths = [end - begin for _, begin, end in blocks]
        for line_id, begin, end in blocks:
            yield from _arm(name, int(line_id), found.offsets[begin:end], issued)
    if len(profiles) == 2:
        fit, observed = profiles[FIT_FILE], profiles[OBSERVED_FILE]
        if fit.shape[1] != observed.shape[1]:
            measured = f"{fit.shape[1]} wavelengths fitted, {observed.shape[1]} observed"
            yield finding(None, None, "shape", measured, "as many in each file")
        else:
            for number, what, one, other in (
                (1, "offsets", fit.offsets, observed.offsets),
                (2, "line_id", fit.line_ids, observed.line_ids),
            ):
                if not np.array_equal(one, other, equal_nan=True):
                    count = int((one != other).sum())
                    measured = f"{count} differ from {OBSERVED_FILE}"
                    yield finding(FIT_FILE, number, what, measured, "the same in both files")
    return lengths


def _blocks(ids: "NDArray[np.float64]") -> list[tuple[float, int, int]]:
    """Return each run of equal line ids, with its begin and end."""
    import numpy as np

    breaks = [0, *(int(at) + 1 for at in np.flatnonzero(np.diff(ids))), len(ids)]
    return [(float(ids[begin]), begin, end) for begin, end in pairwise(breaks)]


def _arm(name: str, line_id: int, offsets: "NDArray[np.float64]", issued: Issued) -> Iterator[Finding]:
    import numpy as np

    line, center_nm = LINES[line_id]
    if not np.isfinite(offsets).all() or not (np.diff(offsets) > 0).all():
        yield finding(
            name, 1, "offsets", f"not so for {line}", "numbers in mÅ, each larger than the one before"
        )
        return
    blue, red = -float(offsets[0]) / MA_PER_NM, float(offsets[-1]) / MA_PER_NM
    if min(blue, red) < LEAST_WING_NM:
        measured = f"{line}: {blue:.4f} nm to the blue of its center, {red:.4f} nm to the red"
        yield finding(name, 1, "spectral_range", measured, f"at least {LEAST_WING_NM} nm on either side")
    ranges = [(d.wavelength_min_nm, d.wavelength_max_nm) for d in issued.datasets]
    known = [(low, high) for low, high in ranges if low is not None and high is not None]
    if any(low - NEAR_NM <= center_nm <= high + NEAR_NM for low, high in known):
        return
    result: Any = "fail" if len(known) == len(ranges) else "unknown"
    observed = ", ".join(f"{low:g} to {high:g} nm" for low, high in known) or "not known here"
    yield finding(name, 2, "line", f"{line} ({center_nm:g} nm)", f"observed by a dataset: {observed}", result)
