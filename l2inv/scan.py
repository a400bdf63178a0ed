"""scan: reads the metadata store's datasets, keeps every version of each, and groups them into OPs."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from l2inv import inventory, metadata_store, record
from l2inv.criteria import INPUTS
from l2inv.database import Connection, Run, stage_run
from l2inv.errors import StoreError
from l2inv.settings import Settings


@dataclass
class Known:
    """The newest version that the database holds of a dataset."""

    version: int
    content_hash: bytes
    op_id: str


@dataclass
class Change:
    """What a scan found of one OP, as its event will tell it."""

    new: list[str] = field(default_factory=list)
    changed: dict[str, list[str]] = field(default_factory=dict)  # dataset id -> fields
    left: list[str] = field(default_factory=list)
    affects_verdict: bool = False
    proposal_id: str | None = None
    experiment_id: str | None = None


def scan(
    connection: Connection,
    settings: Settings,
    actor: str,
    progress: Callable[[int], None] = lambda seen: None,
) -> dict[str, Any]:
    """Reads the whole store once, and gives the report of the contract.

    Everything it writes becomes visible at once at its end. When the store fails on the way, what was read until
    then is kept, the report says `complete: false`, and `failed` names the cause. Raises Busy, DatabaseError, and
    StoreError when nothing could be read at all.
    """
    with stage_run(connection, "scan", actor) as run, connection.transaction():
        counts = dict.fromkeys(("seen", "new", "changed", "unchanged", "withdrawn", "quarantined"), 0)
        run.report |= {"complete": True, "datasets": counts, "ops": {"seen": 0, "new": 0, "changed": 0}}
        known = _known(connection)
        seen: dict[str, bytes] = {}
        ops: set[str] = set()
        changes: dict[str, Change] = {}
        try:
            for page in metadata_store.dataset_pages(settings.metadata_store):
                records = _readable(connection, page, seen, counts)
                ops.update(r.dataset.observing_program_execution_id for r in records)
                _keep(connection, run, records, known, changes, settings.qualification.instruments)
                progress(counts["seen"])
        except StoreError as problem:
            if not counts["seen"]:
                raise
            run.report |= {"complete": False, "failed": f"{problem.message}; {problem.hint}"}
        run.report["ops"] = {"seen": len(ops)} | _tell(connection, run, changes)
    return run.report


def _known(connection: Connection) -> dict[str, Known]:
    rows = connection.execute("select dataset_id, version, content_hash, op_id from l2inv.dataset")
    return {row["dataset_id"]: Known(row["version"], row["content_hash"], row["op_id"]) for row in rows}


def _readable(
    connection: Connection, page: Iterable[msgspec.Raw], seen: dict[str, bytes], counts: dict[str, int]
) -> list[inventory.Record]:
    """Sets aside what cannot be read; drops what the scan has read before, as a page that shifted gives."""
    records, set_aside = [], []
    for raw in page:
        read = inventory.read(raw)
        if isinstance(read, inventory.Unreadable):
            set_aside.append(read)
            continue
        dataset_id = read.dataset.dataset_id
        if dataset_id not in seen:
            seen[dataset_id] = read.content_hash
            records.append(read)
        elif seen[dataset_id] != read.content_hash:
            reason = "a second, different record of the same dataset in one scan"
            set_aside.append(inventory.Unreadable(dataset_id, reason, bytes(raw)))
    if set_aside:
        _quarantine(connection, set_aside)
    counts["seen"] += len(records) + len(set_aside)
    counts["quarantined"] += len(set_aside)
    return records


def _quarantine(connection: Connection, set_aside: list[inventory.Unreadable]) -> None:
    rows = [(hashlib.sha256(u.raw).digest(), u.dataset_id, u.reason, u.raw) for u in set_aside]
    with connection.cursor() as cursor:
        cursor.executemany(
            """
            insert into l2inv.quarantine (raw_hash, dataset_id, reason, raw) values (%s, %s, %s, %s)
            on conflict (raw_hash) do update set reason = excluded.reason, last_seen = clock_timestamp()
            """,
            rows,
        )


def _keep(
    connection: Connection,
    run: Run,
    records: list[inventory.Record],
    known: dict[str, Known],
    changes: dict[str, Change],
    instruments: Iterable[str],
) -> None:
    """Adds a version for each record that is new or not what the database holds, and notes it for the OP's event."""
    fresh = [r for r in records if _differs(r, known.get(r.dataset.dataset_id))]
    before = _before(connection, [r.dataset.dataset_id for r in fresh if r.dataset.dataset_id in known])
    for r in fresh:
        _note(r.dataset, before.get(r.dataset.dataset_id), changes, set(instruments))
    with (
        connection.cursor() as cursor,
        cursor.copy(
            "copy l2inv.dataset_version (dataset_id, version, op_id, content_hash, record, run_id) from stdin"
        ) as copy,
    ):
        for r in fresh:
            dataset_id, op_id = r.dataset.dataset_id, r.dataset.observing_program_execution_id
            version = known[dataset_id].version + 1 if dataset_id in known else 1
            copy.write_row((dataset_id, version, op_id, r.content_hash, r.text.decode(), run.run_id))
    counts = run.report["datasets"]
    counts["new"] += len(fresh) - len(before)
    counts["changed"] += len(before)
    counts["unchanged"] += len(records) - len(fresh)


