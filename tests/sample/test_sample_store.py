"""The sample metadata store: as odd as the real one, with the same failures."""

import gzip
import http.client
import json
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import requests

from l2inv.config.settings import Band, Qualification
from l2inv.domain import criteria
from l2inv.domain.inventory import Dataset, Record, Unreadable, read
from l2inv.errors import L2invError
from l2inv.sample import store as graphql_store
from l2inv.sample.inventory import NOW, make
from l2inv.sample.server import Fault, Store, serving
from l2inv.sample.store import execute, schema

Values = dict[str, Any]

SAMPLE = make()
NAMES = [known.encode_name for known in msgspec.structs.fields(Dataset)]
FIELDS = " ".join(NAMES)
CALLER = {"Service-Name": "tests"}
DATASETS = f"""query Datasets($filter: DatasetInventoriesRequest) {{
    datasetInventories(filterParams: $filter) {{ {FIELDS} }} }}"""
COUNT = """query Count($filter: DatasetInventoryRecordCountRequest) {
    datasetInventoriesRecordCount(filterParams: $filter) { recordCount } }"""
CREATE = """mutation Create($params: L2InversionInventory!) {
    createL2InversionInventory(createParams: $params) { inversionId asdfObjectKey datasetIds createDate } }"""
INVERSIONS = """query Inversions($filter: L2InversionInventoriesRequest) {
    l2Inversions(filterParams: $filter) { inversionId bucket datasetIds spectralLines updateDate } }"""


@pytest.fixture
def store() -> Store:
    return Store(make())


@pytest.fixture
def url(store: Store) -> Iterator[str]:
    with serving(store) as where:
        yield where


def ask(url: str, query: str, **variables: Any) -> requests.Response:
    return requests.post(url, json={"query": query, "variables": variables}, headers=CALLER, timeout=10)


def select(store: Store, **given: Any) -> list[Values]:
    answer = execute(store, DATASETS, {"filter": given})
    assert "errors" not in answer, answer
    rows: list[Values] = answer["data"]["datasetInventories"]
    return rows


def ids(rows: list[Values]) -> list[str]:
    return [row["datasetId"] for row in rows]


def an_inversion(store: Store, **other: Any) -> Values:
    row = next(row for row in store.datasets if row["instrumentName"] == "VISP" and row["bucket"] == "public")
    names = ("primaryProposalId", "instrumentProgramExecutionId", "bucket")
    params = {
        "inversionId": "inv.ABC123",
        "datasetIds": [row["datasetId"]],
        "spectralLines": ["Fe I (630.15 nm)"],
    }
    return params | {name: row[name] for name in names} | other


def complaint(answer: Values) -> str:
    assert answer.get("data") is None
    return str(answer["errors"][0]["message"])


# What the inventory holds


def by_op(datasets: list[Values], instrument: str | None = None) -> dict[str, list[Values]]:
    ops = defaultdict(list)
    for row in datasets:
        if instrument in (None, row["instrumentName"]):
            ops[row["observingProgramExecutionId"]].append(row)
    return ops


def newest(rows: list[Values]) -> datetime:
    return max(datetime.fromisoformat(row["createDate"]).replace(tzinfo=UTC) for row in rows)


def visp(row: Values) -> bool:
    return bool(row["instrumentName"] == "VISP")


