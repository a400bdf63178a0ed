"""preprocess: runs the configured command once for each invertible OP, in a folder of the OP's own."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event as Flag
from typing import Any
from urllib.parse import quote, unquote

from l2inv import record
from l2inv.database import Connection, Run, stage_run
from l2inv.errors import ConfigError
from l2inv.settings import Preprocess, Settings

DESCRIPTION, LOG = "op.json", "preprocess.log"


class Failed(Exception):
    """The command did not do its work for this OP; the text is the cause."""


def preprocess(
    connection: Connection,
    settings: Settings,
    actor: str,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Preprocesses what is invertible and gives the report of the contract.

    An OP whose command fails goes to `error`; one whose datasets changed since its verdict is skipped until it is
    judged again. Without a command, the state moves on and the event says that none was needed. Stopped by a
    signal, it ends the commands that run; their OPs stay invertible for the next run. Raises Busy, DatabaseError.
    """
    with stage_run(connection, "preprocess", actor) as run:
        counts = {"done": 0, "failed": 0, "skipped": 0}
        run.report["ops"] = counts
        rows = connection.execute(
            """
            select op_id, seq, verdict_seq > datasets_seq as fresh from l2inv.op_state
            where state = 'invertible' order by priority desc, since, op_id
            """
        ).fetchall()
        ready = [(row["op_id"], row["seq"]) for row in rows if row["fresh"]]
        counts["skipped"] = len(rows) - len(ready)
        check(settings.preprocess)
        if settings.preprocess.command is None:
            _not_needed(connection, run, ready)
        else:
            _run_all(connection, settings.preprocess, run, ready, progress)
    return run.report


