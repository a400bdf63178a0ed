"""Who works on which OP, and when it is due: exactly one person holds one that is claimed."""

from l2inv import record
from l2inv.database import Connection
from l2inv.errors import Refused


def claim(connection: Connection, op_id: str, actor: str) -> bool:
    """Gives the OP to the actor: exactly one of all who try gets it. False if the actor held it already.

    Raises Refused when another holds it, saying who and since when, and when it is not ready to be worked on.
    """
    with connection.transaction():
        present = record.locked(connection, op_id)
        if present.state == "working" and present.assignee == actor:
            return False
        if present.state == "working":
            raise Refused(
                f"OP {op_id} is held by {present.assignee} since {present.since}",
                f"take another (l2inv next), or ask {present.assignee} to release it",
            )
        if present.state == "preprocessed" and present.datasets_seq > (present.verdict_seq or 0):
            raise Refused(
                f"OP {op_id}: its datasets changed since its verdict", "l2inv qualify judges it again"
            )
        record.add_one(connection, present, "claimed", "working", actor, {"assignee": actor})
    return True


def release(connection: Connection, op_id: str, actor: str, reason: str | None) -> None:
    """Puts an OP that the actor holds back for others. Raises Refused when the actor does not hold it."""
    with connection.transaction():
        present = record.locked(connection, op_id)
        must_hold(present, actor)
        detail = {"assignee": present.assignee} | ({"reason": reason} if reason else {})
        record.add_one(connection, present, "released", "preprocessed", actor, detail)


def prioritize(connection: Connection, op_id: str, priority: int, reason: str, actor: str) -> None:
    """Says how soon an OP is to be worked on: `next` offers the highest priority first; 0 is everybody's. Raises Refused."""
    with connection.transaction():
        present = record.locked(connection, op_id)
        record.add_one(
            connection, present, "prioritized", None, actor, {"priority": priority, "reason": reason}
        )


def note(connection: Connection, op_id: str, text: str, actor: str) -> None:
    """Adds a word to an OP's history. Raises Refused."""
    with connection.transaction():
        present = record.locked(connection, op_id)
        record.add_one(connection, present, "noted", None, actor, {"note": text})


def must_hold(present: record.Present, actor: str) -> None:
    """Raises Refused when another holds the OP."""
    if present.state == "working" and present.assignee != actor:
        raise Refused(
            f"OP {present.op_id} is held by {present.assignee} since {present.since}, not by {actor}",
            f"ask {present.assignee}, or act as the holder with --actor",
        )
