"""An ASDF file, read safely: its tree and the positions of its blocks.

No converter runs and no block is decompressed, so the result does not depend on which packages are installed, and nothing
in the file is executed.
"""

import hashlib
import io
import re
import struct
from collections.abc import Iterator
from math import prod
from typing import Any, BinaryIO, NamedTuple

from l2inv.products import files
from l2inv.products.findings import Unfit

MOST_TREE_BYTES = 32 * 2**20  # enough for 20,000 file names in every item
MOST_NODES = 1_000_000
MOST_DEPTH = 100
MOST_BLOCKS = 2**16  # the same limit as in asdf

_MAGIC = b"\xd3BLK"
_INDEX = b"#ASDF BLOCK INDEX"
_END = re.compile(rb"\n\.\.\.\r?\n")
NO_SUM = b"0" * 16  # what the Data Center's writer writes instead of a sum
_BLOCK = struct.Struct(">I4sQQQ16s")
_BYTES = {
    "int8": 1, "uint8": 1, "bool8": 1, "int16": 2, "uint16": 2, "float16": 2, "int32": 4, "uint32": 4, "float32": 4,
    "int64": 8, "uint64": 8, "float64": 8, "complex64": 8, "complex128": 16,
}  # fmt: skip


class Block(NamedTuple):
    """A block of the file: the length of its array, and the position of its bytes."""

    data_bytes: int  # uncompressed
    at: int
    used_bytes: int
    md5: bytes
    is_packed: bool


def read_tree(file: BinaryIO) -> tuple[Any, int]:
    """Return the tree, with its tags, and the position of its end in the file."""
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
        for count, _ in enumerate(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))):
            if count > MOST_NODES:
                raise Unfit("tree", f"more than {MOST_NODES} nodes", required)
        tree = load_yaml(io.BytesIO(text), tagged=True)
    except Unfit:
        raise
    except Exception as problem:  # constructors may raise anything
        message = " ".join(str(problem).split())
        raise Unfit("tree", f"{type(problem).__name__}: {message}", required) from problem
    if not isinstance(tree, dict):
        raise Unfit("tree", type(tree).__name__, required)
    if not _is_bounded(tree):
        raise Unfit(
            "tree",
            f"more than {MOST_NODES} nodes with its aliases written out, or deeper than {MOST_DEPTH}",
            required,
        )
    return tree


def _is_bounded(tree: Any) -> bool:
    """Return whether a tree is within the limits if each alias in it is expanded."""
    # Nodes and depth by id; while a container is being measured, more nodes than allowed, so that a cycle is found.
    measured: dict[int, tuple[int, int]] = {}
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
    """Return the containers in a container."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [one for one in children if isinstance(one, (dict, list))]


def read_blocks(file: BinaryIO, size_bytes: int, end: int) -> list[Block]:
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
                f"what follows block {len(blocks) - 1} is not a block",
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
        blocks.append(Block(data_bytes, begin, used, md5, is_packed))
        at = begin + allocated
    return blocks


def _padding(file: BinaryIO, at: int, size_bytes: int) -> int:
    """Return how many zero bytes follow the tree: they leave space to rewrite the tree in place."""
    padding = 0
    while at + padding < size_bytes and padding < MOST_TREE_BYTES:
        piece = files.read_at(file, at + padding, files.PIECE_BYTES)
        rest = piece.lstrip(b"\0 ")
        padding += len(piece) - len(rest)
        if rest:
            break
    return padding


def md5(file: BinaryIO, block: Block) -> bytes:
    total = hashlib.md5(usedforsecurity=False)
    for done in range(0, block.used_bytes, files.PIECE_BYTES):
        total.update(files.read_at(file, block.at + done, min(files.PIECE_BYTES, block.used_bytes - done)))
    return total.digest()


def containers(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield each container in a tree with its path; only once, however often it is referenced."""
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


def array_bytes(node: dict[str, Any]) -> int | None:
    """Return an array's size in bytes from its description; None if that is incomplete."""
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


def texts(file: BinaryIO, node: dict[str, Any], blocks: list[Block]) -> list[str] | None:
    """Return an array of strings that fills an uncompressed block of its own; None for any other array."""
    source, datatype = node.get("source"), node.get("datatype")
    length = array_bytes(node)
    if not isinstance(source, int) or not 0 <= source < len(blocks) or {"strides", "offset"} & node.keys():
        return None
    block = blocks[source]
    if not length or block.is_packed or length != block.used_bytes or length > MOST_TREE_BYTES:
        return None
    match datatype:
        case ["ucs4", int(count)] if count > 0:
            item = 4 * count
            encoding = "utf-32-le" if node.get("byteorder") == "little" else "utf-32-be"
        case ["ascii", int(count)] if count > 0:
            item, encoding = count, "ascii"
        case _:
            return None
    content = files.read_at(file, block.at, length)
    each = (content[at : at + item] for at in range(0, len(content), item))
    return [one.decode(encoding, "replace").rstrip("\0") for one in each]
