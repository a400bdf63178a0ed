"""Details of events: the database refuses any on which a view, a trigger or a command could fail."""

import copy
import json
import random
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from l2inv import wording
from l2inv.config.settings import Qualification, Settings
from l2inv.database.connection import Connection
from l2inv.domain import states
from l2inv.domain.inventory import Dataset, Distribution, Frames, Id, stored
from l2inv.errors import L2invError
from l2inv.queries import observing_programs, verdicts
from l2inv.record import event_log as record
from l2inv.stages.publish import preflight
from tests.helpers.commands import Commands
from tests.helpers.events import INVERSION, LEAST, PAST, READY, WAYS

KINDS = sorted(LEAST)
CRITERION = {
    "name": "ao",
    "result": "fail",
    "dataset_id": "A",
    "measured": 0.5,
    "required": 0.75,
    "optional": False,
}
BAND = {
    "name": "band Fe I",
    "result": "pass",
    "dataset_id": None,
    "measured": [[630.0, 631.0]],
    "required": 630.3,
}
PROGRAM = {"instrument_program_id": "id.1.1", "invertible": False, "criteria": [CRITERION, BAND]}
PIN = "1:0123456789abcdef"
# With all that each kind may hold.
MOST: dict[str, dict[str, Any]] = copy.deepcopy(LEAST)
MOST["discovered"] |= {
    "datasets": ["A"],
    "versions": {"A": PIN},
    "proposal_id": "pid_1",
    "experiment_id": None,
}
MOST["datasets_changed"] |= {
    "affects_verdict": True, "new": ["A"], "changed": {"B": ["ao_locked"], "C": {"ao_locked": [1, 2]}}, "left": ["D"],
    "withdrawn": {"E": None, "F": "A"}, "versions": {"A": PIN},
}  # fmt: skip
MOST["judged"]["verdict"]["instrument_programs"] = [PROGRAM]
MOST["judged"] |= {"datasets": {"A": 1}, "newest_arrival": PAST}
MOST["overruled"] |= {"instrument_programs": ["id.1.1", None], "verdict": {}, "verdict_seq": 2}
MOST["preprocessed"] |= {
    "needed": True, "seconds": 1.5, "folder": "/work/op", "files": [{"path": "a", "size_bytes": 1, "sha256": "ff"}]
}  # fmt: skip
MOST["claimed"] |= {
    "due_at": PAST,
    "inversions": [{"inversion_id": "inv.ABCDEF", "instrument_program_id": "id.1.1"}],
}
MOST["inverted"] = READY | {
    "outputs": [{"uri": "/x", "size_bytes": 1, "sha256": "ff"}], "lines": ["Fe I"], "software": {"name": "DeSIRe", "version": None},
    "accepted": {"superseded": {"A": "withdrawn"}, "reason": "good"}, "note": "x",
    "inversions": [MOST["claimed"]["inversions"][0] | {
        "datasets": ["A"], "outputs": [{"uri": "/x"}], "lines": ["Fe I"], "asdf_object_key": None
    }],
}  # fmt: skip
MOST["amended"] = MOST["inverted"]
MOST["published"] = {
    "inversions": [
        INVERSION | {"software": {"name": "DeSIRe"}, "spectral_lines": ["Fe I"], "embargo_end_date": PAST}
    ]
}
MOST["withdrawn"] |= {"inversion_ids": ["inv.000001"], "cycle": 1}
MOST["reinstated"] |= {"inversion_ids": ["inv.000001"]}
MOST["preprocess_started"] |= {"after": "NODE_FAIL"}
MOST["transfer_started"] |= {"attempt": 1}
MOST["cataloged"] |= {"files": ["pid_1/inv_000001/a.fits"], "of": 2, "whole": False}
MOST["noted"] |= {"beside": ["inv.000002"]}
MOST["handed_over"] |= {"due_at": PAST}
MOST["taken_over"] |= {"was_due_at": PAST}
MOST["released"] |= {"reason": "x"}
MOST["retried"] |= {"stage": None, "attempt": 1}

