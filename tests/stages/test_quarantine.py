"""The quarantine: each unreadable record once, as received, until it can be read or is gone."""

import json

from l2inv.database.connection import Connection
from l2inv.domain import drift, inventory
from l2inv.sample.server import Store
from tests.helpers.commands import Commands
from tests.helpers.steps import visp


def test_a_record_that_became_readable_resolves_itself(
    l2inv: Commands, store: Store, ready: list[str]
) -> None:
    dataset = visp(store, ready[0])[0]
    dataset["frameCount"] = -1
    l2inv("scan")
    (record,) = [r for r in l2inv.json("quarantine")["records"] if r["dataset_id"] == dataset["datasetId"]]
    assert "frameCount" in record["reason"]
    dataset["frameCount"] = 100
    l2inv("scan")
    assert dataset["datasetId"] not in [r["dataset_id"] for r in l2inv.json("quarantine")["records"]]
    shown = l2inv.json("quarantine", record["key"])["records"]
    assert [r["resolved_at"] is not None for r in shown] == [True]


def test_a_record_that_left_the_store_is_resolved_and_one_that_comes_back_is_open_again(
    l2inv: Commands, store: Store
) -> None:
    l2inv("scan")
    stray = next(d for d in store.datasets if d["observingProgramExecutionId"] is None)
    store.datasets.remove(stray)
    l2inv("scan")
    assert len(l2inv.json("quarantine")["records"]) == 2
    store.datasets.append(stray)
    l2inv("scan")
    assert len(l2inv.json("quarantine")["records"]) == 3


def test_a_record_is_shown_raw_by_its_key_or_dataset(l2inv: Commands, store: Store) -> None:
    l2inv("scan")
    stray = next(d for d in store.datasets if d["observingProgramExecutionId"] is None)
    (record,) = l2inv.json("quarantine", stray["datasetId"])["records"]
    assert json.loads(record["raw"])["datasetId"] == stray["datasetId"]
    assert l2inv.json("quarantine", record["key"])["records"] == [record]
    assert "it belongs to no OP" in l2inv("quarantine", stray["datasetId"]).stdout
    l2inv("quarantine", "nothing", expect=3)
    l2inv("quarantine", stray["datasetId"], "--read-again", expect=2)


def test_after_an_upgrade_what_was_set_aside_is_read_again(
    l2inv: Commands, store: Store, connection: Connection
) -> None:
    l2inv("scan")
    raw = store.datasets[0] | {"datasetId": "LATER", "productId": None}
    connection.execute(
        "insert into l2inv.quarantine (raw_hash, dataset_id, reason, raw) values ('x', 'LATER', 'an old reader', %s)",
        [json.dumps(raw).encode()],
    )
    report = l2inv.json("quarantine", "--read-again")
    assert (report["datasets"]["new"], report["datasets"]["quarantined"]) == (1, 3)
    assert len(l2inv.json("quarantine")["records"]) == 3
    op = store.datasets[0]["observingProgramExecutionId"]
    assert "LATER" in [d["dataset_id"] for d in l2inv.json("show", op)["datasets"]]


def test_an_id_that_holds_a_nul_is_set_aside_like_any_other(l2inv: Commands, store: Store) -> None:
    store.datasets[5]["datasetId"] = "AB\0C"
    assert l2inv.json("scan")["datasets"]["quarantined"] == 4


def test_reading_the_quarantine_again_is_no_scan_of_the_store(l2inv: Commands) -> None:
    l2inv("quarantine", "--read-again")
    assert l2inv.json("scan", "--since-last")["since"] is None


def test_every_null_that_the_schema_allows_is_survived(l2inv: Commands, store: Store) -> None:
    needed = {"datasetId", "observingProgramExecutionId", "createDate", "status", "bucket", "productId"}
    needed |= {"primaryProposalId", "frameCount"}
    for dataset in store.datasets:
        for name in dataset.keys() - needed:
            if not isinstance(dataset[name], (list, int)) or isinstance(dataset[name], bool):
                dataset[name] = None
    report = l2inv.json("scan")
    assert report["datasets"]["quarantined"] == 3 - 1  # the NUL character was in a description
    l2inv("qualify", "--as-of", "2100-01-01")
    assert l2inv.json("status")["states"]["invertible"] == 0


def test_signs_of_drift_are_warned_about_with_counts_and_an_example(l2inv: Commands, store: Store) -> None:
    assert l2inv("-q", "scan").stderr.count("\n") == 1
    for dataset in store.datasets:
        dataset["startTime"] = None
        if dataset["instrumentName"] == "VISP" and dataset["wavelengthMin"]:
            dataset["wavelengthMin"] *= 10
    store.datasets[5]["instrumentName"] = "NEW-CAM"
    answer = l2inv("scan", "--json")
    warnings = "\n".join(answer.json["warnings"])
    assert "start_time is null in all" in warnings
    assert f"unknown instrument 'NEW-CAM' in 1 datasets, such as {store.datasets[5]['datasetId']}" in warnings
    assert "wavelength_min of VISP moved by a factor of 10" in warnings
    assert all(warning in answer.stderr for warning in answer.json["warnings"])
    again = l2inv.json("scan")["warnings"]
    assert [w for w in again if "moved" in w or "is null" in w] == []


def test_a_new_key_of_the_counts_is_a_sign_of_drift() -> None:
    profile = drift.Profile()
    raw = {
        "datasetId": "A", "observingProgramExecutionId": "op", "createDate": "2026-01-01T00:00:00",
        "health": {"good": 1, "splendid": 4}, "gosStatus": {"ajar": 1},
    }  # fmt: skip
    record = inventory.read(json.dumps(raw).encode())
    assert isinstance(record, inventory.Record)
    profile.examine(record)
    assert drift.warnings(profile, None, True) == [
        "unknown gos_status key 'ajar' in 1 datasets, such as A",
        "unknown health key 'splendid' in 1 datasets, such as A",
    ]
