"""Limits: a full disk, endless answers, settings that others may change, secrets, and wrong clocks."""

import gzip
import json
import os
import re
import secrets
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from l2inv.config.settings import MetadataStore
from l2inv.database import embedded
from l2inv.database.connection import Connection
from l2inv.errors import StoreError
from l2inv.sample.server import Fault, Store
from l2inv.services import metadata_store
from tests.helpers.commands import NOW, Answer, Commands
from tests.helpers.disks import fill, small_disk
from tests.helpers.events import clock_at
from tests.helpers.listeners import Listener

# A full disk


def no_room(answer: Answer) -> None:
    """One line, the exit code of what could not be done, and a hint."""
    assert answer.exit_code == 1, answer
    assert answer.stderr.count("\n") == 1, answer
    assert re.search(
        "No space left|room|closed the connection|not accept|starting up|recovery", answer.stderr
    ), answer
    assert "unexpected" not in answer.stderr


def test_a_full_disk_under_the_embedded_server_costs_nothing_that_was_recorded(
    l2inv: Commands, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 200) as disk:
        l2inv.settings["database"] = {"url": "embedded", "embedded_folder": str(disk / "server")}
        l2inv.save()
        try:
            l2inv("scan")
            l2inv("qualify", "--as-of", NOW.isoformat())
            op = l2inv.json("list")["ops"][0]["op_id"]
            filler = fill(disk)
            kept, refused = 0, None
            for _ in range(40):
                words = secrets.token_hex(1_000_000)  # which does not compress
                answer = l2inv("note", op, words, expect=None)
                if answer.exit_code:
                    refused = answer
                    break
                kept += 1
            assert refused is not None
            no_room(refused)
            filler.unlink()
            l2inv("note", op, "room again")
            events = l2inv.json("history", op)["events"]
            assert [e["kind"] for e in events].count("noted") == kept + 1
            assert l2inv.json("verify")["findings"] == []
        finally:
            embedded.stop(disk / "server")


def test_a_disk_too_small_for_a_server_is_one_line_and_leaves_nothing_half_made(
    l2inv: Commands, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 8) as disk:
        l2inv.settings["database"] = {"url": "embedded", "embedded_folder": str(disk / "server")}
        l2inv.save()
        no_room(l2inv("status", expect=None))
        assert not [path for path in (disk / "server").iterdir() if path.is_dir()]
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        try:
            assert l2inv.json("status")["ops"] == 0
        finally:
            embedded.stop(disk / "server")


