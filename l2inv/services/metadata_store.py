"""The Data Center's metadata store over GraphQL, or a saved response in a file."""

import gzip
import json
import threading
import zlib
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec

from l2inv.config.settings import MetadataStore, masked
from l2inv.domain.inventory import Dataset
from l2inv.errors import ConfigError, StoreError
from l2inv.services.graphql import Client, MayPass, Page, Query, read, short

IDS_AT_ONCE = 200
# Unique, so that pages neither overlap nor omit rows, and new rows come last. createDate is not unique.
SORTED_BY = "datasetInventoryId"
ACTIVE = "ACTIVE"  # the status code of the datasets that a plain query returns

Held = dict[
    str, Any
]  # an inversion as the store has it, under its own names; a part may be missing, or of any type

_INVERSION = "inversionId primaryProposalId instrumentProgramExecutionId bucket asdfObjectKey datasetIds spectralLines createDate"
# From the struct, so that query and reader agree. Counts and distributions are scalars in the store.
_FIELDS = " ".join(Dataset.__struct_encode_fields__)


class Recipes(msgspec.Struct, frozen=True):
    """The number of recipes that L1 plans for an OP, and of those that are complete."""

    planned: int
    complete: int


class _Candidate(msgspec.Struct, rename="camel"):
    observing_program_execution_id: str
    planned_recipe_count: int | None = None
    complete_recipe_instance_count: int | None = None


class _Count(msgspec.Struct, rename="camel"):
    record_count: Annotated[int, msgspec.Meta(ge=0)]


class _StatusCode(msgspec.Struct, rename="camel"):
    dataset_inventory_status_code: str


class _Status(msgspec.Struct, rename="camel"):
    """The status in a record."""

    status: Any = None
    is_active: Any = None  # in answers of 2023


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
    Held,
)
FIND = Query(
    f"query Find($id: String) {{ l2Inversions(filterParams: {{inversionId: $id}}) {{ {_INVERSION} }} }}",
    "l2Inversions",
    list[Held] | None,
)
FIND_BY_DATASETS = Query(
    "query FindByDatasets($ids: [String!]) { l2Inversions(filterParams: {datasetIds: $ids}) "
    f"{{ {_INVERSION} }} }}",
    "l2Inversions",
    list[Held] | None,
)


class Known(msgspec.Struct, rename="camel"):
    """The inversions that the store has before one is created: with its id, and of any of its datasets."""

    by_id: list[Held] | None
    by_datasets: list[Held] | None


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
    list[_StatusCode],
)
STATUS = Query(
    "query Status($filter: DatasetInventoryStatusesRequest) "
    "{ datasetInventoryStatuses(filterParams: $filter) { datasetInventoryStatusCode } }",
    "datasetInventoryStatuses",
    list[_StatusCode],
)


class CatalogObject(msgspec.Struct, frozen=True, rename="camel"):
    """A cataloged file of a group, such as an inversion's ASDF file."""

    inventory_id: str
    bucket: str
    object_key: str
    object_status: str
    object_type: str
    create_date: str
    lost_date: str | None = None


class CatalogedFrame(msgspec.Struct, frozen=True, rename="camel"):
    """A cataloged FITS file."""

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


class Look(msgspec.Struct, frozen=True):
    """What a store over HTTP answered to the cheapest query."""

    url: str
    reachable: bool
    authorized: bool
    takes_variables: bool | None  # null: not proven
    status_codes: list[str]


class Saved(msgspec.Struct, frozen=True):
    """What a saved response holds: its records, and how many of them are of active datasets."""

    path: str
    records: int
    datasets: int


