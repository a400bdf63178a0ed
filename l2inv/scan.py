"""scan: reads the metadata store's datasets, keeps every version of each, and groups them into OPs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from l2inv import drift, graphql, inventory, metadata_store, quarantine, record
from l2inv.criteria import INPUTS
from l2inv.database import Connection, Run, stage_run
from l2inv.errors import L2invError, StoreError
from l2inv.settings import Settings
from l2inv.states import JUDGED

PASSES = 3  # over the whole store, while it changes under the reader
OVERLAP = timedelta(days=1)  # an incremental scan reads this much again, for what the store dated late
NOTED_FIELDS = 10  # of a changed dataset, named in its OP's event


class Known(NamedTuple):
    """The newest version that the database holds of a dataset."""

    version: int
    content_hash: bytes
    withdrawn: bool


@dataclass
class Change:
    """What a scan found of one OP, as its event will tell it."""

    new: list[str] = field(default_factory=list)
    changed: dict[str, list[str]] = field(default_factory=dict)  # dataset id -> fields
    left: list[str] = field(default_factory=list)
    withdrawn: dict[str, str | None] = field(default_factory=dict)  # dataset id -> the one that supersedes it
    versions: dict[str, str] = field(default_factory=dict)
    affects_verdict: bool = False
    proposal_id: str | None = None
    experiment_id: str | None = None


@dataclass
class Reading:
    """What one scan works on and has found so far."""

    connection: Connection
    settings: Settings
    run: Run
    known: dict[str, Known]
    seen: dict[str, bytes] = field(default_factory=dict)  # dataset id -> content hash
    updated: dict[str, datetime | None] = field(default_factory=dict)  # dataset id -> updateDate
    set_aside: set[bytes] = field(default_factory=set)  # hashes of what could not be read
    unreadable_ids: set[str] = field(default_factory=set)
    ops: set[str] = field(default_factory=set)
    changes: dict[str, Change] = field(default_factory=dict)
    profile: drift.Profile = field(default_factory=drift.Profile)
    progress: Callable[[int], None] = lambda seen: None

    @property
    def counts(self) -> dict[str, int]:
        found: dict[str, int] = self.run.report["datasets"]
        return found

    def records_read(self) -> int:
        return len(self.seen) + len(self.set_aside)


def scan(
    connection: Connection,
    settings: Settings,
    actor: str,
    *,
    since_last: bool = False,
    allow_withdrawals: bool = False,
    progress: Callable[[int], None] = lambda seen: None,
) -> dict[str, Any]:
    """Reads the whole store, or what changed since the last complete scan, and gives the report of the contract.

    Everything it writes becomes visible at once at its end. When the store fails on the way, or changes faster than
    it can be read, what was read is kept, the report says `complete: false`, and `failed` names the cause. Only a
    complete scan of the whole store finds datasets withdrawn. `warnings` names what looks like drift.

    Raises Busy, DatabaseError, and StoreError when nothing could be read at all, and TooManyGone when more datasets
    would be withdrawn than the settings allow; then nothing is written.
    """
    with stage_run(connection, "scan", actor) as run, connection.transaction():
        reading = _begun(connection, settings, run, progress)
        since = _last_complete(connection) if since_last else None
        run.report["since"] = since.isoformat() if since else None
        try:
            _read_all(reading, since)
            if since is None:
                _withdraw(reading, allow_withdrawals)
        except Incomplete as problem:
            run.report |= {"complete": False, "failed": str(problem)}
        except StoreError as problem:
            if not reading.records_read():
                raise
            run.report |= {"complete": False, "failed": f"{problem.message}; {problem.hint}"}
        _end(reading, whole=run.report["complete"] and since is None)
    return run.report


def read_again(connection: Connection, settings: Settings, actor: str) -> dict[str, Any]:
    """Reads what is in quarantine with the reader of this l2inv, and gives a scan's report of it."""
    with stage_run(connection, "scan", actor) as run, connection.transaction():
        run.notes["read_again"] = True
        reading = _begun(connection, settings, run, lambda seen: None)
        _take(reading, quarantine.open_records(connection))
        _end(reading, whole=False)
    return run.report


