"""An upgrade as in docs/upgrading.md: from a 0.1.0 database with data to a made-up next version, and back.

The commands are those of the document, in its order.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import sql

from l2inv.database import migrate, schema
from l2inv.database.connection import Connection
from l2inv.record import structure
from tests import schema as made
from tests.helpers.commands import Commands

DOCUMENT = Path(__file__).parents[2] / "docs" / "upgrading.md"
NEXT = "9000.made_up"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


class Versions:
    """The l2inv of today, and one that has a migration more."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.old, self.new, self.patch = schema.migrations_folder(), folder / "migrations", patch
        shutil.copytree(self.old, self.new)
        (self.new / f"{NEXT}.sql").write_text(next_migration(self.old))
        self.fingerprints = {self.old: structure.SHIPPED, self.new: folder / "structure.json"}
        shutil.copy(structure.SHIPPED, folder)  # whose list of functions is read before it is made anew

    def install(self, folder: Path) -> None:
        for module in (schema, migrate, structure, made):
            self.patch.setattr(module, "migrations_folder", lambda: folder)
        self.patch.setattr(structure, "SHIPPED", self.fingerprints[folder])


def next_migration(migrations: Path) -> str:
    """Return what a next version may well bring: a column, an index, a column of a view, a kind of event."""
    rules = (migrations / "0001.rules.sql").read_text()
    functions = {
        name: "create or replace "
        + re.findall(rf"^create (function l2inv\.{name}\(.*?\$\$;)$", rules, re.M | re.S)[0]
        for name in ("is_allowed", "shape")
    }
    allowed = functions["is_allowed"].replace(
        "    end, false)",
        "        when 'data_fetched' then from_state = 'working' and to_state is null\n    end, false)",
    )
    shape = functions["shape"].replace(
        "when 'retried' then '{}'",
        """when 'retried' then '{}'\n        when 'data_fetched' then '{"datasets": "name[]"}'""",
    )
    return f"""
        alter table l2inv.run add column host text check (host <> '');
        create index run_host on l2inv.run (host) where host is not null;
        create or replace view l2inv.runs as
    select run_id, stage, actor, started_at, finished_at, result, host from l2inv.run;
        {allowed}
        {shape}
    """.replace("        create or replace view", "create or replace view")


@pytest.fixture
def roles(connection: Connection) -> Iterator[None]:
    """Remove the roles that `roles --apply` makes, which are those of the whole server."""
    yield
    for name in ("owner", "writer", "reader"):
        role = sql.Identifier(f"l2inv_{connection.info.dbname}_{name}")
        connection.execute(sql.SQL("reassign owned by {} to current_user").format(role))
        connection.execute(sql.SQL("drop owned by {0}; drop role {0}").format(role))


@pytest.fixture
def versions(
    connection: Connection, l2inv: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Versions:
    """The two versions; what the next one's `verify schema` compares with is made as its release would make it."""
    versions = Versions(tmp_path, monkeypatch)
    versions.install(versions.new)
    connection.execute("alter schema l2inv rename to kept")
    l2inv("migrate")
    versions.fingerprints[versions.new].write_text(made.expected(connection))
    connection.execute("drop schema l2inv cascade; alter schema kept rename to l2inv")
    versions.install(versions.old)
    return versions


def run(l2inv: Commands, block: str, folder: Path, install: object) -> dict[str, str]:
    """Run a block of the document; return what each of l2inv's commands printed."""
    printed = {}
    for line in block.splitlines():
        words = [re.sub("^/(backup|elsewhere)/", f"{folder}/", word) for word in line.split()]
        if words[0].startswith("PGUSER="):
            words = words[1:]
        if "pip" in words:
            assert callable(install)
            install()
        elif words[0] == "l2inv":
            printed[" ".join(words[1:3])] = l2inv(*words[1:]).stdout
        else:
            assert words[0] in ("#", "crontab"), line
    return printed


def test_an_upgrade_and_the_way_back_work_as_documented(
    l2inv: Commands, ready: list[str], connection: Connection, versions: Versions, roles: None, tmp_path: Path
) -> None:
    l2inv("claim", ready[0])
    l2inv("mark-inverted", ready[0])
    l2inv("publish")
    l2inv("verify", "--anchor", str(tmp_path / "heads"), "--new-anchor")
    l2inv("roles", "--apply")
    l2inv("claim", ready[1])
    before = l2inv.json("log")["events"]
    up, after, back = blocks("sh")
    rename, lost = blocks("sql")

    def upgrade() -> None:
        versions.install(versions.new)
        for command in ("status", "scan", "claim"):
            argv = (command, ready[2]) if command == "claim" else (command,)
            assert f"it lacks {NEXT}; run: l2inv migrate" in l2inv(*argv, expect=1).stderr

    printed = run(l2inv, up, tmp_path, upgrade)
    assert printed["migrate --dry-run"] == (versions.new / f"{NEXT}.sql").read_text() + "\n"
    assert printed["migrate"] == f"migrate: applied {NEXT}\n"
    name, fingerprint = re.findall(
        r"schema is at migration (\S+), fingerprint (\w+)", printed["verify schema"]
    )[0]
    assert name == NEXT
    assert f'"schema":"{fingerprint}"' in (tmp_path / "heads").read_text()

    # What was there is there, and the new version works on it.
    assert l2inv.json("log")["events"][: len(before)] == before
    l2inv("hand-over", ready[1], "--to", "ann", "--force")
    l2inv("scan")
    connection.execute(
        """
        insert into l2inv.event (op_id, seq, kind, actor, detail)
        select op_id, seq + 1, 'data_fetched', 'ann', '{"datasets": ["A"]}' from l2inv.op_state where op_id = %s
        """,
        [ready[1]],
    )
    assert l2inv.json("history", ready[1])["events"][-1]["kind"] == "data_fetched"
    assert connection.execute("select host from l2inv.runs limit 1").fetchone() == {"host": None}
    assert l2inv.json("verify")["findings"] == []

    # And back.
    run(l2inv, after, tmp_path, None)
    versions.install(versions.old)
    for command in ("status", "migrate"):
        assert f"is ahead of this l2inv: it has {NEXT}" in l2inv(command, expect=1).stderr
    connection.execute(rename)
    printed = run(l2inv, back, tmp_path, lambda: versions.install(versions.old))
    assert "0 findings" in printed["verify --anchor"]
    events = l2inv.json("log")["events"]
    assert [e for e in events if e["kind"] != "restored"] == before
    assert {(row["op_id"], row["kind"]) for row in connection.execute(lost)} == {
        (ready[1], "handed_over"), (ready[1], "data_fetched")
    }  # fmt: skip
    l2inv("release", ready[1])
    answer = l2inv("verify", "--anchor", str(tmp_path / "heads"), expect=5)
    assert "the schema has fewer migrations than were anchored" in answer.stderr
