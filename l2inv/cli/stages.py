"""The stages that cron runs: scan, qualify, preprocess, publish."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l2inv.cli.app import command
from l2inv.cli.arguments import Time
from l2inv.cli.context import App
from l2inv.cli.options import json_option

if TYPE_CHECKING:
    from l2inv.documents import Json
    from l2inv.stages.publish.preflight import Preflight


@command("scan")
@click.option("--since-last", is_flag=True, help="Read only what changed since the last complete scan.")
@click.option("--allow-withdrawals", is_flag=True, help="Record missing datasets as withdrawn, however many.")
@click.option(
    "--decode-all", is_flag=True, help="Decode every record, even one in the bytes of the last scan."
)
@json_option
def scan(app: App, since_last: bool, allow_withdrawals: bool, decode_all: bool) -> None:
    """Read the store's datasets and group them into OPs."""
    with app.monitored("scan"):
        _scan(app, since_last, allow_withdrawals, decode_all)


def _scan(app: App, since_last: bool, allow_withdrawals: bool, decode_all: bool) -> None:
    import msgspec

    from l2inv.stages.scan.scan import scan

    with app.connected() as (connection, settings), app.progress("datasets") as progress:
        scanned = scan(
            connection,
            settings,
            app.actor,
            since_last=since_last,
            allow_withdrawals=allow_withdrawals,
            decode_all=decode_all,
            progress=progress,
        )
    incomplete = f"scan: incomplete: {scanned.failed}"
    report = msgspec.to_builtins(scanned)
    if not scanned.complete:
        report["error"] = {"code": 1, "message": incomplete, "hint": "scan again"}
    _print(app, report)
    for warning in scanned.warnings:
        app.warn(f"scan: {warning}")
    if quarantined := scanned.datasets.quarantined:
        app.warn(
            f"scan: {_records(quarantined)} could not be read and are quarantined; see: l2inv quarantine"
        )
    if not scanned.complete:
        app.warn(incomplete)
        raise click.exceptions.Exit(1)


@command("qualify")
@click.option("--as-of", type=Time(), help="Judge completeness as of this time (default: now).")
@click.option(
    "--what-if",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Show what the criteria of another settings file would change; write nothing.",
)
@json_option  # fmt: skip
def qualify(app: App, as_of: datetime | None, what_if: Path | None) -> None:
    """Judge each quiet OP by the criteria of invertibility."""
    if what_if is not None:
        if as_of is not None:
            raise click.UsageError("--what-if judges all OPs, complete or not: leave out --as-of")
        _what_if(app, what_if)
        return
    with app.monitored("qualify"):
        _qualify(app, as_of or datetime.now(UTC))


def _qualify(app: App, as_of: datetime) -> None:
    from l2inv.stages.qualify import qualify

    with app.connected() as (connection, settings), app.progress("OPs") as progress:
        report = qualify(connection, settings, app.actor, as_of, progress)
    _end(app, report)


def _what_if(app: App, file: Path) -> None:
    from l2inv import wording
    from l2inv.cli import render
    from l2inv.config import settings
    from l2inv.queries.what_if import what_if

    other = settings.load(file, os.environ).settings.qualification
    with app.connected() as (connection, present), app.progress("OPs") as progress:
        found = what_if(connection, present.qualification, other, progress)

    def text() -> None:
        for change in ("gained", "lost"):
            for op_id in found[change]:
                render.paragraph(f"{change:<7}{op_id}")
        gained, lost = len(found["gained"]), len(found["lost"])
        counts = f"{wording.plural(gained, 'OP')} gained, {lost} lost, {found['unchanged']} unchanged"
        app.summary(f"what if: {counts}; nothing written (criteria {found['criteria_version']})")

    app.result(found, text)
    if found["failed"]:
        app.warn(
            f"qualify: {wording.count(found['failed'], 'OP')} cannot be judged: {wording.some(found['failed'])}"
        )


@command("preprocess")
@json_option
def preprocess(app: App) -> None:
    """Run the configured command for each invertible OP."""
    from l2inv.stages.preprocess.preprocess import preprocess

    with app.monitored("preprocess"):
        _run_stage(app, preprocess)


@command("publish")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show what would be published, and what prevents it; send and write nothing.",
)
@json_option  # fmt: skip
def publish(app: App, dry_run: bool) -> None:
    """Publish each inversion, recorded in the store exactly once."""
    from l2inv.stages.publish.publish import publish

    if dry_run:
        _dry_run(app)
        return
    with app.monitored("publish"):
        _run_stage(app, publish)


def _dry_run(app: App) -> None:
    from l2inv import wording
    from l2inv.cli import render
    from l2inv.stages.publish import preflight

    with app.connected() as (connection, settings), app.progress("MB") as progress:
        op_ids = preflight.inverted_ops(connection)
        ops = [preflight.preflight(connection, settings, op_id) for op_id in op_ids]
        for op in ops:
            preflight.check_products(connection, settings, op, progress)

    def text() -> None:
        for op in ops:
            render.paragraph(f"{op.op_id}: {_readiness(op)}", hang=2)
            rows = [(check.name, check.result, check.detail) for check in op.checks]
            render.table(("check", "result", ""), rows)
            steps = [(s.inversion_id, s.step, s.standing, s.detail) for s in op.steps]
            render.table(("inversion", "step", "standing", ""), steps)
            click.echo()
        app.summary(
            f"publish: {sum(op.ready for op in ops)} of {wording.count(ops, 'OP')} ready; nothing written"
        )

    app.result({"ops": ops}, text)


def _readiness(op: "Preflight") -> str:
    if op.on_hold:
        return "on hold, will be skipped"
    inversions = ", ".join(str(one.inversion_id) for one in op.inversions)
    return f"ready, as {inversions}" if op.ready else "not ready, will go to error"


def _run_stage(app: App, stage: Callable[..., Any]) -> None:
    with app.connected() as (connection, settings), app.progress("OPs") as progress:
        report = stage(connection, settings, app.actor, progress)
    _end(app, report)


def _end(app: App, found: Any) -> None:
    """Print a stage's report and its warnings, and exit with 4 if OPs failed."""
    import msgspec

    report = msgspec.to_builtins(found)
    _print(app, report)
    for warning in report["warnings"]:
        app.warn(f"{report['stage']}: {warning}")
    _exit_with(app, report)


def _print(app: App, report: "Json") -> None:
    from l2inv import wording

    app.result(report, lambda: app.summary(wording.summary(report)))


def _exit_with(app: App, report: "Json") -> None:
    from l2inv import wording

    failed = report["ops"]["failed"]
    if failed:
        app.warn(
            f"{report['stage']}: {wording.plural(failed, 'OP')} failed; see: l2inv list --state error, l2inv history OP, l2inv retry OP"
        )
        raise click.exceptions.Exit(4)


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count} records"
