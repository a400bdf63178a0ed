"""Output on a terminal: never wider than that, ids that can be copied, and color only if wanted."""

import operator
import re
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from l2inv.cli import main, render
from l2inv.cli.progress import Line
from l2inv.cli.terminal import folded
from l2inv.database.connection import Connection
from l2inv.record import event_log
from l2inv.sample.server import Store
from l2inv.wording import clean
from tests.helpers.commands import NOW, Commands
from tests.helpers.events import clock_at
from tests.helpers.terminals import ESCAPE, in_this_process, on_terminal, shown_by

LONG = 58
LONGEST = 200
RATE = re.compile(r"[\d-]/s\b")  # of progress; /dev/shm is none
WORDS = "seeing was best after nineteen hours 太陽の磁場は強かった and the slit moved twice " * 4


@pytest.fixture(autouse=True)
def _columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal's size counts, not that of the one in which the tests run."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def ops(l2inv: Commands, store: Store, connection: Connection) -> dict[str, str]:
    """A database in which everything happened, to OPs with ids as long as real ones and as long as they may be."""
    names = sorted({d["observingProgramExecutionId"] or "" for d in store.datasets} - {""})
    for number, name in enumerate(n for n in names if len(n) <= LONG):
        longer = name.ljust(LONGEST if number % 5 == 0 else LONG, "x")
        for dataset in store.datasets:
            if dataset["observingProgramExecutionId"] == name:
                dataset["observingProgramExecutionId"] = longer
    l2inv("scan")
    l2inv("qualify", "--as-of", NOW.isoformat())
    l2inv("preprocess")
    ready = [op["op_id"] for op in l2inv.json("next", "-n", "100")["ops"]]
    failed, held, late, done, published, priority = ready[:6]
    (refused, *_) = [op["op_id"] for op in l2inv.json("list", "--state", "not_invertible")["ops"]]
    for op in (failed, held, late, done, published):
        l2inv("claim", op, "--for", "0.001m" if op == late else "21d")
    for op in (done, published):
        note = ("--note", WORDS, "--software", "DeSIRe", "--software-version", "4.1")
        l2inv("mark-inverted", op, *note, "--output", "globus://science/l2/" + "deep/" * 30)
        if op == published:
            l2inv("publish")
    seq = len(l2inv.json("history", failed)["events"])
    with connection.transaction():
        assert event_log.fail(connection, failed, seq, "preprocess", f"exit code 1: {WORDS}", "cron", 1)
    l2inv("prioritize", priority, "--priority", "5", "--reason", WORDS)
    l2inv("hold", held, "--reason", WORDS)
    l2inv("overrule", refused, "--invertible", "--reason", WORDS)
    assert {len(op) for op in ready} == {LONG, LONGEST}
    return {"failed": failed, "late": late, "held": held, "published": published, "overruled": refused}


def commands(ops: dict[str, str], folder: Path) -> list[list[str]]:
    other = folder / "other.yaml"
    other.write_text("qualification: {min_good_health: 0.99, min_ao_locked: 0.5}\n")
    about = [[command, op] for op in ops.values() for command in ("show", "explain", "history", "files")]
    return [
        *about, ["status"], ["list"], ["list", "--state", "error"], ["next"], ["mine"], ["overdue"], ["digest"],
        ["near-misses"], ["quarantine"], ["completeness"], ["criteria"], ["publish", "--dry-run"],
        ["qualify", "--what-if", str(other)], ["clean", "--older-than", "0.001m", "--dry-run"],
    ]  # fmt: skip


def run(l2inv: Commands, argv: list[str], columns: int) -> str:
    return in_this_process(main, ["--config", str(l2inv.config), "--actor", "han", *argv], columns)


