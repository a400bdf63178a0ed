"""Verdicts: why, by what margin, by which criteria, what other criteria would change, and how long to wait."""

import random
import re
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
import yaml
from psycopg.types.json import Jsonb

from l2inv.config.settings import Qualification
from l2inv.database.connection import Connection
from l2inv.domain import criteria
from l2inv.queries import verdicts
from l2inv.queries.what_if import what_if
from l2inv.sample.server import Store
from tests.helpers.commands import AS_OF, NOW, Commands
from tests.helpers.steps import visp
from tests.helpers.terminals import shown_by

REAL = Path(__file__).parents[3] / "shared" / "real" / "inventory-2023-10.json"
EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"
PRESENT = "87a33761620a"  # the version of the default criteria
PUBLISHED = [  # the bands of the table published in 2023
    {"name": "Ca II 854.2", "min_nm": 853.5, "center_nm": 854.2, "max_nm": 855.0, "required": True},
    {"name": "Ca II 849.8", "min_nm": 849.3, "center_nm": 849.8, "max_nm": 850.2, "required": False},
    {"name": "Fe I 630.2", "min_nm": 629.7, "center_nm": 630.2, "max_nm": 630.5, "required": True},
]


def on_a_terminal(l2inv: Commands, *argv: str, **env: str) -> str:
    """What a command writes to a terminal that knows colours."""
    return shown_by([sys.executable, "-m", "l2inv", "--config", str(l2inv.config), *argv], 200, **env)


def judged(l2inv: Commands) -> None:
    l2inv("scan")
    l2inv(*AS_OF)


def against(verdict: dict[str, Any], result: str) -> set[str]:
    """The names of what decides and came out so, over all instrument programs."""
    return {
        c["name"]
        for program in verdict["instrument_programs"]
        for c in program["criteria"]
        if c["result"] == result and not c.get("optional")
    }


def not_invertible(l2inv: Commands, *names: str) -> str:
    """The first OP of the sample store, one instrument program alone, that fails on exactly these criteria."""
    for op in l2inv.json("list", "--state", "not_invertible")["ops"]:
        verdict = l2inv.json("show", op["op_id"])["verdict"]
        if len(verdict["instrument_programs"]) == 1 and against(verdict, "fail") == set(names):
            return str(op["op_id"])
    raise AssertionError(names)


def rules(file: Path, **qualification: Any) -> str:
    """A settings file with other criteria."""
    file.write_text(yaml.safe_dump({"qualification": qualification}))
    return str(file)


# explain


def test_a_verdict_is_explained_with_the_margin_of_each_criterion(l2inv: Commands) -> None:
    judged(l2inv)
    op = not_invertible(l2inv, "ao")
    found = l2inv.json("explain", op)
    assert (found["op_id"], found["state"], found["invertible"]) == (op, "not_invertible", False)
    assert (found["criteria_version"], found["undetermined"]) == (PRESENT, False)
    (program,) = found["instrument_programs"]
    failed = [c for c in program["criteria"] if c["name"] == "ao" and c["result"] == "fail"]
    assert [(c["measured"], c["required"], c["margin"]) for c in failed] == [(0.74, 0.75, -0.01)]
    for criterion in program["criteria"]:
        assert (criterion.pop("margin") is not None) == (criterion["name"] != "stokes")
        del criterion["comparison"], criterion["unit"]
    assert found["instrument_programs"] == l2inv.json("show", op)["verdict"]["instrument_programs"]
    shown = l2inv("explain", op).stdout
    assert "-0.01\n" in shown
    assert "band Na I 589.3 (optional)" in shown


def test_explain_gives_the_sign_of_each_comparison_and_the_unit(l2inv: Commands) -> None:
    judged(l2inv)
    op = not_invertible(l2inv, "ao")
    (program,) = l2inv.json("explain", op)["instrument_programs"]
    asked = {c["name"]: (c["comparison"], c["unit"]) for c in program["criteria"]}
    assert asked == {
        "health": (">=", "fraction of frames"), "gos": (">=", "fraction of frames"),
        "ao": (">=", "fraction of frames"), "stokes": ("contains", None), "on_disk": ("<", "arcsec"),
        "band Ca II 854.2": ("contains", "nm"), "band Fe I 630.3": ("contains", "nm"),
        "band Na I 589.3": ("contains", "nm"),
    }  # fmt: skip
    rows = [re.split(r"  +", line) for line in l2inv("explain", op).stdout.splitlines()]
    shown = {row[0].removesuffix(" (optional)"): row[3:] for row in rows if len(row) == 6}
    assert shown["ao"] == ["0.74", "≥ 0.75 of frames", "-0.01"]
    assert shown["stokes"] == ["IQUV", "contains IQUV", "-"]
    measured, required, margin = shown["on_disk"]
    assert re.fullmatch(r"[\d.]+ arcsec", measured)
    assert re.fullmatch(r"< 9\d\d\.\d+ arcsec", required)
    assert re.fullmatch(r"\+[\d.]+ arcsec", margin)
    measured, required, margin = shown["band Fe I 630.3"]
    assert re.fullmatch(r"629\.\d+ to 630\.\d+ nm", measured)
    assert (required, margin[0], margin[-3:]) == ("contains 630.3 nm", "+", " nm")
    measured, required, margin = shown["band Na I 589.3"]
    assert measured.endswith(" nm")
    assert re.fullmatch(r"[\d.]+ nm missing", margin)
    l2inv.settings["qualification"] = {"band_coverage": "full"}
    l2inv.save()
    l2inv(*AS_OF)
    assert "contains 629.8 to 630.8 nm" in l2inv("explain", op).stdout


