"""The Python interface: functions that take a connection and return plain structs. It only reads.

    from l2inv import api

    with api.connected() as (connection, settings):
        for op in api.next_ops(connection, settings):
            print(op.op_id, op.r0_class, op.mu)

The fields are those of `l2inv list --json`, with the same units in their names; times are datetimes in UTC. Functions and
fields are added, never renamed or removed. To change something, such as to claim an OP, use the commands.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import msgspec

from l2inv.config.settings import RankBy, Settings, load
from l2inv.database import access
from l2inv.database.connection import Connection
from l2inv.documents import Json
from l2inv.domain.inventory import Dataset
from l2inv.domain.measures import Measures
from l2inv.domain.states import STATES, State
from l2inv.queries import observing_programs
from l2inv.queries.filters import Wanted
from l2inv.record import event_log
from l2inv.stages.mark_working import offers


class Op(Measures, frozen=True, kw_only=True):
    """An observing program: its state and its measured quantities."""

    op_id: str
    proposal_id: str | None
    experiment_id: str | None
    state: State
    since: datetime
    priority: int
    assignee: str | None
    instruments: list[str]
    dataset_count: int
    start_time: datetime | None
    bands: list[str]
    instrument_programs: list[str | None]
    inputs_changed: bool
    overruled: bool
    due_at: datetime | None
    on_hold: bool
    is_embargoed: bool


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event of an OP's history; `state` is null where the state did not change."""

    seq: int
    kind: str
    state: State | None
    actor: str
    recorded_at: datetime
    run_id: int | None
    detail: Json


@contextmanager
def connected(config: str | Path | None = None) -> Iterator[tuple[Connection, Settings]]:
    """Yield a connection and the settings, from `config` or else from the file that the commands use.

    The connection is to the read-only standby if the settings name one. Raise ConfigError, DatabaseError.
    """
    settings = load(None if config is None else Path(config)).settings
    with access.connected(settings, settings.database.read_url) as connection:
        yield connection, settings


def ops(
    connection: Connection,
    settings: Settings,
    *,
    state: State | None = None,
    proposal: str | None = None,
    band: str | None = None,
    line: str | None = None,
    instrument: str | None = None,
    min_fried_parameter_m: float | None = None,
    embargoed: bool | None = None,
) -> Iterator[Op]:
    """Yield the OPs that match, sorted by id, each as soon as it is read. Raise ValueError for an unknown state."""
    _must_be_one_of("state", state, STATES)
    wanted = Wanted(proposal, band, instrument, min_fried_parameter_m, embargoed, line, state)
    for row in observing_programs.list_ops(connection, wanted, settings.qualification):
        yield _op(row)


def next_ops(
    connection: Connection, settings: Settings, limit: int = 10, rank_by: RankBy | None = None
) -> list[Op]:
    """Return the OPs that can be claimed, the first to do first; ranked by `rank_by`, or else by next.rank_by. Raise ValueError."""
    _must_be_one_of("rank_by", rank_by, get_args(RankBy))
    by = rank_by or settings.next.rank_by
    rows, _ = offers.offered(connection, by, limit, settings.qualification)
    return [_op(row) for row in rows]


def op(connection: Connection, settings: Settings, name: str) -> Op:
    """Return the OP with that id, a part of it, or the id of one of its datasets or inversions. Raise Refused."""
    op_id = event_log.resolve(connection, name)
    return _op(observing_programs.show(connection, op_id, settings.qualification))


def datasets(connection: Connection, name: str) -> list[Dataset]:
    """Return an OP's present datasets in full, sorted by id. Raise Refused."""
    return observing_programs.present(connection, event_log.resolve(connection, name))


def history(connection: Connection, name: str) -> list[Event]:
    """Return every event of an OP, oldest first. Raise Refused."""
    found = observing_programs.history(connection, event_log.resolve(connection, name))
    return [msgspec.convert(event, Event) for event in found["events"]]


def _must_be_one_of(name: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise ValueError(f"{name}: {value!r} is none of {', '.join(known)}")


def _op(row: Mapping[str, Any]) -> Op:
    return msgspec.convert(row, Op)
