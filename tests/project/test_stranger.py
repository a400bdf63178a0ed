"""A newcomer's day: the documents, executed in the order of reading.

Clone, README, tutorial; then install, roles and a night of cron, an OP that fails, an upgrade, and the way back by a
restore. What runs are the documents' own lines, in a shell, in real environments. Only the places that a reader is to
choose are replaced: folders, OP ids, the store's address.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from l2inv.database import embedded
from l2inv.sample import inventory
from l2inv.sample.server import Fault, Store, serving
from tests.helpers.database import quick_folder
from tests.helpers.documents import TOP, blocks, same, steps
from tests.helpers.listeners import Listener
from tests.helpers.waiting import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (TOP / ".git").exists(), reason="a source distribution cannot be cloned"),
]

# What `crontab` does for the upgrade: keep a table, list it, remove it.
CRONTAB = """#!/bin/sh
case "$1" in
-l) cat "{kept}" ;;
-r) rm "{kept}" ;;
*) cp "$1" "{kept}" ;;
esac
"""
README, OPERATIONS, UPGRADING, TUTORIAL = (
    TOP / name for name in ("README.md", "docs/operations.md", "docs/upgrading.md", "docs/tutorial.md")
)
# What pip needs to reach its index.
PIPS = {
    name: value
    for name, value in os.environ.items()
    if name.startswith(("PIP_", "UV_")) or "proxy" in name.lower()
}


class Stranger:
    """Somebody with a home, a shell, and nothing of l2inv's."""

    def __init__(self, home: Path) -> None:
        self.home, self.cwd, self.code = home, home, 0
        self.env = PIPS | {
            "HOME": str(home),
            "PATH": f"{home}/bin:/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
        }
        self.places: dict[str, str] = {}

    def here(self, line: str) -> str:
        """A document's line with the reader's own places in it."""
        for theirs, ours in self.places.items():
            line = re.sub(theirs, ours, line)
        return line

    def runs(self, line: str, *, expect: int | None = 0) -> str:
        """Run a document's lines in a shell, and keep the environment and folder that they leave."""
        left = self.home / "left"
        script = f"{self.here(line)}\ncode=$?\n{{ pwd; export -p; }} > {left}\nexit $code"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.cwd,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        said, self.code = done.stdout + done.stderr, done.returncode
        assert expect is None or done.returncode == expect, f"{line}\nexit code {done.returncode}\n{said}"
        folder, _, exported = left.read_text().partition("\n")
        self.cwd = Path(folder)
        self.env |= dict(re.findall(r'^declare -x (\w+)="(.*)"$', exported, re.MULTILINE))
        return said

    def runs_block(self, block: str) -> str:
        """Run each line of a block; a line that ends in a backslash goes on."""
        lines = [
            line for line in block.replace("\\\n", " ").splitlines() if line and not line.startswith("#")
        ]
        return "".join(self.runs(line) for line in lines)


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    home = quick_folder()
    home.chmod(0o755)
    (home / "bin").mkdir()
    yield Stranger(home)
    for server in home.rglob("postmaster.pid"):
        embedded.stop(server.parent.parent)
    shutil.rmtree(home)


def test_one_strangers_day(stranger: Stranger, listener: Listener) -> None:
    clones(stranger)
    reads_the_readme(stranger)
    follows_the_tutorial(stranger)
    store = Store(inventory.make(now=datetime.now(UTC)))
    with serving(store) as url:
        installs(stranger, url, listener)
        has_a_night_of_cron(stranger, store)
        upgrades(stranger)
        goes_back(stranger)


def clones(stranger: Stranger) -> None:
    """The first line of DEVELOPMENT.md."""
    first = blocks(TOP / "DEVELOPMENT.md", "sh")[0].splitlines()[0]
    stranger.places[r"\bURL\b"] = str(TOP)
    stranger.runs(first)
    del stranger.places[r"\bURL\b"]
    stranger.home = stranger.home.resolve()
    assert (stranger.cwd / "README.md").exists()


def reads_the_readme(stranger: Stranger) -> None:
    demo, _ = blocks(README, "sh", "## Two commands")
    said = stranger.runs_block(demo)
    config = re.findall(r"L2INV_CONFIG=(\S+)", said)[-1]
    stranger.places["L2INV_CONFIG=…"] = f"L2INV_CONFIG={config}"
    morning = blocks(README, "sh", "## The first five minutes")
    stranger.places[r"\bOP\b"] = "NO-OP-YET"
    for number, line in enumerate(line for block in morning[:2] for line in block.splitlines() if line):
        if re.search(r"\bOP\b", line) and stranger.places[r"\bOP\b"] == "NO-OP-YET":
            stranger.places[r"\bOP\b"] = re.findall(r"eid_\S+", stranger.runs("l2inv next"))[0]
        assert stranger.runs(line) or number < 3, line
    told = stranger.runs("l2inv history OP")
    assert " with DeSIRe 4.1 by han" in told
    stranger.runs("l2inv publish --dry-run")
    stranger.runs("l2inv server stop")
    del stranger.places[r"\bOP\b"]


