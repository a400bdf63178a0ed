"""One OP, its history, and the status of all."""

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from l2inv.cli.app import command
from l2inv.cli.arguments import MaxAge, OneOf, op_argument
from l2inv.cli.context import App
from l2inv.cli.options import json_option

if TYPE_CHECKING:
    from l2inv.database.connection import Row
    from l2inv.documents import Json
    from l2inv.domain.op import WholeOp
    from l2inv.queries.publication import Abandoned, Step

# The commands that run a stage again where they need more than its name.
AGAIN = {
    "inbox": "l2inv inbox DIR",
    "digest": "l2inv digest --send",
}
STALE = timedelta(days=2)  # cron scans every night; two missed nights need attention


@command("show")
@op_argument
@json_option
def show(app: App, op: str) -> None:
    """Show one OP: its datasets, its verdict, who holds it."""
    from l2inv.queries import observing_programs, publication, verdicts
    from l2inv.record import event_log

    with app.connected() as (connection, settings):
        op_id = event_log.resolve(connection, op)
        found = observing_programs.show(connection, op_id, app.settings.qualification)
        found["abandoned"] = publication.abandoned(connection, op_id)
        was_inverted = found["state"] in ("inverted", "published", "error")
        found["steps"] = publication.steps(connection, settings.publish, op_id) if was_inverted else []
        found["warnings"] = verdicts.warnings(connection, [op_id], settings.qualification)[op_id]
    app.result(found, lambda: _print_op(found))


def _print_op(op: "WholeOp") -> None:
    from l2inv import wording
    from l2inv.cli import render
    from l2inv.record import event_log

    late = op["state"] == "working" and op["due_at"] is not None and op["due_at"] <= datetime.now(UTC)
    due = f", due {wording.due(op['due_at'])}{' overdue' * late}" if op["due_at"] else ""
    holder = (op["assignee"] or "-") + due
    overruled, error, verdict = op["overruled_by"], op["error"], op["verdict"]
    pairs = [
        ("OP", op["op_id"]),
        ("state", op["state"]),
        ("since", wording.moment(op["since"])),
        ("assignee", holder),
        ("to do", event_log.way_on(op["op_id"], op["state"], "for the assignee to invert", on_hold=op["on_hold"])),
        ("on hold", op["hold_reason"] if op["on_hold"] else None),
        ("error", f"{error['stage']}: {error['cause']}" if error else None),
        ("proposal", op["proposal_id"] or "-"),
        ("experiment", op["experiment_id"] or "-"),
        ("priority", op["priority"]),
        ("observed", wording.moment(op["start_time"])),
        ("r0", f"{wording.centimeters(op['fried_parameter_med_m'])}, {op['r0_class']}; p25-p75 {wording.quartiles(op)} cm" if op["r0_class"] != "unknown" else "unknown"),
        ("AO locked", wording.percent(op["ao_fraction"])),
        ("length", f"{wording.number(op['minutes'])} minutes, {wording.number(op['frame_count'])} frames"),
        ("exposure", f"{wording.interval(op['exposure_min_ms'], op['exposure_max_ms'])} ms"),
        ("field", f"{wording.field(op)} arcsec, mu {wording.number(op['mu'], 2)}"),
        ("lines", ", ".join(op["lines"]) or "-"),
        ("odd", ", ".join(op["odd"]) or None),
        ("verdict", wording.verdict_line(verdict) if verdict else "not judged yet"),
        ("overruled", f"invertible: {_yes(overruled['invertible'])}: {overruled['reason']}" if overruled else None),
        ("inputs", "changed since the verdict; see: l2inv history" if op["inputs_changed"] else None),
        *(("warning", wording.warning(found)) for found in op["warnings"]),
        *(("inversion", _inversion(inversion)) for inversion in op["inversions"]),
        *(("step", _step(one)) for one in op["steps"] if one.standing in ("done", "started", "waiting")),
        *(("abandoned", _abandoned(one)) for one in op["abandoned"]),
        *(("output", output["uri"]) for output in op["outputs"] or ()),
        *(("movie", url) for url in op["movie_urls"]),
    ]  # fmt: skip
    render.fields((name, value) for name, value in pairs if value is not None)
    click.echo()
    columns = ("dataset", "instrument", "program", "nm", "Stokes", "frames", "arrived", "")
    rows = [
        (
            d["dataset_id"],
            d["instrument"] or "-",
            d["instrument_program_id"] or "-",
            _range(d["wavelength_min_nm"], d["wavelength_max_nm"]),
            d["record"].get("stokes_parameters") or "-",
            d["record"].get("frame_count", "-"),
            wording.day(d["create_date"]),
            "withdrawn" if d["withdrawn"] else "",
        )
        for d in op["datasets"]
    ]
    render.table(columns, rows, right=("frames",))
    for program in verdict["instrument_programs"] if verdict else ():
        against = [c for c in program["criteria"] if c["result"] != "pass"]
        passed = len(program["criteria"]) - len(against)
        click.echo()
        render.paragraph(
            f"{program['instrument_program_id']}: {passed} of {len(program['criteria'])} criteria pass;"
            f" see: l2inv explain {op['op_id']}"
        )
        if against:
            render.table(
                ("criterion", "result", "dataset", "measured", "required"),
                [
                    (
                        c["name"] + (" (optional)" if c.get("optional") else ""),
                        c["result"],
                        c["dataset_id"] or "-",
                        wording.measured(c),
                        wording.required(c),
                    )
                    for c in against
                ],
            )
    click.echo()
    for d in op["datasets"]:
        if d["files_url"] and not d["withdrawn"]:
            render.paragraph(f"{d['dataset_id']} {d['files_url']}", hang=2)
    descriptions = {d["record"].get("experiment_description") for d in op["datasets"] if not d["withdrawn"]}
    for text in sorted(filter(None, descriptions)):
        first, *more = wording.paragraphs(text) or [""]
        click.echo()
        render.paragraph(first + (f" (… {wording.count(more, 'more paragraph')}: --json)" if more else ""))