def test_an_op_that_was_never_judged_says_so(l2inv: Commands) -> None:
    l2inv("scan")
    op = l2inv.json("list")["ops"][0]["op_id"]
    found = l2inv.json("explain", op)
    assert (found["op_id"], found["state"], found["criteria_version"]) == (op, "discovered", None)
    assert (found["invertible"], found["undetermined"], found["instrument_programs"]) == (None, None, [])
    assert "not judged yet" in l2inv("explain", op).stdout
    assert "is unknown" in l2inv("explain", "nobody's", expect=3).stderr


def test_a_verdict_whose_datasets_changed_or_that_is_overruled_is_explained_as_such(
    l2inv: Commands, store: Store, ready: list[str]
) -> None:
    l2inv("overrule", ready[0], "--not-invertible", "--reason", "clouds in the movie")
    assert l2inv.json("explain", ready[0])["overruled_by"]["reason"] == "clouds in the movie"
    assert "not invertible: clouds in the movie" in l2inv("explain", ready[0]).stdout
    assert l2inv.json("explain", ready[1])["inputs_changed"] is False
    visp(store, ready[1])[0]["aoLocked"] = 1
    l2inv("scan")
    assert l2inv.json("explain", ready[1])["inputs_changed"] is True
    assert "changed since" in l2inv("explain", ready[1]).stdout


def test_results_are_coloured_on_a_terminal_unless_no_color_is_set(l2inv: Commands) -> None:
    judged(l2inv)
    failed = not_invertible(l2inv, "ao")
    shown = on_a_terminal(l2inv, "explain", failed)
    assert "\x1b[32mpass" in shown
    assert "\x1b[31mfail" in shown
    plain = on_a_terminal(l2inv, "explain", failed, NO_COLOR="1")
    assert "fail" in plain
    assert not {"\x1b[31m", "\x1b[32m", "\x1b[33m"} & {plain[at : at + 5] for at in range(len(plain))}
    assert "\x1b" not in l2inv("explain", failed).stdout
    ops = l2inv.json("list", "--state", "not_invertible")["ops"]
    unknown = next(op["op_id"] for op in ops if l2inv.json("explain", op["op_id"])["undetermined"])
    assert "\x1b[33munknown" in on_a_terminal(l2inv, "explain", unknown)


def test_an_optional_band_is_no_reason(l2inv: Commands) -> None:
    judged(l2inv)
    op = not_invertible(l2inv, "ao")
    lines = l2inv("history", op).stdout.splitlines()
    assert lines[-1].endswith(f"not invertible, fail: ao (criteria {PRESENT})")


# Warnings


NARROW = (
    "is narrow in band Fe I 630.3: 0.061 nm below and 4.09 nm above its center, less than 0.5 nm on a side"
)


def test_narrow_bands_are_a_warning_in_explain_show_next_and_the_report(
    l2inv: Commands, store: Store, ready: list[str], tmp_path: Path
) -> None:
    op = ready[0]
    for dataset in visp(store, op)[:1]:
        dataset |= {"wavelengthMin": 630.239, "wavelengthMax": 634.39}
    store.datasets[:] = visp(store, op)[:1] + visp(store, ready[1])
    l2inv("scan", "--allow-withdrawals")
    l2inv(*AS_OF)
    l2inv("preprocess")
    told = {
        "warning": "narrow", "dataset_id": visp(store, op)[0]["datasetId"],
        "instrument_program_id": visp(store, op)[0]["instrumentProgramExecutionId"],
        "band": "Fe I 630.3", "below_nm": 0.061, "above_nm": 4.09, "narrow_nm": 0.5,
    }  # fmt: skip
    assert l2inv.json("explain", op)["warnings"] == l2inv.json("show", op)["warnings"] == [told]
    assert l2inv.json("show", op)["verdict"]["invertible"]
    offered = {one["op_id"]: one for one in l2inv.json("next")["ops"]}
    assert offered[op]["warnings"] == [told]
    for command in ("explain", "show"):
        assert f"{told['dataset_id']} {NARROW}" in l2inv(command, op).stdout
    assert "Fe I 630.3 narrow" in l2inv("next").stdout
    page = tmp_path / "report.html"
    l2inv("report", str(page))
    assert "Fe I 630.3 (narrow)" in page.read_text()

    claimed = l2inv("next", "--claim", "-n", "2", "--json")
    assert {one["op_id"]: one["warnings"] for one in claimed.json["ops"]}[op] == [told]
    assert f"{op}: {told['dataset_id']} {NARROW}" in claimed.stderr

    l2inv.settings["qualification"] = {"bands": [msgspec.to_builtins(b) | {"narrow_nm": 0} for b in Qualification().bands]}  # fmt: skip
    l2inv.save()
    assert l2inv.json("explain", op)["warnings"] == []
    assert "narrow" not in l2inv("show", op).stdout
    assert "(narrow)" not in l2inv("report", "-").stdout