# JSON that Python does not write: for each of these texts.
RAW = {
    "@long": "1e5000",
    "@deep": "[" * 2000 + "]" * 2000,
    "@deeper": "[" * 200_000 + "]" * 200_000,
    "@small": "1e-5000",
}
VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 10**9, 10**400, -(10**400), *RAW, "", "x", "inv.000001", "A", "1", "-", "\ud7ff\x1b[31m", [], {}, [None],
    ["x"], [["x"]], [{}], [[{}]], {"x": None}, {"x": "y"}, {"x": ["y"]}, {"x": [["y"]]}, {"": {}}, PAST, "2026-02-30T00:00:00Z",
    "9999-12-31T23:59:60Z", "9999-12-31T23:59:59-12:00", "0000-01-01T00:00:00Z", "infinity", "now", "2026-01-01", "1:0123456789abcdef",
    "99999999999:0123456789abcdef", [INVERSION], [INVERSION | {"cycle": 1.0}], {"superseded": ["A"]}, [PROGRAM | {"criteria": [[CRITERION]]}],
    [PROGRAM | {"criteria": [CRITERION | {"measured": 1e308, "required": -1e308}]}], [PROGRAM | {"instrument_program_id": [None]}],
]  # fmt: skip


def places(value: Any) -> Iterator[tuple[str | int, ...]]:
    """The path of everything in a value, and one that is in none of its objects yet."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (key,)
        yield from ((key, *path) for path in places(part))
    if isinstance(value, dict):
        yield ("more",)


GONE = object()


def changed(detail: Any, path: tuple[str | int, ...], to: Any) -> Any:
    """The detail with something else, or nothing, at a place of it."""
    detail = copy.deepcopy(detail)
    at = detail
    for key in path[:-1]:
        at = at[key]
    if to is not GONE:
        at[path[-1]] = to
    elif path[-1] != "more":
        del at[path[-1]]
    return detail


def as_text(detail: Any) -> str:
    text = json.dumps(detail)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text


def fitting(connection: Connection, cases: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Those that the database takes; what it cannot read, or what a cast refuses, it does not take either."""
    found = []
    for kind, detail in cases:
        try:
            row = connection.execute(
                "select l2inv.detail_fits(%s, %s) as fits", [kind, as_text(detail)]
            ).fetchone()
        except psycopg.Error:
            continue
        assert row is not None
        assert row["fits"] is not None, (kind, detail)
        if row["fits"]:
            found.append((kind, detail))
    return found


WAY = WAYS | {"error": [*WAYS["inverted"], ("failed", "error")]}
# Where each kind is told from, if there is a choice: where most is made of it.
FROM: dict[str, str] = {
    "judged": "discovered",
    "overruled": "invertible",
    "failed": "inverted",
    "retried": "error",
}
FROM |= dict.fromkeys(("withdrawn", "reinstated", "restored", "voided"), "published")


def recorded(connection: Connection, cases: list[tuple[str, Any]]) -> list[str]:
    """Record each on an OP of its own and return these; what is refused for other reasons than its detail, on none."""
    ops = []
    for place, (kind, detail) in enumerate(cases):
        op_id = f"op.{place}.{kind}"
        edges = states.EDGES.get(kind, {("error", "inverted")})
        before, after = min(edges, key=lambda edge: (edge[0] != FROM.get(kind), str(edge)))
        steps = [(*step, LEAST[step[0]]) for step in (WAY[before] if before else [])] + [
            (kind, after, detail)
        ]
        try:
            with connection.transaction(), connection.cursor() as cursor:
                cursor.executemany(
                    "insert into l2inv.event (op_id, seq, kind, state, actor, detail) values (%s, %s, %s, %s, 'x', %s)",
                    [(op_id, seq, *step[:2], as_text(step[2])) for seq, step in enumerate(steps, 1)],
                )
            ops.append(op_id)
        except psycopg.Error as refusal:
            assert refusal.sqlstate == "L2INV", (kind, detail, refusal)
    return ops


