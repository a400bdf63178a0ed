"""Checks of an inversion's ASDF as stored in the file: no converter runs, and no array is decompressed.

The requirements are the schemas asdf://dkist.nso.edu/schemas/inversion-0.1.0, dataset-1.3.0 and file_manager-1.1.0 of
the package dkist, ndcollection-1.0.0 of ndcube, and everything else that dkist reads when it opens an ASDF.
"""

import re
from collections.abc import Generator, Iterator
from typing import Any, BinaryIO

from l2inv.products import asdffile
from l2inv.products.asdffile import Block
from l2inv.products.files import Folder, reading
from l2inv.products.findings import Finding, Unfit, finding, some
from l2inv.products.frames import (
    FIRST_PROFILE,
    NEAR_LINE_NM,
    QUANTITIES,
    Frames,
    Quantity,
    is_unit,
    unit_required,
)
from l2inv.products.issued import Issued
from l2inv.products.science import LINES

TAG = "asdf://dkist.nso.edu/tags/inversion-0.1.0"
DATASET_TAG = re.compile(r"asdf://dkist\.nso\.edu/tags/dataset-1\.\d+\.\d+", re.ASCII)
FILES_TAG = re.compile(r"asdf://dkist\.nso\.edu/tags/file_manager-1\.\d+\.\d+", re.ASCII)
COORDINATES_TAG = re.compile(r"tag:stsci\.edu:gwcs/wcs-1\.\d+\.\d+", re.ASCII)
COLLECTION_TAGS = {
    "quantities": re.compile(r"tag:sunpy\.org:ndcube/ndcollection-1\.\d+\.\d+", re.ASCII),
    "profiles": re.compile(r"asdf://dkist\.nso\.edu/tags/profiles-0\.\d+\.\d+", re.ASCII),
}
TABLE_TAG = re.compile(r"tag:astropy\.org:astropy/table/table-1\.\d+\.\d+", re.ASCII)
UNIT_TAG = re.compile(
    r"tag:(stsci\.edu:asdf/unit/unit|astropy\.org:astropy/units/unit)-1\.\d+\.\d+", re.ASCII
)
ARRAY_TAG = re.compile(r"tag:stsci\.edu:asdf/core/ndarray-1\.\d+\.\d+", re.ASCII)


def check(folder: Folder, frames: Frames) -> Iterator[Finding]:
    """Yield what is wrong with the ASDF; `frames` are the files that it must list."""
    name = folder.issued.metadata_file
    try:
        with reading(folder, name) as (file, size_bytes):
            tree, end = asdffile.read_tree(file)
            blocks = asdffile.read_blocks(file, size_bytes, end)
            folder.tick(size_bytes)
            yield from _sums(name, file, blocks)
            yield from _arrays(name, tree, blocks)
            listed = yield from _document(name, tree, folder.issued, frames)
            yield from _headers(name, tree["inversion"]["meta"]["headers"], file, blocks, listed, frames)
    except Unfit as unfit:
        yield finding(name, unfit.hdu, unfit.what, unfit.measured, unfit.required)


def _sums(name: str, file: BinaryIO, blocks: list[Block]) -> Iterator[Finding]:
    unsummed = [n for n, block in enumerate(blocks) if block.md5 == asdffile.NO_SUM]
    if unsummed:
        measured = f"sixteen digits 0 in place of one in {len(unsummed)} of {len(blocks)} blocks"
        yield finding(name, None, "checksum", measured, "a block's MD5 sum, or zero bytes for none", "warn")
    wrong = [
        n
        for n, b in enumerate(blocks)
        if b.md5 not in (asdffile.NO_SUM, bytes(16)) and asdffile.md5(file, b) != b.md5
    ]
    if wrong:
        yield finding(
            name, None, "checksum", f"wrong in blocks {some(map(str, wrong))}", "the blocks' MD5 sums"
        )


def _tag(node: Any) -> str:
    from asdf.tagged import get_tag

    return get_tag(node) or ""


