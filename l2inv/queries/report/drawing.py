"""Computes what the report shows from what was read: numbers, phrases and coordinates. Pure.

Text from outside is shortened but not escaped: the template escapes it.
"""

import re
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import groupby
from math import isfinite
from operator import itemgetter
from statistics import median
from typing import Any

from l2inv import wording
from l2inv.config.settings import Qualification, Settings
from l2inv.domain.criteria import bands_within, corners, narrow_bands
from l2inv.domain.measures import FAIR_CM, GOOD_CM
from l2inv.domain.solar import apparent_radius_arcsec
from l2inv.domain.states import STATES, State
from l2inv.wording import day, margin, measured, paragraphs, required

Row = dict[str, Any]

STEPS: tuple[tuple[State, str], ...] = (
    ("invertible", "one program meets every criterion"),
    ("preprocessed", "prepared for science"),
    ("working", "claimed by somebody"),
    ("inverted", "science is done"),
    ("published", "in the metadata store"),
)
AGES_DAYS = (7, 28, 91, 365)  # the limits between the classes of ages
AGE_CLASSES = ("under a week", "1 to 4 weeks", "1 to 3 months", "3 to 12 months", "over a year")
CRITERIA = {
    "health": "fraction of good frames",
    "gos": "fraction of frames with GOS open",
    "ao": "fraction of frames with AO locked",
    "stokes": "all Stokes parameters",
    "on_disk": "field of view within the limb, arcsec",
}
MONTHS = 36
WIDEST_CM = 20.0  # of the Fried parameter: the end of its scale
EDGE_ARCSEC = 1500.0  # of the picture of the disk
BOXES = 6  # of one OP in it
LONGEST_URL = 500
LONGEST_DESCRIPTION = 5000


def short(text: str, most: int = 60) -> str:
    """Return a text, cut to at most that many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def page(found: Row, settings: Settings, now: datetime) -> Row:
    """Return all that the page shows, from what snapshot.read() returned."""
    standing = found["standing"]
    states: Counter[str] = Counter()
    for row in standing:
        states[row["state"]] += row["ops"]
    rules = settings.qualification
    numbers = {op["op_id"]: number for number, op in enumerate(found["listed"], 1)}
    lines = [line(op, number, rules, now) for number, op in enumerate(found["listed"], 1)]
    linked = {"overdue": ("owner",), "held": ("assignee",), "failed": ("stage", "cause")}
    return {
        "now": now,
        "ops": states.total(),
        "states": {state: states[state] for state in STATES},
        "funnel": funnel(standing),
        "ages": ages(standing, now),
        "age_classes": AGE_CLASSES,
        "overdue_in_all": sum(row["overdue"] for row in standing),
        "holders": [
            holder | {"name": short(holder["assignee"] or "nobody", 60)} for holder in found["holders"]
        ],
        **{name: [_linked(row, numbers, words) for row in found[name]] for name, words in linked.items()},
        "months": [
            months(found["arrived"], now) | {"what": "arrived"},
            months(found["published"], now) | {"what": "published"},
        ],
        "held_in_all": found["holders"][0]["in_all"] if found["holders"] else 0,
        "verdicts": found["verdicts"],
        "against": against(found["against"], found["verdicts"]["ops"], numbers),
        "disk": disk(found["listed"], now),
        "lines": lines,
        "experiments": [
            {
                "name": short(row["experiment_id"] or "without an id"),
                "paragraphs": paragraphs(short(row["description"], LONGEST_DESCRIPTION)),
            }
            for row in found["experiments"]
        ],
        "shown": {state: sum(one["state"] == state for one in lines) for state in STATES},
        "left_out": states.total() - len(lines),
        "instruments": ", ".join(short(name, 20) for name in rules.instruments),
    }


def _linked(row: Row, numbers: dict[str, int], words: Iterable[str] = ()) -> Row:
    """Return a row with the number of its OP's line, None if it has none, and these texts shortened."""
    return (
        row | {"number": numbers.get(row["op_id"])} | {name: short(row[name] or "-", 200) for name in words}
    )


def percent(part: float, whole: float) -> float:
    """Return a fraction in percent; 0 if the whole is 0."""
    return round(100 * part / whole, 2) if whole else 0.0


