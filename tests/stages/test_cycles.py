"""reopen and withdraw: a second inversion of the same OP, and a bad one marked."""

import threading
from typing import Any

import pytest

from l2inv.config.settings import Database, Settings
from l2inv.database.access import connected
from l2inv.database.connection import Connection
from l2inv.database.runs import stage_lock
from l2inv.sample.server import Fault, Store
from l2inv.stages.publish import cycles
from tests.helpers.commands import NOW, Commands
from tests.helpers.publisher_kills import REQUESTS, killed_at
from tests.helpers.steps import invert, kinds, publish_again, published
from tests.helpers.waiting import WAITS_FOR_A_LOCK, until
from tests.helpers.warm import Warm


@pytest.fixture
def told(l2inv: Commands, ready: list[str]) -> str:
    """An OP that is published."""
    invert(l2inv, ready[0])
    l2inv("publish")
    return ready[0]


def cycle_ids(connection: Connection) -> list[str]:
    rows = sorted(published(connection), key=lambda row: int(row["cycle"]))
    assert [row["cycle"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["inversion_id"] for row in rows]


def events(l2inv: Commands, op: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = l2inv.json("history", op)["events"]
    return found


def test_a_reopened_op_is_judged_inverted_and_published_a_second_time(
    l2inv: Commands, told: str, store: Store, connection: Connection
) -> None:
    found = l2inv.json("reopen", told, "--reason", "a better code")
    assert (found["state"], found["assignee"]) == ("discovered", None)
    reopened = events(l2inv, told)[-1]
    assert (reopened["kind"], reopened["state"]) == ("reopened", "discovered")
    assert reopened["detail"] == {"reason": "a better code", "cycle": 1}
    assert "after cycle 1: a better code" in l2inv("history", told).stdout
    assert l2inv.json("qualify", "--as-of", NOW.isoformat())["ops"]["judged"] == 1
    l2inv("preprocess")
    l2inv("claim", told)
    assert "marked" in l2inv("mark-inverted", told).stdout, "as in cycle 1, and yet not said before"
    assert events(l2inv, told)[-1]["kind"] == "inverted"
    assert "was marked inverted already" in l2inv("mark-inverted", told).stdout
    l2inv("publish")
    first, second = cycle_ids(connection)
    assert store.inversions.keys() == {first, second}
    assert kinds(l2inv, told).count("published") == 2
    newest = events(l2inv, told)[-1]
    superseded = {row["inversion_id"]: row["superseded_by"] for row in published(connection)}
    assert superseded == {first: second, second: None}
    row = connection.execute("select distinct event_id from l2inv.published_op").fetchall()
    assert [r["event_id"] for r in row] == [newest["event_id"]], "the older row changed too"


def test_an_op_that_was_not_announced_yet_can_be_inverted_again(
    l2inv: Commands, ready: list[str], store: Store, connection: Connection
) -> None:
    op = ready[0]
    invert(l2inv, op)
    publish_again(l2inv, op)
    (row,) = published(connection)
    assert (row["cycle"], row["superseded_by"], len(store.inversions)) == (2, None, 1)


@pytest.mark.parametrize("at", ["before request", "after request"])
def test_reopening_asks_the_store_for_what_a_killed_publisher_named(
    l2inv: Commands, ready: list[str], store: Store, connection: Connection, warm: Warm, at: str
) -> None:
    op = ready[0]
    invert(l2inv, op)
    killed_at((at, REQUESTS.index("Create")), l2inv, store, connection, warm)
    if at == "before request":  # the store was never told
        publish_again(l2inv, op)
        assert len(store.inversions) == 1
        return
    (held,) = store.inversions
    before = kinds(l2inv, op)
    assert f"the store has {held} of it" in l2inv("reopen", op, "--reason", "x", expect=3).stderr
    assert kinds(l2inv, op) == before
    l2inv("publish")
    publish_again(l2inv, op)
    assert len(cycle_ids(connection)) == len(store.inversions) == 2


def test_an_op_in_error_since_it_was_inverted_can_be_reopened_and_no_other(
    l2inv: Commands, ready: list[str], store: Store
) -> None:
    invert(l2inv, ready[0])
    words = b'{"errors": [{"message": "proposal is closed"}]}'
    store.fault = lambda operation, nth: Fault(body=words) if operation == "Create" else None
    l2inv("publish", expect=4)
    store.fault = None
    l2inv("reopen", ready[0], "--reason", "another way")
    assert kinds(l2inv, ready[0])[-2:] == ["retried", "reopened"]
    for op in (ready[0], ready[1]):
        before = kinds(l2inv, op)
        l2inv("reopen", op, "--reason", "again", expect=3)
        assert kinds(l2inv, op) == before
    l2inv("reopen", ready[0], expect=2)


def test_nothing_is_reopened_while_a_publisher_runs(
    l2inv: Commands, told: str, connection: Connection
) -> None:
    with stage_lock(connection, "publish", ""):
        assert "try again when it has ended" in l2inv("reopen", told, "--reason", "x", expect=75).stderr
    l2inv("reopen", told, "--reason", "x")


def test_a_bad_inversion_is_withdrawn_and_the_older_one_is_superseded_no_more(
    l2inv: Commands, told: str, connection: Connection
) -> None:
    publish_again(l2inv, told)
    first, second = cycle_ids(connection)
    remains = [{"inversion_id": second, "record": True, "files": 0, "destination": None}]
    assert l2inv.json("withdraw", told, "--reason", "wrong continuum") == {
        "op_id": told,
        "withdrawn": [second],
        "remains": remains,
    }
    last = events(l2inv, told)[-1]
    assert (last["kind"], last["state"]) == ("withdrawn", None)
    assert last["detail"] == {
        "reason": "wrong continuum",
        "inversion_ids": [second],
        "cycle": 2,
        "remains": remains,
    }
    assert f"{second}: wrong continuum; the metadata store still holds it" in " ".join(
        l2inv("history", told).stdout.split()
    )
    rows = {row["inversion_id"]: row for row in published(connection)}
    assert (rows[first]["superseded_by"], rows[first]["withdrawn_at"]) == (None, None)
    assert rows[second]["withdrawn_at"] is not None
    assert {row["event_id"] for row in rows.values()} == {last["event_id"]}
    assert l2inv.json("show", told)["state"] == "published"
    publish_again(l2inv, told)
    third = cycle_ids(connection)[2]
    rows = {row["inversion_id"]: row for row in published(connection)}
    assert [rows[i]["superseded_by"] for i in (first, second, third)] == [third, third, None]


def test_an_inversion_can_be_withdrawn_by_name_in_any_state_and_only_once(
    l2inv: Commands, told: str, connection: Connection, store: Store
) -> None:
    publish_again(l2inv, told)
    first, second = cycle_ids(connection)
    l2inv("reopen", told, "--reason", "third")
    l2inv("withdraw", told, "--reason", "noise", "--inversion", first)
    before = kinds(l2inv, told)
    assert (
        "is withdrawn already"
        in l2inv("withdraw", told, "--reason", "x", "--inversion", first, expect=3).stderr
    )
    assert "no published inversion inv.NONE00" in (
        l2inv(
            "withdraw", told, "--reason", "x", "--inversion", second, "--inversion", "inv.NONE00", expect=3
        ).stderr
    )
    assert kinds(l2inv, told) == before
    l2inv("withdraw", told, "--reason", "all", "--inversion", first, "--inversion", second)
    assert events(l2inv, told)[-1]["detail"]["inversion_ids"] == [second], "the other was withdrawn before"
    l2inv("withdraw", told, "--reason", "x", expect=3)
    assert len(store.inversions) == 2, "the store has no way to delete"


def test_an_op_that_was_never_published_has_nothing_to_withdraw(l2inv: Commands, ready: list[str]) -> None:
    assert "has no published inversion" in l2inv("withdraw", ready[0], "--reason", "x", expect=3).stderr


def test_events_that_tell_are_seen_in_the_order_of_their_ids(
    l2inv: Commands, ready: list[str], connection: Connection, url: str
) -> None:
    """Else a reader behind the greater id would never find the smaller one that was committed later."""
    for op in ready[:2]:
        invert(l2inv, op)
    l2inv("publish")

    def withdraw_the_other() -> None:
        with connected(Settings(database=Database(url=url))) as other:
            cycles.withdraw(other, ready[1], "bad", [], "han")

    with connection.transaction():
        cycles.withdraw(connection, ready[0], "bad", [], "han")
        second = threading.Thread(target=withdraw_the_other)
        second.start()
        until(lambda: connection.execute(WAITS_FOR_A_LOCK).fetchone() is not None)
        row = connection.execute("select max(event_id) as newest from l2inv.event").fetchone()
    second.join()
    assert row is not None
    assert events(l2inv, ready[0])[-1]["event_id"] == row["newest"] < events(l2inv, ready[1])[-1]["event_id"]


def test_a_withdrawal_that_was_a_mistake_is_undone_and_readers_see_it(
    l2inv: Commands, told: str, connection: Connection
) -> None:
    refused = l2inv("reinstate", told, "--reason", "it is good", expect=3).stderr
    assert "is not withdrawn" in refused
    withdrawn = l2inv.json("withdraw", told, "--reason", "wrong OP")["withdrawn"]
    (row,) = published(connection)
    assert row["withdrawn_at"] is not None
    assert l2inv.json("reinstate", told, "--reason", "it was another OP")["reinstated"] == withdrawn
    (again,) = published(connection)
    assert again["withdrawn_at"] is None
    assert again["event_id"] > row["event_id"], "who reads on behind the last event sees it"
    assert events(l2inv, told)[-1]["detail"]["reason"] == "it was another OP"
    assert l2inv.json("verify")["findings"] == []
