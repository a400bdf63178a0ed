"""A metadata store's answers: GraphQL over a made-up inventory, with the interface in schema.graphql."""

import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, lru_cache
from importlib.resources import files
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from zlib import crc32

from l2inv.errors import L2invError
from l2inv.sample.inventory import ACTIVE

if TYPE_CHECKING:
    from graphql import DocumentNode, FieldNode, GraphQLError, GraphQLField, GraphQLSchema, SelectionNode

Values = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    A status other than 200, or a body, is sent without executing the operation. `drop` closes the connection instead of
    answering: before the operation is executed, after it (the answer is lost), or midway through the answer's body.
    With only a delay or headers, the operation's own answer is sent.
    """

    status: int = 200
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    drop: Literal["before", "after", "midway"] | None = None
    delay_seconds: float = 0.0


@dataclass
class Store:
    """What is served, and what was requested. Everything may be changed while it is served.

    `objects` and `frames` are the rows of objectInventories and frameInventories, which the catalogers add.
    `token` is the required value of the header Authorization; None accepts any. `interface` is the GraphQL schema against
    which requests are validated; None is that in schema.graphql. `fault` is called before each request with the
    operation's name and the number of requests of that name so far, this one included. `requests` has the name and the
    variables of each. An operation without a name has that of its first field; a request that is not a query, "".
    """

    datasets: list[Values]
    inversions: dict[str, Values] = field(default_factory=dict)
    objects: list[Values] = field(default_factory=list)
    frames: list[Values] = field(default_factory=list)
    token: str | None = None
    interface: str | None = None
    fault: Callable[[str, int], Fault | None] | None = None
    requests: list[tuple[str, Values]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)


def execute(
    store: Store, query: str, variables: Values | None = None, operation: str | None = None
) -> Values:
    """Return the answer to a GraphQL request: `data`, `errors` or both."""
    answer = _quickly(store, query, variables, operation)
    return slowly(store, query, variables, operation) if answer is None else answer


def slowly(store: Store, query: str, variables: Values | None = None, operation: str | None = None) -> Values:
    """Return the same answer as execute(), computed by graphql-core field by field."""
    from graphql import execute_sync

    document, errors = validated(query, store.interface)
    if document is None or errors:
        return {"errors": [error.formatted for error in errors]}
    result = execute_sync(
        schema(store.interface),
        document,
        _root(store),
        variable_values=variables,
        operation_name=operation,
    )
    answer: Values = _whole(dict(result.formatted))
    return answer


class _Selection(NamedTuple):
    """A field of Query, and the columns selected from its rows."""

    key: str  # in the answer
    name: str
    field: "GraphQLField"
    node: "FieldNode"
    many: bool
    columns: tuple[
        tuple[str, str, Callable[[Any], Any]], ...
    ]  # name in the answer, name in the row, conversion


class _NotPlain(Exception):
    """The request needs graphql-core."""


def _quickly(store: Store, query: str, variables: Values | None, operation: str | None) -> Values | None:
    """Return the answer to a query of plain columns; None if it needs graphql-core's execution.

    It is as strict: graphql-core validates the query and coerces variables, arguments and values. Mutations, and
    anything with an error, are left to graphql-core.
    """
    from graphql import GraphQLError
    from graphql.execution.values import get_argument_values, get_variable_values

    found = _plan(query, store.interface, operation)
    if found is None:
        return None
    definitions, selections = found
    try:
        given = get_variable_values(schema(store.interface), definitions, variables or {})
        if isinstance(given, list):
            return None
        data: Values = {}
        for one in selections:
            argument = next(iter(get_argument_values(one.field, one.node, given).values()), None) or {}
            rows = _FIELDS[one.name](
                store, {name: value for name, value in argument.items() if value is not None}
            )
            answers = [
                {key: read(row.get(name)) for key, name, read in one.columns}
                for row in (rows if one.many else [rows])
            ]
            data[one.key] = answers if one.many else answers[0]
    except (_NotPlain, GraphQLError):
        return None
    return {"data": data}


@lru_cache(maxsize=32)
def _plan(
    query: str, interface: str | None, operation: str | None
) -> tuple[tuple[Any, ...], list[_Selection]] | None:
    """Return a valid query's variables and selections if it selects plain columns of rows, else None."""
    from graphql import OperationDefinitionNode, OperationType

    document, errors = validated(query, interface)
    if document is None or errors or len(document.definitions) != 1:
        return None
    (node,) = document.definitions
    if not isinstance(node, OperationDefinitionNode) or node.operation is not OperationType.QUERY:
        return None
    if operation is not None and (node.name is None or node.name.value != operation):
        return None
    try:
        selections = [_selection(schema(interface), field) for field in node.selection_set.selections]
    except _NotPlain:
        return None
    if len({one.key for one in selections}) < len(selections):  # graphql-core merges them
        return None
    return tuple(node.variable_definitions or ()), selections


