"""publish: each inversion is created in the store exactly once, whatever happens."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from l2inv.database.connection import Connection
from l2inv.domain import lines
from l2inv.sample.server import Fault, Store
from tests.helpers.commands import READY_TEXT, Commands
from tests.helpers.publisher_kills import BORDERS, REQUESTS, SUBSTEPS, Border, killed_at
from tests.helpers.steps import cause, invert, kinds, published, two_programs
from tests.helpers.warm import Warm


@pytest.fixture
def inverted(l2inv: Commands, ready: list[str]) -> str:
    l2inv("claim", ready[0])
    l2inv("mark-inverted", ready[0], "--output", "globus://x", "--software", "DeSIRe")
    return ready[0]


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
    number = row["inversion_id"][4:]
    assert held["asdfObjectKey"] == f"{row['proposal_id']}/inv_{number}/INV_{number}_L2_metadata.asdf"
    assert l2inv.json("show", inverted)["inversions"][0]["inversion_id"] == row["inversion_id"]
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


def test_each_instrument_program_is_a_separate_inversion(
    l2inv: Commands, ready: list[str], store: Store, connection: Connection
) -> None:
    op, programs = two_programs(connection)
    invert(l2inv, op, *programs)
    l2inv("publish")
    assert {row["instrument_program_id"] for row in published(connection)} == set(programs)
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


def test_after_a_gateway_was_deployed_the_store_is_asked_before_it_is_told_again(
    l2inv: Commands, inverted: str, store: Store, connection: Connection
) -> None:
    store.fault = lambda operation, nth: Fault(status=404) if operation == "Create" and nth == 1 else None
    assert l2inv.json("publish")["ops"] == {"done": 1, "failed": 0, "skipped": 0}
    assert len(store.inversions) == len(published(connection)) == 1


def test_a_store_that_fails_on_one_inversion_alone_does_not_keep_the_others_waiting(
    l2inv: Commands, ready: list[str], inverted: str, store: Store
) -> None:
    l2inv("claim", ready[1])
    l2inv("mark-inverted", ready[1])
    store.fault = lambda operation, nth: Fault(status=500) if operation == "Create" and nth < 3 else None
    assert "the next run continues" in l2inv("publish", expect=1).stderr
    assert l2inv.json("show", ready[1])["state"] == "published"
    assert l2inv.json("show", inverted)["state"] == "inverted"
    named = [e for e in l2inv.json("history", inverted)["events"] if e["kind"] == "inversion_named"]
    l2inv("publish")
    assert named[0]["detail"]["inversion_id"] in store.inversions


def test_a_store_that_refuses_us_altogether_puts_no_op_into_error(
    l2inv: Commands, inverted: str, store: Store
) -> None:
    store.fault = lambda operation, nth: Fault(body=b'{"errors": [{"message": "token expired"}]}')
    assert "token expired" in l2inv("publish", expect=1).stderr
    assert l2inv.json("show", inverted)["state"] == "inverted"


def test_an_inversion_refused_by_the_store_goes_to_error_with_its_words_and_the_others_continue(
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
    l2inv("publish", expect=1)
    store.fault = None
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
        "the store has another primaryProposalId"
        in l2inv.json("history", inverted)["events"][-1]["detail"]["cause"]
    )


def test_publishing_needs_a_service_and_names_the_setting(l2inv: Commands, inverted: str) -> None:
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


@pytest.mark.parametrize("border", BORDERS, ids=lambda border: f"{border[0]} {border[1]}".replace(" ", "-"))
def test_killed_between_any_two_substeps_the_next_run_finishes_with_one_inversion_each(
    l2inv: Commands, ready: list[str], store: Store, connection: Connection, warm: Warm, border: Border
) -> None:
    op, programs = two_programs(connection)
    invert(l2inv, op, *programs)
    killed_at(border, l2inv, store, connection, warm)
    l2inv("publish")
    assert sorted(i["instrumentProgramExecutionId"] for i in store.inversions.values()) == programs
    _is_told_once(op, 2, store, connection)


@pytest.mark.parametrize("when", ["before request", "after request", "before event"])
def test_an_op_with_one_instrument_program_survives_a_kill_at_every_substep(
    l2inv: Commands, ready: list[str], store: Store, connection: Connection, warm: Warm, when: str
) -> None:
    borders = len(REQUESTS) if "request" in when else len(SUBSTEPS) + 2
    assert len(ready) > borders
    for n, op in enumerate(ready[:borders]):
        invert(l2inv, op)
        killed_at((when, n), l2inv, store, connection, warm)
        l2inv("publish")
        _is_told_once(op, 1, store, connection)
    assert len(store.inversions) == borders


def _is_told_once(op: str, inversions: int, store: Store, connection: Connection) -> None:
    events = connection.execute("select kind from l2inv.event where op_id = %s order by seq", [op]).fetchall()
    told = [e["kind"] for e in events if e["kind"].startswith("inversion_") or e["kind"] == "published"]
    assert told == [*SUBSTEPS] * inversions + ["published"]
    rows = [row for row in published(connection) if row["op_id"] == op]
    assert len(rows) == inversions
    assert {row["inversion_id"] for row in rows} <= store.inversions.keys()
    state = connection.execute("select state from l2inv.op where op_id = %s", [op]).fetchone()
    assert state == {"state": "published"}


def test_the_borders_above_are_all_there_are(
    l2inv: Commands, ready: list[str], store: Store, connection: Connection
) -> None:
    """Or else a request or an event came to be that no publisher is killed at."""
    op, programs = two_programs(connection)
    invert(l2inv, op, *programs)
    requests, events = len(store.requests), len(kinds(l2inv, op))
    l2inv("publish")
    assert [name for name, _ in store.requests[requests:]] == [*REQUESTS] * 2
    assert kinds(l2inv, op)[events:] == [*SUBSTEPS] * 2 + ["published"]


def of_used(l2inv: Commands, store: Store, op: str) -> list[dict[str, Any]]:
    """What the store says of the datasets that were inverted."""
    event = next(e for e in reversed(l2inv.json("history", op)["events"]) if e["kind"] == "inverted")
    return [d for d in store.datasets if d["datasetId"] in event["detail"]["datasets"]]


def reprocess(store: Store, dataset: dict[str, Any]) -> str:
    """L1 is reprocessed: the same product gets a new dataset, the old one is deprecated."""
    later = dataset["createDate"].replace("20", "21", 1)
    store.datasets.append({**dataset, "datasetId": "ANEW", "createDate": later})
    dataset["status"] = "DEPRECATED"
    return "ANEW"


def check(found: dict[str, Any], name: str) -> tuple[str, str]:
    return next((c["result"], c["detail"]) for c in found["checks"] if c["name"] == name)


def test_a_dry_run_shows_what_would_be_announced_and_writes_nothing(
    l2inv: Commands, inverted: str, store: Store, connection: Connection
) -> None:
    before = (len(store.requests), l2inv.json("status")["events"], l2inv.json("status")["runs"])
    l2inv.settings["metadata_store"]["url"] = "no-service.json"
    l2inv.save()
    # Nor does a publisher keep it waiting.
    connection.execute("select l2inv.take_lock('publish')")
    (found,) = l2inv.json("publish", "--dry-run")["ops"]
    text = l2inv("publish", "--dry-run").stdout
    l2inv("publish", expect=75)
    connection.execute("select pg_advisory_unlock_all()")
    assert (found["op_id"], found["ready"], found["on_hold"]) == (inverted, True, False)
    assert [c["name"] for c in found["checks"]] == [
        "mandatory",
        "bucket",
        "embargo",
        "verdict",
        "outputs",
        "superseded",
    ]
    assert found["inversions"][0]["dataset_ids"] == sorted(
        d["datasetId"] for d in of_used(l2inv, store, inverted)
    )
    (issued,) = l2inv.json("show", inverted)["inversions"]
    assert found["inversions"][0]["inversion_id"] == issued["inversion_id"]
    assert [(step["step"], step["standing"]) for step in found["steps"]] == [
        ("transfer", "not configured"), ("catalog", "not configured"), ("record", "to do"),
        ("available", "not configured"),
    ]  # fmt: skip
    assert "1 of 1 OP ready; nothing written" in text
    assert (len(store.requests), l2inv.json("status")["events"], l2inv.json("status")["runs"]) == before


def test_the_embargo_its_end_and_the_bucket_are_compared_and_only_warn(
    l2inv: Commands, inverted: str, store: Store
) -> None:
    def said(bucket: str, embargoed: bool, end: str | None) -> tuple[str, str]:
        for dataset in of_used(l2inv, store, inverted):
            dataset |= {"bucket": bucket, "isEmbargoed": embargoed, "embargoEndDate": end}
        l2inv("scan")
        (found,) = l2inv.json("publish", "--dry-run")["ops"]
        assert found["ready"]
        return check(found, "embargo")

    assert said("public", False, None) == ("pass", "not under embargo, in bucket public")
    assert said("data", False, None) == ("warn", "not under embargo, but in bucket data")
    result, words = said("data", True, "2999-01-01T00:00:00")
    assert result == "pass"
    assert words == "under embargo until 2999-01-01T00:00:00Z, in bucket data"
    assert said("public", True, "2999-01-01T00:00:00")[0] == "warn"
    assert said("data", True, "2001-01-01T00:00:00") == (
        "warn",
        "under embargo until 2001-01-01T00:00:00Z, which is past",
    )
    l2inv("publish")
    assert next(iter(store.inversions.values()))["bucket"] == "data"


def test_an_inversion_whose_output_is_gone_is_not_announced(
    l2inv: Commands, ready: list[str], store: Store, tmp_path: Path
) -> None:
    output = tmp_path / "inverted"
    output.write_text("here")
    l2inv("claim", ready[0])
    l2inv("mark-inverted", ready[0], "--output", str(output))
    output.unlink()
    assert check(l2inv.json("publish", "--dry-run")["ops"][0], "outputs")[0] == "fail"
    l2inv("publish", expect=4)
    assert f"outputs: {output}: is missing" in cause(l2inv, ready[0])
    assert store.inversions == {}
    output.write_text("here again")
    l2inv("retry", ready[0])
    l2inv("publish")


def test_an_inversion_of_reprocessed_datasets_is_not_announced_and_the_hint_is_to_reopen(
    l2inv: Commands, inverted: str, store: Store
) -> None:
    old = of_used(l2inv, store, inverted)[0]
    heir = reprocess(store, old)
    l2inv("scan")
    l2inv("publish", expect=4)
    assert f"{old['datasetId']} is withdrawn and is superseded by {heir}" in cause(l2inv, inverted)
    assert f"l2inv reopen {inverted}" in cause(l2inv, inverted)
    l2inv("reopen", inverted, "--reason", "reprocessed")
    assert l2inv.json("show", inverted)["state"] == "discovered"
    assert store.inversions == {}


def test_a_dataset_whose_frames_changed_after_the_inversion_counts_as_superseded_and_another_change_does_not(
    l2inv: Commands, inverted: str, store: Store
) -> None:
    dataset = of_used(l2inv, store, inverted)[0]
    dataset["browseMovieUrl"] = "https://example.org/another"
    l2inv("scan")
    assert l2inv.json("publish", "--dry-run")["ops"][0]["ready"]
    dataset["health"] = {"good": 1, "bad": None, "ill": None, "unknown": None}
    l2inv("scan")
    l2inv("publish", expect=4)
    assert f"{dataset['datasetId']} changed since it was inverted" in cause(l2inv, inverted)


def test_an_inversion_of_datasets_accepted_as_superseded_is_announced(
    l2inv: Commands, ready: list[str], store: Store, tmp_path: Path
) -> None:
    old = next(d for d in store.datasets if d["observingProgramExecutionId"] == ready[0] and d["instrumentName"] == "VISP")  # fmt: skip
    l2inv("claim", ready[0])
    # Beside what is still there, since this store takes no inversion of what it no longer holds.
    store.datasets.append({**old, "datasetId": "ANEW", "createDate": "2099-01-01T00:00:00"})
    l2inv("scan")
    file = tmp_path / "ready.yaml"
    file.write_text(f"op_id: {ready[0]}\n{READY_TEXT}")
    l2inv("mark-inverted", "--from", str(file), "--accept-superseded", "--reason", "as good")
    (found,) = l2inv.json("publish", "--dry-run")["ops"]
    assert check(found, "superseded") == ("pass", f"accepted: {old['datasetId']}")
    l2inv("publish")
    assert len(store.inversions) == 1


def test_an_inversion_that_the_store_has_is_published_even_if_its_datasets_changed(
    l2inv: Commands, inverted: str, store: Store, connection: Connection, warm: Warm
) -> None:
    killed_at(("after request", REQUESTS.index("Create")), l2inv, store, connection, warm)
    for dataset in of_used(l2inv, store, inverted):
        dataset |= {"bucket": "elsewhere", "frameCount": 1}
    l2inv("scan")
    assert not l2inv.json("publish", "--dry-run")["ops"][0]["ready"], (
        "the record cannot know that it was told"
    )
    l2inv("publish")
    (row,), (held,) = published(connection), store.inversions.values()
    assert (row["bucket"], row["inversion_id"]) == (held["bucket"], held["inversionId"])
    assert row["bucket"] != "elsewhere"


def test_an_inversion_named_but_not_announced_is_announced_with_the_present_datasets_under_the_same_id(
    l2inv: Commands, inverted: str, store: Store, connection: Connection, warm: Warm
) -> None:
    killed_at(("before request", REQUESTS.index("Create")), l2inv, store, connection, warm)
    for dataset in of_used(l2inv, store, inverted):
        dataset["bucket"] = "elsewhere"
    l2inv("scan")
    l2inv("publish")
    named = [e["detail"] for e in l2inv.json("history", inverted)["events"] if e["kind"] == "inversion_named"]
    assert len({n["inversion_id"] for n in named}) == 1
    (row,), (held,) = published(connection), store.inversions.values()
    assert row["bucket"] == held["bucket"] == "elsewhere"


def test_an_op_on_hold_is_skipped_and_a_dry_run_says_so(l2inv: Commands, inverted: str, store: Store) -> None:
    l2inv("hold", inverted, "--reason", "wait")
    (found,) = l2inv.json("publish", "--dry-run")["ops"]
    assert (found["ready"], found["on_hold"]) == (False, True)
    assert "on hold, will be skipped" in l2inv("publish", "--dry-run").stdout
    assert l2inv.json("publish")["ops"] == {"done": 0, "failed": 0, "skipped": 1}
    assert store.inversions == {}


def test_an_inversion_missing_from_a_restored_record_is_not_announced_twice(
    l2inv: Commands, inverted: str, store: Store
) -> None:
    """As when l2inv's database was restored from a backup of before it was told."""
    used = of_used(l2inv, store, inverted)
    store.inversions["inv.OLD123"] = {
        "inversionId": "inv.OLD123", "primaryProposalId": used[0]["primaryProposalId"],
        "instrumentProgramExecutionId": used[0]["instrumentProgramExecutionId"], "bucket": used[0]["bucket"],
        "asdfObjectKey": None, "datasetIds": [d["datasetId"] for d in reversed(used)], "spectralLines": [],
        "createDate": "2026-01-01T00:00:00", "updateDate": "2026-01-01T00:00:00",
    }  # fmt: skip
    l2inv("publish", expect=4)
    assert "the store already holds inv.OLD123 of these datasets" in cause(l2inv, inverted)
    assert list(store.inversions) == ["inv.OLD123"]
    adopt = ("adopt", inverted, "inv.OLD123", "--reason", "the database was restored")
    assert "differs in spectralLines" in l2inv(*adopt, expect=3).stderr
    assert (
        "no inversion inv.NONE00" in l2inv("adopt", inverted, "inv.NONE00", "--reason", "x", expect=3).stderr
    )
    store.inversions["inv.OLD123"]["spectralLines"] = sorted(
        {line for dataset in used for line in dataset["spectralLines"] or ()}
    )
    assert l2inv.json(*adopt)["state"] == "inverted"
    assert l2inv.json("publish")["ops"]["done"] == 1
    assert [row["inversion_id"] for row in l2inv.json("export")["inversions"]] == ["inv.OLD123"]
    assert list(store.inversions) == ["inv.OLD123"]


