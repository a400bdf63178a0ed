"""How far an OP's inversions are on their way to the portal: the four steps of publish, as the record has them."""

from typing import Any

from l2inv import wording
from l2inv.config.settings import Publish
from l2inv.database.connection import Connection


def events(connection: Connection, op_id: str) -> list[dict[str, Any]]:
    """Return what publish recorded of an OP since the ready event that holds, in order; none before there is one."""
    return connection.execute(
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
    ).fetchall()


def of(found: list[dict[str, Any]], inversion_id: str, kind: str) -> list[dict[str, Any]]:
    """Return the events of a kind that are of one inversion."""
    return [e for e in found if e["kind"] == kind and e["detail"].get("inversion_id") == inversion_id]


def steps(connection: Connection, settings: Publish, op_id: str) -> list[dict[str, Any]]:
    """Return, for each inversion that was issued in this cycle, the four steps: `inversion_id`, `step`, `standing`
    (done, to do, begun, waiting, or not configured) and a word on it."""
    from l2inv.record import issued

    found = events(connection, op_id)
    is_published = any(e["kind"] == "published" for e in found)
    rows = []
    for one in issued.of_cycle(connection, op_id):
        inversion_id = one["inversion_id"]
        started, moved, cataloged, created = (
            of(found, inversion_id, kind)
            for kind in ("transfer_started", "transferred", "cataloged", "inversion_created")
        )
        files = sum(len(e["detail"].get("files", ())) for e in cataloged)
        is_whole = bool(cataloged) and cataloged[-1]["detail"].get("whole", False)
        has_transfer, has_catalog = settings.transfer.command is not None, settings.catalog.url is not None
        is_awaited = has_catalog and settings.catalog.await_available
        step = (
            ("transfer", has_transfer, bool(moved), bool(started), _when(moved or started)),
            (
                "catalog",
                has_catalog,
                is_whole,
                bool(files),
                f"{files} files confirmed{_when(cataloged, ', ')}",
            ),
            ("record", True, bool(created), bool(of(found, inversion_id, "inversion_named")), _when(created)),
        )
        for name, is_set, is_done, is_begun, words in step:
            standing = "done" if is_done else "begun" if is_begun else "to do"
            rows.append((inversion_id, name, standing if is_set or is_done else "not configured", words))
        waits = f"waiting for the catalog since {_when(created)}" if created and is_awaited else ""
        standing = "done" if is_published else "waiting" if waits else "to do"
        if not is_awaited and not is_published:
            standing = "not configured"
        rows.append((inversion_id, "available", standing, "" if is_published else waits))
    return [dict(zip(("inversion_id", "step", "standing", "detail"), row, strict=True)) for row in rows]


def _when(found: list[dict[str, Any]], before: str = "") -> str:
    return f"{before}{wording.moment(found[-1]['recorded_at'])}" if found else ""
