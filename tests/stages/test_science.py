"""Science: what is next, and exactly one holder."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from l2inv.config.settings import Database, Settings
from l2inv.database.access import connected
from l2inv.database.connection import Connection
from l2inv.errors import Refused
from l2inv.record import event_log
from l2inv.sample.server import Store
from l2inv.stages.mark_working import claiming
from tests.helpers.commands import Commands
from tests.helpers.warm import Warm


def test_next_offers_with_what_one_chooses_by_and_by_age_the_longest_waiting(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    ops = l2inv.json("next")["ops"]
    assert [op["op_id"] for op in ops] == ready[:10]
    assert set(ops[0]) >= {
        "op_id", "proposal_id", "experiment_id", "state", "since", "priority", "assignee", "instruments", "dataset_count",
        "start_time", "fried_parameter_med_m", "bands",
    }  # fmt: skip
    assert ops[0]["since"].endswith("Z")
    assert all("Fe I 630.3" in op["bands"] for op in ops)
    assert len(l2inv.json("next", "-n", "2")["ops"]) == 2
    l2inv("claim", ready[0])
    l2inv("release", ready[0])
    assert l2inv.json("next", "-n", "100", "--rank-by", "age")["ops"][-1]["op_id"] == ready[0]


def test_a_claim_is_the_actors_and_claiming_it_again_is_fine(l2inv: Commands, ready: list[str]) -> None:
    claimed = l2inv.json("claim", ready[0], actor="han")
    assert (claimed["state"], claimed["assignee"]) == ("working", "han")
    again = l2inv("claim", ready[0], actor="han")
    assert "yours already" in again.stdout
    assert l2inv("mark-working", ready[0], actor="han").exit_code == 0
    assert [e["kind"] for e in l2inv.json("history", ready[0])["events"]].count("claimed") == 1
    assert ready[0] not in [op["op_id"] for op in l2inv.json("next", "-n", "100")["ops"]]


@pytest.mark.parametrize("command", ["claim", "mark-working", "release", "mark-inverted"])
def test_an_op_held_by_another_is_refused_with_the_holder_and_the_time(
    l2inv: Commands, ready: list[str], command: str
) -> None:
    l2inv("claim", ready[0], actor="han")
    since = l2inv.json("show", ready[0])["since"]
    answer = l2inv(command, ready[0], "--json", actor="ann", expect=3)
    error = answer.json["error"]
    assert error["code"] == 3
    assert "han" in error["message"] + error["hint"]
    assert since[:10] in error["message"] + error["hint"]
    assert l2inv.json("show", ready[0])["assignee"] == "han"


def test_eight_who_claim_one_op_at_once_give_one_winner_every_time(
    l2inv: Commands, ready: list[str], url: str
) -> None:
    def claim(actor: str) -> list[str]:
        won = []
        with connected(Settings(database=Database(url=url))) as connection:
            for op in ready:
                try:
                    if claiming.claim(connection, op, actor, datetime.now(UTC)):
                        won.append(op)
                except Refused as refusal:
                    assert "is held by" in refusal.message
        return won

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(claim, [f"person-{n}" for n in range(8)]))
    assert sorted(op for ops in won for op in ops) == sorted(ready)


def test_an_op_whose_datasets_changed_since_its_verdict_is_not_claimed(
    l2inv: Commands, ready: list[str], store: Store
) -> None:
    l2inv("claim", ready[0])
    for dataset in store.datasets:
        if dataset["observingProgramExecutionId"] == ready[0]:
            dataset["aoLocked"] = 0
    l2inv("scan")
    l2inv("release", ready[0])
    assert "its datasets changed since its verdict" in l2inv("claim", ready[0], actor="eve", expect=3).stderr


def test_eight_processes_that_claim_one_op_give_one_winner(
    l2inv: Commands, warm: Warm, ready: list[str]
) -> None:
    processes = {f"person-{n}": 0 for n in range(8)}
    for person in processes:
        processes[person] = warm.start(l2inv, "claim", ready[0], actor=person)
    codes = {person: warm.ended(pid)[0] for person, pid in processes.items()}
    assert sorted(codes.values()) == [0] + [3] * 7
    winner = next(person for person, code in codes.items() if code == 0)
    assert l2inv.json("show", ready[0])["assignee"] == winner


def test_the_highest_priority_is_offered_first_with_its_reason_on_record(
    l2inv: Commands, ready: list[str]
) -> None:
    last = ready[-1]
    assert l2inv.json("prioritize", last, "--priority", "5", "--reason", "eclipse campaign")["priority"] == 5
    assert l2inv.json("next")["ops"][0]["op_id"] == last
    event = l2inv.json("history", last)["events"][-1]
    assert (event["kind"], event["state"]) == ("prioritized", None)
    assert event["detail"] == {"priority": 5, "reason": "eclipse campaign"}
    l2inv("claim", last)
    l2inv("release", last)
    assert l2inv.json("next")["ops"][0]["op_id"] == last
    l2inv("prioritize", last, "--priority", "-1", "--reason", "later")
    assert l2inv.json("next", "-n", "100")["ops"][-1]["op_id"] == last
    l2inv("prioritize", last, "--priority", "5", expect=2)


def test_a_note_is_in_the_history(l2inv: Commands, ready: list[str]) -> None:
    l2inv("note", ready[0], "seeing was best after 19:00")
    assert "seeing was best after 19:00" in l2inv("history", ready[0]).stdout
    assert l2inv.json("show", ready[0])["state"] == "preprocessed"


def test_a_release_gives_it_back_with_its_reason(l2inv: Commands, ready: list[str]) -> None:
    l2inv("claim", ready[0])
    assert l2inv.json("release", ready[0], "--reason", "clouds")["assignee"] is None
    last = l2inv.json("history", ready[0])["events"][-1]
    assert (last["kind"], last["state"]) == ("released", "preprocessed")
    assert last["detail"] == {"assignee": "han", "reason": "clouds"}
    assert l2inv("release", ready[0], expect=3).stderr.count("\n") == 1
    l2inv("claim", ready[0], actor="ann")


@pytest.mark.parametrize(
    "command", ["claim", "release", "mark-inverted", "history", "show", "retry", "mark-working"]
)
def test_an_unknown_or_ambiguous_op_is_refused_with_the_candidates(
    l2inv: Commands, ready: list[str], command: str
) -> None:
    unknown = l2inv(command, "no-such-op", expect=3)
    assert unknown.stderr == "l2inv: OP 'no-such-op' is unknown; see: l2inv list\n"
    ambiguous = l2inv(command, ready[0][:4], expect=3)
    assert "matches several OPs: eid_" in ambiguous.stderr


@pytest.mark.parametrize("state", ["discovered", "not_invertible"])
def test_an_op_that_is_not_ready_cannot_be_claimed(l2inv: Commands, ready: list[str], state: str) -> None:
    op = l2inv.json("list", "--state", state)["ops"][0]["op_id"]
    assert f"is {state}" in l2inv("claim", op, expect=3).stderr
    assert l2inv.json("show", op)["state"] == state


def test_an_op_in_error_keeps_its_holder_and_comes_back_to_him(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    l2inv("claim", ready[0])
    with connection.transaction():
        now = event_log.locked(connection, ready[0])
        event_log.fail(connection, ready[0], now.seq, "invert", "no convergence", "han", 1)
    assert l2inv.json("show", ready[0])["error"]["cause"] == "no convergence"
    assert l2inv.json("retry", ready[0])["ops"] == [{"op_id": ready[0], "state": "working"}]
    assert l2inv.json("show", ready[0])["assignee"] == "han"
