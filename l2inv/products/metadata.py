"""The ASDF of an inversion, checked as it stands in the file: no converter runs, and no array is unpacked.

What it must hold is in the schemas asdf://dkist.nso.edu/schemas/inversion-0.1.0, dataset-1.3.0 and file_manager-1.1.0
of the package dkist, in ndcollection-1.0.0 of ndcube, and in what dkist reads besides when it opens one.
"""

import hashlib
import io
import re
import struct
from collections.abc import Iterator
from math import prod
from typing import Any, BinaryIO, NamedTuple

from l2inv.products import files
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
TABLE_TAG = re.compile(r"tag:astropy\.org:astropy/table/table-1\.\d+\.\d+", re.ASCII)
UNIT_TAG = re.compile(
    r"tag:(stsci\.edu:asdf/unit/unit|astropy\.org:astropy/units/unit)-1\.\d+\.\d+", re.ASCII
)
ARRAY_TAG = re.compile(r"tag:stsci\.edu:asdf/core/ndarray-1\.\d+\.\d+", re.ASCII)

MOST_TREE_BYTES = 32 * 2**20  # 20,000 names of files in every item, written out
MOST_NODES = 1_000_000
MOST_DEPTH = 100
MOST_BLOCKS = 2**16  # as asdf itself has it

_MAGIC = b"\xd3BLK"
_INDEX = b"#ASDF BLOCK INDEX"
_END = re.compile(rb"\n\.\.\.\r?\n")
_NO_SUM = b"0" * 16  # what the Data Center's writer puts where it has no sum
_BLOCK = struct.Struct(">I4sQQQ16s")
_BYTES = {
    "int8": 1, "uint8": 1, "bool8": 1, "int16": 2, "uint16": 2, "float16": 2, "int32": 4, "uint32": 4, "float32": 4,
    "int64": 8, "uint64": 8, "float64": 8, "complex64": 8, "complex128": 16,
}  # fmt: skip


class Block(NamedTuple):
    """A block of the file: how long its array is, and where its bytes lie."""

    data_bytes: int  # once unpacked
    at: int
    used_bytes: int
    md5: bytes


def check(folder: Folder, frames: Frames) -> Iterator[Finding]:
    """Yield what is wrong with the ASDF; `frames` are the files that it must list."""
    name = folder.issued.metadata_file
    try:
        with reading(folder, name) as (file, size_bytes):
            tree, end = _tree(file)
            blocks = _blocks(file, size_bytes, end)
            folder.tick(size_bytes)
            yield from _sums(name, file, blocks)
        yield from _arrays(name, tree, blocks)
        yield from _document(name, tree, folder.issued, frames)
    except Unfit as unfit:
        yield finding(name, unfit.hdu, unfit.what, unfit.measured, unfit.required)


def _tree(file: BinaryIO) -> tuple[Any, int]:
    """Return the tree, tags kept, and where it ends in the file."""
    head = files.read_at(file, 0, 64)
    if not re.match(rb"#ASDF 1\.\d+\.\d+\r?\n", head):
        raise Unfit(
            "format", "empty" if not head else "does not begin with #ASDF 1", "an ASDF file, not compressed"
        )
    text, piece = head, head
    while not (found := _END.search(text, max(0, len(text) - len(piece) - 8))):
        piece = files.read_at(file, len(text), files.PIECE_BYTES)
        if not piece and text.endswith(b"\n..."):
            return _parsed(text), len(text)
        if not piece or len(text) > MOST_TREE_BYTES:
            measured = "the file ends before it" if not piece else f"more than {MOST_TREE_BYTES} bytes"
            raise Unfit("structure", measured, "a tree that ends with ...")
        text += piece
    return _parsed(text[: found.end()]), found.end()


