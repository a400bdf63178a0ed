"""report: what the page shows, read in one snapshot and written as one file."""

from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from psycopg.types.json import set_json_loads

from l2inv.config.settings import Settings
from l2inv.database.connection import Connection
from l2inv.domain import criteria
from l2inv.queries import deadlines
from l2inv.queries.report import drawing, page
from l2inv.wording import what_happened

MOST = 50  # rows of each list other than that of all OPs
NEAREST = 8  # near misses of one criterion
FEW_LINES = 1000  # up to which longer histories are shown
# Events of one OP, besides its first and its verdict: up to FEW_LINES lines, and beyond.
EVENTS, LEAST_EVENTS = 12, 2


def report(connection: Connection, settings: Settings, now: datetime, lines: int) -> tuple[str, int]:
    """Return the page as HTML, with a line for each of the `lines` OPs observed last, and how many OPs it counts."""
    found = read(connection, settings, now, lines)
    drawn = drawing.page(found, settings, now)
    return page.rendered(drawn), drawn["ops"]


def written(
    connection: Connection, settings: Settings, now: datetime, lines: int, path: Path, mode: int = 0o600
) -> dict[str, Any]:
    """Write the page atomically. Raise L2invError if that fails; then an earlier file is unchanged."""
    html, ops = report(connection, settings, now, lines)
    return {"file": str(path), "ops": ops, "bytes": page.write(path, html, mode)}


def read(connection: Connection, settings: Settings, now: datetime, lines: int) -> dict[str, Any]:
    """Return the data of the page from one snapshot, in a read-only transaction.

    Counts are over all OPs; lists are limited: `listed` to `lines`, the others to MOST.
    """
    due = deadlines.limits(settings.deadlines) | {"now": now, "most": MOST}
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")
        arrived, newest = _arrived(connection, lines)
        return {
            "standing": _standing(connection, due),
            "overdue": deadlines.overdue(connection, settings.deadlines, now, MOST),
            "held": _held(connection, due),
            "holders": _holders(connection, due),
            "failed": _failed(connection),
            "arrived": arrived,
            "published": _published(connection),
            "verdicts": _verdicts(connection),
            "against": _against(connection),
            "listed": _listed(connection, due, newest),
            "experiments": _experiments(connection, list(newest)[:MOST]),
        }


def _standing(connection: Connection, due: dict[str, Any]) -> list[dict[str, Any]]:
    """Return how many OPs are in each state, by the state before an error and the class of their age."""
    return connection.execute(
        f"""
        select state, state_before_error,
               width_bucket(extract(epoch from %(now)s::timestamptz - since)::double precision / 86400,
                            %(ages)s::double precision[]) as age,
               count(*) as ops, count(*) filter (where due_at < %(now)s) as overdue,
               count(*) filter (where on_hold) as on_hold, min(since) as oldest
        from ({deadlines.DUE}) d group by 1, 2, 3
        """,  # noqa: S608 - text of our own, here and below
        due | {"ages": list(map(float, drawing.AGES_DAYS))},
    ).fetchall()


HELD = f"""
    select op_id, state, assignee, since, on_hold, due_at < %(now)s and state = 'working' as overdue,
           coalesce(claimed_until, case when state = 'working' then since + days * interval '1 day' end) as until
    from ({deadlines.DUE}) d
    where state = 'working' or state = 'error' and state_before_error = 'working'
"""  # noqa: S608


