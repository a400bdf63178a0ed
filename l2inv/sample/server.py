"""A metadata store over a made-up inventory, on loopback, which answers as the real one does and fails on demand."""

import gzip
import hmac
import socket
import socketserver
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, lru_cache
from http.server import BaseHTTPRequestHandler
from importlib.resources import files
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

import msgspec

from l2inv.errors import L2invError
from l2inv.sample.inventory import ACTIVE

if TYPE_CHECKING:
    from graphql import DocumentNode, GraphQLError, GraphQLSchema

Values = dict[str, Any]

HOST = "127.0.0.1"
PATH = "/graphql"


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    A status other than 200, or a body, is the answer instead of the operation's, which is not executed.
    `drop` closes the connection instead: before the operation is executed, after it (the answer is lost), or in
    the middle of the answer's body. A mere delay or mere headers come with the operation's own answer.
    """

    status: int = 200
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    drop: Literal["before", "after", "midway"] | None = None
    delay_seconds: float = 0.0


@dataclass
class Store:
    """What the server serves, and what it was asked. Everything may be changed while it serves.

    `token`: the bearer token that is required, if any. `fault`: asked before each request, with the operation's
    name and how many of that name there were with this one. `requests`: each operation's name and variables, as
    they came. An operation without a name goes by its first field's; a query that is none has the name "".
    """

    datasets: list[Values]
    inversions: dict[str, Values] = field(default_factory=dict)
    token: str | None = None
    fault: Callable[[str, int], Fault | None] | None = None
    requests: list[tuple[str, Values]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(store: Store, port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serves the store on loopback while the context lasts, and gives its URL. Port 0 takes any free one.

    Raises L2invError when graphql-core is not installed or the port is taken.
    """
    _schema()
    try:
        server = _Server((HOST, port), _Handler)
    except OSError as problem:
        raise L2invError(
            f"cannot serve on {HOST}:{port}: {problem.strerror}", "choose another port"
        ) from problem
    server.store = store
    if tls:
        # The handshake is the handler's: here it would let one silent client block all others.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://{HOST}:{server.server_address[1]}{PATH}"
    finally:
        server.shutdown()
        thread.join()
        server.hang_up()
        server.server_close()


def run_forever(store: Store, port: int) -> None:
    """Serves the store until a KeyboardInterrupt. Raises L2invError as `serving` does."""
    with suppress(KeyboardInterrupt), serving(store, port):
        threading.Event().wait()


def execute(
    store: Store, query: str, variables: Values | None = None, operation: str | None = None
) -> Values:
    """Gives what the store answers to a GraphQL request: `data`, `errors` or both."""
    from graphql import execute_sync

    document, errors = _validated(query)
    if document is None or errors:
        return {"errors": [error.formatted for error in errors]}
    root = _root(store)
    result = execute_sync(_schema(), document, root, variable_values=variables, operation_name=operation)
    return dict(result.formatted)


@cache
def _schema() -> "GraphQLSchema":
    try:
        from graphql import build_schema
    except ImportError as problem:
        hint = "pip install 'l2inv[demo]'"
        raise L2invError(
            "the sample metadata store needs graphql-core, which is not installed", hint
        ) from problem
    return build_schema(files("l2inv.sample").joinpath("schema.graphql").read_text("utf-8"))


@lru_cache(maxsize=32)
def _validated(query: str) -> "tuple[DocumentNode | None, list[GraphQLError]]":
    from graphql import GraphQLError, parse, validate

    try:
        document = parse(query)
    except GraphQLError as error:
        return None, [error]
    return document, validate(_schema(), document)


def _root(store: Store) -> Values:
    """What each field of Query and Mutation resolves to; below them graphql-core reads the dicts by itself."""
    return {
        "datasetInventories": lambda _, filterParams=None: _page(store, filterParams or {}),
        "datasetInventoriesRecordCount": lambda _, filterParams=None: {
            "recordCount": len(_filtered(store, filterParams or {}))
        },
        "processingCandidates": lambda _, filterParams=None: _candidates(store, filterParams or {}),
        "experimentDescriptions": lambda _: _experiments(store),
        "l2Inversions": lambda _, filterParams=None: _inversions(store, filterParams or {}),
        "createL2InversionInventory": lambda _, createParams: _create(store, createParams),
    }


