"""The recipes of DEVELOPMENT.md, applied as written."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import NOW, Commands

TOP = Path(__file__).parents[2]


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """A copy of the program, changed as the recipe for a criterion says."""
    if not shutil.which("git"):
        pytest.skip("there is no git to apply patches")
    copy = tmp_path / "changed"
    for name in ("l2inv", "migrations"):
        shutil.copytree(TOP / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    recipe = re.split(r"^### ", (TOP / "DEVELOPMENT.md").read_text(), flags=re.MULTILINE)
    (said,) = (part for part in recipe if part.startswith("Add a criterion\n"))
    patches = re.findall(r"^   ```diff\n(.*?)^   ```$", said, re.MULTILINE | re.DOTALL)
    assert len(patches) == 2
    for patch in patches:
        text = "".join(line.removeprefix("   ") for line in patch.splitlines(keepends=True))
        command = ["git", "apply", "--unidiff-zero", "--recount", "-"]
        environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path)}
        subprocess.run(command, input=text, cwd=copy, env=environment, text=True, check=True)
    return copy


def run(folder: Path, l2inv: Commands, *argv: str, expect: int = 0) -> Any:
    """What the changed program says."""
    code = textwrap.dedent("""
        import sys
        sys.path.insert(0, sys.argv.pop(1))
        from l2inv.cli import main
        main()
    """)
    command = [sys.executable, "-P", "-c", code, str(folder), "--config", str(l2inv.config), *argv, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == expect, done
    return json.loads(done.stdout)


def test_an_added_criterion_changes_no_old_verdict(l2inv: Commands, ready: list[str], changed: Path) -> None:
    before = l2inv.json("criteria")["versions"]
    assert run(changed, l2inv, "verify")["findings"] == []
    again = run(changed, l2inv, "qualify", "--as-of", NOW.isoformat())
    assert (again["ops"]["judged"], again["criteria_version"]) == (0, before[0]["criteria_version"])

    l2inv.settings["qualification"] = {"max_exposure_ms": 0.001}
    l2inv.save()
    judged = run(changed, l2inv, "qualify", "--as-of", NOW.isoformat())
    assert judged["criteria_version"] != before[0]["criteria_version"]
    assert judged["ops"]["invertible"] == 0
    verdict = run(changed, l2inv, "show", ready[0])["verdict"]
    names = {c["name"] for program in verdict["instrument_programs"] for c in program["criteria"]}
    assert "exposure" in names
    assert run(changed, l2inv, "verify")["findings"] == []
