"""The event log: what the database refuses, compared with states.py."""

import re
from itertools import product
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from l2inv.database.connection import Connection
from l2inv.database.schema import migrations_folder
from l2inv.domain import states
from l2inv.errors import Refused
from l2inv.record import event_log, verify
from l2inv.record.chains import Findings
from tests.helpers.events import LEAST, PAST, VERDICT, WAYS

WAY = WAYS | {"error": [*WAYS["working"], ("failed", "error")]}


def verdict(kind: str, state: str) -> dict[str, Any]:
    """Return what an event that judges says where it leaves an OP in that state."""
    invertible: dict[str, Any] = {"invertible": state != "not_invertible"}
    return {"judged": {"verdict": VERDICT | invertible}, "overruled": invertible}.get(kind, {})


def insert(connection: Connection, op_id: str, at: int, kind: str, state: str | None, **detail: Any) -> None:
    if kind in ("judged", "overruled"):
        detail = verdict(kind, state or present(connection, op_id)["state"]) | detail
    detail = LEAST.get(kind, {}) | detail
    connection.execute(
        "insert into l2inv.event (op_id, seq, kind, state, actor, detail) values (%s, %s, %s, %s, 'test', %s)",
        [op_id, at, kind, state, Jsonb(detail)],
    )


def bring(connection: Connection, op_id: str, state: str) -> int:
    for seq, (kind, after) in enumerate(WAY[state], 1):
        insert(connection, op_id, seq, kind, after)
    return len(WAY[state])


def present(connection: Connection, op_id: str) -> dict[str, Any]:
    row = connection.execute("select * from l2inv.op_state where op_id = %s", [op_id]).fetchone()
    assert row is not None
    return row


def kinds() -> list[str]:
    """Every kind that the program or any migration speaks of, and one that none does."""
    sql = "".join(path.read_text() for path in migrations_folder().glob("*.sql"))
    return sorted(
        {*states.EDGES, "retried", *re.findall(r"when '(\w+)' then from_state", sql), "no such kind"}
    )


def test_the_database_allows_exactly_what_states_py_allows(connection: Connection) -> None:
    some_state = [None, *states.STATES]
    rows = connection.execute(
        """
        select kind, before, after, before_error, l2inv.is_allowed(kind, before, after, before_error) as allowed
        from unnest(%s::text[]) kind, unnest(%s::text[]) before, unnest(%s::text[]) after,
             unnest(%s::text[]) before_error
        """,
        [kinds(), some_state, some_state, some_state],
    ).fetchall()
    assert len(rows) == len(kinds()) * 9**3
    for row in rows:
        allowed = row.pop("allowed")
        assert allowed == states.is_allowed(**row), row


@pytest.mark.parametrize("state", states.STATES)
def test_every_edge_out_of_a_state_is_taken_or_refused_by_the_table_itself(
    connection: Connection, state: states.State
) -> None:
    seq = bring(connection, "op", state)
    before_error: states.State | None = "working" if state == "error" else None
    for kind, after in product(kinds(), [None, *states.STATES]):
        allowed = states.is_allowed(kind, state, after, before_error)
        try:
            with connection.transaction(force_rollback=True):
                insert(connection, "op", seq + 1, kind, after)
                assert present(connection, "op")["state"] == (after or state)
            assert allowed, (kind, after)
        except psycopg.Error as problem:
            assert not allowed, (kind, after, problem)
            assert problem.sqlstate == "L2INV"


@pytest.mark.parametrize("table", ["event", "dataset_version", "criteria"])
@pytest.mark.parametrize(
    "change", ["update l2inv.{} set {} = {}", "delete from l2inv.{}", "truncate l2inv.{}"]
)
def test_recorded_rows_cannot_be_changed_even_by_the_owner(
    connection: Connection, table: str, change: str
) -> None:
    insert(connection, "op", 1, "discovered", "discovered")
    column = {"event": "op_id", "dataset_version": "dataset_id", "criteria": "criteria_version"}[table]
    with pytest.raises(psycopg.Error, match="append-only") as refusal:
        connection.execute(change.format(table, column, column))
    assert refusal.value.sqlstate == "L2INV"


