"""Transfer an inversion's files to their bucket, by the configured command, and compare them there.

The command runs as a job that outlives l2inv (jobs.py), here or on the cluster. The caller records what planned()
returns, then starts it, and calls outcome() any number of times, also in a later run.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from threading import Event as Flag
from typing import Literal
from urllib.parse import quote

import msgspec

from l2inv.config.settings import Settings
from l2inv.errors import ConfigError, L2invError
from l2inv.files import private_folder
from l2inv.services import jobs, outputs, slurm
from l2inv.services.outputs import Output

LOG = "transfer.log"


class Failed(Exception):
    """The command did not transfer the files; the text is the cause."""


class Move(msgspec.Struct, frozen=True):
    """A transfer: from a folder, as the command reads it, to a folder in a bucket."""

    source: str
    bucket: str
    destination: str


class Job(msgspec.Struct, frozen=True):
    """A job for a move: what a later run needs to know, as recorded in an event's detail."""

    move: Move
    executor: str  # local or slurm
    job: str
    task: int | None  # its index in the Slurm array
    folder: str
    command: list[str]
    attempt: int = 1


def check(settings: Settings) -> None:
    """Raise ConfigError if no file could be transferred."""
    transfer, mistakes = settings.publish.transfer, []
    if transfer.command is None and transfer.executor == "slurm":
        mistakes.append("publish.transfer.command: executor slurm needs one")
    if transfer.executor == "slurm" and shutil.which("sbatch") is None:
        mistakes.append("publish.transfer.executor: slurm needs sbatch, which is not on PATH")
    elif transfer.command and transfer.executor == "local" and shutil.which(transfer.command[0]) is None:
        mistakes.append(f"publish.transfer.command: there is no program {transfer.command[0]}")
    if mistakes:
        raise ConfigError("publish.transfer", mistakes)


def planned(settings: Settings, work: Path, moves: Sequence[Move]) -> list[Job]:
    """Return a job for each move, to be recorded and then started. Nothing is written.

    `work` is the folder in which jobs keep their state; a cluster's nodes must see it. Raise L2invError for a name that
    could mean another place or an option, since the names come from outside.
    """
    transfer, array = settings.publish.transfer, jobs.new_name()
    found = []
    for task, move in enumerate(moves):
        _must_be_plain(move)
        on_cluster = transfer.executor == "slurm"
        found.append(
            Job(
                move,
                transfer.executor,
                array if on_cluster else jobs.new_name(),
                task if on_cluster else None,
                str(work / ".transfers" / quote(f"{move.bucket}/{move.destination}", safe="")),
                _filled(transfer.command or [], move),
            )
        )
    return found


def _must_be_plain(move: Move) -> None:
    for part in (move.bucket, *move.destination.split("/")):
        if not re.fullmatch(r"\w[\w.-]*", part, re.ASCII):
            raise L2invError(
                f"cannot transfer to {move.destination!r} in bucket {move.bucket!r}",
                "the names of a bucket and of its folders may have letters, digits and _ . -",
            )
    if not move.source.startswith("/") or "\0" in move.source:
        raise L2invError(f"cannot transfer from {move.source!r}", "name the folder by an absolute path")


def again(settings: Settings, work: Path, one: Job) -> Job:
    """Return the job that follows a lost one, to be recorded and then started."""
    (new,) = planned(settings, work, [one.move])
    return msgspec.structs.replace(new, attempt=one.attempt + 1)


def start(settings: Settings, work: Sequence[Job]) -> "list[subprocess.Popen[bytes]]":
    """Start jobs from one call of planned(); return the local processes, each to be waited for after its outcome.

    Raise OSError, slurm.SlurmDown and slurm.SlurmRefused. Some may run anyway: see outcome().
    """
    here = [jobs.start(_job(one)) for one in work if one.task is None]
    if distant := [one for one in work if one.task is not None]:
        scripts = [jobs.prepare(_job(one)) for one in distant]
        folder = Path(distant[0].folder).parent / ".batches" / distant[0].job
        private_folder(folder.parent)
        private_folder(folder)
        slurm.submit(settings.preprocess.slurm, distant[0].job, _time_minutes(settings), folder, scripts)
    return here


