"""Keeping what the store gives, a page at a time: every version of a dataset, and what to tell of it to its OP.

What a scan read and found so far lies in temporary tables, so that its memory stays flat whatever the store holds.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from l2inv.config.settings import Settings
from l2inv.database.connection import Connection
from l2inv.database.runs import Run
from l2inv.domain import drift, inventory
from l2inv.domain.criteria import INPUTS
from l2inv.stages.scan import quarantine

NOTED_FIELDS = 10  # of a changed dataset, named in its OP's event
Row = dict[str, Any]
Progress = Callable[[int, int | None], None]  # how many of how many, None where that is not known


class Found(NamedTuple):
    """What a scan found of one dataset, to be told in the event of its OP."""

    op_id: str
    what: str  # new, changed, left (for another OP) or withdrawn
    dataset_id: str
    told: str | None  # JSON: the fields that changed, or the dataset that supersedes the withdrawn one
    affects_verdict: bool
    pin: str | None = None
    proposal_id: str | None = None
    experiment_id: str | None = None
    old_new: str | None = None  # JSON: old and new of what somebody decides by


@dataclass
class Reading:
    """What one scan works on, and has read."""

    connection: Connection
    settings: Settings
    run: Run
    seen: int = 0  # readable datasets, each once
    set_aside: set[bytes] = field(default_factory=set)  # hashes of what could not be read
    passed: int = 1  # the pass over the store, from 1
    nameless: set[bytes] = field(default_factory=set)  # of this pass: hashes of records without an id
    again: set[str] = field(default_factory=set)  # of this pass: ids that came more than once
    profile: drift.Profile = field(default_factory=drift.Profile)
    progress: Progress = lambda seen, of: None
    held: int | None = None  # records that the store says it holds

    @property
    def counts(self) -> dict[str, int]:
        found: dict[str, int] = self.run.report["datasets"]
        return found

    def records_read(self) -> int:
        return self.seen + len(self.set_aside)

    def begin_pass(self, number: int, held: int | None) -> None:
        self.passed, self.held = number, held
        self.nameless.clear()
        self.again.clear()


def begun(connection: Connection, settings: Settings, run: Run, progress: Progress) -> Reading:
    """Begin a scan within a transaction, at whose end its temporary tables are gone."""
    counts = dict.fromkeys(("seen", "new", "changed", "unchanged", "withdrawn", "quarantined"), 0)
    run.report |= {"complete": True, "datasets": counts, "ops": {}, "warnings": []}
    connection.execute(
        """
        drop table if exists pg_temp.seen, pg_temp.found;  -- of an earlier scan in the same transaction
        create temporary table seen (  -- every id, with nulls where its record cannot be read
            dataset_id   text collate "C" primary key,
            op_id        text collate "C",
            content_hash bytea,
            updated_at   timestamptz,
            pass         integer not null  -- the last in which it came
        ) on commit drop;
        create temporary table found (
            place           bigint generated always as identity,
            op_id           text collate "C" not null,
            what            text not null,
            dataset_id      text collate "C" not null,
            told            jsonb,
            affects_verdict boolean not null,
            pin             text,
            proposal_id     text,
            experiment_id   text,
            old_new         jsonb
        ) on commit drop
        """
    )
    now = connection.execute("select clock_timestamp() as now").fetchone()
    assert now is not None
    profile = drift.Profile(latest=now["now"] + drift.CLOCKS_DIFFER)
    return Reading(connection, settings, run, profile=profile, progress=progress)


def take(reading: Reading, page: Iterable[bytes | msgspec.Raw]) -> None:
    """Keep one page: sets aside what cannot be read, drops what was read before, as a page that shifted gives."""
    records: dict[str, inventory.Record] = {}
    raws: dict[str, bytes | msgspec.Raw] = {}
    set_aside: list[inventory.Unreadable] = []
    for raw in page:
        read = inventory.read(raw)
        if isinstance(read, inventory.Unreadable):
            set_aside.append(read)
            continue
        dataset_id = read.dataset.dataset_id
        if dataset_id in records:
            reading.again.add(dataset_id)
        first = records.setdefault(dataset_id, read)
        raws.setdefault(dataset_id, raw)
        if first.content_hash != read.content_hash:
            set_aside.append(_second(dataset_id, raw))
    known: dict[str, Row] = {}  # of what is not as it was when it was last kept
    again = []
    for row in _not_unchanged(reading, records.values()):
        dataset_id, same = row["dataset_id"], row["seen_hash"] == records[row["dataset_id"]].content_hash
        if row["pass"] == reading.passed:
            reading.again.add(dataset_id)
        if row["seen_hash"] is None:
            known[dataset_id] = row
        elif not same and _is_newer(records[dataset_id], row["updated_at"]):
            known[dataset_id] = row
            again.append(records[dataset_id])
        else:
            if not same:
                set_aside.append(_second(dataset_id, raws[dataset_id]))
            del records[dataset_id]
    reading.seen += len(records) - len(again)
    _see_again(reading, again)
    if set_aside:
        kept = quarantine.put(reading.connection, set_aside)
        reading.set_aside |= kept.keys()
        reading.nameless |= {raw_hash for raw_hash, dataset_id in kept.items() if dataset_id is None}
        _see_unreadable(reading, {dataset_id for dataset_id in kept.values() if dataset_id is not None})
    _keep(reading, list(records.values()), known)
    reading.counts["seen"] = reading.records_read()
    reading.counts["quarantined"] = len(reading.set_aside)
    reading.progress(reading.counts["seen"], reading.held)


def _see_unreadable(reading: Reading, dataset_ids: set[str]) -> None:
    reading.connection.execute(
        """
        insert into pg_temp.seen (dataset_id, pass) select unnest(%s::text[]), %s
        on conflict (dataset_id) do update set pass = excluded.pass
        """,
        [list(dataset_ids), reading.passed],
    )


def ids_read(reading: Reading) -> tuple[int, int]:
    """Return how many different ids came in this pass, and in any."""
    row = reading.connection.execute(
        "select count(*) filter (where pass = %s) as now, count(*) as ever from pg_temp.seen",
        [reading.passed],
    ).fetchone()
    assert row is not None
    return row["now"] + len(reading.nameless), row["ever"] + len(reading.nameless)


def _second(dataset_id: str, raw: bytes | msgspec.Raw) -> inventory.Unreadable:
    reason = "a second, different record of the same dataset in one scan"
    return inventory.Unreadable(dataset_id, reason, bytes(raw), is_second=True)


def _not_unchanged(reading: Reading, records: Collection[inventory.Record]) -> list[Row]:
    """Note the datasets as seen, and return the newest version of each, but for those that are just as it says.

    `version` is null for a new one. One that this scan saw already is given, with what it was then.
    """
    return reading.connection.execute(
        """
        with given as materialized (
            select * from unnest(%b::text[], %b::text[], %b::bytea[], %b::timestamptz[])
                as given (dataset_id, op_id, content_hash, updated_at)
        ), seen_now as (
            insert into pg_temp.seen as s select *, %s from given
            on conflict (dataset_id) do update
                set op_id = coalesce(s.op_id, excluded.op_id), updated_at = coalesce(s.updated_at, excluded.updated_at),
                    content_hash = coalesce(s.content_hash, excluded.content_hash), pass = excluded.pass
        )
        select g.dataset_id, v.version, v.content_hash, v.withdrawn, s.content_hash as seen_hash, s.updated_at, s.pass
        from given g
        left join pg_temp.seen s using (dataset_id)
        left join lateral (
            select version, content_hash, withdrawn from l2inv.dataset_version
            where dataset_id = g.dataset_id order by version desc limit 1
        ) v on true
        where s.dataset_id is not null or v.version is null or v.withdrawn or v.content_hash <> g.content_hash
        """,
        [
            [r.dataset.dataset_id for r in records],
            [r.dataset.observing_program_execution_id for r in records],
            [r.content_hash for r in records],
            [r.dataset.update_date for r in records],
            reading.passed,
        ],
    ).fetchall()


def _is_newer(r: inventory.Record, before: datetime | None) -> bool:
    """Return whether the store changed a dataset since this scan read it, on an earlier page."""
    return before is not None and r.dataset.update_date is not None and r.dataset.update_date > before


def _see_again(reading: Reading, records: list[inventory.Record]) -> None:
    for r in records:
        reading.connection.execute(
            "update pg_temp.seen set op_id = %s, content_hash = %s, updated_at = %s where dataset_id = %s",
            [
                r.dataset.observing_program_execution_id,
                r.content_hash,
                r.dataset.update_date,
                r.dataset.dataset_id,
            ],
        )


def _keep(reading: Reading, records: list[inventory.Record], known: dict[str, Row]) -> None:
    """Add a version for each record that is new or not what the database holds, and notes it for the OP's event."""
    reading.profile.count(records)
    fresh = [r for r in records if r.dataset.dataset_id in known and _differs(r, known[r.dataset.dataset_id])]
    reading.counts["unchanged"] += len(records) - len(fresh)
    if not fresh:
        return
    before = _before(reading, [d for r in fresh if known[d := r.dataset.dataset_id]["version"] is not None])
    found: list[Found] = []
    with (
        reading.connection.cursor() as cursor,
        cursor.copy(
            "copy l2inv.dataset_version (dataset_id, version, op_id, content_hash, record, run_id) from stdin"
        ) as copy,
    ):
        for r in fresh:
            reading.profile.measure(r.dataset)
            dataset_id, op_id = r.dataset.dataset_id, r.dataset.observing_program_execution_id
            version = (known[dataset_id]["version"] or 0) + 1
            copy.write_row((dataset_id, version, op_id, r.content_hash, r.text.decode(), reading.run.run_id))
            found += _found(
                reading,
                r.dataset,
                None if known[dataset_id]["withdrawn"] else before.get(dataset_id),
                pinned(version, r.content_hash),
            )
    note(reading, found)
    reading.counts["new"] += len(fresh) - len(before)
    reading.counts["changed"] += len(before)


