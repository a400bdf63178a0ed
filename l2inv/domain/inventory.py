"""A dataset of the inventory as the metadata store describes it, read with care.

The fields are those that l2inv uses, under the store's own names in snake_case. Every field that the store's
schema allows to be null may be null, and a field that a saved response lacks reads as null.
"""

import hashlib
import json
import re
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any
from urllib.parse import quote

import msgspec

from l2inv import __version__
from l2inv.documents import Json

# Long enough for every id seen (58 characters), short enough for an index.
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Frames = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class Distribution(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a quantity was distributed over the frames: extremes, quartiles and median, in the field's unit."""

    min: float | None = None
    p25: float | None = None
    med: float | None = None
    p75: float | None = None
    max: float | None = None


class Dataset(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One L1 dataset. Times are UTC; units are in comments where the store's names have none."""

    dataset_id: Id
    observing_program_execution_id: Id
    create_date: datetime
    product_id: str | None = None
    instrument_program_execution_id: Id | None = None
    instrument_name: str | None = None
    primary_proposal_id: str | None = None
    primary_experiment_id: str | None = None
    experiment_description: str | None = None
    bucket: str | None = None
    status: str | None = None
    update_date: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    is_embargoed: bool | None = None
    embargo_end_date: datetime | None = None
    frame_count: Frames | None = None
    health: dict[str, Frames | None] | None = None
    gos_status: dict[str, Frames | None] | None = None
    ao_locked: Frames | None = None
    stokes_parameters: str | None = None
    bounding_box: str | None = None  # arcsec from Sun center
    wavelength_min: float | None = None  # nm
    wavelength_max: float | None = None  # nm
    exposure_time: float | None = None  # ms
    spectral_lines: list[str] | None = None
    fried_parameter: Distribution | None = None
    light_level: Distribution | None = None
    polarimetric_accuracy: Distribution | None = None
    asdf_object_key: str | None = None
    browse_movie_url: str | None = None


# The counts of frames that the store names.
SUBFIELDS = {
    "health": ("good", "bad", "ill", "unknown"),
    "gosStatus": ("open", "opening", "closed", "closing", "undefined"),
}


class Record(msgspec.Struct, frozen=True):
    """A dataset, the JSON text that is kept of it, and that text's hash."""

    dataset: Dataset
    text: bytes
    content_hash: bytes
    unreadable: tuple[str, ...] = ()  # fields of DISPLAYED that count as null because they cannot be read

    @property
    def dataset_id(self) -> str:
        return self.dataset.dataset_id

    @property
    def op_id(self) -> str:
        return self.dataset.observing_program_execution_id


class Unreadable(msgspec.Struct, frozen=True):
    """A record that is quarantined: its id if it has one, the reason, and the record as received."""

    dataset_id: str | None
    reason: str
    raw: bytes
    is_second: bool = False  # it can be read, but differs from the first of its dataset in one scan


# No verdict depends on these: one that cannot be read becomes null, and is counted.
DISPLAYED = ("fried_parameter", "light_level", "polarimetric_accuracy", "exposure_time", "browse_movie_url")
# Fields whose changes the history shows with old and new values, since people decide by them.
DECIDED_BY = (
    "instrument_name", "frame_count", "health", "gos_status", "ao_locked", "stokes_parameters", "bounding_box",
    "wavelength_min", "wavelength_max", "exposure_time", "spectral_lines", "fried_parameter", "start_time", "end_time",
    "is_embargoed",
)  # fmt: skip
COUNT_KEYS = {"health": set(SUBFIELDS["health"]), "gos_status": set(SUBFIELDS["gosStatus"])}
_FIELDS = {field.encode_name: field for field in msgspec.structs.fields(Dataset)}
_EASED = {key: field for key, field in _FIELDS.items() if field.name in {*DISPLAYED, *COUNT_KEYS}}

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")  # PostgreSQL stores no such character
_CAMEL = {"health": "health", "gos_status": "gosStatus"}
_PLACE = {
    name: (0, str(at)) for counts in ("health", "gosStatus") for at, name in enumerate(SUBFIELDS[counts])
}
_decoder = msgspec.json.Decoder(Dataset)
_encoder = msgspec.json.Encoder()


@cache
def _reader() -> bytes:
    """Return what identifies this reader: each release, and each change of the fields or their bounds, is another one."""
    return hashlib.sha256(__version__.encode() + msgspec.json.encode(msgspec.json.schema(Dataset))).digest()


def raw_hash(raw: bytes | msgspec.Raw) -> bytes:
    """Return the SHA-256 of a record's bytes as received, salted with this reader: the same hash means the same result."""
    digest = hashlib.sha256(_reader())
    digest.update(raw)
    return digest.digest()


def given(dataset: Dataset) -> int:
    """Return which fields of a dataset are not null: a bit each, in the order of the struct."""
    return int(
        "".join(["0" if value is None else "1" for value in msgspec.structs.astuple(dataset)])[::-1], 2
    )


def read(raw: bytes | msgspec.Raw) -> Record | Unreadable:
    """Return the dataset that one record's JSON describes, or why it cannot be read. Never raise.

    The kept text has the known fields that are not null, and times with their offset: the same dataset has the same hash
    whatever the order, spelling or nulls of the answer, and after l2inv adds a field that is null in it.
    """
    found = _read(raw)
    if isinstance(found, Record):
        return found
    try:
        text, unreadable = _eased(raw)
    except (ValueError, RecursionError):
        return found
    found = _read(text)
    if isinstance(found, Record):
        return msgspec.structs.replace(found, unreadable=unreadable)
    return msgspec.structs.replace(found, raw=bytes(raw))


def _read(raw: bytes | msgspec.Raw) -> Record | Unreadable:
    try:
        dataset = _decoder.decode(raw)
        _to_utc(dataset)
        _to_lower_case(dataset)
        text = kept(dataset)
    except (msgspec.DecodeError, UnicodeError, RecursionError, OverflowError) as problem:
        return Unreadable(id_of(raw), _reason(raw, problem), bytes(raw))
    if b"\\u0000" in text and _NUL.search(text):
        return Unreadable(_without_nul(dataset.dataset_id), "contains a NUL character", bytes(raw))
    if not _can_name_a_folder(dataset.observing_program_execution_id):
        reason = (
            "observingProgramExecutionId is too long for the name of a folder, in which much of it is encoded"
        )
        return Unreadable(dataset.dataset_id, reason, bytes(raw))
    return Record(dataset, text, hashlib.sha256(text).digest())


def _eased(raw: bytes | msgspec.Raw) -> tuple[bytes, tuple[str, ...]]:
    """Return the JSON text of a record without unreadable optional fields, and which of DISPLAYED these are.

    An object that arrives as a JSON string is decoded. Raise ValueError if the record is not a JSON object, and
    RecursionError.
    """
    values = {name: value for name, value in _object(raw).items() if name in _FIELDS}
    unreadable = []
    for name in values.keys() & _EASED.keys():
        field = _EASED[name]
        try:
            values[name] = msgspec.to_builtins(_as(field.type, values[name]))
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            if field.name in DISPLAYED:
                values[name] = None
                unreadable.append(field.name)
    return json.dumps(values).encode(), tuple(sorted(unreadable))


def _as(kind: Any, value: Any) -> Any:
    """Return a value, or the value of its JSON text, as a field's type. Raise msgspec.DecodeError, UnicodeError."""
    if isinstance(value, str) and "\0" in value:
        raise msgspec.ValidationError("contains a NUL character")
    try:
        return msgspec.json.decode(json.dumps(value), type=kind)
    except msgspec.DecodeError:
        if not isinstance(value, str):
            raise
        return msgspec.json.decode(value, type=kind)


def _can_name_a_folder(op_id: str) -> bool:
    """Return whether the name of the OP's folder, where a byte may become three, is within file systems' limit of 255."""
    return (len(op_id) <= 80 and op_id.isascii()) or len(quote(op_id, safe="")) <= 250


def kept(dataset: Dataset) -> bytes:
    """Return the unique text of a dataset, with the counts of frames in the order of the query."""
    counts = {
        name: dict(sorted(value.items(), key=lambda item: _PLACE.get(item[0], (1, item[0]))))
        for name in ("health", "gos_status")
        if (value := getattr(dataset, name)) and tuple(value) != SUBFIELDS[_CAMEL[name]]
    }
    return _encoder.encode(msgspec.structs.replace(dataset, **counts) if counts else dataset)


def stored(text: bytes | str) -> Dataset:
    """Return the dataset of a kept text. Raise msgspec.ValidationError if it is not valid."""
    return _decoder.decode(text)


TIMES = ("create_date", "update_date", "start_time", "end_time", "embargo_end_date")


def _to_utc(dataset: Dataset) -> None:
    """Convert the times to UTC: the store sends UTC without an offset; one with an offset is converted."""
    for name in TIMES:
        time = getattr(dataset, name)
        if time is not None and time.tzinfo is not UTC:
            in_utc = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
            msgspec.structs.force_setattr(dataset, name, in_utc)  # nobody else has seen it yet


def _to_lower_case(dataset: Dataset) -> None:
    """Write the keys of the counts in lower case: the store's schema describes them in capitals, its answers differ."""
    for name, known in COUNT_KEYS.items():
        counts = getattr(dataset, name)
        if counts and not counts.keys() <= known:
            lower = {key.lower(): frames for key, frames in counts.items()}
            if len(lower) < len(counts):
                raise msgspec.ValidationError(f"{name} has a key twice, in upper and in lower case")
            msgspec.structs.force_setattr(dataset, name, lower)


def id_of(raw: bytes | msgspec.Raw) -> str | None:
    """Return a record's datasetId, whatever else the record has, such as a NaN; None if it has none."""
    try:
        try:
            found = msgspec.json.decode(raw, type=_OnlyId)
        except msgspec.DecodeError:
            found = msgspec.json.decode(
                json.dumps({"datasetId": _object(raw).get("datasetId")}), type=_OnlyId
            )
        return _without_nul(found.dataset_id)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def _object(raw: bytes | msgspec.Raw) -> Json:
    """Return a record decoded by Python, which is less strict than JSON. Raise ValueError, also if it is not an object."""
    values = json.loads(bytes(raw))
    if not isinstance(values, dict):
        raise ValueError("not an object")
    return values


def _without_nul(dataset_id: str) -> str | None:
    return None if "\0" in dataset_id else dataset_id


def changes(before: Dataset, now: Dataset) -> dict[str, list[Any]]:
    """Return the old and the new value of each field of DECIDED_BY in which two versions differ; for seeing, the medians.

    The number of frames is included whenever the frames with AO locked differ.
    """

    def plain(dataset: Dataset, name: str) -> Any:
        value = getattr(dataset, name)
        return value.med if isinstance(value, Distribution) else msgspec.to_builtins(value)

    both = {name: [plain(before, name), plain(now, name)] for name in DECIDED_BY}
    changed = {name: values for name, values in both.items() if values[0] != values[1]}
    if "ao_locked" in changed:
        changed["frame_count"] = both["frame_count"]
    return changed


class _OnlyId(msgspec.Struct, rename="camel"):
    dataset_id: Id


class _OnlyOp(msgspec.Struct, rename="camel"):
    observing_program_execution_id: Any = None


def _reason(raw: bytes | msgspec.Raw, problem: Exception) -> str:
    """Return the decoder's message, or our own for the one field that real records lack."""
    try:
        if msgspec.json.decode(raw, type=_OnlyOp).observing_program_execution_id is None:
            return "no observingProgramExecutionId: it belongs to no OP"
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass  # it is not even an object
    return str(problem).split("\n", 1)[0]
