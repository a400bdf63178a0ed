"""A real PostgreSQL for the tests, a database for each, and the commands as users call them.

The server is the embedded one, started once; L2INV_TEST_DATABASE names another (a libpq URI of a superuser).
"""

import gc
import inspect
import os
import pickle
import re
import shutil
import signal
import threading
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest
from click.testing import CliRunner

from l2inv.config.settings import Database, Settings
from l2inv.database import embedded, migrate
from l2inv.database.access import connected
from l2inv.database.connection import Connection, open_connection
from l2inv.sample import inventory
from l2inv.sample.server import Store, serving
from tests.helpers import sessions
from tests.helpers.commands import AS_OF, NOW, Commands
from tests.helpers.database import MIGRATED, SERVER, copied, copy, drop, quick_folder
from tests.helpers.listeners import Listener

if TYPE_CHECKING:
    from tests.helpers.rabbitmq import Broker
    from tests.helpers.warm import Warm

FAILED = pytest.StashKey[bool]()

if "mix_stderr" in (defaults := inspect.signature(CliRunner).parameters):  # before click 8.2
    CliRunner.__init__.__defaults__ = (*[p.default for p in defaults.values()][:-1], False)


def pytest_configure(config: pytest.Config) -> None:
    # libpq's variables may belong to L2INV_TEST_DATABASE; without it they would lead the tests to another server.
    libpqs = [
        name for name in os.environ if name.startswith("PG") and "L2INV_TEST_DATABASE" not in os.environ
    ]
    for name in ("L2INV_CONFIG", "L2INV_ACTOR", *libpqs):
        os.environ.pop(name, None)
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # as in a shell's background; what is started inherits it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):  # workers use the server of the process that started them
        folder = quick_folder()
        config.add_cleanup(lambda: _removed(config, folder))
        config.option.basetemp = config.option.basetemp or folder / "tests"
        os.environ[SERVER] = os.environ.get("L2INV_TEST_DATABASE") or _started(config, folder / "server")
        os.environ[MIGRATED] = migrated = f"migrated_{os.getpid()}"
        config.add_cleanup(lambda: drop(migrated))
        with open_connection(Settings(database=Database(url=copy(migrated, "template0")))) as connection:
            migrate.apply(connection, "l2inv")
        os.environ["XDG_STATE_HOME"] = str(folder / "state")  # never the user's own


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave what starts a cluster of Slurm to the slow tests."""
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Keep what was imported and collected, 400,000 objects, out of every later garbage collection."""
    gc.collect()
    gc.freeze()


def pytest_xdist_auto_num_workers() -> int:
    """Two more than there are processors: many tests wait for processes of their own."""
    return (os.cpu_count() or 1) + 2


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    sessions.end_all()


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[FAILED] = session.testsfailed > 0


def _removed(config: pytest.Config, folder: Path) -> None:
    """Remove what is in memory; all but the folders of tests that failed."""
    for path in folder.iterdir() if config.stash.get(FAILED, False) else [folder]:
        if path.name != "tests":
            shutil.rmtree(path, ignore_errors=True)


def _started(config: pytest.Config, folder: Path) -> str:
    config.add_cleanup(lambda: (embedded.stop(folder), None)[1])
    url = embedded.start(folder)
    with psycopg.connect(url, autocommit=True) as connection:
        # The tests kill l2inv on purpose, never the machine, and no database lives long enough to be vacuumed.
        for setting in ("fsync", "full_page_writes", "synchronous_commit", "autovacuum"):
            connection.execute(f"alter system set {setting} = off")
        connection.execute("select pg_reload_conf()")
    return url


class Ready(NamedTuple):
    """A database in which scan, qualify and preprocess ran over the sample store."""

    name: str
    work: Path  # a copy of what they wrote
    ops: list[str]  # that can be claimed


