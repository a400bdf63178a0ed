"""l2inv's requests, validated against the store's published interface and the sample store's part of it."""

import importlib
import json
import pkgutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from graphql import (
    GraphQLNamedType,
    GraphQLSchema,
    OperationDefinitionNode,
    get_named_type,
    is_required_argument,
    is_required_input_field,
    parse,
    print_ast,
    validate,
)
from graphql.execution.values import get_variable_values

import l2inv as package
from l2inv.sample import server
from l2inv.sample.server import Fault, Store
from l2inv.sample.store import _quickly, execute, schema, slowly
from l2inv.services.graphql import Query
from tests.helpers.commands import NOW, Commands

SHARED = Path(__file__).parents[3] / "shared"
PUBLISHED = SHARED / "store-interface.graphql"
REAL = SHARED / "real" / "inventory-2025-pid_2_126.json"
at_hand = pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published interface is not at hand")


@pytest.fixture(params=["sample", pytest.param("published", marks=at_hand)])
def interface(request: pytest.FixtureRequest) -> str | None:
    """An interface as Store takes it: None for the sample's own, else the text of the published one."""
    return PUBLISHED.read_text("utf-8") if request.param == "published" else None


def queries() -> dict[str, Query]:
    """Every query and mutation of l2inv's, by the name of its operation."""
    found: dict[str, Query] = {}
    for module in pkgutil.walk_packages(package.__path__, "l2inv."):
        if not module.name.endswith("__main__"):
            for query in vars(importlib.import_module(module.name)).values():
                if isinstance(query, Query):
                    name = operation(query).name
                    assert name and found.setdefault(name.value, query) == query
    return found


def operation(query: Query) -> OperationDefinitionNode:
    (node,) = parse(query.text).definitions
    assert isinstance(node, OperationDefinitionNode)
    return node


def test_every_query_and_mutation_is_valid(interface: str | None) -> None:
    found = queries()
    assert {query.field for query in found.values()} >= {
        "datasetInventories", "datasetInventoriesRecordCount", "datasetInventoryStatuses", "processingCandidates",
        "l2Inversions", "createL2InversionInventory",
    }  # fmt: skip
    for query in found.values():
        assert validate(schema(interface), parse(query.text)) == []
        selected = operation(query).selection_set.selections
        if query.field:
            assert [one.name.value for one in selected] == [query.field]  # type: ignore[attr-defined]
        else:  # several, under aliases that the struct has as fields
            aliases = {one.alias.value for one in selected}  # type: ignore[attr-defined]
            assert aliases == set(query.kind.__struct_encode_fields__)


def assert_valid(interface: str | None, query: Query, variables: dict[str, Any]) -> None:
    definitions = operation(query).variable_definitions or ()
    assert variables.keys() <= {definition.variable.name.value for definition in definitions}
    errors = get_variable_values(schema(interface), definitions, variables)
    assert not isinstance(errors, list), errors


