"""status for monitoring: which stage is late, and metrics for a Prometheus textfile collector."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from l2inv.domain.states import STATES
from l2inv.queries import metrics
from tests.helpers.commands import Commands

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? (-?[0-9.]+(?:e[+-]?[0-9]+)?)")


def samples(text: str) -> dict[tuple[str, str], float]:
    """Read the text as the published format has it: each metric's HELP and TYPE once, in front of all of its samples."""
    assert text.endswith("\n")
    found: dict[tuple[str, str], float] = {}
    current, described = "", set()
    for line in text.splitlines():
        if told := re.fullmatch(rf"# HELP ({NAME}) (.+)", line):
            current = told[1]
            assert current not in described
            described.add(current)
        elif told := re.fullmatch(rf"# TYPE ({NAME}) (counter|gauge)", line):
            assert told[1] == current
            assert (told[2] == "counter") == current.endswith("_total")
        else:
            sample = SAMPLE.fullmatch(line)
            assert sample, line
            assert sample[1] == current, line
            assert (sample[1], sample[2] or "") not in found
            found[sample[1], sample[2] or ""] = float(sample[3])
    return found


def test_the_metrics_agree_with_status(l2inv: Commands, ready: list[str]) -> None:
    l2inv("claim", ready[0])
    l2inv("hold", ready[1], "--reason", "x")
    status = l2inv.json("status")
    found = samples(l2inv("status", "--format", "prometheus").stdout)
    assert {state: found["l2inv_ops", f'state="{state}"'] for state in STATES} == status["states"]
    assert found["l2inv_events_total", ""] == status["events"]
    assert found["l2inv_ops_on_hold", ""] == 1
    assert found["l2inv_quarantined_records", ""] == status["quarantined"] > 0
    for run in status["runs"]:
        began = datetime.fromisoformat(run["started_at"]).timestamp()
        label = f'stage="{run["stage"]}"'
        assert found["l2inv_stage_last_start_timestamp_seconds", label] == pytest.approx(began)
        assert found["l2inv_stage_last_success_timestamp_seconds", label] == pytest.approx(began)
        assert found["l2inv_stage_last_failed", label] == 0
        assert found["l2inv_stage_unfinished", label] == 0


def test_the_metrics_of_an_empty_database_have_every_state(l2inv: Commands) -> None:
    found = samples(l2inv("status", "--format", "prometheus").stdout)
    assert {found["l2inv_ops", f'state="{state}"'] for state in STATES} == {0}


def test_a_failed_run_is_the_newest_and_no_success(l2inv: Commands, ready: list[str]) -> None:
    before = samples(l2inv("status", "--format", "prometheus").stdout)
    l2inv.settings["metadata_store"] = {"url": "http://127.0.0.1:9/graphql", "retries": 0}
    l2inv.save()
    l2inv("scan", expect=1)
    after = samples(l2inv("status", "--format", "prometheus").stdout)
    scan = 'stage="scan"'
    assert after["l2inv_stage_last_failed", scan] == 1
    success = ("l2inv_stage_last_success_timestamp_seconds", scan)
    assert after[success] == before[success] < after["l2inv_stage_last_start_timestamp_seconds", scan]


def test_label_values_are_escaped() -> None:
    (_, _, line) = metrics._metric("m", "gauge", "a\nb", [({"stage": 'a"b\\c\nd'}, 1)])
    assert line == r'm{stage="a\"b\\c\nd"} 1'


def test_a_stage_is_late_when_its_last_good_run_is_older_or_never_was() -> None:
    now = datetime(2026, 11, 1, 12, tzinfo=UTC)
    day = timedelta(days=1)
    last = {"scan": now - day, "publish": now - 2 * day}
    found = metrics.late(last, {"scan": day, "publish": day, "inbox": day}, now)
    assert [(one["stage"], one["last_success"]) for one in found] == [
        ("publish", now - 2 * day),
        ("inbox", None),
    ]


def test_status_ends_with_1_and_a_line_where_a_stage_is_late(l2inv: Commands, ready: list[str]) -> None:
    good = l2inv("status", "-q", "--max-age", "scan=26h", "--max-age", "qualify=26h")
    assert (good.stdout, good.stderr) == ("", "")
    late = l2inv("status", "-q", "--max-age", "scan=26h", "--max-age", "publish=2h", expect=1)
    assert late.stdout == ""
    assert late.stderr == "l2inv: publish is late: it never ended well, limit 2 h; see: l2inv runs\n"
    document = l2inv("status", "--json", "--max-age", "publish=2h", expect=1).json
    assert document["late"] == [{"stage": "publish", "last_success": None, "max_age_seconds": 7200.0}]
    assert "states" in document
    assert "state" in l2inv("status", "--max-age", "scan=1d").stdout


def test_a_run_that_failed_does_not_make_a_stage_timely(l2inv: Commands, ready: list[str]) -> None:
    l2inv.settings["metadata_store"] = {"url": "http://127.0.0.1:9/graphql", "retries": 0}
    l2inv.save()
    l2inv("scan", expect=1)
    (run,) = l2inv.json("runs", "--stage", "scan")["runs"][:1]
    age = datetime.now(UTC) - datetime.fromisoformat(run["started_at"])
    shorter = f"{age.total_seconds() / 60 * 0.9:.3f}m"
    assert "scan is late" in l2inv("status", "--max-age", f"scan={shorter}", expect=1).stderr


@pytest.mark.parametrize("given", ["scan", "scan=", "scan=soon", "scam=26h", "=26h", "scan=0h"])
def test_a_malformed_age_is_wrong_usage(l2inv: Commands, given: str) -> None:
    assert l2inv("status", "--max-age", given, expect=2).stdout == ""


def test_the_documents_name_every_metric(l2inv: Commands) -> None:
    said = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    names = re.findall(r"^# TYPE (\S+)", l2inv("status", "--format", "prometheus").stdout, re.MULTILINE)
    assert [name for name in names if not re.search(rf"`{name}[`{{]", said)] == []
