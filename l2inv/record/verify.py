"""verify: is the event log intact, and does everything derived from it agree?

All checks stream from one snapshot, in bounded memory and without blocking writers.
"""

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Annotated, Any, LiteralString, cast

import msgspec
import psycopg

from l2inv.config.settings import Qualification
from l2inv.database.connection import Connection, Row
from l2inv.database.schema import applied_migrations
from l2inv.documents import Json
from l2inv.domain import criteria, inventory, measures
from l2inv.record import anchor as anchors
from l2inv.record import structure
from l2inv.record.anchor import Anchor
from l2inv.record.chains import BATCH, Finding, Findings, events, state


class Schema(msgspec.Struct, frozen=True):
    """The schema that was verified."""

    migrations: list[str]
    fingerprint: str


class Verified(msgspec.Struct):
    """How many rows each check looked at, and a finding for each fault; the first of them, if there are many."""

    checked: dict[str, int]
    findings: list[Finding]
    found: int
    schema: Schema | msgspec.UnsetType = msgspec.UNSET
    anchored: int | msgspec.UnsetType = msgspec.UNSET  # heads appended to the anchor


def verify(
    connection: Connection,
    what: str | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
    anchor: Anchor | None = None,
    since: bool = False,
) -> Verified:
    """Run all checks, or the one that is named.

    With an anchor, also compare with it, and append what is new if everything was checked and nothing was found. With
    `since`, check only what the anchor lists and what came after.
    """
    findings = Findings()
    names = [*CHECKS, "schema"] if what is None else [what]
    if since:
        names = [*SINCE, "schema"]
    checked: dict[str, int] = {}
    unread: psycopg.Error | None = None
    with ExitStack() as stack:
        try:
            with connection.transaction():
                connection.execute("set transaction isolation level repeatable read, read only")
                if since:
                    anchors.find_fresh(connection)
                named = [name for name in names if name != "schema"]
                checked |= run_checks(connection, findings, named, progress, since)
                if anchor:
                    checked["anchored"] = anchor.heads
                    anchors.check(connection, findings, anchor)
                    block, heads = stack.enter_context(anchors.block(connection, anchor))
        except (
            psycopg.ProgrammingError
        ) as problem:  # such as a missing column, or a policy that would hide rows
            unread = problem
        if "schema" in names:
            schema = structure.check(connection, findings)
            checked["schema"] = len(schema)
        if unread:
            if not findings.number:
                raise unread
            findings.add("schema", {}, f"not all rows can be read: {_words(unread)}")
        found = Verified(checked, findings.first, findings.number)
        if "schema" in names:
            found.schema = Schema(sorted(applied_migrations(connection)), structure.digest_of(schema))
        if anchor and what is None and not findings.number:
            anchors.append(anchor.path, block)
            found.anchored = heads
    return found


def run_checks(
    connection: Connection,
    findings: Findings,
    names: list[str],
    progress: Callable[[int, int], None],
    since: bool = False,
) -> dict[str, int]:
    """Run the named checks in the open transaction, and return how many rows each checked."""
    checks, of_checks = (SINCE, CHECKED_SINCE) if since else (CHECKS, CHECKED)
    rows = {name: _count(connection, of_checks[name]) for name in names}
    checked, of, before = {}, sum(rows.values()), 0
    for name in names:
        whole = _check(
            connection,
            name,
            checks[name],
            findings,
            lambda done, before=before: progress(before + done, of),  # type: ignore[misc]
        )
        checked[name] = rows[name] if whole else 0
        before += rows[name]
        progress(before, of)
    return checked


def _check(
    connection: Connection,
    name: str,
    check: Callable[..., None],
    findings: Findings,
    progress: Callable[[int], None],
) -> bool:
    """Run one check; return False if it could not be completed.

    A row that cannot be read is a finding: tampered rows may contain anything.
    """
    try:
        with connection.transaction():
            check(connection, findings, progress)
    except psycopg.DataError as problem:
        findings.add(
            name,
            {},
            f"{name} cannot be read to the end: {_words(problem)}; for details: l2inv verify events",
        )
        return False
    return True


