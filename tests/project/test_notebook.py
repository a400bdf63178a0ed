"""docs/notebook.md, executed in full, and the functions that it shows."""

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest

from l2inv import api
from l2inv.domain import op
from l2inv.errors import Refused
from l2inv.queries import observing_programs
from tests.helpers.commands import Commands

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.md"


def test_the_notebook_runs_unchanged(
    l2inv: Commands, ready: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("L2INV_CONFIG", str(l2inv.config))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    ran = 0
    for language, code in re.findall(
        r"^```(sh|python)\n(.*?)^```$", NOTEBOOK.read_text(), re.MULTILINE | re.DOTALL
    ):
        if language == "sh":
            for line in code.splitlines():
                command, _, file = line.partition(" > ")
                Path(file).write_text(l2inv(*shlex.split(command)[1:]).stdout)
            continue
        compiled = compile(code, str(NOTEBOOK), "exec")
        if code.startswith("# is not run") or (
            code.startswith("# needs pandas") and not importlib.util.find_spec("pandas")
        ):
            continue
        exec(compiled, names)
        ran += 1
    assert ran >= 4
    assert [op.op_id for op in names["best"]] == ready[:5]
    assert names["table"]["op_id"][0] == max(
        names["ops"], key=lambda op: op["fried_parameter_med_m"] or 0
    )["op_id"]  # fmt: skip
    assert Path("sodium.csv").read_text().startswith("op_id,")
    assert {d.observing_program_execution_id for d in names["datasets"]} == {ready[0]}


def test_the_functions_return_what_the_commands_print(l2inv: Commands, ready: list[str]) -> None:
    with api.connected(l2inv.config) as (connection, settings):
        listed = list(api.ops(connection, settings))
        offered = api.next_ops(connection, settings, 100, "mu")
        one = api.op(connection, settings, ready[0].rpartition(".")[2])
        story = api.history(connection, ready[0])
        with pytest.raises(Refused, match="matches several OPs"):
            api.datasets(connection, "eid_")
    printed = l2inv.json("list")["ops"]
    assert msgspec.to_builtins(listed) == [
        {name: op[name] for name in api.Op.__struct_fields__} for op in printed
    ]
    assert {*api.Op.__struct_fields__} == {*observing_programs.LISTED} == op.MeasuredOp.__required_keys__
    assert [op.op_id for op in offered] == [
        op["op_id"] for op in l2inv.json("next", "-n", "100", "--rank-by", "mu")["ops"]
    ]
    assert one in listed
    assert [event.kind for event in story] == [e["kind"] for e in l2inv.json("history", ready[0])["events"]]


def test_a_mistyped_rank_or_state_is_named_with_those_that_there_are(
    l2inv: Commands, ready: list[str]
) -> None:
    wrong: Any = "workin"
    with api.connected(l2inv.config) as (connection, settings):
        with pytest.raises(ValueError, match=r"rank_by: 'workin' is none of r0_class, age, .*, movie"):
            api.next_ops(connection, settings, rank_by=wrong)
        with pytest.raises(ValueError, match=r"state: 'workin' is none of discovered, .*, error"):
            next(api.ops(connection, settings, state=wrong))


def test_each_function_is_in_the_notebooks_table() -> None:
    told = set(re.findall(r"^\| `api\.(\w+)\(", NOTEBOOK.read_text(), re.MULTILINE))
    assert told == {
        name
        for name, what in vars(api).items()
        if callable(what) and what.__module__ == "l2inv.api" and name.islower() and name[0] != "_"
    }
