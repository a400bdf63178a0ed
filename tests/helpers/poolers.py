"""Poolers in front of a test's database: PgBouncer if it is installed, and a small imitation.

https://www.pgbouncer.org/config.html: in session mode a server connection is a client's until it leaves, in transaction
mode until each transaction ends; the one released last is given out first. Startup parameters that cannot be kept track
of are refused. Clients are told a process id of the pooler's own.
"""

import os
import pwd
import secrets
import shutil
import socket
import socketserver
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.helpers.waiting import until

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
TRACKED = {"client_encoding", "datestyle", "timezone", "standard_conforming_strings", "application_name"}
# What a server answers after a message of this kind; in a simple query the end of a copy, too.
ANSWERED = {b"Q": b"QScf", b"P": b"QS"}
SSL_OR_GSS, CANCEL = (80877103, 80877104), 80877102


def _message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


class Link:
    """A connection, to a server or a client, from which whole messages are read."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.file = sock.makefile("rb")
        self.greeting: list[bytes] = []  # what a server said of itself

    def exactly(self, size: int) -> bytes:
        read = self.file.read(size)
        if len(read) < size:
            raise ConnectionError
        return read

    def message(self) -> tuple[bytes, bytes]:
        kind = self.exactly(1)
        return kind, self.exactly(struct.unpack("!i", self.exactly(4))[0] - 4)

    def until_ready(self) -> list[bytes]:
        """Read an answer, as messages, until the other is to speak: Z, or G where it is to send what is copied."""
        answer: list[bytes] = []
        while not answer or answer[-1][:1] not in b"ZG":
            answer.append(_message(*self.message()))
        return answer

    def close(self) -> None:
        self.file.close()
        self.sock.close()


def connected(url: str, parameters: dict[str, str]) -> Link:
    """A connection to the server."""
    where = conninfo_to_dict(url)
    host, port = str(where["host"]), where.get("port") or "5432"
    if host.startswith("/"):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"{host}/.s.PGSQL.{port}")
    else:
        sock = socket.create_connection((host, int(port)))
    start = {"user": where["user"], "database": where["dbname"]} | parameters
    body = b"".join(f"{name}\0{value}\0".encode() for name, value in start.items()) + b"\0"
    sock.sendall(struct.pack("!ii", len(body) + 8, 196608) + body)
    link = Link(sock)
    link.greeting = link.until_ready()
    assert link.greeting[0] == _message(b"R", bytes(4)), "the server must trust this host"
    return link


class Client(socketserver.BaseRequestHandler):
    """One client, from its start to its end."""

    server: "Pooler"

    def handle(self) -> None:
        client = Link(self.request)
        with suppress(ConnectionError):
            self.parameters = self._start(client)
            if self.server.mode == "alternating":
                self._alternate(client)
            elif refused := [name for name in self.parameters if name.lower() not in TRACKED]:
                fields = f"SFATAL\0C08P01\0Munsupported startup parameter: {refused[0]}\0\0"
                client.sock.sendall(_message(b"E", fields.encode()))
            else:
                self._welcome(client)
                self._serve(client)

    def _start(self, client: Link) -> dict[str, str]:
        """What the client asks for, but for user and database."""
        size, code = struct.unpack("!ii", client.exactly(8))
        while code in SSL_OR_GSS:
            client.sock.sendall(b"N")
            size, code = struct.unpack("!ii", client.exactly(8))
        words = client.exactly(size - 8).decode().split("\0")
        if code == CANCEL:
            raise ConnectionError
        ignored = {"user", "database"} | ({"options"} if self.server.ignores else set())
        pairs = zip(words[:-2:2], words[1::2], strict=False)
        return {name: value for name, value in pairs if name not in ignored}

    def _welcome(self, client: Link) -> None:
        if self.server.greeting is None:
            link = self.server.take()
            self.server.greeting = [message for message in link.greeting if message[:1] == b"S"]
            self.server.give_back(link)
        own = [_message(b"S", f"{name}\0{value}\0".encode()) for name, value in self.parameters.items()]
        key = _message(b"K", secrets.token_bytes(8))
        said = [_message(b"R", bytes(4)), *self.server.greeting, *own, key, _message(b"Z", b"I")]
        client.sock.sendall(b"".join(said))

    def _taken(self) -> Link:
        """A connection to the server with what this client's start said of it."""
        server = self.server.take()
        for name, value in self.parameters.items():
            server.sock.sendall(_message(b"Q", f"set {name} to '{value}'\0".encode()))
            server.until_ready()
        return server

    def _serve(self, client: Link) -> None:
        server, asks = None, b"QS"
        try:
            while True:
                kind, body = client.message()
                if kind == b"X":
                    return
                server = server or self._taken()
                server.sock.sendall(_message(kind, body))
                asks = ANSWERED.get(kind, asks)
                if kind not in asks:
                    continue
                answer = server.until_ready()
                client.sock.sendall(b"".join(answer))
                if self.server.mode == "transaction" and answer[-1] == _message(b"Z", b"I"):
                    self.server.give_back(server)
                    server = None
        finally:
            if server:
                server.sock.sendall(_message(b"Q", b"rollback\0") + _message(b"Q", b"discard all\0"))
                server.until_ready()
                server.until_ready()
                self.server.give_back(server)

    def _alternate(self, client: Link) -> None:
        """Send every transaction to the other of two sessions, both begun as the client asked, and hides it well."""
        links, asks = [connected(self.server.url, self.parameters) for _ in range(2)], b"QS"
        try:
            client.sock.sendall(b"".join(links[0].greeting))
            while True:
                kind, body = client.message()
                if kind == b"X":
                    return
                links[0].sock.sendall(_message(kind, body))
                asks = ANSWERED.get(kind, asks)
                if kind in asks:
                    answer = links[0].until_ready()
                    client.sock.sendall(b"".join(answer))
                    if answer[-1] == _message(b"Z", b"I"):
                        links.reverse()
        finally:
            for link in links:
                link.close()


