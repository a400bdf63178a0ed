"""An OP's folder and its input bundle: the exact versions of the datasets to invert, and how Globus fetches them."""

import json
import shlex
from collections.abc import Iterator
from hashlib import file_digest
from math import isfinite
from pathlib import Path
from urllib.parse import quote, unquote

from l2inv.config.settings import Band, Preprocess, Qualification, Settings
from l2inv.documents import Json
from l2inv.files import replace
from l2inv.services.jobs import OWN

DESCRIPTION, MANIFEST, BATCH = "op.json", "manifest.json", "globus-batch.txt"
INVERSIONS = "inversions.json"  # written when the OP is claimed: only then are they named


def work_folder(settings: Preprocess) -> Path:
    """Return the folder that holds a folder for each OP."""
    if settings.work_dir:
        return Path(settings.work_dir)
    from platformdirs import user_data_path

    return user_data_path("l2inv") / "work"


def folder_name(name: str) -> str:
    """Return a name for an OP's folder that is safe for any id; unquoted() returns the id."""
    safe = quote(name, safe="")
    return f"%{ord(safe[0]):02X}{safe[1:]}" if safe[:1] in (".", "-", "~") else safe


def unquoted(name: str) -> str:
    """Return the OP id of a folder's name."""
    return unquote(name)


def files(folder: Path) -> Iterator[Path]:
    """Yield the files in an OP's folder in order, except links and l2inv's own files."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.relative_to(folder).parts[0] != OWN:
            yield path


def describe_file(path: Path, folder: Path) -> Json:
    """Return a file's path below the folder, as the record can keep it, its size and its SHA-256. Raise OSError."""
    with path.open("rb") as content:
        digest = file_digest(content, "sha256").hexdigest()
    shown = str(path.relative_to(folder)).encode("utf-8", "backslashreplace").decode()
    return {"path": shown, "size_bytes": path.stat().st_size, "sha256": digest}


def write(folder: Path, description: Json, settings: Settings) -> None:
    """Write op.json, manifest.json and globus-batch.txt into an OP's folder, each atomically and synced to disk.

    An inversions.json of an earlier cycle is removed: the claim writes this cycle's. `description` is from
    attempts.describe(). The same description and settings give the same bytes. Raise OSError.
    """
    made = manifest(description, settings.qualification, settings.preprocess, folder)
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    (folder / INVERSIONS).unlink(missing_ok=True)
    replace(folder / DESCRIPTION, _as_json(description))
    replace(folder / MANIFEST, _as_json(made))
    replace(folder / BATCH, batch(made, settings.preprocess))


def write_inversions(folder: Path, inversions: list[Json]) -> None:
    """Write inversions.json into an OP's folder: its inversions' ids, with the names derived from them. Raise OSError."""
    replace(folder / INVERSIONS, _as_json({"inversions": inversions}))


def manifest(description: Json, rules: Qualification, settings: Preprocess, folder: Path) -> Json:
    """Return the manifest: the OP, its verdict, and each dataset with its version and location; wavelengths in nm.

    A dataset is `qualifying` if the verdict on an invertible instrument program names it; its `path` is below the bucket.
    `fetch` is the command line for globus-batch.txt, null unless the settings name both endpoints.
    """
    programs = description["instrument_programs"]
    verdict = description["verdict"] or {"instrument_programs": []}
    used = {
        criterion["dataset_id"]
        for program in verdict["instrument_programs"]
        if program["instrument_program_id"] in programs
        for criterion in program["criteria"]
    }
    datasets = [_dataset(record, rules, used) for record in description["datasets"] or []]
    fetch = None
    if settings.globus_source and settings.globus_destination:
        endpoint = settings.globus_destination.partition(":")[0]
        fetch = shlex.join(
            ["globus", "transfer", "--batch", str(folder / BATCH), settings.globus_source, endpoint]
        )
    return {
        "op_id": description["op_id"],
        "proposal_id": description["proposal_id"],
        "experiment_id": description["experiment_id"],
        "verdict": description["verdict"],
        "instrument_programs": programs,
        "inversions": description["inversions"],
        "datasets": sorted(datasets, key=lambda dataset: str(dataset["dataset_id"])),
        "fetch": fetch,
    }


def batch(made: Json, settings: Preprocess) -> str:
    """Return the input of `globus transfer --batch`: a line for the folder of each qualifying dataset.

    Globus splits lines as a shell does, including # comments, and appends a relative path to the folder given with the
    endpoint (globus-cli: "Batch Input"). No id can end a line or lead out of its folder: characters other than letters,
    digits and _.-~ are written as %XX, as in the names of OPs' folders.
    """
    missing = [
        f"preprocess.{name}"
        for name in ("globus_source", "globus_destination")
        if getattr(settings, name) is None
    ]
    below = (settings.globus_destination or "").partition(":")[2].rstrip("/")
    op = folder_name(made["op_id"])
    lines = [f"# The Level 1 inputs of {op}"]
    if missing:
        lines.append(f"# The settings have no {' and no '.join(missing)}: add it to: globus transfer --batch")
    else:
        lines.append(f"# {made['fetch']}" if made["fetch"].isprintable() else "# see fetch in manifest.json")
    for dataset in made["datasets"]:
        name = folder_name(dataset["dataset_id"])
        if not dataset["qualifying"]:
            continue
        if dataset["path"] is None or not dataset["bucket"]:
            lines.append(f"# {name}: the store names no bucket or no proposal")
            continue
        source = f"/{folder_name(dataset['bucket'])}/{dataset['path']}"
        target = f"{below}/{op}/{name}/" if settings.globus_destination else f"{op}/{name}/"
        lines.append(shlex.join(["--recursive", source, target]))
    return "\n".join(lines) + "\n"


def _dataset(record: Json, rules: Qualification, used: set[str]) -> Json:
    """Return a dataset of the manifest, from its record under the store's names."""
    dataset_id, proposal = record["datasetId"], record.get("primaryProposalId")
    low, high = record.get("wavelengthMin"), record.get("wavelengthMax")
    return {
        "dataset_id": dataset_id,
        "version": record["version"],
        "content_hash": record["content_hash"],
        "product_id": record.get("productId"),
        "instrument": record.get("instrumentName"),
        "instrument_program_id": record.get("instrumentProgramExecutionId"),
        "bucket": record.get("bucket"),
        "path": f"{folder_name(proposal)}/{folder_name(dataset_id)}/" if proposal else None,
        "wavelength_min_nm": low,
        "wavelength_max_nm": high,
        "bands": [band.name for band in _bands(record, rules) if _covers(low, high, band)],
        "qualifying": dataset_id in used,
    }


def _bands(record: Json, rules: Qualification) -> list[Band]:
    own = [r.bands for r in rules.per_instrument if r.instrument == record.get("instrumentName")]
    return own[0] if own and own[0] is not None else rules.bands


def _covers(low: float | None, high: float | None, band: Band) -> bool:
    if low is None or high is None or not (isfinite(low) and isfinite(high)):
        return False
    return low <= band.center_nm <= high


def _as_json(document: Json) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
