"""What l2inv asks of and tells the Data Center's metadata store: GraphQL over HTTP, or a saved answer in a file."""

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from l2inv.errors import ConfigError, StoreError, StoreRefused
from l2inv.inventory import SUBFIELDS, Dataset
from l2inv.settings import MetadataStore

if TYPE_CHECKING:
    import requests

_FIELDS = " ".join(
    f"{name} {{ {' '.join(SUBFIELDS[name])} }}" if name in SUBFIELDS else name
    for name in Dataset.__struct_encode_fields__
)
DATASETS = f"query Datasets($filter: DatasetInventoriesRequest) {{ datasetInventories(filterParams: $filter) {{ {_FIELDS} }} }}"
_INVERSION = (
    "inversionId primaryProposalId instrumentProgramExecutionId bucket asdfObjectKey datasetIds spectralLines"
)
CREATE = f"mutation Create($params: L2InversionInventory!) {{ createL2InversionInventory(createParams: $params) {{ {_INVERSION} createDate }} }}"
FIND = f"query Find($id: String) {{ l2Inversions(filterParams: {{inversionId: $id}}) {{ {_INVERSION} createDate }} }}"


class _Error(msgspec.Struct):
    message: str = "no message"


class _Answer(msgspec.Struct):
    data: dict[str, msgspec.Raw] | None = None
    errors: list[_Error] | None = None


def is_file(store: MetadataStore) -> bool:
    """Says whether the settings name a saved answer rather than a service."""
    return store.url is not None and not store.url.startswith(("http://", "https://"))


def dataset_pages(store: MetadataStore) -> Iterator[list[msgspec.Raw]]:
    """Gives the active datasets page by page, each as the JSON text of its record, oldest createDate first.

    Raises StoreError when the store cannot be read to its end; the pages given until then are good.
    """
    if is_file(store):
        yield _saved(Path(store.url or ""))
        return
    with session(store) as http:
        number = 1
        while True:
            paging = {"pageSize": store.page_size, "pageNumber": number, "sortColumn": "createDate"}
            page = _records(_ask(http, store, DATASETS, {"filter": paging})["datasetInventories"], store.url)
            yield page
            if len(page) < store.page_size:
                return
            number += 1


def create_inversion(
    http: "requests.Session", store: MetadataStore, params: dict[str, Any]
) -> dict[str, Any]:
    """Tells the store of an inversion and gives what it then holds of it. Not repeated when the answer is lost.

    Raises StoreError; find_inversion says whether the store took it all the same.
    """
    answer = _ask(http, store, CREATE, {"params": params})["createL2InversionInventory"]
    return msgspec.json.decode(answer, type=dict[str, Any])


def find_inversion(
    http: "requests.Session", store: MetadataStore, inversion_id: str
) -> dict[str, Any] | None:
    """Gives what the store holds under an inversionId, or None. Raises StoreError."""
    answer = _ask(http, store, FIND, {"id": inversion_id})["l2Inversions"]
    found = msgspec.json.decode(answer, type=list[dict[str, Any]] | None)
    return found[0] if found else None


@contextmanager
def session(store: MetadataStore) -> Iterator["requests.Session"]:
    """Lends an HTTP session with the store's certificate authority and token.

    Raises ConfigError when no service is set, or its token is not in the environment.
    """
    import requests

    if store.url is None or is_file(store):
        raise ConfigError(
            "metadata_store.url", [f"an http(s) URL of the metadata store is needed, not {store.url}"]
        )
    with requests.Session() as http:
        http.verify = store.ca_bundle or True
        http.headers["Accept"] = "application/json"
        if store.token_env:
            token = os.environ.get(store.token_env, "")
            if not token:
                raise ConfigError(
                    "metadata_store.token_env", [f"{store.token_env} is not set in the environment"]
                )
            http.auth = _bearer(token)
        yield http


def _bearer(token: str) -> Any:
    def sign(request: "requests.PreparedRequest") -> "requests.PreparedRequest":
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return sign


