"""Hostile text from the store, the command line and files: displayed, never interpreted."""

import copy
import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from l2inv.cli import main
from l2inv.sample.server import Fault, Store
from l2inv.stages.preprocess import bundle
from l2inv.wording import clean
from tests.helpers.commands import NOW, Answer, Commands, all_commands, subcommands
from tests.helpers.hostile import NEVER, TEXTS, one
from tests.helpers.listeners import Listener

ALL = " ".join(TEXTS.values())
MEGABYTE = "x\x1b[31m=\u202e" * 130_000


def harmless(answer: Answer, what: object) -> Answer:
    """Hold an answer to what every answer must be."""
    for said in (answer.stdout.replace("\r\n", "\n"), answer.stderr):
        found = NEVER.search(said)
        assert not found, f"{what}: {said[max(0, ((found and found.start()) or 0) - 80) :][:160]!r}"
        assert "Traceback" not in said, what
    assert "unexpected: " not in answer.stderr, f"{what}: {answer.stderr[:400]}"
    assert answer.exit_code in (0, 1, 2, 3, 4, 5, 10), what
    if "--json" in str(what):
        assert answer.stdout.count("\n") == 1, what
        json.loads(answer.stdout)
    return answer


def run(l2inv: Commands, *argv: str, actor: str = "han") -> Answer:
    return harmless(l2inv(*argv, actor=actor, expect=None), argv)


@pytest.fixture
def evil(l2inv: Commands, store: Store, ready: list[str]) -> list[str]:
    """OPs whose every text is hostile, judged to be invertible."""
    template = [d for d in store.datasets if d["observingProgramExecutionId"] == ready[0]]
    store.datasets = [
        dataset for name, text in TEXTS.items() for dataset in one(template, name, text)
    ] + store.datasets[:20]
    first = copy.deepcopy(template[0])
    store.datasets += [  # one for each that cannot be kept: a NUL, an id of a megabyte, text of a megabyte
        first | {"datasetId": f"{ALL[:80]}1", "observingProgramExecutionId": "a\0b"},
        first | {"datasetId": f"{ALL[:80]}2", "observingProgramExecutionId": MEGABYTE},
        first
        | {"datasetId": "LONG", "experimentDescription": MEGABYTE, "bucket": MEGABYTE, "productId": MEGABYTE},
        first | {"datasetId": "NEWS", "instrumentName": ALL},
    ]
    run(l2inv, "scan", "--allow-withdrawals")
    run(l2inv, "qualify", "--as-of", NOW.isoformat())
    return list(TEXTS.values())


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


def test_hostile_text_goes_through_every_command_and_is_shown_as_it_is(
    l2inv: Commands, evil: list[str], store: Store, listener: Listener, tmp_path: Path
) -> None:
    code = "import sys, pathlib; pathlib.Path(sys.argv[2], 'said').write_bytes(sys.argv[1].encode()); print('\\33[31m', sys.argv[1])"
    l2inv.settings["preprocess"]["command"] = [sys.executable, "-c", code, "{op_id}", "{folder}"]
    l2inv.settings["notifications"] = {
        "people": [{"name": "science", "addresses": [f"json://{listener.where}"]}]
    }
    l2inv.save()
    before = files_below(tmp_path)
    run(l2inv, "preprocess")
    work = tmp_path / "work"
    assert {path for path in files_below(tmp_path) - before if work not in path.parents} == set()
    assert not Path("evil").exists()
    assert not Path("/tmp/l2inv-evil").exists()
    for op in evil:
        folder = work / bundle.folder_name(op)
        assert folder.parent == work
        assert (folder / "said").read_bytes().decode() == op
    assert {bundle.unquoted(path.name) for path in work.iterdir()} >= set(evil)

    assert {op["op_id"] for op in l2inv.json("next", "-n", "100")["ops"]} >= set(evil)
    for op in evil:
        assert clean(op) in run(l2inv, "show", f"--actor={'ann'}", "--", op).stdout
        assert run(l2inv, "show", "--json", "--", op).json["op_id"] == op
        for command in ("explain", "files", "history"):
            run(l2inv, command, "--", op)
            assert run(l2inv, command, "--json", "--", op).json["op_id"] == op
        run(l2inv, "prioritize", "--priority", "1", f"--reason={op}", "--", op)
        run(l2inv, "hold", f"--reason={op}", "--", op)
        run(l2inv, "unhold", f"--reason={op}", "--", op)
        run(l2inv, "claim", "--", op)
        run(l2inv, "note", "--", op, op)
        run(l2inv, "hand-over", "--force", "--to", "ann", f"--reason={op}", "--", op)
        assert run(l2inv, "take-over", f"--reason={op}", "--", op).exit_code == 3
        run(l2inv, "release", f"--reason={op}", "--", op, actor="ann")
        run(l2inv, "claim", "--", op)
        said = (
            f"--output=globus:{op}",
            f"--software={op}",
            f"--software-version={op}",
            f"--line={op}",
            f"--note={op}",
        )
        marked = run(
            l2inv,
            "mark-inverted",
            *said,
            f"--asdf-object-key=pid/{op.replace(chr(47), chr(95))}.asdf",
            "--",
            op,
        )
        assert marked.exit_code == 0, marked
        shown = run(l2inv, "history", "--", op).stdout
        assert shown.count(clean(op)) >= 6
    run(l2inv, "publish", "--dry-run")
    run(l2inv, "publish")
    assert {held["primaryProposalId"] for held in store.inversions.values()} >= set(evil)
    for op in evil:
        run(l2inv, "withdraw", f"--reason={op}", "--", op)
        run(l2inv, "reopen", f"--reason={op}", "--", op)
    for row in csv.reader(io.StringIO(run(l2inv, "export", "--format", "csv").stdout, newline="")):
        assert not [cell for cell in row if cell[:1] in ("=", "+", "-", "@")]
    for line in run(l2inv, "export").stdout.splitlines():
        assert json.loads(line)["op_id"] in evil
    for argv in (
        ["list"], ["status"], ["next", "-n", "100"], ["quarantine"], ["near-misses"], ["criteria"], ["completeness"],
        ["overdue", "--as-of", "2200-01-01"], ["digest"], ["mine"], ["verify"], ["clean", "--older-than", "1m"], ["scan"],
    ):  # fmt: skip
        run(l2inv, *argv)
        run(l2inv, *argv, "--json")
    for record in run(l2inv, "quarantine", "--json").json["records"]:
        run(l2inv, "quarantine", record["key"])
    run(l2inv, "digest", "--send")
    for _, _, body in listener.heard:
        letter = json.loads(body)
        assert not NEVER.search(letter["title"] + letter["message"])
    assert run(l2inv, "verify").exit_code == 0


