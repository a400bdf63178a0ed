"""Each mistake has one command that undoes it, as in docs/science.md, and the history shows both."""

import re
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from l2inv.database.connection import Connection
from l2inv.database.runs import stage_lock
from l2inv.sample.server import Fault, Store
from tests.helpers.commands import Commands
from tests.helpers.steps import kinds

READY = ("--output", "globus://a", "--software", "DeSIRe", "--software-version", "4.1")


@pytest.fixture
def held(l2inv: Commands, ready: list[str]) -> str:
    """An OP that han holds for 30 days."""
    l2inv("claim", ready[0], "--for", "30d")
    return ready[0]


@pytest.fixture
def inverted(l2inv: Commands, held: str) -> str:
    """An OP that han inverted."""
    l2inv("mark-inverted", held, *READY)
    return held


def test_an_op_claimed_by_mistake_is_released(l2inv: Commands, held: str) -> None:
    assert l2inv.json("release", held)["state"] == "preprocessed"


def test_a_claim_for_too_short_is_extended_by_claiming_again(l2inv: Commands, held: str) -> None:
    due = datetime.fromisoformat(l2inv.json("claim", held, "--for", "60d")["due_at"])
    assert timedelta(days=59) < due - datetime.now(UTC) <= timedelta(days=60)


def test_a_wrong_op_marked_inverted_goes_back_with_claim_verdict_and_preparation(
    l2inv: Commands, held: str, store: Store
) -> None:
    before = l2inv.json("show", held)
    l2inv("mark-inverted", held, *READY)
    after = l2inv.json("unmark", held)
    for name in ("state", "assignee", "due_at", "verdict", "priority"):
        assert after[name] == before[name], name
    assert before["state"] == "working"
    assert kinds(l2inv, held)[-2:] == ["inverted", "resumed"]
    l2inv("publish")
    assert not store.inversions
    l2inv("mark-inverted", held, *READY)
    assert l2inv.json("show", held)["state"] == "inverted"
    assert l2inv.json("verify")["findings"] == []


def test_somebody_else_needs_a_reason_to_unmark_and_the_holder_is_notified(
    l2inv: Commands, inverted: str
) -> None:
    refusal = l2inv("unmark", inverted, actor="ann", expect=3).stderr
    assert "was inverted by han, not by ann; give a reason with --reason" in refusal
    assert kinds(l2inv, inverted)[-1] == "inverted"
    assert l2inv.json("unmark", inverted, "--reason", "wrong OP", actor="ann")["assignee"] == "han"
    letters = {one["owner"]: one["sections"] for one in l2inv.json("digest")["owners"]}
    (told,) = letters["han"]["by_others"]
    assert (told["op_id"], told["actor"], told["reason"]) == (inverted, "ann", "wrong OP")
    assert f"{inverted}  ann unmarked it: wrong OP" in l2inv("digest").stdout


def test_a_ready_event_taken_back_by_its_holder_notifies_nobody(l2inv: Commands, inverted: str) -> None:
    l2inv("unmark", inverted)
    assert not any(one["sections"]["by_others"] for one in l2inv.json("digest")["owners"])


def test_unmark_is_refused_where_there_is_nothing_to_take_back(
    l2inv: Commands, held: str, ready: list[str]
) -> None:
    nothing = "there is no ready event to unmark or to amend"
    assert f"is working: {nothing}; held by han since " in l2inv("unmark", held, expect=3).stderr
    assert f"is preprocessed: {nothing}; run: l2inv claim " in l2inv("unmark", ready[1], expect=3).stderr


def test_release_and_a_second_ready_event_are_refused_with_the_command_that_is_meant(
    l2inv: Commands, inverted: str, ready: list[str]
) -> None:
    free = l2inv("release", ready[1], expect=3).stderr
    assert free == f"l2inv: OP {ready[1]} is preprocessed: nobody holds it; nothing to do\n"
    refusal = l2inv("release", inverted, expect=3).stderr
    assert refusal.endswith(
        f"is inverted: there is a ready event; to work on it again: l2inv unmark {inverted}\n"
    )
    marked = l2inv("mark-inverted", inverted, *READY, "--note", "another", expect=3).stderr
    assert (
        f"ready event already; to correct it: l2inv amend {inverted} --from FILE; to work on it again: l2inv unmark "
        in marked
    )


