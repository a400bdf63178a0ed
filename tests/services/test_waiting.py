"""Every wait for the store ends, and nobody waits for a row or transaction of a process that waits for the store."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from l2inv.config.settings import Database, Settings
from l2inv.database.access import connected
from l2inv.database.connection import Connection
from l2inv.record import event_log
from l2inv.sample.server import Fault, Store
from l2inv.sample.store import execute, operation_name
from tests.helpers.commands import NOW, Commands
from tests.helpers.steps import invert, kinds

# An answer that never ends: how it begins, and what comes again and again, sooner than any wait for the next byte ends.
ENDLESS = {
    "the body": (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n", b" "),
    "a body in chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "the body of a refusal": (b"HTTP/1.1 503 No\r\nContent-Length: 9999999\r\n\r\n", b" "),
    "a header": (b"HTTP/1.1 200 OK\r\nX-Padding: ", b"x"),
    "the status": (b"HTTP/1.1 200 ", b"O"),
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


class Trickle:
    """A store on a bare socket that answers as the sample store does, but for the operations that it never ends."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.endless = ENDLESS["the body"]
        self.only: set[str] | None = None  # operations; None: all
        self.heard: list[str] = []
        self.over = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/graphql"
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        while not self.over.is_set():
            connection, _ = self.listener.accept()
            self.threads.append(threading.Thread(target=self._answer, args=[connection]))
            self.threads[-1].start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as heard, suppress(OSError):
            length = 0
            while (line := heard.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            if self.over.is_set():
                return
            asked = json.loads(heard.read(length))
            name = operation_name(asked["query"])
            self.heard.append(name)
            if self.only is None or name in self.only:
                begins, again = self.endless
                connection.sendall(begins)
                while not self.over.wait(0.02):
                    connection.sendall(again)
                return
            body = json.dumps(execute(self.store, asked["query"], asked["variables"])).encode()
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )

    def end(self) -> None:
        self.over.set()
        with socket.create_connection(self.listener.getsockname()):
            pass
        for thread in self.threads:
            thread.join()
        self.listener.close()
        for thread in threading.enumerate():
            if thread.name == "l2inv-request":
                thread.join(10)
                assert not thread.is_alive()


@pytest.fixture
def trickle(l2inv: Commands, store: Store) -> Iterator[Trickle]:
    trickle = Trickle(store)
    yield trickle
    trickle.end()


@pytest.fixture
def waits(l2inv: Commands, trickle: Trickle) -> Callable[..., None]:
    """Run a command with each answer that never ends: the total limit ends it, with its exit code and in words."""

    def each(*argv: str, code: int = 1, endless: Any = tuple(ENDLESS), limit_seconds: float = 0.3) -> None:
        usual = l2inv.settings["metadata_store"]
        l2inv.settings["metadata_store"] = usual | {
            "url": trickle.url, "timeout_seconds": 60, "total_timeout_seconds": limit_seconds, "retries": 2
        }  # fmt: skip
        l2inv.save()
        for name in endless:
            trickle.endless = ENDLESS[name]
            trickle.heard.clear()
            began = time.monotonic()
            answer = l2inv(*argv, expect=code)
            assert time.monotonic() - began < 30, name  # its timeout is 60 s
            assert trickle.heard, f"{argv} asked nothing"
            assert f"not read to the end in {limit_seconds:g} s" in answer.stderr, name
            assert answer.stderr.count("\n") == 1, name
        l2inv.settings["metadata_store"] = usual
        l2inv.save()

    return each


def test_a_scan_ends(waits: Callable[..., None], connection: Connection) -> None:
    waits("scan")
    row = connection.execute("select count(*) as n from l2inv.event").fetchone()
    assert row == {"n": 0}


def test_qualify_ends_and_judges_without_an_answer(
    l2inv: Commands, waits: Callable[..., None], ready: list[str]
) -> None:
    l2inv.settings["completeness"] = {"processing_candidates": True}
    waits("qualify", code=0)


