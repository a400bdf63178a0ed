"""scan: read the metadata store's datasets, keep every version of each, and group them into OPs."""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta

from l2inv.config.settings import Settings
from l2inv.database.connection import Connection
from l2inv.domain import drift, inventory
from l2inv.errors import L2invError, StoreError
from l2inv.services import metadata_store
from l2inv.services.metadata_store import Source
from l2inv.stages.scan import changes, quarantine, seen
from l2inv.stages.scan.reading import Scan, Scanned, begin, take
from l2inv.stages.stage import Progress, opened

PASSES = 3  # at most, over a store that changes while it is read
OVERLAP = timedelta(days=1)  # by which scans with --since-last overlap: the store may set updateDate late


def scan(
    connection: Connection,
    settings: Settings,
    actor: str,
    *,
    since_last: bool = False,
    allow_withdrawals: bool = False,
    decode_all: bool = False,
    progress: Progress = lambda seen, of: None,
) -> Scanned:
    """Read the whole store, or what changed since the last complete scan, and return the stage's report.

    A record with the same bytes as last time, by the table `received`, is not decoded again, except with `decode_all`: a
    writer can change that table.

    Everything it writes becomes visible at its end. If the store fails midway, or changes faster than it can be read, what
    was read is kept, the report has `complete: false`, and `failed` is the cause. Only a complete scan of the whole store
    finds withdrawn datasets. `warnings` lists signs of drift.

    Raise Busy, DatabaseError, StoreError if nothing could be read, and TooManyGone if more datasets would be withdrawn
    than the settings allow; then nothing is written.
    """
    report = Scanned()
    with (
        metadata_store.source(settings.metadata_store) as store,
        opened(connection, settings, actor, report, progress) as stage,
        connection.transaction(),
    ):
        this = begin(stage, store.holds, decode_all)
        report.since = _last_complete(connection) if since_last else None
        try:
            _read_all(this, store, report.since)
            if report.since is None:
                _withdraw(this, store, allow_withdrawals)
        except Incomplete as problem:
            report.complete, report.failed = False, str(problem)
        except StoreError as problem:
            if not this.records_read():
                raise
            report.complete, report.failed = False, f"{problem.message}; {problem.hint}"
        _end(this, whole=report.complete and report.since is None)
    return report


def read_again(connection: Connection, settings: Settings, actor: str) -> Scanned:
    """Read what is in quarantine with the reader of this l2inv, and return a scan's report of it."""
    report = Scanned()
    with opened(connection, settings, actor, report) as stage, connection.transaction():
        stage.run.notes["read_again"] = True
        this = begin(stage)
        take(this, [quarantine.open_records(connection)])
        _end(this, whole=False)
    return report


class Incomplete(Exception):
    """The store could not be read completely; the text is the reason."""


def _last_complete(connection: Connection) -> datetime | None:
    row = connection.execute(
        """
        select max(started_at) as started_at from l2inv.run
        where stage = 'scan' and result -> 'complete' = 'true' and result -> 'read_again' is null
        """
    ).fetchone()
    return row["started_at"] - OVERLAP if row and row["started_at"] else None


def _read_all(scan: Scan, store: Source, since: datetime | None) -> None:
    """Read until the store has no more than was read. Raise Incomplete if that never happens."""
    held = store.count(since)
    for number in range(1, PASSES + 1):
        scan.begin_pass(number, held)
        take(scan, store.pages(since))
        holds = store.count(since)
        if holds is None:
            return
        read, _ = scan.datasets_read()
        # What came or went meanwhile moved the others over the pages' edges.
        if holds == held and read + (read < holds and _held_twice(scan, store)) == holds:
            return
        held = holds
    more_than_once = f" ({len(scan.repeated)} of them came more than once)" if scan.repeated else ""
    raise Incomplete(
        f"the store reports {held} datasets, and returned {read} different ones{more_than_once} "
        f"in the last of {PASSES} passes; it may be changing: try again later"
    )


def _held_twice(scan: Scan, store: Source) -> int:
    """Return how many records the store holds beyond one of each dataset, of those that came more than once.

    Repetition alone proves nothing: a page may have been sent again in place of another. Requested by id, datasets that
    the store really has twice are adjacent on one page.
    """
    extra = 0
    for page in store.pages_by_id(sorted(scan.repeated)):
        ids = [dataset_id for raw in page if (dataset_id := inventory.id_of(raw)) in scan.repeated]
        extra += len(ids) - len(set(ids))
    return extra


