"""From a claim to AVAILABLE: files transferred and cataloged, inversions recorded, no id typed by hand."""

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from l2inv.database.connection import Connection
from l2inv.products.issued import Dataset, Issued
from l2inv.sample.cataloger import cataloging
from l2inv.sample.server import Store
from tests.helpers.commands import NOW, Commands
from tests.helpers.disks import fill, small_disk
from tests.helpers.products import make
from tests.helpers.publisher_kills import killed_at
from tests.helpers.rabbitmq import Broker
from tests.helpers.steps import cause, kinds, visp
from tests.helpers.warm import Warm

Values = dict[str, Any]
FRAMES = 3
ARMS = {23: 40}


@pytest.fixture
def op(l2inv: Commands, store: Store, tmp_path: Path) -> str:
    """The one OP, on which somebody works, with one ViSP program whose datasets observed iron while the products were made."""
    store.datasets = visp(store, store.datasets[0]["observingProgramExecutionId"])
    for dataset in store.datasets:
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


def produce(l2inv: Commands, op: str, folder: Path) -> Path:
    """Make the products of each of the OP's inversions under its names, and return the ready file that names them."""
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
    return ready


def deliver(l2inv: Commands, op: str, folder: Path) -> None:
    l2inv("mark-inverted", "--from", str(produce(l2inv, op, folder)))


def asdf_file(l2inv: Commands, op: str) -> str:
    (one,) = l2inv.json("show", op)["inversions"]
    return f"{one['folder']}/{one['asdf_file']}"


def standing(l2inv: Commands, op: str) -> dict[str, str]:
    (found,) = (one for one in l2inv.json("publish", "--dry-run")["ops"] if one["op_id"] == op)
    return {step["step"]: step["standing"] for step in found["steps"]}


def test_files_are_transferred_once_and_compared_before_the_store_is_told(
    l2inv: Commands, op: str, store: Store, tmp_path: Path
) -> None:
    deliver(l2inv, op, tmp_path / "science")
    assert l2inv("check", op).exit_code == 0
    (dry,) = l2inv.json("publish", "--dry-run")["ops"]
    assert dry["ready"]
    assert dry["checks"][-1] == {"name": "products", "result": "pass", "detail": "1 inversion checked"}
    assert standing(l2inv, op)["transfer"] == "to do"
    assert "transfer done" not in l2inv("show", op).stdout
    l2inv("publish")
    shown = l2inv.json("show", op)
    (one,) = shown["inversions"]
    assert {step["step"]: step["standing"] for step in shown["steps"]} == {
        "transfer": "done", "catalog": "not configured", "record": "done", "available": "not configured",
    }  # fmt: skip
    assert f"{one['inversion_id']}: transfer done 20" in " ".join(l2inv("show", op).stdout.split())
    (held,) = store.inversions.values()
    there = tmp_path / "archive" / held["bucket"] / one["folder"]
    assert (there / one["asdf_file"]).is_file()
    assert held["inversionId"] == one["inversion_id"]
    assert kinds(l2inv, op)[-6:] == [
        "inverted", "transfer_started", "transferred", "inversion_named", "inversion_created", "published",
    ]  # fmt: skip


def test_faults_of_the_files_are_found_before_anything_is_announced(
    l2inv: Commands, op: str, store: Store, tmp_path: Path
) -> None:
    deliver(l2inv, op, tmp_path / "science")
    (one,) = l2inv.json("show", op)["inversions"]
    (tmp_path / "science" / one["folder"] / one["asdf_file"]).unlink()
    found = l2inv("check", op, "--json", expect=5).json["inversions"][0]["findings"]
    assert ("missing", one["asdf_file"]) in [(f["what"], f["file"]) for f in found]
    (dry,) = l2inv.json("publish", "--dry-run")["ops"]
    assert not dry["ready"]
    assert dry["checks"][-1]["detail"].startswith(f"{one['asdf_file']}: missing")
    l2inv("publish", expect=4)
    assert f"products: {one['asdf_file']}: missing" in cause(l2inv, op)
    assert store.inversions == {}


def test_a_fault_of_every_frame_is_shown_once_and_named_each_time_in_json(
    l2inv: Commands, op: str, tmp_path: Path
) -> None:
    folder = produce(l2inv, op, tmp_path / "science").parent
    for frame in folder.rglob("*_L2.fits"):
        frame.write_bytes(frame.read_bytes() + b"x" * 2880)
    said = l2inv("check", op, "--files", str(folder), expect=5).stdout
    assert f"_L2.fits and {FRAMES - 1} more" in said
    assert said.count("structure") == 1
    (found,) = l2inv("check", op, "--files", str(folder), "--json", expect=5).json["inversions"]
    assert [finding["what"] for finding in found["findings"]].count("structure") == FRAMES


