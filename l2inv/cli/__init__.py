"""The command line: parses, calls, renders. What it calls knows nothing of it."""

from l2inv.cli.app import main

__all__ = ["main"]
