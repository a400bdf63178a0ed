"""Hostile text, and what must never be printed of it."""

import copy
import re
from collections.abc import Iterator
from typing import Any

TEXTS = {
    "markup": "[bold red]x[/bold red] [/] [link=http://e]l[/link] :smile: \\[x]",
    "escapes": "\x1b[31mred\x1b[0m\x1b]0;title\x07\x1b]8;;http://e\x1b\\l\x9b2J\x08\x7f",
    "bidi": "\u202egnp.exe\u202c\u2066\u200f\u200b\ufeff\u061c",
    "lines": "a\nb\r\nc\rd\u2028e\x85f\tg\x0b\x0c",
    "up": "../../../../../../tmp/l2inv-evil/..",
    "absolute": "/tmp/l2inv-evil",
    "dots": "..",
    "home": "~root",
    "sql": "'; drop table l2inv.event; -- %s %(op)s \\'",
    "html": "<script>alert(1)</script>&amp;\"onload='x'",
    "formula": "=1+cmd|' /C calc'!A0",
    "at": "@SUM(A1)",
    "dash": "-rf --help",
    "shell": "$(touch evil) `touch evil` ; touch evil & ${HOME} {op_id} {folder}",
}
NEVER = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def one(datasets: list[dict[str, Any]], name: str, text: str) -> Iterator[dict[str, Any]]:
    """An OP as that of the datasets, with the text wherever the store has text."""
    for number, dataset in enumerate(copy.deepcopy(datasets)):
        kept = {
            k: v for k, v in dataset.items() if not isinstance(v, str) or k in ("createDate", "updateDate")
        }
        told = {k: f"{text}" for k, v in dataset.items() if isinstance(v, str) and k not in kept}
        same = ("startTime", "endTime", "instrumentName", "status", "stokesParameters", "boundingBox")
        told |= {
            k: dataset[k] for k in (*same, "embargoEndDate", "headerDataUnitCreationDate") if k in dataset
        }
        told |= {
            "datasetId": f"{text}{number}",
            "observingProgramExecutionId": text,
            "productId": f"{text}{name}{number}",
        }
        yield kept | told | {"spectralLines": [text, text], "experimentDescription": text}