@pytest.mark.parametrize(
    "change",
    ["update l2inv.op_state set state = 'error'", "update l2inv.op set assignee = 'me'", "delete from l2inv.op_state",
     "truncate l2inv.op_state", "insert into l2inv.op_state (op_id, seq, state, since, datasets_seq) "
     "select 'new', seq, state, since, 1 from l2inv.op_state"],
)  # fmt: skip
def test_the_present_state_cannot_be_changed_without_an_event(connection: Connection, change: str) -> None:
    insert(connection, "op", 1, "discovered", "discovered")
    with pytest.raises(psycopg.Error, match=r"follows the events|cannot update view"):
        connection.execute(change)


@pytest.mark.parametrize("seq", [1, 3, 0, -1, 99])
def test_a_sequence_number_that_is_not_the_next_is_refused(connection: Connection, seq: int) -> None:
    insert(connection, "op", 1, "discovered", "discovered")
    with pytest.raises(psycopg.Error):
        insert(connection, "op", seq, "judged", "invertible")
    assert present(connection, "op")["seq"] == 1


def test_a_claim_for_nobody_and_an_op_without_a_name_are_refused(connection: Connection) -> None:
    bring(connection, "op", "preprocessed")
    with pytest.raises(psycopg.errors.CheckViolation):
        insert(connection, "op", 4, "claimed", "working", assignee="")
    for op_id in ("", "x" * 201):
        with pytest.raises(psycopg.errors.CheckViolation):
            insert(connection, op_id, 1, "discovered", "discovered")


def test_every_trigger_guards_in_any_session_and_obeys_no_search_path(connection: Connection) -> None:
    triggers = connection.execute(
        """
        select c.relname || ' ' || t.tgname as name, t.tgenabled = 'A' as always,
               coalesce(array_to_string(p.proconfig, ' '), '') like '%%search_path=pg_catalog, pg_temp%%' as fixed
        from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_proc p on p.oid = t.tgfoid
        where c.relnamespace = 'l2inv'::regnamespace and not t.tgisinternal
        """,
        [],
    ).fetchall()
    assert {row["name"] for row in triggers} == {
        "event append_only", "event record_event", "op_state derived_only",
        "dataset_version append_only", "dataset_version without_gaps", "criteria append_only", "run append_only", "run end_run",
    }  # fmt: skip
    assert [row["name"] for row in triggers if not (row["always"] and row["fixed"])] == []


@pytest.mark.parametrize("change", ["delete from l2inv.event", "update l2inv.op_state set state = 'error'"])
def test_not_even_a_replicas_session_changes_the_record(connection: Connection, change: str) -> None:
    insert(connection, "op", 1, "discovered", "discovered")
    connection.execute("set session_replication_role = replica")
    with pytest.raises(psycopg.Error) as refusal:
        connection.execute(change)
    assert refusal.value.sqlstate == "L2INV"


def test_text_that_postgresql_cannot_keep_is_kept_as_it_can_be_shown(connection: Connection) -> None:
    bring(connection, "op", "preprocessed")
    hostile = {"assignee": "han", "note": "a\0b\ud800c", "list": ["\0"], "\0": {"inner": "\udcff"}}
    event_log.add(connection, [event_log.Event("op", 3, "claimed", "working", hostile)], "han", None)
    assert event_log.newest(connection, "op", "claimed") == {
        "assignee": "han", "note": "a\\x00b\\ud800c", "list": ["\\x00"], "\\x00": {"inner": "\\udcff"},
    }  # fmt: skip


def test_several_events_of_one_op_in_one_insert_follow_each_other(connection: Connection) -> None:
    connection.execute(
        """
        insert into l2inv.event (op_id, seq, kind, state, actor, detail)
        select op, seq, kind, state, 'test', %s::jsonb -> kind from unnest(array['a', 'b']) op, (values
            (3, 'preprocessed', 'preprocessed'), (1, 'discovered', 'discovered'), (2, 'judged', 'invertible')
        ) as e (seq, kind, state) order by op, seq
        """,
        [Jsonb(LEAST)],
    )
    for op in ("a", "b"):
        assert present(connection, op)["state"] == "preprocessed"
        assert present(connection, op)["seq"] == 3


def test_one_bad_event_among_many_refuses_them_all(connection: Connection) -> None:
    insert(connection, "old", 1, "discovered", "discovered")
    with pytest.raises(psycopg.Error):
        connection.execute(
            """
            insert into l2inv.event (op_id, seq, kind, state, actor)
            values ('new', 1, 'discovered', 'discovered', 'test'), ('old', 2, 'claimed', 'working', 'test')
            """
        )
    assert connection.execute("select count(*) as n from l2inv.event").fetchone() == {"n": 1}


