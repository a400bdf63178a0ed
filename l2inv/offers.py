"""What science is offered to invert next: which OPs, in which order, and why each stands where it does."""

from typing import Any

import msgspec

from l2inv.database import Connection
from l2inv.views import COLUMNS

# By what OPs of the same priority are ranked; longest waiting comes first where that leaves them equal.
RANKS = {
    "age": "o.since",
    "fried_parameter": "o.fried_parameter_med desc nulls last, o.since",
    "proposal": "o.proposal_id nulls last, o.since",
}
OFFERED = """
    o.state = 'preprocessed' and not o.on_hold and not o.inputs_changed
    and (%(proposal)s::text is null or o.proposal_id = %(proposal)s)
    and (%(band)s::text is null or exists (
        select from jsonb_array_elements_text(o.bands) band where strpos(lower(band), lower(%(band)s)) > 0))
    and (%(instrument)s::text is null or %(instrument)s = any(o.instruments))
    and (%(min_fried_parameter_m)s::double precision is null or o.fried_parameter_med >= %(min_fried_parameter_m)s)
    and (%(embargoed)s::boolean is null or o.is_embargoed = %(embargoed)s)
"""


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
    """Gives the OPs that science can claim, the one to do first at the top: by priority, then as the settings rank.

    `why` says what put each where it is.
    """
    rows = connection.execute(
        f"""
        select {COLUMNS},
               (select e.detail ->> 'reason' from l2inv.event e
                where o.priority <> 0 and e.op_id = o.op_id and e.kind = 'prioritized'
                order by e.seq desc limit 1) as priority_reason
        from l2inv.op_overview o where {OFFERED} order by o.priority desc, {RANKS[rank_by]}, o.op_id limit %(limit)s
        """,  # noqa: S608 - text of our own
        msgspec.structs.asdict(wanted or Wanted()) | {"limit": limit},
    ).fetchall()
    for row in rows:
        row["why"] = _why(row, rank_by)
    return rows


def take_first(connection: Connection, rank_by: str, wanted: Wanted) -> str | None:
    """Gives the first OP offered that nobody else takes at this moment, locked until the transaction ends."""
    row = connection.execute(
        f"""
        select s.op_id from l2inv.op_state s join l2inv.op_overview o using (op_id)
        where s.state = 'preprocessed' and s.on_hold_seq is null and {OFFERED}
        order by s.priority desc, {RANKS[rank_by]}, s.op_id limit 1 for update of s skip locked
        """,  # noqa: S608
        msgspec.structs.asdict(wanted),
    ).fetchone()
    return row["op_id"] if row else None


def _why(op: dict[str, Any], rank_by: str) -> str:
    since = f"waiting since {op['since']:%Y-%m-%d}"
    r0 = op["fried_parameter_med"]
    ranked = {
        "age": since,
        "fried_parameter": f"r0 {r0 * 100:.1f} cm, {since}" if r0 is not None else f"r0 unknown, {since}",
        "proposal": f"proposal {op['proposal_id'] or 'unknown'}, {since}",
    }[rank_by]
    if op["priority"] == 0:
        return ranked
    return f"priority {op['priority']} ({op['priority_reason']}), {ranked}"
