"""The event log's hash chains and the present states, recomputed from the rows. No function, view or trigger of the
database is used: someone who changed the rows may have changed these, too.

Rows are streamed, sorted by OP and event, in bounded memory.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
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

BATCH = 1000  # rows at a time, and between two reports of progress
MOST = 1000  # findings listed; more are counted


class Finding(msgspec.Struct, frozen=True):
    """A fault: of which kind of row, of which event or OP if known, and what is wrong."""

    what: str
    event_id: int | None
    op_id: str | None
    detail: str


class Findings:
    """The number of faults found, and the first of them."""

    def __init__(self) -> None:
        self.number = 0
        self.first: list[Finding] = []

    def add(self, what: str, row: Mapping[str, Any], detail: str) -> None:
        """Add a finding about a row: its event_id and op_id, if it has these, say where."""
        self.number += 1
        if len(self.first) < MOST:
            self.first.append(Finding(what, row.get("event_id"), row.get("op_id"), detail))


@contextmanager
def streamed(connection: Connection, name: str, query: str) -> Iterator[Iterable[TupleRow]]:
    """Yield the rows of a query, with timestamps and JSON as the text that PostgreSQL prints: tampered values may be
    invalid in Python."""
    connection.execute("set local timezone = 'UTC'; set local datestyle = 'ISO'")
    with connection.cursor(name, row_factory=tuple_row) as cursor:
        for kind in ("timestamptz", "jsonb"):
            cursor.adapters.register_loader(kind, TextLoader)
        cursor.itersize = BATCH
        yield cursor.execute(query)


def events(
    connection: Connection, findings: Findings, progress: Callable[[int], None], since: bool = False
) -> None:
    """Check every OP's chain: seq without gaps, growing numbers, and each hash computed from the content and the hash
    before it. The next number must be beyond all that there are, as readers by cursor rely on.

    With `since`, each chain from the event in the loaded anchor.
    """
    columns = "e.event_id, e.op_id, e.seq, e.kind, e.state, e.actor, e.recorded_by, e.recorded_at, e.run_id, e.detail, e.hash"
    query = f"select {columns}, 0, 0, null from l2inv.event e order by op_id, seq"  # noqa: S608 - columns of our own
    if since:
        query = f"""
            select {columns}, coalesce(a.event_id, 0), coalesce(h.seq, 0), h.hash
            from pg_temp.fresh f join l2inv.event e using (op_id, seq)
            left join pg_temp.last_head h on h.op_id = e.op_id
            left join l2inv.event a on a.op_id = h.op_id and a.seq = h.seq order by e.op_id, e.seq
        """  # noqa: S608
    op_id, last_id, last_seq, previous = None, 0, 0, None
    with streamed(connection, "verify_events", query) as rows:
        for passed, row in enumerate(rows, 1):
            *values, first_id, first_seq, first_hash = row
            event = dict(zip((*canonical.FIELDS, "detail_text", "hash"), values, strict=True))
            event["recorded_at"] = _in_iso(event["recorded_at"])
            if event["op_id"] != op_id:
                op_id, last_id, last_seq, previous = event["op_id"], first_id, first_seq, first_hash
            digest = event["hash"].hex() if event["hash"] else None
            if event["seq"] != last_seq + 1:
                findings.add("event", event, f"event {last_seq + 1} is missing before event {event['seq']}")
            elif canonical.digest(previous, event) != digest:
                findings.add("event", event, f"event {event['seq']} is not what was recorded")
            elif (event["event_id"] or 0) <= last_id:
                findings.add(
                    "event",
                    event,
                    f"event {event['seq']} has a lower number than the one before it, {last_id}",
                )
            last_id, last_seq, previous = event["event_id"] or 0, event["seq"] or 0, digest
            if passed % BATCH == 0:
                progress(passed)
    if since:  # the join has left them out
        for lost in connection.execute(
            "select event_id, op_id from l2inv.event where op_id is null or seq is null"
        ):
            findings.add("event", lost, "the event is of no OP, or has no number there")
    for last in connection.execute(_NEXT_NUMBER):
        why = "is no higher" if last["next"] <= (last["event_id"] or 0) else "PostgreSQL cannot give"
        findings.add("event", last, f"the next event would have the number {last['next']}, which {why}")


# The sequence may be missing, which verify schema names.
_NEXT_NUMBER = """
    with newest as (select max(event_id) as event_id from l2inv.event), given as (
        select coalesce(pg_catalog.pg_sequence_last_value(to_regclass('l2inv.event_event_id_seq')), 0)::numeric + 1 as next
    )
    select event_id, next from newest, given where next <= event_id or next > 9223372036854775807
