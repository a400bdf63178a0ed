"""A backup that any later l2inv restores, on any PostgreSQL: gzipped lines of JSON, one row each.

The first line says what the file is, the last how many rows of each table it holds and the SHA-256 of every byte
before it. What is derived is left out: op_state follows from the events.
"""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from l2inv import __version__
from l2inv.database.connection import Connection
from l2inv.database.schema import applied_migrations, shipped_migrations
from l2inv.errors import L2invError, Refused
from l2inv.files import replacing
from l2inv.record import verify

FORMAT = 1
TABLES = {  # in the order in which they are restored -> the order of their rows
    "criteria": "criteria_version",
    "run": "run_id",
    "quarantine": "raw_hash",
    "dataset_version": "dataset_id, version",
    "event": "event_id",
}
BATCH = 1000
LONGEST_LINE = 1 << 30  # the largest value that PostgreSQL keeps


def backup(
    connection: Connection, path: Path, progress: Callable[[int, int], None] = lambda done, of: None
) -> dict[str, Any]:
    """Write everything recorded, as it is at one moment, to a file in place of any before it; return rows and size.

    Nobody is kept waiting. Raise OSError, and L2invError for what is no file; then the file of before is as it was.
    """
    digest, rows = hashlib.sha256(), {}
    with (
        replacing(path) as file,
        gzip.GzipFile(fileobj=file, mode="wb", filename="", compresslevel=6) as packed,
    ):

        def write(line: str) -> None:
            content = line.encode() + b"\n"
            digest.update(content)
            packed.write(content)

        with connection.transaction():
            connection.execute("set transaction isolation level repeatable read, read only")
            connection.execute("set local timezone = 'UTC'")
            write(json.dumps(_header(connection)))
            of = sum(_count(connection, table) for table in TABLES)
            for table, order in TABLES.items():
                rows[table] = 0
                with connection.cursor("backup") as cursor:
                    select = f"select to_jsonb(t)::text as row from l2inv.{table} t order by {order}"  # noqa: S608
                    cursor.execute(select)
                    for row in cursor:
                        write(f'["{table}",{row["row"]}]')
                        rows[table] += 1
                        if rows[table] % BATCH == 0:
                            progress(sum(rows.values()), of)
                progress(sum(rows.values()), of)
        packed.write(json.dumps({"end": rows, "sha256": digest.hexdigest()}).encode() + b"\n")
    return {"file": str(path), "rows": rows, "bytes": path.stat().st_size}


def _count(connection: Connection, table: str) -> int:
    row = connection.execute(f"select count(*) as rows from l2inv.{table}").fetchone()  # noqa: S608 - a table of our own
    assert row is not None
    rows: int = row["rows"]
    return rows


def _header(connection: Connection) -> dict[str, Any]:
    migrations = sorted(applied_migrations(connection))
    made_at = datetime.now(UTC).isoformat()
    return {"l2inv_backup": FORMAT, "l2inv": __version__, "migrations": migrations, "made_at": made_at}


def restore(
    connection: Connection, path: Path, progress: Callable[[int, int | None], None] = lambda done, of: None
) -> dict[str, Any]:
    """Fill an empty schema with what the file holds, checks it, and return the rows; all or nothing. The progress goes
    over the rows three times: read, restored, verified.

    Raise Refused when something is recorded already, L2invError when the file is damaged, made by a later l2inv,
    or holds a record that does not agree with itself.
    """
    rows = check(path, progress)
    done, of = 0, sum(rows.values())
    with connection.transaction():
        connection.execute("lock table l2inv.event, l2inv.dataset_version, l2inv.run in exclusive mode")
        for table in TABLES:
            if connection.execute(f"select 1 as row from l2inv.{table} limit 1").fetchone():  # noqa: S608
                raise Refused(
                    f"the schema is not empty: {table} has rows", "restore into a new schema: database.schema"
                )
        with _lines(path) as lines:
            for table, values in _batches(lines):
                _insert(connection, table, values, path)
                done += len(values)
                progress(done, of)
        for table, column in (("event", "event_id"), ("run", "run_id")):
            connection.execute(
                f"select setval(pg_get_serial_sequence('l2inv.{table}', '{column}'), max({column})) "  # noqa: S608
                f"from l2inv.{table} having max({column}) is not null"
            )
        found = verify.Findings()
        verify.run_checks(connection, found, list(verify.CHECKS), progress)
        if found.first:
            worst = found.first[0]
            where = f"OP {worst['op_id']}" if worst["op_id"] else worst["what"]
            raise L2invError(
                f"{path}: {where}: {worst['detail']}; {found.number} findings, nothing was restored",
                "take an earlier backup",
            )
    return {"file": str(path), "rows": rows}


