"""Tell the Data Center's catalogers of the files of an inversion: AMQP 0-9-1 messages, each confirmed by the broker.

Nothing is declared: the exchange and the queues are the operators'. A message that no queue gets, or that the broker
does not take, is an error that names the queue; whatever was confirmed until then counts.
"""

import json
import logging
import secrets
import ssl
import string
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from l2inv.config.settings import Catalog
from l2inv.errors import CatalogError, ConfigError, L2invError
from l2inv.services import certificates
from l2inv.services.graphql import short

FRAME, OBJECT = "catalog.frame.m", "catalog.object.m"
QUEUES = {FRAME: "catalog.frame.q", OBJECT: "catalog.object.q"}
PORTS = {"amqp": 5672, "amqps": 5671}

# What goes wrong is raised here; pika's log would say it once more on stderr.
logging.getLogger("pika").addHandler(logging.NullHandler())


class Message(Struct, frozen=True):
    """One file to be cataloged: where the message goes, the file's name below the bucket, and the JSON text."""

    routing_key: str
    object_name: str
    body: bytes


def new_conversation_id() -> str:
    """Return a random id for one publication: `l2pub.` and six of A-Z and 0-9."""
    return "l2pub." + "".join(secrets.choice(string.ascii_uppercase + string.digits) for _ in range(6))


