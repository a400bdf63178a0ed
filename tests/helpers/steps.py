"""The steps of people and stages with an OP, in one line each."""

from typing import Any

from l2inv.database.connection import Connection
from l2inv.sample.server import Store
from tests.helpers.commands import NOW, Commands


def visp(store: Store, op: str) -> list[dict[str, Any]]:
    return [
        d for d in store.datasets if d["observingProgramExecutionId"] == op and d["instrumentName"] == "VISP"
    ]


def two_programs(connection: Connection) -> tuple[str, list[str]]:
    """An OP that can be claimed with two ViSP instrument programs, and their ids."""
    row = connection.execute(
        """
        select op_id, array_agg(distinct instrument_program_id order by instrument_program_id) as programs
        from l2inv.op join l2inv.dataset d using (op_id)
        where state = 'preprocessed' and d.instrument = 'VISP'
        group by op_id having count(distinct instrument_program_id) = 2 order by op_id limit 1
        """
    ).fetchone()
    assert row, "the sample inventory has one"
    return row["op_id"], row["programs"]


def invert(l2inv: Commands, op: str, *programs: str) -> None:
    l2inv("claim", op)
    l2inv("mark-inverted", op, *(word for p in programs for word in ("--instrument-program", p)))


def publish_again(l2inv: Commands, op: str) -> None:
    l2inv("reopen", op, "--reason", "a better code")
    l2inv("qualify", "--as-of", NOW.isoformat())
    l2inv("preprocess")
    invert(l2inv, op)
    l2inv("publish")


def kinds(l2inv: Commands, op: str) -> list[str]:
    return [e["kind"] for e in l2inv.json("history", op)["events"]]


def cause(l2inv: Commands, op: str) -> str:
    return str(l2inv.json("history", op)["events"][-1]["detail"]["cause"])


def published(connection: Connection) -> list[dict[str, Any]]:
    return connection.execute("select * from l2inv.published_op order by event_id, inversion_id").fetchall()
