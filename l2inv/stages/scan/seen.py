"""What a scan has seen so far, in a temporary table, so that memory is bounded.

A record with the same bytes as last time is recognized by their hash, and not decoded.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from l2inv.database.connection import Connection
from l2inv.domain import inventory


class Unchanged(NamedTuple):
    """What is known of a page from the hashes of its records alone."""

    differing: list[int]  # places on the page, from 0, of the records that must be decoded
    repeated: list[str]  # datasets that came before in this pass
    first_time: int  # how many of the others this scan had not seen


class Known(msgspec.Struct):
    """What is known of a dataset before a record of it is taken."""

    dataset_id: str
    version: int | None  # of the newest version that is kept
    content_hash: bytes | None
    withdrawn: bool | None
    seen_hash: bytes | None  # of the record that this scan saw first; null where that could not be read
    updated_at: datetime | None
    seen_in: int | None  # the last pass in which it came


def create(connection: Connection) -> None:
    """Create the table, for as long as the transaction lasts."""
    connection.execute(
        """
        drop table if exists pg_temp.seen;  -- of an earlier scan in the same transaction
        create temporary table seen (
            dataset_id   text collate "C" primary key,
            op_id        text collate "C",
            content_hash bytea,             -- null: its record cannot be read
            updated_at   timestamptz,
            given        bigint,            -- null: its record was decoded, and counted then
            page         integer not null,  -- on which it came first, over all passes
            pass         integer not null   -- the last in which it came
        ) on commit drop
        """
    )


def unchanged(connection: Connection, hashes: Sequence[bytes], page: int, passed: int) -> Unchanged:
    """Mark as seen the records that arrived in the same bytes as last time."""
    row = connection.execute(
        """
        with arrived as materialized (  -- each by its index, whatever the planner knows
            select g.place, r.*, s.* from unnest(%b::bytea[]) with ordinality as g (hash, place)
            left join lateral (
                select dataset_id, op_id, content_hash, updated_at, given from l2inv.received
                where raw_hash = g.hash offset 0
            ) r on true
            left join lateral (
                select pass from pg_temp.seen where dataset_id = r.dataset_id offset 0
            ) s on true
        ), noted as (  -- looked up before, since `on conflict` takes longer
            insert into pg_temp.seen
                select dataset_id, op_id, content_hash, updated_at, given, %s, %s from arrived
                where dataset_id is not null and pass is null
        ), noted_again as (
            update pg_temp.seen set pass = %s
                where dataset_id = any(array(select dataset_id from arrived where pass <> %s))
        )
        select array(select place - 1 from arrived where dataset_id is null order by place) as differing,
               array(select dataset_id from arrived where pass = %s) as repeated,
               (select count(dataset_id) from arrived where pass is null) as first_time
        """,
        [hashes, page, passed, passed, passed, passed],
    ).fetchone()
    assert row is not None
    return Unchanged(**row)


def unseen_again(connection: Connection, dataset_ids: Sequence[str], page: int) -> list[bytes]:
    """Undo that datasets were marked as seen, unchanged, on a page; return the hashes of their records."""
    rows = connection.execute(
        """
        delete from pg_temp.seen s using l2inv.received r
        where s.dataset_id = any(%s) and s.page = %s and s.given is not null and r.dataset_id = s.dataset_id
        returning r.raw_hash
        """,
        [dataset_ids, page],
    )
    return [row["raw_hash"] for row in rows]


def known(
    connection: Connection, records: Sequence[inventory.Record], page: int, passed: int
) -> dict[str, Known]:
    """Mark decoded records as seen, and return what is known of their datasets."""
    rows = connection.execute(
        """
        with given as materialized (
            select * from unnest(%b::text[], %b::text[], %b::bytea[], %b::timestamptz[])
                as given (dataset_id, op_id, content_hash, updated_at)
        ), noted as (
            insert into pg_temp.seen as s (dataset_id, op_id, content_hash, updated_at, page, pass)
                select *, %s, %s from given
            on conflict (dataset_id) do update
                set op_id = coalesce(s.op_id, excluded.op_id), updated_at = coalesce(s.updated_at, excluded.updated_at),
                    content_hash = coalesce(s.content_hash, excluded.content_hash), pass = excluded.pass
        )
        select g.dataset_id, v.version, v.content_hash, v.withdrawn,
               s.content_hash as seen_hash, s.updated_at, s.pass as seen_in
        from given g
        left join lateral (
            select * from pg_temp.seen where dataset_id = g.dataset_id offset 0  -- by its index
        ) s on true
        left join lateral (
            select version, content_hash, withdrawn from l2inv.dataset_version
            where dataset_id = g.dataset_id order by version desc limit 1
        ) v on true
        """,
        [
            [r.dataset_id for r in records],
            [r.op_id for r in records],
            [r.content_hash for r in records],
            [r.dataset.update_date for r in records],
            page,
            passed,
        ],
    )
    return {row["dataset_id"]: Known(**row) for row in rows}


def replace(connection: Connection, records: Sequence[inventory.Record]) -> None:
    """Replace the records that this scan saw first by newer ones."""
    with connection.cursor() as cursor:
        cursor.executemany(
            """
            update pg_temp.seen set op_id = %s, content_hash = %s, updated_at = %s where dataset_id = %s
            """,
            [(r.op_id, r.content_hash, r.dataset.update_date, r.dataset_id) for r in records],
        )


def unreadable(connection: Connection, dataset_ids: Sequence[str], page: int, passed: int) -> None:
    """Mark datasets as seen whose records cannot be read."""
    connection.execute(
        """
        insert into pg_temp.seen (dataset_id, page, pass) select distinct unnest(%s::text[]), %s, %s
        on conflict (dataset_id) do update set pass = excluded.pass
        """,
        [dataset_ids, page, passed],
    )


def remember(connection: Connection, records: Sequence[inventory.Record], hashes: Sequence[bytes]) -> None:
    """Store the hashes of the records' bytes, for the next scan."""
    connection.execute(
        """
        insert into l2inv.received (dataset_id, raw_hash, op_id, content_hash, updated_at, given)
            select * from unnest(%b::text[], %b::bytea[], %b::text[], %b::bytea[], %b::timestamptz[], %b::bigint[])
        on conflict (dataset_id) do update set raw_hash = excluded.raw_hash, op_id = excluded.op_id,
            content_hash = excluded.content_hash, updated_at = excluded.updated_at, given = excluded.given
        """,
        [
            [r.dataset_id for r in records],
            hashes,
            [r.op_id for r in records],
            [r.content_hash for r in records],
            [r.dataset.update_date for r in records],
            [inventory.given(r.dataset) for r in records],
        ],
    )


