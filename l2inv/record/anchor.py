"""An anchor: the newest hashes of the event log, in a file to be kept where writers of the database have no access.

It reveals what the hash chains cannot: a history whose end was cut off, or rewritten with all its hashes, and runs that
were removed. Each verification without findings appends a block: a first line with counts and the schema's digest; each
OP's newest event and its hash, if it changed since the blocks before; each run that ended since; and a last line. Nothing
in the file is ever changed.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple

import msgspec

from l2inv.database.connection import Connection
from l2inv.database.schema import applied_migrations
from l2inv.errors import L2invError
from l2inv.files import appending, reading
from l2inv.record import structure
from l2inv.record.chains import Findings, streamed

FORMAT = 2


class Begin(msgspec.Struct):
    """The first line of a block."""

    anchor: int
    at: str
    postgresql: int  # major version: each prints its catalogs differently
    migrations: list[str]
    schema: str  # the structure's digest
    events: int
    runs: int


class Anchor(NamedTuple):
    """The content of a file: the newest block's first line and the runs' hashes; heads are in temporary tables."""

    path: Path
    last: Begin | None
    runs: dict[int, str]
    heads: int


def load(connection: Connection, path: Path, is_new: bool = False) -> Anchor:
    """Read an anchor into the session's temporary tables anchored_head and last_head, and create the table fresh.

    Raise L2invError if the file is missing or empty and not `is_new`, if it exists and is `is_new`, or is not an anchor.
    """
    # The heads of a million OPs are joined with their events in memory, rather than in many parts on the disk.
    connection.execute("set work_mem = '128MB'")
    for table in (
        'anchored_head (op_id text collate "C", seq integer, hash text)',
        'last_head (op_id text collate "C", seq integer, hash text)',
        'fresh (op_id text collate "C", seq integer)',
    ):
        connection.execute(f"create temporary table {table}")
    is_there = path.exists() and (not path.is_file() or path.stat().st_size > 0)
    if is_new:
        if is_there:
            raise L2invError(f"anchor {path}: exists already", "leave --new-anchor out, or name another file")
        return Anchor(path, None, {}, 0)
    if not is_there:
        raise L2invError(
            f"anchor {path}: is {'empty' if path.exists() else 'missing'}",
            "find out who removed it; if none was ever written, create one with --new-anchor",
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
_head = msgspec.json.Decoder(
    tuple[
        Annotated[str, msgspec.Meta(max_length=200, pattern=r"^[^\x00]+$")],
        Annotated[int, msgspec.Meta(ge=1, lt=2**31)],
        Annotated[str, msgspec.Meta(max_length=64)],
    ]
)
_run = msgspec.json.Decoder(tuple[int, str])
_end = msgspec.json.Decoder(dict[str, int])


def _parsed(lines: Iterable[bytes]) -> Iterator[Any]:
    """Yield each line, decoded. A line that a killed writer left unfinished may only be the last of the file, or of its block."""
    torn: Exception | None = None
    first = 0  # line of the block
    for number, line in enumerate(lines):
        begins = line.startswith(b'{"anchor"')
        if (number == 0 and not begins) or (torn and not begins):
            raise torn or ValueError("does not begin like an anchor")
        torn = None
        try:
            if begins:
                begin, first = _begin.decode(line), number
                if begin.anchor != FORMAT:
                    raise ValueError(f"is of format {begin.anchor}, not {FORMAT}")
                yield begin
            elif line.startswith(b"{"):
                between = number - first - 1
                if _end.decode(line) != {"end": between}:
                    raise ValueError(
                        f"has {between} lines in a block that ends otherwise: {line.decode().strip()}"
                    )
            else:
                yield (_head if line.startswith(b'["') else _run).decode(line)
        except msgspec.DecodeError as problem:
            if number == 0:
                raise
            torn = problem
    if torn and line.endswith(b"\n"):
        raise torn


def find_fresh(connection: Connection) -> None:
    """Fill the temporary table `fresh` with the events after the heads of the anchor.

    Only columns of one index are read, in whose order the events of an OP, and so the look-ups of its head, are together.
    """
    connection.execute(
        """
        insert into pg_temp.fresh
        select op_id, e.seq from l2inv.event e left join pg_temp.last_head h using (op_id)
        where e.seq > coalesce(h.seq, 0)
        """
    )


def check(connection: Connection, findings: Findings, anchor: Anchor) -> None:
    """Add a finding for each anchored event, state and run that is missing or changed, and if there are fewer events or runs."""
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
        findings.add("anchor", row, "its state is missing, or older than what was anchored")
    left = dict(anchor.runs)
    for run_id, digest in _runs(connection):
        if left.pop(run_id, digest) != digest:
            findings.add("anchor", {}, f"run {run_id} is not what was anchored")
    for run_id in left:
        findings.add("anchor", {}, f"run {run_id} is missing, or no longer ended")
    if anchor.last:
        _check_numbers(findings, anchor.last, _first_line(connection))


def _check_numbers(findings: Findings, then: Begin, now: Begin) -> None:
    for name in ("events", "runs"):
        if getattr(now, name) < getattr(then, name):
            words = f"{getattr(then, name)} {name} were anchored, {getattr(now, name)} are there"
            findings.add("anchor", {}, words)
    same = (then.postgresql, then.migrations) == (now.postgresql, now.migrations)
    if same and then.schema != now.schema:
        findings.add("anchor", {}, "the schema is not what was anchored; for details: l2inv verify schema")
    if set(then.migrations) - set(now.migrations):
        findings.add("anchor", {}, "the schema has fewer migrations than were anchored")


@contextmanager
def block(connection: Connection, anchor: Anchor) -> Iterator[tuple[IO[bytes], int]]:
    """Yield the block to append, from the open transaction's snapshot, and the number of heads in it."""
    with tempfile.TemporaryFile() as file:
        file.write(msgspec.json.encode(_first_line(connection)) + b"\n")
        heads = lines = 0
        # All rows are wanted, not the first ones soon, for which PostgreSQL would follow an index to every OP.
        connection.execute("set local cursor_tuple_fraction = 1")
        with connection.cursor("heads") as cursor:
            cursor.execute(
                """
                select op_id, s.seq, encode(s.hash, 'hex') as hash
                from l2inv.op_state s left join pg_temp.last_head h using (op_id)
                where h.seq is distinct from s.seq order by op_id
                """
            )
            for heads, row in enumerate(cursor, 1):  # noqa: B007 - the last is their number
                file.write(msgspec.json.encode([row["op_id"], row["seq"], row["hash"]]) + b"\n")
        for run_id, digest in _runs(connection):
            if run_id not in anchor.runs:
                file.write(msgspec.json.encode([run_id, digest]) + b"\n")
                lines += 1
        file.write(msgspec.json.encode({"end": heads + lines}) + b"\n")
        yield file, heads


def append(path: Path, block: IO[bytes]) -> None:
    """Append a block to the file, created with mode 0600 if it is missing. Raise OSError and L2invError."""
    block.seek(0)
    with appending(path) as file:
        for part in iter(lambda: block.read(1 << 20), b""):
            file.write(part)


def _first_line(connection: Connection) -> Begin:
    row = connection.execute(
        "select (select count(*) from l2inv.event) as events, (select count(*) from l2inv.run) as runs"
    ).fetchone()
    assert row is not None
    with connection.transaction(force_rollback=True):  # it sets the search path
        schema = structure.digest_of(structure.found(connection))
    return Begin(
        anchor=FORMAT,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        postgresql=connection.info.server_version // 10_000,
        migrations=sorted(applied_migrations(connection)),
        schema=schema,
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
