"""The events of all OPs and the runs of all stages, printed row by row in bounded memory."""

import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING

import click

from l2inv.cli.app import command
from l2inv.cli.arguments import Actor, OneOf, Op, Since, Stage
from l2inv.cli.context import App
from l2inv.cli.options import json_option
from l2inv.domain.states import MEANINGS

if TYPE_CHECKING:
    from l2inv.database.connection import Row


since_option = click.option(
    "--since", type=Since(), metavar="TIME", help="Only since then: 2026-11-23, or so long ago: 24h."
)


@command("log")
@since_option
@click.option("--actor", "actor", type=Actor(), metavar="NAME", help="Only what this person did.")
@click.option("--kind", type=OneOf(list(MEANINGS)), metavar="KIND", help="Only events of this kind.")
@click.option("--op", type=Op(), metavar="OP", help="Only events of this OP.")
@json_option
def log(app: App, since: datetime | None, actor: str | None, kind: str | None, op: str | None) -> None:
    """Show the events of all OPs, newest last."""
    from l2inv.queries import log, people
    from l2inv.record import event_log

    with app.reading() as (connection, settings):
        op_id = event_log.resolve(connection, op) if op else None
        with closing(log.events(connection, since, actor, kind, op_id)) as events:
            found = _print(app, "events", events, _print_event)
        if not found and actor is not None and (why := people.unknown(connection, settings, actor)):
            app.warn(why)


@command("runs")
@since_option
@click.option("--stage", type=Stage(), metavar="STAGE", help="Only runs of this stage.")
@json_option
def runs(app: App, since: datetime | None, stage: str | None) -> None:
    """Show the runs of all stages and how they ended, newest last."""
    from l2inv.queries import log

    with app.reading() as (connection, _), closing(log.runs(connection, since, stage)) as found:
        _print(app, "runs", found, _print_run)


def _print(app: App, name: str, rows: "Iterable[Row]", text: "Callable[[Row], None]") -> bool:
    """Print the rows as they come: each as a text, or all as one JSON document. Return whether there were any."""
    coming = iter(rows)
    row = next(coming, None)  # before anything is printed: what fails is still a document of its own
    found = row is not None
    if not app.json:
        if not found:
            app.summary(f"there are no such {name}")
        while row:
            text(row)
            row = next(coming, None)
        if sys.stdout.isatty():
            sys.stdout.flush()
        return found
    from l2inv.wording import as_json

    app.json = False  # from here on, stdout holds this document alone
    sys.stdout.write(f'{{"{name}": [')
    between = ""
    while row:
        sys.stdout.write(between + as_json(row))
        between = ", "
        row = next(coming, None)
    sys.stdout.write("]}\n")
    return found


def _print_event(event: "Row") -> None:
    from l2inv import wording
    from l2inv.cli import render

    what = wording.what_happened(event)
    when = wording.moment(event["recorded_at"])
    if render.width() is None:
        cells = (when, event["actor"], event["op_id"], event["kind"], event["state"] or "-", what)
        click.echo("  ".join(map(wording.clean, cells)).rstrip())
        return
    failed = event["kind"] == "failed"
    state = f", now {event['state']}" if event["state"] not in (None, event["kind"]) else ""
    heading = f"{when}  {event['actor']} {event['kind'].replace('_', ' ')}{state}"
    render.paragraph(heading, 0, "bold red" if failed else "bold", hang=18)
    render.paragraph(event["op_id"], 18)
    if what:
        render.paragraph(what, 18, "red" if failed else "")


def _print_run(run: "Row") -> None:
    from l2inv import wording
    from l2inv.cli import render

    ended = wording.run_ended(run)
    when = wording.moment(run["started_at"])
    if render.width() is None:
        cells = (when, str(run["run_id"]), run["stage"], run["actor"], ended)
        click.echo("  ".join(map(wording.clean, cells)))
        return
    failed = bool((run["result"] or {}).get("failed"))
    heading = f"{when}  {run['stage']} {run['run_id']} by {run['actor']}"
    render.paragraph(f"{heading}: {ended}", 0, "red" if failed else "", hang=18)