@pytest.fixture(scope="session")
def ready_template(test_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ready]:
    """What `ready` is a copy of."""
    name, folder = f"prepared_{os.getpid()}", tmp_path_factory.mktemp("ready_template")
    with copied(name, os.environ[MIGRATED]) as url, serving(Store(inventory.make(now=NOW))) as store_url:
        l2inv = commands(folder / "config.yaml", url, store_url, test_folder / "work")
        ops = stages(l2inv)
        yield Ready(name, (test_folder / "work").rename(folder / "work"), ops)


def stages(l2inv: Commands) -> list[str]:
    l2inv("scan")
    l2inv(*AS_OF)
    l2inv("preprocess")
    return [op["op_id"] for op in l2inv.json("next", "-n", "100")["ops"]]


@pytest.fixture(scope="session")
def test_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of every test's tmp_path in this process: events that were recorded once name files below it."""
    return tmp_path_factory.getbasetemp() / "test"


@pytest.fixture
def tmp_path(test_folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder of the test's own. After a test that failed it is kept under another name."""
    test_folder.mkdir(mode=0o700, exist_ok=True)
    yield test_folder
    name = re.sub(r"\W", "_", request.node.name)[:30]
    aside = test_folder.rename(test_folder.with_name(f"{name}{len(list(test_folder.parent.iterdir()))}"))
    if not request.node.stash.get(FAILED, False):
        shutil.rmtree(aside, ignore_errors=True)


@pytest.fixture
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database of the test's own, migrated and empty, or as `ready` says."""
    is_ready = "ready" in request.node.fixturenames
    template = request.getfixturevalue("ready_template").name if is_ready else os.environ[MIGRATED]
    with copied(f"test_{os.getpid()}", template) as url:
        yield url


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    """A connection of l2inv's to the test's database."""
    with connected(Settings(database=Database(url=url))) as connection:
        yield connection


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each command a session of its own with PostgreSQL."""
    monkeypatch.setenv("L2INV_TEST_COLD", "1")


@pytest.fixture
def store() -> Store:
    """A sample metadata store with its synthetic inventory."""
    datasets: list[dict[str, Any]] = pickle.loads(_inventory())
    return Store(datasets)


@cache
def _inventory() -> bytes:
    return pickle.dumps(inventory.make(now=NOW))


@pytest.fixture
def store_url(store: Store) -> Iterator[str]:
    with serving(store) as where:
        yield where


@pytest.fixture
def l2inv(url: str, store_url: str, tmp_path: Path) -> Commands:
    """The commands on the test's own database and sample store."""
    return commands(tmp_path / "config.yaml", url, store_url, tmp_path / "work")


def commands(config: Path, url: str, store_url: str, work: Path) -> Commands:
    settings = {
        "database": {"url": url},
        "metadata_store": {"url": store_url, "retries": 1},
        "preprocess": {"work_dir": str(work)},
    }
    return Commands(config, settings)


@pytest.fixture(scope="session")
def warm() -> Iterator["Warm"]:
    """Starts l2inv as processes of its own, quickly."""
    from tests.helpers.warm import Warm

    warm = Warm()
    yield warm
    warm.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A server that keeps what it is told."""
    listener = Listener()
    thread = threading.Thread(target=listener.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield listener
    listener.server.shutdown()
    thread.join()
    listener.server.server_close()


@pytest.fixture(scope="session")
def broker() -> Iterator["Broker"]:
    """A RabbitMQ of the tests' own."""
    from tests.helpers import rabbitmq

    if why := rabbitmq.missing():
        pytest.skip(why)
    with rabbitmq.running() as broker:
        yield broker


@pytest.fixture
def ready(l2inv: Commands, tmp_path: Path, request: pytest.FixtureRequest) -> list[str]:
    """The OPs that science can claim, after the stages ran over the sample store."""
    if "ready" not in request.node.fixturenames:  # another fixture asks for it, later than for its database
        return stages(l2inv)
    ready_template: Ready = request.getfixturevalue("ready_template")
    shutil.copytree(ready_template.work, tmp_path / "work", symlinks=True)
    return ready_template.ops.copy()