def named_and_not_told(l2inv: Commands, store: Store, op: str) -> None:
    """An OP is inverted, and the record names an inversion of it that the store never took."""
    invert(l2inv, op)
    store.fault = lambda name, nth: Fault(status=500) if name == "Create" else None
    l2inv("publish", expect=1)
    store.fault = None
    assert kinds(l2inv, op)[-1] == "inversion_named"


def test_publish_reopen_and_adopt_end_and_change_nothing(
    l2inv: Commands, store: Store, waits: Callable[..., None], ready: list[str]
) -> None:
    op = ready[0]
    named_and_not_told(l2inv, store, op)
    before = l2inv.json("history", op)
    waits("publish")
    waits("reopen", op, "--reason", "x")
    waits("adopt", op, "inv.OTHERS", "--reason", "x")
    waits("adopt", op, "inv.OTHERS", "--beside", "--reason", "x", endless=["100 Continue"])
    assert l2inv.json("history", op) == before
    assert l2inv.json("publish")["ops"]["done"] == 1


def test_publish_ends_if_the_answer_to_an_announcement_never_does(
    l2inv: Commands, store: Store, waits: Callable[..., None], trickle: Trickle, ready: list[str]
) -> None:
    op = ready[0]
    invert(l2inv, op)
    trickle.only = {"Create"}
    waits("publish", endless=["a header"], limit_seconds=1.5)
    assert trickle.heard.count("Create") == 2
    assert kinds(l2inv, op)[-2:] == ["inverted", "inversion_named"]
    assert l2inv.json("publish")["ops"]["done"] == 1


def test_a_process_that_gave_up_an_answer_ends_with_it(
    l2inv: Commands, trickle: Trickle, ready: list[str]
) -> None:
    invert(l2inv, ready[0])
    l2inv.settings["metadata_store"] |= {"url": trickle.url, "total_timeout_seconds": 0.5}
    l2inv.save()
    process = l2inv.start("publish")
    try:
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "not read to the end in 0.5 s" in said


# Who waits for the store keeps nobody waiting


Sessions = list[dict[str, Any]]


@contextmanager
def watched(store: Store, url: str) -> Iterator[list[Sessions]]:
    """What every other session of the database is at and holds, at each question that the store hears."""
    seen: list[Sessions] = []

    def look(name: str, nth: int) -> None:
        with psycopg.connect(url, row_factory=dict_row, autocommit=True) as watcher:
            seen.append(
                watcher.execute(
                    """
                    select a.pid, a.state, a.xact_start is not null as in_transaction,
                           array_agg(distinct l.locktype || ' ' || l.mode) filter (where l.pid is not null) as locks,
                           array_agg(distinct l.relation::regclass::text)
                               filter (where l.mode in ('RowShareLock', 'RowExclusiveLock', 'ExclusiveLock')
                                       and l.locktype = 'relation') as written
                    from pg_stat_activity a left join pg_locks l on l.pid = a.pid
                    where a.datname = current_database() and a.backend_type = 'client backend'
                        and a.pid <> pg_backend_pid()
                    group by a.pid, a.state, a.xact_start
                    """
                ).fetchall()
            )

    before = store.fault
    store.fault = look
    yield seen
    store.fault = before


def nothing_is_held(seen: list[Sessions]) -> None:
    """No session is in a transaction, and the one lock held is the stage's own."""
    assert seen, "the store was asked nothing"
    for sessions in seen:
        assert {session["state"] for session in sessions} == {"idle"}
        assert not any(session["in_transaction"] for session in sessions)
        locks = [lock for session in sessions for lock in session["locks"] or ()]
        assert locks == ["advisory ExclusiveLock"]


def test_publish_locks_nothing_while_it_talks_to_the_store(
    l2inv: Commands, store: Store, ready: list[str], url: str
) -> None:
    for op in ready[:2]:
        invert(l2inv, op)
    with watched(store, url) as seen:
        assert l2inv.json("publish")["ops"]["done"] == 2
    assert len(seen) >= 2 * 3, "each OP takes three requests"
    nothing_is_held(seen)


