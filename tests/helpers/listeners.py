"""HTTP servers on loopback: one that keeps its requests, and one whose answer never ends."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Listener:
    """An HTTP server on loopback that keeps what it is asked, as (method, path, body), and answers `status`."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, str]] = []
        self.status = 200
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                listener.heard.append((self.command, self.path, body))
                self.send_response(listener.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_GET  # noqa: N815 - the name that http.server looks for

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.where = f"127.0.0.1:{self.server.server_port}"


@contextmanager
def trickling(key: str) -> Iterator[str]:
    """A server that sends a header line again and again, and never an end."""
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            peer, _ = server.accept()
            threading.Thread(target=drip, args=(peer,), daemon=True).start()

    def drip(peer: socket.socket) -> None:
        with peer:
            try:
                peer.sendall(b"HTTP/1.1 200 OK\r\n")
                while not over.wait(0.05):
                    peer.sendall(b"X: y\r\n")
            except OSError:  # the client is gone
                pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/{key}"
        over.set()
        socket.create_connection(server.getsockname()).close()
        thread.join()
