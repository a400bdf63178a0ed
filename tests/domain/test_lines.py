"""Spectral lines: their names, and whether a dataset observes them."""

import pytest

from l2inv.domain import lines


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (629.52, 630.91, ["Fe I (630.15 nm)"]),
        (630.239, 634.0, ["Fe I (630.15 nm)"]),
        (630.7, 634.0, []),
        (853.1, 855.3, ["Ca II (854.21 nm)"]),
        (588.9, 590.0, ["Na I D2 (589.0 nm)"]),
        (588.0, 900.0, ["Fe I (630.15 nm)"]),
        (None, 630.9, []),
    ],
)
def test_a_dataset_without_lines_is_taken_to_hold_the_first_that_is_near(
    low: float | None, high: float, found: list[str]
) -> None:
    assert lines.presumed((low, high)) == found


def test_a_line_must_be_known_and_observed() -> None:
    iron = [(629.52, 630.91)]
    assert lines.mistakes(["Fe I (630.25 nm)"], [], iron) == []
    assert lines.mistakes(["Xy I (630.20 nm)"], ["Xy I (630.20 nm)"], iron) == []
    assert "unknown" in lines.mistakes(["Xy I (630.20 nm)"], [], iron)[0]
    assert "outside" in lines.mistakes(["Ca II (854.21 nm)"], [], iron)[0]
    assert lines.mistakes(["Ca II (854.21 nm)"], [], [*iron, (None, None)]) == [], "what is not known"
