"""The command line: parses, calls, renders. What it calls knows nothing of it."""

from l2inv.cli import deadlines, files, handoff, operator, published, report, science, stages, verdicts, views
from l2inv.cli.app import main

__all__ = [
    "deadlines",
    "files",
    "handoff",
    "main",
    "operator",
    "published",
    "report",
    "science",
    "stages",
    "verdicts",
    "views",
]
