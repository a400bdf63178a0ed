"""The settings: one YAML file, checked in full, with every mistake named at once by its path in the file."""

import difflib
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import msgspec
from msgspec import Meta, Struct, field

from l2inv.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_ENTRIES = 10_000
MAX_DEPTH = 10

# Connection strings as libpq reads them (PostgreSQL manual, "Connection Strings"): credentials reach up to
# the first @ that no / precedes. A second @ is refused: libpq would take the rest of a password for the host.
_USERINFO = re.compile(r"\w+://[^:@/]*:([^/]*)@")
_URI = (
    r"(?!.*(?:\s|%00|%(?![0-9A-Fa-f]{2})))postgres(?:ql)?://(?:[^@/]*@|(?![^@/]*@))[^@/?]*(?:/[^@?]*)?"
    r"(?:\?(?:\w+=[^&=]*(?:&\w+=[^&=]*)*)?)?"
)
_PARAMETER = re.compile(r"[?&](\w+)=([^&]*)", re.ASCII)
_PAIR = re.compile(
    r"(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|(?!')(?:[^\s\\]|\\.)+|\Z)(?:\s+|\Z)", re.ASCII | re.DOTALL
)
_SECRET = re.compile(r"pas|pwd|secret|scram|token", re.IGNORECASE)  # a misspelt password is one all the same
_HTTP = r"https?://(?:[^\s/?#@]*@)?(?:\[[0-9a-fA-F:.]+\]|[^\s/?#@:\[\]]+)(?::\d{1,5})?(?:[/?#][^\s@]*)?"


class Must(NamedTuple):
    """A rule beside a setting's type: what has to hold, and the words for when it does not."""

    hold: Callable[[Any], object]
    words: str


def _like(pattern: str, words: str) -> Must:
    return Must(re.compile(pattern, re.ASCII | re.DOTALL).fullmatch, f"must be {words}")


Text = Annotated[str, Meta(min_length=1)]
File = Annotated[str, _like("[^~].*", "a path (~ is not expanded, write ${HOME})")]
Name = Annotated[str, _like("[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable")]
Share = Annotated[float, Meta(ge=0, le=1)]
Nanometres = Annotated[float, Meta(gt=0)]
Seconds = Annotated[float, Meta(gt=0, le=2_000_000)]  # poll(2) counts milliseconds in 31 bits: 24 days
NOT_EMPTY = Must(bool, "must not be empty")
DatabaseUrl = Annotated[
    str,
    _like(
        rf"embedded|{_URI}|\s*(?:{_PAIR.pattern})+",
        "embedded, a postgresql:// URI or key=value pairs such as service=NAME"
        " (in a URI, write @ / ? % of a password as %40 %2F %3F %25)",
    ),
]
StoreUrl = Annotated[str, _like(f"{_HTTP}|(?!~|.*://).+", "an http(s):// URL or the path of a file")]


class Database(Struct, frozen=True):
    """Where the events are kept. A null embedded_folder: the user's data folder."""

    url: DatabaseUrl = "embedded"
    # PostgreSQL keeps pg_ to itself and cuts names at 63 bytes; the rest is room for names made from this.
    schema: Annotated[
        str, _like("(?!pg_)[a-z_][a-z0-9_]{0,47}", "1 to 48 of a-z 0-9 _, not starting with a digit or pg_")
    ] = "l2inv"
    embedded_folder: File | None = None


class MetadataStore(Struct, frozen=True):
    """Where the datasets come from: an http(s) URL or the path of a saved response."""

    url: StoreUrl | None = None
    ca_bundle: File | None = None
    token_env: Name | None = None
    page_size: Annotated[int, Meta(ge=1, le=100_000)] = 500
    timeout_seconds: Seconds = 30.0
    retries: Annotated[int, Meta(ge=0, le=20)] = 5
    total_timeout_seconds: Seconds = 3600.0
    parallel_pages: Annotated[int, Meta(ge=1, le=16)] = 4
    max_answer_mb: Annotated[int, Meta(ge=1, le=100_000)] = 256
    max_withdrawn: Annotated[int, Meta(ge=0)] = 20
    max_withdrawn_share: Share = 0.05


class Completeness(Struct, frozen=True):
    """When an OP counts as complete."""

    quiet_days: Annotated[float, Meta(ge=0, le=36_525)] = 14.0  # a century: a date can still be counted back
    processing_candidates: bool = False


class Band(Struct, frozen=True):
    """A spectral band, in nm."""

    name: Text
    min_nm: Nanometres
    center_nm: Nanometres
    max_nm: Nanometres
    required: bool


