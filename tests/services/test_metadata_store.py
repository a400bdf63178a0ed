"""The metadata store over an unreliable network: read completely, or an error with a hint."""

import gzip
import itertools
import json
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme

from l2inv.config.settings import MetadataStore
from l2inv.errors import ConfigError, StoreError, StoreRefused
from l2inv.sample import server
from l2inv.sample.server import Fault, Store, serving
from l2inv.sample.store import execute
from l2inv.services import graphql, metadata_store
from l2inv.services.metadata_store import Source

Opened = Callable[[MetadataStore], Source]
Settings = Callable[..., MetadataStore]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphql, "BACKOFF_SECONDS", 0.002)


@pytest.fixture
def settings(store_url: str) -> Settings:
    """The settings of the sample store, in pages of 40, but for what is given."""

    def but(**given: Any) -> MetadataStore:
        usual: dict[str, Any] = {"url": store_url, "page_size": 40, "retries": 2}
        return MetadataStore(**usual | given)

    return but


@pytest.fixture
def opened() -> Iterator["Opened"]:
    """Open what settings name, until the test ends."""
    with ExitStack() as stack:
        yield lambda settings: stack.enter_context(metadata_store.source(settings))


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict[str, str]]]:
    """The client's port and the headers of each request, as the sample store hears them."""
    found: list[tuple[int, dict[str, str]]] = []
    answer = server._Handler.do_POST

    def listen(handler: server._Handler) -> None:
        found.append((handler.client_address[1], dict(handler.headers)))
        answer(handler)

    monkeypatch.setattr(server._Handler, "do_POST", listen)
    return found


def names(pages: list[list[msgspec.Raw]]) -> list[str]:
    """The ids, each once, in the order they came in first."""
    return list(dict.fromkeys(json.loads(bytes(record))["datasetId"] for page in pages for record in page))


def read(settings: MetadataStore, since: datetime | None = None) -> list[str]:
    with metadata_store.source(settings) as store:
        return names([[r for r in page if store.holds(r)] for page in store.pages(since)])


def count(settings: MetadataStore, since: datetime | None = None) -> int | None:
    with metadata_store.source(settings) as store:
        return store.count(since)


def held(store: Store) -> list[str]:
    return [row["datasetId"] for row in sorted(store.datasets, key=lambda row: row["createDate"])]


def filters(store: Store, operation: str = "Datasets") -> list[dict[str, Any]]:
    return [variables["filter"] for name, variables in store.requests if name == operation]


def sizes(store: Store) -> list[int]:
    return [asked["pageSize"] for asked in filters(store)]


def on_pages(store: Store, fault: Callable[[dict[str, Any]], Fault | None]) -> None:
    """Has the store fail by what a request for datasets asks for."""
    store.fault = lambda name, nth: fault(filters(store)[nth - 1]) if name == "Datasets" else None


def requests_end() -> None:
    for thread in threading.enumerate():
        if thread.name == "l2inv-request":
            thread.join(10)
            assert not thread.is_alive()


# Retries


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=404),
        Fault(status=429),
        Fault(status=500),
        Fault(status=502),
        Fault(status=503, headers=(("Retry-After", "soon"),)),
        Fault(status=503, headers=(("Retry-After", "9" * 5000),)),
        Fault(drop="before"),
        Fault(drop="midway"),
    ],
    ids=["404", "429", "500", "502", "no time", "a time of 5000 digits", "dropped", "cut"],
)
def test_a_fault_that_passes_is_asked_again_and_nothing_is_missing(
    settings: Settings, store: Store, fault: Fault
) -> None:
    seen: set[int] = set()

    def once(asked: dict[str, Any]) -> Fault | None:
        first = asked["pageNumber"] not in seen
        seen.add(asked["pageNumber"])
        return fault if first else None

    on_pages(store, once)
    assert read(settings()) == held(store)
    assert set(sizes(store)) == {40}