def test_a_band_with_enough_on_both_sides_is_no_warning(
    l2inv: Commands, store: Store, ready: list[str]
) -> None:
    bands = {b.name: (b.center_nm - b.narrow_nm, b.center_nm + b.narrow_nm) for b in Qualification().bands}
    quiet = [op for op in l2inv.json("next", "-n", "100")["ops"] if not op["warnings"]]
    assert quiet
    for op in quiet:
        ranges = [(d["wavelengthMin"], d["wavelengthMax"]) for d in visp(store, op["op_id"])]
        for name in op["bands"]:
            assert any(low <= bands[name][0] and bands[name][1] <= high for low, high in ranges)


# A createDate yet to come


def test_a_create_date_in_the_future_is_warned_about_and_keeps_no_op_waiting_for_ever(
    l2inv: Commands, store: Store, ready: list[str], connection: Connection
) -> None:
    op, (first, *_) = ready[0], visp(store, ready[0])
    assert l2inv.json("scan")["warnings"] == []
    store.datasets.append(first | {"datasetId": "FUTURE", "createDate": "2199-01-01T00:00:00"})
    said = l2inv("scan", "--json")
    (warning,) = said.json["warnings"]
    assert warning == (
        "createDate is in the future in 1 datasets, such as FUTURE (2199-01-01 00:00 UTC); "
        "they count as arrived when they were first seen"
    )
    assert warning in said.stderr
    row = connection.execute(
        "select recorded_at from l2inv.dataset_version where dataset_id = 'FUTURE'"
    ).fetchone()
    assert row is not None
    seen = row["recorded_at"]

    (told,) = [w for w in l2inv.json("explain", op)["warnings"] if w["warning"] == "future_create_date"]
    assert (told["dataset_id"], told["create_date"]) == ("FUTURE", "2199-01-01T00:00:00Z")
    assert datetime.fromisoformat(told["first_seen"]) == seen
    assert "createDate of FUTURE is in the future: 2199-01-01 00:00 UTC" in l2inv("explain", op).stdout
    assert "createDate of FUTURE is in the future" in l2inv("show", op).stdout

    def state_after(days: float) -> str:
        l2inv("qualify", "--as-of", (seen + timedelta(days=days)).isoformat())
        return str(l2inv.json("show", op)["state"])

    assert state_after(13.99) == "discovered"
    store.datasets[-1]["frameCount"] += (
        1  # a further version was seen later; the dataset arrived with its first
    )
    l2inv("scan")
    assert state_after(13.99) == "discovered"
    assert state_after(14) != "discovered"
    judged = l2inv.json("history", op)["events"][-1]
    assert judged["kind"] == "judged"
    assert datetime.fromisoformat(judged["detail"]["newest_arrival"]) == seen


def test_a_create_date_that_is_only_a_clock_ahead_is_no_warning(
    l2inv: Commands, store: Store, ready: list[str]
) -> None:
    (first, *_) = visp(store, ready[0])
    ahead = datetime.now(UTC).replace(tzinfo=None) + timedelta(minutes=2)
    store.datasets.append(first | {"datasetId": "AHEAD", "createDate": ahead.isoformat()})
    assert l2inv.json("scan")["warnings"] == []
    warned = [w["warning"] for w in l2inv.json("explain", ready[0])["warnings"]]
    assert "future_create_date" not in warned


# Datasets that name no instrument program


def test_an_op_without_an_instrument_program_is_undetermined_and_never_offered(
    l2inv: Commands, store: Store, ready: list[str]
) -> None:
    op = ready[0]
    for dataset in visp(store, op):
        dataset["instrumentProgramExecutionId"] = None
    l2inv("scan")
    l2inv(*AS_OF)
    l2inv("preprocess")
    found = l2inv.json("explain", op)
    assert (found["state"], found["invertible"], found["undetermined"]) == ("not_invertible", False, True)
    assert [p["instrument_program_id"] for p in found["instrument_programs"]] == [None]
    assert against(found, "fail") == set()
    assert against(found, "unknown") == {"band Fe I 630.3"}
    shown = l2inv("explain", op).stdout
    assert "undetermined, unknown: band Fe I 630.3; datasets without an instrument program id" in shown
    assert "no instrument program id" in shown
    assert op not in [one["op_id"] for one in l2inv.json("next", "-n", "100")["ops"]]
    assert "not_invertible" in l2inv("claim", op, expect=3).stderr
    for more in ((), ("--instrument-program", "None")):
        refused = l2inv("overrule", op, "--invertible", "--reason", "by eye", *more, expect=3).stderr
        assert "name no instrument program" in refused
    l2inv("overrule", op, "--not-invertible", "--reason", "by eye")
    assert l2inv.json("claim", ready[1])["state"] == "working"


