"""The event log: all events are added here, and none is ever changed.

An event is written with the OP's sequence number that its writer saw. Of two writers with the same number, the second
adds nothing. The database refuses what the states do not allow.
"""

import json
import re
from bisect import bisect
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import takewhile
from typing import Any, LiteralString

import msgspec

from l2inv import wording
from l2inv.database.connection import Connection
from l2inv.documents import Json
from l2inv.domain import states
from l2inv.errors import Refused

MOST_ALIKE = 500  # ids that a mistyped one is compared with
LEAST_TAIL, LONGEST_NUMBER = 6, 8  # characters of an id's end, which is a number after a period


class Event(msgspec.Struct, frozen=True):
    """What happened to an OP. `after` is the sequence number of the OP's event before it, 0 for a new OP."""

    op_id: str
    after: int
    kind: str
    state: states.State | None
    detail: Json


class Present(msgspec.Struct, frozen=True):
    """The present state of an OP, as far as commands depend on it."""

    op_id: str
    seq: int
    state: states.State
    since: str
    state_before_error: states.State | None
    verdict_seq: int | None
    datasets_seq: int
    assignee: str | None
    due_at: datetime | None
    on_hold: bool


def add(connection: Connection, events: Sequence[Event], actor: str, run_id: int | None) -> set[str]:
    """Add one event to each of many OPs in one transaction, and return the OPs that got theirs.

    An OP that changed since its writer read it gets none: the writer reads it again in its next run.
    The OPs are locked in the order of their ids, so that two writers never deadlock.
    """
    with connection.transaction():
        rows = connection.execute(
            "select op_id, seq from l2inv.op_state where op_id = any(%s) order by op_id for update",
            [[event.op_id for event in events]],
        )
        present = {row["op_id"]: row["seq"] for row in rows}
        timely = [event for event in events if present.get(event.op_id, 0) == event.after]
        with connection.cursor() as cursor, cursor.copy(f"copy {_COLUMNS} from stdin") as copy:
            for e in sorted(timely, key=lambda event: event.op_id):
                copy.write_row((e.op_id, e.after + 1, e.kind, e.state, actor, run_id, detail_text(e.detail)))
    return {event.op_id for event in timely}


_COLUMNS = "l2inv.event (op_id, seq, kind, state, actor, run_id, detail)"


def detail_text(detail: Json) -> str:
    """Return a detail as text for PostgreSQL's jsonb: NUL and lone surrogates are escaped."""
    with suppress(UnicodeEncodeError, OverflowError):  # json takes integers of any size
        text = msgspec.json.encode(detail).decode()
        if "\\u0000" not in text:
            return text
    return json.dumps(_storable(detail))


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_storable(key): _storable(inner) for key, inner in value.items()}
    return [_storable(inner) for inner in value] if isinstance(value, list) else value


def append(connection: Connection, event: Event, actor: str, run_id: int | None) -> bool:
    """Add one event to an OP in one statement; return False if the OP changed since its writer read it."""
    added = connection.execute(
        f"""
        insert into {_COLUMNS}
            select op_id, seq + 1, %s, %s, %s, %s::bigint, %s::jsonb
            from l2inv.op_state where op_id = %s and seq = %s for update
        """,  # noqa: S608 - text of our own
        [event.kind, event.state, actor, run_id, detail_text(event.detail), event.op_id, event.after],
    )
    return added.rowcount == 1


def add_one(
    connection: Connection,
    present: Present,
    kind: str,
    state: states.State | None,
    actor: str,
    detail: Json,
    run_id: int | None = None,
) -> None:
    """Add one event to an OP that is locked by locked(). Raise Refused if its state does not allow it."""
    must_allow(present, kind, state)
    added = append(connection, Event(present.op_id, present.seq, kind, state, detail), actor, run_id)
    assert added, "the row is locked"


def must_allow(present: Present, kind: str, state: states.State | None) -> None:
    """Raise Refused if an OP's state does not allow an event."""
    if not states.is_allowed(kind, present.state, state, present.state_before_error):
        why, hint = _INSTEAD.get((kind, present.state), ("", ""))
        why = why or _NOT_ALLOWED.get(kind) or f"it cannot be {kind.replace('_', ' ')}"
        hint = hint.format(present.op_id)
        raise Refused(
            f"OP {present.op_id} is {present.state}: {why}",
            hint or way_on(present.op_id, present.state, _held(present), on_hold=present.on_hold),
        )


