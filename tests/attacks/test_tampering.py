"""Tampering with what guards the record, and with the record, by superuser, owner and writer: PostgreSQL refuses it,
verify names it, or docs/promises.md says that nothing does.

Each tampering happens in a session of its role, in a transaction that is rolled back, and is looked for in the same
transaction.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from l2inv.config.settings import Database, Settings
from l2inv.database import migrate
from l2inv.database.connection import Connection, open_connection
from l2inv.database.roles import Roles, apply
from l2inv.errors import L2invError
from l2inv.record import anchor, structure, verify
from l2inv.record.chains import Findings
from l2inv.sample import inventory
from l2inv.sample.server import Store, serving
from tests.helpers.commands import NOW, Commands
from tests.helpers.database import SERVER

HASH_AS_STORED = """
    create or replace function l2inv.record_event() returns trigger language plpgsql security definer
    set search_path = pg_catalog, pg_temp as $$ begin return new; end $$
"""
# What guards the record, changed by a statement of the owner's -> what the finding names.
OWNERS = [
    (HASH_AS_STORED, "function record_event()"),
    ("create or replace function l2inv.refuse_change() returns trigger language plpgsql set search_path = pg_catalog, pg_temp "
     "as $$ begin return null; end $$", "function refuse_change()"),
    ("create or replace function l2inv.is_allowed(kind text, from_state text, to_state text, state_before_error text) "
     "returns boolean language sql immutable parallel safe as 'select true'", "function is_allowed"),
    ("create or replace function l2inv.detail_fits(kind text, detail jsonb) returns boolean language sql as 'select true'",
     "function detail_fits"),
    ("alter function l2inv.record_event() security invoker", "prosecdef differs"),
    ("alter function l2inv.record_event() reset all", "proconfig"),
    ("alter function l2inv.detail_fits(text, jsonb) immutable", "provolatile"),
    ("alter function l2inv.fits(jsonb, text) strict", "proisstrict"),
    ("create function l2inv.fits(jsonb, name) returns boolean language sql as 'select true'", "is not part of l2inv"),
    ("drop trigger append_only on l2inv.event", "trigger event.append_only is missing"),
    ("alter table l2inv.event disable trigger append_only", "trigger event.append_only"),
    ("alter table l2inv.event enable trigger append_only", "trigger event.append_only"),
    ("alter table l2inv.event enable replica trigger record_event", "trigger event.record_event"),
    ("alter table l2inv.dataset_version disable trigger all", "trigger dataset_version.append_only"),
    ("alter table l2inv.run disable trigger end_run", "trigger run.end_run"),
    ("drop trigger append_only on l2inv.run; create trigger append_only before delete on l2inv.run "
     "for each row when (false) execute function l2inv.refuse_change()", "trigger run.append_only"),
    ("create trigger more after insert on l2inv.event for each row execute function l2inv.refuse_change()",
     "trigger event.more is not part of l2inv"),
    ("create trigger more before insert on l2inv._yoyo_migration for each row execute function l2inv.refuse_change()",
     "trigger _yoyo_migration.more is not part of l2inv"),
    ("alter table l2inv.event drop constraint event_detail_fits", "constraint event.event_detail_fits is missing"),
    ("alter table l2inv.event drop constraint event_detail_fits, add constraint event_detail_fits "
     "check (l2inv.detail_fits(kind, detail)) not valid", "convalidated"),
    ("alter table l2inv.event drop constraint event_op_id_seq_key", "constraint event.event_op_id_seq_key is missing"),
    ("alter table l2inv.op_state drop constraint op_state_pkey", "constraint op_state.op_state_pkey is missing"),
    ("alter table l2inv.criteria drop constraint criteria_rules_check", "constraint criteria.criteria_rules_check"),
    ("drop index l2inv.event_told", "index event_told is missing"),
    ("drop index l2inv.event_told; create index event_told on l2inv.event (op_id, event_id) where kind = 'published'",
     "index event_told"),
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
    ("drop view l2inv.failure", "relation failure is missing"),
    ("alter view l2inv.runs set (security_barrier = true)", "relation runs"),
    ("create view l2inv.more as select 1 as one", "relation more is not part of l2inv"),
    ("alter view l2inv.runs rename started_at to x; alter view l2inv.runs rename finished_at to started_at; "
     "alter view l2inv.runs rename x to finished_at", "view runs"),
    ("alter table l2inv.event alter column actor drop not null", "column event.actor"),
    ("alter table l2inv.event alter column detail set default '{\"x\": 1}'", "column event.detail"),
    ("alter table l2inv.event add column more text", "column event.more is not part of l2inv"),
    ("alter table l2inv.run alter column run_id set generated by default", "column run.run_id"),
    ("alter table l2inv.run alter column stage type varchar(99)", "cannot"),
    ("alter table l2inv.run drop constraint run_result_check", "constraint run.run_result_check is missing"),
    ("alter table l2inv.dataset_version disable trigger without_gaps", "trigger dataset_version.without_gaps"),
    ("create collation l2inv.\"C\" (provider = libc, locale = 'C'); "
     "alter table l2inv.received alter column dataset_id type text collate l2inv.\"C\"", "column received.dataset_id"),
    ("alter table l2inv._yoyo_migration rename to _yoyo_real; create view l2inv._yoyo_migration as select * from l2inv._yoyo_real",
     "relation _yoyo_migration is not part of l2inv"),
    ("alter sequence l2inv.event_event_id_seq increment -1 minvalue -9 maxvalue 9223372036854775807", "sequence event_event_id_seq"),
    ("alter sequence l2inv.event_event_id_seq cycle", "sequence event_event_id_seq"),
    ("alter table l2inv.quarantine set unlogged", "relpersistence"),
    ("grant update on l2inv.event to public", "public has the privilege update on event"),
    ("grant insert (hash) on l2inv.event to TAMPER_reader", "insert on event.hash"),
    ("grant select on l2inv.event to TAMPER_reader", "TAMPER_reader has the privilege select on event"),
    ("grant delete on l2inv.run to TAMPER_writer", "TAMPER_writer has the privilege delete on run"),
    ("grant select on l2inv.op to TAMPER_writer with grant option", "with grant option on op"),
    ("grant update on sequence l2inv.event_event_id_seq to TAMPER_writer", "update on event_event_id_seq"),
    ("grant execute on function l2inv.record_event() to TAMPER_writer", "execute on record_event()"),
    ("grant create on schema l2inv to TAMPER_writer", "create on schema"),
    ("alter default privileges in schema l2inv grant all on tables to public", "default privileges"),
]  # fmt: skip
# What PostgreSQL lets a superuser alone do, or the owner on some versions and servers.
SUPERUSERS = [
    ("alter function l2inv.record_event() set session_replication_role = replica", "proconfig"),
    ("update pg_index set indisvalid = false where indexrelid = 'l2inv.event_voided'::regclass", "indisvalid"),
    ("create table public.more () inherits (l2inv.event)", "inheritance public.more of l2inv.event"),
    ("alter table l2inv.quarantine owner to TAMPER_writer", "owns quarantine"),
    ("create function public.follow() returns event_trigger language plpgsql as 'begin end'; "
     "create event trigger follow on ddl_command_end execute function public.follow()", "event trigger follow"),
    ("create function pg_catalog.sha256(text) returns bytea language sql as 'select null::bytea'", "sha256(text)"),
    ("create or replace function pg_catalog.sha256(bytea) returns bytea language sql immutable strict as 'select $1'",
     "sha256(bytea)"),
    ("create or replace function pg_catalog.jsonb_array_elements_text(from_json jsonb, out value text) returns setof text "
     "language sql immutable strict as 'select ''x''::text where false'", "jsonb_array_elements_text(jsonb)"),
    ("create function public.no(text) returns boolean language sql as 'select false'; "
     "create cast (text as boolean) with function public.no(text)", "cast text as boolean"),
]  # fmt: skip


ROLES = ("superuser", "owner", "writer")
REFUSED = ("42501", "L2INV")  # SQLSTATEs: no right to it; the record's own triggers


@dataclass
class Guarded:
    """A database with its roles, in which OPs went through every stage; a session of each role; an anchor."""

    sessions: dict[str, Connection]
    names: Roles
    url: str
    anchor: Path

    def of_its_own(self, text: str) -> str:
        """Return a text of the tables above with the names of this database's roles."""
        return text.replace("TAMPER", self.names.owner.removesuffix("_owner"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    name, folder = f"tamper_{os.getpid()}", tmp_path_factory.mktemp("tampering")
    names = Roles(f"{name}_owner", f"{name}_writer", f"{name}_reader")
    url = make_conninfo(os.environ[SERVER], dbname=name)
    with psycopg.connect(make_conninfo(url, dbname="postgres"), autocommit=True) as server:
        server.execute(f'create database "{name}"')
        sessions: dict[str, Connection] = {}
        try:
            sessions["superuser"] = session(url)
            migrate.apply(sessions["superuser"], "l2inv")
            apply(sessions["superuser"], names)
            for role in ("owner", "writer"):
                server.execute(f'alter role "{name}_{role}" login')
                sessions[role] = session(make_conninfo(url, user=f"{name}_{role}"))
            live(make_conninfo(url, user=names.writer), folder)
            file = folder / "heads"
            with sessions["superuser"].transaction(force_rollback=True):
                write_anchor(sessions["superuser"], file)
            yield Guarded(sessions, names, url, file)
        finally:
            for connection in sessions.values():
                connection.close()
            server.execute(f'drop database "{name}" with (force)')
            for role in names:
                server.execute(f'drop role if exists "{role}"')


def session(url: str) -> Connection:
    return open_connection(Settings(database=Database(url=url)))


def live(url: str, folder: Path) -> None:
    """Have OPs go through every stage, one run not end, and a record be quarantined."""
    store = Store(inventory.make(ops=12, now=NOW))
    with serving(store) as where:
        settings = {
            "database": {"url": url},
            "metadata_store": {"url": where},
            "preprocess": {"work_dir": str(folder / "work")},
        }
        l2inv = Commands(folder / "config.yaml", settings)
        for argv in (["scan"], ["qualify", "--as-of", NOW.isoformat()], ["preprocess"]):
            l2inv(*argv)
        one, other = (op["op_id"] for op in l2inv.json("next", "-n", "2")["ops"])
        for argv in (
            ["claim", one],
            ["mark-inverted", one],
            ["publish"],
            ["claim", other],
            ["note", one, "good"],
        ):
            l2inv(*argv)
    with session(url) as connection:
        connection.execute("insert into l2inv.run (stage, actor) values ('publish', 'cron')")


def write_anchor(connection: Connection, file: Path) -> None:
    with anchor.block(connection, anchor.load(connection, file, is_new=True)) as (block, _):
        anchor.append(file, block)


def schema_findings(connection: Connection) -> list[str]:
    findings = Findings()
    assert len(structure.check(connection, findings)) > 100
    return [finding.detail for finding in findings.first]


def row_findings(connection: Connection, file: Path | None = None) -> list[str]:
    findings = Findings()
    with connection.transaction(force_rollback=True):
        against = anchor.load(connection, file) if file else None
        verify.run_checks(connection, findings, list(verify.CHECKS), lambda done, of: None)
        if against:
            anchor.check(connection, findings, against)
    return [f"{finding.what}: {finding.detail}" for finding in findings.first]


def catalogs(connection: Connection) -> Any:
    with connection.transaction(force_rollback=True):
        return structure.found(connection), structure.privileges(connection)


def is_refused(connection: Connection, statement: str, states: tuple[str, ...] = REFUSED) -> bool:
    """Execute a statement; whether PostgreSQL refused it, which it may do by these SQLSTATEs alone."""
    try:
        with connection.transaction():
            connection.execute(statement)
    except psycopg.Error as refusal:
        assert refusal.sqlstate in states, (refusal.sqlstate, str(refusal))
        return True
    return False


@pytest.mark.parametrize("role", ROLES)
def test_an_intact_database_has_no_findings(guarded: Guarded, role: str) -> None:
    connection = guarded.sessions[role]
    assert schema_findings(connection) == []
    assert row_findings(connection, guarded.anchor) == []


@pytest.mark.parametrize(("statement", "named"), OWNERS, ids=[s[:60] for s, _ in OWNERS])
def test_the_owners_changes_of_the_records_guards_are_named(
    guarded: Guarded, statement: str, named: str
) -> None:
    """The owner, since a superuser may do all that and more; what is found is read from the same catalogs."""
    connection = guarded.sessions["owner"]
    with connection.transaction(force_rollback=True):
        if is_refused(connection, guarded.of_its_own(statement), ("0A000",)):
            assert named == "cannot"  # PostgreSQL itself refuses: a view depends on it
            return
        said = schema_findings(connection)
    assert [line for line in said if guarded.of_its_own(named) in line], said


@pytest.mark.parametrize("role", ["superuser", "owner"])
@pytest.mark.parametrize(("statement", "named"), SUPERUSERS, ids=[s[:60] for s, _ in SUPERUSERS])
def test_a_superusers_changes_of_the_records_guards_are_named(
    guarded: Guarded, statement: str, named: str, role: str
) -> None:
    connection = guarded.sessions[role]
    with connection.transaction(force_rollback=True):
        if is_refused(connection, guarded.of_its_own(statement)):
            assert role == "owner"
            return
        said = schema_findings(connection)
    assert [line for line in said if guarded.of_its_own(named) in line], said


@pytest.mark.parametrize(
    ("statement", "named"), OWNERS + SUPERUSERS, ids=[s[:60] for s, _ in OWNERS + SUPERUSERS]
)
def test_the_writer_cannot_change_the_records_guards_unnoticed(
    guarded: Guarded, statement: str, named: str
) -> None:
    """What PostgreSQL takes with no more than a warning, such as a grant of what is not one's own, changes nothing."""
    connection = guarded.sessions["writer"]
    before = catalogs(connection)
    with connection.transaction(force_rollback=True):
        if not is_refused(connection, guarded.of_its_own(statement)) and catalogs(connection) != before:
            said = schema_findings(connection)
            assert statement.startswith("alter default privileges"), (
                said
            )  # for what it makes itself: nothing here
            assert [line for line in said if named in line], said


def test_the_schema_is_compared_by_its_writer_too(guarded: Guarded, l2inv: Commands) -> None:
    superuser = guarded.sessions["superuser"]
    own = conninfo_to_dict(guarded.url)["dbname"]
    l2inv.settings["database"]["url"] = make_conninfo(
        l2inv.settings["database"]["url"], dbname=own, user=guarded.names.writer
    )
    l2inv.save()
    answer = l2inv.json("verify", "schema")
    assert answer["findings"] == []
    assert list(answer["checked"]) == ["schema"]
    superuser.execute("alter table l2inv.run disable trigger end_run")
    try:
        (finding,) = l2inv("verify", "--json", expect=5).json["findings"]
    finally:
        superuser.execute("alter table l2inv.run enable always trigger end_run")
    assert finding["what"] == "schema"
    assert "trigger run.end_run" in finding["detail"]


def test_a_schema_of_another_name_is_compared_too(l2inv: Commands) -> None:
    l2inv.settings["database"]["schema"] = "of_mine"
    l2inv.save()
    l2inv("migrate")
    assert l2inv.json("verify")["findings"] == []
    assert l2inv.json("verify", "schema")["checked"]["schema"] > 100


# What somebody who gets around the triggers changes of rows, and how it comes to light: without an anchor (alone), with
# one alone (anchor), or not.
LAST = "(select max(event_id) from l2inv.event where kind = 'noted')"
ROWS = [
    ("update l2inv.event set actor = 'eve' where event_id = 3", "alone"),
    ("update l2inv.event set recorded_by = 'eve' where event_id = 3", "alone"),
    ("update l2inv.event set recorded_at = '2020-01-01' where event_id = 3", "alone"),
    ("update l2inv.event set detail = detail || '{\"inversions\": []}' where kind = 'published'", "alone"),
    ("update l2inv.event set hash = sha256('') where event_id = 3", "alone"),
    ("delete from l2inv.event where event_id = 3", "alone"),
    (f"delete from l2inv.event where event_id = {LAST}", "alone"),
    # The end of a history, with all that follows from it.
    (f"with gone as (delete from l2inv.event where event_id = {LAST} returning op_id, seq) "
     "update l2inv.op_state s set seq = e.seq, hash = e.hash from gone g join l2inv.event e on e.op_id = g.op_id "
     "and e.seq = g.seq - 1 where s.op_id = g.op_id", "anchor"),
    ("insert into l2inv.event (event_id, op_id, seq, kind, actor, recorded_at, detail, recorded_by, hash) "
     "select 99999, op_id, seq + 1, 'noted', 'han', now(), '{\"note\": \"x\"}', 'eve', sha256('') from l2inv.op_state limit 1",
     "alone"),
    ("update l2inv.op_state set assignee = 'eve' where op_id = (select min(op_id) from l2inv.op_state)", "alone"),
    ("update l2inv.op_state set due_at = '2099-01-01' where state = 'working'", "alone"),
    ("delete from l2inv.op_state where state = 'published'", "alone"),
    ("update l2inv.dataset_version set withdrawn = true where dataset_id = (select min(dataset_id) from l2inv.dataset_version)",
     "alone"),
    ("update l2inv.dataset_version set record = record || '{\"frameCount\": 1}' where dataset_id = (select min(dataset_id) "
     "from l2inv.dataset_version)", "alone"),
    ("delete from l2inv.dataset_version where dataset_id = (select max(dataset_id) from l2inv.dataset_version)", "alone"),
    ("update l2inv.criteria set rules = rules || '{\"min_ao_locked\": 0.1}'", "alone"),
    ("delete from l2inv.criteria", "alone"),
    ("update l2inv.quarantine set raw = raw || 'x'", "alone"),
    ("delete from l2inv.run where run_id = 1", "alone"),
    ("update l2inv.run set result = null", "anchor"),
    ("update l2inv.run set result = null, finished_at = null", "anchor"),
    ("update l2inv.run set started_at = '2020-01-01'", "anchor"),
    ("update l2inv.run set result = result || '{\"seconds\": 0}' where run_id = 2", "anchor"),
    ("insert into l2inv.run (stage, actor) values ('scan', 'eve')", "not"),
    ("update l2inv.run set actor = 'eve' where finished_at is null", "not"),
    ("update l2inv.dataset_version set recorded_at = '2020-01-01'", "not"),
    ("update l2inv.criteria set first_used_at = '2020-01-01'", "not"),
    ("update l2inv.quarantine set first_seen = '2020-01-01', resolved_at = '2020-01-01'", "not"),
    ("delete from l2inv.quarantine", "not"),
]  # fmt: skip
IN_THE_WAY = {
    "event": ("append_only", "record_event"),
    "op_state": ("derived_only",),
    "dataset_version": ("append_only",),
    "criteria": ("append_only",),
    "run": ("append_only", "end_run"),
}


def assert_it_comes_to_light(guarded: Guarded, connection: Connection, how: str) -> None:
    assert bool(row_findings(connection)) == (how == "alone")
    assert bool(row_findings(connection, guarded.anchor)) == (how != "not")


@pytest.mark.parametrize(("statement", "how"), ROWS, ids=[s[:70] for s, _ in ROWS])
def test_a_row_changed_around_the_triggers_is_found_as_documented(
    guarded: Guarded, statement: str, how: str
) -> None:
    """The triggers are as before when it is looked for: verify schema shows nothing of it."""
    connection = guarded.sessions["owner"]
    triggers = [(table, name) for table, names in IN_THE_WAY.items() for name in names]
    with connection.transaction(force_rollback=True):
        for table, name in triggers:
            connection.execute(f"alter table l2inv.{table} disable trigger {name}")
        assert connection.execute(statement).rowcount > 0
        for table, name in triggers:
            connection.execute(f"alter table l2inv.{table} enable always trigger {name}")
        assert_it_comes_to_light(guarded, connection, how)


# What neither privileges nor triggers refuse: to add; and the owner may change the quarantine, which no event names.
TAKEN = {
    "writer": {("insert", "event"), ("insert", "run")},
    "owner": {("insert", "event"), ("insert", "run"), ("update", "quarantine"), ("delete", "quarantine")},
}


@pytest.mark.parametrize("role", TAKEN)
@pytest.mark.parametrize("statement", [s for s, _ in ROWS], ids=[s[:70] for s, _ in ROWS])
def test_with_the_triggers_in_place_no_existing_row_can_be_changed(
    guarded: Guarded, statement: str, role: str
) -> None:
    connection = guarded.sessions[role]
    verb, table = re.findall(r"(insert|update|delete) (?:into |from )?l2inv[.](\w+)", statement)[0]
    with connection.transaction(force_rollback=True):
        assert is_refused(connection, statement) == ((verb, table) not in TAKEN[role])
        if verb == "insert":  # what it names as id, time, role and hash is not taken
            assert_it_comes_to_light(guarded, connection, "not")


# What the writer's own rights are misused for -> SQLSTATE of its refusal, or how it comes to light.
AN_EVENT = "insert into l2inv.event (op_id, seq, kind, state, actor, detail) select op_id, seq"
A_VERSION = (
    "insert into l2inv.dataset_version (dataset_id, version, op_id, content_hash, record, run_id) select"
)
WRITERS = [
    (f"{AN_EVENT} + 2, 'noted', null, 'han', '{{\"note\": \"x\"}}' from l2inv.op_state limit 1", "L2INV"),
    (f"{AN_EVENT}, 'noted', null, 'han', '{{\"note\": \"x\"}}' from l2inv.op_state limit 1", "L2INV"),
    (f"{AN_EVENT} + 1, 'published', 'published', 'han', '{{\"inversions\": []}}' from l2inv.op_state where state = 'working'", "L2INV"),
    (f"{AN_EVENT} + 1, 'voided', null, 'han', '{{\"seq\": 1, \"reason\": \"x\"}}' from l2inv.op_state limit 1", "L2INV"),
    (f"{AN_EVENT} + 1, 'taken_over', null, 'eve', '{{\"assignee\": \"eve\", \"from\": \"han\", \"due_at\": "
     "\"2099-01-01T00:00:00Z\", \"reason\": \"x\"}' from l2inv.op_state where state = 'working'", "L2INV"),
    (f"{AN_EVENT} + 1, 'noted', null, 'han', '{{\"note\": 1}}' from l2inv.op_state limit 1", "23514"),
    (f"{AN_EVENT} + 1, 'noted', null, '', '{{\"note\": \"x\"}}' from l2inv.op_state limit 1", "23514"),
    (f"{A_VERSION} dataset_id, version, op_id, content_hash, record, run_id from l2inv.dataset limit 1", "23505"),
    (f"{A_VERSION} dataset_id, version + 1, op_id, content_hash, '{{}}', run_id from l2inv.dataset limit 1", "23514"),
    (f"{A_VERSION} dataset_id, 2147483647, op_id, content_hash, record, run_id from l2inv.dataset limit 1", "L2INV"),
    (f"{A_VERSION} 'FORGED', 2, op_id, content_hash, record, run_id from l2inv.dataset limit 1", "L2INV"),
    ("update l2inv.quarantine set last_seen = 'infinity'", "23514"),
    ("update l2inv.quarantine set last_seen = '0044-03-15 BC'", "23514"),
    ("update l2inv.run set finished_at = now(), result = '{\"ops\": {\"done\": \"x\"}}' where finished_at is null", "23514"),
    ("update l2inv.run set finished_at = now(), result = '\"failed\"' where finished_at is null", "23514"),
    ("update l2inv.run set result = '{\"seconds\": 0}' where finished_at is null", "L2INV"),
    ("insert into l2inv.op_state (op_id, seq, hash, state, since, datasets_seq, cycle) "
     "select 'x', seq, hash, state, since, datasets_seq, cycle from l2inv.op_state limit 1", "42501"),
    ("select nextval('l2inv.event_event_id_seq')", "42501"),
    ("select setval('l2inv.event_event_id_seq', 1)", "42501"),
    ("copy l2inv.event from program 'true'", "42501"),
    ("create temp table lever (a int); create trigger push before insert on lever for each row "
     "execute function l2inv.record_event()", "42501"),
    ("set session_replication_role = replica", "42501"),
    ("alter function l2inv.take_lock(text) owner to current_user", "42501"),
    # A verdict, and a state against it.
    ("insert into l2inv.event (op_id, seq, kind, state, actor, detail) select s.op_id, s.seq + 1, 'judged', 'invertible', "
     "'cron', e.detail from l2inv.op_state s join l2inv.event e on e.op_id = s.op_id and e.seq = s.verdict_seq "
     "where s.state = 'not_invertible' limit 1", "L2INV"),
    (f"{AN_EVENT} + 1, 'overruled', 'invertible', 'han', '{{\"invertible\": false, \"instrument_programs\": [], "
     "\"reason\": \"x\"}' from l2inv.op_state where state = 'not_invertible' limit 1", "L2INV"),
    # What is taken and found.
    (f"{A_VERSION} dataset_id, version + 1, op_id, content_hash, record, run_id from l2inv.dataset limit 1", "alone"),
    (f"{A_VERSION} 'FORGED', 1, op_id, content_hash, record, run_id from l2inv.dataset limit 1", "alone"),
    ("insert into l2inv.criteria (criteria_version, rules) values ('0123456789ab', '{}')", "alone"),
    ("insert into l2inv.quarantine (raw_hash, reason, raw) values (sha256('x'), 'none', 'y')", "alone"),
    ("insert into l2inv.event (op_id, seq, kind, actor, run_id, detail) select op_id, seq + 1, 'noted', 'cron', 1, "
     "'{\"note\": \"x\"}' from l2inv.op_state limit 1", "alone"),
    # What is taken and not found: it is what the writer's role is for, or nothing vouches for it.
    (f"{AN_EVENT} + 1, 'noted', null, 'somebody else', '{{\"note\": \"x\"}}' from l2inv.op_state limit 1", "not"),
    ("insert into l2inv.run (stage, actor) values ('scan', 'eve')", "not"),
    ("update l2inv.run set finished_at = now(), result = '{\"seconds\": 0}' where finished_at is null", "not"),
    ("update l2inv.quarantine set reason = 'none', last_seen = '2020-01-01', resolved_at = now()", "not"),
    ("update l2inv.lock set key = 1, pid = 1, role = 1", "not"),
    # A change that the store sends can be hidden from a scan, until the owner empties the table.
    ("update l2inv.received set raw_hash = sha256(raw_hash)", "not"),
    ("delete from l2inv.received", "42501"),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "how"), WRITERS, ids=[f"{h} {s[:90]}" for s, h in WRITERS])
def test_misuse_of_the_writers_privileges_is_refused_or_found_as_documented(
    guarded: Guarded, statement: str, how: str
) -> None:
    connection = guarded.sessions["writer"]
    with connection.transaction(force_rollback=True):
        if how in ("alone", "anchor", "not"):
            assert connection.execute(statement).rowcount > 0
            assert_it_comes_to_light(guarded, connection, how)
        else:
            assert is_refused(connection, statement, (how,))


# What leaves rows or tables that l2inv's own statements cannot read, and a word of what is found.
UNREADABLE = [
    ("alter table l2inv.event alter {} drop not null; update l2inv.event set {} = null where event_id in (3, 80)", column)
    for column in ("op_id", "seq", "kind", "actor", "recorded_at", "detail", "recorded_by", "hash")
] + [
    ("alter table l2inv.op_state alter {} drop not null; update l2inv.op_state set {} = null", column)
    for column in ("seq", "hash", "state", "since", "datasets_seq", "cycle", "priority")
] + [
    ("alter table l2inv.dataset_version alter {} drop not null; update l2inv.dataset_version set {} = null", column)
    for column in ("op_id", "content_hash", "record", "run_id", "withdrawn")
] + [
    ("alter table l2inv.event drop constraint event_pkey; alter table l2inv.event alter {} drop not null; "
     "update l2inv.event set {} = null where event_id in (3, 80)", "event_id"),
    ("alter table l2inv.op_state drop constraint op_state_pkey; alter table l2inv.op_state alter {} drop not null; "
     "update l2inv.op_state set {} = null where state in ('published', 'working')", "op_id"),
    ("update l2inv.event set op_id = null where op_id = (select max(op_id) from l2inv.event)", "op_id"),
    ("alter table l2inv.run alter {} drop not null; update l2inv.run set {} = null", "stage"),
    ("update l2inv.run set result = '{{\"seconds\": 1, \"ops\": {{\"new\": \"x\"}}}}'", "runs cannot be read"),
    ("alter table l2inv.criteria alter {} drop not null; update l2inv.criteria set {} = null", "rules"),
    ("update l2inv.op_state set since = 'infinity', due_at = '-infinity'", "due_at"),
    ("drop sequence l2inv.event_event_id_seq", "event_event_id_seq"),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "word"), UNREADABLE, ids=[f"{w} {s[:50]}" for s, w in UNREADABLE])
