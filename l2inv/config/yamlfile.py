"""A YAML file read into a Struct: checked in full; all mistakes are reported at once, each with its path in the file.

Only a part of YAML is accepted: no anchors, no tags, only plain words as keys, and numbers as in YAML 1.2.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import msgspec
from msgspec import Struct

MAX_BYTES = 1_000_000
MAX_ENTRIES = 10_000
MAX_DEPTH = 10

T = TypeVar("T", bound=Struct)


class Must(NamedTuple):
    """A rule for a setting besides its type: a condition, and the message if it is not met."""

    hold: Callable[[Any], object]
    words: str


def like(pattern: str, words: str) -> Must:
    # Compiled where it is needed: most of the patterns belong to settings that a file does not have.
    return Must(lambda text: re.fullmatch(pattern, text, re.ASCII | re.DOTALL), f"must be {words}")


class PathUnless(NamedTuple):
    """Marks a text as a path relative to the file's folder, unless it matches the pattern."""

    pattern: str


File = Annotated[str, like("[^~].*", "a path (~ is not expanded, write ${HOME})"), PathUnless("(?!)")]


def read(kind: type[T], content: bytes, folder: Path, env: Mapping[str, str] | None) -> tuple[T, list[str]]:
    """Return the file's content as the Struct `kind`, and its mistakes; it is valid if there are none.

    Paths are relative to the folder, and each ${NAME} is taken from the environment; without one, ${ is plain text.
    """
    reading = _Reading(folder, env, [])
    tree = _tree(content, reading.mistakes)
    unreadable = tree is None and reading.mistakes
    value = _WRONG if unreadable else _value(kind, tree, "", reading)
    return value, reading.mistakes


class _Reading(NamedTuple):
    folder: Path
    env: Mapping[str, str] | None
    mistakes: list[str]


_KEY = re.compile(
    r"[\w-]{1,48}"
)  # other keys are not printed: they may contain a secret or a terminal escape
# Numbers as in YAML 1.2; 1.1 would silently read 010 as 8 and 1:30 as 90.
_SCALARS = {
    f"tag:yaml.org,2002:{kind}": re.compile(rf"(?:{form})\Z", re.IGNORECASE)
    for kind, form in {
        "null": "~|null|",
        "bool": "true|false|yes|no|on|off",
        "int": "[-+]?(0|[1-9][0-9]{0,30})",
        "float": r"[-+]?(\.inf|(?=\.?[0-9])[0-9]{0,40}(\.[0-9]{0,40})?(e[-+]?[0-9]{1,4})?)|\.nan",
    }.items()
}


