"""The event log's chains of hashes and what they add up to, recomputed from the rows. No function, view or trigger of the
database is asked: who changed the rows may have changed these, too.

Rows come in a stream, in the order of OPs and of their events, so that memory stays flat.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any

import msgspec
from psycopg.rows import TupleRow, tuple_row
from psycopg.types.string import TextLoader

from l2inv.database.connection import Connection
from l2inv.domain import states
from l2inv.record import canonical

BATCH = 1000  # rows at a time; how many pass between two words of how far it is
MOST = 1000  # findings named one by one


class Findings:
    """How many faults were found, and the first of them."""

    def __init__(self) -> None:
        self.number = 0
        self.first: list[dict[str, Any]] = []

    def add(self, what: str, row: dict[str, Any], detail: str) -> None:
        self.number += 1
        if len(self.first) < MOST:
            found = {
                "what": what,
                "event_id": row.get("event_id"),
                "op_id": row.get("op_id"),
                "detail": detail,
            }
            self.first.append(found)


@contextmanager
def streamed(connection: Connection, name: str, query: str) -> Iterator[Iterable[TupleRow]]:
    """Lend the rows of a query, timestamps and JSON as the text that PostgreSQL prints: what was tampered with may be
    none that Python knows. The server is asked for the plain rows alone."""
    connection.execute("set local timezone = 'UTC'; set local datestyle = 'ISO'")
    with connection.cursor(name, row_factory=tuple_row) as cursor:
        for kind in ("timestamptz", "jsonb"):
            cursor.adapters.register_loader(kind, TextLoader)
        cursor.itersize = BATCH
        yield cursor.execute(query)


def events(
    connection: Connection, findings: Findings, progress: Callable[[int], None], since: bool = False
) -> None:
    """Check every OP's chain: seq without holes, and each hash that of the content and of the hash before it.

    Since an anchor that is loaded: each chain from the anchored event on.
    """
    columns = (
        "e.event_id, e.op_id, e.seq, e.kind, state, actor, recorded_by, recorded_at, run_id, detail, e.hash"
    )
    query = f"select {columns}, 0, null from l2inv.event e order by op_id, seq"  # noqa: S608 - columns of our own
    if since:
        query = f"""
            select {columns}, coalesce(h.seq, 0), h.hash from pg_temp.fresh f join l2inv.event e using (event_id)
            left join pg_temp.last_head h on h.op_id = e.op_id order by e.op_id, e.seq
        """  # noqa: S608
    op_id, last_seq, previous = None, 0, None
    with streamed(connection, "verify_events", query) as rows:
        for passed, row in enumerate(rows, 1):
            *values, first_seq, first_hash = row
            event = dict(zip((*canonical.FIELDS, "detail_text", "hash"), values, strict=True))
            event["recorded_at"] = _in_iso(event["recorded_at"])
            if event["op_id"] != op_id:
                op_id, last_seq, previous = event["op_id"], first_seq, first_hash
            digest = event["hash"].hex() if event["hash"] else None
            if event["seq"] != last_seq + 1:
                findings.add("event", event, f"event {last_seq + 1} is missing before event {event['seq']}")
            elif canonical.digest(previous, event) != digest:
                findings.add("event", event, f"event {event['seq']} is not what was recorded")
            last_seq, previous = event["seq"], digest
            if passed % BATCH == 0:
                progress(passed)


def _in_iso(moment: str) -> str:
    """The canonical form of a time that PostgreSQL prints as 2026-11-24 20:09:50.76+00."""
    seconds, _, fraction = moment.removesuffix("+00").replace(" ", "T").partition(".")
    return f"{seconds}.{fraction:0<6}Z" if fraction else f"{seconds}Z"


def state(connection: Connection, findings: Findings, _: Callable[[int], None], since: bool = False) -> None:
    """Compare each OP's present state with what its events say, the hash of the newest among it.

    Since an anchor that is loaded: of the OPs that have events after it.
    """
    columns = ", ".join(states.Op.__struct_fields__)
    of = "where op_id in (select op_id from pg_temp.fresh)" if since else ""
    kept_query = f"select {columns} from l2inv.op_state {of} order by op_id"  # noqa: S608 - columns of our own
    told_query = f"""
        select op_id, seq, kind, state, recorded_at, hash, detail from l2inv.event {of} order by op_id, seq
    """  # noqa: S608
    with (
        streamed(connection, "verify_kept", kept_query) as rows,
        streamed(connection, "verify_told", told_query) as events,
    ):
        kept_ops = (_kept_op(row) for row in rows)
        told_ops = (_told_op(op_id, of_op) for op_id, of_op in groupby(events, key=itemgetter(0)))
        for kept, told in _side_by_side(kept_ops, told_ops):
            if told is None:
                findings.add("state", msgspec.structs.asdict(kept), "there are no events of it")
            elif kept is None:
                findings.add("state", msgspec.structs.asdict(told), "it has events and no state")
            elif kept != told:
                names = sorted(n for n in states.Op.__struct_fields__ if getattr(kept, n) != getattr(told, n))
                words = f"{', '.join(names)} differ from what the events say: l2inv verify events says more"
                findings.add("state", {"op_id": kept.op_id}, words)


def _side_by_side(kept_ops: Iterator[states.Op], told_ops: Iterator[states.Op]) -> Iterator[tuple[Any, Any]]:
    """What is kept and what is told of each OP, None where there is no such thing. Both come in the order of ids."""
    kept, told = next(kept_ops, None), next(told_ops, None)
    while kept or told:
        before = (
            -1
            if told is None
            else 1
            if kept is None
            else (kept.op_id > told.op_id) - (kept.op_id < told.op_id)
        )
        yield kept if before <= 0 else None, told if before >= 0 else None
        if before <= 0:
            kept = next(kept_ops, None)
        if before >= 0:
            told = next(told_ops, None)


def _kept_op(row: TupleRow) -> states.Op:
    op = states.Op(*row)
    op.due_at = _moment(row[-1])
    return op


def _moment(printed: str | None) -> Any:
    """A time that PostgreSQL printed; what Python takes for none stays text, and differs from every time."""
    try:
        return datetime.fromisoformat(printed) if printed else None
    except ValueError:
        return printed


def _told_op(op_id: str, rows: Iterable[TupleRow]) -> states.Op:
    op = states.Op(op_id)
    for _, seq, kind, state, recorded_at, hash_, detail in rows:
        states.follow(op, seq, kind, state, recorded_at, hash_, _detail(kind, detail))
    return op


_detail_decoder = msgspec.json.Decoder(states.Detail)


def _detail(kind: str, detail: str) -> states.Detail:
    """What of a detail the state follows; nothing where it makes no sense, as the event's hash then says."""
    try:
        return _detail_decoder.decode(detail) if kind in states.FOLLOWED else states.Detail()
    except msgspec.DecodeError:
        return states.Detail()
