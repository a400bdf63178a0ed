"""The demo and the sample store, as a newcomer starts them."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import pq

from l2inv.config.settings import Database, Settings
from l2inv.database import embedded
from l2inv.errors import DatabaseError, Refused
from l2inv.sample import demo
from tests.helpers.database import quick_folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home of the test's own, with a space in its path."""
    home = tmp_path / "a home"
    home.mkdir()
    return home


def l2inv(home: Path, *argv: str) -> list[str]:
    """A command line whose data folder lies below home, for root as for anybody."""
    code = (
        "import sys; from pathlib import Path; from l2inv.database import embedded; from l2inv.cli import main;"
        f"embedded.default_folder = lambda: Path({str(home)!r}) / 'server'; main(sys.argv[1:])"
    )
    return [sys.executable, "-c", code, *argv]


def test_the_demo_runs_every_stage_and_leaves_its_database_for_the_next_command(home: Path) -> None:
    config = home / "config.yaml"
    config.write_text("database: {url: 'postgresql://127.0.0.1:9/never-touched'}\n")
    env = os.environ | {"L2INV_CONFIG": str(config)}
    try:
        done = subprocess.run(l2inv(home, "demo"), check=False, capture_output=True, text=True, env=env)
        assert (done.returncode, done.stderr) == (0, "")
        shown = done.stdout
        for command in (
            "scan",
            "qualify",
            "preprocess",
            "retry",
            "next",
            "claim",
            "mark-inverted",
            "publish",
        ):
            assert f"$ l2inv {command}" in shown
        assert re.search(r"OPs judged \([1-9]\d* invertible, [1-9]\d* not\), [1-9]\d* waiting", shown)
        assert "AO 75%" in shown
        assert "ranked by " in shown
        steps = re.findall(r"^  inv\.\w{6} (\w+): (not configured|done)", shown, re.MULTILINE)
        assert dict(steps) == {
            "transfer": "not configured", "catalog": "not configured", "record": "done", "available": "not configured",
        }  # fmt: skip
        next_steps = shown[shown.index("Try next:") :].splitlines()
        (export,) = [line for line in next_steps if "export L2INV_CONFIG=" in line]
        after = export.split("=", 1)[1].strip("'")
        history = next(shlex.split(line, comments=True)[1:] for line in next_steps if " history " in line)
        told = subprocess.run(
            l2inv(home, "--config", after, *history, "--json"), capture_output=True, text=True, check=True
        )
        kinds = [e["kind"] for e in json.loads(told.stdout)["events"]]
        assert kinds[0] == "discovered"
        assert kinds[-1] == "published"
        rescan = subprocess.run(
            l2inv(home, "--config", after, "scan", "--json"), capture_output=True, text=True, check=True
        )
        assert json.loads(rescan.stdout)["datasets"]["new"] == 0
        again = subprocess.run(l2inv(home, "demo", "--json"), capture_output=True, text=True, check=True)
        states = json.loads(again.stdout)["states"]
        assert states["published"] == 1
        assert min(states["preprocessed"], states["not_invertible"], states["discovered"]) > 0
    finally:
        embedded.stop(home / "demo" / "server")


def test_the_sample_store_serves_alone_until_ctrl_c(home: Path) -> None:
    process = subprocess.Popen(
        l2inv(home, "demo", "--store"), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = process.stderr.readline()
    url = next(word for word in said.split() if word.startswith("http://"))
    question = json.dumps(
        {"query": "{ datasetInventoriesRecordCount(filterParams: {}) { recordCount } }"}
    ).encode()
    request = urllib.request.Request(url, question, {"Service-Name": "tests"})
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["data"]["datasetInventoriesRecordCount"]["recordCount"] > 100
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_the_demos_folder_is_not_the_configured_servers() -> None:
    assert demo.demo_folder() != embedded.default_folder()


def pump(source: socket.socket, target: socket.socket) -> None:
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)


