"""Who works on what: ranking, due dates, hand-over, take-over, holds, and many claimers at once."""

import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from l2inv.config.settings import Database, Settings
from l2inv.database.connection import Connection, translated
from l2inv.domain.states import State
from l2inv.errors import Refused
from l2inv.record import event_log
from l2inv.stages.mark_working import claiming
from tests.helpers.commands import Commands
from tests.helpers.events import LEAST
from tests.helpers.steps import kinds

PAST = datetime(2026, 1, 1, tzinfo=UTC)

# Fifty processes, each with a connection of its own, that claim until nothing is offered any more.
CLAIMERS = """
import os, sys
from datetime import UTC, datetime
from l2inv.database.access import connected
from l2inv.queries.filters import Wanted
from l2inv.stages.mark_working import claiming
from l2inv.config.settings import Database, Qualification, Settings

children = []
for number in range(50):
    pid = os.fork()
    if pid:
        children.append(pid)
        continue
    won = []
    with connected(Settings(database=Database(url=sys.argv[1]))) as connection:
        me, some = f"person-{number}", number % 3 + 1
        while ops := claiming.claim_first(connection, "age", Qualification(), Wanted(), me, datetime.now(UTC), some):
            won += ops
    os.write(1, "".join(f"person-{number} {op}\\n" for op in won).encode())
    os._exit(0)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
"""


