"""The catalog's messages over a real RabbitMQ: valid for a strict receiver, whatever fails."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from l2inv.config.settings import Catalog
from l2inv.errors import CatalogError, ConfigError
from l2inv.services import catalog
from tests.helpers import rabbitmq
from tests.helpers.rabbitmq import FRAME, OBJECT, Broker

pytestmark = pytest.mark.slow

FOLDER = "pid_1_118/inv_7QK2ZD"
FRAMES = [f"{FOLDER}/INV_7QK2ZD_2022_06_03T18_03_{second:02}_89_L2.fits" for second in range(10)]
ASDF = f"{FOLDER}/INV_7QK2ZD_L2_metadata.asdf"
QUORUM = {"x-queue-type": "quorum"}
FULL_AT_5 = {"x-max-length": 5, "x-overflow": "reject-publish"}


@pytest.fixture
def channel(broker: Broker) -> Iterator[Any]:
    """A channel of the operator's, after they made the exchange and both queues."""
    with broker.connected() as channel:
        broker.declare(channel)
        yield channel


def some_messages(frames: list[str] = FRAMES) -> list[catalog.Message]:
    return catalog.messages("data", frames, ASDF, "inv.7QK2ZD", "l2pub.7QK2ZD")


def settings(broker: Broker, **other: Any) -> Catalog:
    usual: dict[str, Any] = {"url": broker.url(), "timeout_seconds": 20, "batch_size": 3}
    return Catalog(**(usual | other))


def told(catalog_settings: Catalog) -> tuple[list[str], CatalogError]:
    """What was confirmed until an error, and the error."""
    confirmed: list[str] = []
    with pytest.raises(CatalogError) as caught:
        for batch in catalog.send(catalog_settings, some_messages()):
            confirmed.extend(batch)
    assert rabbitmq.PASSWORD not in str(caught.value) + caught.value.hint
    return confirmed, caught.value


def names(channel: Any, routing_key: str) -> list[str]:
    return [json.loads(body)["objectName"] for _, body in rabbitmq.taken(channel, routing_key)]


def strictly_read(properties: Any, body: bytes, keys: dict[str, type]) -> dict[str, Any]:
    """A message as its receivers read it: just these keys, each of its type, and kept on disk."""
    assert properties.delivery_mode == 2
    assert properties.content_type == "application/json"
    assert properties.content_encoding.lower() == "utf-8"
    pairs = json.loads(body.decode("utf-8"), object_pairs_hook=list)
    read = dict(pairs)
    assert len(pairs) == len(read)
    assert {key: type(value) for key, value in read.items()} == keys
    return read


# What arrives


@pytest.mark.parametrize("arguments", [{}, QUORUM], ids=["classic", "quorum"])
def test_every_file_is_announced_in_the_catalogers_format(
    broker: Broker, channel: Any, arguments: dict[str, Any]
) -> None:
    broker.declare(channel, **arguments)
    batches = list(catalog.send(settings(broker), some_messages()))
    assert batches == [FRAMES[0:3], FRAMES[3:6], FRAMES[6:9], FRAMES[9:], [ASDF]]
    keys = {
        "bucket": str,
        "objectName": str,
        "incrementDatasetCatalogReceiptCount": bool,
        "conversationId": str,
    }
    frames = [strictly_read(*one, keys) for one in rabbitmq.taken(channel, FRAME)]
    (asdf,) = [
        strictly_read(*one, keys | {"objectType": str, "groupId": str, "groupName": str})
        for one in rabbitmq.taken(channel, OBJECT)
    ]
    assert [frame["objectName"] for frame in frames] == FRAMES
    assert asdf["objectName"] == ASDF
    assert (asdf["objectType"], asdf["groupId"], asdf["groupName"]) == ("ASDF", "inv.7QK2ZD", "DATASET")
    for read in (*frames, asdf):
        assert read["bucket"] == "data"
        assert read["incrementDatasetCatalogReceiptCount"] is False
        assert read["conversationId"] == "l2pub.7QK2ZD"


def test_a_thousand_frames_are_announced_within_seconds(broker: Broker, channel: Any) -> None:
    frames = [f"{FOLDER}/{number}.fits" for number in range(1000)]
    started = time.monotonic()
    confirmed = [
        name
        for batch in catalog.send(settings(broker, batch_size=100), some_messages(frames))
        for name in batch
    ]
    assert time.monotonic() - started < 20
    assert confirmed == [*frames, ASDF]
    assert names(channel, FRAME) == frames