def check(settings: Preprocess) -> None:
    """Raises ConfigError when no OP could be preprocessed: rather none is touched than all go to `error`."""
    if settings.command is None:
        return
    mistakes = []
    if shutil.which(settings.command[0]) is None:
        mistakes.append(f"preprocess.command: there is no program {settings.command[0]}")
    folder = work_folder(settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            mistakes.append(f"preprocess.work_dir: {folder} cannot be written to")
    except OSError as problem:
        mistakes.append(f"preprocess.work_dir: {folder}: {problem.strerror}")
    if mistakes:
        raise ConfigError("preprocess", mistakes)


def _not_needed(connection: Connection, run: Run, ready: list[tuple[str, int]]) -> None:
    events = [
        record.Event(op_id, seq, "preprocessed", "preprocessed", {"needed": False}) for op_id, seq in ready
    ]
    done = record.add(connection, events, run.actor, run.run_id)
    run.report["ops"]["done"] += len(done)
    run.report["ops"]["skipped"] += len(ready) - len(done)


def _run_all(
    connection: Connection,
    settings: Preprocess,
    run: Run,
    ready: list[tuple[str, int]],
    progress: Callable[[int, int], None],
) -> None:
    counts = run.report["ops"]
    stop = Flag()
    with ThreadPoolExecutor(settings.parallel) as pool, _stopping(pool, stop):
        jobs = {
            pool.submit(run_command, settings, op_id, describe(connection, op_id), stop): (op_id, seq)
            for op_id, seq in ready
        }
        for done, job in enumerate(as_completed(jobs), 1):
            op_id, seq = jobs[job]
            try:
                event = record.Event(op_id, seq, "preprocessed", "preprocessed", job.result())
                added = bool(record.add(connection, [event], run.actor, run.run_id))
                counts["done" if added else "skipped"] += 1
            except (Failed, OSError) as problem:
                record.fail(connection, op_id, seq, "preprocess", str(problem), run.actor, run.run_id)
                counts["failed"] += 1
            progress(done, len(jobs))


@contextmanager
def _stopping(pool: ThreadPoolExecutor, stop: Flag) -> Iterator[None]:
    """Ends what runs and what waits when the caller is interrupted, so that no command outlives its l2inv."""
    try:
        yield
    except BaseException:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        raise


def describe(connection: Connection, op_id: str) -> dict[str, Any]:
    """Gives what a command needs to know of an OP: its verdict and the newest version of each dataset in full."""
    row = connection.execute(
        """
        select s.op_id, s.proposal_id, s.experiment_id, e.detail -> 'verdict' as verdict,
               (select jsonb_agg(d.record || jsonb_build_object('version', d.version) order by d.dataset_id)
                from l2inv.dataset d where d.op_id = s.op_id and not d.withdrawn) as datasets
        from l2inv.op_state s left join l2inv.event e on e.op_id = s.op_id and e.seq = s.verdict_seq
        where s.op_id = %s
        """,
        [op_id],
    ).fetchone()
    assert row is not None
    return dict(row)


def folder_name(op_id: str) -> str:
    """Gives a name for an OP's folder that is safe whatever the id holds; unquoted() gives the id back."""
    name = quote(op_id, safe="")
    return f"%{ord(name[0]):02X}{name[1:]}" if name[0] in ".-~" else name


def unquoted(name: str) -> str:
    """Gives the OP id of a folder's name."""
    return unquote(name)


def run_command(settings: Preprocess, op_id: str, description: dict[str, Any], stop: Flag) -> dict[str, Any]:
    """Runs the command for one OP and gives the event's detail: how it ended, its log and the files it made.

    Each part of the command may hold {op_id}, {folder} and {description}. Raises Failed and OSError with the cause.
    """
    assert settings.command is not None
    folder = work_folder(settings) / folder_name(op_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, ensure_ascii=False), encoding="utf-8")
    values = {"op_id": op_id, "folder": str(folder), "description": str(folder / DESCRIPTION)}
    argv = [_filled(part, values) for part in settings.command]
    before = {path: path.stat().st_mtime_ns for path in _files(folder)}
    started = time.monotonic()
    with (folder / LOG).open("wb") as log:
        exit_code = _run(argv, folder, log, settings.timeout_seconds, stop)
    if exit_code != 0:
        how = (
            f"was killed by {signal.Signals(-exit_code).name}"
            if exit_code < 0
            else f"ended with exit code {exit_code}"
        )
        raise Failed(f"{settings.command[0]} {how}: {_last_line(folder / LOG)} (log: {folder / LOG})")
    made = [path for path in _files(folder) if before.get(path) != path.stat().st_mtime_ns]
    return {
        "needed": True,
        "command": argv,
        "exit_code": exit_code,
        "seconds": round(time.monotonic() - started, 3),
        "folder": str(folder),
        "log": LOG,
        "files": [describe_file(path, folder) for path in made],
    }


def work_folder(settings: Preprocess) -> Path:
    """Gives the folder that holds a folder for each OP."""
    if settings.work_dir:
        return Path(settings.work_dir)
    from platformdirs import user_data_path

    return user_data_path("l2inv") / "work"


def describe_file(path: Path, folder: Path) -> dict[str, Any]:
    """Gives a file's path below the folder, its size and its SHA-256."""
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"path": str(path.relative_to(folder)), "size_bytes": path.stat().st_size, "sha256": digest}


def _filled(part: str, values: dict[str, str]) -> str:
    return re.sub(r"\{(op_id|folder|description)\}", lambda found: values[found[1]], part)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _run(argv: list[str], folder: Path, log: Any, timeout_seconds: float, stop: Flag) -> int:
    try:
        process = subprocess.Popen(  # noqa: S603 - an argv of the settings, and never a shell
            argv,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as problem:
        raise Failed(f"{argv[0]} cannot be started: {problem.strerror}") from problem
    deadline = time.monotonic() + timeout_seconds
    try:
        while not stop.is_set() and time.monotonic() < deadline:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=min(0.2, max(0.0, deadline - time.monotonic())))
    finally:
        # What the command left running in its group ends with it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    why = "was stopped with l2inv" if stop.is_set() else f"took longer than {timeout_seconds:g} s"
    raise Failed(f"{argv[0]} {why} (log: {folder / LOG})")


def _last_line(log: Path) -> str:
    with log.open("rb") as content:
        content.seek(max(0, log.stat().st_size - 2000))
        lines = content.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else "it printed nothing"
