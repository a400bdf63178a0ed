"""The smallest valid detail of each kind of event, for tests that insert events themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from l2inv.database.connection import Connection

PAST = "2020-01-01T00:00:00Z"
INVERSION: dict[str, Any] = {
    "cycle": 1, "inversion_id": "inv.000001", "instrument_program_id": "id.1.1", "proposal_id": "pid_1", "experiment_id": None,
    "dataset_ids": ["A", "B"], "product_ids": ["L1-A"], "bucket": "data", "asdf_object_key": None, "spectral_lines": [],
    "outputs": [{"uri": "globus://x"}], "software": None, "is_embargoed": False, "embargo_end_date": None,
    "criteria_version": None, "inverted_by": "han", "inverted_at": PAST,
}  # fmt: skip
VERDICT = {
    "criteria_version": "0123456789ab",
    "invertible": True,
    "undetermined": False,
    "instrument_programs": [],
}
READY = {
    "instrument_programs": ["id.1.1"], "datasets": {"A": "id.1.1"}, "outputs": [], "lines": [], "software": None,
    "asdf_object_key": None, "criteria_version": None, "inverted_by": "han", "inverted_at": PAST,
}  # fmt: skip
STEP = {"cycle": 1, "inversion_id": "inv.000001"}
MOVE = {"source": "/l2/inv_000001", "bucket": "data", "destination": "pid_1/inv_000001"}
LEAST: dict[str, dict[str, Any]] = {
    "discovered": {},
    "datasets_changed": {},
    "judged": {"criteria_version": "0123456789ab", "verdict": VERDICT, "datasets": {}},
    "overruled": {"invertible": True, "instrument_programs": [], "reason": "why"},
    "preprocess_started": {
        "executor": "local", "job": "l2inv-1", "task": None, "folder": "/work/op", "command": ["true"], "attempt": 1
    },
    "preprocessed": {},
    "claimed": {"assignee": "han"},
    "extended": {"assignee": "han", "due_at": PAST},
    "handed_over": {"assignee": "ann", "from": "han"},
    "taken_over": {"assignee": "ann", "from": "han", "due_at": PAST, "reason": "overdue"},
    "released": {"assignee": "han"},
    "inverted": READY,
    "amended": READY,
    "resumed": {"assignee": "han"},
    "transfer_started": STEP
    | {"move": MOVE, "executor": "local", "job": "l2inv-1", "task": None, "folder": "/work/t", "command": ["true"]},
    "transferred": STEP,
    "cataloged": STEP | {"conversation_id": "l2pub.7QK2ZD", "files": []},
    "inversion_named": INVERSION,
    "inversion_created": STEP | {"instrument_program_id": "id.1.1"},
    "published": {"inversions": [INVERSION]},
    "reopened": {"cycle": 1, "reason": "why"},
    "withdrawn": {"inversion_ids": [], "reason": "why"},
    "reinstated": {"inversion_ids": [], "reason": "why"},
    "cleaned": {"folder": "/work/op", "files": 1, "bytes": 1},
    "put_on_hold": {"reason": "why"},
    "taken_off_hold": {},
    "prioritized": {"priority": 1, "reason": "why"},
    "noted": {"note": "a word"},
    "failed": {"stage": "publish", "cause": "why", "attempt": 1},
    "retried": {},
    "restored": {"file": "l2inv.dump"},
    "voided": {"seq": 1, "reason": "why"},
}  # fmt: skip


@contextmanager
def clock_at(connection: Connection, moment: str) -> Iterator[None]:
    """Let events be recorded at another time, as a superuser can by changing what records them."""
    row = connection.execute("select pg_get_functiondef('l2inv.record_event'::regproc) as source").fetchone()
    assert row is not None
    connection.execute(row["source"].replace("clock_timestamp()", f"timestamptz '{moment}'"))
    yield
    connection.execute(row["source"])


# The shortest way into each state, as (kind, state after).
WAYS: dict[str, list[tuple[str, str | None]]] = {
    "discovered": [("discovered", "discovered")],
    "invertible": [("discovered", "discovered"), ("judged", "invertible")],
    "not_invertible": [("discovered", "discovered"), ("judged", "not_invertible")],
}
WAYS["preprocessed"] = [*WAYS["invertible"], ("preprocessed", "preprocessed")]
WAYS["working"] = [*WAYS["preprocessed"], ("claimed", "working")]
WAYS["inverted"] = [*WAYS["working"], ("inverted", "inverted")]
WAYS["published"] = [*WAYS["inverted"], ("published", "published")]
