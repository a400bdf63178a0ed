"""What every stage works with: connection, settings, the run that it records under, and the report that it returns."""

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

Progress = Callable[[int, int | None], None]  # how many are done, of how many; None where that is not known


class Counts(msgspec.Struct):
    """How many OPs came to what; each stage has its own."""


class Outcomes(Counts):
    """What became of OPs in a stage that works on one after another."""

    done: int = 0
    failed: int = 0
    skipped: int = 0


class Report(msgspec.Struct, kw_only=True):
    """The report of the contract. A stage adds its own fields, and gives `stage` and `ops` their defaults."""

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
        """Add to one of the report's counts of OPs, from whichever thread."""
        with self._counting:
            setattr(self.report.ops, what, getattr(self.report.ops, what) + number)

    def warn(self, text: str) -> None:
        """Report something that is no failure; each text once."""
        if text not in self.report.warnings:
            self.report.warnings.append(text)

    def add(self, events: Sequence[event_log.Event]) -> set[str]:
        """Record one event for each of many OPs, all or none; return the OPs that had not moved on."""
        return event_log.add(self.connection, events, self.run.actor, self.run.run_id)

    def append(self, event: event_log.Event) -> bool:
        """Record one event; return False where the OP moved on meanwhile."""
        return event_log.append(self.connection, event, self.run.actor, self.run.run_id)

    def fail(self, op_id: str, seq: int, cause: str) -> bool:
        """Put an OP into `error` with the cause; return False where it moved on meanwhile."""
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
    """Lend a run of the stage that the report names, holding its lock; the report is kept with the run at its end.

    Raise Busy when another run of this stage holds the lock, on any host.
    """
    with stage_run(connection, report.stage, actor) as run:
        report.run_id = run.run_id
        try:
            yield Stage(connection, settings, run, report, progress)
        finally:
            run.report |= msgspec.to_builtins(report)
    report.seconds = run.report["seconds"]
