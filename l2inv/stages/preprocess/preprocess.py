"""preprocess: gives each invertible OP its input bundle and runs the configured command, in a folder of the OP's own.

That a job begins is recorded before it does; what it left in the OP's folder (jobs.py) tells a later run what became of
it. So a job that a killed l2inv left running, or finished, is picked up, and one on the cluster is collected.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from threading import Event as Flag
from typing import Any

import msgspec

from l2inv.config.settings import Preprocess, Settings
from l2inv.database.connection import Connection
from l2inv.errors import ConfigError
from l2inv.services import jobs
from l2inv.stages.preprocess import attempts, cluster
from l2inv.stages.preprocess.attempts import Failed, Jobs, MovedOn, Op, Preprocessed, Stage, Start
from l2inv.stages.preprocess.bundle import work_folder
from l2inv.stages.stage import Progress, opened


def preprocess(
    connection: Connection,
    settings: Settings,
    actor: str,
    progress: Progress = lambda done, of: None,
) -> Preprocessed:
    """Preprocess what is invertible and return the report of the contract.

    An OP whose command fails goes to `error`; one whose datasets changed since its verdict is skipped until it is
    judged again, and one on hold until that ends. Without a command, the state moves on with the bundle alone. Stopped
    by a signal, it ends the commands that run here; their OPs stay invertible for the next run. On the cluster, `jobs`
    says what was submitted and what runs. Raise Busy, ConfigError, DatabaseError, and L2invError when the cluster
    refuses.
    """
    report = Preprocessed()
    with opened(connection, settings, actor, report, progress) as stage:
        check(settings.preprocess)
        ops = attempts.candidates(connection)
        in_use = _end_stale(stage, [op for op in ops if op.started and not op.is_open])
        invertible = [op for op in ops if op.state == "invertible"]
        due = [op for op in invertible if op.fresh and not op.on_hold and op.op_id not in in_use]
        stage.count("skipped", len(invertible) - len(due))
        begun = [op for op in due if op.is_open]
        here = [op for op in begun if (op.started or {})["executor"] == "local"]
        lost = [op for op in here if jobs.ended(*op.job) is None and not jobs.is_running(*op.job)]
        starts = [Start(op) for op in due if not op.is_open] + [attempts.again(op, "LOST") for op in lost]
        waited = [op for op in here if op not in lost]
        distant = [op for op in begun if op not in here]
        if distant or settings.preprocess.executor == "slurm":
            report.jobs = Jobs()
            starts = cluster.run(stage, distant, starts, report.jobs)
        _here(stage, waited, starts)
    return report


def check(settings: Preprocess) -> None:
    """Raise ConfigError when no OP could be preprocessed: rather none is touched than all go to `error`."""
    mistakes = []
    if settings.executor == "slurm":
        if settings.command is None:
            mistakes.append("preprocess.command: executor slurm needs one")
        if shutil.which("sbatch") is None:
            mistakes.append("preprocess.executor: slurm needs sbatch, which is not on PATH")
    elif settings.command and shutil.which(settings.command[0]) is None:
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


def _end_stale(stage: Stage, ops: Sequence[Op]) -> set[str]:
    """End the jobs of verdicts that hold no longer; return the OPs whose folder such a job may still write to."""
    stale = [op for op in ops if op.job[0].exists() and jobs.ended(*op.job) is None]
    distant = [op for op in stale if (op.started or {})["executor"] == "slurm"]
    in_use = cluster.end(stage, distant)
    for op in stale:
        if op not in distant and not jobs.kill(*op.job):
            in_use.add(op.op_id)
            stage.warn(f"OP {op.op_id}: job {op.job[1]} is no longer wanted, but runs on, on another host")
        if op.op_id not in in_use:
            jobs.give_up(*op.job)
    return in_use


def _here(stage: Stage, waited: list[Op], starts: list[Start]) -> None:
    """Wait for the jobs that a killed run left on this machine, starts others, and records how they end."""
    stop = Flag()
    with ThreadPoolExecutor(stage.settings.preprocess.parallel) as pool, _stopping(pool, stop, waited):
        running = {pool.submit(_finished, stage, op, stop): op for op in waited}
        running |= {pool.submit(_started_and_finished, stage, start, stop): start.op for start in starts}
        for done, one in enumerate(as_completed(running), 1):
            attempts.settle(stage, running[one], one.result)
            stage.progress(done, len(running))


@contextmanager
def _stopping(pool: ThreadPoolExecutor, stop: Flag, waited: Sequence[Op]) -> Iterator[None]:
    """End what runs and what waits when the caller is interrupted: only a killed l2inv leaves commands behind."""
    try:
        yield
    except BaseException:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        for op in waited:  # those whose turn to be waited for had not come
            jobs.kill(*op.job)
        raise


def _started_and_finished(stage: Stage, start: Start, stop: Flag) -> dict[str, Any]:
    """Do an OP's work on this machine and return the detail of `preprocessed`. Raise Failed, MovedOn, OSError."""
    folder = attempts.bundled(stage, start.op.op_id)
    if stage.settings.preprocess.command is None:
        return {"needed": False, "folder": str(folder), "files": attempts.described(folder)}
    if stop.is_set():
        raise jobs.Stopped
    job = attempts.job_of(stage.settings.preprocess, start.op.op_id, folder, attempts.new_name())
    if not attempts.begin(stage, [(start, job, None)]):
        raise MovedOn
    process = jobs.start(job)
    try:
        op = msgspec.structs.replace(start.op, started=attempts.started(start, job, None))
        return _finished(stage, op, stop)
    finally:
        process.wait()


def _finished(stage: Stage, op: Op, stop: Flag) -> dict[str, Any]:
    """Wait for a job on this machine. What is no longer waited for, for whatever reason, is ended."""
    seconds = stage.settings.preprocess.timeout_seconds
    try:
        end = jobs.wait(*op.job, seconds, stop)
    except BaseException as problem:
        ended = jobs.kill(*op.job)
        if isinstance(problem, jobs.TookTooLong):
            more = "" if ended else ", and runs on, on another host"
            raise Failed(
                f"{attempts.command_of(op)} took longer than {seconds:g} s{more} ({attempts.log_of(op)})"
            ) from None
        raise
    return attempts.outcome(op, end or jobs.Ended())