def _tree(content: bytes, mistakes: list[str]) -> Any:
    """Return the file as dicts, lists and scalars; None, with a mistake added, if it is not the YAML accepted here."""
    import yaml

    def at(mark: Any) -> str:
        return f"line {mark.line + 1}, column {mark.column + 1}"

    def plain(node: Any, path: str) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return loader.construct_object(node)
        if isinstance(node, yaml.SequenceNode):
            return [plain(item, f"{path}[{index}]") for index, item in enumerate(node.value)]
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or not _KEY.fullmatch(key.value):
                mistakes.append(f"{at(key.start_mark)}: a key must be a plain word")
            elif key.value in found:
                mistakes.append(f"{_join(path, key.value)}: given twice, again at {at(key.start_mark)}")
            else:
                found[key.value] = plain(value, _join(path, key.value))
        return found

    safe_loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        text = content.decode("utf-8")
        depth = 0
        for count, event in enumerate(yaml.parse(text, safe_loader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if count > MAX_ENTRIES or depth > MAX_DEPTH:
                raise ValueError(f"{at(event.start_mark)}: too many entries, or nested too deep")
            if getattr(event, "anchor", None) or getattr(event, "tag", None):
                mistakes.append(f"{at(event.start_mark)}: anchors, aliases and tags are not supported")
        loader = safe_loader(text)
        loader.yaml_implicit_resolvers = {None: list(_SCALARS.items())}
        root = loader.get_single_node()
    except yaml.YAMLError as problem:
        parts = [getattr(problem, name, None) for name in ("context", "problem")]
        mark, words = getattr(problem, "problem_mark", None), ": ".join(filter(None, parts))
        mistakes.append(f"{at(mark)}: {words}" if mark else "not text: contains a control character")
    except ValueError as problem:
        mistakes.append(str(problem))
    return None if mistakes or root is None else plain(root, "")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


_WRONG: Any = object()  # in place of a value whose mistake is already reported


def _value(kind: Any, raw: Any, path: str, reading: _Reading) -> Any:
    """Return `raw` as the type `kind`; else _WRONG, with a mistake added for each wrong part."""
    before = len(reading.mistakes)
    bare, *notes = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    if NoneType in get_args(bare):
        inner = next(one for one in get_args(bare) if one is not NoneType)
        return None if raw is None else _value(inner, raw, path, reading)
    if isinstance(bare, type) and issubclass(bare, Struct):
        # A section whose every line is commented out reads as null.
        value = _struct(bare, {} if raw is None else raw, path, reading)
    elif get_origin(bare) is list and isinstance(raw, list):
        value = [_value(get_args(bare)[0], item, f"{path}[{i}]", reading) for i, item in enumerate(raw)]
    else:
        value = _leaf(kind, raw, path, reading)
    if len(reading.mistakes) == before:
        broken = [rule.words for rule in notes if isinstance(rule, Must) and not rule.hold(value)]
        reading.mistakes.extend(f"{path}: {words}" for words in broken)
    if len(reading.mistakes) > before:
        return _WRONG
    paths = [note for note in notes if isinstance(note, PathUnless) and not re.match(note.pattern, value)]
    return str(reading.folder / value) if paths else value


def _struct(kind: type[Struct], raw: Any, path: str, reading: _Reading) -> Any:
    if not isinstance(raw, dict):
        return _leaf(dict, raw, path or "the file", reading)
    before = len(reading.mistakes)
    known = {one.encode_name: one for one in msgspec.structs.fields(kind)}
    values = {}
    for name, inner in raw.items():
        if name in known:
            values[known[name].name] = _value(known[name].type, inner, _join(path, name), reading)
        else:
            from difflib import get_close_matches

            near = get_close_matches(name, known, n=1, cutoff=0.4)
            instead = f"the nearest known one is {near[0]}" if near else f"known: {', '.join(known)}"
            reading.mistakes.append(f"{_join(path, name)}: unknown key, {instead}")
    missing = [name for name, one in known.items() if one.required and name not in raw]
    reading.mistakes.extend(f"{_join(path, name)}: missing" for name in missing)
    return kind(**values) if len(reading.mistakes) == before else _WRONG


def _leaf(kind: Any, raw: Any, path: str, reading: _Reading) -> Any:
    try:
        text, from_env = _filled(raw, reading.env) if isinstance(raw, str) else (raw, False)
        if get_origin(kind) is Literal and text not in get_args(kind):
            raise ValueError(f"must be one of {', '.join(get_args(kind))}")
        value = msgspec.convert(text, kind, strict=not from_env)  # from the environment, numbers come as text
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("must be a finite number")
    except (ValueError, msgspec.ValidationError) as problem:
        words = str(problem).replace("`object`", "mapping").replace("`array`", "list").replace("`", "")
        words = words.replace("RFC3339 encoded datetime", "time, such as 2026-11-23T08:00:00Z")
        words += " (put it in quotes)" if re.match("Expected str.*, got (int|float)", words) else ""
        reading.mistakes.append(f"{path}: {words}")
        return _WRONG
    return value


_PLACE = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_]\w*)\})?", re.ASCII)


def _filled(text: str, env: Mapping[str, str] | None) -> tuple[str, bool]:
    """Return the text with each ${NAME} taken from the environment, and whether there was one."""
    if env is None:
        return text, False
    names = [place[1] for place in _PLACE.finditer(text) if place[0] != "$${"]
    if None in names:
        raise ValueError("${ must begin a ${NAME} (write $${ for a literal one)")
    if unset := [name for name in names if name not in env]:
        raise ValueError(f"not set in the environment: {', '.join(unset)}")
    filled = _PLACE.sub(lambda place: env[place[1]] if place[1] else "${", text)
    if re.search("[\0\ud800-\udfff]", filled):
        raise ValueError("contains a NUL or a character that is not UTF-8")
    return filled, bool(names)
