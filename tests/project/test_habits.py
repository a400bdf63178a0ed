"""Package metadata, the hosted CI, the Makefile, the tested dependencies, the top-level listing."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from l2inv import __version__
from tests import bounds

TOP = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
WORKFLOW = TOP / ".github" / "workflows" / "ci.yml"
# What people look for first, and what tools look for in no other place.
AT_TOP = {
    "README.md", "DEVELOPMENT.md", "config.example.yaml", "crontab.example", "docs", "l2inv", "migrations", "tests",
    ".ci", ".github", ".gitignore", ".pre-commit-config.yaml", "CHANGELOG.md", "CITATION.cff", "Containerfile", "LICENSE", "Makefile",
    "compose.yaml", "pyproject.toml",
}  # fmt: skip

in_a_repository = pytest.mark.skipif(not (TOP / ".git").exists(), reason="a source distribution has less")


@in_a_repository
def test_nothing_else_is_at_the_top_level() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=TOP, capture_output=True, text=True, check=True).stdout
    assert {name.split("/")[0] for name in listed.splitlines()} <= AT_TOP


def test_the_version_is_written_once_and_is_the_same_everywhere() -> None:
    assert PROJECT["dynamic"] == ["version"]
    citation = yaml.safe_load((TOP / "CITATION.cff").read_text())
    released = re.findall(
        r"^## (\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)$", (TOP / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert citation["version"] == __version__
    if released:
        assert (citation["version"], str(citation["date-released"])) == released[0]
    assert f"l2inv {__version__} " in bounds.CONSTRAINTS.read_text().splitlines()[0]


def test_the_citation_agrees_with_the_package_and_the_licence() -> None:
    citation = yaml.safe_load((TOP / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == PROJECT["license"]
    assert [one["name"] for one in citation["authors"]] == [one["name"] for one in PROJECT["authors"]]
    assert "the l2inv developers" in (TOP / "LICENSE").read_text()


def pythons() -> list[str]:
    """The versions of Python that the classifiers name."""
    return re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))


def test_development_has_a_row_and_a_column_for_each_supported_version() -> None:
    development = (TOP / "DEVELOPMENT.md").read_text()
    rows = re.findall(r"^\| Python (3\.\d+)", development, re.MULTILINE)
    assert rows == pythons()
    assert f">={pythons()[0]}" == PROJECT["requires-python"]


@in_a_repository
def test_the_hosted_ci_runs_ci_run_on_each_supported_python_and_postgresql() -> None:
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    assert jobs["python"]["strategy"]["matrix"]["python"] == pythons()
    heading = re.findall(r"^\| \| PostgreSQL (.*)\|$", (TOP / "DEVELOPMENT.md").read_text(), re.MULTILINE)[0]
    servers = [re.match(r"\d+", cell.strip()) for cell in heading.split("|")]
    assert jobs["postgresql"]["strategy"]["matrix"]["postgresql"] == [one[0] for one in servers if one]
    assert jobs["postgresql"]["env"]["L2INV_TEST_DATABASE"].startswith("postgresql://")
    for job in jobs.values():
        assert {"run": ".ci/run"} in job["steps"]
    assert "L2INV_TEST_DATABASE" in (TOP / ".ci" / "run").read_text()


def recipes() -> dict[str, list[str]]:
    """The Makefile's targets, each with its lines."""
    found: dict[str, list[str]] = {}
    for line in (TOP / "Makefile").read_text().splitlines():
        if target := re.match(r"([a-z]+):", line):
            found[target[1]] = []
        elif line.startswith("\t"):
            found[[*found][-1]].append(line.strip())
    return found


def test_each_target_of_the_makefile_runs_what_the_documents_say() -> None:
    documents = (TOP / "README.md").read_text() + (TOP / "DEVELOPMENT.md").read_text()
    targets = recipes()
    del targets["help"]
    for target, lines in targets.items():
        for line in lines:
            assert re.search(rf"(^|`|&& ){re.escape(line)}(`| |$)", documents, re.MULTILINE), (
                f"{target}: {line}"
            )
    phony = re.findall(r"^\.PHONY: (.*)$", (TOP / "Makefile").read_text(), re.MULTILINE)[0].split()
    assert sorted(phony) == sorted(recipes())


def test_make_help_lists_each_target() -> None:
    done = subprocess.run(["make", "-s"], cwd=TOP, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        name for name in recipes() if name != "help"
    ]


def test_each_dependency_has_a_lower_bound_and_one_tested_version_within_its_bounds() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    tested = dict(
        line.split("==") for line in bounds.CONSTRAINTS.read_text().splitlines() if not line.startswith("#")
    )
    versions = {canonicalize_name(name): version for name, version in tested.items()}
    lowest = dict(line.split("==") for line in bounds.lowest().splitlines())
    for one in map(Requirement, bounds.direct()):
        assert one.specifier.contains(versions[canonicalize_name(one.name)]), one
        assert one.specifier.contains(lowest[one.name]), one


@in_a_repository
def test_files_that_tools_read_in_github_exist_and_link_to_the_documents() -> None:
    folder = TOP / ".github"
    for path in folder.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
    for template in (folder / "ISSUE_TEMPLATE").glob("*.md"):
        heading = yaml.safe_load(template.read_text().split("---")[1])
        assert {"name", "about"} <= set(heading)
    assert {"SECURITY.md", "CONTRIBUTING.md", "PULL_REQUEST_TEMPLATE.md"} <= {
        one.name for one in folder.iterdir()
    }
    assert "DEVELOPMENT.md" in (folder / "CONTRIBUTING.md").read_text()
