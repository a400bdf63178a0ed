"""The owner declares a wrong event void, and no view reads it any more."""

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from l2inv.database.connection import Connection
from tests.helpers.commands import Commands
from tests.helpers.events import LEAST

EVENT_FITS = (
    "alter table l2inv.event add constraint event_detail_fits check (l2inv.detail_fits(kind, detail))"
)
DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"


def documented(op_id: str, seq: int) -> str:
    """The statement of the document, for another event."""
    section = DOCUMENT.read_text().partition("### An event that should not be there")[2]
    statement = re.search(r"```sql\n(.*?)```", section, re.DOTALL)
    assert statement is not None
    said = (
        statement[1]
        .replace("eid_1_118_opAvoqBr_R001.82591.13964206", op_id)
        .replace("'seq', 17", f"'seq', {seq}")
    )
    assert op_id in said
    assert f"'seq', {seq}" in said
    return said


def published(l2inv: Commands, op: str) -> None:
    l2inv("claim", op)
    l2inv("mark-inverted", op)
    l2inv("publish")


def forged(connection: Connection, op_id: str, kind: str, state: str | None, detail: Any) -> int:
    """Record what the checks of this version would not let in, as one that they forgot; return its seq."""
    connection.execute("alter table l2inv.event drop constraint if exists event_detail_fits")
    row = connection.execute(
        "insert into l2inv.event (op_id, seq, kind, state, actor, detail) "
        "select op_id, seq + 1, %s, %s, 'eve', %s from l2inv.op_state where op_id = %s returning seq",
        [kind, state, Jsonb(detail), op_id],
    ).fetchone()
    assert row is not None
    return int(row["seq"])


@pytest.mark.parametrize("inversions", ["x", 7, {}, None, [{"cycle": "one"}], [7], [[]]])
def test_an_export_that_a_malformed_event_broke_works_again_once_it_is_void(
    l2inv: Commands, ready: list[str], connection: Connection, inversions: Any
) -> None:
    published(l2inv, ready[0])
    before = l2inv("export").stdout
    l2inv("claim", ready[1])
    l2inv("mark-inverted", ready[1])
    seq = forged(connection, ready[1], "published", "published", {"inversions": inversions})
    broken = l2inv("export", expect=None)
    assert broken.exit_code == 1 or broken.stdout != before
    connection.execute(documented(ready[1], seq))
    assert l2inv("export").stdout == before
    events = l2inv.json("history", ready[1])["events"]
    assert events[seq - 1]["voided_by"] == seq + 1
    assert events[seq]["kind"] == "voided"
    assert [e["voided_by"] for e in events if e["seq"] != seq] == [None] * (len(events) - 1)
    assert f"event {seq}: forged by eve" in l2inv("history", ready[1]).stdout
    assert l2inv.json("verify", "events")["findings"] == []
    assert l2inv.json("verify", "state")["findings"] == []
    l2inv("reopen", ready[1], "--reason", "what was published was void")


