"""What is overdue, and each owner's digest."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from l2inv import wording
from l2inv.cli import render
from l2inv.cli.app import command
from l2inv.cli.arguments import Time
from l2inv.cli.context import App
from l2inv.cli.options import json_option

if TYPE_CHECKING:
    from l2inv.config.settings import Settings
    from l2inv.database.connection import Connection, Row
    from l2inv.documents import Json

SHOWN = 10  # items of a section; the rest are counted
Sections = dict[str, list[Any]]  # of queries.deadlines.digest


@command("overdue")
@click.option("--as-of", type=Time(), help="What is overdue at this time (default: now).")
@json_option
def overdue(app: App, as_of: datetime | None) -> None:
    """Show the OPs past their deadline, by owner.

    Prints nothing when none is. An OP on hold is not overdue.
    """
    from l2inv.queries import deadlines

    with app.connected() as (connection, settings):
        ops = deadlines.overdue(connection, settings.deadlines, as_of or datetime.now(UTC))
    owners = deadlines.by_owner(ops)

    def text() -> None:
        for owner, owned in owners.items():
            render.paragraph(f"{owner}:")
            for op in owned:
                render.paragraph(_due(op), 2, hang=2)

    app.result({"owners": [{"owner": owner, "ops": owned} for owner, owned in owners.items()]}, text)


@command("digest")
@click.option("--send", is_flag=True, help="Send each owner's list to the owner's addresses in the settings.")
@click.option("--dry-run", is_flag=True, help="Show the lists and send nothing, the same as without --send.")
@json_option
def digest(app: App, send: bool, dry_run: bool) -> None:
    """Show or send each owner's list of what needs attention.

    Overdue, due soon, failed, quarantined, superseded inputs, changed by others, new.
    """
    if not send or dry_run:
        with app.connected() as (connection, settings):
            _show(app, _collected(connection, settings))
        return
    with app.monitored("digest"):
        _send(app)


def _collected(connection: "Connection", settings: "Settings") -> "Json":
    from l2inv.queries import deadlines

    now = datetime.now(UTC)
    earlier = deadlines.earlier_digests(connection)
    lists = deadlines.digest(connection, settings.deadlines, earlier, now)
    owners = [{"owner": owner, "sections": sections, "sent": None} for owner, sections in lists.items()]
    return {"owners": owners, "since": deadlines.since("", earlier, now), "as_of": now}


def _show(app: App, found: "Json") -> None:
    def text() -> None:
        for list_ in found["owners"]:
            render.paragraph(f"{list_['owner']}:")
            for line in _text_of(list_["sections"]).splitlines():
                render.paragraph(line.lstrip(), len(line) - len(line.lstrip()), hang=2)
        if not found["owners"]:
            app.summary("digest: nothing to report")

    app.result(found, text)


def _send(app: App) -> None:
    from l2inv.database.runs import stage_run
    from l2inv.services import notify

    unreached, problems = [], []
    with app.connected() as (connection, settings):
        addresses = {person.name: person.addresses for person in settings.notifications.people}
        with stage_run(connection, "digest", app.actor) as run:
            found = _collected(connection, settings)
            for list_ in found["owners"]:
                owner, sections = list_["owner"], list_["sections"]
                if not addresses.get(owner):
                    unreached.append(owner)
                    continue
                why = notify.send(addresses[owner], _title(owner, sections), _text_of(sections))
                problems += [f"digest: {owner}: {reason}" for reason in why]
                list_["sent"] = not why
            run.report["sent"] = {list_["owner"]: list_["sent"] for list_ in found["owners"]}
    sent = [list_["owner"] for list_ in found["owners"] if list_["sent"]]
    app.result(found, lambda: app.summary(f"digest: sent to {', '.join(sent) or 'nobody'}"))
    for problem in problems:
        app.warn(problem)
    if unreached:
        app.warn(f"digest: notifications.people has no address for {', '.join(unreached)}; see: l2inv digest")


def _title(owner: str, sections: Sections) -> str:
    counts = ", ".join(f"{len(items)} {_words(name)}" for name, items in sections.items() if items)
    return wording.clean(f"l2inv: {counts} ({owner})")


def _text_of(sections: Sections) -> str:
    lines = []
    for name, items in sections.items():
        if items:
            lines.append(f"  {_words(name)}:")
            lines += [f"    {_LINES[name](item)}" for item in items[:SHOWN]]
            lines += [f"    and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return "\n".join(lines)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _due(op: "Row") -> str:
    length = wording.length(abs(op["days_over"]) * 86_400)
    how = f"{length} over" if op["days_over"] > 0 else f"in {length}"
    due = (wording.moment if abs(op["days_over"]) < 1 else wording.day)(op["due_at"])
    return wording.clean(f"{op['op_id']}  {op['state']}  due {due}, {how}")


def _failed(op: "Row") -> str:
    return wording.clean(f"{op['op_id']}  {op['stage']}: {op['cause']}")


def _quarantined(record: "Row") -> str:
    return wording.clean(f"{record['dataset_id'] or '(no dataset id)'}  {record['reason']}")


def _op(op: "Row") -> str:
    return wording.clean(f"{op['op_id']}  {op['state']}")


def _unmarked(op: "Row") -> str:
    return wording.clean(f"{op['op_id']}  {op['actor']} unmarked it: {op['reason']}")


_LINES = {
    "overdue": _due,
    "due_soon": _due,
    "failed": _failed,
    "quarantined": _quarantined,
    "superseded_inputs": _op,
    "by_others": _unmarked,
    "new": _op,
}
