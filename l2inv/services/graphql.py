"""A GraphQL client over HTTP: sessions, retries, limits, and errors with hints."""

import json
import os
import random
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from l2inv.config.settings import MetadataStore
from l2inv.errors import ConfigError, StoreError, StoreRefused
from l2inv.services import certificates

if TYPE_CHECKING:
    import requests

BACKOFF_SECONDS = 0.2  # before the first retry, doubled before each further one
LONGEST_BACKOFF_SECONDS = 60.0
CHUNK_BYTES = 16_384  # gzip inflates a chunk at most a thousandfold, before its size is checked
Page = list[msgspec.Raw]  # the JSON text of each record


class _Answer(msgspec.Struct):
    data: dict[str, msgspec.Raw] | None = None
    errors: Any = None  # not empty: refused, whatever else the answer has


class Query(NamedTuple):
    """A query's text, the field of its answer that is read (empty: all), and the type that it is decoded as."""

    text: str
    field: str
    kind: Any


class MayPass(StoreError):
    """May succeed if sent `again`, not before `after_seconds`, or if `less` is requested."""

    def __init__(
        self, message: str, hint: str, *, again: bool = True, less: bool = False, after_seconds: float = 0
    ) -> None:
        super().__init__(message, hint)
        self.again, self.less, self.after_seconds = again, less, after_seconds


class Client:
    """A client of a GraphQL service over HTTP, within the limits of the settings.

    It has a session for each request that may be in flight, and keeps the connections until it is closed.
    """

    def __init__(self, settings: MetadataStore) -> None:
        """Open the sessions. Raise ConfigError."""
        self.settings = settings
        self.name = named(settings)
        self._sessions = [_session(settings) for _ in range(settings.parallel_pages)]
        self._free: SimpleQueue[requests.Session] = SimpleQueue()
        for http in self._sessions:
            self._free.put(http)
        self._closed = threading.Event()

    def close(self) -> None:
        """Close the sessions; requests that wait for a retry are abandoned."""
        self._closed.set()
        for http in self._sessions:
            http.close()

    def deadline(self) -> float:
        """Return the deadline of a request sent now, in time.monotonic's seconds."""
        return time.monotonic() + self.settings.total_timeout_seconds

    def ask(self, query: Query, variables: Mapping[str, Any], until: float | None = None) -> Any:
        """Return a query's result, by the deadline. Raise StoreError."""
        until = self.deadline() if until is None else until
        return self.wait(self.begin(query, variables, until), until)

    def begin(
        self,
        query: Query,
        variables: Mapping[str, Any],
        until: float,
        given_up: threading.Event | None = None,
    ) -> "Future[Any]":
        """Return the future result of a query, from a daemon thread: an executor would delay Ctrl-C until requests end.

        Temporary faults are retried, except for mutations, until `given_up` is set. `until` limits the retries, not an
        answer that trickles in: use wait().
        """
        future: Future[Any] = Future()

        def work() -> None:
            try:
                future.set_result(self._answer(query, variables, until, given_up or self._closed))
            except BaseException as problem:
                future.set_exception(problem)

        threading.Thread(target=work, name="l2inv-request", daemon=True).start()
        return future

    def wait(self, future: "Future[Any]", until: float) -> Any:
        """Return a future's result by `until`. Raise StoreError if there is none.

        The total time can only be limited from outside: requests limits the wait for the next byte, but an answer, its
        headers included, may trickle in, or be an endless `100 Continue`.
        """
        try:
            return future.result(max(0.0, until - time.monotonic()))
        except TimeoutError:
            raise too_late(self.settings) from None

    def _answer(
        self, query: Query, variables: Mapping[str, Any], until: float, given_up: threading.Event
    ) -> Any:
        http = self._free.get()
        try:
            return _asked(until, http, self.settings, query, variables, given_up)
        except StoreError as problem:
            # Some services repeat the token in their refusal.
            if token := _token(self.settings):
                problem.message = problem.message.replace(token, "***")
                problem.args = (problem.message,)
            raise
        finally:
            self._free.put(http)


def _session(store: MetadataStore) -> "requests.Session":
    """Return an HTTP session with the store's certificate authority, the token and the header Service-Name.

    Raise ConfigError if no service is set, its token is not in the environment, or the authority's file is invalid.
    """
    import requests

    if store.url is None or not store.url.startswith(("http://", "https://")):
        raise ConfigError(
            "metadata_store.url",
            [f"must be an http(s) URL of the metadata store, and is {store.url or 'none'}"],
        )
    http = requests.Session()
    # Neither a password from netrc nor an authority from the environment may override the settings.
    http.trust_env = False
    http.proxies.update(requests.utils.get_environ_proxies(store.url))
    http.headers.update({"Accept": "application/json", "Accept-Encoding": "gzip"})
    http.headers["Service-Name"] = store.service_name
    if store.ca_bundle:
        try:
            ssl.create_default_context(cafile=store.ca_bundle)
        except OSError as problem:
            words = f"{store.ca_bundle} is not a readable PEM file: {short(problem)}"
            raise ConfigError("metadata_store.ca_bundle", [words]) from problem
        http.verify = store.ca_bundle
    if store.token_env:
        http.auth = _authorization(store, store.token_env)
    return http


