"""What makes an OP invertible: the criteria, judged from its datasets alone.

A criterion whose input is missing or contradicts itself is unknown: neither passed nor failed. The rules are
explained to scientists in docs/Invertibility.md.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from math import hypot, isfinite
from typing import Any, Literal, NotRequired, TypedDict

import msgspec

from l2inv.config.settings import Band, Qualification
from l2inv.documents import Json
from l2inv.domain.inventory import Dataset
from l2inv.domain.solar import apparent_radius_arcsec

Result = Literal["pass", "fail", "unknown"]
Value = float | str | list[float] | list[list[float]] | None

# The fields that a verdict, or the newest arrival, depends on; the first says which OP's verdict.
INPUTS = {
    "observing_program_execution_id",
    "instrument_program_execution_id",
    "instrument_name",
    "create_date",
    "frame_count",
    "health",
    "gos_status",
    "ao_locked",
    "stokes_parameters",
    "start_time",
    "bounding_box",
    "wavelength_min",
    "wavelength_max",
}

# Settings that were added later: while one is null or empty, it has no effect, and the rules keep the version from before
# it existed, so that old verdicts can still be judged again by rules of their version.
ADDED = ("per_instrument",)


NAMELESS = "no instrument program id"  # what a band criterion measured of datasets that name no program


class Criterion(TypedDict):
    """One criterion's outcome, for one dataset or (`band NAME`) for a program's datasets together."""

    name: str
    result: Result
    dataset_id: str | None
    measured: Value
    required: Value
    optional: NotRequired[bool]  # true for a band that decides nothing, else left out


class InstrumentProgramVerdict(TypedDict):
    """The verdict on one instrument program (IP)."""

    instrument_program_id: str | None
    invertible: bool
    criteria: list[Criterion]


class NarrowBand(TypedDict):
    """A band of which a dataset's range contains the center, but less than `narrow_nm` below or above it."""

    band: str
    below_nm: float
    above_nm: float
    narrow_nm: float


class Verdict(TypedDict):
    """The verdict on an OP: plain data that survives a round trip through JSON unchanged."""

    invertible: bool
    undetermined: bool
    instrument_programs: list[InstrumentProgramVerdict]


def judge(datasets: Iterable[Dataset], rules: Qualification) -> Verdict:
    """Return the verdict on one OP from its datasets, one of each id, in any order.

    Datasets of other instruments are ignored. Rules of the same version return the same verdict. A program without an id
    is never invertible, since no inversion of it could be published: it is unknown which datasets belong together.
    Raise only ValueError for a naive start time, which inventory.read() never returns.
    """
    groups: dict[str | None, list[Dataset]] = {}
    for dataset in sorted(_qualifying(datasets, rules), key=lambda dataset: dataset.dataset_id):
        groups.setdefault(dataset.instrument_program_execution_id, []).append(dataset)
    programs: list[InstrumentProgramVerdict] = []
    undecided = False
    for program_id in sorted(groups, key=lambda program_id: (program_id is not None, program_id or "")):
        group = groups[program_id]
        own = rules_of(group[0].instrument_name, rules)  # an instrument program is one instrument's
        criteria = [criterion for dataset in group for criterion in _judge_dataset(dataset, own)]
        deciding = {criterion["result"] for criterion in criteria}
        ranges = [
            (dataset.dataset_id, _range_nm(dataset.wavelength_min, dataset.wavelength_max))
            for dataset in group
        ]
        for band in _sorted_bands(own.bands):
            criterion = _judge_band(
                band, None if program_id is None else ranges, whole=own.band_coverage == "full"
            )
            criteria.append(criterion)
            if band.required:
                deciding.add(criterion["result"])
            else:
                criterion["optional"] = True
        invertible = deciding == {"pass"} and program_id is not None
        programs.append({"instrument_program_id": program_id, "invertible": invertible, "criteria": criteria})
        undecided = undecided or not (invertible or "fail" in deciding)
    found = any(program["invertible"] for program in programs)
    return {"invertible": found, "undetermined": undecided and not found, "instrument_programs": programs}


def margin(criterion: Criterion) -> float | None:
    """Return by how much a criterion passes (positive) or fails (negative), in its unit.

    The unit is fractions of the frames; arcsec for `on_disk`, where 0 fails; nm for bands: by how much the range exceeds
    the requirement on the nearer side, or by how much the nearest range falls short. None if nothing was measured, and
    for `stokes`, which passes or not. The difference is computed from the decimal numbers that are printed.
    """
    measured, required = criterion["measured"], criterion["required"]
    if criterion["name"].startswith("band "):
        return _band_margin_nm(measured, required)
    if not isinstance(measured, (int, float)) or not isinstance(required, (int, float)):
        return None
    spare = Decimal(str(measured)) - Decimal(str(required))
    return float(-spare if criterion["name"] == "on_disk" else spare)


