"""publish: tells the metadata store of each inversion, exactly once however often it runs, and marks the OP published.

For each inverted instrument program the inversionId is chosen and recorded before the store is told. Whatever
happens after that, the next run knows which id to ask for before it tells the store again.
"""

import secrets
import string
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from l2inv import graphql, metadata_store, record, states
from l2inv.database import Connection, Run, stage_run
from l2inv.errors import Refused, StoreError, StoreRefused
from l2inv.settings import MetadataStore, Settings

if TYPE_CHECKING:
    import requests


class Unpublishable(Exception):
    """What was inverted cannot be told to the store as it is; the text is the cause."""


def publish(
    connection: Connection,
    settings: Settings,
    actor: str,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Publishes every inverted OP and gives the report of the contract.

    An OP that the store refuses goes to `error` with the store's words. Raises StoreError when the store cannot be
    reached: the OPs stay inverted for the next run. Raises ConfigError when the settings name no service, Busy, and
    DatabaseError.
    """
    with stage_run(connection, "publish", actor) as run:
        counts = {"done": 0, "failed": 0, "skipped": 0}
        run.report["ops"] = counts
        rows = connection.execute(
            "select op_id from l2inv.op_state where state = 'inverted' order by priority desc, since, op_id"
        ).fetchall()
        if rows:
            with graphql.session(settings.metadata_store) as http:
                for done, row in enumerate(rows, 1):
                    counts[_try_op(connection, http, settings.metadata_store, run, row["op_id"])] += 1
                    progress(done, len(rows))
    return run.report


def _try_op(
    connection: Connection, http: "requests.Session", store: MetadataStore, run: Run, op_id: str
) -> Literal["done", "failed", "skipped"]:
    try:
        _publish_op(connection, http, store, run, op_id)
    except Refused:  # somebody moved it on since it was listed
        return "skipped"
    except (StoreRefused, Unpublishable) as problem:
        with connection.transaction():
            present = record.locked(connection, op_id)
            record.fail(connection, op_id, present.seq, "publish", str(problem), run.actor, run.run_id)
        return "failed"
    return "done"


def _publish_op(
    connection: Connection, http: "requests.Session", store: MetadataStore, run: Run, op_id: str
) -> None:
    inversions = _inversions(connection, op_id)
    for inversion in inversions:
        _name(connection, http, store, run, op_id, inversion)
        if not _recorded(connection, op_id, "inversion_created", inversion):
            held = _tell(http, store, _params(inversion))
            detail = _key(inversion) | {"create_date": held.get("createDate")}
            _add(connection, run, op_id, "inversion_created", None, detail)
    _add(connection, run, op_id, "published", "published", {"inversions": inversions})


def _inversions(connection: Connection, op_id: str) -> list[dict[str, Any]]:
    """What is to be told, one for each instrument program, in the columns of the view published_op."""
    row = connection.execute(
        """
        select detail, (select count(*) from l2inv.event where op_id = %s and kind = 'inverted') as cycle
        from l2inv.event where op_id = %s and kind = 'inverted' order by seq desc limit 1
        """,
        [op_id, op_id],
    ).fetchone()
    if row is None:
        raise Unpublishable("no event says what was inverted")
    inverted, inversions = row["detail"], []
    for program in inverted["instrument_programs"]:
        if program is None:
            raise Unpublishable("its datasets name no instrument program, and the store wants one")
        datasets = sorted(d for d, its_program in inverted["datasets"].items() if its_program == program)
        inversion = _from_datasets(connection, datasets)
        inversion["spectral_lines"] = inverted["lines"] or inversion["spectral_lines"]
        taken = ("asdf_object_key", "outputs", "software", "criteria_version", "inverted_by", "inverted_at")
        inversion |= {name: inverted[name] for name in taken}
        inversions.append(inversion | {"cycle": row["cycle"], "instrument_program_id": program})
    return inversions


def _from_datasets(connection: Connection, dataset_ids: list[str]) -> dict[str, Any]:
    """What an inversion takes from its L1 datasets. Raises Unpublishable when they do not agree."""
    rows = connection.execute(
        "select dataset_id, product_id, bucket, proposal_id, record from l2inv.dataset where dataset_id = any(%s)",
        [dataset_ids],
    ).fetchall()
    records = [row["record"] for row in rows]
    embargo_ends = [r["embargoEndDate"] for r in records if r.get("isEmbargoed") and r.get("embargoEndDate")]
    return {
        "proposal_id": _agreed(rows, "proposal_id"),
        "experiment_id": next(
            (r["primaryExperimentId"] for r in records if r.get("primaryExperimentId")), None
        ),
        "dataset_ids": dataset_ids,
        "product_ids": sorted({row["product_id"] for row in rows if row["product_id"]}),
        "bucket": _agreed(rows, "bucket"),
        "spectral_lines": sorted({line for r in records for line in r.get("spectralLines") or ()}),
        "is_embargoed": any(r.get("isEmbargoed") for r in records),
        "embargo_end_date": max(embargo_ends, default=None),
    }


def _agreed(rows: list[dict[str, Any]], name: str) -> str:
    values = sorted({row[name] or "(none)" for row in rows})
    if len(values) != 1 or values == ["(none)"]:
        raise Unpublishable(
            f"the datasets of an inversion must share one {name}, not {', '.join(values) or 'none'}"
        )
    return values[0]


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


def _name(
    connection: Connection,
    http: "requests.Session",
    store: MetadataStore,
    run: Run,
    op_id: str,
    inversion: dict[str, Any],
) -> None:
    """Gives the inversion the id recorded for it, or else records a new one that the store does not know yet."""
    recorded = _recorded(connection, op_id, "inversion_named", inversion)
    if recorded:
        inversion["inversion_id"] = recorded["inversion_id"]
        return
    inversion["inversion_id"] = new_inversion_id()
    while _held(http, store, {"inversionId": inversion["inversion_id"]}):
        inversion["inversion_id"] = new_inversion_id()
    _add(connection, run, op_id, "inversion_named", None, _key(inversion))


def new_inversion_id() -> str:
    """Gives a random id in the store's convention: `inv.` and six of A-Z and 0-9."""
    return "inv." + "".join(secrets.choice(string.ascii_uppercase + string.digits) for _ in range(6))


def _tell(http: "requests.Session", store: MetadataStore, params: dict[str, Any]) -> dict[str, Any]:
    """Gives what the store holds of the inversion after it was told of it, or was found to know it already.

    Raises StoreError when the store cannot be asked, StoreRefused and Unpublishable when it will not have this one.
    """
    held = _held(http, store, params)
    tries = 0
    while held is None:
        tries += 1
        try:
            held = metadata_store.create_inversion(http, store, params)
        except StoreRefused:
            raise
        except StoreError as problem:
            # The answer may be lost where the work was done: only the store knows. Where it answers that it was
            # not done, it is there, and what fails again is this inversion's alone.
            held = _held(http, store, params)
            if held is None and tries == 2:
                raise Unpublishable(problem.message) from problem
    other = [name for name, value in params.items() if _comparable(held.get(name)) != _comparable(value)]
    if other:
        raise Unpublishable(f"the store holds another {', '.join(other)} under {params['inversionId']}")
    return held


def _held(http: "requests.Session", store: MetadataStore, params: dict[str, Any]) -> dict[str, Any] | None:
    """Asks what the store holds. A store that refuses to say refuses us, not the inversion: raises StoreError."""
    try:
        return metadata_store.find_inversion(http, store, params["inversionId"])
    except StoreRefused as problem:
        raise StoreError(problem.message, problem.hint) from problem


def _comparable(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value


def _key(inversion: dict[str, Any]) -> dict[str, Any]:
    return {name: inversion[name] for name in ("cycle", "instrument_program_id", "inversion_id")}


def _recorded(
    connection: Connection, op_id: str, kind: str, inversion: dict[str, Any]
) -> dict[str, Any] | None:
    row = connection.execute(
        """
        select detail from l2inv.event
        where op_id = %s and kind = %s and detail -> 'cycle' = to_jsonb(%s::integer)
            and detail ->> 'instrument_program_id' = %s
        order by seq desc limit 1
        """,
        [op_id, kind, inversion["cycle"], inversion["instrument_program_id"]],
    ).fetchone()
    return row["detail"] if row else None


def _add(
    connection: Connection,
    run: Run,
    op_id: str,
    kind: str,
    state: states.State | None,
    detail: dict[str, Any],
) -> None:
    with connection.transaction():
        present = record.locked(connection, op_id)
        record.add_one(connection, present, kind, state, run.actor, detail, run.run_id)
