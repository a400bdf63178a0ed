"""backup and restore: pg_dump and pg_restore of this schema alone, all or nothing, then verified."""

import os
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from l2inv.database import embedded
from l2inv.database.connection import Connection
from l2inv.files import replacing
from l2inv.record import backup
from l2inv.sample.server import Fault, Store
from l2inv.stages.mark_working import claiming
from tests.helpers.commands import Commands
from tests.helpers.disks import fill, small_disk
from tests.helpers.waiting import WAITS_FOR_A_LOCK, until

TABLES = ("criteria", "run", "quarantine", "dataset_version", "event", "op_state")


@pytest.fixture
def lived(l2inv: Commands, ready: list[str]) -> str:
    l2inv("claim", ready[0])
    l2inv("mark-inverted", ready[0], "--note", "a\nb \x1b[31m \u202e 'x' \\ \"")
    l2inv("publish")
    l2inv("hold", ready[1], "--reason", "later")
    return ready[0]


@pytest.fixture
def elsewhere(url: str) -> Iterator[str]:
    """The URL of another database of the same server, with nothing in it."""
    name = f"{conninfo_to_dict(url)['dbname']}_copy"
    with psycopg.connect(make_conninfo(url, dbname="postgres"), autocommit=True) as server:
        server.execute(f'create database "{name}"')
        yield make_conninfo(url, dbname=name)
        server.execute(f'drop database "{name}" with (force)')


def move(l2inv: Commands, url: str) -> None:
    l2inv.settings["database"]["url"] = url
    l2inv.save()


def test_a_backup_is_restored_row_for_row_with_everything_that_protects_it(
    l2inv: Commands, lived: str, connection: Connection, elsewhere: str, tmp_path: Path
) -> None:
    file = tmp_path / "l2inv backup.dump"
    connection.execute("create table public.strangers (nothing int)")
    assert l2inv.json("backup", str(file))["findings"] == []
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    history = l2inv.json("history", lived)["events"]
    move(l2inv, elsewhere)
    done = l2inv.json("restore", str(file))
    assert done["findings"] == []
    assert done["checked"]["events"] > 0
    *events, newest = l2inv.json("history", lived)["events"]
    assert events == history
    assert (newest["kind"], newest["detail"]) == ("restored", {"file": "l2inv backup.dump"})
    assert "from l2inv backup.dump" in l2inv("history", lived).stdout
    with psycopg.connect(elsewhere, autocommit=True) as restored:
        for table in TABLES:
            which = {"event": "where kind <> 'restored'", "op_state": "where false"}.get(table, "")
            select = f"select to_jsonb(t) from l2inv.{table} t {which} order by t::text"
            before = [next(iter(row.values())) for row in connection.execute(select).fetchall()]
            assert before == [row[0] for row in restored.execute(select).fetchall()], table
        assert restored.execute("select to_regclass('public.strangers')").fetchone() == (None,)
        with pytest.raises(psycopg.Error, match="append-only"):
            restored.execute("set session_replication_role = replica; delete from l2inv.event")
        public = "select proname from pg_proc where pronamespace = 'l2inv'::regnamespace and has_function_privilege('public', oid, 'execute')"
        assert restored.execute(public).fetchall() == []
    assert l2inv.json("note", lived, "life goes on")["op_id"] == lived
    assert l2inv.json("scan")["datasets"]["unchanged"] > 0


def test_reading_by_cursor_after_a_restore_returns_everything_again_with_new_ids(
    l2inv: Commands, lived: str, url: str, elsewhere: str, tmp_path: Path
) -> None:
    l2inv("backup", str(tmp_path / "b"), "--no-verify")
    l2inv("note", lived, "is lost")
    seen = l2inv.json("history", lived)["events"][-1]["event_id"]
    rows = l2inv.json("export")["inversions"]
    assert rows
    cursor = seen
    for _ in range(2):  # the second time from the same backup
        with psycopg.connect(url, autocommit=True) as server:
            server.execute("drop schema l2inv cascade")
        l2inv("restore", str(tmp_path / "b"))
        again = l2inv.json("export", "--after", str(cursor))
        assert [row | {"event_id": 0} for row in again["inversions"]] == [
            row | {"event_id": 0} for row in rows
        ]
        assert again["after"] > cursor
        l2inv("note", lived, "is lost, too")
        cursor = l2inv.json("history", lived)["events"][-1]["event_id"]


def test_nothing_is_restored_over_a_schema_that_is_there(l2inv: Commands, lived: str, tmp_path: Path) -> None:
    l2inv("backup", str(tmp_path / "b"), "--no-verify")
    before = l2inv.json("list")
    assert "has a schema l2inv already" in l2inv("restore", str(tmp_path / "b"), expect=3).stderr
    assert l2inv.json("list") == before