_BANDS = [
    Band("Ca II 854.2", 853.5, 854.2, 855.0, True),
    Band("Ca II 849.8", 849.3, 849.8, 850.2, False),
    Band("Fe I 630.2", 629.7, 630.2, 630.5, True),
]
_IN_ORDER = Must(
    lambda band: band.min_nm <= band.center_nm <= band.max_nm, "min_nm <= center_nm <= max_nm does not hold"
)
_NAMED_APART = Must(lambda bands: len({b.name for b in bands}) == len(bands), "two bands have the same name")


Stokes = Annotated[str, _like(r"(?!.*(.).*\1)[IQUV]+", "distinct letters of IQUV")]
Bands = Annotated[list[Annotated[Band, _IN_ORDER]], _NAMED_APART]


class InstrumentRules(Struct, frozen=True, omit_defaults=True):
    """What is judged otherwise for one instrument; null is as for the others."""

    instrument: Text
    min_good_health: Share | None = None
    min_open_gos: Share | None = None
    min_ao_locked: Share | None = None
    stokes: Stokes | None = None
    on_disk: bool | None = None
    band_coverage: Literal["center", "full"] | None = None
    bands: Bands | None = None


_ONE_EACH = Must(lambda rules: len({r.instrument for r in rules}) == len(rules), "names an instrument twice")


class Qualification(Struct, frozen=True):
    """What makes an OP invertible; the shares are of a dataset's frames."""

    instruments: Annotated[list[Text], NOT_EMPTY] = field(default_factory=lambda: ["VISP"])
    min_good_health: Share = 0.75
    min_open_gos: Share = 1.0
    min_ao_locked: Share = 0.75
    stokes: Stokes = "IQUV"
    on_disk: bool = True
    band_coverage: Literal["center", "full"] = "center"
    bands: Bands = field(default_factory=_BANDS.copy)
    per_instrument: Annotated[list[InstrumentRules], _ONE_EACH] = field(default_factory=list)


class Preprocess(Struct, frozen=True):
    """The command that prepares an OP. A null work_dir: "work" in the user's data folder."""

    command: Annotated[list[Text], NOT_EMPTY] | None = None
    work_dir: File | None = None
    timeout_seconds: Seconds = 3600.0
    parallel: Annotated[int, Meta(ge=1, le=64)] = 2


class Publish(Struct, frozen=True):
    """Nothing to set yet."""


class Deadlines(Struct, frozen=True):
    """Nothing to set yet."""


class Monitoring(Struct, frozen=True):
    """Nothing to set yet."""


class Settings(Struct, frozen=True):
    """Every setting, with its default."""

    database: Database = Database()
    metadata_store: MetadataStore = MetadataStore()
    completeness: Completeness = Completeness()
    qualification: Qualification = field(default_factory=Qualification)
    preprocess: Preprocess = Preprocess()
    publish: Publish = Publish()
    deadlines: Deadlines = Deadlines()
    monitoring: Monitoring = Monitoring()


class Loaded(Struct, frozen=True):
    """The settings beside the absolute path of the file they came from, None for the built-in defaults."""

    settings: Settings
    path: Path | None


def load(path: Path | None = None, env: Mapping[str, str] = os.environ) -> Loaded:
    """Gives the settings of `path`, or else of the first there is of L2INV_CONFIG, ./config.yaml, the user's
    config folder and /etc/l2inv, or else the defaults. Paths in the file are taken from the file's folder.

    Raises ConfigError with every mistake, or when a named file is missing or a found one cannot be read.
    """
    named = path or (Path(env["L2INV_CONFIG"]) if env.get("L2INV_CONFIG") else None)
    for place in [named] if named else _usual_places():
        try:
            with place.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            if named:
                raise ConfigError(str(place), ["no such file"]) from None
            continue
        except OSError as problem:
            raise ConfigError(str(place), [f"cannot be read: {problem.strerror}"]) from problem
        reading = _Reading(place.absolute().parent, env, [])
        settings = _value(Settings, _tree(content, reading.mistakes), "", reading)
        if reading.mistakes:
            raise ConfigError(str(place), reading.mistakes)
        return Loaded(settings, place.absolute())
    return Loaded(Settings(), None)


def _usual_places() -> list[Path]:
    from platformdirs import user_config_path

    return [Path("config.yaml"), user_config_path("l2inv") / "config.yaml", Path("/etc/l2inv/config.yaml")]