def _withdraw(scan: Scan, store: Source, allowed: bool) -> None:
    """Record as withdrawn the datasets that are neither in the whole store nor found by id.

    Raise TooManyGone if that is more than the settings allow: the store is probably broken.
    """
    gone = _gone(scan, store)
    if not gone:
        return
    limits, active = scan.stage.settings.metadata_store, _count_active(scan.connection)
    limit = max(limits.max_withdrawn, round(limits.max_withdrawn_share * active))
    if len(gone) > limit and not allowed:
        raise TooManyGone(
            f"{store.name}: {len(gone)} of {active} datasets are gone from it, more than {limit}; "
            "nothing was written",
            "if that is right: l2inv scan --allow-withdrawals",
        )
    if still := store.count_by_id(gone):
        raise Incomplete(
            f"asked by id for {len(gone)} datasets that may be gone, the store returns none and reports {still}"
        )
    rows = scan.connection.execute(
        """
        insert into l2inv.dataset_version (dataset_id, version, op_id, content_hash, record, run_id, withdrawn)
            select dataset_id, version + 1, op_id, content_hash, record, %s, true
            from l2inv.dataset where dataset_id = any(%s)
        returning dataset_id, op_id, version, content_hash, record ->> 'instrumentName' as instrument
        """,
        [scan.stage.run.run_id, gone],
    ).fetchall()
    seen.forget(scan.connection, gone)
    heirs = _heirs(scan.connection, gone)
    changes.note(
        scan.connection,
        [
            changes.Change(
                row["op_id"],
                "withdrawn",
                row["dataset_id"],
                json.dumps(heirs.get(row["dataset_id"])),
                row["instrument"] in scan.stage.settings.qualification.instruments,
                changes.pinned(row["version"], row["content_hash"]),
            )
            for row in rows
        ],
    )
    scan.stage.report.datasets.withdrawn = len(rows)


def _gone(scan: Scan, store: Source) -> list[str]:
    """Return the active datasets that the store returns neither with all others nor by id."""
    missing = seen.missing(scan.connection)
    if not missing:
        return []
    nameless = len(scan.nameless)
    take(scan, store.pages_by_id(missing))
    if len(scan.nameless) > nameless:
        raise Incomplete("the store returns records without an id for datasets requested by id")
    return seen.missing(scan.connection)


def _count_active(connection: Connection) -> int:
    row = connection.execute("select count(*) as active from l2inv.dataset where not withdrawn").fetchone()
    assert row is not None
    active: int = row["active"]
    return active


def _heirs(connection: Connection, dataset_ids: Sequence[str]) -> dict[str, str]:
    """Return the datasets that supersede some of these, by product."""
    rows = connection.execute(
        "select dataset_id, heir from l2inv.heir where dataset_id = any(%s)", [dataset_ids]
    )
    return {row["dataset_id"]: row["heir"] for row in rows}


class TooManyGone(L2invError):
    """More datasets are gone than one scan may withdraw by the settings."""


def _end(scan: Scan, whole: bool) -> None:
    """Record the OPs' events, resolve quarantined records, and compare with the profile of earlier scans."""
    connection, report, profile = scan.connection, scan.stage.report, scan.profile
    _, report.datasets.seen = scan.datasets_read()
    report.ops.seen = seen.count_ops(connection)
    report.ops.new, report.ops.changed = changes.record(scan.stage)
    readable = seen.readable_in_quarantine(connection)
    quarantine.settle(connection, scan.stage.run.run_id, readable, whole)
    for given, datasets in seen.undecoded(connection).items():
        profile.count(given, datasets)
    earlier = _earlier_profile(connection)
    for warning in drift.warnings(profile, earlier, whole):
        scan.stage.warn(warning)
    report.unreadable_fields = {name: found["count"] for name, found in sorted(profile.unreadable.items())}
    scan.stage.run.notes["profile"] = profile.plain(earlier, whole)


def _earlier_profile(connection: Connection) -> drift.Earlier | None:
    row = connection.execute(
        """
        select result -> 'profile' as profile from l2inv.run
        where stage = 'scan' and result -> 'profile' is not null order by run_id desc limit 1
        """
    ).fetchone()
    return row["profile"] if row else None
