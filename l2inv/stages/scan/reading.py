"""One page of datasets: recognize unchanged records, quarantine unreadable ones, add versions of changed ones."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import msgspec

from l2inv.database.connection import Connection
from l2inv.domain import drift, inventory
from l2inv.errors import StoreError
from l2inv.stages import stage
from l2inv.stages.scan import changes, quarantine, seen
from l2inv.stages.scan.seen import Known

Raw = bytes | msgspec.Raw  # the JSON text of one record


class Datasets(msgspec.Struct):
    """Counts of the records read; `seen` counts each dataset once."""

    seen: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    withdrawn: int = 0
    quarantined: int = 0


class Ops(stage.Counts):
    """Counts of the OPs that the datasets belong to, and of those that got an event."""

    seen: int = 0
    new: int = 0
    changed: int = 0


class Scanned(stage.Report, kw_only=True):
    """The report of scan."""

    stage: str = "scan"
    ops: Ops = msgspec.field(default_factory=Ops)
    complete: bool = True
    failed: str | msgspec.UnsetType = msgspec.UNSET  # why it is not complete
    datasets: Datasets = msgspec.field(default_factory=Datasets)
    since: datetime | None = None  # --since-last: from which updateDate on
    unreadable_fields: dict[str, int] = msgspec.field(
        default_factory=dict
    )  # that count as null: in how many datasets


@dataclass
class Scan:
    """A scan, and what it has read so far."""

    stage: stage.Stage[Scanned]
    profile: drift.Profile
    holds: Callable[[Raw], bool] = lambda raw: True  # whether a record is that of an active dataset
    held: int | None = None  # records that the store reports to hold
    page: int = 0  # pages taken, over all passes
    passed: int = 1  # the pass over the store, from 1
    seen: int = 0  # readable datasets, each once
    quarantined: set[bytes] = field(default_factory=set)  # hashes of what cannot be read
    nameless: set[bytes] = field(default_factory=set)  # of this pass: hashes of records without an id
    repeated: set[str] = field(default_factory=set)  # of this pass: datasets that came more than once

    @property
    def connection(self) -> Connection:
        return self.stage.connection

    def begin_pass(self, number: int, held: int | None) -> None:
        self.passed, self.held = number, held
        self.nameless.clear()
        self.repeated.clear()

    def records_read(self) -> int:
        return self.seen + len(self.quarantined)

    def datasets_read(self) -> tuple[int, int]:
        """Return how many different records came in this pass, and in any."""
        now, ever = seen.count(self.connection, self.passed)
        return now + len(self.nameless), ever + len(self.nameless)


class Decoded(NamedTuple):
    """A readable record, and what was received."""

    record: inventory.Record
    raw: Raw
    raw_hash: bytes


def begin(
    opened: stage.Stage[Scanned], holds: Callable[[Raw], bool] = lambda raw: True, decode_all: bool = False
) -> Scan:
    """Begin a scan within a transaction, at whose end its temporary tables are gone."""
    seen.create(opened.connection)
    if decode_all:
        seen.forget_all(opened.connection)
    changes.create(opened.connection)
    row = opened.connection.execute("select clock_timestamp() as now").fetchone()
    assert row is not None
    return Scan(opened, drift.Profile(latest=row["now"] + drift.CLOCKS_DIFFER), holds)


def take(scan: Scan, pages: Iterable[Iterable[Raw]]) -> None:
    """Process pages as they come, each hashed while PostgreSQL is busy with the one before."""
    with ThreadPoolExecutor(1) as hasher:
        coming: Future[dict[bytes, Raw]] | None = None
        try:
            for page in pages:
                before, coming = coming, hasher.submit(_by_hash, scan, page)
                if before is not None:
                    _take(scan, before.result())
                    before = None  # its records need not be kept while the next page is read
        except StoreError:
            if coming is not None:
                _take(scan, coming.result())
            raise
        if coming is not None:
            _take(scan, coming.result())


def _take(scan: Scan, arrived: dict[bytes, Raw]) -> None:
    """Process one page. Records seen before in this scan are skipped, such as when pages shift while they are read."""
    scan.page += 1
    hashes = list(arrived)
    unchanged = seen.unchanged(scan.connection, hashes, scan.page, scan.passed)
    scan.repeated.update(unchanged.repeated)
    first_time = unchanged.first_time
    if unchanged.differing:
        differing = {hashes[place] for place in unchanged.differing}
        decoded, unreadable = _decode(scan, arrived, differing)
        # Of two records of one dataset on a page the first counts: then the unchanged one is decoded, too.
        if clashing := seen.unseen_again(
            scan.connection, [one.record.dataset_id for one in decoded], scan.page
        ):
            first_time -= len(clashing)
            decoded, unreadable = _decode(scan, arrived, differing.union(clashing))
        firsts, seconds = _first_of_each(scan, decoded)
        known = seen.known(scan.connection, [one.record for one in firsts], scan.page, scan.passed)
        taken, others = _not_seen_before(scan, firsts, known)
        _quarantine(scan, unreadable + [_second(one) for one in seconds + others])
        _keep(scan, taken, known)
    scan.seen += first_time
    datasets = scan.stage.report.datasets
    datasets.unchanged += first_time
    datasets.seen = scan.records_read()
    datasets.quarantined = len(scan.quarantined)
    scan.stage.progress(datasets.seen, scan.held)


def _by_hash(scan: Scan, page: Iterable[Raw]) -> dict[bytes, Raw]:
    """Return the different records of a page in their order, each under the hash of its bytes."""
    arrived: dict[bytes, Raw] = {}
    for raw in page:
        raw_hash = inventory.raw_hash(raw)
        if raw_hash in arrived and (dataset_id := inventory.id_of(raw)) is not None:
            scan.repeated.add(dataset_id)
        arrived.setdefault(raw_hash, raw)
    return arrived


def _decode(
    scan: Scan, arrived: dict[bytes, Raw], wanted: set[bytes]
) -> tuple[list[Decoded], list[inventory.Unreadable]]:
    """Return the wanted records of active datasets, in the page's order, and those that cannot be read."""
    decoded, unreadable = [], []
    for raw_hash, raw in arrived.items():
        if raw_hash in wanted and scan.holds(raw):
            read = inventory.read(raw)
            if isinstance(read, inventory.Unreadable):
                unreadable.append(read)
            else:
                decoded.append(Decoded(read, raw, raw_hash))
    return decoded, unreadable