def _band_margin_nm(measured: Any, required: Any) -> float | None:
    wanted = required if isinstance(required, list) else [required, required]
    ranges = measured if isinstance(measured, list) else []
    if not _is_range(wanted):
        return None
    low, high = map(_exact, wanted)
    if _is_range(ranges):
        return float(min(low - _exact(ranges[0]), _exact(ranges[1]) - high))
    short = [
        max(_exact(min_nm) - low, Decimal()) + max(high - _exact(max_nm), Decimal())
        for min_nm, max_nm in filter(_is_range, ranges)
    ]
    return -float(min(short)) if short else None


def _is_range(found: Any) -> bool:
    """Return whether it is a pair of numbers: a recorded verdict may contain anything."""
    return (
        isinstance(found, list)
        and len(found) == 2
        and all(isinstance(nm, (int, float)) and not isinstance(nm, bool) for nm in found)
    )


@lru_cache(1024)  # the bands' own numbers come again with every dataset
def _exact(number: float) -> Decimal:
    """Return the number as a decimal: 630.8 - 630.3 is then exactly 0.5."""
    return Decimal(str(number))


class Reasons(TypedDict):
    """A summary of why a verdict's instrument programs are not invertible, kept in op_state."""

    programs: int
    undetermined: bool
    unmet: dict[str, str]  # criterion -> fail, or unknown if none fails it
    alone: dict[str, float | None]  # criterion that alone keeps a program from passing -> margin


def reasons(verdict: Verdict) -> Reasons:
    """Return a verdict's reasons, as the database's function of this name does."""
    unmet: dict[str, str] = {}
    for program in verdict["instrument_programs"]:
        for criterion in _unmet(program):
            if unmet.get(criterion["name"]) != "fail":
                unmet[criterion["name"]] = criterion["result"]
    return {
        "programs": len(verdict["instrument_programs"]),
        "undetermined": verdict["undetermined"],
        "unmet": unmet,
        "alone": {name: miss["margin"] for name, miss in near_misses(verdict).items()},
    }


class NearMiss(TypedDict):
    """What a criterion that alone keeps an instrument program from passing measured of the worst dataset."""

    instrument_program_id: str | None
    measured: Value
    required: Value
    margin: float | None


def near_misses(verdict: Verdict) -> dict[str, NearMiss]:
    """Return the criteria that alone keep an instrument program from passing, each with the nearest such program."""
    found: dict[str, NearMiss] = {}
    for program in verdict["instrument_programs"]:
        unmet = _unmet(program)
        if {criterion["result"] for criterion in unmet} != {"fail"} or len({c["name"] for c in unmet}) > 1:
            continue
        misses: list[NearMiss] = [
            {
                "instrument_program_id": program["instrument_program_id"],
                "measured": criterion["measured"],
                "required": criterion["required"],
                "margin": _shortfall(criterion),
            }
            for criterion in unmet
        ]
        worst = min(misses, key=lambda miss: (miss["margin"] or 0.0, miss["margin"] is None))
        nearest = found.setdefault(unmet[0]["name"], worst)
        if (worst["margin"] or 0.0) > (nearest["margin"] or 0.0):
            found[unmet[0]["name"]] = worst
    return found


def _unmet(program: InstrumentProgramVerdict) -> list[Criterion]:
    return [c for c in program["criteria"] if c["result"] != "pass" and not c.get("optional")]


def _shortfall(failed: Criterion) -> float | None:
    """Return a failed criterion's margin, which is negative in whichever direction it compares."""
    by = margin(failed)
    return None if by is None else 0.0 - min(1e300, abs(by))


def comparison(name: str) -> tuple[str, str | None]:
    """Return how a criterion's measured value must compare with the required one, and their unit."""
    if name.startswith("band "):
        return "contains", "nm"
    return {"stokes": ("contains", None), "on_disk": ("<", "arcsec")}.get(name, (">=", "fraction of frames"))


def deciding(rules: Qualification) -> Json:
    """Return the rules as plain data without what only warns: the bands' `narrow_nm`."""
    plain: Json = msgspec.to_builtins(rules)
    for own in (plain, *plain["per_instrument"]):
        for band in own.get("bands") or ():
            del band["narrow_nm"]
    return plain


