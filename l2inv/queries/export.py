"""export: the view published_op as NDJSON or CSV, row by row, for whoever does not read the database."""

import csv
import re
from collections.abc import Callable, Generator, Iterable, Sequence
from datetime import datetime
from typing import Any, TextIO

import msgspec

from l2inv.database.connection import Connection
from l2inv.wording import as_json, clean

COLUMNS = (
    "event_id", "op_id", "cycle", "inversion_id", "proposal_id", "experiment_id", "instrument_program_id",
    "dataset_ids", "product_ids", "bucket", "asdf_object_key", "spectral_lines", "outputs", "software",
    "is_embargoed", "embargo_end_date", "criteria_version", "inverted_by", "inverted_at", "published_at",
    "superseded_by", "withdrawn_at",
)  # fmt: skip
_TOLD_AFTER = """op_id in (select op_id from l2inv.history where event_id > %s
                           and kind in ('published', 'withdrawn', 'reinstated', 'restored', 'voided'))"""
_FORMULA = re.compile(r"[=+\-@\t\r]")  # what spreadsheets run, or pass over to run what follows


def inversions(connection: Connection, after: int = 0) -> Generator[dict[str, Any], None, None]:
    """Return the inversions of each OP of which something was told after an event, in the order of that.

    One snapshot is read, in bounded memory. The OPs are looked up first: the view would work out its event_id for
    each inversion there is.
    """
    with connection.transaction(), connection.cursor(name="l2inv_export") as cursor:
        connection.execute("set local timezone to 'UTC'")  # the last day that Python knows is later elsewhere
        cursor.itersize = 500
        yield from cursor.execute(
            f"""
            select {", ".join(COLUMNS)} from l2inv.published_op where {_TOLD_AFTER}
            order by event_id, inversion_id
            """,  # noqa: S608 - columns of our own
            [after],
        )


def count(connection: Connection, after: int = 0) -> int:
    """Return how many inversions there are to be given."""
    row = connection.execute(
        f"select count(*) as inversions from l2inv.published_op where {_TOLD_AFTER}",  # noqa: S608
        [after],
    ).fetchone()
    assert row is not None
    inversions: int = row["inversions"]
    return inversions


def as_ndjson(rows: Iterable[dict[str, Any]], out: TextIO) -> None:
    """Write one JSON object a line."""
    for row in rows:
        out.write(row_as_json(row) + "\n")


def row_as_json(row: dict[str, Any]) -> str:
    """Return a row as as_json does, in a tenth of its time; times are in UTC, as a session's are.

    What is not ASCII is left to as_json, which escapes it.
    """
    text = msgspec.json.encode(row)
    return text.decode() if text.isascii() else as_json(row)


def as_csv(rows: Iterable[dict[str, Any]], out: TextIO, columns: Sequence[str] = COLUMNS) -> None:
    """Write a heading and a row for each, as RFC 4180 has it, in cells that no spreadsheet takes for a formula."""
    writer = csv.writer(out)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row[name]) for name in columns])


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else as_json(value)
    if isinstance(value, datetime):
        text = text.strip('"')
    return clean(f"'{text}" if _FORMULA.match(text) else text)


FORMATS: dict[str, Callable[[Iterable[dict[str, Any]], TextIO], None]] = {"ndjson": as_ndjson, "csv": as_csv}