def test_an_overruled_op_has_only_the_programs_that_have_an_id(
    l2inv: Commands, store: Store, ready: list[str]
) -> None:
    named, *nameless = visp(store, ready[0])
    named["aoLocked"] = 0
    for dataset in nameless:
        dataset["instrumentProgramExecutionId"] = None
    assert nameless
    l2inv("scan")
    l2inv(*AS_OF)
    found = l2inv.json("overrule", ready[0], "--invertible", "--reason", "by eye")
    assert found["instrument_programs"] == [named["instrumentProgramExecutionId"]]


# near-misses


def test_near_misses_are_the_ops_with_a_program_that_fails_on_one_criterion_alone(
    l2inv: Commands, store: Store
) -> None:
    fewer_than_the_others = next(
        d for d in store.datasets if d["aoLocked"] == d["frameCount"] * 74 // 100 > 0
    )
    fewer_than_the_others["aoLocked"] = fewer_than_the_others["frameCount"]
    judged(l2inv)
    expected: dict[str, set[str]] = {}
    for op in l2inv.json("list", "--state", "not_invertible")["ops"]:
        for program in l2inv.json("show", op["op_id"])["verdict"]["instrument_programs"]:
            alone = {"instrument_programs": [program]}
            names = against(alone, "fail")
            if len(names) == 1 and not against(alone, "unknown"):
                expected.setdefault(names.pop(), set()).add(op["op_id"])
    assert {"ao", "gos", "health", "on_disk", "stokes", "band Fe I 630.3"} == set(expected)
    found = l2inv.json("near-misses")["criteria"]
    assert {c["name"]: {op["op_id"] for op in c["ops"]} for c in found} == expected
    assert all(len(c["ops"]) == len(expected[c["name"]]) for c in found)
    assert [len(c["ops"]) for c in found] == sorted((len(c["ops"]) for c in found), reverse=True)
    by_name = {c["name"]: c["ops"][0] for c in found}
    assert by_name["ao"].keys() == {"op_id", "instrument_program_id", "measured", "required", "margin"}
    assert (by_name["ao"]["measured"], by_name["ao"]["required"], by_name["ao"]["margin"]) == (0.74, 0.75, -0.01)  # fmt: skip
    assert (by_name["stokes"]["measured"], by_name["stokes"]["margin"]) == ("I", None)
    shown = l2inv("near-misses").stdout
    assert not shown.endswith("\n\n")
    assert shown.count("\n\n") == len(found) - 1
    assert f"ao: {len(expected['ao'])} OP" in shown
    assert all(op in shown for ops in expected.values() for op in ops)


def test_near_misses_of_a_band_say_how_many_nm_are_missing_the_fewest_first(
    l2inv: Commands, store: Store, ready: list[str]
) -> None:
    fell_short = {
        "red": (630.312, 634.39),
        "blue": (629.0, 630.2),
        "far": (516.7, 517.7),
        "good": (630.3, 631.0),
    }
    store.datasets[:] = [
        visp(store, ready[0])[0]
        | {
            "datasetId": op.upper(),
            "observingProgramExecutionId": op,
            "wavelengthMin": low,
            "wavelengthMax": high,
        }
        for op, (low, high) in fell_short.items()
    ]
    l2inv("scan", "--allow-withdrawals")
    l2inv(*AS_OF)
    (band,) = l2inv.json("near-misses")["criteria"]
    assert band["name"] == "band Fe I 630.3"
    told = [(op["op_id"], op["missing_nm"], op["margin"]) for op in band["ops"]]
    assert told == [("red", 0.012, -0.012), ("blue", 0.1, -0.1), ("far", 112.6, -112.6)]
    assert band["ops"][0].keys() == {
        "op_id", "instrument_program_id", "measured", "required", "margin", "missing_nm",
    }  # fmt: skip
    lines = l2inv("near-misses").stdout.splitlines()
    for op, missing in (("red", "0.012 nm missing"), ("blue", "0.1 nm missing"), ("far", "112.6 nm missing")):
        (line,) = [line for line in lines if line.startswith(f"{op} ")]
        assert line.endswith(missing)
        assert "contains 630.3 nm" in line