OF_A_DATASET: dict[str, Callable[[Values], bool]] = {
    "a bounding box of NaN": lambda row: visp(row) and "NaN" in row["boundingBox"],
    "no counts yet": lambda row: (row["health"], row["gosStatus"], row["aoLocked"]) == (None, None, None),
    "off disk": lambda row: visp(row) and float(row["boundingBox"][1:].split(",")[0]) > 1000,
    "Stokes I only": lambda row: (
        visp(row) and row["stokesParameters"] == "I" and row["hasAllStokes"] is False
    ),
    "no OP": lambda row: row["observingProgramExecutionId"] is None,
    "integer wavelengths": lambda row: isinstance(row["wavelengthMin"], int),
    "a time without a fraction": lambda row: "." not in row["createDate"],
    "counts that are null": lambda row: None in (row["health"] or {}).values(),
    "nothing but null counts": lambda row: set((row["health"] or {"good": 1}).values()) == {None},
    "a long description of many lines": lambda row: (
        len(row["experimentDescription"] or "") > 2000 and row["experimentDescription"].count("\n") > 20
    ),
    "a description with quotes and other alphabets": lambda row: (
        {'"', "'", "田", "“"} <= set(row["experimentDescription"] or "")
    ),
    "markup and escapes": lambda row: all(
        part in (row["experimentDescription"] or "")
        for part in ("<script>", "[bold", "\x1b[31m", "\u202e", "../")
    ),
    "a description with a backslash and n": lambda row: "\\n" in (row["experimentDescription"] or ""),
    "no description": lambda row: row["experimentDescription"] is None,
    "under embargo": lambda row: row["isEmbargoed"] and row["bucket"] == "data" and row["embargoEndDate"],
    "not under embargo": lambda row: not row["isEmbargoed"] and row["bucket"] == "public",
    "an embargo's end without an embargo": lambda row: not row["isEmbargoed"] and row["embargoEndDate"],
    "no spectral lines of a ViSP": lambda row: visp(row) and row["spectralLines"] is None,
    "CRYO-NIRSP": lambda row: row["instrumentName"] == "CRYO-NIRSP",
    "no frames": lambda row: visp(row) and row["frameCount"] == 0,
    "no Fried parameter": lambda row: visp(row) and row["friedParameter"] is None,
    "never updated": lambda row: row["updateDate"] is None,
    "an OP id of 300 characters": lambda row: len(row["observingProgramExecutionId"] or "") == 300,
    "a NUL character": lambda row: "\0" in (row["experimentDescription"] or ""),
}
OF_AN_OP: dict[str, Callable[[list[Values]], bool]] = {
    "ViSP and VBI": lambda rows: {row["instrumentName"] for row in rows} == {"VISP", "VBI"},
    "VBI only": lambda rows: len(rows) > 1 and {row["instrumentName"] for row in rows} == {"VBI"},
    "two ViSP programs": lambda rows: (
        len({row["instrumentProgramExecutionId"] for row in rows if visp(row)}) == 2
    ),
    "three arms": lambda rows: sum(map(visp, rows)) == 3,
    "VBI months later": lambda rows: (
        any(map(visp, rows))
        and newest(rows) - newest([row for row in rows if visp(row)]) > timedelta(days=60)
    ),
    "too recent": lambda rows: (
        any(map(visp, rows))
        and newest(rows) > NOW - timedelta(days=4) < newest([row for row in rows if visp(row)])
    ),
}


@pytest.mark.parametrize("name", OF_A_DATASET)
def test_the_inventory_has_a_dataset_with(name: str) -> None:
    found = [row for row in SAMPLE if OF_A_DATASET[name](row)]
    assert 0 < len(found) < len(SAMPLE)


@pytest.mark.parametrize("name", OF_AN_OP)
def test_the_inventory_has_an_op_with(name: str) -> None:
    assert any(OF_AN_OP[name](rows) for rows in by_op(SAMPLE).values())


def test_the_same_seed_gives_the_same_inventory() -> None:
    assert make() == SAMPLE
    assert make(seed=7) != SAMPLE


def test_only_the_times_depend_on_now() -> None:
    later = make(now=NOW + timedelta(days=100))
    assert ids(later) == ids(SAMPLE)
    assert all(
        datetime.fromisoformat(new["createDate"]) - datetime.fromisoformat(old["createDate"])
        == timedelta(days=100)
        for new, old in zip(later, SAMPLE, strict=True)
        if "." in old["createDate"]
    )
    assert max(row["updateDate"] or "" for row in SAMPLE) < NOW.replace(tzinfo=None).isoformat()


def test_no_two_datasets_share_an_id_and_no_two_ops_a_program() -> None:
    datasets = make(ops=1000)
    assert len(by_op(datasets)) == 1003
    for name in ("datasetId", "productId", "datasetInventoryId"):
        assert len({row[name] for row in datasets}) == len(datasets)
    programs = {(row["instrumentProgramExecutionId"], row["observingProgramExecutionId"]) for row in datasets}
    assert max(Counter(program for program, _ in programs).values()) == 1