def test_another_inversion_of_the_same_datasets_in_the_store_may_coexist(
    l2inv: Commands, inverted: str, store: Store
) -> None:
    used = of_used(l2inv, store, inverted)
    store.inversions["inv.OTHERS"] = {
        "inversionId": "inv.OTHERS", "primaryProposalId": used[0]["primaryProposalId"],
        "instrumentProgramExecutionId": used[0]["instrumentProgramExecutionId"], "bucket": used[0]["bucket"],
        "asdfObjectKey": None, "datasetIds": [d["datasetId"] for d in used], "spectralLines": [],
        "createDate": "2026-01-01T00:00:00", "updateDate": "2026-01-01T00:00:00",
    }  # fmt: skip
    l2inv("publish", expect=4)
    l2inv("adopt", inverted, "inv.OTHERS", "--beside", "--reason", "a first look by others")
    assert l2inv.json("publish")["ops"]["done"] == 1
    assert len(store.inversions) == 2


def test_an_inversion_of_other_data_is_another_one(l2inv: Commands, inverted: str, store: Store) -> None:
    used = of_used(l2inv, store, inverted)
    store.inversions["inv.OLD123"] = {
        "inversionId": "inv.OLD123", "primaryProposalId": used[0]["primaryProposalId"],
        "instrumentProgramExecutionId": used[0]["instrumentProgramExecutionId"], "bucket": used[0]["bucket"],
        "asdfObjectKey": None, "datasetIds": [d["datasetId"] for d in used], "spectralLines": [],
        "createDate": "2026-01-01T00:00:00", "updateDate": "2026-01-01T00:00:00",
    }  # fmt: skip
    l2inv("publish", expect=4)
    store.inversions["inv.OLD123"]["datasetIds"].pop()  # of other datasets, it is another inversion
    l2inv("retry")
    l2inv("publish")
    assert len(store.inversions) == 2


