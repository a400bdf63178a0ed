"""What people look at: lists, one OP, its history, how things stand."""

from typing import Any

import click

from l2inv.cli.app import App, command, json_option, op_argument
from l2inv.states import STATES


@command("list")
@click.option("--state", type=click.Choice(STATES), help="Only OPs in this state.")
@json_option
def list_(app: App, state: str | None) -> None:
    """List OPs with their present state."""
    from l2inv import render, views

    with app.reading() as (connection, _):
        ops = views.list_ops(connection, state)
    rows = (
        (
            op["op_id"],
            op["state"] + (", on hold" if op["on_hold"] else ""),
            render.day(op["since"]),
            op["datasets"],
            op["assignee"] or "-",
        )
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
            (
                "assignee",
                (op["assignee"] or "-") + (f", due {render.day(op['due_at'])}" if op["due_at"] else ""),
            ),
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
        + ([("on hold", op["hold_reason"])] if op["on_hold"] else [])
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


@command("history")
@op_argument
@json_option
def history(app: App, op: str) -> None:
    """Show all that ever happened to an OP, oldest first."""
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
    """Show how many OPs are where, and when each stage last ran."""
    from l2inv import render, views

    with app.reading() as (connection, _):
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
