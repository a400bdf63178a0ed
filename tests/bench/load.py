"""Fills a schema with many OPs: copies of a few that went through every stage.

Events and dataset versions go in by COPY through the schema's own triggers, so that states, hashes and sequence
numbers are those that l2inv would have made, and `l2inv verify` finds nothing.
"""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from click.testing import CliRunner

from l2inv.cli import main
from l2inv.config.settings import Database, Settings
from l2inv.database import migrate
from l2inv.database.connection import Connection, open_connection
from l2inv.domain import criteria
from l2inv.domain.inventory import kept, stored
from l2inv.sample import inventory
from l2inv.sample.server import Store, serving
from l2inv.stages.qualify import keep_criteria

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
CHUNK = 20_000  # OPs in one COPY
EVENTS = "copy l2inv.event (op_id, seq, kind, state, actor, detail) from stdin"
DATASETS = "copy l2inv.dataset_version (dataset_id, version, op_id, content_hash, record, run_id) from stdin"


class Life(NamedTuple):
    """An OP to be copied: its datasets as (id, text) and its events as (kind, state, actor, text of the detail)."""

    op_id: str
    datasets: list[tuple[str, str]]
    events: list[tuple[str, str | None, str, str]]


def config(folder: Path, url: str, schema: str, store_url: str | None = None, **store: Any) -> Path:
    """Write the settings of a schema and return their file."""
    path = folder / f"{schema}.yaml"
    settings = {
        "database": {"url": url, "schema": schema},
        "metadata_store": {"url": store_url, **store},
        "preprocess": {"work_dir": str(folder / "ops")},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def lives(url: str, folder: Path) -> list[Life]:
    """Has some 40 OPs go their ways, from not invertible to published, each with the datasets of one instrument."""
    visp = [dataset for dataset in inventory.make(now=NOW) if dataset["instrumentName"] == "VISP"]
    settings = Settings(database=Database(url=url, schema="template"))
    with serving(Store(visp)) as store_url, open_connection(settings) as connection:
        path = config(folder, url, "template", store_url)

        def l2inv(*argv: str) -> None:
            done = CliRunner().invoke(main, ["--config", str(path), "--actor", "han", *argv])
            if done.exit_code != 0:
                raise RuntimeError(f"{argv}: {done.output}")

        l2inv("migrate")
        for argv in (
            ["scan"],
            ["qualify", "--as-of", NOW.isoformat()],
            ["preprocess"],
            ["next", "--claim"],
            ["next", "--claim"],
        ):
            l2inv(*argv)
        held = connection.execute(
            "select op_id from l2inv.op_state where state = 'working' order by op_id"
        ).fetchall()
        l2inv(
            "mark-inverted",
            held[0]["op_id"],
            "--software=DeSIRe",
            "--software-version=4.1",
            "--output=globus://science/l2",
        )
        l2inv("publish")
        for op_id in [row["op_id"] for row in connection.execute("select op_id from l2inv.op_state")]:
            l2inv("hold", op_id, "--reason", "waits for the sky camera's film")
            l2inv("unhold", op_id, "--reason", "the film came")
            l2inv("note", op_id, "looked at by eye, see the movie of the slit jaw camera")
        found = list(_lives(connection))
        connection.execute("drop schema template cascade")
    return found


def _lives(connection: Connection) -> Iterator[Life]:
    for row in connection.execute("select op_id from l2inv.op_state order by op_id").fetchall():
        datasets = connection.execute(
            "select dataset_id, record::text as record from l2inv.dataset_version where op_id = %s",
            [row["op_id"]],
        )
        events = connection.execute(
            "select kind, state, actor, detail::text as detail from l2inv.event where op_id = %s order by seq",
            [row["op_id"]],
        )
        yield Life(
            row["op_id"],
            [(d["dataset_id"], kept(stored(d["record"])).decode()) for d in datasets],
            [(e["kind"], e["state"], e["actor"], e["detail"]) for e in events],
        )


def copies(of: list[Life], start: int, end: int) -> Iterator[Life]:
    """The lives again and again, each under ids of its own."""
    for number in range(start, end):
        life = of[number % len(of)]
        names = [(f'"{life.op_id}"', f'"{life.op_id}.{number}"')]
        datasets = []
        for dataset_id, text in life.datasets:
            own = f"{dataset_id}{number}"
            renamed = text.replace(f'"{dataset_id}"', f'"{own}"').replace(*names[0])
            names += [(f'"{dataset_id}"', f'"{own}"'), (_pin(text), _pin(renamed))]
            datasets.append((own, renamed))
        events = []
        for kind, state, actor, told in life.events:
            detail = told
            for old, new in names:
                detail = detail.replace(old, new)
            events.append((kind, state, actor, detail))
        yield Life(f"{life.op_id}.{number}", datasets, events)


def _pin(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fill(connection: Connection, of: list[Life], ops: int) -> None:
    """Make and fills the connection's schema; then PostgreSQL knows of it what autovacuum would tell it in time."""
    schema = connection.cursor_factory.schema  # type: ignore[attr-defined]
    migrate.apply(connection, schema)
    rules = Settings()
    keep_criteria(connection, criteria.version(rules.qualification), rules)
    for start in range(0, ops, CHUNK):
        chunk = list(copies(of, start, min(start + CHUNK, ops)))
        with connection.cursor() as cursor:
            with cursor.copy(DATASETS) as copy:
                for life in chunk:
                    for dataset_id, text in life.datasets:
                        digest = hashlib.sha256(text.encode()).digest()
                        copy.write_row([dataset_id, 1, life.op_id, digest, text, 1])
            with cursor.copy(EVENTS) as copy:
                for life in chunk:
                    for seq, event in enumerate(life.events, 1):
                        copy.write_row([life.op_id, seq, *event])
    for table in ("event", "dataset_version", "op_state"):
        connection.execute(f"vacuum analyze l2inv.{table}")