def _first_of_each(scan: Scan, decoded: Sequence[Decoded]) -> tuple[list[Decoded], list[Decoded]]:
    """Return the first record of each dataset, and those that differ from it."""
    firsts: dict[str, Decoded] = {}
    seconds = []
    for one in decoded:
        first = firsts.setdefault(one.record.dataset_id, one)
        if first is not one:
            scan.repeated.add(one.record.dataset_id)
            if first.record.content_hash != one.record.content_hash:
                seconds.append(one)
    return list(firsts.values()), seconds


def _not_seen_before(
    scan: Scan, firsts: Sequence[Decoded], known: dict[str, Known]
) -> tuple[list[Decoded], list[Decoded]]:
    """Return the records that this scan is to take, and those that differ from what it took for their datasets before.

    One that the store dates later than what was taken on an earlier page is taken: it changed meanwhile.
    """
    taken: list[Decoded] = []
    newer: list[Decoded] = []
    others: list[Decoded] = []
    for one in firsts:
        before = known[one.record.dataset_id]
        if before.seen_in == scan.passed:
            scan.repeated.add(one.record.dataset_id)
        if before.seen_hash is None:
            taken.append(one)
        elif before.seen_hash != one.record.content_hash:
            (newer if _is_newer(one.record, before.updated_at) else others).append(one)
    seen.replace(scan.connection, [one.record for one in newer])
    scan.seen += len(taken)
    for given, number in Counter(inventory.given(one.record.dataset) for one in taken).items():
        scan.profile.count(given, number)
    return taken + newer, others


def _is_newer(record: inventory.Record, before: datetime | None) -> bool:
    return (
        before is not None and record.dataset.update_date is not None and record.dataset.update_date > before
    )


def _second(one: Decoded) -> inventory.Unreadable:
    reason = "a second, different record of the same dataset in one scan"
    return inventory.Unreadable(one.record.dataset_id, reason, bytes(one.raw), is_second=True)


def _quarantine(scan: Scan, unreadable: Sequence[inventory.Unreadable]) -> None:
    """Quarantine records. Their datasets are not gone, and are decoded again by the next scan."""
    if not unreadable:
        return
    kept = quarantine.put(scan.connection, unreadable)
    dataset_ids = [dataset_id for dataset_id in kept.values() if dataset_id is not None]
    scan.quarantined |= kept.keys()
    scan.nameless |= {raw_hash for raw_hash, dataset_id in kept.items() if dataset_id is None}
    seen.unreadable(scan.connection, dataset_ids, scan.page, scan.passed)
    seen.forget(scan.connection, dataset_ids)


def _keep(scan: Scan, taken: Sequence[Decoded], known: dict[str, Known]) -> None:
    """Add a version of each dataset that is new or changed, and note it for its OP's event."""
    fresh = [one.record for one in taken if _differs(one.record, known[one.record.dataset_id])]
    if fresh:
        _write_versions(scan, fresh, known)
    scan.stage.report.datasets.unchanged += len(taken) - len(fresh)
    # Records with something to report must be decoded again by the next scan.
    plain = [one for one in taken if not scan.profile.examine(one.record)]
    seen.remember(scan.connection, [one.record for one in plain], [one.raw_hash for one in plain])


def _differs(record: inventory.Record, known: Known) -> bool:
    return known.version is None or bool(known.withdrawn) or known.content_hash != record.content_hash


def _write_versions(scan: Scan, fresh: Sequence[inventory.Record], known: dict[str, Known]) -> None:
    before = _before(
        scan.connection, [r.dataset_id for r in fresh if known[r.dataset_id].version is not None]
    )
    instruments = scan.stage.settings.qualification.instruments
    found: list[changes.Change] = []
    with (
        scan.connection.cursor() as cursor,
        cursor.copy(
            "copy l2inv.dataset_version (dataset_id, version, op_id, content_hash, record, run_id) from stdin"
        ) as copy,
    ):
        for r in fresh:
            scan.profile.measure(r.dataset)
            version = (known[r.dataset_id].version or 0) + 1
            copy.write_row(
                (r.dataset_id, version, r.op_id, r.content_hash, r.text.decode(), scan.stage.run.run_id)
            )
            was = None if known[r.dataset_id].withdrawn else before.get(r.dataset_id)
            found += changes.between(was, r.dataset, changes.pinned(version, r.content_hash), instruments)
    changes.note(scan.connection, found)
    scan.stage.report.datasets.new += len(fresh) - len(before)
    scan.stage.report.datasets.changed += len(before)


def _before(connection: Connection, dataset_ids: Sequence[str]) -> dict[str, inventory.Dataset]:
    """Return the newest version of each dataset."""
    if not dataset_ids:
        return {}
    rows = connection.execute(
        "select dataset_id, record::text from l2inv.dataset where dataset_id = any(%s)", [dataset_ids]
    )
    return {row["dataset_id"]: inventory.stored(row["record"]) for row in rows}
