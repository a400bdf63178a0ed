"""The sample's cataloger reads messages strictly, and the store's interface returns its records."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import graphql as graphql_core
import pytest

from l2inv.config.settings import Catalog, MetadataStore
from l2inv.errors import L2invError, StoreRefused
from l2inv.sample.cataloger import Malformed, cataloging, read
from l2inv.services import catalog, graphql
from l2inv.services.metadata_store import FRAMES, OBJECTS, service
from tests.helpers import rabbitmq
from tests.helpers.rabbitmq import FRAME, OBJECT, Broker
from tests.helpers.waiting import until

Values = dict[str, Any]

FOLDER = "pid_1_118/inv_7QK2ZD"
NAMES = [f"{FOLDER}/INV_7QK2ZD_2022_06_03T18_03_{second:02}_89_L2.fits" for second in range(7)]
ASDF = f"{FOLDER}/INV_7QK2ZD_L2_metadata.asdf"
QUEUES = {FRAME: "catalog.frame.q", OBJECT: "catalog.object.q"}


def messages() -> list[catalog.Message]:
    return catalog.messages("data", NAMES, ASDF, "inv.7QK2ZD", "l2pub.7QK2ZD")


# Reading a message


def test_every_message_of_l2invs_is_read() -> None:
    *frames, asdf = (read(QUEUES[m.routing_key], m.body) for m in messages())
    assert [frame["objectKey"] for frame in frames] == NAMES
    assert {(frame["bucket"], frame["datasetId"], frame["frameStatus"]) for frame in frames} == {
        ("data", "inv.7QK2ZD", "AVAILABLE")
    }
    assert (asdf["objectKey"], asdf["objectStatus"], asdf["groupId"], asdf["groupName"]) == (
        ASDF,
        "AVAILABLE",
        "inv.7QK2ZD",
        "DATASET",
    )


def test_a_message_that_comes_twice_is_the_same_record() -> None:
    message = messages()[0]
    ids = {read("catalog.frame.q", message.body)["inventoryId"] for _ in range(2)}
    assert len(ids) == 1


GOOD_FRAME = {
    "bucket": "data",
    "objectName": NAMES[0],
    "incrementDatasetCatalogReceiptCount": False,
    "conversationId": "l2pub.7QK2ZD",
}
GOOD_OBJECT = GOOD_FRAME | {
    "objectName": ASDF,
    "objectType": "ASDF",
    "groupId": "inv.7QK2ZD",
    "groupName": "DATASET",
}


CHANGED: list[tuple[Values, Values]] = [
    (GOOD_FRAME, {"incrementDatasetCatalogReceiptCount": True}),
    (GOOD_FRAME, {"incrementDatasetCatalogReceiptCount": 0}),
    (GOOD_FRAME, {"incrementDatasetCatalogReceiptCount": "false"}),
    (GOOD_FRAME, {"bucket": ""}),
    (GOOD_FRAME, {"objectName": ASDF}),
    (GOOD_FRAME, {"objectName": NAMES[0].removeprefix("pid_1_118/")}),
    (GOOD_FRAME, {"objectName": f"/{NAMES[0]}"}),
    (GOOD_FRAME, {"conversationId": "l2pub.7qk2zd"}),
    (GOOD_FRAME, {"objectType": "ASDF"}),
    (GOOD_FRAME, {"priority": 1}),
    (GOOD_OBJECT, {"objectName": NAMES[0]}),
    (GOOD_OBJECT, {"objectName": ASDF.replace("7QK2ZD/", "AAAAAA/")}),
    (GOOD_OBJECT, {"objectType": "FITS"}),
    (GOOD_OBJECT, {"groupId": "inv_7QK2ZD"}),
    (GOOD_OBJECT, {"groupName": "INVERSION"}),
]
NULL: list[tuple[Values, Values]] = [
    (good, {key: None}) for good in (GOOD_FRAME, GOOD_OBJECT) for key in good
]
MISSING: list[tuple[Values, Values]] = [
    ({key: good[key] for key in good if key != name}, {})
    for good in (GOOD_FRAME, GOOD_OBJECT)
    for name in good
]


@pytest.mark.parametrize(("good", "change"), CHANGED + NULL + MISSING)
def test_any_other_body_is_refused(good: Values, change: Values) -> None:
    queue = "catalog.object.q" if "groupId" in good or "groupName" in good else "catalog.frame.q"
    with pytest.raises(Malformed):
        read(queue, json.dumps(good | change).encode())


def test_the_bodies_that_the_others_are_made_from_are_read() -> None:
    assert read("catalog.frame.q", json.dumps(GOOD_FRAME).encode())
    assert read("catalog.object.q", json.dumps(GOOD_OBJECT).encode())


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", '{"bucket": "é"}'.encode("latin-1")])
def test_anything_but_a_json_object_in_utf8_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        read("catalog.frame.q", body)


# Asking for what was filed


def interface() -> str:
    sample = files("l2inv.sample").joinpath("schema.graphql").read_text("utf-8")
    if "objectInventories" in sample:
        return sample
    published = Path(__file__).parents[3] / "shared" / "store-interface.graphql"
    if not published.exists():
        pytest.skip("the store's published interface is not at hand")
    return published.read_text("utf-8")


class Filed:
    """A store that answers by its published interface, from two tables; `at_most` cuts its pages shorter."""

    def __init__(self) -> None:
        self.schema = graphql_core.build_schema(interface())
        self.rows: dict[str, list[Values]] = {"objectInventories": [], "frameInventories": []}
        self.at_most = 100_000
        self.asked = 0

    def add(self, table: str, record: Values) -> None:
        rows = [row for row in self.rows[table] if row["inventoryId"] != record["inventoryId"]]
        self.rows[table] = [*rows, record]

    def answer(self, request: Values) -> Values:
        query = graphql_core.parse(request["query"])
        if errors := graphql_core.validate(self.schema, query):
            return {"errors": [error.formatted for error in errors]}
        root = {name: self._resolver(name) for name in self.rows}
        result = graphql_core.execute_sync(self.schema, query, root, variable_values=request["variables"])
        return dict(result.formatted)

    def _resolver(self, table: str) -> Any:
        def resolve(_: object, filterParams: Values) -> list[Values]:  # noqa: N803 - its name on the wire
            self.asked += 1
            given = dict(filterParams)
            size, number = min(given.pop("pageSize"), self.at_most), given.pop("pageNumber")
            given = {name: value for name, value in given.items() if value is not None}
            rows = [row for row in self.rows[table] if given.items() <= row.items()]
            return rows[(number - 1) * size : number * size]

        return resolve


@pytest.fixture
def filed() -> Filed:
    return Filed()


@pytest.fixture
def store(filed: Filed) -> Iterator[MetadataStore]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = json.dumps(filed.answer(json.loads(body))).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield MetadataStore(url=f"http://127.0.0.1:{server.server_port}/graphql", page_size=3, retries=0)
    server.shutdown()
    thread.join()
    server.server_close()


def all_filed(filed: Filed) -> None:
    for message in messages():
        table = "objectInventories" if message.routing_key == OBJECT else "frameInventories"
        filed.add(table, read(QUEUES[message.routing_key], message.body))


@pytest.mark.parametrize("query", [OBJECTS, FRAMES], ids=["objects", "frames"])
def test_the_queries_are_valid_by_the_published_interface(query: graphql.Query) -> None:
    schema = graphql_core.build_schema(interface())
    assert graphql_core.validate(schema, graphql_core.parse(query.text)) == []
    kind = schema.query_type.fields[query.field].type.of_type.of_type.of_type  # type: ignore[union-attr]
    known = kind.fields
    (struct,) = query.kind.__args__
    for name in struct.__struct_encode_fields__:
        required = isinstance(known[name].type, graphql_core.GraphQLNonNull)
        assert required == (name != "lostDate")


def test_cataloged_objects_are_found_once_page_by_page(filed: Filed, store: MetadataStore) -> None:
    all_filed(filed)
    other = {"objectName": ASDF.replace("7QK2ZD", "AAAAAA"), "groupId": "inv.AAAAAA"}
    body = json.dumps(GOOD_OBJECT | other).encode()
    filed.add("objectInventories", read("catalog.object.q", body))
    with service(store) as told:
        (found,) = told.catalog_objects("inv.7QK2ZD")
        assert (found.bucket, found.object_key, found.object_status) == ("data", ASDF, "AVAILABLE")
        assert told.catalog_objects("inv.BBBBBB") == []
        filed.asked = 0
        assert [frame.object_key for frame in told.cataloged_frames("inv.7QK2ZD")] == NAMES
        assert filed.asked == 4  # of 3, 3, 1 and none
        filed.at_most = 2  # less than what is asked for: no page may be taken for the last for that
        assert [frame.object_key for frame in told.cataloged_frames("inv.7QK2ZD")] == NAMES
        assert told.cataloged_frames("inv.AAAAAA") == []


def test_a_store_that_passes_over_the_paging_is_not_asked_for_ever(
    filed: Filed, store: MetadataStore
) -> None:
    all_filed(filed)
    rows = iter([filed.rows["frameInventories"]] * 3)  # asked once more than that, it fails
    filed.schema.query_type.fields["frameInventories"].resolve = lambda *_, **__: next(rows)  # type: ignore[union-attr]
    with service(store) as told:
        assert [frame.object_key for frame in told.cataloged_frames("inv.7QK2ZD")] == NAMES


def test_a_store_without_a_catalog_reports_that(filed: Filed, store: MetadataStore) -> None:
    text = "type Query { datasetInventories: [String!]! }"
    filed.schema = graphql_core.build_schema(text)
    with service(store) as told, pytest.raises(StoreRefused, match="ObjectInventoriesRequest"):
        told.catalog_objects("inv.7QK2ZD")


# From l2inv over RabbitMQ to the store


@pytest.mark.slow
def test_announced_files_become_available_and_malformed_messages_are_refused(
    broker: Broker, filed: Filed, store: MetadataStore
) -> None:
    with broker.connected() as channel:
        broker.declare(channel)
        add_object = lambda record: filed.add("objectInventories", record)  # noqa: E731
        add_frame = lambda record: filed.add("frameInventories", record)  # noqa: E731
        with cataloging(broker.url(), add_object, add_frame) as cataloger, service(store) as told:
            missing = {key: value for key, value in GOOD_FRAME.items() if not key.startswith("increment")}
            channel.basic_publish(rabbitmq.EXCHANGE, FRAME, json.dumps(missing).encode())
            for _ in range(2):  # twice is as good as once
                list(catalog.send(Catalog(url=broker.url(), timeout_seconds=20), messages()))
            until(lambda: told.catalog_objects("inv.7QK2ZD"), seconds=20)
            until(lambda: len(told.cataloged_frames("inv.7QK2ZD")) == len(NAMES), seconds=20)
            until(lambda: cataloger.refused, seconds=20)
        (found,) = filed.rows["objectInventories"]
        assert (found["objectStatus"], found["objectKey"]) == ("AVAILABLE", ASDF)
        ((queue, _, why),) = cataloger.refused
        assert queue == "catalog.frame.q"
        assert "incrementDatasetCatalogReceiptCount" in why
        assert rabbitmq.taken(channel, FRAME) == rabbitmq.taken(channel, OBJECT) == []


@pytest.mark.slow
def test_a_cataloger_without_its_queues_prints_a_hint(broker: Broker) -> None:
    with broker.connected() as channel:
        broker.declare(channel, FRAME)
    with (
        pytest.raises(L2invError, match=r"cannot take messages.*catalog\.object\.q"),
        cataloging(broker.url(), print, print),
    ):
        pass
