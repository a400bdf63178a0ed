"""publish: tells the metadata store of each inversion, exactly once however often it runs, and marks the OP published.

For each inverted instrument program what is to be told, and its inversionId, are recorded before the store is told.
Whatever happens after that, the next run knows which id to ask for before it tells the store again.
"""

import secrets
import string
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from psycopg.types.json import Jsonb

from l2inv.config.settings import MetadataStore, Settings
from l2inv.database.connection import Connection
from l2inv.database.runs import Run, stage_run
from l2inv.domain import states
from l2inv.errors import L2invError, Refused, StoreError, StoreRefused
from l2inv.record import event_log
from l2inv.services import graphql, metadata_store
from l2inv.stages.publish.preflight import failed, inverted_ops, named, preflight

if TYPE_CHECKING:
    import requests

_DRAWN_IDS = 20  # of 36**6: where that many are taken, the store says so of any


class Unfinished(Exception):
    """No good answer came, and the store says that it was not done: the next run goes on, under the same id."""


class Unpublishable(Exception):
    """What was inverted cannot be told to the store as it is; the text is the cause."""


def publish(
    connection: Connection,
    settings: Settings,
    actor: str,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Publish every inverted OP that is not on hold and return the report of the contract.

    An OP whose preflight fails, or that the store refuses, goes to `error` with what was found, or the store's words.
    Raise StoreError when the store cannot be reached: the OPs stay inverted for the next run. So does an OP for
    which no good answer comes, and one whose outputs cannot be looked at: the others go on, and the first of these
    is raised at the end. Raise ConfigError when the settings name no service, Busy, and DatabaseError.
    """
    with stage_run(connection, "publish", actor) as run:
        counts = {"done": 0, "failed": 0, "skipped": 0}
        run.report["ops"] = counts
        unfinished: list[L2invError] = []
        if op_ids := inverted_ops(connection):
            with graphql.session(settings.metadata_store) as http:
                for done, op_id in enumerate(op_ids, 1):
                    try:
                        counts[_try_op(connection, http, settings, run, op_id)] += 1
                    except Unfinished as problem:
                        unfinished.append(StoreError(f"OP {op_id}: {problem}", "the next run goes on"))
                    except L2invError as problem:
                        if type(problem) is not L2invError:  # of a mount; the others concern every OP
                            raise
                        unfinished.append(L2invError(f"OP {op_id}: {problem.message}", problem.hint))
                    progress(done, len(op_ids))
        if unfinished:
            counts["skipped"] += len(unfinished)
            raise unfinished[0]
    return run.report


def _try_op(
    connection: Connection, http: "requests.Session", settings: Settings, run: Run, op_id: str
) -> Literal["done", "failed", "skipped"]:
    found = preflight(connection, settings, op_id)
    if found["on_hold"]:
        return "skipped"
    try:
        _publish_op(connection, http, settings.metadata_store, run, found)
    except Refused:  # somebody moved it on since it was listed
        return "skipped"
    except (StoreRefused, Unpublishable) as problem:
        with connection.transaction():
            present = event_log.locked(connection, op_id)
            event_log.fail(connection, op_id, present.seq, "publish", str(problem), run.actor, run.run_id)
        return "failed"
    return "done"


def _publish_op(
    connection: Connection, http: "requests.Session", store: MetadataStore, run: Run, found: dict[str, Any]
) -> None:
    op_id = found["op_id"]
    inversions = [_begun(connection, http, store, op_id, inversion) for inversion in found["inversions"]]
    if not found["ready"] and not any(held for _, held in inversions):
        raise Unpublishable(_cause(found))
    for inversion, held in inversions:
        if held is None:
            _name(connection, http, store, run, op_id, inversion)
        _finish(connection, run, op_id, inversion, held or _tell(http, store, _params(inversion)))
    with connection.transaction():
        one_at_a_time(connection)
        told = {"inversions": [inversion for inversion, _ in inversions]}
        _add(connection, run, op_id, "published", "published", told)


def _begun(
    connection: Connection,
    http: "requests.Session",
    store: MetadataStore,
    op_id: str,
    inversion: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the inversion beside what the store holds of it since a run before this one.

    What is held was told as its datasets were then, whatever they have become since.
    """
    said = named(connection, op_id, inversion["cycle"], inversion["instrument_program_id"])
    held = _held(http, store, said["inversion_id"]) if said else None
    return (inversion | said if said and held else inversion), held


def _cause(found: dict[str, Any]) -> str:
    against = failed(found["checks"])
    words = "; ".join(f"{check['name']}: {check['detail']}" for check in against)
    if any(check["name"] == "superseded" for check in against):
        words += f"; invert it again: l2inv reopen {found['op_id']} --reason WHY"
    return words


def one_at_a_time(connection: Connection) -> None:
    """Keep other events that tell of inversions waiting until the transaction ends.

    Event ids are given out when events are written, but events are seen when they are committed: without this a
    reader that goes on behind the newest id it saw could miss a smaller one that was committed after it looked.
    """
    connection.execute("select from l2inv.lock where name = 'export' for update")


def _name(
    connection: Connection,
    http: "requests.Session",
    store: MetadataStore,
    run: Run,
    op_id: str,
    inversion: dict[str, Any],
) -> None:
    """Record what the store is about to be told, under the id recorded before or a new one."""
    if inversion["inversion_id"] is None:
        _must_not_be_held(connection, http, store, op_id, inversion)
        inversion["inversion_id"] = _free_id(http, store)
    if named(connection, op_id, inversion["cycle"], inversion["instrument_program_id"]) != inversion:
        _add(connection, run, op_id, "inversion_named", None, inversion)


def _must_not_be_held(
    connection: Connection,
    http: "requests.Session",
    store: MetadataStore,
    op_id: str,
    inversion: dict[str, Any],
) -> None:
    """Raise Unpublishable when the store holds an inversion of the same that no event named: the record is a copy
    from before that, restored, and would tell of it a second time. What adopt() called another one does not count."""
    try:
        found = metadata_store.inversions_of(http, store, inversion["dataset_ids"])
    except StoreRefused as problem:
        raise StoreError(problem.message, problem.hint) from problem
    same = [
        held["inversionId"]
        for held in found
        if held.get("instrumentProgramExecutionId") == inversion["instrument_program_id"]
        and sorted(held.get("datasetIds") or ()) == inversion["dataset_ids"]
    ]
    rows = connection.execute(
        "select detail ->> 'inversion_id' as inversion_id from l2inv.event "
        "where kind = 'inversion_named' and detail ->> 'inversion_id' = any(%s) "
        "union all select jsonb_array_elements_text(detail -> 'beside') from l2inv.event "
        "where op_id = %s and kind = 'noted' and detail ? 'beside'",
        [same, op_id],
    )
    if unknown := sorted(set(same) - {row["inversion_id"] for row in rows}):
        raise Unpublishable(
            f"the store already holds {', '.join(unknown)} of these datasets, which the record does not know: was an "
            "old backup of l2inv's database restored, or did somebody else tell the store? Nothing was told; if it is "
            f"this one: l2inv adopt {op_id} {unknown[0]} --reason WHY, with --beside if it is another"
        )


def _free_id(http: "requests.Session", store: MetadataStore) -> str:
    """Return a new id that the store does not hold. Raise StoreError when it says that it holds any id whatever."""
    for _ in range(_DRAWN_IDS):
        if not _held(http, store, inversion_id := new_inversion_id()):
            return inversion_id
    raise StoreError(
        f"{graphql.named(store)}: says of {_DRAWN_IDS} random ids that it holds each, the last {inversion_id}",
        "ask who runs the metadata store",
    )


def new_inversion_id() -> str:
    """Return a random id in the store's convention: `inv.` and six of A-Z and 0-9."""
    return "inv." + "".join(secrets.choice(string.ascii_uppercase + string.digits) for _ in range(6))


def _params(inversion: dict[str, Any]) -> dict[str, Any]:
    return {
        "inversionId": inversion["inversion_id"],
        "primaryProposalId": inversion["proposal_id"],
        "instrumentProgramExecutionId": inversion["instrument_program_id"],
        "bucket": inversion["bucket"],
        "asdfObjectKey": inversion["asdf_object_key"],
        "datasetIds": inversion["dataset_ids"],
        "spectralLines": inversion["spectral_lines"],
    }


def _tell(http: "requests.Session", store: MetadataStore, params: dict[str, Any]) -> dict[str, Any]:
    """Tell the store of an inversion that it did not hold, and return what it then says it holds of it.

    Raise StoreError when the store cannot be asked, StoreRefused and Unpublishable when it will not have this one,
    and Unfinished when no good answer came. Telling it once more is safe: it refuses a second of the same id.
    """
    lost = _create(http, store, params)
    held = _held(http, store, params["inversionId"])
    if lost and held is None:  # the store is there and says that it was not done
        lost = _create(http, store, params)
        held = _held(http, store, params["inversionId"])
    if held is None and lost:
        raise Unfinished(lost)
    if held is None:
        raise Unpublishable(f"the store took {params['inversionId']} and does not hold it")
    return held


def _create(http: "requests.Session", store: MetadataStore, params: dict[str, Any]) -> str | None:
    """Return None, or why no good answer came: the work may be done all the same. Raise StoreRefused."""
    try:
        metadata_store.create_inversion(http, store, params)
    except StoreRefused:
        raise
    except StoreError as problem:
        return problem.message
    return None


def _held(http: "requests.Session", store: MetadataStore, inversion_id: str) -> dict[str, Any] | None:
    """Ask what the store holds. A store that refuses to say refuses us, not the inversion: raises StoreError."""
    try:
        return metadata_store.find_inversion(http, store, inversion_id)
    except StoreRefused as problem:
        raise StoreError(problem.message, problem.hint) from problem


def _finish(
    connection: Connection, run: Run, op_id: str, inversion: dict[str, Any], held: dict[str, Any]
) -> None:
    """Record that the store holds what it was told, unless a run before this one did. Raise Unpublishable."""
    if other := differences(inversion, held):
        raise Unpublishable(f"the store holds another {', '.join(other)} under {inversion['inversion_id']}")
    key = {name: inversion[name] for name in ("cycle", "instrument_program_id", "inversion_id")}
    row = connection.execute(
        "select from l2inv.event where op_id = %s and kind = 'inversion_created' and detail @> %s::jsonb",
        [op_id, Jsonb(key)],
    ).fetchone()
    if row is None:
        detail = key | {"create_date": held.get("createDate")}
        _add(connection, run, op_id, "inversion_created", None, detail)


def differences(inversion: dict[str, Any], held: dict[str, Any]) -> list[str]:
    """Return the store's names of what it holds otherwise than the inversion says."""
    params = _params(inversion)
    return [name for name, value in params.items() if _comparable(held.get(name)) != _comparable(value)]


def _comparable(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value


def _add(
    connection: Connection,
    run: Run,
    op_id: str,
    kind: str,
    state: states.State | None,
    detail: dict[str, Any],
) -> None:
    with connection.transaction():
        present = event_log.locked(connection, op_id)
        event_log.add_one(connection, present, kind, state, run.actor, detail, run.run_id)