def test_each_wait_is_longer_than_the_one_before_and_no_two_clients_wait_the_same(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphql, "BACKOFF_SECONDS", 0.05)
    random.seed(0)  # the same waits every time
    times: list[float] = []

    def fail(name: str, nth: int) -> Fault | None:
        times.append(time.monotonic())
        return Fault(status=503)

    store.fault = fail
    with pytest.raises(StoreError, match="answers 503"):
        count(settings(retries=3))
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(waits) == 3
    assert all(wait >= 0.025 * 2**nth for nth, wait in enumerate(waits))
    first_waits = []
    for _ in range(8):
        times.clear()
        with pytest.raises(StoreError):
            count(settings(retries=1))
        first_waits.append(times[1] - times[0])
    assert max(first_waits) - min(first_waits) > 0.02


def test_a_retry_after_is_waited_for(settings: Settings, store: Store) -> None:
    busy = Fault(status=429, headers=(("Retry-After", "1"),))
    store.fault = lambda name, nth: busy if nth == 1 and name == "Count" else None
    began = time.monotonic()
    assert count(settings()) == len(store.datasets)
    assert time.monotonic() - began >= 1


def test_a_retry_after_beyond_the_total_limit_is_not_waited_for(settings: Settings, store: Store) -> None:
    store.fault = lambda name, nth: Fault(status=503, headers=(("Retry-After", "7200"),))
    with pytest.raises(StoreError, match="not read to the end in 3600 s; last: answers 503") as failed:
        read(settings())
    assert "metadata_store.total_timeout_seconds" in failed.value.hint


def test_a_permanent_failure_is_not_retried(settings: Settings, store: Store) -> None:
    for status in (400, 401, 403, 410):
        store.requests.clear()
        store.fault = lambda name, nth, status=status: Fault(status=status)
        with pytest.raises(StoreError):
            read(settings())
        assert len(store.requests) == 1


def test_a_persistent_404_is_reported_with_its_possible_causes(settings: Settings, store: Store) -> None:
    store.fault = lambda name, nth: Fault(status=404)
    with pytest.raises(StoreError, match="answers 404") as failed:
        read(settings(retries=3))
    assert len(store.requests) == 1 + 3
    assert "metadata_store.url is wrong" in failed.value.hint
    assert "gateway" in failed.value.hint and "being deployed" in failed.value.hint


def test_a_404_is_not_taken_for_a_page_that_is_too_heavy(settings: Settings, store: Store) -> None:
    on_pages(store, lambda asked: Fault(status=404))
    with pytest.raises(StoreError, match="answers 404"):
        read(settings(parallel_pages=1))
    assert sizes(store) == [40] * 3


def test_a_mutation_is_never_sent_twice(settings: Settings, store: Store) -> None:
    given: dict[str, Any] = {
        "inversionId": "inv.A",
        "primaryProposalId": "p",
        "instrumentProgramExecutionId": "i",
    }
    given |= {"bucket": "data", "datasetIds": [], "spectralLines": []}
    for fault in (Fault(status=404), Fault(status=503), Fault(drop="after"), Fault(status=429)):
        store.requests.clear()
        store.fault = lambda name, nth, fault=fault: fault
        with metadata_store.service(settings()) as service, pytest.raises(StoreError):
            service.create_inversion(given)
        assert [name for name, _ in store.requests] == ["Create"]


# Pages that are too heavy


HEAVY = {
    "slow": (Fault(delay_seconds=1), 1),
    "413": (Fault(status=413), 1),
    "502": (Fault(status=502), 3),
    "dropped": (Fault(drop="before"), 3),
    "cut": (Fault(drop="midway"), 3),
}


