"""What science is offered to invert next: which OPs, in which order, and why."""

from collections.abc import Callable, Sequence
from typing import Any, cast

from l2inv import wording
from l2inv.config.settings import Qualification
from l2inv.database.connection import Connection
from l2inv.documents import Json
from l2inv.domain.measures import R0_CLASSES
from l2inv.domain.op import MeasuredOp, OfferedOp
from l2inv.queries.filters import Wanted, conditions
from l2inv.queries.observing_programs import COLUMNS, PRESENT, add_measures

READY = "s.state = 'preprocessed' and s.on_hold_seq is null and not coalesce(s.datasets_seq > s.verdict_seq, false)"


def _most(value: float | None) -> tuple[bool, float]:
    """Return a sort key: the largest first and null last."""
    return value is None, -(value or 0)


def _area(x: float | None, y: float | None) -> float | None:
    return None if x is None or y is None else x * y


# Sort keys for OPs of the same priority. Among equals, the one that has waited longest comes first.
RANKS: dict[str, Callable[[MeasuredOp], Any]] = {
    "r0_class": lambda op: R0_CLASSES.index(op["r0_class"]),
    "age": lambda op: 0,
    "fried_parameter": lambda op: _most(op["fried_parameter_med_m"]),
    "r0": lambda op: _most(op["fried_parameter_med_m"]),
    "proposal": lambda op: (op["proposal_id"] is None, op["proposal_id"] or ""),
    "ao": lambda op: _most(op["ao_fraction"]),
    "minutes": lambda op: _most(op["minutes"]),
    "frames": lambda op: _most(op["frame_count"]),
    "lines": lambda op: -len(op["more_lines"]),
    "mu": lambda op: _most(op["mu"]),
    "exposure": lambda op: _most(op["exposure_max_ms"]),
    "field": lambda op: _most(_area(op["field_x_arcsec"], op["field_y_arcsec"])),
    "odd": lambda op: len(op["odd"]),
    "movie": lambda op: not op["movie_urls"],
}
# What each ranking is called where its name is not the word for it.
WORDS = {"r0_class": "r0 class", "age": "wait", "fried_parameter": "r0", "ao": "AO"}
# Rankings for which there is an index.
_INDEXED = {"r0_class": "s.r0_class, ", "age": ""}
# What is read of an OP to rank it without computing its measures.
_READ = {
    "proposal": "(select o.proposal_id from l2inv.op o where o.op_id = s.op_id) as proposal_id",
} | dict.fromkeys(
    ("fried_parameter", "r0"),
    "(select percentile_cont(0.5) within group (order by d.fried_parameter_med_m) from l2inv.dataset d"
    " where d.op_id = s.op_id and not d.withdrawn) as fried_parameter_med_m",
)


def offered(
    connection: Connection, rank_by: str, limit: int, rules: Qualification, wanted: Wanted | None = None
) -> tuple[list[OfferedOp], int]:
    """Return the OPs that science can claim, the first to do first, at most `limit`, and how many there are in all.

    They are ranked by priority, then by `rank_by`. `reason` has the values that rank an OP, `why` also its waiting time.
    """
    wanted = wanted or Wanted()
    statement, values, total = first(connection, rank_by, wanted, limit, rules)
    rows = connection.execute(
        f"""
        with first as materialized (select op_id, row_number() over () as place from ({statement}) in_order)
        select {COLUMNS}, {PRESENT},
               (select e.detail ->> 'reason' from l2inv.event e
                where o.priority <> 0 and e.op_id = o.op_id and e.kind = 'prioritized'
                order by e.seq desc limit 1) as priority_reason
        from first join l2inv.op o using (op_id) order by place
        """,  # noqa: S608 - text of our own
        values,
    ).fetchall()
    ops = cast("list[OfferedOp]", [add_measures(row, rules) for row in rows])
    for op in ops:
        op["reason"] = _reason(op, rank_by)
        op["why"] = ", ".join(filter(None, (op["reason"], f"waiting since {wording.day(op['since'])}")))
    return ops, total


