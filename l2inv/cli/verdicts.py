"""Verdicts: explained, overruled, missed by one criterion; and when OPs are complete."""

from typing import TYPE_CHECKING

import click

from l2inv.cli.app import command
from l2inv.cli.arguments import Words, list_option, op_argument
from l2inv.cli.context import App
from l2inv.cli.options import json_option

if TYPE_CHECKING:
    from l2inv.database.connection import Row
    from l2inv.documents import Json


BAR_COLUMNS = 40


@command("explain")
@op_argument
@json_option
def explain(app: App, op: str) -> None:
    """Explain an OP's verdict, criterion by criterion.

    What was measured, what is required, and by how much it passes or fails; and warnings.
    """
    from l2inv.queries import verdicts
    from l2inv.record import event_log

    with app.connected() as (connection, settings):
        found = verdicts.explain(connection, event_log.resolve(connection, op), settings.qualification)
    app.result(found, lambda: _print_verdict(found))


def _print_verdict(found: "Json") -> None:
    from l2inv import wording
    from l2inv.cli import render

    judged, overruled = found["judged_at"] is not None, found["overruled_by"]
    pairs = [
        ("OP", found["op_id"]),
        ("state", found["state"]),
        ("verdict", wording.verdict_line(found) if judged else "not judged yet"),
    ]
    if judged:
        pairs.append(
            ("judged", f"{wording.moment(found['judged_at'])} by criteria {found['criteria_version']}")
        )
    if overruled:
        counts_as = "invertible" if overruled["invertible"] else "not invertible"
        pairs.append(("overruled", f"{counts_as}: {overruled['reason']}"))
    if found["inputs_changed"]:
        pairs.append(("datasets", "changed since; see: l2inv history"))
    pairs += [("warning", wording.warning(one)) for one in found["warnings"]]
    render.fields(pairs)
    for program in found["instrument_programs"]:
        click.echo()
        render.paragraph(f"{program['instrument_program_id']}:")
        rows = [
            (
                c["name"] + (" (optional)" if c.get("optional") else ""),
                c["result"],
                c["dataset_id"] or "-",
                wording.measured(c),
                wording.required(c),
                wording.margin(c["name"], c["margin"]),
            )
            for c in program["criteria"]
        ]
        render.table(
            ("criterion", "result", "dataset", "measured", "required", "margin"), rows, right=("margin",)
        )


@command("near-misses")
@json_option
def near_misses(app: App) -> None:
    """List the OPs that fail on exactly one criterion.

    With the measured value and by how much it failed.
    """
    from l2inv.queries import verdicts

    with app.connected() as (connection, _):
        found = verdicts.near_misses(connection)
        tails = app.tails(connection, [op["op_id"] for criterion in found for op in criterion["ops"]])
    app.result({"criteria": found}, lambda: _print_near_misses(found, tails))


def _print_near_misses(found: "list[Json]", tails: dict[str, str]) -> None:
    from l2inv import wording
    from l2inv.cli import render

    if not found:
        click.echo("no OP fails on exactly one criterion")
    for number, criterion in enumerate(found):
        if number:
            click.echo()
        ops = criterion["ops"]
        render.paragraph(f"{criterion['name']}: {wording.count(ops, 'OP')}")
        rows = [
            (
                op["op_id"],
                op["instrument_program_id"] or "-",
                wording.measured({"name": criterion["name"], **op}),
                wording.required({"name": criterion["name"], **op}),
                wording.margin(criterion["name"], op["margin"]),
            )
            for op in ops
        ]
        render.table(
            ("OP", "program", "measured", "required", "margin"), rows, right=("margin",), short=tails
        )


