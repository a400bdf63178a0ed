import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from l2inv.config.settings import Band, InstrumentRules, Qualification
from l2inv.domain import criteria, inventory
from l2inv.domain.criteria import Criterion, Verdict, judge, newest_arrival, version
from l2inv.domain.inventory import Dataset
from l2inv.domain.solar import apparent_radius_arcsec

RULES = Qualification()
PUBLISHED = Qualification(  # the table published in 2023
    bands=[
        Band("Ca II 854.2", 853.5, 854.2, 855.0, True),
        Band("Ca II 849.8", 849.3, 849.8, 850.2, False),
        Band("Fe I 630.2", 629.7, 630.2, 630.5, True),
    ]
)
GUIDE = Path(__file__).parents[2] / "docs" / "Invertibility.md"
JANUARY, JULY = datetime(2024, 1, 3, 20, tzinfo=UTC), datetime(2024, 7, 3, 20, tzinfo=UTC)
CA, FE, BOTH = (853.4, 855.1), (629.4, 630.8), (600.0, 900.0)


def dataset(
    dataset_id: str = "AAAAA", nm: tuple[float | None, float | None] = BOTH, **changes: Any
) -> Dataset:
    """A dataset that meets every criterion, but for the changes."""
    fields: dict[str, Any] = {
        "observing_program_execution_id": "eid_1",
        "create_date": datetime(2024, 5, 1, tzinfo=UTC),
        "instrument_program_execution_id": "id.1",
        "instrument_name": "VISP",
        "start_time": JULY,
        "frame_count": 171,
        "health": {"good": 171, "bad": None, "ill": None, "unknown": None},
        "gos_status": {"open": 171, "opening": None, "closed": None, "closing": None, "undefined": None},
        "ao_locked": 171,
        "stokes_parameters": "IQUV",
        "bounding_box": "(-560.16,-347.5),(-677.17,-467.21)",
        "wavelength_min": nm[0],
        "wavelength_max": nm[1],
    }
    return Dataset(dataset_id=dataset_id, **(fields | changes))


def all_of(verdict: Verdict) -> list[Criterion]:
    return [criterion for program in verdict["instrument_programs"] for criterion in program["criteria"]]


def outcome(name: str, *datasets: Dataset, rules: Qualification = RULES) -> Criterion:
    """The only criterion of that name."""
    (criterion,) = [c for c in all_of(judge(datasets, rules)) if c["name"] == name]
    return criterion


def says(*datasets: Dataset, rules: Qualification = RULES) -> tuple[bool, bool]:
    verdict = judge(datasets, rules)
    return verdict["invertible"], verdict["undetermined"]


INVERTIBLE, FAILED, UNDETERMINED = (True, False), (False, False), (False, True)


def test_an_op_that_meets_every_criterion_is_invertible() -> None:
    verdict = judge([dataset("BBBBB", FE), dataset("AAAAA", CA)], RULES)
    assert (verdict["invertible"], verdict["undetermined"]) == INVERTIBLE
    (program,) = verdict["instrument_programs"]
    assert (program["instrument_program_id"], program["invertible"]) == ("id.1", True)
    each = ["health", "gos", "ao", "stokes", "on_disk"]
    assert [(c["name"], c["dataset_id"]) for c in program["criteria"]] == [
        *((name, "AAAAA") for name in each),
        *((name, "BBBBB") for name in each),
        ("band Ca II 854.2", "AAAAA"),
        ("band Fe I 630.3", "BBBBB"),
        ("band Na I 589.3", None),
    ]


def test_iron_alone_is_required_today_where_the_published_table_required_calcium_too() -> None:
    red = (630.239, 634.39)  # as many real ranges begin
    assert says(dataset(nm=FE)) == says(dataset(nm=red)) == INVERTIBLE
    assert says(dataset(nm=CA)) == says(dataset(nm=(588.3, 590.3))) == FAILED
    assert says(dataset("A", CA), dataset("B", FE), rules=PUBLISHED) == INVERTIBLE
    assert says(dataset("A", CA), dataset("B", red), rules=PUBLISHED) == FAILED
    assert says(dataset(nm=FE), rules=PUBLISHED) == says(dataset(nm=CA), rules=PUBLISHED) == FAILED


# Fractions of frames

SHARES = [
    (0.75, 171, 129, "pass"),
    (0.75, 171, 128, "fail"),
    (0.75, 4, 3, "pass"),
    (0.75, 100_000, 74_999, "fail"),
    (1.0, 77_694, 77_694, "pass"),
    (1.0, 77_694, 77_693, "fail"),
    (0.1, 10, 1, "pass"),  # the float 0.1 is more than a tenth
    (0.07, 100, 7, "pass"),  # 0.07 * 100 is more than 7 in floats
    (0.57, 2**53 - 1, 2**53 - 1, "pass"),
    (0.0, 171, 0, "pass"),
]


@pytest.mark.parametrize(("required", "frames", "count", "result"), SHARES)
def test_a_share_is_compared_exactly(required: float, frames: int, count: int, result: str) -> None:
    rules = Qualification(min_good_health=required, min_open_gos=required, min_ao_locked=required)
    judged = dataset(frame_count=frames, health={"good": count}, gos_status={"open": count}, ao_locked=count)
    assert [outcome(name, judged, rules=rules)["result"] for name in ("health", "gos", "ao")] == [result] * 3


