"""What can go wrong, each with its exit code."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

# 2 is Click's own; 4 and 5 are results of a stage and of verify, no errors of the program.
EXIT_CODES = {
    0: "done, nothing to do included",
    1: "could not be done: the database, the metadata store or something unexpected; nothing is left half-written",
    2: "wrong usage",
    3: "refused: the OP is unknown, its state does not allow it, or somebody else holds it; nothing was written",
    4: "ran to its end, but some OPs failed and are now in `error`, or some ready files were rejected",
    5: "`verify`, or a check of products, found something wrong",
    10: "the configuration is wrong: every mistake is named at once, with its path in the file",
    75: "another run of this stage is at work; nothing was done",
}


class L2invError(Exception):
    """Could not be done: one line with what and where, and a hint with what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class DatabaseError(L2invError):
    """PostgreSQL cannot be reached, refuses, or holds another schema than this l2inv expects."""


class SchemaBehind(DatabaseError):
    """The schema is missing, or lacks migrations that this version brings: `l2inv migrate` adds them."""


class StoreError(L2invError):
    """The metadata store cannot be reached, refuses, or answers what cannot be read."""


class StoreRefused(StoreError):
    """The metadata store answered, and its answer to this one request is no."""


class CatalogError(L2invError):
    """The catalogers' broker cannot be reached, or did not take a message."""


class Unavailable(L2invError):
    """Something that every OP needs cannot be used: a mount, a disk, the cluster. No OP is blamed for it."""


class Refused(L2invError):
    """The OP is unknown, its state does not allow it, or somebody else holds the claim. Nothing written."""

    exit_code = 3


class WrongProducts(Refused):
    """The files of an inversion are not what they must be. Nothing written."""

    exit_code = 5


class ConfigError(L2invError):
    """The configuration is wrong: every mistake at once, each with its path in the file."""

    exit_code = 10

    def __init__(self, where: str, mistakes: list[str]) -> None:
        super().__init__(f"{where}: {'; '.join(mistakes)}", "fix it, then try: l2inv config check")
        self.mistakes = mistakes


class Busy(L2invError):
    """Another run of this stage holds its lock, which began at that time where it is known; nothing done."""

    exit_code = 75

    def __init__(self, message: str, hint: str = "", since: "datetime | None" = None) -> None:
        super().__init__(message, hint)
        self.since = since
