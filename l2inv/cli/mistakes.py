"""Canceling and correcting a ready event."""

from datetime import UTC, datetime
from pathlib import Path

import click

from l2inv.cli.app import command
from l2inv.cli.arguments import Words, op_argument
from l2inv.cli.context import App
from l2inv.cli.options import json_option


@command("unmark")
@op_argument
@click.option("--reason", type=Words(), help="Why; required if somebody else inverted it.")
@json_option
def unmark(app: App, op: str, reason: str | None) -> None:
    """Cancel a ready event: the holder works on the OP again.

    Claim, verdict and prepared files stay. Possible only until its inversions are sent to the metadata store; after that, use withdraw and reopen.
    """
    from l2inv.queries import observing_programs
    from l2inv.record import event_log
    from l2inv.stages.publish import corrections

    with app.connected() as (connection, settings):
        op_id = event_log.resolve(connection, op)
        corrections.unmark(connection, settings, op_id, reason, app.actor)
        found = observing_programs.show(connection, op_id, settings.qualification)
    app.result(found, lambda: app.summary(f"{op_id} is working again, held by {found['assignee']}"))


@command("amend")
@op_argument
@click.option(
    "--from",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    required=True,
    help="The whole ready event as it should have been.",
)
@click.option("--reason", type=Words(), help="What was wrong.")
@json_option
def amend(app: App, op: str, file: Path, reason: str | None) -> None:
    """Correct the ready event of an OP that you inverted.

    All or nothing, and only until its inversions are sent to the metadata store. Both versions stay in the history.
    """
    from l2inv.cli.handoff import _from_file
    from l2inv.errors import Refused
    from l2inv.queries import observing_programs
    from l2inv.record import event_log
    from l2inv.stages.mark_inverted import ready_event
    from l2inv.stages.publish import corrections

    ready, _ = _from_file(file)
    with app.connected() as (connection, settings):
        op_id = event_log.resolve(connection, op)
        if ready.op_id != op_id:
            raise Refused(f"{file} is of OP {ready.op_id}, not of {op_id}", "name its OP, or another file")
        with corrections.correcting(connection, settings, op_id, reason, app.actor) as seen:
            ready_event.mark_inverted(
                connection,
                ready,
                app.actor,
                datetime.now(UTC),
                publish=settings.publish,
                amends=seen,
                amended_because=reason,
                warn=lambda text: app.warn(f"amend: {text}"),
            )
        found = observing_programs.show(connection, op_id, settings.qualification)
    app.result(found, lambda: app.summary(f"corrected the ready event of {op_id}"))