def _held(connection: Connection, due: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the OPs that somebody holds, the first due first; those in error included, since a retry returns them."""
    return connection.execute(
        f"select * from ({HELD}) held order by until nulls last, op_id limit %(most)s",  # noqa: S608
        due,
    ).fetchall()


def _holders(connection: Connection, due: dict[str, Any]) -> list[dict[str, Any]]:
    """Return how many OPs each person holds, and how many are held in all."""
    return connection.execute(
        f"""
        select assignee, count(*) as ops, count(*) filter (where overdue) as overdue,
               sum(count(*)) over ()::bigint as in_all
        from ({HELD}) held group by assignee order by overdue desc, ops desc, assignee limit %(most)s
        """,  # noqa: S608
        due,
    ).fetchall()


def _failed(connection: Connection) -> list[dict[str, Any]]:
    """Return the OPs in error, newest first."""
    return connection.execute(
        """
        select op_id, since, stage, cause from l2inv.failure order by since desc, op_id limit %s
        """,
        [MOST],
    ).fetchall()


def _arrived(connection: Connection, lines: int) -> tuple[dict[str, int], dict[str, datetime | None]]:
    """Return how many OPs' first dataset arrived in each month (YYYY-MM), and when that of each OP observed last arrived."""
    months = connection.execute(
        "select to_char(arrived, 'YYYY-MM') as month, count(*) as ops from l2inv.op_state where arrived is not null group by 1"
    )
    newest = connection.execute(
        "select op_id, arrived from l2inv.op_state order by coalesce(observed, since) desc, op_id limit %s",
        [lines],
    )
    return {row["month"]: row["ops"] for row in months}, {row["op_id"]: row["arrived"] for row in newest}


def _published(connection: Connection) -> dict[str, int]:
    """Return how many publications of OPs there were in each month (YYYY-MM)."""
    rows = connection.execute(
        "select to_char(recorded_at, 'YYYY-MM') as month, count(*) as ops from l2inv.event where kind = 'published' group by 1"
    )
    return {row["month"]: row["ops"] for row in rows}


def _verdicts(connection: Connection) -> dict[str, Any]:
    """Return counts of the newest verdicts of the OPs that are not invertible."""
    row = connection.execute(
        """
        select count(*) as ops, count(*) filter (where reasons -> 'programs' = '0') as without_program,
               count(*) filter (where reasons -> 'undetermined' = 'true') as undetermined,
               count(*) filter (where overruled_seq is not null) as overruled
        from l2inv.op_state where state = 'not_invertible' and reasons is not null
        """
    ).fetchone()
    assert row is not None
    return row


def _against(connection: Connection) -> list[dict[str, Any]]:
    """Return each criterion that OPs do not pass, the most frequent first: how many fail it, for how many others it is
    unknown, and how many fail only it, with the NEAREST of these, one per row.
    """
    rows = connection.execute(
        """
        with judged as not materialized (
            select op_id, verdict_seq, reasons from l2inv.op_state where state = 'not_invertible'
        ), counted as (
            select name, coalesce(sum(ops) filter (where result = 'fail'), 0)::bigint as fail,
                   coalesce(sum(ops) filter (where result <> 'fail'), 0)::bigint as unknown
            from (select reasons -> 'unmet' as unmet, count(*) as ops from judged group by 1) alike,
                 jsonb_each_text(unmet) as one (name, result)
            group by name
        ), ranked as (
            select op_id, verdict_seq, name, count(*) over (partition by name) as alone,
                   row_number() over (partition by name order by coalesce(margin::double precision, 0) desc, op_id) as place
            from judged, jsonb_each_text(reasons -> 'alone') as one (name, margin)
        )
        select name, fail, unknown, coalesce(alone, 0) as alone, op_id, (
            select detail -> 'verdict' from l2inv.event v where v.op_id = r.op_id and v.seq = r.verdict_seq) as verdict
        from counted left join (select * from ranked where place <= %s) r using (name)
        order by fail + unknown desc, name, place
        """,
        [NEAREST],
    ).fetchall()
    for row in rows:
        if verdict := row.pop("verdict"):
            row.update(criteria.near_misses(verdict)[row["name"]])
    return rows


def _experiments(connection: Connection, op_ids: list[str]) -> list[dict[str, Any]]:
    """Return the descriptions of these OPs' experiments, of those that have one."""
    return connection.execute(
        """
        select distinct on (1) record ->> 'primaryExperimentId' as experiment_id,
               record ->> 'experimentDescription' as description
        from l2inv.dataset where op_id = any(%s) and not withdrawn and record ->> 'experimentDescription' <> ''
        order by 1, create_date desc, dataset_id
        """,
        [op_ids],
    ).fetchall()


def _listed(
    connection: Connection, due: dict[str, Any], newest: dict[str, datetime | None]
) -> list[dict[str, Any]]:
    """Return the OPs that get a line, in the given order, each with its datasets and its events."""
    ops = connection.execute(
        f"""
        select d.op_id, d.state, d.since, d.priority, d.assignee, d.claimed_until, d.on_hold, d.owner, d.due_at,
               case when coalesce(s.datasets_seq > s.verdict_seq, false) then exists (
                   select from l2inv.event c where c.op_id = s.op_id and c.seq = s.datasets_seq and c.kind <> 'reopened')
               else false end as inputs_changed, s.seq as events_in_all
        from unnest(%(ids)s::text[]) with ordinality as listed (op_id, place)
        join ({deadlines.DUE}) d using (op_id) join l2inv.op_state s using (op_id) order by place
        """,  # noqa: S608
        due | {"ids": list(newest)},
    ).fetchall()
    by_id: dict[str, dict[str, Any]] = {}
    for op in ops:
        by_id[op["op_id"]] = op | {"arrived": newest[op["op_id"]], "datasets": [], "events": []}
    with connection.cursor("datasets") as cursor:
        cursor.itersize = 1000
        set_json_loads(msgspec.json.decode, cursor)
        cursor.execute(
            """
            select op_id, dataset_id, instrument, start_time, wavelength_min_nm, wavelength_max_nm,
                   record ->> 'boundingBox' as bounding_box, record -> 'friedParameter' as fried_parameter,
                   record ->> 'browseMovieUrl' as movie_url, (record ->> 'endTime')::timestamptz as end_time,
                   (record ->> 'aoLocked')::double precision / nullif((record ->> 'frameCount')::double precision, 0)
                       as ao_fraction
            from l2inv.dataset where op_id = any(%s) and not withdrawn order by op_id, instrument, dataset_id
            """,
            [list(by_id)],
        )
        for row in cursor:
            by_id[row.pop("op_id")]["datasets"].append(row)
    with connection.cursor("events") as cursor:
        cursor.itersize = 1000
        set_json_loads(msgspec.json.decode, cursor)
        cursor.execute(
            """
            select e.op_id, e.kind, e.state, e.actor, e.recorded_at, e.detail, e.voided_by, e.seq = s.verdict_seq as is_verdict
            from l2inv.op_state s join l2inv.history e on e.op_id = s.op_id
                and (e.seq > s.seq - %s or e.seq = s.verdict_seq or e.seq = 1)
            where s.op_id = any(%s) order by e.op_id, e.seq
            """,
            [EVENTS if len(by_id) <= FEW_LINES else LEAST_EVENTS, list(by_id)],
        )
        for row in cursor:  # a verdict is much longer than the phrase that is shown
            event = row | {"what": drawing.short(what_happened(row).partition(" (criteria ")[0])}
            del event["detail"], event["voided_by"]
            by_id[event.pop("op_id")]["events"].append(event)
    return list(by_id.values())