def _words(problem: psycopg.Error) -> str:
    """Return PostgreSQL's message without where it happened."""
    return " ".join(str(problem).split("\n", 1)[0].split())


def _count(connection: Connection, table: LiteralString, what: LiteralString = "count(*)") -> int:
    counted = connection.execute(f"select {what} as rows from {table}").fetchone()  # noqa: S608 - text of our own
    assert counted is not None
    rows: int = counted["rows"]
    return rows


def datasets(connection: Connection, findings: Findings, progress: Callable[[int], None]) -> None:
    """Hash every dataset version again, and compare the versions with those that events name.

    Hash the quarantined records, too, which no event names.
    """
    with connection.cursor("verify_datasets") as cursor:
        cursor.execute(
            """
            select dataset_id, op_id, version, content_hash, record::text as record,
                   coalesce(lag(version) over (partition by dataset_id order by version), 0) as previous
            from l2inv.dataset_version
            """
        )
        for checked, row in enumerate(cursor, 1):
            if checked % BATCH == 0:
                progress(checked)
            name = f"dataset {row['dataset_id']} version {row['version']}"
            if row["version"] != row["previous"] + 1:
                findings.add("dataset", row, f"version {row['previous'] + 1} is missing before {name}")
            if _hash_of(row["record"]) != row["content_hash"]:
                findings.add("dataset", row, f"{name} is not what was read")
    with connection.cursor("verify_pins") as cursor:
        cursor.execute(_PINS)
        for row in cursor:
            findings.add(
                "dataset", row, f"dataset {row['dataset_id']} version {row['version']} {row['problem']}"
            )
    with connection.cursor("verify_ranks") as cursor:
        cursor.execute(_RANKS)
        for row in cursor:
            known = [median_m for median_m in row["medians_m"] if median_m is not None]
            word = measures.r0_class(median(known) if known else None)
            if row["r0_class"] != 1 + measures.R0_CLASSES.index(word):
                findings.add("state", row, f"r0_class differs from that of its datasets: {word}")
    with connection.cursor("verify_arrivals") as cursor:
        cursor.execute(_ARRIVALS)
        for row in cursor:
            findings.add("state", row, "arrived or observed differs from what its datasets say")
    with connection.cursor("verify_quarantine") as cursor:
        cursor.execute(
            "select left(encode(raw_hash, 'hex'), 12) as key from l2inv.quarantine where sha256(raw) <> raw_hash"
        )
        for row in cursor:
            findings.add("quarantine", row, f"record {row['key']} is not what was received")


# The r0 class that offered OPs are ranked by, and the medians that it is computed from.
_RANKS = """
    select s.op_id, s.r0_class, array(
        select (v.record -> 'friedParameter' ->> 'med')::double precision from l2inv.dataset_version v
        where v.op_id = s.op_id and not v.withdrawn and not exists (
            select from l2inv.dataset_version newer
            where newer.dataset_id = v.dataset_id and newer.version > v.version)) as medians_m
    from l2inv.op_state s where s.state = 'preprocessed'
"""

_ARRIVALS = """
    with first as (
        select op_id, min((record ->> 'createDate')::timestamptz) as arrived, min((record ->> 'startTime')::timestamptz) as observed
        from l2inv.dataset_version group by op_id
    )
    select op_id from l2inv.op_state s left join first f using (op_id)
    where s.arrived is distinct from f.arrived or s.observed is distinct from f.observed
"""