class Incomplete(Exception):
    """The store could not be read as a whole; the text says why."""


def _begun(connection: Connection, settings: Settings, run: Run, progress: Callable[[int], None]) -> Reading:
    counts = dict.fromkeys(("seen", "new", "changed", "unchanged", "withdrawn", "quarantined"), 0)
    run.report |= {"complete": True, "datasets": counts, "ops": {}, "warnings": []}
    known = {}
    with connection.cursor(name="l2inv_known") as cursor:
        cursor.itersize = 5000
        for row in cursor.execute("select dataset_id, version, content_hash, withdrawn from l2inv.dataset"):
            known[row["dataset_id"]] = Known(row["version"], row["content_hash"], row["withdrawn"])
    return Reading(connection, settings, run, known, progress=progress)


def _last_complete(connection: Connection) -> datetime | None:
    row = connection.execute(
        """
        select max(started_at) as started_at from l2inv.run
        where stage = 'scan' and result -> 'complete' = 'true' and result -> 'read_again' is null
        """
    ).fetchone()
    return row["started_at"] - OVERLAP if row and row["started_at"] else None


def _read_all(reading: Reading, since: datetime | None) -> None:
    """Reads until the store holds no more than was read. Raises Incomplete when it never comes to that."""
    store = reading.settings.metadata_store
    held = metadata_store.record_count(store, since)
    for _ in range(PASSES):
        rows = 0
        for page in metadata_store.dataset_pages(store, since):
            rows += len(page)
            _take(reading, page)
        holds = metadata_store.record_count(store, since)
        # What came or went meanwhile moved the others over the pages' edges. Rows, too: a store may hold duplicates.
        if holds is None or (holds == held and max(reading.records_read(), rows) >= holds):
            return
        held = holds
    raise Incomplete(
        f"the store says it holds {holds} records, {reading.records_read()} were read in {PASSES} passes; "
        "it may be changing: try again later"
    )


def _take(reading: Reading, page: Iterable[bytes | msgspec.Raw]) -> None:
    """Keeps one page: sets aside what cannot be read, drops what was read before, as a page that shifted gives."""
    records: list[inventory.Record] = []
    set_aside: list[inventory.Unreadable] = []
    for raw in page:
        read = inventory.read(raw)
        if isinstance(read, inventory.Unreadable):
            set_aside.append(read)
            continue
        dataset_id = read.dataset.dataset_id
        if dataset_id not in reading.seen or _is_newer(read, reading, records):
            reading.seen[dataset_id] = read.content_hash
            reading.updated[dataset_id] = read.dataset.update_date
            records.append(read)
        elif reading.seen[dataset_id] != read.content_hash:
            reason = "a second, different record of the same dataset in one scan"
            set_aside.append(inventory.Unreadable(dataset_id, reason, bytes(raw)))
    if set_aside:
        reading.set_aside |= quarantine.put(reading.connection, set_aside)
        reading.unreadable_ids |= {u.dataset_id for u in set_aside if u.dataset_id}
    _keep(reading, records)
    reading.counts["seen"] = reading.records_read()
    reading.counts["quarantined"] = len(reading.set_aside)
    reading.progress(reading.counts["seen"])


def _is_newer(read: inventory.Record, reading: Reading, page: list[inventory.Record]) -> bool:
    """Whether the store changed a dataset since this scan read it, on an earlier page."""
    dataset_id = read.dataset.dataset_id
    before, now = reading.updated[dataset_id], read.dataset.update_date
    on_this_page = any(r.dataset.dataset_id == dataset_id for r in page)
    return before is not None and now is not None and now > before and not on_this_page


