"""Tampering with what guards the record, by whoever can: verify names each, and what it cannot find is documented.

Each tampering happens in a transaction that is rolled back, and is looked for in the same transaction.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from l2inv.config.settings import Database, Settings
from l2inv.database import migrate
from l2inv.database.connection import Connection, open_connection
from l2inv.database.roles import Roles, apply
from l2inv.record import anchor, structure, verify
from l2inv.record.chains import Findings
from tests.helpers.commands import Commands
from tests.helpers.database import SERVER

HASH_AS_STORED = """
    create or replace function l2inv.record_event() returns trigger language plpgsql security definer
    set search_path = pg_catalog, pg_temp as $$ begin return new; end $$
"""
# The statement of an owner or superuser -> what the finding names.
STRUCTURE = [
    (HASH_AS_STORED, "function record_event()"),
    ("create or replace function l2inv.refuse_change() returns trigger language plpgsql set search_path = pg_catalog, pg_temp "
     "as $$ begin return null; end $$", "function refuse_change()"),
    ("create or replace function l2inv.is_allowed(kind text, from_state text, to_state text, state_before_error text) "
     "returns boolean language sql immutable parallel safe as 'select true'", "function is_allowed"),
    ("create or replace function l2inv.detail_fits(kind text, detail jsonb) returns boolean language sql as 'select true'",
     "function detail_fits"),
    ("alter function l2inv.record_event() security invoker", "prosecdef"),
    ("alter function l2inv.record_event() reset all", "proconfig"),
    ("alter function l2inv.record_event() set session_replication_role = replica", "proconfig"),
    ("alter function l2inv.detail_fits(text, jsonb) immutable", "provolatile"),
    ("alter function l2inv.fits(jsonb, text) strict", "proisstrict"),
    ("create function l2inv.fits(jsonb, name) returns boolean language sql as 'select true'", "is none of l2inv's"),
    ("drop trigger append_only on l2inv.event", "trigger event.append_only is missing"),
    ("alter table l2inv.event disable trigger append_only", "trigger event.append_only"),
    ("alter table l2inv.event enable trigger append_only", "trigger event.append_only"),
    ("alter table l2inv.event enable replica trigger record_event", "trigger event.record_event"),
    ("alter table l2inv.dataset_version disable trigger all", "trigger dataset_version.append_only"),
    ("alter table l2inv.run disable trigger end_run", "trigger run.end_run"),
    ("drop trigger append_only on l2inv.run; create trigger append_only before delete on l2inv.run "
     "for each row when (false) execute function l2inv.refuse_change()", "trigger run.append_only"),
    ("create trigger more after insert on l2inv.event for each row execute function l2inv.refuse_change()",
     "trigger event.more is none"),
    ("create trigger more before insert on l2inv._yoyo_migration for each row execute function l2inv.refuse_change()",
     "trigger _yoyo_migration.more is none"),
    ("alter table l2inv.event drop constraint event_detail_fits", "constraint event.event_detail_fits is missing"),
    ("alter table l2inv.event drop constraint event_detail_fits, add constraint event_detail_fits "
     "check (l2inv.detail_fits(kind, detail)) not valid", "convalidated"),
    ("alter table l2inv.event drop constraint event_op_id_seq_key", "constraint event.event_op_id_seq_key is missing"),
    ("alter table l2inv.op_state drop constraint op_state_pkey", "constraint op_state.op_state_pkey is missing"),
    ("alter table l2inv.criteria drop constraint criteria_rules_check", "constraint criteria.criteria_rules_check"),
    ("drop index l2inv.event_told", "index event_told is missing"),
    ("drop index l2inv.event_told; create index event_told on l2inv.event (op_id, event_id) where kind = 'published'",
     "index event_told"),
    ("update pg_index set indisvalid = false where indexrelid = 'l2inv.event_voided'::regclass", "indisvalid"),
    ("create rule quietly as on insert to l2inv.event where new.actor = 'eve' do instead nothing", "rule event.quietly"),
    ("create rule quietly as on delete to l2inv.run do instead nothing", "rule run.quietly"),
    ("alter table l2inv.event enable row level security", "relrowsecurity"),
    ("alter table l2inv.event force row level security", "relforcerowsecurity"),
    ("create policy hide on l2inv.event using (actor <> 'eve')", "policy event.hide"),
    ("create or replace view l2inv.runs as select run_id, stage, actor, started_at, finished_at, null::jsonb as result "
     "from l2inv.run", "view runs"),
    ("create or replace view l2inv.history as select e.event_id, e.op_id, e.seq, e.kind, e.state, e.actor, e.recorded_at, "
     "e.run_id, e.detail, e.recorded_by, encode(e.hash, 'hex') as hash, null::integer as voided_by from l2inv.event e",
     "view history"),
    ("drop view l2inv.near_miss", "relation near_miss is missing"),
    ("alter view l2inv.runs set (security_barrier = true)", "relation runs"),
    ("create view l2inv.more as select 1 as one", "relation more is none"),
    ("alter table l2inv.event alter column actor drop not null", "column event.actor"),
    ("alter table l2inv.event alter column detail set default '{\"x\": 1}'", "column event.detail"),
    ("alter table l2inv.event add column more text", "column event.more is none"),
    ("alter table l2inv.run alter column run_id set generated by default", "column run.run_id"),
    ("alter table l2inv.run alter column stage type varchar(99)", "cannot"),
    ("alter sequence l2inv.event_event_id_seq increment -1 minvalue -9 maxvalue 9223372036854775807", "sequence event_event_id_seq"),
    ("alter sequence l2inv.event_event_id_seq cycle", "sequence event_event_id_seq"),
    ("create table public.more () inherits (l2inv.event)", "inheritance public.more of l2inv.event"),
    ("alter table l2inv.quarantine set unlogged", "relpersistence"),
    ("grant update on l2inv.event to public", "public has the right to update on event"),
    ("grant insert (hash) on l2inv.event to TAMPER_reader", "insert on event.hash"),
    ("grant select on l2inv.event to TAMPER_reader", "TAMPER_reader has the right to select on event"),
    ("grant delete on l2inv.run to TAMPER_writer", "TAMPER_writer has the right to delete on run"),
    ("grant select on l2inv.op to TAMPER_writer with grant option", "with grant option on op"),
    ("grant update on sequence l2inv.event_event_id_seq to TAMPER_writer", "update on event_event_id_seq"),
    ("grant execute on function l2inv.record_event() to TAMPER_writer", "execute on record_event()"),
    ("grant create on schema l2inv to TAMPER_writer", "create on schema"),
    ("alter default privileges in schema l2inv grant all on tables to public", "default privileges"),
    ("alter table l2inv.quarantine owner to TAMPER_writer", "owns quarantine"),
    ("create function public.follow() returns event_trigger language plpgsql as 'begin end'; "
     "create event trigger follow on ddl_command_end execute function public.follow()", "event trigger follow"),
    ("create function pg_catalog.sha256(text) returns bytea language sql as 'select null::bytea'", "sha256(text)"),
    ("create or replace function pg_catalog.sha256(bytea) returns bytea language sql immutable strict as 'select $1'",
     "sha256(bytea)"),
]  # fmt: skip


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[Connection, Roles]]:
    """A connection of a superuser's to a database with its roles, for all tests of this file."""
    name = f"tamper_{os.getpid()}"
    names = Roles(f"{name}_owner", f"{name}_writer", f"{name}_reader")
    url = make_conninfo(os.environ[SERVER], dbname=name)
    with psycopg.connect(make_conninfo(url, dbname="postgres"), autocommit=True) as server:
        server.execute(f'create database "{name}"')
        try:
            with open_connection(Settings(database=Database(url=url))) as connection:
                migrate.apply(connection, "l2inv")
                apply(connection, names)
                yield connection, names
        finally:
            server.execute(f'drop database "{name}" with (force)')
            for role in names:
                server.execute(f'drop role if exists "{role}"')