def test_the_reader_sets_aside_the_three_that_belong_to_no_op() -> None:
    records = [read(msgspec.json.encode(row)) for row in SAMPLE]
    aside = {record.dataset_id for record in records if isinstance(record, Unreadable)}
    names = ("no OP", "an OP id of 300 characters", "a NUL character")
    assert aside == {row["datasetId"] for row in SAMPLE if any(OF_A_DATASET[name](row) for name in names)}
    assert len(aside) == 3


def test_a_quarter_of_the_ops_is_invertible_and_others_fail_one_criterion_alone() -> None:
    ops = defaultdict(list)
    for row in SAMPLE:
        record = read(msgspec.json.encode(row))
        if isinstance(record, Record):
            ops[record.dataset.observing_program_execution_id].append(record.dataset)
    rules = Qualification()
    verdicts = [criteria.judge(datasets, rules) for datasets in ops.values()]
    assert len(verdicts) == 40
    assert sum(verdict["invertible"] for verdict in verdicts) == 12
    assert sum(verdict["undetermined"] for verdict in verdicts) == 6
    arrivals = [criteria.newest_arrival(datasets, rules) for datasets in ops.values()]
    recent = [arrival is not None and arrival > NOW - timedelta(days=14) for arrival in arrivals]
    assert sum(recent) == 2
    assert all(verdict["invertible"] for verdict, waits in zip(verdicts, recent, strict=True) if waits)
    near_misses = set()
    for verdict in verdicts:
        found = [one for program in verdict["instrument_programs"] for one in program["criteria"]]
        failed = [one["name"] for one in found if one["result"] == "fail" and not one.get("optional")]
        if len(failed) == 1 and not verdict["invertible"]:
            near_misses.update(failed)
    assert near_misses == {"health", "gos", "ao", "stokes", "on_disk", "band Fe I 630.3"}


def test_some_invertible_ops_are_narrow_and_some_only_by_the_present_rules() -> None:
    rules = Qualification()
    published = Qualification(
        bands=[
            Band("Ca II 854.2", 853.5, 854.2, 855.0, True),
            Band("Fe I 630.2", 629.7, 630.2, 630.5, True),
        ]
    )
    narrow: Counter[str] = Counter()
    gained = 0
    for rows in by_op(SAMPLE, "VISP").values():
        datasets = [r.dataset for row in rows if isinstance(r := read(msgspec.json.encode(row)), Record)]
        if not criteria.judge(datasets, rules)["invertible"]:
            continue
        gained += not criteria.judge(datasets, published)["invertible"]
        ranges = [(d.wavelength_min, d.wavelength_max) for d in datasets]
        found = {n["band"] for low, high in ranges for n in criteria.narrow_bands("VISP", low, high, rules)}
        narrow.update(found or {"none"})
    assert narrow == {"Fe I 630.3": 4, "Na I 589.3": 2, "none": 6}
    assert gained == 4


def test_the_schema_knows_every_field_and_no_other() -> None:
    view = schema().type_map["DatasetInventoryViewResponse"]
    assert all(row.keys() == view.fields.keys() for row in SAMPLE)  # type: ignore[attr-defined]


# What the store answers


def test_the_store_gives_what_the_inventory_holds() -> None:
    rows = select(Store(make()))
    assert len(rows) == len(SAMPLE)
    assert rows == [{name: row[name] for name in NAMES} for row in SAMPLE]


def test_every_dataset_comes_once_page_by_page(store: Store) -> None:
    pages = [select(store, pageSize=50, pageNumber=number) for number in range(1, 6)]
    assert [len(page) for page in pages] == [50, 50, 50, len(SAMPLE) - 150, 0]
    assert [row for page in pages for row in page] == select(store)


def test_pages_come_in_the_order_asked_for(store: Store) -> None:
    assert ids(select(store)) == ids(sorted(SAMPLE, key=lambda row: row["createDate"]))
    assert ids(select(store, sortColumn="-datasetId", pageSize=9)) == sorted(ids(SAMPLE), reverse=True)[:9]
    assert select(store, sortColumn="updateDate")[-1]["updateDate"] is None
    assert select(store, sortColumn="-updateDate")[0]["updateDate"] is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"sortColumn": "health"},
        {"sortColumn": "x"},
        {"pageSize": 0},
        {"pageNumber": 0},
        {"startTimeMin": "x"},
    ],
)
def test_queries_that_cannot_be_paged_or_sorted_are_refused(store: Store, wrong: Values) -> None:
    assert complaint(execute(store, DATASETS, {"filter": wrong}))