def test_a_writer_that_comes_second_adds_nothing(connection: Connection) -> None:
    bring(connection, "op", "preprocessed")
    event = event_log.Event("op", 3, "claimed", "working", {"assignee": "han"})
    assert event_log.add(connection, [event], "han", None) == {"op"}
    assert event_log.add(connection, [event], "ann", None) == set()
    assert present(connection, "op")["assignee"] == "han"


def test_a_retry_returns_to_the_state_before_the_error(connection: Connection) -> None:
    for state in ("discovered", "invertible", "not_invertible", "preprocessed", "working", "inverted"):
        bring(connection, state, state)
        with connection.transaction():
            now = event_log.locked(connection, state)
            event_log.fail(connection, state, now.seq, "qualify", "why", "test", 1)
        assert event_log.retry(connection, [state], "test") == [(state, state)]
    with pytest.raises(Refused, match="not in error"):
        event_log.retry(connection, ["working"], "test")


def test_an_attempt_counts_the_failures_of_its_stage_before_it(connection: Connection) -> None:
    seq = bring(connection, "op", "invertible")
    for attempt in (1, 2, 3):
        event_log.fail(connection, "op", seq, "preprocess", "no disk", "cron", 1)
        detail = event_log.newest(connection, "op", "failed")
        assert detail == {"stage": "preprocess", "cause": "no disk", "attempt": attempt}
        event_log.retry(connection, [], "cron")
        seq += 2


def test_an_op_is_named_by_its_id_or_a_part_of_it_taken_as_it_is_written(connection: Connection) -> None:
    for op_id in ("eid_1", "eid_10", "eidx1", "50%", "a\\b"):
        insert(connection, op_id, 1, "discovered", "discovered")
    assert event_log.resolve(connection, "eid_1") == "eid_1"
    assert event_log.resolve(connection, "eid_10") == "eid_10"
    assert event_log.resolve(connection, "eidx") == "eidx1"
    assert event_log.resolve(connection, "a\\") == "a\\b"
    with pytest.raises(Refused, match="eid_1, eid_10") as refusal:
        event_log.resolve(connection, "eid_")
    assert "eidx1" not in refusal.value.message
    assert event_log.resolve(connection, "0%") == event_log.resolve(connection, "%") == "50%"
    for unknown in ("_%", "e_d", "nope"):
        with pytest.raises(Refused, match="unknown"):
            event_log.resolve(connection, unknown)


SAID = st.fixed_dictionaries(
    {},
    optional={
        "affects_verdict": st.booleans(), "assignee": st.sampled_from(["han", "ann"]), "priority": st.integers(-9, 9),
        "due_at": st.sampled_from([PAST, "2099-01-01T00:00:00.5+00:00"]), "seq": st.integers(1, 9),
        "criteria_version": st.sampled_from(["old", "new"]),
    },
)  # fmt: skip
TRIES = st.tuples(st.sampled_from(kinds()), st.sampled_from([None, *states.STATES]), SAID)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TRIES, max_size=30))
def test_whatever_is_tried_the_derived_state_agrees_with_the_events(
    connection: Connection, tries: list[tuple[str, states.State | None, dict[str, Any]]]
) -> None:
    with connection.transaction(force_rollback=True):
        insert(connection, "op", 1, "discovered", "discovered")
        for kind, after, drawn in tries:
            op = present(connection, "op")
            said = LEAST["voided"] | drawn if kind == "voided" else drawn
            allowed = (
                states.is_allowed(kind, op["state"], after, op["state_before_error"])
                and not (kind == "claimed" and op["on_hold_seq"])
                and not (kind == "taken_over" and op["due_at"] and op["due_at"].year == 2099)
                and not (kind == "voided" and said["seq"] > op["seq"])
            )
            try:
                with connection.transaction():
                    insert(connection, "op", op["seq"] + 1, kind, after, **said)
            except psycopg.Error:
                assert not allowed
            else:
                assert allowed
        found = Findings()
        verify.run_checks(connection, found, ["events", "state"], lambda done, of: None)
        assert found.first == []
