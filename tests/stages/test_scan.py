"""scan: every dataset once, every version kept, nothing written if nothing changed."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from l2inv.database.connection import Connection
from l2inv.sample.server import Fault, Store
from tests.helpers.commands import Commands


def counts(connection: Connection) -> dict[str, int]:
    row = connection.execute(
        """
        select (select count(*) from l2inv.event) as events, (select count(*) from l2inv.dataset_version) as versions,
               (select count(*) from l2inv.quarantine) as quarantined
        """
    ).fetchone()
    assert row is not None
    return row


def op_of(store: Store, state_of: dict[str, str], state: str) -> str:
    return next(op for op, its in state_of.items() if its == state)


def test_a_scan_takes_every_dataset_of_the_store_page_by_page(
    l2inv: Commands, store: Store, connection: Connection
) -> None:
    l2inv.settings["metadata_store"]["page_size"] = 7
    l2inv.save()
    report = l2inv.json("scan")
    assert report["complete"] is True
    assert report["datasets"]["seen"] == len(store.datasets)
    readable = report["datasets"]["new"]
    assert readable + report["datasets"]["quarantined"] == len(store.datasets)
    assert counts(connection)["versions"] == readable
    assert report["ops"]["new"] == report["ops"]["seen"] == l2inv.json("status")["states"]["discovered"]
    pages = [variables["filter"]["pageNumber"] for name, variables in store.requests if name == "Datasets"]
    assert sorted(pages) == list(range(1, len(store.datasets) // 7 + 2))


def test_a_second_scan_of_an_unchanged_store_writes_no_event_and_no_version(
    l2inv: Commands, connection: Connection
) -> None:
    first = l2inv.json("scan")
    before = counts(connection)
    second = l2inv.json("scan")
    assert counts(connection) == before
    assert second["datasets"] == first["datasets"] | {"new": 0, "unchanged": first["datasets"]["new"]}
    assert second["ops"] == {"seen": first["ops"]["seen"], "new": 0, "changed": 0}


def test_the_order_and_spelling_of_an_answer_change_nothing(l2inv: Commands, store: Store) -> None:
    l2inv("scan")
    store.datasets.reverse()
    for dataset in store.datasets:
        if isinstance(dataset["wavelengthMin"], int):
            dataset["wavelengthMin"] = float(dataset["wavelengthMin"])
    assert l2inv.json("scan")["datasets"]["changed"] == 0


def test_a_changed_dataset_is_a_new_version_and_its_op_gets_an_event_that_names_it(
    l2inv: Commands, store: Store, ready: list[str], connection: Connection
) -> None:
    op = ready[0]
    dataset = next(
        d for d in store.datasets if d["observingProgramExecutionId"] == op and d["instrumentName"] == "VISP"
    )
    before, frames = dataset["aoLocked"], dataset["frameCount"]
    dataset["aoLocked"] = 0
    report = l2inv.json("scan")
    assert report["datasets"]["changed"] == 1
    assert report["ops"]["changed"] == 1
    assert (
        f"ao_locked {before} -> 0 of {frames} frames in {dataset['datasetId']}" in l2inv("history", op).stdout
    )
    event = l2inv.json("history", op)["events"][-1]
    assert (event["kind"], event["state"], event["actor"]) == ("datasets_changed", "discovered", "han")
    assert event["detail"].pop("versions").keys() == {dataset["datasetId"]}
    assert event["detail"] == {
        "affects_verdict": True,
        "changed": {dataset["datasetId"]: ["ao_locked"]},
        "values": {dataset["datasetId"]: {"ao_locked": [before, 0], "frame_count": [frames, frames]}},
    }
    versions = connection.execute(
        "select version, record -> 'aoLocked' as ao from l2inv.dataset_version where dataset_id = %s order by 1",
        [dataset["datasetId"]],
    ).fetchall()
    assert [v["version"] for v in versions] == [1, 2]
    assert versions[1]["ao"] == 0


@pytest.mark.parametrize(
    ("change", "instrument"), [({"browseMovieUrl": "https://elsewhere"}, "VISP"), ({"aoLocked": 1}, "VBI")]
)
def test_a_change_that_no_verdict_depends_on_leaves_the_state(
    l2inv: Commands, store: Store, ready: list[str], change: dict[str, Any], instrument: str
) -> None:
    dataset = next(
        d
        for d in store.datasets
        if d["observingProgramExecutionId"] in ready and d["instrumentName"] == instrument
    )
    dataset.update(change)
    l2inv("scan")
    op = dataset["observingProgramExecutionId"]
    event = l2inv.json("history", op)["events"][-1]
    assert (event["kind"], event["state"]) == ("datasets_changed", None)
    assert l2inv.json("show", op)["state"] == "preprocessed"


def test_a_claimed_op_keeps_its_state_when_its_datasets_change(
    l2inv: Commands, store: Store, ready: list[str]
) -> None:
    l2inv("claim", ready[0])
    for dataset in store.datasets:
        if dataset["observingProgramExecutionId"] == ready[0]:
            dataset["aoLocked"] = 0
    l2inv("scan")
    found = l2inv.json("show", ready[0])
    assert (found["state"], found["assignee"]) == ("working", "han")
    event = l2inv.json("history", ready[0])["events"][-1]
    assert event["state"] is None
    assert event["detail"]["affects_verdict"] is True


def test_a_dataset_that_moves_to_another_op_is_recorded_for_both(
    l2inv: Commands, store: Store, ready: list[str]
) -> None:
    here, there = ready[:2]
    dataset = next(
        d
        for d in store.datasets
        if d["observingProgramExecutionId"] == here and d["instrumentName"] == "VISP"
    )
    dataset["observingProgramExecutionId"] = there
    l2inv("scan")
    name = dataset["datasetId"]
    assert l2inv.json("history", here)["events"][-1]["detail"]["left"] == [name]
    assert l2inv.json("history", there)["events"][-1]["detail"]["new"] == [name]
    assert name not in {d["dataset_id"] for d in l2inv.json("show", here)["datasets"]}


def test_an_unreadable_record_is_quarantined_once_and_reported_every_time(
    l2inv: Commands, store: Store, connection: Connection
) -> None:
    first, again = l2inv("-q", "scan"), l2inv("-q", "scan")
    assert first.stdout == again.stdout == ""
    assert "3 records could not be read" in first.stderr
    assert again.stderr == first.stderr
    records = l2inv.json("quarantine")["records"]
    assert len(records) == counts(connection)["quarantined"] == 3
    assert {"dataset_id", "reason", "first_seen", "last_seen"} <= set(records[0])
    assert any("no observingProgramExecutionId" in r["reason"] for r in records)
    assert all(r["first_seen"] < r["last_seen"] for r in records)


def test_two_different_records_of_one_dataset_keep_the_first(
    l2inv: Commands, store: Store, connection: Connection
) -> None:
    l2inv("scan")
    before = counts(connection)
    store.datasets.append(store.datasets[-1] | {"aoLocked": 123})
    for _ in range(2):
        report = l2inv.json("scan")
        assert report["datasets"]["changed"] == 0
        assert counts(connection)["versions"] == before["versions"]
    assert any("second, different record" in r["reason"] for r in l2inv.json("quarantine")["records"])


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_a_saved_answer_is_read_from_a_file(
    l2inv: Commands, store: Store, tmp_path: Path, suffix: str
) -> None:
    answer = json.dumps({"data": {"datasetInventories": store.datasets}}).encode()
    path = tmp_path / f"saved answer{suffix}"
    path.write_bytes(gzip.compress(answer) if suffix.endswith(".gz") else answer)
    l2inv("scan")
    l2inv.settings["metadata_store"] = {"url": path.name}
    l2inv.save()
    report = l2inv.json("scan")
    assert report["datasets"]["seen"] == len(store.datasets)
    assert report["datasets"]["new"] == report["datasets"]["changed"] == 0


def test_the_store_is_asked_only_for_fields_that_it_has(
    store_url: str, l2inv: Commands, store: Store
) -> None:
    l2inv("scan")
    assert {name for name, _ in store.requests} <= {"Datasets", "Count"}


FAULTS = {
    "500": (Fault(status=500), "answers 500"),
    "401": (Fault(status=401), "access denied"),
    "html": (Fault(body=b"<html>maintenance</html>"), "not GraphQL's JSON"),
    "errors": (Fault(body=b'{"errors": [{"message": "Cannot query field"}]}'), "Cannot query field"),
    "no data": (Fault(body=b'{"data": null}'), "has no dataset"),
    "dropped": (Fault(drop="before"), "metadata store http"),
    "truncated": (Fault(drop="midway"), "metadata store http"),
    "redirect": (Fault(status=302, headers=(("Location", "http://example.invalid/"),)), "answers 302"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_store_that_fails_is_one_line_and_exit_code_1_and_writes_nothing(
    l2inv: Commands, store: Store, connection: Connection, name: str
) -> None:
    fault, said = FAULTS[name]
    store.fault = lambda operation, nth: fault
    answer = l2inv("scan", expect=1)
    assert answer.stdout == ""
    assert said in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert counts(connection) == {"events": 0, "versions": 0, "quarantined": 0}
    assert said in l2inv("scan", "--json", expect=1).json["error"]["message"]


@pytest.mark.parametrize("bad", ['{"datasetId": "BADONE", "aoLocked": NaN}', '{"datasetId": "B\\ud800"}'])
def test_one_record_that_is_no_json_sinks_no_page(
    l2inv: Commands, store: Store, tmp_path: Path, bad: str
) -> None:
    answer = json.dumps({"data": {"datasetInventories": [*store.datasets, "PLACE"]}}).replace('"PLACE"', bad)
    path = tmp_path / "answer.json"
    path.write_text(answer)
    l2inv.settings["metadata_store"] = {"url": str(path)}
    l2inv.save()
    report = l2inv.json("scan")
    assert report["datasets"]["new"] == len(store.datasets) - 3
    assert report["datasets"]["quarantined"] == 4


def test_a_saved_answer_of_datasets_superseded_since_withdraws_them(
    l2inv: Commands, store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "answer.json"
    l2inv.settings["metadata_store"] = {"url": str(path)}
    l2inv.save()
    path.write_text(json.dumps({"data": {"datasetInventories": store.datasets}}))
    assert l2inv.json("scan")["datasets"]["withdrawn"] == 0
    store.datasets[0]["status"], store.datasets[1]["status"] = "DEPRECATED", "REMOVED"
    path.write_text(json.dumps({"data": {"datasetInventories": store.datasets}}))
    report = l2inv.json("scan")
    assert report["datasets"]["withdrawn"] == 2
    assert report["datasets"]["seen"] == len(store.datasets) - 2


def test_secrets_in_the_stores_url_or_a_spoilt_token_are_never_shown(
    l2inv: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    l2inv.settings["metadata_store"] = {
        "url": "http://user:secretpw@127.0.0.1:9/graphql?token=secretpw",
        "retries": 0,
    }
    l2inv.save()
    for answer in (l2inv("-vv", "scan", expect=None), l2inv("scan", "--json", expect=None), l2inv("status")):
        assert "secretpw" not in answer.stdout + answer.stderr
    monkeypatch.setenv("L2INV_TEST_TOKEN", "secrettoken\n")
    l2inv.settings["metadata_store"] = {"url": "http://127.0.0.1:9/", "token_env": "L2INV_TEST_TOKEN"}
    l2inv.save()
    for argv in (["-vv", "scan"], ["config", "check"], ["scan", "--json"]):
        answer = l2inv(*argv, expect=10)
        assert "are invalid in an HTTP header" in answer.stdout + answer.stderr
        assert "secrettoken" not in answer.stdout + answer.stderr


def test_an_unreachable_store_is_one_line_and_exit_code_1(l2inv: Commands) -> None:
    l2inv.settings["metadata_store"] = {"url": "http://127.0.0.1:9/graphql", "retries": 0}
    l2inv.save()
    assert "Connection refused" in l2inv("scan", expect=1).stderr


def test_a_scan_in_which_the_store_fails_keeps_what_was_read_and_is_incomplete(
    l2inv: Commands, store: Store, connection: Connection
) -> None:
    l2inv.settings["metadata_store"]["page_size"] = 20
    l2inv.settings["metadata_store"]["parallel_pages"] = 1  # the first two to arrive are the first two pages
    l2inv.save()
    store.fault = lambda operation, nth: Fault(status=500) if nth > 2 else None
    answer = l2inv("scan", "--json", expect=1)
    assert answer.json["complete"] is False
    assert counts(connection)["versions"] == answer.json["datasets"]["new"] > 0
    store.fault = None
    assert l2inv.json("scan")["complete"] is True
    assert counts(connection)["versions"] == len(store.datasets) - 3


def test_a_token_goes_to_the_store_from_the_environment_and_nowhere_else(
    l2inv: Commands, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.token = "s3cret-token"
    assert "token_env" in l2inv("scan", expect=1).stderr
    l2inv.settings["metadata_store"]["token_env"] = "L2INV_TEST_TOKEN"
    l2inv.save()
    assert "L2INV_TEST_TOKEN" in l2inv("scan", expect=10).stderr
    monkeypatch.setenv("L2INV_TEST_TOKEN", "wrong-token")
    assert "wrong-token" not in l2inv("-vv", "scan", expect=1).stderr
    monkeypatch.setenv("L2INV_TEST_TOKEN", "s3cret-token")
    assert "s3cret" not in l2inv("-vv", "scan", "--json").stdout


REAL = Path(__file__).parents[3] / "shared" / "real"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real inventories are not at hand")
@pytest.mark.parametrize(
    ("name", "datasets", "ops"),
    [("inventory-2023-10.json", 511, 126), ("inventory-2025-pid_2_126.json", 95, 8)],
)
def test_real_inventories_are_read_whole(l2inv: Commands, name: str, datasets: int, ops: int) -> None:
    l2inv.settings["metadata_store"] = {"url": str(REAL / name)}
    l2inv.save()
    report = l2inv.json("scan")
    assert report["datasets"]["seen"] == report["datasets"]["new"] == datasets
    assert report["ops"]["new"] == ops