ONE = next(row for row in SAMPLE if row["instrumentName"] == "VISP" and row["primaryExperimentId"])
MIDDLE = SAMPLE[len(SAMPLE) // 2]


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        ("datasetIds", ids(SAMPLE[:3]), lambda row: row in SAMPLE[:3]),
        ("productIds", [ONE["productId"]], lambda row: row is ONE),
        ("primaryProposalIds", ["pid_2_1", "pid_3_1"], lambda row: row["primaryProposalId"][5:] == "_1"),
        ("primaryExperimentIds", ["eid_2_1"], lambda row: row["primaryExperimentId"] == "eid_2_1"),
        ("instrumentNames", ["VBI", "VTF"], lambda row: row["instrumentName"] == "VBI"),
        (
            "spectralLines",
            ["Fe I (630.15 nm)", "x"],
            lambda row: "Fe I (630.15 nm)" in (row["spectralLines"] or []),
        ),
        *(
            (name, ONE[name], lambda row, name=name: row[name] == ONE[name])
            for name in ("observingProgramExecutionId", "instrumentProgramExecutionId")
        ),
        ("isEmbargoed", False, lambda row: row["isEmbargoed"] is False),
        ("isEmbargoed", True, lambda row: row["isEmbargoed"] is True),
        ("hasAllStokes", True, lambda row: row["stokesParameters"] == "IQUV"),
        ("datasetIds", [], lambda row: False),
        *(
            (
                name + "Min",
                MIDDLE[name],
                lambda row, name=name: row[name] is not None and row[name] >= MIDDLE[name],
            )
            for name in ("createDate", "updateDate", "startTime", "endTime")
        ),
        *(
            (
                name + "Max",
                MIDDLE[name] + "+00:00",
                lambda row, name=name: row[name] is not None and row[name] <= MIDDLE[name],
            )
            for name in ("createDate", "updateDate", "startTime", "endTime")
        ),
    ],
)
def test_a_filter_passes_what_matches_and_the_count_agrees(
    store: Store, name: str, value: Any, fits: Callable[[Values], bool]
) -> None:
    wanted = ids([row for row in SAMPLE if fits(row)])
    assert len(wanted) < len(SAMPLE)
    assert wanted or value == []
    assert ids(select(store, **{name: value})) == wanted
    counted = execute(store, COUNT, {"filter": {name: value}})
    assert counted == {"data": {"datasetInventoriesRecordCount": {"recordCount": len(wanted)}}}


def test_a_filter_that_the_sample_store_does_not_know_is_refused_and_never_passed_over() -> None:
    store = Store(make(), interface="""
        type Query { datasetInventories(filterParams: Filters): [DatasetInventoryViewResponse!]! }
        type DatasetInventoryViewResponse { status: String! datasetId: String! createDate: String! }
        input Filters { rectangleContainingBoundingBox: String, wavelengthRanges: [Float!], status: String }
    """)  # fmt: skip
    query = "query Datasets($f: Filters) { datasetInventories(filterParams: $f) { datasetId } }"
    assert len(execute(store, query, {"f": {"status": "ACTIVE"}})["data"]["datasetInventories"]) == len(
        SAMPLE
    )
    for name, value in (("rectangleContainingBoundingBox", "x"), ("wavelengthRanges", [630.0, 631.0])):
        assert f"cannot filter by {name}" in complaint(execute(store, query, {"f": {name: value}}))


def test_filters_combine_and_a_null_one_has_no_effect(store: Store) -> None:
    op_id = ONE["observingProgramExecutionId"]
    rows = select(store, observingProgramExecutionId=op_id, instrumentNames=["VBI"], isEmbargoed=None)
    wanted = [row for row in by_op(SAMPLE)[op_id] if row["instrumentName"] == "VBI"]
    assert ids(rows) == ids(wanted)


