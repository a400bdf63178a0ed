"""An OP as its preflight found it, compared again before anything that cannot be undone."""

from collections.abc import Callable

import msgspec

from l2inv.database.connection import Connection
from l2inv.documents import Json
from l2inv.domain import states
from l2inv.record import event_log
from l2inv.stages.publish.preflight import Inversion, Preflight, preflight
from l2inv.stages.stage import Outcomes, Report, Stage


class Abandoned(msgspec.Struct, frozen=True):
    """An inversion of a cycle that ended before it was published, and whether the store has it."""

    op_id: str
    inversion_id: str
    cycle: int
    held: bool


class Published(Report, kw_only=True):
    """The report of publish."""

    stage: str = "publish"
    ops: Outcomes = msgspec.field(default_factory=Outcomes)
    abandoned: list[Abandoned] = msgspec.field(default_factory=list)  # those not settled yet


class Changed(Exception):
    """The OP changed since its preflight, which must be repeated."""


class Unpublishable(Exception):
    """The inversions cannot be published as they are; the text is the cause."""


class Guard:
    """An inverted OP between its preflight and its publication."""

    found: Preflight  # the newest
    inversions: list[Inversion]  # as the store has them, or will have them
    seq: int

    def __init__(self, stage: Stage[Published], op_id: str) -> None:
        self.stage, self.op_id = stage, op_id
        self.connection, self.settings, self.run = stage.connection, stage.settings, stage.run

    def look(self) -> None:
        """Run a preflight, and keep what it finds."""
        self.found = preflight(self.connection, self.settings, self.op_id)
        self.inversions, self.seq = self.found.inversions, self.found.seq

    @property
    def is_inverted(self) -> bool:
        return event_log.seen(self.connection, self.op_id).state == "inverted"

    def check(self) -> None:
        """Raise Changed if the OP changed: called before a request to the store, a message to the catalog, or a command."""
        with self.connection.transaction():
            self._locked()

    def add(
        self,
        kind: str,
        state: states.State | None,
        detail: Json,
        before: Callable[[Connection], None] = lambda connection: None,
    ) -> None:
        """Record a decision. Raise Changed if the OP changed since the preflight."""
        with self.connection.transaction():
            before(self.connection)
            present = self._locked()
            event_log.add_one(self.connection, present, kind, state, self.run.actor, detail, self.run.run_id)
        self.seq += 1

    def note(self, kind: str, detail: Json) -> None:
        """Record what was done, even if the OP changed meanwhile; the next decision takes the change into account."""
        with self.connection.transaction():
            present = event_log.locked(self.connection, self.op_id)
            event_log.add_one(self.connection, present, kind, None, self.run.actor, detail, self.run.run_id)
        self.seq += present.seq == self.seq

    def fail(self, cause: str) -> bool:
        """Put the OP into `error`; return False if it changed since the preflight."""
        return self.stage.fail(self.op_id, self.seq, cause)

    def warn(self, words: str) -> None:
        """Add a warning about the OP to the report."""
        self.stage.warn(f"OP {self.op_id}: {words}")

    def _locked(self) -> event_log.Present:
        present = event_log.locked(self.connection, self.op_id)
        if present.seq != self.seq or present.on_hold or present.state != "inverted":
            raise Changed
        # A dataset of another OP may supersede one of this OP without an event here.
        now = preflight(self.connection, self.settings, self.op_id, check_files=False)
        if now.decided != self.found.decided:
            raise Changed
        return present


def one_at_a_time(connection: Connection) -> None:
    """Block other events that readers of inversions see until the transaction ends.

    Event ids are assigned when events are inserted, but events become visible when they are committed: without this, a
    reader that continues from the newest id it saw could miss a smaller one that was committed later.
    """
    connection.execute("select from l2inv.lock where name = 'export' for update")
