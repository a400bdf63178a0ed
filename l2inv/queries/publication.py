"""How far an OP's inversions are published: the four steps of publish, from the event log."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from l2inv import wording
from l2inv.config.settings import Publish
from l2inv.database.connection import Connection, Row
from l2inv.documents import Json
from l2inv.record import issued


class Recorded(msgspec.Struct, frozen=True):
    """An event that publish recorded."""

    seq: int
    kind: str
    recorded_at: datetime
    detail: Json


class Abandoned(msgspec.Struct, frozen=True):
    """An inversion of a cycle that ended before it was published."""

    op_id: str
    cycle: int
    inversion_id: str
    instrument_program_id: str
    dataset_ids: list[str]
    named_at: datetime
    held_since: datetime | None  # when it was first found in the store


class Step(msgspec.Struct, frozen=True):
    """One of the four steps of publish for an inversion, with a phrase about it."""

    inversion_id: str
    step: str  # transfer, catalog, record or available
    standing: str  # done, to do, started, waiting or not configured
    detail: str


def events(connection: Connection, op_id: str) -> list[Recorded]:
    """Return what publish recorded of an OP since its newest ready event, in order; nothing if it has none."""
    rows = connection.execute(
        """
        select seq, kind, recorded_at, detail from l2inv.history
        where op_id = %(op)s and voided_by is null
            and kind in ('transfer_started', 'transferred', 'cataloged', 'inversion_named', 'inversion_created',
                         'published', 'failed', 'retried')
            and seq > (select max(seq) from l2inv.history
                       where op_id = %(op)s and kind in ('inverted', 'amended') and voided_by is null)
        order by seq
        """,
        {"op": op_id},
    )
    return [Recorded(**row) for row in rows]


def abandoned(connection: Connection, op_id: str | None = None) -> list[Abandoned]:
    """Return the inversions, of one OP or of all, that the store may have from cycles that ended before their publication.

    What was withdrawn, or adopted for a later cycle or beside it, is settled.
    """
    rows = connection.execute(
        """
        select n.op_id, (n.detail ->> 'cycle')::integer as cycle, n.detail ->> 'inversion_id' as inversion_id,
               n.detail ->> 'instrument_program_id' as instrument_program_id, n.detail -> 'dataset_ids' as dataset_ids,
               n.recorded_at as named_at,
               (select min(c.recorded_at) from l2inv.history c
                where c.op_id = n.op_id and c.kind = 'inversion_created' and c.voided_by is null
                    and c.detail -> 'inversion_id' = n.detail -> 'inversion_id') as held_since
        from l2inv.op_state s
        cross join lateral (
            select distinct on (detail ->> 'inversion_id') op_id, seq, detail, recorded_at from l2inv.history
            where op_id = s.op_id and kind = 'inversion_named' and voided_by is null
            order by detail ->> 'inversion_id', seq desc
        ) n
        where s.cycle > 1 and (n.detail ->> 'cycle')::integer < s.cycle
            and (%(op)s::text is null or s.op_id = %(op)s)
            and not exists (
                select from l2inv.history p
                where p.op_id = n.op_id and p.kind = 'published' and p.voided_by is null
                    and p.detail -> 'inversions' @> jsonb_build_array(
                        jsonb_build_object('inversion_id', n.detail ->> 'inversion_id')))
            and not exists (
                select from l2inv.history b
                where b.op_id = n.op_id and b.kind = 'noted' and b.seq > n.seq and b.voided_by is null
                    and b.detail -> 'beside' ? (n.detail ->> 'inversion_id'))
            and coalesce((select w.kind from l2inv.history w
                          where w.op_id = n.op_id and w.kind in ('withdrawn', 'reinstated') and w.voided_by is null
                              and w.detail -> 'inversion_ids' ? (n.detail ->> 'inversion_id')
                          order by w.seq desc limit 1), '') <> 'withdrawn'
        order by n.op_id, cycle, inversion_id
        """,
        {"op": op_id},
    )
    return [Abandoned(**row) for row in rows]


def settling(one: Abandoned) -> str:
    """Return the command that settles an abandoned inversion."""
    return (
        f"l2inv withdraw {one.op_id} --inversion {one.inversion_id} --reason WHY, or, if it is good: "
        f"l2inv adopt {one.op_id} {one.inversion_id} --beside --reason WHY"
    )


def brought(connection: Connection, op_id: str, inversion_ids: Sequence[str]) -> list[Row]:
    """Return how far inversions of an OP were published, in whichever cycle: `inversion_id`, whether the store has its
    `record`, how many `files` were sent to the catalog, and the `destination` of its files, or null."""
    return connection.execute(
        """
        select i.inversion_id,
               coalesce(bool_or(h.kind = 'inversion_created'), false) as record,
               coalesce(sum(case when h.kind = 'cataloged' and jsonb_typeof(h.detail -> 'files') = 'array'
                                 then jsonb_array_length(h.detail -> 'files') end), 0)::integer as files,
               max(h.detail ->> 'destination') filter (where h.kind = 'transferred') as destination
        from unnest(%s::text[]) i (inversion_id)
        left join l2inv.history h on h.op_id = %s and h.detail ->> 'inversion_id' = i.inversion_id and h.voided_by is null
            and h.kind in ('inversion_created', 'cataloged', 'transferred')
        group by i.inversion_id order by i.inversion_id
        """,
        [list(inversion_ids), op_id],
    ).fetchall()


def of(found: list[Recorded], inversion_id: str | None, kind: str) -> list[Recorded]:
    """Return the events of one kind of one inversion."""
    return [e for e in found if e.kind == kind and e.detail.get("inversion_id") == inversion_id]


def steps(connection: Connection, settings: Publish, op_id: str) -> list[Step]:
    """Return the four steps of each inversion issued in this cycle."""
    found = events(connection, op_id)
    is_published = any(e.kind == "published" for e in found)
    steps: list[Step] = []
    for one in issued.of_cycle(connection, op_id):
        inversion_id = one.inversion_id
        started, moved, cataloged, created = (
            of(found, inversion_id, kind)
            for kind in ("transfer_started", "transferred", "cataloged", "inversion_created")
        )
        files = sum(len(e.detail.get("files", ())) for e in cataloged)
        is_whole = bool(cataloged) and cataloged[-1].detail.get("whole", False)
        has_transfer, has_catalog = settings.transfer.command is not None, settings.catalog.url is not None
        is_awaited = has_catalog and settings.catalog.await_available
        for name, is_set, is_done, is_started, words in (
            ("transfer", has_transfer, bool(moved), bool(started), _when(moved or started)),
            (
                "catalog",
                has_catalog,
                is_whole,
                bool(files),
                f"{files} files confirmed{_when(cataloged, ', ')}",
            ),
            ("record", True, bool(created), bool(of(found, inversion_id, "inversion_named")), _when(created)),
        ):
            standing = "done" if is_done else "started" if is_started else "to do"
            steps.append(Step(inversion_id, name, standing if is_set or is_done else "not configured", words))
        waits = f"waiting for the catalog since {_when(created)}" if created and is_awaited else ""
        standing = "done" if is_published else "waiting" if waits else "to do"
        if not is_awaited:
            standing = "not configured"
        steps.append(Step(inversion_id, "available", standing, "" if is_published else waits))
    return steps


def _when(found: list[Recorded], before: str = "") -> str:
    return f"{before}{wording.moment(found[-1].recorded_at)}" if found else ""