def _arrays(name: str, tree: Any, blocks: list[Block]) -> Iterator[Finding]:
    """Yield a finding if arrays are not as long as their blocks: readers would get other values than were written."""
    arrays: dict[int, list[tuple[str, Any]]] = {}
    wrong = []
    total = 0
    for path, node in asdffile.containers(tree):
        if not isinstance(node, dict) or not ARRAY_TAG.fullmatch(_tag(node)) or "source" not in node:
            continue
        total += 1
        source = node["source"]
        if not isinstance(source, int) or not 0 <= source < len(blocks):
            wrong.append(f"{path}: no block {source}")
        else:
            arrays.setdefault(source, []).append((path, node))
    for source, nodes in arrays.items():
        block = blocks[source]
        for path, node in nodes:
            length = asdffile.array_bytes(node)
            # Several arrays may share a block, or one may be a part of it.
            is_whole = len(nodes) == 1 and not {"strides", "offset"} & node.keys()
            if length is not None and (
                length > block.data_bytes or (is_whole and length != block.data_bytes)
            ):
                wrong.append(f"{path}: {length} bytes in a block of {block.data_bytes}")
    if wrong:
        yield finding(
            name, None, "arrays", [f"{len(wrong)} of {total}", *wrong[:3]], "each as long as its block"
        )


def _document(name: str, tree: Any, issued: Issued, frames: Frames) -> Generator[Finding, None, list[str]]:
    """Yield what is wrong with the tree, and return the files in its first list."""
    inversion = _need(tree, "", "inversion")
    _need(_need(tree, "", "history"), "history", "extensions")
    if _tag(inversion) != TAG:
        yield finding(name, None, "tag", _tag(inversion) or "none", TAG)
    meta = _need(inversion, "inversion", "meta")
    headers = _need(meta, "inversion.meta", "headers")
    yield from _tagged(name, "meta.headers", headers, TABLE_TAG)
    yield from _inventory(name, _need(meta, "inversion.meta", "inventory"), issued, frames)
    compared: list[Any] = []
    if "fileuris" in inversion:
        yield from _listed(name, "inversion.fileuris", inversion["fileuris"], frames, compared)
    for part in ("quantities", "profiles"):  # dkist cannot open a file without profiles
        collection = _need(inversion, "inversion", part)
        items = _need(collection, f"inversion.{part}", "items")
        if not isinstance(items, dict):
            raise Unfit("tree", f"inversion.{part}.items is no mapping", "a mapping")
        yield from _tagged(name, part, collection, COLLECTION_TAGS[part])
        aligned = collection.get("aligned_axes")  # dkist pairs them with the items by position
        if not isinstance(aligned, dict) or len(aligned) != len(items):
            count = len(aligned) if isinstance(aligned, dict) else 0
            yield finding(
                name, None, "tree", f"{part}.aligned_axes of {count} items", f"of {len(items)} items"
            )
        yield from (_quantities if part == "quantities" else _profiles)(name, items, frames, compared)
        for key, item in items.items():
            yield from _described(name, f"{part}.{key}", item, issued, meta["inventory"], frames)
    return [str(one) for one in _flat(compared[0])] if compared else []


def _described(
    name: str, path: str, item: Any, issued: Issued, of_all: Any, frames: Frames
) -> Iterator[Finding]:
    """Yield what is wrong with an item's coordinates, headers and inventory; `of_all` is the inversion's inventory."""
    yield from _tagged(name, f"{path}.wcs", _need(item, path, "wcs"), COORDINATES_TAG)
    meta = _need(item, path, "meta")
    listed = len(list(_flat(item["data"]["fileuris"])))
    yield from _rows(name, f"{path}.meta.headers", _need(meta, f"{path}.meta", "headers"), listed, frames)
    inventory = _need(meta, f"{path}.meta", "inventory")
    if inventory != of_all and isinstance(inventory, dict):
        inversion_id = inventory.get("inversionId", issued.inversion_id)
        if inversion_id != issued.inversion_id:
            yield finding(name, None, "inversion_id", f"{path}: {_shown(inversion_id)}", issued.inversion_id)


def _rows(name: str, path: str, headers: Any, listed: int, frames: Frames) -> Iterator[Finding]:
    """Yield a finding unless a table of headers has one row per listed file, or one per file in the folder."""
    shapes = [data.get("shape") for data in _columns(headers).values()]
    fits = [[listed], [len(frames.names)]]
    wrong = [shape for shape in shapes if not isinstance(shape, list) or shape[:1] not in fits]
    if wrong:
        measured = f"{path}: a column of {_shown(wrong[0])}"
        yield finding(name, None, "frames", measured, f"a row for each of {len(frames.names)} frames")


def _columns(headers: Any) -> dict[str, dict[str, Any]]:
    """Return the arrays of a table's columns, by column name."""
    columns = headers.get("columns") if isinstance(headers, dict) else None
    return {
        str(column.get("name")): column["data"]
        for column in (columns if isinstance(columns, list) else ())
        if isinstance(column, dict) and isinstance(column.get("data"), dict)
    }