@pytest.mark.slow  # twelve pictures take some seconds
def test_a_page_shows_the_findings_and_a_picture_of_each_quantity(
    l2inv: Commands, op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    folder = produce(l2inv, op, tmp_path / "science").parent
    page = tmp_path / "page.html"
    command = ("check", op, "--files", str(folder), "--html", str(page))
    assert str(page) in l2inv(*command).stdout
    html = page.read_text()
    assert page.stat().st_mode & 0o777 == 0o600
    assert html.count("data:image/png;base64,iVBOR") == 12
    assert "Line-of-sight velocity: median" in html and "at log tau +0.80" in html
    (odd,) = l2inv.json("show", op)["inversions"]
    stray = folder / odd["folder"] / "<img src=x onerror=alert(1)>.fits"
    stray.write_bytes(b"")
    assert l2inv(*command, "--json", expect=5).json["inversions"][0]["findings"]
    html = page.read_text()
    assert "&lt;img src=x onerror=alert(1)&gt;.fits" in html and stray.name not in html
    page.write_text("kept")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = l2inv(*command, expect=1).stderr
    assert "nothing can be drawn without matplotlib; pip install 'l2inv[plots]'" in said
    assert page.read_text() == "kept"


def test_a_ready_event_is_refused_while_the_files_are_wrong(l2inv: Commands, op: str, tmp_path: Path) -> None:
    ready = produce(l2inv, op, tmp_path / "science")
    asdf = tmp_path / "science" / asdf_file(l2inv, op)
    content = asdf.read_bytes()
    asdf.unlink()
    before = kinds(l2inv, op)
    said = l2inv("mark-inverted", "--from", str(ready), expect=5).stderr
    assert f"products: {asdf.name}: missing" in said and f"l2inv check {op}" in said
    assert said.count("\n") == 1
    error = l2inv("mark-inverted", "--from", str(ready), "--json", expect=5).json["error"]
    assert error["code"] == 5 and asdf.name in error["message"]
    assert kinds(l2inv, op) == before
    asdf.write_bytes(content)
    assert l2inv("mark-inverted", "--from", str(ready)).stderr == ""
    detail = l2inv.json("history", op)["events"][-1]["detail"]
    assert detail["products_checked"] == [one["inversion_id"] for one in detail["inversions"]]


def test_the_inbox_rejects_a_ready_file_whose_products_are_wrong_and_names_what_is(
    l2inv: Commands, op: str, tmp_path: Path
) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    ready = produce(l2inv, op, tmp_path / "science")
    asdf = tmp_path / "science" / asdf_file(l2inv, op)
    content = asdf.read_bytes()
    asdf.unlink()
    (inbox / "a.yaml").write_bytes(ready.read_bytes())
    assert f"products: {asdf.name}: missing" in l2inv("inbox", str(inbox), expect=4).stderr
    assert f"{asdf.name}: missing" in (inbox / "rejected" / "a.yaml.reason.txt").read_text()
    asdf.write_bytes(content)
    (inbox / "a.yaml").write_bytes(ready.read_bytes())
    assert l2inv.json("inbox", str(inbox))["files"]["done"] == 1
    assert l2inv.json("show", op)["state"] == "inverted"


@pytest.mark.parametrize("why", ["no astropy", "nothing mounted", "not asked for"])
def test_products_that_cannot_be_checked_are_reported_in_one_line_and_nothing_fails(
    l2inv: Commands, op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    ready = produce(l2inv, op, tmp_path / "science")
    (tmp_path / "science" / asdf_file(l2inv, op)).unlink()
    expected = "products are not checked without astropy: pip install 'l2inv[products]'"
    if why == "no astropy":
        monkeypatch.setitem(sys.modules, "astropy", None)
    elif why == "nothing mounted":
        l2inv.settings["publish"]["mounts"] = []
        expected = "no folder of theirs with FITS or ASDF files is mounted"
    else:
        l2inv.settings["publish"]["check_products"] = False
        expected = ""
    l2inv.save()
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "a.yaml").write_bytes(ready.read_bytes())
    said = l2inv("inbox", str(inbox)).stderr
    assert expected in said and said.count("\n") == bool(expected)
    l2inv("unmark", op)
    said = l2inv("mark-inverted", "--from", str(ready)).stderr
    assert expected in said and said.count("\n") == bool(expected)
    assert "products_checked" not in l2inv.json("history", op)["events"][-1]["detail"]


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


def stops_and_fails_no_op(l2inv: Commands, op: str, words: str) -> None:
    before = kinds(l2inv, op)
    said = l2inv("publish", expect=1).stderr
    assert words in said and said.count("\n") == 1
    assert [
        kind for kind in kinds(l2inv, op)[len(before) :] if kind not in ("transfer_started", "transferred")
    ] == []
    assert l2inv.json("show", op)["state"] == "inverted"


def test_a_mount_that_is_gone_stops_the_stage_and_fails_no_op(
    l2inv: Commands, op: str, store: Store, tmp_path: Path
) -> None:
    deliver(l2inv, op, tmp_path / "science")
    (tmp_path / "science").rename(tmp_path / "elsewhere")
    stops_and_fails_no_op(l2inv, op, f"publish.mounts: {tmp_path}/science is not a readable folder")
    (tmp_path / "elsewhere").rename(tmp_path / "science")
    assert l2inv.json("publish")["ops"]["done"] == 1


def test_a_broker_that_is_down_stops_the_stage_and_fails_no_op(
    l2inv: Commands, op: str, store: Store, tmp_path: Path
) -> None:
    deliver(l2inv, op, tmp_path / "science")
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    l2inv.settings["publish"]["catalog"] = {"url": f"amqp://127.0.0.1:{port}/", "timeout_seconds": 5}
    l2inv.save()
    stops_and_fails_no_op(l2inv, op, f"catalog amqp://127.0.0.1:{port}/: Connection refused")
    assert store.inversions == {}, "the record comes after the catalog"
    del l2inv.settings["publish"]["catalog"]
    l2inv.save()
    assert l2inv.json("publish")["ops"]["done"] == 1
    assert kinds(l2inv, op).count("transfer_started") == 1, "the files were brought before"


def test_a_full_disk_stops_the_stage_and_fails_no_op(
    l2inv: Commands, op: str, store: Store, tmp_path: Path
) -> None:
    deliver(l2inv, op, tmp_path / "science")
    with small_disk(tmp_path / "small", 1) as disk:
        l2inv.settings["preprocess"]["work_dir"] = str(disk / "work")
        l2inv.save()
        (disk / "work").mkdir()
        filler = fill(disk)
        stops_and_fails_no_op(l2inv, op, "No space left on device")
        assert store.inversions == {}
        filler.unlink()
        assert l2inv.json("publish")["ops"]["done"] == 1


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
        assert ": available waiting for the catalog since 20" in " ".join(l2inv("show", op).stdout.split())
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
    told = " ".join(l2inv("history", op).stdout.split())
    files = len(list((tmp_path / "science" / one["folder"]).iterdir()))
    place = f"{next(iter(store.inversions.values()))['bucket']}/{one['folder']}"
    for words in (
        f"{one['inversion_id']} to {place}, from {tmp_path}/science/{one['folder']}",
        f"{one['inversion_id']}: {files} files, ",
        f"in {place}, compared there",
        f"{one['inversion_id']}: the catalog confirmed 2 files of 4 (conversation l2pub.",
        "the catalog confirmed 1 file of 4, the last of them",
        "to be created in the metadata store next",
        "in the metadata store since 20",
    ):
        assert words in told
    said = l2inv("withdraw", op, "--reason", "wrong continuum").stdout
    assert (
        f"the metadata store still holds its record, the catalog still lists {FRAMES + 1} files, its files stay in {place}"
        in " ".join(said.split())
    )
    assert kinds(l2inv, op).count("cataloged") == 3
    assert l2inv.json("show", op)["state"] == "published"


@pytest.mark.slow
@pytest.mark.parametrize("nth", range(9))
def test_killed_between_any_two_steps_each_file_is_catalogued_and_the_inversion_recorded_once(
    l2inv: Commands,
    op: str,
    store: Store,
    tmp_path: Path,
    connection: Connection,
    broker: Broker,
    nth: int,
    warm: Warm,
) -> None:
    """Killed while the n-th event is recorded, so after all that came before it was done."""
    deliver(l2inv, op, tmp_path / "science")
    l2inv.settings["publish"]["catalog"] = {"url": broker.url(), "batch_size": 2, "await_seconds": 30}
    l2inv.save()
    with broker.connected() as channel:
        broker.declare(channel)
        with cataloging(broker.url(), store.objects.append, store.frames.append) as cataloger:
            killed_at(("before event", nth), l2inv, store, connection, warm)
            if l2inv.json("show", op)["state"] == "inverted":
                assert l2inv.json("publish")["ops"]["done"] == 1
        assert cataloger.refused == []
    (one,) = l2inv.json("show", op)["inversions"]
    there = tmp_path / "archive" / str(next(iter(store.inversions.values()))["bucket"]) / one["folder"]
    sent = {path.name for path in there.iterdir() if path.name.startswith("INV_")}
    filed = [Path(row["objectKey"]).name for row in (*store.frames, *store.objects)]
    assert set(filed) == sent and len(sent) == FRAMES + 1
    assert len(filed) <= len(sent) + 2, "the one batch that was not recorded is sent again"
    assert list(store.inversions) == [one["inversion_id"]]
    happened = kinds(l2inv, op)
    assert [k for k in happened if k.startswith("inversion_") or k == "published"] == [
        "inversion_named", "inversion_created", "published",
    ]  # fmt: skip
    assert (happened.count("transferred"), happened.count("failed")) == (1, 0)
