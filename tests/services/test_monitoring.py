"""The monitor: pinged when a stage begins and ends, without ever delaying or breaking it."""

import os
import signal
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from l2inv.config.settings import Monitoring, Notifications, Person, Settings, redact
from l2inv.database.connection import Connection
from l2inv.sample.server import Fault, Store
from l2inv.services import monitoring
from tests.helpers.commands import Commands
from tests.helpers.listeners import Listener, trickling

KEY = "s3cr3t-key"


@pytest.fixture
def watched(l2inv: Commands, listener: Listener) -> Listener:
    l2inv.settings["monitoring"] = {
        "ping_url": f"http://{listener.where}/ping/{KEY}/l2inv-{{stage}}?create=1"
    }
    l2inv.save()
    return listener


def pings(listener: Listener) -> list[tuple[str, str, str]]:
    return [(method, urlsplit(path).path, body) for method, path, body in listener.heard]


def test_a_stage_reports_its_start_and_its_end(l2inv: Commands, watched: Listener) -> None:
    assert l2inv("-q", "scan").stdout == ""
    here = f"/ping/{KEY}/l2inv-scan"
    assert pings(watched) == [("GET", f"{here}/start", ""), ("GET", here, "")]
    first, last = (parse_qs(urlsplit(path).query) for _, path, _ in watched.heard)
    assert first == last
    assert first["create"] == ["1"]
    assert len(first["rid"][0]) == 36
    l2inv("scan")
    assert parse_qs(urlsplit(watched.heard[-1][1]).query)["rid"] != first["rid"]


@pytest.mark.parametrize("stage", ["qualify", "preprocess", "publish"])
def test_every_stage_that_cron_runs_is_watched(l2inv: Commands, watched: Listener, stage: str) -> None:
    l2inv(stage)
    assert [path.rsplit("/", 2)[1:] for _, path, _ in pings(watched)] == [
        [f"l2inv-{stage}", "start"],
        [KEY, f"l2inv-{stage}"],
    ]


def test_a_command_that_only_reads_is_not_watched(l2inv: Commands, watched: Listener) -> None:
    l2inv("scan")
    watched.heard.clear()
    for argv in (["qualify", "--what-if", str(l2inv.config)], ["digest"], ["overdue"], ["status"]):
        l2inv(*argv)
    assert watched.heard == []


def test_a_failed_stage_reports_the_reason_in_one_line(
    l2inv: Commands, watched: Listener, store: Store
) -> None:
    store.fault = lambda operation, nth: Fault(status=500)
    answer = l2inv("scan", expect=1)
    method, path, body = pings(watched)[-1]
    assert (method, path) == ("POST", f"/ping/{KEY}/l2inv-scan/fail")
    assert body.count("\n") == 0
    assert body in answer.stderr
    assert "500" in body


def test_failed_ops_are_a_failure(l2inv: Commands, watched: Listener, ready: list[str]) -> None:
    l2inv.settings["preprocess"]["command"] = ["false"]
    l2inv.save()
    l2inv("overrule", _not_invertible(l2inv), "--invertible", "--reason", "look", expect=None)
    watched.heard.clear()
    answer = l2inv("preprocess", expect=4)
    assert pings(watched)[-1][1:] == (
        f"/ping/{KEY}/l2inv-preprocess/fail",
        answer.stderr.strip().removeprefix("l2inv: "),
    )


def _not_invertible(l2inv: Commands) -> str:
    return str(l2inv.json("list", "--state", "not_invertible")["ops"][0]["op_id"])


def test_a_run_that_finds_another_run_logs_that_and_changes_nothing(
    l2inv: Commands, watched: Listener, connection: Connection
) -> None:
    connection.execute("select l2inv.take_lock('publish')")
    l2inv("publish", expect=75)
    method, path, body = pings(watched)[-1]
    assert (method, path.rsplit("/", 1)[1]) == ("POST", "log")
    assert body == "publish: another run holds the lock"


def test_a_stage_that_is_stopped_is_a_failure(l2inv: Commands, watched: Listener, store: Store) -> None:
    asked, over = threading.Event(), threading.Event()

    def hang(operation: str, nth: int) -> None:
        asked.set()
        over.wait(20)

    store.fault = hang
    with l2inv.start("scan") as process:
        assert asked.wait(20)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(20) == 1
        over.set()
    assert pings(watched)[-1] == ("POST", f"/ping/{KEY}/l2inv-scan/fail", "stopped")


def test_a_monitor_that_never_ends_its_answer_delays_nothing(l2inv: Commands, tmp_path: Path) -> None:
    with trickling(KEY) as url:
        l2inv.settings["monitoring"] = {"ping_url": url, "ping_timeout_seconds": 0.3}
        l2inv.save()
        started = time.monotonic()
        answer = l2inv("-q", "publish")
        assert time.monotonic() - started < 5
    assert answer.stderr.startswith("l2inv: monitoring: http://127.0.0.1:")
    assert answer.stderr.endswith("/*** could not be pinged: no answer within 0.3 s\n")
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("ping_url", "why"),
    [
        (f"http://127.0.0.1:1/{KEY}", "ConnectionError"),
        (f"http://me:{KEY}@127.0.0.1:1/x", "ConnectionError"),
        (f"http://a..b/{KEY}", ""),
    ],
)
def test_a_missing_monitor_changes_no_exit_code_and_reveals_no_secret(
    l2inv: Commands, ping_url: str, why: str
) -> None:
    l2inv.settings["monitoring"] = {"ping_url": ping_url}
    l2inv.save()
    answer = l2inv("-q", "-vv", "publish")
    assert why in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert KEY not in answer.stderr + l2inv("config", "check", "--json").stdout


def test_a_monitor_that_refuses_is_reported(l2inv: Commands, watched: Listener) -> None:
    watched.status = 404
    assert l2inv("publish").stderr.endswith("could not be pinged: it answers 404\n")


@pytest.mark.parametrize(
    ("url", "word", "asked"),
    [
        ("https://h/p/{stage}", "start", "https://h/p/scan/start?rid=1"),
        ("https://h/p/", "", "https://h/p/?rid=1"),
        ("https://h/p/?a=b#c", "fail", "https://h/p/fail?a=b&rid=1"),
        ("https://u:p@h:8/", "log", "https://u:p@h:8/log?rid=1"),
        ("https://h", "", "https://h?rid=1"),
    ],
)
def test_the_status_is_appended_to_the_path_and_the_query_is_kept(url: str, word: str, asked: str) -> None:
    assert monitoring.address(url, "scan", "1", word) == asked


def test_the_key_of_the_url_and_the_addresses_are_hidden_wherever_they_turn_up() -> None:
    settings = Settings(
        monitoring=Monitoring(ping_url="https://me:pw1@hc.example.org/ping/k3y/l2inv-{stage}"),
        notifications=Notifications([Person("han", ["mailto://han:pw2@example.org?to=x"])]),
    )
    said = "pw1 pw2 GET /ping/k3y/l2inv-scan/start mailto://han:pw2@example.org?to=x"
    assert redact(said, settings, {}) == "*** *** GET ***/start mailto://***"
    assert "hc.example.org" in redact("hc.example.org", settings, {})
    assert redact("a/b", Settings(monitoring=Monitoring(ping_url="https://h/")), {}) == "a/b"
