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

# Kind of event -> what it says. docs/reference.md is made from this.
MEANINGS: dict[str, str] = {
    "discovered": "its first datasets were read from the metadata store",
    "datasets_changed": "datasets of it came, changed, went to another OP or were withdrawn",
    "judged": "qualify judged it; the state stays where the verdict on it is as before",
    "overruled": "somebody set its verdict aside, with a reason, until its datasets change",
    "preprocess_started": "a job begins to prepare it",
    "preprocessed": "it is prepared: science may claim it",
    "claimed": "somebody took it to work on, until a date",
    "extended": "its holder needs it for longer",
    "handed_over": "its holder gave it to somebody else",
    "taken_over": "somebody took it from a holder who let it become overdue, with a reason",
    "released": "its holder gave it back",
    "inverted": "science's ready event: it is inverted, with what, and where the outputs lie",
    "inversion_named": "what the store is about to be told, and under which id: recorded before it is told",
    "inversion_created": "the store holds that inversion, as it was told",
    "published": "the store holds every inversion of this cycle",
    "reopened": "its next cycle begins: it is judged and inverted again, with a reason",
    "withdrawn": "inversions of it were marked as bad, with a reason",
    "cleaned": "its intermediate files were removed",
    "put_on_hold": "it is not to be prepared, offered or published, with a reason",
    "taken_off_hold": "it may go on",
    "prioritized": "it is to come sooner or later than others in next, with a reason",
    "noted": "somebody added a word to its history",
    "failed": "a stage failed on it: which, the cause, and how many times by now",
    "retried": "it goes back to the state before its error",
}


def is_allowed(kind: str, before: State | None, after: State | None, before_error: State | None) -> bool:
    """Return whether an event of this kind may take an OP from one state to another (None: the state stays).

    A retry returns exactly to the state that the OP was in before its error.
    """
    if kind == "retried":
        return before == "error" and after is not None and after == before_error
    return (before, after) in EDGES.get(kind, set())