def test_near_misses_go_by_the_worst_dataset_the_nearest_program_and_come_nearest_first(
    l2inv: Commands, store: Store
) -> None:
    judged(l2inv)
    good = [op["op_id"] for op in l2inv.json("list", "--state", "invertible")["ops"]]
    alone = [op for op in good if len({d["instrumentProgramExecutionId"] for d in visp(store, op)}) == 1]
    several = next(op for op in good if op not in alone)
    frames: dict[str, Any] = {"frameCount": 100, "health": {"good": 100}, "gosStatus": {"open": 100}}
    locked = {alone[0]: (74, 50), alone[1]: (60, 74)}
    for op, shares in locked.items():
        for dataset, share in zip(visp(store, op), shares, strict=False):
            dataset.update(frames, aoLocked=share)
    programs = sorted({d["instrumentProgramExecutionId"] for d in visp(store, several)})
    for dataset in visp(store, several):
        nearest = dataset["instrumentProgramExecutionId"] == programs[1]
        dataset.update(frames, aoLocked=70 if nearest else 40)
    store.datasets[:] = [d for op in (*locked, several) for d in visp(store, op)]
    l2inv("scan", "--allow-withdrawals")
    l2inv(*AS_OF)
    (ao,) = [c for c in l2inv.json("near-misses")["criteria"] if c["name"] == "ao"]
    nearest_first = [(several, 0.7), (alone[1], 0.6), (alone[0], 0.5)]
    assert [(op["op_id"], op["measured"]) for op in ao["ops"]] == nearest_first
    assert ao["ops"][0]["instrument_program_id"] == programs[1]


def test_the_database_and_python_name_the_same_reasons_of_any_verdict(connection: Connection) -> None:
    draw = random.Random(17)

    def criterion() -> dict[str, Any]:
        measured: Any
        name = draw.choice(["ao", "gos", "on_disk", "stokes", "band a", "band b"])
        if name.startswith("band "):
            ends = [630.1234567895, 630.3, 629.0, 631, 1e308]
            pairs = [sorted(draw.sample(ends, 2)) for _ in range(draw.randint(0, 3))]
            measured, required = draw.choice([pairs, None, "no id"]), draw.choice([630.3, [630.1, 630.5]])
        else:
            measured, required = (
                draw.choice([0.1, 0.7499999995, 0, 1e308, "IQ", None]),
                draw.choice([0.75, 1, -1e308]),
            )
        optional = {"optional": True} if draw.random() < 0.1 else {}
        result = draw.choice(["pass", "pass", "pass", "fail", "fail", "unknown"])
        return {
            "name": name,
            "result": result,
            "dataset_id": None,
            "measured": measured,
            "required": required,
        } | optional

    made = [
        {
            "invertible": False,
            "undetermined": draw.random() < 0.5,
            "instrument_programs": [
                {"instrument_program_id": None, "invertible": False, "criteria": [criterion() for _ in range(draw.randint(0, 4))]}
                for _ in range(draw.randint(0, 3))
            ],
        }
        for _ in range(500)
    ]  # fmt: skip
    rows = connection.execute(
        "select l2inv.reasons(verdict) as reasons from unnest(%s::jsonb[]) verdict", [[*map(Jsonb, made)]]
    ).fetchall()
    said = [criteria.reasons(verdict) for verdict in made]  # type: ignore[arg-type]
    for row in rows:  # a large float comes back as an integer of as many digits
        row["reasons"]["alone"] = {
            name: margin and float(margin) for name, margin in row["reasons"]["alone"].items()
        }
    assert [row["reasons"] for row in rows] == said
    assert {name for one in said for name in one["alone"]} == {
        "ao",
        "gos",
        "on_disk",
        "stokes",
        "band a",
        "band b",
    }


def test_no_near_misses_are_reported_as_such(l2inv: Commands) -> None:
    assert l2inv.json("near-misses") == {"criteria": []}
    assert l2inv("near-misses").stdout == "no OP fails on exactly one criterion\n"


# criteria


def test_every_version_of_the_criteria_is_listed_with_its_first_use_and_number_of_verdicts(
    l2inv: Commands,
) -> None:
    l2inv("scan")
    all_judged = l2inv.json(*AS_OF)["ops"]["judged"]
    l2inv.settings["qualification"] = {"bands": [msgspec.to_builtins(b) | {"narrow_nm": 7.5} for b in Qualification().bands]}  # fmt: skip
    l2inv.save()
    assert l2inv.json(*AS_OF)["ops"]["judged"] == 0  # what only warns has no OP judged again
    assert l2inv.json("verify", "verdicts")["findings"] == []
    l2inv.settings["qualification"] = {"min_ao_locked": 0.5}
    l2inv.save()
    assert "nothing has been judged yet by the present settings" in l2inv("criteria").stdout
    earlier = (NOW - timedelta(days=60)).isoformat()
    judged_again = l2inv.json("qualify", "--as-of", earlier)["ops"]["judged"]
    assert 0 < judged_again < all_judged
    found = l2inv.json("criteria")
    old, new = found["versions"]
    assert (old["criteria_version"], found["present"]) == (PRESENT, new["criteria_version"])
    assert datetime.fromisoformat(old["first_used_at"]) < datetime.fromisoformat(new["first_used_at"])
    assert (old["verdicts"], old["ops"]) == (all_judged, all_judged - judged_again)
    assert (new["verdicts"], new["ops"]) == (judged_again, judged_again)
    assert (old["rules"]["min_ao_locked"], new["rules"]["min_ao_locked"]) == (0.75, 0.5)
    (line,) = [x for x in l2inv("criteria").stdout.splitlines() if "the present settings" in x]
    assert line.startswith(new["criteria_version"])