def version(rules: Qualification) -> str:
    """Return the rules' short id, made from their content: the first 12 hexadecimal digits of its SHA-256.

    The order of keys, instruments and bands makes no difference, nor does writing 1 for 1.0, nor what only warns.
    """
    ordered = msgspec.structs.replace(
        rules,
        instruments=sorted(set(rules.instruments)),
        bands=_sorted_bands(rules.bands),
        per_instrument=[
            msgspec.structs.replace(own, bands=None if own.bands is None else _sorted_bands(own.bands))
            for own in sorted(rules.per_instrument, key=lambda own: own.instrument)
        ],
    )
    plain = deciding(msgspec.convert(msgspec.to_builtins(ordered), Qualification))
    for name in ADDED:
        if not plain[name]:
            del plain[name]
    return hashlib.sha256(msgspec.json.encode(plain, order="deterministic")).hexdigest()[:12]


def bands_within(instrument: str | None, min_nm: float, max_nm: float, rules: Qualification) -> list[str]:
    """Return the names of the bands that count as observed by an instrument's dataset of this wavelength range."""
    own = rules_of(instrument, rules)
    needed = {band.name: _needed_nm(band, own.band_coverage == "full") for band in own.bands}
    return [name for name, (low, high) in needed.items() if min_nm <= low and high <= max_nm]


def narrow_bands(
    instrument: str | None, min_nm: float | None, max_nm: float | None, rules: Qualification
) -> list[NarrowBand]:
    """Return the bands that an instrument's dataset of this range covers little on a side of the center.

    This only warns scientists; no verdict and no version depends on it.
    """
    known = _range_nm(min_nm, max_nm)
    if known is None:
        return []
    observed = [band for band in rules_of(instrument, rules).bands if known[0] <= band.center_nm <= known[1]]
    found: list[NarrowBand] = []
    low, high = map(_exact, known if observed else (0.0, 0.0))
    for band in _sorted_bands(observed):
        below, above = _exact(band.center_nm) - low, high - _exact(band.center_nm)
        if min(below, above) < _exact(band.narrow_nm):
            found.append(
                {
                    "band": band.name,
                    "below_nm": float(below),
                    "above_nm": float(above),
                    "narrow_nm": band.narrow_nm,
                }
            )
    return found


def newest_arrival(
    datasets: Iterable[Dataset], rules: Qualification, first_seen: Mapping[str, datetime] | None = None
) -> datetime | None:
    """Return when the newest of the qualifying instruments' datasets arrived; None without such a dataset.

    That is its createDate, but no later than when l2inv first saw it (`first_seen`, by its id): a createDate in the
    future would keep the OP waiting until then.
    """
    seen = first_seen or {}
    return max(
        (min(d.create_date, seen.get(d.dataset_id, d.create_date)) for d in _qualifying(datasets, rules)),
        default=None,
    )


def _qualifying(datasets: Iterable[Dataset], rules: Qualification) -> list[Dataset]:
    return [dataset for dataset in datasets if dataset.instrument_name in rules.instruments]


def rules_of(instrument: str | None, rules: Qualification) -> Qualification:
    """Return the rules for one instrument: the general ones, overridden by its own."""
    for own in rules.per_instrument:
        if own.instrument == instrument:
            named = {name: value for name, value in msgspec.structs.asdict(own).items() if value is not None}
            del named["instrument"]
            return msgspec.structs.replace(rules, **named)
    return rules


def _sorted_bands(bands: Iterable[Band]) -> list[Band]:
    return sorted(bands, key=msgspec.structs.astuple)


def _judge_dataset(dataset: Dataset, rules: Qualification) -> list[Criterion]:
    criteria = [
        _judge_fraction("health", dataset, _count(dataset.health, "good"), rules.min_good_health),
        _judge_fraction("gos", dataset, _count(dataset.gos_status, "open"), rules.min_open_gos),
        _judge_fraction("ao", dataset, (dataset.ao_locked, dataset.ao_locked), rules.min_ao_locked),
        _judge_stokes(dataset, rules.stokes),
    ]
    if rules.on_disk:
        criteria.append(_judge_on_disk(dataset))
    return criteria


def _count(counts: Mapping[str, int | None] | None, name: str) -> tuple[int | None, int | None]:
    """Return the frames in one condition, and in all. A null means no frames; only nulls mean that none were counted."""
    known = [count for count in (counts or {}).values() if count is not None]
    if counts is None or not known:
        return None, None
    return counts.get(name) or 0, sum(known)


