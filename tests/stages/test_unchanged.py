"""A record with the same bytes as last time is not decoded, with the same result as if it were."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from l2inv.config.settings import Database, MetadataStore, Settings
from l2inv.database.connection import Connection
from l2inv.domain import inventory
from l2inv.sample.server import Store
from l2inv.stages.scan import scan
from tests.helpers.commands import Commands

UNREADABLE = 3  # records of the sample store


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The records that are decoded from now on."""
    found: list[bytes] = []
    read = inventory.read

    def listen(raw: bytes | msgspec.Raw) -> inventory.Record | inventory.Unreadable:
        found.append(bytes(raw))
        return read(raw)

    monkeypatch.setattr(inventory, "read", listen)
    return found


def profile(connection: Connection) -> dict[str, Any]:
    row = connection.execute(
        "select result -> 'profile' as profile from l2inv.run where stage = 'scan' order by run_id desc limit 1"
    ).fetchone()
    assert row is not None
    found: dict[str, Any] = row["profile"]
    return found


def readable(store: Store) -> dict[str, Any]:
    """A record of the sample store that was read."""
    return next(d for d in store.datasets if d["instrumentName"] == "VISP" and d["frameCount"] > 0)


def test_only_what_differs_is_decoded_and_the_profile_counts_the_rest(
    l2inv: Commands, store: Store, connection: Connection, decoded: list[bytes]
) -> None:
    first = l2inv.json("scan")
    before = profile(connection)
    assert len(decoded) == len(store.datasets)
    decoded.clear()
    assert l2inv.json("scan")["datasets"] == first["datasets"] | {
        "new": 0,
        "unchanged": first["datasets"]["new"],
    }
    assert len(decoded) == UNREADABLE
    assert profile(connection) == before
    decoded.clear()
    readable(store)["aoLocked"] = 0
    assert l2inv.json("scan")["datasets"]["changed"] == 1
    assert len(decoded) == UNREADABLE + 1
    assert profile(connection)["datasets"] == before["datasets"]


def test_a_record_in_other_bytes_is_decoded_once_and_found_unchanged(
    l2inv: Commands, store: Store, decoded: list[bytes], tmp_path: Path
) -> None:
    path = tmp_path / "answer.json"
    l2inv.settings["metadata_store"] = {"url": str(path)}
    l2inv.save()
    path.write_text(json.dumps({"data": {"datasetInventories": store.datasets}}))
    unchanged = l2inv.json("scan")["datasets"]["new"]
    path.write_text(json.dumps({"data": {"datasetInventories": store.datasets}}, sort_keys=True))
    for again in (len(store.datasets), UNREADABLE):
        decoded.clear()
        report = l2inv.json("scan")["datasets"]
        assert (report["unchanged"], report["changed"], report["new"]) == (unchanged, 0, 0)
        assert len(decoded) == again


