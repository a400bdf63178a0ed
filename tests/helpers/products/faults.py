"""Faults of products, each made in good ones: those that readers have met, those that a reader could meet, and files
that are no products at all."""

import gzip
import os
import re
import shutil
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.io import fits
from msgspec.structs import replace

from l2inv.products import Output
from l2inv.products.issued import FIT_FILE, OBSERVED_FILE, QUANTITIES_FILE, SCIENCE_FILES, Issued
from tests.helpers.products import make

FRAMES = 3  # so that most of them are good where one is not
GOOD = make.issued(FRAMES)
ASDF = GOOD.metadata_file
FIRST, SECOND, THIRD = (GOOD.frame_file(begin) for begin in make.times(FRAMES))
LISTED = rf"\[{FIRST}, {SECOND}, {THIRD}\]"  # in the ASDF


class Fault(NamedTuple):
    """A fault, what is found of it, and how it is made: in a folder, from what was issued."""

    name: str
    of: str  # science, level2 or both
    found: set[str]
    make: Callable[[Path], Issued | None]  # gives what was issued, if that is the fault

    @property
    def is_warning(self) -> bool:
        """Return whether readers come to no harm by it."""
        return self.name in ("another type in the ASDF", "a block without a sum")


def edited(name: str, edit: Callable[[fits.HDUList], Any]) -> Callable[[Path], None]:
    """A file whose HDUs were changed by astropy; its checksums are right."""

    def apply(folder: Path) -> None:
        with fits.open(folder / name, memmap=False) as read:
            hdus = fits.HDUList([hdu.copy() for hdu in read])
        changed = edit(hdus)
        hdus = changed if isinstance(changed, fits.HDUList) else hdus
        hdus.writeto(
            folder / name, overwrite=True, checksum=name not in SCIENCE_FILES, output_verify="ignore"
        )

    return apply


