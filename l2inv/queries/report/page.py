"""The report as one HTML file: fill the template, allow style and script by their hashes, write the file atomically.

Data are escaped by Jinja; characters that hide or reorder their neighbors are escaped before that.
"""

import hashlib
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2inv.errors import L2invError
from l2inv.files import replacing
from l2inv.wording import clean, day, moment

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).parent / "templates"


def rendered(drawn: dict[str, Any], page: str = "report") -> str:
    """Return a page, such as the report of what drawing.page() returned: it loads nothing, and allows one style and, if it
    has one, one script by their hashes."""
    from markupsafe import Markup

    own: dict[str, Markup] = {}
    for name, suffix in (("style", "css"), ("script", "js")):
        if not (FOLDER / f"{page}.{suffix}").exists():
            continue
        text = (FOLDER / f"{page}.{suffix}").read_text(encoding="utf-8")
        digest = b64encode(hashlib.sha256(text.encode()).digest()).decode()
        own |= {name: Markup(text), f"{name}_hash": Markup(f"sha256-{digest}")}  # noqa: S704 - our own text
    return templates().get_template(f"{page}.html").render(drawn, **own)


def templates() -> "Environment":
    """Return the templates, in which an undefined name is an error and None is a dash."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def printed(value: object) -> object:
        return value if isinstance(value, (Markup, int)) else "-" if value is None else clean(value)

    class Rows(Environment):
        def getattr(self, obj: Any, attribute: str) -> Any:
            """Look into a dict first: failing to find an attribute of it takes most of the time of a line."""
            is_there = type(obj) is dict and attribute in obj
            return obj[attribute] if is_there else super().getattr(obj, attribute)

    found = Rows(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=printed,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"moment": moment, "day": day, "state": _words}
    return found


def _words(state: str) -> str:
    return state.replace("_", " ")


def write(path: Path, html: str, mode: int) -> int:
    """Write a page atomically, with the permissions `mode`, and return its size in bytes.

    Raise L2invError if it cannot be written; then an earlier file is unchanged.
    """
    content = html.encode()
    try:
        with replacing(path, mode) as file:
            file.write(content)
    except OSError as problem:
        raise L2invError(f"{path}: {problem.strerror or problem}", "fix that and run it again") from problem
    return len(content)