# What a refused command would have needed, where "it cannot be …" would not say it.
_NOT_ALLOWED = {
    "released": "there is no claim to release",
    "inverted": "it cannot be marked inverted",
    "resumed": "there is no ready event to unmark or to amend",
    "inversion_named": "it can adopt no inversion",
}
# The same for a state in which somebody means another command, with that.
_READY = "there is a ready event"
_INSTEAD = {
    ("released", "preprocessed"): ("nobody holds it", "nothing to do"),
    ("released", "inverted"): (_READY, "to work on it again: l2inv unmark {}"),
    ("inverted", "inverted"): (
        f"{_READY} already",
        "to correct it: l2inv amend {0} --from FILE; to work on it again: l2inv unmark {0}",
    ),
}


def must_hold(present: Present, actor: str) -> None:
    """Raise Refused if somebody else holds the OP."""
    if present.state == "working" and present.assignee != actor:
        raise Refused(
            f"OP {present.op_id} is held by {present.assignee} since {present.since}, not by {actor}",
            f"ask {present.assignee} to release it or to hand it over; once it is overdue: l2inv take-over",
        )


def locked(connection: Connection, op_id: str) -> Present:
    """Return the present state of an OP and lock it until the transaction ends. Raise Refused."""
    return seen(connection, op_id, "for update")


def seen(connection: Connection, op_id: str, lock: str = "") -> Present:
    """Return the present state of an OP, unlocked unless `lock` is "for update". Raise Refused."""
    row = connection.execute(
        f"""
        select op_id, seq, state, to_char(since at time zone 'UTC', 'YYYY-MM-DD HH24:MI "UTC"') as since,
               state_before_error, verdict_seq, datasets_seq, assignee, due_at, on_hold_seq is not null as on_hold
        from l2inv.op_state where op_id = %s {lock}
        """,  # noqa: S608 - text of our own
        [op_id],
    ).fetchone()
    if row is None:
        raise Refused(f"OP {wording.short(op_id)} is unknown", "see: l2inv list")
    return Present(**row)


def resolve(connection: Connection, op: str) -> str:
    """Return the full id of the OP that a text identifies. Raise Refused if none or several match.

    The text may be the OP's id; or the beginning, the end or any other part of it; or the id of one of its datasets,
    products, instrument programs or inversions. A beginning takes precedence over an end, an end over other parts, so
    that what tails() returns always identifies its OP. A beginning is looked up in an index; ends and parts read
    op_state once; products, instrument programs and inversions are looked up only if the text has the form of their ids.
    """
    candidates = _ids(
        connection,
        "select op_id from l2inv.op where op_id = %s or op_id like %s order by op_id = %s desc, op_id limit 6",
        [op, _pattern(op), op],
    )
    if candidates[:1] == [op]:
        return op
    if not candidates:
        parts = _ids(
            connection,
            """
            select op_id from l2inv.op where strpos(op_id, %(op)s) > 0
            order by right(op_id, length(%(op)s)) = %(op)s desc, op_id limit 6
            """,
            {"op": op},
        )
        ends = [op_id for op_id in parts if op_id.endswith(op)]
        candidates = ends or sorted({*parts, *_holding(connection, op)})
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        more = ", …" if len(candidates) > 5 else ""
        several = f"{wording.quoted(op)} matches several OPs: {', '.join(candidates[:5])}{more}"
        raise Refused(several, "type more of the id")
    near = _nearest(connection, op)
    named = f"OP {wording.quoted(op)} is unknown" + (f", the nearest is {near}" if near else "")
    raise Refused(named, "see: l2inv list")


