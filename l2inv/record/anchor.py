"""An anchor: each OP's newest event and its hash in a file, to be kept where whoever writes to the database cannot.

It shows what the chains of hashes cannot: the end of a history that was rewritten with all that follows from it.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from l2inv.database.connection import Connection
from l2inv.errors import L2invError
from l2inv.files import replacing
from l2inv.record.chains import Findings

BATCH = 1000  # heads at a time


def check(connection: Connection, path: Path) -> dict[str, Any]:
    """Check that the newest event of each OP that the file names is still there, and its hash the same.

    Return how many, and one finding for each that is not. A file that is not there yet names none.
    Raise L2invError when it cannot be read.
    """
    checked, findings = 0, Findings()
    try:
        for heads in _anchored(path) if path.exists() else ():
            checked += len(heads)
            rows = connection.execute(
                """
                select op_id, seq, e.event_id
                from unnest(%s::text[], %s::integer[], %s::text[]) as head (op_id, seq, hash)
                left join l2inv.event e using (op_id, seq)
                where encode(e.hash, 'hex') is distinct from head.hash
                """,
                [list(column) for column in zip(*heads, strict=True)],
            ).fetchall()
            for row in rows:
                gone = "is missing" if row["event_id"] is None else "is not what was anchored"
                findings.add("anchor", row, f"event {row['seq']} {gone}")
    except (OSError, ValueError, msgspec.DecodeError) as problem:
        raise L2invError(f"anchor {path}: {problem}", "name a file that verify --anchor wrote") from problem
    return {"checked": {"anchored": checked}, "findings": findings.first, "found": findings.number}


def write(connection: Connection, path: Path) -> int:
    """Write each OP's newest event and its hash to a file, one JSON array a line, in place of the one before.

    Return how many. Keep it where whoever can write to the database cannot. Raise OSError and L2invError.
    """
    count = 0
    with replacing(path) as file, connection.transaction(), connection.cursor("heads") as cursor:
        cursor.execute("select op_id, seq, encode(hash, 'hex') as hash from l2inv.op_state order by op_id")
        for count, row in enumerate(cursor, 1):  # noqa: B007 - how many there were
            file.write(json.dumps([row["op_id"], row["seq"], row["hash"]]).encode() + b"\n")
    return count


def _anchored(path: Path) -> Iterator[list[tuple[str, int, str]]]:
    with path.open(encoding="utf-8") as lines:
        while batch := [
            msgspec.json.decode(line, type=tuple[str, int, str]) for line in islice(lines, BATCH)
        ]:
            yield batch
