"""The check of products: no findings in correct ones, each fault found by name, whatever a file contains."""

import gzip
import hashlib
import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import to_builtins
from msgspec.structs import replace

from l2inv.errors import L2invError
from l2inv.products import (
    WHAT,
    Dataset,
    Finding,
    Issued,
    Output,
    asdffile,
    check,
    files,
    findings,
    frames,
    metadata,
)
from l2inv.products.issued import FIT_FILE, SCIENCE_FILES
from tests.helpers.products import faults, make
from tests.helpers.products.faults import ASDF, FAULTS, FIRST, GOOD, Fault

DOCUMENT = Path(__file__).parents[2] / "docs" / "products.md"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Good products: what science delivers, Level 2, and both in one folder."""
    folders = {of: tmp_path_factory.mktemp(of) for of in ("science", "level2", "both")}
    make.science(folders["science"], faults.FRAMES)
    make.level2(folders["level2"], GOOD, faults.FRAMES)
    make.products(folders["both"], GOOD, faults.FRAMES)
    return folders


def copied(good: Path, folder: Path) -> Path:
    return shutil.copytree(good, folder / "products")


def whats(found: list[Finding]) -> set[str]:
    return {one.what for one in found}


@pytest.mark.parametrize("of", ["science", "level2", "both"])
def test_nothing_is_found_in_good_products(good: dict[str, Path], of: str) -> None:
    assert list(check(good[of], GOOD)) == []


def each_fault() -> Iterator[Any]:
    """Leave to the slow tests what is found as an earlier fault was."""
    found: set[str] = set()
    for fault in FAULTS:
        marks = [pytest.mark.slow] if fault.found <= found else []
        found |= fault.found
        yield pytest.param(fault, id=f"{fault.of}: {fault.name}", marks=marks)


@pytest.mark.parametrize("fault", list(each_fault()))
def test_each_fault_is_found_and_nothing_else(good: dict[str, Path], tmp_path: Path, fault: Fault) -> None:
    folder = copied(good[fault.of], tmp_path)
    issued = fault.make(folder)
    found = list(check(folder, issued if isinstance(issued, Issued) else GOOD))
    assert whats(found) == fault.found, found
    assert all(one.result == ("warn" if fault.is_warning else "fail") for one in found), found


def test_every_kind_of_finding_is_in_the_table_of_faults_or_has_its_own_test() -> None:
    assert {what for fault in FAULTS for what in fault.found} == set(WHAT) - {"unreadable"}


def test_the_document_lists_the_kinds_of_findings() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (.+?) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert dict(rows) == WHAT
    assert len(rows) == len(WHAT)


# Measured by others' programs

UNOPENED = (
    "no profiles in the ASDF", "no history", "no coordinates", "coordinates that are none", "an item without metadata",
    "an item that is aligned with none", "quantities that are no collection",
)  # fmt: skip


@pytest.mark.slow  # the package's imports alone take ten seconds
@pytest.mark.filterwarnings("ignore::asdf.exceptions.AsdfConversionWarning")
def test_dkist_opens_a_good_asdf_and_one_that_it_wrote_itself_is_good(
    good: dict[str, Path], tmp_path: Path
) -> None:
    import asdf

    dkist = pytest.importorskip("dkist", reason="python -m tests.bounds oldest is without it")
    folder = copied(good["level2"], tmp_path)
    inversion = dkist.load_dataset(folder / ASDF)
    assert isinstance(inversion, dkist.Inversion)
    for number, (key, _, _, unit, _, _) in enumerate(make.QUANTITIES):
        assert inversion[key].unit == unit
        values = inversion[key].data.compute()
        for frame in range(faults.FRAMES):
            assert (values[frame] == make.converted(number, frame, slit=6, depth=5)).all()
    assert len(inversion.profiles) == 2 * len(make.ARMS)
    assert list(inversion.meta["headers"]["FILENAME"]) == [faults.FIRST, faults.SECOND, faults.THIRD]
    inversion.meta.pop("history")
    for compression in (None, "zlib"):
        asdf.AsdfFile({"inversion": inversion}).write_to(folder / ASDF, all_array_compression=compression)
        assert list(check(folder, GOOD)) == []
    for fault in FAULTS:
        if fault.name in UNOPENED:
            shutil.copy(good["level2"] / ASDF, folder / ASDF)
            fault.make(folder)
            with pytest.raises(Exception):  # noqa: B017 - of whatever kind, by whichever of its releases
                dkist.load_dataset(folder / ASDF)
                print(f"opened, with {fault.name}")


def test_faults_of_a_published_asdf_are_found(tmp_path: Path) -> None:
    """The package dkist ships one with every unit `pixel`, headers read at half their width, and a sodium line at
    589.899 nm."""
    package = importlib.util.find_spec("dkist")  # not imported, which takes ten seconds
    if package is None or package.origin is None:
        pytest.skip("python -m tests.bounds oldest is without it")
    packed = Path(package.origin).parent / "data" / "test" / "test_L2_inversion.asdf.gz"
    content = gzip.decompress(packed.read_bytes())
    (tmp_path / "INV_PUYATW_L2_metadata.asdf").write_bytes(content)
    datasets = tuple(map(Dataset, ("BXPJD", "BVNED", "BWRGZ")))
    issued = Issued("inv.PUYATW", "pid_2_114", "an OP", "an instrument program", datasets)
    listed = {name.decode() for name in re.findall(rb"INV_PUYATW_\w+_L2\.fits", content)}
    names = sorted(listed, key=lambda name: issued.frame_time(name) or datetime.min.replace(tzinfo=UTC))
    with files.opened(tmp_path, issued, lambda count: None) as folder:
        found = list(metadata.check(folder, frames.Frames(names, None)))
    assert Counter((one.what, one.result) for one in found) == {
        ("unit", "fail"): 11, ("arrays", "fail"): 1, ("spectral_range", "fail"): 1, ("checksum", "warn"): 1
    }  # fmt: skip
    assert {one.measured for one in found if one.what == "unit"} == {"pixel"}


# What is not known


def test_what_cannot_be_checked_here_is_reported_and_is_no_failure(good: dict[str, Path]) -> None:
    datasets = tuple(Dataset(dataset.dataset_id) for dataset in GOOD.datasets)
    unknown = list(check(good["science"], replace(GOOD, datasets=datasets)))
    assert {(one.what, one.result) for one in unknown} == {
        ("frames", "unknown"), ("DESR-FID", "unknown"), ("line", "unknown")
    }  # fmt: skip
    assert {one.result for one in check(good["both"], replace(GOOD, datasets=datasets))} == {"unknown"}
    (found,) = check(good["level2"], replace(GOOD, datasets=datasets))
    assert (found.what, found.result, found.measured) == ("frames", "unknown", "3 files of frames")


def test_one_known_arm_may_settle_which_is_the_fiducial_one(good: dict[str, Path]) -> None:
    first, *rest = GOOD.datasets
    unknown = [replace(dataset, vsparmid=None) for dataset in rest]
    assert list(check(good["science"], replace(GOOD, datasets=(first, *unknown)))) == []
    other = replace(first, vsparmid=2)
    (found,) = check(good["science"], replace(GOOD, datasets=(other, *unknown)))
    assert (found.what, found.result, found.measured) == ("DESR-FID", "unknown", 1)


def test_a_dataset_of_intensity_alone_has_as_many_positions_as_files() -> None:
    assert Dataset("AAAAA", 171, "I").positions == 171
    assert Dataset("AAAAA", 1960, "IQUV").positions == 490
    assert Dataset("AAAAA", 1960, None).positions is None


# Names


@given(st.datetimes(datetime(2020, 1, 1), datetime(2050, 1, 1), timezones=st.just(UTC)))
def test_the_name_of_a_frame_contains_when_it_began(begin: datetime) -> None:
    name = GOOD.frame_file(begin)
    assert GOOD.frame_time(name) == begin
    assert not re.search(r"0_L2\.fits$", name) or not begin.microsecond
    assert replace(GOOD, inversion_id="inv.AAAAAA").frame_time(name) is None


def test_names_are_those_that_were_issued() -> None:
    begin = datetime(2022, 6, 3, 18, 3, 43, 890_000, tzinfo=UTC)
    assert GOOD.frame_file(begin) == "INV_7QK2ZD_2022_06_03T18_03_43_89_L2.fits"
    assert GOOD.frame_file(begin.replace(microsecond=0)) == "INV_7QK2ZD_2022_06_03T18_03_43_L2.fits"
    assert GOOD.metadata_key == "pid_2_114/inv_7QK2ZD/INV_7QK2ZD_L2_metadata.asdf"
    for wrong in ("inv.7qk2zd", "7QK2ZD", "inv.7QK2Z", "inv.7QK2ZD\n"):
        with pytest.raises(ValueError, match="no inversion id"):
            make.issued(inversion_id=wrong)


# Files that are anything


def test_no_byte_of_a_file_can_make_the_check_fail(good: dict[str, Path], tmp_path: Path) -> None:
    """Bytes of a file are changed, taken away or doubled, more often where headers are."""
    folder = copied(good["both"], tmp_path)
    for seed in range(int(os.environ.get("L2INV_TEST_PRODUCTS", "8"))):
        chance = random.Random(seed)
        name = chance.choice([ASDF, FIRST, *SCIENCE_FILES])
        kept = (folder / name).read_bytes()
        content = bytearray(kept)
        for _ in range(chance.choice((1, 20))):
            at = int(len(content) * chance.random() ** 3)
            match chance.randrange(4):
                case 0:
                    content[at : at + 1] = bytes([chance.randrange(256)])
                case 1:
                    del content[at : at + chance.choice((1, 80, 2880))]
                case 2:
                    content[at:at] = content[at : at + chance.choice((1, 80, 2880))]
                case 3:
                    content[at : at + 9] = b"999999999"
        (folder / name).write_bytes(content)
        for found in check(folder, GOOD):
            json.dumps(to_builtins(found), allow_nan=False).encode()
        (folder / name).write_bytes(kept)


def test_text_from_a_file_is_shown_as_one_short_line(good: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(good["level2"], tmp_path)
    faults.text((r"inversionId: inv.7QK2ZD", r'inversionId: "\\e[2J\\n\\u202e' + "x" * 5000 + '"'))(folder)
    (found,) = check(folder, GOOD)
    assert found.measured.startswith(r"\u001b[2J\u000a\u202exxx")
    assert len(found.measured) < 300
    depths = findings.finding(
        "f", 1, "optical_depth", [1.0, 2.0, 1.0], "rising or falling all along the last axis"
    )
    assert findings.line(depths).startswith("f, HDU 1: optical_depth: 1, 2, 1, must be rising")
    values: tuple[Any, ...] = (10**5000, float("nan"), b"x", {}, ["\0"] * 100, "\udc80", -(2**60))
    for value in values:
        json.dumps(findings.plain(value), allow_nan=False).encode()


def test_a_fault_of_every_frame_is_shown_once(good: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(good["level2"], tmp_path)
    for name in (faults.FIRST, faults.SECOND, faults.THIRD):
        faults.edited(name, faults.header(4, BUNIT="m/s"))(folder)
    faults.text((r"inversionId: inv.7QK2ZD", "inversionId: inv.AAAAAA"))(folder)
    assert [findings.line(one, count) for one, count in findings.grouped(check(folder, GOOD))] == [
        f"{FIRST} and 2 more, HDU 4: unit: m/s, must be km/s (microturbulence)",
        f"{ASDF}: inversion_id: inv.AAAAAA, must be inv.7QK2ZD",
    ]


def test_a_file_that_became_a_pipe_or_a_link_is_not_waited_for(good: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(good["level2"], tmp_path)
    with files.opened(folder, GOOD, lambda count: None) as look:
        (folder / FIRST).unlink()
        os.mkfifo(folder / FIRST)
        (folder / ASDF).unlink()
        (folder / ASDF).symlink_to(good["level2"] / ASDF)
        (folder / faults.SECOND).unlink()
        (folder / faults.SECOND).symlink_to("/dev/zero")
        for name in (FIRST, ASDF, faults.SECOND):
            with pytest.raises(findings.Unfit, match="not_a_file"), files.reading(look, name):
                pass


def test_a_header_without_an_end_is_not_read_to_the_end_of_the_file(
    good: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(good["level2"], tmp_path)
    content = (folder / FIRST).read_bytes()
    with (folder / FIRST).open("wb") as file:  # a terabyte, of which the disk holds a block
        file.write(content[:80] + b" " * 2800)
        file.truncate(10**12)
    found = [one.measured for one in check(folder, GOOD) if one.file == FIRST and one.what == "structure"]
    assert found == ["no END in 500 blocks"]


def test_a_tree_of_millions_of_nodes_is_not_built(tmp_path: Path) -> None:
    head = b"#ASDF 1.0.0\n#ASDF_STANDARD 1.5.0\n%YAML 1.1\n--- "
    (tmp_path / ASDF).write_bytes(head + b"\na: [" + b"x," * asdffile.MOST_NODES + b"]\n...\n")
    (found,) = (one for one in check(tmp_path, GOOD) if one.file == ASDF)
    assert (found.what, found.measured) == ("tree", "more than 1000000 nodes")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another")
def test_a_file_that_may_not_be_read_is_a_finding_and_a_folder_an_error(good: dict[str, Path]) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        folder = copied(good["both"], Path(place))
        for path in (Path(place), folder):
            path.chmod(0o755)
        (folder / FIRST).chmod(0)
        (folder / FIT_FILE).chmod(0)
        issued = replace(GOOD, outputs=(Output(FIRST, sha256="0" * 64),))
        os.seteuid(65534)
        try:
            found = list(check(folder, issued))
        finally:
            os.seteuid(0)
        assert Counter((one.file, one.what) for one in found) == {
            (FIT_FILE, "unreadable"): 1,
            (FIRST, "unreadable"): 2,
        }
        folder.chmod(0)
        os.seteuid(65534)
        try:
            with pytest.raises(L2invError, match="not a readable folder"):
                list(check(folder, issued))
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("where", ["nowhere", "a\0b", "file"])
def test_a_path_that_is_not_a_folder_is_an_error(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(L2invError, match="not a readable folder"):
        list(check(tmp_path / where, GOOD))


def test_recorded_outputs_are_no_extra_files_and_are_what_was_recorded(
    good: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(good["level2"], tmp_path)
    (folder / "log").mkdir()
    (folder / "notes.txt").write_text("seen")
    sum_ = hashlib.sha256(b"seen").hexdigest().upper()
    outputs = (Output("log"), Output("notes.txt", size_bytes=4, sha256=sum_))
    assert list(check(folder, replace(GOOD, outputs=outputs))) == []
    assert whats(list(check(folder, GOOD))) == {"extra"}


def test_an_empty_folder_lacks_what_science_delivers(tmp_path: Path) -> None:
    assert [(one.file, one.what) for one in check(tmp_path, GOOD)] == [
        (name, "missing") for name in SCIENCE_FILES
    ]


def test_names_of_any_bytes_are_findings(good: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(good["level2"], tmp_path)
    (Path(os.fsdecode(os.fsencode(folder) + b"/INV_\xff\n_L2.fits"))).write_bytes(b"")
    (found,) = check(folder, GOOD)
    assert (found.file, found.what) == (r"INV_\udcff\u000a_L2.fits", "name")


def test_without_the_packages_the_check_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from importlib.machinery import PathFinder as F; find = F.find_spec\n"
        "F.find_spec = lambda name, *rest: None if name in ('asdf', 'astropy') else find(name, *rest)\n"
        "from products_issued import issued; from l2inv.products import check\n"
        "try: list(check(Path('.'), issued))\n"
        "except Exception as problem: print(type(problem).__name__, problem, problem.hint, 'numpy' in sys.modules)\n"
    )
    (tmp_path / "products_issued.py").write_text(
        "from l2inv.products import Dataset, Issued\nissued = Issued('inv.7QK2ZD', 'p', 'o', 'i', (Dataset('AAAAA'),))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    said = (
        "L2invError products cannot be checked without astropy and asdf pip install 'l2inv[products]' False\n"
    )
    assert done.stdout == said


# Much of it

CHECKED = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.helpers.products import make
from l2inv.products import check
told = []
found = list(check(Path(sys.argv[2]), make.issued(int(sys.argv[3])), lambda done, of: told.append((done, of))))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"peak_kb": int(peak.split()[1]), "found": len(found), "told": told}))
"""


def checked_apart(folder: Path, frames: int) -> dict[str, Any]:
    command = [sys.executable, "-c", CHECKED, str(ROOT), str(folder), str(frames)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def test_memory_does_not_grow_with_the_size_and_progress_is_reported(
    good: dict[str, Path], tmp_path: Path
) -> None:
    folder = make.products(tmp_path / "much", make.issued(8), 8, slit=3200)
    size_mb = sum(path.stat().st_size for path in folder.iterdir()) // 1_000_000
    little, much = checked_apart(good["both"], faults.FRAMES), checked_apart(folder, 8)
    assert little["found"] == much["found"] == 0
    assert size_mb > 200
    assert much["peak_kb"] - little["peak_kb"] < 5_000
    told = much["told"]
    assert told == sorted(told)
    assert {of for _, of in told} == {size_mb}
    assert told[-1] == [size_mb, size_mb]
    assert len({done for done, _ in told}) > 20
