"""The command line: parses, calls, renders. What it calls knows nothing of it."""

from l2inv.cli import handoff, operator, science, stages, verdicts, views
from l2inv.cli.app import main

__all__ = ["handoff", "main", "operator", "science", "stages", "verdicts", "views"]