def _inversion(inversion: "Json") -> str:
    from l2inv import wording

    if "published_at" not in inversion:  # named, and not in the store yet
        return "; ".join(wording.names([inversion]))
    published = (
        f"published {wording.day(inversion['published_at'])}"
        if inversion["published_at"]
        else "never published"
    )
    superseded = f", superseded by {inversion['superseded_by']}" if inversion["superseded_by"] else ""
    withdrawn = f", withdrawn {wording.day(inversion['withdrawn_at'])}" if inversion["withdrawn_at"] else ""
    return (
        f"{inversion['inversion_id']} of {inversion['instrument_program_id']}, cycle {inversion['cycle']}, "
        f"{published}{superseded}{withdrawn}"
    )


def _step(one: "Step") -> str:
    told = (one.step, one.standing) if one.standing != "waiting" else (one.step,)
    return " ".join((f"{one.inversion_id}:", *told, one.detail)).rstrip()


def _abandoned(one: "Abandoned") -> str:
    from l2inv import wording
    from l2inv.queries import publication

    named = f"{one.inversion_id} of {one.instrument_program_id}, cycle {one.cycle}, never published; "
    if one.held_since is None:
        return f"{named}not found in the store; publish keeps looking for it"
    return f"{named}found in the store {wording.day(one.held_since)}: {publication.settling(one)}"


def _range(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:.1f}-{high:.1f}"


def _yes(true: bool) -> str:
    return "yes" if true else "no"


@command("history")
@op_argument
@json_option
def history(app: App, op: str) -> None:
    """Show every event of an OP, oldest first."""
    from l2inv.queries import observing_programs
    from l2inv.record import event_log

    with app.connected() as (connection, _):
        found = observing_programs.history(connection, event_log.resolve(connection, op))
    app.result(found, lambda: _print_history(found))


def _print_history(found: "Json") -> None:
    from l2inv import wording
    from l2inv.cli import render

    if render.width() is None:
        columns = ("", "UTC", "actor", "event", "state", "what")
        rows = (
            (e["seq"], wording.moment(e["recorded_at"]), e["actor"], e["kind"], e["state"] or "", what)
            for e in found["events"]
            for what in [wording.what_happened(e)]
        )
        render.table(columns, rows)
        return
    arrow = "→" if sys.stdout.encoding.lower().startswith("utf") else "->"
    render.paragraph(found["op_id"], 0, "bold")
    state, before = None, None
    for event in found["events"]:
        if before and (days := (event["recorded_at"] - before).days):
            render.paragraph(f"{days} {'day' if days == 1 else 'days'} later", 5, "dim")
        before = event["recorded_at"]
        # The mark shows a failure also where there is no color.
        mark, color = ("!", "red") if event["kind"] == "failed" else (" ", "")
        what_and_state = f"{event['actor']} {event['kind'].replace('_', ' ')}"
        if event["state"] and event["state"] != state:
            what_and_state += (
                f"  {state} {arrow} {event['state']}" if state else f"  {arrow} {event['state']}"
            )
            state = event["state"]
        heading = f"{mark}{event['seq']:>3} {wording.moment(before)}  {what_and_state}"
        render.paragraph(heading, 0, f"bold {color}")
        if what := wording.what_happened(event):
            render.paragraph(what, 5, color)


