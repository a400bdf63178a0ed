"""The ready event: recorded by a command or from files in a folder, canceled, corrected."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from l2inv.cli.app import command
from l2inv.cli.arguments import Op, Words, list_option, op_argument
from l2inv.cli.context import App
from l2inv.cli.options import json_option

if TYPE_CHECKING:
    from l2inv.stages.mark_inverted.ready_event import Ready


@command("mark-inverted")
@click.argument("op", metavar="[OP]", type=Op(), required=False)
@click.option(
    "--from",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The ready event as YAML, or JSON in *.json, in place of the options that describe it.",
)
@list_option("--output", "outputs", "LOCATION", "The URI of an output; may be repeated.")
@click.option("--software", type=Words(), metavar="NAME", help="The inversion code.")
@click.option("--software-version", type=Words(), metavar="VERSION", help="Its version or commit.")
@list_option(
    "--instrument-program",
    "programs",
    "ID",
    "What was inverted (default: what the verdict found invertible).",
)
@list_option("--dataset", "datasets", "ID", "A dataset used (default: the qualifying ones).")
@list_option("--line", "lines", "LINE", "A spectral line inverted; may be repeated.")
@click.option(
    "--asdf-object-key", type=Words(), metavar="KEY", help="The L2 metadata file's key in its bucket."
)
@click.option("--note", type=Words(), help="A note for the record.")
@click.option(
    "--accept-superseded",
    is_flag=True,
    help="Accept datasets that were superseded; needs --reason.",
)
@click.option("--reason", type=Words(), help="Why superseded datasets are acceptable.")
@json_option  # fmt: skip
def mark_inverted(
    app: App,
    op: str | None,
    file: Path | None,
    outputs: tuple[str, ...],
    software: str | None,
    software_version: str | None,
    programs: tuple[str, ...],
    datasets: tuple[str, ...],
    lines: tuple[str, ...],
    asdf_object_key: str | None,
    note: str | None,
    accept_superseded: bool,
    reason: str | None,
) -> None:
    """Record that an OP that you hold is inverted: the ready event."""
    from msgspec.structs import replace

    from l2inv.errors import Refused
    from l2inv.queries import observing_programs
    from l2inv.record import event_log
    from l2inv.stages.mark_inverted import ready_event

    described = (outputs, software, software_version, programs, datasets, lines, asdf_object_key, note)
    if file and any(described):
        raise click.UsageError(
            "--from describes what was inverted: leave out the other options that describe it"
        )
    if accept_superseded != bool(reason):
        raise click.UsageError("--accept-superseded and --reason go together")
    if software_version and not software:
        raise click.UsageError("--software-version needs --software")
    file_sha256 = None
    if file:
        ready, file_sha256 = _from_file(file)
    elif op:
        ready = ready_event.Ready(
            op_id=op,
            instrument_programs=list(programs) or None,
            datasets=list(datasets) or None,
            software=ready_event.Software(software, software_version) if software else None,
            outputs=[ready_event.Output(uri) for uri in dict.fromkeys(outputs)],
            lines=list(lines),
            asdf_object_key=asdf_object_key,
            note=note,
        )
    else:
        raise click.UsageError("name the OP, or a ready file with --from")
    with app.connected() as (connection, settings), app.progress("MB") as progress:
        if not file:
            ready = replace(ready, op_id=event_log.resolve(connection, ready.op_id))
        elif op and event_log.resolve(connection, op) != ready.op_id:
            raise Refused(
                f"{file} is of OP {ready.op_id}, not of {op}", "leave out the OP, or name another file"
            )
        marked = ready_event.mark_inverted(
            connection,
            ready,
            app.actor,
            datetime.now(UTC),
            publish=settings.publish,
            accepted_because=reason,
            file_sha256=file_sha256,
            progress=progress,
            warn=lambda text: app.warn(f"mark-inverted: {text}"),
        )
        found = observing_programs.show(connection, ready.op_id, settings.qualification)
    line = f"marked {ready.op_id} inverted" if marked else f"{ready.op_id} was marked inverted already"
    app.result(found, lambda: app.summary(line))


def _from_file(file: Path) -> tuple["Ready", str]:
    import hashlib

    from l2inv.config import yamlfile
    from l2inv.errors import L2invError
    from l2inv.stages.mark_inverted import ready_event

    try:
        with file.open("rb") as opened:
            content = opened.read(yamlfile.MAX_BYTES + 1)
    except OSError as problem:
        raise L2invError(f"{file}: cannot be read: {problem.strerror}", "name a ready file") from problem
    return ready_event.read(content, str(file)), hashlib.sha256(content).hexdigest()


@command("inbox")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@json_option
def inbox(app: App, folder: Path) -> None:
    """Record the ready files that science puts into a folder.

    They are *.yaml, *.yml and *.json. Each is moved to done/, or to rejected/ with the reason in a file beside it. A file that is still being written waits for the next run.
    """
    from l2inv.stages.mark_inverted.inbox import inbox

    with app.monitored("inbox"):
        with app.connected() as (connection, settings):
            report = inbox(
                connection,
                settings,
                folder,
                app.actor,
                datetime.now(UTC),
                lambda file, reason: app.warn(f"inbox: {file} rejected: {reason}"),
            )
        files = report["files"]
        counts = ", ".join(f"{files[name]} {name}" for name in ("done", "rejected", "waiting"))
        app.result(report, lambda: app.summary(f"inbox: files: {counts}, {report['seconds']:.1f} s"))
        for warning in report["warnings"]:
            app.warn(f"inbox: {warning}")
        if files["rejected"]:
            raise click.exceptions.Exit(4)


@command("unmark")
@op_argument
@click.option("--reason", type=Words(), help="Why; required if somebody else inverted it.")
@json_option
def unmark(app: App, op: str, reason: str | None) -> None:
    """Cancel a ready event: the holder works on the OP again.

    Claim, verdict and prepared files stay. Possible only until its inversions are sent to the metadata store; after that, use withdraw and reopen.
    """
    from l2inv.stages.publish import corrections

    with app.acting_on(
        op, lambda found: f"{found['op_id']} is working again, held by {found['assignee']}"
    ) as (connection, op_id):
        corrections.unmark(connection, app.settings, op_id, reason, app.actor)


@command("amend")
@op_argument
@click.option(
    "--from",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    required=True,
    help="The whole ready event as it should have been.",
)
@click.option("--reason", type=Words(), help="What was wrong.")
@json_option
def amend(app: App, op: str, file: Path, reason: str | None) -> None:
    """Correct the ready event of an OP that you inverted.

    All or nothing, and only until its inversions are sent to the metadata store. Both versions stay in the history.
    """
    from l2inv.errors import Refused
    from l2inv.stages.mark_inverted import ready_event
    from l2inv.stages.publish import corrections

    ready, _ = _from_file(file)
    with app.acting_on(op, lambda found: f"corrected the ready event of {found['op_id']}") as (
        connection,
        op_id,
    ):
        if ready.op_id != op_id:
            raise Refused(f"{file} is of OP {ready.op_id}, not of {op_id}", "name its OP, or another file")
        with corrections.correcting(connection, app.settings, op_id, reason, app.actor) as seen:
            ready_event.mark_inverted(
                connection,
                ready,
                app.actor,
                datetime.now(UTC),
                publish=app.settings.publish,
                amends=seen,
                amended_because=reason,
                warn=lambda text: app.warn(f"amend: {text}"),
            )
