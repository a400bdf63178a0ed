"""Monitoring: which stage is late, and metrics for a Prometheus textfile collector.

The format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from l2inv import __version__
from l2inv.database.connection import Connection
from l2inv.documents import Json

STAGES = ("scan", "qualify", "preprocess", "inbox", "publish", "digest")  # those that record runs


def last_successes(connection: Connection) -> dict[str, datetime]:
    """Return when the newest good run of each stage began: one that ended without failing and, for scan, was complete."""
    rows = connection.execute(
        """
        select stage, max(started_at) as started_at from l2inv.runs
        where finished_at is not null and result ->> 'failed' is null and result ->> 'read_again' is null
            and result -> 'complete' is distinct from 'false'
        group by stage
        """
    )
    return {row["stage"]: row["started_at"] for row in rows}


def late(successes: Mapping[str, datetime], max_ages: Mapping[str, timedelta], now: datetime) -> list[Json]:
    """Return the stages whose last good run began longer ago than their maximum age, or never."""
    return [
        {"stage": stage, "last_success": last, "max_age_seconds": max_age.total_seconds()}
        for stage, max_age in max_ages.items()
        if (last := successes.get(stage)) is None or now - last > max_age
    ]


def prometheus(status: Mapping[str, Any]) -> str:
    """Return the status as metrics. Names and labels are an interface: they are added to, never changed."""
    return "\n".join(_lines(status)) + "\n"


def _lines(status: Mapping[str, Any]) -> Iterator[str]:
    runs = status["runs"]
    yield from _metric("l2inv_info", "gauge", "The version of l2inv.", [({"version": __version__}, 1)])
    yield from _metric(
        "l2inv_ops", "gauge", "OPs in each state.", [({"state": s}, n) for s, n in status["states"].items()]
    )
    for name, meaning, number in (
        ("l2inv_ops_on_hold", "OPs on hold.", status["on_hold"]),
        ("l2inv_ops_overdue", "OPs past their deadline.", status["overdue"]),
        (
            "l2inv_ops_inputs_changed",
            "OPs in science's hands whose datasets changed since the verdict.",
            len(status["inputs_changed"]),
        ),
        (
            "l2inv_quarantined_records",
            "Records of the metadata store that cannot be read.",
            status["quarantined"],
        ),
    ):
        yield from _metric(name, "gauge", meaning, [({}, number)])
    yield from _metric("l2inv_events_total", "counter", "Events in the event log.", [({}, status["events"])])
    yield from _metric(
        "l2inv_stage_last_start_timestamp_seconds",
        "gauge",
        "When the newest run of each stage began.",
        [({"stage": run["stage"]}, run["started_at"].timestamp()) for run in runs],
    )
    yield from _metric(
        "l2inv_stage_last_success_timestamp_seconds",
        "gauge",
        "When the newest good run of each stage began.",
        [({"stage": stage}, at.timestamp()) for stage, at in sorted(status["last_success"].items())],
    )
    yield from _metric(
        "l2inv_stage_last_failed",
        "gauge",
        "1 if the newest run of a stage failed.",
        [({"stage": run["stage"]}, int(bool((run["result"] or {}).get("failed")))) for run in runs],
    )
    yield from _metric(
        "l2inv_stage_unfinished",
        "gauge",
        "1 if the newest run of a stage is running, or was killed.",
        [({"stage": run["stage"]}, int(run["finished_at"] is None)) for run in runs],
    )
    yield from _metric(
        "l2inv_stage_last_duration_seconds",
        "gauge",
        "How long the newest run of each stage took.",
        [
            ({"stage": run["stage"]}, (run["finished_at"] - run["started_at"]).total_seconds())
            for run in runs
            if run["finished_at"]
        ],
    )


def _metric(
    name: str, kind: str, meaning: str, samples: Iterable[tuple[Mapping[str, str], float]]
) -> Iterator[str]:
    yield f"# HELP {name} {_escaped(meaning)}"
    yield f"# TYPE {name} {kind}"
    for labels, number in samples:
        pairs = ",".join(f'{label}="{_quoted(text)}"' for label, text in labels.items())
        yield f"{name}{{{pairs}}} {number}" if pairs else f"{name} {number}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', r"\"")
