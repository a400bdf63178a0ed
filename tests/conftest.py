"""A real PostgreSQL for every test, a database of its own each, and the commands as their users call them.

The server is the embedded one, started once; L2INV_TEST_DATABASE names another (a libpq URI of a superuser).
"""

import inspect
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pytest_postgresql import factories

from l2inv.config.settings import Database, Settings
from l2inv.database import embedded, migrate
from l2inv.database.access import connected
from l2inv.database.connection import Connection, open_connection
from l2inv.sample import inventory
from l2inv.sample.server import Store, serving
from tests.helpers.commands import NOW, Commands
from tests.helpers.database import SERVER, quick_folder
from tests.helpers.listeners import Listener

if TYPE_CHECKING:
    from tests.helpers.rabbitmq import Broker

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
        os.environ[SERVER] = os.environ.get("L2INV_TEST_DATABASE") or _started(config)
        os.environ["XDG_STATE_HOME"] = state = tempfile.mkdtemp(prefix="l2inv-state-")  # never the user's own
        config.add_cleanup(lambda: shutil.rmtree(state, ignore_errors=True))
    where = conninfo_to_dict(os.environ[SERVER])
    for name in ("host", "port", "user", "password"):
        setattr(config.option, f"postgresql_{name}", where.get(name))


def pytest_xdist_auto_num_workers() -> int:
    """Two more than there are processors: many tests wait for processes of their own."""
    return (os.cpu_count() or 1) + 2


def _started(config: pytest.Config) -> str:
    folder = quick_folder()
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    config.add_cleanup(lambda: (embedded.stop(folder), None)[1])
    url = embedded.start(folder)
    with psycopg.connect(url, autocommit=True) as connection:
        # The tests kill l2inv on purpose, never the machine.
        connection.execute("alter system set fsync = off")
        connection.execute("select pg_reload_conf()")
    return url


def load_migrations(**where: Any) -> None:
    """Fill the template that every test's database is a copy of."""
    url = make_conninfo(
        **{key: where[key] for key in ("host", "port", "user", "password", "dbname") if where[key]}
    )
    with open_connection(Settings(database=Database(url=url))) as connection:
        migrate.apply(connection, "l2inv")


server = factories.postgresql_noproc(load=[load_migrations])
fresh_connection = factories.postgresql("server")


@pytest.fixture
def url(fresh_connection: psycopg.Connection[Any]) -> str:
    """A database of the test's own, migrated and empty."""
    info = fresh_connection.info
    url = make_conninfo(
        host=info.host, port=info.port, user=info.user, password=info.password, dbname=info.dbname
    )
    fresh_connection.close()
    return url


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    """A connection of l2inv's to the test's database."""
    with connected(Settings(database=Database(url=url))) as connection:
        yield connection


@pytest.fixture
def store() -> Store:
    """A sample metadata store with its synthetic inventory."""
    return Store(inventory.make(now=NOW))


@pytest.fixture
def store_url(store: Store) -> Iterator[str]:
    with serving(store) as where:
        yield where


@pytest.fixture
def l2inv(url: str, store_url: str, tmp_path: Path) -> Commands:
    """The commands on the test's own database and sample store."""
    return Commands(
        tmp_path / "config.yaml",
        {
            "database": {"url": url},
            "metadata_store": {"url": store_url, "retries": 1},
            "preprocess": {"work_dir": str(tmp_path / "work")},
        },
    )


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
def ready(l2inv: Commands) -> list[str]:
    """The OPs that science can claim, after the stages ran over the sample store."""
    l2inv("scan")
    l2inv("qualify", "--as-of", NOW.isoformat())
    l2inv("preprocess")
    return [op["op_id"] for op in l2inv.json("next", "-n", "100")["ops"]]