def test_by_default_three_quarters_must_be_good_and_locked_and_every_frame_open() -> None:
    judged = dataset(
        frame_count=100, health={"good": 75, "bad": 25}, gos_status={"open": 99, "closed": 1}, ao_locked=75
    )
    assert [outcome(name, judged)["result"] for name in ("health", "gos", "ao")] == ["pass", "fail", "pass"]
    judged = dataset(
        frame_count=100, health={"good": 74, "bad": 26}, gos_status={"open": 100, "closed": 0}, ao_locked=74
    )
    assert [outcome(name, judged)["result"] for name in ("health", "gos", "ao")] == ["fail", "pass", "fail"]


def test_a_share_is_shown_rounded_down() -> None:
    assert outcome("ao", dataset(frame_count=100_000, ao_locked=74_999)) == {
        "name": "ao",
        "result": "fail",
        "dataset_id": "AAAAA",
        "measured": 0.7499,
        "required": 0.75,
    }


MILLIONTHS = st.integers(0, 1_000_000).map(lambda n: n / 1_000_000) | st.integers(0, 100).map(
    lambda n: n / 100
)


@given(st.integers(1, 80_000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), MILLIONTHS)
@example((10_000_000, 6_666_667), 0.66666667)
def test_the_share_shown_never_contradicts_the_result(counts: tuple[int, int], required: float) -> None:
    frames, locked = counts
    shown = outcome(
        "ao", dataset(frame_count=frames, ao_locked=locked), rules=Qualification(min_ao_locked=required)
    )
    meets = Fraction(locked, frames) >= Fraction(str(required))
    assert (shown["result"] == "pass") == meets
    assert isinstance(shown["measured"], float)
    assert (shown["measured"] >= required) == meets
    assert ((criteria.margin(shown) or 0) >= 0) == meets
    assert shown["measured"] == pytest.approx(locked / frames, abs=1e-4)


def test_a_share_must_hold_in_each_dataset_not_over_their_sum() -> None:
    assert says(dataset("A"), dataset("B", ao_locked=128)) == FAILED


def test_a_null_next_to_a_number_means_no_frames() -> None:
    health = outcome("health", dataset(health={"good": None, "bad": 171}))
    assert (health["result"], health["measured"]) == ("fail", 0.0)
    assert outcome("gos", dataset(gos_status={"closed": 171}))["result"] == "fail"
    assert outcome("health", dataset(health={"good": 0, "bad": None}))["result"] == "fail"


@pytest.mark.parametrize("counts", [None, {}, {"good": None, "open": None, "bad": None}])
def test_nothing_but_nulls_is_unknown(counts: dict[str, int | None] | None) -> None:
    for name, judged in (("health", dataset(health=counts)), ("gos", dataset(gos_status=counts))):
        assert (outcome(name, judged)["result"], outcome(name, judged)["measured"]) == ("unknown", None)
        assert says(judged) == UNDETERMINED


def test_no_ao_count_is_unknown() -> None:
    assert outcome("ao", dataset(ao_locked=None))["result"] == "unknown"
    assert outcome("ao", dataset(ao_locked=0))["result"] == "fail"


@pytest.mark.parametrize("frame_count", [None, 0])
def test_without_a_frame_count_no_share_is_known(frame_count: int | None) -> None:
    judged = dataset(frame_count=frame_count, health={"good": 0}, gos_status={"open": 0}, ao_locked=0)
    found = [outcome(name, judged) for name in ("health", "gos", "ao")]
    assert [(c["result"], c["measured"]) for c in found] == [("unknown", None)] * 3


def test_more_frames_counted_than_exist_is_unknown() -> None:
    judged = dataset(health={"good": 172}, gos_status={"open": 171, "closed": 2}, ao_locked=180)
    found = [outcome(name, judged) for name in ("health", "gos", "ao")]
    assert [c["result"] for c in found] == ["unknown"] * 3
    assert [c["measured"] for c in found] == [f"{n} counted in 171 frames" for n in (172, 173, 180)]
    assert says(judged) == UNDETERMINED


# Stokes


STOKES: dict[str, list[str | None]] = {
    "pass": ["IQUV", "VUQI", " IQUV\n"],
    "fail": ["IQU", "I", "iquv", "IQUVX", "IQUVV", "IIQUV", "I,Q,U,V", "\N{SUN WITH FACE}"],
    "unknown": ["", " ", None],
}


@pytest.mark.parametrize(
    ("stokes", "result"), [(stokes, result) for result in STOKES for stokes in STOKES[result]]
)
def test_exactly_the_four_stokes_parameters_must_be_present(stokes: str | None, result: str) -> None:
    found = outcome("stokes", dataset(stokes_parameters=stokes))
    assert (found["result"], found["required"]) == (result, "IQUV")
    assert found["measured"] == (None if result == "unknown" else stokes)


def test_fewer_stokes_parameters_may_be_required() -> None:
    intensity = Qualification(stokes="I")
    assert says(dataset(stokes_parameters="I"), rules=intensity) == INVERTIBLE
    assert says(dataset(stokes_parameters="IQUV"), rules=intensity) == INVERTIBLE
    assert says(dataset(stokes_parameters="QUV"), rules=intensity) == FAILED
    assert says(dataset(stokes_parameters="IX"), rules=intensity) == FAILED


# On the disk


def test_a_corner_must_be_nearer_than_the_radius() -> None:
    radius = round(apparent_radius_arcsec(JULY), 2)
    at_limb = outcome("on_disk", dataset(bounding_box=f"({radius},0),(800,0)"))
    assert (at_limb["result"], at_limb["measured"], at_limb["required"]) == ("fail", radius, radius)
    inside = outcome("on_disk", dataset(bounding_box=f"({radius - 0.01:.2f},0),(800,0)"))
    assert inside["result"] == "pass"
    assert inside["measured"] == pytest.approx(radius - 0.01)


