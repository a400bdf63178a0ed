"""Inversions of abandoned cycles: the store may get them after the OP was reopened."""

from typing import Any

import pytest

from l2inv.database.connection import Connection
from l2inv.sample.server import Fault, Store
from tests.helpers.commands import NOW, Commands
from tests.helpers.steps import invert, kinds, published


class LateStore:
    """A store to which a request to create an inversion gets only when it is let through."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.on_its_way: dict[str, dict[str, Any]] = {}
        store.fault = self._fault

    def _fault(self, operation: str, nth: int) -> Fault | None:
        if operation == "Create":
            params = self.store.requests[-1][1]["params"]
            self.on_its_way[params["inversionId"]] = params
            return Fault(drop="before")
        return None

    def let_through(self) -> str:
        ((inversion_id, params),) = self.on_its_way.items()
        when = {"createDate": "2026-11-02T00:00:00", "updateDate": None}
        self.store.inversions[inversion_id] = {"asdfObjectKey": None, **params, **when}
        return str(inversion_id)


@pytest.fixture
def abandoned(l2inv: Commands, ready: list[str], store: Store) -> tuple[str, str]:
    """An OP that was reopened while a request to create its inversion was on its way, and that inversion's id."""
    op = ready[0]
    invert(l2inv, op)
    late = LateStore(store)
    l2inv("publish", expect=1)
    l2inv("reopen", op, "--reason", "a better code")
    assert store.inversions == {}
    store.fault = None
    assert l2inv.json("publish")["abandoned"] == [
        {"op_id": op, "inversion_id": next(iter(late.on_its_way)), "cycle": 1, "held": False}
    ]
    assert l2inv("publish").stderr == "", "what the store does not hold needs nobody yet"
    assert "publish keeps looking for it" in l2inv("show", op).stdout
    assert "never published" not in l2inv("status").stdout
    return op, late.let_through()


def unsettled(l2inv: Commands) -> list[Any]:
    return [one["inversion_id"] for one in l2inv.json("publish")["abandoned"]]


def test_an_inversion_of_an_abandoned_cycle_in_the_store_is_recorded_once_and_reported(
    l2inv: Commands, abandoned: tuple[str, str], store: Store
) -> None:
    op, inversion_id = abandoned
    for _ in range(2):
        answer = l2inv("publish")
        assert f"the store has {inversion_id} of cycle 1" in answer.stderr
        assert f"l2inv withdraw {op} --inversion {inversion_id}" in answer.stderr
        assert answer.stderr.count("\n") == 1
    assert kinds(l2inv, op).count("inversion_created") == 1
    asked = len(store.requests)
    report = l2inv.json("publish")
    assert report["abandoned"] == [{"op_id": op, "inversion_id": inversion_id, "cycle": 1, "held": True}]
    assert l2inv.json("runs")["runs"][-1]["result"]["abandoned"] == report["abandoned"]
    assert len(store.requests) == asked, "what was found is not asked for again"
    assert f"the store has {inversion_id} of cycle 1, never published" in l2inv("status").stdout
    assert [one["inversion_id"] for one in l2inv.json("status")["abandoned"]] == [inversion_id]
    assert f"l2inv adopt {op} {inversion_id} --beside" in " ".join(l2inv("show", op).stdout.split())
    assert "of cycle 1, which had ended" in " ".join(l2inv("history", op).stdout.split())
    assert l2inv.json("verify")["findings"] == []


def test_withdrawing_it_settles_it_and_readers_of_the_view_see_it_as_bad(
    l2inv: Commands, abandoned: tuple[str, str], connection: Connection
) -> None:
    op, inversion_id = abandoned
    assert unsettled(l2inv) == [inversion_id]
    assert published(connection) == []
    withdraw = ("withdraw", op, "--reason", "not the one meant")
    assert "has no published inversion" in l2inv(*withdraw, expect=3).stderr, "it is to be named"
    found = l2inv.json(*withdraw, "--inversion", inversion_id)
    assert found["withdrawn"] == [inversion_id]
    assert found["remains"] == [
        {"inversion_id": inversion_id, "record": True, "files": 0, "destination": None}
    ]
    assert unsettled(l2inv) == []
    (row,) = published(connection)
    assert (row["inversion_id"], row["cycle"], row["published_at"]) == (inversion_id, 1, None)
    assert row["withdrawn_at"] is not None and row["event_id"] is not None
    assert (
        f"{inversion_id} of {row['instrument_program_id']}, cycle 1, never published, withdrawn"
        in " ".join(l2inv("show", op).stdout.split())
    )
    assert [r["inversion_id"] for r in l2inv.json("export")["inversions"]] == [inversion_id]
    l2inv("reinstate", op, "--reason", "it is good", "--inversion", inversion_id)
    assert unsettled(l2inv) == [inversion_id], "to be settled again"


def test_it_can_be_withdrawn_before_the_store_holds_it(
    l2inv: Commands, ready: list[str], store: Store
) -> None:
    op = ready[0]
    invert(l2inv, op)
    late = LateStore(store)
    l2inv("publish", expect=1)
    l2inv("reopen", op, "--reason", "a better code")
    (inversion_id,) = late.on_its_way
    found = l2inv("withdraw", op, "--inversion", inversion_id, "--reason", "a mistake").stdout
    assert f"{inversion_id}: nothing remains elsewhere" in found
    late.let_through()
    store.fault = None
    assert unsettled(l2inv) == []


def test_adopting_a_late_inversion_resolves_it_in_any_state_and_the_next_cycle_is_published(
    l2inv: Commands, abandoned: tuple[str, str], store: Store, connection: Connection
) -> None:
    op, inversion_id = abandoned
    assert unsettled(l2inv) == [inversion_id]
    l2inv("adopt", op, inversion_id, "--beside", "--reason", "both are good")
    assert l2inv.json("show", op)["state"] == "discovered"
    assert unsettled(l2inv) == []
    l2inv("qualify", "--as-of", NOW.isoformat())
    l2inv("preprocess")
    invert(l2inv, op)
    assert l2inv.json("publish")["ops"]["done"] == 1
    (row,) = published(connection)
    assert row["cycle"] == 2 and len(store.inversions) == 2


def test_adopting_it_as_the_present_one_settles_it(
    l2inv: Commands, abandoned: tuple[str, str], store: Store, connection: Connection
) -> None:
    op, inversion_id = abandoned
    l2inv("qualify", "--as-of", NOW.isoformat())
    l2inv("preprocess")
    invert(l2inv, op)
    l2inv("adopt", op, inversion_id, "--reason", "it is what was delivered")
    assert unsettled(l2inv) == []
    (row,) = published(connection)
    assert (row["inversion_id"], row["cycle"]) == (inversion_id, 2)
    assert list(store.inversions) == [inversion_id]


def test_a_store_that_cannot_be_asked_keeps_no_op_from_being_published(
    l2inv: Commands, abandoned: tuple[str, str], ready: list[str], store: Store
) -> None:
    invert(l2inv, ready[1])
    store.fault = lambda operation, nth: Fault(status=403) if operation == "FindByDatasets" else None
    before = len(store.requests)
    assert "access denied" in l2inv("publish", expect=1).stderr
    assert [name for name, _ in store.requests[before:]] == ["Known", "Create", "Find", "FindByDatasets"]
    assert l2inv.json("show", ready[1])["state"] == "published"
    store.fault = None
    assert unsettled(l2inv) == [abandoned[1]], "the next run asks again"