def test_nothing_is_declared(broker: Broker, channel: Any) -> None:
    broker.tell("add_user", "publisher", "word")
    broker.tell(
        "set_permissions", "publisher", "^$", "^master", "^$"
    )  # to configure nothing, and to read nothing
    url = (
        broker.url()
        .replace(rabbitmq.USER, "publisher")
        .replace(broker.url().split("@")[0].split(":")[2], "word")
    )
    assert [name for batch in catalog.send(settings(broker, url=url), some_messages()) for name in batch] == [
        *FRAMES,
        ASDF,
    ]
    broker.tell("set_permissions", "publisher", "^$", "^$", "^$")
    confirmed, error = told(settings(broker, url=url))
    assert confirmed == []
    assert "closed: 403 ACCESS_REFUSED" in error.message


# What does not arrive


def test_a_missing_queue_is_named_and_the_frames_before_it_are_confirmed(
    broker: Broker, channel: Any
) -> None:
    broker.declare(channel, FRAME)
    confirmed, error = told(settings(broker))
    assert confirmed == FRAMES
    assert "has no queue for catalog.object.m and returned 1 of 1 messages (312 NO_ROUTE)" in error.message
    assert ASDF in error.message
    assert "bind catalog.object.q" in error.hint


def test_without_the_frames_queue_nothing_more_is_sent(broker: Broker, channel: Any) -> None:
    broker.declare(channel, OBJECT)
    confirmed, error = told(settings(broker))
    assert confirmed == []
    assert "has no queue for catalog.frame.m and returned 3 of 3 messages" in error.message
    assert "bind catalog.frame.q" in error.hint
    assert names(channel, OBJECT) == []


def test_a_missing_exchange_is_named(broker: Broker, channel: Any) -> None:
    confirmed, error = told(settings(broker, exchange="master.direct.y"))
    assert confirmed == []
    assert "there is no exchange master.direct.y" in error.message
    assert "publish.catalog.exchange" in error.hint


def test_a_full_queue_is_named_and_what_it_took_counts(broker: Broker, channel: Any) -> None:
    broker.declare(channel, **FULL_AT_5)
    confirmed, error = told(settings(broker))
    assert confirmed == FRAMES[:5] == names(channel, FRAME)
    assert "queue catalog.frame.q (catalog.frame.m) did not take 1 of 3 messages" in error.message
    assert FRAMES[5] in error.message
    assert "check that the catalogers run" in error.hint


def test_a_full_quorum_queue_is_named(broker: Broker, channel: Any) -> None:
    broker.declare(channel, **QUORUM, **FULL_AT_5)  # it says no some messages later than a classic one
    confirmed, error = told(settings(broker, batch_size=2))
    taken = names(channel, FRAME)
    assert confirmed == taken == FRAMES[: len(taken)]
    assert "queue catalog.frame.q (catalog.frame.m) did not take" in error.message


def test_no_memory_is_waited_for_within_the_limit(broker: Broker, channel: Any) -> None:
    with broker.without_memory():
        started = time.monotonic()
        confirmed, error = told(settings(broker, timeout_seconds=1))
        assert time.monotonic() - started < 10
    assert confirmed == []
    assert "accepts no messages for now (low on memory)" in error.message


def test_when_there_is_memory_again_the_messages_go_on(broker: Broker, channel: Any) -> None:
    with broker.without_memory():
        room = threading.Thread(target=broker.tell, args=("set_vm_memory_high_watermark", "absolute", "4GB"))
        batches = catalog.send(settings(broker, timeout_seconds=6), some_messages())
        room.start()
        assert next(batches) == FRAMES[:3]
        room.join()
        with (
            broker.frozen(),
            pytest.raises(CatalogError, match="no answer in 6 s"),
        ):  # for lack of memory no longer
            next(batches)
    rest = list(catalog.send(settings(broker, batch_size=10), some_messages()[3:]))
    assert rest == [FRAMES[3:], [ASDF]]


# A broker and a publisher that end


@pytest.mark.parametrize("arguments", [{}, QUORUM], ids=["classic", "quorum"])
def test_a_broker_that_is_killed_keeps_what_it_confirmed_and_the_rest_follows(
    broker: Broker, arguments: dict[str, Any]
) -> None:
    with broker.connected() as channel:
        broker.declare(channel, **arguments)
    broker.write_down_queues()
    batches = catalog.send(settings(broker), some_messages())
    confirmed = [*next(batches), *next(batches)]
    broker.kill()
    with pytest.raises(CatalogError, match="catalog amqp://"):
        next(batches)
    assert "Connection refused" in told(settings(broker))[1].message
    broker.start()
    rest = [message for message in some_messages() if message.object_name not in confirmed]
    confirmed += [name for batch in catalog.send(settings(broker), rest) for name in batch]
    assert confirmed == [*FRAMES, ASDF]
    with broker.connected() as channel:
        assert (names(channel, FRAME), names(channel, OBJECT)) == (FRAMES, [ASDF])


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
def test_a_frozen_broker_is_not_waited_for_without_end(broker: Broker, channel: Any, scheme: str) -> None:
    how = settings(broker, url=broker.url(scheme), ca_bundle=str(broker.folder / "ca.pem"), timeout_seconds=1)
    batches = catalog.send(how, some_messages())
    next(batches)
    with broker.frozen():
        started = time.monotonic()
        with pytest.raises(CatalogError, match="no answer in 1 s"):
            next(batches)
        assert told(how)[1].message.endswith("no answer in 1 s")
        assert time.monotonic() - started < 10