@pytest.mark.parametrize("box", ["(900,100),(100,-900)", "(-100,900),(-900,100)", "(100,-900),(900,100)"])
def test_the_two_corners_that_the_store_leaves_out_count_too(box: str) -> None:
    found = outcome("on_disk", dataset(bounding_box=box))
    assert (found["result"], found["measured"]) == ("fail", 1272.79)


def test_the_same_place_is_on_the_disk_in_january_and_off_it_in_july() -> None:
    box = "(-950,10),(-960,0)"
    assert outcome("on_disk", dataset(bounding_box=box, start_time=JANUARY))["result"] == "pass"
    assert outcome("on_disk", dataset(bounding_box=box, start_time=JULY))["result"] == "fail"


@pytest.mark.parametrize("box", ["(-0,-0),(-0,-0.01)", " ( +1.5e2 , 3. ) , ( 0,-4 ) "])
def test_other_spellings_of_numbers_are_read(box: str) -> None:
    assert outcome("on_disk", dataset(bounding_box=box))["result"] == "pass"


UNREADABLE = [
    None,
    "",
    "(NaN,NaN),(NaN,NaN)",
    "(1,2),(3,NaN)",
    "(1,2),(inf,3)",
    "(1,2),(1e999,3)",
    "(1.5e308,1.5e308),(0,0)",
    "(1,2)",
    "(1,2),(3)",
    "1,2,3,4",
    "(1,2),(3,4),(5,6)",
    "(1_0,2),(3,4)",
    "(\N{ARABIC-INDIC DIGIT ONE},2),(3,4)",
    "(1;2),(3,4)",
]
HOSTILE = [pytest.param("(" + "1" * 200_000, id="long"), pytest.param("(1" + " " * 200_000, id="wide")]


@pytest.mark.parametrize("box", [*UNREADABLE, *HOSTILE])
def test_a_box_that_cannot_be_read_is_unknown(box: str | None) -> None:
    found = outcome("on_disk", dataset(bounding_box=box))
    assert (found["result"], found["measured"]) == ("unknown", None)
    assert found["required"] == pytest.approx(943.43, abs=0.1)
    assert says(dataset(bounding_box=box)) == UNDETERMINED


def test_without_a_start_time_the_radius_is_unknown() -> None:
    found = outcome("on_disk", dataset(start_time=None))
    assert (found["result"], found["measured"], found["required"]) == ("unknown", None, None)


def test_the_place_can_be_left_out_of_the_rules() -> None:
    rules = Qualification(on_disk=False)
    off = dataset(bounding_box="(2000,2000),(1900,1900)", start_time=None)
    assert "on_disk" not in [c["name"] for c in all_of(judge([off], rules))]
    assert (says(off), says(off, rules=rules)) == (UNDETERMINED, INVERTIBLE)


# Bands

FULL = msgspec.structs.replace(PUBLISHED, band_coverage="full")


@pytest.mark.parametrize(
    ("nm", "by_center", "by_whole"),
    [
        ((629.7, 630.5), "pass", "pass"),
        ((629.71, 630.5), "pass", "fail"),
        ((629.7, 630.49), "pass", "fail"),
        ((630.2, 631.0), "pass", "fail"),
        ((630.21, 631.0), "fail", "fail"),
        ((629.0, 630.2), "pass", "fail"),
        ((629.0, 630.19), "fail", "fail"),
        ((630.2, 630.2), "pass", "fail"),
        ((None, 631.0), "unknown", "unknown"),
        ((629.0, None), "unknown", "unknown"),
        ((None, None), "unknown", "unknown"),
        ((float("nan"), 631.0), "unknown", "unknown"),
        ((629.0, float("inf")), "unknown", "unknown"),
        ((float("-inf"), 631.0), "unknown", "unknown"),
        ((630.5, 629.7), "unknown", "unknown"),
    ],
)
def test_a_range_covers_a_band_up_to_its_edges(
    nm: tuple[float | None, float | None], by_center: str, by_whole: str
) -> None:
    assert outcome("band Fe I 630.2", dataset(nm=nm), rules=PUBLISHED)["result"] == by_center
    assert outcome("band Fe I 630.2", dataset(nm=nm), rules=FULL)["result"] == by_whole


@pytest.mark.parametrize(
    ("name", "nm", "by_center", "by_whole"),
    [
        ("Fe I 630.3", (629.8, 630.8), "pass", "pass"),
        ("Fe I 630.3", (629.81, 630.8), "pass", "fail"),
        ("Fe I 630.3", (630.3, 634.4), "pass", "fail"),
        ("Fe I 630.3", (630.31, 634.4), "fail", "fail"),
        ("Ca II 854.2", (853.2, 855.2), "pass", "pass"),
        ("Ca II 854.2", (854.2, 856.8), "pass", "fail"),
        ("Ca II 854.2", (854.23, 855.23), "fail", "fail"),
        ("Na I 589.3", (588.3, 590.3), "pass", "pass"),
        ("Na I 589.3", (588.3, 589.3), "pass", "fail"),
        ("Na I 589.3", (588.3, 589.29), "fail", "fail"),
    ],
)
def test_the_bands_of_today_by_their_centers_and_edges(
    name: str, nm: tuple[float, float], by_center: str, by_whole: str
) -> None:
    whole = Qualification(band_coverage="full")
    assert outcome(f"band {name}", dataset(nm=nm))["result"] == by_center
    assert outcome(f"band {name}", dataset(nm=nm), rules=whole)["result"] == by_whole