def _headers(
    name: str, headers: Any, file: BinaryIO, blocks: list[Block], listed: list[str], frames: Frames
) -> Iterator[Finding]:
    """Yield a finding unless the frames' headers are in the order of the listed files: readers pair them by position."""
    yield from _rows(name, "meta.headers", headers, len(listed), frames)
    said = asdffile.texts(file, _columns(headers).get("FILENAME", {}), blocks)
    if said is None or len(said) != len(listed):
        return
    if sorted(said) == sorted(frames.names):
        yield from _order(name, "meta.headers", said, frames)
    elif sorted(listed) == sorted(frames.names):
        others = some(set(said) - set(frames.names)) or "a file twice"
        yield finding(name, None, "files", f"meta.headers: FILENAME {others}", "the files listed")


def _order(name: str, path: str, found: list[str], frames: Frames) -> Iterator[Finding]:
    for place, (one, other) in enumerate(zip(found, frames.names, strict=True), 1):
        if one != other:
            yield finding(
                name, None, "order", f"{path}: {one} comes at place {place}", f"{other}: in order of time"
            )
            return


def _need(node: Any, path: str, key: str) -> Any:
    if not isinstance(node, dict) or key not in node:
        raise Unfit("tree", f"{path or 'the tree'} has no {key}", f"{path}.{key}".lstrip("."))
    return node[key]


def _tagged(
    name: str, path: str, node: Any, tag: re.Pattern[str], hdu: int | None = None
) -> Iterator[Finding]:
    if not tag.fullmatch(_tag(node)):
        wanted = tag.pattern.replace(r"\.\d+", ".x").replace("\\", "")
        yield finding(name, hdu, "tag", f"{path}: {_tag(node) or 'none'}", wanted)


def _inventory(name: str, inventory: Any, issued: Issued, frames: Frames) -> Iterator[Finding]:
    if not isinstance(inventory, dict):
        raise Unfit("tree", "inversion.meta.inventory is no mapping", "a mapping")
    if inventory.get("inversionId") != issued.inversion_id:
        yield finding(name, None, "inversion_id", _shown(inventory.get("inversionId")), issued.inversion_id)
    if inventory.get("proposalId", issued.proposal_id) != issued.proposal_id:
        yield finding(name, None, "proposal_id", _shown(inventory["proposalId"]), issued.proposal_id)
    wanted = sorted(dataset.dataset_id for dataset in issued.datasets)
    found = inventory.get("datasetIds")
    if not isinstance(found, list) or sorted(map(str, found)) != wanted:
        yield finding(name, None, "datasets", _shown(found), wanted)
    canonical = inventory.get("canonicalDataset", wanted[0] if wanted else None)
    if canonical not in wanted:
        yield finding(name, None, "datasets", f"canonicalDataset {_shown(canonical)}", wanted)
    count = inventory.get("frameCount", len(frames.names))
    if count != len(frames.names):
        yield finding(name, None, "frames", f"frameCount {_shown(count)}", len(frames.names))
    wavelengths = inventory.get("wavelengths")
    for nm in wavelengths if isinstance(wavelengths, list) else ():
        if not isinstance(nm, (int, float)) or not any(
            abs(nm - known) < NEAR_LINE_NM for _, known in LINES.values()
        ):
            known = ", ".join(f"{line} ({center:g} nm)" for line, center in LINES.values())
            yield finding(name, None, "spectral_range", f"wavelengths: {_shown(nm)}", f"a line: {known}")


def _shown(node: Any) -> Any:
    """Return a node's value, without the class that carries its tag."""
    if isinstance(node, (bool, int, float)) or node is None:
        return node
    if isinstance(node, list):
        return [_shown(one) for one in node[:25]]
    return str(getattr(node, "data", node))[:1000] if not isinstance(node, dict) else "a mapping"


def _quantities(name: str, items: dict[str, Any], frames: Frames, compared: list[Any]) -> Iterator[Finding]:
    wanted = [quantity.key for quantity in QUANTITIES]
    if set(items) != set(wanted):
        measured = [*(f"no {key}" for key in wanted if key not in items), *map(str, set(items) - set(wanted))]
        yield finding(name, None, "quantities", measured, wanted)
    for number, quantity in enumerate(QUANTITIES, 1):
        if quantity.key in items:
            path = f"quantities.{quantity.key}"
            yield from _dataset(name, path, items[quantity.key], number, frames, compared)
            yield from _unit(name, items[quantity.key], number, quantity)


