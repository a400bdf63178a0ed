"""One OP's turn in preprocess, wherever it runs: what is due, that a job begins, and what became of it."""

import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from l2inv.config.settings import Preprocess, redact
from l2inv.database.connection import Connection
from l2inv.queries import observing_programs
from l2inv.record import event_log
from l2inv.services import jobs
from l2inv.stages import stage as base
from l2inv.stages.preprocess import bundle
from l2inv.stages.preprocess.bundle import work_folder
from l2inv.stages.stage import Outcomes, Report


class Failed(Exception):
    """The command did not do its work for this OP; the text is the cause."""


class MovedOn(Exception):
    """Something else happened to the OP meanwhile: a later run looks at it again."""


class Op(msgspec.Struct):
    """An OP that may be preprocessed, or was when its newest job (detail of preprocess_started) began."""

    op_id: str
    seq: int
    state: str
    on_hold: bool
    fresh: bool  # the verdict is on the present datasets
    started: dict[str, Any] | None
    is_open: bool  # the newest job is for the present verdict, and what became of it is not recorded yet

    @property
    def job(self) -> tuple[Path, str]:
        """The folder and name of the newest job."""
        assert self.started is not None
        return Path(self.started["folder"]), self.started["job"]


class Start(msgspec.Struct, frozen=True):
    """A job to begin: why once more and for which time, where an earlier one came to nothing."""

    op: Op
    attempt: int = 1
    after: str | None = None


class Jobs(msgspec.Struct):
    """How many jobs are on the cluster: those that this run submitted, and those that were there before."""

    submitted: int = 0
    running: int = 0


class Preprocessed(Report, kw_only=True):
    """The report of preprocess. `jobs` is there where a cluster has to do with it."""

    stage: str = "preprocess"
    ops: Outcomes = msgspec.field(default_factory=Outcomes)
    jobs: Jobs | msgspec.UnsetType = msgspec.UNSET


Stage = base.Stage[Preprocessed]


def candidates(connection: Connection, op_id: str | None = None) -> list[Op]:
    """The OPs that are invertible, and those no longer so with a job that may still run; or the one that is named."""
    rows = connection.execute(
        """
        select s.op_id, s.seq, s.state, s.on_hold_seq is not null as on_hold,
               coalesce(s.verdict_seq > s.datasets_seq, false) as fresh, j.detail as started,
               coalesce(s.state = 'invertible' and j.seq > greatest(s.datasets_seq, s.verdict_seq, s.overruled_seq)
                        and not exists (select from l2inv.event e where e.op_id = s.op_id and e.seq > j.seq
                                        and e.kind in ('failed', 'preprocessed')), false) as is_open
        from l2inv.op_state s
        left join lateral (
            select seq, detail from l2inv.event
            where op_id = s.op_id and kind = 'preprocess_started' order by seq desc limit 1
        ) j on true
        where (s.state = 'invertible' or j.seq is not null and s.state in ('discovered', 'not_invertible', 'error'))
            and (%s::text is null or s.op_id = %s)
        order by s.priority desc, s.since, s.op_id
        """,
        [op_id, op_id],
    )
    return [Op(**row) for row in rows]


def describe(connection: Connection, op_id: str) -> dict[str, Any]:
    """Return what a command needs to know of an OP: its verdict, which instrument programs are to be inverted, the names
    of their inversions where these have begun in this cycle, and the newest version of each dataset in full."""
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


def again(op: Op, after: str) -> Start:
    """Return the start that follows a job which came to nothing."""
    return Start(op, (op.started or {})["attempt"] + 1, after)


def bundled(stage: Stage, op_id: str) -> Path:
    """Make an OP's input bundle and return its folder. Raise OSError."""
    folder = work_folder(stage.settings.preprocess) / bundle.folder_name(op_id)
    bundle.write(folder, describe(stage.connection, op_id), stage.settings)
    return folder


def new_name() -> str:
    """Return a name that no other job has."""
    return f"l2inv-{secrets.token_hex(6)}"


def job_of(settings: Preprocess, op_id: str, folder: Path, name: str) -> jobs.Job:
    """Return the configured command with {op_id}, {folder} and {description} filled in."""
    values = {"op_id": op_id, "folder": str(folder), "description": str(folder / bundle.DESCRIPTION)}
    argv = [
        re.sub(r"\{(op_id|folder|description)\}", lambda found: values[found[1]], part)
        for part in settings.command or []
    ]
    return jobs.Job(name, folder, argv)


def started(start: Start, job: jobs.Job, task: int | None) -> dict[str, Any]:
    """Return the detail of `preprocess_started`."""
    return {
        "executor": "local" if task is None else "slurm",
        "job": job.name,
        "task": task,  # its index in the Slurm array
        "folder": str(job.folder),
        "command": job.argv,
        "attempt": start.attempt,
        "after": start.after,
    }


def begin(stage: Stage, begun: Sequence[tuple[Start, jobs.Job, int | None]]) -> set[str]:
    """Record that jobs begin, before they do; return the OPs that had not moved on."""
    events = [
        event_log.Event(start.op.op_id, start.op.seq, "preprocess_started", None, started(start, job, task))
        for start, job, task in begun
    ]
    return {event.op_id for event in events if stage.append(event)}


def outcome(op: Op, end: jobs.Ended, state: str | None = None) -> dict[str, Any]:
    """The detail of `preprocessed` for a job that ended well. Raise Failed with the cause, and OSError."""
    folder, name = op.job
    if state is not None or end.signal or end.exit_code != 0:
        what = f"{state}: " if state else ""
        raise Failed(f"{what}{command_of(op)} {end.how}: {jobs.last_word(folder, name)} ({log_of(op)})")
    assert op.started is not None
    return {
        "needed": True,
        "executor": op.started["executor"],
        "job": name,
        "command": op.started["command"],
        "exit_code": 0,
        "seconds": jobs.took_seconds(folder, name),
        "folder": str(folder),
        "log": jobs.LOG,
        "files": described(folder),
    }


def described(folder: Path) -> list[dict[str, Any]]:
    """Return each file of an OP's folder, those of earlier attempts included: a command may build on them. Raise OSError."""
    return [bundle.describe_file(path, folder) for path in bundle.files(folder)]


def command_of(op: Op) -> str:
    """Return the program that an OP's newest job runs."""
    return str((op.started or {})["command"][0])


def log_of(op: Op) -> str:
    """Return where the log of an OP's newest job is."""
    return f"log: {op.job[0] / jobs.LOG}"


def settle(stage: Stage, op: Op, outcome: Callable[[], dict[str, Any]]) -> None:
    """Record what became of an OP. If it moved on meanwhile, a later run finds its job as it was left."""
    try:
        detail, cause = outcome(), ""
    except (Failed, OSError) as problem:
        detail, cause = {}, redact(str(problem), stage.settings)  # it holds the command's last word
    except MovedOn:
        stage.count("skipped")
        return
    present = candidates(stage.connection, op.op_id)
    seq = present[0].seq if present and present[0].is_open else op.seq  # a note meanwhile changes nothing
    if cause:
        added = stage.fail(op.op_id, seq, cause)
    else:
        event = event_log.Event(op.op_id, seq, "preprocessed", "preprocessed", detail)
        added = stage.append(event)
    stage.count(("failed" if cause else "done") if added else "skipped")
