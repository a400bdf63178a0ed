"""Roles: the writer can do its work and nothing else, and the reader can only read the views."""

import os
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from l2inv.database import embedded
from l2inv.database.connection import Connection
from tests.helpers.commands import NOW, Commands
from tests.helpers.database import MIGRATED, copied

Names = tuple[str, str, str]


@pytest.fixture
def roles(l2inv: Commands, ready: list[str], connection: Connection) -> Iterator[Names]:
    """Owner, writer and reader of the test's database, of which the last two can log in."""
    own = uuid4().hex[:8]
    names = (f'the "owner" {own}', f"writer_{own}", f"reader_{own}")
    options = ("--owner", names[0], "--writer", names[1], "--reader", names[2])
    printed = l2inv("roles", *options).stdout
    assert not connection.execute("select from pg_roles where rolname = %s", [names[0]]).fetchone()
    assert l2inv.json("roles", *options, "--apply")["statements"] == printed.splitlines()
    l2inv("roles", *options, "--apply")  # as after a migration
    for name in names:
        connection.execute(sql.SQL("alter role {} login").format(sql.Identifier(name)))
    yield names
    for name in names:
        connection.execute(sql.SQL("reassign owned by {} to current_user").format(sql.Identifier(name)))
        connection.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(name)))


def as_role(url: str, role: str) -> str:
    return make_conninfo(url, user=role)


def test_the_writer_can_do_all_that_cron_and_science_do(
    l2inv: Commands, ready: list[str], url: str, roles: Names, connection: Connection
) -> None:
    database = sql.Identifier(str(conninfo_to_dict(url)["dbname"]))
    connection.execute(sql.SQL("revoke temporary on database {} from public").format(database))
    l2inv.settings["database"]["url"] = as_role(url, roles[1])
    l2inv.save()
    for command in (
        ("scan",), ("qualify", "--as-of", NOW.isoformat()), ("preprocess",), ("next",), ("claim", ready[0]),
        ("note", ready[0], "x"), ("mark-inverted", ready[0]), ("publish",), ("list",), ("history", ready[0]),
        ("show", ready[0]), ("status",), ("quarantine",), ("verify",), ("near-misses",), ("criteria",), ("completeness",),
    ):  # fmt: skip
        l2inv(*command)
    assert l2inv.json("show", ready[0])["state"] == "published"
    assert "permission denied" in l2inv("roles", "--apply", expect=1).stderr


FORBIDDEN = [
    "update {}.event set actor = 'x'", "delete from {}.event", "truncate {}.event", "drop table {}.event",
    "alter table {}.event disable trigger all", "alter table {}.event add x int", "drop trigger append_only on {}.event",
    "drop schema {} cascade", "create table {}.mine (a int)", "create or replace view {}.op as select 1",
    "update {}.op_state set seq = 1", "update {}.op_state set state = 'error'", "delete from {}.op_state",
    "insert into {}.op_state (op_id, seq, state, since, datasets_seq) values ('x', 1, 'error', now(), 1)",
    "update {}.dataset_version set op_id = 'x'", "delete from {}.dataset_version", "delete from {}.run",
    "update {}.run set actor = 'x'", "delete from {}.quarantine", "update {}.quarantine set raw = ''",
    "update {}.criteria set rules = '{{}}'", "delete from {}._yoyo_migration", "alter function {}.record_event() security invoker",
    "set session_replication_role = replica", "select setval('{}.event_event_id_seq', 1)",
]  # fmt: skip


@pytest.mark.parametrize("which", ["writer", "reader"])
def test_neither_writer_nor_reader_gets_around_the_record(
    url: str, roles: Names, connection: Connection, which: str
) -> None:
    before = connection.execute("select * from l2inv.op_state order by op_id").fetchall()
    with psycopg.connect(as_role(url, roles[1 if which == "writer" else 2]), autocommit=True) as role:
        for statement in FORBIDDEN:
            with pytest.raises(psycopg.Error) as refusal:
                role.execute(statement.format("l2inv"))
            assert refusal.value.sqlstate in ("42501", "L2INV"), statement
    assert connection.execute("select * from l2inv.op_state order by op_id").fetchall() == before


def test_the_writer_cannot_write_a_state_with_a_trigger_of_its_own(url: str, roles: Names) -> None:
    with psycopg.connect(as_role(url, roles[1]), autocommit=True) as writer:
        writer.execute("create temp table lever (a int)")
        writer.execute(
            "create function pg_temp.push() returns trigger language plpgsql as "
            "$$ begin update l2inv.op_state set seq = 99; return null; end $$"
        )
        writer.execute(
            "create trigger push after insert on lever for each row execute function pg_temp.push()"
        )
        with pytest.raises(psycopg.Error, match="follows the events"):
            writer.execute("insert into lever values (1)")