def test_the_stages_run_against_a_store_that_is_strict(
    l2inv: Commands, store: Store, interface: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.interface, store.token = interface, "t0ken"
    monkeypatch.setenv("STORE_TOKEN", "t0ken")
    l2inv.settings["metadata_store"] |= {"token_env": "STORE_TOKEN", "page_size": 50}
    l2inv.settings["completeness"] = {"processing_candidates": True}
    l2inv.save()
    l2inv("config", "check")
    assert l2inv.json("scan")["complete"] is True
    store.datasets.pop()
    assert l2inv.json("scan")["datasets"]["withdrawn"] == 1
    assert l2inv.json("scan", "--since-last")["complete"] is True
    assert l2inv.json("qualify", "--as-of", NOW.isoformat())["ops"]["invertible"] > 5
    l2inv("preprocess")
    op_id = l2inv.json("next", "-n", "1")["ops"][0]["op_id"]
    l2inv("claim", op_id)
    l2inv("mark-inverted", op_id)
    assert l2inv.json("publish")["ops"] == {"done": 1, "failed": 0, "skipped": 0}
    assert len(store.inversions) == 1
    sent = {name for name, _ in store.requests}
    # what the catalogers filed is asked for where a catalog is configured: tests/sample/test_cataloger.py; what there
    # is of datasets alone, where a cycle was abandoned: tests/stages/test_abandoned.py
    assert sent == queries().keys() - {"Objects", "Frames", "FindByDatasets"}
    for name, variables in store.requests:
        assert_valid(interface, queries()[name], variables)
        as_ever = slowly(store, queries()[name].text, variables)
        if "createL2" not in queries()[name].field:
            assert _quickly(store, queries()[name].text, variables, None) == as_ever, name


ODD: tuple[Any, ...] = (
    None,
    "x",
    "2026-01-01T00:00:00",
    3.0,
    2.5,
    2**40,
    True,
    [],
    ["x"],
    [None],
    {"med": 1.0},
    float("nan"),
    b"",
)


def test_any_row_is_answered_as_graphql_core_would(store: Store, interface: str | None) -> None:
    store.interface = interface
    (page,) = (query for query in queries().values() if query.field == "datasetInventories")
    row = next(row for row in store.datasets if row["status"] == "ACTIVE")
    for column in row:
        for odd in ODD:
            store.datasets = [row | {column: odd, "status": "ACTIVE"}]
            answers = [how(store, page.text, {"filter": {}}) for how in (execute, slowly)]
            assert len({json.dumps(answer, default=repr) for answer in answers}) == 1, (column, odd, *answers)
    quick = [_quickly(store, page.text, {"filter": {}}, None) for store.datasets in ([], [row])]
    assert None not in quick


def test_a_question_without_arguments_sends_no_variables(
    l2inv: Commands, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = {}
    answer = server._Handler._answer

    def listen(handler: server._Handler, request: server._Request) -> None:
        heard[request.query] = request.variables
        answer(handler, request)

    monkeypatch.setattr(server._Handler, "_answer", listen)
    l2inv("config", "check")
    assert {query.count("$") > 0: variables is not None for query, variables in heard.items()} == {
        False: False,
        True: True,
    }


# The sample's part of the published interface


def signatures(of: GraphQLSchema) -> dict[str, str]:
    """Every type, field and argument of a schema with its kind, or its type and default."""
    found = {}
    for name, kind in of.type_map.items():
        if not name.startswith("__"):
            found[name] = type(kind).__name__
            for field, at in getattr(kind, "fields", {}).items():
                found[f"{name}.{field}"] = signature(at)
                for argument, asked in getattr(at, "args", {}).items():
                    found[f"{name}.{field}({argument})"] = signature(asked)
    return found


def signature(of: Any) -> str:
    default = getattr(of.ast_node, "default_value", None)
    return f"{of.type} = {print_ast(default)}" if default else str(of.type)


def required(kind: GraphQLNamedType) -> set[str]:
    """What a type cannot be asked or given without."""
    found = set()
    for field, at in getattr(kind, "fields", {}).items():
        if not hasattr(at, "args"):
            found |= {field} if is_required_input_field(at) else set()
        found |= {
            f"{field}({name})" for name, one in getattr(at, "args", {}).items() if is_required_argument(one)
        }
    return found


@at_hand
def test_the_samples_interface_is_a_part_of_the_published_one() -> None:
    sample, published = schema(), schema(PUBLISHED.read_text("utf-8"))
    others = signatures(published)
    assert {name: what for name, what in signatures(sample).items() if others.get(name) != what} == {}
    for name, kind in sample.type_map.items():
        assert required(kind) == required(published.type_map[name])


def test_counts_and_distributions_are_scalars() -> None:
    view = schema().type_map["DatasetInventoryViewResponse"]
    for name, scalar in (
        ("health", "HealthCounts"),
        ("gosStatus", "GosStatusCounts"),
        ("friedParameter", "DistributionString"),
    ):
        kind = get_named_type(view.fields[name].type)  # type: ignore[attr-defined]
        assert kind is not None
        assert (kind.name, type(kind).__name__) == (scalar, "GraphQLScalarType")


# A real inventory over HTTP


def whole(record: dict[str, Any], number: int) -> dict[str, Any]:
    """A record of a saved response with something in each field that it lacks and that may not be null."""
    fields = schema(PUBLISHED.read_text("utf-8")).type_map["DatasetInventoryViewResponse"].fields  # type: ignore[attr-defined]
    made_up = {"Int!": number, "String!": f"none-{number}", "[String!]!": []}
    lacking = {name: made_up.get(str(at.type)) for name, at in fields.items() if name not in record}
    return record | lacking | {"status": "ACTIVE"}


@at_hand
@pytest.mark.skipif(not REAL.is_file(), reason="the real inventories are not at hand")
def test_a_real_inventory_over_http_is_read_whole_and_as_from_a_file(l2inv: Commands, store: Store) -> None:
    over_http = l2inv.settings["metadata_store"]
    l2inv.settings["metadata_store"] = {"url": str(REAL)}
    l2inv.save()
    assert l2inv.json("scan")["ops"]["new"] == 8
    l2inv("qualify", "--as-of", NOW.isoformat())
    verdicts = [l2inv.json("show", op["op_id"])["verdict"] for op in l2inv.json("list")["ops"]]
    assert len(verdicts) == 8

    records = json.loads(REAL.read_bytes())["data"]["datasetInventories"]
    store.datasets = [whole(record, number) for number, record in enumerate(records)]
    store.interface = PUBLISHED.read_text("utf-8")
    for page_size in (500, 20):
        l2inv.settings["metadata_store"] = over_http | {"page_size": page_size}
        l2inv.save()
        report = l2inv.json("scan")
        assert report["complete"] is True
        assert report["datasets"]["seen"] == 95
        assert report["datasets"]["quarantined"] == report["datasets"]["withdrawn"] == 0
        assert report["ops"]["seen"] == 8
    # What the file lacked is new; nothing that a verdict rests on reads otherwise.
    assert l2inv.json("qualify", "--as-of", NOW.isoformat())["ops"]["judged"] == 0
    assert verdicts == [l2inv.json("show", op["op_id"])["verdict"] for op in l2inv.json("list")["ops"]]


# What config check finds


def test_config_check_reports_the_stores_answer(l2inv: Commands, store: Store, store_url: str) -> None:
    assert l2inv.json("config", "check")["store"] == {
        "url": store_url,
        "reachable": True,
        "authorized": True,
        "takes_variables": True,
        "status_codes": ["ACTIVE", "DEPRECATED", "REMOVED"],
    }
    assert l2inv("config", "check").stdout.splitlines() == [
        f"config: {l2inv.config}: valid",
        "metadata store: reachable, authorized, accepts variables; status codes: ACTIVE, DEPRECATED, REMOVED",
    ]
    assert [name for name, _ in store.requests] == ["Statuses", "Status"] * 2
    assert l2inv("-q", "config", "check").stdout == ""


def test_config_check_asks_nothing_offline_or_where_there_is_no_service(
    l2inv: Commands, store: Store, tmp_path: Path
) -> None:
    assert l2inv.json("config", "check", "--offline")["store"] is None
    assert l2inv("config", "check", "--offline").stdout == f"config: {l2inv.config}: valid\n"
    saved = tmp_path / "answer.json"
    l2inv.settings["metadata_store"] = {"url": None}
    l2inv.save()
    assert l2inv.json("config", "check")["store"] is None
    l2inv.settings["metadata_store"] = {"url": str(saved)}
    l2inv.save()
    assert f"there is no saved response {saved}" in l2inv("config", "check", expect=10).stderr
    saved.write_text("{")
    assert f"saved response {saved}: " in l2inv("config", "check", expect=1).stderr
    l2inv("config", "check", "--offline")
    saved.write_text('{"data": {"datasetInventories": [{"datasetId": "A"}, {"isActive": false}]}}')
    assert l2inv.json("config", "check")["store"] == {"path": str(saved), "records": 2, "datasets": 1}
    assert l2inv("config", "check").stdout.splitlines()[1:] == [
        f"metadata store: saved response {saved}: 1 dataset, and 1 record that scan skips: not active"
    ]
    assert store.requests == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(status=401), "access denied (401)"),
        (Fault(status=404), "the gateway is being deployed"),
        (Fault(status=503), "answers 503"),
        (Fault(drop="before"), "Remote end closed"),
        (Fault(body=b'{"errors": [{"message": "not for you"}]}'), "not for you"),
        (Fault(body=b"<html>"), "not GraphQL's JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_config_check_fails_where_the_store_does_not_answer(
    l2inv: Commands, store: Store, fault: Fault, said: str
) -> None:
    store.fault = lambda name, nth: fault
    answer = l2inv("config", "check", expect=1)
    assert said in answer.stderr
    assert (answer.stderr.count("\n"), answer.stdout) == (1, "")
    error = l2inv("config", "check", "--json", expect=1).json["error"]
    assert error["code"] == 1 and said in error["message"] + error["hint"]
    assert "with a variable" not in answer.stderr
    l2inv("config", "check", "--offline")


def statuses(*codes: str) -> bytes:
    rows = [{"datasetInventoryStatusCode": code} for code in codes]
    return json.dumps({"data": {"datasetInventoryStatuses": rows}}).encode()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Fault(body=b'{"errors": [{"message": "no variables here"}]}'), "no variables here (for a query"),
        (Fault(status=400), "answers 400 Bad Request (for a query"),
        (Fault(status=500), "answers 500 Internal Server Error (for a query"),
        (Fault(body=statuses("ACTIVE", "DEPRECATED", "REMOVED")), "ignores the variables"),
    ],
    ids=["refused", "400", "500", "passed over"],
)
def test_config_check_reports_a_gateway_that_does_not_accept_variables(
    l2inv: Commands, store: Store, answer: Fault, said: str
) -> None:
    store.fault = lambda name, nth: answer if name == "Status" else None
    failed = l2inv("config", "check", expect=1).stderr
    assert said in failed
    assert "l2inv passes all arguments as variables" in failed


