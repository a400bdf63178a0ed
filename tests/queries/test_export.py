"""export and published_op: what the metadata store reads, and by which role."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from psycopg.types.json import Jsonb

from l2inv.database import roles
from l2inv.database.connection import Connection
from l2inv.queries import export
from l2inv.record import structure
from l2inv.record.chains import Findings
from tests.helpers.commands import Commands
from tests.helpers.events import INVERSION, LEAST
from tests.helpers.steps import invert, publish_again, published, two_programs

DOCUMENT = Path(__file__).parents[2] / "docs/metadata-store.md"
CONTRACT = """event_id, op_id, cycle, inversion_id, proposal_id, experiment_id, instrument_program_id,
    dataset_ids, product_ids, bucket, asdf_object_key, spectral_lines, outputs, software, is_embargoed,
    embargo_end_date, criteria_version, inverted_by, inverted_at, published_at, superseded_by, withdrawn_at"""


def lines(l2inv: Commands, *argv: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in l2inv("export", *argv).stdout.splitlines()]


def tell(connection: Connection, ops: int, asdf_object_key: str = "key") -> None:
    """Make OPs that are published, each with one inversion."""
    inversion = INVERSION | {
        "asdf_object_key": asdf_object_key,
        "is_embargoed": True,
        "embargo_end_date": "9999-12-31T23:59:59Z",
    }
    connection.execute(
        """
        insert into l2inv.event (op_id, seq, kind, state, actor, detail)
            select format('eid_%%s', lpad(op::text, 6, '0')), seq, kind, state, 'test', case kind
                when 'published' then jsonb_build_object('inversions', jsonb_build_array(%s || jsonb_build_object(
                    'inversion_id', format('inv.%%s', lpad(op::text, 6, '0')), 'instrument_program_id', 'id.1.' || op)))
                else %s -> kind end
            from generate_series(1, %s) op, (values (1, 'discovered', 'discovered'), (2, 'judged', 'invertible'),
                (3, 'preprocessed', 'preprocessed'), (4, 'claimed', 'working'), (5, 'inverted', 'inverted'),
                (6, 'published', 'published')) as step (seq, kind, state)
        """,
        [Jsonb(inversion), Jsonb(LEAST), ops],
    )


def test_the_export_is_the_view_in_the_columns_of_the_contract(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    op, programs = two_programs(connection)
    invert(l2inv, op, *programs)
    l2inv("publish")
    found = lines(l2inv)
    assert list(export.COLUMNS) == list(found[0]) == re.split(r",\s+", CONTRACT)
    rows = published(connection)
    assert list(rows[0]) == list(found[0])
    assert [row["inversion_id"] for row in found] == sorted(row["inversion_id"] for row in rows)
    for got, row in zip(found, rows, strict=True):
        for name, value in row.items():
            if not name.endswith("_at"):
                assert got[name] == value
        assert got["published_at"] == row["published_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def test_reading_on_from_the_last_event_finds_what_is_new_and_what_changed_and_nothing_else(
    l2inv: Commands, ready: list[str]
) -> None:
    for op in ready[:2]:
        invert(l2inv, op)
    l2inv("publish")
    seen = lines(l2inv)
    assert [row["op_id"] for row in seen] == ready[:2]
    after = str(seen[-1]["event_id"])
    assert l2inv("export", "--after", after).stdout == ""
    assert [row["op_id"] for row in lines(l2inv, "--after", str(seen[0]["event_id"]))] == [ready[1]]
    publish_again(l2inv, ready[0])
    first, second = sorted(lines(l2inv, "--after", after), key=lambda row: str(row["cycle"]))
    assert (first["op_id"], first["superseded_by"]) == (ready[0], second["inversion_id"])
    assert first["inversion_id"] == seen[0]["inversion_id"], "replaces what was read before"
    after = str(second["event_id"])
    l2inv("withdraw", ready[1], "--reason", "bad")
    (row,) = lines(l2inv, "--after", after)
    assert row["op_id"] == ready[1]
    assert row["withdrawn_at"]


def test_one_document_contains_the_cursor_to_continue_from(l2inv: Commands, connection: Connection) -> None:
    assert l2inv.json("export", "--after", "7") == {"inversions": [], "after": 7}
    tell(connection, 2)
    found = l2inv.json("export")
    assert [row["op_id"] for row in found["inversions"]] == ["eid_000001", "eid_000002"]
    assert found["after"] == found["inversions"][-1]["event_id"]
    assert l2inv.json("export", "--after", str(found["after"]))["inversions"] == []


def test_a_table_can_be_read_back_and_contains_no_formula(l2inv: Commands, connection: Connection) -> None:
    export.as_csv([], empty := io.StringIO())
    assert empty.getvalue() == ",".join(export.COLUMNS) + "\r\n"
    for number, key in enumerate(('=cmd|" /C calc"!A0', "+1", "-1", "@x", "\tx", "\rx")):
        row = dict.fromkeys(export.COLUMNS) | {"asdf_object_key": key, "event_id": number}
        export.as_csv([row], out := io.StringIO())
        cell = next(csv.DictReader(io.StringIO(out.getvalue())))["asdf_object_key"]
        assert cell.startswith("'")
        assert cell.isprintable()
    tell(connection, 1, 'say "x", café')
    (row,) = csv.DictReader(io.StringIO(l2inv("export", "--format", "csv").stdout))
    assert row["asdf_object_key"] == 'say "x", café'
    assert json.loads(str(row["dataset_ids"])) == ["A", "B"]
    assert json.loads(str(row["outputs"])) == [{"uri": "globus://x"}]
    assert (row["is_embargoed"], row["software"], row["withdrawn_at"]) == ("true", "", "")
    assert row["embargo_end_date"] == "9999-12-31T23:59:59Z"


def test_the_last_day_there_is_can_be_read_in_every_time_zone(
    l2inv: Commands, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(connection, 1)
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")
    assert lines(l2inv)[0]["embargo_end_date"] == "9999-12-31T23:59:59Z"


@pytest.mark.parametrize("form", ["ndjson", "csv"])
def test_a_reader_that_has_seen_enough_is_no_error(
    l2inv: Commands, connection: Connection, form: str
) -> None:
    tell(connection, 300)  # more than a pipe holds
    command = [sys.executable, "-m", "l2inv", "--config", str(l2inv.config), "export", "--format", form]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as exporting:
        assert exporting.stdout is not None and exporting.stderr is not None
        exporting.stdout.readline()
        exporting.stdout.close()
        said = exporting.stderr.read()
    assert (exporting.returncode, said) == (0, b"")


def test_all_rows_come_however_many_there_are(l2inv: Commands, connection: Connection) -> None:
    tell(connection, 1200)
    found = lines(l2inv)
    assert len({row["inversion_id"] for row in found}) == 1200
    assert [row["event_id"] for row in found] == sorted(int(str(row["event_id"])) for row in found)


def test_reading_on_does_not_compute_what_is_before_the_cursor(connection: Connection) -> None:
    tell(connection, 300)
    connection.execute("analyze l2inv.event")
    row = connection.execute("select max(event_id) - 2 as after from l2inv.event").fetchone()
    assert row is not None
    with connection.transaction():
        connection.execute("set local enable_seqscan to off")
        plan = connection.execute(
            f"explain (format json) select * from l2inv.published_op where {export._CHANGED_AFTER}",
            [row["after"]],
        ).fetchone()
    assert "event_told_after" in json.dumps(plan)
    assert "Seq Scan" not in json.dumps(plan)


def test_the_role_of_the_document_reads_the_views_and_nothing_else(
    l2inv: Commands, connection: Connection
) -> None:
    section = DOCUMENT.read_text().partition("## A role that only reads")[2]
    grants = re.search(r"```sql\n(.*?)```", section, re.DOTALL)
    assert grants is not None
    tell(connection, 1)
    with connection.transaction(force_rollback=True):  # roles are the whole server's
        roles.apply(connection, roles.Roles(*(f"l2inv_level2_{name}" for name in roles.Roles._fields)))
        connection.execute(grants[1])
        findings = Findings()
        structure.check(connection, findings)
        assert findings.first == []
        connection.execute("set local role metadata_store")
        for view in ("published_op", "op", "dataset", "history", "runs"):
            connection.execute(f"select * from l2inv.{view}")
        for statement in (
            "select * from l2inv.event",
            "select * from l2inv.op_state",
            "select * from l2inv.dataset_version",
            "select * from l2inv.quarantine",
            "delete from l2inv.dataset",
            "update l2inv.dataset set version = 1",
            "insert into l2inv.history (op_id, seq, kind, actor) values ('x', 1, 'noted', 'x')",
            "insert into l2inv.event (op_id, seq, kind, actor) values ('x', 1, 'noted', 'x')",
            "create table l2inv.mine (x integer)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(statement)


def test_the_queries_of_the_document_run_as_they_stand(l2inv: Commands, connection: Connection) -> None:
    section = DOCUMENT.read_text().partition("## What is offered")[2].partition("## A role")[0]
    queries = re.findall(r"```sql\n(.*?)```", section, re.DOTALL)
    assert queries
    for query in queries:
        connection.execute(query)
    example = re.search(r"```json\n(.*?)```", section, re.DOTALL)
    assert example is not None
    assert list(json.loads(example[1])) == list(export.COLUMNS)