def funnel(standing: list[Row]) -> list[Row]:
    """Return the steps from discovered to published: how many OPs reached each, and how many are in it now.

    An OP in error counts as having reached the state that it was in before.
    """
    order: list[str] = ["discovered", "not_invertible", *(state for state, _ in STEPS)]
    here: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    for row in standing:
        is_error = row["state"] == "error"
        state = row["state_before_error"] or "discovered" if is_error else row["state"]
        (errors if is_error else here)[state] += row["ops"]

    def step(name: str, words: str, first: str, state: str) -> Row:
        reached = sum((here + errors)[state] for state in order[order.index(first) :])
        return {
            "name": name,
            "words": words,
            "reached": reached,
            "here": here[state],
            "error": errors[state],
            "state": state,
        }

    steps = [
        step("discovered", "all that were found", "discovered", "discovered"),
        step("judged", "complete and judged", "not_invertible", "not_invertible"),
        *(step(state, words, state, state) for state, words in STEPS),
    ]
    return [one | {"percent": percent(one["reached"], steps[0]["reached"])} for one in steps]


def ages(standing: list[Row], now: datetime) -> list[Row]:
    """Return for each state how many OPs are in it by age, and how many are overdue."""
    rows = []
    for state in STATES:
        own = [row for row in standing if row["state"] == state]
        ops = sum(row["ops"] for row in own)
        classes = [sum(row["ops"] for row in own if row["age"] == age) for age in range(len(AGE_CLASSES))]
        oldest = min((row["oldest"] for row in own), default=None)
        rows.append(
            {
                "state": state,
                "ops": ops,
                "classes": [{"ops": n, "heat": _heat(n, ops)} for n in classes],
                "oldest_days": None if oldest is None else max(0, (now - oldest).days),
                "overdue": sum(row["overdue"] for row in own),
                "on_hold": sum(row["on_hold"] for row in own),
            }
        )
    return rows


def _heat(part: int, whole: int) -> int:
    """Return how dark a cell is, 0 to 4."""
    return 0 if part == 0 else 1 + min(3, int(4 * part / whole))


def months(counts: dict[str, int], now: datetime) -> Row:
    """Return a bar for each of the MONTHS up to now, its height in percent of the highest, and the counts outside them."""
    last = now.year * 12 + now.month - 1
    names = [f"{number // 12:04}-{number % 12 + 1:02}" for number in range(last - MONTHS + 1, last + 1)]
    highest = max((counts.get(name, 0) for name in names), default=0)
    # Numbers are printed over the bars if they are short enough not to overlap.
    is_short = highest < 1000
    bars = [
        {
            "month": name,
            "ops": ops,
            "percent": percent(ops, highest),
            "is_numbered": ops == highest or is_short,
            "starts_year": name.endswith("-01"),
        }
        for name in names
        for ops in [counts.get(name, 0)]
    ]
    return {
        "bars": bars,
        "highest": highest,
        "in_all": sum(counts.values()),
        "earlier": sum(ops for name, ops in counts.items() if name < names[0]),
        "later": sum(ops for name, ops in counts.items() if name > names[-1]),
    }


def against(rows: list[Row], ops: int, numbers: dict[str, int]) -> list[Row]:
    """Return each criterion with its counts, also in percent of `ops`, and its nearest misses with the measured values."""
    found: dict[str, Row] = {}
    for row in rows:
        name = row["name"]
        criterion = found.setdefault(
            name,
            {
                "name": short(name, 60),
                "words": CRITERIA.get(name, "observed" if name.startswith("band ") else ""),
                **{key: row[key] for key in ("fail", "unknown", "alone")},
                "fail_percent": percent(row["fail"], ops),
                "unknown_percent": percent(row["unknown"], ops),
                "nearest": [],
            },
        )
        if row["op_id"] is not None:
            miss = {"measured": short(measured(row), 80), "required": short(required(row), 80)}
            by = None if row["margin"] is None else margin(name, row["margin"])
            criterion["nearest"].append(_linked({"op_id": row["op_id"]}, numbers) | miss | {"margin": by})
    return list(found.values())


