"""The errors that l2inv reports, and its exit codes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

# 2 is Click's own; 4 and 5 are results of a stage and of verify, not errors of the program.
EXIT_CODES = {
    0: "done, or nothing to do",
    1: "failed: the database, the metadata store or something unexpected; nothing is left half-written",
    2: "wrong usage",
    3: "refused: the OP is unknown, its state does not allow it, or somebody else holds it; nothing was written",
    4: "finished, but some OPs failed and are now in `error`, or some ready files were rejected",
    5: "`verify`, or a check of products, found something wrong",
    10: "the configuration is wrong: all mistakes are printed, each with its path in the file",
    75: "another run of this stage is running; nothing was done",
}


class L2invError(Exception):
    """A failure: one line with what and where, and a hint with what to do.

    Errors with the same key are one failure to cron (cli/failures.py); needed where the message varies from run to run."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "", key: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.key = key or message


class DatabaseError(L2invError):
    """PostgreSQL cannot be reached, refuses, or has a schema that this l2inv does not expect."""


class SchemaBehind(DatabaseError):
    """The schema is missing, or lacks migrations of this version: `l2inv migrate` adds them."""


class StoreError(L2invError):
    """The metadata store cannot be reached, refuses, or its answer cannot be read."""


class StoreRefused(StoreError):
    """The metadata store refused this one request."""


class CatalogError(L2invError):
    """The catalogers' broker cannot be reached, or did not take a message."""


class Unavailable(L2invError):
    """Something that every OP needs is unavailable: a mount, a disk, the cluster. No OP goes to error for it."""


class Refused(L2invError):
    """The OP is unknown, its state does not allow it, or somebody else holds the claim. Nothing was written."""

    exit_code = 3


class WrongProducts(Refused):
    """The files of an inversion do not meet the requirements. Nothing was written."""

    exit_code = 5


class ConfigError(L2invError):
    """The configuration is wrong: all mistakes, each with its path in the file."""

    exit_code = 10

    def __init__(self, where: str, mistakes: list[str]) -> None:
        super().__init__(f"{where}: {'; '.join(mistakes)}", "fix it, then run: l2inv config check")
        self.mistakes = mistakes


class Busy(L2invError):
    """Another run of this stage holds its lock, since that time if known. Nothing was done."""

    exit_code = 75

    def __init__(self, message: str, hint: str = "", since: "datetime | None" = None) -> None:
        super().__init__(message, hint)
        self.since = since
