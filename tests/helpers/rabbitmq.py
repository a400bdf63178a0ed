"""A real RabbitMQ for the tests, on loopback, with its own epmd: started by the tests and stopped at the end.

Nothing of the machine's own RabbitMQ is read or written, and no systemd is needed. Debian: rabbitmq-server.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pika
import trustme

EXCHANGE = "master.direct.x"
FRAME, OBJECT = "catalog.frame.m", "catalog.object.m"
QUEUES = {FRAME: "catalog.frame.q", OBJECT: "catalog.object.q"}
USER, PASSWORD = "l2inv", "s3 cr/3t@?%"

# The scripts of Debian's in PATH accept two users alone, and write where the machine's own server does.
_PROGRAMS = "/usr/lib/rabbitmq/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_CONFIGURATION = """
listeners.tcp.1 = 127.0.0.1:{port}
listeners.ssl.1 = 127.0.0.1:{tls_port}
listeners.ssl.2 = 127.0.0.2:{tls_port}
ssl_options.cacertfile = {folder}/ca.pem
ssl_options.certfile = {folder}/server.pem
ssl_options.keyfile = {folder}/server.key
ssl_options.verify = verify_none
ssl_options.fail_if_no_peer_cert = false
default_user = {user}
default_pass = {password}
disk_free_limit.absolute = 1MB
vm_memory_high_watermark.absolute = 4GB
log.file = false
log.console = true
log.console.level = warning
"""


def missing() -> str:
    """Why no RabbitMQ can be started here; an empty text when one can."""
    absent = [name for name in ("rabbitmq-server", "rabbitmqctl", "epmd") if _which(name) is None]
    return f"not installed: {', '.join(absent)} (Debian: rabbitmq-server)" if absent else ""


class Broker:
    """A RabbitMQ of one node; `ca` is the private authority that signed its certificate."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self.folder = folder
        self.port, self.tls_port, self._node_port, self._epmd_port = ports
        self.ca = trustme.CA()
        self._server: subprocess.Popen[bytes] | None = None
        # As root, the server's own user runs it; as anybody else, they do.
        user = pwd.getpwnam("rabbitmq") if os.geteuid() == 0 else None
        self._as: dict[str, Any] = {"cwd": folder, "stdin": subprocess.DEVNULL}
        self._as |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
        self._as["env"] = {
            "PATH": _PROGRAMS,
            "LANG": "C.UTF-8",
            "HOME": str(folder),  # of the cookie by which rabbitmqctl is let in
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": f"l2inv-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._node_port),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        certificate = self.ca.issue_cert("localhost", "127.0.0.1")
        self.ca.cert_pem.write_to_path(folder / "ca.pem")
        certificate.private_key_pem.write_to_path(folder / "server.key")
        certificate.cert_chain_pems[0].write_to_path(folder / "server.pem")
        values = {"folder": folder, "port": self.port, "tls_port": self.tls_port}
        text = _CONFIGURATION.format(user=USER, password=PASSWORD, **values)
        (folder / "rabbitmq.conf").write_text(text)
        for path in (folder, *folder.iterdir()) if user else ():
            os.chown(path, user.pw_uid, user.pw_gid)  # type: ignore[union-attr]

    def url(self, scheme: str = "amqp", password: str = PASSWORD, host: str = "127.0.0.1") -> str:
        """The broker's URL as the settings have it."""
        port = self.tls_port if scheme == "amqps" else self.port
        return f"{scheme}://{USER}:{quote(password, safe='')}@{host}:{port}/"

    def start(self) -> None:
        """Start the server, on the data that it left, and waits until it lets clients in."""
        assert self._server is None
        with (self.folder / "words").open("ab") as words:
            argv = [_which("rabbitmq-server") or ""]
            self._server = subprocess.Popen(
                argv, stdout=words, stderr=words, start_new_session=True, **self._as
            )
        _until(self.port, self._server)
        with self.connected():
            pass

    @contextmanager
    def epmd(self) -> Iterator[None]:
        """Erlang's register of names: without one, the server would start one and leave it behind."""
        argv = [_which("epmd") or "", "-address", "127.0.0.1", "-port", str(self._epmd_port)]
        with subprocess.Popen(argv, **self._as) as epmd:
            try:
                _until(self._epmd_port, epmd)
                yield
            finally:
                epmd.kill()

    def show_words(self, failed: type[BaseException] | None, *_: object) -> None:
        """Print what the server said last, when something failed."""
        words = self.folder / "words"
        if failed and words.exists():
            print(*words.read_text(errors="replace").splitlines()[-15:], sep="\n  ")

    def kill(self) -> None:
        """End the server as a power cut would."""
        if self._server is not None:
            with suppress(FileNotFoundError):  # the shell that started it sees it end, and ends too
                os.kill(int((self.folder / "pid").read_text()), signal.SIGKILL)
            self._server.wait(30)
            self._server = None

    def write_down_queues(self) -> None:
        """Bring new queues and bindings to disk, which a killed server else loses: the last of Mnesia's log, and the names
        of quorum queues, which RabbitMQ 3.10 writes minutes later."""
        self.tell("eval", "ok = mnesia:sync_log(), [dets:sync(Table) || Table <- dets:all()].")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let the server listen and say nothing."""
        assert self._server is not None
        os.killpg(self._server.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._server.pid, signal.SIGCONT)

    @contextmanager
    def without_memory(self) -> Iterator[None]:
        """Let the server raise its memory alarm."""
        self.tell("set_vm_memory_high_watermark", "absolute", "1")
        try:
            yield
        finally:
            self.tell("set_vm_memory_high_watermark", "absolute", "4GB")

    def tell(self, *argv: str) -> str:
        """Run rabbitmqctl, which must succeed, and return what it printed."""
        command = [_which("rabbitmqctl") or "", "--quiet", *argv]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, **self._as)
        return str(done.stdout)

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """A channel of the operator's, with pika's own client."""
        credentials = pika.PlainCredentials(USER, PASSWORD)
        where = pika.ConnectionParameters("127.0.0.1", self.port, credentials=credentials, socket_timeout=10)
        with closing(pika.BlockingConnection(where)) as connection:
            yield connection.channel()

    def declare(self, channel: Any, *routing_keys: str, **arguments: Any) -> None:
        """Make the exchange anew, with an empty durable queue for each of the routing keys: the operator's work."""
        channel.exchange_delete(EXCHANGE)
        channel.exchange_declare(EXCHANGE, "direct", durable=True)
        for key, queue in QUEUES.items():
            channel.queue_delete(queue)
            if key in (routing_keys or QUEUES):
                channel.queue_declare(queue, durable=True, arguments=arguments)
                channel.queue_bind(queue, EXCHANGE, key)


def taken(channel: Any, routing_key: str) -> list[tuple[Any, bytes]]:
    """Take all that waits in the queue of a routing key: properties and body of each, in order."""
    found: list[tuple[Any, bytes]] = []
    while True:
        method, properties, body = channel.basic_get(QUEUES[routing_key], auto_ack=True)
        if method is None:
            return found
        found.append((properties, body))


@contextmanager
def running() -> Iterator[Broker]:
    """Start a RabbitMQ and stops it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="l2inv-rabbitmq-", dir="/tmp"))
    with ExitStack() as at_the_end:
        at_the_end.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        broker = Broker(folder, _free_ports(4))
        at_the_end.push(broker.show_words)
        at_the_end.callback(broker.kill)
        with broker.epmd():
            broker.start()
            yield broker


def _which(program: str) -> str | None:
    return shutil.which(program, path=_PROGRAMS)


def _until(port: int, process: "subprocess.Popen[bytes]", seconds: float = 60) -> None:
    """Wait until the process listens."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        assert process.poll() is None, f"{process.args!r} ended"
        assert time.monotonic() < deadline, f"{process.args!r} does not listen"
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as open_ones:
        sockets = [open_ones.enter_context(closing(socket.socket())) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
