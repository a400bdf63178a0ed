"""scan: reads the metadata store's datasets, keeps every version of each, and groups them into OPs."""

import json
from datetime import datetime, timedelta
from typing import Any

from l2inv.config.settings import Settings
from l2inv.database.connection import Connection
from l2inv.database.runs import Run, stage_run
from l2inv.domain import drift, inventory
from l2inv.domain.states import JUDGED
from l2inv.errors import L2invError, StoreError
from l2inv.record import event_log
from l2inv.services import metadata_store
from l2inv.services.metadata_store import Source
from l2inv.stages.scan import quarantine
from l2inv.stages.scan.reading import Found, Progress, Reading, Row, begun, ids_read, note, pinned, take

PASSES = 3  # over the whole store, while it changes under the reader
OVERLAP = timedelta(days=1)  # an incremental scan reads this much again, for what the store dated late
AT_ONCE = 5000  # OPs told in one step


def scan(
    connection: Connection,
    settings: Settings,
    actor: str,
    *,
    since_last: bool = False,
    allow_withdrawals: bool = False,
    progress: Progress = lambda seen, of: None,
) -> dict[str, Any]:
    """Read the whole store, or what changed since the last complete scan, and return the report of the contract.

    Everything it writes becomes visible at once at its end. When the store fails on the way, or changes faster than
    it can be read, what was read is kept, the report says `complete: false`, and `failed` names the cause. Only a
    complete scan of the whole store finds datasets withdrawn. `warnings` names what looks like drift.

    Raise Busy, DatabaseError, and StoreError when nothing could be read at all, and TooManyGone when more datasets
    would be withdrawn than the settings allow; then nothing is written.
    """
    with (
        metadata_store.source(settings.metadata_store) as store,
        stage_run(connection, "scan", actor) as run,
        connection.transaction(),
    ):
        reading = begun(connection, settings, run, progress)
        since = _last_complete(connection) if since_last else None
        run.report["since"] = since.isoformat() if since else None
        try:
            _read_all(reading, store, since)
            if since is None:
                _withdraw(reading, store, allow_withdrawals)
        except Incomplete as problem:
            run.report |= {"complete": False, "failed": str(problem)}
        except StoreError as problem:
            if not reading.records_read():
                raise
            run.report |= {"complete": False, "failed": f"{problem.message}; {problem.hint}"}
        _end(reading, whole=run.report["complete"] and since is None)
    return run.report


def read_again(connection: Connection, settings: Settings, actor: str) -> dict[str, Any]:
    """Read what is in quarantine with the reader of this l2inv, and return a scan's report of it."""
    with stage_run(connection, "scan", actor) as run, connection.transaction():
        run.notes["read_again"] = True
        reading = begun(connection, settings, run, lambda seen, of: None)
        take(reading, quarantine.open_records(connection))
        _end(reading, whole=False)
    return run.report


class Incomplete(Exception):
    """The store could not be read as a whole; the text says why."""


def _last_complete(connection: Connection) -> datetime | None:
    row = connection.execute(
        """
        select max(started_at) as started_at from l2inv.run
        where stage = 'scan' and result -> 'complete' = 'true' and result -> 'read_again' is null
        """
    ).fetchone()
    return row["started_at"] - OVERLAP if row and row["started_at"] else None


def _read_all(reading: Reading, store: Source, since: datetime | None) -> None:
    """Read until the store holds no more than was read. Raise Incomplete when it never comes to that."""
    held = store.count(since)
    for number in range(1, PASSES + 1):
        reading.begin_pass(number, held)
        for page in store.pages(since):
            take(reading, [raw for raw in page if store.holds(raw)])
        holds = store.count(since)
        read, _ = ids_read(reading)
        # What came or went meanwhile moved the others over the pages' edges.
        if holds is None or (
            holds == held and read + (read < holds and _held_twice(reading, store)) == holds
        ):
            return
        held = holds
    more_than_once = f" ({len(reading.again)} of them came more than once)" if reading.again else ""
    raise Incomplete(
        f"the store says it holds {held} datasets, and gave {read} different ones{more_than_once} "
        f"in the last of {PASSES} passes; it may be changing: try again later"
    )


def _held_twice(reading: Reading, store: Source) -> int:
    """Return how many records the store holds beyond one of each dataset, of those that came more than once.

    That they came so proves nothing: a page may have been given again in place of another. Asked for by name, those
    that the store does hold twice stand beside each other on one page.
    """
    extra = 0
    for page in store.pages_by_id(sorted(reading.again)):
        ids = [dataset_id for raw in page if (dataset_id := inventory.id_of(raw)) in reading.again]
        extra += len(ids) - len(set(ids))
    return extra


def _withdraw(reading: Reading, store: Source, allowed: bool) -> None:
    """Record as withdrawn what the whole store, and the store asked by name, no longer holds.

    Raise TooManyGone when that is more than the settings allow: rather a broken store than an empty Sun.
    """
    limits = reading.settings.metadata_store
    active, missing = _missing(reading)
    nameless = len(reading.nameless)
    for page in store.pages_by_id(missing):
        take(reading, page)
    if len(reading.nameless) > nameless:
        raise Incomplete("the store gives records without an id for datasets asked for by id")
    gone = _missing(reading)[1] if missing else []
    limit = max(limits.max_withdrawn, round(limits.max_withdrawn_share * active))
    if len(gone) > limit and not allowed:
        raise TooManyGone(
            f"{store.name}: {len(gone)} of {active} datasets are gone from it, more than {limit}; "
            "nothing was written",
            "if that is right: l2inv scan --allow-withdrawals",
        )
    if not gone:
        return
    if still := store.count_by_id(gone):
        raise Incomplete(
            f"asked by id for {len(gone)} datasets that may be gone, the store gives none and says that it holds {still}"
        )
    rows = reading.connection.execute(
        """
        insert into l2inv.dataset_version (dataset_id, version, op_id, content_hash, record, run_id, withdrawn)
            select dataset_id, version + 1, op_id, content_hash, record, %s, true
            from l2inv.dataset where dataset_id = any(%s)
        returning dataset_id, op_id, version, content_hash, record ->> 'instrumentName' as instrument
        """,
        [reading.run.run_id, gone],
    ).fetchall()
    found = reading.connection.execute(
        "select dataset_id, heir from l2inv.heir where dataset_id = any(%s)", [gone]
    )
    heirs = {row["dataset_id"]: row["heir"] for row in found}
    note(
        reading,
        (
            Found(
                row["op_id"],
                "withdrawn",
                row["dataset_id"],
                json.dumps(heirs.get(row["dataset_id"])),
                row["instrument"] in reading.settings.qualification.instruments,
                pinned(row["version"], row["content_hash"]),
            )
            for row in rows
        ),
    )
    reading.counts["withdrawn"] = len(rows)


