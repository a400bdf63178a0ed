"""The intermediate files: compared with the record, kept until an OP is published, then removed."""

import sys
import time
from pathlib import Path

import pytest

from l2inv.database.connection import Connection
from l2inv.record import event_log
from tests.helpers.commands import NOW, Commands


@pytest.fixture
def prepared(l2inv: Commands) -> list[str]:
    code = "import pathlib, sys; [pathlib.Path(sys.argv[1], n).write_text(n) for n in ('a', 'b')]"
    l2inv.settings["preprocess"]["command"] = [sys.executable, "-c", code, "{folder}"]
    l2inv.save()
    l2inv("scan")
    l2inv("qualify", "--as-of", NOW.isoformat())
    l2inv("preprocess")
    return [op["op_id"] for op in l2inv.json("next", "-n", "100")["ops"]]


@pytest.fixture
def published(l2inv: Commands, prepared: list[str]) -> str:
    l2inv("claim", prepared[0])
    l2inv("mark-inverted", prepared[0])
    l2inv("publish")
    time.sleep(0.1)  # the shortest length of time that clean takes is 0.06 s
    return prepared[0]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


NOW_AND_THEN = ["--older-than", "0.001m"]


def test_files_are_ok_until_they_change_go_or_come(l2inv: Commands, prepared: list[str], work: Path) -> None:
    op, folder = prepared[0], work / prepared[0]
    found = l2inv.json("files", op)
    assert {file["path"]: file["standing"] for file in found["files"]} == dict.fromkeys(
        ["a", "b", "globus-batch.txt", "manifest.json", "op.json", "preprocess.log"], "ok"
    )
    (folder / "a").write_text("A")
    (folder / "b").unlink()
    (folder / "b").symlink_to("/etc/passwd")
    (folder / "c").write_text("c")
    files = {file["path"]: file for file in l2inv.json("files", op)["files"]}
    assert {path: files[path]["standing"] for path in "abc"} == {"a": "changed", "b": "missing", "c": "new"}
    assert (files["a"]["size_bytes"], files["b"]["size_bytes"]) == (1, 1)
    assert "changed" in l2inv("files", op).stdout


def test_an_op_that_was_not_preprocessed_has_no_files(l2inv: Commands) -> None:
    l2inv("scan")
    op = l2inv.json("list")["ops"][0]["op_id"]
    nothing = {"op_id": op, "folder": None, "files": [], "cleaned_at": None, "inversions": []}
    assert l2inv.json("files", op) == nothing


def test_only_what_was_published_long_enough_ago_is_removed_and_that_is_on_record(
    l2inv: Commands, prepared: list[str], published: str, work: Path
) -> None:
    assert l2inv.json("clean", "--older-than", "1d")["ops"] == []
    dry = l2inv.json("clean", *NOW_AND_THEN, "--dry-run")
    assert [op["op_id"] for op in dry["ops"]] == [published]
    assert (work / published / "a").exists()
    (op,) = l2inv.json("clean", *NOW_AND_THEN)["ops"]
    assert op == dry["ops"][0]
    assert op["files"] > 6
    assert not (work / published).exists()
    assert {path.name for path in work.iterdir()} - {".removed"} == set(prepared) - {published}
    last = l2inv.json("history", published)["events"][-1]
    assert (last["kind"], last["detail"]) == (
        "cleaned",
        {key: op[key] for key in ("folder", "files", "bytes")},
    )
    assert "removed" in l2inv("history", published).stdout
    assert l2inv.json("clean", *NOW_AND_THEN)["ops"] == []
    swept = l2inv.json("files", published)
    assert (swept["files"], swept["cleaned_at"] is not None) == ([], True)
    assert "cleaned 20" in l2inv("files", published).stdout


def test_links_are_removed_and_not_followed(
    l2inv: Commands, published: str, work: Path, tmp_path: Path
) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "x").touch()
    (work / published / "link").symlink_to(tmp_path / "precious")
    l2inv("clean", *NOW_AND_THEN)
    assert not (work / published).exists()
    assert (tmp_path / "precious" / "x").exists()


def test_a_folder_that_is_a_link_is_kept_and_reported(
    l2inv: Commands, published: str, work: Path, tmp_path: Path
) -> None:
    (work / published).rename(tmp_path / "moved")
    (work / published).symlink_to(tmp_path / "moved")
    assert "is not a folder that l2inv created" in l2inv("clean", *NOW_AND_THEN, expect=1).stderr
    assert (tmp_path / "moved" / "a").exists()
    assert l2inv.json("history", published)["events"][-1]["kind"] == "published"


@pytest.mark.parametrize("told", [True, False])
def test_what_a_killed_run_left_behind_is_removed_and_reported_once(
    l2inv: Commands, published: str, work: Path, connection: Connection, told: bool
) -> None:
    (work / ".removed").mkdir()
    (work / published).rename(work / ".removed" / published)
    if told:
        seq = l2inv.json("history", published)["events"][-1]["seq"]
        detail = {"folder": str(work / published), "files": 1, "bytes": 1}
        event_log.add(connection, [event_log.Event(published, seq, "cleaned", None, detail)], "cron", None)
    assert [op["op_id"] for op in l2inv.json("clean", *NOW_AND_THEN)["ops"]] == [published]
    kinds = [event["kind"] for event in l2inv.json("history", published)["events"]]
    assert kinds.count("cleaned") == 1
    assert list((work / ".removed").iterdir()) == []
