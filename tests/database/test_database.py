"""The database for its operator: migrations, schemas, and errors with hints."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from l2inv.config.settings import Database, Settings
from l2inv.database import migrate
from l2inv.database import schema as schema_module
from l2inv.database.access import connected
from l2inv.database.connection import Connection, open_connection
from l2inv.database.runs import stage_run
from l2inv.database.schema import migrations_folder, shipped_migrations
from l2inv.errors import Busy, DatabaseError
from l2inv.sample.server import Store
from tests.helpers.commands import Commands
from tests.helpers.waiting import until


@pytest.fixture
def empty_url(url: str) -> str:
    """A database in which l2inv has no schema yet."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop schema l2inv cascade")
    return url


def migrated(url: str, schema: str = "l2inv") -> list[str]:
    with open_connection(Settings(database=Database(url=url, schema=schema))) as connection:
        return migrate.apply(connection, schema)


def test_a_schema_that_is_missing_is_refused_until_migrate_made_it(l2inv: Commands, empty_url: str) -> None:
    assert l2inv("status", expect=1).stderr == (
        "l2inv: schema l2inv is not in the database yet; run: l2inv migrate\n"
    )
    sql = l2inv("migrate", "--dry-run").stdout
    assert "create table l2inv.event" in sql
    assert l2inv("status", expect=1).exit_code == 1
    assert l2inv.json("migrate")["applied"] == sorted(shipped_migrations())
    assert l2inv.json("migrate")["applied"] == []
    assert l2inv.json("status")["ops"] == 0


def test_a_schema_that_is_behind_or_ahead_is_reported_with_the_remedy(
    l2inv: Commands, connection: Connection
) -> None:
    last = max(shipped_migrations())
    forgotten = connection.execute(
        "delete from l2inv._yoyo_migration where migration_id = %s returning *", [last]
    ).fetchone()
    assert forgotten is not None
    for command in ("status", "scan", "next", "qualify", "publish"):
        behind = l2inv(command, expect=1).stderr
        assert f"lacks {last}; run: l2inv migrate" in behind
    connection.execute(
        "insert into l2inv._yoyo_migration (migration_hash, migration_id) values ('later', '9999.future')"
    )
    for command in ("status", "migrate"):
        assert "ahead of this l2inv: it has 9999.future; upgrade l2inv" in l2inv(command, expect=1).stderr


def test_a_schema_of_a_development_version_is_refused_and_never_taken_for_current(
    l2inv: Commands, connection: Connection
) -> None:
    for name in ("0001.event", "0006.pace"):
        connection.execute(
            "insert into l2inv._yoyo_migration (migration_hash, migration_id) values (%s, %s)", [name, name]
        )
    for command in ("status", "migrate"):
        assert l2inv(command, expect=1).stderr == (
            "l2inv: schema l2inv was created by a development version of l2inv: it has 0001.event, 0006.pace;"
            " create a new one: name another database, or another database.schema, in the settings\n"
        )


