"""A metadata store on loopback that answers like the real one, and fails when told to."""

import gzip
import hmac
import socket
import socketserver
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

import msgspec

from l2inv.errors import L2invError
from l2inv.sample.store import Fault, Store, execute, operation_name, schema

__all__ = ["Fault", "Store", "serving"]

HOST = "127.0.0.1"
PATH = "/graphql"
_PLAIN = Fault(headers=(("Content-Type", "text/plain"),))


@contextmanager
def serving(store: Store, port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve the store on loopback inside the with block, and yield its URL. Port 0 means any free port.

    Raise L2invError if graphql-core is not installed or the port is taken.
    """
    schema(store.interface)  # fails now, rather than at the first request, if graphql-core is not installed
    try:
        server = _Server((HOST, port), _Handler)
    except OSError as problem:
        raise L2invError(
            f"cannot serve on {HOST}:{port}: {problem.strerror}", "choose another port"
        ) from problem
    server.store = store
    if tls:
        # The handler does the handshake: here, one silent client would block all others.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://{HOST}:{server.server_address[1]}{PATH}"
    finally:
        server.shutdown()
        thread.join()
        server.hang_up()
        server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 128
    store: Store

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.connections: set[socket.socket] = set()
        self.closing = threading.Event()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Close kept connections, so that no client gets answers after the store ended."""
        self.closing.set()
        for connection in list(self.connections):
            with suppress(OSError):  # it is closed already
                # SSLSocket's own shutdown would drop the TLS session while a thread reads from it.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect or do not trust the certificate."""
        if not isinstance(sys.exception(), (ConnectionError, ssl.SSLError)):
            super().handle_error(request, client_address)


class _Request(msgspec.Struct):
    query: str
    variables: dict[str, Any] | None = None
    operationName: str | None = None  # noqa: N815 - its name on the wire


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave in one packet
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.close_connection = True
            return self._refuse(411, "a Content-Length is required")
        body = self.rfile.read(int(length))
        if self.path != PATH:
            return self._refuse(404, f"the store answers at {PATH}")
        try:
            request = msgspec.json.decode(body, type=_Request)
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            return self._refuse(400, str(problem))
        return self._answer(request)

    def _answer(self, request: _Request) -> None:
        store = self.server.store
        fault = self._fault(request) or Fault()
        self.server.closing.wait(fault.delay_seconds)
        self.close_connection |= fault.drop is not None
        if fault.drop == "before":
            return
        if fault.status != 200 or fault.body is not None:
            self._send(fault.status, fault.body or b"", fault)
            return
        if turned_away := self._turned_away():
            self._send(turned_away, HTTPStatus(turned_away).phrase.encode(), _PLAIN)
            return
        answer = execute(store, request.query, request.variables, request.operationName)
        if fault.drop != "after":
            self._send(200, msgspec.json.encode(answer), fault, compress=True)

    def _fault(self, request: _Request) -> Fault | None:
        store = self.server.store
        name = operation_name(request.query, request.operationName)
        with store.lock:
            store.requests.append((name, request.variables or {}))
            nth = sum(name == other for other, _ in store.requests)
        return store.fault(name, nth) if store.fault else None

    def _turned_away(self) -> int | None:
        """Return the status with which the gateway refuses a request: it requires the token alone and the caller's name."""
        token = self.server.store.token
        given = self.headers.get("Authorization", "")
        if token is not None and not hmac.compare_digest(given.encode(), token.encode()):
            return 401
        return None if self.headers.get("Service-Name") else 400

    def _refuse(self, status: int, message: str) -> None:
        self._send(status, msgspec.json.encode({"errors": [{"message": message}]}), Fault())

    def _send(self, status: int, body: bytes, fault: Fault, compress: bool = False) -> None:
        headers = {"Content-Type": "application/json"}
        accepted = self.headers.get("Accept-Encoding", "").split(",")
        if compress and "gzip" in [name.split(";")[0].strip() for name in accepted]:
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body, compresslevel=1)
        headers |= {"Content-Length": str(len(body))} | dict(fault.headers)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault.drop == "midway" else body)