@pytest.mark.parametrize("name", HEAVY)
def test_a_page_that_is_too_heavy_is_asked_for_in_halves_and_so_are_those_after_it(
    settings: Settings, store: Store, name: str
) -> None:
    fault, times = HEAVY[name]
    on_pages(store, lambda asked: fault if asked["pageSize"] > 20 and asked["pageNumber"] > 1 else None)
    assert read(settings(page_size=45, parallel_pages=1, timeout_seconds=0.5)) == held(store)
    asked = sizes(store)
    assert asked[: 1 + times] == [45] * (1 + times)
    assert asked[1 + times : 1 + 2 * times] == [22] * times
    # From record 45 on in elevens: the first of them goes back to 44.
    assert set(asked[1 + 2 * times :]) == {11}
    assert next(f["pageNumber"] for f in filters(store) if f["pageSize"] == 11) == 5


def test_halves_are_read_to_the_end_several_at_a_time(settings: Settings, store: Store) -> None:
    on_pages(store, lambda asked: Fault(status=413) if asked["pageSize"] > 7 else None)
    assert read(settings(page_size=1000)) == held(store)
    assert read(settings(page_size=45)) == held(store)


def test_a_page_of_one_is_not_halved(settings: Settings, store: Store) -> None:
    on_pages(store, lambda asked: Fault(status=413))
    with pytest.raises(StoreError, match="answers 413"):
        read(settings(page_size=5, parallel_pages=1))
    assert sizes(store) == [5, 2, 1]


def test_a_single_record_that_is_slow_once_is_asked_for_again(settings: Settings, store: Store) -> None:
    store.fault = lambda name, nth: Fault(delay_seconds=0.6) if nth == 1 and name == "Datasets" else None
    store.datasets[3:] = []
    assert read(settings(page_size=1, timeout_seconds=0.3)) == held(store)


def test_a_store_that_is_down_is_not_asked_for_smaller_pages(settings: Settings, store: Store) -> None:
    store.fault = lambda name, nth: Fault(status=503) if filters(store) else None
    with pytest.raises(StoreError, match="answers 503"):
        read(settings(parallel_pages=1))
    assert sizes(store) == [40] * 3
    assert len(filters(store, "Count")) == 1 + 3


def test_a_store_that_is_busy_is_not_asked_for_smaller_pages(settings: Settings, store: Store) -> None:
    on_pages(store, lambda asked: Fault(status=429))
    with pytest.raises(StoreError, match="answers 429"):
        read(settings(parallel_pages=1))
    assert sizes(store) == [40] * 3


# Limits


def test_a_reading_that_takes_too_long_in_total_is_ended_and_reported(
    settings: Settings, store: Store
) -> None:
    on_pages(store, lambda asked: Fault(delay_seconds=0.2))
    with pytest.raises(StoreError, match=r"not read to the end in 0\.5 s") as failed:
        read(settings(page_size=10, parallel_pages=1, total_timeout_seconds=0.5))
    assert "metadata_store.total_timeout_seconds" in failed.value.hint
    assert len(filters(store)) <= 4


def test_an_answer_that_trickles_in_is_ended_by_the_total_limit() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

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
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/graphql"
        with pytest.raises(StoreError, match="not read to the end"):
            count(MetadataStore(url=url, total_timeout_seconds=0.3))
    finally:
        ended.set()
        thread.join()
        listener.close()
    requests_end()


def test_an_answer_that_is_too_large_is_refused(settings: Settings, store: Store) -> None:
    store.datasets[0]["experimentDescription"] = "x" * 2_000_000
    with pytest.raises(StoreError, match="an answer of more than 1 MB") as failed:
        read(settings(max_answer_mb=1))
    assert "max_answer_mb" in failed.value.hint
    assert len(read(settings(max_answer_mb=3))) == len(store.datasets)


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(settings: Settings, store: Store) -> None:
    bomb = gzip.compress(b" " * 150_000_000, compresslevel=6)
    store.fault = lambda name, nth: Fault(body=bomb, headers=(("Content-Encoding", "gzip"),))
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match="an answer of more than 1 MB"):
            count(settings(max_answer_mb=1))
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("coding", ["gzip, gzip", "deflate", "br"])
def test_a_compression_that_was_not_asked_for_is_refused(
    settings: Settings, store: Store, coding: str
) -> None:
    twice = gzip.compress(gzip.compress(b'{"data": {"datasetInventoriesRecordCount": {"recordCount": 1}}}'))
    store.fault = lambda name, nth: Fault(body=twice, headers=(("Content-Encoding", coding),))
    with pytest.raises(StoreError, match="is encoded as"):
        count(settings())


