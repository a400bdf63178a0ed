"""The input bundle: exact versions in the manifest, and a batch file that Globus reads correctly."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2inv.config.settings import Preprocess, Qualification, Settings
from l2inv.database.connection import Connection
from l2inv.files import replace
from l2inv.stages.preprocess import bundle
from tests.helpers.commands import AS_OF, NOW, Commands

ENDS = Preprocess(globus_source="SRC", globus_destination="DST:/l2/in puts/")


def dataset(dataset_id: str, **more: Any) -> dict[str, Any]:
    return {
        "datasetId": dataset_id, "version": 2, "content_hash": "ab", "productId": "L1-X", "bucket": "data",
        "primaryProposalId": "pid_1", "instrumentName": "VISP", "instrumentProgramExecutionId": "id.1",
        "wavelengthMin": 853.9, "wavelengthMax": 854.6, **more,
    }  # fmt: skip


def described(*datasets: dict[str, Any], op_id: str = "op.1") -> dict[str, Any]:
    criteria = [{"name": "health", "dataset_id": d["datasetId"]} for d in datasets]
    program = {"instrument_program_id": "id.1", "invertible": False, "criteria": criteria}
    return {
        "op_id": op_id, "proposal_id": "pid_1", "experiment_id": "eid_1", "verdict": {"instrument_programs": [program]},
        "instrument_programs": ["id.1"], "datasets": list(datasets),
    }  # fmt: skip


def fetched(text: str) -> list[list[str]]:
    """The lines as globus-cli takes them apart."""
    return [argv for line in text.splitlines() if (argv := shlex.split(line, comments=True))]


def made(description: dict[str, Any], settings: Preprocess = ENDS) -> dict[str, Any]:
    return bundle.manifest({"inversions": []} | description, Qualification(), settings, Path("/w/op.1"))


def test_the_manifest_pins_each_dataset_and_describes_how_to_fetch_it() -> None:
    description = described(dataset("B"), dataset("A", wavelengthMin=None))
    description["datasets"].append(dataset("VBI", instrumentProgramExecutionId="id.2"))
    description["verdict"]["instrument_programs"].append(
        {"instrument_program_id": "id.2", "criteria": [{"name": "health", "dataset_id": "VBI"}]}
    )
    manifest = made(description)
    assert [d["dataset_id"] for d in manifest["datasets"]] == ["A", "B", "VBI"]
    assert manifest["datasets"][1] == {
        "dataset_id": "B", "version": 2, "content_hash": "ab", "product_id": "L1-X", "instrument": "VISP",
        "instrument_program_id": "id.1", "bucket": "data", "path": "pid_1/B/", "wavelength_min_nm": 853.9,
        "wavelength_max_nm": 854.6, "bands": ["Ca II 854.2"], "qualifying": True,
    }  # fmt: skip
    assert (manifest["datasets"][0]["bands"], manifest["datasets"][2]["qualifying"]) == ([], False)
    assert manifest["fetch"] == "globus transfer --batch /w/op.1/globus-batch.txt SRC DST"
    assert fetched(bundle.batch(manifest, ENDS)) == [
        ["--recursive", "/data/pid_1/A/", "/l2/in puts/op.1/A/"],
        ["--recursive", "/data/pid_1/B/", "/l2/in puts/op.1/B/"],
    ]


@pytest.mark.parametrize("setting", ["globus_source", "globus_destination"])
def test_without_both_ends_the_paths_are_right_and_the_missing_setting_is_named(setting: str) -> None:
    given: dict[str, Any] = {"globus_source": "SRC", "globus_destination": "DST:/in"} | {setting: None}
    manifest = made(described(dataset("A")), Preprocess(**given))
    text = bundle.batch(manifest, Preprocess(**given))
    assert manifest["fetch"] is None
    assert f"no preprocess.{setting}:" in text
    folder = "/in/" if given["globus_destination"] else ""
    assert fetched(text) == [["--recursive", "/data/pid_1/A/", f"{folder}op.1/A/"]]


def test_a_dataset_of_no_bucket_or_proposal_is_named_and_not_fetched() -> None:
    text = bundle.batch(
        made(described(dataset("A", bucket=None), dataset("B", primaryProposalId=None))), ENDS
    )
    assert fetched(text) == []
    assert "# A: the store names no bucket" in text
    assert "# B: the store names no bucket" in text


@given(st.lists(st.one_of(st.text(min_size=1), st.sampled_from(["..", "a\n--x", "#", "'", "~", "/etc", "\u2028"])),
                min_size=4, max_size=4))  # fmt: skip
def test_no_id_can_end_a_line_or_leave_its_folder(ids: list[str]) -> None:
    op_id, dataset_id, bucket, proposal = [i.encode("utf-8", "replace").decode() for i in ids]
    hostile = described(dataset(dataset_id, bucket=bucket, primaryProposalId=proposal), op_id=op_id)
    ((option, source, target),) = fetched(bundle.batch(made(hostile), ENDS))
    assert option == "--recursive"
    for path, depth in ((source, 5), (target, 6)):
        parts = path.split("/")
        assert len(parts) == depth
        assert not {".", "..", "~"} & set(parts)
        assert path.startswith("/")
        assert path.endswith("/")


def test_the_same_op_gives_the_same_bytes_and_every_invertible_op_its_bundle(
    l2inv: Commands, tmp_path: Path
) -> None:
    l2inv.settings["preprocess"] |= {"globus_source": "SRC", "globus_destination": "DST:/in"}
    l2inv.save()
    l2inv("scan")
    l2inv("qualify", "--as-of", NOW.isoformat())
    l2inv("preprocess")
    ops = [op["op_id"] for op in l2inv.json("list", "--state", "preprocessed")["ops"]]
    for op in ops:
        folder = tmp_path / "work" / op
        manifest = json.loads((folder / "manifest.json").read_text())
        shown = l2inv.json("show", op)
        good = [
            p["instrument_program_id"] for p in shown["verdict"]["instrument_programs"] if p["invertible"]
        ]
        assert manifest["instrument_programs"] == good
        used = [d for d in manifest["datasets"] if d["qualifying"]]
        assert {d["instrument_program_id"] for d in used} == set(good)
        assert "Fe I 630.3" in {b for d in used for b in d["bands"]}
        assert len(fetched((folder / "globus-batch.txt").read_text())) == len(used)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        description = json.loads((folder / "op.json").read_text())
        bundle.write(
            folder,
            description,
            Settings(preprocess=Preprocess(globus_source="SRC", globus_destination="DST:/in")),
        )
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_file_is_replaced_and_never_written_over(tmp_path: Path) -> None:
    path, reader = tmp_path / "op.json", tmp_path / "as a reader has it open"
    replace(path, "before")
    reader.hardlink_to(path)
    replace(path, "after")
    assert (path.read_text(), reader.read_text()) == ("after", "before")
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        replace(path, "half")
    assert {p.name for p in tmp_path.iterdir()} == {path.name, reader.name}


def test_the_bundle_is_on_the_disk_before_an_event_names_it(
    l2inv: Commands, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash of the machine, a file that was renamed without fsync may be there and empty."""
    synced: set[tuple[int, int]] = set()  # inode, and how many events there were
    fsync = os.fsync

    def noted(number: int) -> None:
        fsync(number)
        row = connection.execute("select count(*) as events from l2inv.event where kind = 'preprocessed'")
        found = row.fetchone()
        assert found
        synced.add((os.fstat(number).st_ino, found["events"]))

    l2inv("scan")
    l2inv(*AS_OF)
    monkeypatch.setattr(os, "fsync", noted)
    l2inv("preprocess")
    events = connection.execute(
        "select detail ->> 'folder' as folder from l2inv.event where kind = 'preprocessed' order by event_id"
    ).fetchall()
    assert events
    for before, event in enumerate(events):
        folder = Path(event["folder"])
        for path in (folder / bundle.DESCRIPTION, folder / bundle.MANIFEST, folder / bundle.BATCH, folder):
            times = [number for inode, number in synced if inode == path.stat().st_ino]
            assert times and min(times) <= before, path
