"""Files: preprocess's intermediate files listed and removed, and an inversion's files checked."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from l2inv.cli.app import command
from l2inv.cli.arguments import Duration, op_argument
from l2inv.cli.context import App
from l2inv.cli.options import json_option


@command("files")
@op_argument
@json_option
def files(app: App, op: str) -> None:
    """List an OP's intermediate files.

    Each is compared with its recorded size and checksum.
    """
    from l2inv import wording
    from l2inv.cli import render
    from l2inv.record import event_log
    from l2inv.stages.preprocess import clean

    with app.connected() as (connection, _):
        found = clean.files(connection, event_log.resolve(connection, op))
    rows = [(file["standing"], file["size_bytes"], file["sha256"], file["path"]) for file in found["files"]]

    def text() -> None:
        if rows:
            render.table(("", "bytes", "sha256", "file"), rows, right=("bytes",), title=3)
        cleaned = f", cleaned {wording.day(found['cleaned_at'])}" if found["cleaned_at"] else ""
        line = f"{found['op_id']}: {len(rows)} files in {found['folder'] or 'no folder yet'}{cleaned}"
        app.summaries([line, *wording.names(found["inversions"])])

    app.result(found, text)


@command("check")
@op_argument
@click.option(
    "--files",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Where the files are (default: where the ready event's outputs are mounted here).",
)
@click.option(
    "--html",
    "html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the findings, with a picture of each quantity near log tau -1, as one HTML FILE; needs l2inv[plots].",
)
@json_option
def check(app: App, op: str, folder: Path | None, html: Path | None) -> None:
    """Check the files of an OP's inversions.

    What science delivered, and the Level 2 made from it; exit code 5 if something is wrong.
    """
    from l2inv.cli import render
    from l2inv.products import thumbnails
    from l2inv.products.findings import grouped
    from l2inv.record import event_log
    from l2inv.stages.publish import check_page, checking

    if html:
        thumbnails.must_be_drawable()
    with app.connected() as (connection, settings), app.progress("MB") as progress:
        op_id = event_log.resolve(connection, op)
        found = checking.check(connection, settings, op_id, folder, progress)
    if html:
        with app.progress("frames drawn") as progress:
            check_page.write(html, op_id, found, datetime.now(UTC), progress)
    findings = [finding for one in found for finding in one.findings]
    wrong = sum(finding.result == "fail" for finding in findings)

    def text() -> None:
        columns = ("file", "HDU", "what", "result", "measured", "required")
        for one in found:
            render.paragraph(f"{one.inversion_id} in {one.folder}")
            rows = []
            for f, count in grouped(one.findings):
                where = f"{f.file} and {count - 1} more" if count > 1 else f.file
                cells = (where, f.hdu, f.what, f.result, f.measured, f.required)
                rows.append(["-" if cell is None else cell for cell in cells])
            if rows:
                render.table(columns, rows)
        app.summary(f"check: {op_id}: {wrong} wrong, {len(findings) - wrong} to review")
        if html:
            app.summary(f"check: findings and pictures are in {html}")

    app.result({"op_id": op_id, "inversions": found}, text)
    if wrong:
        raise click.exceptions.Exit(5)


@command("clean")
@click.option(
    "--older-than",
    type=Duration(),
    required=True,
    help="How long ago an OP must have been published, such as 90d.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be removed; remove and write nothing.")
@json_option  # fmt: skip
def clean(app: App, older_than: timedelta, dry_run: bool) -> None:
    """Remove the intermediate files of OPs published long ago."""
    from l2inv.cli import render
    from l2inv.stages.preprocess import clean

    with app.connected() as (connection, settings):
        report = clean.clean(connection, settings, app.actor, older_than, datetime.now(UTC), dry_run)
    rows = [(op["op_id"], op["files"], op["bytes"], op["folder"]) for op in report["ops"]]

    def text() -> None:
        if rows:
            render.table(("OP", "files", "bytes", "folder"), rows, right=("files", "bytes"))
        size = sum(op["bytes"] for op in report["ops"])
        done = "would be removed" if dry_run else "removed"
        app.summary(f"clean: {len(rows)} folders {done}, {size} bytes")

    app.result(report, text)
    for failure in report["failed"]:
        app.warn(f"clean: OP {failure['op_id']}: {failure['cause']}")
    if report["failed"]:
        raise click.exceptions.Exit(1)