def _authorization(store: MetadataStore, variable: str) -> Callable[[Any], Any]:
    token = _token(store)
    if not token:
        raise ConfigError("metadata_store.token_env", [f"{variable} is not set in the environment"])
    if not (token.isascii() and token.isprintable()) or token != token.strip():
        words = f"{variable} contains characters that are invalid in an HTTP header, such as a newline"
        raise ConfigError("metadata_store.token_env", [words])
    header = f"{store.token_scheme} {token}" if store.token_scheme else token

    def sign(request: "requests.PreparedRequest") -> "requests.PreparedRequest":
        request.headers["Authorization"] = header
        return request

    return sign


def _token(store: MetadataStore) -> str:
    return os.environ.get(store.token_env, "") if store.token_env else ""


def _asked(
    until: float,
    http: "requests.Session",
    store: MetadataStore,
    query: Query,
    variables: Mapping[str, Any],
    given_up: threading.Event,
) -> Any:
    """Return a query's result, with retries after temporary faults.

    urllib3's Retry does not detect a truncated body, and its waits cannot be limited or interrupted.
    """
    retries = 0 if query.text.startswith("mutation") else store.retries
    attempt = 0
    while True:
        try:
            return read(_content(http, store, query, variables, until), query, named(store))
        except MayPass as problem:
            if not problem.again or attempt >= retries:
                raise
            backoff_seconds = min(BACKOFF_SECONDS * 2**attempt, LONGEST_BACKOFF_SECONDS)
            wait_seconds = max(problem.after_seconds, backoff_seconds * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            if wait_seconds > until - time.monotonic():
                raise too_late(store, problem) from problem
            if given_up.wait(wait_seconds):
                raise
            attempt += 1


def _content(
    http: "requests.Session", store: MetadataStore, query: Query, variables: Mapping[str, Any], until: float
) -> bytes:
    """Return an answer's body. Redirects are not followed: the token is for one host only."""
    import requests
    from urllib3.exceptions import HTTPError

    assert store.url is not None
    body = {"query": query.text} | ({"variables": variables} if variables else {})
    left_seconds = until - time.monotonic()
    if left_seconds <= 0:
        raise too_late(store)
    parts, size = [], 0
    try:
        with http.post(
            store.url,
            json=body,
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
            if answer.status_code != 200 and not b"".join(parts).lstrip().startswith(b"{"):
                raise StoreError(
                    f"{named(store)}: answers {answer.status_code} {answer.reason}",
                    "check metadata_store.url",
                )
    except (requests.exceptions.RequestException, HTTPError, OSError, zlib.error) as problem:
        divisible = variables.get("filter", {}).get("pageSize", 1) > 1
        raise _fault(store, problem, divisible) from problem
    return b"".join(parts)


def _check(store: MetadataStore, answer: "requests.Response") -> None:
    """Raise StoreError for an error status, and for a compression whose size cannot be limited."""
    status, message = answer.status_code, f"{named(store)}: answers {answer.status_code} {answer.reason}"
    if status in (401, 403):
        raise StoreError(
            f"{named(store)}: access denied ({status})",
            "set metadata_store.token_env to the variable that holds a valid token"
            " (metadata_store.token_scheme is the word sent before it)",
        )
    if status == 404:
        raise MayPass(
            message,
            "either metadata_store.url is wrong, or the gateway is being deployed: try again later",
        )
    if status == 413:
        raise MayPass(message, "lower metadata_store.page_size", again=False, less=True)
    if status == 429 or status >= 500:
        raise MayPass(message, "try again later", less=status != 429, after_seconds=_retry_after(answer))
    if status not in (200, 400, 422):  # some services send errors with these, others with 200
        hint = "set metadata_store.url to where it redirects" if answer.is_redirect else "try again later"
        raise StoreError(message, hint)
    if (coding := answer.headers.get("Content-Encoding", "identity")) not in ("identity", "gzip"):
        raise StoreError(
            f"{named(store)}: the answer is encoded as {coding!r}",
            "the store must send gzip, or no compression",
        )


def _retry_after(answer: "requests.Response") -> float:
    from urllib3.exceptions import InvalidHeader
    from urllib3.util import Retry

    try:
        return Retry().get_retry_after(answer.raw) or 0
    except (InvalidHeader, ValueError, OverflowError):
        return 0


def _fault(store: MetadataStore, problem: Exception, divisible: bool) -> StoreError:
    """Return the error for a failed request. A page that takes too long is not requested again if a smaller one can be."""
    from requests.exceptions import ChunkedEncodingError, ConnectionError, SSLError, Timeout
    from urllib3.exceptions import ProtocolError, ReadTimeoutError

    cause, words = problem.args[0] if problem.args else None, short(problem)
    hint = "check metadata_store.url and the network"
    if isinstance(problem, SSLError) and isinstance(
        inner := _innermost(problem), ssl.SSLCertVerificationError
    ):
        where = urlsplit(store.url or "")
        words, hint = certificates.refused(inner, (where.hostname or "", where.port or 443), "metadata_store")
        return StoreError(f"{named(store)}: {words}", hint)
    if isinstance(problem, Timeout) or isinstance(cause, ReadTimeoutError):
        words = f"no answer in {store.timeout_seconds:g} s"
        hint = "try again later, or raise metadata_store.timeout_seconds"
        return MayPass(f"{named(store)}: {words}", hint, again=not divisible, less=divisible)
    if not isinstance(problem, (ConnectionError, ChunkedEncodingError)):
        return StoreError(f"{named(store)}: {words}", hint)
    return MayPass(f"{named(store)}: {words}", hint, less=isinstance(cause, ProtocolError))


def too_late(store: MetadataStore, last: StoreError | None = None) -> StoreError:
    message = f"{named(store)}: not read to the end in {store.total_timeout_seconds:g} s"
    return StoreError(
        message + (last.message.replace(named(store), "; last", 1) if last else ""),
        "try again later, or raise metadata_store.total_timeout_seconds",
    )


def named(store: MetadataStore) -> str:
    """Return a service's name without secrets of its URL: a password, a query."""
    parts = urlsplit(store.url or "")
    return f"metadata store {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def read(content: bytes, query: Query, where: str) -> Any:
    """Return the query's field of the answer. Raise StoreRefused if the answer has errors, and StoreError."""
    try:
        answer = _decoded(content)
        if answer.errors:
            raise StoreRefused(f"{where}: {_first_message(answer.errors)}", "ask who runs the metadata store")
        data = answer.data or {}
        if not query.field:
            return msgspec.json.decode(msgspec.json.encode(data), type=query.kind)
        if query.field not in data:
            raise StoreError(f"{where}: the answer has no {query.field}", "ask who runs the metadata store")
        found = data[query.field]
        if query.kind is Page and isinstance(found, list):
            return [msgspec.Raw(json.dumps(record).encode()) for record in found]
        text = found if isinstance(found, msgspec.Raw) else json.dumps(found)
        return msgspec.json.decode(text, type=query.kind)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as problem:
        start = content[:60].decode("utf-8", "replace")
        raise StoreError(
            f"{where}: the answer is not GraphQL's JSON ({problem}): {start!r}",
            "check that metadata_store.url is the GraphQL service itself",
            key=f"{where}: not GraphQL's JSON",
        ) from problem


def _decoded(content: bytes) -> _Answer:
    """Return the answer with the JSON text of each field. If it is not strict JSON, such as one with a NaN, decode it as
    Python does, so that its errors are found and its good records are read."""
    try:
        return msgspec.json.decode(content, type=_Answer)
    except (msgspec.DecodeError, UnicodeError) as problem:
        try:
            answer = json.loads(content.decode("utf-8", "surrogateescape"))
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise problem
        data = answer.get("data")
        return _Answer(data if isinstance(data, dict) else None, answer.get("errors"))


def _first_message(errors: Any) -> str:
    """Return the message of the first error, or the error itself if it has none."""
    first = errors[0] if isinstance(errors, list) else errors
    return str(first.get("message") if isinstance(first, dict) else first)


def short(problem: BaseException) -> str:
    """Return the message of the innermost cause: the layers above it add nothing useful."""
    inner = _innermost(problem)
    words = getattr(inner, "verify_message", None) or getattr(inner, "strerror", None) or inner
    return " ".join(str(words).split()) or type(inner).__name__


def _innermost(problem: BaseException) -> BaseException:
    inner = problem.__cause__ or problem.__context__ or (problem.args[0] if problem.args else None)
    # A failure that is being handled is the context of the next one, but not its cause.
    if not isinstance(inner, BaseException) or isinstance(inner, StoreError):
        return problem
    return _innermost(inner)
