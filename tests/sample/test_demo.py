"""The demo and the sample store, as a newcomer starts them."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from l2inv.database import embedded
from l2inv.sample import demo


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home of the test's own, with a space in its path."""
    home = tmp_path / "a home"
    home.mkdir()
    return home


def l2inv(home: Path, *argv: str) -> list[str]:
    """A command line whose data folder lies below home, for root as for anybody."""
    code = (
        "import sys; from pathlib import Path; from l2inv.database import embedded; from l2inv.cli import main;"
        f"embedded.default_folder = lambda: Path({str(home)!r}) / 'server'; main(sys.argv[1:])"
    )
    return [sys.executable, "-c", code, *argv]


def test_the_demo_runs_every_stage_and_leaves_its_database_for_the_next_command(home: Path) -> None:
    config = home / "config.yaml"
    config.write_text("database: {url: 'postgresql://127.0.0.1:9/never-touched'}\n")
    env = os.environ | {"L2INV_CONFIG": str(config)}
    try:
        done = subprocess.run(l2inv(home, "demo"), check=False, capture_output=True, text=True, env=env)
        assert (done.returncode, done.stderr) == (0, "")
        shown = done.stdout
        for command in (
            "scan",
            "qualify",
            "preprocess",
            "retry",
            "next",
            "claim",
            "mark-inverted",
            "publish",
        ):
            assert f"$ l2inv {command}" in shown
        assert re.search(r"OPs judged \([1-9]\d* invertible, [1-9]\d* not\), [1-9]\d* waiting", shown)
        assert "Fe I 630.3 (narrow)" in shown
        next_steps = shown[shown.index("Try next:") :].splitlines()
        (export,) = [line for line in next_steps if "export L2INV_CONFIG=" in line]
        after = export.split("=", 1)[1].strip("'")
        history = next(shlex.split(line)[1:] for line in next_steps if " history " in line)
        told = subprocess.run(
            l2inv(home, "--config", after, *history, "--json"), capture_output=True, text=True, check=True
        )
        kinds = [e["kind"] for e in json.loads(told.stdout)["events"]]
        assert kinds[0] == "discovered"
        assert kinds[-1] == "published"
        rescan = subprocess.run(
            l2inv(home, "--config", after, "scan", "--json"), capture_output=True, text=True, check=True
        )
        assert json.loads(rescan.stdout)["datasets"]["new"] == 0
        again = subprocess.run(l2inv(home, "demo", "--json"), capture_output=True, text=True, check=True)
        states = json.loads(again.stdout)["states"]
        assert states["published"] == 1
        assert min(states["preprocessed"], states["not_invertible"], states["discovered"]) > 0
    finally:
        embedded.stop(home / "demo" / "server")


def test_the_sample_store_serves_alone_until_ctrl_c(home: Path) -> None:
    process = subprocess.Popen(
        l2inv(home, "demo", "--store"), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = process.stderr.readline()
    url = next(word for word in said.split() if word.startswith("http://"))
    question = json.dumps(
        {"query": "{ datasetInventoriesRecordCount(filterParams: {}) { recordCount } }"}
    ).encode()
    request = urllib.request.Request(url, question, {"Service-Name": "tests"})
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["data"]["datasetInventoriesRecordCount"]["recordCount"] > 100
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_the_demos_folder_is_not_the_configured_servers() -> None:
    assert demo.demo_folder() != embedded.default_folder()