def test_two_versions_are_compared_by_what_they_say(l2inv: Commands) -> None:
    judged(l2inv)
    bands = [
        {"name": "Ca II 854.2", "min_nm": 853.2, "center_nm": 854.2, "max_nm": 855.2, "required": True, "narrow_nm": 2.0},
        {"name": "Fe I 630.3", "min_nm": 629.8, "center_nm": 630.3, "max_nm": 630.8, "required": True},
    ]  # fmt: skip
    l2inv.settings["qualification"] = {
        "min_ao_locked": 0.5,
        "instruments": ["VISP", "DL-NIRSP"],
        "bands": bands,
    }
    l2inv.save()
    new = l2inv.json(*AS_OF)["criteria_version"]
    found = l2inv.json("criteria", PRESENT[:7], new)
    assert (found["from"], found["to"]) == (PRESENT, new)
    gone = {"name": "Na I 589.3", "min_nm": 588.3, "center_nm": 589.3, "max_nm": 590.3, "required": False}
    assert found["differences"] == [
        {"path": "bands.Ca II 854.2.required", "old": False, "new": True},
        {"path": "bands.Na I 589.3", "old": gone, "new": None},
        {"path": "instruments", "old": ["VISP"], "new": ["DL-NIRSP", "VISP"]},
        {"path": "min_ao_locked", "old": 0.75, "new": 0.5},
    ]
    assert "min_ao_locked: 0.75 -> 0.5\n" in l2inv("criteria", PRESENT, new).stdout
    assert l2inv("criteria", new, new).stdout == "no difference\n"


def test_rules_for_one_instrument_are_compared_by_its_name(l2inv: Commands, connection: Connection) -> None:
    judged(l2inv)
    before_it_could_be_set = connection.execute("select rules - 'per_instrument' as rules from l2inv.criteria").fetchone()  # fmt: skip
    assert before_it_could_be_set is not None
    connection.execute(
        "insert into l2inv.criteria (criteria_version, rules) values ('older', %s)",
        [Jsonb(before_it_could_be_set["rules"])],
    )
    assert l2inv.json("criteria", "older", PRESENT)["differences"] == []
    versions = [PRESENT]
    for stokes in ("I", "IQ"):
        own = {"instrument": "CRYO-NIRSP", "stokes": stokes}
        l2inv.settings["qualification"] = {"per_instrument": [own]}
        l2inv.save()
        versions.append(l2inv.json(*AS_OF)["criteria_version"])
    path = "per_instrument.CRYO-NIRSP"
    added, changed = (l2inv.json("criteria", *pair)["differences"] for pair in pairwise(versions))
    assert added == [{"path": path, "old": None, "new": {"instrument": "CRYO-NIRSP", "stokes": "I"}}]
    assert changed == [{"path": f"{path}.stokes", "old": "I", "new": "IQ"}]


def test_the_order_of_bands_and_instruments_is_no_difference() -> None:
    one: dict[str, Any] = {"bands": [{"name": "a", "x": 1}, {"name": "b", "x": 2}], "instruments": ["P", "Q"]}
    other = {"bands": one["bands"][::-1], "instruments": ["Q", "P"]}
    assert verdicts.differences(one, other) == []
    assert verdicts.differences({"bands": []}, {"bands": []}) == []


def test_a_version_that_is_unknown_or_fits_several_is_refused(
    l2inv: Commands, connection: Connection
) -> None:
    judged(l2inv)
    connection.execute(
        "insert into l2inv.criteria (criteria_version, rules) values (%s, %s)", [PRESENT[:6] + "000000", Jsonb({})]
    )  # fmt: skip
    assert "unknown" in l2inv("criteria", PRESENT, "fff", expect=3).stderr
    assert PRESENT in l2inv("criteria", PRESENT[:6], PRESENT, expect=3).stderr
    error = l2inv("criteria", "%", PRESENT, "--json", expect=3).json["error"]
    assert error["code"] == 3
    assert "unknown" in error["message"]
    l2inv("criteria", PRESENT, expect=2)


# completeness


def arrivals(store: Store, *ops: tuple[str, dict[str, list[float]]]) -> None:
    """Make the store hold OPs with datasets of these instruments, so many days after the first day."""
    one = store.datasets[0]
    store.datasets[:] = [
        one
        | {
            "datasetId": f"{op}{instrument}{number}",
            "observingProgramExecutionId": op,
            "instrumentName": instrument,
            "createDate": (datetime(2026, 1, 1) + timedelta(days=day)).isoformat(),
        }
        for op, instruments in ops
        for instrument, days in instruments.items()
        for number, day in enumerate(days)
    ]


def late(found: dict[str, Any], name: str) -> dict[float, int]:
    (group,) = [group for group in found["instruments"] if group["name"] == name]
    for share in group["shares"]:
        assert share["share"] == round(1 - share["late"] / group["ops"], 4)
    return {share["quiet_days"]: share["late"] for share in group["shares"]}


