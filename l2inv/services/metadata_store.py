"""What l2inv asks of and tells the Data Center's metadata store: GraphQL over HTTP, or a saved answer in a file."""

import gzip
import json
import threading
import time
import zlib
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec

from l2inv.config.settings import MetadataStore, masked
from l2inv.domain.inventory import Dataset
from l2inv.errors import ConfigError, StoreError
from l2inv.services.graphql import (
    MayPass,
    Page,
    Query,
    ask,
    ask_until,
    awaited,
    in_background,
    is_file,
    named,
    read,
    session,
    short,
)

if TYPE_CHECKING:
    import requests

IDS_AT_ONCE = 200
# No two rows share it, so that pages neither overlap nor leave out any, and what is new comes last: createDate does
# neither for datasets of the same instant.
SORTED_BY = "datasetInventoryId"
ACTIVE = "ACTIVE"  # of the codes of a dataset's status, the one that a plain query returns

_INVERSION = "inversionId primaryProposalId instrumentProgramExecutionId bucket asdfObjectKey datasetIds spectralLines createDate"
# The struct's own fields, so that query and reader cannot disagree. Counts and distributions are scalars of the store's.
_FIELDS = " ".join(Dataset.__struct_encode_fields__)


class Recipes(msgspec.Struct, frozen=True):
    """How many recipes L1 plans for an OP, and how many it has run."""

    planned: int
    complete: int


class _Candidate(msgspec.Struct, rename="camel"):
    observing_program_execution_id: str
    planned_recipe_count: int | None = None
    complete_recipe_instance_count: int | None = None


class _Count(msgspec.Struct, rename="camel"):
    record_count: Annotated[int, msgspec.Meta(ge=0)]


class _Status(msgspec.Struct, rename="camel"):
    dataset_inventory_status_code: str


DATASETS = Query(
    f"query Datasets($filter: DatasetInventoriesRequest) {{ datasetInventories(filterParams: $filter) {{ {_FIELDS} }} }}",
    "datasetInventories",
    Page,
)
COUNT = Query(
    "query Count($filter: DatasetInventoryRecordCountRequest) { datasetInventoriesRecordCount(filterParams: $filter) { recordCount } }",
    "datasetInventoriesRecordCount",
    _Count,
)
CREATE = Query(
    f"mutation Create($params: L2InversionInventory!) {{ createL2InversionInventory(createParams: $params) {{ {_INVERSION} }} }}",
    "createL2InversionInventory",
    dict[str, Any],
)
FIND = Query(
    f"query Find($id: String) {{ l2Inversions(filterParams: {{inversionId: $id}}) {{ {_INVERSION} }} }}",
    "l2Inversions",
    list[dict[str, Any]] | None,
)
FIND_BY_DATASETS = Query(
    "query FindByDatasets($ids: [String!]) { l2Inversions(filterParams: {datasetIds: $ids}) "
    f"{{ {_INVERSION} }} }}",
    "l2Inversions",
    list[dict[str, Any]] | None,
)


class Known(msgspec.Struct, rename="camel"):
    """What the store holds of inversions before it is told of one: under its id, and of any of its datasets."""

    by_id: list[dict[str, Any]] | None
    by_datasets: list[dict[str, Any]] | None


KNOWN = Query(
    "query Known($id: String, $ids: [String!]) { "
    f"byId: l2Inversions(filterParams: {{inversionId: $id}}) {{ {_INVERSION} }} "
    f"byDatasets: l2Inversions(filterParams: {{datasetIds: $ids}}) {{ {_INVERSION} }} }}",
    "",
    Known,
)
CANDIDATES = Query(
    "query Candidates { processingCandidates(filterParams: {}) "
    "{ observingProgramExecutionId plannedRecipeCount completeRecipeInstanceCount } }",
    "processingCandidates",
    list[_Candidate],
)
STATUSES = Query(
    "query Statuses { datasetInventoryStatuses { datasetInventoryStatusCode } }",
    "datasetInventoryStatuses",
    list[_Status],
)
STATUS = Query(
    "query Status($filter: DatasetInventoryStatusesRequest) "
    "{ datasetInventoryStatuses(filterParams: $filter) { datasetInventoryStatusCode } }",
    "datasetInventoryStatuses",
    list[_Status],
)