def test_a_void_withdrawal_counts_no_more_and_a_void_reinstatement_neither(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    published(l2inv, ready[0])
    (told,) = connection.execute("select inversion_id, event_id from l2inv.published_op").fetchall()

    def withdrawn() -> bool:
        (row,) = connection.execute("select * from l2inv.published_op").fetchall()
        return row["withdrawn_at"] is not None

    ids = {"inversion_ids": [told["inversion_id"]], "reason": "why"}
    first = forged(connection, ready[0], "withdrawn", None, ids)
    assert withdrawn()
    second = forged(connection, ready[0], "reinstated", None, ids)
    assert not withdrawn()
    connection.execute(documented(ready[0], second))
    assert withdrawn()
    connection.execute(documented(ready[0], first))
    assert not withdrawn()
    (row,) = connection.execute("select event_id from l2inv.published_op").fetchall()
    assert row["event_id"] > told["event_id"], "whoever reads on sees the row again"


@pytest.mark.parametrize(
    "verdict", [7, {"instrument_programs": [7]}, {"instrument_programs": [{"criteria": 7}]}]
)
def test_an_op_whose_verdict_is_void_is_judged_again(
    l2inv: Commands, ready: list[str], connection: Connection, verdict: Any
) -> None:
    seq = forged(connection, ready[0], "judged", None, {"verdict": verdict})
    connection.execute(documented(ready[0], seq))
    assert l2inv.json("qualify", "--as-of", "2099-01-01")["ops"]["judged"] >= 1
    op = l2inv.json("show", ready[0])
    assert op["verdict"]["invertible"]
    assert op["state"] in ("invertible", "preprocessed")


def test_a_forged_verdict_is_found_until_it_is_void(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    """Else no verify would ever be clean again, and no anchor be appended to."""
    refused = l2inv.json("list", "--state", "not_invertible")["ops"][0]["op_id"]
    judged = next(e for e in l2inv.json("history", refused)["events"] if e["kind"] == "judged")
    row = connection.execute(
        "select pg_get_functiondef('l2inv.record_event()'::regprocedure) as trigger"
    ).fetchone()
    assert row
    connection.execute(row["trigger"].replace("if is_invertible =", "if null ="))
    seq = forged(connection, refused, "judged", "invertible", judged["detail"])
    other = forged(connection, ready[0], "judged", None, judged["detail"])
    connection.execute(row["trigger"])
    connection.execute(EVENT_FITS)
    found = l2inv("verify", "--json", expect=5).json["findings"]
    assert {f["op_id"] for f in found} == {refused, ready[0]}
    connection.execute(documented(refused, seq))
    connection.execute(documented(ready[0], other))
    assert l2inv.json("verify")["findings"] == []
    l2inv("qualify", "--as-of", "2099-01-01")
    assert l2inv.json("show", refused)["state"] == "not_invertible"
    assert l2inv.json("verify")["findings"] == []


@pytest.mark.parametrize(
    ("run_id", "versions"),
    [(None, {"ABCDEF": "1:0123456789abcdef"}), (99, {}), (1, {})],
    ids=["a version that is not there", "a run that is not there", "a run of somebody else"],
)
def test_an_event_that_names_what_is_not_there_is_found_until_it_is_void(
    l2inv: Commands, ready: list[str], connection: Connection, run_id: int | None, versions: dict[str, str]
) -> None:
    detail = Jsonb({"versions": versions})
    connection.execute(
        "insert into l2inv.event (op_id, seq, kind, actor, run_id, detail) "
        "select op_id, seq + 1, 'datasets_changed', 'eve', %s, %s from l2inv.op_state where op_id = %s",
        [run_id, detail, ready[0]],
    )
    seq = l2inv.json("history", ready[0])["events"][-1]["seq"]
    assert l2inv("verify", "--json", expect=5).json["found"] == 1
    connection.execute(documented(ready[0], seq))
    assert l2inv.json("verify")["findings"] == []


def test_a_job_whose_place_cannot_be_looked_at_keeps_no_other_op_waiting_once_it_is_void(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    seq = forged(connection, ready[0], "overruled", "invertible", LEAST["overruled"])
    place = {"folder": f"/tmp/{'x' * 300}", "task": None}
    seq = forged(connection, ready[0], "preprocess_started", None, LEAST["preprocess_started"] | place)
    l2inv("preprocess", expect=1)
    connection.execute(documented(ready[0], seq))
    assert l2inv.json("preprocess")["ops"]["done"] == 1


def test_the_versions_that_a_void_event_names_were_read_all_the_same(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    connection.execute(documented(ready[0], 1))
    assert l2inv.json("verify")["findings"] == []


def test_a_dataset_version_criteria_and_a_run_that_a_writer_invented_are_removed_as_documented(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    connection.execute(
        """
        insert into l2inv.dataset_version (dataset_id, version, op_id, content_hash, record, run_id)
            select dataset_id, version + 1, op_id, content_hash, record, run_id from l2inv.dataset limit 1;
        insert into l2inv.criteria (criteria_version, rules) values ('0123456789ab', '{}');
        insert into l2inv.run (stage, actor) values ('scan', 'eve');
        update l2inv.run set finished_at = now(), result = '{"seconds": 1, "ops": {"new": 7}}' where actor = 'eve'
        """
    )
    assert l2inv("verify", "--json", expect=5).json["found"] == 3
    section = DOCUMENT.read_text().partition("### An event that should not be there")[2]
    statement = re.findall(r"```sql\n(.*?)```", section, re.DOTALL)[1]
    assert "ABCDEF" in statement
    row = connection.execute("select dataset_id from l2inv.dataset where version = 2").fetchone()
    assert row is not None
    connection.execute(statement.replace("ABCDEF", row["dataset_id"]))
    for table, condition in (("criteria", "criteria_version = '0123456789ab'"), ("run", "actor = 'eve'")):
        of_table = re.sub(r"dataset_id = .*(?=;)", condition, statement.replace("dataset_version", table))
        connection.execute(of_table)
    assert l2inv.json("verify")["findings"] == []


def test_a_void_overruling_and_a_void_hold_hold_no_more(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    l2inv("overrule", ready[0], "--invertible", "--reason", "x")
    seq = l2inv.json("history", ready[0])["events"][-1]["seq"]
    assert l2inv.json("show", ready[0])["overruled"]
    connection.execute(documented(ready[0], seq))
    assert not l2inv.json("show", ready[0])["overruled"]
    l2inv("hold", ready[0], "--reason", "x")
    connection.execute(documented(ready[0], seq + 2))
    l2inv("claim", ready[0])
    assert l2inv.json("verify")["findings"] == []


@pytest.mark.parametrize("seq", [0, -1, 99, 4])
def test_only_an_event_that_is_there_can_be_declared_void(
    l2inv: Commands, ready: list[str], connection: Connection, seq: int
) -> None:
    with pytest.raises(psycopg.Error, match=f"has no event {seq} to be voided"):
        connection.execute(documented(ready[0], seq))


def test_only_the_owner_can_declare_an_event_void(
    l2inv: Commands, ready: list[str], connection: Connection, url: str
) -> None:
    names = [f"{name}_{connection.info.backend_pid}" for name in ("owner", "writer", "reader")]
    l2inv("roles", "--owner", names[0], "--writer", names[1], "--reader", names[2], "--apply")
    member = f"member_{connection.info.backend_pid}"
    for role in (member, names[1]):
        connection.execute(sql.SQL("create role {} login").format(sql.Identifier(role)) if role == member else
                           sql.SQL("alter role {} login").format(sql.Identifier(role)))  # fmt: skip
    connection.execute(sql.SQL("grant {} to {}").format(*map(sql.Identifier, (names[0], member))))
    statement = documented(ready[0], 2)
    with psycopg.connect(make_conninfo(url, user=names[1]), autocommit=True) as writer:
        with pytest.raises(psycopg.Error, match="only the owner of the schema may void an event") as refusal:
            writer.execute(statement)
        assert refusal.value.sqlstate == "L2INV"
    with psycopg.connect(make_conninfo(url, user=member), autocommit=True) as owner:
        owner.execute(statement)
    event = l2inv.json("history", ready[0])["events"][-1]
    assert (event["kind"], event["recorded_by"]) == ("voided", member)
    for role in (*names, member):
        connection.execute(sql.SQL("reassign owned by {} to current_user").format(sql.Identifier(role)))
        connection.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(role)))


def test_a_void_event_remains_readable(l2inv: Commands, ready: list[str], connection: Connection) -> None:
    before = l2inv.json("history", ready[0])["events"]
    connection.execute(documented(ready[0], 1))
    after = l2inv.json("history", ready[0])["events"]
    assert [e | {"voided_by": None} for e in after[:-1]] == before
    assert after[0]["voided_by"] == after[-1]["seq"]
    assert after[-1]["detail"].keys() == LEAST["voided"].keys()