class Source(Protocol):
    """A source of datasets: a metadata store over HTTP, or its response saved in a file."""

    name: str

    def count(self, updated_since: datetime | None = None) -> int | None:
        """Return how many datasets pages() yields; None if that is unknown. Raise StoreError."""

    def pages(self, updated_since: datetime | None = None) -> Iterator[Page]:
        """Yield the datasets page by page, each as the JSON text of its record, in the order in which the store got them.

        With `updated_since` (a time with an offset), only those with a later updateDate; datasets that were never
        updated have none. A dataset may come twice, if the store changed meanwhile or a page was too large and was
        requested in halves. Raise StoreError if the store cannot be read to the end in time (the caller's time
        included); pages yielded until then are valid.
        """

    def holds(self, record: msgspec.Raw | bytes) -> bool:
        """Return whether a record is of an active dataset."""

    def pages_by_id(self, dataset_ids: Sequence[str]) -> Iterator[Page]:
        """Yield, like pages(), those that are still active. Raise StoreError."""

    def count_by_id(self, dataset_ids: Sequence[str]) -> int:
        """Return how many of these datasets the store reports as still active. Raise StoreError."""

    def recipes(self) -> dict[str, Recipes]:
        """Return by OP id the recipes that L1 plans and has completed. Raise StoreError if that is not available."""

    def check(self) -> None:
        """Raise ConfigError for settings with which every scan would fail."""

    def look(self) -> Look | Saved:
        """Return the answer to the cheapest query, or what the file holds. Raise StoreError.

        The query is sent once without variables and once with one, which shows whether `takes_variables` is true; it is null
        if the store has only one status code, which proves nothing.
        """


@contextmanager
def source(settings: MetadataStore) -> Iterator[Source]:
    """Yield the source in the settings. Raise ConfigError if there is none, or a setting is missing."""
    if settings.url is not None and not settings.url.startswith(("http://", "https://")):
        yield SavedResponse(settings)
        return
    with service(settings) as store:
        yield store


@contextmanager
def service(settings: MetadataStore) -> Iterator["Service"]:
    """Yield the store over HTTP. Raise ConfigError if there is none, or its token or authority is missing."""
    store = Service(settings)
    try:
        yield store
    finally:
        store.close()


class SavedResponse:
    """A file with the response to DATASETS, as JSON or gzipped JSON, perhaps with datasets of any status."""

    def __init__(self, settings: MetadataStore) -> None:
        self.settings = settings
        self.path = Path(settings.url or "")
        self.name = f"saved response {masked(settings.url or '')}"

    def count(self, updated_since: datetime | None = None) -> None:
        return None

    def pages(self, updated_since: datetime | None = None) -> Iterator[Page]:
        """Yield the file's records. Its size is limited like an answer over HTTP: a small .gz may unpack to any size."""
        most = self.settings.max_answer_mb * 1_000_000
        try:
            with gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb") as file:
                content = file.read(most + 1)
        except (OSError, EOFError, zlib.error) as problem:
            raise StoreError(f"{self.name}: {short(problem)}", "check metadata_store.url") from problem
        if len(content) > most:
            raise StoreError(
                f"{self.name}: more than {self.settings.max_answer_mb} MB",
                "raise metadata_store.max_answer_mb",
            )
        records: Page = read(content, DATASETS, self.name)
        for start in range(0, len(records), self.settings.page_size):
            yield records[start : start + self.settings.page_size]

    def holds(self, record: msgspec.Raw | bytes) -> bool:
        """Return whether a record is active; also True without a status, or if it cannot be decoded."""
        try:
            status = msgspec.json.decode(record, type=_Status)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            try:  # strict JSON has no NaN
                status = msgspec.convert(json.loads(bytes(record)), _Status)
            except (ValueError, RecursionError, msgspec.ValidationError):
                return True
        if status.is_active is False:
            return False
        return not isinstance(status.status, str) or status.status.upper() == ACTIVE

    def pages_by_id(self, dataset_ids: Sequence[str]) -> Iterator[Page]:
        """Return no pages: a file has no more than was read."""
        return iter(())

    def count_by_id(self, dataset_ids: Sequence[str]) -> int:
        return 0

    def recipes(self) -> dict[str, Recipes]:
        raise StoreError("a saved response has no recipes", "set metadata_store.url to the service")

    def check(self) -> None:
        if not self.path.is_file():
            raise ConfigError("metadata_store.url", [f"there is no {self.name}"])

    def look(self) -> Saved:
        active = [self.holds(record) for page in self.pages() for record in page]
        return Saved(masked(self.settings.url or ""), len(active), sum(active))


