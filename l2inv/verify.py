"""verify: whether the record still says what it said, and whether all that is derived from it agrees.

Every check reads one snapshot in a stream, so that memory stays flat and nobody is kept waiting.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, LiteralString

import msgspec

from l2inv import criteria, inventory
from l2inv.database import Connection
from l2inv.errors import L2invError
from l2inv.settings import Qualification

BATCH = 1000  # verdicts, datasets or heads at a time
MOST = 1000  # findings named one by one


class Findings:
    """How many faults were found, and the first of them."""

    def __init__(self) -> None:
        self.number = 0
        self.first: list[dict[str, Any]] = []

    def add(self, what: str, row: dict[str, Any], detail: str) -> None:
        self.number += 1
        if len(self.first) < MOST:
            found = {"what": what, "event_id": row.get("event_id"), "op_id": row["op_id"], "detail": detail}
            self.first.append(found)


def verify(connection: Connection, what: str | None = None) -> dict[str, Any]:
    """Checks events, state, verdicts and datasets, or one of them: how many of each, and one finding for each fault."""
    findings = Findings()
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")
        checked = {
            name: check(connection, findings) for name, check in CHECKS.items() if what in (None, name)
        }
    return {"checked": checked, "findings": findings.first, "found": findings.number}


def events(connection: Connection, findings: Findings) -> int:
    """Checks every OP's chain: seq without holes, and each hash that of the content and of the hash before it."""
    with connection.cursor("verify_events") as cursor:
        cursor.execute(
            """
            select event_id, op_id, seq, previous_seq
            from (select *, lag(hash) over chain as previous_hash, coalesce(lag(seq) over chain, 0) as previous_seq
                  from l2inv.event window chain as (partition by op_id order by seq)) e
            where seq <> previous_seq + 1
               or hash is distinct from l2inv.event_hash(previous_hash, event_id, op_id, seq, kind, state, actor,
                                                         recorded_at, run_id, detail)
            """
        )
        for row in cursor:
            if row["seq"] != row["previous_seq"] + 1:
                gone = f"event {row['previous_seq'] + 1} is missing before event {row['seq']}"
                findings.add("event", row, gone)
            else:
                findings.add("event", row, f"event {row['seq']} is not what was recorded")
    return _count(connection, "event")


def state(connection: Connection, findings: Findings) -> int:
    """Compares each OP's present state with what its events say, the hash of the newest among it."""
    with connection.cursor("verify_state") as cursor:
        cursor.execute(
            """
            select coalesce(s.op_id, e.op_id) as op_id, to_jsonb(s) as kept, to_jsonb(e) as told
            from l2inv.op_state s full join l2inv.op_state_by_events e using (op_id)
            where to_jsonb(s) is distinct from to_jsonb(e)
            """
        )
        for row in cursor:
            kept, told = row["kept"] or {}, row["told"] or {}
            names = sorted(name for name in told | kept if kept.get(name) != told.get(name))
            said = f"{', '.join(names)} differ from what the events say: l2inv verify events says more"
            if not told:
                said = "there are no events of it"
            elif not kept:
                said = "it has events and no state"
            findings.add("state", row, said)
    return _count(connection, "op_state")


def _count(connection: Connection, table: LiteralString) -> int:
    counted = connection.execute(f"select count(*) as rows from l2inv.{table}").fetchone()  # noqa: S608 - one of two names
    assert counted is not None
    rows: int = counted["rows"]
    return rows


def datasets(connection: Connection, findings: Findings) -> int:
    """Hashes every kept dataset version again, and compares the versions there are with those that events name."""
    with connection.cursor("verify_datasets") as cursor:
        cursor.execute(
            """
            select dataset_id, op_id, version, content_hash, record::text as record,
                   coalesce(lag(version) over (partition by dataset_id order by version), 0) as previous
            from l2inv.dataset_version
            """
        )
        checked = 0
        for row in cursor:
            checked += 1
            name = f"dataset {row['dataset_id']} version {row['version']}"
            if row["version"] != row["previous"] + 1:
                findings.add("dataset", row, f"version {row['previous'] + 1} is missing before {name}")
            if _hash_of(row["record"]) != row["content_hash"]:
                findings.add("dataset", row, f"{name} is not what was read")
    with connection.cursor("verify_pins") as cursor:
        cursor.execute(_PINS)
        for row in cursor:
            findings.add(
                "dataset", row, f"dataset {row['dataset_id']} version {row['version']} {row['said']}"
            )
    return checked


# Where the versions that are kept and those that the events name are not the same.
_PINS = """
    with pin as materialized (
        select e.event_id, e.op_id, p.key as dataset_id, split_part(p.value, ':', 1)::integer as version,
               split_part(p.value, ':', 2) as hash
        from l2inv.event e, jsonb_each_text(e.detail -> 'versions') p
        where e.kind in ('discovered', 'datasets_changed')
    )
    select p.event_id, p.op_id, p.dataset_id, p.version,
           case when v.version is null then 'is missing' else 'is not what its event names' end as said
    from pin p left join l2inv.dataset_version v using (dataset_id, version)
    where v.version is null or left(encode(v.content_hash, 'hex'), 16) <> p.hash
    union all
    select null, v.op_id, v.dataset_id, v.version, 'is told of by no event'
    from l2inv.dataset_version v
    join (select dataset_id, max(version) as version from pin group by dataset_id) newest using (dataset_id)
    where v.version > newest.version
"""


