"""What if other criteria applied: every OP is judged by two rule sets, and nothing is written."""

from collections.abc import Callable, Iterator
from itertools import groupby
from operator import itemgetter

from l2inv.config.settings import Qualification
from l2inv.database.connection import Connection
from l2inv.documents import Json
from l2inv.domain import criteria, inventory


def what_if(
    connection: Connection,
    present: Qualification,
    other: Qualification,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Json:
    """Return the OPs that would become invertible or cease to be under other criteria, and how many would not change.

    Both rule sets judge the present datasets of every OP that has one, whatever its state and complete or not.
    `failed` names the OPs that cannot be judged. PostgreSQL itself refuses any write meanwhile.
    """
    found: dict[str, list[str]] = {"gained": [], "lost": [], "failed": []}
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")
        ops = _count(connection)
        for done, (op_id, records) in enumerate(_ops(connection, [*present.instruments, *other.instruments])):
            if done % 1000 == 0:
                progress(done, ops)
            try:
                datasets = [inventory.stored(record) for record in records]
                now, then = (criteria.judge(datasets, rules)["invertible"] for rules in (present, other))
            except Exception:  # of this OP alone: the others are judged
                found["failed"].append(op_id)
                continue
            if now != then:
                found["gained" if then else "lost"].append(op_id)
    unchanged = ops - sum(map(len, found.values()))
    return {**found, "unchanged": unchanged, "criteria_version": criteria.version(other)}


def _count(connection: Connection) -> int:
    row = connection.execute(
        "select count(distinct op_id) as ops from l2inv.dataset where not withdrawn"
    ).fetchone()
    assert row is not None
    ops: int = row["ops"]
    return ops


def _ops(connection: Connection, instruments: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the OPs with a dataset of these instruments, and their records. The others are invertible by no rule."""
    with connection.cursor("what_if") as cursor:
        cursor.itersize = 5000
        cursor.execute(
            """
            select op_id, (record - 'experimentDescription')::text as record from l2inv.dataset
            where instrument = any(%s) and not withdrawn order by op_id
            """,
            [instruments],
        )
        for op_id, rows in groupby(cursor, key=itemgetter("op_id")):
            yield op_id, [row["record"] for row in rows]
