"""Science's commands: what is next, who holds it, when it is due."""

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from l2inv.cli.app import command
from l2inv.cli.arguments import Actor, Duration, Words, op_argument
from l2inv.cli.context import App
from l2inv.cli.options import json_option

if TYPE_CHECKING:
    from l2inv.config.settings import Settings

NOTHING = "nothing is ready to be claimed; see: l2inv status"
NOTHING_FITS = "nothing that is ready fits; see: l2inv next"


@command("next")
@click.option(
    "-n",
    "limit",
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="How many at most: 10, or with --claim 1, unless said.",
)
@click.option("--claim", "claims", is_flag=True, help="Take the first, or the first -n, in one step.")
@click.option(
    "--for",
    "duration",
    type=Duration(),
    metavar="DURATION",
    help="With --claim: how long you need it, such as 21d.",
)
@click.option("--proposal", type=Words(), metavar="ID", help="Only OPs of this proposal.")
@click.option(
    "--band", type=Words(), metavar="NAME", help="Only with this band observed; a part of its name is enough."
)
@click.option(
    "--instrument", type=Words(), metavar="NAME", help="Only with datasets of this instrument, such as VBI."
)
@click.option(
    "--min-r0-cm",
    type=click.FloatRange(0, 1000),
    metavar="CM",
    help="Only with a Fried parameter of at least so many cm.",
)
@click.option(
    "--embargoed/--not-embargoed", default=None, help="Only with, or only without, data under embargo."
)
@json_option  # fmt: skip
def next_(
    app: App,
    limit: int | None,
    claims: bool,
    duration: timedelta | None,
    proposal: str | None,
    band: str | None,
    instrument: str | None,
    min_r0_cm: float | None,
    embargoed: bool | None,
) -> None:
    """Show the OPs to invert next, the first to do on top.

    By priority, then as next.rank_by says. Each tells why it stands where it does.
    """
    from l2inv import wording
    from l2inv.queries import observing_programs, verdicts
    from l2inv.stages.mark_working import offers

    if duration and not claims:
        raise click.UsageError("--for needs --claim")
    min_r0_m = None if min_r0_cm is None else min_r0_cm / 100
    if min_r0_cm is not None and math.isnan(min_r0_cm):
        raise click.UsageError("--min-r0-cm is no number")
    wanted = offers.Wanted(proposal, band, instrument, min_r0_m, embargoed)
    nothing = NOTHING if wanted == offers.Wanted() else NOTHING_FITS
    with app.connected() if claims else app.reading() as (connection, settings):
        rank_by = settings.next.rank_by
        if claims:
            from l2inv.stages.mark_working import claiming

            due_at = _due(settings, duration)
            op_ids = claiming.claim_first(connection, rank_by, wanted, app.actor, due_at, limit or 1)
            found = [observing_programs.show(connection, op_id) for op_id in op_ids]
            _add_warnings(found, verdicts.warnings(connection, op_ids, settings.qualification))
            said = [f"claimed {op_id} for {app.actor}, due {wording.day(due_at)}" for op_id in op_ids]
            document = {"claimed": found[0] if found else None, "ops": found}
            app.result(document, lambda: app.summaries(said or [nothing]))
            for op in found:
                for one in op["warnings"]:
                    app.warn(f"{op['op_id']}: {wording.warning(one)}")
            return
        ops = offers.offered(connection, rank_by, limit or 10, wanted)
        op_ids = [op["op_id"] for op in ops]
        _add_warnings(ops, verdicts.warnings(connection, op_ids, settings.qualification))
        changed = observing_programs.held_with_changed_inputs(connection, app.actor)
        held = observing_programs.held_by(connection, app.actor)
    app.result({"ops": ops, "inputs_changed": changed}, lambda: _print_next(ops, held, nothing))
    for op in changed:
        app.warn(
            f"{op['op_id']}, which you hold, was judged on other datasets; see: l2inv history {op['op_id']}"
        )


def _add_warnings(ops: list[dict[str, Any]], warnings: dict[str, list[dict[str, Any]]]) -> None:
    for op in ops:
        op["warnings"] = warnings[op["op_id"]]


