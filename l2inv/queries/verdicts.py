"""Verdicts: one OP's explained, near misses, versions of the criteria, warnings; and how long to wait for an OP to be
complete. Reads only."""

from collections.abc import Sequence
from typing import Any

import msgspec

from l2inv.config.settings import Qualification
from l2inv.database.connection import Connection, Row
from l2inv.documents import Json
from l2inv.domain import criteria
from l2inv.domain.criteria import comparison, deciding, margin, narrow_bands
from l2inv.domain.drift import CLOCKS_DIFFER
from l2inv.errors import Refused

QUIET_DAYS = (1, 3, 7, 14, 30, 60, 90, 180)


def explain(connection: Connection, op_id: str, rules: Qualification) -> Json:
    """Return an OP's newest verdict with each criterion's comparison, unit and margin, and whether it was overruled since.

    `warnings` are of the present datasets, by the present rules. If the OP was never judged, `invertible` is null and
    there are no instrument programs.
    """
    row = connection.execute(
        """
        select s.op_id, s.state, s.criteria_version, v.recorded_at as judged_at, v.detail -> 'verdict' as verdict,
               case when coalesce(s.datasets_seq > s.verdict_seq, false) then exists (
                   select from l2inv.event c where c.op_id = s.op_id and c.seq = s.datasets_seq and c.kind <> 'reopened')
               else false end as inputs_changed,
               o.detail - 'verdict' as overruled_by
        from l2inv.op_state s
        left join l2inv.event v on v.op_id = s.op_id and v.seq = s.verdict_seq
        left join l2inv.event o on o.op_id = s.op_id and o.seq = s.overruled_seq
        where s.op_id = %s
        """,
        [op_id],
    ).fetchone()
    assert row is not None
    verdict = row.pop("verdict") or {"invertible": None, "undetermined": None, "instrument_programs": []}
    for program in verdict["instrument_programs"]:
        for criterion in program["criteria"]:
            criterion["comparison"], criterion["unit"] = comparison(criterion["name"])
            criterion["margin"] = margin(criterion)
    return row | verdict | {"warnings": warnings(connection, [op_id], rules)[op_id]}


def warnings(connection: Connection, op_ids: Sequence[str], rules: Qualification) -> dict[str, list[Json]]:
    """Return warnings about each OP's present datasets of the qualifying instruments.

    `narrow`: a dataset extends little to one side of a band's center. `future_create_date`: a dataset's createDate was
    in the future when it was first seen, so it counts as arrived then. No verdict depends on either.
    """
    found: dict[str, list[Json]] = {op_id: [] for op_id in op_ids}
    rows = connection.execute(
        """
        select d.op_id, d.dataset_id, d.instrument, d.instrument_program_id, d.wavelength_min_nm, d.wavelength_max_nm,
               d.create_date, f.recorded_at as first_seen
        from l2inv.dataset d join l2inv.dataset_version f on f.dataset_id = d.dataset_id and f.version = 1
        where d.op_id = any(%s) and d.instrument = any(%s) and not d.withdrawn order by d.op_id, d.dataset_id
        """,
        [list(op_ids), rules.instruments],
    )
    for row in rows:
        of_op, where = found[row["op_id"]], {n: row[n] for n in ("dataset_id", "instrument_program_id")}
        narrow = narrow_bands(row["instrument"], row["wavelength_min_nm"], row["wavelength_max_nm"], rules)
        of_op += [{"warning": "narrow", **where, **band} for band in narrow]
        if row["create_date"] > row["first_seen"] + CLOCKS_DIFFER:
            times = {name: row[name] for name in ("create_date", "first_seen")}
            of_op.append({"warning": "future_create_date", **where, **times})
    return found


def near_misses(connection: Connection) -> list[Json]:
    """Return the criteria that are the only one an instrument program fails, the most frequent first, each with its OPs,
    the nearest first: with the worst of their datasets, and the nearest of several such programs.

    An OP whose two programs fail by different criteria is listed under both.
    """
    rows = connection.execute(
        """
        select s.op_id, v.detail -> 'verdict' as verdict
        from l2inv.op_state s join l2inv.event v on v.op_id = s.op_id and v.seq = s.verdict_seq
        where s.state = 'not_invertible' and s.reasons -> 'alone' <> '{}' order by s.op_id
        """
    )
    found: dict[str, list[Json]] = {}
    for row in rows:
        for name, miss in sorted(criteria.near_misses(row["verdict"]).items()):
            op = {"op_id": row["op_id"], **miss}
            if miss["margin"] is not None and name.startswith("band "):
                op["missing_nm"] = -miss["margin"]
            found.setdefault(name, []).append(op)
    by_count = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        {"name": name, "ops": sorted(ops, key=lambda op: -(op["margin"] or 0.0))} for name, ops in by_count
    ]


