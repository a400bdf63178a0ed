"""The canonical form of an event: the text that its hash is computed from (docs/audit.md). Pure."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# In this order, after the hash of the event before it in its OP, and before the detail.
FIELDS = (
    "event_id",
    "op_id",
    "seq",
    "kind",
    "state",
    "actor",
    "recorded_by",
    "recorded_at",
    "run_id",
)


def text(previous_hash: str | None, event: Mapping[str, Any]) -> str:
    """Return the canonical form of an event of `history --json`: a JSON array that ends in its detail_text."""
    values = [previous_hash, *(event[name] for name in FIELDS)]
    return f"{json.dumps(values, ensure_ascii=False)[:-1]}, {event['detail_text']}]"


def digest(previous_hash: str | None, event: Mapping[str, Any]) -> str:
    """Return the hash that an event must have: the SHA-256 of its canonical form, as hexadecimal digits."""
    return hashlib.sha256(text(previous_hash, event).encode()).hexdigest()
