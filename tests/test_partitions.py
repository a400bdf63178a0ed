"""The events partitioned by time, as docs/scale.md plans it: every promise of the record is kept."""

from pathlib import Path

import psycopg
import pytest
from conftest import NOW, Commands, Connection

from l2inv import database, migrate

YEARS = (2025, 2026, 2027)
IDENTITY = "event_id    bigint generated always as identity primary key"
BY_TIME = {
    IDENTITY: "event_id bigint not null default nextval('l2inv.event_id')",
    "unique (op_id, seq)": "unique (op_id, seq, recorded_at), unique (event_id, recorded_at)",
    "coalesce(detail ->> 'assignee', '') <> '')\n);": "coalesce(detail ->> 'assignee', '') <> '')\n) partition by range (recorded_at);",
    "create table l2inv.event (": "create sequence l2inv.event_id;\ncreate table l2inv.event (",
}
PARTITION = """
    create table {s}.event_{y} partition of {s}.event for values from ('{y}-01-01Z') to ('{next}-01-01Z');
    create trigger append_only before update or delete or truncate on {s}.event_{y}
        for each statement execute function {s}.refuse_change();
    create trigger follow_events after insert on {s}.event_{y}
        referencing new table as new_event for each statement execute function {s}.follow_events();
"""


@pytest.fixture
def partitioned(
    l2inv: Commands, tmp_path: Path, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> Commands:
    folder = tmp_path / "migrations"
    folder.mkdir()
    for path in database.migrations_folder().glob("*.sql"):
        text = path.read_text()
        if path.stem == "0001.event":
            for old, new in BY_TIME.items():
                assert text.count(old) == 1
                text = text.replace(old, new)
        (folder / path.name).write_text(text)
    for module in (database, migrate):
        monkeypatch.setattr(module, "migrations_folder", lambda: folder)
    l2inv.settings["database"]["schema"] = "by_time"
    l2inv.save()
    l2inv("migrate")
    for year in YEARS:
        connection.execute(PARTITION.format(s="by_time", y=year, next=year + 1))
    return l2inv


def test_every_stage_runs_and_verify_finds_nothing_where_the_events_are_partitioned_by_time(
    partitioned: Commands, connection: Connection
) -> None:
    l2inv = partitioned
    for argv in (["scan"], ["qualify", "--as-of", NOW.isoformat()], ["preprocess"]):
        l2inv(*argv)
    op = l2inv.json("next", "--claim")["claimed"]["op_id"]
    l2inv("mark-inverted", op)
    l2inv("publish")
    assert l2inv.json("show", op)["state"] == "published"
    assert l2inv.json("verify")["findings"] == []
    rows = connection.execute(
        "select distinct tableoid::regclass::text as part from by_time.event"
    ).fetchall()
    assert {row["part"] for row in rows} <= {f"by_time.event_{year}" for year in YEARS}


INSERT = "insert into by_time.event{} (op_id, seq, kind, state, actor, recorded_at) values ('op', {}, {}, 'x', '{}')"
NOTED, DISCOVERED = "'noted', null", "'discovered', 'discovered'"


def test_no_partition_takes_a_second_event_of_the_same_number_a_hole_or_a_change(
    partitioned: Commands, connection: Connection
) -> None:
    connection.execute(INSERT.format("", 1, DISCOVERED, "2025-12-31 23:59Z"))
    connection.execute(INSERT.format("_2026", 2, NOTED, "2026-03-01Z"))
    refused = [
        INSERT.format("", 2, NOTED, "2027-03-01Z"),
        INSERT.format("_2027", 1, NOTED, "2027-03-01Z"),
        INSERT.format("_2027", 4, NOTED, "2027-03-01Z"),
        INSERT.format("", 3, DISCOVERED, "2026-03-02Z"),
        "update by_time.event set actor = 'y'",
        "delete from by_time.event_2025",
        "truncate by_time.event_2026",
    ]
    for statement in refused:
        with pytest.raises(psycopg.Error) as refusal:
            connection.execute(statement)
        assert refusal.value.sqlstate == "L2INV", statement
    with pytest.raises(psycopg.Error, match="event 2 is out of sequence, the next is 3"):
        connection.execute(refused[0])