def _keep(reading: Reading, records: list[inventory.Record]) -> None:
    """Adds a version for each record that is new or not what the database holds, and notes it for the OP's event."""
    fresh = [r for r in records if _differs(r, reading.known.get(r.dataset.dataset_id))]
    before = _before(reading, [r.dataset.dataset_id for r in fresh if r.dataset.dataset_id in reading.known])
    for r in records:
        reading.ops.add(r.dataset.observing_program_execution_id)
    reading.profile.count([r.dataset for r in records])
    for r in fresh:
        reading.profile.measure(r.dataset)
        _note(reading, r.dataset, before.get(r.dataset.dataset_id))
    with (
        reading.connection.cursor() as cursor,
        cursor.copy(
            "copy l2inv.dataset_version (dataset_id, version, op_id, content_hash, record, run_id) from stdin"
        ) as copy,
    ):
        for r in fresh:
            dataset_id, op_id = r.dataset.dataset_id, r.dataset.observing_program_execution_id
            version = reading.known[dataset_id].version + 1 if dataset_id in reading.known else 1
            copy.write_row((dataset_id, version, op_id, r.content_hash, r.text.decode(), reading.run.run_id))
            reading.known[dataset_id] = Known(version, r.content_hash, False)
            reading.changes[op_id].versions[dataset_id] = _pin(version, r.content_hash)
    reading.counts["new"] += len(fresh) - len(before)
    reading.counts["changed"] += len(before)
    reading.counts["unchanged"] += len(records) - len(fresh)


def _differs(r: inventory.Record, known: Known | None) -> bool:
    return known is None or known.withdrawn or known.content_hash != r.content_hash


def _before(reading: Reading, dataset_ids: list[str]) -> dict[str, inventory.Dataset]:
    if not dataset_ids:
        return {}
    rows = reading.connection.execute(
        "select dataset_id, record::text from l2inv.dataset where dataset_id = any(%s)", [dataset_ids]
    )
    return {row["dataset_id"]: inventory.stored(row["record"]) for row in rows}


def _note(reading: Reading, now: inventory.Dataset, before: inventory.Dataset | None) -> None:
    instruments = set(reading.settings.qualification.instruments)
    change = reading.changes.setdefault(now.observing_program_execution_id, Change())
    change.proposal_id = change.proposal_id or now.primary_proposal_id
    change.experiment_id = change.experiment_id or now.primary_experiment_id
    if before is None or reading.known[now.dataset_id].withdrawn:
        change.new.append(now.dataset_id)
        change.affects_verdict |= now.instrument_name in instruments
        return
    fields = [name for name in now.__struct_fields__ if getattr(now, name) != getattr(before, name)]
    affects = bool(INPUTS.intersection(fields)) and bool(
        instruments & {now.instrument_name, before.instrument_name}
    )
    change.affects_verdict |= affects
    if before.observing_program_execution_id == now.observing_program_execution_id:
        # What the verdict depends on is never among those that are not noted.
        change.changed[now.dataset_id] = sorted(fields, key=lambda name: name not in INPUTS)[:NOTED_FIELDS]
        return
    change.new.append(now.dataset_id)
    former = reading.changes.setdefault(before.observing_program_execution_id, Change())
    former.left.append(now.dataset_id)
    former.affects_verdict |= affects


