"""The third step, record: each inversion is created in the store exactly once, however often publish runs.

The inversion, with its id, is recorded before the request is sent, so that the next run knows which id to look up before
it sends the request again.
"""

from typing import Any, NamedTuple

import msgspec
from psycopg.types.json import Jsonb

from l2inv.documents import Json
from l2inv.errors import StoreError, StoreRefused
from l2inv.services.metadata_store import Held, Service
from l2inv.stages.publish.guard import Guard, Unpublishable
from l2inv.stages.publish.preflight import Inversion, named


class Unfinished(Exception):
    """The answer was lost, and the store does not have the inversion: the next run continues, with the same id."""


class Store(NamedTuple):
    """The store, for one run of publish."""

    service: Service

    def held(self, inversion_id: str) -> Held | None:
        """Return the inversion with an id. A refusal is not about the inversion: raise StoreError."""
        try:
            return self.service.find_inversion(inversion_id)
        except StoreRefused as problem:
            raise StoreError(problem.message, problem.hint) from problem

    def of_datasets(self, dataset_ids: list[str]) -> list[Held]:
        """Return the inversions that the store has of any of the datasets. Raise StoreError."""
        try:
            return self.service.inversions_of(dataset_ids)
        except StoreRefused as problem:
            raise StoreError(problem.message, problem.hint) from problem

    def known(self, inversion_id: str, dataset_ids: list[str]) -> tuple[Held | None, list[Held]]:
        """Return the store's inversion with an id, and its inversions of any of the datasets. Raise StoreError."""
        try:
            return self.service.known_inversions(inversion_id, dataset_ids)
        except StoreRefused as problem:
            raise StoreError(problem.message, problem.hint) from problem

    def create(self, params: Json) -> str | None:
        """Return None, or why the answer was lost: the inversion may exist anyway. Raise StoreRefused."""
        try:
            self.service.create_inversion(params)
        except StoreRefused:
            raise
        except StoreError as problem:
            return problem.message
        return None


def started(guard: Guard, store: Store, inversion: Inversion) -> tuple[Inversion, Held | None]:
    """Return the inversion, and the store's record of it from an earlier run, or None.

    An inversion that the store has keeps its datasets of that time, whatever happened to them since.
    """
    before = named(guard.connection, guard.op_id, inversion.cycle, inversion.instrument_program_id)
    held = store.held(before.id) if before else None
    return (before if before and held else inversion), held


def record(guard: Guard, store: Store, inversion: Inversion, held: Held | None) -> None:
    """Create an inversion in the store unless it exists, and record that it does.

    Raise StoreError if the store cannot be asked, StoreRefused and Unpublishable if it refuses this inversion,
    Unfinished if the answer was lost, and Changed before anything is sent.
    """
    if held is None:
        held = _named(guard, store, inversion) or _create(guard, store, inversion)
    _recorded(guard, inversion, held)


def _named(guard: Guard, store: Store, inversion: Inversion) -> Held | None:
    """Record the inversion before the request. Return the store's inversion with that id, if a restored database lost it."""
    before = named(guard.connection, guard.op_id, inversion.cycle, inversion.instrument_program_id)
    held = None
    if before is None:
        held, of_datasets = store.known(inversion.id, inversion.dataset_ids)
        _must_not_be_held(guard, of_datasets, inversion)
        if held and (other := differences(inversion, held)):
            raise Unpublishable(
                f"the store has another inversion under {inversion.inversion_id}: it differs in "
                f"{', '.join(other)}. A new cycle gets another id (l2inv reopen {guard.op_id} --reason WHY), after "
                "which the files must be named"
            )
    if before != inversion:
        guard.add("inversion_named", None, msgspec.to_builtins(inversion))
    return held


def _must_not_be_held(guard: Guard, of_datasets: list[Held], inversion: Inversion) -> None:
    """Raise Unpublishable if the store has an inversion of the same datasets that no event names: the database may have
    been restored from an older backup, and would create it a second time. Those adopted with --beside do not count."""
    same = [
        held["inversionId"]
        for held in of_datasets
        if held.get("instrumentProgramExecutionId") == inversion.instrument_program_id
        and sorted(held.get("datasetIds") or ()) == inversion.dataset_ids
    ]
    rows = guard.connection.execute(
        "select detail ->> 'inversion_id' as inversion_id from l2inv.event "
        "where kind = 'inversion_named' and detail ->> 'inversion_id' = any(%s) "
        "union all select jsonb_array_elements_text(detail -> 'beside') from l2inv.event "
        "where op_id = %s and kind = 'noted' and detail ? 'beside'",
        [same, guard.op_id],
    )
    known = {row["inversion_id"] for row in rows} | {inversion.inversion_id}
    if unknown := sorted(set(same) - known):
        raise Unpublishable(
            f"the store already holds {', '.join(unknown)} of these datasets, which the event log does not: was an "
            "old backup of l2inv's database restored, or did somebody else create it? Nothing was sent; if it is "
            f"this one: l2inv adopt {guard.op_id} {unknown[0]} --reason WHY, with --beside if it is another"
        )


def _params(inversion: Inversion) -> Json:
    """Return what the store is told of an inversion, under its own names."""
    return {
        "inversionId": inversion.inversion_id,
        "primaryProposalId": inversion.proposal_id,
        "instrumentProgramExecutionId": inversion.instrument_program_id,
        "bucket": inversion.bucket,
        "asdfObjectKey": inversion.asdf_object_key,
        "datasetIds": inversion.dataset_ids,
        "spectralLines": inversion.spectral_lines,
    }


def _create(guard: Guard, store: Store, inversion: Inversion) -> Held:
    """Create an inversion that the store does not have, and return it as the store has it then.

    A second request is safe: the store refuses a second inversion with the same id.
    """
    params = _params(inversion)
    guard.check()
    lost = store.create(params)
    held = store.held(inversion.id)
    if lost and held is None:  # the store answers and does not have it
        guard.check()
        lost = store.create(params)
        held = store.held(inversion.id)
    if held is None and lost:
        raise Unfinished(lost)
    if held is None:
        raise Unpublishable(f"the store accepted {inversion.inversion_id} and does not have it")
    return held


def _recorded(guard: Guard, inversion: Inversion, held: Held) -> None:
    """Record that the store has the inversion, unless a run before this one did. Raise Unpublishable."""
    if other := differences(inversion, held):
        raise Unpublishable(f"the store has another {', '.join(other)} under {inversion.inversion_id}")
    key = inversion.key | {"instrument_program_id": inversion.instrument_program_id}
    row = guard.connection.execute(
        "select from l2inv.event where op_id = %s and kind = 'inversion_created' and detail @> %s::jsonb",
        [guard.op_id, Jsonb(key)],
    ).fetchone()
    if row is None:
        guard.note("inversion_created", key | {"create_date": held.get("createDate")})


def differences(inversion: Inversion, held: Held) -> list[str]:
    """Return the store's names of the fields in which it differs from the inversion."""
    params = _params(inversion)
    return [name for name, value in params.items() if _comparable(held.get(name)) != _comparable(value)]


def _comparable(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value
