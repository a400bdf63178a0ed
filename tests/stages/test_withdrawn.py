"""Datasets that leave the store: recorded as withdrawn, but never because the store failed."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l2inv.config.settings import Database, MetadataStore, Settings
from l2inv.database.connection import Connection
from l2inv.sample.server import Fault, Store
from l2inv.stages.scan import scan
from tests.helpers.commands import AS_OF, Commands
from tests.helpers.steps import visp


def last_event(l2inv: Commands, op: str) -> dict[str, Any]:
    event: dict[str, Any] = l2inv.json("history", op)["events"][-1]
    return event


def test_a_dataset_that_left_the_store_is_a_version_and_not_a_deletion(
    l2inv: Commands, store: Store, ready: list[str], connection: Connection
) -> None:
    gone = visp(store, ready[0])[0]
    store.datasets.remove(gone)
    report = l2inv.json("scan")
    assert (report["datasets"]["withdrawn"], report["ops"]["changed"]) == (1, 1)
    versions = connection.execute(
        "select version, withdrawn, content_hash from l2inv.dataset_version where dataset_id = %s order by version",
        [gone["datasetId"]],
    ).fetchall()
    assert [(v["version"], v["withdrawn"]) for v in versions] == [(1, False), (2, True)]
    event = last_event(l2inv, ready[0])
    assert (event["kind"], event["state"]) == ("datasets_changed", "discovered")
    pin = f"2:{versions[1]['content_hash'].hex()[:16]}"
    assert event["detail"] == {
        "affects_verdict": True,
        "withdrawn": {gone["datasetId"]: None},
        "versions": {gone["datasetId"]: pin},
    }
    l2inv(*AS_OF)
    assert gone["datasetId"] not in last_event(l2inv, ready[0])["detail"]["datasets"]
    assert l2inv.json("scan")["datasets"]["withdrawn"] == 0


def test_a_dataset_that_comes_back_is_a_new_version(l2inv: Commands, store: Store, ready: list[str]) -> None:
    gone = visp(store, ready[0])[0]
    store.datasets.remove(gone)
    l2inv("scan")
    store.datasets.append(gone)
    assert l2inv.json("scan")["datasets"]["changed"] == 1
    assert last_event(l2inv, ready[0])["detail"]["new"] == [gone["datasetId"]]
    found = {d["dataset_id"]: d for d in l2inv.json("show", ready[0])["datasets"]}
    assert (found[gone["datasetId"]]["version"], found[gone["datasetId"]]["withdrawn"]) == (3, False)


def test_a_reprocessed_dataset_is_superseded_by_the_new_one_of_its_product(
    l2inv: Commands, store: Store, ready: list[str]
) -> None:
    old = visp(store, ready[0])[0]
    store.datasets.remove(old)
    store.datasets.append(old | {"datasetId": "REDONE"})
    l2inv("scan")
    detail = last_event(l2inv, ready[0])["detail"]
    assert detail["withdrawn"] == {old["datasetId"]: "REDONE"}
    assert detail["new"] == ["REDONE"]
    l2inv(*AS_OF)
    assert l2inv.json("show", ready[0])["state"] == "invertible"


def test_the_holder_of_an_op_sees_that_its_datasets_changed(
    l2inv: Commands, store: Store, ready: list[str]
) -> None:
    l2inv("claim", ready[0], actor="han")
    store.datasets.remove(visp(store, ready[0])[0])
    l2inv("scan")
    assert l2inv.json("show", ready[0])["state"] == "working"
    assert l2inv.json("show", ready[0])["inputs_changed"] is True
    assert ready[0] in l2inv("next", actor="han").stderr
    assert ready[0] not in l2inv("next", actor="ann").stderr
    assert ready[0] in l2inv("status").stdout
    assert [op["op_id"] for op in l2inv.json("status")["inputs_changed"]] == [ready[0]]
    assert "changed since the verdict" in l2inv("show", ready[0]).stdout
    l2inv("release", ready[0])
    assert ready[0] not in [op["op_id"] for op in l2inv.json("next", "-n", "100")["ops"]]
    l2inv(*AS_OF)
    assert l2inv.json("show", ready[0])["inputs_changed"] is False


def test_a_scan_that_would_withdraw_too_many_stops_before_writing_and_names_the_option_to_allow_it(
    l2inv: Commands, store: Store, ready: list[str], connection: Connection
) -> None:
    before = connection.execute("select count(*) as n from l2inv.dataset_version").fetchone()
    store.datasets[:] = store.datasets[: len(store.datasets) // 2]
    store.datasets[0]["aoLocked"] = 1
    answer = l2inv("scan", expect=1)
    assert "are gone from it, more than 20; nothing was written" in answer.stderr
    assert "l2inv scan --allow-withdrawals" in answer.stderr
    assert connection.execute("select count(*) as n from l2inv.dataset_version").fetchone() == before
    assert l2inv.json("scan", "--allow-withdrawals")["datasets"]["withdrawn"] > 20


def test_a_store_that_answers_with_nothing_withdraws_nothing(
    l2inv: Commands, store: Store, ready: list[str]
) -> None:
    store.datasets.clear()
    l2inv("scan", expect=1)
    assert l2inv.json("next")["ops"] != []


def test_a_dataset_that_turned_unreadable_is_not_gone(
    l2inv: Commands, store: Store, ready: list[str]
) -> None:
    visp(store, ready[0])[0]["frameCount"] = -1
    report = l2inv.json("scan")
    assert (report["datasets"]["withdrawn"], report["datasets"]["quarantined"]) == (0, 4)
    assert l2inv.json("show", ready[0])["state"] == "preprocessed"


def test_a_page_that_shifts_while_it_is_read_loses_nothing(
    l2inv: Commands, store: Store, ready: list[str]
) -> None:
    """What leaves the store moves the rest up a page: one dataset is on neither page that is read."""
    l2inv.settings["metadata_store"] |= {"page_size": 50, "parallel_pages": 1}
    l2inv.save()

    def leave(operation: str, nth: int) -> Fault | None:
        if operation == "Datasets" and nth == pages_before + 2:
            store.datasets.sort(key=lambda d: d["createDate"])
            left.append(store.datasets.pop(0)["datasetId"])
        return None

    left: list[str] = []
    pages_before = sum(name == "Datasets" for name, _ in store.requests)
    store.fault = leave
    report = l2inv.json("scan")
    assert report["complete"] is True
    assert len(left) == 1
    assert report["datasets"]["withdrawn"] == 0
    store.fault = None
    assert l2inv.json("scan")["datasets"]["withdrawn"] == 1


def test_a_page_that_shifts_on_the_first_scan_is_read_again(l2inv: Commands, store: Store) -> None:
    l2inv.settings["metadata_store"] |= {"page_size": 50, "parallel_pages": 1}
    l2inv.save()

    def leave(operation: str, nth: int) -> Fault | None:
        if operation == "Datasets" and nth == 2:
            store.datasets.sort(key=lambda d: d["createDate"])
            del store.datasets[0]
        return None

    store.fault = leave
    report = l2inv.json("scan")
    assert (report["complete"], report["datasets"]["seen"]) == (True, len(store.datasets) + 1)


def test_a_store_that_holds_duplicates_is_read_whole_all_the_same(l2inv: Commands, store: Store) -> None:
    store.datasets.append(dict(store.datasets[3]))
    report = l2inv.json("scan")
    assert (report["complete"], report["datasets"]["seen"]) == (True, len(store.datasets) - 1)


def test_a_store_that_never_holds_still_gives_an_incomplete_scan_that_keeps_what_it_read(
    l2inv: Commands, store: Store
) -> None:
    store.fault = lambda operation, nth: (
        Fault(body=b'{"data": {"datasetInventoriesRecordCount": {"recordCount": 999999}}}')
        if operation != "Datasets"
        else None
    )
    answer = l2inv("scan", "--json", expect=1)
    assert answer.json["complete"] is False
    assert "it may be changing" in answer.stderr
    assert answer.json["datasets"]["new"] > 100
    store.fault = None
    assert l2inv.json("scan")["datasets"]["new"] == 0


def test_an_incremental_scan_reads_what_changed_and_withdraws_nothing(
    l2inv: Commands, store: Store, ready: list[str]
) -> None:
    for dataset in store.datasets:
        dataset["updateDate"] = "2020-01-01T00:00:00"
    l2inv("scan")
    changed, gone = visp(store, ready[0])[0], visp(store, ready[1])[0]
    changed |= {"aoLocked": 0, "updateDate": "2099-01-01T00:00:00"}
    store.datasets.remove(gone)
    report = l2inv.json("scan", "--since-last")
    assert report["datasets"] == {
        "seen": 1, "new": 0, "changed": 1, "unchanged": 0, "withdrawn": 0, "quarantined": 0,
    }  # fmt: skip
    assert report["since"].endswith("Z") or "+00:00" in report["since"]
    assert l2inv.json("scan")["datasets"]["withdrawn"] == 1


def test_without_a_complete_scan_before_it_an_incremental_one_reads_everything(
    l2inv: Commands, store: Store
) -> None:
    report = l2inv.json("scan", "--since-last")
    assert report["since"] is None
    assert report["datasets"]["seen"] == len(store.datasets)


def content(op: int, kind: int) -> dict[str, Any]:
    """One of three contents of a dataset."""
    return {
        "observingProgramExecutionId": f"op{op}", "createDate": "2026-01-01T00:00:00", "instrumentName": "VISP",
        "instrumentProgramExecutionId": f"id.{op}", "productId": None, "frameCount": kind,
    }  # fmt: skip


STORES = st.lists(
    st.dictionaries(st.sampled_from(["A", "B", "C", "D"]), st.tuples(st.integers(0, 1), st.integers(0, 2))),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("schema", ["l2inv"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stores=STORES)
def test_any_sequence_of_scans_ends_as_one_scan_of_the_last_content_with_nothing_lost_or_twice(
    connection: Connection, tmp_path: Any, stores: list[dict[str, tuple[int, int]]], schema: str
) -> None:
    import json

    answer = tmp_path / "answer.json"
    configured = Settings(database=Database(url="unused"), metadata_store=MetadataStore(url=str(answer)))
    with connection.transaction(force_rollback=True):
        for inventory in stores:
            rows = [{"datasetId": name} | content(*kind) for name, kind in inventory.items()]
            answer.write_text(json.dumps({"data": {"datasetInventories": rows}}))
            scan.scan(connection, configured, "cron")
            before = connection.execute("select count(*) as n from l2inv.event").fetchone()
            assert scan.scan(connection, configured, "cron").ops.changed == 0
            assert connection.execute("select count(*) as n from l2inv.event").fetchone() == before
        now = connection.execute(
            "select dataset_id, op_id, record from l2inv.dataset where not withdrawn"
        ).fetchall()
        assert {d["dataset_id"]: (d["op_id"], d["record"]["frameCount"]) for d in now} == {
            name: (f"op{op}", kind) for name, (op, kind) in stores[-1].items()
        }
        ever = connection.execute("select op_id from l2inv.op_state order by op_id").fetchall()
        assert [o["op_id"] for o in ever] == sorted({f"op{op}" for s in stores for op, _ in s.values()})
        versions = connection.execute(
            "select dataset_id, count(*) as n, max(version) as newest from l2inv.dataset_version group by 1"
        ).fetchall()
        for row in versions:
            assert row["n"] == row["newest"] == changes(stores, row["dataset_id"])


def changes(stores: list[dict[str, tuple[int, int]]], name: str) -> int:
    """How many versions a dataset must have: one for each time that it appeared, changed or left."""
    count, present = 0, None
    for inventory in stores:
        now = inventory.get(name)
        count += now != present
        present = now
    return count