def follows_the_tutorial(stranger: Stranger) -> None:
    (store,) = (block for block in blocks(TUTORIAL, "sh") if "--store" in block)
    port = str(free_port())
    stranger.runs("mkdir ~/tutorial && cd ~/tutorial")
    (settings,) = blocks(TUTORIAL, "yaml")
    (stranger.cwd / "tutorial.yaml").write_text(settings.replace("8777", port))
    log = stranger.home / "store.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            ["bash", "-c", f"exec {store.strip().replace('8777', port)}"], cwd=stranger.cwd, env=stranger.env,
            stdout=output, stderr=output,
        ) as running,
    ):  # fmt: skip
        try:
            until(lambda: port in log.read_text() or running.poll() is not None)
            for line, shown in steps(TUTORIAL):
                if line == "echo $?":
                    assert shown.strip() == str(stranger.code)
                    stranger.code = 0
                    continue
                assert stranger.code == 0, f"before {line}"
                said = stranger.runs(line, expect=None)
                assert same(said, shown), f"$ {line}\n{said}\nshown:\n{shown}"
        finally:
            running.terminate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def installs(stranger: Stranger, store_url: str, listener: Listener) -> None:
    """Install on a host, a database with its three roles, and the settings for both."""
    home = stranger.home
    stranger.places |= {
        rf"(?<![\w.])/{name}": f"{home}/{name}"
        for name in ("opt/l2inv", "srv/l2inv", "etc/l2inv", "backup", "elsewhere")
    }
    for folder in (
        "backup",
        "elsewhere",
        "etc/l2inv",
        "srv/l2inv/inbox",
        "srv/l2inv/www",
        "srv/l2inv/anchor",
        "srv/l2inv/backup",
    ):
        (home / folder).mkdir(parents=True, exist_ok=True)
    stranger.runs("cd ~/l2inv")
    stranger.runs_block(blocks(OPERATIONS, "sh", "### On a host")[0])

    # The operators' PostgreSQL, with its own programs on their PATH.
    server = conninfo_to_dict(embedded.start(home / "postgresql"))
    (programs,) = {path.parent for path in Path(sys.prefix).rglob("pginstall/bin/pg_dump")}
    stranger.env["PATH"] = f"{home}/opt/l2inv/bin:{home}/bin:{programs}:/usr/local/bin:/usr/bin:/bin"
    (home / "bin/crontab").write_text(CRONTAB.format(kept=home / "spool"))
    (home / "bin/crontab").chmod(0o755)
    database: dict[str, Any] = {"url": f"postgresql:///level2?host={server['host']}"}
    if "port" in server:
        database["url"] += f"&port={server['port']}"
    config = {
        "database": database,
        "metadata_store": {"url": store_url, "retries": 0},
        "preprocess": {"work_dir": str(home / "srv/l2inv/work")},
        "notifications": {
            "people": [
                {"name": name, "addresses": [f"json://{listener.where}/{name}"]}
                for name in ("operator", "science")
            ]
        },
    }
    (home / "etc/l2inv/config.yaml").write_text(yaml.safe_dump(config))
    stranger.env |= {"L2INV_CONFIG": str(home / "etc/l2inv/config.yaml"), "L2INV_ACTOR": "tony"}

    first, then = blocks(OPERATIONS, "sql", "### The roles")[:2]
    asks(server | {"dbname": "postgres"}, first)
    migrate = blocks(OPERATIONS, "sh", "### The roles")[0]
    stranger.runs_block(migrate)
    roles = (stranger.cwd / "roles.sql").read_text()
    asks(server | {"dbname": "level2"}, then.replace("\\i roles.sql", roles))
    stranger.env["PGUSER"] = "l2inv"
    assert stranger.runs("l2inv config check").count("reachable")


def asks(server: dict[str, Any], sql: str) -> None:
    """Run statements as a superuser, each for itself as psql would; its own commands begin with a backslash."""
    with psycopg.connect(**server, autocommit=True) as connection:
        lines = "\n".join(line for line in sql.splitlines() if not line.startswith("\\"))
        for statement in (
            re.split(r";(?=[^\n']*$)", lines, flags=re.MULTILINE) if "$$" not in lines else [lines]
        ):
            if re.sub(r"--.*", "", statement).strip():
                connection.execute(statement)


