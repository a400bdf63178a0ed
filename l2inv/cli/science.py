"""Science's commands: what is next, who holds it, when it is due."""

from typing import Any

import click

from l2inv.cli.app import App, Words, command, json_option, op_argument


@command("next")
@click.option(
    "-n", "limit", type=click.IntRange(1, 100_000), default=10, show_default=True, help="How many at most."
)
@json_option
def next_(app: App, limit: int) -> None:
    """Show the OPs to invert next: by priority, then the longest waiting."""
    from l2inv import views

    with app.connected() as (connection, _):
        ops = views.next_ops(connection, limit)
        changed = views.held_with_changed_inputs(connection, app.actor)
    app.result({"ops": ops, "inputs_changed": changed}, lambda: _print_next(ops))
    for op in changed:
        app.warn(
            f"{op['op_id']}, which you hold, was judged on other datasets; see: l2inv history {op['op_id']}"
        )


def _print_next(ops: list[dict[str, Any]]) -> None:
    from l2inv import render

    if not ops:
        click.echo("nothing is ready to be claimed; see: l2inv status")
        return
    columns = (
        "OP",
        "proposal",
        "observed",
        "bands",
        "r0",
        "datasets",
        "instruments",
        "waiting since",
        "priority",
    )
    rows = [
        (
            op["op_id"],
            op["proposal_id"] or "-",
            render.day(op["start_time"]),
            ", ".join(op["bands"]) or "-",
            render.centimetres(op["fried_parameter_med"]),
            op["datasets"],
            ", ".join(op["instruments"]),
            render.day(op["since"]),
            op["priority"],
        )
        for op in ops
    ]
    render.cards(columns, rows)


def _claim(app: App, op: str) -> None:
    from l2inv import record, science, views

    with app.connected() as (connection, _):
        op_id = record.resolve(connection, op)
        claimed = science.claim(connection, op_id, app.actor)
        found = views.show(connection, op_id)
    said = f"claimed {op_id} for {app.actor}" if claimed else f"{op_id} is yours already"
    app.result(found, lambda: app.summary(said))


@command("claim")
@op_argument
@json_option
def claim(app: App, op: str) -> None:
    """Take an OP to work on. Exactly one person gets it."""
    _claim(app, op)


@command("mark-working")
@op_argument
@json_option
def mark_working(app: App, op: str) -> None:
    """Say that the actor works on an OP: the stage form of claim."""
    _claim(app, op)


@command("prioritize")
@op_argument
@click.option(
    "--priority", type=click.IntRange(-1000, 1000), required=True, help="Higher is sooner; 0 is usual."
)
@click.option("--reason", type=Words(), required=True, help="Why it is to come sooner or later.")
@json_option
def prioritize(app: App, op: str, priority: int, reason: str) -> None:
    """Say how soon an OP is to be worked on: next offers the highest priority first."""
    from l2inv import record, science, views

    with app.connected() as (connection, _):
        op_id = record.resolve(connection, op)
        science.prioritize(connection, op_id, priority, reason, app.actor)
        found = views.show(connection, op_id)
    app.result(found, lambda: app.summary(f"{op_id} has priority {priority}"))


@command("note")
@op_argument
@click.argument("text", type=Words())
@json_option
def note(app: App, op: str, text: str) -> None:
    """Add a word to an OP's history."""
    from l2inv import record, science

    with app.connected() as (connection, _):
        op_id = record.resolve(connection, op)
        science.note(connection, op_id, text, app.actor)
    app.result({"op_id": op_id, "note": text}, lambda: app.summary(f"noted on {op_id}"))


@command("release")
@op_argument
@click.option("--reason", type=Words(), help="Why it is given back.")
@json_option
def release(app: App, op: str, reason: str | None) -> None:
    """Give a claimed OP back for others to take."""
    from l2inv import record, science, views

    with app.connected() as (connection, _):
        op_id = record.resolve(connection, op)
        science.release(connection, op_id, app.actor, reason)
        found = views.show(connection, op_id)
    app.result(found, lambda: app.summary(f"released {op_id}"))
