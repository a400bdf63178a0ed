"""How a scientist finds a good OP: which comes first and why, what is shown, and what a filter matches."""

import csv
import io
import json
import re
from collections.abc import Callable
from math import nextafter
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from hypothesis import given
from hypothesis.strategies import floats
from rich.cells import cell_len

from l2inv import wording
from l2inv.cli import main
from l2inv.config import settings
from l2inv.database.connection import Connection
from l2inv.domain.inventory import stored
from l2inv.domain.measures import measure, r0_class
from l2inv.domain.op import OfferedOp
from l2inv.queries import filters, observing_programs
from l2inv.record import event_log
from l2inv.sample.server import Store
from l2inv.stages.mark_working import offers
from tests.helpers.commands import Commands
from tests.helpers.terminals import ESCAPE, in_this_process

REAL = Path(__file__).parents[3] / "shared" / "real" / "inventory-2025-pid_2_126.json"
RULES = settings.Qualification()


def shown(l2inv: Commands, columns: int, *argv: str) -> list[str]:
    """The lines that a command shows on a terminal."""
    said = in_this_process(main, ["--config", str(l2inv.config), "--actor", "han", *argv], columns)
    lines = ESCAPE.sub("", said).splitlines()
    assert all(cell_len(line) <= columns for line in lines), lines
    return lines


def test_a_good_op_is_first_and_the_reason_is_shown(l2inv: Commands, ready: list[str]) -> None:
    found = l2inv.json("next", "-n", "100")
    classes = [op["r0_class"] for op in found["ops"]]
    assert classes == sorted(classes, key=["good", "fair", "poor", "unknown"].index)
    assert len(set(classes)) > 1
    for op, following in zip(found["ops"], found["ops"][1:], strict=False):
        assert op["r0_class"] != following["r0_class"] or op["since"] <= following["since"]
        assert op["why"] == f"{op['r0_class']} r0, waiting since {op['since'][:10]}"
    assert found["total"] == len(ready)
    l2inv("prioritize", ready[-1], "--priority", "5", "--reason", "eclipse")
    assert l2inv.json("next")["ops"][0]["reason"] == "priority 5 (eclipse), poor r0"
    assert (
        f"3 of {len(ready)}, by priority, then r0 class, then wait; all: l2inv next -n {len(ready)}"
        in l2inv("next", "-n", "3").stdout
    )


def test_next_shows_what_decided_each_rank() -> None:
    def op(r0_class: str, priority: int = 0) -> OfferedOp:
        return cast("OfferedOp", {"r0_class": r0_class, "priority": priority, "priority_reason": "eclipse"})

    ranked = [op("poor", 5), op("good"), op("good"), op("poor"), op("good", -1)]
    decided = ["priority 5 (eclipse)", "wait", "r0 class", "priority", "priority -1 (eclipse)"]
    assert offers.decided(ranked, "r0_class") == decided
    assert offers.decided([op("good"), op("poor")], "r0_class") == ["r0 class", "r0 class"]
    assert offers.decided([op("good"), op("good")], "age") == ["wait", "wait"]
    assert offers.decided([op("good")], "age") == ["-"]  # nothing to be ranked against


HIGHEST: dict[str, Callable[[dict[str, Any]], Any]] = {
    "fried_parameter": lambda op: op["fried_parameter_med_m"],
    "r0": lambda op: op["fried_parameter_med_m"],
    "ao": lambda op: op["ao_fraction"],
    "minutes": lambda op: op["minutes"],
    "frames": lambda op: op["frame_count"],
    "lines": lambda op: len(op["more_lines"]),
    "mu": lambda op: op["mu"],
    "exposure": lambda op: op["exposure_max_ms"],
    "field": lambda op: op["field_x_arcsec"] and op["field_x_arcsec"] * op["field_y_arcsec"],
    "odd": lambda op: -len(op["odd"]),
    "movie": lambda op: bool(op["movie_urls"]),
}


def test_next_ranks_by_each_ranking_and_claims_the_first(l2inv: Commands, ready: list[str]) -> None:
    assert {*HIGHEST, "r0_class", "age", "proposal"} == {*get_args(settings.RankBy)}
    for rank_by, measured in HIGHEST.items():
        values = [measured(op) for op in l2inv.json("next", "-n", "100", "--rank-by", rank_by)["ops"]]
        known = [value for value in values if value is not None]
        assert known == sorted(known, reverse=True), rank_by
        assert values[: len(known)] == known, rank_by
    first = l2inv.json("next", "--rank-by", "MU")["ops"][0]["op_id"]
    assert l2inv.json("next", "--rank-by", "mu", "--claim")["claimed"]["op_id"] == first
    assert "the nearest is exposure" in l2inv("next", "--rank-by", "exposition", expect=2).stderr


