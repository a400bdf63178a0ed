"""The operator's commands: the database's schema, retries, the settings, the embedded server, the demo."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from l2inv.cli.app import command, main
from l2inv.cli.arguments import Actor, OneOf, Op, Words
from l2inv.cli.context import App
from l2inv.cli.options import common_options, json_option

if TYPE_CHECKING:
    from l2inv.database.connection import Connection, Row
    from l2inv.documents import Json
    from l2inv.record.verify import Verified


@command("migrate")
@click.option("--dry-run", is_flag=True, help="Print the SQL that would run, and run nothing.")
@json_option
def migrate(app: App, dry_run: bool) -> None:
    """Migrate the database schema to this version of l2inv."""
    from l2inv.database import migrate
    from l2inv.database.connection import open_connection, translated

    settings = app.settings
    opened = open_connection(settings, None, *app.session())
    with translated(settings), opened as connection:
        if dry_run:
            pending = dict(migrate.pending_sql(connection, settings.database.schema))
            app.result(
                {"pending": pending}, lambda: click.echo("\n".join(pending.values()), nl=bool(pending))
            )
            return
        applied = migrate.apply(connection, settings.database.schema)
    line = f"migrate: applied {', '.join(applied)}" if applied else "migrate: nothing to do"
    app.result({"applied": applied}, lambda: app.summary(line))


@command("retry")
@click.argument("ops", metavar="[OP]...", type=Op(), nargs=-1)
@json_option
def retry(app: App, ops: tuple[str, ...]) -> None:
    """Bring OPs back from error to the state before it.

    Those named, or all OPs in error.
    """
    from l2inv.record import event_log

    with app.connected() as (connection, _):
        op_ids = [event_log.resolve(connection, op) for op in ops]
        brought_back = event_log.retry(connection, op_ids, app.actor)
    document = {"ops": [{"op_id": op_id, "state": state} for op_id, state in brought_back]}

    def text() -> None:
        for op_id, state in brought_back:
            app.summary(f"{op_id} is {state} again")
        if not brought_back:
            app.summary("retry: no OP is in error")

    app.result(document, text)


@command("quarantine")
@click.argument("record", type=Words(), required=False)
@click.option("--read-again", is_flag=True, help="Try to read them again, such as after an upgrade.")
@json_option
def quarantine(app: App, record: str | None, read_again: bool) -> None:
    """List the records of the store that could not be read.

    With a RECORD's key or dataset id, show it as received.
    """
    import msgspec

    from l2inv import wording
    from l2inv.cli import render
    from l2inv.stages.scan import quarantine, scan

    if record and read_again:
        raise click.UsageError("--read-again reads all records: name none")
    with app.connected() as (connection, settings):
        if record:
            shown = quarantine.shown(connection, record)
            app.result({"records": shown}, lambda: _print_records(shown))
            return
        if read_again:
            report = msgspec.to_builtins(scan.read_again(connection, settings, app.actor))
            app.result(report, lambda: app.summary(wording.summary(report)))
            return
        records = quarantine.listed(connection)
    rows = [
        (
            r["key"],
            r["dataset_id"] or "-",
            wording.moment(r["first_seen"]),
            wording.moment(r["last_seen"]),
            r["reason"],
        )
        for r in records
    ]
    columns = ("key", "dataset", "first seen (UTC)", "last seen (UTC)", "reason")
    nothing = "no record of the metadata store is quarantined"
    app.result(
        {"records": records}, lambda: render.table(columns, rows) if rows else render.paragraph(nothing)
    )


def _print_records(records: "list[Row]") -> None:
    from l2inv import wording
    from l2inv.cli import render

    for record in records:
        resolved = wording.moment(record["resolved_at"]) if record["resolved_at"] else "not yet"
        render.fields([("key", record["key"]), ("reason", record["reason"]), ("resolved", resolved)])
        click.echo(wording.clean(record["raw"]))


@command("verify")
@click.argument(
    "what",
    type=OneOf(["events", "state", "verdicts", "datasets", "runs", "schema"]),
    required=False,
)
@click.option(
    "--anchor",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Compare with what earlier runs wrote there; if nothing is wrong, append what is new.",
)
@click.option("--new-anchor", is_flag=True, help="With --anchor: create the file.")
@click.option(
    "--since-anchor", is_flag=True, help="With --anchor: check only what it lists and what came after."
)
@json_option
def verify(app: App, what: str | None, anchor: Path | None, new_anchor: bool, since_anchor: bool) -> None:
    """Verify the event log's integrity.

    Checks the hash chains, the present states, every verdict by judging again, the dataset versions, the runs' reports
    against what is recorded, and the schema against what the migrations create.
    """
    from l2inv.record import anchor as anchors
    from l2inv.record import verify

    if (new_anchor or since_anchor) and not anchor:
        raise click.UsageError("--new-anchor and --since-anchor need --anchor FILE")
    if new_anchor and since_anchor:
        raise click.UsageError("a new anchor has nothing to start from: leave --since-anchor out")
    if what and (new_anchor or since_anchor):
        raise click.UsageError(f"--new-anchor and --since-anchor concern all checks: leave {what} out")
    with app.connected() as (connection, _), app.progress("rows") as progress:
        against = anchors.load(connection, anchor, new_anchor) if anchor else None
        found = verify.verify(connection, what, progress, against, since_anchor)
    _end_with_findings(app, found, found)


# What each check of verify counts.
CHECKED = {
    "events": "event",
    "state": "OP state",
    "verdicts": "verdict",
    "datasets": "dataset",
    "runs": "run",
    "schema": "schema object",
    "anchored": "anchored OP",
}


def _end_with_findings(app: App, found: "Verified", document: object) -> None:
    """Print what verify found; exit with 5 if that is anything."""
    from l2inv import wording

    def text() -> None:
        for finding in found.findings:
            where = [f"OP {finding.op_id}"] if finding.op_id else []
            where += [f"event {finding.event_id}"] if finding.event_id else []
            app.warn(f"{', '.join(where) or finding.what}: {finding.detail}")
        checked = ", ".join(wording.plural(count, CHECKED[name]) for name, count in found.checked.items())
        app.summary(f"verify: {checked} checked, {wording.plural(found.found, 'finding')}")
        if schema := found.schema:
            app.summary(
                f"the schema is at migration {schema.migrations[-1]}, fingerprint {schema.fingerprint}"
            )

    app.result(document, text)
    if found.findings:
        raise click.exceptions.Exit(5)


@main.group("config")
def config() -> None:
    """The settings."""


@config.command("check")
@click.option(
    "--offline", is_flag=True, help="Neither contact the metadata store nor read its saved response."
)
@common_options
@json_option
@click.pass_obj
def check(app: App, offline: bool) -> None:
    """Check the settings, and send the metadata store one cheap query, or read its saved response.

    All mistakes are printed at once, each with its path in the file.
    """
    import msgspec

    from l2inv import wording
    from l2inv.config.settings import to_plain
    from l2inv.services import catalog, metadata_store
    from l2inv.stages.preprocess import preprocess
    from l2inv.stages.publish import transfer

    loaded = app.loaded()
    metadata_store.check(loaded.settings.metadata_store)
    preprocess.check(loaded.settings.preprocess)
    transfer.check(loaded.settings)
    catalog.check(loaded.settings.publish.catalog)
    found = None if offline else metadata_store.look(loaded.settings.metadata_store)
    document = {
        "path": str(loaded.path) if loaded.path else None,
        "settings": to_plain(loaded.settings),
        "store": found and msgspec.to_builtins(found),
    }

    def text() -> None:
        app.summary(f"config: {loaded.path or 'no file: the built-in defaults'}: valid")
        if isinstance(found, metadata_store.Saved):
            others = found.records - found.datasets
            more = f", and {wording.plural(others, 'record')} that scan skips: not active" if others else ""
            datasets = wording.plural(found.datasets, "dataset")
            app.summary(f"metadata store: saved response {found.path}: {datasets}{more}")
        elif found:
            variables = "accepts variables" if found.takes_variables else "may ignore variables"
            codes = ", ".join(found.status_codes) or "none"
            app.summary(f"metadata store: reachable, authorized, {variables}; status codes: {codes}")

    app.result(document, text)


@main.group("server")
def server() -> None:
    """The embedded PostgreSQL server (database.url: embedded)."""


@server.command("status")
@common_options
@json_option
@click.pass_obj
def server_status(app: App) -> None:
    """Show whether the embedded server runs, and where."""
    from l2inv.database import embedded
    from l2inv.database.connection import server_folder

    folder = server_folder(app.settings)
    url = embedded.address(folder) if embedded.is_running(folder) and embedded.start(folder) else None
    document = {"folder": str(folder), "running": url is not None, "url": url}
    line = f"running, for psql: {url}" if url else "not running"
    app.result(document, lambda: app.summary(f"embedded server: {line}; data in {folder}"))


@server.command("stop")
@common_options
@json_option
@click.pass_obj
def server_stop(app: App) -> None:
    """Stop the embedded server.

    The next command that needs it starts it again.
    """
    from l2inv.database import embedded
    from l2inv.database.connection import server_folder

    stopped = embedded.stop(server_folder(app.settings))
    app.result(
        {"stopped": stopped},
        lambda: app.summary("embedded server: " + ("stopped" if stopped else "was not running")),
    )


@command("demo")
@click.option("--store", is_flag=True, help="Run only the sample metadata store, until Ctrl-C.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    default=0,
    help="The sample store's port (default: any free one).",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Where its files are kept (default: a folder of the user's own).",
)
@json_option
def demo(app: App, store: bool, port: int, folder: Path | None) -> None:
    """Run the whole pipeline on a sample store of its own.

    The database stays, to try the commands that it prints at the end.
    """
    from l2inv.sample import demo

    if store:
        demo.run_store(port, app.warn)
        return
    document = demo.run(lambda line: None if app.json else click.echo(line), port, folder)
    app.result(document, lambda: None)


@command("roles")
@click.option(
    "--owner",
    type=Actor(),
    help="The role that owns and migrates the schema (default: SCHEMA_DATABASE_owner).",
)
@click.option(
    "--writer", type=Actor(), help="The role of cron and science (default: SCHEMA_DATABASE_writer)."
)
@click.option(
    "--reader", type=Actor(), help="The role that only reads the views (default: SCHEMA_DATABASE_reader)."
)
@click.option(
    "--apply", "applies", is_flag=True, help="Run the statements, all or nothing, instead of printing them."
)
@json_option  # fmt: skip
def roles(app: App, owner: str | None, writer: str | None, reader: str | None, applies: bool) -> None:
    """Print or create the database roles and their privileges.

    Run it again after a migration.
    """
    from l2inv.database.roles import apply, named, statements

    with app.connected() as (connection, _):
        names = named(connection, owner, writer, reader)
        if len(set(names)) < len(names):
            raise click.UsageError("owner, writer and reader must be three different roles")
        done = apply(connection, names) if applies else statements(connection, names)
    line = (
        f"roles: {names.owner} owns, {names.writer} writes, {names.reader} reads; grant them to login roles"
    )
    app.result(
        {"statements": done, "applied": applies},
        lambda: app.summary(line) if applies else click.echo("\n".join(done)),
    )


_verifies = click.option(
    "--verify/--no-verify", "verifies", default=True, help="Verify the database afterward."
)


@command("backup")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_verifies
@json_option
def backup(app: App, file: Path, verifies: bool) -> None:
    """Back up the schema to a FILE with pg_dump, and verify.

    FILE is in pg_dump's custom format, and only its owner can read it.
    """
    from l2inv.record import backup

    with app.connected() as (connection, settings):
        done: Json = {"file": str(file), "bytes": backup.backup(connection, settings, file)}
        if not app.json:
            app.summary(f"backup: {done['bytes']} bytes in {file}")
        _verified(app, connection, done, verifies)


@command("restore")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_verifies
@json_option
def restore(app: App, file: Path, verifies: bool) -> None:
    """Restore a backup FILE with pg_restore, and verify.

    All or nothing, into a database without a schema of that name. Each OP gets an event that records it.
    """
    from l2inv.database.connection import open_connection, translated
    from l2inv.record import backup

    settings = app.settings
    with translated(settings), open_connection(settings) as connection:
        ops, unrecorded = backup.restore(connection, settings, file, app.actor)
    done: Json = {"file": str(file), "ops": ops}
    if not app.json:
        app.summary(
            f"restore: schema {settings.database.schema} from {file}; for the roles run: l2inv roles --apply"
        )
    if unrecorded:
        app.warn(f"restore: the restore could not be recorded: {unrecorded}")
    with app.connected() as (connection, _):
        _verified(app, connection, done, verifies)
    if unrecorded:
        raise click.exceptions.Exit(1)


def _verified(app: App, connection: "Connection", done: "Json", verifies: bool) -> None:
    from l2inv.record import verify

    if not verifies:
        app.result(done, lambda: None)
        return
    with app.progress("rows") as progress:
        found = verify.verify(connection, None, progress)
    _end_with_findings(app, found, done | {"checked": found.checked, "findings": found.findings})