def test_two_migrations_at_once_make_the_schema_once(empty_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        applied = list(pool.map(migrated, [empty_url] * 4))
    assert sorted(map(len, applied)) == [0, 0, 0, len(shipped_migrations())]


def test_migrate_names_the_session_it_waits_for_and_changes_nothing(l2inv: Commands, empty_url: str) -> None:
    """Its lock is one that anybody who connects can take: before the first migration there is nothing to guard it by."""
    l2inv.settings["database"] |= {"url": empty_url, "lock_timeout_seconds": 2}
    l2inv.save()
    with psycopg.connect(empty_url, autocommit=True, application_name="bystander") as bystander:
        bystander.execute("select pg_advisory_lock(hashtext('l2inv migrate'), hashtext('l2inv.'))")
        assert f"held by pid {bystander.info.backend_pid} (bystander)" in l2inv("migrate", expect=1).stderr
        assert bystander.execute("select to_regnamespace('l2inv')").fetchone() == (None,)
    l2inv("migrate")


def test_a_migration_that_fails_leaves_no_trace_and_the_next_try_completes_it(
    empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(migrations_folder(), tmp_path / "migrations"))
    last = folder / f"{max(shipped_migrations())}.sql"
    whole = last.read_text()
    last.write_text(whole + "\ncreate table l2inv.half (id int); select 1 / 0;")
    monkeypatch.setattr(schema_module, "migrations_folder", lambda: folder)
    monkeypatch.setattr(migrate, "migrations_folder", lambda: folder)
    with pytest.raises(psycopg.Error, match="division by zero"):
        migrated(empty_url)
    with psycopg.connect(empty_url) as connection:
        assert connection.execute("select to_regclass('l2inv.half')").fetchone() == (None,)
    last.write_text(whole)
    assert migrated(empty_url) == [last.stem]


def test_a_migration_whose_note_cannot_be_written_leaves_no_trace(
    empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(migrations_folder(), tmp_path / "migrations"))
    for room in (schema_module, migrate):
        monkeypatch.setattr(room, "migrations_folder", lambda: folder)
    migrated(empty_url)
    (folder / "9998.next.sql").write_text("create table l2inv.next (id int);")
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute(
            """
            create function l2inv.no() returns trigger language plpgsql as $$ begin raise exception 'no room'; end $$;
            create trigger no before insert on l2inv._yoyo_migration for each row execute function l2inv.no()
            """
        )
        with pytest.raises(psycopg.Error, match="no room"):
            migrated(empty_url)
        assert connection.execute("select to_regclass('l2inv.next')").fetchone() == (None,)
        connection.execute("drop function l2inv.no() cascade")
    assert migrated(empty_url) == ["9998.next"]


def test_a_schema_of_another_name_coexists_with_other_tables_and_another_l2inv(
    l2inv: Commands, url: str, connection: Connection
) -> None:
    connection.execute("create table public.event (stranger text)")
    connection.execute("create table public.op_state (stranger text)")
    l2inv.settings["database"]["schema"] = "other_one"
    l2inv.save()
    assert 'create table "other_one".event' in l2inv("migrate", "--dry-run").stdout
    l2inv("migrate")
    assert l2inv.json("scan")["ops"]["new"] > 0
    l2inv("qualify")
    l2inv("preprocess")
    op = l2inv.json("next")["ops"][0]["op_id"]
    l2inv("claim", op)
    l2inv("mark-inverted", op)
    l2inv("publish")
    assert connection.execute("select count(*) as n from l2inv.event").fetchone() == {"n": 0}
    assert connection.execute("select count(*) as n from other_one.published_op").fetchone() == {"n": 1}
    tables = connection.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
    assert {t["tablename"] for t in tables} == {"event", "op_state"}
    with pytest.raises(psycopg.Error, match="append-only"):
        connection.execute("delete from other_one.event")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unreachable": ({"host": "127.0.0.1", "port": 9}, "check database.url"),
    "no such database": ({"dbname": "nowhere"}, "nowhere"),
    "no such user": ({"user": "nobody-here"}, "nobody-here"),
    "no such service": ({"service": "nowhere"}, "service"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_database_that_cannot_be_had_is_one_line_and_exit_code_1(
    l2inv: Commands, url: str, what: str
) -> None:
    change, said = WRONG[what]
    l2inv.settings["database"]["url"] = make_conninfo(url, **change)
    l2inv.save()
    answer = l2inv("status", expect=1)
    assert answer.stdout == ""
    assert answer.stderr.count("\n") == 1
    assert said in answer.stderr
    assert l2inv("status", "--json", expect=1).json["error"]["code"] == 1


def test_a_password_is_never_printed(l2inv: Commands, url: str) -> None:
    l2inv.settings["database"]["url"] = "postgresql://l2inv:hunter2secret@127.0.0.1:9/l2"
    l2inv.save()
    for argv in (["-vv", "status"], ["status", "--json"], ["config", "check", "--json"], ["-vv", "migrate"]):
        answer = l2inv(*argv, expect=None)
        assert "hunter2secret" not in answer.stdout + answer.stderr


def test_one_run_of_a_stage_keeps_out_another_and_leaves_its_trace(connection: Connection, url: str) -> None:
    with connected(Settings(database=Database(url=url))) as other:
        with stage_run(connection, "scan", "cron"):
            with (
                pytest.raises(Busy, match="another run holds the lock"),
                stage_run(other, "scan", "cron"),
            ):
                pass
            with stage_run(other, "qualify", "cron"):
                pass
        with stage_run(other, "scan", "cron") as run:
            run.report["seen"] = 1
    runs = connection.execute("select stage, finished_at, result from l2inv.run order by run_id").fetchall()
    assert [r["stage"] for r in runs] == ["scan", "qualify", "scan"]
    assert all(r["finished_at"] for r in runs)
    assert runs[2]["result"]["seen"] == 1


def test_a_database_host_that_disappeared_is_detected_within_a_minute_unless_the_url_disables_it(
    url: str,
) -> None:
    def parameters(url: str) -> dict[str, str]:
        with open_connection(Settings(database=Database(url=url))) as connection:
            return connection.info.get_parameters()

    usual = parameters(url)
    silent_seconds = int(usual["keepalives_idle"]) + int(usual["keepalives_interval"]) * int(
        usual["keepalives_count"]
    )
    assert silent_seconds <= 60
    assert int(usual["tcp_user_timeout"]) <= 60_000
    assert int(usual["connect_timeout"]) == 10
    own = parameters(make_conninfo(url, connect_timeout=3, keepalives_idle=77))
    assert (own["connect_timeout"], own["keepalives_idle"]) == ("3", "77")
    assert own["keepalives_count"] == usual["keepalives_count"]


def test_a_lost_connection_is_one_line_and_gives_up_the_lock(url: str) -> None:
    settings = Settings(database=Database(url=url))
    with (
        pytest.raises(DatabaseError, match="terminat"),
        connected(settings) as connection,
        stage_run(connection, "scan", "cron"),
        connected(settings) as tony,
    ):
        tony.execute("select pg_terminate_backend(%s)", [connection.info.backend_pid])
        connection.execute("select 1")
    with connected(settings) as connection, stage_run(connection, "scan", "cron"):
        rows = connection.execute("select finished_at from l2inv.run order by run_id").fetchall()
    assert rows[0]["finished_at"] is None


@pytest.mark.parametrize(
    "change",
    ["run_id = default", "stage = 'publish'", "actor = 'eve'", "started_at = now()", "result = null", "finished_at = null",
     "result = '{}'", "finished_at = now()"],
)  # fmt: skip
def test_a_run_and_its_report_cannot_be_changed_after_its_end(connection: Connection, change: str) -> None:
    with stage_run(connection, "scan", "cron") as run:
        run.report["seen"] = 1
    with pytest.raises(psycopg.Error, match=r"run 1 has ended: UPDATE is refused") as refusal:
        connection.execute(f"update l2inv.run set {change}")
    assert refusal.value.sqlstate == "L2INV"
    for statement in ("delete from l2inv.run", "truncate l2inv.run"):
        with pytest.raises(psycopg.Error, match="append-only"):
            connection.execute(statement)


def test_a_running_run_can_only_be_ended_and_not_at_a_time_of_its_choice(connection: Connection) -> None:
    connection.execute("insert into l2inv.run (stage, actor) values ('scan', 'cron')")
    for change in (
        "run_id = default",
        "stage = 'publish'",
        "actor = 'eve'",
        "started_at = now()",
        "result = '{}'",
    ):
        with pytest.raises(psycopg.Error, match="run 1 may only end"):
            connection.execute(f"update l2inv.run set {change}")
    connection.execute("update l2inv.run set finished_at = '2001-01-01', result = '{}'")
    row = connection.execute("select finished_at >= started_at as plausible from l2inv.runs").fetchone()
    assert row == {"plausible": True}


@pytest.mark.parametrize(
    "report",
    ["null", "7", '"seconds"', '["failed"]', '{"ops": 7}', '{"ops": {"new": "x"}}', '{"ops": {"done": 1e30}}', '{"datasets": []}',
     '{"datasets": {"new": null}}', '{"profile": 3}', '{"profile": {"given": {}, "log10_medians": {}}}', '{"sent": {"han": "x"}}',
     '{"profile": {"datasets": 1, "given": {"x": []}, "log10_medians": {}}}', '{"failed": [1]}', '{"seconds": 1e400}',
     f'{"[" * 40}{"]" * 40}'],
)  # fmt: skip
def test_a_run_reports_nothing_that_a_command_or_the_next_run_could_not_read(
    connection: Connection, report: str
) -> None:
    connection.execute("insert into l2inv.run (stage, actor) values ('scan', 'cron')")
    with pytest.raises(psycopg.errors.CheckViolation):
        connection.execute("update l2inv.run set finished_at = now(), result = %s", [report])


def test_the_key_and_process_of_a_run_that_ended_keep_none_waiting(connection: Connection, url: str) -> None:
    """While a run holds its lock, anybody sees both, and process ids are used again."""
    name = f"bystander_{connection.info.backend_pid}"
    connection.execute(f"create role {name} login")
    with psycopg.connect(make_conninfo(url, user=name), autocommit=True) as bystander:
        with stage_run(connection, "scan", "cron"):
            pass
        bystander.execute("select pg_advisory_lock(%s)", [7])
        connection.execute("update l2inv.lock set key = 7, pid = %s", [bystander.info.backend_pid])
        with stage_run(connection, "scan", "cron"):
            pass
    connection.execute(f"drop role {name}")


def test_nobody_who_can_merely_connect_blocks_a_stage_or_events_about_inversions(
    connection: Connection, url: str, ready: list[str], l2inv: Commands
) -> None:
    with psycopg.connect(url, autocommit=True) as bystander:
        bystander.execute("create role bystander")
        bystander.execute("set role bystander")
        for statement in ("select * from l2inv.lock for update", "select l2inv.take_lock('scan')"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                bystander.execute(statement)
        # What was once l2inv's keys, and the one by which a stage is held at this moment, as anybody can see.
        for key in (
            "hashtext('l2inv run'), hashtext('l2inv.scan')",
            "hashtext('l2inv export'), hashtext('l2inv.')",
        ):
            bystander.execute(f"select pg_advisory_lock({key})")
        with connected(Settings(database=Database(url=url))) as other:
            with stage_run(other, "scan", "cron"):
                (held,) = bystander.execute(
                    """
                    select (classid::bigint << 32 | objid::bigint) from pg_locks
                    where locktype = 'advisory' and objsubid = 1 and pid = %s
                    """,
                    [other.info.backend_pid],
                ).fetchall()
                waiting = threading.Thread(
                    target=bystander.execute, args=("select pg_advisory_lock(%s)", held)
                )
                waiting.start()
                with pytest.raises(Busy), stage_run(connection, "scan", "cron"):
                    pass
            waiting.join()  # now it has the key
            with (
                stage_run(other, "scan", "cron"),
                pytest.raises(Busy),
                stage_run(connection, "scan", "cron"),
            ):
                pass
        l2inv("claim", ready[0])
        l2inv("mark-inverted", ready[0])
        l2inv("publish")
        l2inv("withdraw", ready[0], "--reason", "bad")
        bystander.execute("reset role; drop role bystander")


def test_of_many_runs_that_start_at_once_one_runs_and_the_others_do_not_wait(url: str) -> None:
    settings = Settings(database=Database(url=url))
    begun, over = threading.Barrier(8), threading.Event()

    def run() -> bool:
        with connected(settings) as connection:
            begun.wait()
            try:
                with stage_run(connection, "scan", "cron"):
                    over.wait(20)
                    return True
            except Busy:
                return False

    for _ in range(3):
        over.clear()
        with ThreadPoolExecutor(8) as pool:
            runs = [pool.submit(run) for _ in range(8)]
            until(lambda: sum(one.done() for one in runs) >= 7, seconds=15)  # noqa: B023 - called at once
            over.set()
        assert sum(one.result() for one in runs) == 1


def test_the_proposal_of_an_op_is_that_of_its_newest_dataset_that_is_not_withdrawn(
    l2inv: Commands, store: Store, ready: list[str], connection: Connection
) -> None:
    mine = [d for d in store.datasets if d["observingProgramExecutionId"] == ready[0]]

    def proposal() -> tuple[str, str]:
        row = connection.execute(
            "select proposal_id, experiment_id from l2inv.op where op_id = %s", [ready[0]]
        ).fetchone()
        assert row is not None
        listed = next(op for op in l2inv.json("list")["ops"] if op["op_id"] == ready[0])
        assert (listed["proposal_id"], listed["experiment_id"]) == tuple(row.values())
        return row["proposal_id"], row["experiment_id"]

    before = proposal()
    mine[0] |= {"primaryProposalId": "pid_new", "primaryExperimentId": "eid_new"}
    l2inv("scan")
    assert proposal() == ("pid_new", "eid_new")
    store.datasets.remove(mine[0])
    l2inv("scan")
    assert proposal() == before
    store.datasets[:] = [d for d in store.datasets if d["observingProgramExecutionId"] != ready[0]]
    l2inv("scan", "--allow-withdrawals")
    assert proposal()[0] in (before[0], "pid_new"), "of what was read last"
    # No event has a word in it.
    connection.execute(
        "insert into l2inv.event (op_id, seq, kind, actor, detail) select op_id, seq + 1, 'noted', 'eve', "
        '\'{"note": "x", "proposal_id": "forged"}\' from l2inv.op_state where op_id = %s',
        [ready[0]],
    )
    assert proposal()[0] != "forged"


def test_a_lock_that_is_being_taken_is_not_waited_for(connection: Connection, url: str) -> None:
    with connected(Settings(database=Database(url=url))) as other:
        with stage_run(other, "scan", "cron"):
            pass
        with connection.transaction():
            connection.execute("select l2inv.take_lock('scan')")
            other.execute("set lock_timeout = '2s'")
            with pytest.raises(Busy), stage_run(other, "scan", "cron"):
                pass
