"""The pictures of an inversion: the right plane, in the right units, of whatever files, in flat memory."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from l2inv.products import thumbnails
from l2inv.products.findings import Unfit
from l2inv.products.issued import QUANTITIES_FILE, SCIENCE_FILES, Issued
from tests.helpers.products import faults, make
from tests.helpers.products.faults import FAULTS, FIRST, GOOD

DEPTH = 30
AT = 22  # 1.2 - 22 / 10 is -1.0


def planes(folder: Path) -> thumbnails.Planes:
    return thumbnails.planes(folder, GOOD.inversion_id, lambda done, of: None)


def reason(folder: Path) -> str:
    with pytest.raises(Unfit) as unfit:
        planes(folder)
    return unfit.value.what


@pytest.mark.parametrize("of", ["science", "level2"])
def test_the_plane_nearest_to_log_tau_minus_one_is_drawn_in_the_units_of_level_2(
    tmp_path: Path, of: str
) -> None:
    if of == "science":
        make.science(tmp_path, 3, depth=DEPTH)
    else:
        make.level2(tmp_path, GOOD, 3, depth=DEPTH)
    found = planes(tmp_path)
    assert (round(found.log_tau, 3), found.frames, found.slit) == (-1.0, 3, 6)
    for quantity in range(len(make.QUANTITIES)):
        for frame in range(3):
            expected = make.converted(quantity, frame, slit=6, depth=DEPTH)[:, AT]
            np.testing.assert_allclose(found.each[quantity][:, frame], expected, rtol=1e-5)
    field, inclination = (found.each[n] for n in (thumbnails.FIELD, thumbnails.INCLINATION))
    np.testing.assert_allclose(found.each[-1], field * np.cos(np.radians(inclination)), rtol=1e-4)


def test_a_frame_that_does_not_fit_is_blank_and_the_others_are_drawn(tmp_path: Path) -> None:
    make.level2(tmp_path, GOOD, 3)
    (tmp_path / FIRST).write_bytes(b"noise")
    found = planes(tmp_path)
    assert np.isnan(found.each[1][:, 0]).all()
    assert np.isfinite(found.each[1][:, 1:]).all()


def test_files_without_a_plane_give_the_reason(tmp_path: Path) -> None:
    assert reason(tmp_path) == "unreadable"
    (tmp_path / QUANTITIES_FILE).write_bytes(b"noise")
    assert reason(tmp_path) == "format"
    make.science(tmp_path, 3)
    faults.edited(QUANTITIES_FILE, faults.data(0, lambda values: values[:10]))(tmp_path)
    assert reason(tmp_path) == "shape"
    make.science(tmp_path, 3)
    faults.edited(QUANTITIES_FILE, faults.data(0, lambda values: values * np.nan))(tmp_path)
    assert reason(tmp_path) == "optical_depth"
    for name in SCIENCE_FILES:
        (tmp_path / name).unlink()
    (tmp_path / FIRST).write_bytes(b"noise")
    assert reason(tmp_path) == "format"


def test_gigabytes_are_thinned_in_flat_memory(tmp_path: Path) -> None:
    make.science(tmp_path, 3)
    with (tmp_path / QUANTITIES_FILE).open("r+b") as file:  # four gigabytes, of which the disk holds a header
        header = file.read(2880)
        for name, small, large in (("NAXIS1", 6, 3000), ("NAXIS2", 3, 500), ("NAXIS3", 5, 60)):
            old, new = (f"{name}  = {value:20}".encode() for value in (small, large))
            assert old in header
            header = header.replace(old, new)
        file.seek(0)
        file.write(header)
        file.truncate(2880 + -(-4 * 11 * 60 * 500 * 3000 // 2880) * 2880)
    tracemalloc.start()
    found = planes(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {one.shape for one in found.each} == {(375, 250)}
    assert peak < 20_000_000


def test_the_ends_of_a_color_bar_ignore_outliers_and_have_zero_in_the_middle_of_signs() -> None:
    looks = {look.title: look for look in thumbnails._LOOKS}
    values = np.append(np.linspace(-1.0, 3.0, 10_000), 1e30)
    low, high = thumbnails._span(looks["Temperature"], values)
    assert -1 <= low < -0.9 and 2.9 < high <= 3
    low, high = thumbnails._span(looks["Line-of-sight velocity"], values)
    assert low == -high and 2.9 < high <= 3
    assert thumbnails._span(looks["Azimuth"], values) == (0, 360)
    low, high = thumbnails._span(looks["Density"], np.full(5, 2.0))
    assert low < 2 < high


@pytest.mark.slow
def test_whatever_is_wrong_with_the_files_there_are_pictures_or_a_reason(tmp_path: Path) -> None:
    for number, fault in enumerate(FAULTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        if fault.of != "level2":
            make.science(folder, faults.FRAMES)
        if fault.of != "science":
            make.level2(folder, GOOD, faults.FRAMES)
        issued = fault.make(folder)
        inversion = issued if isinstance(issued, Issued) else GOOD
        try:
            thumbnails.planes(folder, inversion.inversion_id, lambda done, of: None)
        except Unfit as unfit:
            assert unfit.what


@pytest.mark.slow  # each picture takes half a second
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -3e38, 3e38, 1e-40])
def test_any_value_can_be_drawn(value: float) -> None:
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    plane = np.array([[value, 1.0, -1.0], [value, value, 2.0]], np.float32)
    for look in (thumbnails._LOOKS[1], thumbnails._LOOKS[5]):
        for one in (plane, np.full((2, 3), value, np.float32)):
            drawn = thumbnails._thumbnail(look, one)
            assert drawn.png.startswith(b"\x89PNG")
            assert drawn.words


@pytest.mark.slow
def test_nothing_is_said_where_there_is_no_home_to_write_to() -> None:
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    code = """
import numpy as np
from l2inv.products import thumbnails
print(len(thumbnails._thumbnail(thumbnails._LOOKS[1], np.ones((2, 3), np.float32)).png) > 1000)
"""
    environment = {"PATH": os.environ["PATH"], "HOME": os.devnull}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert (done.stdout, done.stderr) == ("True\n", "")