def test_everything_fits_the_terminal_in_colour_if_wanted_and_a_pipe_in_lines(
    l2inv: Commands, ops: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = {op["op_id"] for op in l2inv.json("list")["ops"]}
    beginnings = {op[:20]: op for op in every}
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for argv in commands(ops, tmp_path):
        for columns in (40, 80, 120):
            in_colour = run(l2inv, argv, columns)
            shown = ESCAPE.sub("", in_colour)
            assert shown, argv
            for line in shown.splitlines():
                # What may be copied is never broken: a word that is longer than a line stands alone on its own.
                assert cell_len(line) <= columns or " " not in line.strip(), (argv, columns, line)
                assert line == line.rstrip(), (argv, columns, line)
            for word in re.split(r"[\s:/]", shown):
                if word[:20] in beginnings:
                    assert word.rstrip(",;") == beginnings[word[:20]], (argv, columns)
        for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")) if in_colour != shown else ():
            with monkeypatch.context() as patch:
                patch.setenv(name, value)
                assert "\x1b" not in run(l2inv, argv, 80), argv
        in_a_pipe = l2inv(*argv).stdout
        assert "\x1b" not in in_a_pipe
        assert all(line == line.rstrip() for line in in_a_pipe.splitlines()), argv
    assert "\x1b[31merror\x1b[0m" in run(l2inv, ["list"], 300)
    narrow, wide, in_a_pipe = run(l2inv, ["list"], 80), run(l2inv, ["list"], 300), l2inv("list").stdout
    assert narrow.count("\n") > wide.count("\n") == in_a_pipe.count("\n") == len(every) + 1
    assert len(l2inv("history", ops["failed"]).stdout.splitlines()) == 6


def test_history_status_and_next_say_what_happened_what_needs_somebody_and_what_to_do(
    l2inv: Commands, ops: dict[str, str], connection: Connection
) -> None:
    shown = ESCAPE.sub("", run(l2inv, ["history", ops["failed"]], 80))
    assert shown.startswith(ops["failed"] + "\n")
    assert re.search(r"^   4 \S+ \S+  han claimed  preprocessed → working$", shown, re.MULTILINE)
    assert re.search(r"^!  5 \S+ \S+  cron failed  working → error$", shown, re.MULTILINE)
    assert "later" not in shown
    with clock_at(connection, (datetime.now(UTC) + timedelta(days=12, hours=1)).isoformat()):
        connection.execute(
            "insert into l2inv.event (op_id, seq, kind, actor, detail) values (%s, 6, 'noted', 'ann', %s)",
            [ops["failed"], '{"note": "the film came"}'],
        )
    shown = ESCAPE.sub("", run(l2inv, ["history", ops["failed"]], 80))
    assert re.search(r"\n     12 days later\n   6 .*  ann noted\n     the film came\n$", shown)
    argv = ["--config", str(l2inv.config), "history", ops["failed"]]
    poor = shown_by([sys.executable, "-m", "l2inv", *argv], 80, PYTHONIOENCODING="ascii")
    assert "preprocessed -> working" in poor
    narrow = shown_by([sys.executable, "-m", "l2inv", *argv], 30, PYTHONIOENCODING="utf-8")
    assert all(
        cell_len(line) <= 30 or " " not in line.strip() for line in ESCAPE.sub("", narrow).splitlines()
    )

    lines = ESCAPE.sub("", run(l2inv, ["status"], 120)).splitlines()
    needs = [re.split("  +", line) for line in lines[1 : lines.index("")]]
    assert needs == [
        ["1 OP in error", "l2inv list --state error"],
        ["1 OP overdue", "l2inv overdue"],
        ["3 records of the metadata store quarantined", "l2inv quarantine"],
    ]
    assert re.search(r"^not_invertible +\d+  #{20,}$", "\n".join(lines), re.MULTILINE)
    assert "1 of the OPs on hold; last complete scan: 20" in l2inv("status").stdout
    connection.execute("alter table l2inv.run disable trigger end_run")  # as a superuser can
    connection.execute("update l2inv.run set started_at = started_at - interval '3 days'")
    connection.execute("alter table l2inv.run enable always trigger end_run")
    assert re.search(
        r"^last complete scan: .*, 3 days ago +l2inv scan$", l2inv("status").stdout, re.MULTILINE
    )
    l2inv.settings["metadata_store"]["url"] = "http://127.0.0.1:9/graphql"
    l2inv.save()
    l2inv("scan", expect=1)
    assert re.search(r"^scan failed at 20.* +l2inv scan$", l2inv("status").stdout, re.MULTILINE)

    shown = ESCAPE.sub("", run(l2inv, ["next"], 80))
    assert re.match(r"You hold 3 OPs, the first due \d{4}-\d\d-\d\d \d\d:\d\d UTC; see: l2inv mine\n", shown)
    assert shown.endswith("\nTake the first: l2inv next --claim; another: l2inv claim OP\n")
    assert "You hold" not in l2inv("next").stdout


@pytest.mark.parametrize("argv", [["next"], ["status"]], ids=" ".join)
def test_frequent_commands_import_little(l2inv: Commands, argv: list[str]) -> None:
    ask = ["--config", str(l2inv.config), *argv]
    code = f"""
import sys
from l2inv.cli import main
try:
    main({ask!r})
except SystemExit as end:
    print(end.code, sorted({{"rich", "requests", "yoyo", "graphql", "l2inv.database.embedded", "l2inv.stages.scan.scan"}} & set(sys.modules)))
"""
    assert shown_by([sys.executable, "-c", code]).splitlines()[-1] == "0 []"


# progress


def test_progress_shows_how_many_at_which_rate_and_for_how_long_and_is_gone_at_the_end() -> None:
    code = """
from l2inv.cli import progress
progress.FIRST_SECONDS = progress.EVERY_SECONDS = 0
for steps in ((1_900, 8_000), (2_000, 8_000), (100, 8_000)), ((4_000, None), (4_001, None)):
    line = progress.Line("rows")
    for done, of in steps:
        line(done, of)
        line.shown and line.shown.refresh()
    line.end()
"""
    for columns in (40, 80, 120):
        shown = shown_by([sys.executable, "-c", code], columns)
        assert shown.endswith("\x1b[1A\x1b[2K")
        frames = [frame.rstrip() for frame in re.split(r"[\r\n]+", ESCAPE.sub("", shown))]
        assert all(cell_len(frame) <= columns for frame in frames)
        bar = r"[━╸╺]" + ("*" if columns == 40 else "{30,}")  # it gives way to the figures
        for figures in (
            r"24% 1900 of 8000 rows -/s -:--:--",
            r"25% 2000 of 8000 rows [\d,]+/s 0:\d\d:\d\d",
            r"1%  100 of 8000 rows -/s -:--:--",
        ):
            assert any(re.fullmatch(bar + " +" + figures, frame) for frame in frames), (
                columns,
                figures,
                frames,
            )
        assert any(re.fullmatch(r"━+ +4001 of \? rows [\d,.]+/s", frame) for frame in frames)
    assert shown_by([sys.executable, "-c", code], 80, TERM="dumb") == ""


def test_work_that_is_done_at_once_shows_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    line = Line("rows")
    line(1, 2)
    line.end()
    assert capsys.readouterr().err == ""


def test_progress_is_shown_on_a_terminals_stderr_alone(
    l2inv: Commands, ready: list[str], tmp_path: Path
) -> None:
    l2inv("claim", ready[0])
    l2inv("mark-inverted", ready[0], "--output", "globus:l2")
    l2inv("publish")
    copy = str(tmp_path / "copy.gz")
    for argv, is_shown in (
        (["verify"], True), (["verify", "-q"], False), (["verify", "--json"], False),
        (["scan"], True), (["backup", copy], True), (["export"], True),
    ):  # fmt: skip
        code = (
            "from l2inv.cli import main, progress; progress.FIRST_SECONDS = progress.EVERY_SECONDS = 0;"
            f"main({['--config', str(l2inv.config), *argv]!r})"
        )
        with (
            (tmp_path / "out").open("wb") as out,
            on_terminal([sys.executable, "-c", code], stdout=out.fileno()) as (terminal, process),
        ):
            shown = terminal.read_until(lambda text: False)
            assert process.wait() == 0, shown
        assert bool(RATE.search(shown)) == is_shown, (argv, shown)
        assert not RATE.search((tmp_path / "out").read_text())
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, check=True, text=True).stderr == ""


# layout


@given(st.text(), st.integers(1, 50))
def test_folding_loses_nothing_and_keeps_within_the_columns(text: str, columns: int) -> None:
    text = clean(text)
    lines = folded(text, columns)
    assert " ".join(lines).split() == text.split()
    for line in lines:
        assert cell_len(line) <= columns or " " not in line.strip()


WORD = st.builds(operator.mul, st.sampled_from("x太"), st.integers(1, LONG))
CELLS = st.lists(WORD, max_size=5).map(" ".join)


@settings(deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1), st.sampled_from((20, 40, 80, 120)))
def test_a_table_breaks_no_word_and_fits_the_columns(rows: list[tuple[str, str, str]], columns: int) -> None:
    shown = in_this_process(lambda _: render.table(("OP", "", "what"), rows), [], columns)
    lines = ESCAPE.sub("", shown).splitlines()
    words = Counter(word for row in rows for cell in row for word in cell.split())
    assert words <= Counter(word.removesuffix(";") for line in lines for word in line.split())
    assert all(cell_len(line) <= columns or " " not in line.strip() for line in lines)