def found(connection: Connection) -> list[str]:
    findings = Findings()
    assert structure.check(connection, findings) > 100
    return [finding["detail"] for finding in findings.first]


def test_what_the_migrations_and_roles_make_has_no_findings(guarded: tuple[Connection, Roles]) -> None:
    assert found(guarded[0]) == []


@pytest.mark.parametrize(("statement", "named"), STRUCTURE, ids=[s[:60] for s, _ in STRUCTURE])
def test_what_guards_the_record_is_not_changed_unnoticed(
    guarded: tuple[Connection, Roles], statement: str, named: str
) -> None:
    connection, names = guarded
    prefix = names.owner.removesuffix("_owner")
    with connection.transaction(force_rollback=True):
        try:
            connection.execute(statement.replace("TAMPER", prefix))
        except psycopg.errors.FeatureNotSupported:
            assert named == "cannot"  # PostgreSQL itself refuses: a view depends on it
            return
        said = found(connection)
    assert [line for line in said if named.replace("TAMPER", prefix) in line], said


def test_the_schema_is_compared_by_its_writer_too(guarded: tuple[Connection, Roles], l2inv: Commands) -> None:
    connection, names = guarded
    connection.execute(f'alter role "{names.writer}" login')
    own = conninfo_to_dict(connection.info.dsn)["dbname"]
    url = make_conninfo(l2inv.settings["database"]["url"], dbname=own, user=names.writer)
    l2inv.settings["database"]["url"] = url
    l2inv.save()
    answer = l2inv.json("verify", "schema")
    assert answer["findings"] == []
    assert list(answer["checked"]) == ["schema"]
    connection.execute("alter table l2inv.run disable trigger end_run")
    try:
        (finding,) = l2inv("verify", "--json", expect=5).json["findings"]
    finally:
        connection.execute("alter table l2inv.run enable always trigger end_run")
    assert finding["what"] == "schema"
    assert "trigger run.end_run" in finding["detail"]