def test_a_superseded_dataset_appears_only_when_asked_for_and_in_the_history(store: Store) -> None:
    old, new = store.datasets[5], store.datasets[6]
    old["status"], new["productId"] = "DEPRECATED", old["productId"]
    assert len(select(store)) == len(SAMPLE) - 1
    assert ids(select(store, status="DEPRECATED")) == ids([old])
    assert execute(store, COUNT)["data"]["datasetInventoriesRecordCount"]["recordCount"] == len(SAMPLE) - 1
    query = """query History($filter: DatasetInventoryHistory!) {
        datasetInventoryHistory(filterParams: $filter) { datasetId status } }"""
    for given in ({"datasetId": old["datasetId"]}, {"productId": old["productId"]}):
        rows = execute(store, query, {"filter": given})["data"]["datasetInventoryHistory"]
        assert rows == [{"datasetId": old["datasetId"], "status": "DEPRECATED"}]
    assert execute(store, query, {"filter": {"datasetId": new["datasetId"]}})["data"] == {
        "datasetInventoryHistory": []
    }
    assert complaint(execute(store, query, {"filter": {}}))


def test_the_codes_of_a_status_are_those_of_the_published_client(store: Store) -> None:
    query = """query Statuses($filter: DatasetInventoryStatusesRequest) {
        datasetInventoryStatuses(filterParams: $filter) { datasetInventoryStatusCode } }"""

    def codes(**given: Any) -> list[str]:
        rows = execute(store, query, {"filter": given})["data"]["datasetInventoryStatuses"]
        return [row["datasetInventoryStatusCode"] for row in rows]

    assert codes() == ["ACTIVE", "DEPRECATED", "REMOVED"]
    assert codes(datasetInventoryStatusCode="REMOVED") == ["REMOVED"]
    assert codes(datasetInventoryStatusCode="active") == []


def test_objects_and_frames_are_what_the_catalogers_filled_in_a_thousand_at_a_time(store: Store) -> None:
    query = """query Objects($filter: ObjectInventoriesRequest) {
        objectInventories(filterParams: $filter) { objectKey objectStatus groupId lostDate } }"""
    one = {
        "inventoryId": "1",
        "bucket": "data",
        "objectStatus": "AVAILABLE",
        "objectType": "ASDF",
        "createDate": "2026-01-01T00:00:00",
    }
    store.objects += [one | {"objectKey": f"p/inv_A/{n}", "groupId": f"inv.{n % 2}"} for n in range(2600)]

    def keys(**given: Any) -> list[str]:
        rows = execute(store, query, {"filter": given})["data"]["objectInventories"]
        return [row["objectKey"] for row in rows]

    every = [row["objectKey"] for row in store.objects]
    rows = execute(store, query)["data"]["objectInventories"]
    assert len(rows) == 1000
    assert rows[0] == {
        "objectKey": "p/inv_A/0",
        "objectStatus": "AVAILABLE",
        "groupId": "inv.0",
        "lostDate": None,
    }
    assert keys() == keys(pageNumber=1) == every[:1000]
    assert keys(pageNumber=3) == every[2000:]
    assert keys(pageSize=7, pageNumber=2) == every[7:14]
    assert keys(groupId="inv.1", pageSize=5000) == every[1::2]
    assert keys(groupId="inv.1", objectStatus="LOST") == keys(createDateMin="2026-01-01T00:00:01") == []
    store.frames.append(
        one | {"objectKey": "p/inv_A/x.fits", "frameStatus": "AVAILABLE", "frameId": "f", "frameSize": 1.0}
    )
    found = execute(store, "{ frameInventories { objectKey frameSize datasetId } }")["data"]
    assert found == {"frameInventories": [{"objectKey": "p/inv_A/x.fits", "frameSize": 1, "datasetId": None}]}


def test_an_inversion_is_kept_and_read_back(store: Store) -> None:
    params = an_inversion(store)
    made = execute(store, CREATE, {"params": params})["data"]["createL2InversionInventory"]
    assert made["asdfObjectKey"] is None
    assert datetime.fromisoformat(made["createDate"]).tzinfo is None
    for wanted in (
        None,
        {},
        {"inversionId": params["inversionId"]},
        {"datasetIds": ["X", *params["datasetIds"]]},
    ):
        (found,) = execute(store, INVERSIONS, {"filter": wanted})["data"]["l2Inversions"]
        assert (
            found.items() >= {name: params[name] for name in ("inversionId", "bucket", "datasetIds")}.items()
        )
    for wanted in ({"inversionId": "inv.OTHER1"}, {"datasetIds": ["X"]}):
        assert execute(store, INVERSIONS, {"filter": wanted}) == {"data": {"l2Inversions": []}}


