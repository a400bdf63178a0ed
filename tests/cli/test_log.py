"""log and runs: who did what when, and which stages ran, for people, programs and the reader's role."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from l2inv.cli import main
from l2inv.database.connection import Connection
from tests.helpers.commands import Commands
from tests.helpers.terminals import ESCAPE, in_this_process

KEYS = {"op_id", "seq", "kind", "state", "actor", "recorded_at", "run_id", "detail"}


def test_log_has_every_event_of_every_op_newest_last(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    l2inv("claim", ready[1], actor="ann")
    l2inv("claim", ready[0], actor="han")
    events = l2inv.json("log")["events"]
    (row,) = connection.execute("select count(*) as events from l2inv.event").fetchall()
    assert len(events) == row["events"]
    assert all(set(event) >= KEYS for event in events)
    assert [e["event_id"] for e in events] == sorted(e["event_id"] for e in events)
    assert [(e["op_id"], e["actor"], e["kind"], e["state"]) for e in events[-2:]] == [
        (ready[1], "ann", "claimed", "working"),
        (ready[0], "han", "claimed", "working"),
    ]
    (shared,) = (e for e in events if e["op_id"] == ready[0] and e["kind"] == "claimed")
    for name in KEYS - {"op_id"}:
        assert shared[name] == l2inv.json("history", ready[0])["events"][-1][name]


def test_log_filters_by_time_actor_kind_and_op_each_and_together(l2inv: Commands, ready: list[str]) -> None:
    between = datetime.now(UTC)
    l2inv("claim", ready[0], actor="ann")
    l2inv("note", ready[0], "x", actor="ann")
    l2inv("claim", ready[1], actor="bob")

    def kinds(*argv: str) -> list[tuple[str, str]]:
        return [(e["actor"], e["kind"]) for e in l2inv.json("log", *argv)["events"]]

    everything = [("ann", "claimed"), ("ann", "noted"), ("bob", "claimed")]
    assert kinds("--since", between.isoformat()) == everything
    assert kinds("--since", (between + timedelta(hours=1)).isoformat()) == []
    assert kinds("--since", "1h")[-3:] == everything
    assert kinds("--actor", "ann") == everything[:2]
    assert "such as 24h, or an ISO 8601 time" in l2inv("log", "--since", "yesterday", expect=2).stderr
    assert kinds("--kind", "claimed") == [everything[0], everything[2]]
    assert kinds("--op", ready[1])[-1:] == everything[2:]
    assert kinds("--op", ready[0], "--kind", "noted", "--actor", "ann", "--since", "1h") == everything[1:2]
    assert kinds("--actor", "nobody") == []
    mistyped = l2inv("log", "--actor", "anne")
    assert mistyped.stdout == "there are no such events\n"
    assert mistyped.stderr == "l2inv: nobody named 'anne' is known, the nearest known name is ann\n"
    assert "unknown" in l2inv("log", "--op", "no-such-op", expect=3).stderr


def test_the_actor_of_log_is_whose_events_are_shown_and_comes_from_no_environment(
    l2inv: Commands, ready: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = l2inv.json("log")["events"]
    monkeypatch.setenv("L2INV_ACTOR", "nobody")
    assert l2inv.json("log", actor="nobody")["events"] == whole


def test_runs_lists_what_ran_by_whom_and_how_it_ended(
    l2inv: Commands, ready: list[str], store: object
) -> None:
    runs = l2inv.json("runs")["runs"]
    assert [run["stage"] for run in runs] == ["scan", "qualify", "preprocess"]
    assert all(
        set(run) == {"run_id", "stage", "actor", "started_at", "finished_at", "result"} for run in runs
    )
    assert runs[0]["result"]["datasets"]["seen"] > 0
    assert [run["run_id"] for run in l2inv.json("runs", "--stage", "qualify")["runs"]] == [runs[1]["run_id"]]
    after = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert l2inv.json("runs", "--since", after)["runs"] == []
    assert l2inv("runs", "--since", after).stdout == "there are no such runs\n"
    assert "the nearest is scan" in l2inv("runs", "--stage", "scna", expect=2).stderr
    ended = l2inv("runs", "--stage", "scan").stdout
    assert re.search(r"took \d\.\d s; OPs: \d+ new, \d+ seen; datasets: \d+ new, ", ended)
    l2inv.settings["metadata_store"]["url"] = "http://127.0.0.1:9/graphql"
    l2inv.settings["metadata_store"]["retries"] = 0
    l2inv.save()
    l2inv("scan", expect=1)
    assert "failed: " in l2inv("runs").stdout.splitlines()[-1]
    assert len(l2inv("runs").stdout.splitlines()) == 4


def test_the_readers_role_reads_log_and_runs(
    l2inv: Commands, ready: list[str], url: str, connection: Connection
) -> None:
    names = [f"log_{who}" for who in ("owner", "writer", "reader")]
    l2inv("roles", "--owner", names[0], "--writer", names[1], "--reader", names[2], "--apply")
    connection.execute("alter role log_reader login")
    commands = (("log",), ("log", "--op", ready[0]), ("runs",))
    expected = [l2inv(*command, "--json").stdout for command in commands]
    l2inv.settings["database"]["url"] = make_conninfo(url, user="log_reader")
    l2inv.save()
    try:
        assert [l2inv(*command, "--json").stdout for command in commands] == expected
    finally:
        for name in names:
            connection.execute(sql.SQL("reassign owned by {} to current_user").format(sql.Identifier(name)))
            connection.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(name)))


def test_both_are_a_line_each_in_a_pipe_and_no_wider_than_a_terminal(
    l2inv: Commands, ready: list[str]
) -> None:
    l2inv("claim", ready[0])
    l2inv("note", ready[0], "two\nlines \x1b[31m" + "words " * 40)
    assert len(l2inv("log").stdout.splitlines()) == len(l2inv.json("log")["events"])
    for command in ("log", "runs"):
        shown = in_this_process(main, ["--config", str(l2inv.config), command])
        lines = ESCAPE.sub("", shown).splitlines()
        assert len(lines) > 3
        assert all(len(line) <= 80 or len(line.split()) == 1 for line in lines), command  # a path stays whole


def test_a_log_is_printed_as_it_is_read(l2inv: Commands, ready: list[str], connection: Connection) -> None:
    """A reader that has seen enough ends it; what was read until then is one document's beginning."""
    rows = 3_000  # many times what a pipe holds
    connection.execute(
        "insert into l2inv.event (op_id, seq, kind, actor, detail) "
        "select op_id, seq + n, 'noted', 'ann', '{\"note\": \"x\"}' from l2inv.op_state, generate_series(1, %s) n "
        "where op_id = %s",
        [rows, ready[0]],
    )
    command = [sys.executable, "-m", "l2inv", "--config", str(l2inv.config), "log", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as log:
        assert log.stdout is not None
        beginning = log.stdout.read(2000)
        log.stdout.close()
        log.wait(20)
        assert log.stderr is not None
        assert log.stderr.read() == ""
    assert beginning.startswith('{"events": [{"op_id": ')
    assert len(json.loads(l2inv("log", "--json").stdout)["events"]) > rows
