"""Pings a monitor when a stage begins and ends, by the conventions of https://healthchecks.io/docs/http_api/.

A monitor that is down, slow or misspelled never breaks the stage and never delays it for long.
"""

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from urllib.parse import urlencode, urlsplit, urlunsplit

from l2inv.config.settings import Monitoring, origin

MAX_BODY = 10_000  # characters


def ping(monitoring: Monitoring, stage: str, run_id: str, word: str, text: str = "") -> str | None:
    """Ping with `word` ("start", "fail", "log", or "" for success) at the end of the URL's path, and `text` as the body.

    Return None, or why it failed, without the key in the URL. Never raises.
    """
    import requests

    assert monitoring.ping_url is not None
    timeout_seconds = monitoring.ping_timeout_seconds
    url = address(monitoring.ping_url, stage, run_id, word)
    headers = {"Content-Type": "text/plain; charset=utf-8"} if text else {}
    body = text[:MAX_BODY].encode("utf-8", "replace")

    def ask() -> str | None:
        try:
            method = "POST" if text else "GET"
            with requests.request(
                method, url, data=body, headers=headers, timeout=timeout_seconds, stream=True
            ) as answer:
                return None if answer.ok else f"it answers {answer.status_code}"
        except Exception as problem:  # its text may contain the URL
            return type(problem).__name__

    problem = _within(timeout_seconds, ask)
    return f"monitoring: {origin(url)} could not be pinged: {problem}" if problem else None


def address(ping_url: str, stage: str, run_id: str, word: str) -> str:
    """Return the URL of a ping: the word appended to the path, the run's id to the query."""
    parts = urlsplit(ping_url.replace("{stage}", stage))
    path = f"{parts.path.rstrip('/')}/{word}" if word else parts.path
    query = "&".join(filter(None, (parts.query, urlencode({"rid": run_id}))))
    return urlunsplit((parts.scheme, parts.netloc, path, query, ""))


def word_for(exit_code: int) -> str:
    """Return the word for an exit code; one of 75 (another run is running) is only logged."""
    return {0: "", 75: "log"}.get(exit_code, "fail")


def _within(seconds: float, ask: Callable[[], str | None]) -> str | None:
    """Return what `ask` returns. A timeout of requests limits each wait; this limits their total."""
    answers: SimpleQueue[str | None] = SimpleQueue()
    Thread(target=lambda: answers.put(ask()), daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except Empty:
        return f"no answer within {seconds:g} s"