def test_an_inversion_is_created_once_however_many_try(store: Store) -> None:
    variables = {"params": an_inversion(store)}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: execute(store, CREATE, variables), range(16)))
    assert sum("errors" not in answer for answer in answers) == 1
    assert "already" in complaint(execute(store, CREATE, variables))
    assert len(store.inversions) == 1


def test_an_inversion_of_unknown_or_scattered_datasets_is_refused(store: Store) -> None:
    hidden = next(row["datasetId"] for row in store.datasets if row["bucket"] == "data")
    params = an_inversion(store)
    for wrong, why in (
        ({"datasetIds": ["NOSUCH"]}, "NOSUCH"),
        ({"datasetIds": [*params["datasetIds"], hidden]}, "bucket"),
        ({"bucket": "data"}, "bucket"),
    ):
        assert why in complaint(execute(store, CREATE, {"params": params | wrong}))
    assert not store.inversions


def test_processing_candidates_are_one_per_op_with_no_more_done_than_planned(store: Store) -> None:
    query = """query Candidates($filter: ProcessingCandidatesRequest) {
        processingCandidates(filterParams: $filter) {
            observingProgramExecutionId
            plannedRecipeCount totalRecipeInstanceCount completeRecipeInstanceCount } }"""
    rows = execute(store, query)["data"]["processingCandidates"]
    assert {row["observingProgramExecutionId"] for row in rows} == by_op(SAMPLE).keys() - {None}
    for row in rows:
        op_id, planned, total, complete = row.values()
        assert len(by_op(SAMPLE)[op_id]) == complete <= total <= planned
        alone = execute(store, query, {"filter": {"observingProgramExecutionId": op_id}})
        assert alone["data"]["processingCandidates"] == [row]
    assert any(row["completeRecipeInstanceCount"] < row["plannedRecipeCount"] for row in rows)


# How it is carried


@pytest.mark.parametrize(
    "query", ["{ datasetInventories { noSuchField } }", "{ datasetInventories {", "", "{ x }"]
)
def test_a_wrong_query_is_refused_with_errors_in_a_200(url: str, query: str) -> None:
    answer = ask(url, query)
    assert answer.status_code == 200
    assert answer.json().keys() == {"errors"}


def test_a_wrong_variable_is_refused_with_errors_in_a_200(url: str) -> None:
    answer = ask(url, DATASETS, filter={"noSuchFilter": 1})
    assert answer.status_code == 200
    assert complaint(answer.json())


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("", b"{", 400), ("", b"[]", 400), ("", b'{"query": "\xff"}', 400), ("x", b"{}", 404)],
)
def test_anything_but_a_graphql_request_is_refused(url: str, path: str, body: bytes, status: int) -> None:
    answer = requests.post(url + path, data=body, timeout=10)
    assert answer.status_code == status
    assert complaint(answer.json())


def test_a_whole_number_arrives_as_an_integer(url: str) -> None:
    assert '"wavelengthMin":393,' in ask(url, DATASETS).text


def test_the_answer_is_compressed_for_clients_that_accept_it(url: str) -> None:
    body = json.dumps({"query": DATASETS})
    plain = requests.post(url, data=body, headers=CALLER | {"Accept-Encoding": "identity"}, timeout=10)
    small = requests.post(
        url, data=body, headers=CALLER | {"Accept-Encoding": "br, gzip;q=0.5"}, timeout=10, stream=True
    )
    assert "Content-Encoding" not in plain.headers
    assert small.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(small.raw.read()) == plain.content


def test_one_connection_serves_many_requests_until_the_store_closes() -> None:
    with serving(Store([])) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        connection.connect()
        first = connection.sock
        for _ in range(3):
            question = json.dumps({"query": "{ l2Inversions { bucket } }"})
            connection.request("POST", "/graphql", question, CALLER)
            assert json.load(connection.getresponse()) == {"data": {"l2Inversions": []}}
            assert connection.sock is first
    assert first.recv(1) == b""
    connection.close()
    with pytest.raises(requests.ConnectionError):
        ask(url, COUNT)