def _retrying(http: "requests.Session", retries: int) -> None:
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    retry = Retry(
        total=retries,
        backoff_factor=0.2,
        backoff_jitter=0.2,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=None,
        raise_on_status=False,
    )
    for scheme in ("http://", "https://"):
        http.mount(scheme, HTTPAdapter(max_retries=retry))


def _ask(
    http: "requests.Session", store: MetadataStore, query: str, variables: dict[str, Any]
) -> dict[str, bytes]:
    """Gives the answer's data, field by field as JSON text. A redirect is refused: a token goes to one host only."""
    import requests

    assert store.url is not None
    _retrying(http, 0 if query.startswith("mutation") else store.retries)
    try:
        answer = http.post(
            store.url,
            json={"query": query, "variables": variables},
            timeout=store.timeout_seconds,
            allow_redirects=False,
        )
    except requests.exceptions.SSLError as problem:
        raise StoreError(
            f"metadata store {store.url}: its certificate is not accepted: {_short(problem)}",
            "set metadata_store.ca_bundle to the PEM file of the authority that signed it, and check the host name",
        ) from problem
    except requests.exceptions.Timeout as problem:
        raise StoreError(
            f"metadata store {store.url}: no answer in {store.timeout_seconds:g} s",
            "try again later, or raise metadata_store.timeout_seconds",
        ) from problem
    except (requests.exceptions.RequestException, zlib.error) as problem:
        raise StoreError(
            f"metadata store {store.url}: {_short(problem)}", "check metadata_store.url and the network"
        ) from problem
    if answer.status_code in (401, 403):
        raise StoreError(
            f"metadata store {store.url}: access denied ({answer.status_code})",
            "set metadata_store.token_env to the variable that holds a valid token",
        )
    if answer.status_code != 200:
        hint = "set metadata_store.url to where it redirects" if answer.is_redirect else "try again later"
        raise StoreError(f"metadata store {store.url}: answers {answer.status_code} {answer.reason}", hint)
    return _data(answer.content, store.url)


def _data(content: bytes, where: str) -> dict[str, bytes]:
    try:
        answer = msgspec.json.decode(content, type=_Answer)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as problem:
        start = content[:60].decode("utf-8", "replace")
        raise StoreError(
            f"metadata store {where}: the answer is not GraphQL's JSON ({problem}): {start!r}",
            "check that metadata_store.url is the GraphQL service itself",
        ) from problem
    if answer.errors:
        raise StoreRefused(
            f"metadata store {where}: {answer.errors[0].message}", "ask who runs the metadata store"
        )
    if answer.data is None:
        raise StoreError(
            f"metadata store {where}: the answer holds no data", "ask who runs the metadata store"
        )
    return {name: bytes(value) for name, value in answer.data.items()}


def _records(content: bytes, where: str | None) -> list[msgspec.Raw]:
    try:
        return msgspec.json.decode(content, type=list[msgspec.Raw])
    except msgspec.DecodeError as problem:
        raise StoreError(f"metadata store {where}: datasetInventories is no list", str(problem)) from problem


def _saved(path: Path) -> list[msgspec.Raw]:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as problem:
        raise StoreError(f"saved answer {path}: {_short(problem)}", "check metadata_store.url") from problem
    data = _data(content, str(path))
    if "datasetInventories" not in data:
        raise StoreError(
            f"saved answer {path}: holds no datasetInventories", "save the whole answer of the store"
        )
    return _records(data["datasetInventories"], str(path))


def _short(problem: BaseException) -> str:
    """The innermost cause: what the layers above it say about it helps nobody."""
    while (
        problem.__cause__
        or problem.__context__
        or (problem.args and isinstance(problem.args[0], BaseException))
    ):
        inner = problem.__cause__ or problem.__context__ or problem.args[0]
        if not isinstance(inner, BaseException):
            break
        problem = inner
    return " ".join(str(getattr(problem, "strerror", None) or problem).split()) or type(problem).__name__