class Elsewhere:
    """Somebody else's server with a schema l2inv in it, and variables for libpq that all lead there or astray."""

    def __init__(self, folder: Path) -> None:
        self.url = embedded.start(folder / "server")
        self.ask("create schema l2inv; create table l2inv.precious as select 42 as answer")
        path = embedded._socket_folder(next((folder / "server").glob("pg*[0-9]"))) / embedded.SOCKET

        class Forward(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.socket(socket.AF_UNIX) as there:
                    there.connect(str(path))
                    back = threading.Thread(target=pump, args=(there, self.request))
                    back.start()
                    pump(self.request, there)
                    back.join()

        # On the port that every embedded server has; the tests that run beside this one have other addresses.
        host = f"127.66.{os.getpid() // 250 % 250 + 1}.{os.getpid() % 250 + 1}"
        socketserver.ThreadingTCPServer.allow_reuse_address = True
        self.tcp = socketserver.ThreadingTCPServer((host, 5432), Forward)
        threading.Thread(target=self.tcp.serve_forever, kwargs={"poll_interval": 0.02}).start()
        service = folder / "pg_service.conf"
        service.write_text(f"[theirs]\nhost={host}\nhostaddr={host}\nuser=postgres\n")
        variables = {o.envvar.decode() for o in pq.Conninfo.get_defaults() if o.envvar}
        self.variables = dict.fromkeys({*variables, "PGTZ", "PGDATESTYLE", "PGGEQO", "PGDATA"}, "astray")
        self.variables |= {"PGSERVICE": "theirs", "PGSERVICEFILE": str(service), "PGSYSCONFDIR": str(folder)}
        self.variables |= {"PGHOST": host, "PGHOSTADDR": host, "PGPORT": "5432"}
        self.variables |= {"PGUSER": "postgres", "PGDATABASE": "l2inv", "PGOPTIONS": "-c search_path=l2inv"}

    def ask(self, question: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            answer = connection.execute(question)
            return answer.fetchall() if answer.description else []

    @property
    def tables(self) -> list[object]:
        return [row[0] for row in self.ask("select tablename from pg_tables where schemaname = 'l2inv'")]


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    if sys.platform != "linux":
        pytest.skip("all of 127.0.0.0/8 is this machine on Linux")
    folder = quick_folder()
    try:
        elsewhere = Elsewhere(folder)
        yield elsewhere
        elsewhere.tcp.shutdown()
        elsewhere.tcp.server_close()
    finally:
        embedded.stop(folder / "server")
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "few",
    [
        pytest.param({"PGHOSTADDR"}, id="address", marks=pytest.mark.slow),
        pytest.param({"PGSERVICE", "PGSERVICEFILE"}, id="service", marks=pytest.mark.slow),
        pytest.param(set(), id="all"),
    ],
)
def test_the_demo_never_touches_another_server_whatever_libpqs_variables_are(
    home: Path, elsewhere: Elsewhere, few: set[str]
) -> None:
    variables = {name: value for name, value in elsewhere.variables.items() if not few or name in few}
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"} | variables
    folder = home / "demo"
    command = [sys.executable, "-m", "l2inv", "demo", "--folder", str(folder)]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=env, cwd=home)
        assert elsewhere.tables == ["precious"]
        assert (done.returncode, done.stderr) == (0, "")
        assert f"everything is kept in {folder}" in done.stdout
        again = [sys.executable, "-m", "l2inv", "--config", str(folder / "config.yaml"), "status", "--json"]
        told = subprocess.run(again, check=True, capture_output=True, text=True, env=env, cwd=home)
        assert json.loads(told.stdout)["states"]["published"] == 1
    finally:
        embedded.stop(folder / "server")
    assert elsewhere.tables == ["precious"]


def test_the_demo_empties_no_server_but_the_one_in_its_folder(
    home: Path, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(database=Database(embedded_folder=str(home / "server")))
    url = embedded.start(home / "server")
    try:
        monkeypatch.setattr(embedded, "start", lambda _: elsewhere.url)
        with pytest.raises(DatabaseError, match="another server than its own"):
            demo._empty(settings)
        assert elsewhere.tables == ["precious"]
        monkeypatch.setattr(embedded, "start", lambda _: url)
        demo._empty(settings)
    finally:
        embedded.stop(home / "server")


def test_the_demo_takes_no_folder_that_holds_something_else(home: Path) -> None:
    (home / "server" / "pg18").mkdir(parents=True)
    for folder in (home, home / "server"):
        with pytest.raises(Refused, match="has other content"):
            demo.run(print, folder=folder)
    assert [path.name for path in home.rglob("*")] == ["server", "pg18"]
