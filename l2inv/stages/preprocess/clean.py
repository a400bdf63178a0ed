"""An OP's intermediate files: comparing them with the record, and removing them after it is published."""

import os
import shutil
from datetime import datetime, timedelta
from pathlib import Path

from l2inv.config.settings import Settings
from l2inv.database.connection import Connection
from l2inv.documents import Json
from l2inv.errors import Refused
from l2inv.queries import observing_programs
from l2inv.record import event_log
from l2inv.stages.preprocess import bundle


def files(connection: Connection, op_id: str) -> Json:
    """Return the files of an OP's newest preprocessing, each with its `standing`.

    It is ok, changed (with the present SHA-256), missing (with the recorded size and SHA-256), or new: in the folder and
    not recorded, such as the names of the inversions. Removed files are not listed; `cleaned_at` is when they were
    removed. An OP that was not preprocessed has no folder and no files. Raise OSError.
    """
    detail = event_log.newest(connection, op_id, "preprocessed") or {}
    row = connection.execute(
        """
        select max(recorded_at) filter (where kind = 'cleaned') as at from l2inv.event
        where op_id = %s and seq > (select max(seq) from l2inv.event where op_id = %s and kind = 'preprocessed')
        """,
        [op_id, op_id],
    ).fetchone()
    cleaned_at = row["at"] if row else None
    folder = detail.get("folder")
    recorded = {file["path"]: file for file in detail.get("files", ())}
    present = {}
    if folder:
        for path in bundle.files(Path(folder)):
            file = bundle.describe_file(path, Path(folder))
            present[file["path"]] = file
    found = []
    for path in sorted(present if cleaned_at else recorded | present):
        was, now = recorded.get(path), present.get(path)
        standing = "new" if was is None else "missing" if now is None else "ok" if was == now else "changed"
        found.append({**(now or was or {}), "standing": standing})
    return {
        "op_id": op_id,
        "folder": folder,
        "files": found,
        "cleaned_at": cleaned_at,
        "inversions": observing_programs.inversions(connection, op_id, _proposal(connection, op_id)),
    }


def _proposal(connection: Connection, op_id: str) -> str | None:
    row = connection.execute("select proposal_id from l2inv.op where op_id = %s", [op_id]).fetchone()
    return row["proposal_id"] if row else None


def write_names(connection: Connection, op_id: str, inversions: list[Json]) -> None:
    """Write inversions.json into an OP's folder if it is mounted here and writable. Raise OSError."""
    folder = (event_log.newest(connection, op_id, "preprocessed") or {}).get("folder")
    if folder and os.access(folder, os.W_OK | os.X_OK):
        bundle.write_inversions(Path(folder), inversions)


def clean(
    connection: Connection,
    settings: Settings,
    actor: str,
    older_than: timedelta,
    now: datetime,
    dry_run: bool = False,
) -> Json:
    """Remove the folders of the OPs that have been published for longer than that, and record it on each.

    A folder is recorded as cleaned in the same transaction in which it is renamed, and removed afterward: no event claims
    more than was done, and the next run removes what a killed one left. `failed` lists the folders that could not be
    removed. Links are not followed.
    """
    work = bundle.work_folder(settings.preprocess)
    rows = connection.execute(
        """
        select op_id, exists (
            select from l2inv.event c where c.op_id = s.op_id and c.kind = 'cleaned' and not exists (
                select from l2inv.event p where p.op_id = s.op_id and p.kind = 'preprocessed' and p.seq > c.seq)
        ) as recorded
        from l2inv.op_state s where state = 'published' and since <= %s order by op_id
        """,
        [now - older_than],
    ).fetchall()
    report: Json = {"ops": [], "failed": [], "dry_run": dry_run}
    for row in rows:
        name = bundle.folder_name(row["op_id"])
        folder, aside = work / name, work / ".removed" / name
        places = [place for place in (folder, aside) if place.exists() or place.is_symlink()]
        if not places:
            continue
        try:
            detail = {"folder": str(folder), **_size(places)}
            if not dry_run:
                if folder in places or not row["recorded"]:
                    _record_and_move(connection, row["op_id"], folder, aside, actor, detail)
                shutil.rmtree(aside)
            report["ops"].append({"op_id": row["op_id"], **detail})
        except OSError as problem:
            cause = f"{problem.filename or folder}: {problem.strerror or problem}"
            report["failed"].append({"op_id": row["op_id"], "cause": cause})
        except Refused:  # reopened meanwhile: it is wanted again
            continue
    return report


def _record_and_move(
    connection: Connection, op_id: str, folder: Path, aside: Path, actor: str, detail: Json
) -> None:
    with connection.transaction():
        present = event_log.locked(connection, op_id)
        event_log.add_one(connection, present, "cleaned", None, actor, detail)
        if folder.exists():
            aside.parent.mkdir(exist_ok=True)
            if aside.exists():
                shutil.rmtree(aside)
            folder.rename(aside)


def _size(places: list[Path]) -> dict[str, int]:
    """Return the number of files, l2inv's own included, and their total size in bytes."""
    sizes = []
    for place in places:
        if place.is_symlink() or not place.is_dir():
            raise NotADirectoryError(20, "is not a folder that l2inv created", str(place))
        sizes += [path.lstat().st_size for path in place.rglob("*") if path.is_symlink() or not path.is_dir()]
    return {"files": len(sizes), "bytes": sum(sizes)}