def test_a_client_that_stops_reading_disconnects_at_once(broker: Broker, channel: Any) -> None:
    batches = catalog.send(settings(broker), some_messages())
    next(batches)
    with broker.frozen():
        started = time.monotonic()
        batches.close()  # type: ignore[attr-defined]
        assert time.monotonic() - started < 5


PUBLISHER = """
import json, os, sys
from l2inv.services import catalog
from l2inv.config.settings import Catalog
url, record, last, *names = sys.argv[1:]
done = open(record).read().split()
messages = [m for m in catalog.messages("data", names[:-1], names[-1], "inv.7QK2ZD", "l2pub.7QK2ZD") if m.object_name not in done]
with open(record, "a") as out:
    for number, batch in enumerate(catalog.send(Catalog(url=url, timeout_seconds=20, batch_size=3), messages)):
        if number == int(last):
            os.kill(os.getpid(), 9)  # confirmed, and not recorded
        print(*batch, sep="\\n", file=out, flush=True)
"""


def test_a_killed_publisher_continues_after_what_it_recorded(
    broker: Broker, channel: Any, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    record.touch()
    argv = [sys.executable, "-c", PUBLISHER, broker.url(), str(record)]
    codes = [subprocess.run([*argv, last, *FRAMES, ASDF], check=False).returncode for last in ("0", "2", "9")]
    assert codes == [-9, -9, 0]
    assert record.read_text().split() == [*FRAMES, ASDF]
    sent = names(channel, FRAME)
    assert sorted(set(sent)) == FRAMES
    assert len(sent) <= len(FRAMES) + 2 * 3  # twice a batch that was not recorded
    assert names(channel, OBJECT) == [ASDF]


# Who may come in


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_tls_with_a_private_authority(broker: Broker, channel: Any, host: str) -> None:
    how = settings(broker, url=broker.url("amqps", host=host), ca_bundle=str(broker.folder / "ca.pem"))
    assert [name for batch in catalog.send(how, some_messages()) for name in batch] == [*FRAMES, ASDF]


def test_a_certificate_of_another_authority_is_not_accepted(broker: Broker, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    for ca_bundle in (str(other), None):
        error = told(settings(broker, url=broker.url("amqps"), ca_bundle=ca_bundle))[1]
        assert "its certificate is not accepted: " in error.message
        assert "publish.catalog.ca_bundle" in error.hint


def test_a_certificate_for_another_host_is_not_accepted(broker: Broker) -> None:
    url = broker.url("amqps", host="127.0.0.2")
    error = told(settings(broker, url=url, ca_bundle=str(broker.folder / "ca.pem")))[1]
    assert "its certificate is not accepted: IP address mismatch" in error.message
    assert "(issued to localhost, 127.0.0.1 by " in error.message
    assert "the host name in the certificate" in error.hint


def test_an_invalid_ca_bundle_is_a_mistake_in_the_settings(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    how = settings(broker, url=broker.url("amqps"), ca_bundle=str(tmp_path / "ca.pem"))
    with pytest.raises(
        ConfigError, match=r"publish\.catalog\.ca_bundle: .*ca\.pem is not a readable PEM file"
    ):
        list(catalog.send(how, some_messages()))


def test_the_wrong_port_is_recognized(broker: Broker) -> None:
    plain, tls = f":{broker.port}/", f":{broker.tls_port}/"
    error = told(settings(broker, url=broker.url("amqps").replace(tls, plain)))[1]
    assert "TLS failed" in error.message
    error = told(settings(broker, url=broker.url().replace(plain, tls)))[1]
    assert "requires TLS" in error.message


def test_a_wrong_password_is_distinguished_from_a_wrong_virtual_host(broker: Broker) -> None:
    error = told(settings(broker, url=broker.url(password="s3cret")))[1]
    assert error.message.endswith("/: the login is refused")
    assert "s3cret" not in error.message + error.hint
    error = told(settings(broker, url=broker.url() + "nowhere"))[1]
    assert "/nowhere: there is no such virtual host" in error.message