def messages(
    bucket: str,
    frames: Sequence[str],
    asdf_object_key: str,
    inversion_id: str,
    conversation_id: str,
    group_name: str = "DATASET",
) -> list[Message]:
    """Return the messages of one publication in the order of sending: one for each FITS file, then the ASDF's.

    `frames` are the FITS files' names below the bucket, such as `pid_1_118/inv_7QK2ZD/INV_7QK2ZD_…_L2.fits`.
    Raise L2invError for a name that is no UTF-8.
    """
    group = {"objectType": "ASDF", "groupId": inversion_id, "groupName": group_name}
    files: list[tuple[str, str, dict[str, str]]] = [(FRAME, name, {}) for name in frames] + [
        (OBJECT, asdf_object_key, group)
    ]
    found = []
    for routing_key, name, more in files:
        said = {
            "bucket": bucket,
            "objectName": name,
            "incrementDatasetCatalogReceiptCount": False,  # the receivers' default is true
            "conversationId": conversation_id,
        }
        try:
            body = json.dumps(said | more, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise L2invError(f"{name!r} is no UTF-8, so that no message can name it", "rename it") from None
        found.append(Message(routing_key, name, body))
    return found


def tell(catalog: Catalog, messages: Sequence[Message]) -> Iterator[list[str]]:
    """Send the messages and yield the names of the files that the broker confirmed, batch by batch, for the record.

    Those with one routing key go before the next, so that the ASDF is sent when every frame is confirmed. Whoever
    is killed sends what was not recorded once more. No wait is longer than `timeout_seconds`. Raise CatalogError,
    after the last that was confirmed, and ConfigError.
    """
    if not messages:
        return
    with _connected(catalog) as link:
        for _, alike in groupby(messages, lambda message: message.routing_key):
            rest = list(alike)
            for start in range(0, len(rest), catalog.batch_size):
                confirmed, problem = link.send(rest[start : start + catalog.batch_size])
                if confirmed:
                    yield confirmed
                if problem:
                    raise problem


def check(catalog: Catalog) -> None:
    """Raise ConfigError for what would keep every message from being sent: no URL, no pika, no readable authority."""
    if catalog.url is not None:
        _parameters(catalog)


def named(catalog: Catalog) -> str:
    """Name the broker without user and password."""
    where = _split(catalog)
    return f"catalog {where['scheme']}://{where['shown']}:{where['port']}/{where['path']}"


def _split(catalog: Catalog) -> dict[str, Any]:
    """The parts of the URL as the RabbitMQ URI specification has them, but for an empty path: it means `/`, too."""
    parts = urlsplit(catalog.url or "")
    host = parts.hostname or ""
    path = parts.path.removeprefix("/")
    return {
        "scheme": parts.scheme,
        "host": host,
        "shown": f"[{host}]" if ":" in host else host,
        "port": parts.port or PORTS[parts.scheme],
        "path": path,
        "user": unquote(parts.username or "guest"),
        "password": unquote(parts.password or "guest"),
    }


def _parameters(catalog: Catalog) -> Any:
    try:
        import pika
    except ImportError as problem:
        words = "the catalog is told by AMQP, which needs pika: pip install 'l2inv[amqp]'"
        raise ConfigError("publish.catalog.url", [words]) from problem
    if catalog.url is None:
        raise ConfigError("publish.catalog.url", ["an amqp(s) URL is needed; set is none"])
    where, tls = _split(catalog), None
    if where["scheme"] == "amqps":
        try:
            context = ssl.create_default_context(cafile=catalog.ca_bundle)
        except OSError as problem:
            words = f"{catalog.ca_bundle} is no readable PEM file: {short(problem)}"
            raise ConfigError("publish.catalog.ca_bundle", [words]) from problem
        tls = pika.SSLOptions(context, where["host"])
    return pika.ConnectionParameters(
        host=where["host"],
        port=where["port"],
        virtual_host=unquote(where["path"]) or "/",
        credentials=pika.PlainCredentials(where["user"], where["password"]),
        ssl_options=tls,
        socket_timeout=catalog.timeout_seconds,
        stack_timeout=catalog.timeout_seconds,  # for TCP, TLS and the login together
        heartbeat=0,  # nobody would answer while the caller records a batch
    )


@contextmanager
def _connected(catalog: Catalog) -> "Iterator[_Link]":
    link = _Link(catalog, _parameters(catalog))
    try:
        link.open()
        yield link
        link.take_leave()
    finally:
        link.hang_up()


class _Late(Exception):
    """Nothing came for as long as may be waited."""


class _Link:
    """A connection with one channel in confirm mode. Each answer of the broker is noted, and ends the wait for it.

    pika's blocking channel waits for a confirm without a limit, one message at a time; so this one waits itself.
    """

    def __init__(self, catalog: Catalog, parameters: Any) -> None:
        import pika

        self.catalog = catalog
        self.channel: Any = None
        self.is_ready = self.is_gone = False
        self.blocked = ""  # why the broker takes no messages for now
        self.ended: BaseException | None = None
        self.tag = 0
        self.sent: dict[int, Message] = {}  # those that were not answered, by delivery tag
        self.confirmed: list[Message] = []
        self.nacked: list[Message] = []
        self.returned: dict[bytes, str] = {}  # the broker's words by the message's body
        self.connection = pika.SelectConnection(parameters, self._on_open, self._on_gone, self._on_gone)
        self.connection.add_on_connection_blocked_callback(self._on_blocked)
        self.connection.add_on_connection_unblocked_callback(self._on_unblocked)

    def open(self) -> None:
        """Wait until messages can be sent. Raise CatalogError."""
        self._wait(lambda: self.connection.is_open, limited=False)  # it has a limit of pika's
        self._wait(lambda: self.is_ready)
        if self.ended:
            raise _problem(self.catalog, self.ended, self.blocked)

    def send(self, batch: Sequence[Message]) -> tuple[list[str], CatalogError | None]:
        """Send the messages; return the names of the files confirmed, and what became of the others."""
        import pika

        properties = pika.BasicProperties(
            content_type="application/json", content_encoding="utf-8", delivery_mode=2
        )
        self.confirmed = []
        for message in batch:
            self.tag += 1
            self.sent[self.tag] = message
            self.channel.basic_publish(
                self.catalog.exchange, message.routing_key, message.body, properties, mandatory=True
            )
        self._wait(lambda: not self.sent)
        good = [message.object_name for message in self.confirmed if message.body not in self.returned]
        if returned := [message for message in self.confirmed if message.body in self.returned]:
            return good, _returned(self.catalog, returned, self.returned[returned[0].body], len(batch))
        if self.nacked:
            return good, _nacked(self.catalog, self.nacked, len(batch))
        return good, _problem(self.catalog, self.ended, self.blocked) if self.ended else None

    def take_leave(self) -> None:
        """Close the connection as the broker likes it; if it does not answer, nothing is lost."""
        self.connection.close()
        self._wait(lambda: False)

    def hang_up(self) -> None:
        """Close the connection at once."""
        if self.connection.is_open or self.connection.is_closing:
            # In public, pika closes a connection only after the broker's answer.
            self.connection._terminate_stream(_Late())
            self._wait(lambda: False)
        self.connection.ioloop.close()

    def _wait(self, holds: Callable[[], bool], limited: bool = True) -> None:
        """Run until it holds, or never will. The limit is on what comes next, not on the whole."""
        loop = self.connection.ioloop
        while not (self.is_gone or holds()):
            timer = loop.call_later(self.catalog.timeout_seconds, self._on_late) if limited else None
            loop.start()
            if timer:
                loop.remove_timeout(timer)

    def _on_open(self, connection: Any) -> None:
        connection.channel(on_open_callback=self._on_channel)
        connection.ioloop.stop()

    def _on_channel(self, channel: Any) -> None:
        self.channel = channel
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_answer, self._on_ready)

    def _on_ready(self, _: Any) -> None:
        self.is_ready = True
        self.connection.ioloop.stop()

    def _on_return(self, _: Any, method: Any, __: Any, body: bytes) -> None:
        self.returned[body] = f"{method.reply_code} {method.reply_text}"  # its confirm comes next

    def _on_answer(self, frame: Any) -> None:
        method = frame.method
        tags = (
            [tag for tag in self.sent if tag <= method.delivery_tag]
            if method.multiple
            else [method.delivery_tag]
        )
        answered = [self.sent.pop(tag) for tag in tags]
        (self.nacked if method.NAME == "Basic.Nack" else self.confirmed).extend(answered)
        self.connection.ioloop.stop()

    def _on_blocked(self, _: Any, frame: Any) -> None:
        self.blocked = str(frame.method.reason) or "no reason given"

    def _on_unblocked(self, *_: Any) -> None:
        self.blocked = ""

    def _on_late(self) -> None:
        self.ended = self.ended or _Late()
        self.connection._terminate_stream(self.ended)

    def _on_channel_closed(self, _: Any, why: BaseException) -> None:
        self.ended = self.ended or why
        self.sent.clear()
        self.connection.ioloop.stop()

    def _on_gone(self, _: Any, why: BaseException) -> None:
        self.ended, self.is_gone = self.ended or why, True
        self.connection.ioloop.stop()


