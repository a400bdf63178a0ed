"""The page of a check of products: the findings of each inversion, and a picture of each of its quantities."""

from base64 import b64encode
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from l2inv.documents import Json
from l2inv.products import WHAT, thumbnails
from l2inv.products.findings import grouped, place
from l2inv.queries.report import page
from l2inv.stages.publish.checking import Checked
from l2inv.wording import value


def write(
    path: Path,
    op_id: str,
    found: list[Checked],
    now: datetime,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> int:
    """Draw and write the page as one file that loads nothing, readable by its owner alone; return its size in bytes.

    Raise L2invError if it cannot be drawn or written; then an earlier file is unchanged.
    """
    results = [finding.result for one in found for finding in one.findings]
    wrong = results.count("fail")
    filled = {
        "op_id": op_id,
        "now": now,
        "wrong": wrong,
        "review": len(results) - wrong,
        "inversions": [_inversion(one, progress) for one in found],
    }
    return page.write(path, page.rendered(filled, "check"), 0o600)


def _inversion(one: Checked, progress: Callable[[int, int], None]) -> Json:
    drawn = thumbnails.drawn(Path(one.folder), one.inversion_id, progress)
    findings = [
        {
            "where": place(f, count),
            "hdu": f.hdu,
            "what": f.what,
            "meaning": WHAT[f.what],
            "result": f.result,
            "measured": value(f.measured),
            "required": value(f.required),
        }
        for f, count in grouped(one.findings)
    ]
    return {
        "inversion_id": one.inversion_id,
        "folder": one.folder,
        "findings": findings,
        "caption": drawn.caption,
        "pictures": [
            {"title": p.title, "words": p.words, "data": b64encode(p.png).decode()} for p in drawn.each
        ],
    }