def decided(ops: Sequence[OfferedOp], rank_by: str) -> list[str]:
    """Return for each ranked OP what decided its rank against the next one (the last: against the one before it): its
    priority with the reason, the ranking, or `wait` where only the waiting time differs; `-` for a single OP."""
    keys = [(op["priority"], RANKS[rank_by](op)) for op in ops]
    found = []
    for place, op in enumerate(ops):
        other = keys[place + 1] if place + 1 < len(keys) else keys[max(place - 1, 0)]
        by_rank = "wait" if other == keys[place] else WORDS.get(rank_by, rank_by)
        if op["priority"]:
            found.append(f"priority {op['priority']} ({op['priority_reason']})")
        elif len(ops) == 1:
            found.append("-")
        else:
            found.append("priority" if other[0] else by_rank)
    return found


def first(
    connection: Connection, rank_by: str, wanted: Wanted, limit: int, rules: Qualification
) -> tuple[str, Json, int]:
    """Return the statement that selects op_id and seq of the first OPs offered, in order, its values, and how many match.

    `for update of s skip locked` may be appended. By r0 class and by age, an index has the order; other rankings are
    computed here from all OPs that are ready, and the statement checks again that they still are.
    """
    condition, values = conditions(wanted, rules)
    fits = f"and exists (select from l2inv.op o where o.op_id = s.op_id and {condition})" if condition else ""
    if rank_by in _INDEXED:
        row = connection.execute(
            f"select count(*) as total from l2inv.op_state s where {READY} {fits}",  # noqa: S608
            values,
        ).fetchone()
        assert row is not None
        statement = f"""
            select s.op_id, s.seq from l2inv.op_state s where {READY} {fits}
            order by s.priority desc, {_INDEXED[rank_by]}s.since, s.op_id limit %(limit)s
        """  # noqa: S608
        return statement, values | {"limit": limit}, row["total"]
    read = _READ.get(rank_by, PRESENT.replace("o.op_id", "s.op_id"))
    rows = connection.execute(
        f"select s.op_id, s.priority, s.since, {read} from l2inv.op_state s where {READY} {fits}",  # noqa: S608
        values,
    ).fetchall()
    ready = [cast("MeasuredOp", row) if rank_by in _READ else add_measures(row, rules) for row in rows]
    key = RANKS[rank_by]
    ready.sort(key=lambda op: (-op["priority"], key(op), op["since"], op["op_id"]))
    statement = f"""
        select s.op_id, s.seq
        from unnest(%(ranked)s::text[]) with ordinality as ranked (op_id, place) join l2inv.op_state s using (op_id)
        where {READY} order by place limit %(limit)s
    """  # noqa: S608
    return statement, {"ranked": [op["op_id"] for op in ready], "limit": limit}, len(ready)


def _reason(op: OfferedOp, rank_by: str) -> str:
    """Return the values that rank an OP, as a phrase."""
    x, y = op["field_x_arcsec"], op["field_y_arcsec"]
    ranked = {
        "r0_class": f"{op['r0_class']} r0",
        "age": "",
        "fried_parameter": f"r0 {wording.centimeters(op['fried_parameter_med_m'])}",
        "proposal": f"proposal {op['proposal_id'] or 'unknown'}",
        "ao": f"AO {wording.percent(op['ao_fraction'])}",
        "minutes": f"{wording.number(op['minutes'])} minutes",
        "frames": f"{wording.number(op['frame_count'])} frames",
        "lines": wording.plural(len(op["more_lines"]), "more line"),
        "mu": f"mu {wording.number(op['mu'], 2)}",
        "exposure": f"exposure {wording.number(op['exposure_max_ms'])} ms",
        "field": f"field {wording.number(x)} x {wording.number(y)} arcsec",
        "odd": ", ".join(op["odd"]) or "nothing odd",
        "movie": "movie" if op["movie_urls"] else "no movie",
    }["fried_parameter" if rank_by == "r0" else rank_by]
    priority = f"priority {op['priority']} ({op['priority_reason']})" if op["priority"] else ""
    return ", ".join(filter(None, (priority, ranked)))
