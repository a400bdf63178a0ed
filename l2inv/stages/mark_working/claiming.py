"""Claims: who works on an OP, and until when. Exactly one person holds a claimed OP."""

from datetime import datetime

import msgspec

from l2inv import wording
from l2inv.config.settings import Qualification
from l2inv.database.connection import Connection
from l2inv.documents import Json
from l2inv.errors import Refused
from l2inv.queries.filters import Wanted
from l2inv.record import event_log, issued
from l2inv.stages.mark_working import offers


def claim(connection: Connection, op_id: str, actor: str, due_at: datetime, *, extend: bool = False) -> bool:
    """Claim an OP for the actor until `due_at`: of all who try, exactly one gets it.

    Return False if the actor held it already; with `extend`, the claim is then due at `due_at`. Raise Refused if
    somebody else holds it, with their name and since when, and if it is not ready to be claimed.
    """
    with connection.transaction():
        present = event_log.locked(connection, op_id)
        if present.state == "working" and present.assignee == actor:
            if extend:
                event_log.add_one(connection, present, "extended", None, actor, _claimed(actor, due_at))
            return False
        if present.state == "working":
            raise Refused(
                f"OP {op_id} is held by {present.assignee} since {present.since}, due {_day(present.due_at)}",
                f"take another (l2inv next), or ask {present.assignee} to release it;"
                " once it is overdue: l2inv take-over",
            )
        if present.state == "preprocessed" and present.on_hold:
            held = event_log.newest(connection, op_id, "put_on_hold") or {}
            raise Refused(
                f"OP {op_id} is on hold: {held.get('reason')}", f"to continue: l2inv unhold {op_id}"
            )
        if present.state == "preprocessed" and present.datasets_seq > (present.verdict_seq or 0):
            raise Refused(
                f"OP {op_id}: its datasets changed since its verdict", "l2inv qualify judges it again"
            )
        detail = _claimed(actor, due_at) | _named(connection, op_id)
        event_log.add_one(connection, present, "claimed", "working", actor, detail)
    return True


def claim_first(
    connection: Connection,
    rank_by: str,
    rules: Qualification,
    wanted: Wanted,
    actor: str,
    due_at: datetime,
    number: int = 1,
) -> list[str]:
    """Claim the first offered OPs for the actor in one step, at most `number`; return their ids.

    OPs that others are claiming at the same moment are skipped, not waited for.
    """
    statement, values, _ = offers.first(connection, rank_by, wanted, number, rules)
    with connection.transaction():
        rows = connection.execute(
            f"with first as materialized ({statement} for update of s skip locked) select op_id, seq from first",  # noqa: S608
            values,
        ).fetchall()
        for row in rows:
            detail = _claimed(actor, due_at) | _named(connection, row["op_id"])
            event = event_log.Event(row["op_id"], row["seq"], "claimed", "working", detail)
            event_log.append(connection, event, actor, None)
    return [row["op_id"] for row in rows]


def _named(connection: Connection, op_id: str) -> Json:
    """Return the detail with an inversion id for each instrument program to be inverted."""
    named = issued.issue(connection, op_id, event_log.invertible_programs(connection, op_id))
    return {"inversions": msgspec.to_builtins(named)}


def _claimed(actor: str, due_at: datetime) -> Json:
    return {"assignee": actor, "due_at": due_at.isoformat()}


def release(connection: Connection, op_id: str, actor: str, reason: str | None) -> None:
    """Release an OP for others to claim. Raise Refused if the actor does not hold it."""
    with connection.transaction():
        present = event_log.locked(connection, op_id)
        event_log.must_hold(present, actor)
        detail = {"assignee": present.assignee} | ({"reason": reason} if reason else {})
        event_log.add_one(connection, present, "released", "preprocessed", actor, detail)


def hand_over(
    connection: Connection, op_id: str, to: str, actor: str, due_at: datetime | None, reason: str | None
) -> None:
    """Transfer an OP that the actor holds to somebody else, due at `due_at` or else as before. Raise Refused."""
    with connection.transaction():
        present = event_log.locked(connection, op_id)
        event_log.must_hold(present, actor)
        if present.state == "working" and to == present.assignee:
            raise Refused(f"OP {op_id} is held by {to} already", "name somebody else: --to")
        due = due_at or present.due_at
        detail = {"assignee": to, "from": present.assignee, "due_at": due.isoformat() if due else None}
        event_log.add_one(
            connection, present, "handed_over", None, actor, detail | _without_none(reason=reason)
        )


def take_over(
    connection: Connection, op_id: str, actor: str, reason: str, due_at: datetime, now: datetime
) -> None:
    """Transfer an overdue OP from its holder to the actor. Raise Refused, with holder and due date, if it is not overdue."""
    with connection.transaction():
        present = event_log.locked(connection, op_id)
        if present.state == "working":
            if present.assignee == actor:
                raise Refused(f"OP {op_id} is yours already", f"for more time: l2inv claim {op_id} --for 21d")
            if present.due_at is not None and present.due_at > now:
                raise Refused(
                    f"OP {op_id} is held by {present.assignee} and not overdue: due {_day(present.due_at)}",
                    f"ask {present.assignee} to hand it over or to release it",
                )
        detail = {
            "assignee": actor,
            "from": present.assignee,
            "was_due_at": present.due_at.isoformat() if present.due_at else None,
            "due_at": due_at.isoformat(),
            "reason": reason,
        }
        event_log.add_one(connection, present, "taken_over", None, actor, detail)


def hold(connection: Connection, op_id: str, reason: str, actor: str) -> None:
    """Keep an OP from being offered, prepared or published until it is taken off hold. Raise Refused."""
    with connection.transaction():
        present = event_log.locked(connection, op_id)
        if present.on_hold:
            held = event_log.newest(connection, op_id, "put_on_hold") or {}
            raise Refused(f"OP {op_id} is on hold already: {held.get('reason')}", f"l2inv unhold {op_id}")
        event_log.add_one(connection, present, "put_on_hold", None, actor, {"reason": reason})


def unhold(connection: Connection, op_id: str, reason: str | None, actor: str) -> None:
    """Take an OP off hold. Raise Refused."""
    with connection.transaction():
        present = event_log.locked(connection, op_id)
        if not present.on_hold:
            raise Refused(f"OP {op_id} is not on hold", "nothing to do")
        event_log.add_one(connection, present, "taken_off_hold", None, actor, _without_none(reason=reason))


def prioritize(connection: Connection, op_id: str, priority: int, reason: str, actor: str) -> None:
    """Set an OP's priority: `next` offers the highest first; the default is 0. Raise Refused."""
    with connection.transaction():
        present = event_log.locked(connection, op_id)
        detail = {"priority": priority, "reason": reason}
        event_log.add_one(connection, present, "prioritized", None, actor, detail)


def note(connection: Connection, op_id: str, text: str, actor: str) -> None:
    """Add a note to an OP's history. Raise Refused."""
    with connection.transaction():
        present = event_log.locked(connection, op_id)
        event_log.add_one(connection, present, "noted", None, actor, {"note": text})


def _without_none(**what: str | None) -> Json:
    return {name: value for name, value in what.items() if value is not None}


def _day(due_at: datetime | None) -> str:
    return wording.due(due_at) if due_at else "without a due date"