_LISTS = {
    "datasetIds": "datasetId",
    "productIds": "productId",
    "primaryProposalIds": "primaryProposalId",
    "primaryExperimentIds": "primaryExperimentId",
    "instrumentNames": "instrumentName",
}
_EQUAL = (
    "observingProgramExecutionId",
    "instrumentProgramExecutionId",
    "status",
    "isEmbargoed",
    "hasAllStokes",
)
_TIMES = ("createDate", "updateDate", "startTime", "endTime")


def _filtered(store: Store, wanted: Values) -> list[Values]:
    """The datasets that every filter lets through; a null filter lets all through, a null value passes none."""
    given = {name: value for name, value in wanted.items() if value is not None}
    rows = _where(store.datasets, "status", given.get("status", ACTIVE))
    for name, column in _LISTS.items():
        if name in given:
            names = set(given[name])
            rows = [row for row in rows if row[column] in names]
    if "spectralLines" in given:
        lines = set(given["spectralLines"])
        rows = [row for row in rows if not lines.isdisjoint(row["spectralLines"] or ())]
    for name in _EQUAL:
        if name in given:
            rows = _where(rows, name, given[name])
    for name in _TIMES:
        if name + "Min" in given:
            first = _time(given[name + "Min"])
            rows = [row for row in rows if row[name] is not None and _time(row[name]) >= first]
        if name + "Max" in given:
            last = _time(given[name + "Max"])
            rows = [row for row in rows if row[name] is not None and _time(row[name]) <= last]
    return rows


def _where(rows: list[Values], name: str, value: object) -> list[Values]:
    return [row for row in rows if row[name] == value]


def _page(store: Store, wanted: Values) -> list[Values]:
    from graphql import GraphQLError

    column = wanted.get("sortColumn") or "createDate"
    name = column.removeprefix("-")
    if name not in _sortable():
        raise GraphQLError(f"sortColumn: cannot sort by {name!r}")
    number, size = wanted.get("pageNumber") or 1, wanted.get("pageSize") or sys.maxsize
    if number < 1 or size < 1:
        raise GraphQLError("pageNumber and pageSize start at 1")
    # Nulls last, or first when descending, as PostgreSQL has it.
    rows = sorted(
        _filtered(store, wanted),
        key=lambda row: (row[name] is None, row[name]),
        reverse=column.startswith("-"),
    )
    return rows[(number - 1) * size : number * size]


@cache
def _sortable() -> frozenset[str]:
    from graphql import get_nullable_type, is_leaf_type, is_object_type

    view = _schema().get_type("DatasetInventoryViewResponse")
    if not is_object_type(view):
        raise TypeError("schema.graphql has no type DatasetInventoryViewResponse")
    return frozenset(name for name, at in view.fields.items() if is_leaf_type(get_nullable_type(at.type)))


def _time(text: object) -> datetime:
    from graphql import GraphQLError

    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        raise GraphQLError(f"DateTime cannot represent {text!r}") from None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time


def _candidates(store: Store, wanted: Values) -> list[Values]:
    """As many recipes done as there are datasets, and up to two more planned, the same for an OP every time."""
    op_id = wanted.get("observingProgramExecutionId")
    done: dict[str, int] = {}
    for row in _filtered(store, {"observingProgramExecutionId": op_id}):
        if row["observingProgramExecutionId"] is not None:
            name = row["observingProgramExecutionId"]
            done[name] = done.get(name, 0) + 1
    return [
        {
            "observingProgramExecutionId": name,
            "plannedRecipeCount": complete + crc32(name.encode()) % 3,
            "totalRecipeInstanceCount": complete + min(crc32(name.encode()) % 3, 1),
            "completeRecipeInstanceCount": complete,
        }
        for name, complete in done.items()
    ]


def _experiments(store: Store) -> list[Values]:
    known = {row["primaryExperimentId"]: row["experimentDescription"] for row in store.datasets}
    return [
        {"experimentId": name, "experimentDescription": text}
        for name, text in known.items()
        if name is not None
    ]


def _inversions(store: Store, wanted: Values) -> list[Values]:
    rows = list(store.inversions.values())
    if wanted.get("inversionId") is not None:
        rows = _where(rows, "inversionId", wanted["inversionId"])
    if wanted.get("datasetIds") is not None:
        ids = set(wanted["datasetIds"])
        rows = [row for row in rows if not ids.isdisjoint(row["datasetIds"])]
    return rows


