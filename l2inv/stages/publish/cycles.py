"""Reopening an OP, withdrawing and reinstating inversions, and adopting one that only the store has."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from l2inv.config.settings import Settings
from l2inv.database.connection import Connection, Row
from l2inv.database.runs import stage_lock
from l2inv.documents import Json
from l2inv.domain.states import State
from l2inv.errors import Refused
from l2inv.queries import publication
from l2inv.record import event_log, issued
from l2inv.services import metadata_store
from l2inv.services.metadata_store import Held
from l2inv.stages.publish.guard import one_at_a_time
from l2inv.stages.publish.preflight import Inversion, preflight
from l2inv.stages.publish.store import differences


def reopen(connection: Connection, settings: Settings, op_id: str, reason: str, actor: str) -> None:
    """Start an OP's next cycle: it is judged, inverted and published again; what was published stays.

    If the OP is inverted, or in error since, but not published, the store must not have its inversions: it is asked if
    the event log names one. Raise Refused, Busy while publish runs, StoreError and ConfigError.
    """
    with stage_lock(connection, "publish", "try again when it has ended"):
        seen = _seen(connection, op_id, "reopened", "discovered")
        row = connection.execute(
            """
            select cycle, array(
                       select distinct detail ->> 'inversion_id' from l2inv.event e
                       where e.op_id = s.op_id and kind = 'inversion_named' and detail -> 'cycle' = to_jsonb(s.cycle)
                   ) as named
            from l2inv.op_state s where op_id = %s
            """,
            [op_id],
        ).fetchone()
        assert row is not None
        if seen.state == "inverted" and row["named"]:
            _must_not_be_in_the_store(settings, op_id, row["named"])
        with connection.transaction():
            present = _as_seen(connection, seen, actor)
            detail = {"reason": reason, "cycle": row["cycle"]}
            event_log.add_one(connection, present, "reopened", "discovered", actor, detail)


def adopt(
    connection: Connection,
    settings: Settings,
    op_id: str,
    inversion_id: str,
    beside: bool,
    reason: str,
    actor: str,
) -> None:
    """Record an inversion that the store has, and the event log does not, as this OP's present one; or, with `beside`,
    as another in addition to it, which is possible in any state.

    Raise Refused if the store has no such inversion or it differs from this OP's, Busy, StoreError and ConfigError.
    """
    with stage_lock(connection, "publish", "try again when it has ended"):
        seen = (
            event_log.seen(connection, op_id) if beside else _seen(connection, op_id, "inversion_named", None)
        )
        with metadata_store.service(settings.metadata_store) as store:
            held = store.find_inversion(inversion_id)
        if held is None:
            raise Refused(f"the store has no inversion {inversion_id}", _see(op_id))
        if (owner := issued.owner(connection, inversion_id)) not in (None, op_id):
            raise Refused(f"{inversion_id} was issued for OP {owner}", f"see: l2inv history {owner}")
        kind: str = "noted"
        detail: Json = {"note": reason, "beside": [inversion_id]}
        if not beside:
            same = msgspec.structs.replace(_same(connection, settings, op_id, held), reason=reason)
            kind, detail = "inversion_named", msgspec.to_builtins(same)
        with connection.transaction():
            present = _as_seen(connection, seen, actor)
            event_log.add_one(connection, present, kind, None, actor, detail)


def _same(connection: Connection, settings: Settings, op_id: str, held: Held) -> Inversion:
    """Return the OP's inversion with the id that it has in the store. Raise Refused if the two differ."""
    inversion_id, other = held["inversionId"], ["instrumentProgramExecutionId"]
    for inversion in preflight(connection, settings, op_id).inversions:
        if inversion.instrument_program_id == held.get("instrumentProgramExecutionId"):
            convention = issued.asdf_object_key(inversion.proposal_id, inversion.id)
            if inversion.asdf_object_key == convention:  # not given, but derived from the id
                inversion.asdf_object_key = held.get("asdfObjectKey")
            inversion.inversion_id = inversion_id
            other = differences(inversion, held)
            if not other:
                return inversion
            break
    raise Refused(
        f"OP {op_id}: {inversion_id} is another inversion: it differs in {', '.join(other)}",
        f"to keep both: l2inv adopt {op_id} {inversion_id} --beside",
    )


