"""Inversions of cycles that ended before they were published: the store may have them anyway.

A request to create one may reach the store after the OP was reopened. So every run asks the store for the ids of such
cycles, and records and reports what it has until somebody settles it.
"""

from collections.abc import Sequence

from l2inv.queries import publication
from l2inv.record import event_log
from l2inv.services.metadata_store import IDS_AT_ONCE, Held
from l2inv.stages.publish.guard import Abandoned, Published
from l2inv.stages.publish.store import Store
from l2inv.stages.stage import Stage


def ask(stage: Stage[Published], store: Store, watched: Sequence[publication.Abandoned]) -> None:
    """Ask the store for abandoned inversions that were not found yet, and record those that it has. Raise StoreError."""
    unknown = {one.inversion_id: one for one in watched if one.held_since is None}
    dataset_ids = sorted({dataset for one in unknown.values() for dataset in one.dataset_ids})
    for start in range(0, len(dataset_ids), IDS_AT_ONCE):
        for held in store.of_datasets(dataset_ids[start : start + IDS_AT_ONCE]):
            if one := unknown.pop(str(held.get("inversionId")), None):
                _record(stage, one, held)


def _record(stage: Stage[Published], one: publication.Abandoned, held: Held) -> None:
    detail = {
        "cycle": one.cycle,
        "instrument_program_id": one.instrument_program_id,
        "inversion_id": one.inversion_id,
        "create_date": held.get("createDate"),
        "abandoned": True,
    }
    with stage.connection.transaction():
        present = event_log.locked(stage.connection, one.op_id)
        run = stage.run
        event_log.add_one(stage.connection, present, "inversion_created", None, run.actor, detail, run.run_id)


def report(stage: Stage[Published]) -> None:
    """Add the abandoned inversions to the stage's report, with a warning for each that the store has."""
    for one in publication.abandoned(stage.connection):
        is_held = one.held_since is not None
        stage.report.abandoned.append(Abandoned(one.op_id, one.inversion_id, one.cycle, is_held))
        if is_held:
            stage.warn(
                f"OP {one.op_id}: the store has {one.inversion_id} of cycle {one.cycle}, which ended before "
                f"it was published; settle it: {publication.settling(one)}"
            )