def test_a_store_that_keeps_something_other_than_was_announced_is_detected(
    l2inv: Commands, inverted: str, store: Store
) -> None:
    def fault(operation: str, nth: int) -> Fault | None:
        for held in store.inversions.values():
            held["asdfObjectKey"] = "something/else"
        return None

    store.fault = fault
    l2inv("publish", expect=4)
    assert "the store has another asdfObjectKey" in cause(l2inv, inverted)
    assert "inversion_created" not in kinds(l2inv, inverted)


def test_a_store_that_answers_with_another_inversion_is_not_believed(
    l2inv: Commands, inverted: str, store: Store
) -> None:
    body = json.dumps(
        {"data": {"l2Inversions": [{"inversionId": "inv.OTHER1", "datasetIds": ["X"]}]}}
    ).encode()
    store.fault = lambda operation, nth: Fault(body=body) if operation == "Find" else None
    said = l2inv("publish", expect=1).stderr
    assert "and answered with 'inv.OTHER1'; ask who runs the metadata store" in said
    assert l2inv.json("show", inverted)["state"] == "inverted"
    store.fault = None
    assert l2inv.json("publish")["ops"]["done"] == 1


def test_an_id_that_the_store_has_for_something_else_is_an_error_with_a_hint(
    l2inv: Commands, inverted: str, store: Store
) -> None:
    (issued,) = l2inv.json("show", inverted)["inversions"]
    other = store.datasets[0]
    store.inversions[issued["inversion_id"]] = {
        "inversionId": issued["inversion_id"], "primaryProposalId": "pid_other",
        "instrumentProgramExecutionId": "id.1.1", "bucket": other["bucket"], "asdfObjectKey": None,
        "datasetIds": [other["datasetId"]], "spectralLines": [],
        "createDate": "2026-01-01T00:00:00", "updateDate": "2026-01-01T00:00:00",
    }  # fmt: skip
    l2inv("publish", expect=4)
    assert f"the store has another inversion under {issued['inversion_id']}" in cause(l2inv, inverted)
    assert f"l2inv reopen {inverted} --reason WHY" in cause(l2inv, inverted)
    assert creates(store) == 0