def to_plain(settings: Settings) -> dict[str, Any]:
    """Gives the settings as JSON knows them, with *** for the passwords in the two URLs."""
    plain: dict[str, Any] = msgspec.to_builtins(settings)
    for section in (plain["database"], plain["metadata_store"]):
        for start, end in reversed(_secrets(section["url"] or "")):
            section["url"] = section["url"][:start] + "***" + section["url"][end:]
    return plain


def redact(text: str, settings: Settings, env: Mapping[str, str] = os.environ) -> str:
    """Gives the text with *** for the passwords in both URLs (as written and as meant) and the token."""
    from urllib.parse import quote, unquote

    forms = {env.get(settings.metadata_store.token_env or "", "").strip()}
    for url in (settings.database.url, settings.metadata_store.url or ""):
        for start, end in _secrets(url):
            bare = re.sub(r"\\(.)", r"\1", url[start:end].removeprefix("'").removesuffix("'"))
            forms |= {url[start:end], bare, unquote(bare), quote(unquote(bare), safe="")}
    longest_first = sorted(forms - {"", "''"}, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), "***", text) if longest_first else text


def _secrets(url: str) -> list[tuple[int, int]]:
    """Where the secrets of a database or store URL stand in it, in order."""
    if re.match(r"\s*\w+\s*=", url):
        return [pair.span(2) for pair in _PAIR.finditer(url) if _SECRET.search(pair[1])]
    userinfo = _USERINFO.match(url)
    parameters = _PARAMETER.finditer(url, userinfo.end() if userinfo else 0)
    spans = [userinfo.span(1)] if userinfo else []
    return spans + [parameter.span(2) for parameter in parameters if _SECRET.search(parameter[1])]


class _Reading(NamedTuple):
    folder: Path
    env: Mapping[str, str]
    mistakes: list[str]


_KEY = re.compile(r"[\w-]{1,48}")  # any other key is not shown: it may hold a secret or a terminal escape
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
    """The file as dicts, lists and scalars; None beside a mistake where it is not the YAML read here."""
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
                mistakes.append(f"{at(event.start_mark)}: anchors, aliases and tags are not read here")
        loader = safe_loader(text)
        loader.yaml_implicit_resolvers = {None: list(_SCALARS.items())}
        root = loader.get_single_node()
    except yaml.YAMLError as problem:
        parts = [getattr(problem, name, None) for name in ("context", "problem")]
        mark, words = getattr(problem, "problem_mark", None), ": ".join(filter(None, parts))
        mistakes.append(f"{at(mark)}: {words}" if mark else "not text: holds a control character")
    except ValueError as problem:
        mistakes.append(str(problem))
    return None if mistakes or root is None else plain(root, "")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


_WRONG: Any = object()  # stands for a value whose mistake is already named


def _value(kind: Any, raw: Any, path: str, reading: _Reading) -> Any:
    """Gives `raw` as the type `kind`, or _WRONG beside a mistake for each thing in it that is not so."""
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
    return str(reading.folder / value) if kind in (File, StoreUrl) and not re.match(_HTTP, value) else value


def _struct(kind: type[Struct], raw: Any, path: str, reading: _Reading) -> Any:
    if not isinstance(raw, dict):
        return _leaf(dict, raw, path or "the file", reading)
    before = len(reading.mistakes)
    known = {one.name: one for one in msgspec.structs.fields(kind)}
    values = {}
    for name, inner in raw.items():
        if name in known:
            values[name] = _value(known[name].type, inner, _join(path, name), reading)
        else:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
            hint = f"the nearest known one is {nearest[0]}" if nearest else "nothing can be set here yet"
            reading.mistakes.append(f"{_join(path, name)}: unknown key, {hint}")
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
        reading.mistakes.append(f"{path}: {words}")
        return _WRONG
    return value


_PLACE = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_]\w*)\})?", re.ASCII)


def _filled(text: str, env: Mapping[str, str]) -> tuple[str, bool]:
    """The text with each ${NAME} taken from the environment, and whether there was one."""
    names = [place[1] for place in _PLACE.finditer(text) if place[0] != "$${"]
    if None in names:
        raise ValueError("${ must begin a ${NAME} (write $${ for a literal one)")
    if unset := [name for name in names if name not in env]:
        raise ValueError(f"not set in the environment: {', '.join(unset)}")
    filled = _PLACE.sub(lambda place: env[place[1]] if place[1] else "${", text)
    if re.search("[\0\ud800-\udfff]", filled):
        raise ValueError("holds a NUL or a character that is not UTF-8")
    return filled, bool(names)
