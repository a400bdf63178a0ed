"""Bring an inversion's files to where they are served, by the configured command, and compare them there.

The command runs as a job that outlives l2inv (jobs.py), here or on the cluster. Whoever uses this records what
`begun` returns, then starts it, and asks for the `outcome` as often as it likes, also in a later run.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from threading import Event as Flag
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from l2inv.config.settings import Settings
from l2inv.errors import ConfigError, L2invError
from l2inv.files import private_folder
from l2inv.services import jobs, outputs, slurm

LOG = "transfer.log"


class Failed(Exception):
    """The command did not bring the files; the text is the cause."""


class Move(msgspec.Struct, frozen=True):
    """What is to be brought where: a folder, as the command reads it, to a folder below a bucket."""

    source: str
    bucket: str
    destination: str


class Begun(msgspec.Struct, frozen=True):
    """A job for a move: what a later run has to know of it, plain enough for an event's detail."""

    move: Move
    executor: Literal["local", "slurm"]
    job: str
    task: int | None  # its index in the Slurm array
    folder: str
    command: list[str]
    attempt: int = 1


def check(settings: Settings) -> None:
    """Raise ConfigError when no file could be brought anywhere."""
    transfer, mistakes = settings.publish.transfer, []
    if transfer.command is None and transfer.executor == "slurm":
        mistakes.append("publish.transfer.command: executor slurm needs one")
    if transfer.executor == "slurm" and shutil.which("sbatch") is None:
        mistakes.append("publish.transfer.executor: slurm needs sbatch, which is not on PATH")
    elif transfer.command and transfer.executor == "local" and shutil.which(transfer.command[0]) is None:
        mistakes.append(f"publish.transfer.command: there is no program {transfer.command[0]}")
    if mistakes:
        raise ConfigError("publish.transfer", mistakes)


def begun(settings: Settings, work: Path, moves: Sequence[Move]) -> list[Begun]:
    """Return a job for each move, to be recorded and then started. Nothing is written.

    `work` is the folder below which jobs keep their state; on a cluster, its nodes must see it. Raise L2invError for
    a name that could mean another place, or an option: they are made of what others said.
    """
    transfer, array = settings.publish.transfer, jobs.new_name()
    found = []
    for task, move in enumerate(moves):
        _must_be_plain(move)
        on_cluster = transfer.executor == "slurm"
        found.append(
            Begun(
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
                f"nothing is brought to {move.destination!r} in bucket {move.bucket!r}",
                "the names of a bucket and of a folder there are letters, digits and _ . -",
            )
    if not move.source.startswith("/") or "\0" in move.source:
        raise L2invError(f"nothing is brought from {move.source!r}", "name the folder from the root on")


def again(settings: Settings, work: Path, one: Begun) -> Begun:
    """Return the job that follows one that came to nothing, to be recorded and then started."""
    (new,) = begun(settings, work, [one.move])
    return msgspec.structs.replace(new, attempt=one.attempt + 1)


def start(settings: Settings, work: Sequence[Begun]) -> "list[subprocess.Popen[bytes]]":
    """Start jobs that `begun` gave together; return the processes here, each to be waited for behind its outcome.

    Raise OSError, slurm.SlurmDown and slurm.SlurmRefused. Some may run all the same: `outcome` tells of each.
    """
    here = [jobs.start(_job(one)) for one in work if one.task is None]
    if distant := [one for one in work if one.task is not None]:
        scripts = [jobs.prepare(_job(one)) for one in distant]
        folder = Path(distant[0].folder).parent / ".batches" / distant[0].job
        private_folder(folder.parent)
        private_folder(folder)
        slurm.submit(settings.preprocess.slurm, distant[0].job, _time_minutes(settings), folder, scripts)
    return here


def outcome(settings: Settings, one: Begun, stop: Flag) -> Literal["done", "again", "running"]:
    """Return what became of a job; "again" where it was lost, and is to begin once more as `again` has it.

    A job on this machine is waited for; one on the cluster may be "running", or wait. Raise Failed with the cause,
    jobs.Stopped when stop is set (a job here is ended then), slurm.SlurmDown, and OSError.
    """
    end, state = _local(settings, one, stop) if one.task is None else _distant(settings, one)
    found = jobs.fate(end, state)
    if found == "again" and state in jobs.REQUEUED and one.attempt > settings.preprocess.slurm.max_requeues:
        found = "failed"
    if found == "failed":
        raise Failed(jobs.failure(one.command[0], Path(one.folder), one.job, end, state, LOG))
    if found == "again":
        jobs.give_up(Path(one.folder), one.job)  # whoever still holds its script: it ends at once
    return found


def differences(settings: Settings, move: Move, files: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """Return how what lies at the destination differs from the files (`path`, `size_bytes`, `sha256`), a line each.

    None where it cannot be looked at from here. Raise L2invError when a mount is not there.
    """
    template, mounts = settings.publish.transfer.destination_uri, settings.publish.mounts
    if template is None:
        return None
    (uri,) = _filled([template.rstrip("/")], move)
    folder = outputs.mounted(uri, mounts)
    if folder is None:
        return None
    said = {str(file["path"]): file for file in files}
    wanted = [
        {**file, "uri": f"{uri}/{quote(path, errors='surrogateescape') if '://' in uri else path}"}
        for path, file in said.items()
    ]
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    too_many = [f"{uri}/{name}: is there, and was not sent" for name in sorted(found - said.keys())]
    return outputs.problems(wanted, mounts) + too_many


def _filled(command: Sequence[str], move: Move) -> list[str]:
    values = {"source": move.source, "bucket": move.bucket, "destination": move.destination}
    return [re.sub(r"\{(source|bucket|destination)\}", lambda at: values[at[1]], part) for part in command]


def _job(one: Begun) -> jobs.Job:
    return jobs.Job(one.job, Path(one.folder), one.command, LOG)


def _local(settings: Settings, one: Begun, stop: Flag) -> tuple[jobs.Ended | None, str]:
    """Wait for a job on this machine. What is no longer waited for, for whatever reason, is ended."""
    folder, seconds = Path(one.folder), settings.publish.transfer.timeout_seconds
    try:
        end = jobs.wait(folder, one.job, seconds, stop)
    except BaseException as problem:
        ended = jobs.kill(folder, one.job)
        if isinstance(problem, jobs.TookTooLong):
            more = "" if ended else ", and runs on, on another host"
            words = f"{one.command[0]} took longer than {seconds:g} s{more} (log: {folder / LOG})"
            raise Failed(words) from None
        raise
    return end, "LOST" if end is None else "FAILED"


def _distant(settings: Settings, one: Begun) -> tuple[jobs.Ended | None, str]:
    """Return how a job on the cluster ended, and what state Slurm has it in; or had, by what the job left."""
    assert one.task is not None
    folder = Path(one.folder)
    end = jobs.ended(folder, one.job)
    if end is not None and end.exit_code == 0 and end.signal is None:
        return end, "COMPLETED"
    if known := slurm.standing({one.job}).get((one.job, one.task)):
        return end, known.state
    return end, jobs.state_forgotten(folder, one.job, end, 60 * _time_minutes(settings))


def _time_minutes(settings: Settings) -> int:
    return ceil(settings.publish.transfer.timeout_seconds / 60)
