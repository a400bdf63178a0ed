"""Reads on a streaming replica of a real server; writes on the server itself."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from l2inv.database import embedded
from l2inv.sample.server import Store
from tests.helpers.commands import NOW, Commands


@pytest.fixture
def servers() -> Iterator[tuple[str, str]]:
    """The URLs of a server and of the hot standby that follows it."""
    folder = Path(tempfile.mkdtemp(prefix="l2inv-standby-"))
    folder.chmod(0o755)
    first, second = folder / "first", folder / "second"
    try:
        url = embedded.start(first)
        (data,) = (path for path in first.iterdir() if path.is_dir())
        programs, _ = embedded._binaries()
        command: list[str | Path] = [
            programs / "pg_basebackup",
            "-d",
            url,
            "-D",
            second / data.name,
            "-R",
            "-c",
            "fast",
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        for path in (second, *second.rglob("*")):
            os.chown(path, data.stat().st_uid, data.stat().st_gid, follow_symlinks=False)
        yield url, embedded.start(second)
    finally:
        embedded.stop(second)
        embedded.stop(first)
        shutil.rmtree(folder)


def caught_up(url: str, standby: str) -> None:
    with psycopg.connect(url) as connection, psycopg.connect(standby, autocommit=True) as copy:
        (here,) = connection.execute("select pg_current_wal_insert_lsn()").fetchone() or ()
        for _ in range(1000):
            (there,) = copy.execute("select pg_last_wal_replay_lsn() >= %s", [here]).fetchone() or ()
            if there:
                return
            time.sleep(0.02)
    raise AssertionError("the standby does not follow")


def answers(l2inv: Commands) -> list[Any]:
    """What next, list, status, export and report say that does not depend on when they are asked."""
    offered = [op["op_id"] for op in l2inv.json("next")["ops"]]
    states = [(op["op_id"], op["state"]) for op in l2inv.json("list")["ops"]]
    lead = re.search('<p class="lead">.*?</p>', l2inv("report", "-").stdout, re.DOTALL)
    assert lead
    return [offered, states, l2inv.json("status")["states"], l2inv("export").stdout, lead[0]]


def test_next_list_status_export_and_report_read_from_the_standby_and_all_else_from_the_server(
    servers: tuple[str, str], store_url: str, store: Store, tmp_path: Path
) -> None:
    url, standby = servers
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create database level2")
    url, standby = (make_conninfo(one, dbname="level2") for one in servers)
    settings = {
        "database": {"url": url, "read_url": standby},
        "metadata_store": {"url": store_url},
        "preprocess": {"work_dir": str(tmp_path / "work")},
    }
    l2inv = Commands(tmp_path / "config.yaml", settings)
    l2inv("migrate")
    for argv in (["scan"], ["qualify", "--as-of", NOW.isoformat()], ["preprocess"], ["next", "--claim"]):
        l2inv(*argv)
    (held,) = l2inv.json("mine")["ops"]
    l2inv("mark-inverted", held["op_id"])
    l2inv("publish")
    caught_up(url, standby)

    before = answers(l2inv)
    with psycopg.connect(standby, autocommit=True) as copy:
        copy.execute("select pg_wal_replay_pause()")
        l2inv("next", "--claim")  # on the server: the standby does not know of it
        assert answers(l2inv) == before
        assert len(l2inv.json("mine")["ops"]) == 1
        copy.execute("select pg_wal_replay_resume()")

    settings["database"] = {"url": standby}
    l2inv.save()
    refused = "read-only transaction; database.url must name a server that takes writes, not a standby"
    assert refused in l2inv("scan", expect=1).stderr
    assert l2inv("status").exit_code == 0


def test_a_standby_that_is_gone_is_an_error_and_not_passed_over(l2inv: Commands, tmp_path: Path) -> None:
    l2inv.settings["database"]["read_url"] = f"host={tmp_path} password=s3cr3t dbname=x"
    l2inv.save()
    l2inv("mine")
    refused = l2inv("list", expect=1).stderr
    assert str(tmp_path) in refused
    assert "s3cr3t" not in refused + l2inv("config", "check", "--json").stdout
