"""The rules of the code's structure: which folder imports which, where SQL is, what a process imports."""

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import l2inv

PACKAGE = Path(l2inv.__file__).parent

# The folders from the top down: a module imports from its own folder and from lower lines, nothing from its own line.
LAYERS = [
    {"cli"},
    {"sample", "api"},
    {"stages"},
    {"queries"},
    {"record", "products"},
    {"services", "database"},
    {"wording"},
    {"domain"},
    {"config"},
    {"files"},
    {"errors"},
    {"documents"},
]
# Where SQL may stand.
WITH_SQL = {"stages", "queries", "record", "database", "sample"}
OUTSIDE_WORLD = {
    "psycopg", "requests", "os", "pathlib", "io", "socket", "subprocess", "time", "random", "secrets", "uuid", "shutil",
    "tempfile", "threading", "platformdirs", "yaml", "logging", "sys",
}  # fmt: skip
# What takes tens of milliseconds to import, or is only needed now and then: imported where it is used.
HEAVY = {
    "jinja2", "requests", "urllib3", "rich", "yaml", "graphql", "apprise", "platformdirs", "yoyo", "astropy", "asdf", "numpy",
    "matplotlib",
    "pika",
}  # fmt: skip
LINES_THAT_PROMPT_A_SECOND_LOOK = 500


class Module(NamedTuple):
    """A module of l2inv with what it imports: everywhere, and when it is imported itself."""

    name: str  # below l2inv, such as cli.app
    path: Path
    tree: ast.Module
    imports: set[str]
    at_once: set[str]

    @property
    def folder(self) -> str:
        return self.name.split(".")[0]


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
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    return Module(name, path, tree, everywhere, at_once)


@cache
def modules() -> dict[str, Module]:
    """Return every module by its name."""
    paths = (path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem[0] != "_")
    return {module.name: module for module in map(read, sorted(paths))}


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def of_l2inv(names: set[str]) -> set[str]:
    """The modules of l2inv among what is imported; a package only where nothing in it is meant."""
    found = {name.removeprefix("l2inv.") for name in names if name.startswith("l2inv.")} & modules().keys()
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def breaches(rule: Callable[[Module], object]) -> dict[str, object]:
    """Return what a rule finds wrong, by the module's name."""
    return {module.name: found for module in modules().values() if (found := rule(module))}


def test_a_folder_imports_only_from_the_folders_below_it() -> None:
    def forbidden(module: Module) -> set[str]:
        (line,) = (i for i, folders in enumerate(LAYERS) if module.folder in folders)
        return roots(of_l2inv(module.imports)) - {module.folder}.union(*LAYERS[line + 1 :])

    assert breaches(forbidden) == {}


def test_a_stage_imports_no_other_stage() -> None:
    def others(module: Module) -> set[str]:
        stages = {name.split(".")[1] for name in of_l2inv(module.imports) if name.startswith("stages.")}
        return stages - {"stage", *module.name.split(".")[1:2]} if module.folder == "stages" else set()

    assert breaches(others) == {}


def test_no_modules_import_each_other_in_a_circle() -> None:
    by_name = {module.name: of_l2inv(module.imports) - {module.name} for module in modules().values()}

    @cache
    def reached(name: str) -> frozenset[str]:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            for further in by_name[waiting.pop()] - seen:
                seen.add(further)
                waiting.append(further)
        return frozenset(seen)

    assert [name for name in by_name if name in reached(name)] == []


def test_click_is_known_to_the_commands_alone() -> None:
    assert breaches(lambda module: module.folder != "cli" and "click" in roots(module.imports)) == {}


def test_the_domain_does_no_io_and_asks_no_clock() -> None:
    asks = re.compile(r"\b(now|utcnow|today|open|print|input)$")

    def impure(module: Module) -> list[str]:
        if module.folder != "domain":
            return []
        calls = (node for node in ast.walk(module.tree) if isinstance(node, ast.Call))
        called = [
            f"line {call.lineno}: {name}" for call in calls if asks.search(name := ast.unparse(call.func))
        ]
        return sorted(roots(module.imports) & OUTSIDE_WORLD) + called

    assert breaches(impure) == {}


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    # yoyo's backend is a base class in the one, and only migrations import it; only on a terminal is the other imported.
    def heavy(module: Module) -> set[str]:
        found = (
            set() if module.name in {"database.migrate", "cli.terminal"} else roots(module.at_once) & HEAVY
        )
        return found | (of_l2inv(module.at_once) & {"cli.terminal"})

    assert breaches(heavy) == {}


def test_a_module_of_the_commands_imports_what_it_runs_when_it_is_called() -> None:
    def at_once(module: Module) -> set[str]:
        if module.folder != "cli":
            return set()
        beside = {name for name in of_l2inv(module.at_once) if not name.startswith("cli")}
        allowed = {"errors", "documents", "wording", "domain", "domain.states"}
        return (beside - allowed) | (roots(module.at_once) & {"psycopg", "msgspec"})

    assert breaches(at_once) == {}


def test_sql_is_only_in_the_folders_meant_for_it() -> None:
    def runs_sql(module: Module) -> bool:
        return bool(re.search(r"\.(execute|copy)\(", module.path.read_text()))

    assert breaches(lambda module: module.folder not in WITH_SQL and runs_sql(module)) == {}


def test_a_module_is_short_and_has_a_docstring() -> None:
    def unreadable(module: Module) -> str | None:
        lines = len(module.path.read_text().splitlines())
        if lines > LINES_THAT_PROMPT_A_SECOND_LOOK:
            return f"{lines} lines"
        return None if ast.get_docstring(module.tree) else "no docstring"

    assert breaches(unreadable) == {}


def test_code_shared_by_tests_is_in_helpers() -> None:
    """No test imports another test's module, or conftest; helpers import no tests."""
    top = Path(__file__).parents[1]
    found = [
        (str(path.relative_to(top)), name)
        for path in top.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in imported(node)
        if re.search(r"(^|\.)(conftest|test_\w+)(\.|$)", name)
    ]
    assert found == []
