"""Measures of an OP by which scientists choose: numbers from its present datasets, and what is odd about them. Pure.

The Fried parameter is of all its datasets, since they share the atmosphere; everything else is of the datasets to be
inverted: those of the qualifying instruments, or all if it has none of these.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import hypot, isfinite, sqrt
from typing import Any, Literal, get_args

import msgspec

from l2inv.config.settings import Qualification
from l2inv.domain.criteria import bands_within, corners, narrow_bands, rules_of
from l2inv.domain.inventory import Dataset, Distribution
from l2inv.domain.lines import presumed
from l2inv.domain.solar import apparent_radius_arcsec

GOOD_CM, FAIR_CM = 7.0, 5.0  # least Fried parameters of these classes
THIN_ARCSEC = 1.0  # a narrower field is not a map
R0Class = Literal["good", "fair", "poor", "unknown"]
R0_CLASSES: tuple[R0Class, ...] = get_args(R0Class)


class Measures(msgspec.Struct, frozen=True, kw_only=True):
    """The measures of an OP; null if unknown. Units are in the names."""

    fried_parameter_p25_m: float | None = None
    fried_parameter_med_m: float | None = None
    fried_parameter_p75_m: float | None = None
    r0_class: R0Class = "unknown"
    ao_fraction: float | None = None  # the least of its datasets
    minutes: float | None = None  # from the first start to the last end
    frame_count: int | None = None  # the most of its datasets
    lines: list[str] = []
    more_lines: list[str] = []  # those beyond the bands that the rules require
    mu: float | None = None  # cosine of the heliocentric angle of the field's center; null beyond the limb
    exposure_min_ms: float | None = None
    exposure_max_ms: float | None = None
    field_x_arcsec: float | None = None  # the smallest of its datasets
    field_y_arcsec: float | None = None
    odd: list[str] = []
    movie_urls: list[str] = []


def measure(datasets: Sequence[Dataset], rules: Qualification) -> Measures:
    """Return the measures of an OP from its present datasets."""
    chosen = [d for d in datasets if d.instrument_name in rules.instruments] or list(datasets)
    seeing = [d.fried_parameter for d in datasets if d.fried_parameter]
    r0_m = middle(seeing, "med")
    fractions = [
        min(d.ao_locked / d.frame_count, 1.0) for d in chosen if d.frame_count and d.ao_locked is not None
    ]
    starts = [d.start_time for d in chosen if d.start_time]
    ends = [d.end_time for d in chosen if d.end_time]
    exposures = [d.exposure_time for d in chosen if d.exposure_time is not None and isfinite(d.exposure_time)]
    boxes = [(d, found) for d in chosen if (found := corners(d.bounding_box))]
    fields = sorted(
        ((abs(x1 - x2), abs(y1 - y2)) for _, (x1, y1, x2, y2) in boxes), key=lambda xy: xy[0] * xy[1]
    )
    x, y = (round(side, 2) for side in fields[0]) if fields else (None, None)
    by_instrument = sorted({line for d in chosen for line in observed_lines(d)})
    required = sorted({line for d in chosen for line in _required_lines(d, rules)})
    return Measures(
        fried_parameter_p25_m=middle(seeing, "p25"),
        fried_parameter_med_m=r0_m,
        fried_parameter_p75_m=middle(seeing, "p75"),
        r0_class=r0_class(r0_m),
        ao_fraction=min(fractions, default=None),
        minutes=max((max(ends) - min(starts)).total_seconds(), 0.0) / 60 if starts and ends else None,
        frame_count=max((d.frame_count for d in chosen if d.frame_count is not None), default=None),
        lines=by_instrument,
        more_lines=[line for line in by_instrument if line not in required],
        mu=_mu(boxes),
        exposure_min_ms=min(exposures, default=None),
        exposure_max_ms=max(exposures, default=None),
        field_x_arcsec=x,
        field_y_arcsec=y,
        odd=_odd(chosen, rules, x, y),
        movie_urls=list(
            dict.fromkeys(d.browse_movie_url for d in (*chosen, *datasets) if d.browse_movie_url)
        ),
    )


def middle(seeing: Iterable[Distribution], name: str) -> float | None:
    """Return the median over datasets of one number of their distributions; None if it is unknown for all."""
    from statistics import median

    known = [value for one in seeing if (value := getattr(one, name)) is not None and isfinite(value)]
    return median(known) if known else None


def r0_class(fried_parameter_m: float | None) -> R0Class:
    """Return the class of a Fried parameter, from the number that is printed, in cm with one decimal."""
    if fried_parameter_m is None or not isfinite(fried_parameter_m):
        return "unknown"
    shown = round(fried_parameter_m * 100, 1)
    return "good" if shown >= GOOD_CM else "fair" if shown >= FAIR_CM else "poor"


def observed_lines(dataset: Dataset) -> list[str]:
    """Return the spectral lines that a dataset observes, as named in the store; if it names none, one presumed by its range."""
    if dataset.spectral_lines is not None:
        return dataset.spectral_lines
    low, high = dataset.wavelength_min, dataset.wavelength_max
    if low is None or high is None:
        return []
    return presumed((low, high)) or [f"{(low + high) / 2:.1f} nm"]


def _required_lines(dataset: Dataset, rules: Qualification) -> list[str]:
    """Return the lines of a dataset that covers a required band, which every OP has."""
    low, high = dataset.wavelength_min, dataset.wavelength_max
    if low is None or high is None:
        return []
    needed = {band.name for band in rules_of(dataset.instrument_name, rules).bands if band.required}
    return (
        observed_lines(dataset)
        if needed & set(bands_within(dataset.instrument_name, low, high, rules))
        else []
    )


def _mu(boxes: Sequence[tuple[Dataset, tuple[float, float, float, float]]]) -> float | None:
    for dataset, (x1, y1, x2, y2) in boxes:
        if dataset.start_time is not None:
            off_center = hypot((x1 + x2) / 2, (y1 + y2) / 2) / apparent_radius_arcsec(dataset.start_time)
            return round(sqrt(1 - off_center**2), 3) if off_center <= 1 else None
    return None


def _odd(datasets: Sequence[Dataset], rules: Qualification, x: float | None, y: float | None) -> list[str]:
    """Return what is odd about the datasets, each as a phrase."""
    narrow = {
        found["band"]
        for d in datasets
        for found in narrow_bands(d.instrument_name, d.wavelength_min, d.wavelength_max, rules)
    }
    odd = [f"{name} narrow" for name in sorted(narrow)]
    if x is not None and y is not None and min(x, y) < THIN_ARCSEC:
        odd.append(f'field {min(x, y):.1f}" {"wide" if x <= y else "high"}')
    if datasets and x is None:
        odd.append("field unknown")
    return odd


def plain(found: Measures) -> Mapping[str, Any]:
    """Return the measures as plain data."""
    return msgspec.structs.asdict(found)
