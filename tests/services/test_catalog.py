"""The catalog's messages and settings, and servers that are not brokers; test_rabbitmq.py sends to a real one."""

import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from l2inv.cli import main
from l2inv.config.settings import Catalog, load, redact, to_plain
from l2inv.errors import CatalogError, ConfigError, L2invError
from l2inv.services import catalog

FOLDER = "pid_1_118/inv_7QK2ZD"
FRAMES = [f"{FOLDER}/INV_7QK2ZD_2022_06_03T18_03_4{second}_89_L2.fits" for second in range(3)]
ASDF = f"{FOLDER}/INV_7QK2ZD_L2_metadata.asdf"


def some_messages() -> list[catalog.Message]:
    return catalog.messages("data", FRAMES, ASDF, "inv.7QK2ZD", "l2pub.7QK2ZD")


# What is sent


def test_each_fits_file_has_a_message_and_then_the_asdf_file_one() -> None:
    sent = [(m.routing_key, m.object_name, json.loads(m.body)) for m in some_messages()]
    common = {
        "bucket": "data",
        "incrementDatasetCatalogReceiptCount": False,
        "conversationId": "l2pub.7QK2ZD",
    }
    group = {"objectType": "ASDF", "groupId": "inv.7QK2ZD", "groupName": "DATASET"}
    frames = [("catalog.frame.m", name, common | {"objectName": name}) for name in FRAMES]
    assert sent == [*frames, ("catalog.object.m", ASDF, common | {"objectName": ASDF} | group)]


@given(st.text(), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_message_is_json_in_utf8_whatever_the_files_name(bucket: str, name: str) -> None:
    try:
        (message, _) = catalog.messages(bucket, [name], ASDF, "inv.7QK2ZD", "l2pub.7QK2ZD")
    except L2invError:
        assert re.search("[\ud800-\udfff]", bucket)
    else:
        assert json.loads(message.body.decode("utf-8"))["objectName"] == message.object_name == name


def test_a_name_that_is_no_utf8_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(L2invError, match=r"INV_\\udcff\.fits' is not UTF-8"):
        catalog.messages("data", [f"{FOLDER}/INV_\udcff.fits"], ASDF, "inv.7QK2ZD", "l2pub.7QK2ZD")


def test_each_conversation_has_its_own_id() -> None:
    ids = {catalog.new_conversation_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(r"l2pub\.[A-Z0-9]{6}", one) for one in ids)


def test_nothing_to_send_needs_no_broker() -> None:
    assert list(catalog.send(Catalog(), [])) == []


# What is no broker


@pytest.fixture
def listening() -> Iterator[Callable[[bytes | None], int]]:
    """Start servers that say something to each client and hang up, or (None) say nothing; return their ports."""
    servers: list[socket.socket] = []
    clients: list[socket.socket] = []

    def serve(server: socket.socket, words: bytes) -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            client.recv(1000)
            client.sendall(words)
            client.close()

    threads = []

    def start(words: bytes | None) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)
        if words is not None:
            threads.append(threading.Thread(target=serve, args=(server, words)))
            threads[-1].start()
        port: int = server.getsockname()[1]
        return port

    yield start
    for one in (*servers, *clients):
        if one in servers:
            one.shutdown(socket.SHUT_RDWR)
        one.close()
    for thread in threads:
        thread.join()


def told(url: str, **settings: object) -> CatalogError:
    with pytest.raises(CatalogError) as caught:
        list(catalog.send(Catalog(url=url, timeout_seconds=0.5, **settings), some_messages()))  # type: ignore[arg-type]
    assert "secret" not in str(caught.value) + caught.value.hint
    assert caught.value.exit_code == 1
    return caught.value


def test_if_nobody_listens_the_error_names_the_broker_without_its_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    error = told(f"amqp://l2inv:secret@127.0.0.1:{port}/")
    assert error.message == f"catalog amqp://127.0.0.1:{port}/: Connection refused"
    assert error.hint == "check publish.catalog.url and the network"


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
def test_the_wait_for_a_silent_server_is_limited(
    listening: Callable[[bytes | None], int], scheme: str
) -> None:
    started = time.monotonic()
    error = told(f"{scheme}://127.0.0.1:{listening(None)}/")
    assert error.message.endswith(": no answer in 0.5 s")
    assert "publish.catalog.timeout_seconds" in error.hint
    assert time.monotonic() - started < 5


