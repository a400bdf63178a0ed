"""From a claim to AVAILABLE: files brought, catalogers told, the store asked; no identifier is typed by hand."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from l2inv.database.connection import Connection
from l2inv.products.issued import Dataset, Issued
from l2inv.sample.cataloger import cataloging
from l2inv.sample.server import Store
from tests.helpers.commands import NOW, Commands
from tests.helpers.products import make
from tests.helpers.rabbitmq import Broker
from tests.helpers.steps import cause, kinds

Values = dict[str, Any]
FRAMES = 3
ARMS = {23: 40}


@pytest.fixture
def op(l2inv: Commands, store: Store, tmp_path: Path) -> str:
    """An OP that somebody works on, with one ViSP program whose datasets observed iron while the products were made."""
    for dataset in store.datasets:
        if dataset["instrumentName"] == "VISP":
            frames = 4 * (FRAMES + 1)
            dataset |= {
                "startTime": make.BEGIN.replace(tzinfo=None).isoformat(), "endTime": "2022-06-03T20:00:00",
                "frameCount": frames, "wavelengthMin": 629.5, "wavelengthMax": 630.9, "spectralLines": None,
                "health": {"good": frames, "bad": None, "ill": None, "unknown": None}, "aoLocked": frames,
                "gosStatus": {"open": frames, "opening": None, "closed": None, "closing": None, "undefined": None},
            }  # fmt: skip
    l2inv.settings["publish"] = {
        "mounts": [{"uri": "globus://science/", "path": str(tmp_path / "science")}],
        "transfer": {
            "command": ["sh", "-c", "mkdir -p \"$2\" && cp -r \"$1/.\" \"$2/\"", "sh", "{source}",
                        str(tmp_path / "archive/{bucket}/{destination}")],
            "destination_uri": str(tmp_path / "archive/{bucket}/{destination}"),
        },
    }  # fmt: skip
    l2inv.save()
    l2inv("scan")
    l2inv("qualify", "--as-of", NOW.isoformat())
    l2inv("preprocess")
    found = l2inv.json("next", "--claim")["claimed"]
    return str(found["op_id"])


def deliver(l2inv: Commands, op: str, folder: Path) -> None:
    """Make the products of each of the OP's inversions under its names, and the ready event."""
    shown = l2inv.json("show", op)
    inversions = shown["inversions"]
    for one in inversions:
        used = sorted(
            d["dataset_id"]
            for d in shown["datasets"]
            if d["instrument_program_id"] == one["instrument_program_id"]
        )
        of = Issued(
            one["inversion_id"],
            one["folder"].split("/")[0],
            op,
            one["instrument_program_id"],
            tuple(map(Dataset, used)),
        )
        (folder / one["folder"]).mkdir(parents=True)
        make.science(folder / one["folder"], FRAMES, arms=ARMS)
        make.level2(folder / one["folder"], of, FRAMES, arms=ARMS)
    ready = folder / "ready.yaml"
    said = {
        "op_id": op,
        "software": {"name": "DeSIRe", "version": "4.1"},
        "inversions": [
            {"instrument_program_id": one["instrument_program_id"], "outputs": [{"uri": f"globus://science/{one['folder']}/"}]}
            for one in inversions
        ],
    }  # fmt: skip
    ready.write_text(yaml.safe_dump(said))
    l2inv("mark-inverted", "--from", str(ready))


def standing(l2inv: Commands, op: str) -> dict[str, str]:
    (found,) = (one for one in l2inv.json("publish", "--dry-run")["ops"] if one["op_id"] == op)
    return {step["step"]: step["standing"] for step in found["steps"]}


def test_files_are_brought_once_and_compared_and_the_store_is_told_after_that(
    l2inv: Commands, op: str, store: Store, tmp_path: Path
) -> None:
    deliver(l2inv, op, tmp_path / "science")
    assert l2inv("check", op).exit_code == 0
    assert standing(l2inv, op)["transfer"] == "to do"
    l2inv("publish")
    (one,) = l2inv.json("show", op)["inversions"]
    (held,) = store.inversions.values()
    there = tmp_path / "archive" / held["bucket"] / one["folder"]
    assert (there / one["asdf_file"]).is_file()
    assert held["inversionId"] == one["inversion_id"]
    assert kinds(l2inv, op)[-6:] == [
        "inverted", "transfer_started", "transferred", "inversion_named", "inversion_created", "published",
    ]  # fmt: skip


def test_what_is_wrong_with_the_files_is_found_before_anybody_is_told(
    l2inv: Commands, op: str, store: Store, tmp_path: Path
) -> None:
    deliver(l2inv, op, tmp_path / "science")
    (one,) = l2inv.json("show", op)["inversions"]
    (tmp_path / "science" / one["folder"] / one["asdf_file"]).unlink()
    found = l2inv("check", op, "--json", expect=5).json["inversions"][0]["findings"]
    assert ("missing", one["asdf_file"]) in [(f["what"], f["file"]) for f in found]
    l2inv("publish", expect=4)
    assert f"products: {one['asdf_file']}: missing" in cause(l2inv, op)
    assert store.inversions == {}


def test_a_transfer_that_fails_is_begun_again_after_a_retry(
    l2inv: Commands, op: str, store: Store, tmp_path: Path
) -> None:
    deliver(l2inv, op, tmp_path / "science")
    command = l2inv.settings["publish"]["transfer"]["command"]
    l2inv.settings["publish"]["transfer"]["command"] = [
        "sh",
        "-c",
        "echo no room >&2; exit 3",
        "sh",
        *command[4:],
    ]
    l2inv.save()
    l2inv("publish", expect=4)
    assert "no room" in cause(l2inv, op)
    l2inv.settings["publish"]["transfer"]["command"] = command
    l2inv.save()
    l2inv("retry", op)
    assert l2inv.json("publish")["ops"]["done"] == 1
    assert kinds(l2inv, op).count("transfer_started") == 2


@pytest.mark.slow
def test_from_a_claim_to_available(
    l2inv: Commands, op: str, store: Store, tmp_path: Path, connection: Connection, broker: Broker
) -> None:
    deliver(l2inv, op, tmp_path / "science")
    l2inv.settings["publish"]["catalog"] = {"url": broker.url(), "batch_size": 2, "await_seconds": 0}
    l2inv.save()
    with broker.connected() as channel:
        broker.declare(channel)
        report = l2inv.json("publish")
        assert report["ops"] == {"done": 0, "failed": 0, "skipped": 1}
        assert "waiting for the catalog since" in report["warnings"][0]
        assert l2inv.json("show", op)["state"] == "inverted"
        assert standing(l2inv, op) == {
            "transfer": "done", "catalog": "done", "record": "done", "available": "waiting",
        }  # fmt: skip
        l2inv.settings["publish"]["catalog"]["await_seconds"] = 30
        l2inv.save()
        with cataloging(broker.url(), store.objects.append, store.frames.append) as cataloger:
            assert l2inv.json("publish")["ops"]["done"] == 1
        assert cataloger.refused == []
    (one,) = l2inv.json("show", op)["inversions"]
    assert [o["groupId"] for o in store.objects] == [one["inversion_id"]] == list(store.inversions)
    assert len(store.frames) == FRAMES, "each file was told of once"
    assert kinds(l2inv, op).count("cataloged") == 3
    assert l2inv.json("show", op)["state"] == "published"