class _Reading(NamedTuple):
    """A session for each request in flight, and when (by time.monotonic) all must be read; `over` once none waits."""

    store: MetadataStore
    sessions: "SimpleQueue[requests.Session]"
    until: float
    over: threading.Event


def dataset_pages(store: MetadataStore, updated_since: datetime | None = None) -> Iterator[Page]:
    """Return the active datasets page by page, each as the JSON text of its record, in the order in which they came in.

    With `updated_since` (a time with an offset) only those whose updateDate is no earlier; one that was never
    updated has none. A saved file gives all that it holds, but for those that it says are of another status. A dataset may come twice: where the store changed meanwhile, or
    a page was too heavy and was asked for in halves. Raise ConfigError, and StoreError when the store cannot be
    read to its end, in time (what the caller takes for the pages counts too); those given until then are good.
    """
    if is_file(store):
        records = _saved(store)
        for start in range(0, len(records), store.page_size):
            yield records[start : start + store.page_size]
        return
    with _reading(store) as reading:
        yield from _pages(reading, _since(updated_since))


def record_count(store: MetadataStore, updated_since: datetime | None = None) -> int | None:
    """Return how many datasets the store says dataset_pages has to give; None for a saved file.

    Raise ConfigError and StoreError.
    """
    if is_file(store):
        return None
    with _reading(store) as reading:
        return _count(reading, _since(updated_since))


def datasets_by_id(store: MetadataStore, dataset_ids: Sequence[str]) -> Iterator[Page]:
    """Return, as dataset_pages does, those that are still active. A saved file has no more than was read of it: none.

    Raise ConfigError and StoreError.
    """
    if is_file(store):
        yield []
        return
    with _reading(store) as reading:
        for filters in _by_id(dataset_ids):
            yield from _pages(reading, filters)


def count_by_id(store: MetadataStore, dataset_ids: Sequence[str]) -> int:
    """Return how many datasets the store says are still active of those named; 0 for a saved file.

    Raise ConfigError and StoreError.
    """
    if is_file(store):
        return 0
    with _reading(store) as reading:
        return sum(_count(reading, filters) for filters in _by_id(dataset_ids))


def _by_id(dataset_ids: Sequence[str]) -> Iterator[dict[str, Any]]:
    for start in range(0, len(dataset_ids), IDS_AT_ONCE):
        yield {"datasetIds": list(dataset_ids[start : start + IDS_AT_ONCE])}


def create_inversion(
    http: "requests.Session", store: MetadataStore, params: dict[str, Any]
) -> dict[str, Any]:
    """Tell the store of an inversion and return what it then holds of it. Not repeated when the answer is lost.

    Raise StoreError; find_inversion says whether the store took it all the same.
    """
    held: dict[str, Any] = ask(http, store, CREATE, {"params": params})
    return held


def find_inversion(
    http: "requests.Session", store: MetadataStore, inversion_id: str
) -> dict[str, Any] | None:
    """Return what the store holds under an inversionId, or None. Raise StoreError, also for one of another id."""
    return _of_id(store, ask(http, store, FIND, {"id": inversion_id}), inversion_id)


def _of_id(
    store: MetadataStore, found: list[dict[str, Any]] | None, inversion_id: str
) -> dict[str, Any] | None:
    for held in found or ():
        if held.get("inversionId") != inversion_id:
            raise StoreError(
                f"{named(store)}: asked for {inversion_id}, and answers with {str(held.get('inversionId'))[:80]!r}",
                "ask who runs the metadata store",
            )
    return found[0] if found else None


