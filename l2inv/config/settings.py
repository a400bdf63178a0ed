"""The settings: one YAML file, checked in full; all mistakes are reported at once, each with its path in the file."""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from l2inv.config.yamlfile import MAX_BYTES, File, Must, PathUnless, like, read
from l2inv.errors import ConfigError

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
_SECRET = re.compile(r"pas|pwd|secret|scram|token|key", re.IGNORECASE)  # a misspelt password is one, too
_HOST = r"(?:\[[0-9a-fA-F:.]+\]|[^\s/?#@:\[\]]+)"
_HTTP = rf"https?://(?:[^\s/?#@]*@)?{_HOST}(?::\d{{1,5}})?(?:[/?#][^\s@]*)?"
_AMQP = rf"(?!.*%(?![0-9A-Fa-f]{{2}}))amqps?://(?:[^\s/?#@]*@)?{_HOST}(?::\d{{1,5}})?(?:/[^\s/?#@]*)?"

Text = Annotated[str, Meta(min_length=1)]
Name = Annotated[str, like("[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable")]
Share = Annotated[float, Meta(ge=0, le=1)]
Nanometres = Annotated[float, Meta(gt=0)]
Seconds = Annotated[float, Meta(gt=0, le=2_000_000)]  # poll(2) counts milliseconds in 31 bits: 24 days
Word = Annotated[str, like(r"[\w.@%+-]+", "one word")]
Days = Annotated[float, Meta(gt=0, le=36_525)]  # a century: a date can still be counted back
NOT_EMPTY = Must(bool, "must not be empty")
DatabaseUrl = Annotated[
    str,
    like(
        rf"embedded|{_URI}|\s*(?:{_PAIR.pattern})+",
        "embedded, a postgresql:// URI or key=value pairs such as service=NAME"
        " (in a URI, write @ / ? % of a password as %40 %2F %3F %25)",
    ),
]
StoreUrl = Annotated[
    str, like(f"{_HTTP}|(?!~|.*://).+", "an http(s):// URL or the path of a file"), PathUnless(_HTTP)
]


def _is_amqp_url(url: str) -> bool:
    """Return whether a URL follows the RabbitMQ URI specification, without a query: those parameters are settings here."""
    from urllib.parse import urlsplit

    try:
        return bool(re.fullmatch(_AMQP, url, re.ASCII)) and urlsplit(url).port != 0
    except ValueError:  # a port above 65535, an IPv6 address that is none
        return False


AmqpUrl = Annotated[str, Must(_is_amqp_url, "must be amqp(s)://USER:PASSWORD@HOST/VHOST, percent-encoded")]
PingUrl = Annotated[str, like(_HTTP, "an http(s):// URL")]
Address = Annotated[str, like(r"[A-Za-z][\w+.-]*://\S+", "a URL of the notification library")]
NAMED_ONCE = Must(lambda people: len({p.name for p in people}) == len(people), "names somebody twice")


class Database(Struct, frozen=True):
    """The database, and a standby for commands that only read. A null embedded_folder: the user's data folder."""

    url: DatabaseUrl = "embedded"
    # PostgreSQL keeps pg_ to itself and cuts names at 63 bytes; the rest is for names derived from this.
    schema: Annotated[
        str, like("(?!pg_)[a-z_][a-z0-9_]{0,47}", "1 to 48 of a-z 0-9 _, not starting with a digit or pg_")
    ] = "l2inv"
    embedded_folder: File | None = None
    read_url: DatabaseUrl | None = None
    lock_timeout_seconds: Seconds = 10.0
    statement_timeout_seconds: Seconds | None = None


class MetadataStore(Struct, frozen=True):
    """Where the datasets come from: an http(s) URL or the path of a saved response."""

    url: StoreUrl | None = None
    ca_bundle: File | None = None
    token_env: Name | None = None
    token_scheme: Literal["Bearer"] | None = None
    service_name: Annotated[str, like(r"[A-Za-z0-9._/-]+", "letters, digits and . _ / -")] = "l2inv"
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
    """A spectral band, in nm. A dataset with less than narrow_nm on a side of its center gets a warning; 0: never."""

    name: Text
    min_nm: Nanometres
    center_nm: Nanometres
    max_nm: Nanometres
    required: bool
    narrow_nm: Annotated[float, Meta(ge=0)] = 0.0