@pytest.mark.parametrize("columns", [80, 120])
def test_next_fits_a_terminal_and_shows_once_what_is_the_same_in_every_row(
    l2inv: Commands, ready: list[str], columns: int
) -> None:
    lines = shown(l2inv, columns, "next")
    assert "movie yes" in " ".join(
        lines[: lines.index(next(line for line in lines if line.startswith("OP ")))]
    )
    rows = lines[lines.index(next(line for line in lines if line.startswith("OP "))) + 1 : -3]
    assert all(re.match(r"\d{6}| {2,4}\S", line) for line in rows), rows  # no row is folded
    tails = [line.split()[0] for line in lines if re.match(r"\d{6}", line)]
    assert tails == [op.rpartition(".")[2] for op in ready[:10]]
    for op in ready[:3]:
        assert l2inv.json("show", op.rpartition(".")[2])["op_id"] == op
    shown(l2inv, columns, "list")


@pytest.mark.skipif(not REAL.exists(), reason="the real inventories are not beside the project")
@pytest.mark.parametrize("columns", [80, 120])
def test_next_shows_what_a_real_inventory_is_chosen_by(l2inv: Commands, columns: int) -> None:
    l2inv.settings["metadata_store"]["url"] = str(REAL)
    l2inv.save()
    for stage in ("scan", "qualify", "preprocess"):
        l2inv(stage)
    lines = shown(l2inv, columns, "next")
    assert re.match(r"in all: more lines Mg I b1, Na I D1; ms 100-150; odd Fe I 630.3 narrow", lines[0])
    (best,) = [i for i, line in enumerate(lines) if line.startswith("13002973")]
    assert lines[best].split()[:8] == ["13002973", "9.8", "good", "92%", "16.4", "1192", "0.89", "31x50"]
    assert lines[best - 1].startswith("OP ")
    assert any(line.startswith("6 of 6, by priority") for line in lines)
    assert [line.split()[2] for line in lines if re.match(r"\d{7}", line)] == [
        "good",
        "fair",
        "fair",
        "poor",
        "poor",
        "poor",
    ]
    (one,) = l2inv.json("next", "--line", "Mg I b1", "-n", "1")["ops"]
    assert one["field_x_arcsec"] == 31.36
    l2inv("claim", "13002973")


def test_a_filter_reads_an_instrument_in_any_case_and_finds_lines_that_no_rule_names(
    l2inv: Commands, ready: list[str], store: Store
) -> None:
    ops = l2inv.json("next", "-n", "100")["ops"]

    def found(*argv: str) -> set[str]:
        return {op["op_id"] for op in l2inv.json("next", "-n", "100", *argv)["ops"]}

    assert found("--instrument", "vbi") == {op["op_id"] for op in ops if "VBI" in op["instruments"]} > set()
    for line in {name for op in ops for name in op["lines"]}:
        having = {op["op_id"] for op in ops if line in op["lines"]}
        assert found("--line", line) == having
        assert found("--line", line.lower().replace("(", "").split(")")[0]) == having
    assert found("--line", "Ca I") == set()  # "Ca II" is another ion's
    assert (
        found("--line", "ca ii") == {op["op_id"] for op in ops if "Ca II (854.21 nm)" in op["lines"]} > set()
    )


def test_the_lines_found_are_those_that_are_measured(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    """SQL finds by line, Python shows the lines: both must read a dataset's lines alike, and those of one without any."""
    observed: dict[str, set[str]] = {}
    rows = connection.execute(
        "select op_id, record::text as text from l2inv.dataset where not withdrawn"
    ).fetchall()
    for op_id in {row["op_id"] for row in rows}:
        for line in measure([stored(row["text"]) for row in rows if row["op_id"] == op_id], RULES).lines:
            observed.setdefault(line, set()).add(op_id)
    assert observed
    for line, op_ids in observed.items():
        listed = observing_programs.list_ops(connection, filters.Wanted(line=line), RULES, "ids")
        qualifying = {row["op_id"] for row in rows if json.loads(row["text"]).get("instrumentName") == "VISP"}
        assert {op["op_id"] for op in listed} == op_ids & qualifying, line


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--proposal", "pid_2_44", r"proposal 'pid_2_44' is unknown; the nearest known is pid_2_4"),
        ("--instrument", "VISPP", "no dataset is of instrument 'VISPP'; the nearest known is VISP"),
        (
            "--line",
            "He I",
            "no dataset to be inverted observes line 'He I'; known: 517.2 nm, Ca II (849.80 nm), ",
        ),
        ("--line", "Na I D3", "observes line 'Na I D3'; the nearest known is Na I D1 ("),
        (
            "--band",
            "Fe I (630.15",
            "no rule names a band 'Fe I (630.15' (the datasets observe Fe I (630.15 nm); try --line)",
        ),
        ("--min-r0-cm", "70", "no OP has a Fried parameter of 70 cm or more"),
        ("--band", "K 399", "no rule names a band 'K 399' (known: Ca II 854.2, Fe I 630.3, Na I 589.3)"),
    ],
)
def test_a_filter_that_matches_nothing_is_named_with_its_value(
    l2inv: Commands, ready: list[str], option: str, value: str, said: str
) -> None:
    assert said in l2inv("next", option, value).stdout
    assert said in l2inv("list", option, value).stderr
    assert said in l2inv.json("next", option, value)["unmatched"][0]
    assert l2inv.json("next", option, value)["ops"] == l2inv.json("list", option, value)["ops"] == []