def _selection(interface: "GraphQLSchema", node: "SelectionNode") -> _Selection:
    from graphql import FieldNode, get_nullable_type, is_list_type, is_object_type

    if not isinstance(node, FieldNode) or node.directives or interface.query_type is None:
        raise _NotPlain
    name = node.name.value
    field = interface.query_type.fields.get(name)
    if field is None or name not in _FIELDS or node.selection_set is None:
        raise _NotPlain
    of: Any = get_nullable_type(field.type)
    many = is_list_type(of)
    of = get_nullable_type(of.of_type) if many else of
    if not is_object_type(of):
        raise _NotPlain
    columns = []
    for column in node.selection_set.selections:
        if not isinstance(column, FieldNode) or column.directives or column.name.value not in of.fields:
            raise _NotPlain
        key = (column.alias or column.name).value
        columns.append((key, column.name.value, _reader(of.fields[column.name.value].type)))
    if len({key for key, _, _ in columns}) < len(columns):
        raise _NotPlain
    return _Selection((node.alias or node.name).value, name, field, node, many, tuple(columns))


def _reader(of: Any) -> Callable[[Any], Any]:
    """Return the function that converts a value of a leaf type, or a list of these, for an answer."""
    from graphql import is_leaf_type, is_list_type, is_non_null_type, is_scalar_type

    if is_non_null_type(of):
        inner = _reader(of.of_type)

        def present(value: Any) -> Any:
            if (answer := inner(value)) is None:
                raise _NotPlain
            return answer

        return present
    if is_list_type(of):
        each = _reader(of.of_type)

        def listed(value: Any) -> Any:
            if value is None:
                return None
            if not isinstance(value, list):
                raise _NotPlain
            return [each(one) for one in value]

        return listed
    if not is_leaf_type(of):
        raise _NotPlain
    serialize = of.serialize
    # Values of this type are returned unchanged by serialize and by _whole.
    as_it_is = {"Boolean": bool, "Float": None, "Int": None}.get(of.name, str if is_scalar_type(of) else None)

    def leaf(value: Any) -> Any:
        if value is None or type(value) is as_it_is:
            return value
        try:
            answer = serialize(value)
        except Exception as problem:
            raise _NotPlain from problem
        if answer is None:
            raise _NotPlain
        return _whole(answer)

    return leaf


def operation_name(query: str, operation: str | None = None) -> str:
    """Return the name under which a request is counted."""
    from graphql import FieldNode, GraphQLError, OperationDefinitionNode

    try:
        document = _parsed(query)
    except GraphQLError:
        return ""
    for node in document.definitions:
        if isinstance(node, OperationDefinitionNode):
            name = node.name.value if node.name else None
            if name and operation in (None, name):
                return name
            first = node.selection_set.selections[0]
            if not name and isinstance(first, FieldNode):
                return first.name.value
    return ""


