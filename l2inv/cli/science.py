"""Science's commands: what is next, who holds it, what happened to it."""

from datetime import UTC, datetime
from typing import Any

import click

from l2inv.cli.app import App, Words, command, json_option
from l2inv.states import STATES

op_argument = click.argument("op", metavar="OP", type=Words())


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


@command("list")
@click.option("--state", type=click.Choice(STATES), help="Only OPs in this state.")
@json_option
def list_(app: App, state: str | None) -> None:
    """List OPs with their present state."""
    from l2inv import render, views

    with app.connected() as (connection, _):
        ops = views.list_ops(connection, state)
    rows = (
        (op["op_id"], op["state"], render.day(op["since"]), op["datasets"], op["assignee"] or "-")
        for op in ops
    )
    app.result(
        {"ops": ops},
        lambda: render.table(("OP", "state", "since", "datasets", "assignee"), rows, right=("datasets",)),
    )


@command("show")
@op_argument
@json_option
def show(app: App, op: str) -> None:
    """Show one OP: its datasets, its verdict, who holds it."""
    from l2inv import record, views

    with app.connected() as (connection, _):
        found = views.show(connection, record.resolve(connection, op))
    app.result(found, lambda: _print_op(found))


def _print_op(op: dict[str, Any]) -> None:
    from l2inv import render

    render.fields(
        [
            ("OP", op["op_id"]),
            ("state", op["state"]),
            ("since", render.moment(op["since"])),
            ("assignee", op["assignee"] or "-"),
            ("proposal", op["proposal_id"] or "-"),
            ("experiment", op["experiment_id"] or "-"),
            ("priority", op["priority"]),
            ("observed", render.moment(op["start_time"])),
            ("r0", render.centimetres(op["fried_parameter_med"])),
            ("verdict", render.verdict_line(op["verdict"]) if op["verdict"] else "not judged yet"),
        ]
        + (
            [
                (
                    "overruled",
                    f"invertible: {_yes(op['overruled_by']['invertible'])}: {op['overruled_by']['reason']}",
                )
            ]
            if op["overruled_by"]
            else []
        )
        + ([("inputs", "changed since the verdict; see: l2inv history")] if op["inputs_changed"] else [])
        + ([("error", f"{op['error']['stage']}: {op['error']['cause']}")] if op["error"] else [])
    )
    click.echo()
    columns = ("dataset", "instrument", "program", "nm", "Stokes", "frames", "arrived")
    rows = (
        (
            d["dataset_id"],
            d["instrument"] or "-",
            d["instrument_program_id"] or "-",
            f"{d['wavelength_min_nm'] or 0:.1f}-{d['wavelength_max_nm'] or 0:.1f}",
            d["record"].get("stokes_parameters") or "-",
            d["record"].get("frame_count", "-"),
            render.day(d["create_date"]),
        )
        for d in op["datasets"]
    )
    render.table(columns, rows, right=("frames",))
    for program in (op["verdict"] or {}).get("instrument_programs", ()):
        click.echo(f"\n{render.clean(program['instrument_program_id'])}:")
        render.table(
            ("criterion", "result", "dataset", "measured", "required"),
            (
                (
                    c["name"],
                    c["result"],
                    c["dataset_id"] or "-",
                    render.value(c["measured"]),
                    render.value(c["required"]),
                )
                for c in program["criteria"]
            ),
        )


def _yes(true: bool) -> str:
    return "yes" if true else "no"


@command("overrule")
@op_argument
@click.option("--invertible/--not-invertible", default=None, help="What the OP is to count as.")
@click.option("--reason", type=Words(), required=True, help="Why the verdict does not hold.")
@click.option(
    "--instrument-program",
    "programs",
    type=Words(),
    multiple=True,
    metavar="ID",
    help="What is invertible (default: all that was judged).",
)
@json_option  # fmt: skip
def overrule(app: App, op: str, invertible: bool | None, reason: str, programs: tuple[str, ...]) -> None:
    """Set a verdict aside, until the OP's datasets change."""
    from l2inv import qualify, record, views

    if invertible is None:
        raise click.UsageError("say which: --invertible or --not-invertible")
    with app.connected() as (connection, _):
        op_id = record.resolve(connection, op)
        qualify.overrule(connection, op_id, invertible, reason, programs, app.actor)
        found = views.show(connection, op_id)
    app.result(found, lambda: app.summary(f"{op_id} is {found['state']}"))