class Pooler(socketserver.ThreadingTCPServer):
    """The small pooler; no client of it may send a query before the last one was answered."""

    def __init__(self, url: str, mode: str, size: int, ignores: bool) -> None:
        super().__init__(("127.0.0.1", 0), Client)
        self.url, self.mode, self.ignores = url, mode, ignores
        self.idle: list[Link] = []
        self.free = threading.Semaphore(size)
        self.greeting: list[bytes] | None = None

    def take(self) -> Link:
        self.free.acquire()
        return self.idle.pop() if self.idle else connected(self.url, {})

    def give_back(self, link: Link) -> None:
        self.idle.append(link)
        self.free.release()

    def server_close(self) -> None:
        super().server_close()  # waits for the clients' ends
        for link in self.idle:
            link.close()


@contextmanager
def small(url: str, mode: str, size: int, ignores: bool = False) -> Iterator[str]:
    """Serve the URL's database through the small pooler, and return the URL of that. It refuses options, or ignores them."""
    with Pooler(url, mode, size, ignores) as pooler:
        thread = threading.Thread(target=pooler.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield make_conninfo(url, host="127.0.0.1", port=pooler.server_address[1])
        pooler.shutdown()
        thread.join()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@contextmanager
def pgbouncer(url: str, mode: str, size: int, ignores: bool = False) -> Iterator[str]:
    """Serve the URL's database through PgBouncer on a socket in a folder of its own, as small() does."""
    where: dict[str, Any] = {name: value for name, value in conninfo_to_dict(url).items() if value}
    on_socket = where["host"].startswith("/")
    with tempfile.TemporaryDirectory(prefix="l2inv-pgbouncer-") as name:
        folder = Path(name)
        options = [
            "[databases]",
            # Parent folders may be closed to its user.
            f"{where['dbname']} = {make_conninfo(**where | ({'host': '/proc/self/cwd'} if on_socket else {}))}",
            "[pgbouncer]",
            f"unix_socket_dir = {folder}",
            "listen_port = 6432",
            "auth_type = any",
            f"pool_mode = {mode}",
            f"default_pool_size = {size}",
            f"ignore_startup_parameters = {'options' if ignores else ''}",
        ]
        (folder / "pgbouncer.ini").write_text("\n".join(options))
        own: dict[str, Any] = {"cwd": where["host"] if on_socket else folder}
        if os.geteuid() == 0:  # it refuses to run as root; the server's owner may use the server's socket
            user = Path(own["cwd"]).stat().st_uid if on_socket else pwd.getpwnam("nobody").pw_uid
            os.chown(folder, user, -1)
            own |= {"user": user, "extra_groups": []}
        process = subprocess.Popen([str(PGBOUNCER), "-q", str(folder / "pgbouncer.ini")], **own)
        try:
            until(lambda: _listens(folder / ".s.PGSQL.6432"), seconds=10)
            yield make_conninfo(url, host=str(folder), port=6432)
        finally:
            process.terminate()
            process.wait()