# Several pages in flight


def test_several_pages_are_in_flight_and_come_in_order(settings: Settings, store: Store) -> None:
    together = threading.Barrier(4)

    def fault(name: str, nth: int) -> Fault | None:
        if name == "Datasets" and nth <= 4:
            together.wait(5)
        late = name == "Datasets" and filters(store)[nth - 1]["pageNumber"] % 2
        return Fault(delay_seconds=0.05) if late else None

    store.fault = fault
    assert read(settings(page_size=10)) == held(store)
    assert not together.broken


def test_no_more_pages_are_kept_than_the_setting_allows(
    settings: Settings, store: Store, opened: Opened
) -> None:
    pages = opened(settings(page_size=5, parallel_pages=3)).pages()
    for taken in range(1, 5):
        next(pages)
        requests_end()
        assert len(filters(store)) == taken + 2
    pages.close()  # type: ignore[attr-defined]


def test_pages_before_one_that_fails_are_given_first(
    settings: Settings, store: Store, opened: Opened
) -> None:
    def fault(asked: dict[str, Any]) -> Fault | None:
        return Fault(status=400) if asked["pageNumber"] == 3 else Fault(delay_seconds=0.2)

    on_pages(store, fault)
    pages = opened(settings()).pages()
    assert names([next(pages), next(pages)]) == held(store)[:80]
    with pytest.raises(StoreError, match="answers 400"):
        next(pages)


def test_a_reading_that_is_left_early_asks_for_nothing_more(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphql, "BACKOFF_SECONDS", 10.0)
    on_pages(store, lambda asked: Fault(status=503) if asked["pageNumber"] > 1 else None)
    began = time.monotonic()
    with metadata_store.source(settings(retries=20)) as source:
        next(source.pages())
    requests_end()
    assert time.monotonic() - began < 9
    assert len(filters(store)) <= 4


def test_ctrl_c_ends_a_reading_with_pages_in_flight(settings: Settings, store: Store, tmp_path: Path) -> None:
    asked = threading.Event()

    def fault(name: str, nth: int) -> Fault | None:
        if name == "Datasets" and nth == 4:
            asked.set()
        return Fault(delay_seconds=20) if name == "Datasets" else None

    store.fault = fault
    script = (
        "import sys; from l2inv.services.metadata_store import service; from l2inv.config.settings import MetadataStore\n"
        "with service(MetadataStore(url=sys.argv[1], page_size=10)) as store: list(store.pages())"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", script, settings().url or ""], stderr=subprocess.PIPE, text=True
    )
    try:
        assert asked.wait(20)
        began = time.monotonic()
        reader.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in reader.communicate(timeout=19)[1]
        assert time.monotonic() - began < 19
    finally:
        reader.kill()
        reader.wait()


# Where the last page is


@pytest.mark.parametrize("numbered_by", ["its own size", "the size asked for"])
def test_a_store_that_caps_the_page_is_read_to_its_end(
    settings: Settings, store: Store, numbered_by: str
) -> None:
    def capped(asked: dict[str, Any]) -> Fault:
        size, number = asked["pageSize"], asked["pageNumber"]
        step = min(size, 15) if numbered_by == "its own size" else size
        rows = held(store)[(number - 1) * step :][: min(size, 15)]
        records = ", ".join(f'{{"datasetId": "{name}"}}' for name in rows)
        return Fault(body=f'{{"data": {{"datasetInventories": [{records}]}}}}'.encode())

    on_pages(store, capped)
    assert read(settings()) == held(store)