def _nearest(connection: Connection, op: str) -> str | None:
    """Return the OP whose id is most like a text, among the first that contain a half of it: one typo leaves a half intact."""
    from difflib import get_close_matches

    half = len(op) // 2
    if half < 3:
        return None
    alike = _ids(
        connection,
        "select op_id from l2inv.op where strpos(op_id, %s) > 0 or strpos(op_id, %s) > 0 order by op_id limit %s",
        [op[:half], op[half:], MOST_ALIKE],
    )
    ends = {op_id[-len(op) :]: op_id for op_id in alike}
    near = get_close_matches(op, ends, n=1, cutoff=0.7)
    return ends[near[0]] if near else None


def _holding(connection: Connection, thing: str) -> list[str]:
    """Return the OPs with a dataset, a product, an instrument program or an inversion of that id."""
    found = _ids(connection, "select op_id from l2inv.dataset where dataset_id = %s", [thing])
    if thing.startswith(("L1-", "id.")):
        found += _ids(
            connection,
            """
            select distinct op_id from l2inv.dataset
            where %(id)s in (record ->> 'productId', record ->> 'instrumentProgramExecutionId') order by op_id limit 6
            """,
            {"id": thing},
        )
    if inversion := re.fullmatch(r"(?:inv[._])?([A-Z0-9]{6})", thing, re.IGNORECASE):
        inversion_id = f"inv.{inversion[1].upper()}"
        found += _ids(
            connection,
            """
            select distinct op_id from l2inv.history
            where detail ->> 'inversion_id' = %s or detail -> 'inversions' @> jsonb_build_array(jsonb_build_object('inversion_id', %s::text))
            order by op_id limit 6
            """,
            [inversion_id, inversion_id],
        )
    return found


def _ids(connection: Connection, statement: LiteralString, values: Any) -> list[str]:
    return [row["op_id"] for row in connection.execute(statement, values)]


def tails(connection: Connection, op_ids: Iterable[str]) -> dict[str, str]:
    """Return for each OP the shortest end of its id by which resolve() finds it.

    That is the last number if no other OP's id ends so, else more, and the whole id if another OP's id begins so.
    """
    wanted = set(op_ids)
    rows = _ids(
        connection,
        "select op_id from l2inv.op where right(op_id, %s) = any(%s)",
        [LEAST_TAIL, [op_id[-LEAST_TAIL:] for op_id in wanted]],
    )
    alike: dict[str, list[str]] = {}
    for op_id in rows:
        alike.setdefault(op_id[-LEAST_TAIL:], []).append(op_id[::-1])
    for group in alike.values():
        group.sort()
    found = {op_id: _tail(op_id, alike.get(op_id[-LEAST_TAIL:], [])) for op_id in wanted}
    begin = connection.execute(
        """
        select tail from unnest(%s::text[]) tail where exists (
            select from l2inv.op where op_id >= tail collate "C" and op_id < (tail || chr(1114111)) collate "C")
        """,
        [list(found.values())],
    )
    beginnings = {row["tail"] for row in begin}
    return {op_id: op_id if tail in beginnings else tail for op_id, tail in found.items()}


def _tail(op_id: str, alike: list[str]) -> str:
    """Return the shortest end that no other id has. `alike` are the reversed ids, sorted, that share LEAST_TAIL characters.

    Its first character is alphanumeric: else a shell or an option parser would misread it.
    """
    backwards = op_id[::-1]
    at = bisect(alike, backwards)
    beside = [other for other in alike[max(at - 2, 0) : at + 1] if other != backwards]
    least = min(max(len(op_id.rpartition(".")[2]), LEAST_TAIL), LONGEST_NUMBER)
    length = max([least, *(_alike(backwards, other) + 1 for other in beside)])
    while length < len(op_id) and not op_id[-length].isalnum():
        length += 1
    return op_id[-length:]