def test_unmark_is_refused_once_the_store_holds_it_and_taken_where_it_was_only_named(
    l2inv: Commands, inverted: str, store: Store
) -> None:
    def nothing_said(operation: str, nth: int) -> Fault | None:
        return Fault(drop="before") if operation == "Create" else None

    store.fault = nothing_said
    l2inv("publish", expect=None)
    store.fault = lambda operation, nth: None
    assert "inversion_named" in kinds(l2inv, inverted)
    if l2inv.json("show", inverted)["state"] == "error":
        l2inv("retry", inverted)
    l2inv("unmark", inverted)
    l2inv("mark-inverted", inverted, *READY)
    l2inv("publish")
    assert l2inv.json("show", inverted)["state"] == "published"
    refusal = l2inv("unmark", inverted, expect=3).stderr
    assert (
        f"is published: its ready event stays as it is; l2inv withdraw {inverted} --reason WHY, then"
        in refusal
    )


def test_unmark_waits_for_no_publisher(l2inv: Commands, inverted: str, connection: Connection) -> None:
    with stage_lock(connection, "publish", ""):
        assert "try again when it has ended" in l2inv("unmark", inverted, expect=75).stderr
    assert kinds(l2inv, inverted)[-1] == "inverted"


def right_event(folder: Path, op: str) -> Path:
    """Write the file of the ready event that should have been."""
    file = folder / "right.yaml"
    right = {
        "op_id": op,
        "outputs": [{"uri": "globus://b"}],
        "software": {"name": "DeSIRe", "version": "4.2"},
    }
    file.write_text(yaml.safe_dump(right))
    return file


def test_a_wrong_ready_event_is_amended_and_both_versions_stay(
    l2inv: Commands, inverted: str, tmp_path: Path
) -> None:
    file = right_event(tmp_path, inverted)
    assert (
        l2inv.json("amend", inverted, "--from", str(file), "--reason", "wrong folder")["state"] == "inverted"
    )
    events = l2inv.json("history", inverted)["events"]
    assert [e["kind"] for e in events][-2:] == ["inverted", "amended"], "one event, and the state stays"
    assert [e["detail"]["outputs"][0]["uri"] for e in events[-2:]] == ["globus://a", "globus://b"]
    assert events[-1]["detail"]["amended_because"] == "wrong folder"
    assert "globus://b" in l2inv("show", inverted).stdout
    assert "wrong folder" in " ".join(l2inv("history", inverted).stdout.split())
    l2inv("publish")
    (told,) = l2inv.json("export")["inversions"]
    assert told["outputs"][0]["uri"] == "globus://b"
    assert "is published" in l2inv("amend", inverted, "--from", str(file), expect=3).stderr