def test_an_id_that_is_too_long_once_it_is_encoded_is_set_aside_and_any_other_gets_its_folder(
    l2inv: Commands, store: Store, ready: list[str], tmp_path: Path
) -> None:
    template = [d for d in store.datasets if d["observingProgramExecutionId"] == ready[0]]
    good = ["/" * 83, "☃" * 27, "😀" * 20, "a" * 200, ".." * 40, "~" * 200]
    for number, op in enumerate([*good, "/" * 84, "☃" * 28, "😀" * 200, "%" * 200]):
        for dataset in copy.deepcopy(template):
            ids = {name: f"{dataset[name]}{number}" for name in ("datasetId", "productId")}
            store.datasets.append(dataset | ids | {"observingProgramExecutionId": op})
    aside = l2inv.json("scan")["datasets"]["quarantined"]
    assert aside == 3 + 4 * len(template)
    run(l2inv, "qualify", "--as-of", NOW.isoformat())
    assert run(l2inv, "preprocess").exit_code == 0
    assert {bundle.unquoted(path.name) for path in (tmp_path / "work").iterdir()} == {*ready, *good}
    reasons = [record["reason"] for record in l2inv.json("quarantine")["records"]]
    assert sum("too long for the name of a folder" in reason for reason in reasons) == 4 * len(template)


def test_a_failed_command_that_prints_escapes_is_reported_without_them(
    l2inv: Commands, evil: list[str], tmp_path: Path
) -> None:
    code = "import sys; sys.stdout.write(sys.argv[1]); sys.stdout.buffer.write(b'\\xff\\x00'); sys.exit(1)"
    l2inv.settings["preprocess"]["command"] = [sys.executable, "-c", code, ALL]
    l2inv.save()
    assert run(l2inv, "preprocess").exit_code == 4
    for op in evil:
        assert run(l2inv, "show", "--json", "--", op).json["state"] == "error"
        run(l2inv, "show", "--", op)
        run(l2inv, "history", "--", op)
    run(l2inv, "digest")


@pytest.mark.parametrize("status", [200, 500])
def test_the_stores_own_words_are_printed_without_control_characters(
    l2inv: Commands, store: Store, status: int
) -> None:
    for text in (ALL, MEGABYTE):
        body = json.dumps({"errors": [{"message": text}]}).encode()
        store.fault = lambda name, nth, body=body: Fault(status=status, body=body)
        for more in ((), ("--json",), ("-vv",)):
            answer = l2inv("scan", *more, expect=1)
            assert not NEVER.search(answer.stdout + answer.stderr)


