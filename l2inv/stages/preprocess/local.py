"""The executor `local`: the jobs of preprocess on this host, a few at a time, each waited for."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from threading import Event as Flag

from l2inv.services import jobs
from l2inv.stages.preprocess import attempts
from l2inv.stages.preprocess.attempts import Failed, Op, Stage, Start


def run(stage: Stage, running: Sequence[Op], starts: Sequence[Start]) -> None:
    """Wait for the jobs that an earlier run left running, start the others, and record how each ends.

    Stopped by a signal or an error, end the jobs; their OPs stay invertible.
    """
    stop = Flag()
    with ThreadPoolExecutor(stage.settings.preprocess.parallel) as pool, _stopping(pool, stop, running):
        turns = [pool.submit(_wait_for, stage, op, stop) for op in running]
        turns += [pool.submit(_start, stage, start, stop) for start in starts]
        for number, turn in enumerate(as_completed(turns), 1):
            turn.result()
            stage.progress(number, len(turns))


@contextmanager
def _stopping(pool: ThreadPoolExecutor, stop: Flag, running: Sequence[Op]) -> Iterator[None]:
    """End running and waiting jobs if the caller is interrupted: only a killed l2inv leaves commands running."""
    try:
        yield
    except BaseException:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        for op in running:  # including those that nobody waits for yet
            jobs.kill(*op.started.place)
        raise


def _start(stage: Stage, start: Start, stop: Flag) -> None:
    """Preprocess one OP: bundle, command, record. Raise Stopped, Unavailable."""
    settings, op = stage.settings.preprocess, start.op
    with attempts.blaming(stage, op):
        folder = attempts.bundled(stage, op.op_id)
        if settings.command is None:
            attempts.done_without(stage, op, folder)
            return
        if stop.is_set():
            raise jobs.Stopped
        begun = attempts.begin(stage, [(op, attempts.job_of(start, settings, folder))])
        if not begun:
            stage.count("skipped")
            return
        (op,) = begun
        with attempts.blaming(stage, op), jobs.start(op.started.as_job) as process:
            _wait_for(stage, op, stop, process.pid)


def _wait_for(stage: Stage, op: Op, stop: Flag, pid: int | None = None) -> None:
    """Wait for a job and record how it ended; kill it if the wait ends for any other reason."""
    seconds = stage.settings.preprocess.timeout_seconds
    folder, name = op.started.place
    with attempts.blaming(stage, op):
        try:
            end = jobs.wait(folder, name, seconds, stop, pid)
        except BaseException as problem:
            is_over = jobs.kill(folder, name)
            if isinstance(problem, jobs.TookTooLong):
                raise Failed(_took_too_long(op, seconds, is_over)) from None
            raise
        attempts.check_end(op, end, "FAILED")
        attempts.done(stage, op)


def _took_too_long(op: Op, seconds: float, is_over: bool) -> str:
    more = "" if is_over else ", and keeps running on another host"
    return f"{op.started.command[0]} took longer than {seconds:g} s{more} (log: {op.started.place[0] / jobs.LOG})"
