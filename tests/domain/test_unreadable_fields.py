"""An unreadable field quarantines a record only if a verdict depends on it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l2inv.config.settings import Qualification
from l2inv.domain import criteria, inventory
from l2inv.domain.inventory import DISPLAYED, Record, Unreadable
from l2inv.sample.inventory import make
from l2inv.sample.server import Fault, Store
from tests.helpers.commands import Commands

ASKED = dict(
    zip(inventory.Dataset.__struct_encode_fields__, inventory.Dataset.__struct_fields__, strict=True)
)
CAMEL = {snake: camel for camel, snake in ASKED.items()}
BASE: dict[str, Any] = next(
    {name: value for name, value in row.items() if name in ASKED}
    for row in make(ops=3)
    if row["instrumentName"] == "VISP" and row["friedParameter"] and row["health"]["good"]
)
NAN = float("nan")


def read(**but: Any) -> Record:
    found = inventory.read(json.dumps(BASE | but).encode())
    assert isinstance(found, Record), found
    return found


def unread(**but: Any) -> Unreadable:
    found = inventory.read(json.dumps(BASE | but).encode())
    assert isinstance(found, Unreadable)
    return found


BAD: list[Any] = [
    NAN,
    float("inf"),
    {"min": NAN, "med": 0.1},
    {"min": "0.1"},
    [1, 2],
    True,
    "half a pair \ud800",
    "a\0b",
]


@pytest.mark.parametrize("value", BAD, ids=map(ascii, BAD))
@pytest.mark.parametrize("name", DISPLAYED)
def test_a_displayed_field_that_cannot_be_read_is_null_for_itself_alone(name: str, value: Any) -> None:
    found = read(**{CAMEL[name]: value})
    assert found.unreadable == (name,)
    assert found.dataset == read(**{CAMEL[name]: None}).dataset
    assert found.content_hash == read(**{CAMEL[name]: None}).content_hash


def test_several_fields_that_cannot_be_read_are_each_named() -> None:
    found = read(friedParameter="none", exposureTime={}, browseMovieUrl=5, infoUrl=NAN)
    assert found.unreadable == ("browse_movie_url", "exposure_time", "fried_parameter")
    assert found.dataset.light_level == read().dataset.light_level is not None


@pytest.mark.parametrize("name", ["friedParameter", "lightLevel", "health", "gosStatus"])
def test_an_object_that_arrives_as_its_json_string_is_read(name: str) -> None:
    found = read(**{name: json.dumps(BASE[name])})
    assert (found.content_hash, found.unreadable) == (read().content_hash, ())


def test_a_number_that_arrives_as_its_text_is_read() -> None:
    assert read(exposureTime="12.5").dataset.exposure_time == 12.5


@pytest.mark.parametrize("spelled", [str.upper, str.capitalize, str.swapcase])
@pytest.mark.parametrize("as_text", [False, True])
def test_the_keys_of_the_counts_are_read_in_any_case(spelled: Any, as_text: bool) -> None:
    counts = {name: {spelled(key): n for key, n in BASE[name].items()} for name in ("health", "gosStatus")}
    found = read(**{name: json.dumps(value) if as_text else value for name, value in counts.items()})
    assert found.content_hash == read().content_hash
    verdict = criteria.judge([found.dataset], Qualification())
    results = {c["name"]: c["result"] for c in verdict["instrument_programs"][0]["criteria"]}
    assert (results["health"], results["gos"]) == ("pass", "pass")


def test_a_key_in_two_spellings_is_no_count() -> None:
    assert "health has a key twice" in unread(health={"good": 3, "GOOD": 5}).reason


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("aoLocked", NAN), ("frameCount", NAN), ("health", {"good": NAN}), ("health", "good"), ("gosStatus", [1]),
        ("wavelengthMin", NAN), ("startTime", "soon"), ("stokesParameters", 5), ("boundingBox", 7),
        ("observingProgramExecutionId", 7), ("createDate", None),
    ],
)  # fmt: skip
def test_a_bad_field_needed_for_identity_or_verdict_quarantines_the_record_under_its_id(
    name: str, value: Any
) -> None:
    found = unread(**{name: value, "friedParameter": NAN})
    assert found.dataset_id == BASE["datasetId"]
    assert b'"friedParameter": NaN' in found.raw, "as it was received"


TEXT = st.text(st.sampled_from('ab0"{}\\\0é\ud800'), max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | st.just("med"), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    values=st.fixed_dictionaries({}, optional={CAMEL[name]: JSON for name in DISPLAYED}),
    as_text=st.booleans(),
)
def test_whatever_the_displayed_fields_contain_the_rest_is_read(
    values: dict[str, Any], as_text: bool
) -> None:
    if as_text:
        values = {name: json.dumps(value) for name, value in values.items()}
    found = read(**values)
    for snake in found.dataset.__struct_fields__:
        if CAMEL[snake] not in values:
            assert getattr(found.dataset, snake) == getattr(read().dataset, snake)
        elif snake in found.unreadable:
            assert getattr(found.dataset, snake) is None
    assert {CAMEL[name] for name in found.unreadable} <= values.keys()


def test_a_scan_counts_the_fields_that_it_cannot_read_and_keeps_the_records(
    l2inv: Commands, store: Store, tmp_path: Path
) -> None:
    l2inv("scan")
    for row in store.datasets[:3]:
        row["friedParameter"] = {"min": 0.1, "med": NAN}
    store.datasets[4] |= {"exposureTime": "long", "lightLevel": json.dumps(store.datasets[4]["lightLevel"])}

    def fault(name: str, nth: int) -> Fault | None:
        body = json.dumps({"data": {"datasetInventories": store.datasets}}).encode()
        return Fault(body=body) if name == "Datasets" else None

    store.fault = fault
    answer = l2inv("scan", "--json")
    report = answer.json
    assert report["complete"] is True
    assert report["datasets"]["quarantined"] == 3
    assert report["datasets"]["changed"] == 4
    assert report["unreadable_fields"] == {"exposure_time": 1, "fried_parameter": 3}
    example = store.datasets[0]["datasetId"]
    said = f"fried_parameter cannot be read in 3 datasets, such as {example}: it counts as null there"
    assert said in report["warnings"]
    assert f"scan: {said}" in answer.stderr
    again = l2inv.json("scan")
    assert again["datasets"]["changed"] == 0
    assert again["unreadable_fields"] == report["unreadable_fields"]
    assert said in again["warnings"]
    store.fault = None
    store.datasets[4]["exposureTime"] = 5.0
    for row in store.datasets[:3]:
        row["friedParameter"] = None
    store.datasets[4]["lightLevel"] = json.loads(store.datasets[4]["lightLevel"])
    assert l2inv.json("scan")["unreadable_fields"] == {}