def _due(settings: "Settings", duration: timedelta | None) -> datetime:
    """When a claim of that length is due; the settings say how long one is that names none."""
    return datetime.now(UTC).replace(microsecond=0) + (
        duration or timedelta(days=settings.deadlines.working_days)
    )


def _print_next(ops: list[dict[str, Any]], held: list[dict[str, Any]], nothing: str) -> None:
    from l2inv import wording
    from l2inv.cli import render

    on_terminal = render.width() is not None
    if held and on_terminal:
        holds = f"{held[0]['op_id']}" if len(held) == 1 else f"{len(held)} OPs"
        due = f", the first due {wording.day(held[0]['due_at'])}" if held[0]["due_at"] else ""
        render.paragraph(f"You hold {holds}{due}; see: l2inv mine")
        click.echo()
    if not ops:
        click.echo(nothing)
        return
    columns = (
        "OP",
        "proposal",
        "observed",
        "bands",
        "r0",
        "datasets",
        "instruments",
        "why",
    )
    rows = [
        (
            op["op_id"],
            op["proposal_id"] or "-",
            wording.day(op["start_time"]),
            wording.bands(op),
            wording.centimetres(op["fried_parameter_med"]),
            op["datasets"],
            ", ".join(op["instruments"]),
            op["why"],
        )
        for op in ops
    ]
    render.table(columns, rows)
    if on_terminal:
        click.echo()
        render.paragraph("Take the first: l2inv next --claim; another: l2inv claim OP")


@command("mine")
@json_option
def mine(app: App) -> None:
    """Show what you hold, what is due first at the top."""
    from l2inv import wording
    from l2inv.cli import render
    from l2inv.queries import observing_programs

    with app.connected() as (connection, _):
        ops = observing_programs.held_by(connection, app.actor)
    now = datetime.now(UTC)
    for op in ops:
        op["overdue"] = op["due_at"] is not None and op["due_at"] <= now

    def text() -> None:
        if not ops:
            click.echo(f"{app.actor} holds no OP; see: l2inv next")
            return
        columns = ("OP", "due", "state", "since", "proposal", "inputs")
        rows = [
            (
                op["op_id"],
                wording.day(op["due_at"]) + (" overdue" if op["overdue"] else ""),
                op["state"],
                wording.day(op["since"]),
                op["proposal_id"] or "-",
                "changed" if op["inputs_changed"] else "-",
            )
            for op in ops
        ]
        render.table(columns, rows)

    app.result({"ops": ops}, text)


def _claim(app: App, op: str, duration: timedelta | None) -> None:
    from l2inv import wording
    from l2inv.queries import observing_programs
    from l2inv.record import event_log
    from l2inv.stages.mark_working import claiming

    with app.connected() as (connection, settings):
        op_id = event_log.resolve(connection, op)
        due_at = _due(settings, duration)
        claimed = claiming.claim(connection, op_id, app.actor, due_at, extend=duration is not None)
        found = observing_programs.show(connection, op_id)
    said = f"claimed {op_id} for {app.actor}" if claimed else f"{op_id} is yours already"
    due = f", due {wording.day(found['due_at'])}" if found["due_at"] else ""
    app.result(found, lambda: app.summary(said + due))


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
    """Say that the actor works on an OP: the stage form of claim."""
    _claim(app, op, duration)


@command("hand-over")
@op_argument
@click.option("--to", type=Actor(), required=True, help="Who is to hold it.")
@click.option("--reason", type=Words(), help="Why.")
@for_option
@json_option
def hand_over(app: App, op: str, to: str, reason: str | None, duration: timedelta | None) -> None:
    """Give an OP that you hold to somebody else."""
    from l2inv.queries import observing_programs
    from l2inv.record import event_log
    from l2inv.stages.mark_working import claiming

    with app.connected() as (connection, settings):
        op_id = event_log.resolve(connection, op)
        due_at = _due(settings, duration) if duration else None
        claiming.hand_over(connection, op_id, to, app.actor, due_at, reason)
        found = observing_programs.show(connection, op_id)
    app.result(found, lambda: app.summary(f"{op_id} is held by {to}, due {_day(found)}"))


