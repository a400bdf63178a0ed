"""An anchor: the newest hashes of the record, in a file to be kept where those who write to the database cannot.

It shows what the chains of hashes cannot: the end of a history that was cut off, or rewritten with all that follows from
it, and runs that were emptied. Each verification that finds nothing appends a block: a line that begins it, with numbers
and the schema's digest; each OP's newest event and its hash, where it is another than in the blocks before; each run that
ended since; and a line that ends it. Nothing in the file is ever changed.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from l2inv.database.connection import Connection
from l2inv.database.schema import applied_migrations
from l2inv.errors import L2invError
from l2inv.files import appending, reading
from l2inv.record import structure
from l2inv.record.chains import Findings, streamed

FORMAT = 2


class Begin(msgspec.Struct):
    """The line that begins a block."""

    anchor: int
    at: str
    postgresql: int  # major version: each prints its catalogs in words of its own
    migrations: list[str]
    schema: str  # the structure's digest
    events: int
    runs: int


class Anchor(NamedTuple):
    """What a file holds: the newest block's beginning, the runs' hashes; heads are in temporary tables."""

    path: Path
    last: Begin | None
    runs: dict[int, str]
    heads: int


def load(connection: Connection, path: Path, is_new: bool = False) -> Anchor:
    """Read an anchor into the session's temporary tables anchored_head and last_head, and make one for fresh events.

    Raise L2invError when it is missing or empty though none is to be made, or is there though one is; or is no anchor.
    """
    for table in (
        'anchored_head (op_id text collate "C", seq integer, hash text)',
        'last_head (op_id text collate "C" primary key, seq integer, hash text)',
        'fresh (event_id bigint, op_id text collate "C", kind text)',
    ):
        connection.execute(f"create temporary table {table}")
    is_there = path.exists() and (not path.is_file() or path.stat().st_size > 0)
    if is_new:
        if is_there:
            raise L2invError(
                f"anchor {path}: is there already", "leave --new-anchor out, or name another file"
            )
        return Anchor(path, None, {}, 0)
    if not is_there:
        raise L2invError(
            f"anchor {path}: is {'empty' if path.exists() else 'missing'}",
            "find out who removed it; where none was ever written, make one with --new-anchor",
        )
    begins: list[Begin] = []
    runs: dict[int, str] = {}
    heads = 0
    try:
        with (
            reading(path) as lines,
            connection.cursor() as cursor,
            cursor.copy("copy pg_temp.anchored_head from stdin") as copy,
        ):
            for line in _parsed(lines):
                if isinstance(line, Begin):
                    begins.append(line)
                elif len(line) == 3:
                    copy.write_row(line)
                    heads += 1
                else:
                    runs.setdefault(*line)
    except (OSError, ValueError, msgspec.DecodeError) as problem:
        raise L2invError(f"anchor {path}: {problem}", "name a file that verify --anchor wrote") from problem
    connection.execute(
        "insert into pg_temp.last_head select distinct on (op_id) * from pg_temp.anchored_head order by op_id, seq desc"
    )
    connection.execute("analyze pg_temp.anchored_head, pg_temp.last_head")
    return Anchor(path, begins[-1], runs, heads)


_begin = msgspec.json.Decoder(Begin)
_head = msgspec.json.Decoder(tuple[str, int, str])
_run = msgspec.json.Decoder(tuple[int, str])
_end = msgspec.json.Decoder(dict[str, int])


def _parsed(lines: Iterable[bytes]) -> Iterator[Any]:
    """Yield each line as what it is. A line that a killed writer left unfinished may only end the file, or its block."""
    torn: Exception | None = None
    for number, line in enumerate(lines):
        begins = line.startswith(b'{"anchor"')
        if (number == 0 and not begins) or (torn and not begins):
            raise torn or ValueError("does not begin as an anchor does")
        torn = None
        try:
            if begins:
                begin = _begin.decode(line)
                if begin.anchor != FORMAT:
                    raise ValueError(f"is of format {begin.anchor}, not {FORMAT}")
                yield begin
            elif line.startswith(b"{"):
                _end.decode(line)
            else:
                yield (_head if line.startswith(b'["') else _run).decode(line)
        except msgspec.DecodeError as problem:
            if number == 0:
                raise
            torn = problem
    if torn and line.endswith(b"\n"):
        raise torn


def find_fresh(connection: Connection) -> None:
    """Fill the temporary table `fresh` with the events that came after the heads of the anchor."""
    connection.execute(
        """
        insert into pg_temp.fresh
        select e.event_id, e.op_id, e.kind from l2inv.event e left join pg_temp.last_head h using (op_id)
        where e.seq > coalesce(h.seq, 0)
        """
    )


def check(connection: Connection, findings: Findings, anchor: Anchor) -> None:
    """Find each anchored event, state and run that is missing or is another now, and events or runs that are fewer."""
    rows = connection.execute(
        """
        select op_id, seq, e.event_id from pg_temp.anchored_head h left join l2inv.event e using (op_id, seq)
        where encode(e.hash, 'hex') is distinct from h.hash
        """
    )
    for row in rows:
        gone = "is missing" if row["event_id"] is None else "is not what was anchored"
        findings.add("anchor", row, f"event {row['seq']} {gone}")
    states = connection.execute(
        """
        select op_id from pg_temp.last_head h left join l2inv.op_state s using (op_id)
        where s.seq is null or s.seq < h.seq or s.seq = h.seq and encode(s.hash, 'hex') <> h.hash
        """
    )
    for row in states:
        findings.add("anchor", row, "its state is of before what was anchored, or missing")
    left = dict(anchor.runs)
    for run_id, digest in _runs(connection):
        if left.pop(run_id, digest) != digest:
            findings.add("anchor", {}, f"run {run_id} is not what was anchored")
    for run_id in left:
        findings.add("anchor", {}, f"run {run_id} is missing, or is not ended any more")
    if anchor.last:
        _check_numbers(findings, anchor.last, _begun(connection))


def _check_numbers(findings: Findings, then: Begin, now: Begin) -> None:
    for name in ("events", "runs"):
        if getattr(now, name) < getattr(then, name):
            words = f"{getattr(then, name)} {name} were anchored, {getattr(now, name)} are there"
            findings.add("anchor", {}, words)
    same = (then.postgresql, then.migrations) == (now.postgresql, now.migrations)
    if same and then.schema != now.schema:
        findings.add("anchor", {}, "the schema is not what was anchored: l2inv verify schema says more")
    if set(then.migrations) - set(now.migrations):
        findings.add("anchor", {}, "the schema has fewer migrations than were anchored")


@contextmanager
def block(connection: Connection, anchor: Anchor) -> Iterator[tuple[IO[bytes], int]]:
    """Lend the block to be appended, as of the open transaction's moment, and the number of heads in it."""
    with tempfile.TemporaryFile() as file:
        file.write(msgspec.json.encode(_begun(connection)) + b"\n")
        heads = lines = 0
        with connection.cursor("heads") as cursor:
            cursor.execute(
                """
                select op_id, s.seq, encode(s.hash, 'hex') as hash
                from l2inv.op_state s left join pg_temp.last_head h using (op_id)
                where h.seq is distinct from s.seq order by op_id
                """
            )
            for heads, row in enumerate(cursor, 1):  # noqa: B007 - how many there were
                file.write(msgspec.json.encode([row["op_id"], row["seq"], row["hash"]]) + b"\n")
        for run_id, digest in _runs(connection):
            if run_id not in anchor.runs:
                file.write(msgspec.json.encode([run_id, digest]) + b"\n")
                lines += 1
        file.write(msgspec.json.encode({"end": heads + lines}) + b"\n")
        yield file, heads


def append(path: Path, block: IO[bytes]) -> None:
    """Append a block to the file, made with mode 0600 where it is not there. Raise OSError and L2invError."""
    block.seek(0)
    with appending(path) as file:
        for part in iter(lambda: block.read(1 << 20), b""):
            file.write(part)


def _begun(connection: Connection) -> Begin:
    row = connection.execute(
        "select (select count(*) from l2inv.event) as events, (select count(*) from l2inv.run) as runs"
    ).fetchone()
    assert row is not None
    return Begin(
        anchor=FORMAT,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        postgresql=connection.info.server_version // 10_000,
        migrations=sorted(applied_migrations(connection)),
        schema=structure.digest_of(connection),
        **row,
    )


def _runs(connection: Connection) -> Iterator[tuple[int, str]]:
    """Yield each ended run with the SHA-256 of a JSON array of its columns, as PostgreSQL prints them."""
    query = """
        select run_id, stage, actor, started_at, finished_at, result from l2inv.run
        where finished_at is not null order by run_id
    """
    with streamed(connection, "anchor_runs", query) as rows:
        for row in rows:
            yield row[0], hashlib.sha256(json.dumps(row).encode()).hexdigest()
