"""A scan is complete when every id came once, whatever a store repeats, reorders or fails to send."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from l2inv.errors import StoreRefused
from l2inv.sample.inventory import ACTIVE
from l2inv.sample.server import Fault, Store
from l2inv.sample.store import execute
from l2inv.services import graphql, metadata_store
from tests.helpers.commands import Commands

PAGE = 20


@pytest.fixture
def scans(l2inv: Commands) -> Commands:
    """The commands, page by page."""
    l2inv.settings["metadata_store"] |= {"page_size": PAGE, "parallel_pages": 1}
    l2inv.save()
    return l2inv


def page(store: Store, asked: dict[str, Any], **but: Any) -> list[dict[str, Any]]:
    answer = execute(store, metadata_store.DATASETS.text, {"filter": asked | but})
    found: list[dict[str, Any]] = answer["data"]["datasetInventories"]
    return found


def on_pages(
    store: Store, given: Callable[[list[dict[str, Any]], dict[str, Any]], list[dict[str, Any]] | None]
) -> None:
    """Has the store give something else for a page than the page; None leaves it."""

    def fault(name: str, nth: int) -> Fault | None:
        asked = store.requests[-1][1]["filter"]
        if name != "Datasets" or "datasetIds" in asked:
            return None
        rows = given(page(store, asked), asked)
        if rows is None:
            return None
        return Fault(body=json.dumps({"data": {"datasetInventories": rows}}).encode())

    store.fault = fault


def counting(store: Store, number: int) -> None:
    body = json.dumps({"data": {"datasetInventoriesRecordCount": {"recordCount": number}}}).encode()
    store.fault = lambda name, nth: Fault(body=body) if name == "Count" else None


def incomplete(l2inv: Commands, *argv: str) -> dict[str, Any]:
    """The report of a scan that is not complete, for the reason that stderr names, and withdraws nothing."""
    answer = l2inv("scan", *argv, "--json", expect=1)
    report: dict[str, Any] = answer.json
    assert report["complete"] is False
    assert f"scan: incomplete: {report['failed']}" in answer.stderr
    assert report["error"]["code"] == 1
    assert report["datasets"]["withdrawn"] == 0
    return report


def test_a_page_that_comes_again_and_again_is_read_once(scans: Commands, store: Store) -> None:
    on_pages(store, lambda rows, asked: page(store, asked, pageNumber=1))
    report = incomplete(scans)
    assert report["datasets"]["seen"] == PAGE
    held = len(store.datasets)
    assert f"reports {held} datasets, and returned {PAGE} different ones ({PAGE} of them" in report["failed"]


def test_nothing_is_withdrawn_of_what_an_incomplete_scan_did_not_see(scans: Commands, store: Store) -> None:
    scans("scan")
    del store.datasets[30]
    on_pages(store, lambda rows, asked: page(store, asked, pageNumber=1))
    incomplete(scans, "--allow-withdrawals")
    store.fault = None
    assert scans.json("scan")["datasets"]["withdrawn"] == 1


def test_datasets_of_one_instant_in_any_order_are_all_read(scans: Commands, store: Store) -> None:
    for row in store.datasets:
        row["createDate"] = "2025-01-01T00:00:00"
    draw = random.Random(1)
    store.fault = lambda name, nth: draw.shuffle(store.datasets)
    report = scans.json("scan")
    assert (report["complete"], report["datasets"]["seen"]) == (True, len(store.datasets))
    assert sum(name == "Count" for name, _ in store.requests) == 3, "in one pass"


def test_a_store_that_sorts_each_page_otherwise_is_not_read_to_its_end(scans: Commands, store: Store) -> None:
    scans("scan")
    del store.datasets[30]
    for row in store.datasets:
        row["datasetInventoryId"] = 7
    draw = random.Random(1)
    store.fault = lambda name, nth: draw.shuffle(store.datasets)
    report = incomplete(scans)
    assert "different ones" in report["failed"]
    assert "came more than once" in report["failed"]


@pytest.mark.parametrize("number", [0, PAGE, 2 * PAGE, 100])
def test_a_count_that_is_less_than_what_the_pages_hold_is_no_end(
    scans: Commands, store: Store, number: int
) -> None:
    counting(store, number)
    report = incomplete(scans)
    assert f"the store reports {number} datasets, and returned" in report["failed"]


def test_a_full_store_that_reports_a_count_of_zero_is_not_complete(l2inv: Commands, store: Store) -> None:
    counting(store, 0)
    assert f"reports 0 datasets, and returned {len(store.datasets)} different" in incomplete(l2inv)["failed"]


def test_a_row_in_place_of_another_is_missed(scans: Commands, store: Store) -> None:
    on_pages(store, lambda rows, asked: [*rows[:-1], rows[0]] if asked["pageNumber"] == 2 else None)
    report = incomplete(scans)
    assert report["datasets"]["seen"] == len(store.datasets) - 1
    assert "1 of them came more than once" in report["failed"]


def test_a_record_in_place_of_another_that_differs_is_missed_all_the_same(
    scans: Commands, store: Store
) -> None:
    def given(rows: list[dict[str, Any]], asked: dict[str, Any]) -> list[dict[str, Any]] | None:
        return [*rows[:-1], rows[0] | {"aoLocked": 1}] if asked["pageNumber"] == 2 else None

    on_pages(store, given)
    report = incomplete(scans)
    assert report["datasets"]["seen"] == len(store.datasets) - 1
    assert report["datasets"]["quarantined"] == 4


def test_an_unreadable_record_that_comes_again_counts_once(scans: Commands, store: Store) -> None:
    for row in store.datasets[:PAGE]:
        row["frameCount"] = -1
    on_pages(store, lambda rows, asked: page(store, asked, pageNumber=1))
    report = incomplete(scans)
    assert (report["datasets"]["seen"], report["datasets"]["quarantined"]) == (PAGE, PAGE)


@pytest.mark.parametrize("change", [{}, {"aoLocked": 1}], ids=["the same", "another"])
def test_a_store_with_a_dataset_twice_on_distant_pages_is_read_to_its_end(
    scans: Commands, store: Store, change: dict[str, Any]
) -> None:
    store.datasets.append(store.datasets[3] | {"datasetInventoryId": 9_999_999} | change)
    report = scans.json("scan")
    assert (report["complete"], report["datasets"]["seen"]) == (True, len(store.datasets) - 1)
    assert report["datasets"]["quarantined"] == 3 + bool(change)


def test_a_dataset_gone_between_two_passes_does_not_make_up_for_a_missing_one(
    scans: Commands, store: Store
) -> None:
    """A pass counts by itself: what an earlier one saw, and the store no longer holds, makes up for nothing."""
    hidden = store.datasets[50]["datasetId"]

    def given(rows: list[dict[str, Any]], asked: dict[str, Any]) -> list[dict[str, Any]]:
        if len(rows) < PAGE and len(store.datasets) == held:  # the last page of the first pass
            del store.datasets[0]
        return [row for row in rows if row["datasetId"] != hidden]

    held = len(store.datasets)
    on_pages(store, given)
    report = incomplete(scans)
    assert f"reports {held - 1} datasets, and returned {held - 2} different ones" in report["failed"]
    assert report["datasets"]["seen"] == held - 1


def test_a_store_that_counts_by_id_what_it_does_not_give_loses_nothing(scans: Commands, store: Store) -> None:
    scans("scan")
    missing = {row["datasetId"] for row in store.datasets[30:33]}

    def fault(name: str, nth: int) -> Fault | None:
        asked = store.requests[-1][1]["filter"]
        if name == "Datasets" and "datasetIds" in asked:
            return Fault(body=b'{"data": {"datasetInventories": []}}')
        hidden = name == "Count" and "datasetIds" not in asked
        for row in store.datasets:
            if row["datasetId"] in missing:
                row["status"] = "inactive" if hidden or name == "Datasets" else ACTIVE
        return None

    store.fault = fault
    assert "asked by id for 3 datasets" in incomplete(scans)["failed"]
    store.fault = None
    assert scans.json("scan")["datasets"]["withdrawn"] == 0


# An answer that tells of errors


NAN = '"datasetInventories": [{"datasetId": "A", "aoLocked": NaN}]'


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ('[{"message": "half of it is missing"}]', "half of it is missing"),
        ('[{"message": null}]', "None"),
        ('[{"message": NaN}, {"message": "x"}]', "nan"),
        ('["in words alone"]', "in words alone"),
        ('{"message": "no list"}', "no list"),
        ('"a text"', "a text"),
        ('[{"message": "half a pair \\ud800"}]', "half a pair"),
        ("[{}]", "None"),
    ],
)
@pytest.mark.parametrize("data", [f"{{{NAN}}}", '{"datasetInventories": []}', "null", "[1]", "{}"])
def test_an_answer_with_errors_is_refused_whatever_else_it_contains(
    data: str, errors: str, words: str
) -> None:
    body = f'{{"data": {data}, "errors": {errors}}}'.encode()
    with pytest.raises(StoreRefused, match=words):
        graphql.read(body, metadata_store.DATASETS, "the store")
    with pytest.raises(StoreRefused, match=words):
        graphql.read(body, metadata_store.FIND, "the store")


@pytest.mark.parametrize("errors", ["null", "[]"])
def test_an_answer_without_errors_is_read_record_by_record(errors: str) -> None:
    body = f'{{"data": {{{NAN}}}, "errors": {errors}}}'.encode()
    (record,) = graphql.read(body, metadata_store.DATASETS, "the store")
    assert b"NaN" in bytes(record)


def test_a_page_with_errors_ends_the_scan_and_is_not_read(scans: Commands, store: Store) -> None:
    def fault(name: str, nth: int) -> Fault | None:
        if name != "Datasets" or nth < 3:
            return None
        rows = page(store, store.requests[-1][1]["filter"])
        rows[0]["exposureTime"] = float("nan")
        body = {"data": {"datasetInventories": rows}, "errors": [{"message": "the rest timed out"}]}
        return Fault(body=json.dumps(body).encode())

    store.fault = fault
    report = incomplete(scans)
    assert "the rest timed out" in report["failed"]
    assert report["datasets"]["seen"] == 2 * PAGE
    assert sum(name == "Datasets" for name, _ in store.requests) == 3