def everything_is_read(l2inv: Commands, connection: Connection, ops: list[str], folder: Path) -> None:
    """Every view, and every command that reads what events say."""
    for row in connection.execute("select viewname from pg_views where schemaname = 'l2inv'").fetchall():
        connection.execute(f"select * from l2inv.{row['viewname']}").fetchall()
    for op_id in ops:
        for event in observing_programs.history(connection, op_id)["events"]:
            wording.clean(wording.what_happened(event))
        wording.as_json(observing_programs.show(connection, op_id, Qualification()))
        verdicts.explain(connection, op_id, Qualification())
        record.invertible_programs(connection, op_id)
    for op_id in preflight.inverted_ops(connection):
        try:
            preflight.preflight(connection, Settings(), op_id)
        except L2invError:
            continue
    for argv in (
        ("list",), ("list", "--json"), ("export",), ("export", "--json"), ("export", "--format", "csv"), ("near-misses",), ("overdue",),
        ("digest",), ("status",), ("mine",), ("criteria",), ("next",), ("history", ops[0]), ("history", ops[0], "--json"),
        ("show", ops[0]), ("files", ops[0]), ("check", ops[0]), ("report", str(folder / "page.html")), ("verify",), ("qualify",), ("preprocess",),
        ("publish", "--dry-run"), ("clean", "--older-than", "1h", "--dry-run"),
    ):  # fmt: skip
        answer = l2inv(*argv, expect=None)
        assert answer.exit_code in (0, 3, 4, 5), (argv, answer)
        assert "unexpected" not in answer.stderr, (argv, answer)


def test_each_kinds_required_detail_is_accepted_and_refused_without_any_part(connection: Connection) -> None:
    assert {*KINDS} == {*states.MEANINGS}
    for kind in KINDS:
        assert fitting(connection, [(kind, LEAST[kind]), (kind, MOST[kind])]) == [
            (kind, LEAST[kind]),
            (kind, MOST[kind]),
        ]
        for key in LEAST[kind]:
            assert fitting(connection, [(kind, changed(LEAST[kind], (key,), GONE))]) == [], (kind, key)
            assert fitting(connection, [(kind, changed(LEAST[kind], (key,), [[1]]))]) == [], (kind, key)


@pytest.mark.parametrize(
    ("kind", "path", "to"),
    [
        ("preprocess_started", ("after",), 7),
        ("preprocess_started", ("job",), "../../x"),
        ("transfer_started", ("job",), "x" * 101),
        ("transfer_started", ("move", "source"), 1),
        ("cataloged", ("files",), [1]),
        ("inverted", ("inversions", 0, "outputs"), "x"),
        ("amended", ("inversions", 0, "datasets"), [[1]]),
    ],
)
def test_what_would_end_a_stage_for_every_op_does_not_fit(
    connection: Connection, kind: str, path: tuple[str | int, ...], to: Any
) -> None:
    assert fitting(connection, [(kind, changed(MOST[kind], path, to))]) == []


def test_every_type_that_a_shape_names_is_one_that_is_known(connection: Connection) -> None:
    """An unknown one would refuse whatever there is, and a shape that nobody names would check nothing."""
    names = {row["name"] for row in connection.execute(
        "select m[1] as name from pg_proc, regexp_matches(prosrc, 'when ''([a-z_]+)'' then', 'g') m "
        "where oid in ('l2inv.shape'::regproc, 'l2inv.fits'::regproc)"
    )}  # fmt: skip
    shapes = connection.execute(
        "select name, l2inv.shape(name) as shape from unnest(%s::text[]) name", [sorted(names)]
    ).fetchall()
    types = {t.rstrip("?[]{}") for row in shapes for t in (row["shape"] or {}).values()}
    assert types <= names
    assert {row["name"] for row in shapes if row["shape"] is not None} <= types | {*KINDS} | {
        "inversion",
        "report",
    }


