"""What every stage has: a connection, the settings, its recorded run, and the report that it returns."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

import msgspec

from l2inv.config.settings import Settings
from l2inv.database.connection import Connection
from l2inv.database.runs import Run, stage_run
from l2inv.record import event_log

Progress = Callable[[int, int | None], None]  # how many are done, of how many (None if unknown)


class Counts(msgspec.Struct):
    """Counts of OPs by outcome; each stage has its own."""


class Outcomes(Counts):
    """Counts of OPs for a stage that works on them one by one."""

    done: int = 0
    failed: int = 0
    skipped: int = 0


class Report(msgspec.Struct, kw_only=True):
    """A stage's report. Each stage adds its own fields, and defaults for `stage` and `ops`."""

    run_id: int = 0
    stage: str
    ops: Counts
    warnings: list[str] = msgspec.field(default_factory=list)
    seconds: float = 0.0


R = TypeVar("R", bound=Report)


@dataclass
class Stage(Generic[R]):
    """One run of a stage."""

    connection: Connection
    settings: Settings
    run: Run
    report: R
    progress: Progress
    _counting: Lock = field(default_factory=Lock, repr=False)

    def count(self, what: str, number: int = 1) -> None:
        """Add to one of the report's counts of OPs; callable from any thread."""
        with self._counting:
            setattr(self.report.ops, what, getattr(self.report.ops, what) + number)

    def warn(self, text: str) -> None:
        """Add a warning to the report; each text once."""
        if text not in self.report.warnings:
            self.report.warnings.append(text)

    def add(self, events: Sequence[event_log.Event]) -> set[str]:
        """Record one event for each of many OPs, all or none; return the OPs that had not changed."""
        return event_log.add(self.connection, events, self.run.actor, self.run.run_id)

    def append(self, event: event_log.Event) -> bool:
        """Record one event; return False if the OP changed meanwhile."""
        return event_log.append(self.connection, event, self.run.actor, self.run.run_id)

    def fail(self, op_id: str, seq: int, cause: str) -> bool:
        """Put an OP into `error` with the cause; return False if it changed meanwhile."""
        run = self.run
        return event_log.fail(self.connection, op_id, seq, run.stage, cause, run.actor, run.run_id)


@contextmanager
def opened(
    connection: Connection,
    settings: Settings,
    actor: str,
    report: R,
    progress: Progress = lambda done, of: None,
) -> Iterator[Stage[R]]:
    """Yield a run of the report's stage, holding the stage's lock; at its end the report is stored with the run.

    Raise Busy if another run of this stage, on any host, holds the lock.
    """
    with stage_run(connection, report.stage, actor) as run:
        report.run_id = run.run_id
        try:
            yield Stage(connection, settings, run, report, progress)
        finally:
            run.report |= msgspec.to_builtins(report)
    report.seconds = run.report["seconds"]
