import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from l2inv.cli import main
from l2inv.config.settings import Loaded, Settings, load, redact, to_plain
from l2inv.database import embedded
from l2inv.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def of(folder: Path, text: str | bytes, **env: str) -> Settings:
    return load(written(folder, text), env).settings


def mistakes_of(folder: Path, text: str | bytes, **env: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        of(folder, text, **env)
    assert caught.value.exit_code == 10
    assert "\n" not in caught.value.message
    assert all(mistake in caught.value.message for mistake in caught.value.mistakes)
    return caught.value.mistakes


# The example


def test_the_example_shows_every_setting_in_order_with_its_default() -> None:
    shown, known = yaml.safe_load(EXAMPLE.read_text()), msgspec.to_builtins(Settings())
    assert shown == known
    assert [(name, [*section]) for name, section in shown.items()] == [(n, [*s]) for n, s in known.items()]
    assert load(EXAMPLE, {}).settings == Settings()


def test_the_example_is_pleasant_to_read() -> None:
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120


# Where the file is looked for


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    places = {name: tmp_path / name / "config.yaml" for name in ("given", "variable", "user/l2inv")}
    places["here"] = tmp_path / "here" / "l2inv.yaml"
    for name, path in places.items():
        path.parent.mkdir(parents=True)
        path.write_text(f"database: {{schema: {name[:4]}}}")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    return places


def test_the_first_file_of_the_search_order_is_read(places: dict[str, Path]) -> None:
    env = {"L2INV_CONFIG": str(places["variable"])}
    assert load(places["given"], env).settings.database.schema == "give"
    assert load(None, env).settings.database.schema == "vari"
    assert load(None, {"L2INV_CONFIG": ""}).settings.database.schema == "here"
    assert load(None, {}) == Loaded(load(places["here"], {}).settings, places["here"])


@pytest.mark.skipif(os.name != "posix" or os.uname().sysname != "Linux", reason="XDG folders are Linux's")
def test_the_users_config_folder_comes_after_the_present_one(places: dict[str, Path]) -> None:
    places["here"].unlink()
    assert load(None, {}).path == places["user/l2inv"]


@pytest.mark.skipif(Path("/etc/l2inv/config.yaml").exists(), reason="this host has its own")
def test_without_any_file_the_defaults_hold(places: dict[str, Path]) -> None:
    places["here"].unlink()
    places["user/l2inv"].unlink()
    assert load(None, {}) == Loaded(Settings(), None)


def test_another_tools_file_in_the_present_folder_is_not_read(places: dict[str, Path]) -> None:
    places["here"].rename(places["here"].with_name("config.yaml"))
    assert load(None, {}).path == places["user/l2inv"]


def given_away(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 65534, 65534, follow_symlinks=False)


def opened(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o002)


@pytest.mark.parametrize("which", ["linked/l2inv.yaml", "linked", "project/l2inv.yaml", "project", "."])
@pytest.mark.parametrize(("how", "why"), [(given_away, "belongs to another"), (opened, "others may ")])
def test_a_found_file_that_another_user_could_have_written_is_refused_and_a_named_one_warned_of(
    places: dict[str, Path],
    which: str,
    how: Callable[[Path], None],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    top = places["here"].parent
    for name in ("project", "linked"):
        (top / name).mkdir()
    places["here"].rename(top / "linked" / "l2inv.yaml")
    (top / "project" / "l2inv.yaml").symlink_to("../linked/l2inv.yaml")
    monkeypatch.chdir(top / "project")
    assert load(None, {}).settings.database.schema == "here"
    how(top / which)  # for a link, opened() is its target
    for argv in (["config", "check"], ["scan"]):
        refused = CliRunner().invoke(main, argv, env={"L2INV_CONFIG": ""})
        assert (refused.exit_code, refused.stderr.count("\n")) == (10, 1)
        assert why in refused.stderr
    named = CliRunner().invoke(main, ["config", "check", "--config", "l2inv.yaml"])
    assert (named.exit_code, named.stderr.count("\n")) == (0, 1)
    assert why in named.stderr


def test_settings_that_only_root_and_this_user_can_write_are_read(places: dict[str, Path]) -> None:
    sticky = places["here"].parent
    sticky.chmod(0o1777)
    assert load(None, {}).path == places["here"]
    answer = CliRunner().invoke(main, ["config", "check"], env={"L2INV_CONFIG": ""})
    assert (answer.exit_code, answer.stderr) == (0, "")


@pytest.mark.skipif(Path("/etc/l2inv/config.yaml").exists(), reason="this host has its own")
def test_without_settings_one_line_says_so_where_was_looked_and_which_database_is_used(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "default_folder", lambda: tmp_path / "server")
    places["here"].unlink()
    places["user/l2inv"].unlink()
    for argv in (["server", "status"], ["-q", "server", "status"], ["server", "status", "--json"]):
        answer = CliRunner().invoke(main, argv, env={"L2INV_CONFIG": ""})
        assert answer.exit_code == 0
        assert answer.stderr == (
            f"l2inv: no settings in {places['here']}, {places['user/l2inv']}, /etc/l2inv/config.yaml:"
            f" using the defaults, with the private database in {tmp_path / 'server'}\n"
        )


@pytest.mark.parametrize("named", ["by path", "by L2INV_CONFIG"])
def test_a_named_file_that_does_not_exist_is_a_mistake(places: dict[str, Path], named: str) -> None:
    gone = places["given"].with_name("gone.yaml")
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such file"):
        load(gone, {}) if named == "by path" else load(None, {"L2INV_CONFIG": str(gone)})


def test_a_found_file_that_cannot_be_read_is_not_passed_over(places: dict[str, Path]) -> None:
    places["here"].unlink()
    places["here"].mkdir()
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(None, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_a_mistake(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    path.chmod(0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load(path, {})


def test_paths_start_at_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    text = """
        database: {embedded_folder: pg}
        metadata_store: {url: ../saved.json, ca_bundle: ca.pem}
        preprocess: {work_dir: /abs/work}
    """
    written(folder, text)
    monkeypatch.chdir(tmp_path)
    read = load(Path("with space/config.yaml"), {}).settings
    assert read.database.embedded_folder == str(folder / "pg")
    assert read.metadata_store.url == str(folder / "../saved.json")
    assert read.metadata_store.ca_bundle == str(folder / "ca.pem")
    assert read.preprocess.work_dir == "/abs/work"
    url = "https://user@[::1]:8443/graphql?x=1"
    assert of(folder, f"metadata_store: {{url: '{url}'}}").metadata_store.url == url


# What a file may hold


@pytest.mark.parametrize(
    "text", ["", "# nothing", "database:\nqualification:\n", "---\n...\n", "\ufeff", "~"]
)
def test_omitted_settings_have_their_defaults(tmp_path: Path, text: str) -> None:
    assert of(tmp_path, text) == Settings()


def test_a_whole_number_is_accepted_where_a_fraction_is(tmp_path: Path) -> None:
    read = of(
        tmp_path, "completeness: {quiet_days: 7}\nqualification: {min_ao_locked: .5, min_open_gos: 1e-1}"
    )
    assert repr(read.completeness.quiet_days) == "7.0"
    assert (read.qualification.min_ao_locked, read.qualification.min_open_gos) == (0.5, 0.1)


ALL_AT_ONCE = """\
databse: {}
database: {url: 5, schema: L2, embedded_folder: ~/x, url: 6}
metadata_store: {page_size: true, timeout_seconds: 0, retries: 21, token_env: a b, url: "ftp://x/"}
completeness: {quiet_days: "14"}
qualification:
  instruments: []
  stokes: IIQ
  band_coverage: half
  on_disk: 1
  min_good_health: 1.5
  bands:
  - {name: a, min_nm: 3, center_nm: 2, max_nm: 4, required: true}
  - {name: b, min_nm: x, centre_nm: 2, max_nm: 3, required: true}
  - 7
preprocess: {command: ["${L2INV_NOPE}", 5], work_dir: "${", timeout_seconds: .nan, parallel: 2.5}
publish: {channel: 1}
monitoring: []
"""


def test_every_mistake_is_named_at_once_by_its_path(tmp_path: Path) -> None:
    assert mistakes_of(tmp_path, ALL_AT_ONCE) == [
        "database.url: given twice, again at line 2, column 54",
        "databse: unknown key, the nearest known one is database",
        "database.url: Expected str, got int (put it in quotes)",
        "database.schema: must be 1 to 48 of a-z 0-9 _, not starting with a digit or pg_",
        "database.embedded_folder: must be a path (~ is not expanded, write ${HOME})",
        "metadata_store.page_size: Expected int, got bool",
        "metadata_store.timeout_seconds: Expected float > 0.0",
        "metadata_store.retries: Expected int <= 20",
        "metadata_store.token_env: must be the name of an environment variable",
        "metadata_store.url: must be an http(s):// URL or the path of a file",
        "completeness.quiet_days: Expected float, got str",
        "qualification.instruments: must not be empty",
        "qualification.stokes: must be distinct letters of IQUV",
        "qualification.band_coverage: must be one of center, full",
        "qualification.on_disk: Expected bool, got int",
        "qualification.min_good_health: Expected float <= 1.0",
        "qualification.bands[0]: min_nm <= center_nm <= max_nm does not hold",
        "qualification.bands[1].min_nm: Expected float, got str",
        "qualification.bands[1].centre_nm: unknown key, the nearest known one is center_nm",
        "qualification.bands[1].center_nm: missing",
        "qualification.bands[2]: Expected mapping, got int",
        "preprocess.command[0]: not set in the environment: L2INV_NOPE",
        "preprocess.command[1]: Expected str, got int (put it in quotes)",
        "preprocess.work_dir: ${ must begin a ${NAME} (write $${ for a literal one)",
        "preprocess.timeout_seconds: Expected float > 0.0",
        "preprocess.parallel: Expected int, got float",
        "publish.channel: unknown key, the nearest known one is catalog",
        "monitoring: Expected mapping, got list",
    ]


@pytest.mark.parametrize(
    ("setting", "mistake"),
    [
        ("database: {schema: pg_mine}", "database.schema: must be"),
        ('database: {schema: "l2inv\\n"}', "database.schema: must be"),
        (f"database: {{schema: {'a' * 49}}}", "database.schema: must be"),
        ("metadata_store: {page_size: 010}", "metadata_store.page_size: Expected int, got float"),
        ("metadata_store: {page_size: 1:30}", "metadata_store.page_size: Expected int, got str"),
        ("metadata_store: {page_size: 0}", "metadata_store.page_size: Expected int >= 1"),
        ("metadata_store: {retries: -1}", "metadata_store.retries: Expected int >= 0"),
        ("qualification: {min_open_gos: -.1}", "qualification.min_open_gos: Expected float >= 0.0"),
        (
            "qualification: {bands: [{name: a, min_nm: 0, center_nm: 1, max_nm: 1, required: no}]}",
            "qualification.bands[0].min_nm: Expected float > 0.0",
        ),
        ("metadata_store: {page_size: 100001}", "metadata_store.page_size: Expected int <= 100000"),
        (
            "metadata_store: {timeout_seconds: 1e9}",
            "metadata_store.timeout_seconds: Expected float <= 2000000.0",
        ),
        ("metadata_store: {url: 'https://'}", "metadata_store.url: must be"),
        ("metadata_store: {url: 'https://u:p@ss/w@h/'}", "metadata_store.url: must be"),
        ("completeness: {quiet_days: .inf}", "completeness.quiet_days: Expected float <= 36525.0"),
        (
            "qualification: {bands: [{name: a, min_nm: 1, center_nm: 1, max_nm: .inf, required: no}]}",
            "qualification.bands[0].max_nm: must be a finite number",
        ),
        (
            "qualification: {bands: [{name: a, min_nm: 1, center_nm: 1, max_nm: 1, required: no, narrow_nm: -1}]}",
            "qualification.bands[0].narrow_nm: Expected float >= 0.0",
        ),
        ("completeness: {quiet_days: .nan}", "completeness.quiet_days: Expected float >= 0.0"),
        ("completeness: {quiet_days: true}", "completeness.quiet_days: Expected float, got bool"),
        ("completeness: {quiet_days: null}", "completeness.quiet_days: Expected float, got null"),
        ("qualification: {stokes: ''}", "qualification.stokes: must be distinct letters of IQUV"),
        ("qualification: {instruments: VISP}", "qualification.instruments: Expected list, got str"),
        ("qualification: {instruments: ['']}", "qualification.instruments[0]: Expected str of length >= 1"),
        ("preprocess: {command: []}", "preprocess.command: must not be empty"),
        ("preprocess: {command: prepare}", "preprocess.command: Expected list, got str"),
        ('preprocess: {command: ["a\\0b"]}', "preprocess.command[0]: contains a NUL"),
        ("preprocess: {parallel: 0}", "preprocess.parallel: Expected int >= 1"),
        ("preprocess: {parallel: 65}", "preprocess.parallel: Expected int <= 64"),
    ],
)
def test_a_value_out_of_its_bounds_is_a_mistake(tmp_path: Path, setting: str, mistake: str) -> None:
    (found,) = mistakes_of(tmp_path, setting)
    assert found.startswith(mistake)


def test_two_bands_of_one_name_are_a_mistake(tmp_path: Path) -> None:
    band = "{name: a, min_nm: 1, center_nm: 1, max_nm: 1, required: no}"
    assert of(tmp_path, f"qualification: {{bands: [{band}]}}").qualification.bands[0].required is False
    found = mistakes_of(tmp_path, f"qualification: {{bands: [{band}, {band}]}}")
    assert found == ["qualification.bands: two bands have the same name"]


# What is no YAML, or more YAML than is read here

# Where the YAML library is the one that refuses; its words are its own, and differ between its releases.
PLACE = r"line \d+, column \d+: \w"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(20)
)


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("database: {url: x", PLACE),
        ("database:\n  url: a: b\n", PLACE),
        ("database:\n\turl: x\n", PLACE),
        ("- database", "the file: Expected mapping, got list"),
        ("just words", "the file: Expected mapping, got str"),
        ("a: 1\n---\nb: 2\n", PLACE),
        (b"database: {url: caf\xe9}", "'utf-8' codec can't decode byte 0xe9 in position 19"),
        ("database: {}".encode("utf-16"), "'utf-8' codec can't decode"),
        (bytes(range(128)), "not text: contains a control character"),
        ("database: !!python/object/apply:os.getcwd []", "line 1, column 11: anchors, aliases and tags"),
        ("database: !mine {}", "line 1, column 11: anchors, aliases and tags"),
        ("database: &a {}\npublish: *a\n", "line 1, column 11: anchors, aliases and tags"),
        ("publish: *a\n", "line 1, column 10: anchors, aliases and tags"),
        ("publish: &a [*a]\n", "line 1, column 10: anchors, aliases and tags"),
        ("publish: {<<: {a: 1}}\n", "line 1, column 11: a key must be a plain word"),
        ("? [a, b]\n: 1\n", "line 1, column 3: a key must be a plain word"),
        ('"\\e[31mred": 1\n', "line 1, column 1: a key must be a plain word"),
        ("[" * 500_000, PLACE),
        ("- " * 400_000, PLACE),
        ("- x\n" * 20_000, r"line \d+, column \d+: too many entries, or nested too deep"),
        ("a" * 1_000_001, "larger than 1000000 bytes"),
        (BOMB, r"line 1, column 4: anchors, aliases and tags"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_unreadable_yaml_is_refused_quickly_with_its_position(
    tmp_path: Path, text: str | bytes, mistake: str
) -> None:
    started = time.monotonic()
    assert re.match(mistake.replace("(", r"\("), mistakes_of(tmp_path, text)[0])
    assert time.monotonic() - started < 20  # some take minutes, or never end, if they are read


# The environment


def test_a_value_is_filled_from_the_environment(tmp_path: Path) -> None:
    text = """
        database: {schema: "${A}_${B}"}
        metadata_store: {page_size: "${N}"}
        completeness: {quiet_days: "${D}"}
        qualification: {on_disk: "${T}", band_coverage: "${C}", instruments: ["${N}"]}
        preprocess: {command: ["$${A} $A $$ ${E}x", "${NESTED}"]}
    """
    env = {"A": "a", "B": "b", "N": "25", "D": "0.5", "T": "false", "C": "full", "E": "", "NESTED": "${A}"}
    read = of(tmp_path, text, **env)
    assert read.database.schema == "a_b"
    assert read.metadata_store.page_size == 25
    assert read.completeness.quiet_days == 0.5
    assert (read.qualification.on_disk, read.qualification.band_coverage) == (False, "full")
    assert read.qualification.instruments == ["25"]
    assert read.preprocess.command == ["${A} $A $$ x", "${A}"]


def test_variables_that_are_not_set_are_named_with_the_path(tmp_path: Path) -> None:
    text = 'preprocess:\n  work_dir: ${L2INV_ONE}/${L2INV_TWO}\n  command: ["${THREE:-x}"]\n'
    assert mistakes_of(tmp_path, text) == [
        "preprocess.work_dir: not set in the environment: L2INV_ONE, L2INV_TWO",
        "preprocess.command[0]: ${ must begin a ${NAME} (write $${ for a literal one)",
    ]


@pytest.mark.parametrize(
    "key",
    [
        "database.url",
        "database.schema",
        "completeness.quiet_days",
        "qualification.band_coverage",
        "qualification.bands",
        "qualification.stokes",
        "metadata_store.url",
        "metadata_store.retries",
        "publish",
    ],
)
@pytest.mark.parametrize(
    "secret", ["http://s3cr3t@a@b", "~s3cr3t", "s3cr3t\0", "s3cr3t\udcff", "S3CR3T://s3cr3t"]
)
def test_no_mistake_shows_what_the_environment_holds(tmp_path: Path, key: str, secret: str) -> None:
    section, _, name = key.partition(".")
    text = f"{section}: {{{name}: '${{S}}'}}" if name else f"{section}: '${{S}}'"
    assert "s3cr3t" not in str(mistakes_of(tmp_path, text, S=secret)).lower()


# Connection strings

GOOD_URLS = [
    "embedded",
    "service=l2inv",
    "postgresql://",
    "postgres:///db?host=/var/run",
    "postgresql://%2Fvar%2Frun/db",
    "postgresql://u:p%40ss@h1:5432,[::1]:5/db?sslmode=require&application_name=l2%20inv",
    "postgresql://h/db?user=me@azure",
    "host=h  dbname = 'a b' password='it\\'s' user=u\\ v",
    "host= dbname=x ",
]
BAD_URLS = [
    "",
    " ",
    "mydb",
    "mysql://h/db",
    "postgresql+psycopg://h/db",
    "postgresql://u:s3cr3t@x@h/db",
    "postgresql://u:s3/cr3t@h/db",
    "postgresql://u:s3cr3t%zz@h/db",
    "postgresql://u:s3cr3t@h/db?password=s3cr3t=",
    "postgresql://u:s3cr3t?a=b@h@x/db",
    "host=h password='s3cr3t",
    "postgresql://u:s3 cr3t@h/db",
    "postgresql://u:s3%00cr3t@h/db",
    "host=h s3cr3t",
    "a=b " * 2000 + "s3cr3t",
    "a= " * 2000 + "s3cr3t'",
    "a=" + " " * 2000 + "' s3cr3t",
]


@pytest.mark.parametrize("url", GOOD_URLS)
def test_anything_libpq_accepts_is_a_database_url(tmp_path: Path, url: str) -> None:
    from psycopg.conninfo import conninfo_to_dict

    if url not in ("embedded", "service=l2inv"):
        conninfo_to_dict(url)
    assert of(tmp_path, json.dumps({"database": {"url": url}})).database.url == url


@pytest.mark.parametrize("url", BAD_URLS, ids=lambda url: url[:40])
def test_a_url_that_libpq_would_misread_is_refused_and_not_shown(tmp_path: Path, url: str) -> None:
    (mistake,) = mistakes_of(tmp_path, json.dumps({"database": {"url": url}}))
    assert mistake.startswith("database.url: must be embedded")
    assert "s3" not in mistake


SECRETS = [
    ("postgresql://u:s3%40cret@h/db", "postgresql://u:***@h/db", "s3@cret"),
    ("postgresql://u@h/db?x=1&password=s3cret&y=2", "postgresql://u@h/db?x=1&password=***&y=2", "s3cret"),
    ("postgresql://u:one@h/db?sslpassword=two", "postgresql://u:***@h/db?sslpassword=***", "two"),
    ("postgresql://u:one@h/db?sslpassword=onetwo", "postgresql://u:***@h/db?sslpassword=***", "onetwo"),
    ("postgresql://u:p?pwd=x@h/db", "postgresql://u:***@h/db", "p?pwd=x"),
    ("host=h password='a%41b'", "host=h password=***", "a%41b"),
    ("host=h password=s3cret user=u", "host=h password=*** user=u", "s3cret"),
    ("password = 'it\\'s a' host=h", "password = *** host=h", "it's a"),
    ("application_name='a password=' password='real'", "application_name='a password=' password=***", "real"),
    ("host=h pasword=s3cret", "host=h pasword=***", "s3cret"),
    ("postgresql://u:p@h/db", "postgresql://u:***@h/db", "p"),
    ("postgresql://u@h:5432/db", "postgresql://u@h:5432/db", None),
    ("service=l2inv", "service=l2inv", None),
    ("embedded", "embedded", None),
]


@pytest.mark.parametrize(("url", "shown", "secret"), SECRETS)
def test_the_database_password_is_never_shown(
    tmp_path: Path, url: str, shown: str, secret: str | None
) -> None:
    read = of(tmp_path, json.dumps({"database": {"url": url}}))
    assert to_plain(read)["database"]["url"] == shown
    json.dumps(to_plain(read))
    if secret is None:
        assert redact("nothing 'to' hide %", read, {}) == "nothing 'to' hide %"
    else:
        assert redact(f"<{secret}>", read, {}) == "<***>"
        assert secret not in redact(f"{url} {secret}", read, {}).replace("password", "").replace(
            "pasword", ""
        )


def test_the_token_and_the_stores_password_are_never_shown(tmp_path: Path) -> None:
    text = "metadata_store: {url: 'https://u:pa%2Fss@h/graphql?token=t0k', token_env: STORE_TOKEN}"
    read = of(tmp_path, text)
    assert to_plain(read)["metadata_store"]["url"] == "https://u:***@h/graphql?token=***"
    told = redact("Bearer ab.c+d, pa%2Fss, pa/ss, t0k, abXc+d", read, {"STORE_TOKEN": "ab.c+d\n"})
    assert told == "Bearer ***, ***, ***, ***, abXc+d"


def test_a_database_url_given_as_the_stores_is_refused_without_its_password(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("metadata_store: {url: host=h password=s3cr3t}")
    refused = CliRunner().invoke(main, ["--config", str(file), "config", "check"])
    assert refused.exit_code == 10
    assert f"there is no saved response {tmp_path}/host=h password=***" in refused.stderr


# Anything else

NAMES = re.findall(r"(\w+):", EXAMPLE.read_text())
TEXTS = st.text(max_size=12) | st.sampled_from(
    ["${", "$${", "${A}", "${B}", "service=x", "IQUV", "full", "~", "1e3"]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.dates() | st.binary(max_size=3)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES) | TEXTS | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)
SECTIONS = {
    name: st.dictionaries(
        st.sampled_from(getattr(Settings(), name).__struct_fields__ or ("x",)), VALUES, max_size=3
    )
    for name in Settings.__struct_fields__
}


def outcome(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            loaded = load(written(Path(folder), content), {"A": "5", "B": "\udcff"})
        except ConfigError as problem:
            assert problem.mistakes
            assert problem.message.isprintable()
        else:
            json.dumps(to_plain(loaded.settings), allow_nan=False)


@settings(deadline=None, max_examples=300)
@given(st.fixed_dictionaries({}, optional=SECTIONS) | VALUES)
def test_any_mapping_gives_settings_or_a_config_error(tree: Any) -> None:
    outcome(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"))


@settings(deadline=None, max_examples=200)
@given(
    st.binary(max_size=60)
    | st.text(alphabet="ab:-[]{}&*!|>'\"%@`#, \n\t?<=~${}0.", max_size=60).map(str.encode)
)
def test_any_bytes_give_settings_or_a_config_error(content: bytes) -> None:
    outcome(content)


def test_yaml_is_not_imported_without_a_file(tmp_path: Path) -> None:
    code = "import sys; from l2inv.config.settings import load; load(); print({'yaml', 'psycopg'} & {*sys.modules})"
    env = os.environ | {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "L2INV_CONFIG": ""}
    argv = [sys.executable, "-c", code]
    run = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