def test_a_band_names_the_dataset_that_covers_it() -> None:
    found = outcome("band Fe I 630.3", dataset("A", CA), dataset("B", FE), dataset("C", BOTH))
    assert (found["dataset_id"], found["measured"], found["required"]) == ("B", [629.4, 630.8], 630.3)
    assert outcome("band Fe I 630.2", dataset(), rules=FULL)["required"] == [629.7, 630.5]


def test_an_uncovered_band_lists_what_was_observed() -> None:
    found = outcome("band Fe I 630.3", dataset("A", CA), dataset("B", (393.0, 394.0)))
    assert (found["result"], found["dataset_id"]) == ("fail", None)
    assert found["measured"] == [[853.4, 855.1], [393.0, 394.0]]


def test_a_band_is_unknown_only_while_no_other_dataset_covers_it() -> None:
    without = dataset("A", (None, None))
    for name, rules in (("band Fe I 630.3", RULES), ("band Fe I 630.2", PUBLISHED)):
        assert outcome(name, without, dataset("B", CA), rules=rules)["result"] == "unknown"
        assert says(without, dataset("B", CA), rules=rules) == UNDETERMINED
        covered = without, dataset("B", FE), dataset("C", CA)
        assert outcome(name, *covered, rules=rules)["result"] == "pass"
        assert says(*covered, rules=rules) == INVERTIBLE


def test_two_halves_of_a_band_do_not_make_a_whole() -> None:
    halves = dataset("A", (629.7, 630.2)), dataset("B", (630.2, 630.5))
    assert outcome("band Fe I 630.2", *halves, rules=FULL)["result"] == "fail"


def test_an_optional_band_is_shown_and_never_decides() -> None:
    both = dataset("A", CA), dataset("B", FE)
    hidden = (*both, dataset("C", (None, None)))
    for name, rules in (("band Na I 589.3", RULES), ("band Ca II 849.8", PUBLISHED)):
        assert outcome(name, *both, rules=rules)["result"] == "fail"
        assert says(*both, rules=rules) == INVERTIBLE
        assert outcome(name, *hidden, rules=rules)["result"] == "unknown"
        assert says(*hidden, rules=rules) == INVERTIBLE
    failed = dataset("A", CA, ao_locked=0), dataset("B", FE), dataset("C", (None, None))
    assert says(*failed) == FAILED


def test_a_required_band_decides() -> None:
    assert says(dataset(nm=CA)) == FAILED
    only_ca = Qualification(bands=[Band("Ca II 854.2", 853.5, 854.2, 855.0, True)])
    assert says(dataset(nm=CA), rules=only_ca) == INVERTIBLE
    assert says(dataset(nm=CA), rules=Qualification(bands=[])) == INVERTIBLE


def test_an_optional_band_is_marked_and_no_other_criterion_is() -> None:
    optional = [c["name"] for c in all_of(judge([dataset()], RULES)) if c.get("optional")]
    assert optional == ["band Ca II 854.2", "band Na I 589.3"]
    assert all("optional" not in c for c in all_of(judge([dataset()], RULES)) if c["name"] not in optional)


# Narrow: a warning

SIDES = [  # of a range, below and above 630.3 nm; whether less than 0.5 nm lies on either
    ((629.8, 630.8), None),
    ((629.801, 630.8), (0.499, 0.5)),
    ((629.8, 630.799), (0.5, 0.499)),
    ((630.239, 634.39), (0.061, 4.09)),
    ((630.3, 630.3), (0.0, 0.0)),
    ((600.0, 900.0), None),
    ((630.301, 634.39), None),  # does not contain the center: not observed, so not narrow
    ((None, 634.39), None),
    ((629.8, float("nan")), None),
    ((630.4, 630.2), None),
]


@pytest.mark.parametrize(("nm", "sides"), SIDES)
def test_a_dataset_is_narrow_with_less_than_narrow_nm_on_a_side_of_a_center(
    nm: tuple[float | None, float | None], sides: tuple[float, float] | None
) -> None:
    iron = Qualification(bands=RULES.bands[:1])
    found = criteria.narrow_bands("VISP", *nm, iron)
    assert [(n["band"], n["below_nm"], n["above_nm"], n["narrow_nm"]) for n in found] == (
        [("Fe I 630.3", *sides, 0.5)] if sides else []
    )


def test_each_band_is_narrow_by_its_own_setting_and_0_is_never() -> None:
    assert [n["band"] for n in criteria.narrow_bands("VISP", 853.21, 855.2, RULES)] == ["Ca II 854.2"]
    assert [n["band"] for n in criteria.narrow_bands("VISP", 588.3, 590.29, RULES)] == ["Na I 589.3"]
    for exact in ((853.2, 855.2), (588.3, 590.3)):
        assert criteria.narrow_bands("VISP", *exact, RULES) == []
    assert criteria.narrow_bands("VISP", 854.2, 854.2, PUBLISHED) == []
    own = InstrumentRules("DL-NIRSP", bands=[Band("Fe I 630.3", 629.8, 630.3, 630.8, True, 3.0)])
    rules = Qualification(per_instrument=[own])
    assert criteria.narrow_bands("VISP", 628.3, 632.3, rules) == []
    assert [n["narrow_nm"] for n in criteria.narrow_bands("DL-NIRSP", 628.3, 632.3, rules)] == [3.0]


