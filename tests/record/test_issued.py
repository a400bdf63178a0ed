"""An inversion gets its id once, when work on it begins, and keeps it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from l2inv.database.connection import Connection
from l2inv.record import issued
from tests.helpers.commands import NOW, Commands


def named(l2inv: Commands, op: str) -> dict[str, str]:
    found = l2inv.json("show", op)["inversions"]
    return {one["instrument_program_id"]: one["inversion_id"] for one in found}


@pytest.mark.parametrize("how", [("claim",), ("mark-working",), ("next", "--claim")])
def test_each_program_to_be_inverted_is_named_when_work_begins(
    l2inv: Commands, ready: list[str], how: tuple[str, ...]
) -> None:
    said = l2inv.json(*how) if how[0] == "next" else l2inv.json(*how, ready[0])
    op = said["claimed"] if how[0] == "next" else said
    (one, *_) = op["inversions"]
    assert [i["instrument_program_id"] for i in op["inversions"]] == sorted(op["instrument_programs"])
    assert re.fullmatch(r"inv\.[A-Z0-9]{6}", one["inversion_id"])
    number = one["inversion_id"][4:]
    assert one["folder"] == f"{op['proposal_id']}/inv_{number}"
    assert one["asdf_object_key"] == f"{op['proposal_id']}/inv_{number}/INV_{number}_L2_metadata.asdf"
    event = l2inv.json("history", op["op_id"])["events"][-1]
    assert event["kind"] == "claimed"
    assert event["detail"]["inversions"] == [
        {name: i[name] for name in ("inversion_id", "instrument_program_id")} for i in op["inversions"]
    ]
    assert l2inv.json("mine")["ops"][0]["inversions"] == op["inversions"]
    found = l2inv.json("files", op["op_id"])
    assert found["inversions"] == op["inversions"]
    bundle = json.loads((Path(found["folder"]) / "inversions.json").read_text())
    assert bundle["inversions"] == op["inversions"]
    for words in (("show", op["op_id"]), ("mine",), ("files", op["op_id"]), ("history", op["op_id"])):
        assert one["inversion_id"] in l2inv(*words).stdout


def test_a_release_keeps_the_name_for_the_next_and_a_new_cycle_gets_another(
    l2inv: Commands, ready: list[str]
) -> None:
    l2inv("claim", ready[0])
    first = named(l2inv, ready[0])
    l2inv("release", ready[0])
    assert named(l2inv, ready[0]) == first
    l2inv("claim", ready[0], actor="ann")
    assert named(l2inv, ready[0]) == first
    l2inv("hand-over", ready[0], "--to", "han", actor="ann")
    assert named(l2inv, ready[0]) == first
    l2inv(
        "mark-inverted", ready[0], "--output", "globus://l2/x", "--software", "DeSIRe",
        "--software-version", "4.1",
    )  # fmt: skip
    assert named(l2inv, ready[0]) == first
    l2inv("reopen", ready[0], "--reason", "a better code")
    assert named(l2inv, ready[0]) == {}
    l2inv("qualify", "--as-of", NOW.isoformat())
    l2inv("preprocess")
    files = [(file["path"], file["standing"]) for file in l2inv.json("files", ready[0])["files"]]
    assert not [path for path, standing in files if path == "inversions.json" or standing != "ok"], (
        "of the old cycle"
    )
    l2inv("claim", ready[0])
    second = named(l2inv, ready[0])
    assert second.keys() == first.keys()
    assert not set(second.values()) & set(first.values())


def test_no_id_is_drawn_twice(l2inv: Commands, ready: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    l2inv("claim", ready[0])
    (taken,) = set(named(l2inv, ready[0]).values())
    draws = iter([taken, taken, "inv.NEW001"])
    monkeypatch.setattr(issued, "new_inversion_id", lambda: next(draws))
    l2inv("claim", ready[1])
    assert set(named(l2inv, ready[1]).values()) == {"inv.NEW001"}


def test_the_names_of_a_released_op_are_in_its_new_manifest(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    from l2inv.stages.preprocess import attempts

    l2inv("claim", ready[0])
    found: dict[str, Any] = attempts.describe(connection, ready[0])
    assert {one["inversion_id"] for one in found["inversions"]} == set(named(l2inv, ready[0]).values())
