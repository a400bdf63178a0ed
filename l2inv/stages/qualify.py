"""qualify: judges each OP that is quiet by the criteria of invertibility, and again when data or criteria changed.

A scientist may overrule a verdict; that holds until the OP's datasets change.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
from psycopg.types.json import Jsonb

from l2inv.config.settings import Settings
from l2inv.database.connection import Connection
from l2inv.documents import Json
from l2inv.domain import criteria, inventory, states
from l2inv.errors import Refused, StoreError
from l2inv.record import event_log
from l2inv.services import metadata_store
from l2inv.services.metadata_store import Recipes
from l2inv.stages.stage import Counts, Progress, Report, Stage, opened

BATCH = 1000  # OPs read, judged and recorded at a time


class Judged(Counts):
    """Counts of the OPs that could be judged."""

    judged: int = 0
    invertible: int = 0
    not_invertible: int = 0
    waiting: int = 0
    unchanged: int = 0
    failed: int = 0


class Qualified(Report, kw_only=True):
    """The report of qualify. `recipes` and `outstanding` are there where the store is asked what L1 has finished."""

    stage: str = "qualify"
    ops: Judged = msgspec.field(default_factory=Judged)
    criteria_version: str
    as_of: datetime
    recipes: str | msgspec.UnsetType = msgspec.UNSET  # "known", or why they are not
    outstanding: dict[str, int] | msgspec.UnsetType = msgspec.UNSET  # recipes to come of the waiting OPs


class Candidate(msgspec.Struct):
    """An OP to be judged, with the newest version of each of its datasets."""

    op_id: str
    seq: int
    state: str
    verdict: criteria.Verdict | None
    same_data: bool  # as the newest verdict was on
    versions: dict[str, int]
    first_seen: dict[str, datetime]
    records: list[str]


def qualify(
    connection: Connection,
    settings: Settings,
    actor: str,
    as_of: datetime,
    progress: Progress = lambda done, of: None,
) -> Qualified:
    """Judge the OPs that are due as of a time, and return the stage's report.

    OPs that are claimed, inverted or published are not judged. An OP that cannot be judged goes to `error`. If the
    settings say so, the store is asked which OPs L1 has finished, and these need not wait. Raise Busy and DatabaseError;
    batches recorded until then stay.
    """
    version = criteria.version(settings.qualification)
    report = Qualified(criteria_version=version, as_of=as_of.astimezone(UTC))
    with opened(connection, settings, actor, report, progress) as stage:
        keep_criteria(connection, version, settings)
        recipes = _recipes(stage) if settings.completeness.processing_candidates else {}
        op_ids, report.ops.unchanged = _to_judge(connection, version)
        for start in range(0, len(op_ids), BATCH):
            _judge_batch(stage, op_ids[start : start + BATCH], recipes)
            progress(min(start + BATCH, len(op_ids)), len(op_ids))
    return report


def _recipes(stage: Stage[Qualified]) -> dict[str, Recipes]:
    """Return the recipes that L1 plans and has completed by OP; nothing, with a warning, if the store does not answer."""
    report = stage.report
    report.outstanding = {}
    recipes: dict[str, Recipes] = {}
    report.recipes = "known"
    try:
        with metadata_store.source(stage.settings.metadata_store) as store:
            recipes = store.recipes()
    except StoreError as problem:
        report.recipes = problem.message
        stage.warn(f"used quiet days only, since it is unknown what L1 has finished: {report.recipes}")
    return recipes


def keep_criteria(connection: Connection, version: str, settings: Settings) -> None:
    connection.execute(
        "insert into l2inv.criteria (criteria_version, rules) values (%s, %s) on conflict do nothing",
        [version, Jsonb(criteria.deciding(settings.qualification))],
    )


def _to_judge(connection: Connection, version: str) -> tuple[list[str], int]:
    """Return the OPs without a verdict on their present datasets by these criteria, and how many have one."""
    unjudged, judged = [], 0
    with connection.transaction(), connection.cursor("l2inv_to_judge") as cursor:
        cursor.itersize = 5000
        cursor.execute(
            """
            select op_id, verdict_seq > datasets_seq and (criteria_version = %s or overruled_seq is not null) as judged
            from l2inv.op_state
            where state in ('discovered', 'invertible', 'not_invertible', 'preprocessed')
            order by op_id
            """,
            [version],
        )
        for row in cursor:
            if row["judged"]:
                judged += 1
            else:
                unjudged.append(row["op_id"])
    return unjudged, judged


def _judge_batch(stage: Stage[Qualified], op_ids: Sequence[str], recipes: dict[str, Recipes]) -> None:
    settings, report, counts = stage.settings, stage.report, stage.report.ops
    quiet = timedelta(days=settings.completeness.quiet_days)
    events, failures = [], []
    for candidate in _candidates(stage.connection, op_ids):
        try:
            datasets = [inventory.stored(text) for text in candidate.records]
            newest = criteria.newest_arrival(datasets, settings.qualification, candidate.first_seen)
            planned = recipes.get(candidate.op_id)
            finished = planned is not None and 0 < planned.planned <= planned.complete
            if newest is not None and report.as_of - newest < quiet and not finished:
                counts.waiting += 1
                if planned is not None and report.outstanding is not msgspec.UNSET:
                    report.outstanding[candidate.op_id] = planned.planned - planned.complete
                continue
            verdict = criteria.judge(datasets, settings.qualification)
        except Exception as problem:  # of this OP alone: the others are judged
            failures.append((candidate, f"{type(problem).__name__}: {problem}"))
            continue
        events.append(_event(candidate, verdict, report, newest, planned))
    with stage.connection.transaction():
        added = stage.add(events)
        for candidate, cause in failures:
            stage.fail(candidate.op_id, candidate.seq, cause)
    for event in events:
        if event.op_id in added:
            counts.judged += 1
            stage.count("invertible" if event.detail["verdict"]["invertible"] else "not_invertible")
    counts.failed += len(failures)


def _candidates(connection: Connection, op_ids: Sequence[str]) -> list[Candidate]:
    rows = connection.execute(
        """
        select s.op_id, s.seq, s.state, e.detail -> 'verdict' as verdict,
               coalesce(s.verdict_seq > s.datasets_seq, false) as same_data
        from l2inv.op_state s left join l2inv.event e on e.op_id = s.op_id and e.seq = s.verdict_seq
        where s.op_id = any(%s) order by s.op_id
        """,
        [op_ids],
    ).fetchall()
    found = {row["op_id"]: Candidate(**row, versions={}, first_seen={}, records=[]) for row in rows}
    datasets = connection.execute(
        """
        select op_id, dataset_id, version, record::text as record,
               case when version = 1 then recorded_at
                    else (select f.recorded_at from l2inv.dataset_version f
                          where f.dataset_id = d.dataset_id and f.version = 1) end as first_seen
        from l2inv.dataset d where op_id = any(%s) and not withdrawn
        """,
        [op_ids],
    )
    for row in datasets:
        candidate = found[row["op_id"]]
        candidate.versions[row["dataset_id"]] = row["version"]
        candidate.first_seen[row["dataset_id"]] = row["first_seen"]
        candidate.records.append(row["record"])
    return list(found.values())


def _event(
    candidate: Candidate,
    verdict: criteria.Verdict,
    report: Qualified,
    newest: datetime | None,
    planned: Recipes | None,
) -> event_log.Event:
    """Return the event: the state stays if the verdict does; preprocessed stays for the same instrument programs."""
    state: states.State = "invertible" if verdict["invertible"] else "not_invertible"
    same = candidate.state == state or (
        candidate.state == "preprocessed"
        and candidate.same_data
        and candidate.verdict is not None
        and _invertible_programs(candidate.verdict) == _invertible_programs(verdict) != []
    )
    detail: Json = {
        "criteria_version": report.criteria_version,
        "verdict": {"criteria_version": report.criteria_version, **verdict},
        "datasets": dict(sorted(candidate.versions.items())),
        "newest_arrival": newest,
        "as_of": report.as_of,
    }
    if planned is not None:
        detail["recipes"] = planned
    return event_log.Event(
        candidate.op_id, candidate.seq, "judged", None if same else state, msgspec.to_builtins(detail)
    )


def _invertible_programs(verdict: criteria.Verdict) -> list[str | None]:
    return [p["instrument_program_id"] for p in verdict["instrument_programs"] if p["invertible"]]


def overrule(
    connection: Connection, op_id: str, invertible: bool, reason: str, programs: Sequence[str], actor: str
) -> None:
    """Record a scientist's decision that overrules, or confirms, the newest verdict, which the event contains.

    The given instrument programs are then invertible, or all that were judged and have an id. It applies until the
    datasets change, whatever the criteria. Raise Refused for an OP that was never judged, that is claimed, inverted or
    published, or whose inversions could not be published.
    """
    with connection.transaction():
        present = event_log.locked(connection, op_id)
        judged = event_log.newest(connection, op_id, "judged")
        stale = present.datasets_seq > (present.verdict_seq or 0)
        if judged is None or present.state not in states.JUDGED or stale:
            raise Refused(
                f"OP {op_id} is {present.state}: there is no verdict on its present datasets to overrule",
                f"see: l2inv show {op_id}",
            )
        verdict = judged["verdict"]
        judged_ids = [p["instrument_program_id"] for p in verdict["instrument_programs"]]
        known = [program_id for program_id in judged_ids if program_id is not None]
        unknown = sorted(set(programs) - set(known))
        if invertible and judged_ids and not known:
            raise Refused(
                f"OP {op_id}: its datasets name no instrument program, so no inversion of it could be published",
                f"once the metadata store names one, l2inv scan and qualify judge it again; see: l2inv explain {op_id}",
            )
        if unknown or (invertible and not known):
            what = (
                f"no instrument program {', '.join(unknown)}" if unknown else "no instrument program at all"
            )
            raise Refused(f"the verdict on OP {op_id} knows {what}", f"see: l2inv explain {op_id}")
        state: states.State = "invertible" if invertible else "not_invertible"
        chosen = (list(programs) or known) if invertible else []
        prepared = present.state == "preprocessed" and chosen == event_log.invertible_programs(
            connection, op_id
        )
        stays = present.state == state or (invertible and prepared)
        detail = {
            "invertible": invertible,
            "reason": reason,
            "instrument_programs": chosen,
            "criteria_version": judged["criteria_version"],
            "verdict_seq": present.verdict_seq,
            "verdict": verdict,
        }
        event_log.add_one(connection, present, "overruled", None if stays else state, actor, detail)