@pytest.mark.parametrize("page_size", [10, 40, 90, 1000])
def test_datasets_that_vanish_or_arrive_while_it_is_read_do_not_keep_it_from_ending(
    settings: Settings, store: Store, opened: Opened, page_size: int
) -> None:
    pages = opened(settings(page_size=page_size, parallel_pages=1)).pages()
    first = next(pages)
    gone = store.datasets[-30:]
    del store.datasets[-30:]
    rest = list(pages)
    assert set(held(store)) <= set(names([first, *rest]))
    pages = opened(settings(page_size=page_size, parallel_pages=1)).pages()
    first = next(pages)
    store.datasets += gone
    rest = list(pages)
    assert set(names([first, *rest])) == set(held(store) if page_size < 1000 else held(store)[:-30])


def test_a_store_that_ignores_the_paging_is_not_read_for_ever(settings: Settings, store: Store) -> None:
    whole = json.dumps(execute(store, metadata_store.DATASETS.text)).encode()
    on_pages(store, lambda asked: Fault(body=whole))
    for page_size, pages in ((40, 1), (len(store.datasets), 2)):  # a full page may not be the last
        store.requests.clear()
        assert read(settings(page_size=page_size, parallel_pages=1)) == held(store)
        assert len(filters(store)) == pages


def test_an_empty_store_is_no_error(settings: Settings, store: Store) -> None:
    store.datasets.clear()
    assert read(settings()) == []
    assert count(settings()) == 0


@pytest.mark.parametrize(
    "body",
    [
        b'{"data": {}}',
        b'{"data": {"datasetInventoriesRecordCount": {"recordCount": -1}}}',
        b'{"data": {"datasetInventoriesRecordCount": null}}',
        b'{"data": {"datasetInventoriesRecordCount": {"recordCount": 1e99}}}',
        b"[" * 100_000,
        b"\xff",
        b"",
    ],
    ids=range(7),
)
def test_a_nonsensical_answer_is_reported_in_one_line(settings: Settings, store: Store, body: bytes) -> None:
    store.fault = lambda name, nth: Fault(body=body or b" ")
    with pytest.raises(StoreError) as failed:
        read(settings())
    assert "\n" not in failed.value.message


def test_a_refusal_in_the_answer_is_reported_in_the_stores_words(settings: Settings, store: Store) -> None:
    store.fault = lambda name, nth: Fault(body=b'{"errors": [{"message": "not for you"}], "data": {}}')
    with pytest.raises(StoreRefused, match="not for you"):
        read(settings())
    assert len(store.requests) == 1


# What is asked for