# What is required since November 2025; docs/Invertibility.md has the table published in 2023.
_BANDS = [
    Band("Fe I 630.3", 629.8, 630.3, 630.8, True, 0.5),
    Band("Ca II 854.2", 853.2, 854.2, 855.2, False, 1.0),
    Band("Na I 589.3", 588.3, 589.3, 590.3, False, 1.0),
]
_IN_ORDER = Must(
    lambda band: band.min_nm <= band.center_nm <= band.max_nm, "min_nm <= center_nm <= max_nm does not hold"
)
_NAMED_APART = Must(lambda bands: len({b.name for b in bands}) == len(bands), "two bands have the same name")


Stokes = Annotated[str, like(r"(?!.*(.).*\1)[IQUV]+", "distinct letters of IQUV")]
Bands = Annotated[list[Annotated[Band, _IN_ORDER]], _NAMED_APART]


class InstrumentRules(Struct, frozen=True, omit_defaults=True):
    """Rules for one instrument; null means the general rule."""

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
    """The criteria of invertibility; fractions are of a dataset's frames."""

    instruments: Annotated[list[Text], NOT_EMPTY] = field(default_factory=lambda: ["VISP"])
    min_good_health: Share = 0.75
    min_open_gos: Share = 1.0
    min_ao_locked: Share = 0.75
    stokes: Stokes = "IQUV"
    on_disk: bool = True
    band_coverage: Literal["center", "full"] = "center"
    bands: Bands = field(default_factory=_BANDS.copy)
    per_instrument: Annotated[list[InstrumentRules], _ONE_EACH] = field(default_factory=list)


class Slurm(Struct, frozen=True):
    """Options of sbatch; null means the cluster's default. A null time_minutes: preprocess.timeout_seconds."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    time_minutes: Annotated[int, Meta(ge=1, le=525_600)] | None = None
    memory_mb: Annotated[int, Meta(ge=1)] | None = None
    cpus: Annotated[int, Meta(ge=1, le=4096)] | None = None
    array_throttle: Annotated[int, Meta(ge=1)] | None = None
    max_requeues: Annotated[int, Meta(ge=0, le=100)] = 2


class Preprocess(Struct, frozen=True):
    """The command that prepares an OP, and where it runs. A null work_dir: "work" in the user's data folder."""

    command: Annotated[list[Text], NOT_EMPTY] | None = None
    executor: Literal["local", "slurm"] = "local"
    work_dir: File | None = None
    timeout_seconds: Seconds = 3600.0
    parallel: Annotated[int, Meta(ge=1, le=64)] = 2
    slurm: Slurm = Slurm()
    globus_source: Word | None = None
    globus_destination: Annotated[str, like(r"[^\s:]+:/.*", "ENDPOINT:/FOLDER")] | None = None


RankBy = Literal[
    "r0_class", "age", "fried_parameter", "r0", "proposal", "ao", "minutes", "frames", "lines", "mu", "exposure", "field",
    "odd", "movie",
]  # fmt: skip


class Next(Struct, frozen=True):
    """The ranking of offered OPs with the same priority."""

    rank_by: RankBy = "r0_class"


class Mount(Struct, frozen=True):
    """The local path at which outputs below a URI can be read."""

    uri: Text
    path: File


_NEEDED, _KNOWN = {"source", "destination"}, {"source", "bucket", "destination"}
_FILLED_IN = Must(
    lambda argv: _NEEDED <= {*re.findall(r"{(\w+)}", str(argv))} <= _KNOWN,
    "must hold {source} and {destination}, and besides {bucket} no other {name}",
)


class Transfer(Struct, frozen=True):
    """The command that transfers the files of an inversion to their bucket, and where it runs."""

    command: Annotated[list[Text], _FILLED_IN] | None = None
    executor: Literal["local", "slurm"] = "local"
    timeout_seconds: Seconds = 14_400.0
    destination_uri: Text | None = None


class Catalog(Struct, frozen=True):
    """The RabbitMQ server for messages to the catalogers; a null url: l2inv sends none."""

    url: AmqpUrl | None = None
    exchange: Annotated[str, like(r"[\w.:-]{1,127}", "1 to 127 of a-z A-Z 0-9 _ . : -")] = "master.direct.x"
    ca_bundle: File | None = None
    timeout_seconds: Seconds = 30.0
    batch_size: Annotated[int, Meta(ge=1, le=10_000)] = 100
    await_available: bool = field(default=True, name="await")
    await_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 60.0