def narrower(rules: Qualification, narrow_nm: float) -> Qualification:
    return msgspec.structs.replace(
        rules, bands=[msgspec.structs.replace(band, narrow_nm=narrow_nm) for band in rules.bands]
    )


def test_narrow_is_no_part_of_a_verdict_nor_of_its_version() -> None:
    red = dataset(nm=(630.239, 634.39))
    for other in (narrower(RULES, 0.0), narrower(RULES, 100.0)):
        assert judge([red], other) == judge([red], RULES)
        assert version(other) == version(RULES)
        assert criteria.deciding(other) == criteria.deciding(RULES)
        own = [InstrumentRules("VISP", bands=other.bands)]
        same = [InstrumentRules("VISP", bands=RULES.bands)]
        assert version(Qualification(per_instrument=own)) == version(Qualification(per_instrument=same))
    assert says(red) == INVERTIBLE


# Margins


def test_a_margin_is_what_there_is_to_spare_in_the_measured_unit() -> None:
    radius = round(apparent_radius_arcsec(JULY), 2)
    judged = dataset(
        frame_count=1800, health={"good": 1800}, gos_status={"open": 1799}, ao_locked=1349,
        bounding_box=f"({radius + 0.1:.2f},0),(800,0)",
    )  # fmt: skip
    margins = {c["name"]: criteria.margin(c) for c in all_of(judge([judged], RULES))}
    assert margins == {
        "health": 0.25, "gos": -0.0006, "ao": -0.0006, "on_disk": -0.1, "stokes": None,
        "band Ca II 854.2": 45.8, "band Fe I 630.3": 30.3, "band Na I 589.3": -10.7,
    }  # fmt: skip
    near = outcome("on_disk", dataset(bounding_box=f"({radius - 0.07:.2f},0),(800,0)"))
    assert criteria.margin(near) == 0.07


@pytest.mark.parametrize(
    ("ranges", "by_center", "by_whole"),
    [
        ([(630.0, 630.1)], -0.1, -0.7),  # of the published band, 629.7 to 630.5 around 630.2
        ([(630.239, 634.39)], -0.039, -0.539),
        ([(853.4, 855.1), (630.239, 634.39)], -0.039, -0.539),
        ([(629.9, 630.4)], 0.2, -0.3),
        ([(629.6, 630.8)], 0.6, 0.1),
        ([(629.7, 630.5)], 0.3, 0.0),
    ],
)
def test_the_margin_of_a_band_is_how_many_nm_are_missing_or_to_spare(
    ranges: list[tuple[float, float]], by_center: float, by_whole: float
) -> None:
    datasets = [dataset(f"D{number}", nm) for number, nm in enumerate(ranges)]
    for rules, by in ((PUBLISHED, by_center), (FULL, by_whole)):
        assert criteria.margin(outcome("band Fe I 630.2", *datasets, rules=rules)) == by


@given(st.lists(st.tuples(st.floats(600, 660), st.floats(0, 20)), min_size=1, max_size=3), st.booleans())
def test_a_range_longer_by_what_is_missing_covers_the_band(
    ranges: list[tuple[float, float]], whole: bool
) -> None:
    rules = FULL if whole else PUBLISHED
    low, high = (629.7, 630.5) if whole else (630.2, 630.2)
    found = outcome("band Fe I 630.2", *(dataset(f"D{n}", (at, at + long)) for n, (at, long) in enumerate(ranges)), rules=rules)  # fmt: skip
    by = criteria.margin(found)
    assert by is not None
    assert (by >= 0) == (found["result"] == "pass")
    lacks = [max(at - low, 0) + max(high - (at + long), 0) for at, long in ranges]
    if by < 0:
        assert -by == pytest.approx(min(lacks))
        assert min(lacks) > 0


def test_how_measured_and_required_compare_and_in_which_unit() -> None:
    judged = all_of(judge([dataset(nm=(629.4, 630.7), ao_locked=0)], RULES))
    for criterion in judged:
        sign, unit = criteria.comparison(criterion["name"])
        measured, required = criterion["measured"], criterion["required"]
        if sign == ">=":
            assert isinstance(measured, float) and isinstance(required, float)
            assert (unit, measured >= required) == ("fraction of frames", criterion["result"] == "pass")
        elif sign == "<":
            assert isinstance(measured, float) and isinstance(required, float)
            assert (unit, measured < required) == ("arcsec", criterion["result"] == "pass")
        else:
            assert sign == "contains"
            assert unit == ("nm" if criterion["name"].startswith("band ") else None)
    assert {criteria.comparison(c["name"])[0] for c in judged} == {">=", "<", "contains"}


def test_an_unknown_value_has_no_margin() -> None:
    lost = dataset(frame_count=None, bounding_box=None, stokes_parameters=None, nm=(None, None))
    contradicting = dataset(ao_locked=172)
    for judged in (lost, contradicting, dataset(start_time=None)):
        unknown = [c for c in all_of(judge([judged], RULES)) if c["result"] == "unknown"]
        assert unknown
        assert [criteria.margin(c) for c in unknown] == [None] * len(unknown)


# Instrument programs and instruments


def test_one_good_instrument_program_is_enough_and_the_verdict_names_it() -> None:
    good = dataset("A", instrument_program_execution_id="id.2")
    unknown = dataset("C", instrument_program_execution_id="id.3", ao_locked=None)
    verdict = judge([good, dataset("B", ao_locked=0), unknown], RULES)
    assert (verdict["invertible"], verdict["undetermined"]) == INVERTIBLE
    programs = [(p["instrument_program_id"], p["invertible"]) for p in verdict["instrument_programs"]]
    assert programs == [("id.1", False), ("id.2", True), ("id.3", False)]