def test_an_op_is_late_when_a_dataset_came_after_so_many_quiet_days(l2inv: Commands, store: Store) -> None:
    arrivals(
        store,
        ("one", {"VISP": [0, 3], "VBI": [40]}),
        ("two", {"VISP": [100, 0, 2.5]}),
        ("three", {"VBI": [0, 200]}),
        ("four", {"VISP": [5]}),
    )
    l2inv.settings["completeness"] = {"quiet_days": 2.75}
    l2inv.save()
    l2inv("scan")
    found = l2inv.json("completeness")
    assert found["ops"] == 4
    named = [(group["name"], group["ops"]) for group in found["instruments"]]
    assert named == [("all instruments", 4), ("qualifying instruments", 3), ("VBI", 2), ("VISP", 3)]
    days = [1, 2.75, 3, 7, 14, 30, 60, 90, 180]
    assert late(found, "all instruments") == dict(zip(days, [3, 3, 3, 3, 3, 3, 2, 2, 1], strict=True))
    assert late(found, "qualifying instruments") == dict(zip(days, [2, 2, 1, 1, 1, 1, 1, 1, 0], strict=True))
    assert late(found, "VISP") == late(found, "qualifying instruments")
    assert late(found, "VBI") == dict.fromkeys(days, 1)
    lines = l2inv("completeness").stdout.splitlines()
    (marked, _) = [line for line in lines if line.endswith("<- quiet_days")]
    assert marked.split() == ["2.75", "##########", "25.0%", "<-", "quiet_days"]


def test_a_changed_dataset_is_not_an_arrival_and_a_withdrawn_one_is(l2inv: Commands, store: Store) -> None:
    arrivals(store, ("one", {"VISP": [0, 10]}), ("two", {"VISP": [0]}))
    l2inv("scan")
    before = l2inv.json("completeness")
    store.datasets[0]["createDate"] = "2026-09-01T00:00:00"
    del store.datasets[1]
    l2inv("scan", "--allow-withdrawals")
    assert l2inv.json("completeness") == before


def test_a_create_date_in_the_future_is_not_a_late_arrival(l2inv: Commands, store: Store) -> None:
    two_days_ago = (datetime.now(UTC) - timedelta(days=2)).replace(tzinfo=None) - datetime(2026, 1, 1)
    arrivals(store, ("one", {"VISP": [two_days_ago / timedelta(days=1), 60_000]}))
    l2inv("scan")
    counts = late(l2inv.json("completeness"), "VISP")
    assert (counts[1], counts[3], counts[180]) == (1, 0, 0)


def test_completeness_without_ops_is_reported(l2inv: Commands) -> None:
    assert l2inv.json("completeness") == {"ops": 0, "instruments": []}
    assert "no datasets yet" in l2inv("completeness").stdout


@pytest.mark.skipif(not REAL.exists(), reason="the real inventory is not at hand")
def test_completeness_of_a_real_inventory(l2inv: Commands) -> None:
    l2inv.settings["metadata_store"] = {"url": str(REAL)}
    l2inv.save()
    l2inv("scan")
    found = l2inv.json("completeness")
    assert (found["ops"], late(found, "all instruments")[14]) == (126, 75)
    assert found["instruments"][1]["ops"] == 120
    assert late(found, "qualifying instruments")[14] == 7


# qualify --what-if


def snapshot(connection: Connection) -> dict[str, list[Any]]:
    """Every row of every table of l2inv's."""
    names = [r["name"] for r in connection.execute("select tablename as name from pg_tables where schemaname = 'l2inv'")]  # fmt: skip
    return {
        name: connection.execute(f"select t::text as row from l2inv.{name} t order by 1").fetchall() for name in names
    }  # fmt: skip


def test_what_if_shows_what_qualify_would_change_and_writes_nothing(
    l2inv: Commands, connection: Connection, tmp_path: Path
) -> None:
    judged(l2inv)
    ca = {"name": "Ca II 854.2", "min_nm": 853.5, "center_nm": 854.2, "max_nm": 855.0, "required": True}
    other = {"min_good_health": 0.76, "bands": [ca]}
    connection.execute("select l2inv.take_lock('qualify')")
    before = snapshot(connection)
    l2inv(*AS_OF, expect=75)
    found = l2inv.json("qualify", "--what-if", rules(tmp_path / "other.yaml", **other))
    assert snapshot(connection) == before
    connection.execute("select pg_advisory_unlock_all()")

    invertible = []
    for qualification in ({}, other):
        l2inv.settings["qualification"] = qualification
        l2inv.save()
        report = l2inv.json("qualify", "--as-of", (NOW + timedelta(days=30)).isoformat())
        assert report["ops"]["waiting"] == 0
        invertible.append({op["op_id"] for op in l2inv.json("list", "--state", "invertible")["ops"]})
    now, then = invertible
    assert set(found["gained"]) == then - now != set()
    assert set(found["lost"]) == now - then != set()
    assert found["unchanged"] == l2inv.json("status")["ops"] - len(then ^ now)
    assert found["criteria_version"] == report["criteria_version"]