def test_the_gateway_wants_the_token_alone_and_the_name_of_who_calls(store: Store, url: str) -> None:
    store.token = "sesame"
    query = json.dumps({"query": COUNT})
    for headers, status in (
        ({}, 401),
        (CALLER, 401),
        (CALLER | {"Authorization": "Bearer sesame"}, 401),
        (CALLER | {"Authorization": "Sesame"}, 401),
        ({"Authorization": "sesame"}, 400),
        ({"Authorization": "sesame", "Service-Name": ""}, 400),
        (CALLER | {"Authorization": "sesame"}, 200),
    ):
        answer = requests.post(url, data=query, headers=headers, timeout=10)
        assert answer.status_code == status
        assert "sesame" not in answer.text


def test_requests_are_remembered_by_name_with_their_variables(store: Store, url: str) -> None:
    ask(url, COUNT, filter={"status": "ACTIVE"})
    ask(url, "{ processingCandidates { proposalId } }")
    ask(url, "no query")
    both = {"query": f"{COUNT} {INVERSIONS}", "operationName": "Inversions"}
    requests.post(url, json=both, headers=CALLER, timeout=10)
    names = ["Count", "processingCandidates", "", "Inversions"]
    assert [name for name, _ in store.requests] == names
    assert store.requests[0][1] == {"filter": {"status": "ACTIVE"}}


def test_a_fault_may_strike_the_first_of_an_operation_alone(store: Store, url: str) -> None:
    unwell = Fault(503, b"<html>later</html>", (("Retry-After", "7"), ("Content-Type", "text/html")))
    store.fault = lambda operation, nth: unwell if (operation, nth) == ("Create", 1) else None
    assert ask(url, COUNT).ok
    answer = ask(url, CREATE, params=an_inversion(store))
    assert (answer.status_code, answer.text) == (503, "<html>later</html>")
    assert (answer.headers["Retry-After"], answer.headers["Content-Type"]) == ("7", "text/html")
    assert not store.inversions
    assert "errors" not in ask(url, CREATE, params=an_inversion(store)).json()


@pytest.mark.parametrize(("drop", "kept"), [("before", 0), ("after", 1), ("midway", 1)])
def test_a_lost_answer_was_executed_all_the_same(store: Store, url: str, drop: Any, kept: int) -> None:
    store.fault = lambda operation, nth: Fault(drop=drop)
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        ask(url, CREATE, params=an_inversion(store))
    assert len(store.inversions) == kept


def test_a_late_answer_is_the_true_one(store: Store, url: str) -> None:
    store.fault = lambda operation, nth: Fault(delay_seconds=0.15, headers=(("X-Late", "1"),))
    began = time.monotonic()
    answer = ask(url, COUNT)
    assert time.monotonic() - began >= 0.15
    assert answer.headers["X-Late"] == "1"
    assert answer.json()["data"]["datasetInventoriesRecordCount"]["recordCount"] == len(SAMPLE)


def test_closing_does_not_wait_for_a_delayed_answer(store: Store) -> None:
    began = time.monotonic()
    with serving(store) as url, ThreadPoolExecutor(1) as pool:
        store.fault = lambda operation, nth: Fault(delay_seconds=60)
        with pytest.raises(requests.Timeout):
            pool.submit(requests.post, url, json={"query": COUNT}, headers=CALLER, timeout=0.1).result()
    assert time.monotonic() - began < 30


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl command to make a certificate")
def test_it_serves_tls_and_survives_a_client_that_does_not_trust_it(
    store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=store", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with (
        serving(store, tls=tls) as url,
        socket.create_connection(("127.0.0.1", urlsplit(url).port)),
    ):  # a silent one
        assert url.startswith("https://")
        with pytest.raises(requests.exceptions.SSLError):
            ask(url, COUNT)
        trusted: dict[str, Any] = {"verify": str(certificate), "headers": CALLER}
        assert requests.post(url, json={"query": COUNT}, timeout=10, **trusted).ok
    assert capfd.readouterr() == ("", "")


def test_a_taken_port_is_reported_in_one_line(url: str) -> None:
    port = urlsplit(url).port or 0
    with pytest.raises(L2invError, match="cannot serve on") as caught, serving(Store([]), port):
        pass
    assert "port" in caught.value.hint


def test_without_graphql_core_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "graphql", None)
    graphql_store.schema.cache_clear()
    with pytest.raises(L2invError) as caught, serving(Store([])):
        pass
    assert "l2inv[demo]" in caught.value.hint