@command("status")
@click.option(
    "--max-age",
    "max_ages",
    type=MaxAge(),
    multiple=True,
    metavar="STAGE=DURATION",
    help="Exit with 1 and a line if the stage's last good run is older, such as scan=26h; may be repeated.",
)
@click.option(
    "--format",
    "form",
    type=OneOf(["text", "prometheus"]),
    default="text",
    show_default=True,
    help="For people, or for a Prometheus textfile collector.",
)
@json_option
def status(app: App, max_ages: tuple[tuple[str, timedelta], ...], form: str) -> None:
    """Show what needs attention, and how many OPs are in each state.

    Also when each stage last ran. With -q and --max-age, show only which stage is late.
    """
    from l2inv import wording
    from l2inv.queries import deadlines, metrics, observing_programs, publication

    if app.json and form != "text":
        raise click.UsageError("--json and --format prometheus are two formats: leave one out")
    with app.reading() as (connection, settings):
        found = observing_programs.status(connection)
        found["overdue"] = deadlines.count_overdue(connection, settings.deadlines, found["as_of"])
        found["abandoned"] = publication.abandoned(connection)
        found["last_success"] = metrics.last_successes(connection)
    found["late"] = metrics.late(found["last_success"], dict(max_ages), found["as_of"])
    if form == "prometheus":
        click.echo(metrics.prometheus(found), nl=False)
    elif app.json or not (max_ages and app.verbosity < 0):
        app.result(found, lambda: _print_status(found))
    for stage in found["late"]:
        last, at_most = stage["last_success"], wording.length(stage["max_age_seconds"])
        began = (
            f"its last good run began {wording.length((found['as_of'] - last).total_seconds())} ago"
            if last
            else "it never ended well"
        )
        app.warn(f"{stage['stage']} is late: {began}, limit {at_most}; see: l2inv runs")
    if found["late"]:
        raise click.exceptions.Exit(1)


def _print_status(found: "Json") -> None:
    from l2inv import wording
    from l2inv.cli import render

    if needs := _needs(found):
        render.table(("needs attention", "command"), needs)
        click.echo()
    counts = found["states"]
    # In a pipe, there are only numbers, no bars.
    bar_columns = min((render.width() or 0) - 28, 60)
    bars = {state: wording.bar(count / max(found["ops"], 1), bar_columns) for state, count in counts.items()}
    rows = [(state, count, *([bars[state]] if bar_columns > 0 else [])) for state, count in counts.items()]
    columns = ("state", "OPs", *([""] if bar_columns > 0 else []))
    render.table(columns, [*rows, ("all", found["ops"], "")[: len(columns)]], right=("OPs",))
    on_hold = f", {found['on_hold']} of the OPs on hold" if found["on_hold"] else ""
    click.echo()
    render.paragraph(f"{found['events']} events{on_hold}; last complete scan: {_age(found)}")
    if found["runs"]:
        click.echo()
        columns = ("stage", "run", "last started (UTC)", "by", "ended")
        render.table(columns, [_run_row(run) for run in found["runs"]], right=("run",))


def _needs(found: "Json") -> list[tuple[str, str]]:
    """Return what needs attention, the worst first, each with the command that shows or fixes it."""
    from l2inv import wording

    needs = []
    if errors := found["states"]["error"]:
        needs.append((f"{wording.plural(errors, 'OP')} in error", "l2inv list --state error"))
    for run in found["runs"]:
        if failed := (run["result"] or {}).get("failed"):
            when = wording.moment(run["started_at"])
            needs.append(
                (
                    f"{run['stage']} failed at {when}: {failed}",
                    AGAIN.get(run["stage"], f"l2inv {run['stage']}"),
                )
            )
    if found["overdue"]:
        needs.append((f"{wording.plural(found['overdue'], 'OP')} overdue", "l2inv overdue"))
    for op in found["inputs_changed"]:
        what = (
            f"{op['op_id']}, {op['state']}, held by {op['assignee']}: its datasets changed since the verdict"
        )
        needs.append((what, f"l2inv history {op['op_id']}"))
    for one in found["abandoned"]:
        if one.held_since:
            what = f"{one.op_id}: the store has {one.inversion_id} of cycle {one.cycle}, never published"
            needs.append((what, f"l2inv show {one.op_id}"))
    last = found["last_complete_scan"]
    if last is None or found["as_of"] - last > STALE:
        needs.append((f"last complete scan: {_age(found)}", "l2inv scan"))
    if found["quarantined"]:
        records = "1 record" if found["quarantined"] == 1 else f"{found['quarantined']} records"
        needs.append((f"{records} of the metadata store quarantined", "l2inv quarantine"))
    return needs


def _age(found: "Json") -> str:
    from l2inv import wording

    last = found["last_complete_scan"]
    return (
        f"{wording.moment(last)}, {wording.length((found['as_of'] - last).total_seconds())} ago"
        if last
        else "never"
    )


def _run_row(run: "Row") -> tuple[object, ...]:
    from l2inv import wording

    ended = "running, or killed"
    if run["finished_at"]:
        took = f"in {(run['finished_at'] - run['started_at']).total_seconds():.1f} s"
        ended = "failed" if (run["result"] or {}).get("failed") else took
    return run["stage"], run["run_id"], wording.moment(run["started_at"]), run["actor"], ended
