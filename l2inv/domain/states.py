"""The states of an observing program (OP) and what may happen to it in each.

The database enforces the same table (migrations/, function is_allowed); a test compares the two.
"""

from datetime import datetime
from typing import Literal, get_args

import msgspec

State = Literal[
    "discovered", "invertible", "not_invertible", "preprocessed", "working", "inverted", "published", "error"
]
STATES: tuple[State, ...] = get_args(State)

# States in which new data or new rules may change the verdict: those before science claims the OP.
JUDGED: tuple[State, ...] = ("invertible", "not_invertible", "preprocessed")

# Kind of event -> the edges it may take: (state before, state after). Before None: the OP is new.
# After None: the state stays.
Edges = set[tuple[State | None, State | None]]
EDGES: dict[str, Edges] = {
    "discovered": {(None, "discovered")},
    "datasets_changed": {(state, "discovered") for state in JUDGED} | {(state, None) for state in STATES},
    "judged": {
        ("discovered", "invertible"),
        ("discovered", "not_invertible"),
        ("invertible", "not_invertible"),
        ("not_invertible", "invertible"),
        ("preprocessed", "invertible"),
        ("preprocessed", "not_invertible"),
        *((state, None) for state in JUDGED),
    },
    "overruled": {
        ("not_invertible", "invertible"),
        ("invertible", "not_invertible"),
        ("preprocessed", "not_invertible"),
        ("preprocessed", "invertible"),
        *((state, None) for state in JUDGED),
    },
    "preprocessed": {("invertible", "preprocessed")},
    "preprocess_started": {("invertible", None)},
    "claimed": {("preprocessed", "working")},
    "handed_over": {("working", None)},
    "taken_over": {("working", None)},
    "extended": {("working", None)},
    "released": {("working", "preprocessed")},
    "inverted": {("working", "inverted")},
    "amended": {("inverted", None)},
    "resumed": {("inverted", "working")},
    "transfer_started": {("inverted", None)},
    "transferred": {("inverted", None)},
    "cataloged": {("inverted", None)},
    "inversion_named": {("inverted", None)},
    "inversion_created": {(state, None) for state in STATES},
    "published": {("inverted", "published")},
    "reopened": {("inverted", "discovered"), ("published", "discovered")},
    "withdrawn": {(state, None) for state in STATES},
    "reinstated": {(state, None) for state in STATES},
    "cleaned": {("published", None)},
    "put_on_hold": {(state, None) for state in STATES},
    "taken_off_hold": {(state, None) for state in STATES},
    "prioritized": {(state, None) for state in STATES},
    "noted": {(state, None) for state in STATES},
    "failed": {(state, "error") for state in STATES if state not in ("error", "published")},
    "restored": {(state, None) for state in STATES},
    "voided": {(state, None) for state in STATES},
}

# Kind of event -> its meaning. docs/reference.md is generated from this.
MEANINGS: dict[str, str] = {
    "discovered": "its first datasets were read from the metadata store",
    "datasets_changed": "datasets of it arrived, changed, moved to another OP or were withdrawn",
    "judged": "qualify judged it; the state stays if the verdict is the same as before",
    "overruled": "somebody overruled its verdict, with a reason, until its datasets change",
    "preprocess_started": "a job begins to prepare it",
    "preprocessed": "it is prepared: science may claim it",
    "claimed": "somebody claimed it to work on, until a date",
    "extended": "its holder extended the claim",
    "handed_over": "its holder transferred it to somebody else",
    "taken_over": "somebody took it from a holder who let it become overdue, with a reason",
    "released": "its holder released it",
    "inverted": "science's ready event: it is inverted, with what, and where the outputs are",
    "amended": "its ready event was corrected before it was sent to the store; this one replaces it",
    "resumed": "its ready event was canceled before it was sent to the store: its holder works on it again",
    "transfer_started": "a job begins to transfer the files of one of its inversions",
    "transferred": "the files of one of its inversions were transferred",
    "cataloged": "the catalog accepted messages about files of one of its inversions",
    "inversion_named": "an inversion with its id, recorded before it is created in the store",
    "inversion_created": "the store has that inversion: created, or found later of an abandoned cycle",
    "published": "the store has every inversion of this cycle",
    "reopened": "its next cycle begins: it is judged and inverted again, with a reason",
    "withdrawn": "inversions of it were marked as bad, with a reason",
    "reinstated": "inversions of it that were withdrawn by mistake are good again, with a reason",
    "cleaned": "its intermediate files were removed",
    "put_on_hold": "it will not be prepared, offered or published, with a reason",
    "taken_off_hold": "it continues",
    "prioritized": "its rank in next was raised or lowered, with a reason",
    "noted": "somebody added a note to its history",
    "failed": "a stage failed on it: which, the cause, and how many times so far",
    "retried": "it returned to the state before its error",
    "restored": "the database was restored from a backup: what was recorded after that is lost",
    "voided": "the schema's owner declared an event of it void: no view counts it any more, with a reason",
}