def crontab() -> tuple[dict[str, str], list[str]]:
    """The example crontab's variables and its commands."""
    text = (TOP / "crontab.example").read_text()
    return (
        dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", text, re.MULTILINE)),
        re.findall(r"^[\d*]\S*(?: +\S+){4} +(.*)$", text, re.MULTILINE),
    )


def has_a_night_of_cron(stranger: Stranger, store: Store) -> None:
    """Run each line of the crontab once before science works, and once after; an OP fails, and is retried as its mail says."""
    variables, commands = crontab()
    by_day = {name: stranger.env[name] for name in ("PATH", "L2INV_ACTOR")}
    stranger.env["L2INV_ACTOR"] = variables["L2INV_ACTOR"]
    stranger.runs("l2inv verify --anchor /srv/l2inv/anchor/heads --new-anchor")
    mails = {command: stranger.runs(command, expect=None) for command in commands}
    mails = {command: mail for command, mail in mails.items() if mail}
    assert [*mails] == [command for command in commands if "scan" in command], mails
    assert all("l2inv quarantine" in mail for mail in mails.values())

    stranger.env |= by_day | {"L2INV_ACTOR": "han"}
    ops = re.findall(r"^eid_\S+", stranger.runs("l2inv next"), re.MULTILINE)[:2]
    for op in ops:
        stranger.runs(f"l2inv claim {op}")
        stranger.runs(
            f"l2inv mark-inverted {op} --software DeSIRe --software-version 4.1 --output globus://science/{op}"
        )

    refusal = Fault(body=b'{"errors": [{"message": "no"}], "data": null}')
    store.fault = lambda operation, nth: refusal if operation == "Create" and nth == 1 else None
    stranger.env["L2INV_ACTOR"] = variables["L2INV_ACTOR"]
    (publish,) = (command for command in commands if "publish" in command)
    mail = stranger.runs(publish, expect=4)
    stranger.env["L2INV_ACTOR"] = "tony"
    listed, history, retry = re.findall(r"l2inv [a-z]+[^,;\n]*", mail.partition("see: ")[2])
    (failed,) = re.findall(r"^eid_\S+", stranger.runs(listed), re.MULTILINE)
    assert failed in ops
    assert "no" in stranger.runs(history.replace("OP", failed))
    stranger.runs(retry.replace("[OP]", failed).replace("OP", failed))
    stranger.runs(publish)
    assert len(stranger.runs("l2inv export").splitlines()) == 2


def upgrades(stranger: Stranger) -> None:
    """The order of docs/upgrading.md, to a next version that has a migration more."""
    home = stranger.home
    new = home / "new"
    stranger.runs(f"git clone -q {TOP} {new}")
    (new / "migrations" / "9000.next.sql").write_text(
        "create index run_by_start on l2inv.run (started_at);\n"
    )
    made = subprocess.run(
        [sys.executable, "-m", "tests.schema"],
        cwd=new,
        env=stranger.env | {"PYTHONPATH": str(new)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    shutil.copy(home / "srv/l2inv/anchor/heads", home / "elsewhere/heads")
    stranger.runs(f"crontab {TOP}/crontab.example")
    stranger.cwd = new
    block = blocks(UPGRADING, "sh", "## The order")[0]
    said = stranger.runs_block(block)
    assert "create index run_by_start" in said
    assert "0 findings" in said
    assert "nothing to do" in stranger.runs("PGUSER=l2inv_migrate l2inv migrate")


def goes_back(stranger: Stranger) -> None:
    """The way back: a restore of the backup that the upgrade began with."""
    before, after = blocks(UPGRADING, "sh", "## Going back")
    stranger.runs("l2inv note $(l2inv list --format ids | head -1) 'noted after the upgrade'")
    stranger.runs_block(before)
    rename, lost = blocks(UPGRADING, "sql", "## Going back")
    with psycopg.connect(**level2(stranger), autocommit=True) as connection:
        connection.execute(rename)
    stranger.cwd = stranger.home / "l2inv"
    stranger.runs_block(after)
    with psycopg.connect(**level2(stranger), autocommit=True) as connection:
        rows = connection.execute(lost).fetchall()
    assert [row[1] for row in rows] == ["noted"]
    assert len(stranger.runs("l2inv export").splitlines()) == 2
    assert "0 findings" in stranger.runs("l2inv verify")


def level2(stranger: Stranger) -> dict[str, Any]:
    """Where the superuser reaches the stranger's database."""
    return conninfo_to_dict(embedded.start(stranger.home / "postgresql")) | {"dbname": "level2"}