def check(path: Path, progress: Callable[[int, int | None], None] = lambda done, of: None) -> dict[str, int]:
    """Read a backup to its end and return its rows. Raise L2invError for whatever is wrong with it."""
    digest, rows = hashlib.sha256(), dict.fromkeys(TABLES, 0)
    with _lines(path) as lines:
        first = next(lines, b"")
        _check_header(_json(first, path), path)
        digest.update(first)
        for number, line in enumerate(lines):
            if number % BATCH == 0:
                progress(number, None)
            if line.startswith(b'{"end"'):
                last = _json(line, path)
                if last.get("sha256") != digest.hexdigest():
                    raise _damaged(path, "its checksum is not that of its content")
                if next(lines, None) is not None:
                    raise _damaged(path, "something follows its end")
                if last["end"] != rows:
                    raise _damaged(path, "it does not hold as many rows as it says")
                return rows
            digest.update(line)
            table = _ROW.fullmatch(line)
            if table is None or table[1].decode() not in rows:
                raise _damaged(path, f"it holds what is no row of a table: {line[:40]!r}")
            rows[table[1].decode()] += 1
    raise _damaged(path, "it ends before its end")


_ROW = re.compile(rb'\["([a-z_]+)",(\{.*\})\]\n', re.DOTALL)


def _check_header(header: Any, path: Path) -> None:
    try:
        known = msgspec.convert(header, _Header)
    except msgspec.ValidationError as problem:
        raise _damaged(path, "it is no backup of l2inv") from problem
    later = sorted(known.migrations - shipped_migrations())
    if known.l2inv_backup != FORMAT or later:
        raise L2invError(
            f"{path}: made by a later l2inv ({known.l2inv}), with {', '.join(later) or 'another format'}",
            "upgrade l2inv",
        )


class _Header(msgspec.Struct):
    l2inv_backup: int
    l2inv: str = ""
    migrations: set[str] = set()


def _damaged(path: Path, what: str) -> L2invError:
    return L2invError(f"{path}: {what}", "take another backup")


@contextmanager
def _lines(path: Path) -> Iterator[Iterator[bytes]]:
    try:
        with gzip.open(path, "rb") as packed:
            yield iter(lambda: packed.readline(LONGEST_LINE), b"")
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise _damaged(path, str(problem)) from problem


def _batches(lines: Iterator[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """The rows between header and end, a table's at a time; each row stays the text that PostgreSQL wrote."""
    next(lines)
    while batch := list(islice(lines, BATCH)):
        by_table: dict[str, list[bytes]] = {}
        for found in map(_ROW.fullmatch, batch):
            if found:  # all but the end, as check() saw
                by_table.setdefault(found[1].decode(), []).append(found[2])
        yield from by_table.items()


def _insert(connection: Connection, table: str, rows: list[bytes], path: Path) -> None:
    try:
        values = [row.decode() for row in rows]
        _insert_rows(connection, table, values, path)
    except (UnicodeDecodeError, psycopg.DataError, psycopg.IntegrityError) as problem:
        words = " ".join(str(problem).split("\n", 1)[0].split())
        raise _damaged(path, f"it holds a row of {table} that is none: {words}") from problem


def _insert_rows(connection: Connection, table: str, values: list[str], path: Path) -> None:
    given = f"""
        select r.* from unnest(%s::text[]) with ordinality as line (row, at),
             jsonb_populate_record(null::l2inv.{table}, line.row::jsonb) r order by line.at
    """  # noqa: S608 - a table of our own
    connection.execute(f"insert into l2inv.{table} overriding system value {given}", [values])
    if table == "event":
        forged = connection.execute(
            f"select e.op_id, e.seq from ({given}) given join l2inv.event e using (event_id) "  # noqa: S608
            "where given.hash <> e.hash limit 1",
            [values],
        ).fetchone()
        if forged:
            raise _damaged(path, f"OP {forged['op_id']}: event {forged['seq']} is not what was recorded")


def _json(line: bytes, path: Path) -> Any:
    try:
        return json.loads(line)
    except ValueError as problem:
        raise _damaged(path, "it is no backup of l2inv") from problem
