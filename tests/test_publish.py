"""publish: the store is told exactly once, whatever happens on the way."""

import re
from typing import Any

import pytest
from conftest import Commands, Connection

from l2inv.sample.server import Fault, Store


@pytest.fixture
def inverted(l2inv: Commands, ready: list[str]) -> str:
    l2inv("claim", ready[0])
    l2inv("mark-inverted", ready[0], "--output", "globus://x", "--software", "DeSIRe")
    return ready[0]


def kinds(l2inv: Commands, op: str) -> list[str]:
    return [e["kind"] for e in l2inv.json("history", op)["events"]]


def published(connection: Connection) -> list[dict[str, Any]]:
    return connection.execute("select * from l2inv.published_op order by event_id, inversion_id").fetchall()


def creates(store: Store) -> int:
    return sum(name == "Create" for name, _ in store.requests)


def test_the_store_holds_the_inversion_and_the_view_shows_it(
    l2inv: Commands, inverted: str, store: Store, connection: Connection
) -> None:
    report = l2inv.json("publish")
    assert (report["stage"], report["ops"]) == ("publish", {"done": 1, "failed": 0, "skipped": 0})
    (row,) = published(connection)
    (held,) = store.inversions.values()
    assert re.fullmatch(r"inv\.[A-Z0-9]{6}", row["inversion_id"])
    assert held["inversionId"] == row["inversion_id"]
    assert held["datasetIds"] == row["dataset_ids"]
    assert held["spectralLines"] == row["spectral_lines"]
    assert (held["bucket"], held["primaryProposalId"]) == (row["bucket"], row["proposal_id"])
    assert held["asdfObjectKey"] is None
    assert (row["op_id"], row["cycle"], row["inverted_by"]) == (inverted, 1, "han")
    assert row["outputs"] == [{"uri": "globus://x"}]
    assert row["criteria_version"] == l2inv.json("show", inverted)["verdict"]["criteria_version"]
    assert list(row) == [
        "event_id", "op_id", "cycle", "inversion_id", "proposal_id", "experiment_id", "instrument_program_id",
        "dataset_ids", "product_ids", "bucket", "asdf_object_key", "spectral_lines", "outputs", "software",
        "is_embargoed", "embargo_end_date", "criteria_version", "inverted_by", "inverted_at", "published_at",
        "superseded_by", "withdrawn_at",
    ]  # fmt: skip
    assert l2inv.json("publish")["ops"]["done"] == 0
    assert creates(store) == 1


def test_each_instrument_program_is_an_inversion_of_its_own(
    l2inv: Commands, ready: list[str], store: Store, connection: Connection
) -> None:
    op = next(
        op["op_id"]
        for op in l2inv.json("next", "-n", "100")["ops"]
        if len({d["instrument_program_id"] for d in l2inv.json("show", op["op_id"])["datasets"] if d["instrument"] == "VISP"}) > 1
    )  # fmt: skip
    programs = {
        d["instrument_program_id"] for d in l2inv.json("show", op)["datasets"] if d["instrument"] == "VISP"
    }
    l2inv("claim", op)
    l2inv("mark-inverted", op, *(word for p in sorted(programs) for word in ("--instrument-program", p)))
    l2inv("publish")
    assert {row["instrument_program_id"] for row in published(connection)} == programs
    assert len(store.inversions) == len(programs) == 2


def test_a_lost_answer_is_settled_by_asking_before_creating_again(
    l2inv: Commands, inverted: str, store: Store, connection: Connection
) -> None:
    store.fault = lambda operation, nth: Fault(drop="after") if operation == "Create" else None
    assert l2inv.json("publish")["ops"] == {"done": 1, "failed": 0, "skipped": 0}
    assert creates(store) == len(store.inversions) == len(published(connection)) == 1


def test_a_lost_answer_and_a_store_gone_after_it_are_settled_by_the_next_run(
    l2inv: Commands, inverted: str, store: Store, connection: Connection
) -> None:
    lost = {"now": False}

    def fault(operation: str, nth: int) -> Fault | None:
        lost["now"] |= operation == "Create"
        return Fault(drop="after" if operation == "Create" else "before") if lost["now"] else None

    store.fault = fault
    l2inv("publish", expect=1)
    assert l2inv.json("show", inverted)["state"] == "inverted"
    assert kinds(l2inv, inverted)[-1] == "inversion_named"
    assert published(connection) == []
    store.fault = None
    l2inv("publish")
    assert kinds(l2inv, inverted)[-3:] == ["inversion_named", "inversion_created", "published"]
    assert creates(store) == len(store.inversions) == 1


