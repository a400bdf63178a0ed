"""backup and restore: whole, checked, into nothing but an empty schema, by any later l2inv."""

import gzip
import hashlib
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from l2inv.database import embedded
from l2inv.errors import L2invError
from l2inv.files import replacing
from l2inv.stages.mark_working import claiming
from tests.conftest import Commands, Connection
from tests.stages.test_publish import wait_until

KEPT = Path(__file__).parents[1] / "data"
TABLES = ("criteria", "run", "quarantine", "dataset_version", "event", "op_state")


@pytest.fixture
def lived(l2inv: Commands, ready: list[str]) -> str:
    l2inv("claim", ready[0])
    l2inv("mark-inverted", ready[0], "--note", "a\nb \x1b[31m \u202e 'x' \\ \"")
    l2inv("publish")
    l2inv("hold", ready[1], "--reason", "later")
    return ready[0]


def emptied(l2inv: Commands, schema: str = "restored") -> None:
    l2inv.settings["database"]["schema"] = schema
    l2inv.save()
    l2inv("migrate")


def lines(path: Path) -> list[bytes]:
    return gzip.decompress(path.read_bytes()).splitlines(keepends=True)


def test_what_was_backed_up_is_restored_row_for_row(
    l2inv: Commands, lived: str, connection: Connection, tmp_path: Path
) -> None:
    file = tmp_path / "l2inv backup.gz"
    connection.execute(
        "insert into l2inv.quarantine (raw_hash, dataset_id, reason, raw) values (sha256('\\x00ff'), null, 'why', '\\x00ff')"
    )
    done = l2inv.json("backup", str(file))
    assert done["rows"]["event"] == l2inv.json("status")["events"]
    assert l2inv.json("restore", str(file), "--check")["rows"] == done["rows"]
    history = l2inv("history", lived, "--json").stdout
    emptied(l2inv)
    assert l2inv.json("restore", str(file))["rows"] == done["rows"]
    assert l2inv("history", lived, "--json").stdout == history
    for table in TABLES:
        rows = [
            connection.execute(f"select to_jsonb(t) as row from {schema}.{table} t order by 1").fetchall()
            for schema in ("l2inv", "restored")
        ]
        assert rows[0] == rows[1], table
        assert rows[0], table
    assert l2inv.json("verify")["findings"] == []
    assert l2inv.json("note", lived, "life goes on")["op_id"] == lived
    assert l2inv.json("scan")["datasets"]["unchanged"] > 0
    again = tmp_path / "again"
    l2inv("backup", str(again))
    assert lines(again)[1:3] == lines(file)[1:3]


def test_nothing_is_restored_over_what_is_recorded(l2inv: Commands, lived: str, tmp_path: Path) -> None:
    l2inv("backup", str(tmp_path / "b"))
    assert "not empty" in l2inv("restore", str(tmp_path / "b"), expect=3).stderr


