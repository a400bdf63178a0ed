"""The benchmark's table, and that its measurements run."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.__main__ import line
from tests.bench.measure import MEASUREMENTS, Figure

TOP = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("measured", "target", "met"), [(1.29, 1.3, "1.3 yes"), (1.31, 1.3, "1.3 NO"), (1.31, None, "1.31")]
)
def test_a_line_shows_figure_unit_target_and_whether_it_was_met(
    measured: float, target: float | None, met: str
) -> None:
    shown = line(Figure("next", measured, "x the imports", target))
    assert shown.startswith("next, x the imports  ")
    assert shown.endswith(met)


@pytest.mark.slow
def test_measurements_run_on_a_filled_schema(tmp_path: Path) -> None:
    only = [word for name, one in MEASUREMENTS.items() if one.filled for word in ("--only", name)]
    command = [sys.executable, "-m", "tests.bench", "--folder", str(tmp_path / "bench"), "--ops", "60", *only]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=True)
    assert "60 OPs, filled in" in done.stdout
    assert "disk of one event, bytes" in done.stdout
    assert not (tmp_path / "bench").exists()
