"""What all commands share: common options, connection, result, warnings and progress."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import click

from l2inv.cli.streams import mute, print_on_stderr
from l2inv.errors import L2invError

if TYPE_CHECKING:
    from pathlib import Path

    from l2inv.config.settings import Loaded, Settings
    from l2inv.database.connection import Connection
    from l2inv.domain.op import WholeOp


class App:
    """One command: its common options, settings, connection and output."""

    def __init__(self) -> None:
        self.config: str | None = None
        self.given_actor: str | None = None
        self.verbosity = 0
        self.json = False
        self.last_warning = ""  # sent to the monitor when a stage ends with an exit code
        self.read: Loaded | None = None
        self.acts = False  # the command records something, so it asked for the actor

    @property
    def actor(self) -> str:
        """Return the actor to record: as given, or else the operating system's user."""
        self.acts = True
        return self._actor

    @property
    def _actor(self) -> str:
        return self.given_actor or _os_user()

    def loaded(self) -> "Loaded":
        """Return the settings, read once, and warn if they come from nowhere or from a file that others may change."""
        if self.read is None:
            from pathlib import Path

            from l2inv.config import settings

            self.read = settings.load(Path(self.config) if self.config else None, os.environ)
            self._warn_of(self.read.path)
        return self.read

    def _warn_of(self, path: "Path | None") -> None:
        """Warn if there is no settings file, or if another user may change it."""
        from l2inv.config import settings

        if path is None:
            from l2inv.database import embedded

            looked_at, folder = ", ".join(map(str, settings.places())), embedded.default_folder()
            self.warn(
                f"no settings in {looked_at}: using the defaults, with the private database in {folder}"
            )
        elif path.is_file() and (why := settings.exposed(path)):
            self.warn(f"{path}: {why}; anyone who can change it decides what runs here")

    @property
    def settings(self) -> "Settings":
        return self.loaded().settings

    @property
    def settings_file(self) -> str:
        """Return the settings file that was read, or that was named."""
        return str(self.read.path if self.read else self.config)

    @property
    def by_the_clock(self) -> bool:
        """Return whether this runs from cron or the like: -q, and stderr is not a terminal."""
        return self.verbosity < 0 and not self.json and not sys.stderr.isatty()

    @contextmanager
    def connected(self, url: str | None = None) -> Iterator[tuple["Connection", "Settings"]]:
        """Yield a connection to the settings' database or to another server, and the settings."""
        from l2inv.database.access import connected

        with connected(self.settings, url, *self.session()) as connection:
            self.acts, role = False, connection.info.user
            try:
                yield connection, self.settings
            finally:
                if self.acts and (why := self.settings.notifications.contradicts(self._actor, role)):
                    self.warn(why)

    def reading(self) -> AbstractContextManager[tuple["Connection", "Settings"]]:
        """Yield a connection to database.read_url if it is set, else to the database; and the settings."""
        return self.connected(self.settings.database.read_url)

    @contextmanager
    def acting_on(self, op: str, line: "Callable[[WholeOp], str]") -> Iterator[tuple["Connection", str]]:
        """Yield a connection and the id of the OP that `op` identifies; then print a line about it, or it as JSON."""
        from l2inv.queries import observing_programs
        from l2inv.record import event_log

        with self.connected() as (connection, settings):
            op_id = event_log.resolve(connection, op)
            yield connection, op_id
            found = observing_programs.show(connection, op_id, settings.qualification)
        self.result(found, lambda: self.summary(line(found)))

    def session(self) -> tuple[str, Callable[[str], None]]:
        """Return the session's application_name, and the function that reports what it waits for on a terminal."""
        from l2inv.database.session import application_name

        report = self.warn if self.verbosity >= 0 and sys.stderr.isatty() else lambda line: None
        return application_name(click.get_current_context().info_name or "", self._actor), report

    def tails(self, connection: "Connection", op_ids: Iterable[str]) -> dict[str, str]:
        """Return short forms of OP ids for a narrow terminal; empty where stdout is not a terminal."""
        from l2inv.cli import render
        from l2inv.record import event_log

        return event_log.tails(connection, op_ids) if render.width() is not None else {}

    def result(self, document: object, text: Callable[[], None]) -> None:
        """Print the result on stdout: with --json the document, else what text() prints.

        A reader that is gone, such as `head -1`, changes nothing: the exit code reports how the work ended.
        """
        try:
            if self.json:
                from l2inv.wording import as_json

                click.echo(as_json(document))
            else:
                text()
                sys.stdout.flush()
        except BrokenPipeError:
            mute(sys.stdout)

    def redacted(self, text: str) -> str:
        """Return the text with the settings' secrets replaced, if the settings were read."""
        if self.read is None:
            return text
        from l2inv.config.settings import redact

        return redact(text, self.read.settings)

    def summary(self, line: str) -> None:
        """Print a stage's closing line, unless -q."""
        if self.verbosity >= 0:
            from l2inv.cli.render import paragraph

            paragraph(line)

    def summaries(self, lines: Iterable[str]) -> None:
        """Print several such lines."""
        for line in lines:
            self.summary(line)

    def warn(self, line: str) -> None:
        """Print a warning on stderr, also under -q."""
        from l2inv.wording import clean

        self.last_warning = clean(line)
        print_on_stderr(f"l2inv: {self.last_warning}")

    def warn_lines(self, text: str) -> None:
        """Print several lines on stderr, such as a traceback."""
        from l2inv.wording import clean

        for line in text.splitlines():
            print_on_stderr(clean(line))

    @contextmanager
    def monitored(self, stage: str) -> Iterator[None]:
        """Ping the monitor of the settings, if any, when a stage begins and when it ends."""
        settings = self.settings
        if settings.monitoring.ping_url is None:
            yield
            return
        import uuid

        from l2inv.config.settings import redact
        from l2inv.services import monitoring

        run_id = str(uuid.uuid4())
        problem_of_ping = monitoring.ping(settings.monitoring, stage, run_id, "start")
        code, reason = 1, "stopped"
        try:
            yield
            code, reason = 0, ""
        except click.exceptions.Exit as end:
            code, reason = end.exit_code, self.last_warning
            raise
        except L2invError as problem:
            code, reason = problem.exit_code, problem.message
            raise
        except Exception as problem:
            reason = f"unexpected: {type(problem).__name__}"
            raise
        finally:
            word = monitoring.word_for(code)
            problem_of_ping = (
                monitoring.ping(settings.monitoring, stage, run_id, word, redact(reason, settings))
                or problem_of_ping
            )
            if problem_of_ping:
                self.warn(problem_of_ping)

    @property
    def shows_progress(self) -> bool:
        """Return whether to show progress: only on a terminal, and only beside text."""
        return self.verbosity >= 0 and not self.json and sys.stderr.isatty()

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int | None], None]]:
        """Yield a function that shows how many are done, and of how many."""
        if not self.shows_progress:
            yield lambda done, of: None
            return
        from l2inv.cli.progress import Line

        line = Line(what)
        try:
            yield line
        finally:
            line.end()


def _os_user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user may have no name
        return f"uid-{os.geteuid()}"
