"""What was issued for an inversion when work on it began, and the names derived from it. No I/O, no clock."""

import re
from datetime import UTC, datetime

from msgspec import Struct

# What science delivers (DeSIRe on Blanca).
QUANTITIES_FILE = "inv_res_mod.fits"
FIT_FILE = "inv_res_pre.fits"
OBSERVED_FILE = "per_ori.fits"
SCIENCE_FILES = (QUANTITIES_FILE, FIT_FILE, OBSERVED_FILE)

_INVERSION_ID = re.compile(r"inv\.[A-Z0-9]{6}", re.ASCII)
_FRAME = re.compile(
    r"INV_[A-Z0-9]{6}_(\d{4})_(\d\d)_(\d\d)T(\d\d)_(\d\d)_(\d\d)(?:_(\d{0,5}[1-9]))?_L2\.fits", re.ASCII
)


class Dataset(Struct, frozen=True):
    """A Level 1 dataset that was inverted. None: unknown, so that what depends on it cannot be checked."""

    dataset_id: str
    frame_count: int | None = (
        None  # files, as the inventory counts them: one a Stokes parameter and scan position
    )
    stokes: str | None = "IQUV"
    wavelength_min_nm: float | None = None
    wavelength_max_nm: float | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    vsparmid: int | None = None  # the arm of ViSP; only in the Level 1 headers, not in the inventory

    @property
    def positions(self) -> int | None:
        """Return the number of scan positions, each of which is a frame of the inversion."""
        if self.frame_count is None or not self.stokes:
            return None
        return self.frame_count // len(self.stokes)


class Output(Struct, frozen=True):
    """A file of the inversion as it was recorded, by its name in the folder."""

    name: str
    size_bytes: int | None = None
    sha256: str | None = None


class Issued(Struct, frozen=True):
    """An inversion of one instrument program, as it was named when work on it began."""

    inversion_id: str  # inv.XXXXXX
    proposal_id: str
    op_id: str
    instrument_program_id: str
    datasets: tuple[Dataset, ...]
    outputs: tuple[Output, ...] = ()
    asdf_object_key: str | None = None  # as recorded; None: by the convention

    def __post_init__(self) -> None:
        if not _INVERSION_ID.fullmatch(self.inversion_id):
            raise ValueError(f"{self.inversion_id!r} is no inversion id, such as inv.7QK2ZD")

    @property
    def stem(self) -> str:
        """Return the beginning of each file's name: INV_XXXXXX."""
        return self.inversion_id.upper().replace(".", "_")

    @property
    def metadata_file(self) -> str:
        """Return the name of the ASDF."""
        return f"{self.stem}_L2_metadata.asdf"

    @property
    def metadata_key(self) -> str:
        """Return the asdfObjectKey by the convention: PROPOSAL/inv_XXXXXX/INV_XXXXXX_L2_metadata.asdf."""
        return f"{self.proposal_id}/{self.inversion_id.replace('.', '_')}/{self.metadata_file}"

    def frame_file(self, begin: datetime) -> str:
        """Return the name of the FITS file of a frame that began at that time; its fraction of a second has no trailing
        zeros, and is omitted if it is 0."""
        begin = begin.astimezone(UTC)
        fraction = f"_{begin:%f}".rstrip("0").rstrip("_")
        return f"{self.stem}_{begin:%Y_%m_%dT%H_%M_%S}{fraction}_L2.fits"

    def frame_time(self, name: str) -> datetime | None:
        """Return when a frame began, from its file's name; None if the name was not issued."""
        found = _FRAME.fullmatch(name)
        if not found or not name.startswith(f"{self.stem}_"):
            return None
        *parts, fraction = found.groups()
        try:
            return datetime(*map(int, parts), int((fraction or "").ljust(6, "0")), tzinfo=UTC)  # type: ignore[misc,arg-type]
        except ValueError:  # the 31st of June
            return None