def test_ready_files_with_hostile_names_and_words_are_filed_harmlessly(
    l2inv: Commands, evil: list[str], tmp_path: Path
) -> None:
    l2inv("preprocess")
    folder = tmp_path / "in box"
    folder.mkdir()
    good = TEXTS["shell"]
    l2inv("claim", "--", good)
    for name, text in TEXTS.items():
        (folder / f"{text.replace('/', '_')}.yaml").write_text(
            json.dumps({"op_id": text, name: text, "note": text})
        )
        (folder / f"{name}.json").write_text(json.dumps({"op_id": text, text: 1}))
        (folder / f"{name}.yml").write_text(f"op_id: {text}\n")
    outputs = [{"uri": f"globus://{text}"} for text in TEXTS.values()]
    (folder / "good.json").write_text(
        json.dumps(
            {"op_id": good, "software": {"name": ALL, "version": "4"}, "outputs": outputs, "note": ALL}
        )
    )
    before = files_below(tmp_path)
    assert run(l2inv, "inbox", str(folder)).exit_code == 4
    assert (folder / "done" / "good.json").exists()
    assert {
        p for p in files_below(tmp_path) - before if p.parent not in (folder / "done", folder / "rejected")
    } == set()
    for path in (folder / "rejected").glob("*.reason.txt"):
        assert not NEVER.search(path.read_text().rstrip("\n"))
    run(l2inv, "inbox", str(folder), "--json")
    assert run(l2inv, "history", "--", good).exit_code == 0


def test_a_megabyte_of_text_is_kept_and_shown(l2inv: Commands, ready: list[str]) -> None:
    l2inv("claim", ready[0])
    run(l2inv, "note", ready[0], MEGABYTE)
    run(l2inv, "hold", ready[0], "--reason", MEGABYTE)
    assert run(l2inv, "history", ready[0], "--json").json["events"][-2]["detail"]["note"] == MEGABYTE
    for argv in (["history", ready[0]], ["show", ready[0]], ["list"], ["show", MEGABYTE], ["verify"]):
        run(l2inv, *argv)


def test_a_nul_cannot_come_in_by_the_command_line(l2inv: Commands, ready: list[str]) -> None:
    l2inv("claim", ready[0])
    for argv in (["note", ready[0], "a\0b"], ["release", ready[0], "--reason", "a\0b"], ["show", "a\0b"]):
        run(l2inv, *argv)


# Every argument and option of every command

GOOD = {"to": "ann", "priority": "1", "reason": "why", "older_than": "1d", "text": "words"}
WHOLE = [name for name in all_commands() if name not in (("demo",), ("server", "stop"))]


def attacks(path: tuple[str, ...], op: str, text: str, folder: Path) -> Iterator[list[str]]:
    """The command's line once for each argument and option that takes a value, with the text there."""
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        command = subcommands(command)[name]
    taking = [
        p for p in command.params if not getattr(p, "is_flag", False) and not getattr(p, "count", False)
    ]
    for attacked in taking:
        if attacked.name == "config":
            continue
        line: list[str] = list(path)
        if path == ("overrule",):
            line.append("--invertible")
        last: list[str] = []
        for param in taking:
            if param is not attacked and not param.required:
                continue
            is_path = isinstance(param.type, click.Path)
            good = str(folder / "file") if is_path else GOOD.get(param.name or "", op)
            value = (
                good if param is not attacked else str(folder / text.replace("/", "_")) if is_path else text
            )
            if isinstance(param, click.Option):
                line.append(f"{max(param.opts, key=len)}={value}" if param.opts[0] != "-n" else f"-n{value}")
            else:
                last += [value, value] if param.name == "pair" else [value]
        if path == ("mark-inverted",) and not last and attacked.name != "file":
            last = [op]
        yield [*line, "--", *last]
    yield [*path, f"--{text}"]
    yield [*path, *["word", text] * 3]


@pytest.mark.parametrize("path", WHOLE, ids=" ".join)
def test_hostile_words_anywhere_on_a_command_line_are_printed_without_control_characters(
    l2inv: Commands, ready: list[str], tmp_path: Path, path: tuple[str, ...]
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    for text in (ALL, "\udcff\x1b]0;x\x07"):
        for line in attacks(path, ready[0], text, folder):
            run(l2inv, *line)
            answer = run(l2inv, *line[: len(path)], "--json", *line[len(path) :])
            assert answer.exit_code in (0, 1, 2, 3, 5, 10)
    assert {p for p in files_below(tmp_path) if folder not in p.parents} <= {
        l2inv.config,
        *files_below(tmp_path / "work"),
    }


@pytest.mark.slow
def test_each_hostile_text_in_each_place_of_each_command_line(
    l2inv: Commands, ready: list[str], tmp_path: Path
) -> None:
    folder, lines = tmp_path / "above" / "here", 0  # one of the texts is ..
    folder.mkdir(parents=True)
    for path in WHOLE:
        for text in TEXTS.values():
            for line in attacks(path, ready[0], text, folder):
                run(l2inv, *line)
                lines += 1
    assert lines > 1500
    assert run(l2inv, "verify").exit_code == 0


def test_no_command_nor_group_name_is_obeyed(l2inv: Commands) -> None:
    for text in (*TEXTS.values(), "\udcff"):
        for argv in ([text], ["server", text], ["config", text], [f"--{text}"]):
            run(l2inv, *argv)
            assert run(l2inv, *argv, "--json").exit_code in (0, 2)
