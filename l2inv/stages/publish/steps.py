"""The steps other than the record: the files are transferred and cataloged, and the store serves them."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from threading import Event as Flag
from urllib.parse import unquote, urlsplit

import msgspec

from l2inv.errors import L2invError
from l2inv.queries import delivered, publication
from l2inv.record import issued
from l2inv.services import catalog, outputs, slurm
from l2inv.services.metadata_store import CatalogedFrame, CatalogObject
from l2inv.stages.publish import transfer
from l2inv.stages.publish.guard import Guard, Unpublishable
from l2inv.stages.publish.preflight import Inversion
from l2inv.stages.publish.store import Store
from l2inv.stages.publish.transfer import File

AVAILABLE = "AVAILABLE"


def folder(guard: Guard, inversion: Inversion) -> str:
    """Return delivered.folder() of an inversion. Raise Unpublishable if there is not exactly one."""
    try:
        return delivered.folder(inversion.as_delivered, guard.settings.publish.mounts)
    except delivered.Scattered as problem:
        raise Unpublishable(str(problem)) from problem


def _files(guard: Guard, inversion: Inversion) -> list[File]:
    """Return the files of an inversion in its folder, or, if that is not mounted, in the ready event."""
    named = {Path(unquote(urlsplit(o["uri"]).path)).name: o for o in inversion.outputs}
    sums = {name: o.get("sha256") for name, o in named.items()}
    place = Path(folder(guard, inversion))
    if (
        any(outputs.mounted(o["uri"], guard.settings.publish.mounts) for o in inversion.outputs)
        and place.is_dir()
    ):
        return [
            File(name := str(path.relative_to(place)), path.stat().st_size, sums.get(name))
            for path in sorted(place.rglob("*"))
            if path.is_file()
        ]
    return [File(name, o.get("size_bytes"), sums[name]) for name, o in named.items()]


def products(guard: Guard) -> str:
    """Return what is wrong with the inversions' files if they are mounted; empty if they are correct."""
    try:
        found = delivered.check(
            guard.connection,
            guard.settings.publish,
            guard.op_id,
            [one.as_delivered for one in guard.inversions],
        )
    except delivered.Scattered as problem:
        raise Unpublishable(str(problem)) from problem
    if found.lacking:
        guard.stage.warn(found.why_not)
    return found.wrong


def transfer_files(guard: Guard, inversion: Inversion) -> bool:
    """Transfer an inversion's files to their bucket, unless that was done; return False while a job runs.

    Raise Unpublishable with the command's failure, or with the differences at the destination, and L2invError.
    """
    settings = guard.settings
    events = publication.events(guard.connection, guard.op_id)
    if settings.publish.transfer.command is None or publication.of(
        events, inversion.inversion_id, "transferred"
    ):
        return True
    assert inversion.bucket is not None
    move = transfer.Move(folder(guard, inversion), inversion.bucket, inversion.folder)
    work = work_folder(guard)
    again_after = max((e.seq for e in events if e.kind == "retried"), default=0)
    started = [
        e for e in publication.of(events, inversion.inversion_id, "transfer_started") if e.seq > again_after
    ]
    try:
        one = msgspec.convert(started[-1].detail, transfer.Job) if started else None
        if one is None or one.move != move:
            (one,) = transfer.planned(settings, work, [move])
            _start(guard, inversion, one)
        while (fate := transfer.outcome(settings, one, Flag())) == "again":
            one = transfer.again(settings, work, one)
            _start(guard, inversion, one)
    except transfer.Failed as problem:
        raise Unpublishable(f"transfer: {problem}") from problem
    except (slurm.SlurmDown, slurm.SlurmRefused) as problem:
        raise L2invError(f"publish: transfer: {problem}", "the next run continues") from problem
    if fate == "running":
        return False
    files = _files(guard, inversion)
    differs = transfer.differences(settings, move, files)
    if differs:
        raise Unpublishable(f"transfer: {'; '.join(differs[: delivered.MOST_NAMED])}")
    size = sum(file.size_bytes or 0 for file in files)
    detail = {"destination": f"{move.bucket}/{move.destination}", "files": len(files), "size_bytes": size}
    guard.note("transferred", inversion.key | detail | {"compared": differs is not None})
    return True


