"""One OP in preprocess, on this host or on the cluster: its state, the start of its job, and the job's outcome."""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from l2inv.config.settings import Preprocess, redact
from l2inv.database.connection import Connection
from l2inv.documents import Json
from l2inv.errors import Unavailable
from l2inv.queries import observing_programs
from l2inv.record import event_log
from l2inv.services import jobs
from l2inv.stages import stage as base
from l2inv.stages.preprocess import bundle
from l2inv.stages.preprocess.bundle import work_folder
from l2inv.stages.stage import Outcomes, Report

# Errors of a file system or the machine, which every OP would meet.
EVERY_OPS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EMFILE, errno.ENFILE,
    errno.ENOMEM, errno.EAGAIN,
}  # fmt: skip


class Jobs(msgspec.Struct):
    """How many jobs are on the cluster: those that this run submitted, and those that were there before."""

    submitted: int = 0
    running: int = 0


class Preprocessed(Report, kw_only=True):
    """The report of preprocess. `jobs` exists only if a cluster is involved."""

    stage: str = "preprocess"
    ops: Outcomes = msgspec.field(default_factory=Outcomes)
    jobs: Jobs | msgspec.UnsetType = msgspec.UNSET


Stage = base.Stage[Preprocessed]


class Failed(Exception):
    """The command failed for this OP; the text is the cause."""


class Started(msgspec.Struct, frozen=True):
    """A job that starts, as the event preprocess_started records it."""

    executor: str  # local or slurm
    job: str
    folder: str
    command: list[str]
    task: int | None = None  # its index in the Slurm array
    attempt: int = 1
    after: str | None = None  # the state of an earlier job that was lost

    @property
    def on_cluster(self) -> bool:
        """Return whether the job is the cluster's."""
        return self.task is not None

    @property
    def place(self) -> tuple[Path, str]:
        """Return folder and name, by which jobs.py knows the job."""
        return Path(self.folder), self.job

    @property
    def as_job(self) -> jobs.Job:
        """Return what is to be run."""
        return jobs.Job(self.job, Path(self.folder), self.command)


class Op(msgspec.Struct):
    """An OP that can be preprocessed, or that a job was started for."""

    op_id: str
    seq: int
    state: str
    on_hold: bool
    fresh: bool  # the verdict is on the present datasets
    newest: Started | None
    is_open: bool  # the newest job is for the present verdict, and its outcome is not recorded yet

    @property
    def started(self) -> Started:
        """Return the newest job of an OP that has one."""
        assert self.newest is not None
        return self.newest


class Start(msgspec.Struct, frozen=True):
    """A job to start: the number of the attempt, and the state of an earlier one that was lost."""

    op: Op
    attempt: int = 1
    after: str | None = None


def read(connection: Connection, op_id: str | None = None) -> list[Op]:
    """Return the invertible OPs, and those no longer invertible whose job may still run; or only the named one."""
    rows = connection.execute(
        """
        select s.op_id, s.seq, s.state, s.on_hold_seq is not null as on_hold,
               coalesce(s.verdict_seq > s.datasets_seq, false) as fresh, j.detail as newest,
               coalesce(s.state = 'invertible' and j.seq > greatest(s.datasets_seq, s.verdict_seq, s.overruled_seq)
                        and not exists (select from l2inv.event e where e.op_id = s.op_id and e.seq > j.seq
                                        and e.kind in ('failed', 'preprocessed')), false) as is_open
        from l2inv.op_state s
        left join lateral (
            select seq, detail from l2inv.history
            where op_id = s.op_id and kind = 'preprocess_started' and voided_by is null order by seq desc limit 1
        ) j on true
        where (s.state = 'invertible' or j.seq is not null and s.state in ('discovered', 'not_invertible', 'error'))
            and (%s::text is null or s.op_id = %s)
        order by s.priority desc, s.since, s.op_id
        """,
        [op_id, op_id],
    )
    return [msgspec.convert(row, Op) for row in rows]


def bundled(stage: Stage, op_id: str) -> Path:
    """Make an OP's input bundle and return its folder. Raise OSError."""
    folder = work_folder(stage.settings.preprocess) / bundle.folder_name(op_id)
    bundle.write(folder, describe(stage.connection, op_id), stage.settings)
    return folder


def describe(connection: Connection, op_id: str) -> Json:
    """Return what a command needs to know about an OP: its verdict, the instrument programs to be inverted, the names of
    their inversions if there are any in this cycle, and the newest version of each dataset in full."""
    row = connection.execute(
        """
        select s.op_id, o.proposal_id, o.experiment_id, e.detail -> 'verdict' as verdict,
               (select jsonb_agg(d.record || jsonb_build_object(
                           'version', d.version, 'content_hash', encode(d.content_hash, 'hex')) order by d.dataset_id)
                from l2inv.dataset d where d.op_id = s.op_id and not d.withdrawn) as datasets
        from l2inv.op_state s join l2inv.op o using (op_id)
        left join l2inv.event e on e.op_id = s.op_id and e.seq = s.verdict_seq
        where s.op_id = %s
        """,
        [op_id],
    ).fetchone()
    assert row is not None
    return row | {
        "instrument_programs": event_log.invertible_programs(connection, op_id),
        "inversions": observing_programs.inversions(connection, op_id, row["proposal_id"]),
    }