def versions(connection: Connection) -> list[Row]:
    """Return the versions of the criteria in order of first use: rules, first use, number of verdicts, and number of OPs
    whose newest verdict is by it."""
    return connection.execute(
        """
        with judged as (
            select detail ->> 'criteria_version' as criteria_version, count(*) as verdicts
            from l2inv.event where kind = 'judged' group by 1
        ), newest as (
            select criteria_version, count(*) as ops from l2inv.op_state group by 1
        )
        select criteria_version, first_used_at, coalesce(verdicts, 0) as verdicts, coalesce(ops, 0) as ops, rules
        from l2inv.criteria left join judged using (criteria_version) left join newest using (criteria_version)
        order by first_used_at, criteria_version
        """
    ).fetchall()


def version(connection: Connection, prefix: str) -> Json:
    """Return the version with that prefix and its rules, with every key that exists today.

    Raise Refused if no version or several have it.
    """
    found = connection.execute(
        "select criteria_version, rules from l2inv.criteria where starts_with(criteria_version, %s) order by 1",
        [prefix],
    ).fetchall()
    if not found:
        raise Refused(f"criteria {prefix!r} are unknown: nothing was judged by them", "see: l2inv criteria")
    if len(found) > 1:
        fitting = ", ".join(row["criteria_version"] for row in found)
        raise Refused(f"{prefix!r} matches several criteria: {fitting}", "type more of the version")
    rules = msgspec.convert(found[0]["rules"], Qualification)
    return {"criteria_version": found[0]["criteria_version"], "rules": deciding(rules)}


def differences(old: Any, new: Any, path: str = "") -> list[Json]:
    """Return the differences between two rule sets, each with its dotted path; null where one of them lacks it.

    Bands and instruments are compared by name: their order makes no difference.
    """
    old, new = _unordered(old), _unordered(new)
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [{"path": path, "old": old, "new": new}]
    names = sorted(old.keys() | new.keys())
    return [
        found
        for name in names
        for found in differences(old.get(name), new.get(name), f"{path}.{name}" if path else name)
    ]


def _unordered(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    if value and isinstance(value[0], str):
        return sorted(set(value))
    return {one.get("name") or one["instrument"]: one for one in value}


def completeness(connection: Connection, instruments: list[str], quiet_days: float) -> Json:
    """Return the fraction of OPs without a dataset that arrived after N quiet days, for several N and `quiet_days`: over all
    instruments, over the qualifying ones, and for each. An OP counts if it has a dataset of them.

    Arrivals are the createDates of the datasets' first versions, withdrawn ones included, or when l2inv first saw them
    if the createDate is later. An OP is late at N if two consecutive arrivals are more than N days apart.
    """
    rows = connection.execute(
        """
        with arrival as (
            select op_id, record ->> 'instrumentName' as instrument,
                   least((record ->> 'createDate')::timestamptz, recorded_at) as arrived_at
            from l2inv.dataset_version where version = 1
        ), pause as (
            select place, name, op_id,
                   arrived_at - lag(arrived_at) over (partition by place, name, op_id order by arrived_at) as pause
            from arrival, lateral (values
                (1, 'all instruments', true), (2, 'qualifying instruments', instrument = any(%s)),
                (3, instrument, instrument is not null)
            ) as counted (place, name, counts)
            where counts
        ), longest as (
            select place, name, op_id, coalesce(extract(epoch from max(pause)) / 86400, 0) as days
            from pause group by place, name, op_id
        )
        select place, name, quiet_days, count(*) as ops, count(*) filter (where days > quiet_days) as late
        from longest, unnest(%s::float8[]) quiet_days
        group by place, name, quiet_days order by place, name, quiet_days
        """,
        [instruments, sorted({*map(float, QUIET_DAYS), quiet_days})],
    ).fetchall()
    groups: dict[tuple[int, str], Json] = {}
    for row in rows:
        empty = {"name": row["name"], "ops": row["ops"], "shares": []}
        fraction = round(1 - row["late"] / row["ops"], 4)
        groups.setdefault((row["place"], row["name"]), empty)["shares"].append(
            {"quiet_days": row["quiet_days"], "share": fraction, "late": row["late"]}
        )
    found = list(groups.values())
    return {"ops": found[0]["ops"] if found else 0, "instruments": found}