def test_an_unreadable_row_is_a_finding_and_not_a_crash(guarded: Guarded, statement: str, word: str) -> None:
    connection = guarded.sessions["owner"]
    with connection.transaction(force_rollback=True):
        connection.execute(
            "alter table l2inv.event drop constraint event_op_id_seq_key, alter op_id drop not null"
        )
        for table, constraint in (
            ("event", "detail_fits"),
            ("dataset_version", "record_fits"),
            ("run", "result_check"),
        ):
            connection.execute(f"alter table l2inv.{table} drop constraint {table}_{constraint}")
        for table in IN_THE_WAY:
            connection.execute(f"alter table l2inv.{table} disable trigger user")
        connection.execute(statement.format(word, word))
        said = row_findings(connection, guarded.anchor) + schema_findings(connection)
    assert [line for line in said if word in line], said


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("drop table l2inv.event cascade", "column event.hash is missing"),
        ("alter table l2inv.op_state drop r0_class cascade", "column op_state.r0_class is missing"),
        ("drop table l2inv.received", "relation received is missing"),
        ("select setval('l2inv.event_event_id_seq', 9223372036854775807)", "PostgreSQL cannot give"),
    ],
)
def test_a_relation_that_is_no_longer_usable_is_a_finding_and_not_a_crash(
    connection: Connection, statement: str, words: str
) -> None:
    connection.execute(statement)
    found = verify.verify(connection).findings
    assert [f for f in found if words in f.detail], found