def test_a_full_disk_under_the_work_folder_leaves_no_half_file_and_fails_no_op(
    l2inv: Commands, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        l2inv.settings["preprocess"]["work_dir"] = str(disk / "work")
        l2inv.save()
        l2inv("scan")
        l2inv("qualify", "--as-of", NOW.isoformat())
        filler = fill(disk)
        no_room(l2inv("preprocess", expect=1))
        assert l2inv.json("status")["states"]["error"] == 0
        assert not [path for path in disk.rglob("*") if path.is_file() and path != filler]
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        assert l2inv.json("preprocess")["ops"]["failed"] == 0
        ready = l2inv.json("next", "-n", "100")["ops"]
        assert ready
        for op in ready:
            files = l2inv.json("files", op["op_id"])["files"]
            assert {file["standing"] for file in files} == {"ok"}
        assert l2inv.json("verify")["findings"] == []


def test_a_command_that_fills_the_work_folder_stops_the_stage_and_fails_no_op(
    l2inv: Commands, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 4) as disk:
        fills = "import sys; open(sys.argv[1] + '/out', 'wb').write(bytes(9 << 20))"
        l2inv.settings["preprocess"] |= {
            "work_dir": str(disk / "work"), "command": [sys.executable, "-c", fills, "{folder}"],
        }  # fmt: skip
        l2inv.save()
        l2inv("scan")
        l2inv("qualify", "--as-of", NOW.isoformat())
        before = l2inv.json("status")["states"]
        for _ in range(2):
            no_room(l2inv("preprocess", expect=1))
            assert l2inv.json("status")["states"] == before
        subprocess.run(["mount", "-o", "remount,size=400m", str(disk)], check=True)
        assert l2inv.json("preprocess")["ops"] == {"done": before["invertible"], "failed": 0, "skipped": 0}


def test_a_full_disk_during_a_backup_keeps_the_previous_one(
    l2inv: Commands, ready: list[str], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        file = disk / "l2inv.gz"
        l2inv("backup", str(file))
        before = file.read_bytes()
        filler = fill(disk)
        no_room(l2inv("backup", str(file), expect=None))
        assert file.read_bytes() == before
        assert {path.name for path in disk.iterdir()} == {"l2inv.gz", "filler"}
        filler.unlink()
        l2inv("backup", str(file))
        assert file.read_bytes()[:5] == b"PGDMP"


def test_a_full_disk_during_an_anchor_keeps_the_previous_one(
    l2inv: Commands, ready: list[str], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        l2inv("verify", "--anchor", str(disk / "heads"), "--new-anchor")
        before = (disk / "heads").read_bytes()
        filler = fill(disk)
        answer = l2inv("verify", "--anchor", str(disk / "heads"), expect=None)
        after = (disk / "heads").read_bytes()
        if answer.exit_code == 0:  # there was still room in the file's last page
            added = after.removeprefix(before)
            assert added != after
            *heads, last = map(json.loads, added.splitlines())
            assert heads[0]["anchor"]
            assert last == {"end": len(heads) - 1}
            assert added.endswith(b"\n")
        else:
            no_room(answer)
            assert after == before
        assert {path.name for path in disk.iterdir()} == {"heads", "filler"}
        filler.unlink()
        l2inv("verify", "--anchor", str(disk / "heads"))


# Answers without end


@contextmanager
def endless(start: bytes) -> Iterator[str]:
    """A service that begins an answer and never ends it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(start)
            try:
                while True:
                    self.wfile.write(b"x" * 100_000)
            except OSError:
                pass

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/graphql"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_answer_without_end_is_refused_at_the_limit_and_not_held(l2inv: Commands) -> None:
    with endless(b'{"data": {"datasetInventories": [{"experimentDescription": "') as url:
        store = MetadataStore(url=url, max_answer_mb=3)
        tracemalloc.start()
        try:
            with (
                metadata_store.source(store) as source,
                pytest.raises(StoreError, match="an answer of more than 3 MB"),
            ):
                source.count()
            assert tracemalloc.get_traced_memory()[1] < 20_000_000
        finally:
            tracemalloc.stop()
        l2inv.settings["metadata_store"] = {"url": url, "max_answer_mb": 3}
        l2inv.save()
        assert "more than 3 MB" in l2inv("scan", expect=1).stderr


@pytest.mark.parametrize("suffix", ["json", "json.gz"])
def test_a_saved_answer_that_is_too_large_is_refused_and_not_held(
    l2inv: Commands, store: Store, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"saved.{suffix}"
    answer = json.dumps({"data": {"datasetInventories": store.datasets}})
    with gzip.open(path, "wt", compresslevel=1) if suffix.endswith("gz") else path.open("w") as file:
        file.write(answer)
        for _ in range(40):
            file.write(" " * 1_000_000)
    l2inv.settings["metadata_store"] = {"url": str(path), "max_answer_mb": 2}
    l2inv.save()
    tracemalloc.start()
    try:
        assert "more than 2 MB; raise metadata_store.max_answer_mb" in l2inv("scan", expect=1).stderr
        assert tracemalloc.get_traced_memory()[1] < 25_000_000
    finally:
        tracemalloc.stop()
    l2inv.settings["metadata_store"]["max_answer_mb"] = 45
    l2inv.save()
    assert l2inv.json("scan")["datasets"]["seen"] > 100


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_the_token_is_not_sent_elsewhere(
    l2inv: Commands, store: Store, listener: Listener, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("STORE_TOKEN", "t0ken")
    l2inv.settings["metadata_store"]["token_env"] = "STORE_TOKEN"
    l2inv.save()
    away = (("Location", f"http://{listener.where}/graphql"),)
    store.fault = lambda name, nth: Fault(status=status, body=b" ", headers=away)
    answer = l2inv("scan", expect=1)
    assert "t0ken" not in answer.stderr
    assert listener.heard == []


# Settings that others may change


@pytest.mark.parametrize("mode", [0o660, 0o602, 0o666])
def test_a_settings_file_that_others_may_write_is_warned_of_once_a_command(
    l2inv: Commands, mode: int
) -> None:
    assert l2inv("status").stderr == ""
    l2inv.config.chmod(mode)
    for argv in (["status"], ["scan"], ["config", "check"], ["-q", "qualify"], ["list", "--json"]):
        answer = l2inv(*argv)
        assert answer.stderr.count("others may write to it") == 1, argv
        assert answer.stderr.startswith(f"l2inv: {l2inv.config}: ")
    assert isinstance(answer.json, dict)
    l2inv.config.chmod(0o644)
    assert l2inv("status").stderr == ""


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_settings_file_in_a_folder_that_others_may_write_is_warned_of_unless_it_is_sticky(
    l2inv: Commands, mode: int
) -> None:
    folder = l2inv.config.parent
    folder.chmod(mode)
    assert l2inv("status").stderr.startswith(f"l2inv: {l2inv.config}: others may replace it")
    link = folder / "link.yaml"
    link.symlink_to(l2inv.config)
    assert "others may replace it" in l2inv("--config", str(link), "status").stderr
    folder.chmod(mode | 0o1000)
    assert l2inv("status").stderr == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_settings_file_of_another_user_is_warned_of(l2inv: Commands) -> None:
    os.chown(l2inv.config, 65534, 65534)
    assert "belongs to another user (uid 65534)" in l2inv("status").stderr


# Secrets


def everything(connection: Connection) -> str:
    """Every row of every table of l2inv's, as text."""
    tables = connection.execute(
        "select table_name as name from information_schema.tables where table_schema = 'l2inv' and table_type = 'BASE TABLE'"
    ).fetchall()
    rows = [
        str(row["row"])
        for table in tables
        for row in connection.execute(f'select to_jsonb(t)::text as row from l2inv."{table["name"]}" t')
    ]
    assert len(rows) > 100
    return "\n".join(rows)


class Watch:
    """Looks again and again at the command lines and environments of all that this process started."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self.over.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:
                    continue
            self.over.wait(0.01)

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def test_no_secret_is_printed_logged_recorded_or_put_on_a_command_line(
    l2inv: Commands,
    store: Store,
    listener: Listener,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    url: str,
) -> None:
    names = ("DATABASE", "TOKEN", "STORE", "PING", "MAIL")
    mark = {name: f"Marked{name}{secrets.token_hex(6)}" for name in names}
    where = conninfo_to_dict(url)
    host = str(where["host"]).replace("/", "%2F")
    good = {
        "database": {
            "url": f"postgresql://{where['user']}:{mark['DATABASE']}@{host}:{where.get('port') or 5432}/{where['dbname']}"
        },
        "metadata_store": l2inv.settings["metadata_store"] | {"token_env": "STORE_TOKEN", "retries": 0},
        "preprocess": {"work_dir": str(tmp_path / "work"), "command": ["/bin/sh", "-c", "env; exit 3"]},
        "monitoring": {
            "ping_url": f"http://{listener.where}/{mark['PING']}/{{stage}}",
            "ping_timeout_seconds": 2,
        },
        "notifications": {
            "people": [
                {"name": "science", "addresses": [f"json://u:{mark['MAIL']}@127.0.0.1:1/{mark['MAIL']}"]},
                {"name": "operator", "addresses": [f"nosuch://{mark['MAIL']}"]},
            ]
        },
    }
    monkeypatch.setenv("STORE_TOKEN", mark["TOKEN"])
    store.token = mark["TOKEN"]
    said: list[str] = []

    def try_all(settings: dict[str, Any], *lines: list[str], forms: tuple[str, ...] = ("-vv",)) -> None:
        l2inv.settings = settings
        l2inv.save()
        for line in lines:
            for form in forms:
                answer = l2inv(*line, form, expect=None)
                said.append(answer.stdout + answer.stderr)

    stages = [["scan"], ["qualify", "--as-of", NOW.isoformat()], ["preprocess"], ["publish"]]
    looks = [
        ["status"],
        ["list"],
        ["next"],
        ["overdue"],
        ["digest"],
        ["quarantine"],
        ["verify"],
        ["config", "check"],
        ["migrate"],
    ]
    with Watch() as watch:
        try_all(good, *stages, *looks, ["backup", str(tmp_path / "backup.gz")], forms=("-v", "-vv", "--json"))
        try_all(good, ["digest", "--send"])
        with l2inv.start("scan", "-vv") as process:
            said += process.communicate(timeout=60)
        for fault in (
            Fault(status=500, body=mark["TOKEN"].encode()),
            Fault(drop="before"),
            Fault(status=302, headers=(("Location", "http://127.0.0.1:1/"),)),
            Fault(body=b"nonsense"),
        ):
            store.fault = (
                None if fault.body == mark["TOKEN"].encode() else (lambda name, nth, fault=fault: fault)
            )
            try_all(good, ["scan"], ["qualify"])
        store.fault = None
        listener.status = 500
        try_all(good, ["scan"], ["publish"])
        listener.status = 200
        userinfo = f"u:{mark['STORE']}@127.0.0.1:1"
        for bad in (
            f"http://{userinfo}/graphql?key={mark['STORE']}",
            f"https://{userinfo}/{'x' * 10}?token={mark['STORE']}",
        ):
            try_all(
                good | {"metadata_store": {"url": bad, "retries": 0}},
                ["scan"],
                ["publish"],
                ["config", "check"],
            )
        for bad in (
            f"postgresql://u:{mark['DATABASE']}@127.0.0.1:1/x",
            f"postgresql://u:{mark['DATABASE']}@no-such-host.invalid/x",
            f"host=127.0.0.1 port=1 password={mark['DATABASE']} user=u",
            f"host=127.0.0.1 port=1 pasword={mark['DATABASE']}",
            f"host='127.0.0.1' port=notanumber password='{mark['DATABASE']}'",
            f"postgresql://u@127.0.0.1:1/x?password={mark['DATABASE']}",
            f"postgresql://u:{mark['DATABASE']}@h@x/",
            f"postgresql://u:{mark['DATABASE']}@127.0.0.1:1/x?sslmode=nonsense",
        ):
            try_all(good | {"database": {"url": bad}}, ["status"], ["scan"], ["config", "check"])
        ping = f"http://u:{mark['PING']}@127.0.0.1:1/{mark['PING']}?key={mark['PING']}"
        try_all(good | {"monitoring": {"ping_url": ping}}, ["scan"], ["config", "check"])
        try_all(
            good | {"monitoring": {"ping_url": f"http://h:{mark['PING']}/x"}}, ["scan"], ["config", "check"]
        )
        monkeypatch.setenv("STORE_TOKEN", mark["TOKEN"] + "\n")
        try_all(good, ["scan"], ["config", "check"])
        monkeypatch.setenv("STORE_TOKEN", "wrong" + mark["TOKEN"])
        try_all(good, ["scan"])
    kept = everything(connection)
    backed_up = (tmp_path / "backup.gz").read_bytes().decode(errors="replace")
    bundles = "\n".join(path.read_text() for path in (tmp_path / "work").rglob("*.json"))
    lines = b"\n".join(watch.seen).decode(errors="replace")
    assert len(watch.seen) > 5
    for name, secret in mark.items():
        for found in ("\n".join(said), kept, backed_up, bundles, lines):
            at = found.find(secret)
            assert at < 0, f"{name}: {found[max(0, at - 300) : at + 60]!r}"


@pytest.mark.parametrize("status", [200, 400])
def test_a_token_that_the_store_or_a_command_repeats_is_neither_printed_nor_recorded(
    l2inv: Commands,
    ready: list[str],
    store: Store,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    status: int,
) -> None:
    token = f"Marked{secrets.token_hex(6)}"
    monkeypatch.setenv("STORE_TOKEN", token)
    l2inv.settings["metadata_store"] |= {"token_env": "STORE_TOKEN", "retries": 0}
    (tmp_path / "token").write_text(
        token
    )  # the command is not given the variable, but may know the token all the same
    l2inv.settings["preprocess"]["command"] = ["/bin/sh", "-c", f"echo never $(cat {tmp_path}/token); exit 3"]
    l2inv.save()
    l2inv("claim", ready[0])
    l2inv("mark-inverted", ready[0])
    l2inv("overrule", ready[1], "--not-invertible", "--reason", "x")
    l2inv("overrule", ready[1], "--invertible", "--reason", "y")
    l2inv("preprocess", expect=4)
    assert "never ***" in l2inv.json("show", ready[1])["error"]["cause"]
    refusal = json.dumps({"errors": [{"message": f"Bearer {token} is not welcome"}]}).encode()
    said = ""
    for body in (refusal, f"{token} is not welcome".encode()):
        store.fault = lambda name, nth, body=body: Fault(status=status, body=body)
        for argv in (["scan"], ["scan", "--json"], ["scan", "-vv"], ["publish", "-vv"], ["status", "--json"]):
            answer = l2inv(*argv, expect=None)
            said += answer.stdout + answer.stderr
    assert "*** is not welcome" in said
    assert token not in said + everything(connection)


# Odd clocks

TIMES = {
    "createDate": ["2026-03-29T02:30:00+02:00", "2026-03-29T00:30:00Z", "2026-03-29T00:30:00", "2026-03-29T00:30:00.000000"],
    "startTime": ["2025-10-26T02:30:00.1+01:00", "2025-10-26T01:30:00.10Z", "2025-10-26T01:30:00.100", "2025-10-25T15:30:00.100000-10:00"],
    "embargoEndDate": ["9999-12-31T23:59:59", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59.000+00:00", "9999-12-31T23:59:59.0"],
    "endTime": ["0001-01-01T00:00:00", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000", "0001-01-01T00:00:00+00:00"],
}  # fmt: skip
ZONES = ("UTC", "Pacific/Kiritimati", "America/St_Johns")


def with_times(store: Store, spelling: int) -> None:
    for dataset in store.datasets:
        dataset |= {name: spelled[spelling] for name, spelled in TIMES.items()}


def test_a_time_is_the_same_however_it_is_spelled(l2inv: Commands, store: Store) -> None:
    with_times(store, 0)
    l2inv("scan")
    for spelling in range(1, 4):
        with_times(store, spelling)
        report = l2inv.json("scan")
        assert (report["datasets"]["new"], report["datasets"]["changed"]) == (0, 0), spelling


@pytest.mark.parametrize("name", ["createDate", "startTime", "updateDate", "embargoEndDate"])
@pytest.mark.parametrize(
    "time",
    ["9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00", "2026-06-30T23:59:60", "10000-01-01T00:00:00"],
)
def test_a_time_that_no_calendar_here_holds_sets_its_record_alone_aside(
    l2inv: Commands, store: Store, name: str, time: str
) -> None:
    store.datasets = store.datasets[:12]
    l2inv("scan")
    before = len(l2inv.json("quarantine")["records"])
    store.datasets[0][name] = time
    l2inv("scan")
    assert len(l2inv.json("quarantine")["records"]) == before + 1


def test_every_answer_is_the_same_in_any_time_zone_of_process_and_database(
    l2inv: Commands, store: Store, ready: list[str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, dataset in enumerate(store.datasets[:60]):
        dataset |= {name: spelled[number % 4] for name, spelled in TIMES.items()}
    l2inv("scan")
    l2inv("qualify", "--as-of", "2026-11-01")
    l2inv("preprocess")
    l2inv("claim", l2inv.json("next")["ops"][0]["op_id"], "--for", "200d")
    ops = [op["op_id"] for op in l2inv.json("list")["ops"]]
    lines = [
        ["list"],
        ["next", "-n", "100"],
        ["mine"],
        ["quarantine"],
        ["near-misses"],
        ["completeness"],
        ["criteria"],
        ["export"],
    ]
    lines += [
        ["overdue", "--as-of", t]
        for t in ("2027-03-28T02:30:00+02:00", "2026-12-01", "9000-01-01", "0002-01-01")
    ]
    lines += [[command, op] for command in ("show", "history", "explain") for op in ops[:3]]
    answers = {}
    where = conninfo_to_dict(url)
    for zone in ZONES:
        monkeypatch.setenv("TZ", zone)
        monkeypatch.setenv("PGTZ", zone)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"alter database \"{where['dbname']}\" set timezone to '{zone}'")
        answers[zone] = {
            (" ".join(line), form): days(l2inv(*line, *form).stdout)
            for line in lines
            for form in ((), ("--json",))
        }
        assert l2inv.json("verify")["findings"] == []
    for zone in ZONES[1:]:
        for line, said in answers["UTC"].items():
            assert answers[zone][line] == said, (zone, line)


def days(said: str) -> str:
    """What a command said, but for what depends on when it said so."""
    return re.sub(r'"(as_of|seconds)": [^,}]*', "", said)


@pytest.mark.parametrize(
    "as_of",
    ["0001-01-01", "0001-01-02T00:00:00Z", "1970-01-01", "9999-12-31T23:59:59", "2026-03-29T02:30:00+01:00", "0001-01-01T00:00:00-14:00"],
)  # fmt: skip
def test_any_time_can_be_asked_for(l2inv: Commands, as_of: str) -> None:
    l2inv("scan")
    report = l2inv.json("qualify", "--as-of", as_of)
    assert report["ops"]["failed"] == 0
    assert (report["ops"]["waiting"] > 20) == (as_of < "2000")
    l2inv("overdue", "--as-of", as_of)
    l2inv("overdue", "--as-of", as_of, "--json")


@pytest.mark.parametrize(
    "as_of",
    ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "10000-01-01", "tomorrow", "2026-02-30"],
)
def test_a_time_beyond_the_calendar_is_wrong_usage(l2inv: Commands, as_of: str) -> None:
    l2inv("qualify", "--as-of", as_of, expect=2)
    l2inv("overdue", "--as-of", as_of, expect=2)


def test_a_clock_that_was_set_back_changes_neither_order_nor_present_state(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    """recorded_at is the server's clock; what came later is what has the higher number."""
    op = ready[0]
    l2inv("claim", op)
    head = connection.execute("select seq from l2inv.op_state where op_id = %s", [op]).fetchone()
    assert head is not None
    for seq, (kind, recorded_at) in enumerate(
        [("noted", "2001-01-01"), ("noted", "2090-01-01"), ("noted", "1999-01-01")], 1
    ):
        with clock_at(connection, recorded_at):
            connection.execute(
                "insert into l2inv.event (op_id, seq, kind, actor, detail) values (%s, %s, %s, 'clock', %s)",
                [op, head["seq"] + seq, kind, json.dumps({"note": str(seq)})],
            )
    l2inv("release", op)
    l2inv("claim", op, actor="ann")
    found = l2inv.json("show", op)
    assert (found["state"], found["assignee"]) == ("working", "ann")
    events = l2inv.json("history", op)["events"]
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert [e["detail"]["note"] for e in events if e["kind"] == "noted"] == ["1", "2", "3"]
    for argv in (["history", op], ["list"], ["mine"], ["overdue"], ["digest"], ["next"], ["status"]):
        l2inv(*argv)
    assert l2inv.json("verify")["findings"] == []


def test_a_claim_until_the_end_of_time_is_refused_or_kept(l2inv: Commands, ready: list[str]) -> None:
    l2inv("claim", ready[0], "--for", "36525d")
    assert l2inv.json("show", ready[0])["due_at"] > datetime.now(UTC).replace(year=2120).isoformat()
    l2inv("claim", ready[1], "--for", "36526d", expect=2)
