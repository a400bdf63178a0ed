"""A session behaves the same under any defaults, is refused behind the wrong pooler, and reports what it waits for."""

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from l2inv.config.settings import Database, Settings
from l2inv.database import session
from l2inv.database.connection import Connection, open_connection, translated
from l2inv.database.runs import stage_lock, stage_run
from l2inv.errors import DatabaseError
from tests.helpers import poolers
from tests.helpers.commands import NOW, Commands
from tests.helpers.terminals import on_terminal
from tests.helpers.waiting import WAITS_FOR_A_LOCK, until

pytestmark = pytest.mark.usefixtures("cold")  # sessions are what is tested here

# Each function and operator of PostgreSQL's that a stranger can make once more, for the same types.
SHADOWS = """
do $$
declare
    one record;
begin
    for one in select proname, pg_get_function_identity_arguments(oid) as taken, pg_get_function_result(oid) as given
               from pg_proc where pronamespace = 'pg_catalog'::regnamespace and prokind in ('f', 'a')
    loop
        begin
            execute format($f$create function public.%I(%s) returns %s language plpgsql as
                              $g$ begin raise exception 'a stranger''s %s ran'; end $g$ $f$,
                           one.proname, one.taken, one.given, one.proname);
        exception when others then
            null;  -- of a type that only PostgreSQL's own may have
        end;
    end loop;
    for one in select oprname, nullif(oprleft, 0)::regtype as a, oprright::regtype as b, proname
               from pg_operator join pg_proc p on p.oid = oprcode where oprnamespace = 'pg_catalog'::regnamespace
    loop
        begin
            execute format('create operator public.%s (%s rightarg = %s, function = public.%I)', one.oprname,
                           coalesce(format('leftarg = %s,', one.a), ''), one.b, one.proname);
        exception when others then
            null;
        end;
    end loop;
end $$
"""
HOSTILE = {
    "search_path": "public, pg_catalog",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Pacific/Chatham",
    "client_encoding": "LATIN1",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "default_transaction_isolation": "serializable",
    "gin_fuzzy_search_limit": "1",
    "synchronous_commit": "off",
    "default_table_access_method": "theirs",
    "plpgsql.extra_errors": "all",
    "plpgsql.variable_conflict": "use_column",
    "statement_timeout": "1ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "1ms",
    "idle_session_timeout": "1ms",
    "l2inv.session": "theirs",
}
ENVIRONMENT = {
    "PGOPTIONS": "-c search_path=public,pg_catalog -c standard_conforming_strings=off -c statement_timeout=1",
    "PGTZ": "Pacific/Chatham",
    "PGDATESTYLE": "SQL, DMY",
    "PGCLIENTENCODING": "LATIN1",
    "PGAPPNAME": "somebody else",
    "PGGEQO": "off",
}


@dataclass
class Stranger:
    """Who runs the database that l2inv is given, and what is there of l2inv's: a role that owns the database."""

    server: psycopg.Connection[tuple[object, ...]]
    role: str
    url: str  # as that role

    def spoil(self, name: str, *values: str) -> None:
        """Return database and role a default."""
        database, role = sql.Identifier(self.server.info.dbname), sql.Identifier(self.role)
        for where in (sql.SQL("database {}").format(database), sql.SQL("role {}").format(role)):
            value = sql.SQL(", ").join(values)
            self.server.execute(sql.SQL("alter {} set {} = {}").format(where, sql.SQL(name), value))

    def spoil_all(self) -> None:
        """Return both every default that is not PostgreSQL's own, but for what a server tells its log, and makes all that
        may stand in PostgreSQL's stead."""
        flipped = self.server.execute(
            """
            select name, case vartype when 'enum' then (select v from unnest(enumvals) v where v <> boot_val limit 1)
                                      else case boot_val when 'on' then 'off' else 'on' end end
            from pg_settings where context = 'user' and vartype in ('bool', 'enum') and cardinality(enumvals) is distinct from 1
                and category not similar to '(Developer|Reporting)%' and name not like 'transaction%'
            """
        ).fetchall()
        assert len(flipped) > 40
        self.server.execute("create access method theirs type table handler heap_tableam_handler")
        for name, value in ({row[0]: row[1] for row in flipped} | HOSTILE).items():
            self.spoil(str(name), *(str(value).split(", ") if name == "search_path" else [str(value)]))
        if self.server.info.server_version >= 170000:
            self.spoil("transaction_timeout", "20s")
        self.server.execute(SHADOWS)

    def relent(self) -> None:
        """Take it all back."""
        database, role = sql.Identifier(self.server.info.dbname), sql.Identifier(self.role)
        self.server.execute(sql.SQL("alter database {} reset all").format(database))
        self.server.execute(sql.SQL("alter role {} reset all").format(role))
        self.server.execute("drop schema public cascade")


