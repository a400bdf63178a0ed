"""Sending the digest to each owner's addresses, through the real library, to servers on loopback."""

import json
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from email import message_from_string, policy
from pathlib import Path

import pytest

from l2inv.services import notify
from tests.helpers.commands import Commands
from tests.helpers.listeners import Listener, trickling

SECRET = "s3cr3t"


def people(l2inv: Commands, **addresses: list[str]) -> None:
    l2inv.settings["notifications"] = {
        "people": [{"name": name, "addresses": urls} for name, urls in addresses.items()]
    }
    l2inv.save()


@pytest.fixture
def mails() -> Iterator[tuple[int, list[str]]]:
    """An SMTP server on loopback: its port, and the mails it took."""
    taken: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            while line := self.rfile.readline():
                word = line.split(None, 1)[0].upper() if line.strip() else b""
                if word == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    lines = []
                    while (line := self.rfile.readline()) not in (b".\r\n", b""):
                        lines.append(line.removeprefix(b".").decode() if line[:1] == b"." else line.decode())
                    taken.append("".join(lines))
                self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 good\r\n")
                if word == b"QUIT":
                    return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_address[1], taken
        server.shutdown()
        thread.join()


def test_each_owner_gets_their_own_list_and_nobody_elses(
    l2inv: Commands, ready: list[str], listener: Listener
) -> None:
    l2inv("claim", ready[0], "--for", "1d", actor="ann")
    people(l2inv, ann=[f"json://{listener.where}/ann"], science=[f"json://{listener.where}/science"])
    answer = l2inv("digest", "--send")
    assert answer.stdout == "digest: sent to ann, science\n"
    assert answer.stderr == (
        "l2inv: digest: notifications.people has no address for operator; see: l2inv digest\n"
    )
    told = {path: json.loads(body) for _, path, body in listener.heard}
    assert set(told) == {"/ann", "/science"}
    assert told["/ann"]["title"] == "l2inv: 1 due soon (ann)"
    assert ready[0] in told["/ann"]["message"]
    assert ready[0] not in told["/science"]["message"]


def test_a_mail_that_did_not_arrive_is_sent_again(
    l2inv: Commands, ready: list[str], listener: Listener
) -> None:
    people(l2inv, science=[f"json://{listener.where}"])
    listener.status = 500
    before = l2inv.json("digest", "--send")
    listener.status = 200
    after = l2inv.json("digest", "--send")
    assert [o["sent"] for o in before["owners"]] == [None, False]
    assert [o["sent"] for o in after["owners"]] == [None, True]
    assert before["owners"][1]["sections"]["new"] == after["owners"][1]["sections"]["new"] != []


def test_the_next_digest_contains_only_what_did_not_reach_its_owner_or_is_new(
    l2inv: Commands, ready: list[str], listener: Listener
) -> None:
    there, nowhere = f"json://{listener.where}", "json://127.0.0.1:1/"
    people(l2inv, science=[there], operator=[nowhere])
    digests = [l2inv.json("digest", "--send")]
    people(l2inv, science=[there], operator=[there])
    digests += [l2inv.json("digest", "--send") for _ in range(2)]
    first, second, third = ({o["owner"]: o for o in digest["owners"]} for digest in digests)
    assert {name: o["sent"] for name, o in first.items()} == {"operator": False, "science": True}
    assert {name: o["sent"] for name, o in second.items()} == {"operator": True}
    assert second["operator"]["sections"]["new"] == first["operator"]["sections"]["new"] != []
    assert digests[1]["since"] > digests[0]["since"]
    assert set(third) == {"operator"}
    assert third["operator"]["sections"]["new"] == []


@pytest.mark.parametrize("address", [f"json://u:{SECRET}@127.0.0.1:1/{SECRET}", f"nosuch://u:{SECRET}@h"])
def test_a_notification_that_fails_warns_without_the_secret_and_changes_no_exit_code(
    l2inv: Commands, ready: list[str], address: str
) -> None:
    people(l2inv, science=[address])
    answer = l2inv("-vv", "digest", "--send")
    kind = address.partition(":")[0]
    assert f"l2inv: digest: science: {kind}://*** did not accept it" in answer.stderr
    said = (
        answer.stdout
        + answer.stderr
        + l2inv("status", "--json").stdout
        + l2inv("config", "check", "--json").stdout
    )
    assert SECRET not in said


def test_an_address_that_hangs_is_given_up() -> None:
    with trickling("key") as url:
        started = time.monotonic()
        (problem,) = notify.send([url.replace("http", "json", 1)], "t", "b", limit_seconds=2)
        assert time.monotonic() - started < 10
    assert problem == "json://*** took longer than 2 s"


def test_a_missing_library_warns_how_to_get_it(
    l2inv: Commands, ready: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    people(l2inv, science=["json://127.0.0.1:1"])
    monkeypatch.setitem(sys.modules, "apprise", None)
    assert f"l2inv: digest: science: {notify.INSTALL}\n" in l2inv("digest", "--send").stderr


def test_a_mail_shows_text_from_outside_and_never_obeys_it(mails: tuple[int, list[str]]) -> None:
    port, taken = mails
    body = "op.1  publish: <b>bold</b> &amp; [x](http://evil) *no*"
    address = f"mailto://127.0.0.1:{port}?from=l2inv@example.org&to=han@example.org"
    assert notify.send([address], "l2inv: 1 failed (han)", body) == []
    (mail,) = (message_from_string(text, policy=policy.default) for text in taken)
    assert mail["Subject"] == "l2inv: 1 failed (han)"
    html = mail.get_body(("html",))
    assert html is None or "<b>bold" not in html.get_content()
    plain = mail.get_body(("plain",))
    assert plain is None or "<b>bold</b> &amp;" in plain.get_content()
    assert html is not None or plain is not None


def test_a_cause_of_many_lines_and_colours_is_one_line_of_the_list(
    l2inv: Commands, ready: list[str], listener: Listener, tmp_path: Path
) -> None:
    l2inv("claim", ready[0])
    l2inv("release", ready[0])
    l2inv.settings["preprocess"]["command"] = [
        "sh",
        "-c",
        "printf 'evil\\033[31m\\342\\200\\256gnp'; exit 1",
    ]
    people(l2inv, operator=[f"json://{listener.where}"])
    op = l2inv.json("list", "--state", "not_invertible")["ops"][0]["op_id"]
    l2inv("overrule", op, "--invertible", "--reason", "look", expect=None)
    l2inv("preprocess", expect=4)
    l2inv("digest", "--send")
    message = json.loads(listener.heard[-1][2])["message"]
    assert "evil" in message
    assert not set(message) & set("\x1b\r\u202e")
