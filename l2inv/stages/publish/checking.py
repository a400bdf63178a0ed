"""The check of an inversion's files on request, before or after its ready event."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import msgspec

from l2inv import products
from l2inv.config.settings import Settings
from l2inv.database.connection import Connection
from l2inv.errors import Refused
from l2inv.products import Finding
from l2inv.queries import delivered
from l2inv.queries.delivered import Inversion
from l2inv.record import event_log, issued
from l2inv.record.issued import Issued
from l2inv.stages.publish.preflight import preflight


class Checked(msgspec.Struct, frozen=True):
    """The findings about an inversion's files, in their folder."""

    inversion_id: str
    folder: str
    findings: list[Finding]


def check(
    connection: Connection,
    settings: Settings,
    op_id: str,
    files: Path | None,
    progress: Callable[[int, int], None] = lambda done_mb, of_mb: None,
) -> list[Checked]:
    """Check the files of each inversion named in an OP's present cycle.

    `files` is the folder, or one in which each has its inv_XXXXXX or PROPOSAL/inv_XXXXXX; the default is where the ready
    event's outputs are mounted. In the folder of one inversion, only that one is checked. Raise Refused if there is no
    inversion yet, or the files are not accessible, and L2invError without the packages that read them.
    """
    named = issued.of_cycle(connection, op_id)
    if not named:
        raise Refused(f"OP {op_id}: it has no inversion yet", f"l2inv claim {op_id}")
    if files:
        named = [one for one in named if files.resolve().name == _folder_name(one)] or named
    inverted = _inverted(connection, settings, op_id)
    found = []
    for one in named:
        inversion = inverted.get(one.inversion_id) or _expected(connection, op_id, one)
        described = delivered.described(connection, op_id, inversion)
        place = _folder(files, described) if files else _mounted(settings, inversion)
        if place is None:
            raise Refused(
                f"OP {op_id}: the files of {one.inversion_id} cannot be read from here",
                "name their folder with --files, or set publish.mounts",
            )
        findings = products.check(place, described, progress)
        found.append(Checked(one.inversion_id, str(place), list(findings)))
    return found


def _inverted(connection: Connection, settings: Settings, op_id: str) -> dict[str, Inversion]:
    """Return the inversions of an OP's ready event by id; none without a ready event."""
    if event_log.seen(connection, op_id).state not in ("inverted", "published", "error"):
        return {}
    try:
        found = preflight(connection, settings, op_id, check_files=False)
    except Refused:  # in error, and never inverted
        return {}
    return {one.inversion_id: one.as_delivered for one in found.inversions if one.inversion_id}


def _expected(connection: Connection, op_id: str, one: Issued) -> Inversion:
    """Return an inversion in work: of every dataset of its instrument program."""
    rows = connection.execute(
        "select dataset_id from l2inv.dataset "
        "where op_id = %s and instrument_program_id = %s and not withdrawn order by dataset_id",
        [op_id, one.instrument_program_id],
    )
    return Inversion(
        one.inversion_id, one.instrument_program_id, [row["dataset_id"] for row in rows], [], None
    )


def _folder(files: Path, described: products.Issued) -> Path:
    below = PurePosixPath(described.metadata_key).parent  # PROPOSAL/inv_XXXXXX
    return next((files / name for name in (below, below.name) if (files / name).is_dir()), files)


def _folder_name(one: Issued) -> str:
    return one.inversion_id.replace(".", "_")


def _mounted(settings: Settings, inversion: Inversion) -> Path | None:
    if not inversion.outputs:
        return None
    try:
        return delivered.mounted_folder(inversion, settings.publish.mounts)
    except delivered.Scattered as problem:
        raise Refused(str(problem), "name the folder with --files") from problem
