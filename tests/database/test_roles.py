"""Roles: the writer can do its work and nothing more, the reader sees the views alone."""

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.conftest import NOW, Commands, Connection

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
    database = sql.Identifier(conninfo_to_dict(url)["dbname"])
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


def test_no_trigger_of_the_writers_own_lets_it_write_a_state(url: str, roles: Names) -> None:
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
            "insert into l2inv.event (op_id, seq, kind, actor) "
            "select op_id, seq + 1, 'noted', 'x' from l2inv.op_state where op_id = %s",
            [ready[0]],
        )
        with pytest.raises(psycopg.Error):
            writer.execute("update l2inv.op_state set seq = 99")
    assert l2inv.json("verify")["findings"] == []
    connection.execute("drop schema evil cascade")


def test_the_reader_sees_the_three_views_and_nothing_else(
    url: str, roles: Names, connection: Connection
) -> None:
    relations = connection.execute(
        "select relname from pg_class where relnamespace = 'l2inv'::regnamespace and relkind in ('r', 'v')"
    ).fetchall()
    seen = set()
    with psycopg.connect(as_role(url, roles[2]), autocommit=True) as reader:
        for call in ("is_allowed('noted', 'error', null, null)", "event_hash(null, 1, '', 1, '', '', '', now(), 1, '{}')"):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute(f"select l2inv.{call}".encode())
        for row in relations:
            try:
                reader.execute(
                    sql.SQL("select * from l2inv.{} limit 1").format(sql.Identifier(row["relname"]))
                )
                seen.add(row["relname"])
            except psycopg.errors.InsufficientPrivilege:
                continue
    assert seen == {"op", "dataset", "published_op"}


def test_every_function_with_its_owners_rights_has_a_fixed_search_path(connection: Connection) -> None:
    rows = connection.execute(
        "select proname, proconfig from pg_proc where pronamespace = 'l2inv'::regnamespace and prosecdef"
    ).fetchall()
    assert [row["proname"] for row in rows] == ["record_event"]
    assert all("search_path=pg_catalog, pg_temp" in row["proconfig"] for row in rows)