def _returned(catalog: Catalog, messages: Sequence[Message], words: str, of: int) -> CatalogError:
    key = messages[0].routing_key
    return CatalogError(
        f"{named(catalog)}: exchange {catalog.exchange} has no queue for {key} and returned {len(messages)} of {of} "
        f"messages ({words}), the first for {messages[0].object_name}",
        f"ask who runs RabbitMQ to bind {QUEUES[key]} to that exchange by {key}, or set publish.catalog.exchange",
    )


def _nacked(catalog: Catalog, messages: Sequence[Message], of: int) -> CatalogError:
    key = messages[0].routing_key
    return CatalogError(
        f"{named(catalog)}: queue {QUEUES[key]} ({key}) did not take {len(messages)} of {of} messages, the first for "
        f"{messages[0].object_name}",
        "it is full or cannot store: see that the catalogers run, then try again",
    )


def _problem(catalog: Catalog, ended: BaseException, blocked: str) -> CatalogError:
    """What the end of a connection means."""
    words, hint = _explained(catalog, ended, blocked)
    return CatalogError(f"{named(catalog)}: {words}", hint)


def _explained(catalog: Catalog, ended: BaseException, blocked: str) -> tuple[str, str]:
    from pika import exceptions
    from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout

    cause = _innermost(ended)
    match cause:
        case _Late() if blocked:
            return (
                f"takes no messages for now ({blocked})",
                "ask who runs RabbitMQ; try again when it has room",
            )
        case _Late() | exceptions.ConnectionOpenAborted() | AMQPConnectorStackTimeout():
            words = f"no answer in {catalog.timeout_seconds:g} s"
            return words, "try again later, or raise publish.catalog.timeout_seconds"
        case exceptions.ChannelClosedByBroker(reply_code=404):
            words = f"there is no exchange {catalog.exchange} ({cause.reply_text})"
            return words, "set publish.catalog.exchange to the catalogers' one: l2inv declares none"
        case exceptions.ChannelClosedByBroker() | exceptions.ConnectionClosedByBroker():
            return f"closed: {cause.reply_code} {cause.reply_text}", "ask who runs RabbitMQ"
        case exceptions.ProbableAuthenticationError():
            return "the login is refused", "check the user and the password in publish.catalog.url"
        case exceptions.ProbableAccessDeniedError():
            words = "there is no such virtual host, or this user may not enter it"
            return words, "check what follows the host in publish.catalog.url"
        case exceptions.IncompatibleProtocolError():
            words = "is no AMQP 0-9-1 server, or speaks TLS alone"
            return words, "check the port in publish.catalog.url, and whether it should begin with amqps"
        case exceptions.StreamLostError():
            return f"the connection broke ({short(cause)})", "the next run goes on; else check the network"
        case ssl.SSLCertVerificationError():
            where = _split(catalog)
            return certificates.refused(cause, (where["host"], where["port"]), "publish.catalog")
        case ssl.SSLError():
            words = f"no TLS comes about: {short(cause)}"
            return words, "check the port in publish.catalog.url, and whether it should begin with amqp"
    return short(cause), "check publish.catalog.url and the network"


def _innermost(problem: BaseException) -> BaseException:
    """The cause that pika wrapped: it keeps it as an attribute or an argument, never as the cause."""
    inner = getattr(problem, "exception", None) or [*getattr(problem, "exceptions", ()), *problem.args][-1:]
    inner = inner[-1] if isinstance(inner, list) and inner else inner
    return _innermost(inner) if isinstance(inner, BaseException) else problem