@command("criteria")
@click.argument("pair", metavar="[OLD NEW]", type=Words(), nargs=-1)
@json_option
def criteria(app: App, pair: tuple[str, ...]) -> None:
    """List the versions of the criteria used for verdicts.

    With OLD and NEW, show how the two differ.
    """
    from l2inv.domain import criteria
    from l2inv.queries import verdicts

    if len(pair) not in (0, 2):
        raise click.UsageError("name two versions, or none to list them")
    with app.connected() as (connection, settings):
        if pair:
            old, new = (verdicts.version(connection, prefix) for prefix in pair)
            differences = verdicts.differences(old["rules"], new["rules"])
            document = {
                "from": old["criteria_version"],
                "to": new["criteria_version"],
                "differences": differences,
            }
            app.result(document, lambda: _print_differences(differences))
            return
        versions = verdicts.versions(connection)
    present = criteria.version(settings.qualification)
    app.result({"versions": versions, "present": present}, lambda: _print_versions(versions, present))


def _print_differences(differences: "list[Json]") -> None:
    from l2inv import wording
    from l2inv.cli import render

    for d in differences:
        render.paragraph(f"{d['path']}: {wording.as_json(d['old'])} -> {wording.as_json(d['new'])}", hang=2)
    if not differences:
        click.echo("no difference")


def _print_versions(versions: "list[Row]", present: str) -> None:
    from l2inv import wording
    from l2inv.cli import render

    rows = [
        (
            v["criteria_version"],
            wording.moment(v["first_used_at"]),
            v["verdicts"],
            v["ops"],
            "the present settings" if v["criteria_version"] == present else "",
        )
        for v in versions
    ]
    columns = ("version", "first used (UTC)", "verdicts", "newest of OPs", "")
    render.table(columns, rows, right=("verdicts", "newest of OPs"))
    if all(v["criteria_version"] != present for v in versions):
        render.paragraph(f"nothing has been judged yet by the present settings ({present})")


@command("completeness")
@json_option
def completeness(app: App) -> None:
    """Show after how many quiet days no further dataset came.

    Use it to choose completeness.quiet_days.
    """
    from l2inv.queries import verdicts

    with app.connected() as (connection, settings):
        quiet_days = settings.completeness.quiet_days
        found = verdicts.completeness(connection, settings.qualification.instruments, quiet_days)
    app.result(found, lambda: _print_completeness(found, quiet_days))


def _print_completeness(found: "Json", quiet_days: float) -> None:
    from l2inv import wording
    from l2inv.cli import render

    if not found["ops"]:
        click.echo("no datasets yet; run: l2inv scan")
        return
    render.paragraph("OPs without a late dataset after so many quiet days:")
    click.echo()
    days = [f"{s['quiet_days']:g}" for s in found["instruments"][0]["shares"]]
    rows = [(i["name"], i["ops"], *(_percent(s["share"]) for s in i["shares"])) for i in found["instruments"]]
    render.table(("", "OPs", *days), rows, right=("OPs", *days))
    columns = min(BAR_COLUMNS, (render.width() or 80) - 32)
    for group in found["instruments"][:2]:
        click.echo()
        render.paragraph(f"{group['name']}, {wording.plural(group['ops'], 'OP')}:")
        for day, s in zip(days, group["shares"], strict=True):
            bar = wording.bar(s["share"], columns)
            mark = "  <- quiet_days" if s["quiet_days"] == quiet_days else ""
            click.echo(f"{day:>8} {bar.ljust(columns)} {_percent(s['share']):>6}{mark}")


def _percent(fraction: float) -> str:
    return f"{fraction:.0%}" if fraction in (0, 1) else f"{fraction:.1%}"


@command("overrule")
@op_argument
@click.option("--invertible/--not-invertible", default=None, help="What to treat the OP as.")
@click.option("--reason", type=Words(), required=True, help="Why the verdict is wrong.")
@list_option("--instrument-program", "programs", "ID", "What is invertible (default: all that was judged).")
@json_option  # fmt: skip
def overrule(app: App, op: str, invertible: bool | None, reason: str, programs: tuple[str, ...]) -> None:
    """Override a verdict until the OP's datasets change."""
    from l2inv.stages import qualify

    if invertible is None:
        raise click.UsageError("choose one: --invertible or --not-invertible")
    with app.acting_on(op, lambda found: f"{found['op_id']} is {found['state']}") as (connection, op_id):
        qualify.overrule(connection, op_id, invertible, reason, programs, app.actor)