def test_another_reader_decodes_everything_again(
    l2inv: Commands, store: Store, decoded: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    l2inv("scan")
    monkeypatch.setattr(inventory, "_reader", lambda: b"reads a field more")
    decoded.clear()
    assert l2inv.json("scan")["datasets"]["changed"] == 0
    assert len(decoded) == len(store.datasets)


def test_decode_all_finds_a_change_that_a_writer_hid(
    l2inv: Commands, store: Store, connection: Connection, decoded: list[bytes]
) -> None:
    """As if the changed record had been received, and read as what is kept."""
    dataset = readable(store)
    before = dataset["aoLocked"]
    l2inv("scan")
    dataset["aoLocked"] = before + 1
    assert l2inv.json("scan")["datasets"]["changed"] == 1
    hidden = connection.execute(
        "select raw_hash from l2inv.received where dataset_id = %s", [dataset["datasetId"]]
    ).fetchone()
    assert hidden
    dataset["aoLocked"] = before
    l2inv("scan")
    connection.execute(
        "update l2inv.received set raw_hash = %s where dataset_id = %s",
        [hidden["raw_hash"], dataset["datasetId"]],
    )
    dataset["aoLocked"] = before + 1
    assert l2inv.json("scan")["datasets"]["changed"] == 0
    decoded.clear()
    assert l2inv.json("scan", "--decode-all")["datasets"]["changed"] == 1
    assert len(decoded) == len(store.datasets)
    decoded.clear()
    assert l2inv.json("scan")["datasets"]["changed"] == 0
    assert len(decoded) == UNREADABLE
    assert l2inv.json("verify")["findings"] == []


def test_a_warning_about_a_record_is_repeated_by_every_scan(l2inv: Commands, store: Store) -> None:
    readable(store)["instrumentName"] = "VISP2"
    readable(store)["friedParameter"] = "about 7 cm"
    readable(store)["createDate"] = "2099-01-01T00:00:00"
    first, again = l2inv.json("scan"), l2inv.json("scan")
    assert len(first["warnings"]) >= 3
    assert again["warnings"] == first["warnings"]
    assert again["unreadable_fields"] == first["unreadable_fields"] == {"fried_parameter": 1}


def test_a_dataset_that_was_unreadable_for_a_while_is_decoded_when_it_is_back(
    l2inv: Commands, store: Store, decoded: list[bytes], connection: Connection
) -> None:
    dataset = readable(store)
    frames = dataset["frameCount"]
    l2inv("scan")
    dataset["frameCount"] = -1
    assert l2inv.json("scan")["datasets"]["quarantined"] == UNREADABLE + 1
    dataset["frameCount"] = frames
    decoded.clear()
    assert l2inv.json("scan")["datasets"]["quarantined"] == UNREADABLE
    assert len(decoded) == UNREADABLE + 1
    row = connection.execute(
        "select count(*) as open from l2inv.unresolved where dataset_id = %s", [dataset["datasetId"]]
    ).fetchone()
    assert row == {"open": 0}


def record(name: str, op: int, frames: int, day: int) -> dict[str, Any]:
    """A record of a dataset, unreadable where the frames are negative."""
    return {
        "datasetId": name, "observingProgramExecutionId": f"op{op}", "createDate": "2026-01-01T00:00:00",
        "instrumentName": "VISP", "frameCount": frames, "updateDate": f"2026-01-{day:02}T00:00:00",
    }  # fmt: skip


RECORDS = st.builds(record, st.sampled_from("ABC"), st.integers(0, 1), st.integers(-1, 2), st.integers(1, 3))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stores=st.lists(st.lists(RECORDS, min_size=1, max_size=6), min_size=2, max_size=4))
@example(
    stores=[
        [record("A", 0, 0, 1)],
        [record("A", 1, 1, 1), *[record("A", 0, 0, 1)] * 3, record("A", 1, 1, 1)],
    ]
)
def test_scans_end_the_same_whether_they_know_the_bytes_or_decode_everything(
    connection: Connection, tmp_path: Path, stores: list[list[dict[str, Any]]]
) -> None:
    """With records of one dataset that contradict each other, on one page and on several, and some unreadable."""
    answer = tmp_path / "answer.json"
    configured = Settings(
        database=Database(url="unused"), metadata_store=MetadataStore(url=str(answer), page_size=3)
    )

    def outcome(forgetting: bool = False, decode_all: bool = False) -> list[Any]:
        with connection.transaction(force_rollback=True):
            reports = []
            for records in stores:
                if forgetting:
                    connection.execute("delete from l2inv.received")
                answer.write_text(json.dumps({"data": {"datasetInventories": records}}))
                report = scan.scan(connection, configured, "cron", decode_all=decode_all)
                reports.append((report.datasets, report.ops, profile(connection)))
            return reports + [
                connection.execute(query).fetchall()
                for query in (
                    "select dataset_id, version, op_id, record, withdrawn from l2inv.dataset_version order by 1, 2",
                    "select op_id, seq, kind, state, detail from l2inv.event order by 1, 2",
                    "select dataset_id, raw, reason, resolved_at is null as open from l2inv.quarantine order by 1, 2",
                )
            ]

    assert outcome() == outcome(forgetting=True) == outcome(decode_all=True)
