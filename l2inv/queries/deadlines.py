"""What is past its deadline, and each owner's digest. Reads only."""

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from l2inv.config.settings import Deadlines, Owners
from l2inv.database.connection import Connection, Row
from l2inv.queries import observing_programs

FIRST = timedelta(days=1)  # that the first digest looks back
SECTIONS = ("overdue", "due_soon", "failed", "quarantined", "superseded_inputs", "by_others", "new")


# Every OP with its deadline; due_at is null without one, and on hold. The parameters are limits().
DUE = """
    select s.op_id, s.state, s.state_before_error, s.since, s.priority, s.assignee, s.due_at as claimed_until,
           s.on_hold_seq is not null as on_hold, limits.days,
           case when s.state = 'working' then s.assignee else limits.owner end as owner,
           case when s.on_hold_seq is null
                then coalesce(case when s.state = 'working' then s.due_at end,
                              s.since + limits.days * interval '1 day') end as due_at
    from l2inv.op_state s
    left join unnest(%(states)s::text[], %(days)s::double precision[], %(owners)s::text[])
        as limits (state, days, owner) using (state)
"""


def limits(deadlines: Deadlines) -> dict[str, list[Any]]:
    """Return the parameters of DUE: the states with a deadline, with their days and owners."""
    days = {state: getattr(deadlines, f"{state}_days") for state in (*Owners.__struct_fields__, "working")}
    limited = [state for state, limit in days.items() if limit is not None]
    return {
        "states": limited,
        "days": [days[state] for state in limited],
        "owners": [getattr(deadlines.owners, state, None) for state in limited],
    }


def overdue(
    connection: Connection, deadlines: Deadlines, now: datetime, most: int | None = None
) -> list[Row]:
    """Return the OPs past their deadline, at most `most`, the longest overdue first; `days_over` is in days.

    A claim is due at its own date, and its owner is its assignee. An OP on hold is not overdue.
    """
    return [op for op in _due(connection, deadlines, now, 0.0, most) if op["days_over"] > 0]


def count_overdue(connection: Connection, deadlines: Deadlines, now: datetime) -> int:
    """Return how many OPs are past their deadline."""
    row = connection.execute(
        f"select count(*) as ops from ({DUE}) d where due_at < %(now)s",  # noqa: S608 - text of our own
        limits(deadlines) | {"now": now},
    ).fetchone()
    assert row is not None
    ops: int = row["ops"]
    return ops


def _due(
    connection: Connection, deadlines: Deadlines, now: datetime, soon_days: float, most: int | None = None
) -> list[Row]:
    """Return the OPs that are overdue or will be within `soon_days`. A deadline that is not longer has no "soon": else
    every OP would be due soon as it enters the state."""
    return connection.execute(
        f"""
        select op_id, state, owner, since, due_at, priority,
               extract(epoch from %(now)s::timestamptz - due_at)::double precision / 86400 as days_over
        from ({DUE}) d
        where due_at < %(now)s
            or (state = 'working' or days > %(soon)s) and due_at < %(now)s + %(soon)s * interval '1 day'
        order by due_at, op_id limit %(most)s
        """,  # noqa: S608 - text of our own
        limits(deadlines) | {"now": now, "soon": soon_days, "most": most},
    ).fetchall()


class Digest(NamedTuple):
    """A digest that was sent: for each owner with items, true, false (could not be sent) or null (no address)."""

    started_at: datetime
    sent: dict[str, bool | None]


def by_owner(ops: list[Row]) -> dict[str, list[Row]]:
    """Return the OPs of each owner, by name."""
    return {
        owner: [op for op in ops if op["owner"] == owner] for owner in sorted({op["owner"] for op in ops})
    }


def earlier_digests(connection: Connection) -> list[Digest]:
    """Return when digests were sent, the newest first, and to whom."""
    rows = connection.execute(
        """
        select started_at, coalesce(result -> 'sent', '{}') as sent from l2inv.run
        where stage = 'digest' and finished_at is not null and not result ? 'failed' order by run_id desc limit 100
        """
    )
    return [Digest(row["started_at"], row["sent"]) for row in rows]


def since(owner: str, earlier: list[Digest], now: datetime) -> datetime:
    """Return since when something is new to an owner: the last digest whose mail to them did not fail."""
    return next((d.started_at for d in earlier if d.sent.get(owner) is not False), now - FIRST)


def digest(
    connection: Connection, deadlines: Deadlines, earlier: list[Digest], now: datetime
) -> dict[str, dict[str, list[Row]]]:
    """Return each owner's list as sections, by owner, without owners that have nothing.

    The sections: `overdue`, `due_soon`, `failed` (with stage and cause), `quarantined` (records of the metadata
    store), `superseded_inputs` (held OPs whose datasets changed), `by_others` (their ready events that somebody else
    canceled since the owner's last digest) and `new` (since the owner's last digest).
    """
    owners = deadlines.owners
    lists: dict[str, dict[str, list[Row]]] = {}

    def add(section: str, owner: str, item: Row) -> None:
        lists.setdefault(owner, {name: [] for name in SECTIONS})[section].append(item)

    for op in _due(connection, deadlines, now, deadlines.due_soon_days):
        add("overdue" if op["days_over"] > 0 else "due_soon", op["owner"], op)
    for op in _failed(connection):
        add("failed", owners.error, op)
    for record in _quarantined(connection):
        add("quarantined", owners.error, record)
    for op in observing_programs.held_with_changed_inputs(connection, None):
        add("superseded_inputs", op["assignee"], op)
    for op in _by_others(connection, min([now - FIRST, *(d.started_at for d in earlier)])):
        if op["since"] >= since(op["assignee"], earlier, now):
            add("by_others", op["assignee"], op)
    start = {owner: since(owner, earlier, now) for owner in (owners.discovered, owners.preprocessed)}
    for op in _new(connection, min(start.values())):
        owner = owners.discovered if op["state"] == "discovered" else owners.preprocessed
        if op["since"] >= start[owner]:
            add("new", owner, op)
    return dict(sorted(lists.items()))


def _failed(connection: Connection) -> list[Row]:
    return connection.execute(
        "select op_id, since, stage, cause from l2inv.failure order by since desc, op_id"
    ).fetchall()


def _quarantined(connection: Connection) -> list[Row]:
    return connection.execute(
        "select dataset_id, reason, first_seen from l2inv.unresolved order by first_seen desc, raw_hash"
    ).fetchall()


def _by_others(connection: Connection, since: datetime) -> list[Row]:
    """Return the ready events that somebody other than the holder canceled."""
    return connection.execute(
        """
        select op_id, detail ->> 'assignee' as assignee, actor, recorded_at as since, detail ->> 'reason' as reason
        from l2inv.history
        where kind = 'resumed' and voided_by is null and recorded_at >= %s and actor <> detail ->> 'assignee'
        order by recorded_at, op_id
        """,
        [since],
    ).fetchall()


def _new(connection: Connection, since: datetime) -> list[Row]:
    """Return newly discovered OPs, with that event's state, and OPs that became ready to be claimed and still are."""
    return connection.execute(
        """
        select s.op_id, e.state, e.recorded_at as since from l2inv.op_state s
        join l2inv.event e on e.op_id = s.op_id
            and (e.seq = 1 or s.state = 'preprocessed' and e.kind = 'preprocessed' and e.recorded_at = s.since)
        where e.recorded_at >= %s order by e.recorded_at, s.op_id
        """,
        [since],
    ).fetchall()
