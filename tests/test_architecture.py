"""The habits that keep the program readable: who imports whom, where SQL stands, what a process loads."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import l2inv

PACKAGE = Path(l2inv.__file__).parent
DEVELOPMENT = PACKAGE.parent / "DEVELOPMENT.md"

# A stage and what belongs to it alone. A stage imports nothing of another one.
STAGES = {
    "scan": {"scan", "reading"},
    "qualify": {"qualify"},
    "preprocess": {"preprocess", "attempts", "jobs", "cluster", "slurm", "bundle", "clean"},
    "science": {"science", "offers", "handoff", "inbox"},
    "publish": {"publish", "preflight", "cycles"},
}
# The modules without I/O and without a clock, and what else they may import of l2inv.
PURE = {"states", "criteria", "solar", "drift", "inventory"}
PLAIN = {"settings", "errors"}
OUTSIDE_WORLD = {
    "psycopg", "requests", "os", "pathlib", "io", "socket", "subprocess", "time", "random", "secrets", "uuid", "shutil",
    "tempfile", "threading", "platformdirs", "yaml", "logging", "sys",
}  # fmt: skip
# What takes tens of milliseconds to import, or is only needed now and then: imported where it is used.
HEAVY = {"jinja2", "requests", "urllib3", "rich", "yaml", "graphql", "apprise", "platformdirs", "yoyo"}
# The rooms that issue SQL.
ROOMS = {
    "database", "migrate", "record", "scan", "qualify", "preprocess", "science", "publish", "views", "demo", "whatif",
    "verdicts", "quarantine", "verify", "deadlines", "export", "inbox", "attempts", "clean", "handoff", "offers", "roles",
    "backup", "preflight", "cycles", "reading", "report", "anchor",
}  # fmt: skip


class Module(NamedTuple):
    """A module of l2inv with what it imports: everywhere, and when it is imported itself."""

    name: str  # below l2inv, such as cli.app
    path: Path
    tree: ast.Module
    imports: set[str]
    at_once: set[str]


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "write imports in full"
        yield node.module or ""
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def read(path: Path) -> Module:
    tree = ast.parse(path.read_text())
    everywhere = {name for node in ast.walk(tree) for name in imported(node)}
    at_once = {name for node in tree.body for name in imported(node)}
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return Module(name, path, tree, everywhere, at_once)


MODULES = [read(path) for path in sorted(PACKAGE.rglob("*.py"))]


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def of_l2inv(names: set[str]) -> set[str]:
    """The modules of l2inv among what is imported."""
    known = {module.name for module in MODULES}
    below = {name.removeprefix("l2inv.") for name in names if name.startswith("l2inv.")}
    return below & known


every_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)


@every_module
def test_a_stage_imports_no_other_stage(module: Module) -> None:
    mine = next((room for room in STAGES.values() if module.name in room), None)
    if mine:
        others = set().union(*STAGES.values()) - mine
        assert not of_l2inv(module.imports) & others


@every_module
def test_nothing_below_the_commands_knows_them_or_click(module: Module) -> None:
    if module.path.parent.name != "cli" and module.name != "__main__":
        assert not [name for name in module.imports if name.startswith("l2inv.cli")]
        assert "click" not in roots(module.imports)


@every_module
def test_a_pure_module_does_no_io_and_asks_no_clock(module: Module) -> None:
    if module.name not in PURE:
        return
    assert not roots(module.imports) & OUTSIDE_WORLD
    assert of_l2inv(module.imports) <= PURE | PLAIN
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert not re.search(r"\b(now|utcnow|today|open|print|input)$", called), (
                f"line {node.lineno}: {called}"
            )


@every_module
def test_what_is_heavy_is_imported_where_it_is_used(module: Module) -> None:
    # yoyo's backend is a base class in the one, and only migrations import it; only on a terminal is the other imported.
    if module.name not in {"migrate", "terminal"}:
        assert not roots(module.at_once) & HEAVY
    assert "terminal" not in of_l2inv(module.at_once)


@every_module
def test_a_module_of_the_commands_imports_no_room_until_it_is_called(module: Module) -> None:
    if module.path.parent.name == "cli":
        beside = {name for name in of_l2inv(module.at_once) if not name.startswith("cli.")}
        assert beside <= {"errors", "states", "render"}
        assert not roots(module.at_once) & {"psycopg", "msgspec"}


@every_module
def test_all_sql_stands_in_the_rooms_that_issue_it(module: Module) -> None:
    if re.search(r"\.(execute|copy)\(", module.path.read_text()):
        assert module.name in ROOMS, "SQL stands in the room of its stage; nothing else has any"


@every_module
def test_a_module_can_be_read_in_one_sitting_and_says_what_it_is(module: Module) -> None:
    assert len(module.path.read_text().splitlines()) <= 400
    assert module.name == "__main__" or ast.get_docstring(module.tree)


@every_module
def test_the_layout_names_every_module(module: Module) -> None:
    text = DEVELOPMENT.read_text()
    layout = text[text.index("## The layout") : text.index("The rules that keep it readable")]
    if (
        module.path.name != "__init__.py"
        and module.name != "__main__"
        and module.path.parent.name != "sample"
    ):
        below = module.path.relative_to(PACKAGE)
        assert f"`l2inv/{below}`" in layout or f"`{below.name}`" in layout or "cli" in below.parts
