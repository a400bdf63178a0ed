"""A session with PostgreSQL in which statements mean the same on every server: the parameters that l2inv relies on are
pinned, whatever the environment and the defaults of role and database. Waits for a lock are reported.

Pinned parameters are sent as the connection's `options`, which override those defaults and PGOPTIONS. The first query
checks that they took effect: a pooler may refuse or ignore them, and PGTZ and PGDATESTYLE override them.
"""

import re
import select
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from secrets import token_hex
from typing import Any

import psycopg
from psycopg import generators
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import DictRow, TupleRow, dict_row

from l2inv.errors import DatabaseError

# Unless set in the URL. Without keepalives, l2inv would wait hours for a host that vanished.
PATIENCE = {
    "connect_timeout": 10,  # seconds, as the next two
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
}

PINNED = {
    # What a name without a schema refers to: only PostgreSQL's own objects.
    "search_path": "pg_catalog,pg_temp",
    # How text is parsed.
    "client_encoding": "UTF8",
    "standard_conforming_strings": "on",
    "backslash_quote": "safe_encoding",
    "array_nulls": "on",
    "transform_null_equals": "off",
    # How values are printed.
    "DateStyle": "ISO,MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",  # a day is 24 hours, and no time that Python knows is beyond its years, in UTC alone
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "quote_all_identifiers": "off",
    # Which rows a statement sees, what it may write, and what a commit guarantees.
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "row_security": "off",  # a policy that would hide rows is an error
    "gin_fuzzy_search_limit": "0",
    "synchronous_commit": "on",
    # How migrate creates objects.
    "check_function_bodies": "on",
    "default_table_access_method": "heap",
    "plpgsql.extra_errors": "none",
    # When idle sessions end. A transaction may wait for the store or a pager, but not forever.
    "exit_on_error": "off",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "1d",
    # Compiling a plan takes longer than any of l2inv's queries.
    "jit": "off",
}
# Parameters that cannot be in the options: only some versions know them, or only some roles may set them.
APART = {"transaction_timeout": "0", "session_replication_role": "origin"}
MARK = "l2inv.session"  # a parameter without effect, whose value shows that the server took the options
# How a pooler refuses options: PgBouncer; RDS Proxy.
_NO_OPTIONS = re.compile(r"unsupported startup parameter|command-line options")

CANCELS = 50  # of one statement, each after a tenth of a second without an answer
CANCEL_SECONDS = 1.0
LOOK_SECONDS = 2.0  # after which, and how often, the holders of an awaited lock are looked up
PROBES = 3
PROBE_SECONDS = 3.0
NAME_BYTES = 63  # PostgreSQL truncates application_name to this

POOLED = (
    "database: it is reached through a pooler in transaction mode: each statement may run in another session",
    "name the server itself in database.url, or a pooler in session mode",
)

Plain = psycopg.Connection[TupleRow]