@pytest.mark.parametrize("in_error", [False, True])
def test_reopen_locks_nothing_while_it_asks_the_store(
    l2inv: Commands, store: Store, ready: list[str], url: str, in_error: bool
) -> None:
    op = ready[0]
    if in_error:
        invert(l2inv, op)
        refusal = Fault(body=b'{"errors": [{"message": "closed"}]}')
        store.fault = lambda name, nth: refusal if name == "Create" else None
        l2inv("publish", expect=4)
        store.fault = None
    else:
        named_and_not_told(l2inv, store, op)
    with watched(store, url) as seen:
        l2inv("reopen", op, "--reason", "x")
    nothing_is_held(seen)
    assert kinds(l2inv, op)[-1] == "reopened"


@pytest.mark.parametrize("beside", [False, True])
def test_adopt_locks_nothing_while_it_asks_the_store(
    l2inv: Commands, store: Store, ready: list[str], url: str, beside: bool
) -> None:
    op = ready[0]
    invert(l2inv, op)
    l2inv("publish")
    (held,) = store.inversions.values()
    l2inv("reopen", op, "--reason", "again")
    l2inv("qualify", "--as-of", NOW.isoformat())
    l2inv("preprocess")
    invert(l2inv, op)
    with watched(store, url) as seen:
        l2inv("adopt", op, held["inversionId"], *(["--beside"] * beside), "--reason", "x")
    nothing_is_held(seen)
    assert kinds(l2inv, op)[-1] == ("noted" if beside else "inversion_named")


def test_withdraw_asks_the_store_nothing(l2inv: Commands, store: Store, ready: list[str]) -> None:
    invert(l2inv, ready[0])
    l2inv("publish")
    store.requests.clear()
    l2inv("withdraw", ready[0], "--reason", "x")
    assert store.requests == []


def test_qualify_locks_nothing_while_it_asks_the_store(
    l2inv: Commands, store: Store, ready: list[str], url: str
) -> None:
    l2inv.settings["completeness"] = {"processing_candidates": True}
    l2inv.save()
    with watched(store, url) as seen:
        assert l2inv.json("qualify")["recipes"] == "known"
    nothing_is_held(seen)


def test_a_scan_is_one_transaction_that_locks_no_op_while_it_asks(
    l2inv: Commands, store: Store, ready: list[str], url: str
) -> None:
    for row in store.datasets:
        row["aoLocked"] = 1
    del store.datasets[::40]  # so that it asks by id, too
    with watched(store, url) as seen:
        assert l2inv.json("scan")["ops"]["changed"] > 10
    assert len(seen) > 4
    written = {name for sessions in seen for session in sessions for name in session["written"] or ()}
    assert "l2inv.dataset_version" in written
    assert not written & {"l2inv.event", "l2inv.op_state"}


@pytest.mark.parametrize("command", ["reopen", "adopt"])
def test_an_op_can_be_moved_while_the_store_is_asked_and_that_wins(
    l2inv: Commands, store: Store, ready: list[str], url: str, command: str
) -> None:
    op = ready[0]
    named_and_not_told(l2inv, store, op)
    (store.inversions["inv.OTHERS"],) = [
        {"inversionId": "inv.OTHERS", "primaryProposalId": "p", "instrumentProgramExecutionId": "i", "bucket": "data",
         "asdfObjectKey": None, "datasetIds": [], "spectralLines": [], "createDate": "2026-01-01T00:00:00", "updateDate": None}
    ]  # fmt: skip

    def note(name: str, nth: int) -> None:
        with connected(Settings(database=Database(url=url))) as other:
            other.execute("set lock_timeout to '5s'")
            with other.transaction():
                event_log.add_one(
                    other, event_log.locked(other, op), "noted", None, "ann", {"note": "meanwhile"}
                )

    store.fault = note
    argv = ("reopen", op) if command == "reopen" else ("adopt", op, "inv.OTHERS", "--beside")
    answer = l2inv(*argv, "--reason", "x", expect=3)
    assert "changed while the store was asked" in answer.stderr
    assert kinds(l2inv, op)[-2:] == ["inversion_named", "noted"]
    store.fault = None
    l2inv(*argv, "--reason", "x")
