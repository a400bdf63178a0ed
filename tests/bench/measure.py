"""The framework of the benchmark: what a figure is, where it is measured, and how a measurement is registered.

To add one, write a generator in a module of this folder:

    @measurement
    def unchanged_scan(place: Place) -> Iterator[Figure]:
        ...
        yield Figure("unchanged scan, from a file", ours / floor, "x (read + hash)", 2.5)

`@measurement(filled=True)` is run once for each --ops N, on a schema that holds N OPs with their events and datasets;
a plain one is run once, with a schema of its own that does not exist yet. Both are dropped afterwards.
A target is always an upper bound. Prefer a ratio of two figures taken in one run to an absolute time.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from l2inv.config.settings import Database, Settings
from l2inv.database.connection import Connection, open_connection
from tests.bench import load
from tests.helpers.terminals import on_terminal


class Figure(NamedTuple):
    name: str
    measured: float
    unit: str
    target: float | None = None  # at most; None: measured for docs/scale.md alone

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.measured <= self.target


class Place(NamedTuple):
    """Where it is measured: a server, a schema on it that holds so many OPs, a folder for files."""

    url: str
    schema: str
    ops: int
    folder: Path

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """Lend a connection as a command that cron runs has it: nothing is prepared on it."""
        settings = Settings(database=Database(url=self.url, schema=self.schema))
        with open_connection(settings) as connection:
            connection.prepare_threshold = None
            yield connection

    def config(self, **store: Any) -> Path:
        """Write the settings file of the schema; `store` goes below metadata_store."""
        return load.config(self.folder, self.url, self.schema, **store)


Function = Callable[[Place], Iterator[Figure]]


class Measurement(NamedTuple):
    function: Function
    filled: bool


MEASUREMENTS: dict[str, Measurement] = {}


def measurement(function: Function | None = None, *, filled: bool = False) -> Any:
    """Register a measurement under its function's name."""

    def register(function: Function) -> Function:
        MEASUREMENTS[function.__name__] = Measurement(function, filled)
        return function

    return register(function) if function else register


class Process(NamedTuple):
    seconds: float
    cpu_seconds: float
    peak_mb: float
    out: str


def seconds(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def median(act: Callable[[], object], rounds: int) -> float:
    """Return the median seconds of so many rounds, after one that is not counted."""
    act()
    return statistics.median(seconds(act) for _ in range(rounds))


def l2inv(config: Path, *argv: str) -> Process:
    """Run a command in a process of its own."""
    return process([sys.executable, "-m", "l2inv", "--config", str(config), *argv])


# A process of its own in between: the peak memory that is reported of a child includes its parent's.
IN_BETWEEN = """
import resource, subprocess, sys, time
begun = time.perf_counter()
code = subprocess.run(sys.argv[1:], stderr=subprocess.DEVNULL).returncode
seconds = time.perf_counter() - begun
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(code, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)
"""


# As most people have it: else every run might compile l2inv's modules again.
COMPILED_ONCE = {"PYTHONDONTWRITEBYTECODE": ""}


def process(command: Sequence[str]) -> Process:
    """Run a command and return how long it took, its peak memory, and what it printed."""
    argv = [sys.executable, "-I", "-S", "-c", IN_BETWEEN, *command]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=os.environ | COMPILED_ONCE)
    return _measured(command, done.stderr, done.stdout)


def on_a_terminal(command: Sequence[str]) -> Process:
    """Run a command as `process` does, on a terminal of 110 columns."""
    figures, stderr = os.pipe()
    argv = [sys.executable, "-I", "-S", "-c", IN_BETWEEN, *command]
    with on_terminal(argv, 110, COMPILED_ONCE, stderr=stderr) as (terminal, running):
        os.close(stderr)
        shown = terminal.read_until(lambda text: False)
        running.wait()
    with os.fdopen(figures) as file:
        return _measured(command, file.read(), shown)


def _measured(command: Sequence[str], figures: str, out: str) -> Process:
    code, took, cpu, peak_kb = figures.split()
    if code != "0":
        raise RuntimeError(f"{command} ended with {code}: {out[-500:]}")
    return Process(float(took), float(cpu), int(peak_kb) / 1024, out)