# Differences between the versions and what the events say of them. An event names the last version of a dataset that
# its scan read; a void one may name anything.
_PINS = """
    with void as (
        select distinct op_id, detail -> 'seq' as seq from l2inv.event where kind = 'voided'
    ), pin as materialized (
        select e.event_id, e.op_id, e.run_id, p.key as dataset_id, split_part(p.value, ':', 1)::integer as version,
               split_part(p.value, ':', 2) as hash, coalesce(e.detail -> 'withdrawn' ? p.key, false) as withdrawn,
               void.seq is not null as is_void
        from l2inv.event e left join void on void.op_id = e.op_id and void.seq = to_jsonb(e.seq),
             jsonb_each_text(e.detail -> 'versions') p
        where e.kind in ('discovered', 'datasets_changed')
    )
    select p.event_id, p.op_id, p.dataset_id, p.version,
           case when v.version is null then 'is missing' else 'is not what its event names' end as problem
    from pin p left join l2inv.dataset_version v using (dataset_id, version)
    where not p.is_void and (v.version is null or left(encode(v.content_hash, 'hex'), 16) <> p.hash
       or v.op_id <> p.op_id or v.run_id <> p.run_id or v.withdrawn <> p.withdrawn)
    union all
    select null, v.op_id, v.dataset_id, v.version, 'is named by no event'
    from l2inv.dataset_version v left join pin p using (dataset_id, version)
    where p.version is null
        and not exists (select from pin later where later.dataset_id = v.dataset_id and later.run_id = v.run_id
                                                    and later.version > v.version)
"""


class _Kept(inventory.Dataset, frozen=True, forbid_unknown_fields=True):
    """A dataset as kept: without the fields that the reader did not know."""


_kept = msgspec.json.Decoder(_Kept)


def _hash_of(record: str | None) -> bytes | None:
    try:
        return hashlib.sha256(inventory.kept(_kept.decode(record or ""))).digest()
    except msgspec.DecodeError:
        return None


def runs(connection: Connection, findings: Findings, _: Callable[[int], None]) -> None:
    """Compare what each run reported with the events and dataset versions that name it: this finds an OP that was
    removed with all its events."""
    with connection.cursor("verify_runs") as cursor:
        cursor.execute(
            """
            with void as (
                select distinct op_id, detail -> 'seq' as seq from l2inv.event where kind = 'voided'
            ), recorded as materialized (
                select run_id, kind, actor, count(*) as rows, min(event_id) as event_id, void.seq is not null as is_void
                from l2inv.event e left join void on void.op_id = e.op_id and void.seq = to_jsonb(e.seq)
                where run_id is not null group by run_id, kind, actor, is_void
            ), reported as (
                select r.run_id, s.kind, s.rows
                from l2inv.run r cross join lateral (values
                    ('scan', 'discovered', (r.result -> 'ops' ->> 'new')::bigint),
                    ('scan', 'datasets_changed', (r.result -> 'ops' ->> 'changed')::bigint),
                    ('qualify', 'judged', (r.result -> 'ops' ->> 'judged')::bigint),
                    ('preprocess', 'preprocessed', (r.result -> 'ops' ->> 'done')::bigint),
                    ('publish', 'published', (r.result -> 'ops' ->> 'done')::bigint)
                ) s (stage, kind, rows)
                where s.stage = r.stage and r.result ? 'seconds'  -- it ended without failing, so what it reports was committed
            )
            select null::bigint as event_id, run_id,
                   format('run %s recorded %s events %s, %s are there', run_id, rows, kind, found) as problem
            from (select p.*, coalesce(t.found, 0) as found
                  from reported p
                  left join (select run_id, kind, sum(rows) as found from recorded group by run_id, kind) t using (run_id, kind)) p
            where found < rows
            union all
            select null, run_id, format('run %s read %s dataset versions, %s are there', run_id, rows, found)
            from (select r.run_id, coalesce(v.found, 0) as found,
                         (r.result -> 'datasets' ->> 'new')::bigint + (r.result -> 'datasets' ->> 'changed')::bigint
                             + (r.result -> 'datasets' ->> 'withdrawn')::bigint as rows
                  from l2inv.run r
                  left join (select run_id, count(*) as found from l2inv.dataset_version group by run_id) v using (run_id)
                  where r.stage = 'scan' and r.result ? 'seconds') r
            where found < rows
            union all
            select t.event_id, t.run_id,
                   case when r.run_id is null then format('run %s, which recorded it, is missing', t.run_id)
                        else format('run %s is of %s by %s, which records no event %s by %s', t.run_id, r.stage, r.actor, t.kind, t.actor)
                   end
            from recorded t left join l2inv.run r using (run_id)
            where not t.is_void and (r.run_id is null or r.actor <> t.actor or (r.stage, t.kind) not in (
                ('scan', 'discovered'), ('scan', 'datasets_changed'), ('qualify', 'judged'), ('qualify', 'failed'),
                ('preprocess', 'preprocess_started'), ('preprocess', 'preprocessed'), ('preprocess', 'failed'),
                ('inbox', 'inverted'), ('publish', 'inversion_named'), ('publish', 'inversion_created'),
                ('publish', 'published'), ('publish', 'failed'), ('publish', 'transfer_started'),
                ('publish', 'transferred'), ('publish', 'cataloged')))
            """
        )
        for row in cursor:
            findings.add("run", row, row["problem"])


