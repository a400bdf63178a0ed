"""Makes the products of an inversion as published: science's three files, the frames in FITS, and the ASDF.

FITS files are written by astropy. The ASDF's tree is written by asdf with the tags of dkist's published schemas, laid
out as the Data Center's own files are (the package dkist ships one); a test opens it with dkist.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from asdf.tagged import TaggedDict, TaggedString
from asdf.yamlutil import AsdfDumper
from astropy.io import fits

from l2inv.products.frames import FIRST_PROFILE
from l2inv.products.issued import FIT_FILE, OBSERVED_FILE, QUANTITIES_FILE, Dataset, Issued

BEGIN = datetime(2022, 6, 3, 18, 3, 43, 500_000, tzinfo=UTC)
# Of the time between frames: names of files do not sort as their times do (43_516 before 43_5, 47_25 before 47).
STEPS_MS = (16, 3484, 250, 3000)
ARMS = {23: 40, 9: 24, 4: 56}  # wavelengths of each line, in the files' order
# What the Data Center's files say of each quantity: ASDF key, EXTNAME, BTYPE, BUNIT, and a value to be near to in CGS,
# with the factor that turns it into the unit.
QUANTITIES = (
    ("optical_depth", "Log of Optical Depth at 500nm", "phys.absorption.opticalDepth", "", 0.0, 1.0),
    ("temperature", "Temperature", "phys.temperature", "K", 5000.0, 1.0),
    ("electron_pressure", "Electron Pressure", "phys.electron;phys.pressure", "N/m^2", 20.0, 0.1),
    ("microturbulence", "Microturbulence", "phys.veloc.microturb", "km/s", 1e5, 1e-5),
    ("mag_strength", "Magnetic Field Strength", "phys.magField", "T", 900.0, 1e-4),
    ("velocity", "Line-of-sight Velocity", "spect.dopplerVeloc", "km/s", -2e5, 1e-5),
    ("mag_inclination", "Magnetic Field Inclination (w.r.t. line-of-sight)", "phys.magField;pos.angDistance", "deg",
     -20.0, 1.0),
    ("mag_azimuth", "Magnetic Field Azimuth (w.r.t. line-of-sight)", "phys.magField;pos.azimuth", "deg", -512.0, 1.0),
    ("geo_height", "Geometric Height above solar surface (tau ~ 1 at 500nm)", "phys.distance", "km", 100.0, 1.0),
    ("gas_pressure", "Gas Pressure", "phys.pressure", "N/m^2", 1e5, 0.1),
    ("density", "Density", "phys.density", "kg/m^3", 3e-7, 1000.0),
)  # fmt: skip
LINES = {
    23: ("FeI630", "Fe I", 630.15012),
    9: ("NaID", "Na I", 588.995095),
    4: ("CaII854", "Ca II", 854.2091),
}
STEP_NM = 0.0015


def issued(frames: int = 4, **changes: Any) -> Issued:
    """Return an inversion of three datasets, which were observed at so many scan positions and one more."""
    times = {"start_time": BEGIN, "end_time": BEGIN + timedelta(hours=1)}
    datasets = tuple(
        Dataset(dataset_id, 4 * (frames + 1), "IQUV", center - 0.6, center + 0.7, vsparmid=arm, **times)
        for arm, (dataset_id, (_, _, center)) in enumerate(
            zip(("BXPJD", "BVNED", "BWRGZ"), LINES.values(), strict=True), 1
        )
    )
    values = {
        "inversion_id": "inv.7QK2ZD",
        "proposal_id": "pid_2_114",
        "op_id": "eid_2_114_opNcs9Cj_R003.150682.18999727",
        "instrument_program_id": "id.156511.623969",
        "datasets": datasets,
    }
    return Issued(**(values | changes))


def products(folder: Path, of: Issued, frames: int = 4, **sizes: Any) -> Path:
    """Make everything: science's files, and the Level 2 that is generated from them."""
    folder.mkdir(parents=True, exist_ok=True)
    science(folder, frames, **sizes)
    level2(folder, of, frames, **sizes)
    return folder


# What science delivers