def test_an_amendment_that_is_refused_leaves_the_ready_event_as_it_is(
    l2inv: Commands, inverted: str, ready: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(
        yaml.safe_dump({"op_id": inverted, "datasets": ["NOPE"], "outputs": [{"uri": "globus://b"}]})
    )
    before = kinds(l2inv, inverted)
    l2inv("amend", inverted, "--from", str(file), expect=3)
    file.write_text(yaml.safe_dump({"op_id": ready[1]}))
    assert f"is of OP {ready[1]}" in l2inv("amend", inverted, "--from", str(file), expect=3).stderr
    assert kinds(l2inv, inverted) == before


def test_a_wrong_overruling_can_be_overruled(l2inv: Commands, ready: list[str]) -> None:
    l2inv("overrule", ready[0], "--not-invertible", "--reason", "bad seeing")
    assert l2inv.json("show", ready[0])["state"] == "not_invertible"
    l2inv("overrule", ready[0], "--invertible", "--reason", "that was another OP")
    assert l2inv.json("show", ready[0])["state"] == "invertible"
    assert kinds(l2inv, ready[0]).count("overruled") == 2


def test_an_op_is_handed_over_to_nobody_who_is_not_known(
    l2inv: Commands, held: str, ready: list[str]
) -> None:
    l2inv("note", ready[1], "x", actor="annette")
    refusal = l2inv("hand-over", held, "--to", "anette", expect=3).stderr
    assert (
        "nobody named 'anette' is known, the nearest known name is annette; for a new person add --force"
        in refusal
    )
    assert l2inv.json("show", held)["assignee"] == "han"
    assert l2inv.json("hand-over", held, "--to", "annette")["assignee"] == "annette"
    assert (
        "nobody named 'zzz' is known; for a new"
        in l2inv("hand-over", held, "--to", "zzz", actor="annette", expect=3).stderr
    )
    assert l2inv.json("hand-over", held, "--to", "zzz", "--force", actor="annette")["assignee"] == "zzz"


SCIENCE = Path(__file__).parents[2] / "docs" / "science.md"
WITHDRAWN = ("withdraw", "OP", "--reason", "x")
# Of each row of the table: how the mistake is made, and what the OP must then be again.
MADE: dict[str, tuple[list[tuple[str, ...]], dict[str, object]]] = {
    "claimed the wrong OP": ([], {"state": "preprocessed", "assignee": None}),
    "claimed it for too short, or too long": ([], {"state": "working", "assignee": "han"}),
    "marked the wrong OP as inverted": ([("mark-inverted", "OP", *READY)], {"state": "working", "assignee": "han"}),
    "named wrong outputs, software or lines in a ready event": (
        [("mark-inverted", "OP", *READY)], {"state": "inverted", "outputs": [{"uri": "globus://b"}]},
    ),
    "published too early": ([("mark-inverted", "OP", *READY), ("publish",)], {"state": "discovered", "assignee": None}),
    "withdrew the wrong one": ([("mark-inverted", "OP", *READY), ("publish",), WITHDRAWN], {"state": "published"}),
    "overruled the wrong way": (
        [("release", "OP"), ("overrule", "OP", "--not-invertible", "--reason", "x")], {"state": "invertible"},
    ),
    "handed it over to a name that does not exist": ([("note", "OP", "x", "--actor", "ann")], {"assignee": "ann"}),
    "handed it over to the wrong person": (
        [("note", "OP", "x", "--actor", "ann"), ("hand-over", "OP", "--to", "ben", "--force")], {"assignee": "ann"},
    ),
    "handed it over to somebody who does not answer": (
        [("hand-over", "OP", "--to", "ben", "--force", "--for", "0.001m")], {"state": "working", "assignee": "ann"},
    ),
    "put it on hold": ([("hold", "OP", "--reason", "x")], {"on_hold": False, "state": "working"}),
    "set the wrong priority": ([("prioritize", "OP", "--priority", "9", "--reason", "x")], {"priority": 0}),
    "wrote a wrong note": ([("note", "OP", "wrong")], {"state": "working"}),
}  # fmt: skip


def rows_of_the_table() -> dict[str, list[str]]:
    """The commands of each row of the table in docs/science.md, by the mistake."""
    _, _, after = SCIENCE.read_text().partition("| what I did by mistake |")
    cells = [line.strip("| ").split(" | ") for line in after.splitlines()[2:] if line.startswith("|")]
    return {mistake: re.findall(r"`l2inv ([^`]+)`", what) for mistake, what, _ in cells}


def test_each_row_of_the_table_has_a_test() -> None:
    assert list(rows_of_the_table()) == list(MADE)
    assert all(rows_of_the_table().values())
    assert "docs/science.md#i-did--by-mistake" in (SCIENCE.parents[1] / "README.md").read_text()


@pytest.mark.parametrize("mistake", MADE)
def test_each_row_of_the_table_undoes_its_mistake(
    l2inv: Commands, held: str, tmp_path: Path, mistake: str
) -> None:
    file = right_event(tmp_path, held)
    made, expected = MADE[mistake]
    for argv in made:
        l2inv(*(held if word == "OP" else word for word in argv))
    before = kinds(l2inv, held)
    actor = "ann" if "does not answer" in mistake else l2inv.json("show", held)["assignee"] or "han"
    given = {"OP": held, "FILE": str(file), "NAME": "ann", "…": "right"}
    for command in rows_of_the_table()[mistake]:
        l2inv(*(given.get(word, word) for word in shlex.split(command)), actor=actor)
    after = l2inv.json("show", held)
    assert {name: after[name] for name in expected} == expected
    assert kinds(l2inv, held)[: len(before)] == before
    assert len(kinds(l2inv, held)) > len(before)
    assert l2inv.json("verify", "events")["findings"] == []