def _parsed(text: bytes) -> Any:
    import yaml
    from asdf.util import load_yaml

    required = "a tree of YAML, as asdf reads it"
    try:
        depth = 0
        for count, event in enumerate(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if count > MOST_NODES or depth > MOST_DEPTH:
                raise Unfit("tree", f"more than {MOST_NODES} nodes, or deeper than {MOST_DEPTH}", required)
        tree = load_yaml(io.BytesIO(text), tagged=True)
    except Unfit:
        raise
    except Exception as problem:  # what constructors raise is as various as what a node can say
        said = " ".join(str(problem).split())
        raise Unfit("tree", f"{type(problem).__name__}: {said}", required) from problem
    if not _is_bounded(tree):
        raise Unfit(
            "tree", f"aliases that make it larger than {MOST_NODES} nodes, or without an end", required
        )
    return tree


def _is_bounded(tree: Any) -> bool:
    """Return whether a tree stays within bounds when each alias in it is written out."""
    measured: dict[
        int, tuple[int, int]
    ] = {}  # how many nodes, how deep; a container being measured: without an end
    waiting = [(tree, False)]
    while waiting:
        node, is_inside_done = waiting.pop()
        inside = _inside(node)
        if is_inside_done:
            known = [measured[id(one)] for one in inside]
            nodes, depth = 1 + len(node) + sum(n for n, _ in known), 1 + max((d for _, d in known), default=0)
            if nodes > MOST_NODES or depth > MOST_DEPTH:
                return False
            measured[id(node)] = nodes, depth
        elif id(node) not in measured:
            measured[id(node)] = MOST_NODES + 1, 0
            waiting += [(node, True), *((one, False) for one in inside)]
    return True


def _inside(node: Any) -> list[Any]:
    """Return the containers that stand in one."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [one for one in children if isinstance(one, (dict, list))]


def _blocks(file: BinaryIO, size_bytes: int, end: int) -> list[Block]:
    """Return the blocks that follow the tree."""
    blocks: list[Block] = []
    at = end + _padding(file, end, size_bytes)
    while at < size_bytes:
        magic = files.read_at(file, at, len(_INDEX))
        if magic == _INDEX:
            break
        head = files.read_at(file, at + 4, 2 + _BLOCK.size)
        if not magic.startswith(_MAGIC) or len(head) < 2 + _BLOCK.size or len(blocks) == MOST_BLOCKS:
            if not magic.strip(b"\0"):
                break
            raise Unfit(
                "structure",
                f"what follows block {len(blocks) - 1} is none",
                "blocks, then nothing or their index",
            )
        (header_bytes,) = struct.unpack_from(">H", head)
        flags, compression, allocated, used, data_bytes, md5 = _BLOCK.unpack_from(head, 2)
        begin = at + 6 + header_bytes
        if flags & 1:  # streamed: to the end of the file
            allocated = used = data_bytes = size_bytes - begin
        is_packed = compression.strip(b"\0") != b""
        if header_bytes < _BLOCK.size or used > allocated or (not is_packed and used != data_bytes):
            raise Unfit(
                "structure", f"the header of block {len(blocks)} contradicts itself", "a block of ASDF"
            )
        if begin + allocated > size_bytes:
            measured = f"block {len(blocks)} ends after byte {begin + allocated}, the file after {size_bytes}"
            raise Unfit("structure", measured, "the file is as long as its blocks")
        blocks.append(Block(data_bytes, begin, used, md5))
        at = begin + allocated
    return blocks


def _padding(file: BinaryIO, at: int, size_bytes: int) -> int:
    """Return how many bytes of nothing follow the tree; a tree may be rewritten in place if there is room."""
    padding = 0
    while at + padding < size_bytes and padding < MOST_TREE_BYTES:
        piece = files.read_at(file, at + padding, files.PIECE_BYTES)
        rest = piece.lstrip(b"\0 ")
        padding += len(piece) - len(rest)
        if rest:
            break
    return padding


def _sums(name: str, file: BinaryIO, blocks: list[Block]) -> Iterator[Finding]:
    unsummed = [n for n, block in enumerate(blocks) if block.md5 == _NO_SUM]
    if unsummed:
        measured = f"sixteen digits 0 in place of one in {len(unsummed)} of {len(blocks)} blocks"
        yield finding(name, None, "checksum", measured, "a block's MD5 sum, or zero bytes for none", "warn")
    wrong = [n for n, b in enumerate(blocks) if b.md5 not in (_NO_SUM, bytes(16)) and _md5(file, b) != b.md5]
    if wrong:
        yield finding(
            name, None, "checksum", f"wrong in blocks {some(map(str, wrong))}", "the blocks' MD5 sums"
        )


def _md5(file: BinaryIO, block: Block) -> bytes:
    total = hashlib.md5(usedforsecurity=False)
    for done in range(0, block.used_bytes, files.PIECE_BYTES):
        total.update(files.read_at(file, block.at + done, min(files.PIECE_BYTES, block.used_bytes - done)))
    return total.digest()


def _tag(node: Any) -> str:
    from asdf.tagged import get_tag

    return get_tag(node) or ""


def _arrays(name: str, tree: Any, blocks: list[Block]) -> Iterator[Finding]:
    """Yield whether arrays are as long as their blocks: where not, readers get other values than were written."""
    arrays: dict[int, list[tuple[str, Any]]] = {}
    wrong = []
    total = 0
    for path, node in _nodes(tree):
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
            length = _length(node)
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


def _nodes(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield each container of a tree once, however often it is pointed at, with the path to it."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", tree)]
    while waiting:
        path, node = waiting.pop()
        if id(node) in seen or not isinstance(node, (dict, list)):
            continue
        seen.add(id(node))
        yield path, node
        inside = node.items() if isinstance(node, dict) else enumerate(node)
        waiting += [
            (f"{path}.{key}"[-100:].lstrip("."), one) for key, one in inside if isinstance(one, (dict, list))
        ]


def _length(node: dict[str, Any]) -> int | None:
    """Return how many bytes an array takes by what is said of it; None where that does not say it."""
    datatype, shape = node.get("datatype"), node.get("shape")
    item = _BYTES.get(datatype) if isinstance(datatype, str) else None
    match datatype:
        case ["ucs4", int(count)]:
            item = 4 * count
        case ["ascii", int(count)]:
            item = count
    if (
        item is None
        or not isinstance(shape, list)
        or not all(isinstance(one, int) and one >= 0 for one in shape)
    ):
        return None
    offset = node.get("offset", 0)
    return item * prod(shape) + (offset if isinstance(offset, int) else 0)


def _document(name: str, tree: Any, issued: Issued, frames: Frames) -> Iterator[Finding]:
    inversion = _need(tree, "", "inversion")
    _need(_need(tree, "", "history"), "history", "extensions")
    if _tag(inversion) != TAG:
        yield finding(name, None, "tag", _tag(inversion) or "none", TAG)
    meta = _need(inversion, "inversion", "meta")
    yield from _tagged(name, "meta.headers", _need(meta, "inversion.meta", "headers"), TABLE_TAG)
    yield from _inventory(name, _need(meta, "inversion.meta", "inventory"), issued, frames)
    compared: list[Any] = []
    if "fileuris" in inversion:
        yield from _listed(name, "inversion.fileuris", inversion["fileuris"], frames, compared)
    for part in ("quantities", "profiles"):  # profiles: dkist does not open a file without
        items = _need(_need(inversion, "inversion", part), f"inversion.{part}", "items")
        if not isinstance(items, dict):
            raise Unfit("tree", f"inversion.{part}.items is no mapping", "a mapping")
        yield from (_quantities if part == "quantities" else _profiles)(name, items, frames, compared)


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
    """Return what a node says, without the class that holds its tag."""
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
    """Yield what is wrong with an item of the collections: a dataset that is read from HDU `number` of each file."""
    yield from _tagged(name, path, item, DATASET_TAG, number)
    for key in ("wcs", "unit"):
        _need(item, path, key)
    data = _need(item, path, "data")
    yield from _tagged(name, f"{path}.data", data, FILES_TAG, number)
    listed, target, datatype, shape = (
        _need(data, f"{path}.data", key) for key in ("fileuris", "target", "datatype", "shape")
    )
    yield from _listed(name, f"{path}.data.fileuris", listed, frames, compared)
    if target != number:
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
    """Yield whether a list of files is that of the folder, in order of time. Each list is compared once."""
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
    elif found != frames.names:
        at = next(n for n, pair in enumerate(zip(found, frames.names, strict=True)) if pair[0] != pair[1])
        measured = f"{path}: {found[at]} comes at place {at + 1}"
        yield finding(name, None, "order", measured, f"{frames.names[at]}: in order of time")


def _flat(listed: Any) -> Iterator[Any]:
    """Yield the names in lists of lists, as an array of files is written."""
    waiting = [listed]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += reversed(node)
        else:
            yield node
