"""overdue and digest: what stayed in a state for too long, and who is responsible."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from l2inv.config.settings import Deadlines
from l2inv.database.connection import Connection
from l2inv.queries import deadlines
from l2inv.sample.server import Fault, Store
from tests.helpers.commands import Commands

DAY = timedelta(days=1)


def at(days: float) -> str:
    return (datetime.now(UTC) + days * DAY).isoformat()


def owners(l2inv: Commands, days: float) -> dict[str, dict[str, dict[str, Any]]]:
    """The overdue OPs by owner and id, so many days from now."""
    found = l2inv.json("overdue", "--as-of", at(days))["owners"]
    return {o["owner"]: {op["op_id"]: op for op in o["ops"]} for o in found}


def sections(l2inv: Commands) -> dict[str, dict[str, list[dict[str, Any]]]]:
    return {o["owner"]: o["sections"] for o in l2inv.json("digest")["owners"]}


def test_nothing_is_printed_when_nothing_is_overdue(l2inv: Commands, ready: list[str]) -> None:
    answer = l2inv("overdue")
    assert (answer.stdout, answer.stderr) == ("", "")
    assert l2inv.json("overdue") == {"owners": []}


def test_an_op_that_waits_too_long_belongs_to_the_owner_of_its_state(
    l2inv: Commands, ready: list[str]
) -> None:
    assert owners(l2inv, 59.9) == {}
    found = owners(l2inv, 61)
    assert set(found) == {"science"}
    assert set(found["science"]) == set(ready)
    op = found["science"][ready[0]]
    assert op["days_over"] == pytest.approx(1, abs=0.01)
    assert op["state"] == "preprocessed"


def test_a_claim_is_due_at_its_due_date_and_belongs_to_its_assignee(
    l2inv: Commands, ready: list[str]
) -> None:
    l2inv("claim", ready[0], "--for", "5d", actor="ann")
    l2inv("claim", ready[1], actor="ben")
    assert owners(l2inv, 4.9) == {}
    assert set(owners(l2inv, 5.1)) == {"ann"}
    assert {owner: set(ops) for owner, ops in owners(l2inv, 22).items()} == {
        "ann": {ready[0]},
        "ben": {ready[1]},
    }


def test_a_claim_without_a_date_is_due_after_the_usual_time(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    connection.execute(
        """
        insert into l2inv.event (op_id, seq, kind, state, actor, detail)
        select op_id, seq + 1, 'claimed', 'working', 'ann', '{"assignee": "ann"}' from l2inv.op_state where op_id = %s
        """,
        [ready[0]],
    )
    assert owners(l2inv, 20.9) == {}
    assert set(owners(l2inv, 21.1)["ann"]) == {ready[0]}


def test_an_op_on_hold_is_not_overdue(l2inv: Commands, ready: list[str]) -> None:
    l2inv("hold", ready[0], "--reason", "bad flats")
    assert set(owners(l2inv, 61)["science"]) == set(ready) - {ready[0]}


def test_a_state_without_a_deadline_is_never_overdue_and_owners_are_as_set(
    l2inv: Commands, ready: list[str]
) -> None:
    l2inv.settings["deadlines"] = {"preprocessed_days": None, "not_invertible_days": 1, "owners": {"not_invertible": "eve"}}  # fmt: skip
    l2inv.save()
    assert set(owners(l2inv, 10_000)) == {"eve"}


def test_the_lines_name_owner_op_state_and_how_long_over_also_when_quiet(
    l2inv: Commands, ready: list[str]
) -> None:
    l2inv("claim", ready[0], "--for", "1d")
    first, second = l2inv("-q", "overdue", "--as-of", at(4)).stdout.splitlines()
    due = f"{datetime.now(UTC) + DAY:%Y-%m-%d}"
    assert (first, second) == ("han:", f"  {ready[0]}  working  due {due}, 3 days over")
    assert "h over" in l2inv("overdue", "--as-of", at(1.5)).stdout


def test_the_longest_over_comes_first(l2inv: Commands, ready: list[str], connection: Connection) -> None:
    for op, days in zip(ready, ("3d", "1d", "2d"), strict=False):
        l2inv("claim", op, "--for", days)
    ops = deadlines.overdue(connection, Deadlines(), datetime.now(UTC) + 10 * DAY)
    assert [op["op_id"] for op in ops] == [ready[1], ready[2], ready[0]]


def test_the_digest_gives_each_owner_what_is_theirs(l2inv: Commands, ready: list[str], store: Store) -> None:
    l2inv("claim", ready[0], "--for", "2d", actor="ann")
    l2inv("claim", ready[1], actor="ben")
    l2inv("claim", ready[2], actor="ben")
    l2inv("mark-inverted", ready[2], actor="ben")
    store.fault = lambda operation, nth: (
        Fault(body=b'{"errors": [{"message": "no, thanks"}]}') if operation == "Create" else None
    )
    l2inv("publish", expect=4)
    found = sections(l2inv)
    assert set(found) == {"ann", "operator", "science"}
    assert [op["op_id"] for op in found["ann"]["due_soon"]] == [ready[0]]
    assert [op["op_id"] for op in found["operator"]["failed"]] == [ready[2]]
    assert found["operator"]["failed"][0]["stage"] == "publish"
    assert "no, thanks" in found["operator"]["failed"][0]["cause"]
    assert len(found["operator"]["quarantined"]) == l2inv.json("status")["quarantined"] > 0
    assert {op["op_id"] for op in found["science"]["new"]} == set(ready[3:])
    assert len(found["operator"]["new"]) == l2inv.json("status")["ops"]
    assert found["operator"]["due_soon"] == []  # a deadline of a day or two is not announced days ahead


def test_the_holder_is_notified_that_the_inputs_changed(
    l2inv: Commands, ready: list[str], store: Store, connection: Connection
) -> None:
    l2inv("claim", ready[0], actor="ann")
    connection.execute(
        """
        insert into l2inv.event (op_id, seq, kind, actor, detail)
        select op_id, seq + 1, 'datasets_changed', 'x', '{"affects_verdict": true}' from l2inv.op_state where op_id = %s
        """,
        [ready[0]],
    )
    assert [op["op_id"] for op in sections(l2inv)["ann"]["superseded_inputs"]] == [ready[0]]


def test_the_digest_without_send_shows_the_lists_and_writes_nothing(
    l2inv: Commands, ready: list[str]
) -> None:
    plain = l2inv("digest").stdout
    assert plain == l2inv("digest", "--send", "--dry-run").stdout
    assert plain.startswith("operator:\n  quarantined:\n")
    assert "more" in plain
    assert "digest" not in {run["stage"] for run in l2inv.json("status")["runs"]}


def test_an_empty_digest_says_so_unless_quiet(l2inv: Commands) -> None:
    assert l2inv("digest").stdout == "digest: nothing to report\n"
    assert l2inv("-q", "digest").stdout == ""


def test_every_section_of_the_digest_has_its_line() -> None:
    from l2inv.cli.deadlines import _LINES

    assert list(_LINES) == list(deadlines.SECTIONS)
