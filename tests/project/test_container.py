"""The container image and the compose file: a few rules and, in the slow test, an image built and run.

The slow test needs root, podman and a base image: what L2INV_TEST_BASE names, else one that debootstrap makes.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg.conninfo import make_conninfo

from l2inv.database import embedded
from l2inv.sample.server import Store
from tests.helpers.commands import NOW, all_commands
from tests.helpers.waiting import until

TOP = Path(__file__).parents[2]
USER = 10001
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


def instructions() -> list[tuple[str, str]]:
    """The Containerfile's instructions with what follows each, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (TOP / "Containerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line]


def of_kind(kind: str) -> list[str]:
    return [rest for name, rest in instructions() if name == kind]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found = yaml.safe_load((TOP / "compose.yaml").read_text())
    assert isinstance(found, dict)
    return found


def test_the_image_is_made_of_what_is_there_and_fetches_nothing_by_url() -> None:
    assert not of_kind("ADD")
    for sources in (rest.split()[:-1] for rest in of_kind("COPY") if not rest.startswith("--from=build")):
        assert all((TOP / source).exists() for source in sources), sources
    assert of_kind("FROM") == ["${BASE} AS build", "${BASE}"]
    assert not any(re.search("pass|token|secret|key", rest, re.IGNORECASE) for rest in of_kind("ARG"))


def test_the_image_has_the_extras_that_the_build_argument_names(services: dict[str, Any]) -> None:
    known = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (default,) = (rest.removeprefix("EXTRAS=") for rest in of_kind("ARG") if rest.startswith("EXTRAS="))
    assert {*default.split(","), "products"} <= known.keys()
    assert any('".[${EXTRAS}]"' in rest for rest in of_kind("RUN"))
    assert services["services"]["l2inv"]["build"]["args"] == {"EXTRAS": "${L2INV_EXTRAS:-" + default + "}"}


def test_the_image_runs_as_a_numbered_user_who_is_not_root_and_starts_l2inv_itself() -> None:
    assert of_kind("USER") == [f"{USER}:{USER}"]
    assert [json.loads(rest) for rest in of_kind("ENTRYPOINT")] == [["l2inv"]]
    assert of_kind("STOPSIGNAL") == ["SIGTERM"]
    (health,) = of_kind("HEALTHCHECK")
    program, *command = json.loads(health.partition("CMD ")[2])
    assert program == "l2inv"
    assert tuple(command) in all_commands()


def test_each_service_of_l2inv_is_closed_in_and_runs_a_command_that_exists(services: dict[str, Any]) -> None:
    own = {name: s for name, s in services["services"].items() if s["image"].startswith("l2inv:")}
    assert set(own) == {"migrate", "l2inv"}
    for service in own.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["tmpfs"] == ["/tmp"]
        assert tuple(service.get("command", ["status"])) in all_commands()
    assert own["l2inv"]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert own["migrate"]["depends_on"] == {"database": {"condition": "service_healthy"}}


def test_the_compose_file_publishes_no_port_pins_the_database_and_keeps_passwords_in_files(
    services: dict[str, Any],
) -> None:
    for name, service in services["services"].items():
        assert "ports" not in service, name
        assert not [key for key in service["environment"] if re.search("PASSWORD$|TOKEN", key)], name
        for secret in service["secrets"]:
            assert (secret if isinstance(secret, str) else secret["source"]) in services["secrets"]
    assert all(set(secret) == {"file"} for secret in services["secrets"].values())
    assert re.fullmatch(r".*/postgres:\d+", services["services"]["database"]["image"])


def test_compose_itself_accepts_the_file() -> None:
    command = ["docker", "compose", "--file", str(TOP / "compose.yaml"), "--profile", "command"]
    if (
        not shutil.which("docker")
        or subprocess.run([*command[:2], "version"], check=False, capture_output=True).returncode
    ):
        pytest.skip("docker compose is not here")
    assert (
        subprocess.run([*command, "config", "--quiet"], check=False, capture_output=True, text=True).stderr
        == ""
    )