@pytest.mark.parametrize("operation", ["Known", "Create"])
def test_an_op_put_on_hold_while_publish_waits_for_the_store_is_not_published(
    l2inv: Commands, inverted: str, store: Store, operation: str
) -> None:
    """It is not published; and not told, unless the request was on its way."""

    def fault(asked: str, nth: int) -> Fault | None:
        if asked == operation and not held:
            held.append(l2inv("hold", inverted, "--reason", "wait").exit_code)
        return None

    held: list[int] = []
    store.fault = fault
    assert l2inv.json("publish")["ops"] == {"done": 0, "failed": 0, "skipped": 1}
    assert held == [0]
    assert l2inv.json("show", inverted)["state"] == "inverted"
    assert creates(store) == (operation == "Create")
    l2inv("unhold", inverted)
    assert l2inv.json("publish")["ops"]["done"] == 1
    assert creates(store) == len(store.inversions) == 1


def test_an_inversion_superseded_while_publish_waits_for_the_store_is_not_announced(
    l2inv: Commands, inverted: str, store: Store
) -> None:
    def fault(asked: str, nth: int) -> Fault | None:
        if asked == "Known" and not done:
            done.append(reprocess(store, of_used(l2inv, store, inverted)[0]))
            l2inv("scan")
        return None

    done: list[str] = []
    store.fault = fault
    l2inv("publish", expect=4)
    assert "is superseded by ANEW" in cause(l2inv, inverted)
    assert creates(store) == 0


