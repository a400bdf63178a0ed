"""JSON objects whose keys are declared nowhere: reports, the details of events, what a command prints."""

from typing import Any

Json = dict[str, Any]
