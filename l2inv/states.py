"""The states of an observing program (OP) and what may happen to it in each.

The database enforces the same table (migrations/, function is_allowed); a test compares the two.
"""

from typing import Literal, get_args

State = Literal[
    "discovered", "invertible", "not_invertible", "preprocessed", "working", "inverted", "published", "error"
]
STATES: tuple[State, ...] = get_args(State)

# Until science holds it, new data or new rules may change what an OP is judged to be.
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
    "inversion_named": {("inverted", None)},
    "inversion_created": {("inverted", None)},
    "published": {("inverted", "published")},
    "reopened": {("inverted", "discovered"), ("published", "discovered")},
    "withdrawn": {(state, None) for state in STATES},
    "cleaned": {("published", None)},
    "put_on_hold": {(state, None) for state in STATES},
    "taken_off_hold": {(state, None) for state in STATES},
    "prioritized": {(state, None) for state in STATES},
    "noted": {(state, None) for state in STATES},
    "failed": {(state, "error") for state in STATES if state not in ("error", "published")},
}


def is_allowed(kind: str, before: State | None, after: State | None, before_error: State | None) -> bool:
    """Says whether an event of this kind may take an OP from one state to another (None: the state stays).

    A retry returns exactly to the state that the OP was in before its error.
    """
    if kind == "retried":
        return before == "error" and after is not None and after == before_error
    return (before, after) in EDGES.get(kind, set())