@pytest.fixture
def stranger(url: str) -> Iterator[Stranger]:
    """Whoever gave l2inv an empty database and a role of its own."""
    with psycopg.connect(url, autocommit=True) as server:
        role, name = f"own_{uuid4().hex[:8]}", sql.Identifier(server.info.dbname)
        server.execute("drop schema l2inv cascade")
        server.execute(sql.SQL("create role {} login").format(sql.Identifier(role)))
        server.execute(sql.SQL("alter database {} owner to {}").format(name, sql.Identifier(role)))
        yield Stranger(server, role, make_conninfo(url, user=role))
        server.execute(sql.SQL("alter database {} owner to current_user").format(name))
        server.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(role)))


def on(l2inv: Commands, url: str, **more: object) -> None:
    """Let the commands use another URL of the database."""
    l2inv.settings["database"] = {"url": url, **more}
    l2inv.save()


def opened(url: str, **settings: float) -> Connection:
    return open_connection(Settings(database=Database(url=url, **settings)))  # type: ignore[arg-type]


# What a default may still choose: how a statement is run, not what it means; what nothing of l2inv's comes to.
FREE = re.compile(
    "(enable_|parallel_|xml|vacuum_|escape_string_warning$|plpgsql.variable_conflict$|l2inv.database.session$)|"
    "(client_min_messages|constraint_exclusion|file_copy_method|force_parallel_mode|geqo|icu_validation_level|"
    "default_toast_compression|md5_password_warnings|password_encryption|plan_cache_mode|recursive_worktable_factor|"
    "stats_fetch_consistency|synchronize_seqscans|wal_compression|application_name)$"
)


def meant(connection: Connection) -> dict[str, str]:
    """All that the defaults of database and role, or the environment, can set, as the session has it."""
    connection.execute("do $$ begin end $$")  # the settings of PL/pgSQL are there from now on
    rows = connection.execute(
        "select name, current_setting(name) as value from pg_settings where context in ('user', 'superuser')"
    )
    return {row["name"]: row["value"] for row in rows if not FREE.match(row["name"])}


