"""Documents as programs: their code blocks, their console sessions, and a comparison with the real output."""

import re
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).parents[2]


def blocks(path: Path, language: str, section: str = "") -> list[str]:
    """Return the blocks of code in a language, of the whole document or from a heading to the next of its level."""
    text = path.read_text()
    begin, end = 0, len(text)
    if section:
        # A comment in a block of code is no heading.
        plain = re.sub(r"^```.*?^```$", lambda code: "." * len(code[0]), text, flags=re.MULTILINE | re.DOTALL)
        begin = plain.index(section)
        later = re.compile(rf"^#{{1,{section.index(' ')}}} ", re.MULTILINE).search(
            plain, begin + len(section)
        )
        end = later.start() if later else end
    return re.findall(rf"^```{language}\n(.*?)^```$", text[begin:end], re.MULTILINE | re.DOTALL)


def steps(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each command of a document's console sessions with the output that it shows."""
    for block in blocks(path, "console"):
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, shown = step.partition("\n")
            yield line, shown


def same(output: str, shown: str) -> bool:
    """Return whether an output is what a page shows; … stands for anything in a line, alone in a line for any lines."""
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    pattern = "".join(
        r"(?:.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + r"\n" for line in lines
    )
    spaced = "".join(" ".join(line.split()) + "\n" for line in output.splitlines())
    return re.fullmatch(pattern, spaced) is not None