def outcome(settings: Settings, one: Job, stop: Flag) -> Literal["done", "again", "running"]:
    """Return the outcome of a job; "again" if it was lost and must be started again: see again().

    A job on this machine is waited for; one on the cluster may be "running", or waiting. Raise Failed with the cause,
    jobs.Stopped when stop is set (a job here is killed then), slurm.SlurmDown, and OSError.
    """
    end, state = _local(settings, one, stop) if one.task is None else _distant(settings, one)
    found = jobs.fate(end, state)
    if found == "again" and state in jobs.REQUEUED and one.attempt > settings.preprocess.slurm.max_requeues:
        found = "failed"
    if found == "failed":
        raise Failed(jobs.failure(one.command[0], Path(one.folder), one.job, end, state, LOG))
    if found == "again":
        jobs.give_up(Path(one.folder), one.job)  # should its script still start, it ends at once
    return found


class File(msgspec.Struct, frozen=True):
    """A file that is transferred: its path below the folder, and its size and SHA-256 if known."""

    path: str
    size_bytes: int | None = None
    sha256: str | None = None

    def as_output(self, uri: str) -> Output:
        """Return the file as an output at a URI."""
        output: Output = {"uri": uri}
        if self.size_bytes is not None:
            output["size_bytes"] = self.size_bytes
        if self.sha256 is not None:
            output["sha256"] = self.sha256
        return output


def differences(settings: Settings, move: Move, files: Sequence[File]) -> list[str] | None:
    """Return the differences between the destination and the files, a line each.

    None if the destination is not mounted here. Raise L2invError if a mount is missing.
    """
    template, mounts = settings.publish.transfer.destination_uri, settings.publish.mounts
    if template is None:
        return None
    (uri,) = _filled([template.rstrip("/")], move)
    folder = outputs.mounted(uri, mounts)
    if folder is None:
        return None
    sent = {file.path: file for file in files}
    wanted = [
        file.as_output(f"{uri}/{quote(path, errors='surrogateescape') if '://' in uri else path}")
        for path, file in sent.items()
    ]
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    too_many = [f"{uri}/{name}: is there, but was not sent" for name in sorted(found - sent.keys())]
    return outputs.problems(wanted, mounts) + too_many


def _filled(command: Sequence[str], move: Move) -> list[str]:
    values = {"source": move.source, "bucket": move.bucket, "destination": move.destination}
    return [re.sub(r"\{(source|bucket|destination)\}", lambda at: values[at[1]], part) for part in command]


def _job(one: Job) -> jobs.Job:
    return jobs.Job(one.job, Path(one.folder), one.command, LOG)


def _local(settings: Settings, one: Job, stop: Flag) -> tuple[jobs.Ended | None, str]:
    """Wait for a job on this machine; kill it if the wait ends for any other reason."""
    folder, seconds = Path(one.folder), settings.publish.transfer.timeout_seconds
    try:
        end = jobs.wait(folder, one.job, seconds, stop)
    except BaseException as problem:
        ended = jobs.kill(folder, one.job)
        if isinstance(problem, jobs.TookTooLong):
            more = "" if ended else ", and keeps running on another host"
            words = f"{one.command[0]} took longer than {seconds:g} s{more} (log: {folder / LOG})"
            raise Failed(words) from None
        raise
    return end, "LOST" if end is None else "FAILED"


def _distant(settings: Settings, one: Job) -> tuple[jobs.Ended | None, str]:
    """Return how a job on the cluster ended, and its state in Slurm, or if Slurm forgot it, from the job's files."""
    assert one.task is not None
    folder = Path(one.folder)
    end = jobs.ended(folder, one.job)
    if end is not None and end.exit_code == 0 and end.signal is None:
        return end, "COMPLETED"
    if known := slurm.states({one.job}).get((one.job, one.task)):
        return end, known.state
    return end, jobs.state_forgotten(folder, one.job, end, 60 * _time_minutes(settings))


def _time_minutes(settings: Settings) -> int:
    return ceil(settings.publish.transfer.timeout_seconds / 60)
