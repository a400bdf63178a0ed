"""What publish decides on: an OP as a preflight saw it, compared again before anything that cannot be undone."""

from collections.abc import Callable
from typing import Any

import msgspec

from l2inv.database.connection import Connection
from l2inv.domain import states
from l2inv.record import event_log
from l2inv.stages.publish.preflight import preflight
from l2inv.stages.stage import Outcomes, Report, Stage


class Abandoned(msgspec.Struct, frozen=True):
    """An inversion of a cycle that ended before it was published, and whether the store holds it."""

    op_id: str
    inversion_id: str
    cycle: int
    held: bool


class Published(Report, kw_only=True):
    """The report of publish."""

    stage: str = "publish"
    ops: Outcomes = msgspec.field(default_factory=Outcomes)
    abandoned: list[Abandoned] = msgspec.field(default_factory=list)  # those that nobody settled


class Changed(Exception):
    """The OP is no longer as the preflight saw it, which is to begin again."""


class Unpublishable(Exception):
    """The inversions cannot be published as they are; the text is the cause."""


class Guard:
    """An inverted OP between its preflight and its publication. `found` is what the newest preflight saw."""

    def __init__(self, stage: Stage[Published], op_id: str) -> None:
        self.stage, self.op_id = stage, op_id
        self.connection, self.settings, self.run = stage.connection, stage.settings, stage.run
        self.found: dict[str, Any] = {}
        self.inversions: list[dict[str, Any]] = []  # as the store has them, or is to have them
        self.seq = 0

    def look(self) -> dict[str, Any]:
        """Begin (again) with a preflight, and return it."""
        self.found = preflight(self.connection, self.settings, self.op_id)
        self.inversions, self.seq = self.found["inversions"], self.found["seq"]
        return self.found

    @property
    def is_inverted(self) -> bool:
        return event_log.seen(self.connection, self.op_id).state == "inverted"

    def check(self) -> None:
        """Raise Changed unless the OP is as it was: before a request to the store, a message to the catalog, or a command."""
        with self.connection.transaction():
            self._locked()

    def add(
        self,
        kind: str,
        state: states.State | None,
        detail: dict[str, Any],
        before: Callable[[Connection], None] = lambda connection: None,
    ) -> None:
        """Record a decision, unless the OP changed since it was taken. Raise Changed."""
        with self.connection.transaction():
            before(self.connection)
            present = self._locked()
            event_log.add_one(self.connection, present, kind, state, self.run.actor, detail, self.run.run_id)
        self.seq += 1

    def note(self, kind: str, detail: dict[str, Any]) -> None:
        """Record what was done, whatever the OP has become meanwhile: it was done. The next decision sees the rest."""
        with self.connection.transaction():
            present = event_log.locked(self.connection, self.op_id)
            event_log.add_one(self.connection, present, kind, None, self.run.actor, detail, self.run.run_id)
        self.seq += present.seq == self.seq

    def fail(self, cause: str) -> bool:
        """Put the OP into `error`; False where it changed since the preflight."""
        return self.stage.fail(self.op_id, self.seq, cause)

    def warn(self, words: str) -> None:
        """Report something of the OP that is no failure."""
        self.stage.warn(f"OP {self.op_id}: {words}")

    def _locked(self) -> event_log.Present:
        present = event_log.locked(self.connection, self.op_id)
        if present.seq != self.seq or present.on_hold or present.state != "inverted":
            raise Changed
        # A dataset of another OP may supersede one of this without an event here.
        if (
            preflight(self.connection, self.settings, self.op_id, look=False)["decided"]
            != self.found["decided"]
        ):
            raise Changed
        return present


def one_at_a_time(connection: Connection) -> None:
    """Keep other events that readers of inversions see waiting until the transaction ends.

    Event ids are given out when events are written, but events are seen when they are committed: without this a
    reader that goes on behind the newest id it saw could miss a smaller one that was committed after it looked.
    """
    connection.execute("select from l2inv.lock where name = 'export' for update")
