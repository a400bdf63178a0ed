"""A FITS file, read safely: HDUs within limits, values in pieces, checks against the standard.

astropy reads headers and checks them against the standard. This module protects it from files that it would unpack,
search for an END without limit, or allocate too much memory for.
"""

import os
import warnings
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from l2inv.products import files
from l2inv.products.findings import Unfit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK = 2880
CARD = 80
# Far more than any product has; a file with more is not read further.
MOST_HEADER_BLOCKS = 500
MOST_HDUS = 100
MOST_AXES = 8

_BITPIX = (8, 16, 32, 64, -32, -64)


class Hdu(NamedTuple):
    """A header, and where its data are."""

    number: int
    header: Any  # astropy's Header
    is_image: bool
    bitpix: int
    shape: tuple[int, ...]  # numpy's order: the axis that varies fastest comes last
    header_at: int
    data_at: int
    data_bytes: int  # without padding


def read_hdus(file: BinaryIO, size_bytes: int) -> list[Hdu]:
    """Return the HDUs of a FITS file. Raise Unfit if it is not FITS, is damaged, or exceeds the limits."""
    if not files.read_at(file, 0, CARD).startswith(b"SIMPLE  ="):
        measured = "empty" if size_bytes == 0 else "does not begin with SIMPLE  ="
        raise Unfit("format", measured, "a FITS file, not compressed")
    hdus: list[Hdu] = []
    at = 0
    while at < size_bytes:
        if len(hdus) == MOST_HDUS:
            raise Unfit("structure", f"more than {MOST_HDUS} HDUs", f"at most {MOST_HDUS}")
        hdus.append(_hdu(file, size_bytes, at, len(hdus)))
        at = hdus[-1].data_at + padded(hdus[-1].data_bytes)
    if at > size_bytes:
        missing = f"{at - size_bytes} bytes are missing at the end"
        raise Unfit("structure", missing, "the file is as long as its headers say", hdus[-1].number)
    return hdus