def test_hostile_text_in_a_filter_is_text(l2inv: Commands, ready: list[str]) -> None:
    for text in (r"\y", "(?i)", "[a", "*", "'; drop table l2inv.event --", "%", "\\", "a{1000}", "太陽"):
        for option in ("--line", "--band", "--proposal", "--instrument"):
            l2inv("next", option, text)


def test_list_prints_the_same_ops_in_every_format(l2inv: Commands, ready: list[str]) -> None:
    document = l2inv.json("list")
    ops = document["ops"]
    assert document["total"] == len(ops) > len(ready)
    assert l2inv("list", "--format", "json").json == document
    assert [json.loads(line) for line in l2inv("list", "--format", "ndjson").stdout.splitlines()] == ops
    assert l2inv("list", "--format", "ids").stdout.split("\n")[:-1] == [op["op_id"] for op in ops]
    rows = list(csv.DictReader(io.StringIO(l2inv("list", "--format", "csv").stdout)))
    assert [row["op_id"] for row in rows] == [op["op_id"] for op in ops]
    assert list(rows[0]) == list(observing_programs.LISTED) == list(ops[0])
    table = l2inv("list").stdout.splitlines()
    assert [line.split()[0] for line in table] == ["OP", *(op["op_id"] for op in ops)]
    assert {"op_id", "proposal_id", "experiment_id", "state", "since", "priority", "assignee", "instruments",
            "dataset_count", "start_time", "fried_parameter_med_m"} <= set(ops[0])  # fmt: skip
    few = l2inv.json("list", "--state", "preprocessed", "--instrument", "vbi", "--min-r0-cm", "7")["ops"]
    assert few == [
        op
        for op in ops
        if op["state"] == "preprocessed" and "VBI" in op["instruments"] and op["r0_class"] == "good"
    ]
    assert l2inv("list", "--state", "working", "--format", "csv").stdout.startswith("op_id,")


@pytest.mark.parametrize(
    ("metres", "word"),
    [(0.0695, "good"), (nextafter(0.0695, 0), "fair"), (0.0495, "fair"), (nextafter(0.0495, 0), "poor"), (None, "unknown"), (0.2, "good")],
)  # fmt: skip
def test_the_database_ranks_by_the_word_that_is_shown(
    l2inv: Commands, ready: list[str], store: Store, metres: float | None, word: str
) -> None:
    for dataset in store.datasets:
        if dataset["observingProgramExecutionId"] == ready[0]:
            dataset["friedParameter"] = None if metres is None else {"med": metres}
    l2inv("scan")  # such a change asks for no new verdict: the OP stays ready
    offered = l2inv.json("next", "-n", "100")["ops"]
    assert {op["op_id"]: op["r0_class"] for op in offered}[ready[0]] == word
    classes = [op["r0_class"] for op in offered]
    assert classes == sorted(classes, key=["good", "fair", "poor", "unknown"].index)
    assert l2inv.json("verify", "datasets")["findings"] == []