def test_what_if_the_table_published_in_2023_still_held(l2inv: Commands, tmp_path: Path) -> None:
    """The comment of config.example.yaml, as it stands there, without its #."""
    lines = EXAMPLE.read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if line.strip() == "#   qualification:")
    comment = list(takewhile(lambda line: line.lstrip().startswith("#"), lines[start:]))
    table = tmp_path / "2023.yaml"
    table.write_text("\n".join(line.lstrip().removeprefix("#") for line in comment))
    assert yaml.safe_load(table.read_text()) == {"qualification": {"bands": PUBLISHED}}
    judged(l2inv)
    found = l2inv.json("qualify", "--what-if", str(table))
    assert found["criteria_version"] == "854543d9cf5a"
    present = l2inv.json("list", "--state", "invertible")["ops"]
    bands = {op["op_id"]: set(op["bands"]) for op in present}
    assert {op for op in bands if "Ca II 854.2" not in bands[op]} < set(found["lost"]) < set(bands)
    assert found["gained"] == []
    said = l2inv("qualify", "--what-if", str(table)).stdout
    assert all(f"lost   {op}\n" in said for op in found["lost"])


def test_what_if_judges_claimed_and_published_ops(l2inv: Commands, ready: list[str], tmp_path: Path) -> None:
    l2inv("claim", ready[0])
    l2inv("claim", ready[1])
    l2inv("mark-inverted", ready[1])
    l2inv("publish")
    nothing = rules(tmp_path / "other.yaml", instruments=["VTF"])
    found = l2inv.json("qualify", "--what-if", nothing)
    assert set(ready) <= set(found["lost"])
    assert found["gained"] == []
    shown = l2inv("qualify", "--what-if", nothing).stdout
    assert f"lost   {ready[1]}\n" in shown
    assert f"{len(found['lost'])} lost" in shown.splitlines()[-1]


def test_what_if_judges_the_present_datasets(
    l2inv: Commands, store: Store, ready: list[str], tmp_path: Path
) -> None:
    other = rules(tmp_path / "other.yaml", min_good_health=0.5, min_ao_locked=0.9)
    before = l2inv.json("qualify", "--what-if", other)
    changed, withdrawn = [op for op in ready if op not in before["lost"]][:2]
    for dataset in visp(store, changed):
        dataset["aoLocked"] = dataset["frameCount"] * 8 // 10
    gone = [d for d in store.datasets if d["observingProgramExecutionId"] == withdrawn]
    gone += [d for d in visp(store, before["lost"][0]) if d["wavelengthMin"] > 850]
    store.datasets[:] = [d for d in store.datasets if d not in gone]
    l2inv("scan", "--allow-withdrawals")
    after = l2inv.json("qualify", "--what-if", other)
    assert set(after["lost"]) == {changed, *before["lost"][1:]}
    counted = [found["unchanged"] + len(found["gained"]) + len(found["lost"]) for found in (before, after)]
    assert counted[1] == counted[0] - 1


def test_what_if_another_instrument_qualified(l2inv: Commands, tmp_path: Path) -> None:
    l2inv("scan")
    found = l2inv.json(
        "qualify", "--what-if", rules(tmp_path / "other.yaml", instruments=["CRYO-NIRSP"], bands=[])
    )
    cryo = {op["op_id"] for op in l2inv.json("list")["ops"] if "CRYO-NIRSP" in op["instruments"]}
    assert set(found["gained"]) == cryo != set()


def test_what_if_skips_an_op_that_cannot_be_judged_and_names_it(
    l2inv: Commands, connection: Connection, ready: list[str], tmp_path: Path
) -> None:
    connection.execute("alter table l2inv.dataset_version drop constraint dataset_version_record_fits")
    connection.execute(
        """
        insert into l2inv.dataset_version (dataset_id, version, op_id, content_hash, record, run_id)
        values ('BROKEN', 1, %s, '', '{"instrumentName": "VISP", "createDate": "2026-01-01T00:00:00Z"}', 1)
        """,
        [ready[0]],
    )
    answer = l2inv("qualify", "--what-if", rules(tmp_path / "other.yaml", instruments=["VTF"]), "--json")
    assert answer.json["failed"] == [ready[0]]
    assert set(ready[1:]) <= set(answer.json["lost"])
    assert ready[0] in answer.stderr


def test_what_if_names_every_mistake_of_its_file(l2inv: Commands, tmp_path: Path) -> None:
    wrong = tmp_path / "other.yaml"
    wrong.write_text("qualification: {min_ao_locked: 2}\npublihs: {}\n")
    said = l2inv("qualify", "--what-if", str(wrong), expect=10).stderr
    assert "qualification.min_ao_locked" in said
    assert "publihs" in said
    assert "no such file" in l2inv("qualify", "--what-if", str(tmp_path / "none.yaml"), expect=10).stderr
    l2inv(*AS_OF, "--what-if", rules(tmp_path / "other.yaml"), expect=2)


def test_what_if_could_not_write_if_it_tried(l2inv: Commands, connection: Connection) -> None:
    l2inv("scan")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        what_if(
            connection,
            Qualification(),
            Qualification(),
            progress=lambda done, of: (connection.execute("delete from l2inv.quarantine"), None)[1],
        )