def padded(count: int) -> int:
    """Return how many bytes a part of that length takes, since a file consists of whole blocks."""
    return -(-count // BLOCK) * BLOCK


def _hdu(file: BinaryIO, size_bytes: int, at: int, number: int) -> Hdu:
    raw = _header(file, at, number)
    header = _parsed(raw, number)
    bitpix, axes = integer(header, "BITPIX"), integer(header, "NAXIS")
    if bitpix not in _BITPIX or axes is None or not 0 <= axes <= MOST_AXES:
        measured = f"BITPIX {value(header, 'BITPIX')}, NAXIS {value(header, 'NAXIS')}"
        raise Unfit("structure", measured, f"a BITPIX of the standard, at most {MOST_AXES} axes", number)
    lengths = [integer(header, f"NAXIS{n}") for n in range(1, axes + 1)]
    pcount, gcount = integer(header, "PCOUNT", 0), integer(header, "GCOUNT", 1)
    if pcount is None or pcount < 0 or gcount is None or gcount < 1:
        measured = f"PCOUNT {value(header, 'PCOUNT')}, GCOUNT {value(header, 'GCOUNT')}"
        raise Unfit("structure", measured, "counts", number)
    shape = tuple(length for length in reversed(lengths) if length is not None and length >= 0)
    if len(shape) != axes:
        raise Unfit("structure", f"axes of {lengths}", "axes with lengths", number)
    data_bytes = abs(bitpix) // 8 * gcount * (pcount + prod(shape)) if axes else 0
    data_at = at + len(raw)
    if data_at + data_bytes > size_bytes:
        measured = f"the data end after byte {data_at + data_bytes}, the file after {size_bytes}"
        raise Unfit("structure", shorter(measured), "the file is as long as its headers say", number)
    is_image = number == 0 or value(header, "XTENSION") == "IMAGE"
    return Hdu(number, header, is_image, bitpix, shape, at, data_at, data_bytes)


def shorter(measured: str) -> str:
    """Return the text, unless a hostile header made its numbers thousands of digits long."""
    return measured if len(measured) < 120 else "the data would be larger than any file"


def _header(file: BinaryIO, at: int, number: int) -> bytes:
    """Return a header's blocks up to the one with END."""
    raw = b""
    file.seek(at)
    block = memoryview(bytearray(BLOCK))
    for _ in range(MOST_HEADER_BLOCKS):
        if files.read_into(file, block) < BLOCK:
            raise Unfit("structure", "ends within a header", "a header that ends with END", number)
        if not raw and number and bytes(block[:8]) != b"XTENSION":
            raise Unfit(
                "structure", f"what follows HDU {number - 1} is no HDU", "nothing or XTENSION", number
            )
        raw += block
        if any(bytes(block[card : card + CARD]).rstrip(b" ") == b"END" for card in range(0, BLOCK, CARD)):
            return raw
    raise Unfit("structure", f"no END in {MOST_HEADER_BLOCKS} blocks", "a header that ends with END", number)


def _parsed(raw: bytes, number: int) -> Any:
    from astropy.io import fits

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about cards that break the standard: `breaches` names them
            return fits.Header.fromstring(raw)
    except Exception as problem:
        raise Unfit("structure", f"header: {problem}", "a header that can be read", number) from problem


def value(header: Any, key: str) -> Any:
    """Return the value of a keyword: text, a number, true or false; None if there is none or it cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = header.get(key)
        except (
            Exception
        ):  # astropy raises whatever parsing a card happens to raise; `breaches` names the card
            return None
    return found if isinstance(found, (str, int, float)) else None


def integer(header: Any, key: str, default: int | None = None) -> int | None:
    """Return the value of a keyword that must be an integer; the default if it is missing, None if it is not an integer."""
    if key not in header:
        return default
    found = value(header, key)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def scale(hdu: Hdu) -> float:
    """Return the factor by which the values in the file must be multiplied."""
    return _number(value(hdu.header, "BSCALE"), 1)


def zero(hdu: Hdu) -> float:
    """Return what must be added to the scaled values."""
    return _number(value(hdu.header, "BZERO"), 0)


def is_scaled(hdu: Hdu) -> bool:
    """Return whether the values differ from those stored in the file."""
    return scale(hdu) != 1 or zero(hdu) != 0


def _number(found: Any, default: float) -> float:
    return float(found) if isinstance(found, (int, float)) else default


def breaches(file: BinaryIO) -> list[str]:
    """Return the violations of the standard that astropy's verification finds, a line each."""
    from astropy.io import fits

    with (
        os.fdopen(os.dup(file.fileno()), "rb") as copy,
        warnings.catch_warnings(record=True) as warned,
    ):  # astropy closes it
        warnings.simplefilter("always")
        copy.seek(0)
        try:
            with fits.open(copy, memmap=False, lazy_load_hdus=False, disable_image_compression=True) as hdus:
                hdus.verify("exception")
        except fits.VerifyError as problem:
            return _lines(str(problem))
        except Exception as problem:
            return [f"astropy cannot read it: {type(problem).__name__}: {problem}"]
    return [line for one in warned for line in _lines(str(one.message))]


def _lines(text: str) -> list[str]:
    """Return the lines of astropy's report that state a problem, without its headings, which name an HDU or a card."""
    lines = [line.strip() for line in text.splitlines()]
    problems = [line for line in lines if line and not line.endswith(":")]
    return [line for line in problems if not line.startswith("Note: ")]


def pieces(file: BinaryIO, hdu: Hdu, tick: files.Tick, multiple: int = 1) -> Iterator["NDArray[np.float32]"]:
    """Yield the values of an HDU in order, as flat arrays whose lengths are multiples of `multiple`, except the last.

    Each array is overwritten by the next. Raise Unfit if the file became shorter.
    """
    import numpy as np

    dtype = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}[hdu.bitpix]
    item = abs(hdu.bitpix) // 8
    step = max(files.PIECE_BYTES // (item * multiple), 1) * item * multiple
    buffer = memoryview(bytearray(min(step, hdu.data_bytes)))
    file.seek(hdu.data_at)
    left = hdu.data_bytes
    while left:
        part = buffer[: min(left, len(buffer))]
        if files.read_into(file, part) < len(part):
            raise Unfit(
                "structure", "became shorter while it was read", "a file that nobody writes", hdu.number
            )
        tick(len(part))
        left -= len(part)
        yield np.frombuffer(part, dtype)


def wrong_sums(file: BinaryIO, hdu: Hdu) -> Iterator[tuple[str, str]]:
    """Yield which of an HDU's CHECKSUM and DATASUM are wrong, each with the correct value.

    FITS standard 4.0, 4.4.2.7: the ones' complement sum of all 32-bit words; over the whole HDU it is -0.
    """
    stated = value(hdu.header, "DATASUM")
    has_checksum = isinstance(value(hdu.header, "CHECKSUM"), str)
    if stated is None and not has_checksum:
        return
    data = _sum(file, hdu.data_at, padded(hdu.data_bytes), 0)
    if stated is not None and str(stated).strip() != str(data):
        yield "DATASUM", str(data)
    if has_checksum and _sum(file, hdu.header_at, hdu.data_at - hdu.header_at, data) != 0xFFFFFFFF:
        yield "CHECKSUM", "a sum over the HDU that is -0"


def _sum(file: BinaryIO, at: int, count: int, total: int) -> int:
    import numpy as np

    file.seek(at)
    buffer = memoryview(bytearray(min(count, files.PIECE_BYTES)))
    while count:
        part = buffer[: min(count, len(buffer))]
        if files.read_into(file, part) < len(part):
            break
        count -= len(part)
        total += int(np.frombuffer(part, ">u4").sum(dtype=np.uint64))
        while total > 0xFFFFFFFF:
            total = (total & 0xFFFFFFFF) + (total >> 32)
    return total