"""


def _in_iso(moment: str | None) -> str | None:
    """Return the canonical form of a time that PostgreSQL prints as 2026-11-24 20:09:50.76+00."""
    if moment is None:
        return None
    seconds, _, fraction = moment.removesuffix("+00").replace(" ", "T").partition(".")
    return f"{seconds}.{fraction:0<6}Z" if fraction else f"{seconds}Z"


def state(connection: Connection, findings: Findings, _: Callable[[int], None], since: bool = False) -> None:
    """Compare each OP's present state, with its newest hash, with the state that follows from its events.

    With `since`, only the OPs that have events after the loaded anchor.
    """
    columns = ", ".join(states.Op.__struct_fields__)
    of = "where op_id in (select op_id from pg_temp.fresh)" if since else ""
    kept_query = f"select {columns} from l2inv.op_state {of} order by op_id"  # noqa: S608 - columns of our own
    events_query = f"""
        select op_id, seq, kind, state, recorded_at, hash, detail from l2inv.event {of} order by op_id, seq
    """  # noqa: S608
    with (
        streamed(connection, "verify_kept", kept_query) as rows,
        streamed(connection, "verify_events_of_state", events_query) as events,
    ):
        kept_ops = (_kept_op(row) for row in rows)
        computed_ops = (
            _computed_op(op_id, of_op, findings) for op_id, of_op in groupby(events, key=itemgetter(0))
        )
        for kept, computed in _side_by_side(kept_ops, computed_ops):
            if computed is None:
                findings.add("state", msgspec.structs.asdict(kept), "there are no events of it")
            elif kept is None:
                findings.add("state", msgspec.structs.asdict(computed), "it has events and no state")
            elif kept != computed:
                names = sorted(
                    n for n in states.Op.__struct_fields__ if getattr(kept, n) != getattr(computed, n)
                )
                words = f"{', '.join(names)} differ from what follows from the events; for details: l2inv verify events"
                findings.add("state", {"op_id": kept.op_id}, words)


def _side_by_side(
    kept_ops: Iterator[states.Op], computed_ops: Iterator[states.Op]
) -> Iterator[tuple[Any, Any]]:
    """Yield for each OP its stored and its computed state, None if there is none. Both are sorted by id."""
    kept, computed = next(kept_ops, None), next(computed_ops, None)
    while kept or computed:
        first = min(_place(op) for op in (kept, computed) if op)
        of_kept = kept is not None and _place(kept) == first
        of_computed = computed is not None and _place(computed) == first
        yield kept if of_kept else None, computed if of_computed else None
        if of_kept:
            kept = next(kept_ops, None)
        if of_computed:
            computed = next(computed_ops, None)


def _place(op: states.Op) -> tuple[bool, str]:
    """Return an OP's place in PostgreSQL's order, in which null, which only tampering leaves, is last."""
    return op.op_id is None, op.op_id or ""


def _kept_op(row: TupleRow) -> states.Op:
    op = states.Op(*row)
    op.due_at = _moment(row[-1])
    return op


def _moment(printed: str | None) -> Any:
    """Return a time that PostgreSQL printed; if Python cannot read it, as text, which equals no time."""
    try:
        return datetime.fromisoformat(printed) if printed else None
    except ValueError:
        return printed


def _computed_op(op_id: str, rows: Iterable[TupleRow], findings: Findings) -> states.Op:
    op = states.Op(op_id)
    against: dict[int | None, str] = {}  # seq -> finding; what was declared void is none
    for _, seq, kind, state, recorded_at, hash_, detail in rows:
        said = _detail(kind, detail)
        states.follow(op, seq, kind, state, recorded_at, hash_, said)
        if kind in _verdicts and _is_invertible(kind, detail) is (op.state == "not_invertible"):
            against[seq] = f"event {seq} leaves it {op.state}, against its own verdict"
        elif kind == "voided":
            against.pop(said.seq, None)
    for words in against.values():
        findings.add("state", {"op_id": op_id}, words)
    return op


class _Verdict(msgspec.Struct):
    invertible: bool


class _Judged(msgspec.Struct):
    verdict: _Verdict


_verdicts: dict[str, msgspec.json.Decoder[Any]] = {
    "judged": msgspec.json.Decoder(_Judged),
    "overruled": msgspec.json.Decoder(_Verdict),
}


def _is_invertible(kind: str, detail: str | None) -> bool | None:
    """Return the verdict in a detail; None if it is invalid, which the hash check reports."""
    try:
        decoded = _verdicts[kind].decode(detail or "")
    except msgspec.DecodeError:
        return None
    invertible: bool = (decoded.verdict if kind == "judged" else decoded).invertible
    return invertible


_detail_decoder = msgspec.json.Decoder(states.Detail)


def _detail(kind: str, detail: str | None) -> states.Detail:
    """Return the part of a detail that changes the state; nothing if it is invalid, which the hash check reports."""
    try:
        return _detail_decoder.decode(detail or "") if kind in states.FOLLOWED else states.Detail()
    except msgspec.DecodeError:
        return states.Detail()
