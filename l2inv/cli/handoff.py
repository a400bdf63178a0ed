"""Science's hand-off: the ready event as a command."""

from datetime import UTC, datetime

import click

from l2inv.cli.app import App, Words, command, json_option, op_argument


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
    from l2inv import handoff, record, views

    if software_version and not software:
        raise click.UsageError("--software-version needs --software")
    with app.connected() as (connection, _):
        ready = handoff.Ready(
            op_id=record.resolve(connection, op),
            instrument_programs=list(programs) or None,
            datasets=list(datasets) or None,
            software=handoff.Software(software, software_version) if software else None,
            outputs=[handoff.Output(uri) for uri in outputs],
            lines=list(lines),
            asdf_object_key=asdf_object_key,
            note=note,
        )
        marked = handoff.mark_inverted(connection, ready, app.actor, datetime.now(UTC))
        found = views.show(connection, ready.op_id)
    said = f"marked {ready.op_id} inverted" if marked else f"{ready.op_id} was marked so already"
    app.result(found, lambda: app.summary(said))