@command("history")
@op_argument
@json_option
def history(app: App, op: str) -> None:
    """Show everything that ever happened to an OP, oldest first."""
    from l2inv import record, render, views

    with app.connected() as (connection, _):
        found = views.history(connection, record.resolve(connection, op))
    rows = (
        (
            e["seq"],
            render.moment(e["recorded_at"]),
            e["actor"],
            e["kind"],
            e["state"] or "",
            render.what_happened(e),
        )
        for e in found["events"]
    )
    app.result(found, lambda: render.table(("", "UTC", "actor", "event", "state", "what"), rows))


@command("status")
@json_option
def status(app: App) -> None:
    """Show how many OPs are in each state, and when each stage last ran."""
    from l2inv import render, views

    with app.connected() as (connection, _):
        found = views.status(connection)

    def text() -> None:
        render.table(("state", "OPs"), [*found["states"].items(), ("all", found["ops"])], right=("OPs",))
        click.echo(f"\n{found['events']} events; {found['quarantined']} records set aside")
        for op in found["inputs_changed"]:
            said = f"{op['op_id']}, {op['state']}, held by {op['assignee']}: its datasets changed since the verdict"
            click.echo(render.clean(said))
        if found["runs"]:
            click.echo()
            columns = ("stage", "run", "last started (UTC)", "by", "ended")
            render.table(columns, [_run_row(run) for run in found["runs"]], right=("run",))

    app.result(found, text)


def _run_row(run: dict[str, Any]) -> tuple[object, ...]:
    from l2inv import render

    ended = "runs, or was killed"
    if run["finished_at"]:
        failed = (run["result"] or {}).get("failed")
        ended = (
            f"failed: {failed}"
            if failed
            else f"in {(run['finished_at'] - run['started_at']).total_seconds():.1f} s"
        )
    return run["stage"], run["run_id"], render.moment(run["started_at"]), run["actor"], ended


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


@command("mark-inverted")
@op_argument
@click.option(
    "--output",
    "outputs",
    type=Words(),
    multiple=True,
    metavar="LOCATION",
    help="Where an output lies; may be repeated.",
)
@click.option("--software", type=Words(), metavar="NAME", help="The inversion code.")
@click.option("--software-version", type=Words(), metavar="VERSION", help="Its version or commit.")
@click.option(
    "--instrument-program",
    "programs",
    type=Words(),
    multiple=True,
    metavar="ID",
    help="What was inverted (default: what the verdict found invertible).",
)
@click.option(
    "--dataset",
    "datasets",
    type=Words(),
    multiple=True,
    metavar="ID",
    help="A dataset used (default: the qualifying ones).",
)
@click.option(
    "--line",
    "lines",
    type=Words(),
    multiple=True,
    metavar="LINE",
    help="A spectral line inverted; may be repeated.",
)
@click.option(
    "--asdf-object-key", type=Words(), metavar="KEY", help="The L2 metadata file's key in its bucket."
)
@click.option("--note", type=Words(), help="A word for the record.")
@json_option  # fmt: skip
def mark_inverted(
    app: App,
    op: str,
    outputs: tuple[str, ...],
    software: str | None,
    software_version: str | None,
    programs: tuple[str, ...],
    datasets: tuple[str, ...],
    lines: tuple[str, ...],
    asdf_object_key: str | None,
    note: str | None,
) -> None:
    """Science's ready event: the OP that the actor holds is inverted."""
    from l2inv import record, science, views

    if software_version and not software:
        raise click.UsageError("--software-version needs --software")
    with app.connected() as (connection, _):
        ready = science.Ready(
            op_id=record.resolve(connection, op),
            instrument_programs=list(programs) or None,
            datasets=list(datasets) or None,
            software=science.Software(software, software_version) if software else None,
            outputs=[science.Output(uri) for uri in outputs],
            lines=list(lines),
            asdf_object_key=asdf_object_key,
            note=note,
        )
        marked = science.mark_inverted(connection, ready, app.actor, datetime.now(UTC))
        found = views.show(connection, ready.op_id)
    said = f"marked {ready.op_id} inverted" if marked else f"{ready.op_id} was marked so already"
    app.result(found, lambda: app.summary(said))