def test_config_check_claims_no_proof_where_one_code_is_all(l2inv: Commands, store: Store) -> None:
    store.fault = lambda name, nth: Fault(body=statuses("active"))
    assert l2inv.json("config", "check")["store"]["takes_variables"] is None
    assert "may ignore variables" in l2inv("config", "check").stdout


def test_config_check_prints_the_stores_words_without_control_characters(
    l2inv: Commands, store: Store
) -> None:
    every = statuses("ACTIVE", "\x1b[31mX\nY")
    store.fault = lambda name, nth: Fault(body=every if name == "Statuses" else statuses("ACTIVE"))
    said = l2inv("config", "check").stdout
    assert said.count("\n") == 2
    assert "\x1b" not in said


def test_config_check_ends_by_the_total_limit(l2inv: Commands) -> None:
    listener, ended = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def trickle() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
            while not ended.wait(0.02):
                connection.sendall(b" ")

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        l2inv.settings["metadata_store"] = {
            "url": f"http://127.0.0.1:{listener.getsockname()[1]}/graphql",
            "total_timeout_seconds": 0.4,
        }
        l2inv.save()
        began = time.monotonic()
        assert "not read to the end in 0.4 s" in l2inv("config", "check", expect=1).stderr
        assert time.monotonic() - began < 60  # 200 s, if it read on
    finally:
        ended.set()
        thread.join()
        listener.close()