def _seen(connection: Connection, op_id: str, kind: str, state: State | None) -> event_log.Present:
    """Return an OP's present state, as `inverted` if publishing it failed, without a lock: nobody should wait for its row
    while the store is asked. Raise Refused if the state does not allow the event."""
    seen = event_log.seen(connection, op_id)
    if _failed_to_publish(seen):
        seen = msgspec.structs.replace(seen, state="inverted", state_before_error=None)
    event_log.must_allow(seen, kind, state)
    return seen


def _as_seen(connection: Connection, seen: event_log.Present, actor: str) -> event_log.Present:
    """Lock an OP, retry it if publishing it failed, and return its present state. Raise Refused if it changed since."""
    present = event_log.locked(connection, seen.op_id)
    if present.seq != seen.seq:
        raise Refused(f"OP {seen.op_id} changed while the store was asked", f"{_see(seen.op_id)}; try again")
    if _failed_to_publish(present):
        event_log.retry(connection, [seen.op_id], actor)
        present = event_log.locked(connection, seen.op_id)
    return present


def _failed_to_publish(present: event_log.Present) -> bool:
    return present.state == "error" and present.state_before_error == "inverted"


def _must_not_be_in_the_store(settings: Settings, op_id: str, inversion_ids: Sequence[str]) -> None:
    with metadata_store.service(settings.metadata_store) as store:
        held = [i for i in inversion_ids if store.find_inversion(i)]
    if held:
        raise Refused(
            f"OP {op_id}: the store has {', '.join(held)} of it",
            "l2inv publish finishes that; then reopen it",
        )


def withdraw(
    connection: Connection, op_id: str, reason: str, inversion_ids: Sequence[str], actor: str
) -> list[Row]:
    """Mark inversions of an OP as bad: those given, or all that were published in its newest cycle. One that is given may
    be of a cycle that ended before it was published.

    Return for each what remains elsewhere: `inversion_id`, whether the store has its `record`, how many `files` were
    sent to the catalog, and the `destination` of the files, or null. Raise Refused if one is not the OP's, or there is
    nothing to withdraw.
    """
    return _mark(connection, op_id, reason, inversion_ids, actor, "withdrawn")


def reinstate(
    connection: Connection, op_id: str, reason: str, inversion_ids: Sequence[str], actor: str
) -> list[str]:
    """Undo a withdrawal and return the inversions' ids: those given, or all of the newest cycle.

    Raise Refused if one is not the OP's, or none of them is withdrawn.
    """
    return [
        one["inversion_id"] for one in _mark(connection, op_id, reason, inversion_ids, actor, "reinstated")
    ]


def _mark(
    connection: Connection,
    op_id: str,
    reason: str,
    inversion_ids: Sequence[str],
    actor: str,
    kind: Literal["withdrawn", "reinstated"],
) -> list[Row]:
    with connection.transaction():
        one_at_a_time(connection)
        present = event_log.locked(connection, op_id)
        rows = connection.execute(
            "select inversion_id, cycle, withdrawn_at is not null as withdrawn, published_at is not null as published "
            "from l2inv.published_op where op_id = %s order by inversion_id",
            [op_id],
        ).fetchall()
        found = {i["inversion_id"]: i for i in rows}
        for one in publication.abandoned(connection, op_id):
            found[one.inversion_id] = msgspec.structs.asdict(one) | {"withdrawn": False, "published": False}
        if unknown := sorted(set(inversion_ids) - found.keys()):
            raise Refused(f"OP {op_id} has no published inversion {', '.join(unknown)}", _see(op_id))
        newest = max((i["cycle"] for i in found.values() if i["published"]), default=0)
        meant = [
            i
            for i in found.values()
            if i["inversion_id"] in inversion_ids
            or (i["cycle"] == newest and i["published"] and not inversion_ids)
        ]
        chosen = [i for i in meant if i["withdrawn"] == (kind == "reinstated")]
        if not chosen:
            already = "is withdrawn already" if kind == "withdrawn" else "is not withdrawn"
            named = ", ".join(sorted(i["inversion_id"] for i in meant))
            why = f": {named} {already}" if meant else " has no published inversion"
            raise Refused(f"OP {op_id}{why}", _see(op_id))
        ids = sorted(i["inversion_id"] for i in chosen)
        detail: Json = {
            "reason": reason,
            "inversion_ids": ids,
            "cycle": max(i["cycle"] for i in chosen),
        }
        remains = publication.brought(connection, op_id, ids)
        if kind == "withdrawn":
            detail["remains"] = remains
        event_log.add_one(connection, present, kind, None, actor, detail)
    return remains


def _see(op_id: str) -> str:
    return f"see: l2inv history {op_id}"