def disk(ops: list[Row], now: datetime) -> Row:
    """Return the Sun's radius in arcsec and the fields of view of the OPs: north is up, so y grows downward.

    An OP's boxes are rounded to the arcsec, and equal ones drawn once. Small ones come last, so that no large one
    covers them. OPs without a box, or without one in the picture, are counted.
    """
    shapes, nowhere, outside = [], 0, 0
    for number, op in enumerate(ops, 1):
        known = {box for d in op["datasets"] if (box := _box(d["bounding_box"])) is not None}
        drawn = sorted(box for box in known if max(map(abs, box)) <= EDGE_ARCSEC)[:BOXES]
        nowhere += not known
        outside += bool(known) and not drawn
        if drawn:
            path = "".join(f"M{x1} {-y2}h{x2 - x1}v{y2 - y1}h{x1 - x2}z" for x1, y1, x2, y2 in drawn)
            area = max((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in drawn)
            shapes.append(
                (-area, {"number": number, "op_id": op["op_id"], "state": op["state"], "path": path})
            )
    shapes.sort(key=itemgetter(0))
    return {
        "radius": round(apparent_radius_arcsec(now), 1),
        "smallest": round(apparent_radius_arcsec(datetime(now.year, 7, 4, tzinfo=UTC)), 1),
        "largest": round(apparent_radius_arcsec(datetime(now.year, 1, 4, tzinfo=UTC)), 1),
        "shapes": [shape for _, shape in shapes],
        "nowhere": nowhere,
        "outside": outside,
    }


def _box(text: str | None) -> tuple[int, int, int, int] | None:
    """Return a bounding box as left, lower, right and upper edge, to the arcsec."""
    found = corners(text)
    if found is None:
        return None
    x1, y1, x2, y2 = map(round, found)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def line(op: Row, number: int, rules: Qualification, now: datetime) -> Row:
    """Return one OP's line. Its bands are of the qualifying instruments' datasets, its seeing of all."""
    datasets = op["datasets"]
    inverted = [d for d in datasets if d["instrument"] in rules.instruments]
    present = sorted({d["instrument"] for d in datasets if d["instrument"]})
    why = _why(op)
    until = op["claimed_until"] or (op["due_at"] if op["state"] == "working" else None)
    return {
        "number": number,
        "op_id": op["op_id"],
        "state": op["state"],
        "why": why.removeprefix("not invertible, "),
        "overdue": _overdue(op, now),
        "on_hold": op["on_hold"],
        "inputs_changed": op["inputs_changed"],
        "observed": day(min((d["start_time"] for d in datasets if d["start_time"]), default=None)),
        "arrived": day(op["arrived"]),
        "since": day(op["since"]),
        "ao": percent_of([d["ao_fraction"] for d in inverted or datasets]),
        "minutes": wording.number(_minutes(inverted or datasets)),
        "r0": seeing([d["fried_parameter"] for d in datasets if d["fried_parameter"]]),
        "bands": _bands(inverted, rules),
        "instruments": short(", ".join(present), 60),
        "movie": _movie(inverted + datasets),
        "priority": op["priority"],
        "holder": short(op["assignee"] or "", 60),
        "until": day(until) if until else None,
        **history(op, why, now),
    }


def percent_of(fractions: Iterable[float | None]) -> str:
    """Return the least fraction of frames with the adaptive optics locked, in percent, as in `next`."""
    return wording.percent(min((min(one, 1.0) for one in fractions if one is not None), default=None))


def _minutes(datasets: list[Row]) -> float | None:
    """Return an OP's duration in minutes, from the first start to the last end, as in `next`."""
    starts = [d["start_time"] for d in datasets if d["start_time"]]
    ends = [d["end_time"] for d in datasets if d["end_time"]]
    return max((max(ends) - min(starts)).total_seconds(), 0.0) / 60 if starts and ends else None


def _why(op: Row) -> str:
    """Return why an OP is not invertible or in error: its newest verdict or failure; else nothing."""
    kinds = {"not_invertible": ("judged", "overruled"), "error": ("failed",)}.get(op["state"], ())
    return next((str(event["what"]) for event in reversed(op["events"]) if event["kind"] in kinds), "")


def _overdue(op: Row, now: datetime) -> str | None:
    """Return how long an OP is overdue and its owner; None if it is not."""
    if op["due_at"] is None or op["due_at"] >= now:
        return None
    length = now - op["due_at"]
    words = f"{length.days} d" if length >= timedelta(days=1) else f"{length.seconds // 3600} h"
    return f"overdue {words}, {short(op['owner'] or 'nobody', 60)}"


def _bands(datasets: list[Row], rules: Qualification) -> list[str]:
    """Return the names of the bands observed, narrow ones marked, and the mean wavelengths of other observations."""
    found: set[str] = set()
    narrow: set[str] = set()
    for d in datasets:
        low, high = d["wavelength_min_nm"], d["wavelength_max_nm"]
        if low is not None and high is not None:
            named = bands_within(d["instrument"], low, high, rules)
            found.update(named or [f"{(low + high) / 2:.4g} nm"])
            narrow.update(band["band"] for band in narrow_bands(d["instrument"], low, high, rules))
    return sorted(short(name, 40) + (" (narrow)" if name in narrow else "") for name in found)[:8]


_URL = re.compile(r"https?://[!-~]+", re.IGNORECASE)


def _movie(datasets: list[Row]) -> Row | None:
    """Return the first browse movie. Only a web address becomes a link; others have no `url`."""
    for d in datasets:
        if url := d["movie_url"]:
            is_link = len(url) <= LONGEST_URL and _URL.fullmatch(url) is not None
            return {"url": url if is_link else None, "words": short(d["dataset_id"] if is_link else url, 40)}
    return None


def seeing(distributions: Iterable[Row]) -> Row | None:
    """Return the Fried parameter in cm from the datasets' five numbers in meters; None if no median is known.

    The extremes are over all datasets; the median and the quartiles are the medians of the datasets'. `box` is a path
    of the box plot, 80 wide for the whole scale and 12 high; None if a number is missing or they are not sorted.
    """
    known: dict[str, list[float]] = {}
    for distribution in distributions:
        for name, value_m in distribution.items():
            if isinstance(value_m, (int, float)) and isfinite(cm := value_m * 100):
                known.setdefault(name, []).append(cm)
    take = {"min": min, "p25": median, "med": median, "p75": median, "max": max}
    cms = [float(how(known[name])) for name, how in take.items() if name in known]  # type: ignore[operator]
    if "med" not in known:
        return None
    middle = median(known["med"])
    shown = round(middle, 1)  # the class must agree with the number beside it
    word = "good" if shown >= GOOD_CM else "fair" if shown >= FAIR_CM else "poor"
    is_whole = len(cms) == len(take) and cms == sorted(cms)
    return {
        "median": f"{shown:.1f}" if abs(shown) < 1000 else f"{shown:.1e}",
        "word": word,
        "cm": [f"{cm:.3g}" for cm in cms] if is_whole else None,
        "box": _box_plot(cms) if is_whole else None,
    }


def _box_plot(cms: list[float]) -> str:
    """Return the path of a box plot: a box between the quartiles, a double line at the median, whiskers to the extremes."""
    low, q1, middle, q3, high = (round(80 * min(1.0, max(0.0, cm / WIDEST_CM))) for cm in cms)
    return f"M{low} 6H{q1}V2H{q3}v8H{q1}V6M{q3} 6H{high}M{middle} 1v10m1-10v10"


def history(op: Row, shown: str, now: datetime) -> Row:
    """Return an OP's events as phrases, and its states as segments in percent of the time since the first event.

    States too short to be seen are not in `segments`. Events that were not read are counted in `not_shown`. `shown`
    is printed elsewhere in the line and not repeated.
    """
    events = op["events"]
    changes = [(event["recorded_at"], event["state"]) for event in events if event["state"]]
    start = changes[0][0] if changes else now
    length = max((now - start).total_seconds(), 1.0)
    edges = [min(100, round(100 * max(0.0, (at - start).total_seconds()) / length)) for at, _ in changes]
    segments = [
        {"state": state, "left": left, "width": right - left}
        for (_, state), left, right in zip(changes, edges, [*edges[1:], 100], strict=True)
        if right > left
    ]
    return {
        "segments": segments,
        "events_in_all": op["events_in_all"],
        "not_shown": op["events_in_all"] - len(events),
        "days": [
            {"day": today, "events": [_event(event, shown) for event in own]}
            for today, own in groupby(events, key=lambda event: day(event["recorded_at"]))
        ],
    }


def _event(event: Row, shown: str) -> str:
    """Return an event as a phrase, without what is `shown` beside the OP's id already."""
    kind_and_actor = f"{event['kind'].replace('_', ' ')}, {short(event['actor'], 40)}"
    is_new = event["what"] and event["what"] != shown
    return f"{kind_and_actor}: {event['what']}" if is_new else kind_and_actor