def is_allowed(kind: str, before: State | None, after: State | None, before_error: State | None) -> bool:
    """Return whether an event of this kind may take an OP from one state to another (None: the state stays).

    A retry returns exactly to the state that the OP was in before its error.
    """
    if kind == "retried":
        return before == "error" and after is not None and after == before_error
    return (before, after) in EDGES.get(kind, set())


class Op(msgspec.Struct):
    """An OP's present state: the row of it in the table op_state. Sequence numbers are those of events."""

    op_id: str
    seq: int = 0  # of the newest event, as is the hash
    hash: bytes = b""
    state: State | None = None
    since: datetime | None = None
    state_before_error: State | None = None
    datasets_seq: int | None = None
    verdict_seq: int | None = None
    criteria_version: str | None = None
    overruled_seq: int | None = None
    on_hold_seq: int | None = None
    cycle: int = 1
    priority: int = 0
    assignee: str | None = None
    due_at: datetime | None = None


# The kinds of events whose detail changes an OP's present state.
FOLLOWED = {
    "datasets_changed",
    "judged",
    "claimed",
    "handed_over",
    "taken_over",
    "resumed",
    "extended",
    "prioritized",
    "voided",
}


class Detail(msgspec.Struct):
    """The fields of an event's detail that change the present state."""

    affects_verdict: bool = False
    criteria_version: str | None = None
    assignee: str | None = None
    due_at: datetime | None = None
    priority: int = 0
    seq: int | None = None


def follow(
    op: Op, seq: int, kind: str, state: State | None, recorded_at: datetime, hash_: bytes, detail: Detail
) -> None:
    """Apply the next event to an OP's present state.

    The trigger record_event of the database does the same; a test compares the two over random histories.
    """
    op.seq = seq
    op.hash = hash_
    if state is not None:
        op.state_before_error = op.state if state == "error" else None
        op.state = state
        op.since = recorded_at
    if kind in ("discovered", "reopened") or (kind == "datasets_changed" and detail.affects_verdict):
        op.datasets_seq = op.seq
        op.overruled_seq = None
    match kind:
        case "judged":
            op.verdict_seq = op.seq
            op.criteria_version = detail.criteria_version
            op.overruled_seq = None
        case "overruled":
            op.overruled_seq = op.seq
        case "claimed" | "handed_over" | "taken_over" | "resumed":
            op.assignee = detail.assignee
            op.due_at = detail.due_at
        case "extended":
            op.due_at = detail.due_at
        case "inverted":
            op.due_at = None
        case "released" | "reopened":
            op.assignee = None
            op.due_at = None
            op.cycle += kind == "reopened"
        case "put_on_hold":
            op.on_hold_seq = op.seq
        case "taken_off_hold":
            op.on_hold_seq = None
        case "prioritized":
            op.priority = detail.priority
        case "voided":
            if op.verdict_seq == detail.seq:
                op.verdict_seq = op.criteria_version = None
            op.overruled_seq = None if op.overruled_seq == detail.seq else op.overruled_seq
            op.on_hold_seq = None if op.on_hold_seq == detail.seq else op.on_hold_seq