class Publish(Struct, frozen=True):
    """Publishing: mounts of science's outputs, their transfer, and the catalog."""

    mounts: list[Mount] = field(default_factory=list)
    check_products: bool = True
    transfer: Transfer = Transfer()
    catalog: Catalog = Catalog()


class Owners(Struct, frozen=True):
    """Who is responsible for moving an OP on from each state; for a claim, its assignee."""

    discovered: Text = "operator"
    invertible: Text = "operator"
    not_invertible: Text = "operator"
    preprocessed: Text = "science"
    inverted: Text = "operator"
    error: Text = "operator"


class Deadlines(Struct, frozen=True):
    """How many days an OP may stay in a state; null: forever. working_days is the default length of a claim."""

    discovered_days: Days | None = None
    invertible_days: Days | None = 2.0
    not_invertible_days: Days | None = None
    preprocessed_days: Days | None = 60.0
    working_days: Days = 21.0
    inverted_days: Days | None = 2.0
    error_days: Days | None = 1.0
    due_soon_days: Days = 3.0
    owners: Owners = Owners()


class Monitoring(Struct, frozen=True):
    """The monitor that is pinged when a stage begins and ends; {stage} in the URL is the stage's name."""

    ping_url: PingUrl | None = None
    ping_timeout_seconds: Annotated[float, Meta(gt=0, le=60)] = 5.0
    run_limit_hours: Annotated[float, Meta(gt=0, le=8760)] = 12.0


class Person(Struct, frozen=True):
    """An owner or assignee: the database role of their sessions, and the notification library's URLs (mailto:// …)."""

    name: Text
    addresses: list[Address]
    role: Text | None = None


class Notifications(Struct, frozen=True):
    """Addresses for the digest, and database roles, by person."""

    people: Annotated[list[Person], NAMED_ONCE] = field(default_factory=list)

    def contradicts(self, actor: str, role: str) -> str | None:
        """Return a warning if an actor and the session's role, `recorded_by`, belong to different people."""
        for person in self.people:
            if person.role == role and person.name != actor:
                return f"notifications.people: role {role} is that of {person.name}, and the actor is {actor}"
            if person.name == actor and person.role not in (None, role):
                return (
                    f"notifications.people: {actor} has role {person.role}, and this session has role {role}"
                )
        return None


class Settings(Struct, frozen=True):
    """Every setting, with its default."""

    database: Database = Database()
    metadata_store: MetadataStore = MetadataStore()
    completeness: Completeness = Completeness()
    qualification: Qualification = field(default_factory=Qualification)
    preprocess: Preprocess = Preprocess()
    next: Next = Next()
    publish: Publish = field(default_factory=Publish)
    deadlines: Deadlines = Deadlines()
    monitoring: Monitoring = Monitoring()
    notifications: Notifications = field(default_factory=Notifications)


class Loaded(Struct, frozen=True):
    """The settings, and the absolute path of their file, None for the built-in defaults."""

    settings: Settings
    path: Path | None


def load(path: Path | None = None, env: Mapping[str, str] = os.environ) -> Loaded:
    """Return the settings in `path`, or else in L2INV_CONFIG, or else in the first existing file of places(), or else the
    defaults. Paths in the file are relative to its folder.

    Raise ConfigError with all mistakes, if a named file is missing, and if a found one cannot be read or could have been
    written by another user, since it names programs to run.
    """
    named = path or (Path(env["L2INV_CONFIG"]) if env.get("L2INV_CONFIG") else None)
    for place in [named] if named else places():
        try:
            if not named and (why := exposed(place)):
                raise ConfigError(
                    str(place), [f"{why}; if you trust it, name it with --config or L2INV_CONFIG"]
                )
            with place.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            if named:
                raise ConfigError(str(place), ["no such file"]) from None
            continue
        except OSError as problem:
            raise ConfigError(str(place), [f"cannot be read: {problem.strerror}"]) from problem
        settings, mistakes = read(Settings, content, place.absolute().parent, env)
        if mistakes:
            raise ConfigError(str(place), mistakes)
        return Loaded(settings, place.absolute())
    return Loaded(Settings(), None)