def forget(connection: Connection, dataset_ids: Sequence[str]) -> None:
    """Make the next scan decode these datasets, whatever their bytes."""
    connection.execute(
        "update l2inv.received set raw_hash = null where dataset_id = any(%s) and raw_hash is not null",
        [dataset_ids],
    )


def forget_all(connection: Connection) -> None:
    """Forget the bytes of every dataset: a writer may have put others there. Nobody can until the transaction ends."""
    connection.execute("update l2inv.received set raw_hash = null where raw_hash is not null")


def count(connection: Connection, passed: int) -> tuple[int, int]:
    """Return how many different datasets came in a pass, and in any."""
    row = connection.execute(
        "select count(*) filter (where pass = %s) as now, count(*) as ever from pg_temp.seen", [passed]
    ).fetchone()
    assert row is not None
    return row["now"], row["ever"]


def count_ops(connection: Connection) -> int:
    """Return to how many OPs the readable datasets belong."""
    row = connection.execute(
        "select count(*) as ops from (select distinct op_id from pg_temp.seen where op_id is not null) op"
    ).fetchone()
    assert row is not None
    ops: int = row["ops"]
    return ops


def undecoded(connection: Connection) -> dict[int, int]:
    """Return how many datasets that were not decoded have which fields: see inventory.given."""
    rows = connection.execute(
        "select given, count(*) as datasets from pg_temp.seen where given is not null group by given"
    )
    return {row["given"]: row["datasets"] for row in rows}


def missing(connection: Connection) -> list[str]:
    """Return the active datasets that this scan has not seen."""
    rows = connection.execute(
        """
        with unseen as materialized (
            select distinct dataset_id from l2inv.dataset_version
            where not exists (select from pg_temp.seen where seen.dataset_id = dataset_version.dataset_id)
        )
        select dataset_id from unseen join l2inv.dataset using (dataset_id) where not withdrawn order by dataset_id
        """
    )
    return [row["dataset_id"] for row in rows]


def readable_in_quarantine(connection: Connection) -> list[str]:
    """Return the datasets with an open record in quarantine of which this scan saw a readable one."""
    rows = connection.execute(
        """
        select dataset_id from pg_temp.seen
        where content_hash is not null and dataset_id in (select dataset_id from l2inv.unresolved)
        """
    )
    return [row["dataset_id"] for row in rows]
