"""Drift of the inventory as a whole: signs that the store's data, or how they are read, changed their meaning.

Pure: a scan counts what it reads in a Profile, which is compared with that of the scan before.
"""

import math
from array import array
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import median
from typing import TypedDict

from l2inv.domain.inventory import COUNT_KEYS, Dataset, Record


class Earlier(TypedDict):
    """The part of a scan's profile that is stored in its run, for the next scan."""

    datasets: int
    given: dict[str, int]  # field -> in how many datasets it was not null
    log10_medians: dict[str, float]  # "FIELD of INSTRUMENT" -> median of log10 of its values


class Sighting(TypedDict):
    """In how many datasets something was found, and one of them."""

    count: int
    example: str


# The telescope's instruments: a warning is printed for any other, and for other keys of the counts.
INSTRUMENTS = {"VISP", "VBI", "CRYO-NIRSP", "DL-NIRSP", "VTF"}

# How many powers of ten an instrument's median may move between scans before its unit is in doubt. Exposures
# differ a hundredfold by program; the others hardly at all.
TOLERATED_DECADES = {
    "wavelength_min": 0.9,
    "wavelength_max": 0.9,
    "fried_parameter": 0.9,
    "exposure_time": 1.9,
}
ENOUGH = 5  # values for a meaningful median
CLOCKS_DIFFER = timedelta(minutes=5)  # as much as the metadata store's clock may be ahead of the database's


@dataclass
class Profile:
    """What a scan read: how often each field was not null, the magnitudes of quantities with a unit, and the createDates
    after `latest`."""

    latest: datetime | None = None
    datasets: int = 0
    given: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, Sighting] = field(default_factory=dict)  # what -> {"count", "example"}
    unreadable: dict[str, Sighting] = field(default_factory=dict)  # field -> {"count", "example"}
    future: int = 0  # datasets whose createDate is in the future, and the first of them
    first_future: Dataset | None = None
    # "FIELD of INSTRUMENT" -> log10 of new values
    sizes: dict[str, "array[float]"] = field(default_factory=dict)

    def count(self, given: int, datasets: int = 1) -> None:
        """Count datasets by the fields that they have: see inventory.given."""
        self.datasets += datasets
        for place, name in enumerate(Dataset.__struct_fields__):
            if given >> place & 1:
                self.given[name] = self.given.get(name, 0) + datasets

    def examine(self, record: Record) -> bool:
        """Note unknown names, unreadable fields and a createDate in the future; return whether there is any."""
        dataset, found = record.dataset, len(record.unreadable)
        for name in record.unreadable:
            _note(self.unreadable, name, dataset)
        if dataset.instrument_name and dataset.instrument_name not in INSTRUMENTS:
            found += 1
            _note(self.unknown, f"instrument {dataset.instrument_name!r}", dataset)
        for name, keys in COUNT_KEYS.items():
            counts = getattr(dataset, name)
            if counts and not counts.keys() <= keys:
                for key in counts.keys() - keys:
                    found += 1
                    _note(self.unknown, f"{name} key {key!r}", dataset)
        if self.latest is not None and dataset.create_date > self.latest:
            found += 1
            self.future += 1
            self.first_future = self.first_future or dataset
        return found > 0

    def measure(self, dataset: Dataset) -> None:
        """Take the quantities with a unit from a dataset that is new or changed."""
        for name in TOLERATED_DECADES:
            size = getattr(dataset, name)
            size = size if isinstance(size, (float, int)) or size is None else size.med
            if size is not None and math.isfinite(size) and size > 0:
                key = f"{name} of {dataset.instrument_name}"
                self.sizes.setdefault(key, array("d")).append(math.log10(size))

    def plain(self, earlier: Earlier | None, whole: bool) -> Earlier:
        """Return what the next scan compares with: values that this scan could not determine are carried over."""
        earlier = earlier or {"datasets": 0, "given": {}, "log10_medians": {}}
        medians = {key: median(sizes) for key, sizes in self.sizes.items() if len(sizes) >= ENOUGH}
        return {
            "datasets": self.datasets if whole else earlier["datasets"],
            "given": self.given if whole else earlier["given"],
            "log10_medians": earlier["log10_medians"] | medians,
        }


def _note(found: dict[str, Sighting], what: str, dataset: Dataset) -> None:
    found.setdefault(what, {"count": 0, "example": dataset.dataset_id})["count"] += 1


def warnings(now: Profile, earlier: Earlier | None, whole: bool) -> list[str]:
    """Return one line for each sign of drift, with its count and an example.

    Only a scan of the whole store can find that a field is null everywhere.
    """
    lines = [
        f"unknown {what} in {found['count']} datasets, such as {found['example']}"
        for what, found in sorted(now.unknown.items())
    ] + [
        f"{name} cannot be read in {found['count']} datasets, such as {found['example']}: it counts as null there"
        for name, found in sorted(now.unreadable.items())
    ]
    if (first := now.first_future) is not None:
        lines.append(
            f"createDate is in the future in {now.future} datasets, such as {first.dataset_id} "
            f"({first.create_date:%Y-%m-%d %H:%M} UTC); they count as arrived when they were first seen"
        )
    if earlier is None:
        return lines
    for name, before in sorted(earlier["given"].items()):
        if whole and before >= ENOUGH and now.datasets >= ENOUGH and not now.given.get(name):
            lines.append(f"{name} is null in all {now.datasets} datasets; before, {before} datasets had it")
    for key, sizes in sorted(now.sizes.items()):
        typical = earlier["log10_medians"].get(key)
        if typical is None or len(sizes) < ENOUGH:
            continue
        moved = median(sizes) - typical
        if abs(moved) > TOLERATED_DECADES[key.split(" of ")[0]]:
            lines.append(
                f"{key} moved by a factor of {10 ** max(-300.0, min(moved, 300.0)):.3g} in {len(sizes)} new or changed datasets, "
                f"from {10 ** min(typical, 300.0):.4g} to {10 ** median(sizes):.4g}: its unit may have changed"
            )
    return lines