def test_fifty_processes_that_claim_from_200_ops_take_each_once(connection: Connection, url: str) -> None:
    ops = [f"op-{n:03}" for n in range(200)]
    way: tuple[tuple[str, State], ...] = (
        ("discovered", "discovered"),
        ("judged", "invertible"),
        ("preprocessed", "preprocessed"),
    )
    for after, (kind, state) in enumerate(way):
        event_log.add(
            connection, [event_log.Event(op, after, kind, state, LEAST[kind]) for op in ops], "test", None
        )
    answer = subprocess.run(
        [sys.executable, "-c", CLAIMERS, url], capture_output=True, text=True, timeout=100, check=False
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    won = dict(line.split()[::-1] for line in answer.stdout.splitlines())
    assert len(answer.stdout.splitlines()) == len(won) == 200
    held = connection.execute("select op_id, assignee from l2inv.op where state = 'working'").fetchall()
    assert {row["op_id"]: row["assignee"] for row in held} == won
    claims = connection.execute("select op_id from l2inv.event where kind = 'claimed'").fetchall()
    assert Counter(row["op_id"] for row in claims) == Counter(ops)


def test_next_claim_takes_as_many_as_are_asked_for_and_there_are(l2inv: Commands, ready: list[str]) -> None:
    offered = [op["op_id"] for op in l2inv.json("next", "-n", "2")["ops"]]
    claimed = l2inv.json("next", "--claim", "-n", "2")
    assert [op["op_id"] for op in claimed["ops"]] == offered
    assert claimed["claimed"] == claimed["ops"][0]
    assert {op["assignee"] for op in claimed["ops"]} == {"han"}
    assert len(l2inv.json("next", "--claim", "-n", "100000")["ops"]) == len(ready) - 2
    assert l2inv.json("next", "--claim", "-n", "2") == {"claimed": None, "ops": [], "unmatched": []}


def test_next_claim_takes_the_one_that_next_shows_first(l2inv: Commands, ready: list[str]) -> None:
    claimed = l2inv.json("next", "--claim", "--for", "2w")["claimed"]
    assert (claimed["op_id"], claimed["state"], claimed["assignee"]) == (ready[0], "working", "han")
    due = datetime.fromisoformat(claimed["due_at"]) - datetime.now(UTC)
    assert timedelta(days=13.9) < due < timedelta(days=14.1)
    assert l2inv.json("next")["ops"][0]["op_id"] == ready[1]
    assert l2inv.json("next", "--claim", "--proposal", "no-such")["claimed"] is None
    assert "nothing that is ready matches" in l2inv("next", "--claim", "--proposal", "no-such").stdout
    l2inv("next", "--min-r0-cm", "nan", expect=2)
    l2inv("next", "--for", "2w", expect=2)


def test_next_ranks_by_the_setting_within_a_priority_and_shows_why(l2inv: Commands, ready: list[str]) -> None:
    l2inv("prioritize", ready[-1], "--priority", "3", "--reason", "campaign")
    l2inv.settings["next"] = {"rank_by": "fried_parameter"}
    l2inv.save()
    for rank_by in ("fried_parameter", "proposal", "age"):
        named = () if rank_by == "fried_parameter" else ("--rank-by", rank_by)
        first, *rest = l2inv.json("next", "-n", "100", *named)["ops"]
        assert first["op_id"] == ready[-1]
        assert first["why"].startswith("priority 3 (campaign), ")
        field = {"age": "since", "fried_parameter": "fried_parameter_med_m", "proposal": "proposal_id"}[
            rank_by
        ]
        measured = [op[field] for op in rest if op[field] is not None]
        assert measured == sorted(measured, reverse=rank_by == "fried_parameter")
        assert all(op[field] is None for op in rest[len(measured) :])
        said = {"age": "waiting since", "fried_parameter": "r0 ", "proposal": "proposal "}[rank_by]
        assert all(op["why"].startswith(said) for op in rest)
    assert "waiting since" in l2inv("next").stdout


def test_next_filters_by_what_one_chooses_by(l2inv: Commands, ready: list[str]) -> None:
    ops = l2inv.json("next", "-n", "100")["ops"]

    def shown(*filters: str) -> set[str]:
        return {op["op_id"] for op in l2inv.json("next", "-n", "100", *filters)["ops"]}

    proposal = ops[0]["proposal_id"]
    assert shown("--proposal", proposal) == {op["op_id"] for op in ops if op["proposal_id"] == proposal}
    calcium = {op["op_id"] for op in ops if "Ca II 854.2" in op["bands"]}
    assert shown("--band", "854.2") == calcium
    assert set() < calcium < set(ready)
    assert shown("--instrument", "VBI") == {op["op_id"] for op in ops if "VBI" in op["instruments"]}
    good = {op["op_id"] for op in ops if (op["fried_parameter_med_m"] or 0) >= 0.07}
    assert shown("--min-r0-cm", "7") == good
    assert set() < good < set(ready)
    embargoed = shown("--embargoed")
    assert embargoed == {op["op_id"] for op in ops if op["is_embargoed"]}
    assert embargoed | shown("--not-embargoed") == set(ready)
    assert shown("--band", "'; drop table event; --") == set()


def test_a_claim_is_due_after_the_days_set_or_those_given_by_its_holder(
    l2inv: Commands, ready: list[str]
) -> None:
    def days(op: dict[str, str]) -> float:
        return (datetime.fromisoformat(op["due_at"]) - datetime.now(UTC)) / timedelta(days=1)

    assert days(l2inv.json("claim", ready[0])) == pytest.approx(21, abs=0.01)
    assert days(l2inv.json("claim", ready[0])) == pytest.approx(21, abs=0.01)
    assert kinds(l2inv, ready[0])[-1] == "claimed"
    assert days(l2inv.json("claim", ready[0], "--for", "40d")) == pytest.approx(40, abs=0.01)
    assert kinds(l2inv, ready[0])[-1] == "extended"
    l2inv.settings["deadlines"] = {"working_days": 3}
    l2inv.save()
    assert days(l2inv.json("claim", ready[1])) == pytest.approx(3, abs=0.01)
    l2inv("release", ready[1])
    assert l2inv.json("show", ready[1])["due_at"] is None
    for wrong in ("0d", "soon", "-3d", "99999999d", "5y"):
        l2inv("claim", ready[1], "--for", wrong, expect=2)


def test_mine_lists_what_i_hold_with_what_is_due_first(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    assert "han holds no OP" in l2inv("mine").stdout
    l2inv("claim", ready[0], "--for", "9d")
    l2inv("claim", ready[1], "--for", "3d")
    l2inv("claim", ready[2], actor="ann")
    claiming.claim(connection, ready[3], "han", PAST)
    assert [op["op_id"] for op in l2inv.json("mine")["ops"]] == [ready[3], ready[1], ready[0]]
    assert [op["overdue"] for op in l2inv.json("mine")["ops"]] == [True, False, False]
    assert "2026-01-01 overdue" in l2inv("mine").stdout
    l2inv("mark-inverted", ready[1])
    assert [op["op_id"] for op in l2inv.json("mine")["ops"]] == [ready[3], ready[0]]


def test_a_hand_over_changes_the_holder_and_nothing_else(l2inv: Commands, ready: list[str]) -> None:
    before = l2inv.json("claim", ready[0])
    after = l2inv.json("hand-over", ready[0], "--to", "ann", "--reason", "on leave", "--force")
    assert (after["state"], after["assignee"], after["due_at"]) == ("working", "ann", before["due_at"])
    assert after["since"] == before["since"]
    assert "held by ann" in l2inv("release", ready[0], expect=3).stderr
    assert "held by ann" in l2inv("hand-over", ready[0], "--to", "eve", expect=3).stderr
    assert "by ann already" in l2inv("hand-over", ready[0], "--to", "ann", actor="ann", expect=3).stderr
    assert "from han to ann" in l2inv("history", ready[0]).stdout
    l2inv("mark-inverted", ready[0], actor="ann")
    assert (
        "cannot be handed over" in l2inv("hand-over", ready[0], "--to", "eve", actor="ann", expect=3).stderr
    )


def test_only_an_overdue_claim_is_taken_over_and_only_with_a_reason(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    l2inv("claim", ready[0])
    refusal = l2inv("take-over", ready[0], "--reason", "mine now", actor="ann", expect=3).stderr
    assert "not overdue" in refusal
    claiming.claim(connection, ready[1], "han", PAST)
    l2inv("take-over", ready[1], actor="ann", expect=2)
    assert "yours already" in l2inv("take-over", ready[1], "--reason", "x", expect=3).stderr
    taken = l2inv.json("take-over", ready[1], "--reason", "no word for weeks", "--for", "1w", actor="ann")
    assert (taken["state"], taken["assignee"]) == ("working", "ann")
    detail = l2inv.json("history", ready[1])["events"][-1]["detail"]
    assert (detail["from"], detail["assignee"], detail["reason"]) == ("han", "ann", "no word for weeks")
    assert datetime.fromisoformat(detail["was_due_at"]) == PAST
    l2inv("mark-inverted", ready[1], actor="han", expect=3)
    l2inv("take-over", ready[2], "--reason", "x", expect=3)


def test_the_database_refuses_a_take_over_that_is_not_due_and_a_claim_on_hold(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    l2inv("claim", ready[0])
    with connection.transaction():
        present = event_log.locked(connection, ready[0])
    with pytest.raises(Exception, match="is not overdue"):
        event_log.add_one(
            connection, present, "taken_over", None, "eve",
            {"assignee": "eve", "from": "han", "due_at": "2030-01-01T00:00:00Z", "reason": "x"},
        )  # fmt: skip
    l2inv("hold", ready[1], "--reason", "doubts")
    with connection.transaction():
        present = event_log.locked(connection, ready[1])
    with pytest.raises(Exception, match="is on hold"):
        event_log.add_one(connection, present, "claimed", "working", "eve", {"assignee": "eve"})


def test_an_op_on_hold_is_offered_to_nobody_until_it_is_taken_off(l2inv: Commands, ready: list[str]) -> None:
    l2inv("hold", ready[0], "--reason", "calibration in doubt")
    assert ready[0] not in [op["op_id"] for op in l2inv.json("next", "-n", "100")["ops"]]
    assert "on hold: calibration in doubt" in l2inv("claim", ready[0], expect=3).stderr
    assert l2inv.json("next", "--claim")["claimed"]["op_id"] == ready[1]
    assert "calibration in doubt" in l2inv("show", ready[0]).stdout
    assert "calibration in doubt" in l2inv("hold", ready[0], "--reason", "again", expect=3).stderr
    l2inv("hold", ready[0], expect=2)
    assert l2inv.json("unhold", ready[0], "--reason", "checked")["on_hold"] is False
    assert l2inv("unhold", ready[0], expect=3).stderr.count("\n") == 1
    l2inv("claim", ready[0])
    assert kinds(l2inv, ready[0])[-3:] == ["put_on_hold", "taken_off_hold", "claimed"]


def test_a_hold_does_not_affect_the_state_or_the_holder(l2inv: Commands, ready: list[str]) -> None:
    l2inv("claim", ready[0])
    held = l2inv.json("hold", ready[0], "--reason", "new darks are coming")
    assert (held["state"], held["assignee"], held["on_hold"]) == ("working", "han", True)
    l2inv("release", ready[0])
    assert ready[0] not in [op["op_id"] for op in l2inv.json("next", "-n", "100")["ops"]]


def test_a_take_over_by_a_host_whose_clock_is_ahead_of_the_databases_is_refused_in_one_line(
    l2inv: Commands, ready: list[str], connection: Connection, url: str
) -> None:
    l2inv("claim", ready[0], "--for", "1h")
    later = datetime.now(UTC) + timedelta(hours=2)
    with (
        pytest.raises(Refused) as refusal,
        translated(Settings(database=Database(url=url))),
    ):
        claiming.take_over(connection, ready[0], "ann", "overdue here", later + timedelta(days=1), later)
    assert refusal.value.message == f"OP {ready[0]} is not overdue: it cannot be taken over"
    assert refusal.value.hint == "see: l2inv show OP"
