"""The stages that cron runs: scan, qualify, preprocess, publish."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

from l2inv.cli.app import App, command, json_option


@command("scan")
@json_option
def scan(app: App) -> None:
    """Read the metadata store's datasets and group them into OPs."""
    from l2inv.scan import scan

    with app.connected() as (connection, settings), app.progress("datasets") as progress:
        report = scan(connection, settings, app.actor, progress)
    _tell(app, report)
    if set_aside := report["datasets"]["quarantined"]:
        app.warn(f"scan: {_records(set_aside)} could not be read and stand aside; see: l2inv quarantine")
    if not report["complete"]:
        app.warn(f"scan: incomplete: {report['failed']}")
        raise click.exceptions.Exit(1)


class Time(click.ParamType[datetime]):
    """An ISO 8601 time; without an offset it is UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            time = value if isinstance(value, datetime) else datetime.fromisoformat(value)
            return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no ISO 8601 time, such as 2026-11-23 or 2026-11-23T08:00:00Z", param, ctx
            )


@command("qualify")
@click.option("--as-of", type=Time(), help="Judge completeness as of this time (default: now).")
@json_option
def qualify(app: App, as_of: datetime | None) -> None:
    """Judge each quiet OP by the criteria of invertibility."""
    from l2inv.qualify import qualify

    with app.connected() as (connection, settings), app.progress("OPs") as progress:
        report = qualify(connection, settings, app.actor, as_of or datetime.now(UTC), progress)
    _tell(app, report)
    _exit_with(app, report)


@command("preprocess")
@json_option
def preprocess(app: App) -> None:
    """Run the configured command for each invertible OP."""
    from l2inv.preprocess import preprocess

    _run_stage(app, preprocess)


@command("publish")
@json_option
def publish(app: App) -> None:
    """Tell the metadata store of each inversion, exactly once."""
    from l2inv.publish import publish

    _run_stage(app, publish)


def _run_stage(app: App, stage: Callable[..., dict[str, Any]]) -> None:
    with app.connected() as (connection, settings), app.progress("OPs") as progress:
        report = stage(connection, settings, app.actor, progress)
    _tell(app, report)
    _exit_with(app, report)


def _tell(app: App, report: dict[str, Any]) -> None:
    from l2inv import render

    app.result(report, lambda: app.summary(render.summary(report)))


def _exit_with(app: App, report: dict[str, Any]) -> None:
    failed = report["ops"]["failed"]
    if failed:
        ops = "1 OP" if failed == 1 else f"{failed} OPs"
        app.warn(
            f"{report['stage']}: {ops} failed; see: l2inv list --state error, l2inv history OP, l2inv retry OP"
        )
        raise click.exceptions.Exit(4)


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count} records"
