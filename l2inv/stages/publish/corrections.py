"""Canceling a ready event, or correcting it, before its inversions are in the store."""

from collections.abc import Iterator
from contextlib import contextmanager

from l2inv.config.settings import Settings
from l2inv.database.connection import Connection
from l2inv.database.runs import stage_lock
from l2inv.documents import Json
from l2inv.errors import Refused
from l2inv.record import event_log
from l2inv.services import metadata_store


def unmark(connection: Connection, settings: Settings, op_id: str, reason: str | None, actor: str) -> None:
    """Cancel an OP's ready event: it is `working` again, with the same holder and due date, verdict and prepared files.

    Anyone but its holder must give a reason. Raise Refused, also if the store has one of its inversions of this cycle;
    Busy while publish runs; StoreError and ConfigError if the store must be asked.
    """
    with correcting(connection, settings, op_id, reason, actor) as seen, connection.transaction():
        present = event_log.locked(connection, op_id)
        if present.seq != seen.seq:
            raise Refused(f"OP {op_id} changed meanwhile", f"see: l2inv history {op_id}; try again")
        detail: Json = {"assignee": present.assignee, "due_at": _due_at(connection, op_id)}
        detail |= {"reason": reason} if reason else {}
        event_log.add_one(connection, present, "resumed", "working", actor, detail)


@contextmanager
def correcting(
    connection: Connection, settings: Settings, op_id: str, reason: str | None, actor: str
) -> Iterator[event_log.Present]:
    """Keep publish from running while a ready event is corrected or canceled; yield the OP's present state.

    Raises the same errors as unmark().
    """
    with stage_lock(connection, "publish", "try again when it has ended"):
        seen = event_log.seen(connection, op_id)
        if seen.state == "published":
            raise Refused(
                f"OP {op_id} is published: its ready event stays as it is",
                f"l2inv withdraw {op_id} --reason WHY, then l2inv reopen {op_id} --reason WHY",
            )
        event_log.must_allow(seen, "resumed", "working")
        if actor != seen.assignee and not reason:
            raise Refused(
                f"OP {op_id} was inverted by {seen.assignee}, not by {actor}",
                f"give a reason with --reason; the digest informs {seen.assignee}",
            )
        _must_not_be_in_the_store(connection, settings, op_id)
        yield seen


def _due_at(connection: Connection, op_id: str) -> str | None:
    """Return when the claim that the ready event ended was due."""
    row = connection.execute(
        """
        select detail ->> 'due_at' as due_at from l2inv.history
        where op_id = %s and voided_by is null
            and kind in ('claimed', 'extended', 'handed_over', 'taken_over', 'resumed')
        order by seq desc limit 1
        """,
        [op_id],
    ).fetchone()
    due_at: str | None = row["due_at"] if row else None
    return due_at


def _must_not_be_in_the_store(connection: Connection, settings: Settings, op_id: str) -> None:
    """Raise Refused if the store has an inversion of this cycle; it is only asked if one was named."""
    rows = connection.execute(
        """
        select distinct e.detail ->> 'inversion_id' as inversion_id
        from l2inv.event e join l2inv.op_state s using (op_id)
        where e.op_id = %s and e.kind = 'inversion_named' and e.detail -> 'cycle' = to_jsonb(s.cycle)
        """,
        [op_id],
    ).fetchall()
    if not rows:
        return
    with metadata_store.service(settings.metadata_store) as store:
        held = [row["inversion_id"] for row in rows if store.find_inversion(row["inversion_id"])]
    if held:
        raise Refused(
            f"OP {op_id}: the store has {', '.join(held)} of it",
            f"l2inv publish finishes that; then: l2inv withdraw {op_id} or l2inv reopen {op_id}",
        )