def test_a_request_that_never_arrived_is_made_again_under_the_same_id(
    l2inv: Commands, inverted: str, store: Store
) -> None:
    store.fault = lambda operation, nth: Fault(drop="before") if operation == "Create" and nth == 1 else None
    l2inv("publish")
    events = l2inv.json("history", inverted)["events"]
    assert [e["kind"] for e in events][-3:] == ["inversion_named", "inversion_created", "published"]
    assert list(store.inversions) == [events[-3]["detail"]["inversion_id"]]


def test_a_store_that_fails_on_one_inversion_alone_does_not_keep_the_others_waiting(
    l2inv: Commands, ready: list[str], inverted: str, store: Store
) -> None:
    l2inv("claim", ready[1])
    l2inv("mark-inverted", ready[1])
    store.fault = lambda operation, nth: Fault(status=500) if operation == "Create" and nth < 3 else None
    assert l2inv("publish", "--json", expect=4).json["ops"] == {"done": 1, "failed": 1, "skipped": 0}
    named = [e for e in l2inv.json("history", inverted)["events"] if e["kind"] == "inversion_named"]
    l2inv("retry", inverted)
    l2inv("publish")
    assert named[0]["detail"]["inversion_id"] in store.inversions


def test_a_store_that_refuses_us_altogether_puts_no_op_into_error(
    l2inv: Commands, inverted: str, store: Store
) -> None:
    store.fault = lambda operation, nth: Fault(body=b'{"errors": [{"message": "token expired"}]}')
    assert "token expired" in l2inv("publish", expect=1).stderr
    assert l2inv.json("show", inverted)["state"] == "inverted"


def test_what_the_store_refuses_goes_to_error_with_its_words_and_the_others_go_on(
    l2inv: Commands, ready: list[str], inverted: str, store: Store
) -> None:
    l2inv("claim", ready[1])
    l2inv("mark-inverted", ready[1])
    words = b'{"errors": [{"message": "proposal is closed"}], "data": null}'
    store.fault = lambda operation, nth: Fault(body=words) if operation == "Create" and nth == 1 else None
    assert l2inv("publish", "--json", expect=4).json["ops"] == {"done": 1, "failed": 1, "skipped": 0}
    last = l2inv.json("history", inverted)["events"][-1]
    assert (last["state"], last["detail"]["stage"]) == ("error", "publish")
    assert "proposal is closed" in last["detail"]["cause"]
    assert l2inv.json("retry")["ops"] == [{"op_id": inverted, "state": "inverted"}]
    assert l2inv.json("publish")["ops"]["done"] == 1
    assert len(store.inversions) == 2
    assert kinds(l2inv, inverted).count("inversion_named") == 1


def test_datasets_in_two_buckets_cannot_be_one_inversion(
    l2inv: Commands, inverted: str, store: Store
) -> None:
    used = l2inv.json("history", inverted)["events"][-1]["detail"]["datasets"]
    moved = next(d for d in store.datasets if d["datasetId"] in used)
    moved["bucket"] = "elsewhere"
    l2inv("scan")
    l2inv("publish", expect=4)
    assert "must share one bucket" in l2inv.json("history", inverted)["events"][-1]["detail"]["cause"]
    assert store.inversions == {}


def test_another_inversion_under_the_same_id_is_not_taken_for_ours(
    l2inv: Commands, inverted: str, store: Store
) -> None:
    store.fault = lambda operation, nth: Fault(status=500) if operation == "Create" else None
    l2inv("publish", expect=4)
    store.fault = None
    l2inv("retry")
    events = l2inv.json("history", inverted)["events"]
    named = next(e for e in events if e["kind"] == "inversion_named")["detail"]["inversion_id"]
    other = store.datasets[0]
    store.inversions[named] = {
        "inversionId": named, "primaryProposalId": "pid_other", "instrumentProgramExecutionId": "id.1.1",
        "bucket": other["bucket"], "asdfObjectKey": None, "datasetIds": [other["datasetId"]], "spectralLines": [],
        "createDate": "2026-01-01T00:00:00", "updateDate": "2026-01-01T00:00:00",
    }  # fmt: skip
    l2inv("publish", expect=4)
    assert (
        "the store holds another primaryProposalId"
        in l2inv.json("history", inverted)["events"][-1]["detail"]["cause"]
    )


def test_publishing_needs_a_service_and_says_which_setting(l2inv: Commands, inverted: str) -> None:
    l2inv.settings["metadata_store"]["url"] = "saved.json"
    l2inv.save()
    assert "metadata_store.url" in l2inv("publish", expect=10).stderr
    assert l2inv.json("show", inverted)["state"] == "inverted"


def test_the_words_of_a_service_that_refuses_with_400_are_kept(
    l2inv: Commands, inverted: str, store: Store
) -> None:
    words = b'{"errors": [{"message": "no such proposal"}]}'
    store.fault = lambda operation, nth: Fault(status=400, body=words) if operation == "Create" else None
    l2inv("publish", expect=4)
    assert "no such proposal" in l2inv.json("history", inverted)["events"][-1]["detail"]["cause"]