def test_bands_of_different_instrument_programs_do_not_add_up() -> None:
    apart = dataset("A", CA), dataset("B", FE, instrument_program_execution_id="id.2")
    assert says(*apart, rules=PUBLISHED) == FAILED
    assert [p["invertible"] for p in judge(apart, RULES)["instrument_programs"]] == [False, True]


def test_datasets_without_an_instrument_program_stand_together_and_are_never_invertible() -> None:
    nameless = [dataset(n, nm, instrument_program_execution_id=None) for n, nm in (("A", CA), ("B", FE))]
    for rules in (RULES, PUBLISHED):
        verdict = judge([dataset("C", CA), *nameless], rules)
        programs = [(p["instrument_program_id"], p["invertible"]) for p in verdict["instrument_programs"]]
        assert programs == [(None, False), ("id.1", False)]
        assert verdict["undetermined"]  # the id may still come
        bands = [c for c in verdict["instrument_programs"][0]["criteria"] if c["name"].startswith("band ")]
        assert {(c["result"], c["dataset_id"], c["measured"]) for c in bands} == {
            ("unknown", None, "no instrument program id")
        }
        assert len(bands) == len(rules.bands)
    assert says(*nameless, dataset("C", FE, instrument_program_execution_id="id.2")) == INVERTIBLE
    assert says(nameless[1], rules=Qualification(bands=[])) == UNDETERMINED
    lost = msgspec.structs.replace(nameless[1], ao_locked=0)
    assert says(nameless[0], lost) == FAILED


def test_an_op_is_undetermined_when_an_instrument_program_lacks_only_a_measurement() -> None:
    unknown = dataset("A", ao_locked=None)
    failed = dataset("B", ao_locked=0, instrument_program_execution_id="id.2")
    assert says(unknown) == UNDETERMINED
    assert says(unknown, failed) == UNDETERMINED
    assert says(failed) == FAILED
    assert says(dataset(ao_locked=None, stokes_parameters="I")) == FAILED
    assert says(unknown, dataset("C", ao_locked=0)) == FAILED
    assert says(unknown, dataset("C", instrument_program_execution_id="id.3")) == INVERTIBLE


def test_other_instruments_are_passed_over() -> None:
    others = [
        dataset(str(n), instrument_name=name, ao_locked=0)
        for n, name in enumerate(("VBI", "visp", "VISP ", None))
    ]
    assert judge([dataset(), *others], RULES) == judge([dataset()], RULES)
    assert judge(others, RULES) == {"invertible": False, "undetermined": False, "instrument_programs": []}
    assert judge([], RULES) == {"invertible": False, "undetermined": False, "instrument_programs": []}
    assert (
        says(dataset(instrument_name="VBI"), rules=Qualification(instruments=["VISP", "VBI"])) == INVERTIBLE
    )


def test_the_newest_arrival_is_that_of_the_qualifying_instruments() -> None:
    first, last = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 2, 1, tzinfo=UTC)
    vbi = dataset("C", instrument_name="VBI", create_date=last + timedelta(days=90))
    assert (
        newest_arrival([dataset("A", create_date=last), dataset("B", create_date=first), vbi], RULES) == last
    )
    assert newest_arrival([vbi], RULES) is None


def test_a_dataset_arrived_no_later_than_it_was_first_seen() -> None:
    seen = datetime(2024, 3, 1, tzinfo=UTC)
    early, late = dataset("A", create_date=seen - timedelta(days=9)), dataset("B", create_date=seen)
    future = dataset("C", create_date=datetime(9999, 12, 31, tzinfo=UTC))
    first_seen = {"A": seen, "B": seen + timedelta(days=3), "C": seen + timedelta(days=1)}
    assert newest_arrival([early], RULES, first_seen) == early.create_date
    assert newest_arrival([early, late], RULES, first_seen) == late.create_date
    assert newest_arrival([early, late, future], RULES, first_seen) == seen + timedelta(days=1)
    assert newest_arrival([future], RULES) == future.create_date


# Versions


def rules_from(text: str) -> Qualification:
    return msgspec.convert(yaml.safe_load(text), Qualification)


def test_the_same_rules_have_the_same_version_however_they_are_written() -> None:
    assert re.fullmatch("[0-9a-f]{12}", version(RULES))
    assert version(rules_from("{on_disk: true, min_open_gos: 1, min_good_health: 0.750}")) == version(RULES)
    assert version(Qualification(min_open_gos=1)) == version(RULES)
    assert version(Qualification(bands=RULES.bands[::-1])) == version(RULES)
    assert version(Qualification(instruments=["VISP", "VBI"])) == version(
        Qualification(instruments=["VBI", "VISP"])
    )
    assert version(Qualification(instruments=["VISP", "VISP"])) == version(RULES)


OTHER_RULES = [
    Qualification(instruments=["VBI"]),
    Qualification(min_good_health=0.76),
    Qualification(min_open_gos=0.99),
    Qualification(min_ao_locked=0.76),
    Qualification(stokes="I"),
    Qualification(on_disk=False),
    Qualification(band_coverage="full"),
    Qualification(bands=RULES.bands[:2]),
    *(
        Qualification(bands=[msgspec.structs.replace(RULES.bands[0], **{name: value}), *RULES.bands[1:]])
        for name, value in {
            "name": "Fe",
            "min_nm": 1,
            "center_nm": 630,
            "max_nm": 631,
            "required": False,
        }.items()
    ),
]