def _create(store: Store, given: Values) -> Values:
    from graphql import GraphQLError

    name, ids = given["inversionId"], given["datasetIds"]
    buckets = {row["datasetId"]: row["bucket"] for row in _filtered(store, {"datasetIds": ids})}
    unknown = sorted(set(ids) - buckets.keys())
    if unknown:
        raise GraphQLError(f"no such dataset: {', '.join(unknown)}")
    if set(buckets.values()) - {given["bucket"]}:
        raise GraphQLError(f"not all datasets of {name} lie in the bucket {given['bucket']!r}")
    now = datetime.now(UTC).replace(tzinfo=None).isoformat()
    with store.lock:
        if name in store.inversions:
            raise GraphQLError(f"there is an inversion {name!r} already")
        store.inversions[name] = {"asdfObjectKey": None, **given, "createDate": now, "updateDate": now}
        return store.inversions[name]


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 128
    store: Store

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.connections: set[socket.socket] = set()
        self.closing = threading.Event()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Ends the kept connections: a client must not be answered by a store that is gone."""
        self.closing.set()
        for connection in list(self.connections):
            with suppress(OSError):  # it is closed already
                # Not SSLSocket's own, which would pull the session from under the thread that reads.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or would not trust the certificate, is no error of the server's."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Request(msgspec.Struct):
    query: str
    variables: Values | None = None
    operationName: str | None = None  # noqa: N815 - its name on the wire


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave in one packet
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:  # noqa: N802 - named by http.server
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.close_connection = True
            return self._refuse(411, "a Content-Length is required")
        body = self.rfile.read(int(length))
        if self.path != PATH:
            return self._refuse(404, f"the store answers at {PATH}")
        try:
            request = msgspec.json.decode(body, type=_Request)
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            return self._refuse(400, str(problem))
        return self._answer(request)

    def _answer(self, request: _Request) -> None:
        fault = self._fault(request) or Fault()
        self.server.closing.wait(fault.delay_seconds)
        if fault.drop == "before":
            self.close_connection = True
        elif fault.status != 200 or fault.body is not None:
            self._send(fault.status, fault.body or b"", fault)
        elif not self._authorized():
            self._refuse(401, "a bearer token is required", Fault(headers=(("WWW-Authenticate", "Bearer"),)))
        else:
            store = self.server.store
            answer = execute(store, request.query, request.variables, request.operationName)
            if fault.drop == "after":
                self.close_connection = True
            else:
                self._send(200, msgspec.json.encode(answer), fault, compress=True)

    def _fault(self, request: _Request) -> Fault | None:
        store = self.server.store
        name = _operation(request)
        with store.lock:
            store.requests.append((name, request.variables or {}))
            nth = sum(name == other for other, _ in store.requests)
        return store.fault(name, nth) if store.fault else None

    def _authorized(self) -> bool:
        token = self.server.store.token
        given = self.headers.get("Authorization", "")
        return token is None or hmac.compare_digest(given.encode(), f"Bearer {token}".encode())

    def _refuse(self, status: int, message: str, fault: Fault = Fault()) -> None:
        self._send(status, msgspec.json.encode({"errors": [{"message": message}]}), fault)

    def _send(self, status: int, body: bytes, fault: Fault, compress: bool = False) -> None:
        headers = {"Content-Type": "application/json"}
        accepted = self.headers.get("Accept-Encoding", "").split(",")
        if compress and "gzip" in [name.split(";")[0].strip() for name in accepted]:
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body, compresslevel=1)
        headers |= {"Content-Length": str(len(body))} | dict(fault.headers)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if fault.drop == "midway":
            self.close_connection = True
            body = body[: len(body) // 2]
        self.wfile.write(body)


def _operation(request: _Request) -> str:
    from graphql import FieldNode, OperationDefinitionNode

    document, _ = _validated(request.query)
    for node in document.definitions if document else ():
        if isinstance(node, OperationDefinitionNode):
            if node.name and request.operationName in (None, node.name.value):
                return node.name.value
            first = node.selection_set.selections[0]
            if not node.name and isinstance(first, FieldNode):
                return first.name.value
    return ""
