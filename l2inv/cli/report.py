"""The status report as an HTML page."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from l2inv.cli.app import command
from l2inv.cli.arguments import OneOf
from l2inv.cli.context import App
from l2inv.cli.options import json_option
from l2inv.cli.streams import mute


@command("report")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option(
    "--ops",
    "lines",
    type=click.IntRange(0, 20_000),
    default=5000,
    show_default=True,
    metavar="N",
    help="List the N OPs observed last; the counts are of all.",
)
@click.option(
    "--mode",
    type=OneOf(["600", "640", "604", "644"]),
    default="600",
    show_default=True,
    help="The FILE's permissions: 644 if a web server of another user serves it.",
)
@json_option  # fmt: skip
def report(app: App, file: Path, lines: int, mode: str) -> None:
    """Write a status report as one HTML FILE.

    It replaces an earlier one atomically, for an internal web server to serve; - is stdout.
    """
    from l2inv import wording
    from l2inv.queries.report import snapshot

    now = datetime.now(UTC)
    if str(file) == "-":
        if app.json:
            raise click.UsageError("--json describes a FILE that was written; name one")
        with app.reading() as (connection, settings):
            html, _ = snapshot.report(connection, settings, now, lines)
        _print(html)
        return
    with app.reading() as (connection, settings):
        done = snapshot.written(connection, settings, now, lines, file, int(mode, 8))
    app.result(
        done,
        lambda: app.summary(f"report: {wording.plural(done['ops'], 'OP')}, {done['bytes']} bytes in {file}"),
    )


def _print(html: str) -> None:
    try:
        sys.stdout.buffer.write(html.encode())
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        mute(sys.stdout)
