"""verify: judges again what was judged, from the dataset versions and the criteria of its time."""

from typing import Any

import msgspec

from l2inv import criteria, inventory
from l2inv.database import Connection
from l2inv.settings import Qualification

BATCH = 1000  # verdicts at a time


def verdicts(connection: Connection) -> dict[str, Any]:
    """Judges every recorded verdict again and gives how many were checked, and one finding for each that differs."""
    rules = {
        row["criteria_version"]: msgspec.convert(row["rules"], Qualification)
        for row in connection.execute("select criteria_version, rules from l2inv.criteria")
    }
    findings: list[dict[str, Any]] = []
    checked = 0
    after = 0
    while rows := _batch(connection, after):
        after = rows[-1]["event_id"]
        versions = _records(connection, [v for row in rows for v in row["datasets"].items()])
        for row in rows:
            checked += 1
            problem = _differs(row, rules, versions)
            if problem:
                findings.append(
                    {"what": "verdict", "event_id": row["event_id"], "op_id": row["op_id"], "detail": problem}
                )
    return {"checked": {"verdicts": checked}, "findings": findings}


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
    row: dict[str, Any], rules: dict[str, Qualification], versions: dict[tuple[str, int], inventory.Dataset]
) -> str | None:
    """Says what is wrong with a verdict, or None."""
    recorded = row["verdict"]
    version = recorded["criteria_version"]
    if version not in rules:
        return f"criteria {version} are not kept"
    if criteria.version(rules[version]) != version:
        return f"criteria {version} are not those that were kept under this name"
    missing = [f"{d} version {v}" for d, v in row["datasets"].items() if (d, v) not in versions]
    if missing:
        return f"dataset {', '.join(missing)} is not kept"
    judged = criteria.judge([versions[used] for used in row["datasets"].items()], rules[version])
    again = {"criteria_version": version, **judged}
    if _numbers_as_floats(again) == _numbers_as_floats(recorded):
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