def test_no_search_path_of_the_writers_changes_what_guards_the_record(
    l2inv: Commands, ready: list[str], url: str, roles: Names, connection: Connection
) -> None:
    connection.execute(sql.SQL("create schema evil authorization {}").format(sql.Identifier(roles[1])))
    with psycopg.connect(as_role(url, roles[1]), autocommit=True) as writer:
        writer.execute(
            "create function evil.sha256(bytea) returns bytea language sql as $$ select '\\x00'::bytea $$"
        )
        writer.execute(
            "create function evil.pg_trigger_depth() returns integer language sql as $$ select 9 $$"
        )
        writer.execute("set search_path = evil, pg_catalog")
        writer.execute(
            "insert into l2inv.event (op_id, seq, kind, actor, detail) "
            "select op_id, seq + 1, 'noted', 'x', '{\"note\": \"x\"}' from l2inv.op_state where op_id = %s",
            [ready[0]],
        )
        with pytest.raises(psycopg.Error):
            writer.execute("update l2inv.op_state set seq = 99")
    assert l2inv.json("verify")["findings"] == []
    connection.execute("drop schema evil cascade")


def test_the_reader_sees_the_five_views_and_nothing_else(
    url: str, roles: Names, connection: Connection
) -> None:
    relations = connection.execute(
        "select relname from pg_class where relnamespace = 'l2inv'::regnamespace and relkind in ('r', 'v', 'S')"
    ).fetchall()
    functions = connection.execute(
        "select oid, oid::regprocedure::text as call from pg_proc where pronamespace = 'l2inv'::regnamespace"
    ).fetchall()
    seen = set()
    with psycopg.connect(as_role(url, roles[2]), autocommit=True) as reader:
        for row in functions:
            may = reader.execute("select has_function_privilege(%s, 'execute')", [row["oid"]]).fetchone()
            assert may == (False,), row["call"]
        for row in relations:
            try:
                reader.execute(
                    sql.SQL("select * from l2inv.{} limit 1").format(sql.Identifier(row["relname"]))
                )
                seen.add(row["relname"])
            except psycopg.errors.InsufficientPrivilege:
                continue
    assert seen == {"op", "dataset", "published_op", "history", "runs"}


def test_the_reader_reads_by_the_commands(
    l2inv: Commands, ready: list[str], url: str, roles: Names, connection: Connection
) -> None:
    l2inv("claim", ready[0])
    l2inv("mark-inverted", ready[0])
    l2inv("publish")
    commands = (
        ("list",),
        ("list", "--state", "published"),
        ("history", ready[0]),
        ("history", ready[0][:-3]),
        ("export",),
    )
    expected = [l2inv(*command, "--json").stdout for command in commands]
    l2inv.settings["database"]["url"] = as_role(url, roles[2])
    l2inv.save()
    assert [l2inv(*command, "--json").stdout for command in commands] == expected
    assert len(l2inv("export").stdout.splitlines()) == 1
    for command in (("note", ready[0], "x"), ("scan",), ("migrate",)):
        assert "permission denied" in l2inv(*command, expect=1).stderr


def test_the_writer_can_dump_the_schema(url: str, roles: Names) -> None:
    program = embedded._binaries()[0] / "pg_dump"
    dump = subprocess.run(
        [program, "-d", as_role(url, roles[1]), "-n", "l2inv"], check=True, capture_output=True, text=True
    ).stdout
    assert "COPY l2inv.event " in dump
    assert "event_event_id_seq'" in dump


def test_two_databases_of_a_server_have_roles_of_their_own_by_default(l2inv: Commands, url: str) -> None:
    name = conninfo_to_dict(url)["dbname"]
    printed = l2inv("roles").stdout
    for role in ("owner", "writer", "reader"):
        assert f"create role l2inv_{name}_{role} nologin;" in printed
    with copied(f"a_database_of_a_longer_name_{os.getpid()}", os.environ[MIGRATED]) as longer:
        with psycopg.connect(longer, autocommit=True) as connection:
            connection.execute(sql.SQL("alter schema l2inv rename to {}").format(sql.Identifier("x" * 48)))
        l2inv.settings["database"] = {"url": longer, "schema": "x" * 48}
        l2inv.save()
        assert "too long for the name of a role; name it" in l2inv("roles", expect=1).stderr


