"""The jobs of preprocess on a Slurm cluster: look up their states, cancel, submit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from pathlib import Path

from l2inv.config.settings import Preprocess
from l2inv.errors import L2invError, Unavailable
from l2inv.files import private_folder
from l2inv.services import jobs, slurm
from l2inv.stages.preprocess import attempts
from l2inv.stages.preprocess.attempts import Op, Stage, Start, Started
from l2inv.stages.preprocess.bundle import work_folder

ARRAY = 1000  # OPs in one Slurm array: as a cluster allows by default


@contextmanager
def asked() -> Iterator[None]:
    """Raise Unavailable if the controller cannot be reached, and L2invError if sbatch refuses; no OP goes to error."""
    try:
        yield
    except slurm.SlurmDown as problem:
        raise Unavailable(
            f"preprocess: the cluster cannot be reached: {problem}", "nothing is lost: the next run continues"
        ) from problem
    except slurm.SlurmRefused as problem:
        raise L2invError(
            f"preprocess: sbatch refused: {problem}",
            "fix preprocess.slurm, then run it again: nothing is lost",
        ) from problem


def states(settings: Preprocess, ops: Sequence[Op]) -> Iterator[tuple[Op, jobs.Ended | None, str]]:
    """Yield for each job how it ended, if recorded, and its last known state in Slurm. Raise SlurmDown."""
    known = slurm.states({op.started.job for op in ops})
    for op in ops:
        end, task = jobs.ended(*op.started.place), known.get(_task(op))
        if task is not None:
            yield op, end, task.state
        else:
            yield op, end, jobs.state_forgotten(*op.started.place, end, 60 * _time_minutes(settings))


def end(ops: Sequence[Op]) -> set[str]:
    """Cancel jobs that are no longer wanted; return the OPs whose job may still run. Raise SlurmDown."""
    known = slurm.states({op.started.job for op in ops})
    live = [op for op in ops if (task := known.get(_task(op))) and task.state not in slurm.ENDED]
    for op in live:
        slurm.cancel(*_task(op))  # a later run finds it ended
    return {op.op_id for op in live}


def _task(op: Op) -> tuple[str, int]:
    """Return a job's name and its index in the array."""
    assert op.started.task is not None
    return op.started.job, op.started.task


def submit(stage: Stage, starts: Sequence[Start]) -> None:
    """Submit OPs, one array at a time. Raise Unavailable if the cluster is down, and L2invError if it refuses."""
    assert stage.report.jobs
    with asked():
        for first in range(0, len(starts), ARRAY):
            stage.report.jobs.submitted += _submit_array(stage, starts[first : first + ARRAY])


def _submit_array(stage: Stage, starts: Sequence[Start]) -> int:
    """Record that jobs start, then submit them as one array, which a later run finds by its name."""
    settings, name = stage.settings.preprocess, jobs.new_name()
    made: list[tuple[Op, Started]] = []
    scripts: list[Path] = []
    for start in starts:
        with attempts.blaming(stage, start.op):
            folder = attempts.bundled(stage, start.op.op_id)
            job = attempts.job_of(start, settings, folder, name, len(made))
            scripts.append(jobs.prepare(job.as_job))
            made.append((start.op, job))
    begun = {op.op_id for op in attempts.begin(stage, made)}
    for op, job in made:
        if op.op_id not in begun:
            jobs.give_up(*job.place)  # it is in the array: it will start and end at once
            stage.count("skipped")
    if begun:
        folder = work_folder(settings) / ".batches" / name
        private_folder(folder.parent)
        private_folder(folder)
        slurm.submit(settings.slurm, name, _time_minutes(settings), folder, scripts)
    return len(begun)


def _time_minutes(settings: Preprocess) -> int:
    return settings.slurm.time_minutes or ceil(settings.timeout_seconds / 60)