def test_the_rank_is_that_of_the_datasets_whatever_happens_to_the_op(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    op_id = ready[0]

    def rank() -> Any:
        row = connection.execute("select r0_class from l2inv.op_state where op_id = %s", [op_id]).fetchone()
        assert row is not None
        return row["r0_class"]

    before = rank()
    assert before is not None
    for argv in (
        ("note", op_id, "a word"),
        ("hold", op_id, "--reason", "x"),
        ("unhold", op_id, "--reason", "x"),
    ):
        l2inv(*argv)
        assert rank() == before, argv
    l2inv("claim", op_id)
    assert rank() is None
    l2inv("release", op_id)
    assert rank() == before
    assert l2inv.json("verify", "datasets")["findings"] == []


@given(metres=floats(0, 0.3) | floats(0.0694, 0.0696) | floats(0.0494, 0.0496))
def test_the_words_begin_where_the_database_has_them_begin(metres: float) -> None:
    word = "good" if metres >= 0.0695 else "fair" if metres >= 0.0495 else "poor"
    assert r0_class(metres) == word


def test_list_and_show_report_the_same_of_an_op(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    l2inv("claim", ready[0])
    for op in l2inv.json("list")["ops"]:
        shown = l2inv.json("show", op["op_id"])
        assert op == {name: shown[name] for name in op}


def test_no_measure_is_of_a_field_that_is_not_read(ready: list[str], connection: Connection) -> None:
    for row in connection.execute("select record::text as text from l2inv.dataset"):
        whole = json.loads(row["text"])
        bare = {name: value for name, value in whole.items() if name not in observing_programs.UNREAD}
        assert len(bare) < len(whole)
        assert measure([stored(json.dumps(bare))], RULES) == measure([stored(row["text"])], RULES)


def test_list_reads_each_op_when_it_is_asked_for(connection: Connection) -> None:
    ops = [
        event_log.Event(f"eid.{n:06}", 0, "discovered", "discovered", {"datasets": []}) for n in range(3000)
    ]
    event_log.add(connection, ops, "test", None)
    listed = observing_programs.list_ops(connection, filters.Wanted(), RULES)
    assert next(listed)["op_id"] == "eid.000000"
    connection.execute("select 1")  # the cursor holds the rest, not this process
    held = connection.execute("select count(*) as held from pg_cursors where name = 'l2inv_list'").fetchone()
    assert held == {"held": 1}
    assert sum(1 for _ in listed) == 2999


def test_show_has_what_a_scientist_decides_by(l2inv: Commands, ready: list[str], store: Store) -> None:
    op = ready[0]
    found = l2inv.json("show", op)
    page = l2inv("show", op).stdout
    (first, *_) = [d for d in found["datasets"] if d["instrument"] == "VISP"]
    path = f"/{first['bucket']}/{found['proposal_id']}/{first['dataset_id']}/"
    assert first["files_url"] == (
        f"https://app.globus.org/file-manager?origin_id=d26bd00b-62dc-40d2-9179-7aece2b8c437&origin_path={path}"
    )
    assert all(f"{d['dataset_id']} {d['files_url']}" in page for d in found["datasets"])
    assert all(re.search(rf"^movie +{re.escape(url)}$", page, re.MULTILINE) for url in found["movie_urls"])
    assert re.search(
        rf"^r0 +{found['fried_parameter_med_m'] * 100:.1f} cm, {found['r0_class']}; p25-p75 ",
        page,
        re.MULTILINE,
    )
    for name in ("AO locked", "length", "exposure", "field", "lines"):
        assert re.search(rf"^{name} +\S", page, re.MULTILINE), name
    description = next(
        d["experimentDescription"] for d in store.datasets if d["observingProgramExecutionId"] == op
    )
    assert description.split("\n")[0].split(" ")[0] in page
    assert "more paragraph" in page


def test_show_prints_where_the_outputs_are_and_what_was_withdrawn(l2inv: Commands, ready: list[str]) -> None:
    op = ready[0]
    l2inv("claim", op)
    l2inv("mark-inverted", op, "--output", "globus://l2/here")
    assert re.search(r"^output +globus://l2/here$", l2inv("show", op).stdout, re.MULTILINE)
    assert [one for one in l2inv.json("show", op)["inversions"] if "published_at" in one] == []
    l2inv("publish")
    (inversion,) = l2inv.json("show", op)["inversions"]
    assert re.search(
        rf"^inversion +{inversion['inversion_id']} of .*, published \S+$",
        l2inv("show", op).stdout,
        re.MULTILINE,
    )
    l2inv("withdraw", op, "--reason", "wrong line")
    assert re.search(r"^inversion .*, withdrawn 20\S+$", l2inv("show", op).stdout, re.MULTILINE)


def test_the_next_step_is_that_of_the_state_and_of_a_hold(l2inv: Commands, ready: list[str]) -> None:
    assert f"run: l2inv claim {ready[0]}" in l2inv("show", ready[0]).stdout
    l2inv("hold", ready[0], "--reason", "doubts")
    assert f"l2inv unhold {ready[0]}" in l2inv("show", ready[0]).stdout
    assert "l2inv claim" not in l2inv("show", ready[0]).stdout


def test_mine_shows_what_was_inverted_and_what_failed_of_it(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    for op in ready[:3]:
        l2inv("claim", op)
        l2inv("mark-inverted", op)
    l2inv("claim", ready[3], actor="ann")
    l2inv("mark-inverted", ready[3], actor="ann")
    seq = len(l2inv.json("history", ready[1])["events"])
    event_log.fail(connection, ready[1], seq, "publish", "the store refuses it", "cron", 1)
    mine = l2inv.json("mine")
    assert mine["ops"] == []
    assert [op["op_id"] for op in mine["inverted"]] == [ready[2], ready[0]]
    assert [(op["op_id"], op["stage"], op["cause"]) for op in mine["failed"]] == [
        (ready[1], "publish", "the store refuses it")
    ]
    page = l2inv("mine").stdout
    assert "han holds no OP" in page
    assert page.index("the store refuses it") < page.index(ready[2])


def test_one_op_is_one_op_and_what_is_extended_is_not_already_yours(
    l2inv: Commands, ready: list[str]
) -> None:
    l2inv("claim", ready[0])
    said = l2inv("claim", ready[0], "--for", "40d").stdout
    assert "already" not in said
    assert re.search(r"is yours, extended, due \d{4}-\d\d-\d\d\n", said)
    said = l2inv("claim", ready[0], "--for", "3h").stdout
    assert re.search(r", due \d{4}-\d\d-\d\d \d\d:\d\d UTC\n", said)
    assert re.search(
        r"for han, due \d{4}-\d\d-\d\d \d\d:\d\d UTC", l2inv("history", ready[0]).stdout.splitlines()[-1]
    )
    assert re.search(
        r"due \d{4}-\d\d-\d\d \d\d:\d\d UTC", l2inv("claim", ready[0], actor="ann", expect=3).stderr
    )
    refused = l2inv("release", ready[0], actor="ann", expect=3).stderr
    assert "--actor" not in refused
    assert "ask han to release it" in refused


def test_explain_is_a_table_on_a_terminal_of_80_columns(l2inv: Commands, ready: list[str]) -> None:
    headings = [line.split()[:2] for line in shown(l2inv, 80, "explain", ready[0])]
    assert headings.count(["criterion", "result"]) == 1


def test_after_a_reopening_inputs_do_not_count_as_changed(
    l2inv: Commands, ready: list[str], store: Store
) -> None:
    l2inv("claim", ready[0])
    l2inv("mark-inverted", ready[0])
    l2inv("publish")
    l2inv("reopen", ready[0], "--reason", "a better code")
    assert l2inv.json("show", ready[0])["inputs_changed"] is False
    assert l2inv.json("explain", ready[0])["inputs_changed"] is False
    assert "changed since" not in l2inv("show", ready[0]).stdout + l2inv("explain", ready[0]).stdout
    for dataset in store.datasets:
        if dataset["observingProgramExecutionId"] == ready[0]:
            dataset["aoLocked"] = 1
    l2inv("scan")
    assert l2inv.json("show", ready[0])["inputs_changed"] is True


def test_a_damaged_record_keeps_no_other_op_from_being_shown() -> None:
    row = observing_programs.add_measures({"op_id": "eid", "present": ['{"datasetId": 1}']}, RULES)
    assert row["odd"] == ["a record is damaged; see: l2inv verify datasets"]
    assert row["frame_count"] is None


@pytest.mark.parametrize(
    "values",
    [None, 5, "x", [1], {"A": None}, {"A": {"f": 1}}, {"A": {"f": [1]}}, {"A": {"ao_locked": [[], {"x": []}], "frame_count": 7}}],
)  # fmt: skip
def test_old_and_new_values_of_any_shape_break_no_history(values: Any) -> None:
    told = wording.what_happened(
        {"kind": "datasets_changed", "detail": {"changed": {"A": ["f"]}, "values": values}}
    )
    assert told.startswith("1 dataset changed: A")


def test_a_fields_change_is_shown_once_for_the_datasets_in_which_it_is_the_same() -> None:
    fell = {"ao_locked": [1700, 100], "frame_count": [1700, 1700]}
    values = {"A": fell, "B": fell, "C": {"health": [{"good": 3, "bad": None}, None]}}
    told = wording.what_happened({"kind": "datasets_changed", "detail": {"values": values}})
    assert told == "ao_locked 1700 -> 100 of 1700 frames in A, B; health good 3 -> - in C"
