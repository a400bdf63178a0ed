"""Science's commands: claim, hand over, take over, hold, prioritize, note, release."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from l2inv.cli.app import command
from l2inv.cli.arguments import Actor, Duration, Words, op_argument
from l2inv.cli.context import App
from l2inv.cli.options import json_option

if TYPE_CHECKING:
    from l2inv.config.settings import Settings
    from l2inv.database.connection import Connection
    from l2inv.domain.op import WholeOp


def due(settings: "Settings", duration: timedelta | None) -> datetime:
    """Return when a claim of that length, or else of deadlines.working_days, is due."""
    length = duration or timedelta(days=settings.deadlines.working_days)
    return datetime.now(UTC).replace(microsecond=0) + length


def _claim(app: App, op: str, duration: timedelta | None) -> None:
    from l2inv import wording
    from l2inv.queries import observing_programs
    from l2inv.record import event_log
    from l2inv.stages.mark_working import claiming

    with app.connected() as (connection, settings):
        op_id = event_log.resolve(connection, op)
        due_at = due(settings, duration)
        claimed = claiming.claim(connection, op_id, app.actor, due_at, extend=duration is not None)
        found = observing_programs.show(connection, op_id, app.settings.qualification)
        put_names(app, connection, found)
    line = (
        f"claimed {op_id} for {app.actor}"
        if claimed
        else f"{op_id} is yours, extended"
        if duration
        else f"{op_id} is yours already"
    )
    until = f", due {wording.due(found['due_at'])}" if found["due_at"] else ""
    app.result(found, lambda: app.summaries([line + until, *wording.names(found["inversions"])]))


def put_names(app: App, connection: "Connection", op: "WholeOp") -> None:
    """Write the names of the inversions into the OP's input bundle, if its folder is mounted here."""
    from l2inv.stages.preprocess import clean

    try:
        named = [one for one in op["inversions"] if "published_at" not in one]
        clean.write_names(connection, op["op_id"], named)
    except OSError as problem:
        app.warn(
            f"{op['op_id']}: the inversions' names could not be written to its bundle: {problem.strerror or problem}"
        )


for_option = click.option(
    "--for", "duration", type=Duration(), metavar="DURATION", help="How long you need it, such as 21d or 6w."
)


@command("claim")
@op_argument
@for_option
@json_option
def claim(app: App, op: str, duration: timedelta | None) -> None:
    """Take an OP to work on: exactly one person gets it.

    With --for, the holder may extend it.
    """
    _claim(app, op, duration)


@command("mark-working")
@op_argument
@for_option
@json_option
def mark_working(app: App, op: str, duration: timedelta | None) -> None:
    """Record that the actor works on an OP: the stage form of claim."""
    _claim(app, op, duration)


@command("hand-over")
@op_argument
@click.option("--to", type=Actor(), required=True, help="The new holder.")
@click.option("--reason", type=Words(), help="Why.")
@click.option("--force", is_flag=True, help="Allow a person without earlier events.")
@for_option
@json_option
def hand_over(
    app: App, op: str, to: str, reason: str | None, force: bool, duration: timedelta | None
) -> None:
    """Transfer an OP that you hold to somebody else."""
    from l2inv.queries import people
    from l2inv.stages.mark_working import claiming

    settings = app.settings
    due_at = due(settings, duration) if duration else None
    with app.acting_on(op, lambda found: f"{found['op_id']} is held by {to}, due {_day(found)}") as (
        connection,
        op_id,
    ):
        known = people.known(connection, settings)
        with connection.transaction():
            claiming.hand_over(connection, op_id, to, app.actor, due_at, reason)
            if not force:
                people.must_be_among(known, to)


@command("take-over")
@op_argument
@click.option("--reason", type=Words(), required=True, help="Why you take it over.")
@for_option
@json_option
def take_over(app: App, op: str, reason: str, duration: timedelta | None) -> None:
    """Take over an OP whose claim is overdue."""
    from l2inv.stages.mark_working import claiming

    due_at = due(app.settings, duration)
    with app.acting_on(op, lambda found: f"{found['op_id']} is held by {app.actor}, due {_day(found)}") as (
        connection,
        op_id,
    ):
        claiming.take_over(connection, op_id, app.actor, reason, due_at, datetime.now(UTC))


def _day(op: "WholeOp") -> str:
    from l2inv import wording

    return wording.due(op["due_at"])


@command("hold")
@op_argument
@click.option("--reason", type=Words(), required=True, help="Why it is on hold.")
@json_option
def hold(app: App, op: str, reason: str) -> None:
    """Keep an OP from being preprocessed, offered or published.

    Until it is taken off hold: l2inv unhold.
    """
    from l2inv.stages.mark_working import claiming

    with app.acting_on(op, lambda found: f"{found['op_id']} is on hold") as (connection, op_id):
        claiming.hold(connection, op_id, reason, app.actor)


@command("unhold")
@op_argument
@click.option("--reason", type=Words(), help="Why it may go on.")
@json_option
def unhold(app: App, op: str, reason: str | None) -> None:
    """Take an OP off hold; it continues where it stopped."""
    from l2inv.stages.mark_working import claiming

    with app.acting_on(op, lambda found: f"{found['op_id']} is off hold: {found['state']}") as (
        connection,
        op_id,
    ):
        claiming.unhold(connection, op_id, reason, app.actor)


@command("prioritize")
@op_argument
@click.option(
    "--priority",
    type=click.IntRange(-1000, 1000),
    metavar="N",
    required=True,
    help="Higher is sooner; 0 is the default.",
)
@click.option("--reason", type=Words(), required=True, help="Why it has this priority.")
@json_option
def prioritize(app: App, op: str, priority: int, reason: str) -> None:
    """Set how soon an OP is worked on.

    The higher the priority, the earlier next offers it.
    """
    from l2inv.stages.mark_working import claiming

    with app.acting_on(op, lambda found: f"{found['op_id']} has priority {priority}") as (connection, op_id):
        claiming.prioritize(connection, op_id, priority, reason, app.actor)


@command("note")
@op_argument
@click.argument("text", type=Words())
@json_option
def note(app: App, op: str, text: str) -> None:
    """Add a note to an OP's history."""
    from l2inv.record import event_log
    from l2inv.stages.mark_working import claiming

    with app.connected() as (connection, _):
        op_id = event_log.resolve(connection, op)
        claiming.note(connection, op_id, text, app.actor)
    app.result({"op_id": op_id, "note": text}, lambda: app.summary(f"noted on {op_id}"))


@command("release")
@op_argument
@click.option("--reason", type=Words(), help="Why it is released.")
@json_option
def release(app: App, op: str, reason: str | None) -> None:
    """Release a claimed OP for others to claim."""
    from l2inv.stages.mark_working import claiming

    with app.acting_on(op, lambda found: f"released {found['op_id']}") as (connection, op_id):
        claiming.release(connection, op_id, app.actor, reason)