def test_from_scan_to_publish_statements_mean_the_same_under_the_worst_defaults(
    l2inv: Commands, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(stranger.url) as connection:
        expected = meant(connection)
    stranger.spoil_all()
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with opened(stranger.url) as connection:
        assert meant(connection) == expected
    on(l2inv, stranger.url)
    for argv in (["migrate"], ["scan"], ["qualify", "--as-of", NOW.isoformat()], ["preprocess"]):
        l2inv(*argv)
    (op, *_) = [one["op_id"] for one in l2inv.json("next")["ops"]]
    for argv in (
        ["claim", op],
        ["mark-inverted", op],
        ["publish"],
        ["report", str(l2inv.config.with_name("report.html"))],
    ):
        l2inv(*argv)
    copy = l2inv.config.with_name("backup")
    l2inv("backup", str(copy))
    kept = l2inv.json("history", op)
    assert l2inv.json("verify")["findings"] == []

    stranger.relent()  # and what was written is what it should be
    for name in ENVIRONMENT:
        monkeypatch.delenv(name)
    assert l2inv.json("verify")["findings"] == []
    assert l2inv.json("history", op) == kept
    with psycopg.connect(stranger.url, autocommit=True) as owner:
        owner.execute("alter schema l2inv rename to l2inv_before")
    l2inv("restore", str(copy))
    *before, restored = l2inv.json("history", op)["events"]
    assert (before, restored["kind"]) == (kept["events"], "restored")


def test_replication_role_is_set_back_where_the_role_may_and_refused_where_not(
    stranger: Stranger, url: str
) -> None:
    stranger.spoil("session_replication_role", "replica")
    with opened(url) as connection:  # as superuser
        assert meant(connection)["session_replication_role"] == "origin"
    with pytest.raises(DatabaseError, match="session_replication_role"):
        opened(stranger.url)


def test_a_database_of_another_encoding_is_refused_by_every_command(l2inv: Commands, url: str) -> None:
    ascii = f"ascii_{uuid4().hex[:8]}"
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(f"create database {ascii} encoding 'SQL_ASCII' locale 'C' template template0".encode())
        try:
            on(l2inv, make_conninfo(url, dbname=ascii))
            for argv in (
                ["migrate"],
                ["migrate", "--dry-run"],
                ["scan"],
                ["next"],
                ["status"],
                ["roles"],
                ["verify"],
            ):
                assert l2inv(*argv, expect=1).stderr == (
                    f"l2inv: database: {ascii} has the encoding SQL_ASCII, but the store sends UTF8; "
                    "name one in database.url that was created with: createdb --encoding=UTF8 --template=template0\n"
                )
        finally:
            server.execute(f"drop database {ascii}".encode())


Pooler = Callable[..., AbstractContextManager[str]]
BOUNCER = pytest.mark.skipif(
    not poolers.PGBOUNCER, reason="there is no pgbouncer here: only the small pooler is tried"
)


@pytest.fixture(params=[poolers.small, pytest.param(poolers.pgbouncer, marks=BOUNCER)])
def pooler(request: pytest.FixtureRequest) -> Pooler:
    started: Pooler = request.param
    return started


def test_a_pooler_in_transaction_mode_is_refused_before_anything_is_written(
    l2inv: Commands, url: str, connection: Connection, pooler: Pooler
) -> None:
    with pooler(url, "transaction", 5) as pooled:
        on(l2inv, pooled)
        for argv in (["scan"], ["status"], ["next", "--claim"], ["migrate"]):
            assert l2inv(*argv, expect=1).stderr == (
                "l2inv: database: it is reached through a pooler in transaction mode: each statement may run in another session; "
                "name the server itself in database.url, or a pooler in session mode\n"
            )
    assert connection.execute("select run_id from l2inv.run").fetchall() == []


@pytest.mark.parametrize("ignores", [False, True])
def test_a_session_that_is_another_at_the_second_question_is_refused(
    l2inv: Commands, url: str, connection: Connection, ignores: bool
) -> None:
    with poolers.small(url, "alternating", 2, ignores) as pooled:
        on(l2inv, pooled)
        for argv in (["scan"], ["status"], ["migrate"]):
            assert "a pooler in transaction mode" in l2inv(*argv, expect=1).stderr
    assert connection.execute("select run_id from l2inv.run").fetchall() == []


@pytest.mark.parametrize(("size", "ignores"), [(1, False), (5, False), (5, True)])
def test_a_pooler_in_session_mode_works_and_its_sessions_are_configured_like_others(
    l2inv: Commands,
    stranger: Stranger,
    pooler: Pooler,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    ignores: bool,
) -> None:
    monkeypatch.setattr(session, "PROBE_SECONDS", 0.2)
    with opened(stranger.url) as connection:
        expected = meant(connection)
    for name, value in HOSTILE.items():
        if "timeout" not in name:  # the pooler's own questions come under these
            stranger.spoil(name, *(value.split(", ") if name == "search_path" else [value]))
    for name in ENVIRONMENT.keys() - {"PGGEQO"}:  # which PgBouncer refuses
        monkeypatch.setenv(name, ENVIRONMENT[name])
    stranger.server.execute(SHADOWS)
    with pooler(stranger.url, "session", size, ignores) as pooled:
        with opened(pooled) as connection:
            assert meant(connection) == expected
        on(l2inv, pooled, lock_timeout_seconds=1)
        for argv in (["migrate"], ["scan"], ["qualify"], ["verify"]):
            l2inv(*argv)
        if size > 1:  # or no other session can look who it is
            with stranger.server.transaction():
                stranger.server.execute("lock table l2inv.run")
                held = f"held by pid {stranger.server.info.backend_pid} ("
                assert held in l2inv("qualify", expect=1).stderr


def test_a_stage_that_loses_its_lock_reports_it(connection: Connection) -> None:
    with pytest.raises(DatabaseError, match="pooler"), stage_lock(connection, "scan", ""):
        connection.execute("discard all")  # as a pooler does before it gives a session to another


@pytest.mark.parametrize(
    ("stage", "actor", "name"),
    [
        ("scan", "han", "l2inv scan (han)"),
        ("scan", "Zoë O'Hara\\", "l2inv scan (Zo? O'Hara\\)"),
        ("publish", 70 * "x", "l2inv publish (" + 48 * "x"),
    ],
)
def test_the_name_of_a_session_is_ascii_as_long_as_the_server_takes_it(
    url: str, stage: str, actor: str, name: str
) -> None:
    assert session.application_name(stage, actor) == name
    with open_connection(Settings(database=Database(url=url)), None, name) as connection:
        assert connection.execute("show application_name").fetchone() == {"application_name": name}


def test_the_server_sees_command_and_actor(l2inv: Commands, url: str, ready: list[str]) -> None:
    with psycopg.connect(url) as holder:
        holder.execute("select from l2inv.op_state where op_id = %s for update", [ready[0]])
        claim = l2inv.start("claim", ready[0], actor="Zoë " + 60 * "x")
        try:
            name = f"l2inv claim (Zo? {60 * 'x'}"[:63]
            with psycopg.connect(url, autocommit=True) as looking:
                until(
                    lambda: (
                        looking.execute(
                            "select from pg_stat_activity where application_name = %s", [name]
                        ).fetchone()
                        is not None
                    ),
                    seconds=20,
                )
        finally:
            holder.rollback()
            claim.communicate()
    assert claim.returncode == 0


WAITS = {
    "a claim": (["claim", "OP"], "select from l2inv.op_state for update"),
    "a stage": (["scan"], "lock table l2inv.dataset_version"),
    "a reader": (["list"], "lock table l2inv.op_state"),
    "migrate": (["migrate"], "select pg_advisory_lock(hashtext('l2inv migrate'), hashtext('l2inv.'))"),
    "what migrate reads": (["migrate"], "lock table l2inv._yoyo_migration"),
    "roles": (["roles", "--apply"], "lock table l2inv.run in row exclusive mode"),
}


@pytest.mark.parametrize("what", WAITS)
def test_a_wait_for_a_lock_ends_with_a_line_that_names_its_holder(
    l2inv: Commands, url: str, ready: list[str], what: str
) -> None:
    argv, lock = WAITS[what]
    on(l2inv, url, lock_timeout_seconds=1)
    with psycopg.connect(url, application_name="tony's psql") as holder:
        pid, since = holder.execute(
            "select pg_backend_pid(), to_char(now() at time zone 'UTC', 'YYYY-MM-DD HH24:MI')"
        ).fetchone()  # type: ignore[misc]
        holder.execute(lock.encode())
        answer = l2inv(*(ready[0] if word == "OP" else word for word in argv), expect=1)
        assert answer.stderr.startswith(
            f"l2inv: database: waited 1 s for a lock held by pid {pid} (tony's psql) since {since}:"
        )
        assert answer.stderr.endswith("can end it: select pg_terminate_backend(PID)\n")
        assert answer.stderr.count("\n") == 1
    if what != "roles":
        l2inv(*(ready[0] if word == "OP" else word for word in argv))


def test_the_holder_of_a_lock_is_named_rather_than_an_earlier_waiter(
    l2inv: Commands, url: str, ready: list[str]
) -> None:
    on(l2inv, url, lock_timeout_seconds=1)
    lock = b"select from l2inv.op_state for update"
    with psycopg.connect(url) as holder, psycopg.connect(url) as waiter:
        holder.execute(lock)
        waiting = threading.Thread(target=waiter.execute, args=[lock])
        waiting.start()
        with psycopg.connect(url, autocommit=True) as looking:
            until(
                lambda: looking.execute(WAITS_FOR_A_LOCK).fetchone() is not None,
                seconds=10,
            )
        assert f"held by pid {holder.info.backend_pid} (" in l2inv("claim", ready[0], expect=1).stderr
        holder.rollback()
        waiting.join()


def test_a_terminal_shows_a_wait_after_two_seconds(l2inv: Commands, url: str, ready: list[str]) -> None:
    argv = [sys.executable, "-m", "l2inv", *l2inv._common("han"), "claim", ready[0]]
    with psycopg.connect(url, application_name="tony's psql") as holder:
        holder.execute("select from l2inv.op_state for update")
        with on_terminal(argv, columns=200) as (terminal, process):
            said = f"l2inv: waiting for a lock held by pid {holder.info.backend_pid} (tony's psql) since "
            terminal.read_until(lambda text: said in text)
            holder.rollback()
            terminal.read_until(lambda text: "claimed" in text)
            assert process.wait() == 0


def test_a_server_that_takes_the_options_is_asked_once_and_told_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []

    class Counting(session.Connection):
        def execute(self, query: Any, *args: Any, **how: Any) -> Any:
            sent.append(query)
            return super().execute(query, *args, **how)

    monkeypatch.setattr(session, "Connection", Counting)
    with open_connection(Settings(database=Database(url=url))):
        assert len(sent) == 1


def test_a_signal_between_two_waits_leaves_a_session_that_can_end_its_run(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel, canceled = connection.cancel_safe, []

    def interrupted() -> float:
        monkeypatch.setattr(session, "time", time)
        raise KeyboardInterrupt

    def late(**how: Any) -> None:
        canceled.append(how)
        if len(canceled) > 1:  # the first came before the server had begun the statement
            cancel(**how)

    monkeypatch.setattr(connection, "cancel_safe", late)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), stage_run(connection, "scan", "han"):
        monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=interrupted))
        connection.execute("select pg_sleep(60)")
    assert time.monotonic() - begun < 30
    assert connection.execute("select count(finished_at) as ended from l2inv.run").fetchone() == {"ended": 1}