def test_every_setting_changes_the_version() -> None:
    versions = [version(rules) for rules in (RULES, *OTHER_RULES)]
    assert len(set(versions)) == len(versions)


def test_the_version_of_the_default_rules_stays() -> None:
    """Verdicts are kept beside their version: one that moves has every OP judged anew."""
    assert version(RULES) == "87a33761620a"
    assert version(PUBLISHED) == "854543d9cf5a"


# What holds for whatever the store sends

COUNTS = st.sampled_from([100, 100, 100, 75, 74, 0, 101, None])
START = st.sampled_from([JULY, JULY, JANUARY, None])
BOXES = st.sampled_from(["(1,2),(3,4)", "(1,2),(3,4)", "(900,0),(0,-900)", "(NaN,NaN),(NaN,NaN)", None])
RANGES = st.sampled_from([BOTH, BOTH, CA, FE, (849.0, 851.0), (None, None), (855.0, 853.0)])


@st.composite
def some_datasets(draw: st.DrawFn) -> list[Dataset]:
    """Up to four datasets in up to three instrument programs, each measurement good, bad or missing."""
    return [
        dataset(
            dataset_id,
            draw(RANGES),
            instrument_name=draw(st.sampled_from(["VISP", "VISP", "VISP", "VBI", None])),
            instrument_program_execution_id=draw(st.sampled_from(["id.1", "id.1", "id.2", None])),
            frame_count=draw(st.sampled_from([100, 100, 100, 0, None])),
            health=draw(st.none() | st.fixed_dictionaries({"good": COUNTS})),
            gos_status=draw(st.none() | st.fixed_dictionaries({"open": COUNTS})),
            ao_locked=draw(COUNTS),
            stokes_parameters=draw(st.sampled_from(["IQUV", "IQUV", "I", "", None])),
            start_time=draw(START),
            bounding_box=draw(BOXES),
        )
        for dataset_id in draw(st.lists(st.sampled_from("ABCD"), unique=True, max_size=4))
    ]


MEASUREMENTS = [
    "frame_count",
    "health",
    "gos_status",
    "ao_locked",
    "stokes_parameters",
    "bounding_box",
    "start_time",
]
RANGE = ["wavelength_min", "wavelength_max"]


def without(judged: Dataset, fields: Sequence[str]) -> Dataset:
    return msgspec.structs.replace(judged, **dict.fromkeys(fields))


@given(some_datasets(), st.randoms(use_true_random=False))
def test_the_order_of_datasets_and_bands_never_matters(datasets: list[Dataset], random: Any) -> None:
    for rules in (RULES, PUBLISHED):
        shuffled, bands = datasets.copy(), rules.bands.copy()
        random.shuffle(shuffled)
        random.shuffle(bands)
        assert judge(shuffled, Qualification(bands=bands)) == judge(datasets, rules)


@given(some_datasets())
def test_a_verdict_survives_json(datasets: list[Dataset]) -> None:
    verdict = judge(datasets, RULES)
    assert json.loads(json.dumps(verdict, allow_nan=False)) == verdict


@given(some_datasets(), st.lists(st.sampled_from(MEASUREMENTS + RANGE)), st.data())
def test_losing_a_measurement_never_makes_an_op_invertible(
    datasets: list[Dataset], lost: list[str], data: st.DataObject
) -> None:
    fewer = [without(d, lost) if data.draw(st.booleans()) else d for d in datasets]
    assert judge(datasets, RULES)["invertible"] or not judge(fewer, RULES)["invertible"]


@given(some_datasets(), st.sampled_from(MEASUREMENTS), st.sampled_from(["id.1", "id.2", "id.3", None]))
def test_a_further_dataset_that_lacks_a_measurement_never_makes_an_op_invertible(
    datasets: list[Dataset], lost: str, program: str | None
) -> None:
    further = without(dataset("E", instrument_program_execution_id=program), [lost])
    assert judge(datasets, RULES)["invertible"] or not judge([*datasets, further], RULES)["invertible"]


@given(some_datasets())
@example([dataset("A", CA), dataset("B", FE)])
def test_an_invertible_op_lacks_no_measurement(datasets: list[Dataset]) -> None:
    for program in judge(datasets, RULES)["instrument_programs"]:
        if not program["invertible"]:
            continue
        members = {
            d.dataset_id: d
            for d in datasets
            if d.instrument_program_execution_id == program["instrument_program_id"]
            and d.instrument_name == "VISP"
        }
        assert members
        assert program["instrument_program_id"] is not None
        assert all(getattr(d, name) not in (None, 0, "") for d in members.values() for name in MEASUREMENTS)
        assert {c["dataset_id"] for c in program["criteria"]} - {None} == set(members)
        for criterion in program["criteria"]:
            if criterion["name"] == "band Fe I 630.3":
                covering = members[str(criterion["dataset_id"])]
                assert criterion["measured"] == [covering.wavelength_min, covering.wavelength_max]


@pytest.mark.parametrize(
    "lost", [*([name] for name in MEASUREMENTS), RANGE, ["instrument_program_execution_id"]]
)
def test_each_missing_measurement_leaves_an_op_undetermined(lost: list[str]) -> None:
    assert says(without(dataset(), lost)) == UNDETERMINED