class _Judged(msgspec.Struct):
    """The part of a verdict's event that says which datasets and criteria it was judged by."""

    datasets: dict[str, Annotated[int, msgspec.Meta(ge=1, lt=2**31)]]  # id -> version
    verdict: Json
    criteria_version: str


def verdicts(
    connection: Connection, findings: Findings, progress: Callable[[int], None], since: bool = False
) -> None:
    """Judge every recorded verdict again, with the dataset versions and the criteria that it names.

    With `since`, only those after the loaded anchor.
    """
    rules = {}
    for row in connection.execute(
        "select criteria_version, rules from l2inv.criteria order by criteria_version"
    ):
        version = row["criteria_version"]
        rules[version] = _rules(row["rules"], version)
        if rules[version] is None:
            findings.add("criteria", {}, f"criteria {version} are not those that were kept under this name")
    checked = 0
    after = _count(connection, _FRESH, _BEFORE) if since else 0
    while rows := _batch(connection, after):
        after = rows[-1]["event_id"]
        judged = [_judged(row["detail"]) for row in rows]
        used = [version for one in judged if one for version in one.datasets.items()]
        versions = _records(connection, used)
        for row, one in zip(rows, judged, strict=True):
            checked += 1
            problem = _differs(one, rules, versions) if one else "holds no verdict"
            if problem:
                findings.add("verdict", row, problem)
            elif one and row["is_newest"] and _numbers_as_floats(row["reasons"]) != _reasons(one):
                findings.add("state", row, "reasons differ from those of its verdict")
        progress(checked)
    if not since:
        for row in connection.execute(
            "select op_id from l2inv.op_state where verdict_seq is null and reasons is not null"
        ):
            findings.add("state", row, "reasons are there without a verdict")


def _reasons(judged: _Judged) -> Any:
    return _numbers_as_floats(criteria.reasons(cast(criteria.Verdict, judged.verdict)))


_FRESH: LiteralString = "pg_temp.fresh join l2inv.event using (op_id, seq)"
_BEFORE: LiteralString = "coalesce(min(event_id) - 1, 9223372036854775807)"


def _rules(kept: Any, version: str) -> Qualification | None:
    """Return the rules kept under a version; None if they are not the rules of that version."""
    try:
        rules = msgspec.convert(kept, Qualification)
    except msgspec.ValidationError:
        return None
    # Older rules lack the settings that were added later.
    later = criteria.deciding(Qualification())
    same = {name: later[name] for name in criteria.ADDED} | kept == criteria.deciding(rules)
    return rules if same and criteria.version(rules) == version else None


_decoder = msgspec.json.Decoder(_Judged)


def _judged(detail: str | None) -> _Judged | None:
    try:
        judged = _decoder.decode(detail or "")
    except msgspec.DecodeError:
        return None
    return judged if judged.verdict.get("criteria_version") == judged.criteria_version else None