def _whole(value: Any) -> Any:
    """Return a value with integers as the real store writes them: 393, not graphql-core's 393.0."""
    if isinstance(value, dict):
        return {name: _whole(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_whole(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@cache
def schema(interface: str | None = None) -> "GraphQLSchema":
    """Return an interface, by default that in schema.graphql. Raise L2invError if graphql-core is not installed."""
    try:
        from graphql import build_schema
    except ImportError as problem:
        hint = "pip install 'l2inv[demo]'"
        raise L2invError(
            "the sample metadata store needs graphql-core, which is not installed", hint
        ) from problem
    return build_schema(interface or files("l2inv.sample").joinpath("schema.graphql").read_text("utf-8"))


@lru_cache(maxsize=32)
def _parsed(query: str) -> "DocumentNode":
    from graphql import parse

    return parse(query)


@lru_cache(maxsize=32)
def validated(query: str, interface: str | None = None) -> "tuple[DocumentNode | None, list[GraphQLError]]":
    """Return the parsed query, None if it is not one, and its errors against the interface."""
    from graphql import GraphQLError, validate

    try:
        document = _parsed(query)
    except GraphQLError as error:
        return None, [error]
    return document, validate(schema(interface), document)


def _root(store: Store) -> Values:
    """Return the resolvers of the fields of Query and Mutation; below these, graphql-core reads the dicts itself."""

    def resolver(answer: Callable[[Store, Values], Any]) -> Callable[..., Any]:
        def resolve(_: object, **arguments: Values | None) -> Any:
            # Each field has at most one argument, in which null means the same as absent.
            given = next(iter(arguments.values()), None) or {}
            return answer(store, {name: value for name, value in given.items() if value is not None})

        return resolve

    return {name: resolver(answer) for name, answer in _FIELDS.items()}


_PAGING = ("pageSize", "pageNumber", "sortColumn")
_VIEW = "DatasetInventoryViewResponse"


def _filtered(store: Store, kind: str, rows: Iterable[Values], given: Values) -> list[Values]:
    """Return the rows, of that type of the interface, that pass every filter."""
    columns = _columns(store.interface, kind)
    for name, wanted in given.items():
        if name not in _PAGING:
            rows = filter(_lets_through(columns, name, wanted), rows)
    return list(rows)


def _lets_through(columns: dict[str, str], name: str, wanted: Any) -> Callable[[Values], bool]:
    """Return the condition of a filter on a row. Raise GraphQLError for a filter that the sample store does not support."""
    if isinstance(wanted, list):
        among = set(wanted)
        if name in columns:  # the column is a list: one common value is enough
            return lambda row: not among.isdisjoint(row.get(name) or ())
        if name.removesuffix("s") in columns:
            return lambda row: row.get(name.removesuffix("s")) in among
    elif name in columns:
        return lambda row: bool(row.get(name) == wanted)
    elif (column := name[:-3]) in columns and name[-3:] in ("Min", "Max"):
        value: Callable[[Any], Any] = _time if columns[column] == "DateTime" else float
        bound = value(wanted)
        if name.endswith("Min"):
            return lambda row: row.get(column) is not None and value(row[column]) >= bound
        return lambda row: row.get(column) is not None and value(row[column]) <= bound
    raise _refusal(f"the sample store cannot filter by {name}")


@cache
def _columns(interface: str | None, kind: str) -> dict[str, str]:
    """Return the fields of an object type, each with the name of its innermost type."""
    from graphql import get_named_type

    fields: Values = schema(interface).type_map[kind].fields  # type: ignore[attr-defined]
    return {name: get_named_type(found.type).name for name, found in fields.items()}


def _time(text: object) -> datetime:
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        raise _refusal(f"DateTime cannot represent {text!r}") from None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time


def _refusal(message: str) -> "GraphQLError":
    from graphql import GraphQLError

    return GraphQLError(message)


def _of_status(store: Store, given: Values) -> list[Values]:
    """Return the datasets that pass every filter; only active ones unless a status is requested."""
    return _filtered(store, _VIEW, store.datasets, {"status": ACTIVE} | given)


def _count(store: Store, given: Values) -> Values:
    return {"recordCount": len(_of_status(store, given))}


def _inventories(store: Store, given: Values) -> list[Values]:
    return _page(store, _of_status(store, given), given)


def _history(store: Store, given: Values) -> list[Values]:
    if not given.keys() & {"datasetId", "productId"}:
        raise _refusal("datasetId or productId is needed")
    rows = [row for row in _filtered(store, _VIEW, store.datasets, given) if row["status"] != ACTIVE]
    return _page(store, rows, {"sortColumn": "-createDate"} | given)


def _page(store: Store, rows: list[Values], given: Values) -> list[Values]:
    column = given.get("sortColumn", "createDate")
    name = column.removeprefix("-")
    if name not in _sortable(store.interface):
        raise _refusal(f"sortColumn: cannot sort by {name!r}")
    descending = column.startswith("-")
    known = [row for row in rows if row.get(name) is not None]
    known.sort(key=itemgetter(name), reverse=descending)
    nulls = [row for row in rows if row.get(name) is None]
    rows = nulls + known if descending else known + nulls  # as in PostgreSQL
    return _cut(rows, given, sys.maxsize)


def _cut(rows: list[Values], given: Values, size: int) -> list[Values]:
    number, size = given.get("pageNumber", 1), given.get("pageSize", size)
    if number < 1 or size < 1:
        raise _refusal("pageNumber and pageSize start at 1")
    return rows[(number - 1) * size : number * size]


@cache
def _sortable(interface: str | None) -> frozenset[str]:
    """Return the view's columns that can be sorted: not lists, and not scalars that are JSON objects."""
    from graphql import get_nullable_type, is_leaf_type

    fields: Values = schema(interface).type_map[_VIEW].fields  # type: ignore[attr-defined]
    leaves = {name: get_nullable_type(found.type) for name, found in fields.items()}
    ordered = ("String", "Int", "Float", "Boolean", "DateTime")
    return frozenset(name for name, at in leaves.items() if is_leaf_type(at) and at.name in ordered)


STATUSES = {
    ACTIVE: "what a plain query returns",
    "DEPRECATED": "superseded by a newer dataset of the same product",
    "REMOVED": "no longer served",
}


def _statuses(store: Store, given: Values) -> list[Values]:
    rows = [
        {
            "datasetInventoryStatusId": number,
            "datasetInventoryStatusCode": code,
            "datasetInventoryStatusDescription": meaning,
            "createDate": "2022-01-01T00:00:00",
            "updateDate": None,
        }
        for number, (code, meaning) in enumerate(STATUSES.items(), 1)
    ]
    return _filtered(store, "DatasetInventoryStatusResponse", rows, given)


def _candidates(store: Store, given: Values) -> list[Values]:
    """Return for each OP a complete recipe for each dataset, and up to two more planned; always the same."""
    ops = defaultdict(list)
    for row in _of_status(store, {}):
        if row["observingProgramExecutionId"] is not None:
            ops[row["observingProgramExecutionId"]].append(row)
    rows = [
        {
            "processingCandidateId": number,
            "dataAcquisitionCompletionDate": max(row["endTime"] or row["createDate"] for row in rows),
            "experimentId": rows[0]["primaryExperimentId"],
            "isLocked": False,
            "observingProgramExecutionId": op_id,
            "plannedRecipeCount": len(rows) + crc32(op_id.encode()) % 3,
            "proposalId": rows[0]["primaryProposalId"],
            "completeRecipeInstanceCount": len(rows),
            "totalRecipeInstanceCount": len(rows) + crc32(op_id.encode()) % 3 // 2,
            "createDate": min(row["createDate"] for row in rows),
            "updateDate": None,
        }
        for number, (op_id, rows) in enumerate(ops.items(), 1)
    ]
    return _filtered(store, "ProcessingCandidateViewResponse", rows, given)


def _inversions(store: Store, given: Values) -> list[Values]:
    return _filtered(store, "L2InversionInventoryResponse", list(store.inversions.values()), given)


def _objects(store: Store, given: Values) -> list[Values]:
    return _cut(_filtered(store, "ObjectInventoryResponse", list(store.objects), given), given, 1000)


def _frames(store: Store, given: Values) -> list[Values]:
    return _cut(_filtered(store, "FrameInventoryResponse", list(store.frames), given), given, 1000)


def _create(store: Store, given: Values) -> Values:
    name, ids = given["inversionId"], given["datasetIds"]
    buckets = {row["datasetId"]: row["bucket"] for row in _of_status(store, {"datasetIds": ids})}
    unknown = sorted(set(ids) - buckets.keys())
    if unknown:
        raise _refusal(f"no such dataset: {', '.join(unknown)}")
    if set(buckets.values()) - {given["bucket"]}:
        raise _refusal(f"not every dataset of {name} is in the bucket {given['bucket']!r}")
    now = datetime.now(UTC).replace(tzinfo=None).isoformat()
    with store.lock:
        if name in store.inversions:
            raise _refusal(f"there is an inversion {name!r} already")
        store.inversions[name] = {"asdfObjectKey": None, **given, "createDate": now, "updateDate": None}
        return store.inversions[name]


_FIELDS: dict[str, Callable[[Store, Values], Any]] = {
    "datasetInventories": _inventories,
    "datasetInventoriesRecordCount": _count,
    "datasetInventoryHistory": _history,
    "datasetInventoryStatuses": _statuses,
    "processingCandidates": _candidates,
    "l2Inversions": _inversions,
    "objectInventories": _objects,
    "frameInventories": _frames,
    "createL2InversionInventory": _create,
}