@pytest.mark.parametrize(
    "damage", ["cut", "bit", "no gzip", "line gone", "event changed", "more", "later", "empty"]
)
def test_a_damaged_backup_restores_nothing(
    l2inv: Commands, lived: str, tmp_path: Path, connection: Connection, damage: str
) -> None:
    file = tmp_path / "b"
    l2inv("backup", str(file))
    content, text = file.read_bytes(), lines(file)
    match damage:
        case "cut":
            content = content[: len(content) // 2]
        case "bit":
            content = content[:2000] + bytes([content[2000] ^ 1]) + content[2001:]
        case "no gzip":
            content = b"select 1;"
        case "line gone":
            content = gzip.compress(b"".join(text[:5] + text[6:]))
        case "event changed":
            content = gzip.compress(b"".join(text).replace(b'"actor": "han"', b'"actor": "eve"', 1))
        case "more":
            content = gzip.compress(b"".join([*text, text[1]]))
        case "later":
            header = json.loads(text[0])
            content = gzip.compress(json.dumps(header | {"migrations": ["9999.later"]}).encode())
        case "empty":
            content = b""
    file.write_bytes(content)
    emptied(l2inv)
    answer = l2inv("restore", str(file), expect=1)
    assert answer.stderr.count("\n") == 1
    assert str(file) in answer.stderr
    assert l2inv.json("status")["events"] == 0


def test_a_forged_event_is_found_though_the_checksum_is_made_to_fit(
    l2inv: Commands, lived: str, tmp_path: Path
) -> None:
    file = tmp_path / "b"
    l2inv("backup", str(file))
    *text, last = lines(file)
    forged = b'"actor": "eve"'.join(b"".join(text).rsplit(b'"actor": "han"', 1))
    end = json.loads(last) | {"sha256": hashlib.sha256(forged).hexdigest()}
    file.write_bytes(gzip.compress(forged + json.dumps(end).encode() + b"\n"))
    emptied(l2inv)
    assert "is not what was recorded" in l2inv("restore", str(file), expect=1).stderr
    assert l2inv.json("status")["events"] == 0


def test_a_dataset_that_was_changed_is_found_though_the_checksum_is_made_to_fit(
    l2inv: Commands, lived: str, tmp_path: Path
) -> None:
    file = tmp_path / "b"
    l2inv("backup", str(file))
    *text, last = lines(file)
    forged = b"".join(text).replace(b'"bucket": "data"', b'"bucket": "mine"', 1)
    end = json.loads(last) | {"sha256": hashlib.sha256(forged).hexdigest()}
    file.write_bytes(gzip.compress(forged + json.dumps(end).encode() + b"\n"))
    emptied(l2inv)
    assert (
        "is not what was read; 1 findings, nothing was restored"
        in l2inv("restore", str(file), expect=1).stderr
    )
    assert l2inv.json("status")["ops"] == 0


def test_a_backup_is_of_one_moment_whatever_is_recorded_while_it_is_written(
    l2inv: Commands, lived: str, connection: Connection, url: str, tmp_path: Path
) -> None:
    before = l2inv.json("status")["events"]
    with ThreadPoolExecutor(1) as pool, connection.transaction():
        connection.execute("lock table l2inv.event in access exclusive mode")
        written = pool.submit(l2inv.json, "backup", str(tmp_path / "b"))
        waiting = "select from pg_locks where relation = 'l2inv.event'::regclass and not granted"
        wait_until(lambda: bool(connection.execute(waiting).fetchall()))
        claiming.note(connection, lived, "meanwhile", "han")
    assert written.result()["rows"]["event"] == before
    assert l2inv.json("status")["events"] == before + 1


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("no row", "no row of a table"), ("another table", "no row of a table"), ("row gone", "as many rows as it says"),
        ("row twice", "as many rows as it says"), ("not utf-8", "a row of event that is none"), ("not json", "a row of event that is none"),
        ("not whole", "a row of event that is none"), ("number", "a row of event that is none"), ("header", "is no backup of l2inv"),
        ("end", "as many rows as it says"),
    ],
)  # fmt: skip
def test_what_is_in_a_backup_and_should_not_be_is_named_though_the_checksum_is_made_to_fit(
    l2inv: Commands, lived: str, tmp_path: Path, where: str, said: str
) -> None:
    file = tmp_path / "b"
    l2inv("backup", str(file))
    header, *rows, last = lines(file)
    end, newest = json.loads(last)["end"], rows[-1]
    match where:
        case "no row":
            rows.insert(3, b"junk\n")
        case "another table":
            rows.insert(3, b'["pg_class",{}]\n')
        case "row gone":
            rows.pop()
        case "row twice":
            rows.append(newest)
        case "not utf-8":
            rows[-1] = newest.replace(b'"kind": "', b'"kind": "\xff')
        case "not json":
            rows[-1] = b'["event",{not json}]\n'
        case "not whole":
            rows[-1] = b'["event",{}]\n'
        case "number":
            rows[-1] = newest.replace(b'"seq": ', b'"seq": 99999999999')
        case "header":
            header = b'{"l2inv_backup": 1, "migrations": 7}\n'
        case "end":
            end = "many"
    content = b"".join([header, *rows])
    end = {"end": end, "sha256": hashlib.sha256(content).hexdigest()}
    file.write_bytes(gzip.compress(content + json.dumps(end).encode() + b"\n"))
    emptied(l2inv)
    answer = l2inv("restore", str(file), expect=1)
    assert said in answer.stderr
    assert answer.stderr.startswith(f"l2inv: {file}: ")
    assert answer.stderr.count("\n") == 1
    assert l2inv.json("status")["events"] == 0