def _unit(name: str, item: Any, number: int, quantity: Quantity) -> Iterator[Finding]:
    unit = item.get("unit") if isinstance(item, dict) else None
    said = str(getattr(unit, "data", unit)) if unit is not None else None
    if said is None or not is_unit(said, quantity.unit):
        yield finding(name, number, "unit", said, unit_required(quantity))
    elif not UNIT_TAG.fullmatch(_tag(unit)):
        yield from _tagged(name, f"quantities.{quantity.key}.unit", unit, UNIT_TAG, number)


def _profiles(name: str, items: dict[str, Any], frames: Frames, compared: list[Any]) -> Iterator[Finding]:
    arms = {str(key).rsplit("_", 1)[0] for key in items}
    lacking = [key for arm in sorted(arms) for key in (f"{arm}_orig", f"{arm}_fit") if key not in items]
    count = len(frames.layout or ()) - FIRST_PROFILE
    if not items or lacking or len(items) != 2 * len(arms) or (frames.layout and len(items) != count):
        required = "ARM_orig and ARM_fit of each arm" + (f", {count} in all" if frames.layout else "")
        yield finding(name, None, "quantities", [*map(str, items)], required)
        return
    targets = []
    for arm in arms:
        for key, odd in ((f"{arm}_orig", 0), (f"{arm}_fit", 1)):
            target = _need(_need(items[key], f"profiles.{key}", "data"), f"profiles.{key}.data", "target")
            targets.append(target)
            base = target if isinstance(target, int) and target >= FIRST_PROFILE else FIRST_PROFILE
            number = FIRST_PROFILE + (base - FIRST_PROFILE) // 2 * 2 + odd
            yield from _dataset(name, f"profiles.{key}", items[key], number, frames, compared)
    if len(set(map(str, targets))) < len(targets):
        yield finding(name, None, "target", sorted(map(str, targets)), "an HDU of its own for each")


def _dataset(
    name: str, path: str, item: Any, number: int, frames: Frames, compared: list[Any]
) -> Iterator[Finding]:
    """Yield what is wrong with an item of a collection: a dataset that is read from HDU `number` of each file."""
    yield from _tagged(name, path, item, DATASET_TAG, number)
    _need(item, path, "unit")
    data = _need(item, path, "data")
    yield from _tagged(name, f"{path}.data", data, FILES_TAG, number)
    listed, target, datatype, shape = (
        _need(data, f"{path}.data", key) for key in ("fileuris", "target", "datatype", "shape")
    )
    yield from _listed(name, f"{path}.data.fileuris", listed, frames, compared)
    if target != number or not isinstance(target, int) or isinstance(target, bool):
        yield finding(name, number, "target", f"{path}: {_shown(target)}", number)
    if frames.layout and number < len(frames.layout):
        bitpix, wanted = frames.layout[number]
        if shape != list(wanted):
            yield finding(
                name, number, "shape", f"{path}: {_shown(shape)}", f"{list(wanted)}, as in the files"
            )
        kind = {-32: "float32", -64: "float64"}.get(bitpix)
        if kind and datatype != kind:
            yield finding(
                name, number, "data_type", f"{path}: {_shown(datatype)}", f"{kind}, as in the files", "warn"
            )


def _listed(name: str, path: str, listed: Any, frames: Frames, compared: list[Any]) -> Iterator[Finding]:
    """Yield a finding unless a list names the folder's files in order of time. Equal lists are checked only once."""
    if any(listed is one or listed == one for one in compared):
        return
    compared.append(listed)
    found = [str(one) for one in _flat(listed)]
    if sorted(found) != sorted(frames.names):
        lacking, more = set(frames.names) - set(found), set(found) - set(frames.names)
        words = [f"lacks {some(lacking)}"] if lacking else []
        words += [f"lists {some(more)}, not in the folder"] if more else []
        words += ["lists a file twice"] if not words else []
        yield finding(
            name, None, "files", f"{path}: {'; '.join(words)}", f"the {len(frames.names)} files of frames"
        )
    else:
        yield from _order(name, path, found, frames)


def _flat(listed: Any) -> Iterator[Any]:
    """Yield the names in nested lists, which is how an array of files is written."""
    waiting = [listed]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += reversed(node)
        else:
            yield node
