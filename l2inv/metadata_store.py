"""What l2inv asks of and tells the Data Center's metadata store: GraphQL over HTTP, or a saved answer in a file."""

import gzip
import json
import os
import random
import ssl
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
from urllib.parse import urlsplit

import msgspec

from l2inv.errors import ConfigError, StoreError, StoreRefused
from l2inv.inventory import SUBFIELDS, Dataset
from l2inv.settings import MetadataStore

if TYPE_CHECKING:
    import requests

BACKOFF_SECONDS = 0.2  # before the first retry, doubled before each further one
LONGEST_BACKOFF_SECONDS = 60.0
IDS_AT_ONCE = 200
CHUNK_BYTES = 16_384  # gzip inflates a chunk to a thousandfold at most: so much is held before it is counted

_INVERSION = "inversionId primaryProposalId instrumentProgramExecutionId bucket asdfObjectKey datasetIds spectralLines createDate"
_FIELDS = " ".join(
    f"{name} {{ {' '.join(SUBFIELDS[name])} }}" if name in SUBFIELDS else name
    for name in Dataset.__struct_encode_fields__
)
Page = list[msgspec.Raw]  # the JSON text of each record


class _Error(msgspec.Struct):
    message: str = "no message"


class _Answer(msgspec.Struct):
    data: dict[str, msgspec.Raw] | None = None
    errors: list[_Error] | None = None


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


class _Query(NamedTuple):
    """What is asked, the one field of the answer that counts, and as what that is read."""

    text: str
    field: str
    kind: Any


DATASETS = _Query(
    f"query Datasets($filter: DatasetInventoriesRequest) {{ datasetInventories(filterParams: $filter) {{ {_FIELDS} }} }}",
    "datasetInventories",
    Page,
)
COUNT = _Query(
    "query Count($filter: DatasetInventoryRecordCountRequest) { datasetInventoriesRecordCount(filterParams: $filter) { recordCount } }",
    "datasetInventoriesRecordCount",
    _Count,
)
CREATE = _Query(
    f"mutation Create($params: L2InversionInventory!) {{ createL2InversionInventory(createParams: $params) {{ {_INVERSION} }} }}",
    "createL2InversionInventory",
    dict[str, Any],
)
FIND = _Query(
    f"query Find($id: String) {{ l2Inversions(filterParams: {{inversionId: $id}}) {{ {_INVERSION} }} }}",
    "l2Inversions",
    list[dict[str, Any]] | None,
)
CANDIDATES = _Query(
    "query Candidates { processingCandidates(filterParams: {}) "
    "{ observingProgramExecutionId plannedRecipeCount completeRecipeInstanceCount } }",
    "processingCandidates",
    list[_Candidate],
)


class _MayPass(StoreError):
    """May go well when the same is asked `again`, not before `after_seconds`, or when `less` is asked for."""

    def __init__(
        self, message: str, hint: str, *, again: bool = True, less: bool = False, after_seconds: float = 0
    ) -> None:
        super().__init__(message, hint)
        self.again, self.less, self.after_seconds = again, less, after_seconds


class _Reading(NamedTuple):
    """A session for each request in flight, and when (by time.monotonic) all must be read; `over` once none waits."""

    store: MetadataStore
    sessions: "SimpleQueue[requests.Session]"
    until: float
    over: threading.Event


def is_file(store: MetadataStore) -> bool:
    """Says whether the settings name a saved answer rather than a service."""
    return store.url is not None and not store.url.startswith(("http://", "https://"))


def dataset_pages(store: MetadataStore, updated_since: datetime | None = None) -> Iterator[Page]:
    """Gives the active datasets page by page, each as the JSON text of its record, oldest createDate first.

    With `updated_since` (a time with an offset) only those whose updateDate is no earlier; one that was never
    updated has none. A saved file is given whole. A dataset may come twice: where the store changed meanwhile, or
    a page was too heavy and was asked for in halves. Raises ConfigError, and StoreError when the store cannot be
    read to its end, in time (what the caller takes for the pages counts too); those given until then are good.
    """
    if is_file(store):
        yield _saved(Path(store.url or ""))
        return
    with _reading(store) as reading:
        yield from _pages(reading, _since(updated_since))