def science(
    folder: Path, frames: int = 4, slit: int = 6, depth: int = 5, arms: Mapping[int, int] = ARMS
) -> None:
    """Make science's three files, plane by plane: they may be larger than memory."""
    header = {"SIMPLE": True, "BITPIX": -32, "NAXIS": 4}
    model = header | {"NAXIS1": slit, "NAXIS2": frames, "NAXIS3": depth, "NAXIS4": len(QUANTITIES)}
    _stream(
        folder / QUANTITIES_FILE,
        model,
        (plane(q, d, frames, slit) for q in range(len(QUANTITIES)) for d in range(depth)),
    )
    wavelengths = sum(arms.values())
    offsets = np.concatenate([(np.arange(n) - n // 3) * STEP_NM * 10_000 for n in arms.values()])
    for name, noise in ((FIT_FILE, 0.0), (OBSERVED_FILE, 0.01)):
        shape = {"NAXIS1": slit, "NAXIS2": frames, "NAXIS3": wavelengths, "NAXIS4": 4, "EXTEND": True}
        cards = {"DESR-BIN": 2, "DESR-FID": 1} if name == FIT_FILE else {}
        planes = (profile(s, w, frames, slit) + noise for s in range(4) for w in range(wavelengths))
        _stream(folder / name, header | shape | cards, (one.astype("f4") for one in planes))
        fits.append(folder / name, offsets.astype("f4"))
        fits.append(folder / name, np.repeat(list(arms), list(arms.values())).astype("i4"))


def plane(quantity: int, depth: int, frames: int, slit: int) -> "np.ndarray[Any, Any]":
    """Return a quantity at a depth, as science delivers it: (frames, slit), in CGS."""
    return _values(quantity, depth, np.arange(frames * slit).reshape(frames, slit))


def _values(quantity: int, depth: int, pixels: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    if quantity == 0:
        return np.full(pixels.shape, 1.2 - 0.1 * depth, "f4")
    return np.asarray(QUANTITIES[quantity][4] * (1 + 0.01 * np.sin(pixels + depth)), "f4")


def profile(stokes: int, wavelength: int, frames: int, slit: int) -> "np.ndarray[Any, Any]":
    """Return a Stokes parameter at a wavelength: (frames, slit), relative to the continuum."""
    ripple = np.cos(np.arange(frames * slit).reshape(frames, slit) * 0.1 + wavelength)
    return np.asarray(1 + 0.1 * ripple if stokes == 0 else 0.01 * ripple)


def _stream(path: Path, header: Mapping[str, Any], planes: Any) -> None:
    path.unlink(missing_ok=True)
    with fits.StreamingHDU(path, fits.Header(header)) as out:
        for one in planes:
            out.write(one)


# What is published


def level2(
    folder: Path, of: Issued, frames: int = 4, slit: int = 6, depth: int = 5, arms: Mapping[int, int] = ARMS
) -> None:
    """Make the frames and the ASDF."""
    folder.mkdir(parents=True, exist_ok=True)
    hdus = frame(of, slit, depth, arms)
    begins = times(frames)
    for number, begin in enumerate(begins):
        _primary(hdus[0].header, of, begin)
        for quantity, hdu in enumerate(hdus[1:FIRST_PROFILE]):
            hdu.data[...] = converted(quantity, number, slit, depth)
        hdus.writeto(folder / of.frame_file(begin), checksum=True)
    metadata(folder, of, begins, hdus)


def times(frames: int) -> list[datetime]:
    """Return when the frames began."""
    begins = [BEGIN]
    while len(begins) < frames:
        begins.append(begins[-1] + timedelta(milliseconds=STEPS_MS[len(begins) % len(STEPS_MS) - 1]))
    return begins


def converted(quantity: int, frame: int, slit: int, depth: int) -> "np.ndarray[Any, Any]":
    """Return a quantity of a frame as it is published: (slit, depth), in its unit, angles in 0 to 360 degrees."""
    _, _, _, unit, _, factor = QUANTITIES[quantity]
    pixels = np.arange(frame * slit, (frame + 1) * slit)
    values = np.stack([_values(quantity, d, pixels) for d in range(depth)], axis=-1) * np.float32(factor)
    return values % np.float32(360) if unit == "deg" else values


def frame(of: Issued, slit: int, depth: int, arms: Mapping[int, int]) -> fits.HDUList:
    """Return the HDUs of a frame."""
    hdus = fits.HDUList([fits.PrimaryHDU()])
    for _, extname, btype, unit, _, _ in QUANTITIES:
        hdu = fits.ImageHDU(np.zeros((1, slit, depth), "f4"), name=extname)
        hdu.header.update({"EXTNAME": extname, "BTYPE": btype, "BUNIT": unit, "BSCALE": 1, "BZERO": 0})
        hdu.header.update({"CTYPE1": "LOGTAU", "CUNIT1": "", "CRVAL1": 0.0, "CRPIX1": 13.0, "CDELT1": -0.1})
        hdus.append(hdu)
    for line_id, count in arms.items():
        _, ion, center = LINES[line_id]
        for kind in ("Original", "Fit"):
            data = np.full((1, slit, count, 4), 0.5, "f4")
            hdu = fits.ImageHDU(data, name=f"{ion} Profile {kind}")
            hdu.header.update(
                {"EXTNAME": f"{ion} Profile {kind}", "BTYPE": "spect.line.profile", "BUNIT": ""}
            )
            hdu.header.update(
                {"SPECPFIN": ion, "SPECPFTP": kind, "CTYPE1": "STOKES", "CTYPE2": "AWAV", "CUNIT2": "nm"}
            )
            hdu.header.update({"CRVAL2": center, "CRPIX2": count // 3 + 1.0, "CDELT2": STEP_NM})
            hdus.append(hdu)
    return hdus


def _primary(header: fits.Header, of: Issued, begin: datetime) -> None:
    said = {
        "INSTRUME": "VISP", "DATE-BEG": stamp(begin), "DATE-END": stamp(begin + timedelta(milliseconds=376)),
        "TIMESYS": "UTC", "DSETID": of.inversion_id, "PROCTYPE": "L2", "FILENAME": of.frame_file(begin), "LEVEL": 2,
        "OBSPR_ID": of.op_id, "PROP_ID": of.proposal_id, "IP_ID": of.instrument_program_id, "AO_LOCK": True,
        "ATMOS_R0": 0.11,
    }  # fmt: skip
    header.update(said)


def stamp(time: datetime) -> str:
    """Return a time as the headers have it: without trailing zeros."""
    return f"{time:%Y-%m-%dT%H:%M:%S.%f}".rstrip("0").rstrip(".")


# The ASDF

DKIST = "asdf://dkist.nso.edu/tags"
CORE = "tag:stsci.edu:asdf"
Arrays = list["np.ndarray[Any, Any]"]


def metadata(
    folder: Path,
    of: Issued,
    begins: Sequence[datetime],
    hdus: fits.HDUList,
    headers_of: Sequence[datetime] | None = None,
) -> None:
    """Make the ASDF of the frames that began then; each of their files has these HDUs. `headers_of` are the frames whose
    headers it holds, if not all of them in that order."""
    arrays: Arrays = []
    names = [of.frame_file(begin) for begin in begins]
    inventory = {
        "inversionId": of.inversion_id,
        "proposalId": of.proposal_id,
        "canonicalDataset": of.datasets[0].dataset_id,
        "datasetIds": [dataset.dataset_id for dataset in of.datasets],
        "spectralLines": [name for name, _, _ in LINES.values()],
        "wavelengths": [center for _, _, center in LINES.values()],
        "frameCount": len(names),
    }
    headers = []
    for begin in begins if headers_of is None else headers_of:
        header = fits.Header()
        _primary(header, of, begin)
        headers.append(header)
    quantities, profiles = {}, {}
    for number, (key, _, _, unit, _, _) in enumerate(QUANTITIES, 1):
        meta = {"headers": table([hdus[number].header] * len(names), arrays), "inventory": inventory}
        quantities[key] = dataset(
            names, number, hdus[number], unit, meta, ("optical_depth", "slit_x", "frame_y")
        )
    for number in range(FIRST_PROFILE, len(hdus)):
        header = hdus[number].header
        (name, center) = next(
            (name, center) for name, ion, center in LINES.values() if ion == header["SPECPFIN"]
        )
        kind = header["SPECPFTP"].lower()
        meta = {"headers": table([header] * len(names), arrays), "inventory": inventory, "profile": kind}
        meta |= {"ion": header["SPECPFIN"], "wavelength": center}
        key = f"{name}_{'orig' if kind == 'original' else 'fit'}"
        axes = ("stokes", "wavelength", "slit_x", "frame_y")
        profiles[key] = dataset(names, number, hdus[number], "count", meta, axes)
    inversion = {
        "fileuris": names,
        "meta": {"inventory": inventory, "headers": table(headers, arrays)},
        "quantities": collection("tag:sunpy.org:ndcube/ndcollection-1.0.0", quantities, [0, 1, 2]),
        "profiles": collection(f"{DKIST}/profiles-0.1.0", profiles, [0, 1, 3]),
    }
    tree = {"history": {"extensions": []}, "inversion": TaggedDict(inversion, f"{DKIST}/inversion-0.1.0")}
    write_asdf(folder / of.metadata_file, tree, arrays)


def collection(tag: str, items: dict[str, Any], aligned: list[int]) -> TaggedDict:
    return TaggedDict(
        {"items": items, "aligned_axes": {key: list(aligned) for key in items}, "meta": {}}, tag
    )


def dataset(
    names: list[str], number: int, hdu: Any, unit: str, meta: dict[str, Any], axes: tuple[str, ...]
) -> TaggedDict:
    data = {"fileuris": names, "target": number, "datatype": "float32", "shape": list(hdu.shape)}
    node = {
        "unit": TaggedString(unit),
        "data": TaggedDict(data, f"{DKIST}/file_manager-1.0.0"),
        "meta": meta,
        "wcs": coordinates(axes),
    }
    node["unit"]._tag = f"{CORE}/unit/unit-1.0.0"
    return TaggedDict(node, f"{DKIST}/dataset-1.2.0")


def coordinates(axes: tuple[str, ...]) -> TaggedDict:
    """Return the plainest coordinates that gwcs knows: the numbers of the pixels."""
    count = len(axes)

    def frame(name: str) -> TaggedDict:
        units = [TaggedString("pixel") for _ in axes]
        for unit in units:
            unit._tag = f"{CORE}/unit/unit-1.0.0"
        said = {
            "name": name,
            "naxes": count,
            "axes_names": list(axes),
            "axes_order": list(range(count)),
            "unit": units,
        }
        said |= {"axes_type": ["PIXEL"] * count, "axis_physical_types": [f"custom:{axis}" for axis in axes]}
        return TaggedDict(said, "tag:stsci.edu:gwcs/frame-1.0.0")

    names = [f"x{n}" for n in range(count)]
    same = TaggedDict(
        {"n_dims": count, "inputs": names, "outputs": names}, f"{CORE}/transform/identity-1.2.0"
    )
    steps = [
        TaggedDict({"frame": frame(name), "transform": transform}, "tag:stsci.edu:gwcs/step-1.1.0")
        for name, transform in (("pixel", same), ("world", None))
    ]
    return TaggedDict({"name": "", "steps": steps}, "tag:stsci.edu:gwcs/wcs-1.2.0")


def table(headers: Sequence[fits.Header], arrays: Arrays) -> TaggedDict:
    """Return a table of headers, a column for each keyword; the columns' arrays are added to those of the file."""
    names = sorted({key for key in headers[0] if key not in ("", "COMMENT", "HISTORY")})
    columns = []
    for name in names:
        values = np.array([header[name] for header in headers])
        arrays.append(values.astype(values.dtype.newbyteorder(">")))
        datatype = ["ucs4", values.dtype.itemsize // 4] if values.dtype.kind == "U" else values.dtype.name
        if datatype == "bool":
            datatype = "bool8"
        said = {"source": len(arrays) - 1, "datatype": datatype, "byteorder": "big", "shape": [len(headers)]}
        column = {"name": name, "data": TaggedDict(said, f"{CORE}/core/ndarray-1.0.0")}
        columns.append(TaggedDict(column, f"{CORE}/core/column-1.0.0"))
    said = {"colnames": names, "columns": columns, "qtable": False}
    return TaggedDict(said, "tag:astropy.org:astropy/table/table-1.0.0")


def write_asdf(path: Path, tree: dict[str, Any], arrays: Arrays) -> None:
    """Write a tree and its arrays as the ASDF standard 1.5.0 has it, each array in a block of its own."""
    text = yaml.dump(TaggedDict(tree, f"{CORE}/core/asdf-1.1.0"), Dumper=AsdfDumper, explicit_start=True, explicit_end=True,
                     version=(1, 1), tags={"!": f"{CORE}/"}, width=10_000)  # fmt: skip
    with path.open("wb") as file:
        file.write(b"#ASDF 1.0.0\n#ASDF_STANDARD 1.5.0\n" + text.encode())
        for array in arrays:
            file.write(block(array.tobytes()))


def block(data: bytes) -> bytes:
    """Return a block of ASDF."""
    head = struct.pack(">I4sQQQ", 0, b"\0" * 4, len(data), len(data), len(data))
    sum_ = hashlib.md5(data).digest()
    return b"\xd3BLK" + struct.pack(">H", len(head) + len(sum_)) + head + sum_ + data