def _hash_of(record: str) -> bytes | None:
    try:
        return hashlib.sha256(inventory.kept(inventory.stored(record))).digest()
    except msgspec.ValidationError:
        return None


def anchor(connection: Connection, path: Path) -> dict[str, Any]:
    """Checks that the newest event of each OP that the file names is still there, and its hash the same.

    Gives how many, and one finding for each that is not. A file that is not there yet names none.
    Raises L2invError when it cannot be read.
    """
    checked, findings = 0, Findings()
    try:
        for heads in _anchored(path) if path.exists() else ():
            checked += len(heads)
            rows = connection.execute(
                """
                select op_id, seq, e.event_id
                from unnest(%s::text[], %s::integer[], %s::text[]) as head (op_id, seq, hash)
                left join l2inv.event e using (op_id, seq)
                where encode(e.hash, 'hex') is distinct from head.hash
                """,
                [list(column) for column in zip(*heads, strict=True)],
            ).fetchall()
            for row in rows:
                gone = "is missing" if row["event_id"] is None else "is not what was anchored"
                findings.add("anchor", row, f"event {row['seq']} {gone}")
    except (OSError, ValueError, msgspec.DecodeError) as problem:
        raise L2invError(f"anchor {path}: {problem}", "name a file that verify --anchor wrote") from problem
    return {"checked": {"anchored": checked}, "findings": findings.first, "found": findings.number}


def write_anchor(connection: Connection, path: Path) -> int:
    """Writes each OP's newest event and its hash to a file, one JSON array a line, in place of the one before.

    Gives how many. Keep it where whoever can write to the database cannot. Raises OSError.
    """
    new = path.with_name(path.name + ".new")
    count = 0
    try:
        with (
            connection.transaction(),
            connection.cursor("heads") as cursor,
            new.open("w", encoding="utf-8") as file,
        ):
            cursor.execute(
                "select op_id, seq, encode(hash, 'hex') as hash from l2inv.op_state order by op_id"
            )
            for count, row in enumerate(cursor, 1):  # noqa: B007 - how many there were
                file.write(json.dumps([row["op_id"], row["seq"], row["hash"]]) + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return count


def _anchored(path: Path) -> Iterator[list[tuple[str, int, str]]]:
    with path.open(encoding="utf-8") as lines:
        while batch := [
            msgspec.json.decode(line, type=tuple[str, int, str]) for line in islice(lines, BATCH)
        ]:
            yield batch


def verdicts(connection: Connection, findings: Findings) -> int:
    """Judges every recorded verdict again, on the dataset versions and by the criteria that it names."""
    rules: dict[str, Qualification | None] = {}  # None: not those that were kept under this name
    for row in connection.execute("select criteria_version, rules from l2inv.criteria"):
        kept = msgspec.convert(row["rules"], Qualification)
        rules[row["criteria_version"]] = kept if criteria.version(kept) == row["criteria_version"] else None
    checked = 0
    after = 0
    while rows := _batch(connection, after):
        after = rows[-1]["event_id"]
        versions = _records(connection, [v for row in rows for v in row["datasets"].items()])
        for row in rows:
            checked += 1
            problem = _differs(row, rules, versions)
            if problem:
                findings.add("verdict", row, problem)
    return checked


def _batch(connection: Connection, after: int) -> list[dict[str, Any]]:
    return connection.execute(
        """
        select event_id, op_id, state, detail -> 'verdict' as verdict, detail -> 'datasets' as datasets
        from l2inv.event where kind = 'judged' and event_id > %s order by event_id limit %s
        """,
        [after, BATCH],
    ).fetchall()


def _records(
    connection: Connection, versions: list[tuple[str, int]]
) -> dict[tuple[str, int], inventory.Dataset]:
    rows = connection.execute(
        """
        select v.dataset_id, v.version, v.record::text as record
        from unnest(%s::text[], %s::integer[]) as used (dataset_id, version)
        join l2inv.dataset_version v using (dataset_id, version)
        """,
        [[dataset_id for dataset_id, _ in versions], [version for _, version in versions]],
    )
    return {(row["dataset_id"], row["version"]): inventory.stored(row["record"]) for row in rows}


def _differs(
    row: dict[str, Any],
    rules: dict[str, Qualification | None],
    versions: dict[tuple[str, int], inventory.Dataset],
) -> str | None:
    """Says what is wrong with a verdict, or None."""
    recorded = row["verdict"]
    version = recorded["criteria_version"]
    if version not in rules:
        return f"criteria {version} are not kept"
    judged_by = rules[version]
    if judged_by is None:
        return f"criteria {version} are not those that were kept under this name"
    missing = [f"{d} version {v}" for d, v in row["datasets"].items() if (d, v) not in versions]
    if missing:
        return f"dataset {', '.join(missing)} is not kept"
    judged = criteria.judge([versions[used] for used in row["datasets"].items()], judged_by)
    again = {"criteria_version": version, **judged}
    if again == recorded or _numbers_as_floats(again) == _numbers_as_floats(recorded):
        return None
    parts = sorted(name for name in again if again[name] != recorded.get(name))
    return f"judged again, {', '.join(parts)} differ: recorded invertible={recorded['invertible']}, now {judged['invertible']}"


def _numbers_as_floats(value: Any) -> Any:
    """jsonb gives a large float back as the integer with the same digits."""
    if isinstance(value, dict):
        return {key: _numbers_as_floats(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_numbers_as_floats(inner) for inner in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


CHECKS = {"events": events, "state": state, "verdicts": verdicts, "datasets": datasets}