def record_count(store: MetadataStore, updated_since: datetime | None = None) -> int | None:
    """Gives how many datasets the store says dataset_pages has to give; None for a saved file.

    Raises ConfigError and StoreError.
    """
    if is_file(store):
        return None
    with _reading(store) as reading:
        return _count(reading, _since(updated_since))


def datasets_by_id(store: MetadataStore, dataset_ids: Sequence[str]) -> Iterator[Page]:
    """Gives, as dataset_pages does, those that are still active. A saved file has no more than was read of it: none.

    Raises ConfigError and StoreError.
    """
    if is_file(store):
        yield []
        return
    with _reading(store) as reading:
        for start in range(0, len(dataset_ids), IDS_AT_ONCE):
            yield from _pages(reading, {"datasetIds": list(dataset_ids[start : start + IDS_AT_ONCE])})


def create_inversion(
    http: "requests.Session", store: MetadataStore, params: dict[str, Any]
) -> dict[str, Any]:
    """Tells the store of an inversion and gives what it then holds of it. Not repeated when the answer is lost.

    Raises StoreError; find_inversion says whether the store took it all the same.
    """
    held: dict[str, Any] = _ask(http, store, CREATE, {"params": params})
    return held


def find_inversion(
    http: "requests.Session", store: MetadataStore, inversion_id: str
) -> dict[str, Any] | None:
    """Gives what the store holds under an inversionId, or None. Raises StoreError."""
    found = _ask(http, store, FIND, {"id": inversion_id})
    return found[0] if found else None


def processing_candidates(store: MetadataStore) -> dict[str, Recipes]:
    """Gives for each OP id what L1 plans and has finished of it. Raises ConfigError, and StoreError when denied."""
    with session(store) as http:
        found = _ask(http, store, CANDIDATES, {})
    return {
        c.observing_program_execution_id: Recipes(
            c.planned_recipe_count or 0, c.complete_recipe_instance_count or 0
        )
        for c in found
    }


def check(store: MetadataStore) -> None:
    """Raises ConfigError for what would keep every scan from even asking: a missing file, authority or token."""
    if is_file(store):
        if not Path(store.url or "").is_file():
            raise ConfigError("metadata_store.url", [f"there is no saved answer {store.url}"])
    elif store.url is not None:
        with session(store):
            pass


@contextmanager
def session(store: MetadataStore) -> Iterator["requests.Session"]:
    """Lends an HTTP session with the store's certificate authority and token.

    Raises ConfigError when no service is set, its token is not in the environment, or the authority's file is none.
    """
    import requests

    if store.url is None or is_file(store):
        raise ConfigError(
            "metadata_store.url",
            [f"an http(s) URL of the metadata store is needed; set is {store.url or 'none'}"],
        )
    with requests.Session() as http:
        # Neither a password from netrc nor an authority from the environment may outvote the settings.
        http.trust_env = False
        http.proxies.update(requests.utils.get_environ_proxies(store.url))
        http.headers.update({"Accept": "application/json", "Accept-Encoding": "gzip"})
        if store.ca_bundle:
            try:
                ssl.create_default_context(cafile=store.ca_bundle)
            except OSError as problem:
                words = f"{store.ca_bundle} is no readable PEM file: {_short(problem)}"
                raise ConfigError("metadata_store.ca_bundle", [words]) from problem
            http.verify = store.ca_bundle
        if store.token_env:
            token = os.environ.get(store.token_env, "")
            if not token:
                raise ConfigError(
                    "metadata_store.token_env", [f"{store.token_env} is not set in the environment"]
                )
            if not (token.isascii() and token.isprintable()):
                words = (
                    f"{store.token_env} holds characters that no HTTP header takes, such as an end of line"
                )
                raise ConfigError("metadata_store.token_env", [words])
            http.auth = _bearer(token)
        yield http


def _bearer(token: str) -> Any:
    def sign(request: "requests.PreparedRequest") -> "requests.PreparedRequest":
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return sign


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
                    # A store that ignores the paging would give the same full page for ever: hence the new count.
                    if at >= count and (len(page) != size or _count(reading, filters) <= at):
                        return
                    if len(page) != size:  # the store's own size then: it may number the pages by that
                        size = len(page)
                        break
        except _MayPass as problem:
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
                paging = {"pageSize": size, "pageNumber": start // size + 1, "sortColumn": "createDate"}
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
    reading: _Reading, query: _Query, variables: Mapping[str, Any], given_up: threading.Event
) -> "Future[Any]":
    """The answer to come, from a daemon thread: an executor's would keep Ctrl-C waiting for what is in flight."""
    future: Future[Any] = Future()

    def ask() -> None:
        http = reading.sessions.get()
        try:
            future.set_result(_ask(http, reading.store, query, variables, reading.until, given_up))
        except BaseException as problem:
            future.set_exception(problem)
        finally:
            reading.sessions.put(http)

    threading.Thread(target=ask, name="l2inv-request", daemon=True).start()
    return future