def _withdraw(reading: Reading, allowed: bool) -> None:
    """Records as withdrawn what the whole store, and the store asked by name, no longer holds.

    Raises TooManyGone when that is more than the settings allow: rather a broken store than an empty Sun.
    """
    store = reading.settings.metadata_store
    active = [dataset_id for dataset_id, known in reading.known.items() if not known.withdrawn]
    missing = [d for d in active if d not in reading.seen and d not in reading.unreadable_ids]
    nameless = len(reading.set_aside) - len(reading.unreadable_ids)
    for page in metadata_store.datasets_by_id(store, missing):
        _take(reading, page)
    if len(reading.set_aside) - len(reading.unreadable_ids) > nameless:
        raise Incomplete("the store gives records without an id for datasets asked for by id")
    gone = [d for d in missing if d not in reading.seen and d not in reading.unreadable_ids]
    limit = max(store.max_withdrawn, round(store.max_withdrawn_share * len(active)))
    if len(gone) > limit and not allowed:
        raise TooManyGone(
            f"{graphql.named(store)}: {len(gone)} of {len(active)} datasets are gone from it, more than {limit}; "
            "nothing was written",
            "if that is right: l2inv scan --allow-withdrawals",
        )
    if not gone:
        return
    rows = reading.connection.execute(
        """
        insert into l2inv.dataset_version (dataset_id, version, op_id, content_hash, record, run_id, withdrawn)
            select dataset_id, version + 1, op_id, content_hash, record, %s, true
            from l2inv.dataset where dataset_id = any(%s)
        returning dataset_id, op_id, version, content_hash, record ->> 'instrumentName' as instrument,
                  record ->> 'productId' as product_id
        """,
        [reading.run.run_id, gone],
    ).fetchall()
    heirs = _heirs(reading.connection, [row["product_id"] for row in rows if row["product_id"]])
    for row in rows:
        change = reading.changes.setdefault(row["op_id"], Change())
        change.withdrawn[row["dataset_id"]] = heirs.get(row["product_id"])
        change.versions[row["dataset_id"]] = _pin(row["version"], row["content_hash"])
        change.affects_verdict |= row["instrument"] in reading.settings.qualification.instruments
    reading.counts["withdrawn"] = len(rows)


def _pin(version: int, content_hash: bytes) -> str:
    """What the event says of a version, so that the record of the OP holds its datasets to what was read."""
    return f"{version}:{content_hash.hex()[:16]}"


class TooManyGone(L2invError):
    """More datasets are gone than the settings let one scan withdraw."""


def _heirs(connection: Connection, product_ids: list[str]) -> dict[str, str]:
    """Gives the active dataset of each product: what supersedes a withdrawn one."""
    rows = connection.execute(
        """
        select product_id, max(dataset_id) as dataset_id from l2inv.dataset
        where product_id = any(%s) and not withdrawn group by product_id
        """,
        [product_ids],
    )
    return {row["product_id"]: row["dataset_id"] for row in rows}


def _end(reading: Reading, whole: bool) -> None:
    """Tells the OPs, settles the quarantine and compares with what earlier scans looked like."""
    connection, report = reading.connection, reading.run.report
    report["ops"] = {"seen": len(reading.ops)} | _tell(connection, reading.run, reading.changes)
    quarantine.settle(connection, reading.run.run_id, list(reading.seen), whole)
    earlier = _earlier_profile(connection)
    report["warnings"] = drift.warnings(reading.profile, earlier, whole)
    reading.run.notes["profile"] = reading.profile.plain(earlier, whole)


def _earlier_profile(connection: Connection) -> drift.Plain | None:
    row = connection.execute(
        """
        select result -> 'profile' as profile from l2inv.run
        where stage = 'scan' and result -> 'profile' is not null order by run_id desc limit 1
        """
    ).fetchone()
    return row["profile"] if row else None


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
            new.append(record.Event(op_id, 0, "discovered", "discovered", _first_detail(change)))
            continue
        reopens = change.affects_verdict and row["state"] in JUDGED
        state: Any = "discovered" if reopens else None
        changed.append(record.Event(op_id, row["seq"], "datasets_changed", state, _detail(change)))
    for events in (new, changed):
        for start in range(0, len(events), 10_000):
            record.add(connection, events[start : start + 10_000], run.actor, run.run_id)
    return {"new": len(new), "changed": len(changed)}


def _first_detail(change: Change) -> dict[str, Any]:
    names = {"proposal_id": change.proposal_id, "experiment_id": change.experiment_id}
    return {"datasets": sorted(change.new), **names, "versions": dict(sorted(change.versions.items()))}


def _detail(change: Change) -> dict[str, Any]:
    told = {
        "new": sorted(change.new),
        "changed": dict(sorted(change.changed.items())),
        "left": sorted(change.left),
        "withdrawn": dict(sorted(change.withdrawn.items())),
        "versions": dict(sorted(change.versions.items())),
    }
    return {"affects_verdict": change.affects_verdict} | {
        name: value for name, value in told.items() if value
    }