def test_roles_makes_nobody_wait_behind_a_long_reader(
    l2inv: Commands, url: str, connection: Connection
) -> None:
    own = uuid4().hex[:8]
    options = ("--owner", f"o_{own}", "--writer", f"w_{own}", "--reader", f"r_{own}", "--apply")
    with psycopg.connect(url) as reader:
        reader.execute("select * from l2inv.event")  # and goes on reading
        started = time.monotonic()
        assert "s for a lock" in l2inv("roles", *options, expect=1).stderr
        assert time.monotonic() - started < 20
        assert not connection.execute("select from pg_roles where rolname = %s", [f"o_{own}"]).fetchone()
    l2inv("roles", *options)
    with psycopg.connect(url) as reader:
        reader.execute("select * from l2inv.event")
        l2inv("roles", *options)  # what is owned already is not locked
    for name in (f"o_{own}", f"w_{own}", f"r_{own}"):
        connection.execute(sql.SQL("reassign owned by {} to current_user").format(sql.Identifier(name)))
        connection.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(name)))


@pytest.mark.parametrize("which", ["writer", "reader", "anybody"])
def test_no_table_of_somebodys_own_moves_an_op_by_the_records_trigger(
    url: str, ready: list[str], connection: Connection, which: str, request: pytest.FixtureRequest
) -> None:
    """Also before the roles were made, by whoever may connect."""
    with psycopg.connect(url, autocommit=True) as session:
        if which == "anybody":
            session.execute("create role anybody; grant usage on schema l2inv to anybody; set role anybody")
        else:
            names = request.getfixturevalue("roles")
            session.execute(
                sql.SQL("set role {}").format(sql.Identifier(names[1 if which == "writer" else 2]))
            )
        session.execute("create temp table lever (op_id text, seq int, kind text, state text, detail jsonb)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute(
                "create trigger push before insert on lever for each row execute function l2inv.record_event()"
            )
        session.execute("reset role")
        # As if the right had been given away all the same.
        session.execute(
            "create trigger push before insert on lever for each row execute function l2inv.record_event()"
        )
        with pytest.raises(psycopg.Error, match="no table of events") as refusal:
            session.execute(
                "insert into lever select op_id, seq + 1, 'claimed', 'working', '{}' from l2inv.op_state "
                "where state = 'preprocessed'"
            )
        assert refusal.value.sqlstate == "L2INV"
        if which == "anybody":
            session.execute("revoke usage on schema l2inv from anybody; drop table lever; drop role anybody")


def test_id_time_role_and_hash_given_in_an_insert_are_ignored(
    l2inv: Commands, ready: list[str], url: str, roles: Names, connection: Connection
) -> None:
    before = connection.execute("select max(event_id) as id from l2inv.event").fetchone()
    with psycopg.connect(as_role(url, roles[1]), autocommit=True) as writer:
        writer.execute(
            """
            insert into l2inv.event (event_id, op_id, seq, kind, actor, detail, recorded_at, recorded_by, hash)
            overriding system value
            select 9223372036854775807, op_id, seq + 1, 'noted', 'han', '{"note": "x"}', '2098-01-01', 'postgres', 'x'
            from l2inv.op_state where op_id = %s
            """,
            [ready[0]],
        )
    event = l2inv.json("history", ready[0])["events"][-1]
    assert before and event["event_id"] == before["id"] + 1
    assert abs(datetime.fromisoformat(event["recorded_at"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert event["recorded_by"] == roles[1]
    assert l2inv.json("verify")["findings"] == []


def test_the_writer_cannot_set_when_a_row_was_added(url: str, roles: Names) -> None:
    with psycopg.connect(as_role(url, roles[1]), autocommit=True) as writer:
        for statement in (
            "insert into l2inv.criteria (criteria_version, rules, first_used_at) values ('x', '{}', '2001-01-01')",
            "insert into l2inv.run (stage, actor, started_at) values ('scan', 'x', '2001-01-01')",
            "insert into l2inv.run (stage, actor, finished_at) values ('scan', 'x', '2001-01-01')",
            "insert into l2inv.dataset_version (dataset_id, version, op_id, content_hash, record, run_id, recorded_at) "
            "select dataset_id, version + 1, op_id, content_hash, record, run_id, '2001-01-01' from l2inv.dataset",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                writer.execute(statement)


def test_every_function_with_its_owners_rights_has_a_fixed_search_path(connection: Connection) -> None:
    rows = connection.execute(
        "select proname, proconfig from pg_proc where pronamespace = 'l2inv'::regnamespace and prosecdef"
    ).fetchall()
    assert [row["proname"] for row in rows] == ["record_event"]
    assert all("search_path=pg_catalog, pg_temp" in row["proconfig"] for row in rows)