def test_a_dataset_without_a_verdict_is_named_and_published_with_a_remark(
    l2inv: Commands, ready: list[str], store: Store, connection: Connection
) -> None:
    l2inv("claim", ready[0])
    old = next(d for d in store.datasets if d["observingProgramExecutionId"] == ready[0] and d["instrumentName"] == "VISP")  # fmt: skip
    store.datasets.append({**old, "datasetId": "ALATE", "productId": "L1-ALATE"})
    l2inv("scan")
    program = old["instrumentProgramExecutionId"]
    l2inv("mark-inverted", ready[0], "--instrument-program", program, "--dataset", "ALATE")
    (found,) = l2inv.json("publish", "--dry-run")["ops"]
    assert check(found, "verdict") == ("warn", "ALATE is covered by no verdict")
    l2inv("publish")
    (told,) = l2inv.json("history", ready[0])["events"][-1]["detail"]["inversions"]
    assert told["not_judged"] == ["ALATE"]


def test_a_dataset_without_lines_is_announced_with_the_line_assumed_for_it(
    l2inv: Commands, inverted: str, store: Store
) -> None:
    for dataset in of_used(l2inv, store, inverted):
        dataset["spectralLines"] = None
    l2inv("scan")
    l2inv("publish")
    (held,) = store.inversions.values()
    near = [lines.presumed((d["wavelengthMin"], d["wavelengthMax"])) for d in of_used(l2inv, store, inverted)]
    assert held["spectralLines"] == sorted({line for one in near for line in one}) != []


def test_publishing_takes_three_requests_for_each_op_however_many_there_are(
    l2inv: Commands, ready: list[str], store: Store
) -> None:
    for op in ready[:5]:
        invert(l2inv, op)
    before = len(store.requests)
    assert l2inv.json("publish")["ops"]["done"] == 5
    assert [name for name, _ in store.requests[before:]] == ["Known", "Create", "Find"] * 5
