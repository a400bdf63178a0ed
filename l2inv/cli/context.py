"""What all commands share: the common options, the connection, the result, warnings and progress."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import click

from l2inv.cli.streams import print_on_stderr
from l2inv.errors import L2invError

if TYPE_CHECKING:
    from pathlib import Path

    from l2inv.config.settings import Loaded, Settings
    from l2inv.database.connection import Connection


class App:
    """One command: its common options, settings, connection and output."""

    def __init__(self) -> None:
        self.config: str | None = None
        self.given_actor: str | None = None
        self.verbosity = 0
        self.json = False
        self.warned = ""  # the newest warning: what a stage that ends with an exit code says of it
        self.read: Loaded | None = None
        self.acts = False  # a command that records something has asked for the actor

    @property
    def actor(self) -> str:
        """Return who acts, for what is recorded: as given, or else the user that the operating system knows."""
        self.acts = True
        return self._actor

    @property
    def _actor(self) -> str:
        return self.given_actor or _os_user()

    def loaded(self) -> "Loaded":
        """The settings, read once; warn of what somebody must know of where they come from."""
        if self.read is None:
            from pathlib import Path

            from l2inv.config import settings

            self.read = settings.load(Path(self.config) if self.config else None, os.environ)
            self._warn_of(self.read.path)
        return self.read

    def _warn_of(self, path: "Path | None") -> None:
        """Warn where no settings were found, and where another user may change those that were named."""
        from l2inv.config import settings

        if path is None:
            from l2inv.database import embedded

            looked_at, folder = ", ".join(map(str, settings.places())), embedded.default_folder()
            self.warn(
                f"no settings in {looked_at}: the built-in ones hold, with the private database in {folder}"
            )
        elif path.is_file() and (why := settings.exposed(path)):
            self.warn(f"{path}: {why}; whoever can change it decides what runs here")

    @property
    def settings(self) -> "Settings":
        return self.loaded().settings

    @property
    def settings_file(self) -> str:
        """The settings file that was read, or that was named."""
        return str(self.read.path if self.read else self.config)

    @property
    def by_the_clock(self) -> bool:
        """Return whether cron, or what is like it, runs this: -q, and nobody watches."""
        return self.verbosity < 0 and not self.json and not sys.stderr.isatty()

    @contextmanager
    def connected(self, url: str | None = None) -> Iterator[tuple["Connection", "Settings"]]:
        """Lend a connection to the database that the settings name, or to another server of theirs."""
        from l2inv.database.access import connected

        with connected(self.settings, url, *self.session()) as connection:
            self.acts, role = False, connection.info.user
            try:
                yield connection, self.settings
            finally:
                if self.acts and (why := self.settings.notifications.contradicts(self._actor, role)):
                    self.warn(why)

    def reading(self) -> AbstractContextManager[tuple["Connection", "Settings"]]:
        """Lend a connection to the standby that the settings name for what only reads, else to the database."""
        return self.connected(self.settings.database.read_url)

    def session(self) -> tuple[str, Callable[[str], None]]:
        """Return the session's application_name, and the function that reports on a terminal what it waits for."""
        from l2inv.database.session import application_name

        told = self.warn if self.verbosity >= 0 and sys.stderr.isatty() else lambda line: None
        return application_name(click.get_current_context().info_name or "", self._actor), told

    def tails(self, connection: "Connection", op_ids: Iterable[str]) -> dict[str, str]:
        """Return what stands for the OPs' ids on a terminal that is too narrow for them; nothing where there is none."""
        from l2inv.cli import render
        from l2inv.record import event_log

        return event_log.tails(connection, op_ids) if render.width() is not None else {}

    def result(self, document: object, text: Callable[[], None]) -> None:
        """Print the result on stdout: the JSON document where --json asked for it, else what text() prints."""
        if self.json:
            from l2inv.wording import as_json

            click.echo(as_json(document))
        else:
            text()

    def unsaid(self, text: str) -> str:
        """Return the text without the secrets that the settings name, where they were read."""
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

        self.warned = clean(line)
        print_on_stderr(f"l2inv: {self.warned}")

    def warn_lines(self, text: str) -> None:
        """Print several lines on stderr: what -vv asked for."""
        from l2inv.wording import clean

        for line in text.splitlines():
            print_on_stderr(clean(line))

    @contextmanager
    def monitored(self, stage: str) -> Iterator[None]:
        """Ping the monitor that the settings name, if any, when a stage begins and when it ends."""
        settings = self.settings
        if settings.monitoring.ping_url is None:
            yield
            return
        import uuid

        from l2inv.config.settings import redact
        from l2inv.services import monitoring

        run_id = str(uuid.uuid4())
        silent = monitoring.ping(settings.monitoring, stage, run_id, "start")
        code, said = 1, "stopped"
        try:
            yield
            code, said = 0, ""
        except click.exceptions.Exit as end:
            code, said = end.exit_code, self.warned
            raise
        except L2invError as problem:
            code, said = problem.exit_code, problem.message
            raise
        except Exception as problem:
            said = f"unexpected: {type(problem).__name__}"
            raise
        finally:
            word = monitoring.word_for(code)
            silent = (
                monitoring.ping(settings.monitoring, stage, run_id, word, redact(said, settings)) or silent
            )
            if silent:
                self.warn(silent)

    @property
    def shows_progress(self) -> bool:
        """Return whether somebody watches: only a terminal shows it, and only beside text."""
        return self.verbosity >= 0 and not self.json and sys.stderr.isatty()

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int | None], None]]:
        """Lend a function that shows how many of what are done, and of how many."""
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
    except KeyError:  # a container may run as a number alone
        return f"uid-{os.geteuid()}"
