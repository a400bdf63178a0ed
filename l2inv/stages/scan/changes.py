"""The events of a scan: changes are noted per dataset in a temporary table, and recorded as one event per OP at the end."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from l2inv.database.connection import Connection, Row
from l2inv.domain import inventory
from l2inv.domain.criteria import INPUTS
from l2inv.domain.states import JUDGED
from l2inv.record import event_log
from l2inv.stages.stage import Stage

AT_ONCE = 5000  # events recorded in one statement
NOTED_FIELDS = 10  # of a changed dataset, named in its OP's event


class Change(NamedTuple):
    """A change of one dataset, for the event of its OP."""

    op_id: str
    what: str  # new, changed, left (for another OP) or withdrawn
    dataset_id: str
    change: str | None  # JSON: the fields that changed, or the dataset that supersedes the withdrawn one
    affects_verdict: bool
    pin: str | None = None
    proposal_id: str | None = None
    experiment_id: str | None = None
    old_new: str | None = None  # JSON: old and new values of fields that people decide by


def create(connection: Connection) -> None:
    """Create the table, for as long as the transaction lasts."""
    connection.execute(
        """
        drop table if exists pg_temp.change;  -- of an earlier scan in the same transaction
        create temporary table change (
            place           bigint generated always as identity,
            op_id           text collate "C" not null,
            what            text not null,
            dataset_id      text collate "C" not null,
            change          jsonb,
            affects_verdict boolean not null,
            pin             text,
            proposal_id     text,
            experiment_id   text,
            old_new         jsonb
        ) on commit drop
        """
    )


def note(connection: Connection, changes: Iterable[Change]) -> None:
    """Note changes to be recorded at the scan's end."""
    with (
        connection.cursor() as cursor,
        cursor.copy(f"copy pg_temp.change ({', '.join(Change._fields)}) from stdin") as copy,
    ):
        for one in changes:
            copy.write_row(one)


def pinned(version: int, content_hash: bytes) -> str:
    """Return how an event names a version: with its hash, so that the events prove what was read."""
    return f"{version}:{content_hash.hex()[:16]}"


def between(
    before: inventory.Dataset | None, now: inventory.Dataset, pin: str, instruments: Sequence[str]
) -> Iterator[Change]:
    """Yield the changes by a new or changed dataset, for its OP and for the OP that it left. A verdict depends on the
    datasets of these instruments alone."""
    op_id, dataset_id = now.observing_program_execution_id, now.dataset_id
    names = (pin, now.primary_proposal_id, now.primary_experiment_id)
    if before is None:
        yield Change(op_id, "new", dataset_id, None, now.instrument_name in instruments, *names)
        return
    fields = [name for name in now.__struct_fields__ if getattr(now, name) != getattr(before, name)]
    affects = not INPUTS.isdisjoint(fields) and (
        now.instrument_name in instruments or before.instrument_name in instruments
    )
    if before.observing_program_execution_id == op_id:
        # Fields that the verdict depends on come first, so they are never cut off.
        change = sorted(fields, key=lambda name: name not in INPUTS)[:NOTED_FIELDS]
        yield Change(op_id, "changed", dataset_id, json.dumps(change), affects, *names, _old_new(before, now))
        return
    yield Change(op_id, "new", dataset_id, None, affects, *names)
    yield Change(before.observing_program_execution_id, "left", dataset_id, None, affects)


def _old_new(before: inventory.Dataset, now: inventory.Dataset) -> str | None:
    values = inventory.changes(before, now)
    return json.dumps(values) if values else None


def record(stage: Stage[Any]) -> tuple[int, int]:
    """Record one event for each OP with changes; return how many OPs are new, and how many changed.

    It is `discovered` for a new OP, else `datasets_changed`, which returns a judged OP to `discovered` if its verdict
    depends on what changed.
    """
    stage.connection.execute(
        """
        select count(*) from (select from l2inv.op_state where op_id in (select op_id from pg_temp.change)
                              order by op_id for update) locked
        """
    )
    new, changed = 0, 0
    with stage.connection.cursor("l2inv_changes") as cursor:
        cursor.execute(
            """
            select f.op_id, s.seq, s.state, bool_or(f.affects_verdict) as affects_verdict,
                   (array_agg(f.proposal_id order by place) filter (where f.proposal_id is not null))[1] as proposal_id,
                   (array_agg(f.experiment_id order by place) filter (where f.experiment_id is not null))[1] as experiment_id,
                   array_agg(distinct f.dataset_id) filter (where what = 'new') as new,
                   jsonb_object_agg(f.dataset_id, change order by place) filter (where what = 'changed') as changed,
                   jsonb_object_agg(f.dataset_id, old_new order by place) filter (where old_new is not null) as "values",
                   array_agg(distinct f.dataset_id) filter (where what = 'left') as "left",
                   jsonb_object_agg(f.dataset_id, change order by place) filter (where what = 'withdrawn') as withdrawn,
                   jsonb_object_agg(f.dataset_id, pin order by place) filter (where pin is not null) as versions
            from pg_temp.change f left join l2inv.op_state s using (op_id)
            group by f.op_id, s.seq, s.state order by f.op_id
            """
        )
        while rows := cursor.fetchmany(AT_ONCE):
            stage.add([_event(row) for row in rows])
            of_new = sum(row["seq"] is None for row in rows)
            new += of_new
            changed += len(rows) - of_new
    return new, changed


def _event(row: Row) -> event_log.Event:
    if row["seq"] is None:
        first = {name: row[name] for name in ("proposal_id", "experiment_id", "versions")}
        return event_log.Event(row["op_id"], 0, "discovered", "discovered", {"datasets": row["new"], **first})
    reopens = row["affects_verdict"] and row["state"] in JUDGED
    names = ("new", "changed", "values", "left", "withdrawn", "versions")
    change = {name: row[name] for name in names if row[name] is not None}
    detail = {"affects_verdict": row["affects_verdict"]} | change
    return event_log.Event(
        row["op_id"], row["seq"], "datasets_changed", "discovered" if reopens else None, detail
    )