ANY_NUMBER = st.floats() | st.integers() | st.sampled_from([0, 2**53 - 1, 1e308, -0.0, 5e-324])
ANY_COUNTS = st.none() | st.dictionaries(
    st.sampled_from(["good", "open", "bad", "?"]), st.none() | st.integers(0, 2**53)
)
ANY_BOX = st.from_regex(r"\((-?\d*\.?\d*|NaN|1e999|inf),.*\),\(.*,.*\)", fullmatch=True)
ANY_RECORD = st.fixed_dictionaries(
    {
        "datasetId": st.text(min_size=1, max_size=5),
        "observingProgramExecutionId": st.just("eid_1"),
        "createDate": st.sampled_from(["2022-12-08T19:07:55.038280", "0001-01-01T00:00:00Z"]),
        "instrumentName": st.sampled_from(["VISP", None]),
        "instrumentProgramExecutionId": st.none() | st.text(min_size=1, max_size=5),
    },
    optional={
        "frameCount": st.none() | st.integers(0, 2**53),
        "health": ANY_COUNTS,
        "gosStatus": ANY_COUNTS,
        "aoLocked": st.none() | st.integers(0, 2**53),
        "stokesParameters": st.none() | st.text(),
        "boundingBox": st.none() | st.text() | ANY_BOX,
        "wavelengthMin": st.none() | ANY_NUMBER,
        "wavelengthMax": st.none() | ANY_NUMBER,
        "startTime": st.none() | st.datetimes().map(datetime.isoformat),
    },
)


@given(st.lists(ANY_RECORD, min_size=1, max_size=4, unique_by=lambda record: str(record["datasetId"])))
@settings(max_examples=300)
def test_whatever_the_reader_accepts_is_judged(raws: list[dict[str, Any]]) -> None:
    records = [inventory.read(json.dumps(raw).encode()) for raw in raws]
    datasets = [record.dataset for record in records if isinstance(record, inventory.Record)]
    assume(datasets)
    for rules in (RULES, FULL):
        verdict = judge(datasets, rules)
        assert json.loads(json.dumps(verdict, allow_nan=False)) == verdict
        assert judge(datasets[::-1], rules) == verdict
        assert newest_arrival(datasets, rules) in [None, *(d.create_date for d in datasets)]


# Which fields count

CHANGES: dict[str, Any] = {
    "instrument_program_execution_id": "id.9",
    "instrument_name": "VBI",
    "create_date": datetime(2030, 1, 1, tzinfo=UTC),
    "frame_count": 1000,
    "health": None,
    "gos_status": None,
    "ao_locked": None,
    "stokes_parameters": "I",
    "start_time": None,
    "bounding_box": None,
    "wavelength_min": 860.0,
    "wavelength_max": 610.0,
}


ASKING = Qualification()  # rules that ask for every input: name here what asks nothing by default


def test_the_named_inputs_are_those_that_a_verdict_depends_on() -> None:
    def found(judged: Dataset) -> tuple[Verdict, datetime | None]:
        return judge([judged], ASKING), newest_arrival([judged], ASKING)

    assert {"observing_program_execution_id", *CHANGES} == criteria.INPUTS
    for name, value in CHANGES.items():
        assert found(dataset(**{name: value})) != found(dataset()), name
    unread = set(Dataset.__struct_fields__) - criteria.INPUTS - {"dataset_id"}
    assert found(msgspec.structs.replace(dataset(), **dict.fromkeys(unread, object()))) == found(dataset())


def test_an_instrument_may_have_its_own_rules_in_the_settings_alone() -> None:
    band = Band("Si X 1430", 1429.0, 1430.1, 1431.0, True)
    own = InstrumentRules("CRYO-NIRSP", min_ao_locked=0.5, on_disk=False, bands=[band])
    rules = Qualification(instruments=["VISP", "CRYO-NIRSP"], per_instrument=[own])
    half_locked = {"frame_count": 100, "health": {"good": 100}, "gos_status": {"open": 100}, "ao_locked": 50}
    cryo = dataset("CRYOA", (1428.0, 1432.0), **half_locked, instrument_name="CRYO-NIRSP")
    (program,) = judge([cryo], rules)["instrument_programs"]
    assert [c["name"] for c in program["criteria"]] == ["health", "gos", "ao", "stokes", "band Si X 1430"]
    assert program["invertible"]
    visp = dataset("VISPA", (1428.0, 1432.0), **half_locked)
    (program,) = judge([visp], rules)["instrument_programs"]
    assert {c["name"] for c in program["criteria"] if c["result"] == "fail"} >= {"ao", "band Fe I 630.3"}
    assert version(rules) != version(Qualification(instruments=["VISP", "CRYO-NIRSP"]))
    assert version(Qualification(per_instrument=[])) == version(Qualification())


# The guide


def block(language: str) -> str:
    """The guide's only block in that language."""
    (text,) = re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    return str(text)


def test_the_guide_shows_the_default_rules() -> None:
    shown = yaml.safe_load(block("yaml"))["qualification"]
    assert msgspec.convert(shown, Qualification) == RULES
    assert list(shown) == list(Qualification.__struct_fields__)


def test_the_guide_shows_a_verdict_as_it_is() -> None:
    common: dict[str, Any] = {
        "start_time": datetime(2024, 10, 9, 19, 47, 27, tzinfo=UTC),
        "instrument_program_execution_id": "id.100.200",
        "frame_count": 1800,
        "health": {"good": 1800},
    }
    first = dataset("BKXRA", (629.58, 630.61), **common, gos_status={"open": 1800}, ao_locked=1349)
    second = dataset("BKXRB", (853.4, 855.1), **common, gos_status=None, ao_locked=1800)
    shown = judge([first, second], RULES)
    assert json.loads(block("json")) == {"criteria_version": version(RULES), **shown}
