"""A small version of the Data Center's catalogers: takes messages from RabbitMQ and creates records of the files.

Messages are checked as strictly as their definition allows, and refused with a reason.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from uuid import NAMESPACE_URL, uuid5

import msgspec
from msgspec import Meta

from l2inv.errors import L2invError

FRAMES, OBJECTS = "catalog.frame.q", "catalog.object.q"
AVAILABLE = "AVAILABLE"
_POLL_SECONDS = 0.05

Values = dict[str, Any]
Text = Annotated[str, Meta(min_length=1)]


class Malformed(Exception):
    """A message that the receivers could not read, or would misread."""


class _Frame(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    bucket: Text
    object_name: Annotated[str, Meta(pattern=r"^[^/]+/inv_[A-Z0-9]{6}/[^/]+$")]
    increment_dataset_catalog_receipt_count: bool  # for a dataset of Level 1; true if it is missing
    conversation_id: Annotated[str, Meta(pattern=r"^l2pub\.[A-Z0-9]{6}$")]


class _Object(_Frame, rename="camel", forbid_unknown_fields=True):
    object_type: Literal["ASDF"]
    group_id: Annotated[str, Meta(pattern=r"^inv\.[A-Z0-9]{6}$")]
    group_name: Literal["DATASET"]


def read(queue: str, body: bytes) -> Values:
    """Return the store's record of the file in a message, for objectInventories or frameInventories.

    A repeated message has the same inventoryId. Raise Malformed.
    """
    kind, suffix = (_Frame, ".fits") if queue == FRAMES else (_Object, ".asdf")
    try:
        named = msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise Malformed(str(problem)) from problem
    if named.increment_dataset_catalog_receipt_count:
        raise Malformed(
            "incrementDatasetCatalogReceiptCount: no dataset of Level 1 has received a file of Level 2"
        )
    path = PurePosixPath(named.object_name)
    if path.suffix != suffix:
        raise Malformed(f"objectName: {named.object_name} in {queue}, which is for {suffix}")
    inversion_id = path.parent.name.replace("_", ".")
    record = {
        "inventoryId": str(uuid5(NAMESPACE_URL, f"{named.bucket}/{named.object_name}")),
        "bucket": named.bucket,
        "objectKey": named.object_name,
        "createDate": datetime.now(UTC).replace(tzinfo=None).isoformat(),
        "updateDate": None,
        "lostDate": None,
    }
    if isinstance(named, _Object):
        if named.group_id != inversion_id:
            raise Malformed(f"groupId: {named.group_id}, and objectName is of {inversion_id}")
        group = {"objectType": named.object_type, "groupId": named.group_id, "groupName": named.group_name}
        return record | {"objectStatus": AVAILABLE} | group
    # The receivers read this from the file's header; the name has it, too.
    header = {"datasetId": inversion_id, "proposalId": path.parts[0], "processingType": "L2"}
    return record | {"frameStatus": AVAILABLE, "frameId": path.stem} | header


@dataclass
class Cataloger:
    """A running cataloger, and what it refused: the queue, the body and the reason."""

    refused: list[tuple[str, bytes, str]] = field(default_factory=list)
    problem: BaseException | None = None


@contextmanager
def cataloging(
    url: str, add_object: Callable[[Values], object], add_frame: Callable[[Values], object]
) -> Iterator[Cataloger]:
    """Take messages from both queues, which must exist, inside the with block, and add a record for each.

    A record may be added twice, under the same inventoryId. Raise L2invError if the broker or a queue is missing, and at
    the end if the cataloger failed.
    """
    import pika

    cataloger, stop = Cataloger(), threading.Event()

    def take(channel: Any, queue: str, add: Callable[[Values], object]) -> None:
        def on_message(channel: Any, method: Any, _: Any, body: bytes) -> None:
            try:
                add(read(queue, body))
            except Malformed as problem:
                cataloger.refused.append((queue, body, str(problem)))
                channel.basic_reject(method.delivery_tag, requeue=False)
            else:
                channel.basic_ack(method.delivery_tag)

        channel.basic_consume(queue, on_message)

    def run(connection: Any) -> None:
        try:
            while not stop.is_set():
                connection.process_data_events(time_limit=_POLL_SECONDS)
        except Exception as problem:
            cataloger.problem = problem

    try:
        connection = pika.BlockingConnection(pika.URLParameters(url))
        with connection:
            channel = connection.channel()
            channel.basic_qos(prefetch_count=100)
            take(channel, OBJECTS, add_object)
            take(channel, FRAMES, add_frame)
            thread = threading.Thread(target=run, args=(connection,), name="cataloger")
            thread.start()
            try:
                yield cataloger
            finally:
                stop.set()
                thread.join()
    except pika.exceptions.AMQPError as problem:
        words = f"the cataloger cannot take messages: {problem!r}"
        raise L2invError(words, "start RabbitMQ and declare both queues") from problem
    if cataloger.problem:
        raise L2invError(f"the cataloger ended early: {cataloger.problem!r}") from cataloger.problem