def _judge_fraction(
    name: str, dataset: Dataset, count: tuple[int | None, int | None], required: float
) -> Criterion:
    (fitting, counted), frames = count, dataset.frame_count
    if not frames or fitting is None or counted is None:
        return _criterion(name, "unknown", dataset.dataset_id, None, required)
    if counted > frames:
        contradiction = f"{counted} counted in {frames} frames"
        return _criterion(name, "unknown", dataset.dataset_id, contradiction, required)
    # Rounded down, so that no fraction below the limit looks sufficient.
    measured = fitting * 10_000 // frames / 10_000
    # The quotient is rounded once, so it equals the setting if the fraction does; 0.07 * 100 is more than 7.
    if fitting / frames < required:
        return _criterion(name, "fail", dataset.dataset_id, measured, required)
    return _criterion(name, "pass", dataset.dataset_id, max(measured, required), required)


def _judge_stokes(dataset: Dataset, required: str) -> Criterion:
    """Judge the Stokes parameters: by default exactly I, Q, U and V in any order; if fewer are required, more are allowed."""
    measured = dataset.stokes_parameters
    if measured is None or not measured.strip():
        return _criterion("stokes", "unknown", dataset.dataset_id, None, required)
    letters = sorted(measured.strip())
    exact = set(required) <= set(letters) <= set("IQUV") and len(set(letters)) == len(letters)
    return _criterion("stokes", "pass" if exact else "fail", dataset.dataset_id, measured, required)


def _judge_on_disk(dataset: Dataset) -> Criterion:
    """Compare at 0.01 arcsec, as the store gives the corners: the numbers shown are those compared."""
    if dataset.start_time is None:
        return _criterion("on_disk", "unknown", dataset.dataset_id, None, None)
    required = round(apparent_radius_arcsec(dataset.start_time), 2)
    measured = _farthest_corner_arcsec(dataset.bounding_box)
    if measured is None:
        return _criterion("on_disk", "unknown", dataset.dataset_id, None, required)
    inside = measured < required
    return _criterion("on_disk", "pass" if inside else "fail", dataset.dataset_id, measured, required)


_NUMBER = r"\s*([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*"
_BOX = re.compile(rf"\s*\({_NUMBER},{_NUMBER}\)\s*,\s*\({_NUMBER},{_NUMBER}\)\s*", re.ASCII)


def corners(box: str | None) -> tuple[float, float, float, float] | None:
    """Return a bounding box as x and y of its two corners, in arcsec from Sun center; None if it is not valid."""
    match = _BOX.fullmatch(box or "")
    if match is None:
        return None
    x1, y1, x2, y2 = map(float, match.groups())
    return (x1, y1, x2, y2) if all(map(isfinite, (x1, y1, x2, y2))) else None


def _farthest_corner_arcsec(box: str | None) -> float | None:
    """Return the distance from Sun center of the farthest of the four corners, two of which are in the store."""
    found = corners(box)
    if found is None:
        return None
    x1, y1, x2, y2 = map(abs, found)
    distance = hypot(max(x1, x2), max(y1, y2))
    return round(distance, 2) if isfinite(distance) else None


def _range_nm(low: float | None, high: float | None) -> list[float] | None:
    if low is None or high is None or not (isfinite(low) and isfinite(high) and low <= high):
        return None
    return [low, high]


def _needed_nm(band: Band, whole: bool) -> tuple[float, float]:
    return (band.min_nm, band.max_nm) if whole else (band.center_nm, band.center_nm)


def _judge_band(band: Band, ranges: list[tuple[str, list[float] | None]] | None, whole: bool) -> Criterion:
    """Judge a band over the datasets of one instrument program; no ranges where its id is null."""
    name = f"band {band.name}"
    low, high = _needed_nm(band, whole)
    required: float | list[float] = [low, high] if whole else low
    if ranges is None:
        return _criterion(name, "unknown", None, NAMELESS, required)
    for dataset_id, known in ranges:
        if known is not None and known[0] <= low and high <= known[1]:
            return _criterion(name, "pass", dataset_id, known, required)
    known_ranges = [known for _, known in ranges if known is not None]
    if len(known_ranges) < len(ranges):
        return _criterion(name, "unknown", None, None, required)
    return _criterion(name, "fail", None, known_ranges, required)


def _criterion(name: str, result: Result, dataset_id: str | None, measured: Value, need: Value) -> Criterion:
    return {"name": name, "result": result, "dataset_id": dataset_id, "measured": measured, "required": need}
