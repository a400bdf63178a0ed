"""The command line: parses, calls, renders. What it calls knows nothing of it."""

import gc

# Most of what a short command creates are the modules that it imports, and a report needs all it creates to the end: no
# collection frees anything of these.
gc.set_threshold(100_000)

from l2inv.cli.app import main  # noqa: E402

__all__ = ["main"]