@pytest.mark.parametrize("damage", ["cut", "no dump", "empty", "missing"])
def test_a_damaged_backup_restores_nothing(
    l2inv: Commands, lived: str, tmp_path: Path, elsewhere: str, damage: str
) -> None:
    file = tmp_path / "b"
    l2inv("backup", str(file), "--no-verify")
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "no dump": b"select 1;"}.get(damage, b""))
    if damage == "missing":
        file.unlink()
    move(l2inv, elsewhere)
    answer = l2inv("restore", str(file), expect=1)
    assert answer.stderr.count("\n") == 1
    assert "Traceback" not in answer.stderr
    with psycopg.connect(elsewhere) as restored:
        assert restored.execute("select to_regnamespace('l2inv')").fetchone() == (None,)


def test_a_backup_of_another_schema_is_refused_by_name(
    l2inv: Commands, lived: str, tmp_path: Path, elsewhere: str
) -> None:
    l2inv("backup", str(tmp_path / "b"), "--no-verify")
    move(l2inv, elsewhere)
    l2inv.settings["database"]["schema"] = "other"
    l2inv.save()
    answer = l2inv("restore", str(tmp_path / "b"), expect=1)
    assert "contains the schema l2inv, not other; set database.schema to l2inv" in answer.stderr


def test_tampering_before_the_backup_is_found_after_the_restoration(
    l2inv: Commands, lived: str, tmp_path: Path, connection: Connection, elsewhere: str
) -> None:
    connection.execute("alter table l2inv.event disable trigger all")
    connection.execute("update l2inv.event set actor = 'eve' where op_id = %s and seq = 2", [lived])
    connection.execute("alter table l2inv.event enable always trigger append_only")
    assert l2inv("backup", str(tmp_path / "b"), expect=5).stderr.count(lived) >= 1
    move(l2inv, elsewhere)
    assert l2inv.json("restore", str(tmp_path / "b"), expect=5)["findings"][0]["op_id"] == lived


def test_a_backup_is_one_snapshot_whatever_is_recorded_meanwhile(
    l2inv: Commands, lived: str, connection: Connection, elsewhere: str, tmp_path: Path
) -> None:
    before = l2inv.json("status")["events"]
    with ThreadPoolExecutor(1) as pool, connection.transaction():
        connection.execute("lock table l2inv.event in access exclusive mode")
        written = pool.submit(l2inv.json, "backup", str(tmp_path / "b"), "--no-verify")
        until(lambda: bool(connection.execute(WAITS_FOR_A_LOCK).fetchall()))
        claiming.note(connection, lived, "meanwhile", "han")
    written.result()
    assert l2inv.json("status")["events"] == before + 1
    move(l2inv, elsewhere)
    l2inv("restore", str(tmp_path / "b"))
    status = l2inv.json("status")
    assert status["events"] - status["ops"] in (
        before,
        before + 1,
    )  # each OP has one more, of the restoration


def test_without_a_program_of_the_servers_version_it_says_what_to_install(
    l2inv: Commands, lived: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "candidates", lambda: iter([]))
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = l2inv("backup", str(tmp_path / "b"), expect=1)
    assert "pg_dump of PostgreSQL" in answer.stderr and "is not installed" in answer.stderr
    assert "install postgresql-client-" in answer.stderr
    assert not (tmp_path / "b").exists()


def test_the_lowest_version_that_is_no_older_than_the_server_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in (14, 16, 18):
        program = tmp_path / str(version) / "pg_dump"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\necho 'pg_dump (PostgreSQL) {version}.3'\n")
        program.chmod(0o755)
    monkeypatch.setattr(embedded, "candidates", lambda: iter(sorted(tmp_path.iterdir())))
    monkeypatch.setenv("PATH", "/nowhere")
    assert backup._program("pg_dump", 15) == str(tmp_path / "16" / "pg_dump")
    assert backup._program("pg_dump", 18) == str(tmp_path / "18" / "pg_dump")


