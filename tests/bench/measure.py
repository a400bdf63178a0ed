"""How it is measured: in rounds, the median told; where peers stand beside it, the time that the server was at it."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from l2inv.config.settings import Database, Settings
from l2inv.database.connection import Connection, open_connection
from tests.bench import load, peers


class Figure(NamedTuple):
    what: str
    target: str
    figure: str
    met: bool | None = None


class Place(NamedTuple):
    """Where it is measured: a server, a schema on it with so many OPs, a folder for files."""

    url: str
    schema: str
    ops: int
    folder: Path

    @contextmanager
    def connect(self, prepares: bool = False) -> Iterator[Connection]:
        """Lend a connection; unless it prepares, it is one as for a command that cron runs."""
        settings = Settings(database=Database(url=self.url, schema=self.schema))
        with open_connection(settings) as connection:
            if not prepares:
                connection.prepare_threshold = None
            yield connection

    def config(self, **store: Any) -> Path:
        return load.config(self.folder, self.url, self.schema, **store)

    def database(self, name: str) -> str:
        """The URL of another database on the same server."""
        return str(self.url).replace("/l2inv?", f"/{name}?", 1)


class Process(NamedTuple):
    seconds: float
    peak_mb: float
    out: str


def milliseconds(act: Callable[[], object], rounds: int = 21) -> float:
    """The median of so many rounds, after one that is not counted."""
    act()
    return 1000 * statistics.median(seconds(act) for _ in range(rounds))


def seconds(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def l2inv(config: Path, *argv: str) -> Process:
    """Run a command in a process of its own."""
    return process([sys.executable, "-m", "l2inv", "--config", str(config), *argv])


# A process of its own in between: what a child is said to have needed at most includes what its parent has.
IN_BETWEEN = """
import resource, subprocess, sys, time
begun = time.perf_counter()
code = subprocess.run(sys.argv[1:], stderr=subprocess.DEVNULL).returncode
seconds = time.perf_counter() - begun
print(code, seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
"""


def process(command: Sequence[str], codes: tuple[int, ...] = (0,)) -> Process:
    """Run a command and return how long it took, the most memory that it had, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", IN_BETWEEN, *command], capture_output=True, text=True, check=True
    )
    code, seconds, peak_kb = done.stderr.split()
    if int(code) not in codes:
        raise RuntimeError(f"{command} ended with {code}")
    return Process(float(seconds), int(peak_kb) / 1024, done.stdout)


def server_ms(url: str, act: Callable[[], object]) -> float:
    """How many milliseconds the server was busy with statements in a database while the act opened and closed its sessions."""
    with psycopg.connect(url, autocommit=True) as watcher:

        def busy() -> float:
            for _ in range(200):  # until the last session is gone, which then has told all of its time
                others = watcher.execute(
                    "select count(*) from pg_stat_activity where datname = current_database() "
                    "and backend_type = 'client backend' and pid <> pg_backend_pid()"
                ).fetchone()
                if others == (0,):
                    break
                time.sleep(0.05)
            row = watcher.execute(
                "select active_time from pg_stat_database where datname = current_database()"
            ).fetchone()
            assert row
            return float(row[0])

        before = busy()
        act()
        return busy() - before


def peers_python(folder: Path) -> str:
    """An environment of the benchmark's own, with what one would use instead."""
    environment = folder / "peers"
    python = str(environment / "bin" / "python")
    if not environment.exists():
        process([sys.executable, "-m", "venv", str(environment)])
        process([python, "-m", "pip", "install", "--quiet", *peers.PACKAGES])
    return python


class Peer(NamedTuple):
    """A peer with a database of its own on the same server."""

    name: str
    place: Place

    @property
    def url(self) -> str:
        return self.place.database(f"peer_{self.name}")

    def command(self, act: str, number: int, batch: int = 1) -> list[str]:
        python = peers_python(self.place.folder)
        return [python, str(peers.__file__), self.name, act, self.url, str(number), str(batch)]

    @contextmanager
    def filled(self, number: int) -> Iterator["Peer"]:
        with psycopg.connect(self.place.database("postgres"), autocommit=True) as connection:
            name = f"peer_{self.name}"
            connection.execute(f"drop database if exists {name} with (force)")
            connection.execute(f"create database {name}")
            connection.execute(f"alter database {name} set synchronous_commit = off")
            process(self.command("fill", number))
            with psycopg.connect(self.url, autocommit=True) as own:
                own.execute("vacuum analyze")
            yield self
            connection.execute(f"drop database {name} with (force)")

    def server_ms_each(self, act: str, processes: int, each: int, batch: int = 1) -> float:
        """Milliseconds of the server's for each act, with so many processes at it."""
        commands = [self.command(act, each, batch)] * processes
        return server_ms(self.url, lambda: together(commands)) / (processes * each)

    def client_ms_each(self, act: str, each: int) -> float:
        """The median of the milliseconds that the peer's client waits for each act."""
        return float(process(self.command(act, each)).out)


def together(commands: list[list[str]]) -> None:
    children = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in commands
    ]
    codes = [child.wait() for child in children]
    if any(codes):
        raise RuntimeError(f"{commands[0]} failed")