def _alike(one: str, other: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def beginning_with(
    connection: Connection, prefix: str, among: Sequence[states.State] | None, holder: str | None, most: int
) -> list[str]:
    """Return the first OPs, sorted by id, with that beginning; if given, in these states and held by that person."""
    rows = connection.execute(
        """
        select op_id from l2inv.op
        where op_id like %s and (%s::text[] is null or state = any(%s)) and (%s::text is null or assignee = %s)
        order by op_id limit %s
        """,
        [_pattern(prefix), list(among) if among else None, list(among or ()), holder, holder, most],
    )
    return [row["op_id"] for row in rows]


def _pattern(prefix: str) -> str:
    """Return a LIKE pattern for texts with that beginning."""
    return prefix.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"


def fail(
    connection: Connection, op_id: str, seq: int, stage: str, cause: str, actor: str, run_id: int
) -> bool:
    """Put an OP into `error` with stage, cause and the number of this attempt. Return False if it changed meanwhile."""
    row = connection.execute(
        """
        select count(*) as earlier from l2inv.event
        where op_id = %s and kind = 'failed' and detail ->> 'stage' = %s
            and seq > coalesce((select max(seq) from l2inv.event where op_id = %s and kind = 'published'), 0)
        """,
        [op_id, stage, op_id],
    ).fetchone()
    assert row is not None
    detail = {"stage": stage, "cause": cause, "attempt": row["earlier"] + 1}
    return append(connection, Event(op_id, seq, "failed", "error", detail), actor, run_id)


def retry(connection: Connection, op_ids: Sequence[str], actor: str) -> list[tuple[str, states.State]]:
    """Bring OPs back from `error` to the state before it, all of them if none is given: return (OP, state).

    Raise Refused if an OP is not in `error`; then none is changed.
    """
    with connection.transaction():
        if not op_ids:
            rows = connection.execute("select op_id from l2inv.op_state where state = 'error' order by op_id")
            op_ids = [row["op_id"] for row in rows]
        brought_back = []
        for op_id in sorted(set(op_ids)):
            present = locked(connection, op_id)
            if present.state != "error" or present.state_before_error is None:
                raise Refused(f"OP {op_id} is {present.state}, not in error", "nothing to retry")
            failed = newest(connection, op_id, "failed") or {}
            detail = {"stage": failed.get("stage"), "attempt": failed.get("attempt")}
            add_one(connection, present, "retried", present.state_before_error, actor, detail)
            brought_back.append((op_id, present.state_before_error))
    return brought_back


def newest(connection: Connection, op_id: str, *kinds: str) -> Json | None:
    """Return the detail of an OP's newest event of these kinds that is not void, or None."""
    row = connection.execute(
        """
        select detail from l2inv.history
        where op_id = %s and kind = any(%s) and voided_by is null order by seq desc limit 1
        """,
        [op_id, list(kinds)],
    ).fetchone()
    return row["detail"] if row else None


def invertible_programs(connection: Connection, op_id: str) -> list[str]:
    """Return the invertible instrument programs by the newest verdict, or by the decision that overrules it."""
    row = connection.execute(
        """
        select o.detail -> 'instrument_programs' as overruled,
               (select jsonb_agg(p -> 'instrument_program_id')
                from jsonb_array_elements(v.detail -> 'verdict' -> 'instrument_programs') p
                where (p ->> 'invertible')::boolean) as judged
        from l2inv.op_state s
        left join l2inv.event v on v.op_id = s.op_id and v.seq = s.verdict_seq
        left join l2inv.event o on o.op_id = s.op_id and o.seq = s.overruled_seq
        where s.op_id = %s
        """,
        [op_id],
    ).fetchone()
    assert row is not None
    found: list[str] = row["judged"] or [] if row["overruled"] is None else row["overruled"]
    return found


def _held(present: Present) -> str:
    return f"held by {present.assignee} since {present.since}"


def way_on(op_id: str, state: states.State, held: str, *, on_hold: bool = False) -> str:
    """Return the next step for an OP in a state; `held` is the text for a claimed one."""
    if on_hold and state in ("invertible", "preprocessed", "inverted"):
        return f"to continue: l2inv unhold {op_id}"
    return {
        "discovered": "qualify judges it when it is quiet",
        "invertible": "run: l2inv preprocess",
        "not_invertible": f"see why: l2inv explain {op_id}",
        "preprocessed": f"run: l2inv claim {op_id}",
        "working": held,
        "inverted": "run: l2inv publish",
        "published": f"to invert it again: l2inv reopen {op_id} --reason WHY",
        "error": f"see why: l2inv history {op_id}; then: l2inv retry {op_id}",
    }[state]