def each(names: tuple[str, ...], edit: Callable[[fits.HDUList], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        for name in names:
            edited(name, edit)(folder)

    return apply


def header(number: int, **cards: Any) -> Callable[[fits.HDUList], None]:
    """A header with other values; None takes a keyword away. _ stands for -."""

    def edit(hdus: fits.HDUList) -> None:
        for key, value in cards.items():
            if value is None:
                del hdus[number].header[key.replace("_", "-")]
            else:
                hdus[number].header[key.replace("_", "-")] = value

    return edit


def raw_header(number: int, **cards: Any) -> Callable[[fits.HDUList], None]:
    """As `header`, for keywords with _ in them."""
    return lambda hdus: hdus[number].header.update(cards)


def data(number: int, change: Callable[[Any], Any]) -> Callable[[fits.HDUList], None]:
    """An HDU with other values; `change` gives them, or changes them in place."""

    def edit(hdus: fits.HDUList) -> None:
        values = hdus[number].data.astype(hdus[number].data.dtype.newbyteorder("="))
        changed = change(values)
        hdus[number].data = values if changed is None else changed

    return edit


def put(values: Any, index: Any, value: Any) -> None:
    values[index] = value


def raw(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A file with other bytes."""

    def apply(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return apply


def text(*pairs: tuple[str, str]) -> Callable[[Path], None]:
    """An ASDF whose tree says something else; each pattern must be in it."""

    def change(content: bytes) -> bytes:
        end = content.index(b"\n...\n")
        tree = content[:end].decode()
        for pattern, new in pairs:
            tree, count = re.subn(pattern, new, tree, flags=re.MULTILINE | re.DOTALL)
            assert count, pattern
        return tree.encode() + content[end:]

    return raw(ASDF, change)


def tree(yaml: bytes) -> Callable[[Path], None]:
    """An ASDF with another tree altogether."""
    return raw(
        ASDF, lambda content: b"#ASDF 1.0.0\n#ASDF_STANDARD 1.5.0\n%YAML 1.1\n--- " + yaml + b"\n...\n"
    )


def with_headers_of(frames: list[int]) -> Callable[[Path], None]:
    """An ASDF with the headers of these frames."""

    def apply(folder: Path) -> None:
        begins = make.times(FRAMES)
        headers_of = [begins[number] for number in frames]
        make.metadata(folder, GOOD, begins, make.frame(GOOD, 6, 5, make.ARMS), headers_of)

    return apply


def at_other_wavelengths(number: int, **cards: Any) -> Callable[[fits.HDUList], None]:
    """An arm, observed and fitted, of other wavelengths."""

    def edit(hdus: fits.HDUList) -> None:
        for one in (number, number + 1):
            hdus[one].header.update(cards)

    return edit


def instead(name: str, make_it: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Something else under the name of a file."""

    def apply(folder: Path) -> None:
        (folder / name).unlink()
        make_it(folder / name)

    return apply


def linked(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return apply


def bound(path: Path) -> None:
    """A socket; its path may be too long to be bound as it is."""
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def made_anew(**sizes: Any) -> Callable[[Path], None]:
    """Science's files with other sizes."""
    return lambda folder: make.science(folder, **({"frames": FRAMES} | sizes))


def with_the_observed_of(arms: dict[int, int]) -> Callable[[Path], None]:
    """Science's files, with observed profiles of other wavelengths."""

    def apply(folder: Path) -> None:
        kept = (folder / FIT_FILE).read_bytes()
        make.science(folder, FRAMES, arms=arms)
        (folder / FIT_FILE).write_bytes(kept)

    return apply


def issued(**changes: Any) -> Callable[[Path], Issued]:
    return lambda folder: make.issued(FRAMES, **changes)


def arms_without(dataset: int) -> Callable[[Path], Issued]:
    """What was issued, had another dataset been inverted in place of one."""
    datasets = list(GOOD.datasets)
    datasets[dataset] = type(datasets[0])(
        "AAAAA", 4 * (FRAMES + 1), "IQUV", 396.0, 397.0, vsparmid=dataset + 1
    )
    return issued(datasets=tuple(datasets))


def shifted(hdus: fits.HDUList) -> None:
    """Offsets that begin at the line's center in the first arm."""
    first = next(iter(make.ARMS.values()))
    values = hdus[1].data.astype("f4")
    values[:first] -= values[0]
    hdus[1].data = values


def padded(hdus: fits.HDUList) -> None:
    for n in range(40):
        hdus[0].header[f"KEY{n}"] = n


def swapped(one: int, other: int) -> Callable[[fits.HDUList], fits.HDUList]:
    def edit(hdus: fits.HDUList) -> fits.HDUList:
        order = list(range(len(hdus)))
        order[one], order[other] = other, one
        return fits.HDUList([hdus[n] for n in order])

    return edit


def renamed_by_time(change: timedelta) -> Callable[[Path], None]:
    """A frame of another time, consistent in itself."""

    def apply(folder: Path) -> None:
        begin = make.times(FRAMES)[2] + change
        name = GOOD.frame_file(begin)
        (folder / THIRD).rename(folder / name)
        edited(name, header(0, DATE_BEG=make.stamp(begin), FILENAME=name))(folder)

    return apply


def huge(folder: Path) -> None:
    """A quantity of 4 GB, of which the disk holds nothing."""
    content = (folder / FIRST).read_bytes()
    at = content.index(b"NAXIS1  =                    5")
    edited_header = content[:at] + b"NAXIS1  =            200000000" + content[at + 30 :]
    end = content.index(b"XTENSION", at)
    with (folder / FIRST).open("wb") as file:
        file.write(edited_header[: end - 2880])
        file.seek(end - 2880 + -(-4 * 6 * 200_000_000 // 2880) * 2880)
        file.write(content[end:])


# Lists of lists of lists, each ten times: ten million names.
BOMB = ", ".join(
    [f"&b0 [{', '.join('x' * 10)}]", *(f"&b{n} [{', '.join([f'*b{n - 1}'] * 10)}]" for n in range(1, 7))]
)
CHAIN = ", ".join(["&c0 [x]", *(f"&c{n} [*c{n - 1}]" for n in range(1, 3000))])

SCIENCE = [
    ("a file is missing", {"missing"}, lambda folder: (folder / OBSERVED_FILE).unlink()),
    ("ten quantities", {"shape"}, edited(QUANTITIES_FILE, data(0, lambda v: v[:10]))),
    ("three axes", {"shape"}, edited(QUANTITIES_FILE, data(0, lambda v: v[:, :, 0]))),
    ("no data", {"shape"}, edited(QUANTITIES_FILE, lambda hdus: fits.HDUList([fits.PrimaryHDU()]))),
    ("I, Q and U alone", {"shape"}, edited(FIT_FILE, data(0, lambda v: v[:3]))),
    ("depth and frames are swapped", {"optical_depth"}, edited(QUANTITIES_FILE, data(0, lambda v: v.swapaxes(1, 2)[:, :, :FRAMES]))),
    ("the slit differs", {"shape"}, edited(QUANTITIES_FILE, data(0, lambda v: v[..., :5]))),
    ("double precision", {"data_type"}, edited(QUANTITIES_FILE, data(0, lambda v: v.astype("f8")))),
    ("scaled values", {"data_type"}, edited(QUANTITIES_FILE, header(0, BSCALE=2.0))),
    ("one frame fewer in one file", {"frames"}, edited(OBSERVED_FILE, data(0, lambda v: v[:, :, :1]))),
    ("fewer frames than Level 1", {"frames"}, made_anew(frames=2)),
    ("more frames than Level 1", {"frames"}, made_anew(frames=6)),
    ("one extension", {"extensions"}, edited(FIT_FILE, lambda hdus: hdus[:2])),
    ("three extensions", {"extensions"}, edited(FIT_FILE, lambda hdus: fits.HDUList([*hdus, hdus[1].copy()]))),
    ("an extension that is shorter", {"extensions"}, edited(OBSERVED_FILE, data(1, lambda v: v[:-1]))),
    ("a table for an extension", {"extensions"}, edited(OBSERVED_FILE, lambda hdus: fits.HDUList([*hdus[:2], fits.BinTableHDU.from_columns([fits.Column("ID", "J", array=hdus[2].data)])]))),
    ("an unknown line", {"line_id"}, each((FIT_FILE, OBSERVED_FILE), data(2, lambda v: put(v, v == 23, 24)))),
    ("a line that comes twice", {"line_id"}, each((FIT_FILE, OBSERVED_FILE), data(2, lambda v: put(v, v == 4, 23)))),
    ("a line id that is no number", {"line_id"}, each((FIT_FILE, OBSERVED_FILE), data(2, lambda v: np.where(v == 4, np.nan, v).astype("f4")))),
    ("other lines fitted than observed", {"line_id"}, edited(FIT_FILE, data(2, lambda v: np.select([v == 9, v == 4], [4, 9], v)))),
    ("offsets that decrease", {"offsets"}, each((FIT_FILE, OBSERVED_FILE), data(1, lambda v: put(v, slice(3, 5), v[4:2:-1].copy())))),
    ("offsets that stay", {"offsets"}, each((FIT_FILE, OBSERVED_FILE), data(1, lambda v: put(v, 3, v[4])))),
    ("offsets that are no numbers", {"offsets"}, each((FIT_FILE, OBSERVED_FILE), data(1, lambda v: put(v, 3, np.nan)))),
    ("other offsets fitted than observed", {"offsets"}, edited(FIT_FILE, data(1, lambda v: put(v, 3, v[3] + 1)))),
    ("half of a line", {"spectral_range"}, each((FIT_FILE, OBSERVED_FILE), shifted)),
    ("a line that no dataset observed", {"line"}, arms_without(1)),
    ("a depth without numbers", {"nan_plane"}, edited(QUANTITIES_FILE, data(0, lambda v: put(v, (1, 3), np.nan)))),
    ("a frame without numbers", {"nan_plane"}, edited(QUANTITIES_FILE, data(0, lambda v: put(v, (4, slice(None), 1), np.inf)))),
    ("a wavelength without numbers", {"nan_plane"}, edited(FIT_FILE, data(0, lambda v: put(v, (3, 7), np.nan)))),
    ("an angle beyond all turns", {"angle"}, edited(QUANTITIES_FILE, data(0, lambda v: put(v, (7, 2, 1, 3), -1e6)))),
    ("log optical depth that turns back", {"optical_depth"}, edited(QUANTITIES_FILE, data(0, lambda v: put(v, (0, 3), 2.0)))),
    ("DESR-BIN is missing", {"DESR-BIN"}, edited(FIT_FILE, header(0, DESR_BIN=None))),
    ("DESR-BIN is zero", {"DESR-BIN"}, edited(FIT_FILE, header(0, DESR_BIN=0))),
    ("DESR-FID is missing", {"DESR-FID"}, edited(FIT_FILE, header(0, DESR_FID=None))),
    ("DESR-FID is no arm of ViSP", {"DESR-FID"}, edited(FIT_FILE, header(0, DESR_FID=4))),
    ("DESR-FID is a dataset", {"DESR-FID"}, edited(FIT_FILE, header(0, DESR_FID="BXPJD"))),
    ("DESR-FID is another dataset's arm", {"DESR-FID"}, issued(datasets=tuple(replace(dataset, vsparmid=2) for dataset in GOOD.datasets))),
    ("another number of wavelengths fitted than observed", {"shape"}, with_the_observed_of({23: 40, 9: 24, 4: 57})),
    ("a file that breaks the standard", {"fits_standard"}, raw(FIT_FILE, lambda content: content.replace(b"EXTEND  ", b"extend  ", 1))),
    ("a checksum that is wrong", {"checksum"}, edited(QUANTITIES_FILE, raw_header(0, DATASUM="12"))),
]  # fmt: skip

LEVEL2 = [
    ("another inversion in DSETID", {"DSETID"}, edited(FIRST, header(0, DSETID="inv.AAAAAA"))),
    ("DSETID is missing", {"DSETID"}, edited(FIRST, header(0, DSETID=None))),
    ("Level 1 in PROCTYPE", {"PROCTYPE"}, edited(FIRST, header(0, PROCTYPE="L1"))),
    ("Level 1 in LEVEL", {"LEVEL"}, edited(FIRST, header(0, LEVEL=1))),
    ("LEVEL as text", {"LEVEL"}, edited(FIRST, header(0, LEVEL="2"))),
    ("another proposal", {"PROP_ID"}, edited(FIRST, raw_header(0, PROP_ID="pid_1_1"))),
    ("another OP", {"OBSPR_ID"}, edited(FIRST, raw_header(0, OBSPR_ID="eid_1_1_op_R001.1.1"))),
    ("another instrument program", {"IP_ID"}, edited(FIRST, raw_header(0, IP_ID="id.1.1"))),
    ("another name in FILENAME", {"FILENAME"}, edited(FIRST, header(0, FILENAME=SECOND))),
    ("a primary with data", {"primary", "shape_differs", "size_differs"}, edited(FIRST, lambda hdus: fits.HDUList([fits.PrimaryHDU(np.zeros((2, 2), "f4"), hdus[0].header), *hdus[1:]]))),
    ("microturbulence and velocity are swapped", {"quantity"}, edited(FIRST, swapped(4, 6))),
    ("temperature and pressure are swapped", {"quantity", "unit"}, edited(FIRST, swapped(2, 3))),
    ("metres a second", {"unit"}, edited(FIRST, header(4, BUNIT="m/s"))),
    ("gauss", {"unit"}, edited(FIRST, header(5, BUNIT="G"))),
    ("a unit that is none", {"unit"}, edited(FIRST, header(11, BUNIT="per cubic centimetre"))),
    ("a unit is missing", {"unit"}, edited(FIRST, header(2, BUNIT=None))),
    ("optical depth in pixels", {"unit"}, edited(FIRST, header(1, BUNIT="pix"))),
    ("slit and depth are swapped", {"shape", "shape_differs"}, edited(FIRST, data(3, lambda v: v.swapaxes(1, 2)))),
    ("a quantity without the dummy axis", {"shape", "shape_differs"}, edited(FIRST, data(1, lambda v: v[0]))),
    ("a quantity is missing", {"hdus", "shape_differs", "size_differs"}, edited(FIRST, lambda hdus: fits.HDUList([*hdus[:5], *hdus[6:]]))),
    ("no profiles", {"hdus", "shape_differs", "size_differs"}, edited(FIRST, lambda hdus: hdus[:12])),
    ("integers", {"data_type", "shape_differs"}, edited(FIRST, data(2, lambda v: v.astype("i4")))),
    ("a table for a quantity", {"data_type", "shape", "shape_differs", "unit"}, edited(FIRST, lambda hdus: fits.HDUList([*hdus[:2], fits.BinTableHDU.from_columns([fits.Column("T", "E", array=np.ones(30))]), *hdus[3:]]))),
    ("fitted before observed", {"profiles"}, edited(FIRST, swapped(12, 13))),
    ("observed and fitted differ in shape", {"profiles", "shape_differs", "size_differs"}, edited(FIRST, data(13, lambda v: v[:, :, :30]))),
    ("three Stokes parameters", {"shape", "profiles", "shape_differs", "size_differs"}, edited(FIRST, data(13, lambda v: v[..., :3]))),
    ("an inclination below 0", {"angle"}, edited(FIRST, data(7, lambda v: put(v, (0, 1, 1), -19.8)))),
    ("an azimuth over 360", {"angle"}, edited(FIRST, data(8, lambda v: put(v, (0, 1, 1), 487.7)))),
    ("a quantity without numbers", {"nan_plane"}, edited(FIRST, data(2, lambda v: put(v, slice(None), np.nan)))),
    ("Stokes V without numbers", {"nan_plane"}, edited(FIRST, data(12, lambda v: put(v, (..., 3), np.nan)))),
    ("half of a line", {"spectral_range"}, edited(FIRST, at_other_wavelengths(14, CRPIX2=1.0))),
    ("a wavelength of no known line", {"spectral_range"}, edited(FIRST, at_other_wavelengths(14, CRVAL2=589.899))),
    ("two arms of one line", {"profiles"}, edited(FIRST, at_other_wavelengths(14, CRVAL2=630.15012))),
    ("fitted at other wavelengths than observed", {"profiles"}, edited(FIRST, header(15, CRPIX2=12.0))),
    ("log optical depth that turns back in a frame", {"optical_depth"}, edited(FIRST, data(1, lambda v: np.roll(v, 2, axis=-1)))),
    ("log optical depth in the other direction", {"optical_depth"}, edited(FIRST, data(1, lambda v: v[..., ::-1].copy()))),
    ("a time that is not in UTC", {"time"}, edited(FIRST, header(0, TIMESYS="TAI"))),
    ("another time than the name's", {"name"}, edited(FIRST, header(0, DATE_BEG="2022-06-03T18:03:44"))),
    ("a time that is none", {"time"}, edited(FIRST, header(0, DATE_BEG="2022-06-31T18:03:44"))),
    ("a frame from after the observation", {"time", "files"}, renamed_by_time(timedelta(hours=2))),
    ("a trailing zero in a name", {"name", "frames", "files"}, lambda folder: (folder / FIRST).rename(folder / FIRST.replace("_5_L2", "_50_L2")) and None),
    ("another inversion's name", {"name", "frames", "files"}, lambda folder: (folder / FIRST).rename(folder / FIRST.replace("7QK2ZD", "AAAAAA")) and None),
    ("a frame is missing", {"frames", "files"}, lambda folder: (folder / FIRST).unlink()),
    ("a stray file", {"extra"}, lambda folder: (folder / "notes.txt").write_text("x") and None),
    ("a stray folder", {"extra"}, lambda folder: (folder / "old").mkdir()),
    ("a stray FITS file", {"extra"}, lambda folder: shutil.copy(folder / FIRST, folder / "test.fits") and None),
    ("a header of another length", {"size_differs"}, edited(FIRST, padded)),
    ("a value that was changed", {"checksum"}, raw(FIRST, lambda content: content.replace(np.float32(0.5).astype(">f4").tobytes(), np.float32(0.25).astype(">f4").tobytes(), 1))),
    ("a keyword in small letters", {"fits_standard", "checksum"}, raw(FIRST, lambda content: content.replace(b"TIMESYS ", b"timesys ", 1))),
    ("a fits file cut short", {"structure", "size_differs"}, raw(FIRST, lambda content: content[:-3000])),
    ("a fits file cut within a header", {"structure", "size_differs"}, raw(FIRST, lambda content: content[:3000])),
    ("something after the last HDU", {"structure", "size_differs"}, raw(FIRST, lambda content: content + b"x" * 2880)),
    ("a header without an end", {"structure"}, raw(FIRST, lambda content: content.replace(b"END".ljust(80), b"COMMENT".ljust(80)))),
    ("an axis of nonsense", {"structure"}, raw(FIRST, lambda content: content.replace(b"NAXIS1  =                    5", b"NAXIS1  = 99999999999999999999", 1))),
    ("a BITPIX that is none", {"structure"}, raw(FIRST, lambda content: content.replace(b"BITPIX  =                  -32", b"BITPIX  =                  -17", 1))),
    ("999 axes", {"structure"}, raw(FIRST, lambda content: content.replace(b"NAXIS   =                    3", b"NAXIS   =                  999", 1))),
    ("a count below nothing", {"structure"}, raw(FIRST, lambda content: content.replace(b"PCOUNT  =                    0", b"PCOUNT  =                   -1", 1))),
    ("an axis below nothing", {"structure"}, raw(FIRST, lambda content: content.replace(b"NAXIS2  =                    6", b"NAXIS2  =                   -6", 1))),
    ("more HDUs than can be", {"structure", "size_differs"}, raw(FIRST, lambda content: content + (fits.ImageHDU().header.tostring().encode() * 100))),
    ("a last block cut short", {"structure", "size_differs"}, raw(FIRST, lambda content: content[:-10])),
    ("a header of a million blanks", {"structure", "size_differs"}, raw(FIRST, lambda content: content[:80] + b" " * 2_000_000)),
    ("a frame of gigabytes", {"shape", "shape_differs", "size_differs"}, huge),
    ("a unit that is a number", {"unit"}, edited(FIRST, header(2, BUNIT=5))),
    ("more arms than datasets", {"profiles", "datasets"}, issued(datasets=GOOD.datasets[:2])),
    ("an empty file", {"format", "size_differs"}, raw(FIRST, lambda content: b"")),
    ("noise", {"format", "size_differs"}, raw(FIRST, lambda content: bytes(range(256)) * 40)),
    ("a compressed file", {"format", "size_differs"}, raw(FIRST, gzip.compress)),
    ("a link to a frame", {"not_a_file", "frames", "files"}, linked(FIRST)),
    ("a pipe for a frame", {"not_a_file", "frames", "files"}, instead(FIRST, os.mkfifo)),
    ("a pipe for the ASDF", {"not_a_file"}, instead(ASDF, os.mkfifo)),
    ("a socket for the ASDF", {"not_a_file"}, instead(ASDF, bound)),
    ("a folder for the ASDF", {"not_a_file"}, instead(ASDF, lambda path: path.mkdir())),
    ("no ASDF", {"missing"}, lambda folder: (folder / ASDF).unlink()),
    ("every unit is pixel", {"unit"}, text((r"unit: !unit/unit-1.0.0 '?[^\n]*", "unit: !unit/unit-1.0.0 pixel"))),
    ("a unit is missing in the ASDF", {"unit"}, text((r"unit: !unit/unit-1.0.0 'K'|unit: !unit/unit-1.0.0 K", "unit: null"))),
    ("a unit without a tag", {"tag"}, text((r"unit: !unit/unit-1.0.0 'K'|unit: !unit/unit-1.0.0 K", "unit: K"))),
    ("another tag", {"tag"}, text((r"tags/inversion-0.1.0", "tags/inversion-1.0.0"))),
    ("another inversion", {"inversion_id"}, text((r"inversionId: inv.7QK2ZD", "inversionId: inv.AAAAAA"))),
    ("no inversion id", {"inversion_id"}, text((r"inversionId:", "inversionsId:"))),
    ("another proposal in the ASDF", {"proposal_id"}, text((r"proposalId: pid_2_114", "proposalId: pid_1_1"))),
    ("a dataset is missing", {"datasets"}, text((r"datasetIds: \[BXPJD, ", "datasetIds: ["))),
    ("another canonical dataset", {"datasets"}, text((r"canonicalDataset: BXPJD", "canonicalDataset: AAAAA"))),
    ("another number of frames", {"frames"}, text((r"frameCount: 3", "frameCount: 4"))),
    ("another wavelength", {"spectral_range"}, text((r"588.995095", "589.899"))),
    ("a file is not listed", {"files"}, text((LISTED, f"[{FIRST}, {SECOND}]"))),
    ("a file is listed that is not there", {"files"}, text((LISTED, f"[{FIRST}, {SECOND}, {THIRD.replace('2022', '2023')}]"))),
    ("a file is listed twice", {"files"}, text((LISTED, f"[{FIRST}, {SECOND}, {THIRD}, {THIRD}]"))),
    ("files in the order of their names", {"order"}, text((LISTED, f"[{SECOND}, {FIRST}, {THIRD}]"))),
    ("a quantity is misnamed", {"quantities"}, text((r"temperature: !", "temprature: !"))),
    ("a fit is missing", {"quantities"}, text((r"NaID_fit: !", "NaID_model: !"))),
    ("a quantity of another HDU", {"target"}, text((r"target: 2$", "target: 3"))),
    ("an HDU that is no whole number", {"target"}, text((r"target: 2$", "target: 2.0"))),
    ("a fit of the observed HDU", {"target"}, text((r"target: 15$", "target: 14"))),
    ("another shape in the ASDF", {"shape"}, text((r"shape: \[1, 6, 5\]", "shape: [1, 5, 6]"))),
    ("another type in the ASDF", {"data_type"}, text((r"datatype: float32$", "datatype: float64"))),
    ("values of another width", {"arrays"}, text((r"datatype: float64", "datatype: float32"))),
    ("an array without a block", {"arrays"}, text((r"source: 0$|source: 0(?=[,}])", "source: 100000"))),
    ("no profiles in the ASDF", {"tree"}, text((r"^  profiles: ", "  profile: "))),
    ("no history", {"tree"}, text((r"^history:", "histories:"))),
    ("no coordinates", {"tree"}, text((r"^( +)wcs: ", r"\1wcz: "))),
    ("coordinates that are none", {"tag"}, text((r"gwcs/wcs-1.2.0", "gwcs/step-1.1.0"))),
    ("quantities that are no collection", {"tag"}, text((r"quantities: !<\S+>", "quantities:"))),
    ("an item that is aligned with none", {"tree"}, text((r"^      temperature: \[[^\n]*\n", ""))),
    ("an item without metadata", {"tree"}, text((r"^        meta:$", "        metas:"))),
    ("an item of another inversion", {"inversion_id"}, text((r"inventory: \*id002", "inventory: {inversionId: inv.AAAAAA}"))),
    ("headers in another order than the files", {"order"}, with_headers_of([0, 2, 1])),
    ("headers of other files", {"files"}, with_headers_of([0, 1, 1])),
    ("headers of fewer frames than files", {"frames"}, with_headers_of([0, 1])),
    ("headers that are no table", {"tag"}, text((r"table/table-1.0.0", "table/mixin-1.0.0"))),
    ("a block whose sum is wrong", {"checksum"}, raw(ASDF, lambda content: content[:-1] + bytes([content[-1] ^ 1]))),
    ("a block without a sum", {"checksum"}, raw(ASDF, lambda content: re.sub(rb"(\xd3BLK.{34}).{16}", rb"\g<1>0000000000000000", content, count=1, flags=re.DOTALL))),
    ("a block whose header contradicts itself", {"structure"}, raw(ASDF, lambda content: re.sub(rb"(\xd3BLK.{10}).{8}", rb"\g<1>\0\0\0\0\0\0\0\1", content, count=1, flags=re.DOTALL))),
    ("items that are no mapping", {"tree"}, text((r"^    items:$", "    items: 1\n    item:"))),
    ("an inventory that is none", {"tree"}, text((r"inventory: &id\d+$", "inventory: 1\n      inventories:"))),
    ("an ASDF cut within a block", {"structure"}, raw(ASDF, lambda content: content[:-7])),
    ("an ASDF cut within the tree", {"structure"}, raw(ASDF, lambda content: content[:5000])),
    ("an ASDF that goes on", {"structure"}, raw(ASDF, lambda content: content + b"more")),
    ("an ASDF that is empty", {"format"}, raw(ASDF, lambda content: b"")),
    ("an ASDF that is compressed", {"format"}, raw(ASDF, gzip.compress)),
    ("an ASDF that is a FITS file", {"format"}, lambda folder: shutil.copy(folder / FIRST, folder / ASDF) and None),
    ("a tree that is no YAML", {"tree"}, tree(b"a: [")),
    ("a tree that is no mapping", {"tree"}, tree(b"[1, 2]")),
    ("a tree that is nothing", {"tree"}, tree(b"")),
    ("aliases that multiply", {"tree"}, text((LISTED, f"[{BOMB}]"))),
    ("aliases of aliases of aliases", {"tree"}, text((LISTED, f"[{CHAIN}]"))),
    ("aliases without an end", {"tree"}, text((rf"&(id\d+) {LISTED}", r"&\1 [*\1]"))),
    ("lists as deep as a well", {"tree"}, text((LISTED, "[" * 900 + "]" * 900))),
    ("a tree that asks for code to be run", {"tree"}, tree(b"\ninversion: !!python/object/apply:os.system [exit]")),
    ("a number of 5000 digits", {"tree"}, tree(b"\ninversion: " + b"1" * 5000)),
    ("an asdfObjectKey that names a folder", {"asdf_object_key"}, issued(asdf_object_key="pid_2_114/inv_7QK2ZD/")),
    ("an output of another size", {"size"}, issued(outputs=(Output(FIRST, size_bytes=1),))),
    ("an output with another sum", {"sha256"}, issued(outputs=(Output(FIRST, sha256="0" * 64),))),
    ("an output that is not there", {"missing"}, issued(outputs=(Output("inv_res_mod.fits", size_bytes=1),))),
]  # fmt: skip

BOTH = [
    ("fewer frames generated than delivered", {"frames", "files"}, lambda folder: (folder / FIRST).unlink()),
    ("other arms generated than delivered", {"profiles"}, made_anew(arms={23: 40, 9: 24, 4: 57})),
    ("another slit than science's", {"shape"}, made_anew(slit=7)),
    ("another depth than science's", {"shape"}, made_anew(depth=6)),
    ("a link for what science delivers", {"not_a_file"}, linked(OBSERVED_FILE)),
]

FAULTS = [
    Fault(name, of, found, make_it)
    for of, faults in (("science", SCIENCE), ("level2", LEVEL2), ("both", BOTH))
    for name, found, make_it in faults
]