def test_only_what_changed_since_is_read_and_counted(settings: Settings, store: Store) -> None:
    dates = sorted(row["updateDate"] for row in store.datasets if row["updateDate"])
    since = datetime.fromisoformat(dates[len(dates) // 2]).replace(tzinfo=UTC)
    elsewhere = since.astimezone(timezone(timedelta(hours=-10)))
    changed = [
        row["datasetId"] for row in store.datasets if (row["updateDate"] or "") >= dates[len(dates) // 2]
    ]
    assert read(settings(), elsewhere) == [name for name in held(store) if name in changed]
    assert count(settings(), elsewhere) == len(changed) < len(store.datasets)
    assert {asked["updateDateMin"] for asked in filters(store)} == {since.replace(tzinfo=None).isoformat()}


def test_datasets_are_asked_for_by_id_in_chunks_and_only_active_ones_come(
    settings: Settings, store: Store, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata_store, "IDS_AT_ONCE", 30)
    wanted = held(store)[:100]
    gone = {wanted[3], wanted[50]}
    for row in store.datasets:
        row["status"] = "DEPRECATED" if row["datasetId"] in gone else row["status"]
    found = names(list(opened(settings(page_size=20)).pages_by_id(["NONE", *wanted])))
    assert found == [name for name in wanted if name not in gone]
    assert {len(asked["datasetIds"]) for asked in filters(store)} == {30, 11}
    store.requests.clear()
    assert list(opened(settings()).pages_by_id([])) == []
    assert store.requests == []


def test_a_saved_file_is_read_whole_and_knows_no_count(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a saved answer.json"
    path.write_text(json.dumps({"data": {"datasetInventories": store.datasets}}))
    saved = MetadataStore(url=str(path))
    assert len(read(saved, datetime.now(UTC))) == len(store.datasets)
    assert count(saved) is None
    with metadata_store.source(saved) as source:
        assert not any(source.pages_by_id(["A"]))


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ({}, True),
        ({"status": None}, True),
        ({"status": "ACTIVE"}, True),
        ({"status": "active"}, True),
        ({"status": "DEPRECATED"}, False),
        ({"status": "REMOVED"}, False),
        ({"status": ""}, False),
        ({"status": "DEPRECATED", "wavelengthMin": float("nan")}, False),
        ({"isActive": True}, True),  # as answers of 2023 tell it
        ({"isActive": False}, False),
        ({"status": 7}, True),  # what cannot be read is the reader's to say
    ],
    ids=str,
)
def test_a_saved_file_gives_the_active_datasets_as_the_store_would(
    store: Store, tmp_path: Path, told: dict[str, Any], kept: bool
) -> None:
    first, *others = store.datasets
    del first["status"]
    path = tmp_path / "answer.json"
    path.write_text(json.dumps({"data": {"datasetInventories": [first | told, *others]}}))
    found = read(MetadataStore(url=str(path)))
    assert set(found) == {row["datasetId"] for row in (store.datasets if kept else others)}


def test_a_non_record_in_a_saved_file_is_passed_to_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_text('{"data": {"datasetInventories": [5, [NaN], "x", null, {"status": [1]}]}}')
    with metadata_store.source(MetadataStore(url=str(path))) as source:
        page = next(source.pages())
        assert len([record for record in page if source.holds(record)]) == 5


# The connection


def test_connections_are_kept_and_answers_compressed(
    settings: Settings, store: Store, heard: list[tuple[int, dict[str, str]]]
) -> None:
    read(settings(page_size=5, parallel_pages=3))
    assert len(heard) > 30
    assert len({port for port, _ in heard}) <= 3
    assert {headers["Accept-Encoding"] for _, headers in heard} == {"gzip"}


def test_a_token_is_sent_and_a_password_from_netrc_never(
    settings: Settings,
    store: Store,
    heard: list[tuple[int, dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "netrc").write_text("default login han password s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    count(settings())
    assert "Authorization" not in heard[-1][1]
    monkeypatch.setenv("STORE_TOKEN", "t0ken")
    count(settings(token_env="STORE_TOKEN"))
    assert heard[-1][1]["Authorization"] == "t0ken"
    count(settings(token_env="STORE_TOKEN", token_scheme="Bearer"))
    assert heard[-1][1]["Authorization"] == "Bearer t0ken"
    with_password = (settings().url or "").replace("http://", "http://han:own@")
    count(settings(url=with_password))
    assert heard[-1][1]["Authorization"] == "Basic aGFuOm93bg=="


def test_every_request_identifies_the_caller(
    settings: Settings, heard: list[tuple[int, dict[str, str]]], store: Store
) -> None:
    read(settings())
    read(settings(service_name="l2-on-thunderbolts"))
    assert {headers["Service-Name"] for _, headers in heard} == {"l2inv", "l2-on-thunderbolts"}


@pytest.mark.parametrize("token", ["t0ken\n", " t0ken", "t0ken ", "t0k\u00e9n", "a\rb"])
def test_a_token_that_no_header_takes_is_a_mistake_in_the_settings(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("STORE_TOKEN", token)
    with pytest.raises(
        ConfigError, match="STORE_TOKEN contains characters that are invalid in an HTTP header"
    ) as failed:
        read(settings(token_env="STORE_TOKEN"))
    assert "t0k" not in failed.value.message
    assert store.requests == []


def test_a_proxy_of_the_environment_is_used(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", (settings().url or "").removesuffix("/graphql"))
    # The sample store, taken for a proxy, does not know the whole URL as a path.
    with pytest.raises(StoreError, match=r"http://store\.example/graphql: answers 404"):
        count(settings(url="http://store.example/graphql"))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def over_tls(store: Store, authority: trustme.CA) -> Iterator[Callable[..., str]]:
    """Serve the store over TLS with a certificate issued to a name, and return its URL."""
    servers = []

    def serve(name: str = "127.0.0.1", **how: Any) -> str:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name, **how).configure_cert(tls)
        servers.append(serving(store, tls=tls))
        return servers[-1].__enter__()

    yield serve
    for one in servers:
        one.__exit__(None, None, None)


@pytest.fixture
def ca_bundle(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "our ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


def test_a_private_authority_is_accepted_once_it_is_named(
    over_tls: Callable[..., str], ca_bundle: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = trustme.CA()
    with other.cert_pem.tempfile() as elsewhere:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", elsewhere)
        assert read(MetadataStore(url=over_tls(), ca_bundle=ca_bundle)) == held(store)


def refused(store: MetadataStore) -> StoreError:
    with pytest.raises(StoreError, match="its certificate is not accepted") as failed:
        count(store)
    assert "\n" not in failed.value.message + failed.value.hint
    return failed.value


def test_an_unknown_authority_is_refused_and_the_setting_for_it_is_named(
    over_tls: Callable[..., str], store: Store, tmp_path: Path
) -> None:
    url = over_tls()
    assert "metadata_store.ca_bundle" in refused(MetadataStore(url=url)).hint
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    assert (
        "metadata_store.ca_bundle"
        in refused(MetadataStore(url=url, ca_bundle=str(tmp_path / "other.pem"))).hint
    )
    assert store.requests == []


@pytest.mark.parametrize(
    ("made_out_to", "asked"), [("store.example", "127.0.0.1"), ("127.0.0.1", "localhost")]
)
def test_a_wrong_host_name_is_refused_and_it_is_the_url_that_is_named(
    over_tls: Callable[..., str], ca_bundle: str, store: Store, made_out_to: str, asked: str
) -> None:
    url = over_tls(made_out_to).replace("127.0.0.1", asked)
    problem = refused(MetadataStore(url=url, ca_bundle=ca_bundle))
    assert "metadata_store.url" in problem.hint
    assert "ca_bundle" not in problem.hint
    assert asked in problem.message
    assert f"(issued to {made_out_to} by " in problem.message
    assert store.requests == []


def test_a_certificate_that_ran_out_is_refused_and_no_setting_is_blamed(
    over_tls: Callable[..., str], ca_bundle: str
) -> None:
    url = over_tls(not_before=datetime(2020, 1, 1, tzinfo=UTC), not_after=datetime(2021, 1, 1, tzinfo=UTC))
    problem = refused(MetadataStore(url=url, ca_bundle=ca_bundle))
    assert "valid from 2020-01-01 to 2021-01-01)" in problem.message
    assert "clock" in problem.hint
    assert "metadata_store." not in problem.hint


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_an_authority_that_cannot_be_read_is_a_mistake_in_the_settings(
    tmp_path: Path, content: str | None
) -> None:
    if content:
        (tmp_path / "ca.pem").write_text(content)
    broken = MetadataStore(url="https://store.example/", ca_bundle=str(tmp_path / "ca.pem"))
    with pytest.raises(ConfigError, match=r"metadata_store\.ca_bundle: .*ca\.pem"):
        read(broken)


def test_a_service_without_tls_behind_https_is_one_line(settings: Settings) -> None:
    with pytest.raises(StoreError) as failed:
        count(settings(url=(settings().url or "").replace("http:", "https:")))
    assert "metadata_store.url" in failed.value.hint
    assert "certificate" not in failed.value.message
