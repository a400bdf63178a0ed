"""A picture of each quantity of an inversion near log tau -1, as PNG.

Drawn from the generated Level 2 or, without it, from science's files. Only the plane nearest to that depth is kept, with
as many pixels as a thumbnail has, so that memory does not grow. It needs the extra `plots` (matplotlib), which nothing else imports.
"""

import io
import logging
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from l2inv.errors import L2invError
from l2inv.products import files, fitsfile
from l2inv.products.files import Folder, opened, reading
from l2inv.products.findings import Unfit
from l2inv.products.fitsfile import Hdu
from l2inv.products.frames import QUANTITIES, named
from l2inv.products.issued import QUANTITIES_FILE, Issued
from l2inv.products.science import MOST_LENGTH

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Plane = NDArray[np.float32]

# Without a home to write to, as under cron, matplotlib would log where it keeps its fonts instead.
logging.getLogger("matplotlib").addHandler(logging.NullHandler())

LOG_TAU = -1.0
MOST_PIXELS = 400  # of a thumbnail, along each axis
FIELD, INCLINATION, AZIMUTH = 4, 6, 7

# What science's CGS and gauss are multiplied by; QUANTITIES has the units.
_FACTORS = (1.0, 1.0, 0.1, 1e-5, 1e-4, 1e-5, 1.0, 1.0, 1.0, 0.1, 1000.0)


class _Look(NamedTuple):
    """How a quantity is drawn."""

    title: str
    unit: str
    colors: str
    kind: str = "linear"  # or signed: white is zero; or full: all of a circle


_LOOKS = (
    *(
        _Look(title, quantity.unit, colors, kind)
        for quantity, (title, colors, kind) in zip(
            QUANTITIES,
            (
                ("Log optical depth", "viridis", "linear"), ("Temperature", "inferno", "linear"),
                ("Electron pressure", "viridis", "linear"), ("Microturbulence", "viridis", "linear"),
                ("Field strength", "magma", "linear"), ("Line-of-sight velocity", "RdBu_r", "signed"),
                ("Inclination", "cividis", "linear"), ("Azimuth", "twilight", "full"),
                ("Geometric height", "viridis", "linear"), ("Gas pressure", "viridis", "linear"),
                ("Density", "viridis", "linear"),
            ),
            strict=True,
        )
    ),
    _Look("Line-of-sight field", "T", "PuOr_r", "signed"),  # strength and the cosine of the inclination
)  # fmt: skip


class Thumbnail(Struct, frozen=True):
    """A picture of a quantity, with a description for those who cannot see it."""

    title: str
    png: bytes
    words: str


class Thumbnails(Struct, frozen=True):
    """The pictures of an inversion and their caption, or why there are none."""

    caption: str
    each: list[Thumbnail] = []


class Planes(NamedTuple):
    """The quantities in the units of Level 2: (slit, frames) each, the line-of-sight field last."""

    each: "list[Plane]"
    source: str
    log_tau: float
    frames: int
    slit: int


def must_be_drawable() -> None:
    """Raise L2invError without the packages that read and draw."""
    lacking = [name for name in ("astropy", "matplotlib") if find_spec(name) is None]
    if lacking:
        raise L2invError(
            f"nothing can be drawn without {' and '.join(lacking)}", "pip install 'l2inv[plots]'"
        )


def drawn(folder: Path, inversion_id: str, progress: Callable[[int, int], None]) -> Thumbnails:
    """Return the pictures of an inversion's products; progress is in frames. Raise L2invError if the folder cannot be read."""
    try:
        found = planes(folder, inversion_id, progress)
    except Unfit as unfit:
        return Thumbnails(f"No pictures: {unfit.what}: {unfit.measured}, required: {unfit.required}")
    caption = (
        f"{found.source}, at log tau {found.log_tau:+.2f}: {found.frames} frames from left to right, "
        f"{found.slit} pixels of the slit from bottom to top. Colors span 98 % of the values."
    )
    return Thumbnails(
        caption, [_thumbnail(look, plane) for look, plane in zip(_LOOKS, found.each, strict=True)]
    )