@pytest.mark.parametrize("inversions", ['"x"', "7", "null", "[7]", "{}", '[{"inversion_id": "x"}]'])
def test_one_published_cannot_break_the_export_for_ever(
    l2inv: Commands, ready: list[str], connection: Connection, inversions: str
) -> None:
    l2inv("claim", ready[0])
    l2inv("mark-inverted", ready[0])
    with pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(
            "insert into l2inv.event (op_id, seq, kind, state, actor, detail) "
            "select op_id, seq + 1, 'published', 'published', 'eve', jsonb_build_object('inversions', %s::jsonb) "
            "from l2inv.op_state where op_id = %s",
            [inversions, ready[0]],
        )


EVERY_CHANGE = [
    (kind, path, to) for kind in KINDS for path in places(MOST[kind]) for to in [GONE, *VALUES]
]  # fmt: skip


def attacked(l2inv: Commands, connection: Connection, folder: Path, changes: list[Any]) -> None:
    cases = [(kind, changed(MOST[kind], path, to)) for kind, path, to in changes]
    taken = fitting(connection, cases)
    print(f"\n{len(taken)} of {len(cases)} details are taken")
    assert len(cases) / 5 < len(taken) < len(cases) / 2
    everything_is_read(l2inv, connection, recorded(connection, taken), folder)


def test_whatever_is_changed_in_a_detail_is_refused_or_breaks_nothing(
    l2inv: Commands, connection: Connection, tmp_path: Path
) -> None:
    attacked(l2inv, connection, tmp_path, random.Random(7).sample(EVERY_CHANGE, 700))


@pytest.mark.slow
def test_every_change_in_every_detail_is_refused_or_breaks_nothing(
    l2inv: Commands, connection: Connection, tmp_path: Path
) -> None:
    attacked(l2inv, connection, tmp_path, EVERY_CHANGE)