def command(settings: Preprocess, op_id: str, folder: Path) -> list[str]:
    """Return the configured command with {op_id}, {folder} and {description} filled in."""
    values = {"op_id": op_id, "folder": str(folder), "description": str(folder / bundle.DESCRIPTION)}
    return [
        re.sub(r"\{(op_id|folder|description)\}", lambda found: values[found[1]], part)
        for part in settings.command or []
    ]


def again(op: Op, state: str) -> Start:
    """Return the start after a job that was lost in that state; a job that never began does not count as an attempt."""
    return Start(op, op.started.attempt + (state != "UNKNOWN"), state)


def job_of(
    start: Start, settings: Preprocess, folder: Path, name: str | None = None, task: int | None = None
) -> Started:
    """Return the job that is to begin: one of its own on this machine, or a task of a named array on the cluster."""
    return Started(
        "local" if task is None else "slurm",
        name or jobs.new_name(),
        str(folder),
        command(settings, start.op.op_id, folder),
        task,
        start.attempt,
        start.after,
    )


def begin(stage: Stage, started: list[tuple[Op, Started]]) -> list[Op]:
    """Record that jobs begin, before they do; return the OPs that had not changed, each with its job."""
    events = [
        event_log.Event(op.op_id, op.seq, "preprocess_started", None, msgspec.to_builtins(job))
        for op, job in started
    ]
    if len(events) == 1:
        added = {events[0].op_id} if stage.append(events[0]) else set()
    else:
        added = stage.add(events)
    return [
        msgspec.structs.replace(op, seq=op.seq + 1, newest=job, is_open=True)
        for op, job in started
        if op.op_id in added
    ]


def check_end(op: Op, end: jobs.Ended | None, state: str) -> None:
    """Raise Failed, with the cause, unless a job ended well. Raise OSError."""
    if jobs.fate(end, state) != "done":
        raise Failed(jobs.failure(op.started.command[0], *op.started.place, end, state))


def done(stage: Stage, op: Op) -> None:
    """Record that an OP is preprocessed by its newest job, with the files it left. Raise OSError."""
    folder, name = op.started.place
    detail = {
        "needed": True,
        "executor": op.started.executor,
        "job": name,
        "command": op.started.command,
        "exit_code": 0,
        "seconds": jobs.took_seconds(folder, name),
        "folder": str(folder),
        "log": jobs.LOG,
    }
    _preprocessed(stage, op, folder, detail)


def done_without(stage: Stage, op: Op, folder: Path) -> None:
    """Record that an OP is preprocessed by its input bundle alone. Raise OSError."""
    _preprocessed(stage, op, folder, {"needed": False, "folder": str(folder)})


def _preprocessed(stage: Stage, op: Op, folder: Path, detail: Json) -> None:
    # Including files of earlier attempts: a command may build on them.
    files = [bundle.describe_file(path, folder) for path in bundle.files(folder)]
    event = event_log.Event(op.op_id, op.seq, "preprocessed", "preprocessed", detail | {"files": files})
    _settle(stage, op, "done", lambda seq: stage.append(msgspec.structs.replace(event, after=seq)))


@contextmanager
def blaming(stage: Stage, op: Op) -> Iterator[None]:
    """Record what fails within as the failure of this OP.

    Raise Unavailable for what every other OP would meet, too; the OP keeps its state, and a job of it that failed for that
    reason is started again in the next run.
    """
    try:
        yield
    except (Failed, OSError) as problem:
        work = work_folder(stage.settings.preprocess)
        if everyones := _every_ops(problem, work):
            if isinstance(problem, Failed):
                with suppress(OSError):
                    jobs.forget_end(*op.started.place)
            raise unavailable(everyones) from problem
        cause = redact(str(problem), stage.settings)  # it contains the command's last message
        _settle(stage, op, "failed", lambda seq: stage.fail(op.op_id, seq, cause))


def unavailable(what: str) -> Unavailable:
    """Return the error that stops the stage, for problems that every OP would meet."""
    return Unavailable(f"preprocess: {what}", "no OP failed for it: fix that, then: l2inv preprocess")


def _every_ops(problem: Exception, work: Path) -> str | None:
    """Return what is wrong with this machine or the work folder; None if the problem is only this OP's."""
    if isinstance(problem, OSError) and problem.errno in EVERY_OPS:
        return f"{problem.filename or work}: {problem.strerror}"
    try:
        disk = os.statvfs(work)
        if disk.f_blocks and not disk.f_bavail:
            return f"{work}: {os.strerror(errno.ENOSPC)}"
    except OSError as gone:
        return f"{work}: {gone.strerror}"
    return None


def _settle(stage: Stage, op: Op, outcome: str, record: Callable[[int], bool]) -> None:
    """Record the outcome of an OP; if it changed meanwhile, a later run finds its job."""
    recorded = record(op.seq)
    if not recorded and op.is_open:
        present = read(stage.connection, op.op_id)  # a note meanwhile changes nothing
        recorded = bool(present) and present[0].is_open and record(present[0].seq)
    stage.count(outcome if recorded else "skipped")