def _missing(reading: Reading) -> tuple[int, list[str]]:
    """Return how many datasets are active by the record, and which of them this scan has not seen."""
    reading.connection.execute("analyze pg_temp.seen")
    counted = reading.connection.execute(
        "select count(*) as active from l2inv.dataset where not withdrawn"
    ).fetchone()
    rows = reading.connection.execute(
        """
        select dataset_id from l2inv.dataset d
        where not withdrawn and not exists (select from pg_temp.seen s where s.dataset_id = d.dataset_id)
        order by dataset_id
        """
    )
    assert counted is not None
    return counted["active"], [row["dataset_id"] for row in rows]


class TooManyGone(L2invError):
    """More datasets are gone than the settings let one scan withdraw."""


def _end(reading: Reading, whole: bool) -> None:
    """Tell the OPs, settles the quarantine and compares with what earlier scans looked like."""
    connection, report = reading.connection, reading.run.report
    ops = connection.execute("select count(distinct op_id) as seen from pg_temp.seen").fetchone()
    assert ops is not None
    _, report["datasets"]["seen"] = ids_read(reading)
    report["ops"] = {"seen": ops["seen"]} | _tell(connection, reading.run)
    readable = connection.execute(
        "select dataset_id from pg_temp.seen where content_hash is not null and dataset_id in "
        "(select dataset_id from l2inv.unresolved)"
    )
    quarantine.settle(connection, reading.run.run_id, [row["dataset_id"] for row in readable], whole)
    earlier = _earlier_profile(connection)
    report["warnings"] = drift.warnings(reading.profile, earlier, whole)
    report["unreadable_fields"] = {
        name: found["count"] for name, found in sorted(reading.profile.unreadable.items())
    }
    reading.run.notes["profile"] = reading.profile.plain(earlier, whole)


def _earlier_profile(connection: Connection) -> drift.Plain | None:
    row = connection.execute(
        """
        select result -> 'profile' as profile from l2inv.run
        where stage = 'scan' and result -> 'profile' is not null order by run_id desc limit 1
        """
    ).fetchone()
    return row["profile"] if row else None


def _tell(connection: Connection, run: Run) -> dict[str, int]:
    """Add one event to each OP that changed: `discovered` to a new one, else `datasets_changed`, which takes an OP
    that was judged back to `discovered` when its verdict depends on what changed."""
    connection.execute(
        """
        select count(*) from (select from l2inv.op_state where op_id in (select op_id from pg_temp.found)
                              order by op_id for update) locked
        """
    )
    counts = {"new": 0, "changed": 0}
    with connection.cursor("l2inv_found") as cursor:
        cursor.execute(
            """
            select f.op_id, s.seq, s.state, bool_or(f.affects_verdict) as affects_verdict,
                   (array_agg(f.proposal_id order by place) filter (where f.proposal_id is not null))[1] as proposal_id,
                   (array_agg(f.experiment_id order by place) filter (where f.experiment_id is not null))[1] as experiment_id,
                   array_agg(distinct f.dataset_id) filter (where what = 'new') as new,
                   jsonb_object_agg(f.dataset_id, told order by place) filter (where what = 'changed') as changed,
                   jsonb_object_agg(f.dataset_id, old_new order by place) filter (where old_new is not null) as "values",
                   array_agg(distinct f.dataset_id) filter (where what = 'left') as "left",
                   jsonb_object_agg(f.dataset_id, told order by place) filter (where what = 'withdrawn') as withdrawn,
                   jsonb_object_agg(f.dataset_id, pin order by place) filter (where pin is not null) as versions
            from pg_temp.found f left join l2inv.op_state s using (op_id)
            group by f.op_id, s.seq, s.state order by f.op_id
            """
        )
        while rows := cursor.fetchmany(AT_ONCE):
            event_log.add(connection, [_event(row) for row in rows], run.actor, run.run_id)
            new = sum(row["seq"] is None for row in rows)
            counts["new"] += new
            counts["changed"] += len(rows) - new
    return counts


def _event(row: Row) -> event_log.Event:
    if row["seq"] is None:
        first = {name: row[name] for name in ("proposal_id", "experiment_id", "versions")}
        detail = {"datasets": row["new"], **first}
        return event_log.Event(row["op_id"], 0, "discovered", "discovered", detail)
    reopens = row["affects_verdict"] and row["state"] in JUDGED
    names = ("new", "changed", "values", "left", "withdrawn", "versions")
    told = {name: row[name] for name in names if row[name] is not None}
    detail = {"affects_verdict": row["affects_verdict"]} | told
    return event_log.Event(
        row["op_id"], row["seq"], "datasets_changed", "discovered" if reopens else None, detail
    )