@command("take-over")
@op_argument
@click.option("--reason", type=Words(), required=True, help="Why it goes on with you.")
@for_option
@json_option
def take_over(app: App, op: str, reason: str, duration: timedelta | None) -> None:
    """Take an OP whose holder let it become overdue."""
    from l2inv.queries import observing_programs
    from l2inv.record import event_log
    from l2inv.stages.mark_working import claiming

    with app.connected() as (connection, settings):
        op_id = event_log.resolve(connection, op)
        claiming.take_over(connection, op_id, app.actor, reason, _due(settings, duration), datetime.now(UTC))
        found = observing_programs.show(connection, op_id)
    app.result(found, lambda: app.summary(f"{op_id} is held by {app.actor}, due {_day(found)}"))


def _day(op: dict[str, Any]) -> str:
    from l2inv import wording

    return wording.day(op["due_at"])


@command("hold")
@op_argument
@click.option("--reason", type=Words(), required=True, help="Why it is not to go on.")
@json_option
def hold(app: App, op: str, reason: str) -> None:
    """Keep an OP from being prepared, offered and published.

    Until it is taken off hold: l2inv unhold.
    """
    from l2inv.queries import observing_programs
    from l2inv.record import event_log
    from l2inv.stages.mark_working import claiming

    with app.connected() as (connection, _):
        op_id = event_log.resolve(connection, op)
        claiming.hold(connection, op_id, reason, app.actor)
        found = observing_programs.show(connection, op_id)
    app.result(found, lambda: app.summary(f"{op_id} is on hold"))


@command("unhold")
@op_argument
@click.option("--reason", type=Words(), help="Why it may go on.")
@json_option
def unhold(app: App, op: str, reason: str | None) -> None:
    """Take an OP off hold: it goes on from where it is."""
    from l2inv.queries import observing_programs
    from l2inv.record import event_log
    from l2inv.stages.mark_working import claiming

    with app.connected() as (connection, _):
        op_id = event_log.resolve(connection, op)
        claiming.unhold(connection, op_id, reason, app.actor)
        found = observing_programs.show(connection, op_id)
    app.result(found, lambda: app.summary(f"{op_id} is off hold: {found['state']}"))


@command("prioritize")
@op_argument
@click.option(
    "--priority",
    type=click.IntRange(-1000, 1000),
    metavar="N",
    required=True,
    help="Higher is sooner; 0 is usual.",
)
@click.option("--reason", type=Words(), required=True, help="Why it is to come sooner or later.")
@json_option
def prioritize(app: App, op: str, priority: int, reason: str) -> None:
    """Say how soon an OP is to be worked on.

    The higher the priority, the earlier next offers it.
    """
    from l2inv.queries import observing_programs
    from l2inv.record import event_log
    from l2inv.stages.mark_working import claiming

    with app.connected() as (connection, _):
        op_id = event_log.resolve(connection, op)
        claiming.prioritize(connection, op_id, priority, reason, app.actor)
        found = observing_programs.show(connection, op_id)
    app.result(found, lambda: app.summary(f"{op_id} has priority {priority}"))


@command("note")
@op_argument
@click.argument("text", type=Words())
@json_option
def note(app: App, op: str, text: str) -> None:
    """Add a word to an OP's history."""
    from l2inv.record import event_log
    from l2inv.stages.mark_working import claiming

    with app.connected() as (connection, _):
        op_id = event_log.resolve(connection, op)
        claiming.note(connection, op_id, text, app.actor)
    app.result({"op_id": op_id, "note": text}, lambda: app.summary(f"noted on {op_id}"))


@command("release")
@op_argument
@click.option("--reason", type=Words(), help="Why it is given back.")
@json_option
def release(app: App, op: str, reason: str | None) -> None:
    """Give a claimed OP back for others to take."""
    from l2inv.queries import observing_programs
    from l2inv.record import event_log
    from l2inv.stages.mark_working import claiming

    with app.connected() as (connection, _):
        op_id = event_log.resolve(connection, op)
        claiming.release(connection, op_id, app.actor, reason)
        found = observing_programs.show(connection, op_id)
    app.result(found, lambda: app.summary(f"released {op_id}"))
