"""preprocess: write each invertible OP's input bundle and run the configured command, in a folder of the OP's own.

The start of a job is recorded before it starts; a later run learns its outcome from the OP's folder (jobs.py). So jobs
that a killed l2inv left running, or that ended since, are picked up, and those on the cluster are collected.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from l2inv.config.settings import Preprocess, Settings
from l2inv.database.connection import Connection
from l2inv.errors import ConfigError, Unavailable
from l2inv.services import jobs
from l2inv.stages.preprocess import attempts, cluster, local
from l2inv.stages.preprocess.attempts import Jobs, Op, Preprocessed, Stage, Start
from l2inv.stages.preprocess.bundle import work_folder
from l2inv.stages.stage import Progress, opened


def preprocess(
    connection: Connection,
    settings: Settings,
    actor: str,
    progress: Progress = lambda done, of: None,
) -> Preprocessed:
    """Preprocess the invertible OPs and return the stage's report.

    An OP whose command fails goes to `error`; one whose datasets changed since its verdict is skipped until it is judged
    again, and one on hold until that ends. Without a command, the bundle alone makes an OP preprocessed. If stopped by a
    signal, it ends the commands that run here; their OPs stay invertible for the next run. On the cluster, `jobs` counts
    what was submitted and what runs. Raise Busy, ConfigError and DatabaseError; Unavailable for problems that every OP
    would meet, such as a full disk or a cluster that is down, and L2invError if the cluster refuses: no OP fails then.
    """
    report = Preprocessed()
    with opened(connection, settings, actor, report, progress) as stage:
        check(settings.preprocess)
        ops = attempts.read(connection)
        if settings.preprocess.executor == "slurm" or any(op.is_open and op.started.on_cluster for op in ops):
            report.jobs = Jobs()

        in_use = _end_unwanted(stage, [op for op in ops if op.newest and not op.is_open])
        invertible = [op for op in ops if op.state == "invertible"]
        due = [op for op in invertible if op.fresh and not op.on_hold and op.op_id not in in_use]
        stage.count("skipped", len(invertible) - len(due))

        running, lost = _settle_started(stage, [op for op in due if op.is_open])
        starts = [Start(op) for op in due if not op.is_open] + lost
        if settings.preprocess.executor == "slurm":
            cluster.submit(stage, starts)
            starts = []
        local.run(stage, running, starts)
    return report


def check(settings: Preprocess) -> None:
    """Raise ConfigError if no OP could be preprocessed, and Unavailable if the work folder cannot be created now."""
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
        if problem.errno in attempts.EVERY_OPS:
            raise attempts.unavailable(f"{folder}: {problem.strerror}") from problem
        mistakes.append(f"preprocess.work_dir: {folder}: {problem.strerror}")
    if mistakes:
        raise ConfigError("preprocess", mistakes)


def _end_unwanted(stage: Stage, ops: Sequence[Op]) -> set[str]:
    """End the jobs of outdated verdicts; return the OPs whose folder such a job may still write to."""
    unended = [op for op in ops if op.started.place[0].exists() and jobs.ended(*op.started.place) is None]
    in_use = set()
    if distant := [op for op in unended if op.started.on_cluster]:
        in_use = {op.op_id for op in distant}
        with _cluster_may_be_down(stage):
            in_use = cluster.end(distant)
    for op in unended:
        if not op.started.on_cluster and not jobs.kill(*op.started.place):
            in_use.add(op.op_id)
            stage.warn(
                f"OP {op.op_id}: job {op.started.job} is no longer needed, but keeps running on another host"
            )
        if op.op_id not in in_use:
            jobs.give_up(*op.started.place)
    return in_use


def _settle_started(stage: Stage, ops: Sequence[Op]) -> tuple[list[Op], list[Start]]:
    """Record the jobs that ended; return those that run on this machine, and the starts of those to be repeated."""
    running, lost = _settle(stage, ((op, *_left(op)) for op in ops))
    distant = [op for op in running if op.started.on_cluster]
    if distant:
        assert stage.report.jobs
        with _cluster_may_be_down(stage):
            still, lost_there = _settle(stage, cluster.states(stage.settings.preprocess, distant))
            stage.report.jobs.running = len(still)
            lost += lost_there
    return [op for op in running if not op.started.on_cluster], lost


def _left(op: Op) -> tuple[jobs.Ended | None, str]:
    """Return how a job ended and its state, as far as visible here."""
    if op.started.on_cluster:
        return jobs.ended(*op.started.place), "RUNNING"
    return jobs.state_here(*op.started.place)


def _settle(stage: Stage, found: Iterable[tuple[Op, jobs.Ended | None, str]]) -> tuple[list[Op], list[Start]]:
    """Record each job that ended; return those that run, and the starts of those to be repeated."""
    running, lost = [], []
    most = stage.settings.preprocess.slurm.max_requeues
    for op, end, state in found:
        fate = jobs.fate(end, state)
        is_last = op.started.on_cluster and state in jobs.REQUEUED and op.started.attempt > most
        if fate == "running":
            running.append(op)
        elif fate == "again" and not is_last:
            lost.append(attempts.again(op, state))
        else:
            with attempts.blaming(stage, op):
                attempts.check_end(op, end, state)
                attempts.done(stage, op)
    return running, lost


@contextmanager
def _cluster_may_be_down(stage: Stage) -> Iterator[None]:
    """Warn if a cluster that was used before cannot be reached. Raise Unavailable if the settings use it."""
    try:
        with cluster.asked():
            yield
    except Unavailable as problem:
        if stage.settings.preprocess.executor == "slurm":
            raise
        stage.warn(f"{problem.message}; its jobs wait for the next run")