class Machine:
    """A place of its own for podman's images, in which the image is built and run as the compose file runs it."""

    # In the namespace, a second hierarchy of control groups is out of crun's way, and mounts end with the command.
    ALONE = 'if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec "$@"'
    LIMITS = (
        "--cgroups=disabled",
        "--ulimit=nofile=1024:1024",
        "--ulimit=nproc=1000:1000",
        "--no-healthcheck",
    )

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = {}
        for name in ("etc", "srv"):
            (folder / name).mkdir()
        os.chown(folder / "srv", USER, USER)

    def podman(self, *argv: str | Path) -> list[str]:
        places = (f"--root={self.folder}/images", f"--runroot={self.folder}/run")
        plain = ("--cgroup-manager=cgroupfs", "--events-backend=file")
        command = ["podman", *places, *plain, *map(str, argv)]
        return ["unshare", "--mount", "sh", "-c", self.ALONE, "sh", *command]

    def do(self, *argv: str | Path, **how: Any) -> str:
        done = subprocess.run(
            self.podman(*argv), check=False, capture_output=True, text=True, timeout=600, **how
        )
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def base(self) -> str:
        """The base image: as the environment names it, else a Debian whose Python this test can fetch."""
        if named := os.environ.get("L2INV_TEST_BASE"):
            return named
        tree = self.folder / "base"
        packages = "--include=python3,python3-venv"
        command = ["debootstrap", "--variant=minbase", packages, "trixie", str(tree)]
        subprocess.run(command, check=True, capture_output=True, timeout=900)
        with subprocess.Popen(["tar", "-C", tree, "-c", "."], stdout=subprocess.PIPE) as packed:
            self.do("import", "-", "localhost/base", stdin=packed.stdout)
        shutil.rmtree(tree)
        return "localhost/base"

    def build(self) -> None:
        # A machine that vouches for its way out with an authority of its own: lent to the build, not kept.
        lent = [f"--volume={AUTHORITIES}:{AUTHORITIES}:ro"] if AUTHORITIES.exists() else []
        options = (
            "--isolation=chroot",
            "--network=host",
            "--format=docker",
            f"--build-arg=BASE={self.base()}",
        )
        self.do("build", *options, *lent, "--tag=l2inv", f"--file={TOP}/Containerfile", TOP)

    def run(self, *argv: str, user: str = "l2inv", entrypoint: str = "l2inv", name: str = "") -> list[str]:
        """The command line of a container: everything is taken from it that the compose file takes."""
        (self.folder / "etc/config.yaml").write_text(yaml.safe_dump(self.config))
        closed = (
            "--read-only",
            "--read-only-tmpfs=false",
            "--tmpfs=/tmp",
            "--cap-drop=all",
            "--network=host",
        )
        lent = (
            f"--volume={self.folder}/etc/config.yaml:/etc/l2inv/config.yaml:ro",
            f"--volume={self.folder}/etc/{user}:/run/secrets/pgpass:ro",
            f"--volume={self.folder}/srv:/srv/l2inv",
            "--env=PGPASSFILE=/run/secrets/pgpass",
            f"--env=PGUSER={user}",
        )
        named = (f"--name={name}",) if name else ()
        options = (*self.LIMITS, *closed, "--security-opt=no-new-privileges", *lent, *named)
        return self.podman("run", "--rm", *options, f"--entrypoint={entrypoint}", "l2inv", *argv)

    def __call__(self, *argv: str, expect: int = 0, **how: str) -> str:
        """Run a command of l2inv in a container and return what it said on stdout, or on stderr where it failed."""
        done = subprocess.run(
            self.run(*argv, **how), check=False, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == expect, f"{argv}: {done}"
        return done.stderr if expect else done.stdout


@pytest.fixture
def machine() -> Iterator[Machine]:
    missing = [name for name in ("podman", "unshare") if not shutil.which(name)]
    if not os.environ.get("L2INV_TEST_BASE") and not shutil.which("debootstrap"):
        missing.append("debootstrap")
    if os.geteuid() != 0 or missing:
        pytest.skip(f"needs root and {' and '.join(missing) or 'nothing else'}")
    folder = Path(tempfile.mkdtemp(prefix="l2inv-container-"))
    folder.chmod(0o755)
    yield Machine(folder)
    shutil.rmtree(folder)


@contextmanager
def postgres(folder: Path, password: str) -> Iterator[str]:
    """A server on loopback that takes passwords alone; return its superuser's URL of a database level2."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    folder.mkdir()
    user = embedded._server_user(folder)
    os.chown(folder, user["user"], user["group"])
    found, version = embedded._binaries()
    programs = embedded._runnable(found, version, user)
    (folder / "password").write_text(password)
    (folder / "password").chmod(0o644)
    data = folder / "data"
    options = ("--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C")
    command: list[str | Path] = [programs / "initdb", f"--pwfile={folder}/password", *options, data]
    subprocess.run(command, check=True, capture_output=True, cwd="/", **user)
    listening = ("-c", "listen_addresses=127.0.0.1", "-c", f"port={port}", "-c", "unix_socket_directories=")
    with subprocess.Popen(
        [programs / "postgres", "-D", data, *listening], cwd="/", stderr=subprocess.DEVNULL, **user
    ) as server:
        url = f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"
        try:
            until(lambda: is_up(url), seconds=60)
            yield make_conninfo(url, dbname="level2")
        finally:
            server.terminate()


def is_up(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.mark.slow
def test_the_image_runs_every_stage_as_a_user_with_no_rights_on_a_file_system_that_it_cannot_write_to(
    machine: Machine, store: Store, store_url: str
) -> None:
    machine.build()
    (image,) = json.loads(machine.do("image", "inspect", "l2inv"))
    health = image["Healthcheck"]["Test"][1:]
    there = machine.do(
        "run", *machine.LIMITS, "--rm", "--user=0", "--entrypoint=find", "l2inv", "/", "-xdev", "-type", "f"
    )
    found = [
        path
        for path in there.splitlines()
        if re.search(r"/(pip3?|gcc|cc|initdb|postgres)(-[\d.]+)?$|-packages/pip/", path)
    ]
    assert found == []

    with postgres(machine.folder / "postgres", "super") as superuser:
        passwords = {"l2inv": "w:r%te", "l2inv_migrate": "own/er"}
        for user, password in passwords.items():
            passfile = machine.folder / "etc" / user
            passfile.write_text(f"127.0.0.1:*:level2:{user}:{password.replace(':', chr(92) + ':')}\n")
            passfile.chmod(0o600)
            os.chown(passfile, USER, USER)
        machine.config = {
            "database": {"url": make_conninfo(superuser, user=None, password=None)},
            "metadata_store": {"url": store_url},
        }

        assert "database: " in machine(*health[1:], entrypoint=health[0], expect=1)
        with psycopg.connect(superuser, dbname="postgres", autocommit=True) as tony:
            tony.execute("create database level2")
            for user, password in passwords.items():
                tony.execute(f"create role {user} login password '{password}'".encode())
            tony.execute("grant create on database level2 to l2inv_migrate")
        assert "is not in the database yet" in machine(*health[1:], entrypoint=health[0], expect=1)
        assert machine("migrate", user="l2inv_migrate").startswith("migrate: applied 0001.rules")
        with psycopg.connect(superuser, autocommit=True) as tony:
            for statement in machine("roles", user="l2inv_migrate").splitlines():
                tony.execute(statement.encode())
            tony.execute("grant l2inv_level2_owner to l2inv_migrate; grant l2inv_level2_writer to l2inv")
        machine("roles", "--apply", user="l2inv_migrate")
        assert machine("migrate", user="l2inv_migrate") == "migrate: nothing to do\n"

        assert machine("scan").startswith("scan: ")
        machine("qualify", "--as-of", NOW.isoformat())
        states = json.loads(machine("status", "--json"))["states"]
        assert states["invertible"] > 1
        assert "/srv/l2inv/x" in machine("-c", "touch /srv/l2inv/x; ls /srv/l2inv/x", entrypoint="sh")
        assert "Read-only" in machine("-c", "touch /opt/l2inv/x", entrypoint="sh", expect=1)
        assert machine("-c", "id -u; grep CapEff /proc/self/status", entrypoint="sh").split() == [
            str(USER),
            "CapEff:",
            "0" * 16,
        ]

        # As process 1, to which no signal comes that it does not handle.
        machine.config["preprocess"] = {"command": ["sh", "-c", "touch /srv/l2inv/begun; sleep 1000"]}
        with subprocess.Popen(
            machine.run("preprocess", name="stopped"), stderr=subprocess.PIPE, text=True
        ) as running:
            until((machine.folder / "srv/begun").exists, seconds=60)
            machine.do("kill", "--signal=TERM", "stopped")
            try:
                _, said = running.communicate(timeout=8)  # engines kill after ten seconds
            except subprocess.TimeoutExpired:
                machine.do("kill", "--signal=KILL", "stopped")
                raise
        assert (running.returncode, said) == (
            1,
            "l2inv: stopped; run it again: nothing was left half-written\n",
        )
        assert json.loads(machine("status", "--json"))["states"] == states

        del machine.config["preprocess"]
        machine("preprocess")
        done = json.loads(machine("status", "--json"))["states"]
        assert (done["invertible"], done["preprocessed"]) == (0, states["invertible"])
        manifests = list((machine.folder / "srv/work").glob("*/manifest.json"))
        assert len(manifests) == done["preprocessed"]
        assert {path.stat().st_uid for path in manifests} == {USER}
        machine("verify")
        machine(*health[1:], entrypoint=health[0])
