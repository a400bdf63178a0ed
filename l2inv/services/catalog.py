"""Sends the Data Center's catalogers messages about the files of an inversion: AMQP 0-9-1, each confirmed by the broker.

Nothing is declared: exchange and queues belong to the operators. A message that is not routed to a queue, or that the
broker rejects, is an error that names the queue; messages confirmed before count.
"""

import json
import logging
import secrets
import ssl
import string
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from l2inv.config.settings import Catalog
from l2inv.errors import CatalogError, ConfigError, L2invError
from l2inv.services import certificates
from l2inv.services.graphql import short

FRAME, OBJECT = "catalog.frame.m", "catalog.object.m"
QUEUES = {FRAME: "catalog.frame.q", OBJECT: "catalog.object.q"}
PORTS = {"amqp": 5672, "amqps": 5671}

# Errors are raised here; pika's log would repeat them on stderr.
logging.getLogger("pika").addHandler(logging.NullHandler())


class Message(Struct, frozen=True):
    """One file to be cataloged: routing key, the file's name in the bucket, and the JSON text."""

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
    """Return the messages of one publication in the order of sending: one for each FITS file, then the ASDF file's.

    `frames` are the FITS files' names in the bucket, such as `pid_1_118/inv_7QK2ZD/INV_7QK2ZD_…_L2.fits`.
    Raise L2invError for a name that is not UTF-8.
    """
    group = {"objectType": "ASDF", "groupId": inversion_id, "groupName": group_name}
    files: list[tuple[str, str, dict[str, str]]] = [(FRAME, name, {}) for name in frames] + [
        (OBJECT, asdf_object_key, group)
    ]
    found = []
    for routing_key, name, more in files:
        fields = {
            "bucket": bucket,
            "objectName": name,
            "incrementDatasetCatalogReceiptCount": False,  # the receivers' default is true
            "conversationId": conversation_id,
        }
        try:
            body = json.dumps(fields | more, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise L2invError(f"{name!r} is not UTF-8, so no message can contain it", "rename it") from None
        found.append(Message(routing_key, name, body))
    return found


def send(catalog: Catalog, messages: Sequence[Message]) -> Iterator[list[str]]:
    """Send the messages and yield the names of the files that the broker confirmed, batch by batch, to be recorded.

    All messages of one routing key are confirmed before the next, so that the ASDF file comes after every frame. After
    a kill, the next run sends again what was not recorded. No wait is longer than `timeout_seconds`. Raise
    CatalogError, after yielding the last confirmed files, and ConfigError.
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
    """Raise ConfigError if no message could be sent: no URL, no pika, no readable authority."""
    if catalog.url is not None:
        _parameters(catalog)


def named(catalog: Catalog) -> str:
    """Return the broker's name without user and password."""
    return f"catalog {_split(catalog).shown}"


class _Broker(NamedTuple):
    """The parts of the broker's URL."""

    scheme: str
    host: str
    port: int
    path: str
    user: str
    password: str

    @property
    def shown(self) -> str:
        """Return the URL without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}/{self.path}"


def _split(catalog: Catalog) -> _Broker:
    """Return the parts of the URL as in the RabbitMQ URI specification, except that an empty path means `/`, too."""
    parts = urlsplit(catalog.url or "")
    return _Broker(
        parts.scheme,
        parts.hostname or "",
        parts.port or PORTS[parts.scheme],
        parts.path.removeprefix("/"),
        unquote(parts.username or "guest"),
        unquote(parts.password or "guest"),
    )


def _parameters(catalog: Catalog) -> Any:
    try:
        import pika
    except ImportError as problem:
        words = "the catalog uses AMQP, which needs pika: pip install 'l2inv[amqp]'"
        raise ConfigError("publish.catalog.url", [words]) from problem
    if catalog.url is None:
        raise ConfigError("publish.catalog.url", ["must be an amqp(s) URL, and is none"])
    where, tls = _split(catalog), None
    if where.scheme == "amqps":
        try:
            context = ssl.create_default_context(cafile=catalog.ca_bundle)
        except OSError as problem:
            words = f"{catalog.ca_bundle} is not a readable PEM file: {short(problem)}"
            raise ConfigError("publish.catalog.ca_bundle", [words]) from problem
        tls = pika.SSLOptions(context, where.host)
    return pika.ConnectionParameters(
        host=where.host,
        port=where.port,
        virtual_host=unquote(where.path) or "/",
        credentials=pika.PlainCredentials(where.user, where.password),
        ssl_options=tls,
        socket_timeout=catalog.timeout_seconds,
        stack_timeout=catalog.timeout_seconds,  # for TCP, TLS and the login together
        heartbeat=0,  # nothing would answer while the caller records a batch
    )


@contextmanager
def _connected(catalog: Catalog) -> "Iterator[_Link]":
    link = _Link(catalog, _parameters(catalog))
    try:
        link.open()
        yield link
        link.close()
    finally:
        link.hang_up()


class _Late(Exception):
    """Nothing arrived within the time limit."""


class _Link:
    """A connection with one channel in confirm mode. Each answer of the broker is noted, and ends the wait for it.

    pika's blocking channel waits for each confirm without a time limit, so this class waits itself.
    """

    def __init__(self, catalog: Catalog, parameters: Any) -> None:
        import pika

        self.catalog = catalog
        self.channel: Any = None
        self.is_ready = self.is_gone = False
        self.blocked = ""  # why the broker takes no messages for now
        self.ended: BaseException | None = None
        self.tag = 0
        self.sent: dict[int, Message] = {}  # unanswered messages by delivery tag
        self.confirmed: list[Message] = []
        self.nacked: list[Message] = []
        self.returned: dict[bytes, str] = {}  # the broker's reason by the message's body
        self.connection = pika.SelectConnection(parameters, self._on_open, self._on_gone, self._on_gone)
        self.connection.add_on_connection_blocked_callback(self._on_blocked)
        self.connection.add_on_connection_unblocked_callback(self._on_unblocked)

    def open(self) -> None:
        """Wait until messages can be sent. Raise CatalogError."""
        self._wait(lambda: self.connection.is_open, limited=False)  # pika limits it
        self._wait(lambda: self.is_ready)
        if self.ended:
            raise _problem(self.catalog, self.ended, self.blocked)

    def send(self, batch: Sequence[Message]) -> tuple[list[str], CatalogError | None]:
        """Send the messages; return the names of the files confirmed, and the error of the others."""
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

    def close(self) -> None:
        """Close the connection with a handshake; nothing is lost if the broker does not answer."""
        self.connection.close()
        self._wait(lambda: False)

    def hang_up(self) -> None:
        """Close the connection without a handshake."""
        if self.connection.is_open or self.connection.is_closing:
            # pika's public methods close a connection only after the broker's answer.
            self.connection._terminate_stream(_Late())
            self._wait(lambda: False)
        self.connection.ioloop.close()

    def _wait(self, holds: Callable[[], bool], limited: bool = True) -> None:
        """Run the loop until the condition holds, or the connection is gone. The limit is on each wait, not on the total."""
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
        key=f"{named(catalog)}: {key} returned",
    )


def _nacked(catalog: Catalog, messages: Sequence[Message], of: int) -> CatalogError:
    key = messages[0].routing_key
    return CatalogError(
        f"{named(catalog)}: queue {QUEUES[key]} ({key}) did not take {len(messages)} of {of} messages, the first for "
        f"{messages[0].object_name}",
        "it is full or cannot store: check that the catalogers run, then try again",
        key=f"{named(catalog)}: {key} not accepted",
    )


def _problem(catalog: Catalog, ended: BaseException, blocked: str) -> CatalogError:
    """Return the error for the end of a connection."""
    words, hint = _explained(catalog, ended, blocked)
    return CatalogError(f"{named(catalog)}: {words}", hint)


def _explained(catalog: Catalog, ended: BaseException, blocked: str) -> tuple[str, str]:
    from pika import exceptions
    from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout

    cause = _innermost(ended)
    match cause:
        case _Late() if blocked:
            return (
                f"accepts no messages for now ({blocked})",
                "ask who runs RabbitMQ; try again when it has space",
            )
        case _Late() | exceptions.ConnectionOpenAborted() | AMQPConnectorStackTimeout():
            words = f"no answer in {catalog.timeout_seconds:g} s"
            return words, "try again later, or raise publish.catalog.timeout_seconds"
        case exceptions.ChannelClosedByBroker(reply_code=404):
            words = f"there is no exchange {catalog.exchange} ({cause.reply_text})"
            return words, "set publish.catalog.exchange to the catalogers' exchange: l2inv declares none"
        case exceptions.ChannelClosedByBroker() | exceptions.ConnectionClosedByBroker():
            return f"closed: {cause.reply_code} {cause.reply_text}", "ask who runs RabbitMQ"
        case exceptions.ProbableAuthenticationError():
            return "the login is refused", "check the user and the password in publish.catalog.url"
        case exceptions.ProbableAccessDeniedError():
            words = "there is no such virtual host, or this user has no access to it"
            return words, "check what follows the host in publish.catalog.url"
        case exceptions.IncompatibleProtocolError():
            words = "is not an AMQP 0-9-1 server, or requires TLS"
            return words, "check the port in publish.catalog.url, and whether it should begin with amqps"
        case exceptions.StreamLostError():
            return (
                f"the connection broke ({short(cause)})",
                "the next run continues; if it happens again, check the network",
            )
        case ssl.SSLCertVerificationError():
            where = _split(catalog)
            return certificates.refused(cause, (where.host, where.port), "publish.catalog")
        case ssl.SSLError():
            words = f"TLS failed: {short(cause)}"
            return words, "check the port in publish.catalog.url, and whether it should begin with amqp"
    return short(cause), "check publish.catalog.url and the network"


def _innermost(problem: BaseException) -> BaseException:
    """Return the cause that pika wrapped: it is an attribute or an argument, never __cause__."""
    inner = getattr(problem, "exception", None) or [*getattr(problem, "exceptions", ()), *problem.args][-1:]
    inner = inner[-1] if isinstance(inner, list) and inner else inner
    return _innermost(inner) if isinstance(inner, BaseException) else problem