def test_a_policy_that_hides_rows_is_a_finding_for_those_whom_it_binds(guarded: Guarded) -> None:
    guarded.sessions["owner"].execute("alter table l2inv.event enable row level security")
    try:
        found = verify.verify(guarded.sessions["writer"]).findings
    finally:
        guarded.sessions["owner"].execute("alter table l2inv.event disable row level security")
    assert ["relrowsecurity" in found[0].detail, "not all rows can be read" in found[1].detail] == [
        True,
        True,
    ]


def test_the_role_that_wrote_an_event_is_recorded_along_with_the_actor(guarded: Guarded) -> None:
    connection = guarded.sessions["writer"]
    with connection.transaction(force_rollback=True):
        connection.execute(
            f"{AN_EVENT} + 1, 'noted', null, 'han', '{{\"note\": \"x\"}}' from l2inv.op_state limit 1"
        )
        row = connection.execute(
            "select actor, recorded_by from l2inv.history order by event_id desc limit 1"
        ).fetchone()
    assert row == {"actor": "han", "recorded_by": guarded.names.writer}


# What somebody does to the anchor's file -> words of the error or the finding; None where nothing shows it.
ANCHORS = [
    (lambda lines: [], "is empty"),
    (lambda lines: lines[1:], "does not begin like an anchor"),
    (lambda lines: [lines[0], *(line.replace('"', "'", 1) for line in lines[1:])], "malformed"),
    (lambda lines: [*_with(lines, f'["{"x" * 9}", 1, "{"0" * 64}"]')], "event 1 is missing"),
    (lambda lines: [lines[0], f'["x", 99999999999, "{"0" * 64}"]', *lines[1:]], "Expected `int`"),
    (lambda lines: [lines[0], f'["\\u0000", 1, "{"0" * 64}"]', *lines[1:]], "Expected `str` matching regex"),
    (lambda lines: [lines[0], f'["{"x" * 201}", 1, "{"0" * 64}"]', *lines[1:]], "Expected `str` of length <= 200"),
    (lambda lines: [_with_another_hash(line) for line in lines], "is not what was anchored"),
    (lambda lines: [lines[0].replace('"runs":', '"runs":1'), *lines[1:]], "runs were anchored"),
    (lambda lines: [lines[0].replace('"schema":"', '"schema":"0'), *lines[1:]], "the schema is not what was anchored"),
    (lambda lines: [lines[0], *lines[2:]], "lines in a block that ends otherwise"),
    (lambda lines: [*_with(lines, '[1, "00"]')], None),  # the first line about a run holds
    (lambda lines: lines[:4], None),  # an anchor that names less: keep it where nobody can change it
]  # fmt: skip


def _with(lines: list[str], line: str) -> list[str]:
    """Return the lines of an anchor of one block with one more, as the block's end says."""
    return [*lines[:-1], line, f'{{"end": {len(lines) - 1}}}']


def _with_another_hash(line: str) -> str:
    return line.replace(line[-3:], '0"]') if line.startswith('["') else line


@pytest.mark.parametrize(("change", "words"), ANCHORS, ids=[str(words) for _, words in ANCHORS])
def test_an_anchor_that_was_changed_is_an_error_or_a_finding_unless_it_names_less(
    guarded: Guarded, tmp_path: Path, change: Any, words: str | None
) -> None:
    file = tmp_path / "heads"
    file.write_text("".join(f"{line}\n" for line in change(guarded.anchor.read_text().splitlines())))
    try:
        said = row_findings(guarded.sessions["superuser"], file)
    except L2invError as refusal:
        said = [str(refusal)]
    assert [line for line in said if words is not None and words in line] or (words, said) == (None, []), said