def test_a_server_of_another_kind_is_recognized(listening: Callable[[bytes | None], int]) -> None:
    port = listening(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert "is not an AMQP 0-9-1 server" in told(f"amqp://127.0.0.1:{port}/").message
    assert "TLS failed" in told(f"amqps://127.0.0.1:{port}/").message


def test_a_silent_end_of_the_connection_is_an_error(listening: Callable[[bytes | None], int]) -> None:
    assert "is not an AMQP 0-9-1 server" in told(f"amqp://127.0.0.1:{listening(b'')}/").message


def test_without_pika_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pika", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'l2inv[amqp]'")):
        catalog.check(Catalog(url="amqp://127.0.0.1/"))
    catalog.check(Catalog())


# The settings


def written(folder: Path, section: object) -> Path:
    path = folder / "config.yaml"
    path.write_text(json.dumps({"publish": {"catalog": section}}))
    return path


def test_await_is_the_key_in_the_file_and_in_what_config_check_shows(tmp_path: Path) -> None:
    read = load(written(tmp_path, {"await": False}), {}).settings
    assert read.publish.catalog.await_available is False
    assert to_plain(read)["publish"]["catalog"]["await"] is False
    with pytest.raises(ConfigError, match="await_available: unknown key, the nearest known one is await"):
        load(written(tmp_path, {"await_available": False}), {})


@pytest.mark.parametrize(
    "url",
    ["amqp://h", "amqps://u:p%40%2F%25@h.example.org:5671/v%2Fh", "amqp://[::1]:5672/", "amqp://u@h/l2"],
)
def test_valid_amqp_urls(tmp_path: Path, url: str) -> None:
    assert load(written(tmp_path, {"url": url}), {}).settings.publish.catalog.url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h",
        "http://h/",
        "amqp://",
        "amqp://h:0/",
        "amqp://h:65536/",
        "amqp://u:s3cret@x@h/",
        "amqp://u:s3/cret@h/",
        "amqp://u:s3cret%zz@h/",
        "amqp://u:s3 cret@h/",
        "amqp://u:s3cret@h/?heartbeat=1",
        "amqp://u:s3cret@[h/",
        "amqp://u:s3cret@[1::2::3]/",
    ],
)
def test_an_invalid_url_is_refused_and_not_shown(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, {"url": url}), {})
    (mistake,) = caught.value.mistakes
    assert mistake == "publish.catalog.url: must be amqp(s)://USER:PASSWORD@HOST/VHOST, percent-encoded"
    assert "s3" not in mistake


def test_the_password_comes_from_the_environment_and_is_never_shown(tmp_path: Path) -> None:
    path = written(tmp_path, {"url": "amqps://l2inv:${AMQP_PASSWORD}@h/"})
    read = load(path, {"AMQP_PASSWORD": "s3%40cret"}).settings
    assert catalog._parameters(read.publish.catalog).credentials.password == "s3@cret"
    assert to_plain(read)["publish"]["catalog"]["url"] == "amqps://l2inv:***@h/"
    assert redact("s3%40cret and s3@cret", read, {}) == "*** and ***"
    checked = CliRunner().invoke(
        main, ["--config", str(path), "config", "check", "--json"], env={"AMQP_PASSWORD": "s3%40cret"}
    )
    assert checked.exit_code == 0
    assert "cret" not in checked.output
    assert json.loads(checked.stdout)["settings"]["publish"]["catalog"]["url"] == "amqps://l2inv:***@h/"


def test_config_check_looks_at_the_authoritys_file(tmp_path: Path) -> None:
    path = written(tmp_path, {"url": "amqps://l2inv:secret@h/", "ca_bundle": "gone.pem"})
    refused = CliRunner().invoke(main, ["--config", str(path), "config", "check"])
    assert refused.exit_code == 10
    assert f"publish.catalog.ca_bundle: {tmp_path}/gone.pem is not a readable PEM file" in refused.stderr
    assert "secret" not in refused.output