def known_inversions(
    http: "requests.Session", store: MetadataStore, inversion_id: str, dataset_ids: Sequence[str]
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Return in one request what find_inversion and inversions_of return. Raise StoreError."""
    known: Known = ask(http, store, KNOWN, {"id": inversion_id, "ids": list(dataset_ids)})
    return _of_id(store, known.by_id, inversion_id), known.by_datasets or []


def inversions_of(
    http: "requests.Session", store: MetadataStore, dataset_ids: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the inversions that the store holds of any of the datasets. Raise StoreError."""
    return ask(http, store, FIND_BY_DATASETS, {"ids": list(dataset_ids)}) or []


def processing_candidates(store: MetadataStore) -> dict[str, Recipes]:
    """Return for each OP id what L1 plans and has finished of it. Raise ConfigError, and StoreError when denied."""
    with session(store) as http:
        found = ask(http, store, CANDIDATES, {})
    return {
        c.observing_program_execution_id: Recipes(
            c.planned_recipe_count or 0, c.complete_recipe_instance_count or 0
        )
        for c in found
    }


def check(store: MetadataStore) -> None:
    """Raise ConfigError for what would keep every scan from even asking: a missing file, authority or token."""
    if is_file(store):
        if not Path(store.url or "").is_file():
            raise ConfigError("metadata_store.url", [f"there is no {named(store)}"])
    elif store.url is not None:
        with session(store):
            pass


def look(store: MetadataStore) -> dict[str, Any] | None:
    """Return what a store over HTTP answers to the cheapest question; None where there is none.

    It is asked once without variables and once with one, by which `takes_variables` is true, or null where the store
    has no code of a status but one, so that nothing is proven. Raise ConfigError, and StoreError when it does not
    answer, refuses l2inv, or does not take variables.
    """
    if store.url is None or is_file(store):
        return None
    with _reading(store) as reading:
        codes = _codes(reading, STATUSES, {})
        try:
            active = _codes(reading, STATUS, {"filter": {"datasetInventoryStatusCode": ACTIVE}})
        except StoreError as problem:
            raise StoreError(
                f"{problem.message} (to a question with a variable; it answers one without)", _VARIABLES
            ) from problem
    others = [code for code in codes if code.upper() != ACTIVE]
    if not set(active).isdisjoint(others):
        raise StoreError(f"{named(store)}: passes over the variables of a question", _VARIABLES)
    return {
        "url": masked(store.url),
        "reachable": True,
        "authorized": True,
        "takes_variables": True if others else None,
        "status_codes": codes,
    }


_VARIABLES = "l2inv passes all arguments as variables: ask who runs the gateway whether it takes them"


def _codes(reading: _Reading, query: Query, variables: Mapping[str, Any]) -> list[str]:
    found = _got(reading, _asked(reading, query, variables, reading.over))
    return [status.dataset_inventory_status_code for status in found]


def _since(moment: datetime | None) -> dict[str, Any]:
    """The store's times are UTC without an offset."""
    return {"updateDateMin": moment.astimezone(UTC).replace(tzinfo=None).isoformat()} if moment else {}


@contextmanager
def _reading(store: MetadataStore) -> Iterator[_Reading]:
    with ExitStack() as stack:
        sessions: SimpleQueue[requests.Session] = SimpleQueue()
        for _ in range(store.parallel_pages):
            sessions.put(stack.enter_context(session(store)))
        over = threading.Event()
        stack.callback(over.set)
        yield _Reading(store, sessions, time.monotonic() + store.total_timeout_seconds, over)


def _pages(reading: _Reading, filters: Mapping[str, Any]) -> Iterator[Page]:
    """Every page to the last. `at` counts the records up to here, so that the size of a page may change midway."""
    at, size, count = 0, reading.store.page_size, _count(reading, filters)
    while True:
        try:
            with closing(_ahead(reading, filters, at, size, count)) as pages:
                for start, page in pages:
                    if not page:
                        return
                    yield page
                    at = max(at, start + len(page))
                    # A full page may not be the last, whatever the count. A store that ignores the paging would give it
                    # for ever: hence the new count.
                    if at >= count and (len(page) != size or (at > count and _count(reading, filters) < at)):
                        return
                    if len(page) != size:  # the store's own size then: it may number the pages by that
                        size = len(page)
                        break
        except MayPass as problem:
            if not problem.less or size == 1:
                raise
            # This fails where the store is down: there no smaller page would come either.
            count = _count(reading, filters)
            size //= 2


def _ahead(
    reading: _Reading, filters: Mapping[str, Any], at: int, size: int, count: int
) -> Generator[tuple[int, Page], None, None]:
    """Endless pages, each with the number of records before it, beginning with the one that holds record `at`.

    Up to the count, several are asked for at a time; closing this gives up those in flight.
    """
    window: deque[tuple[int, Future[Page]]] = deque()
    given_up = threading.Event()
    start = at - at % size
    try:
        while True:
            while not window or (len(window) < reading.store.parallel_pages and start < count):
                paging = {"pageSize": size, "pageNumber": start // size + 1, "sortColumn": SORTED_BY}
                asked = _asked(reading, DATASETS, {"filter": {**filters, **paging}}, given_up)
                window.append((start, asked))
                start += size
            before, page = window.popleft()
            yield before, _got(reading, page)
    finally:
        given_up.set()


def _count(reading: _Reading, filters: Mapping[str, Any]) -> int:
    counted: _Count = _got(reading, _asked(reading, COUNT, {"filter": filters}, reading.over))
    return counted.record_count


def _asked(
    reading: _Reading, query: Query, variables: Mapping[str, Any], given_up: threading.Event
) -> "Future[Any]":
    """The answer to come, by the first session that is free."""

    def answer() -> Any:
        http = reading.sessions.get()
        try:
            return ask_until(reading.until, http, reading.store, query, variables, given_up)
        finally:
            reading.sessions.put(http)

    return in_background(answer)


def _got(reading: _Reading, future: "Future[Any]") -> Any:
    return awaited(reading.store, reading.until, future)


def _saved(store: MetadataStore) -> Page:
    """A saved answer, held to the same limit as one over HTTP: a small .gz may unpack to any size."""
    path, where, most = Path(store.url or ""), named(store), store.max_answer_mb * 1_000_000
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as problem:
        raise StoreError(f"{where}: {short(problem)}", "check metadata_store.url") from problem
    if len(content) > most:
        raise StoreError(f"{where}: more than {store.max_answer_mb} MB", "raise metadata_store.max_answer_mb")
    page: Page = read(content, DATASETS, where)
    return [record for record in page if _is_active(record)]


class _Told(msgspec.Struct, rename="camel"):
    status: Any = None
    is_active: Any = None  # as answers of 2023 told it


def _is_active(record: msgspec.Raw) -> bool:
    """Return whether the store would return a record of a saved answer, which may hold all that there are.

    One that does not tell is active, and what cannot be read is left to the reader.
    """
    try:
        told = msgspec.json.decode(record, type=_Told)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        try:  # strict JSON has no NaN
            told = msgspec.convert(json.loads(bytes(record)), _Told)
        except (ValueError, RecursionError, msgspec.ValidationError):
            return True
    return told.is_active is not False and (not isinstance(told.status, str) or told.status.upper() == ACTIVE)


class CatalogObject(msgspec.Struct, frozen=True, rename="camel"):
    """A file of a group, such as an inversion's ASDF file, as the catalogers filed it."""

    inventory_id: str
    bucket: str
    object_key: str
    object_status: str
    object_type: str
    create_date: str
    lost_date: str | None = None


class CatalogedFrame(msgspec.Struct, frozen=True, rename="camel"):
    """A FITS file as the catalogers filed it, by its header."""

    inventory_id: str
    bucket: str
    object_key: str
    frame_status: str
    create_date: str
    lost_date: str | None = None


OBJECTS = Query(
    "query Objects($filter: ObjectInventoriesRequest) { objectInventories(filterParams: $filter) "
    f"{{ {' '.join(CatalogObject.__struct_encode_fields__)} }} }}",
    "objectInventories",
    list[CatalogObject],
)
FRAMES = Query(
    "query Frames($filter: FrameInventoriesRequest) { frameInventories(filterParams: $filter) "
    f"{{ {' '.join(CatalogedFrame.__struct_encode_fields__)} }} }}",
    "frameInventories",
    list[CatalogedFrame],
)


def catalog_objects(http: "requests.Session", store: MetadataStore, group_id: str) -> list[CatalogObject]:
    """Return the files that the catalogers filed for a group; an inversion's id is one. Raise StoreError."""
    return _filed(http, store, OBJECTS, {"groupId": group_id})


def cataloged_frames(
    http: "requests.Session", store: MetadataStore, inversion_id: str
) -> list[CatalogedFrame]:
    """Return the FITS files filed under an inversion's id, which their header has as DSETID. Raise StoreError."""
    return _filed(http, store, FRAMES, {"datasetId": inversion_id})


def _filed(
    http: "requests.Session", store: MetadataStore, query: Query, filters: Mapping[str, Any]
) -> list[Any]:
    """Every page, each file once. Neither a count nor an order can be asked for: a page without news is the last."""
    found: dict[str, Any] = {}
    number = 0
    while True:
        number += 1
        asked = {**filters, "pageSize": store.page_size, "pageNumber": number}
        page = ask(http, store, query, {"filter": asked})
        news = {one.inventory_id: one for one in page if one.inventory_id not in found}
        if not news:
            return list(found.values())
        found |= news
