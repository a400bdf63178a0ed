"""The events of all OPs and the runs of all stages, from the views that the reader's role may read."""

from collections.abc import Generator
from datetime import datetime

from l2inv.database.connection import Connection, Row


def events(
    connection: Connection,
    since: datetime | None = None,
    actor: str | None = None,
    kind: str | None = None,
    op_id: str | None = None,
) -> Generator[Row, None, None]:
    """Yield the events, newest last, filtered by time, actor, kind and OP.

    Read one snapshot, in bounded memory.
    """
    with connection.transaction(), connection.cursor(name="l2inv_log") as cursor:
        cursor.itersize = 500
        yield from cursor.execute(
            """
            select op_id, seq, kind, state, actor, recorded_at, run_id, detail, event_id, recorded_by, voided_by, hash
            from l2inv.history
            where (%(since)s::timestamptz is null or recorded_at >= %(since)s)
                and (%(actor)s::text is null or actor = %(actor)s) and (%(kind)s::text is null or kind = %(kind)s)
                and (%(op_id)s::text is null or op_id = %(op_id)s)
            order by event_id
            """,
            {"since": since, "actor": actor, "kind": kind, "op_id": op_id},
        )


def runs(
    connection: Connection, since: datetime | None = None, stage: str | None = None
) -> Generator[Row, None, None]:
    """Yield the runs, newest last, filtered by start time and stage. Read one snapshot, in bounded memory."""
    with connection.transaction(), connection.cursor(name="l2inv_runs") as cursor:
        cursor.itersize = 500
        yield from cursor.execute(
            """
            select run_id, stage, actor, started_at, finished_at, result from l2inv.runs
            where (%(since)s::timestamptz is null or started_at >= %(since)s)
                and (%(stage)s::text is null or stage = %(stage)s)
            order by run_id
            """,
            {"since": since, "stage": stage},
        )
