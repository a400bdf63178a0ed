"""What science is offered to invert next: which OPs, in which order, and why each stands where it does."""

from typing import Any

import msgspec

from l2inv import wording
from l2inv.database.connection import Connection
from l2inv.queries.observing_programs import COLUMNS

# By what OPs of the same priority are ranked; longest waiting comes first where that leaves them equal.
RANKS = {
    "age": "s.since",
    "fried_parameter": "(select fried_parameter_med_m from l2inv.op where op_id = s.op_id) desc nulls last, s.since",
    "proposal": "(select proposal_id from l2inv.op where op_id = s.op_id) nulls last, s.since",
}
FILTERS = {
    "proposal": "o.proposal_id = %(proposal)s",
    "band": "exists (select from jsonb_array_elements_text(o.bands) band where strpos(lower(band), lower(%(band)s)) > 0)",
    "instrument": "%(instrument)s = any(o.instruments)",
    "min_fried_parameter_m": "o.fried_parameter_med_m >= %(min_fried_parameter_m)s",
    "embargoed": "o.is_embargoed = %(embargoed)s",
}


class Wanted(msgspec.Struct, frozen=True):
    """What somebody looks for; null is whatever there is. A band is found by a part of its name."""

    proposal: str | None = None
    band: str | None = None
    instrument: str | None = None
    min_fried_parameter_m: float | None = None
    embargoed: bool | None = None


def offered(
    connection: Connection, rank_by: str, limit: int, wanted: Wanted | None = None
) -> list[dict[str, Any]]:
    """Return the OPs that science can claim, the one to do first at the top: by priority, then as the settings rank.

    `why` says what put each where it is.
    """
    statement, values = first(rank_by, wanted or Wanted(), limit)
    rows = connection.execute(
        f"""
        with first as materialized (select op_id, row_number() over () as place from ({statement}) in_order)
        select {COLUMNS},
               (select e.detail ->> 'reason' from l2inv.event e
                where o.priority <> 0 and e.op_id = o.op_id and e.kind = 'prioritized'
                order by e.seq desc limit 1) as priority_reason
        from first join l2inv.op o using (op_id) order by place
        """,  # noqa: S608 - text of our own
        values,
    ).fetchall()
    for row in rows:
        row["why"] = _why(row, rank_by)
    return rows


def first(rank_by: str, wanted: Wanted, limit: int) -> tuple[str, dict[str, Any]]:
    """Return the statement, and its values, that finds op_id and seq of the first OPs offered, in order.

    Where nothing is wanted in particular, an index gives them. It may go on with `for update of s skip locked`.
    """
    values = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
    filters = " and ".join(FILTERS[name] for name in values)
    fits = f"and exists (select from l2inv.op o where o.op_id = s.op_id and {filters})" if filters else ""
    statement = f"""
        select s.op_id, s.seq from l2inv.op_state s
        where s.state = 'preprocessed' and s.on_hold_seq is null
            and not coalesce(s.datasets_seq > s.verdict_seq, false) {fits}
        order by s.priority desc, {RANKS[rank_by]}, s.op_id limit %(limit)s
    """  # noqa: S608 - text of our own
    return statement, values | {"limit": limit}


def _why(op: dict[str, Any], rank_by: str) -> str:
    since = f"waiting since {wording.day(op['since'])}"
    r0 = op["fried_parameter_med"]
    ranked = {
        "age": since,
        "fried_parameter": f"r0 {r0 * 100:.1f} cm, {since}" if r0 is not None else f"r0 unknown, {since}",
        "proposal": f"proposal {op['proposal_id'] or 'unknown'}, {since}",
    }[rank_by]
    if op["priority"] == 0:
        return ranked
    return f"priority {op['priority']} ({op['priority_reason']}), {ranked}"
