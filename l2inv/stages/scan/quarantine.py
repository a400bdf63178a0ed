"""Quarantine: records of the metadata store that cannot be read, kept as received, once each, until resolved."""

import hashlib
from collections.abc import Sequence

from l2inv.database.connection import Connection, Row
from l2inv.domain.inventory import Unreadable
from l2inv.errors import Refused


def put(connection: Connection, unreadable: Sequence[Unreadable]) -> dict[bytes, str | None]:
    """Quarantine records with their reasons, or mark them as seen again. Return the dataset id of each by its hash."""
    rows = {hashlib.sha256(u.raw).digest(): u for u in unreadable}
    with connection.cursor() as cursor:
        cursor.executemany(
            """
            insert into l2inv.quarantine (raw_hash, dataset_id, reason, raw, is_second) values (%s, %s, %s, %s, %s)
            on conflict (raw_hash) do update set reason = excluded.reason, is_second = excluded.is_second,
                last_seen = clock_timestamp(), resolved_at = null
            """,
            [(raw_hash, u.dataset_id, u.reason, u.raw, u.is_second) for raw_hash, u in rows.items()],
        )
    return {raw_hash: u.dataset_id for raw_hash, u in rows.items()}


def settle(connection: Connection, run_id: int, readable_ids: list[str], gone_too: bool) -> None:
    """Mark records as resolved that a run did not find unreadable again: the dataset was readable, or is gone from the
    whole store."""
    connection.execute(
        """
        update l2inv.quarantine set resolved_at = clock_timestamp()
        where resolved_at is null and (dataset_id = any(%s) or %s)
            and last_seen < (select started_at from l2inv.run where run_id = %s)
        """,
        [readable_ids, gone_too, run_id],
    )


def open_records(connection: Connection) -> list[bytes]:
    """Return each unresolved record as it was received, except second records of a dataset."""
    rows = connection.execute("select raw from l2inv.unresolved where not is_second order by first_seen")
    return [row["raw"] for row in rows]


def listed(connection: Connection) -> list[Row]:
    """Return the unresolved records in the order in which they were first seen, each with its key."""
    return connection.execute(
        "select dataset_id, reason, first_seen, last_seen, key from l2inv.unresolved order by first_seen, raw_hash"
    ).fetchall()


def shown(connection: Connection, name: str) -> list[Row]:
    """Return the records with that dataset id or beginning of a key, with the raw text. Raise Refused."""
    rows = connection.execute(
        """
        select dataset_id, reason, first_seen, last_seen, resolved_at, raw,
               left(encode(raw_hash, 'hex'), 12) as key
        from l2inv.quarantine
        where dataset_id = %s or starts_with(encode(raw_hash, 'hex'), %s) order by first_seen, raw_hash
        """,
        [name, name],
    ).fetchall()
    if not rows:
        raise Refused(f"no record {name!r} was quarantined", "see: l2inv quarantine")
    return [row | {"raw": row["raw"].decode("utf-8", "backslashreplace")} for row in rows]