class Connection(psycopg.Connection[DictRow]):
    """A connection that reports who holds the lock that its statement waits for."""

    pid: int  # of its server process; info has that of a pooler, if there is one
    again: Callable[[], Plain]  # opens another one to the same server
    look_seconds: float = LOOK_SECONDS
    report: Callable[[str], None]
    holders: str = ""

    def must_be_as_before(self, row: dict[str, Any] | None) -> None:
        """Raise DatabaseError unless the pid in the row is that of the session when it was opened."""
        if row is None or row["pid"] != self.pid:
            raise DatabaseError(*POOLED)

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().wait(self._watched(gen), *args, **kwargs)
        except KeyboardInterrupt:
            # A signal between two waits ends the generator: psycopg cancels the statement, but its answer is not read.
            status = self.pgconn.transaction_status, self.pgconn.pipeline_status
            if status == (TransactionStatus.ACTIVE, PipelineStatus.OFF):
                with suppress(psycopg.Error):
                    super().wait(self._canceled())
            raise

    def _canceled(self) -> Generator[Any, Any, None]:
        """Read the answer to a canceled statement; cancel it again while none arrives: the server may not have started it."""
        answer = generators.fetch_many(self.pgconn)
        with suppress(StopIteration):
            wanted = next(answer)
            for _ in range(CANCELS):
                while (ready := (yield wanted)) != 0:
                    wanted = answer.send(ready)
                self.cancel_safe(timeout=CANCEL_SECONDS)

    def __exit__(self, kind: Any, problem: BaseException | None, trace: Any) -> None:
        if isinstance(problem, psycopg.errors.LockNotAvailable) and self.holders:
            problem.add_note(self.holders)
        super().__exit__(kind, problem, trace)

    def _watched(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Wrap psycopg's generator: it gets 0 when nothing arrived for a moment, which is when holders are looked up."""
        known = ""
        try:
            wanted = next(gen)
            look_at = time.monotonic() + self.look_seconds
            while True:
                ready = yield wanted
                if ready == 0 and time.monotonic() >= look_at:
                    known = self.holders = self._looked(known)
                    look_at = time.monotonic() + self.look_seconds
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value

    def _looked(self, known: str) -> str:
        """Return the holders of the awaited lock; those found earlier, if the wait is over or they cannot be looked up."""
        with suppress(psycopg.Error):
            found = _holders(self)
            if found and found != known:
                self.report(f"waiting for a lock held by {found}")
            return found or known
        return known


def application_name(stage: str, actor: str) -> str:
    """Return the application_name of a session: ASCII, at most 63 bytes."""
    name = f"l2inv {stage} ({actor})"
    return "".join(c if " " <= c <= "~" else "?" for c in name)[:NAME_BYTES]


def opened(
    url: str,
    application: str,
    lock_timeout_seconds: float,
    statement_timeout_seconds: float | None,
    report: Callable[[str], None],
) -> Connection:
    """Return a connection in autocommit mode with a pinned session.

    Raise DatabaseError for a database whose encoding is not UTF8 and for a pooler in transaction mode, and psycopg's
    own errors.
    """
    mark = token_hex(8)
    pinned = PINNED | {
        "lock_timeout": _milliseconds(lock_timeout_seconds),
        "statement_timeout": _milliseconds(statement_timeout_seconds),
    }
    given = conninfo_to_dict(url)
    # A parameter options, even an empty one, overrides PGOPTIONS.
    options = str(given.get("options") or "")
    parameters: dict[str, Any] = {name: value for name, value in PATIENCE.items() if name not in given} | {
        "application_name": application,
        "client_encoding": PINNED["client_encoding"],  # as a parameter, it overrides PGCLIENTENCODING
        "autocommit": True,
    }
    parameters["options"] = " ".join([options, *(_option(*pin) for pin in [*pinned.items(), (MARK, mark)])])
    try:
        connection = Connection.connect(url, **parameters, row_factory=dict_row)
    except psycopg.OperationalError as problem:
        if not _NO_OPTIONS.search(str(problem)):
            raise
        parameters["options"] = options
        connection = Connection.connect(url, **parameters, row_factory=dict_row)
    connection.report, connection.look_seconds = report, min(LOOK_SECONDS, lock_timeout_seconds / 4)
    connection.again = partial(psycopg.connect, url, **parameters)
    connection.pid = connection.info.backend_pid
    try:
        _checked(connection, pinned, mark)
    except BaseException as problem:
        connection.__exit__(type(problem), problem, problem.__traceback__)
        raise
    return connection


def _option(name: str, value: str) -> str:
    return f"-c {name}={value.replace(' ', chr(92) + ' ')}"


def _milliseconds(seconds: float | None) -> str:
    return "0" if seconds is None else str(max(1, round(seconds * 1000)))


def _checked(connection: Connection, pinned: dict[str, str], mark: str) -> None:
    """Check the session's parameters, and set those that differ."""
    info = connection.info
    encoding = info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise DatabaseError(
            f"database: {info.dbname} has the encoding {encoding}, but the store sends UTF8",
            "name one in database.url that was created with: createdb --encoding=UTF8 --template=template0",
        )
    # The search path may not be pinned yet, so functions are named with their schema.
    found = connection.execute(
        """
        select pg_catalog.pg_backend_pid() as pid, pg_catalog.current_setting(%s, true) as mark,
               pg_catalog.current_setting('session_replication_role') as session_replication_role,
               pg_catalog.current_setting('transaction_timeout', true) as transaction_timeout
        """,
        [MARK],
    ).fetchone()
    assert found is not None
    connection.pid = found["pid"]
    if connection.pid != info.backend_pid and _is_shared(connection):
        raise DatabaseError(*POOLED)
    wrong = {name: value for name, value in APART.items() if found[name] not in (None, value)}
    if found["mark"] != mark:
        wrong |= pinned
    for name in ("TimeZone", "DateStyle", "client_encoding"):
        if (info.parameter_status(name) or "").replace(" ", "") != pinned[name]:
            wrong[name] = pinned[name]
    if wrong:
        settings = ", ".join(["pg_catalog.set_config(%s, %s, false)"] * len(wrong))
        values = [text for pin in wrong.items() for text in pin]
        ask = f"select pg_catalog.pg_backend_pid() as pid, {settings}"
        connection.must_be_as_before(connection.execute(ask, values).fetchone())


def _is_shared(connection: Connection) -> bool:
    """Return whether a pooler shares server processes between clients.

    Otherwise two open connections never have the same process, and each keeps its own. If the second gets no process
    in time, the pooler has none left, and the answer is unknown: False.
    """
    with suppress(psycopg.Error), connection.again() as other:
        for _ in range(PROBES):
            pid = _pid_in_time(other)
            if pid is None:
                return False
            row = connection.execute("select pg_catalog.pg_backend_pid() as pid").fetchone()
            if pid == connection.pid or row is None or row["pid"] != connection.pid:
                return True
    return False


def _pid_in_time(connection: Plain) -> int | None:
    pgconn = connection.pgconn
    pgconn.send_query(b"select pg_catalog.pg_backend_pid()")
    pgconn.flush()
    if not select.select([pgconn.socket], [], [], PROBE_SECONDS)[0]:
        pgconn.finish()
        return None
    pid = None
    while result := pgconn.get_result():
        pid = result.get_value(0, 0)
    return int(pid) if pid else None


def _holders(connection: Connection) -> str:
    """Return the sessions that block a connection and do not wait for a lock themselves, as a phrase; empty if there are none."""
    with connection.again() as other:
        other.execute("set search_path to pg_catalog, pg_temp")  # where a pooler did not take the options
        rows = other.execute(
            """
            with recursive ahead (pid) as (
                select unnest(pg_blocking_pids(%s))
                union
                select unnest(pg_blocking_pids(ahead.pid)) from ahead
            )
            select pid, application_name,
                   to_char(coalesce(xact_start, backend_start) at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')
            from ahead left join pg_stat_activity using (pid)
            where cardinality(pg_blocking_pids(pid)) = 0
            order by xact_start, pid limit 3
            """,
            [connection.pid],
        ).fetchall()
    return " and by ".join(
        f"pid {pid} ({name or 'no application_name'}) since {since or 'a time that only its role can see'}"
        if pid
        else "a prepared transaction (see pg_prepared_xacts)"
        for pid, name, since in rows
    )