def _differs(r: inventory.Record, known: Row) -> bool:
    return known["version"] is None or known["withdrawn"] or known["content_hash"] != r.content_hash


def _before(reading: Reading, dataset_ids: list[str]) -> dict[str, inventory.Dataset]:
    if not dataset_ids:
        return {}
    rows = reading.connection.execute(
        "select dataset_id, record::text from l2inv.dataset where dataset_id = any(%s)", [dataset_ids]
    )
    return {row["dataset_id"]: inventory.stored(row["record"]) for row in rows}


def _found(
    reading: Reading, now: inventory.Dataset, before: inventory.Dataset | None, pin: str
) -> Iterator[Found]:
    instruments = set(reading.settings.qualification.instruments)
    op_id, dataset_id = now.observing_program_execution_id, now.dataset_id
    names = (pin, now.primary_proposal_id, now.primary_experiment_id)
    if before is None:
        yield Found(op_id, "new", dataset_id, None, now.instrument_name in instruments, *names)
        return
    fields = [name for name in now.__struct_fields__ if getattr(now, name) != getattr(before, name)]
    affects = bool(INPUTS.intersection(fields)) and bool(
        instruments & {now.instrument_name, before.instrument_name}
    )
    if before.observing_program_execution_id == op_id:
        # What the verdict depends on is never among those that are not noted.
        told = sorted(fields, key=lambda name: name not in INPUTS)[:NOTED_FIELDS]
        yield Found(op_id, "changed", dataset_id, json.dumps(told), affects, *names, _old_new(before, now))
        return
    yield Found(op_id, "new", dataset_id, None, affects, *names)
    yield Found(before.observing_program_execution_id, "left", dataset_id, None, affects)


def _old_new(before: inventory.Dataset, now: inventory.Dataset) -> str | None:
    found = inventory.changes(before, now)
    return json.dumps(found) if found else None


def note(reading: Reading, found: Iterable[Found]) -> None:
    """Note what is to be told to the OPs at the scan's end."""
    with (
        reading.connection.cursor() as cursor,
        cursor.copy(f"copy pg_temp.found ({', '.join(Found._fields)}) from stdin") as copy,
    ):
        for one in found:
            copy.write_row(one)


def pinned(version: int, content_hash: bytes) -> str:
    """What the event says of a version, so that the record of the OP holds its datasets to what was read."""
    return f"{version}:{content_hash.hex()[:16]}"
