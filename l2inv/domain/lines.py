"""Spectral lines by the names that the store uses, those of the package dkist-spectral-lines 3.0."""

import re
from collections.abc import Iterable

Range = tuple[float | None, float | None]  # of a dataset, in nm

NEAR_NM = 0.5  # a dataset's range may be off by so much: many begin at 630.239 and hold the line at 630.15

# Name -> wavelength in air, in nm.
LINES: dict[str, float] = {
    f"{species} ({nm} nm)": nm
    for species, nm in (
        ("Ca II K", 393.37), ("Ca II H", 396.85), ("H epsilon", 397.0), ("Fe I", 404.58), ("H delta", 410.17),
        ("Ca I", 422.67), ("H gamma", 434.05), ("Ti I", 453.6), ("Ba II", 455.4), ("Sr I", 460.73), ("H beta", 486.13),
        ("Mg I b1", 517.27), ("Mg I b2", 518.36), ("Fe I", 525.04), ("Fe XIV", 530.3), ("Mn I", 553.78),
        ("Fe I", 557.6), ("He I", 587.59), ("He I D3", 587.6), ("Na I D2", 589.0), ("Na I D1", 589.59),
        ("Fe I", 617.33), ("Fe I", 630.15), ("Fe I", 630.25), ("H alpha", 656.28), ("Ni I", 676.78), ("Fe I", 709.0),
        ("Ca I", 714.82), ("Fe I", 751.15), ("K I", 769.9), ("Fe XI", 789.2), ("Na I", 818.33), ("Na I", 819.48),
        ("Ca II", 849.81), ("Ca II", 854.21), ("Ca II", 866.22), ("Mn I", 874.1), ("Fe XIII", 1074.7),
        ("Fe XIII", 1079.8), ("He I", 1083.0), ("Si X", 1430.0), ("Fe I", 1565.0), ("Si IX", 3934.0),
    )
}  # fmt: skip

# The line presumed for a dataset whose spectralLines are null: the first of these near its range.
PRESUMED = (
    ("Fe I (630.15 nm)", 630.15012),
    ("Ca II (854.21 nm)", 854.2091),
    ("Na I D2 (589.0 nm)", 588.95095),
)


def presumed(range_nm: Range) -> list[str]:
    """Return the line presumed for a dataset without spectralLines, or none."""
    return [name for name, nm in PRESUMED if _is_near(nm, range_nm)][:1]


def mistakes(named: Iterable[str], observed: Iterable[str], ranges_nm: Iterable[Range]) -> list[str]:
    """Return what is wrong with the lines named as inverted.

    A line must have a name in the table or in a dataset used (`observed`), and be near the range of one of the datasets;
    an unknown range matches every line.
    """
    from difflib import get_close_matches

    observed, ranges = set(observed), list(ranges_nm)
    found = []
    for name in named:
        nm = LINES.get(name) or _written(name)
        if name not in LINES and name not in observed:
            near = get_close_matches(name, [*sorted(observed), *LINES], 1, 0.4)
            found.append(
                f"line {name!r} is unknown" + (f", the nearest known one is {near[0]!r}" if near else "")
            )
        elif nm is not None and not any(None in r or _is_near(nm, r) for r in ranges):
            shown = ", ".join(f"{low:g} to {high:g} nm" for low, high in ranges)
            found.append(f"line {name!r} is outside the range of the datasets used ({shown})")
    return found


def _written(name: str) -> float | None:
    found = re.search(r"\(([0-9]+(?:\.[0-9]+)?) nm\)$", name)
    return float(found[1]) if found else None


def _is_near(nm: float, range_nm: Range) -> bool:
    low, high = range_nm
    return low is not None and high is not None and low - NEAR_NM <= nm <= high + NEAR_NM
