"""What a metadata store answers: GraphQL over a made-up inventory, with the interface of schema.graphql."""

import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, lru_cache
from importlib.resources import files
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

from l2inv.errors import L2invError
from l2inv.sample.inventory import ACTIVE

if TYPE_CHECKING:
    from graphql import DocumentNode, GraphQLError, GraphQLSchema

Values = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    A status other than 200, or a body, is answered without executing the operation. `drop` closes the
    connection instead of answering: before the operation is executed, after it (the answer is lost), or
    midway through the answer's body. A mere delay, or mere headers, come with the operation's own answer.
    """

    status: int = 200
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    drop: Literal["before", "after", "midway"] | None = None
    delay_seconds: float = 0.0


@dataclass
class Store:
    """What is served, and what was asked. Everything may be changed while it is served.

    `token` is the bearer token that is required, if any. `fault` is asked before each request, with the
    operation's name and how many of that name have come, this one included. `requests` holds the name and the
    variables of each. An operation without a name goes by its first field's; what is no query is named "".
    """

    datasets: list[Values]
    inversions: dict[str, Values] = field(default_factory=dict)
    token: str | None = None
    fault: Callable[[str, int], Fault | None] | None = None
    requests: list[tuple[str, Values]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)


def execute(
    store: Store, query: str, variables: Values | None = None, operation: str | None = None
) -> Values:
    """Return what the store answers to a GraphQL request: `data`, `errors` or both."""
    from graphql import execute_sync

    document, errors = validated(query)
    if document is None or errors:
        return {"errors": [error.formatted for error in errors]}
    root = _root(store)
    result = execute_sync(schema(), document, root, variable_values=variables, operation_name=operation)
    answer: Values = _whole(dict(result.formatted))
    return answer


def operation_name(query: str, operation: str | None = None) -> str:
    """Return the name under which Store counts a request."""
    from graphql import FieldNode, OperationDefinitionNode

    document, _ = validated(query)
    for node in document.definitions if document else ():
        if isinstance(node, OperationDefinitionNode):
            name = node.name.value if node.name else None
            if name and operation in (None, name):
                return name
            first = node.selection_set.selections[0]
            if not name and isinstance(first, FieldNode):
                return first.name.value
    return ""


def _whole(value: Any) -> Any:
    """Numbers as the real store writes them: 393 where graphql-core has made it 393.0."""
    if isinstance(value, dict):
        return {name: _whole(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_whole(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@cache
def schema() -> "GraphQLSchema":
    """Return the interface. Raise L2invError when graphql-core is not installed."""
    try:
        from graphql import build_schema
    except ImportError as problem:
        hint = "pip install 'l2inv[demo]'"
        raise L2invError(
            "the sample metadata store needs graphql-core, which is not installed", hint
        ) from problem
    return build_schema(files("l2inv.sample").joinpath("schema.graphql").read_text("utf-8"))


@lru_cache(maxsize=32)
def validated(query: str) -> "tuple[DocumentNode | None, list[GraphQLError]]":
    """Return the parsed query, or None if it is none, and what is wrong with it."""
    from graphql import GraphQLError, parse, validate

    try:
        document = parse(query)
    except GraphQLError as error:
        return None, [error]
    return document, validate(schema(), document)


def _root(store: Store) -> Values:
    """What the fields of Query and Mutation resolve to; below them graphql-core reads the dicts by itself."""

    def resolver(answer: Callable[[Store, Values], Any]) -> Callable[..., Any]:
        def resolve(_: object, **arguments: Values | None) -> Any:
            # Each field has one argument at most, and a null in it says as much as its absence.
            given = next(iter(arguments.values()), None) or {}
            return answer(store, {name: value for name, value in given.items() if value is not None})

        return resolve

    return {name: resolver(answer) for name, answer in _FIELDS.items()}


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


def _filtered(store: Store, given: Values) -> list[Values]:
    """The datasets that every filter lets through; without a status asked for, the active ones."""
    rows = store.datasets
    for name in _EQUAL:
        if name in given or name == "status":
            value = given.get(name, ACTIVE)
            rows = [row for row in rows if row[name] == value]
    for name, column in _LISTS.items():
        if name in given:
            names = set(given[name])
            rows = [row for row in rows if row[column] in names]
    if "spectralLines" in given:
        lines = set(given["spectralLines"])
        rows = [row for row in rows if not lines.isdisjoint(row["spectralLines"] or ())]
    for name in _TIMES:
        if name + "Min" in given:
            first = _time(given[name + "Min"])
            rows = [row for row in rows if row[name] is not None and _time(row[name]) >= first]
        if name + "Max" in given:
            last = _time(given[name + "Max"])
            rows = [row for row in rows if row[name] is not None and _time(row[name]) <= last]
    return rows


def _time(text: object) -> datetime:
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        raise _refusal(f"DateTime cannot represent {text!r}") from None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time


def _refusal(message: str) -> "GraphQLError":
    from graphql import GraphQLError

    return GraphQLError(message)


def _count(store: Store, given: Values) -> Values:
    return {"recordCount": len(_filtered(store, given))}


def _page(store: Store, given: Values) -> list[Values]:
    column = given.get("sortColumn", "createDate")
    name = column.removeprefix("-")
    if name not in _sortable():
        raise _refusal(f"sortColumn: cannot sort by {name!r}")
    number, size = given.get("pageNumber", 1), given.get("pageSize", sys.maxsize)
    if number < 1 or size < 1:
        raise _refusal("pageNumber and pageSize start at 1")
    rows = _filtered(store, given)
    descending = column.startswith("-")
    known = sorted((row for row in rows if row[name] is not None), key=itemgetter(name), reverse=descending)
    nulls = [row for row in rows if row[name] is None]
    rows = nulls + known if descending else known + nulls  # as PostgreSQL has it
    return rows[(number - 1) * size : number * size]


@cache
def _sortable() -> frozenset[str]:
    from graphql import get_nullable_type, is_leaf_type

    fields: Values = schema().type_map["DatasetInventoryViewResponse"].fields  # type: ignore[attr-defined]
    return frozenset(name for name, at in fields.items() if is_leaf_type(get_nullable_type(at.type)))


def _candidates(store: Store, given: Values) -> list[Values]:
    """A recipe done for each dataset, and up to two more planned: for an OP the same every time."""
    done = Counter(row["observingProgramExecutionId"] for row in _filtered(store, given))
    del done[None]
    return [
        {
            "observingProgramExecutionId": op_id,
            "plannedRecipeCount": complete + crc32(op_id.encode()) % 3,
            "totalRecipeInstanceCount": complete + crc32(op_id.encode()) % 3 // 2,
            "completeRecipeInstanceCount": complete,
        }
        for op_id, complete in done.items()
    ]


def _experiments(store: Store, _: Values) -> list[Values]:
    known = {row["primaryExperimentId"]: row["experimentDescription"] for row in store.datasets}
    known.pop(None, None)
    return [{"experimentId": name, "experimentDescription": text} for name, text in known.items()]


def _inversions(store: Store, given: Values) -> list[Values]:
    rows = list(store.inversions.values())
    if "inversionId" in given:
        rows = [row for row in rows if row["inversionId"] == given["inversionId"]]
    if "datasetIds" in given:
        ids = set(given["datasetIds"])
        rows = [row for row in rows if not ids.isdisjoint(row["datasetIds"])]
    return rows


def _create(store: Store, given: Values) -> Values:
    name, ids = given["inversionId"], given["datasetIds"]
    buckets = {row["datasetId"]: row["bucket"] for row in _filtered(store, {"datasetIds": ids})}
    unknown = sorted(set(ids) - buckets.keys())
    if unknown:
        raise _refusal(f"no such dataset: {', '.join(unknown)}")
    if set(buckets.values()) - {given["bucket"]}:
        raise _refusal(f"not every dataset of {name} lies in the bucket {given['bucket']!r}")
    now = datetime.now(UTC).replace(tzinfo=None).isoformat()
    with store.lock:
        if name in store.inversions:
            raise _refusal(f"there is an inversion {name!r} already")
        store.inversions[name] = {"asdfObjectKey": None, **given, "createDate": now, "updateDate": now}
        return store.inversions[name]


_FIELDS: dict[str, Callable[[Store, Values], Any]] = {
    "datasetInventories": _page,
    "datasetInventoriesRecordCount": _count,
    "processingCandidates": _candidates,
    "experimentDescriptions": _experiments,
    "l2Inversions": _inversions,
    "createL2InversionInventory": _create,
}