def _got(reading: _Reading, future: "Future[Any]") -> Any:
    try:
        return future.result(max(0.0, reading.until - time.monotonic()))
    except TimeoutError:  # an answer may trickle in, so that no wait for its next byte is ever too long
        raise _too_late(reading.store) from None


def _ask(
    http: "requests.Session",
    store: MetadataStore,
    query: _Query,
    variables: Mapping[str, Any],
    until: float | None = None,
    given_up: threading.Event | None = None,
) -> Any:
    """Gives what the query asks for; asks again, unless it is a mutation, after a fault that may pass.

    Not with urllib3's Retry: it does not see a body that is cut short, and its waits know neither limit nor end.
    """
    until = until or time.monotonic() + store.total_timeout_seconds
    retries = 0 if query is CREATE else store.retries
    attempt = 0
    while True:
        try:
            return _read(_content(http, store, query, variables, until), query, named(store))
        except _MayPass as problem:
            if not problem.again or attempt >= retries:
                raise
            backoff_seconds = min(BACKOFF_SECONDS * 2**attempt, LONGEST_BACKOFF_SECONDS)
            wait_seconds = max(problem.after_seconds, backoff_seconds * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            if wait_seconds > until - time.monotonic():
                raise _too_late(store, problem) from problem
            if (given_up or threading.Event()).wait(wait_seconds):
                raise
            attempt += 1


def _content(
    http: "requests.Session", store: MetadataStore, query: _Query, variables: Mapping[str, Any], until: float
) -> bytes:
    """Gives an answer's body. A redirect is refused: a token goes to one host only."""
    import requests
    from urllib3.exceptions import HTTPError

    assert store.url is not None
    left_seconds = until - time.monotonic()
    if left_seconds <= 0:
        raise _too_late(store)
    parts, size = [], 0
    try:
        with http.post(
            store.url,
            json={"query": query.text, "variables": variables},
            timeout=min(store.timeout_seconds, left_seconds),
            allow_redirects=False,
            stream=True,
        ) as answer:
            _check(store, answer)
            for part in answer.iter_content(CHUNK_BYTES):
                parts.append(part)
                size += len(part)
                if size > store.max_answer_mb * 1_000_000:
                    raise StoreError(
                        f"{named(store)}: an answer of more than {store.max_answer_mb} MB",
                        "lower metadata_store.page_size, or raise metadata_store.max_answer_mb",
                    )
    except (requests.exceptions.RequestException, HTTPError, OSError, zlib.error) as problem:
        divisible = variables.get("filter", {}).get("pageSize", 1) > 1
        raise _fault(store, problem, divisible) from problem
    return b"".join(parts)


def _check(store: MetadataStore, answer: "requests.Response") -> None:
    """Raises what the status says, and StoreError for a compression of which no limit is known here."""
    status, said = answer.status_code, f"{named(store)}: answers {answer.status_code} {answer.reason}"
    if status in (401, 403):
        raise StoreError(
            f"{named(store)}: access denied ({status})",
            "set metadata_store.token_env to the variable that holds a valid token",
        )
    if status == 413:
        raise _MayPass(said, "lower metadata_store.page_size", again=False, less=True)
    if status == 429 or status >= 500:
        raise _MayPass(said, "try again later", less=status != 429, after_seconds=_retry_after(answer))
    if status != 200:
        hint = "set metadata_store.url to where it redirects" if answer.is_redirect else "try again later"
        raise StoreError(said, hint)
    if (coding := answer.headers.get("Content-Encoding", "identity")) not in ("identity", "gzip"):
        raise StoreError(
            f"{named(store)}: the answer is encoded as {coding!r}",
            "let the store send gzip, or nothing of it",
        )


def _retry_after(answer: "requests.Response") -> float:
    from urllib3.exceptions import InvalidHeader
    from urllib3.util import Retry

    try:
        return Retry().get_retry_after(answer.raw) or 0
    except (InvalidHeader, ValueError, OverflowError):
        return 0


def _fault(store: MetadataStore, problem: Exception, divisible: bool) -> StoreError:
    """What a failed request means; a page that takes too long is not asked for again when half of it can be."""
    from requests.exceptions import ChunkedEncodingError, ConnectionError, SSLError, Timeout
    from urllib3.exceptions import ProtocolError, ReadTimeoutError

    cause, words = problem.args[0] if problem.args else None, _short(problem)
    hint = "check metadata_store.url and the network"
    if isinstance(problem, SSLError) and isinstance(_innermost(problem), ssl.CertificateError):
        hint = "set metadata_store.ca_bundle to the PEM file of the authority that signed it"
        if "match" in words:
            hint = "set metadata_store.url to the host name that the certificate is made out to"
        elif "expired" in words or "not yet valid" in words:
            hint = "ask who runs the metadata store to renew it, and check this machine's clock"
        return StoreError(f"{named(store)}: its certificate is not accepted: {words}", hint)
    if isinstance(problem, Timeout) or isinstance(cause, ReadTimeoutError):
        words = f"no answer in {store.timeout_seconds:g} s"
        hint = "try again later, or raise metadata_store.timeout_seconds"
        return _MayPass(f"{named(store)}: {words}", hint, again=not divisible, less=divisible)
    if not isinstance(problem, (ConnectionError, ChunkedEncodingError)):
        return StoreError(f"{named(store)}: {words}", hint)
    return _MayPass(f"{named(store)}: {words}", hint, less=isinstance(cause, ProtocolError))


def _too_late(store: MetadataStore, last: StoreError | None = None) -> StoreError:
    said = f"{named(store)}: not read to its end in {store.total_timeout_seconds:g} s"
    return StoreError(
        said + (last.message.replace(named(store), "; last", 1) if last else ""),
        "try again later, or raise metadata_store.total_timeout_seconds",
    )


def named(store: MetadataStore) -> str:
    """Names the store without what its URL may hold of secrets: a user's password, a query."""
    parts = urlsplit(store.url or "")
    return f"metadata store {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _read(content: bytes, query: _Query, where: str) -> Any:
    """Gives what was asked for out of the answer. Raises StoreRefused when the answer tells of errors."""
    try:
        answer = msgspec.json.decode(content, type=_Answer)
        if answer.errors:
            raise StoreRefused(f"{where}: {answer.errors[0].message}", "ask who runs the metadata store")
        if query.field not in (answer.data or {}):
            raise StoreError(f"{where}: the answer holds no {query.field}", "ask who runs the metadata store")
        return msgspec.json.decode((answer.data or {})[query.field], type=query.kind)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as problem:
        if query.kind is Page and (page := _loosely_read(content, query.field)) is not None:
            return page
        start = content[:60].decode("utf-8", "replace")
        raise StoreError(
            f"{where}: the answer is not GraphQL's JSON ({problem}): {start!r}",
            "check that metadata_store.url is the GraphQL service itself",
        ) from problem


def _loosely_read(content: bytes, field: str) -> Page | None:
    """A page that strict JSON does not allow, such as one with a NaN: its good records read, the others not."""
    try:
        records = json.loads(content.decode("utf-8", "surrogateescape"))["data"][field]
        return [msgspec.Raw(json.dumps(record).encode()) for record in records]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _saved(path: Path) -> Page:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as problem:
        raise StoreError(f"saved answer {path}: {_short(problem)}", "check metadata_store.url") from problem
    page: Page = _read(content, DATASETS, f"saved answer {path}")
    return page


def _short(problem: BaseException) -> str:
    """The innermost cause: what the layers above it say about it helps nobody."""
    inner = _innermost(problem)
    words = getattr(inner, "verify_message", None) or getattr(inner, "strerror", None) or inner
    return " ".join(str(words).split()) or type(inner).__name__


def _innermost(problem: BaseException) -> BaseException:
    inner = problem.__cause__ or problem.__context__ or (problem.args[0] if problem.args else None)
    # While a failure is being handled, it is the context of the next one, but not its cause.
    if not isinstance(inner, BaseException) or isinstance(inner, StoreError):
        return problem
    return _innermost(inner)