def planes(folder: Path, inversion_id: str, progress: Callable[[int, int], None]) -> Planes:
    """Return the planes that are drawn. Raise Unfit if the files have none, and L2invError as drawn() does."""
    import numpy as np

    issued = Issued(inversion_id, "", "", "", ())
    with opened(folder, issued, lambda count: None) as look, np.errstate(all="ignore"):
        return _of_frames(look, progress) if named(look) else _of_science(look)


def _step(length: int) -> int:
    return ceil(length / MOST_PIXELS)


def _nearest(means: "NDArray[np.float64]") -> int:
    """Return the depth nearest to LOG_TAU. Raise Unfit if no depth has a number."""
    import numpy as np

    if not np.isfinite(means).any():
        raise Unfit("optical_depth", "no number", "numbers")
    return int(np.nanargmin(np.abs(means - LOG_TAU)))


def _medians(rows: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Return the median of the finite values of each column, NaN for a column without one."""
    import numpy as np

    columns = [column[np.isfinite(column)] for column in rows.T]
    return np.array([np.median(column) if len(column) else np.nan for column in columns])


def _of_science(folder: Folder) -> Planes:
    import numpy as np

    with reading(folder, QUANTITIES_FILE) as (file, size_bytes):
        hdu = fitsfile.read_hdus(file, size_bytes)[0]
        lengths_fit = len(hdu.shape) == 4 and all(0 < length <= MOST_LENGTH for length in hdu.shape)
        if not lengths_fit or hdu.shape[0] != len(QUANTITIES) or hdu.bitpix != -32:
            raise Unfit("shape", str(hdu.shape), "(11, depth, frames, slit) of float32", 0)
        _, depths, frames, slit = hdu.shape

        def row(quantity: int, depth: int, frame: int) -> "Plane":
            at = hdu.data_at + 4 * slit * (frame + frames * (depth + depths * quantity))
            content = files.read_at(file, at, 4 * slit)
            return np.frombuffer(content, ">f4")[:: _step(slit)].astype(np.float32)

        middle = np.stack([row(0, depth, frames // 2) for depth in range(depths)], axis=-1)
        means = _medians(middle.astype(np.float64))
        depth = _nearest(means)
        each = [
            np.stack([row(quantity, depth, frame) for frame in range(0, frames, _step(frames))], axis=-1)
            * np.float32(factor)
            for quantity, factor in enumerate(_FACTORS)
        ]
    for angle in (INCLINATION, AZIMUTH):
        each[angle] = _turned(each[angle])
    return Planes(_with_signed_field(each), QUANTITIES_FILE, float(means[depth]), frames, slit)


def _of_frames(folder: Folder, progress: Callable[[int, int], None]) -> Planes:
    """Return the planes of the generated Level 2; a frame that does not fit is left blank."""
    import numpy as np

    names = named(folder)
    step = _step(len(names))
    columns: list[list[Plane] | None] = []
    depth, slit, log_tau, why = -1, 0, 0.0, None
    for number, name in enumerate(names[::step], 1):
        try:
            with reading(folder, name) as (file, size_bytes):
                hdus = fitsfile.read_hdus(file, size_bytes)[1 : len(QUANTITIES) + 1]
                shapes = {hdu.shape for hdu in hdus}
                fits = len(hdus) == len(QUANTITIES) and len(shapes) == 1 and _is_frame(hdus[0])
                if not fits or (slit and hdus[0].shape[1] != slit):
                    raise Unfit(
                        "shape", ", ".join(map(str, sorted(shapes))), "(1, slit, depth) of 11 quantities"
                    )
                if depth < 0:
                    means = _medians(next(_rows(file, hdus[0])).astype(np.float64))
                    depth, slit = _nearest(means), hdus[0].shape[1]
                    log_tau = float(means[depth])
                if depth >= hdus[0].shape[2]:
                    raise Unfit("shape", str(hdus[0].shape), f"more than {depth} depths")
                read = [
                    np.concatenate([np.array(rows[:, depth]) for rows in _rows(file, hdu)]) for hdu in hdus
                ]
                columns.append([one[:: _step(slit)].astype(np.float32) for one in read])
        except Unfit as unfit:
            why = why or unfit
            columns.append(None)
        progress(number, len(names[::step]))
    if depth < 0:
        raise why or Unfit("frames", "none", "one at least")
    blank = np.full(len(range(0, slit, _step(slit))), np.nan, np.float32)
    each = [
        np.stack([column[quantity] if column else blank for column in columns], axis=-1)
        for quantity in range(len(QUANTITIES))
    ]
    return Planes(_with_signed_field(each), "The frames of Level 2", log_tau, len(names), slit)


def _is_frame(hdu: Hdu) -> bool:
    shape = hdu.shape
    return len(shape) == 3 and shape[0] == 1 and all(0 < n <= MOST_LENGTH for n in shape) and hdu.bitpix < 0


def _rows(file: Any, hdu: Hdu) -> "Iterator[NDArray[Any]]":
    """Yield an HDU's values in pieces of (some of the slit, depth); each is overwritten by the next."""
    depths = hdu.shape[2]
    for piece in fitsfile.pieces(file, hdu, lambda count: None, depths):
        yield piece.reshape(-1, depths)


def _turned(angles: "Plane") -> "Plane":
    """Return angles in 0 to 360 degrees, infinite ones as NaN."""
    import numpy as np

    return np.mod(np.where(np.isfinite(angles), angles, np.nan), 360).astype(np.float32)


def _with_signed_field(each: "list[Plane]") -> "list[Plane]":
    import numpy as np

    angles = np.radians(_turned(each[INCLINATION]))
    return [*each, (each[FIELD] * np.cos(angles)).astype(np.float32)]


def _span(look: _Look, values: "NDArray[np.float64]") -> tuple[float, float]:
    """Return the values at both ends of the color bar: outliers do not stretch it, and zero is in the middle of signs."""
    import numpy as np

    if look.kind == "full":
        return 0.0, 360.0
    low, high = (float(one) for one in np.percentile(values, (1, 99)))
    if look.kind == "signed":
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    if high - low <= 1e-6 * max(abs(low), abs(high), 1e-30):  # one value alone
        spare = abs(high) * 0.01 or 1.0
        return low - spare, high + spare
    return low, high


def _thumbnail(look: _Look, plane: "Plane") -> Thumbnail:
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    shown = np.ma.masked_invalid(plane.astype(np.float64))
    values = shown.compressed()
    figure = Figure(figsize=(3.2, 2.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(look.title, fontsize=9)
    axes.tick_params(labelsize=6)
    axes.set_facecolor("0.85")
    if len(values):
        low, high = _span(look, values)
        image = axes.imshow(
            shown,
            origin="lower",
            aspect="auto",
            cmap=look.colors,
            vmin=low,
            vmax=high,
            interpolation="nearest",
        )
        ticks = ScalarFormatter()
        ticks.set_powerlimits((-2, 5))
        extend = "neither" if look.kind == "full" else "both"
        bar = figure.colorbar(image, ax=axes, extend=extend, format=ticks)
        bar.ax.tick_params(labelsize=6)
        bar.ax.yaxis.get_offset_text().set_fontsize(6)
        bar.set_label(look.unit or "no unit", fontsize=7)
        words = f"median {np.median(values):.4g}, color bar from {low:.4g} to {high:.4g} {look.unit}".rstrip()
    else:
        axes.text(0.5, 0.5, "no numbers", ha="center", transform=axes.transAxes, fontsize=8)
        words = "no numbers"
    axes.set_xticks([])
    axes.set_yticks([])
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return Thumbnail(look.title, content.getvalue(), words)