def test_a_schema_of_another_name_is_compared_too(l2inv: Commands) -> None:
    l2inv.settings["database"]["schema"] = "of_mine"
    l2inv.save()
    l2inv("migrate")
    assert l2inv.json("verify")["findings"] == []
    assert l2inv.json("verify", "schema")["checked"]["schema"] > 100


@pytest.fixture
def superuser(l2inv: Commands, ready: list[str], connection: Connection) -> Connection:
    """A connection around the triggers, to a record with runs, verdicts and datasets."""
    connection.execute("set session_replication_role = replica")
    for table in ("event", "op_state", "run", "dataset_version", "criteria"):
        connection.execute(f"alter table l2inv.{table} disable trigger user")
    return connection


def rows_found(connection: Connection, against: anchor.Anchor | None) -> list[str]:
    findings = Findings()
    verify.run_checks(connection, findings, list(verify.CHECKS), lambda done, of: None)
    if against:
        anchor.check(connection, findings, against)
    return [f"{finding['what']}: {finding['detail']}" for finding in findings.first]


# What somebody changes of rows, and how it comes to light: without an anchor, with one alone, or not.
ROWS = [
    ("update l2inv.event set actor = 'eve' where event_id = 3", "alone"),
    ("update l2inv.event set recorded_by = 'eve' where event_id = 3", "alone"),
    ("delete from l2inv.event where event_id = 3", "alone"),
    ("update l2inv.op_state set assignee = 'eve' where op_id = (select min(op_id) from l2inv.op_state)", "alone"),
    ("update l2inv.dataset_version set withdrawn = true where dataset_id = (select min(dataset_id) from l2inv.dataset_version)",
     "alone"),
    ("update l2inv.criteria set rules = rules || '{\"min_ao_locked\": 0.1}'", "alone"),
    ("delete from l2inv.run where run_id = 1", "alone"),
    ("update l2inv.run set result = null", "anchor"),
    ("update l2inv.run set result = null, finished_at = null", "anchor"),
    ("update l2inv.run set started_at = '2020-01-01'", "anchor"),
    ("update l2inv.run set result = result || '{\"seconds\": 0}' where run_id = 2", "anchor"),
    ("insert into l2inv.run (stage, actor) values ('scan', 'eve')", "not"),
    ("update l2inv.dataset_version set recorded_at = '2020-01-01'", "not"),
    ("update l2inv.criteria set first_used_at = '2020-01-01'", "not"),
    ("update l2inv.quarantine set last_seen = '2020-01-01', reason = 'none'", "not"),
    ("delete from l2inv.quarantine", "not"),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "how"), ROWS, ids=[s[:70] for s, _ in ROWS])
def test_a_row_that_was_changed_comes_to_light_as_the_documents_say(
    superuser: Connection, l2inv: Commands, tmp_path: Path, statement: str, how: str
) -> None:
    file = tmp_path / "heads"
    l2inv(
        "verify", "--anchor", str(file), "--new-anchor", expect=5
    )  # the triggers are off: nothing is anchored
    assert not file.exists()
    with superuser.transaction(force_rollback=True):
        against = anchor.load(superuser, file, is_new=True)
        with anchor.block(superuser, against) as (block, _):
            anchor.append(file, block)
        for table in ("anchored_head", "last_head", "fresh"):
            superuser.execute(f"drop table pg_temp.{table}")
        against = anchor.load(superuser, file)
        assert rows_found(superuser, against) == []
        assert superuser.execute(statement).rowcount > 0
        assert bool(rows_found(superuser, None)) == (how == "alone")
        assert bool(rows_found(superuser, against)) == (how != "not")