class Service(Client):
    """The Data Center's metadata store over HTTP."""

    def count(self, updated_since: datetime | None = None) -> int:
        return self._count(_since(updated_since), self.deadline())

    def pages(self, updated_since: datetime | None = None) -> Iterator[Page]:
        return self._pages(_since(updated_since), self.deadline())

    def holds(self, record: msgspec.Raw | bytes) -> bool:
        return True

    def pages_by_id(self, dataset_ids: Sequence[str]) -> Iterator[Page]:
        until = self.deadline()
        for filters in _by_id(dataset_ids):
            yield from self._pages(filters, until)

    def count_by_id(self, dataset_ids: Sequence[str]) -> int:
        until = self.deadline()
        return sum(self._count(filters, until) for filters in _by_id(dataset_ids))

    def recipes(self) -> dict[str, Recipes]:
        found: list[_Candidate] = self.ask(CANDIDATES, {})
        return {
            c.observing_program_execution_id: Recipes(
                c.planned_recipe_count or 0, c.complete_recipe_instance_count or 0
            )
            for c in found
        }

    def check(self) -> None:
        """Do nothing: __init__ checked the settings."""

    def look(self) -> Look:
        codes = self._status_codes(STATUSES, {})
        try:
            active = self._status_codes(STATUS, {"filter": {"datasetInventoryStatusCode": ACTIVE}})
        except StoreError as problem:
            raise StoreError(
                f"{problem.message} (for a query with a variable; one without is answered)", _VARIABLES
            ) from problem
        others = [code for code in codes if code.upper() != ACTIVE]
        if not set(active).isdisjoint(others):
            raise StoreError(f"{self.name}: ignores the variables of a query", _VARIABLES)
        return Look(masked(self.settings.url or ""), True, True, True if others else None, codes)

    def create_inversion(self, params: Mapping[str, Any]) -> Held:
        """Create an inversion's record and return it as the store has it. Not repeated if the answer is lost.

        Raise StoreError; then find_inversion shows whether the store created it anyway.
        """
        held: Held = self.ask(CREATE, {"params": params})
        return held

    def find_inversion(self, inversion_id: str) -> Held | None:
        """Return the inversion with an inversionId, or None. Raise StoreError, also if the answer has another id."""
        return self._of_id(self.ask(FIND, {"id": inversion_id}), inversion_id)

    def known_inversions(
        self, inversion_id: str, dataset_ids: Sequence[str]
    ) -> tuple[Held | None, list[Held]]:
        """Return in one request what find_inversion and inversions_of return. Raise StoreError."""
        known: Known = self.ask(KNOWN, {"id": inversion_id, "ids": list(dataset_ids)})
        return self._of_id(known.by_id, inversion_id), known.by_datasets or []

    def _of_id(self, found: list[Held] | None, inversion_id: str) -> Held | None:
        for held in found or ():
            if held.get("inversionId") != inversion_id:
                raise StoreError(
                    f"{self.name}: was asked for {inversion_id}, and answered with {str(held.get('inversionId'))[:80]!r}",
                    "ask who runs the metadata store",
                )
        return found[0] if found else None

    def inversions_of(self, dataset_ids: Sequence[str]) -> list[Held]:
        """Return the inversions that the store has of any of the datasets. Raise StoreError."""
        return self.ask(FIND_BY_DATASETS, {"ids": list(dataset_ids)}) or []

    def catalog_objects(self, group_id: str) -> list["CatalogObject"]:
        """Return the cataloged files of a group, such as an inversion's id. Raise StoreError."""
        return self._filed(OBJECTS, {"groupId": group_id})

    def cataloged_frames(self, inversion_id: str) -> list["CatalogedFrame"]:
        """Return the cataloged FITS files with an inversion's id, which is DSETID in their header. Raise StoreError."""
        return self._filed(FRAMES, {"datasetId": inversion_id})

    def _filed(self, query: Query, filters: Mapping[str, Any]) -> list[Any]:
        """Return the files of all pages, each once. There is neither a count nor an order: a page without new files is the last."""
        found: dict[str, Any] = {}
        number = 0
        while True:
            number += 1
            asked = {**filters, "pageSize": self.settings.page_size, "pageNumber": number}
            page = self.ask(query, {"filter": asked})
            new = {one.inventory_id: one for one in page if one.inventory_id not in found}
            if not new:
                return list(found.values())
            found |= new

    def _count(self, filters: Mapping[str, Any], until: float) -> int:
        counted: _Count = self.ask(COUNT, {"filter": filters}, until)
        return counted.record_count

    def _status_codes(self, query: Query, variables: Mapping[str, Any]) -> list[str]:
        return [status.dataset_inventory_status_code for status in self.ask(query, variables)]

    def _pages(self, filters: Mapping[str, Any], until: float) -> Iterator[Page]:
        """Yield every page. `at` counts the records so far, so that the page size may change in between."""
        at, size, count = 0, self.settings.page_size, self._count(filters, until)
        while True:
            try:
                with closing(self._ahead(filters, at, size, count, until)) as pages:
                    for start, page in pages:
                        if not page:
                            return
                        yield page
                        at = max(at, start + len(page))
                        # A full page may not be the last, whatever the count. A store that ignores paging would return
                        # it forever: hence the new count.
                        if at >= count and (
                            len(page) != size or (at > count and self._count(filters, until) < at)
                        ):
                            return
                        if len(page) != size:  # the store has its own page size, and may number pages by it
                            size = len(page)
                            break
            except MayPass as problem:
                if not problem.less or size == 1:
                    raise
                # This fails if the store is down, when smaller pages would not help either.
                count = self._count(filters, until)
                size //= 2

    def _ahead(
        self, filters: Mapping[str, Any], at: int, size: int, count: int, until: float
    ) -> Generator[tuple[int, Page], None, None]:
        """Yield pages without end, each with the number of records before it, from the one with record `at` on.

        Up to the count, several are requested in parallel; closing the generator abandons those in flight.
        """
        window: deque[tuple[int, Future[Page]]] = deque()
        given_up = threading.Event()
        start = at - at % size
        try:
            while True:
                while not window or (len(window) < self.settings.parallel_pages and start < count):
                    paging = {"pageSize": size, "pageNumber": start // size + 1, "sortColumn": SORTED_BY}
                    asked = self.begin(DATASETS, {"filter": {**filters, **paging}}, until, given_up)
                    window.append((start, asked))
                    start += size
                before, page = window.popleft()
                yield before, self.wait(page, until)
        finally:
            given_up.set()


_VARIABLES = "l2inv passes all arguments as variables: ask who runs the gateway whether it supports them"


def check(settings: MetadataStore) -> None:
    """Raise ConfigError for settings with which every scan would fail: a missing file, authority or token."""
    if settings.url is not None:
        with source(settings) as store:
            store.check()


def look(settings: MetadataStore) -> Look | Saved | None:
    """Return the store's answer to the cheapest query, or what a saved response holds; None without a store.

    Raise ConfigError, and StoreError if it does not answer, refuses l2inv, does not support variables, or if the saved
    response cannot be read.
    """
    if settings.url is None:
        return None
    with source(settings) as store:
        return store.look()


def _by_id(dataset_ids: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    for start in range(0, len(dataset_ids), IDS_AT_ONCE):
        yield {"datasetIds": list(dataset_ids[start : start + IDS_AT_ONCE])}


def _since(moment: datetime | None) -> Mapping[str, Any]:
    """Return the filter, with the time in UTC without an offset, as in the store."""
    return {"updateDateMin": moment.astimezone(UTC).replace(tzinfo=None).isoformat()} if moment else {}