def work_folder(guard: Guard) -> Path:
    """Return the folder in which the jobs keep their state."""
    from platformdirs import user_data_path

    set_ = guard.settings.preprocess.work_dir
    return Path(set_) if set_ else user_data_path("l2inv") / "work"


def _start(guard: Guard, inversion: Inversion, one: transfer.Job) -> None:
    guard.add("transfer_started", None, inversion.key | msgspec.to_builtins(one))
    for process in transfer.start(guard.settings, [one]):
        process.wait()


def catalog_files(guard: Guard, inversion: Inversion) -> None:
    """Send the catalogers a message for each file not yet confirmed, and record the confirmed ones, batch by batch.

    Raise Unpublishable if the files are not known, CatalogError, and Changed before the next batch.
    """
    settings = guard.settings.publish.catalog
    if settings.url is None:
        return
    events = publication.of(
        publication.events(guard.connection, guard.op_id), inversion.inversion_id, "cataloged"
    )
    if events and events[-1].detail.get("whole"):
        return
    conversation = events[-1].detail["conversation_id"] if events else catalog.new_conversation_id()
    frames = frame_keys(guard, inversion)
    if not frames:
        raise Unpublishable(
            f"catalog: no file {issued.stem(inversion.id)}_…_L2.fits is known: mount the folder of the "
            "outputs (publish.mounts), or name each file in the ready event"
        )
    assert inversion.bucket is not None and inversion.asdf_object_key is not None
    messages = catalog.messages(
        inversion.bucket, frames, inversion.asdf_object_key, inversion.id, conversation
    )
    confirmed = {name for event in events for name in event.detail.get("files", ())}
    rest = [message for message in messages if message.object_name not in confirmed]
    key = inversion.key | {"conversation_id": conversation}
    for files in _guarded(guard, catalog.send(settings, rest)):
        confirmed.update(files)
        guard.note(
            "cataloged", key | {"files": files, "of": len(messages), "whole": len(confirmed) == len(messages)}
        )


def _guarded(guard: Guard, batches: Iterator[list[str]]) -> Iterator[list[str]]:
    """Yield the batches, each sent only if the OP has not changed."""
    while True:
        guard.check()
        files = next(batches, None)
        if files is None:
            return
        yield files


def frame_keys(guard: Guard, inversion: Inversion) -> list[str]:
    """Return the names in the bucket of an inversion's FITS files, sorted."""
    stem = issued.stem(inversion.id)
    names = [file.path for file in _files(guard, inversion)]
    return sorted(
        f"{inversion.folder}/{name}"
        for name in names
        if name.startswith(f"{stem}_") and name.endswith("_L2.fits")
    )


def is_available(guard: Guard, store: Store, inversion: Inversion) -> bool:
    """Return whether the store serves every cataloged file; True if the settings do not wait for that."""
    settings = guard.settings.publish.catalog
    if settings.url is None or not settings.await_available:
        return True
    inversion_id = inversion.id
    objects: list[CatalogObject] = store.service.catalog_objects(inversion_id)
    if not any(o.object_key == inversion.asdf_object_key and o.object_status == AVAILABLE for o in objects):
        return False
    frames: list[CatalogedFrame] = store.service.cataloged_frames(inversion_id)
    served = {frame.object_key for frame in frames if frame.frame_status == AVAILABLE}
    events = publication.of(publication.events(guard.connection, guard.op_id), inversion_id, "cataloged")
    files = {name for event in events for name in event.detail["files"]} - {inversion.asdf_object_key}
    return files <= served


def recorded_at(guard: Guard) -> datetime | None:
    """Return when the last of an OP's inversions was recorded in the store."""
    events = publication.events(guard.connection, guard.op_id)
    own = {inversion.inversion_id for inversion in guard.inversions}
    created = (e for e in events if e.kind == "inversion_created" and e.detail["inversion_id"] in own)
    return max((e.recorded_at for e in created), default=None)
