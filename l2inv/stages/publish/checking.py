"""The check of an inversion's files on request, before or after its ready event."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from l2inv.config.settings import Settings
from l2inv.database.connection import Connection
from l2inv.errors import Refused
from l2inv.products import check as check_products
from l2inv.queries import delivered, observing_programs
from l2inv.record import event_log


def check(
    connection: Connection,
    settings: Settings,
    op_id: str,
    files: Path | None,
    progress: Callable[[int, int], None] = lambda done_mb, of_mb: None,
) -> list[dict[str, Any]]:
    """Return, for each inversion named in an OP's present cycle, its `folder` and the `findings` in it.

    `files` is the folder, or its parent with a folder inv_XXXXXX for each; the default is where the ready event's
    outputs are mounted. Raise Refused if there is no inversion yet, or the files are not accessible, and L2invError
    without the packages that read them.
    """
    inversions = observing_programs.show(connection, op_id, settings.qualification)["inversions"]
    named = [one for one in inversions if "asdf_file" in one]
    if not named:
        raise Refused(f"OP {op_id}: it has no inversion yet", f"l2inv claim {op_id}")
    inverted = _inverted(connection, settings, op_id)
    found = []
    for one in named:
        inversion = inverted.get(one["inversion_id"]) or _expected(connection, op_id, one)
        place = _folder(files, one) if files else _mounted(settings, inversion)
        if place is None:
            raise Refused(
                f"OP {op_id}: the files of {one['inversion_id']} cannot be read from here",
                "name their folder with --files, or set publish.mounts",
            )
        findings = check_products(place, delivered.described(connection, op_id, inversion), progress)
        found.append(
            {
                "inversion_id": one["inversion_id"],
                "folder": str(place),
                "findings": [msgspec.to_builtins(finding) for finding in findings],
            }
        )
    return found


def _inverted(connection: Connection, settings: Settings, op_id: str) -> dict[str, dict[str, Any]]:
    from l2inv.stages.publish.preflight import preflight

    if event_log.seen(connection, op_id).state not in ("inverted", "published", "error"):
        return {}
    try:
        found = preflight(connection, settings, op_id, look=False)["inversions"]
    except Refused:  # in error, and never inverted
        return {}
    return {inversion["inversion_id"]: inversion for inversion in found}


def _expected(connection: Connection, op_id: str, one: dict[str, Any]) -> dict[str, Any]:
    """Return an inversion in work: of every dataset of its instrument program."""
    rows = connection.execute(
        "select dataset_id, proposal_id from l2inv.dataset "
        "where op_id = %s and instrument_program_id = %s and not withdrawn order by dataset_id",
        [op_id, one["instrument_program_id"]],
    ).fetchall()
    return {
        "inversion_id": one["inversion_id"],
        "instrument_program_id": one["instrument_program_id"],
        "proposal_id": next((row["proposal_id"] for row in rows if row["proposal_id"]), ""),
        "dataset_ids": [row["dataset_id"] for row in rows],
        "outputs": [],
        "asdf_object_key": None,
    }


def _folder(files: Path, one: dict[str, Any]) -> Path:
    own = files / one["inversion_id"].replace(".", "_")
    return own if own.is_dir() else files


def _mounted(settings: Settings, inversion: dict[str, Any]) -> Path | None:
    if not inversion["outputs"]:
        return None
    try:
        return delivered.mounted_folder(inversion, settings.publish.mounts)
    except delivered.Scattered as problem:
        raise Refused(str(problem), "name the folder with --files") from problem