def _batch(connection: Connection, after: int) -> list[Row]:
    return connection.execute(
        """
        select e.event_id, e.op_id, e.detail::text as detail, s.verdict_seq is not null as is_newest, s.reasons
        from l2inv.event e left join l2inv.op_state s on s.op_id = e.op_id and s.verdict_seq = e.seq
        where e.kind = 'judged' and e.event_id > %s and not exists (
            select from l2inv.event v
            where v.op_id = e.op_id and v.kind = 'voided' and v.detail -> 'seq' = to_jsonb(e.seq))
        order by e.event_id limit %s
        """,
        [after, BATCH],
    ).fetchall()


def _records(
    connection: Connection, versions: list[tuple[str, int]]
) -> dict[tuple[str, int], inventory.Dataset | None]:
    """Return the dataset versions by id and number; None for one that cannot be read."""
    rows = connection.execute(
        """
        select v.dataset_id, v.version, v.record::text as record
        from unnest(%s::text[], %s::integer[]) as used (dataset_id, version)
        join l2inv.dataset_version v using (dataset_id, version)
        """,
        [[dataset_id for dataset_id, _ in versions], [version for _, version in versions]],
    )
    return {(row["dataset_id"], row["version"]): _dataset(row["record"]) for row in rows}


def _dataset(record: str | None) -> inventory.Dataset | None:
    try:
        return inventory.stored(record or "")
    except msgspec.DecodeError:
        return None


def _differs(
    row: _Judged,
    rules: dict[str, Qualification | None],
    versions: dict[tuple[str, int], inventory.Dataset | None],
) -> str | None:
    """Return what is wrong with a verdict, or None."""
    recorded, version = row.verdict, row.criteria_version
    if version not in rules:
        return f"criteria {version} are not kept"
    by = rules[version]
    if by is None:
        return f"criteria {version} are not those that were kept under this name"
    missing = [f"{d} version {v}" for d, v in row.datasets.items() if (d, v) not in versions]
    if missing:
        return f"dataset {', '.join(missing)} is not kept"
    datasets = [dataset for used in row.datasets.items() if (dataset := versions[used])]
    if len(datasets) < len(row.datasets):
        return "a dataset that it was judged on cannot be read"
    judged = criteria.judge(datasets, by)
    again = {"criteria_version": version, **judged}
    if again == recorded or _numbers_as_floats(again) == _numbers_as_floats(recorded):
        return None
    parts = sorted(name for name in again | recorded if again.get(name) != recorded.get(name))
    both = f"recorded invertible={recorded.get('invertible')}, now {judged['invertible']}"
    return f"judged again, {', '.join(parts)} differ: {both}"


def _numbers_as_floats(value: Any) -> Any:
    """Return the value with all numbers as floats: jsonb returns a large float as the integer with the same digits."""
    if isinstance(value, dict):
        return {key: _numbers_as_floats(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_numbers_as_floats(inner) for inner in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


CHECKS: dict[str, Callable[..., None]] = {
    "events": events,
    "state": state,
    "verdicts": verdicts,
    "datasets": datasets,
    "runs": runs,
}
CHECKED: dict[str, LiteralString] = {
    "events": "l2inv.event",
    "state": "l2inv.op_state",
    "verdicts": "l2inv.event where kind = 'judged'",
    "datasets": "l2inv.dataset_version",
    "runs": "l2inv.run",
}
# The checks that can be limited to what came after an anchor.
SINCE: dict[str, Callable[..., None]] = {
    "events": partial(events, since=True),
    "state": partial(state, since=True),
    "verdicts": partial(verdicts, since=True),
}
CHECKED_SINCE: dict[str, LiteralString] = {
    "events": "pg_temp.fresh",
    "state": "(select distinct op_id from pg_temp.fresh) op",
    "verdicts": f"{_FRESH} where kind = 'judged'",
}
