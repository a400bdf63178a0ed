"""preprocess on a Slurm cluster: collects what ended there, has what was cut off begin again, submits the rest."""

from functools import partial
from math import ceil
from typing import NoReturn

import msgspec

from l2inv.config.settings import Preprocess
from l2inv.errors import L2invError
from l2inv.files import private_folder
from l2inv.services import jobs, slurm
from l2inv.services.jobs import Job
from l2inv.stages.preprocess import attempts
from l2inv.stages.preprocess.attempts import Jobs, Op, Stage, Start
from l2inv.stages.preprocess.bundle import work_folder

ARRAY = 1000  # OPs in one Slurm array: as a cluster allows by default
REQUEUED = {"TIMEOUT", "NODE_FAIL", "PREEMPTED", "LOST"}
FAILED = slurm.ENDED - REQUEUED - {"COMPLETED"}


def run(stage: Stage, distant: list[Op], starts: list[Start], report: Jobs) -> list[Start]:
    """Collect what ended on the cluster and submits what is to begin there; return what is to begin here.

    While the controller cannot be reached, the report warns and nothing changes. Raise L2invError when it refuses.
    """
    local = stage.settings.preprocess.executor == "local"
    try:
        starts = starts + _collected(stage, distant, report)
        for first in [] if local else range(0, len(starts), ARRAY):
            report.submitted += _submit(stage, starts[first : first + ARRAY])
    except slurm.SlurmDown as problem:
        stage.warn(f"the cluster cannot be reached: {problem}; the next run tries again")
    except slurm.SlurmRefused as problem:
        raise L2invError(
            f"preprocess: sbatch refused: {problem}",
            "mend preprocess.slurm, then run it again: nothing is lost",
        ) from problem
    return starts if local else []


def end(stage: Stage, ops: list[Op]) -> set[str]:
    """Cancel jobs that are no longer wanted; return the OPs whose job may still run."""
    in_use = {op.op_id for op in ops}
    try:
        standing = slurm.standing({op.job[1] for op in ops})
        for op in ops:
            name, task = op.job[1], (op.started or {})["task"]
            known = standing.get((name, task))
            if known is None or known.state in slurm.ENDED:
                in_use.discard(op.op_id)
            else:
                slurm.cancel(name, task)  # a later run sees it gone
    except slurm.SlurmDown as problem:
        stage.warn(f"jobs that are no longer wanted may run on: {problem}; the next run tries again")
    return in_use


def _collected(stage: Stage, ops: list[Op], report: Jobs) -> list[Start]:
    """Record the jobs that ended on the cluster; return those that are to begin again. Raise SlurmDown."""
    unclear = []
    for op in ops:
        end = jobs.ended(*op.job)
        if end is not None and end.exit_code == 0 and end.signal is None:
            attempts.settle(stage, op, partial(attempts.outcome, op, end))
        else:
            unclear.append((op, end))
    report.running = len(unclear)
    standing = slurm.standing({op.job[1] for op, _ in unclear}) if unclear else {}
    again = []
    for op, end in unclear:
        assert op.started is not None
        known = standing.get((op.job[1], op.started["task"]))
        start = attempts.again(op, known.state if known else _forgotten(stage.settings.preprocess, op, end))
        state = start.after
        if state == "UNKNOWN":  # the submitter died before sbatch, or sbatch refused
            again.append(msgspec.structs.replace(start, attempt=start.attempt - 1))
        elif state in REQUEUED:
            if start.attempt <= stage.settings.preprocess.slurm.max_requeues + 1:
                again.append(start)
            else:
                attempts.settle(stage, op, partial(attempts.outcome, op, end or jobs.Ended(), state))
        elif state in FAILED or (end is not None and (end.signal is None or state == "COMPLETED")):
            said = None if state in ("FAILED", "ENDED") and end else state
            attempts.settle(stage, op, partial(attempts.outcome, op, end or jobs.Ended(), said))
        else:
            continue
        report.running -= 1
    return again


def _forgotten(settings: Preprocess, op: Op, end: jobs.Ended | None) -> str:
    """The state of a job that Slurm does not know, from what the job itself left."""
    if end is None:
        return "UNKNOWN" if jobs.began(*op.job) is None else "LOST"
    if end.signal is None:
        return "ENDED"
    late = end.ended_at - end.started_at >= 60 * (_time_minutes(settings) - 1)
    return "TIMEOUT" if late else "CANCELLED"


def _submit(stage: Stage, starts: list[Start]) -> int:
    """Submit OPs as one array, recorded first: a later run finds it by its name. Raise SlurmDown, SlurmRefused."""
    settings, name = stage.settings.preprocess, attempts.new_name()
    made: list[tuple[Start, Job, int]] = []
    scripts = []
    for start in starts:
        try:
            job = attempts.job_of(settings, start.op.op_id, attempts.bundled(stage, start.op.op_id), name)
            scripts.append(jobs.prepare(job))
            made.append((start, job, len(made)))
        except OSError as problem:
            attempts.settle(stage, start.op, partial(_raise, problem))
    begun = attempts.begin(stage, made)
    for start, job, _ in made:
        if start.op.op_id not in begun:
            jobs.give_up(job.folder, job.name)  # the array holds it: it begins, and ends at once
            stage.count("skipped")
    folder = work_folder(settings) / ".batches" / name
    private_folder(folder.parent)
    folder.mkdir(mode=0o700)
    if begun:
        slurm.submit(settings.slurm, name, _time_minutes(settings), folder, scripts)
    return len(begun)


def _raise(problem: OSError) -> NoReturn:
    raise problem


def _time_minutes(settings: Preprocess) -> int:
    return settings.slurm.time_minutes or ceil(settings.timeout_seconds / 60)