def hint(url: str, *statements: str, **limits: Any) -> str:
    """What is said of the failure to which statements come."""
    settings = Settings(database=Database(url=url, **limits))
    with (
        pytest.raises(DatabaseError) as ended,
        translated(settings),
        open_connection(settings) as connection,
    ):
        for statement in statements:
            if connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS:
                gone(url, connection.pid)
            connection.execute(statement)
    return ended.value.hint


def gone(url: str, pid: int) -> None:
    """Wait for the end of a session."""
    with psycopg.connect(url, autocommit=True) as looking:
        there = "select 1 from pg_stat_activity where pid = %s"
        until(lambda: looking.execute(there, [pid]).fetchone() is None, seconds=20)


def test_an_ended_statement_or_session_has_the_right_hint(url: str, stranger: Stranger) -> None:
    too_slow = hint(url, "select pg_sleep(9)", statement_timeout_seconds=0.01)
    assert "raise database.statement_timeout_seconds" in too_slow
    assert "somebody canceled" in hint(url, "select pg_cancel_backend(pg_backend_pid()), pg_sleep(9)")
    assert "somebody ended the session" in hint(url, "select pg_terminate_backend(pg_backend_pid())")
    idle = hint(url, "set idle_in_transaction_session_timeout = 50", "begin", "select 1")
    assert "longer than its session may last" in idle
    stranger.server.execute(sql.SQL("alter role {} connection limit 0").format(sql.Identifier(stranger.role)))
    assert "raise max_connections" in hint(stranger.url)