def test_whatever_is_changed_in_a_datasets_record_is_refused_or_breaks_nothing(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    row = connection.execute("select record from l2inv.dataset where instrument = 'VISP' limit 1").fetchone()
    assert row is not None
    record = row["record"] | {
        "polarimetricAccuracy": {"min": 0.1},
        "isEmbargoed": True,
        "embargoEndDate": PAST,
    }
    assert record.keys() == set(Dataset.__struct_encode_fields__), "the sample holds every field"
    numbers = ["@small", "@long", 5e-324, 1.7976931348623157e308, 2**53 - 1, 10**15]
    changes = [(path, to) for path in places(record) for to in [GONE, *VALUES, *numbers]]
    for path, to in random.Random(7).sample(changes, 600):
        with connection.transaction(force_rollback=True):
            try:
                with connection.transaction():
                    connection.execute(
                        """
                        insert into l2inv.dataset_version (dataset_id, version, op_id, content_hash, record, run_id)
                        values ('NEW', 1, %s, '', %s, 1)
                        """,
                        [ready[0], as_text(changed(record, path, to))],
                    )
            except (psycopg.DataError, psycopg.errors.CheckViolation, psycopg.errors.StatementTooComplex):
                continue
            found = connection.execute("select record::text from l2inv.dataset where dataset_id = 'NEW'")
            stored(found.fetchall()[0]["record"])
            connection.execute("select * from l2inv.dataset where dataset_id = 'NEW'").fetchall()
            connection.execute("select * from l2inv.op where op_id = %s", [ready[0]]).fetchall()


NO_TEXT: list[Any] = [None, 1, True, [], {}, ["x"]]
NO_NUMBER: list[Any] = [None, "1", True, [], [1.5], {}, "@small", "@long"]
NO_COUNT: list[Any] = [None, "1", True, [1], {}, 1.0, 1.5, -1, 10**15, "@small"]
NO_TIME: list[Any] = [
    *NO_TEXT, "", "now", "infinity", "2026-01-01", "2026-02-30T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01T00:00:00",
    "2026-01-01T00:00:00+01:00", "2026-01-01T00:00:00.1234567Z", f"{PAST} {PAST}", f" {PAST}", f"{PAST} ", f"{PAST}\n",
]  # fmt: skip
COUNTS: tuple[list[Any], list[Any]] = (
    [{}, {"good": 0, "bad": None}, {"good": 10**15 - 1}],
    [None, "x", 1, [], [{}], *({"good": 1, "bad": n} for n in NO_COUNT[1:])],
)
SPREAD: tuple[list[Any], list[Any]] = (
    [{}, {"med": 0.05, "min": 0, "max": -5e-324}],
    [None, "x", 1, [], [{}], *({"min": 1, "med": n} for n in NO_NUMBER)],
)
# Of each type of a dataset's field: what it may be, and what it may not.
FITTING: dict[Any, tuple[list[Any], list[Any]]] = {
    Id: (["x", "\u00e4"], [*NO_TEXT, ""]),
    str: (["", "x"], NO_TEXT),
    bool: ([True, False], [None, "true", 0, [True], {}]),
    float: ([0, -1.5, 5e-324, 1.7976931348623157e308], NO_NUMBER),
    Frames: ([0, 10**15 - 1], NO_COUNT),
    datetime: ([PAST, "2024-02-29T23:59:59.123456Z", "2026-01-01T00:00:00+00:00"], NO_TIME),
    dict[str, Frames | None]: COUNTS,
    list[str]: ([[], ["x"]], [None, "x", 1, {}, [1], [None], [["x"]], ["x", {}]]),
    Distribution: SPREAD,
}


@pytest.mark.parametrize("field", msgspec.structs.fields(Dataset), ids=lambda field: field.name)
def test_a_record_fits_by_the_type_of_each_field(connection: Connection, field: Any) -> None:
    may, may_not = next(FITTING[type_] for type_ in FITTING if field.type in (type_, type_ | None))
    least = {"datasetId": "A", "observingProgramExecutionId": "op", "createDate": PAST}

    def fits(record: dict[str, Any]) -> bool:
        try:
            row = connection.execute("select l2inv.record_fits(%s) as fits", [as_text(record)]).fetchone()
        except psycopg.DataError:
            return False
        assert row is not None
        assert row["fits"] is not None
        return bool(row["fits"])

    assert [value for value in may if not fits(least | {field.encode_name: value})] == []
    assert [value for value in may_not if fits(least | {field.encode_name: value})] == []
    gone = {key: value for key, value in least.items() if key != field.encode_name}
    assert fits(gone) == (field.encode_name not in least)


@pytest.mark.parametrize(
    "record",
    [None, [], "x", 1, [{"datasetId": "A", "observingProgramExecutionId": "op", "createDate": PAST}]],
)
def test_a_record_is_an_object(connection: Connection, record: Any) -> None:
    row = connection.execute("select l2inv.record_fits(%s) as fits", [json.dumps(record)]).fetchone()
    assert row == {"fits": False}


@pytest.mark.parametrize(
    "kind", ["transfer_started", "transferred", "cataloged", "withdrawn", "inversion_created"]
)
@pytest.mark.parametrize("junk", ["x", 3, None, [], {}, [1], {"a": 1}, True, 20200101])
def test_free_keys_of_a_detail_may_be_anything_and_history_prints_the_rest(kind: str, junk: object) -> None:
    free = (
        "move", "attempt", "job", "executor", "files", "size_bytes", "compared", "destination", "of", "whole",
        "conversation_id", "remains", "create_date", "abandoned",
    )  # fmt: skip
    detail = dict.fromkeys(free, junk) | {
        "cycle": 1, "inversion_id": "inv.7QK2ZD", "instrument_program_id": "id.1.1", "inversion_ids": ["inv.7QK2ZD"],
        "reason": "bad",
    }  # fmt: skip
    assert "inv.7QK2ZD" in wording.what_happened({"kind": kind, "detail": detail})