def test_a_dump_of_postgresqls_own_is_restored_with_all_that_guards_the_record(
    l2inv: Commands, lived: str, url: str, tmp_path: Path
) -> None:
    programs, copy = embedded._binaries()[0], make_conninfo(url, dbname=f"copy_{os.getpid()}")
    name = str(conninfo_to_dict(copy)["dbname"])
    dump = [programs / "pg_dump", "-d", url, "-n", "l2inv", "-Fc", "-f", tmp_path / "dump"]
    subprocess.run(dump, check=True)
    with psycopg.connect(make_conninfo(url, dbname="postgres"), autocommit=True) as server:
        server.execute(f'create database "{name}"')
        try:
            subprocess.run(
                [programs / "pg_restore", "--exit-on-error", "-d", copy, tmp_path / "dump"], check=True
            )
            l2inv.settings["database"]["url"] = copy
            l2inv.save()
            assert l2inv.json("verify")["findings"] == []
            l2inv("note", lived, "life goes on")
            with psycopg.connect(copy) as connection, pytest.raises(psycopg.Error, match="append-only"):
                connection.execute("set session_replication_role = replica; delete from l2inv.event")
        finally:
            server.execute(f'drop database "{name}" with (force)')


def test_a_backup_that_cannot_be_written_leaves_the_one_before(
    l2inv: Commands, lived: str, tmp_path: Path
) -> None:
    file = tmp_path / "b"
    l2inv("backup", str(file))
    before = file.read_bytes()
    (tmp_path / "b.new").mkdir()
    assert "b.new" in l2inv("backup", str(file), expect=1).stderr
    assert file.read_bytes() == before
    assert "No such file" in l2inv("restore", str(tmp_path / "none"), expect=1).stderr


def test_a_backup_takes_the_place_of_no_pipe_nor_device(l2inv: Commands, lived: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        answer = l2inv("backup", str(tmp_path / name), expect=1)
        assert answer.stderr == f"l2inv: {pipe}: is no regular file; name a file, new or to be replaced\n"
    assert pipe.is_fifo()


@pytest.mark.parametrize("argv", [("backup",), ("verify", "--anchor")], ids=" ".join)
def test_where_a_link_stands_for_a_backup_or_an_anchor_the_file_it_leads_to_is_replaced(
    l2inv: Commands, lived: str, tmp_path: Path, argv: tuple[str, ...]
) -> None:
    (tmp_path / "newest").symlink_to("elsewhere")
    for _ in range(2):
        l2inv(*argv, str(tmp_path / "newest"))
        assert (tmp_path / "newest").is_symlink()
        assert (tmp_path / "elsewhere").stat().st_size > 100


def test_two_that_write_one_file_at_once_write_it_once(tmp_path: Path) -> None:
    path = tmp_path / "b"
    with replacing(path) as file:
        file.write(b"whole")
        with pytest.raises(L2invError, match="another process writes it"), replacing(path):
            pass
    assert path.read_bytes() == b"whole"
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        raise ZeroDivisionError
    assert path.read_bytes() == b"whole"
    (tmp_path / "b.new").write_bytes(b"left by whoever was killed, and longer")
    with replacing(path) as file:
        file.write(b"next")
    assert path.read_bytes() == b"next"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    (tmp_path / "b.new").symlink_to("trap")
    with pytest.raises(OSError, match="symbolic links"), replacing(path):
        pass
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("file", sorted(KEPT.glob("backup-*.gz")), ids=lambda path: path.name)
def test_a_backup_of_every_schema_that_could_make_one_still_restores(l2inv: Commands, file: Path) -> None:
    assert l2inv.json("restore", str(file))["rows"]["event"] > 50
    assert l2inv.json("verify")["findings"] == []
    assert l2inv.json("status")["states"]["published"] == 1


def test_the_way_back_from_a_schema_that_a_later_l2inv_migrated_is_the_backup_made_before(
    l2inv: Commands, lived: str, ready: list[str], connection: Connection, tmp_path: Path
) -> None:
    file = str(tmp_path / "before.gz")
    l2inv("backup", file)
    states = l2inv.json("status")["states"]
    connection.execute("alter table l2inv.run add column later text")
    connection.execute(
        "insert into l2inv._yoyo_migration (migration_hash, migration_id) values ('later', '9999.later')"
    )
    for argv in (("status",), ("migrate",), ("restore", file)):
        assert "is ahead of this l2inv: it has 9999.later" in l2inv(*argv, expect=1).stderr
    connection.execute("alter schema l2inv rename to l2inv_ahead")
    l2inv("migrate")
    l2inv("restore", file)
    assert l2inv.json("status")["states"] == states
    assert l2inv.json("verify")["findings"] == []
    l2inv("claim", ready[2])
    assert connection.execute("select op_id from l2inv_ahead.event limit 1").fetchone()