def test_the_password_is_on_no_command_line(
    l2inv: Commands, lived: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "pg_dump"
    program.write_text(
        "#!/bin/sh\n[ \"$1\" != --version ] || { echo 'pg_dump (PostgreSQL) 99.1'; exit; }\n"
        f'echo "$@" >{tmp_path}/argv; echo "$PGPASSWORD" >{tmp_path}/password; exit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(embedded, "candidates", lambda: iter([tmp_path]))
    move(l2inv, make_conninfo(url, password="s3cret"))
    assert "pg_dump: " in l2inv("backup", str(tmp_path / "b"), expect=1).stderr
    assert (tmp_path / "password").read_text() == "s3cret\n"
    assert "s3cret" not in (tmp_path / "argv").read_text()


def test_a_backup_that_cannot_be_written_leaves_the_one_before(
    l2inv: Commands, lived: str, tmp_path: Path, connection: Connection
) -> None:
    file = tmp_path / "b"
    l2inv("backup", str(file), "--no-verify")
    before = file.read_bytes()
    monkey = tmp_path / "gone" / "b"
    assert "No such file" in l2inv("backup", str(monkey), expect=1).stderr
    connection.execute("create role lesser login")
    try:
        move(l2inv, make_conninfo(l2inv.settings["database"]["url"], user="lesser"))
        l2inv("backup", str(file), expect=1)
    finally:
        connection.execute("drop role lesser")
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.glob(".b*")] == []


def test_a_full_disk_and_a_missing_privilege_are_each_reported_with_what_helps(
    l2inv: Commands, lived: str, url: str, connection: Connection, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "full", 1) as disk:
        filler = fill(disk)
        answer = l2inv("backup", str(disk / "b"), "--no-verify", expect=1)
        assert list(disk.iterdir()) == [filler]
    assert answer.stderr.startswith("l2inv: pg_dump: could not write to output file: No space left")
    assert answer.stderr.endswith("; free space where the backup is written\n")
    dump = str(tmp_path / "b")
    l2inv("backup", dump, "--no-verify")
    connection.execute("drop schema l2inv cascade; create role lesser login")
    l2inv.settings["database"]["url"] = make_conninfo(url, user="lesser")
    l2inv.save()
    try:
        answer = l2inv("restore", dump, expect=1)
    finally:
        connection.execute("drop role lesser")
    assert answer.stderr.startswith("l2inv: pg_restore: could not execute query: ERROR:  permission denied")
    assert "; run as a role with the privileges" in answer.stderr


def test_a_backup_takes_the_place_of_no_pipe_nor_device(l2inv: Commands, lived: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        answer = l2inv("backup", str(tmp_path / name), expect=1)
        assert answer.stderr == f"l2inv: {pipe}: is not a regular file; name a file, new or to be replaced\n"
    assert pipe.is_fifo()


@pytest.mark.parametrize("argv", [("backup",), ("verify", "--anchor")], ids=" ".join)
def test_if_a_backup_or_an_anchor_is_a_link_its_target_is_written(
    l2inv: Commands, lived: str, tmp_path: Path, argv: tuple[str, ...]
) -> None:
    (tmp_path / "newest").symlink_to("elsewhere")
    for more in ((), ()) if argv == ("backup",) else (("--new-anchor",), ()):
        l2inv(*argv, str(tmp_path / "newest"), *more)
        assert (tmp_path / "newest").is_symlink()
        assert (tmp_path / "elsewhere").stat().st_size > 100


def test_a_file_is_complete_or_unchanged_and_has_the_given_mode(tmp_path: Path) -> None:
    path = tmp_path / "b"
    before = os.umask(0)
    try:
        with replacing(path) as file:
            file.write(b"whole")
            with replacing(path) as other:
                other.write(b"another at the same time")
            assert path.read_bytes() == b"another at the same time"
        assert path.read_bytes() == b"whole"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(ZeroDivisionError), replacing(path) as file:
            raise ZeroDivisionError
        assert path.read_bytes() == b"whole"
        left = tmp_path / f".b.{'0' * 16}.new"
        left.write_bytes(b"of whoever was killed")
        with replacing(path, 0o644) as file:
            file.write(b"next")
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    finally:
        os.umask(before)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's link")
def test_another_users_link_is_not_followed(l2inv: Commands, lived: str, tmp_path: Path) -> None:
    (tmp_path / "b").symlink_to("victim")
    os.lchown(tmp_path / "b", 65534, 65534)
    answer = l2inv("backup", str(tmp_path / "b"), "--no-verify", expect=1)
    assert "is a link that another user made" in answer.stderr
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("operation", ["Known", "Find", "Create"])
@pytest.mark.parametrize("program", ["l2inv", "pg_restore"])
def test_a_restore_while_publish_waits_for_the_store_is_refused_and_nothing_is_announced_twice(
    l2inv: Commands,
    ready: list[str],
    url: str,
    store: Store,
    connection: Connection,
    tmp_path: Path,
    program: str,
    operation: str,
) -> None:
    """PostgreSQL's own program refuses nothing; then publish reports it."""
    l2inv("claim", ready[0])
    l2inv("mark-inverted", ready[0])
    dump = str(tmp_path / "dump")
    l2inv("backup", dump)

    def fault(asked: str, nth: int) -> Fault | None:
        if asked == operation and not met:
            connection.execute("alter schema l2inv rename to lost")
            if program == "l2inv":
                answer = l2inv("restore", dump, expect=3)
                met.append(answer.stderr)
            else:
                restore = [
                    str(embedded._binaries()[0] / "pg_restore"),
                    "--single-transaction",
                    "-d",
                    url,
                    dump,
                ]
                met.append(subprocess.run(restore, check=True, capture_output=True, text=True).stderr)
        return None

    met: list[str] = []
    store.fault = fault
    stopped = l2inv("publish", expect=1).stderr
    if program == "l2inv":
        assert "l2inv publish (" in met[0]
        assert "is at work in this database" in met[0]
        l2inv("restore", dump)
    else:
        assert "publish: the schema was replaced while it ran" in stopped
    l2inv("publish")
    assert len(store.inversions) == 1
    assert l2inv.json("show", ready[0])["state"] == "published"
    assert l2inv.json("verify")["findings"] == []
