"""Inversions of cycles that ended before they were published: the store may hold them all the same.

A request to create one may reach the store after the OP was reopened. So the store is asked for each id that such a
cycle named, in every run, and what it holds is recorded and reported until somebody settles it.
"""

from typing import Any

from l2inv.database.connection import Connection
from l2inv.database.runs import Run
from l2inv.queries import publication
from l2inv.record import event_log
from l2inv.services.metadata_store import IDS_AT_ONCE
from l2inv.stages.publish.store import Store


def ask(connection: Connection, run: Run, told: Store, watched: list[dict[str, Any]]) -> None:
    """Ask the store for the abandoned inversions that it was not found to hold yet, and record those it does.

    Raise StoreError.
    """
    unknown = {one["inversion_id"]: one for one in watched if one["held_since"] is None}
    dataset_ids = sorted({dataset for one in unknown.values() for dataset in one["dataset_ids"]})
    for start in range(0, len(dataset_ids), IDS_AT_ONCE):
        for held in told.of_datasets(dataset_ids[start : start + IDS_AT_ONCE]):
            if one := unknown.pop(held.get("inversionId"), None):
                _record(connection, run, one, held)


def _record(connection: Connection, run: Run, one: dict[str, Any], held: dict[str, Any]) -> None:
    detail = {name: one[name] for name in ("cycle", "instrument_program_id", "inversion_id")}
    detail |= {"create_date": held.get("createDate"), "abandoned": True}
    with connection.transaction():
        present = event_log.locked(connection, one["op_id"])
        event_log.add_one(connection, present, "inversion_created", None, run.actor, detail, run.run_id)


def report(connection: Connection, run: Run) -> None:
    """Put what is watched into the run's report, with a warning for each inversion that the store holds."""
    run.report["abandoned"] = []
    for one in publication.abandoned(connection):
        is_held = one["held_since"] is not None
        named = {name: one[name] for name in ("op_id", "inversion_id", "cycle")}
        run.report["abandoned"].append(named | {"held": is_held})
        if is_held:
            run.report["warnings"].append(
                f"OP {one['op_id']}: the store holds {one['inversion_id']} of cycle {one['cycle']}, which ended before "
                f"it was published; settle it: {publication.settling(one)}"
            )