def _differs(r: inventory.Record, known: Known | None) -> bool:
    return known is None or known.content_hash != r.content_hash


def _before(connection: Connection, dataset_ids: list[str]) -> dict[str, inventory.Dataset]:
    if not dataset_ids:
        return {}
    rows = connection.execute(
        "select dataset_id, record::text from l2inv.dataset where dataset_id = any(%s)", [dataset_ids]
    )
    return {row["dataset_id"]: inventory.stored(row["record"]) for row in rows}


def _note(
    now: inventory.Dataset,
    before: inventory.Dataset | None,
    changes: dict[str, Change],
    instruments: set[str],
) -> None:
    change = changes.setdefault(now.observing_program_execution_id, Change())
    change.proposal_id = change.proposal_id or now.primary_proposal_id
    change.experiment_id = change.experiment_id or now.primary_experiment_id
    if before is None:
        change.new.append(now.dataset_id)
        change.affects_verdict |= now.instrument_name in instruments
        return
    fields = [name for name in now.__struct_fields__ if getattr(now, name) != getattr(before, name)]
    affects = bool(INPUTS.intersection(fields)) and bool(
        instruments & {now.instrument_name, before.instrument_name}
    )
    change.affects_verdict |= affects
    if before.observing_program_execution_id == now.observing_program_execution_id:
        change.changed[now.dataset_id] = fields
        return
    change.new.append(now.dataset_id)
    former = changes.setdefault(before.observing_program_execution_id, Change())
    former.left.append(now.dataset_id)
    former.affects_verdict |= affects


def _tell(connection: Connection, run: Run, changes: dict[str, Change]) -> dict[str, int]:
    """Adds one event to each OP that changed: `discovered` to a new one, else `datasets_changed`, which takes an OP
    that was judged back to `discovered` when its verdict depends on what changed."""
    rows = connection.execute(
        "select op_id, seq, state from l2inv.op_state where op_id = any(%s) order by op_id for update",
        [sorted(changes)],
    )
    present = {row["op_id"]: row for row in rows}
    new, changed = [], []
    for op_id, change in changes.items():
        row = present.get(op_id)
        if row is None:
            detail = {
                "datasets": sorted(change.new),
                "proposal_id": change.proposal_id,
                "experiment_id": change.experiment_id,
            }
            new.append(record.Event(op_id, 0, "discovered", "discovered", detail))
        else:
            reopens = change.affects_verdict and row["state"] in (
                "invertible",
                "not_invertible",
                "preprocessed",
            )
            detail = _detail(change)
            changed.append(
                record.Event(op_id, row["seq"], "datasets_changed", "discovered" if reopens else None, detail)
            )
    for events in (new, changed):
        for start in range(0, len(events), 10_000):
            record.add(connection, events[start : start + 10_000], run.actor, run.run_id)
    return {"new": len(new), "changed": len(changed)}


def _detail(change: Change) -> dict[str, Any]:
    detail: dict[str, Any] = {"affects_verdict": change.affects_verdict}
    if change.new:
        detail["new"] = sorted(change.new)
    if change.changed:
        detail["changed"] = {key: change.changed[key] for key in sorted(change.changed)}
    if change.left:
        detail["left"] = sorted(change.left)
    return detail
