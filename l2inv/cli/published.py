"""Published inversions: reopen, withdraw, reinstate, adopt, export."""

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import click

from l2inv.cli.app import command
from l2inv.cli.arguments import OneOf, Words, list_option, op_argument
from l2inv.cli.context import App
from l2inv.cli.options import json_option
from l2inv.cli.streams import mute

if TYPE_CHECKING:
    from l2inv.database.connection import Row
    from l2inv.domain.op import WholeOp


@command("reopen")
@op_argument
@click.option("--reason", type=Words(), required=True, help="Why it is to be inverted again.")
@json_option
def reopen(app: App, op: str, reason: str) -> None:
    """Start a new cycle of an OP: it is to be inverted again.

    It must be inverted or published. It is judged again, and its inversions get new ids.
    """
    from l2inv.stages.publish import cycles

    with app.acting_on(op, lambda found: f"{found['op_id']} is {found['state']} again") as (
        connection,
        op_id,
    ):
        cycles.reopen(connection, app.settings, op_id, reason, app.actor)


inversion_option = list_option(
    "--inversion", "inversion_ids", "ID", "Which; may be repeated (default: all of the newest cycle)."
)


@command("withdraw")
@op_argument
@click.option("--reason", type=Words(), required=True, help="What is bad about it.")
@inversion_option
@json_option  # fmt: skip
def withdraw(app: App, op: str, reason: str, inversion_ids: tuple[str, ...]) -> None:
    """Mark inversions of an OP as bad.

    Readers of published_op and of the export see it there. The metadata store has no way to change or remove an
    inversion: its record, its catalog entries and its files stay, and are listed.
    """
    from l2inv import wording
    from l2inv.record import event_log
    from l2inv.stages.publish import cycles

    with app.connected() as (connection, _):
        op_id = event_log.resolve(connection, op)
        remains = cycles.withdraw(connection, op_id, reason, inversion_ids, app.actor)
    withdrawn = [one["inversion_id"] for one in remains]
    lines = [f"withdrew {', '.join(withdrawn)} of {op_id}, for readers of published_op and the export"]
    app.result(
        {"op_id": op_id, "withdrawn": withdrawn, "remains": remains},
        lambda: app.summaries(lines + [wording.remains(one) for one in remains]),
    )


@command("reinstate")
@op_argument
@click.option("--reason", type=Words(), required=True, help="Why the withdrawal was a mistake.")
@inversion_option
@json_option  # fmt: skip
def reinstate(app: App, op: str, reason: str, inversion_ids: tuple[str, ...]) -> None:
    """Undo the withdrawal of inversions of an OP.

    Readers of published_op and of the export see it there.
    """
    from l2inv.record import event_log
    from l2inv.stages.publish import cycles

    with app.connected() as (connection, _):
        op_id = event_log.resolve(connection, op)
        reinstated = cycles.reinstate(connection, op_id, reason, inversion_ids, app.actor)
    app.result(
        {"op_id": op_id, "reinstated": reinstated},
        lambda: app.summary(f"reinstated {', '.join(reinstated)} of {op_id}"),
    )


@command("adopt")
@op_argument
@click.argument("inversion_id", metavar="INVERSION", type=Words())
@click.option("--reason", type=Words(), required=True, help="Why.")
@click.option("--beside", is_flag=True, help="Keep it beside the OP's own inversion, which is published too.")
@json_option
def adopt(app: App, op: str, inversion_id: str, reason: str, beside: bool) -> None:
    """Record an inversion that only the store has as an OP's.

    It becomes the OP's present inversion; the OP must be inverted. With --beside, it is recorded in addition to the OP's own, in any state.
    """
    from l2inv.stages.publish import cycles

    def line(found: "WholeOp") -> str:
        if beside:
            return f"{inversion_id} is recorded beside the inversions of {found['op_id']}"
        return f"{inversion_id} is the inversion of {found['op_id']}; run: l2inv publish"

    with app.acting_on(op, line) as (connection, op_id):
        cycles.adopt(connection, app.settings, op_id, inversion_id, beside, reason, app.actor)


@command("export")
@click.option(
    "--format",
    "form",
    type=OneOf(["ndjson", "csv"]),
    default="ndjson",
    show_default=True,
    help="One JSON object a line, or a table.",
)
@click.option(
    "--after",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    metavar="EVENT_ID",
    help="Only what was recorded after this event (default: all).",
)
@json_option  # fmt: skip
def export(app: App, form: str, after: int) -> None:
    """Print every inversion that was published.

    To continue from an earlier export, pass its last event_id to --after.
    """
    from l2inv.queries import export

    with app.reading() as (connection, _), closing(export.inversions(connection, after)) as rows:
        if app.json:
            found = list(rows)
            newest = found[-1]["event_id"] if found else after
            app.result({"inversions": found, "after": newest}, lambda: None)
            return
        try:
            with app.progress("inversions") as progress:
                printed: Iterable[Row] = rows
                if app.shows_progress and _into_a_file():
                    printed = _counted(rows, progress, export.count(connection, after))
                export.FORMATS[form](printed, sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has seen enough
            mute(sys.stdout)


def _into_a_file() -> bool:
    """Return whether stdout is a file: a program in a pipe may write to the same terminal."""
    return stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode)


def _counted(rows: "Iterable[Row]", progress: Callable[[int, int | None], None], of: int) -> "Iterator[Row]":
    for done, row in enumerate(rows):
        progress(done, of)
        yield row
