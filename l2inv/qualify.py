"""qualify: judges each OP that is quiet by the criteria of invertibility, and again when data or criteria changed."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from psycopg.types.json import Jsonb

from l2inv import criteria, inventory, record, states
from l2inv.database import Connection, Run, stage_run
from l2inv.settings import Settings

BATCH = 1000  # OPs read, judged and recorded at a time


class Candidate(msgspec.Struct):
    """An OP to be judged, with the newest version of each of its datasets."""

    op_id: str
    seq: int
    state: str
    verdict: criteria.Verdict | None
    versions: dict[str, int]
    records: list[str]


def qualify(
    connection: Connection,
    settings: Settings,
    actor: str,
    as_of: datetime,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Judges what is to be judged as of a time, and gives the report of the contract.

    OPs that science holds, and those beyond, are never touched. An OP that cannot be judged goes to `error`.
    Raises Busy and DatabaseError; batches recorded until then stay.
    """
    with stage_run(connection, "qualify", actor) as run:
        version = criteria.version(settings.qualification)
        counts = dict.fromkeys(
            ("judged", "invertible", "not_invertible", "waiting", "unchanged", "failed"), 0
        )
        run.report |= {"ops": counts, "criteria_version": version}
        _keep_criteria(connection, version, settings)
        op_ids, counts["unchanged"] = _to_judge(connection, version)
        for start in range(0, len(op_ids), BATCH):
            _judge_batch(connection, settings, run, op_ids[start : start + BATCH], as_of)
            progress(min(start + BATCH, len(op_ids)), len(op_ids))
    return run.report


def _keep_criteria(connection: Connection, version: str, settings: Settings) -> None:
    connection.execute(
        "insert into l2inv.criteria (criteria_version, rules) values (%s, %s) on conflict do nothing",
        [version, Jsonb(msgspec.to_builtins(settings.qualification))],
    )


def _to_judge(connection: Connection, version: str) -> tuple[list[str], int]:
    """Gives the OPs without a verdict on their present datasets by these criteria, and how many have one."""
    rows = connection.execute(
        """
        select op_id, verdict_seq > datasets_seq and criteria_version = %s as judged
        from l2inv.op_state
        where state in ('discovered', 'invertible', 'not_invertible', 'preprocessed')
        order by op_id
        """,
        [version],
    ).fetchall()
    to_judge = [row["op_id"] for row in rows if not row["judged"]]
    return to_judge, len(rows) - len(to_judge)


def _judge_batch(
    connection: Connection, settings: Settings, run: Run, op_ids: Sequence[str], as_of: datetime
) -> None:
    quiet = timedelta(days=settings.completeness.quiet_days)
    counts = run.report["ops"]
    events, failures = [], []
    for candidate in _candidates(connection, op_ids):
        try:
            datasets = [inventory.stored(text) for text in candidate.records]
            newest = criteria.newest_arrival(datasets, settings.qualification)
            if newest is not None and newest + quiet > as_of:
                counts["waiting"] += 1
                continue
            verdict = criteria.judge(datasets, settings.qualification)
        except Exception as problem:  # whatever it is, it is this OP's alone: the others are judged
            failures.append((candidate, f"{type(problem).__name__}: {problem}"))
            continue
        events.append(_event(candidate, verdict, run.report["criteria_version"], newest))
    with connection.transaction():
        added = record.add(connection, events, run.actor, run.run_id)
        for candidate, cause in failures:
            record.fail(connection, candidate.op_id, candidate.seq, "qualify", cause, run.actor, run.run_id)
    for event in events:
        if event.op_id in added:
            counts["judged"] += 1
            invertible = event.detail["verdict"]["invertible"]
            counts["invertible" if invertible else "not_invertible"] += 1
    counts["failed"] += len(failures)


def _candidates(connection: Connection, op_ids: Sequence[str]) -> list[Candidate]:
    rows = connection.execute(
        """
        select s.op_id, s.seq, s.state, e.detail -> 'verdict' as verdict
        from l2inv.op_state s left join l2inv.event e on e.op_id = s.op_id and e.seq = s.verdict_seq
        where s.op_id = any(%s) order by s.op_id
        """,
        [op_ids],
    ).fetchall()
    found = {row["op_id"]: Candidate(**row, versions={}, records=[]) for row in rows}
    datasets = connection.execute(
        "select op_id, dataset_id, version, record::text as record from l2inv.dataset where op_id = any(%s)",
        [op_ids],
    )
    for row in datasets:
        candidate = found[row["op_id"]]
        candidate.versions[row["dataset_id"]] = row["version"]
        candidate.records.append(row["record"])
    return list(found.values())


def _event(
    candidate: Candidate, verdict: criteria.Verdict, version: str, newest: datetime | None
) -> record.Event:
    """The state stays where the verdict does; what was preprocessed stays so for the same instrument programs."""
    state: states.State = "invertible" if verdict["invertible"] else "not_invertible"
    same = candidate.state == state or (
        candidate.state == "preprocessed"
        and candidate.verdict is not None
        and _invertible_programs(candidate.verdict) == _invertible_programs(verdict) != []
    )
    detail = {
        "criteria_version": version,
        "verdict": {"criteria_version": version, **verdict},
        "datasets": dict(sorted(candidate.versions.items())),
        "newest_arrival": newest,
    }
    return record.Event(
        candidate.op_id, candidate.seq, "judged", None if same else state, msgspec.to_builtins(detail)
    )


def _invertible_programs(verdict: criteria.Verdict) -> list[str | None]:
    return [p["instrument_program_id"] for p in verdict["instrument_programs"] if p["invertible"]]
