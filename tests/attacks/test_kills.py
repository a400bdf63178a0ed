"""l2inv or PostgreSQL killed during any stage: the event log stays intact, and the next run finishes the work.

L2INV_ATTACKS_SEED names other random points than the usual ones.
"""

import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from l2inv.config.settings import Database, Settings
from l2inv.database import embedded, migrate
from l2inv.database.connection import Connection, open_connection
from l2inv.sample import inventory
from l2inv.sample.server import Fault, Store
from tests.helpers.commands import NOW, READY_TEXT, Commands
from tests.helpers.waiting import WAITS_FOR_A_LOCK, has_ended, until, until_alone
from tests.helpers.warm import Warm

SEED = int(os.environ.get("L2INV_ATTACKS_SEED", "1"))
STAGES = ("scan", "qualify", "preprocess", "claim", "mark-inverted", "inbox", "publish")
STOPPED = "l2inv: stopped; run it again: nothing was left half-written\n"

Attack = Callable[[int, float], bool]  # process, how long the stage takes in s; whether it struck


class World:
    """OPs that go round and round: scanned, judged, prepared, claimed, inverted, published, reopened.

    Each stage's run may be attacked. What it left is then finished by a run that is not, and looked at.
    """

    def __init__(self, url: str, store: Store, store_url: str, folder: Path, warm: Warm) -> None:
        self.url, self.store, self.folder = url, store, folder
        self.inbox = folder / "inbox"
        self.inbox.mkdir()
        prepare = ["sh", "-c", 'sleep 0.02; echo made >"$0/made"', "{folder}"]
        settings = {
            "database": {"url": url},
            "metadata_store": {"url": store_url, "retries": 1},
            "preprocess": {"work_dir": str(folder / "work"), "command": prepare, "parallel": 4},
        }
        self.l2inv = Commands(folder / "config.yaml", settings)
        self.warm = warm
        self.took: dict[str, float] = {}
        self.struck: Counter[str] = Counter()
        self.rounds = 0
        self.l2inv("scan")
        self.l2inv("qualify", "--as-of", NOW.isoformat())
        self.states = self._states()  # in which every round's OPs are judged to be

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        with closing(psycopg.connect(self.url, autocommit=True, row_factory=dict_row)) as connection:
            return connection.execute(query, values).fetchall()

    def _states(self) -> dict[str, str]:
        return {row["op_id"]: row["state"] for row in self.rows("select op_id, state from l2inv.op_state")}

    def newest(self) -> int:
        newest: int = self.rows("select max(event_id) as newest from l2inv.event")[0]["newest"]
        return newest

    def kinds(self, after: int) -> dict[str, list[str]]:
        """The kinds of events of each OP since then."""
        found: dict[str, list[str]] = {}
        for row in self.rows(
            "select op_id, kind from l2inv.event where event_id > %s order by event_id", after
        ):
            found.setdefault(row["op_id"], []).append(row["kind"])
        return found

    def gone(self, but: int = 0) -> None:
        """Wait until PostgreSQL has noticed that whoever was connected is dead; all but one."""
        with closing(psycopg.connect(self.url, autocommit=True)) as connection:
            until_alone(connection, but)

    def _done(self, stage: str, argv: tuple[str, ...], attack: Attack | None) -> None:
        """Run a stage: attacked, and then to its end."""
        if attack is not None and stage in self.took:
            pid = self.warm.start(self.l2inv, *argv)
            struck = attack(pid, self.took[stage])
            code, stdout, stderr = self.warm.ended(pid)
            assert code in (0, 1, -signal.SIGKILL), (stage, code, stdout, stderr)
            assert "Traceback" not in stderr, stderr
            assert stderr.count("l2inv: ") == stderr.count("\n"), stderr
            self.struck[stage] += struck and code != 0
            self.gone()
        begun = time.monotonic()
        code, stdout, stderr = self.warm.ended(self.warm.start(self.l2inv, *argv))
        self.took.setdefault(stage, time.monotonic() - begun)
        assert code == 0, (stage, code, stdout, stderr)

    def round(self, attack: Attack | None = None) -> None:
        """One round of every OP; with each stage attacked, unless it is the first."""
        self.rounds += 1
        self._scan(attack)
        self._qualify(attack)
        ready = self._preprocess(attack)
        chosen = ready[:4]
        for op in chosen:
            self._claim(op, attack)
        for n, op in enumerate(chosen):
            self._invert(op, n % 2 == 0, attack)
        self._publish(chosen, attack)
        for op in chosen:
            self.l2inv("reopen", op, "--reason", "again")
        verified = self.l2inv("verify", "--json", expect=None).json
        assert verified["findings"] == []

    def touch(self) -> tuple[set[str], str]:
        """Change an input of every verdict that does not change the verdict; return the OPs, and the second."""
        touched, second = set(), f"{(self.rounds + 30) % 60:02}"
        for dataset in self.store.datasets:
            if dataset["instrumentName"] == "VISP" and dataset["observingProgramExecutionId"] in self.states:
                dataset["startTime"] = dataset["startTime"][:17] + second + dataset["startTime"][19:]
                touched.add(dataset["observingProgramExecutionId"])
        return touched, second

    def _scan(self, attack: Attack | None) -> None:
        before, (touched, second) = self.newest(), self.touch()
        self._done("scan", ("scan",), attack)
        kinds = self.kinds(before)
        assert set(kinds) <= touched
        assert all(found == ["datasets_changed"] for found in kinds.values()), kinds
        seconds = self.rows(
            "select distinct substr(record ->> 'startTime', 18, 2) as second, op_id from l2inv.dataset where instrument = 'VISP'"
        )
        assert {row["second"] for row in seconds if row["op_id"] in touched} == {second}

    def _qualify(self, attack: Attack | None) -> None:
        before = self.newest()
        due = {
            op for op, state in self._states().items() if state == "discovered" and self.states[op] != state
        }
        self._done("qualify", ("qualify", "--as-of", NOW.isoformat()), attack)
        assert self.kinds(before) == {op: ["judged"] for op in due}
        assert self._states() == self.states

    def _preprocess(self, attack: Attack | None) -> list[str]:
        before = self.newest()
        due = sorted(op for op, state in self.states.items() if state == "invertible")
        self._done("preprocess", ("preprocess",), attack)
        kinds = self.kinds(before)
        assert set(kinds) == set(due)
        for found in kinds.values():
            # A job that was recorded and never began is begun again.
            assert found.count("preprocessed") == 1, found
            assert set(found[:-1]) == {"preprocess_started"}, found
        assert len(list((self.folder / "work").rglob("made"))) == len(due)
        return due

    def _claim(self, op: str, attack: Attack | None) -> None:
        before = self.newest()
        self._done("claim", ("claim", op), attack)
        assert self.kinds(before) == {op: ["claimed"]}
        (row,) = self.rows("select state, assignee from l2inv.op where op_id = %s", op)
        assert (row["state"], row["assignee"]) == ("working", "han")

    def _invert(self, op: str, by_file: bool, attack: Attack | None) -> None:
        before = self.newest()
        if by_file:
            making = self.inbox / "making"
            making.write_text(f"op_id: {op}\nnote: round {self.rounds}\n{READY_TEXT}")
            making.rename(self.inbox / "ready.yaml")
            self._done("inbox", ("inbox", str(self.inbox)), attack)
            assert [p.name for p in self.inbox.iterdir() if p.is_file()] == []
            assert list((self.inbox / "rejected").iterdir()) == []
        else:
            self._done(
                "mark-inverted",
                (
                    "mark-inverted",
                    op,
                    "--software=DeSIRe",
                    "--software-version=4",
                    "--output",
                    f"globus://{self.rounds}",
                ),
                attack,
            )
        assert self.kinds(before) == {op: ["inverted"]}

    def _publish(self, ops: list[str], attack: Attack | None) -> None:
        before, held = self.newest(), set(self.store.inversions)
        self._done("publish", ("publish",), attack)
        kinds = self.kinds(before)
        told = set(self.store.inversions) - held
        assert set(kinds) == set(ops)
        for found in kinds.values():
            assert found == ["inversion_named", "inversion_created"] * (len(found) // 2) + ["published"], (
                found
            )
        assert len(told) == sum(len(found) // 2 for found in kinds.values())
        named = self.rows(
            "select detail ->> 'inversion_id' as id from l2inv.event where kind = 'inversion_named' and event_id > %s",
            before,
        )
        assert sorted(row["id"] for row in named) == sorted(told)
        assert {self._states()[op] for op in ops} == {"published"}


@pytest.fixture
def store() -> Store:
    """One that is read quickly."""
    return Store(inventory.make(ops=20, now=NOW))


@pytest.fixture
def world(url: str, store: Store, store_url: str, tmp_path: Path, warm: Warm) -> World:
    return World(url, store, store_url, tmp_path, warm)


def killing(draw: Random) -> Attack:
    def attack(pid: int, took: float) -> bool:
        time.sleep(draw.uniform(0, took))  # the attack itself: any moment of the stage
        os.kill(pid, signal.SIGKILL)
        return True

    return attack


def killed(world: World, times: int) -> None:
    world.round()
    draw = Random(SEED)
    while world.struck.total() < times:
        world.round(killing(draw))
    print(f"\n{world.struck.total()} kills in {world.rounds - 1} rounds: {dict(world.struck)}")


def test_l2inv_killed_anywhere_leaves_a_whole_record_and_its_work_to_the_next_run(world: World) -> None:
    killed(world, 12)
    assert len(world.struck) > 4


@pytest.mark.slow
def test_l2inv_killed_300_times(world: World) -> None:
    killed(world, 300)
    assert set(world.struck) == set(STAGES)


@pytest.fixture
def own_server(store: Store, store_url: str, tmp_path: Path, warm: Warm) -> Iterator[tuple[Path, World]]:
    """A server that keeps what it said it kept (fsync), and that only this test stops."""
    folder = Path(tempfile.mkdtemp(prefix="l2inv-kills-"))
    try:
        url = embedded.start(folder)
        with open_connection(Settings(database=Database(url=url))) as connection:
            assert connection.execute("show fsync").fetchone() == {"fsync": "on"}
            migrate.apply(connection, "l2inv")
        yield folder, World(url, store, store_url, tmp_path, warm)
    finally:
        embedded.stop(folder)
        shutil.rmtree(folder)


def stopping(folder: Path, draw: Random, times: int) -> Attack:
    """Stop PostgreSQL at once, so many times, and starts it again: it then recovers by itself."""
    left = [times]

    def attack(pid: int, took: float) -> bool:
        if not left[0]:
            return False
        (data,) = folder.glob("pg??")
        server = int((data / "postmaster.pid").read_text().split()[0])
        time.sleep(draw.uniform(0, took))
        os.kill(server, signal.SIGQUIT)  # what pg_ctl stop -m immediate sends
        until(lambda: not embedded.is_running(folder))
        left[0] -= 1
        # Only once the stage found out may the server be there again.
        until(lambda: has_ended(pid))
        embedded.start(folder)
        return True

    return attack


def stopped(folder: Path, world: World, times: int) -> None:
    world.round()
    draw, stops = Random(SEED), 0
    while stops < times:
        here = min(len(STAGES) + 6, times - stops)
        world.round(stopping(folder, draw, here))
        stops += here
    print(f"\n{stops} immediate stops, {world.struck.total()} ended a stage: {dict(world.struck)}")
    assert world.struck.total() > 0


def test_postgresql_stopped_at_once_under_a_stage_loses_nothing(own_server: tuple[Path, World]) -> None:
    stopped(*own_server, times=3)


@pytest.mark.slow
def test_postgresql_stopped_at_once_50_times_loses_nothing(own_server: tuple[Path, World]) -> None:
    stopped(*own_server, times=50)


# SIGTERM, and of one stage Ctrl-C, while it waits for the store, and while it waits for PostgreSQL.
STOPS = [(stage, signal.SIGTERM) for stage in ("scan", "qualify", "inbox", "publish")] + [
    ("scan", signal.SIGINT)
]


def unfinished(connection: Connection) -> int:
    return len(connection.execute("select from l2inv.run where finished_at is null").fetchall())


@contextmanager
def silent(store: Store, nth_request: int) -> Iterator[Callable[[], bool]]:
    """A store that does not answer from that request on, and whether it came."""
    begun = len(store.requests)

    def fault(operation: str, nth: int) -> Fault | None:
        return Fault(delay_seconds=20, drop="before") if len(store.requests) - begun >= nth_request else None

    store.fault = fault
    yield lambda: len(store.requests) - begun >= nth_request
    store.fault = None


@contextmanager
def slow(connection: Connection) -> Iterator[None]:
    """A PostgreSQL that lets whoever records an event wait."""
    connection.execute(
        """
        create function l2inv.wait() returns trigger language plpgsql as $$ begin
            perform pg_advisory_xact_lock(42);
            return new;
        end $$;
        create trigger wait before insert on l2inv.event for each row execute function l2inv.wait();
        select pg_advisory_lock(42);
        """
    )
    yield
    connection.execute("select pg_advisory_unlock(42)")
    connection.execute("drop function l2inv.wait() cascade")


def ready_for(world: World, stage: str) -> tuple[str, ...]:
    """Bring an OP to where the stage has work to do, and return the stage's command."""
    argv = {"inbox": ("inbox", str(world.inbox)), "qualify": ("qualify", "--as-of", NOW.isoformat())}
    op = next(op for op, state in world.states.items() if state == "invertible")
    if stage in ("scan", "qualify"):
        world.touch()
    if stage == "qualify":
        world.l2inv("scan")
    if stage in ("inbox", "publish"):
        world.l2inv("preprocess")
        world.l2inv("claim", op)
        (world.inbox / "ready.yaml").write_text(f"op_id: {op}\n{READY_TEXT}")
    if stage == "publish":
        world.l2inv(*argv["inbox"])
    return argv.get(stage, (stage,))


@pytest.mark.parametrize(("stage", "sign"), [stop for stop in STOPS if stop[0] in ("scan", "publish")])
def test_stopped_while_the_store_is_silent_it_ends_at_once_and_releases_its_lock(
    world: World, connection: Connection, stage: str, sign: signal.Signals
) -> None:
    argv, before = ready_for(world, stage), world.newest()
    # Publish records the name of an inversion before its second request, which tells of it.
    with silent(world.store, 1 if stage == "publish" else 2) as is_waiting:
        pid = world.warm.start(world.l2inv, *argv)
        until(is_waiting)
        os.kill(pid, sign)
        assert world.warm.ended(pid) == (1, "", STOPPED)
    assert unfinished(connection) == 0
    assert world.kinds(before) == {}
    assert world.warm.ended(world.warm.start(world.l2inv, *argv))[0] == 0
    assert world.kinds(before) != {}


@pytest.mark.parametrize(("stage", "sign"), STOPS)
def test_stopped_while_postgresql_is_slow_it_ends_at_once_and_releases_its_lock(
    world: World, connection: Connection, stage: str, sign: signal.Signals
) -> None:
    argv, before = ready_for(world, stage), world.newest()
    with slow(connection):
        pid = world.warm.start(world.l2inv, *argv)
        until(lambda: bool(world.rows(WAITS_FOR_A_LOCK)))
        os.kill(pid, sign)
        assert world.warm.ended(pid) == (1, "", STOPPED)
        world.gone(but=connection.info.backend_pid)
    assert unfinished(connection) == 0
    assert world.kinds(before) == {}
    assert world.warm.ended(world.warm.start(world.l2inv, *argv))[0] == 0
    assert world.kinds(before) != {}
