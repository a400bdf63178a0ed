"""inbox: every ready file is recorded once, none is lost, and none is read half-written."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import yaml

from l2inv.config.yamlfile import MAX_BYTES
from tests.helpers.commands import NOW, READY_TEXT, Commands
from tests.helpers.steps import kinds
from tests.helpers.waiting import WAITS_FOR_A_LOCK, until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "drop here"
    folder.mkdir()
    return folder


@pytest.fixture
def held(l2inv: Commands, ready: list[str]) -> list[str]:
    for op in ready[:2]:
        l2inv("claim", op)
    return ready[:2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run(l2inv: Commands, folder: Path, expect: int = 0) -> dict[str, int]:
    files: dict[str, int] = l2inv.json("inbox", str(folder), actor="cron", expect=expect)["files"]
    return files


def test_a_good_file_is_recorded_for_the_holder_and_filed_under_done(
    l2inv: Commands, held: list[str], folder: Path
) -> None:
    (folder / "a.yaml").write_text(f"op_id: {held[0]}\nnote: fine\n{READY_TEXT}")
    (folder / "b.json").write_text(
        json.dumps({"op_id": held[1], **yaml.safe_load(READY_TEXT), "note": "\U0001f600 \\ud83d\\ude00 /"})
    )
    report = l2inv.json("inbox", str(folder), actor="cron")
    assert (report["stage"], report["rejected"]) == ("inbox", [])
    assert report["files"] == {"done": 2, "rejected": 0, "waiting": 0}
    assert names(folder) == ["done", "rejected"]
    assert names(folder / "done") == ["a.yaml", "b.json"]
    event = l2inv.json("history", held[0])["events"][-1]
    assert (event["actor"], event["detail"]["inverted_by"], event["run_id"]) == (
        "cron",
        "han",
        report["run_id"],
    )
    assert l2inv.json("history", held[1])["events"][-1]["detail"]["note"] == "\U0001f600 \\ud83d\\ude00 /"


def test_a_bad_file_is_rejected_with_the_reason_in_a_file_next_to_it(
    l2inv: Commands, ready: list[str], held: list[str], folder: Path
) -> None:
    missing = "software: {name: x, version: '1'}\noutputs: [{uri: /no/such/file}]\n"
    bad = {
        "unknown.yaml": ("op_id: no-such-op\n", "is unknown"),
        "free.yaml": (f"op_id: {ready[-1]}\n", "is preprocessed: it cannot be marked inverted"),
        "another.yaml": (f"op_id: {held[0]}\ninverted_by: ann\n", "is held by han"),
        "key.yaml": (
            f"op_id: {held[0]}\ndataset: [X]\nlinse: []\n", "dataset: unknown key, the nearest known one is datasets",
        ),
        "dataset.yaml": (f"op_id: {held[0]}\ndatasets: [X]\n", "has no dataset X"),
        "output.yaml": (f"op_id: {held[0]}\n{missing}", "/no/such/file: is missing"),
        "yaml.yaml": ("op_id: [\n", "line "),
        "empty.yaml": ("", "op_id: missing"),
        "large.yaml": ("x" * (MAX_BYTES + 1), "larger than"),
    }  # fmt: skip
    for name, (text, _) in bad.items():
        (folder / name).write_text(text)
    answer = l2inv("-q", "inbox", str(folder), actor="cron", expect=4)
    assert names(folder / "rejected") == sorted(
        f"{name}{more}" for name in bad for more in ("", ".reason.txt")
    )
    for name, (text, why) in bad.items():
        (said,) = re.findall(rf"^l2inv: inbox: {name} rejected: (.*)$", answer.stderr, re.MULTILINE)
        assert why in said
        reason = (folder / "rejected" / f"{name}.reason.txt").read_text()
        assert (why in reason, reason.count("\n")) == (True, 1)
        assert (folder / "rejected" / name).read_text() == text
    assert l2inv.json("show", held[0])["state"] == "working"
    assert run(l2inv, folder) == {"done": 0, "rejected": 0, "waiting": 0}


def test_a_file_dropped_twice_is_recorded_once_and_overwrites_nothing(
    l2inv: Commands, held: list[str], folder: Path
) -> None:
    for note, expect in (("one", 0), ("one", 0), ("two", 4), ("three", 4)):
        (folder / "a.yaml").write_text(f"op_id: {held[0]}\nnote: {note}\n{READY_TEXT}")
        run(l2inv, folder, expect)
    assert kinds(l2inv, held[0]).count("inverted") == 1
    assert names(folder / "done") == ["a.1.yaml", "a.yaml"]
    assert names(folder / "rejected") == ["a.1.yaml", "a.1.yaml.reason.txt", "a.yaml", "a.yaml.reason.txt"]


def test_only_plain_files_with_the_names_of_ready_files_are_taken(
    l2inv: Commands, held: list[str], folder: Path, tmp_path: Path
) -> None:
    text = f"op_id: {held[0]}\n{READY_TEXT}"
    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text(text)
    for name in (".a.yaml", "a.yaml.part", "a.txt"):
        (folder / name).write_text(text)
    (folder / "link.yaml").symlink_to(elsewhere)
    (folder / "folder.yaml").mkdir()
    os.mkfifo(folder / "pipe.yaml")
    answer = l2inv("inbox", str(folder), "--json", actor="cron", expect=4)
    assert answer.json["files"] == {"done": 0, "rejected": 2, "waiting": 0}
    assert "link.yaml: is not a regular file" in answer.stderr
    assert "pipe.yaml: is not a regular file" in answer.stderr
    assert names(folder) == sorted([".a.yaml", "a.yaml.part", "a.txt", "folder.yaml", "done", "rejected"])
    assert (folder / "rejected" / "link.yaml").is_symlink()
    assert elsewhere.read_text() == text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link away")
@pytest.mark.parametrize("place", ["done", "rejected"])
def test_no_file_is_filed_where_a_link_of_somebody_elses_leads(
    l2inv: Commands, held: list[str], folder: Path, tmp_path: Path, place: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = folder / place
    link.symlink_to(elsewhere)
    os.chown(link, 65534, 65534, follow_symlinks=False)
    (folder / "bad.yaml").write_text("nonsense: 1\n")
    (folder / "good.yaml").write_text(f"op_id: {held[0]}\n{READY_TEXT}")
    answer = l2inv("inbox", str(folder), expect=1)
    assert (
        answer.stderr
        == f"l2inv: {link}: is a link that another user made; remove it: l2inv creates the folder\n"
    )
    assert list(elsewhere.iterdir()) == []
    assert (folder / "bad.yaml").exists()
    os.chown(link, 0, 0, follow_symlinks=False)  # the operator's own, to where there is room
    l2inv("inbox", str(folder), expect=4)
    assert {path.name for path in elsewhere.iterdir()} in ({"good.yaml"}, {"bad.yaml", "bad.yaml.reason.txt"})


def test_a_reason_is_written_through_no_link(l2inv: Commands, held: list[str], folder: Path) -> None:
    (folder / "rejected").mkdir()
    (folder / "precious").write_text("kept")
    (folder / "rejected" / "bad.yaml.reason.txt").symlink_to(folder / "precious")
    (folder / "bad.yaml").write_text("nonsense: 1\n")
    l2inv("inbox", str(folder), expect=4)
    assert (folder / "precious").read_text() == "kept"
    assert "unknown key" in (folder / "rejected" / "bad.yaml.reason.txt").read_text()


def test_an_id_that_was_cut_off_is_no_op(l2inv: Commands, held: list[str], folder: Path) -> None:
    (folder / "half.yaml").write_text(f"op_id: {held[0][:-2]}\n{READY_TEXT}")
    answer = l2inv("inbox", str(folder), actor="cron", expect=4)
    assert "is unknown" in answer.stderr
    assert l2inv.json("show", held[0])["state"] == "working"


def test_a_file_of_an_earlier_cycle_that_turns_up_again_has_no_effect(
    l2inv: Commands, held: list[str], folder: Path
) -> None:
    (folder / "a.yaml").write_text(f"op_id: {held[0]}\n{READY_TEXT}")
    run(l2inv, folder)
    l2inv("publish")
    l2inv("reopen", held[0], "--reason", "a better code")
    l2inv("qualify", "--as-of", NOW.isoformat())
    l2inv("preprocess")
    l2inv("claim", held[0])
    (folder / "done" / "a.yaml").rename(folder / "again.yaml")
    assert run(l2inv, folder) == {"done": 1, "rejected": 0, "waiting": 0}
    assert l2inv.json("show", held[0])["state"] == "working"
    again = l2inv("mark-inverted", "--from", str(folder / "done" / "again.yaml"))
    assert "already" in again.stdout
    assert l2inv.json("show", held[0])["state"] == "working"


def test_a_file_that_is_dropped_again_after_unmark_is_read_again(
    l2inv: Commands, held: list[str], folder: Path
) -> None:
    text = f"op_id: {held[0]}\n{READY_TEXT}"
    for times in (1, 2):
        (folder / "a.yaml").write_text(text)
        assert run(l2inv, folder)["done"] == 1
        assert l2inv.json("show", held[0])["state"] == "inverted"
        assert kinds(l2inv, held[0]).count("inverted") == times
        (folder / "a.yaml").write_text(text)
        assert run(l2inv, folder)["done"] == 1
        assert kinds(l2inv, held[0]).count("inverted") == times, "dropped twice, it says nothing"
        l2inv("unmark", held[0])


def test_a_name_as_long_as_a_file_system_takes_and_one_that_is_no_text_are_filed(
    l2inv: Commands, held: list[str], folder: Path
) -> None:
    (folder / ("x" * 250 + ".yaml")).write_text("op_id: no-such-op\n")
    (folder / os.fsdecode(b"\xff\x1b[31m.yaml")).write_text("op_id: no-such-op\n")
    answer = l2inv("inbox", str(folder), actor="cron", expect=4)
    assert "\x1b" not in answer.stderr
    assert len(names(folder / "rejected")) == 4


def test_a_file_that_a_process_is_writing_waits_until_it_is_closed(
    l2inv: Commands, ready: list[str], held: list[str], folder: Path
) -> None:
    l2inv("claim", ready[2])
    held = ready[:3]
    code = (
        "import sys; f = open(sys.argv[1], 'w'); f.write(sys.argv[2]); f.flush(); print(flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(folder / "a.yaml"), f"op_id: {held[0]}\n{READY_TEXT}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "\n"
        assert run(l2inv, folder) == {"done": 0, "rejected": 0, "waiting": 1}
        assert l2inv.json("show", held[0])["state"] == "working"
        writer.communicate("\n")
    assert run(l2inv, folder) == {"done": 1, "rejected": 0, "waiting": 0}


@contextmanager
def blocked(url: str, when: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Make the statement that `when` names wait in the database for as long as this lasts."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "create or replace function wait_at_gate() returns trigger language plpgsql as "
            "$$ begin perform pg_advisory_xact_lock(4711); return null; end $$"
        )
        connection.execute(f"create trigger wait_here after {when} execute function wait_at_gate()")
        connection.execute("select pg_advisory_lock(4711)")
        yield connection


def test_a_run_killed_while_it_records_leaves_the_file_for_the_next_one(
    l2inv: Commands, held: list[str], folder: Path, url: str
) -> None:
    (folder / "a.yaml").write_text(f"op_id: {held[0]}\n{READY_TEXT}")
    with blocked(url, "insert on l2inv.event for each statement") as gate:
        with l2inv.start("inbox", str(folder), actor="cron") as process:
            until(lambda: gate.execute(WAITS_FOR_A_LOCK).fetchone() is not None)
            assert l2inv("inbox", str(folder), actor="cron", expect=75).stdout == ""
            process.send_signal(signal.SIGKILL)
        assert names(folder) == ["a.yaml", "done", "rejected"]
        gate.execute("select pg_advisory_unlock(4711)")
    for _ in range(1000):
        if l2inv("inbox", str(folder), actor="cron", expect=None).exit_code != 75:
            break
    assert names(folder / "done") == ["a.yaml"]
    assert kinds(l2inv, held[0]).count("inverted") == 1


def test_a_file_recorded_and_not_moved_is_moved_by_the_next_run(
    l2inv: Commands, held: list[str], folder: Path
) -> None:
    (folder / "a.yaml").write_text(f"op_id: {held[0]}\n{READY_TEXT}")
    code = (
        "import os, signal, sys; from pathlib import Path; from l2inv.stages.mark_inverted import inbox; from l2inv.cli import main\n"
        "inbox._move = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "main(sys.argv[1:])"
    )
    argv = ["--config", str(l2inv.config), "--actor", "cron", "inbox", str(folder)]
    done = subprocess.run([sys.executable, "-c", code, *argv], check=False)
    assert done.returncode == -signal.SIGKILL
    assert l2inv.json("show", held[0])["state"] == "inverted"
    assert (folder / "a.yaml").exists()
    assert run(l2inv, folder) == {"done": 1, "rejected": 0, "waiting": 0}
    assert kinds(l2inv, held[0]).count("inverted") == 1


def test_files_dropped_while_it_runs_again_and_again_are_all_taken_once(
    l2inv: Commands, ready: list[str], held: list[str], folder: Path
) -> None:
    l2inv("claim", ready[2])
    held = ready[:3]
    code = (
        "import os, sys\n"
        "folder, *ops = sys.argv[1:]\n"
        "for n in range(30):\n"
        "    part = f'{folder}/{n:02}.part'\n"
        "    with open(part, 'w') as f: f.write(f'op_id: {ops[n % len(ops)]}\\n'); f.flush(); "
        f"f.write({READY_TEXT!r})\n"
        "    os.rename(part, f'{folder}/{n:02}.yaml')\n"
    )
    done = 0
    with subprocess.Popen([sys.executable, "-c", code, str(folder), *held]) as dropper:
        while dropper.poll() is None:
            done += run(l2inv, folder)["done"]
    done += run(l2inv, folder)["done"]
    assert (done, len(names(folder / "done")), names(folder)) == (30, 30, ["done", "rejected"])
    assert all(kinds(l2inv, op).count("inverted") == 1 for op in held)


def test_a_failure_that_is_not_the_files_leaves_it_where_it_is(
    l2inv: Commands, held: list[str], folder: Path, tmp_path: Path
) -> None:
    assert "no such folder" in l2inv("inbox", str(tmp_path / "nowhere"), expect=1).stderr
    l2inv.settings["publish"] = {"mounts": [{"uri": "globus://l2/", "path": str(tmp_path / "unmounted")}]}
    l2inv.save()
    (folder / "a.yaml").write_text(f"op_id: {held[0]}\n{READY_TEXT.replace('science/l2', 'l2/x')}")
    (folder / "b.yaml").write_text(f"op_id: {held[1]}\n{READY_TEXT}")
    assert "a.yaml: " in l2inv("inbox", str(folder), expect=1).stderr
    assert (folder / "a.yaml").exists()
    assert names(folder / "done") == ["b.yaml"]
    (tmp_path / "unmounted").mkdir()
    (tmp_path / "unmounted" / "x").write_text("")
    assert run(l2inv, folder) == {"done": 1, "rejected": 0, "waiting": 0}
