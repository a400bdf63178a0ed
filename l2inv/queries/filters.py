"""Filters on OPs, and hints for values that no OP has. Reads only."""

import re
from typing import Any

import msgspec

from l2inv.config.settings import Qualification
from l2inv.database.connection import Connection
from l2inv.documents import Json
from l2inv.domain.lines import NEAR_NM, PRESUMED

# The lines that the datasets to be inverted observe; where a dataset names none, as in measures.observed_lines.
_UNNAMED = " ".join(
    f"when {nm} between d.wavelength_min_nm - {NEAR_NM} and d.wavelength_max_nm + {NEAR_NM} then '{name}'"
    for name, nm in PRESUMED
)
_MEAN_NM = "round(((d.wavelength_min_nm + d.wavelength_max_nm) / 2)::numeric, 1) || ' nm'"
_LINES = f"""
    l2inv.dataset d cross join jsonb_array_elements_text(
        case when jsonb_typeof(d.record -> 'spectralLines') = 'array' then d.record -> 'spectralLines'
             else jsonb_build_array(case {_UNNAMED} else {_MEAN_NM} end) end) line
    where not d.withdrawn and d.instrument = any(%(instruments)s) and line is not null
"""
MOST_KNOWN = 6  # values named in place of one that is like none of them
FILTERS = {
    "state": "o.state = %(state)s",
    "proposal": "o.proposal_id = %(proposal)s",
    "band": "exists (select from jsonb_array_elements_text(o.bands) band where strpos(lower(band), lower(%(band)s)) > 0)",
    "instrument": "exists (select from unnest(o.instruments) i where upper(i) = upper(%(instrument)s))",
    "line": f"exists (select from {_LINES} and d.op_id = o.op_id and translate(line, '()', '') ~* %(line)s)",
    "min_fried_parameter_m": "o.fried_parameter_med_m >= %(min_fried_parameter_m)s",
    "embargoed": "o.is_embargoed = %(embargoed)s",
}


class Wanted(msgspec.Struct, frozen=True):
    """A filter; null matches everything. A band matches by a part of its name, an instrument ignoring case.

    A spectral line is one that the datasets to be inverted observe, whether or not a rule names its band. It matches
    by its first words: "Na I" matches "Na I D1 (589.59 nm)", and "Ca I" does not match "Ca II".
    """

    proposal: str | None = None
    band: str | None = None
    instrument: str | None = None
    min_fried_parameter_m: float | None = None
    embargoed: bool | None = None
    line: str | None = None
    state: str | None = None


def conditions(wanted: Wanted, rules: Qualification) -> tuple[str, Json]:
    """Return the SQL condition on a row `o` of the view op, empty if there is none, and its values."""
    values = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
    condition = " and ".join(FILTERS[name] for name in values)
    if wanted.line is not None:
        values |= {"line": _pattern(wanted.line), "instruments": rules.instruments}
    return condition, values


def _pattern(line: str) -> str:
    """Return a regular expression that matches these words, in this order, anywhere in a line's name."""
    words = [re.sub(r"([^\w])", r"\\\1", word) for word in line.replace("(", " ").replace(")", " ").split()]
    return r"(^|\s)" + r"\s+".join(words) + (r"(?![[:alpha:]])" if words and words[-1].isalpha() else "")


def unmatched(connection: Connection, wanted: Wanted, rules: Qualification) -> list[str]:
    """Return a sentence for each value that no OP has, in whatever state, with the nearest known value."""
    problems = []
    if wanted.proposal is not None:
        known = _known(
            connection, "select distinct proposal_id from l2inv.dataset where proposal_id is not null"
        )
        if wanted.proposal not in known:
            problems.append(f"proposal {wanted.proposal!r} is unknown{_nearest(wanted.proposal, known)}")
    if wanted.instrument is not None:
        known = _known(
            connection, "select distinct instrument from l2inv.dataset where instrument is not null"
        )
        if wanted.instrument.upper() not in map(str.upper, known):
            problems.append(
                f"no dataset is of instrument {wanted.instrument!r}{_nearest(wanted.instrument.upper(), known)}"
            )
    lines = _known(connection, f"select distinct line from {_LINES}", {"instruments": rules.instruments})  # noqa: S608
    if wanted.line is not None and not _fitting(wanted.line, lines):
        problems.append(
            f"no dataset to be inverted observes line {wanted.line!r}{_nearest(wanted.line, lines)}"
        )
    if wanted.band is not None:
        own = [band for one in rules.per_instrument for band in one.bands or ()]
        names = sorted({band.name for band in (*rules.bands, *own)})
        if not any(wanted.band.lower() in name.lower() for name in names):
            observed = _fitting(wanted.band, lines)
            instead = (
                f"the datasets observe {observed[0]}; try --line"
                if observed
                else f"known: {', '.join(names)}"
            )
            problems.append(f"no rule names a band {wanted.band!r} ({instead})")
        elif _none(connection, Wanted(band=wanted.band), rules):
            problems.append(f"no OP observes band {wanted.band!r}")
    least_m = wanted.min_fried_parameter_m
    if least_m is not None and _none(connection, Wanted(min_fried_parameter_m=least_m), rules):
        problems.append(f"no OP has a Fried parameter of {least_m * 100:g} cm or more")
    if wanted.embargoed is not None and _none(connection, Wanted(embargoed=wanted.embargoed), rules):
        problems.append(f"no OP is {'under' if wanted.embargoed else 'free of'} embargo")
    return problems


def _none(connection: Connection, wanted: Wanted, rules: Qualification) -> bool:
    condition, values = conditions(wanted, rules)
    statement = f"select exists (select from l2inv.op o where {condition}) as any_fits"  # noqa: S608
    row = connection.execute(statement, values).fetchone()
    return row is not None and not row["any_fits"]


def _fitting(line: str, lines: list[str]) -> list[str]:
    pattern = re.compile(_pattern(line).replace("[[:alpha:]]", "[^\\W\\d_]"), re.IGNORECASE)
    return [name for name in lines if pattern.search(name.translate({40: None, 41: None}))]


def _known(connection: Connection, statement: str, values: Any = None) -> list[str]:
    return sorted(next(iter(row.values())) for row in connection.execute(statement, values))


def _nearest(value: str, known: list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(value, known, n=1, cutoff=0.4)
    if near or not known:
        return f"; the nearest known is {near[0]}" if near else ""
    return f"; known: {', '.join(known[:MOST_KNOWN])}" + (", …" if len(known) > MOST_KNOWN else "")