def places() -> list[Path]:
    """Return where a settings file is searched when none is named, in this order."""
    from platformdirs import user_config_path

    return [
        Path("l2inv.yaml").absolute(), user_config_path("l2inv") / "config.yaml", Path("/etc/l2inv/config.yaml"),
    ]  # fmt: skip


def exposed(path: Path) -> str | None:
    """Return why another user could have written a file or replaced it; None if only root and this user could. Raise
    OSError.
    """
    literal, real = path.absolute(), Path(os.path.realpath(path))
    for place in dict.fromkeys([literal, real, *literal.parents, *real.parents]):
        found = place.lstat()
        is_itself = place in (literal, real)
        if found.st_uid not in (0, os.geteuid()):
            where = "" if is_itself else f"is in {place}, which "
            return f"{where}belongs to another user (uid {found.st_uid})"
        # The mode of a link means nothing; in a sticky folder, nobody can replace another user's files.
        is_kept = stat.S_ISLNK(found.st_mode) or (not is_itself and found.st_mode & stat.S_ISVTX)
        if found.st_mode & 0o022 and not is_kept:
            how = "write to it" if is_itself else f"replace it, since they may write to {place}"
            return f"others may {how} (chmod go-w)"
    return None


def to_plain(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain data for JSON, with *** for passwords in URLs and other secrets."""
    plain: dict[str, Any] = msgspec.to_builtins(settings)
    if plain["monitoring"]["ping_url"]:
        plain["monitoring"]["ping_url"] = origin(plain["monitoring"]["ping_url"])
    for person in plain["notifications"]["people"]:
        person["addresses"] = [address.partition("://")[0] + "://***" for address in person["addresses"]]
    database, store, catalog = plain["database"], plain["metadata_store"], plain["publish"]["catalog"]
    for section, name in ((database, "url"), (database, "read_url"), (store, "url"), (catalog, "url")):
        section[name] = section[name] and masked(section[name])
    return plain


def masked(url: str) -> str:
    """Return a URL of the database, the store or the catalog with *** for its secrets."""
    for start, end in reversed(_secrets(url)):
        url = f"{url[:start]}***{url[end:]}"
    return url


def origin(url: str) -> str:
    """Return the origin of a URL, without its path, which may be a key."""
    return re.sub(r"(://)([^/@]*@)?([^/?#]+).*", r"\1\3/***", url)


def redact(text: str, settings: Settings, env: Mapping[str, str] = os.environ) -> str:
    """Return the text with *** for the passwords in the URLs (encoded and decoded), the token, the path of the monitor's
    URL, and the addresses after their scheme."""
    from urllib.parse import quote, unquote

    addresses = [address for person in settings.notifications.people for address in person.addresses]
    ping_url = settings.monitoring.ping_url or ""
    forms = {env.get(settings.metadata_store.token_env or "", "").strip()}
    forms |= {address.partition("://")[2] for address in addresses}
    database, store, catalog = settings.database, settings.metadata_store, settings.publish.catalog
    urls = (database.url, database.read_url, store.url, catalog.url, ping_url, *addresses)
    for url in filter(None, urls):
        for start, end in _secrets(url):
            bare = re.sub(r"\\(.)", r"\1", url[start:end].removeprefix("'").removesuffix("'"))
            forms |= {url[start:end], bare, unquote(bare), quote(unquote(bare), safe="")}
    patterns = [re.escape(form) for form in sorted(forms - {"", "''"}, key=len, reverse=True)]
    key = re.sub(r"\w+://[^/?#]*", "", ping_url)
    if key not in ("", "/"):
        patterns.insert(0, re.escape(key).replace(re.escape("{stage}"), "[a-z]+"))
    return re.sub("|".join(patterns), "***", text) if patterns else text


def _secrets(url: str) -> list[tuple[int, int]]:
    """Return the positions of the secrets in a database, store or catalog URL, in order."""
    if not re.match(
        r"\w+://", url
    ):  # key=value pairs, even where a path is expected: they may be in the wrong setting
        return [pair.span(2) for pair in _PAIR.finditer(url) if _SECRET.search(pair[1])]
    userinfo = _USERINFO.match(url)
    parameters = _PARAMETER.finditer(url, userinfo.end() if userinfo else 0)
    spans = [userinfo.span(1)] if userinfo else []
    return spans + [parameter.span(2) for parameter in parameters if _SECRET.search(parameter[1])]
