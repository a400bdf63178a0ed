"""What all commands share: the common options, the connection, the report, and how errors come out."""

import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

import click

from l2inv import __version__
from l2inv.cli.arguments import Actor
from l2inv.cli.sections import COMMANDS, SECTIONS
from l2inv.errors import L2invError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from l2inv.database import Connection
    from l2inv.settings import Loaded, Settings

# What a URL in a traceback may hold of secrets: user and password, and the values of its query.
_IN_URLS = r"(://(?=[^/@\s]*@)|[?&]\w+=)[^@&\s'\"]+"

F = TypeVar("F", bound=Callable[..., Any])


class App:
    """What the common options say."""

    def __init__(self) -> None:
        self.config: str | None = None
        self.given_actor: str | None = None
        self.verbosity = 0
        self.json = False
        self.warned = ""  # the newest warning: what a stage that ends with an exit code says of it
        self.read: Loaded | None = None

    @property
    def actor(self) -> str:
        """Who acts: as given, or else the user that the operating system knows."""
        return self.given_actor or _os_user()

    def loaded(self) -> "Loaded":
        """The settings, read once; warns where somebody else may change their file."""
        if self.read is None:
            from pathlib import Path

            from l2inv import settings

            self.read = settings.load(Path(self.config) if self.config else None, os.environ)
            if self.read.path and (why := settings.exposed(self.read.path)):
                self.warn(f"{self.read.path}: {why}; whoever changes it says what runs here")
        return self.read

    @property
    def settings(self) -> "Settings":
        return self.loaded().settings

    @contextmanager
    def connected(self) -> Iterator[tuple["Connection", "Settings"]]:
        from l2inv import database

        settings = self.settings
        with database.connected(settings) as connection:
            yield connection, settings

    @contextmanager
    def reading(self) -> Iterator[tuple["Connection", "Settings"]]:
        """Lends a connection to the standby that the settings name for what only reads, else to the database."""
        from l2inv import database

        settings = self.settings
        with database.connected(settings, settings.database.read_url) as connection:
            yield connection, settings

    def result(self, document: object, text: Callable[[], None]) -> None:
        """Prints the result on stdout: the JSON document where --json asked for it, else what text() prints."""
        if self.json:
            from l2inv.render import as_json

            click.echo(as_json(document))
        else:
            text()

    def unsaid(self, text: str) -> str:
        """Gives the text without the secrets that the settings name, where they were read."""
        if self.read is None:
            return text
        from l2inv.settings import redact

        return redact(text, self.read.settings)

    def summary(self, line: str) -> None:
        """Prints a stage's closing line, unless -q."""
        if self.verbosity >= 0:
            from l2inv.render import paragraph

            paragraph(line)

    def summaries(self, lines: Iterable[str]) -> None:
        """Prints several such lines."""
        for line in lines:
            self.summary(line)

    def warn(self, line: str) -> None:
        """Tells on stderr what somebody must look at, also under -q."""
        from l2inv.render import clean

        self.warned = clean(line)
        _say_on_stderr(f"l2inv: {self.warned}")

    def warn_lines(self, text: str) -> None:
        """Tells several lines on stderr: what -vv asked for."""
        from l2inv.render import clean

        for line in text.splitlines():
            _say_on_stderr(clean(line))

    @contextmanager
    def monitored(self, stage: str) -> Iterator[None]:
        """Tells the monitor of the settings, where there is one, that a stage begins and how it ended."""
        settings = self.settings
        if settings.monitoring.ping_url is None:
            yield
            return
        import uuid

        from l2inv import monitoring
        from l2inv.settings import redact

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
        """Whether somebody watches: only a terminal shows it, and only beside text."""
        return self.verbosity >= 0 and not self.json and sys.stderr.isatty()

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int | None], None]]:
        """Lends a function that shows how many of what are done, and of how many."""
        if not self.shows_progress:
            yield lambda done, of: None
            return
        from l2inv.cli.progress import Line

        line = Line(what)
        try:
            yield line
        finally:
            line.end()


def _common(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value not in (None, 0, False):
            app = ctx.ensure_object(App)
            setattr(app, name, getattr(app, name) + value if name == "verbosity" else value)

    return keep


def _less(ctx: click.Context, param: click.Parameter, value: int) -> None:
    _common("verbosity")(ctx, param, -value)


def common_options(command: F, *, from_environment: bool = False) -> F:
    """Adds the options that every command takes, before or after its name.

    Only those before it may come from the environment: there, they must not outvote what was typed.
    """
    config = click.Path(readable=False)  # the settings say what is wrong with a file
    env = {"actor": "L2INV_ACTOR", "config": "L2INV_CONFIG"} if from_environment else {}
    for option in (
        click.option("-q", "quiet", count=True, expose_value=False, callback=_less, help="Only what somebody must look at."),
        click.option("-v", "verbose", count=True, expose_value=False, callback=_common("verbosity"), help="Say more; -vv adds tracebacks."),
        click.option("--actor", type=Actor(), envvar=env.get("actor"), expose_value=False, callback=_common("given_actor"), help="Who acts (L2INV_ACTOR; default: the OS user)."),
        click.option("--config", type=config, envvar=env.get("config"), expose_value=False, callback=_common("config"), help="The settings file (L2INV_CONFIG)."),
    ):  # fmt: skip
        command = option(command)
    return command


def json_option(command: F) -> F:
    """Adds --json to a command that reports."""
    return click.option(
        "--json", "as_json", is_flag=True, expose_value=False, callback=_common("json"), help="One JSON document on stdout."
    )(command)  # fmt: skip


# A group without a command: since click 8.2 its help is an error's message.
_HELP = getattr(click.exceptions, "NoArgsIsHelpError", ())


class Group(click.Group):
    """The commands of l2inv in their sections, each imported when it is asked for.

    Errors come out as the contract says: one line, or JSON, and the exit code of what happened.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            module, _ = COMMANDS[cmd_name]
            import_module(f"l2inv.cli.{module}")  # adds its commands to this group
        return super().get_command(ctx, cmd_name)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list["CompletionItem"]:
        from click.shell_completion import CompletionItem

        names = [name for name in COMMANDS if name.startswith(incomplete)]
        found = [CompletionItem(name, help=COMMANDS[name][1]) for name in names]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        longest = max(map(len, COMMANDS))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(longest), phrase) for name, (_, phrase) in commands.items()])

    def main(self, args: Sequence[str] | None = None, *more: Any, **how: Any) -> Any:
        """Runs a command line; a usage error is told in one harmless text, under --json as a JSON document."""
        _open_what_is_closed()
        given = sys.argv[1:] if args is None else list(args)
        try:
            code = super().main(given, *more, **(how | {"standalone_mode": False}))
        except click.ClickException as problem:
            from l2inv.render import clean

            code = problem.exit_code
            if not isinstance(problem, _HELP):
                vars(problem)["message"] = clean(problem.message)  # it repeats what was typed
            try:
                if "--json" in given:
                    _say_json(code, problem.format_message(), "see --help")
                else:
                    problem.show()
            except OSError:
                _mute(sys.stdout, sys.stderr)
        except OSError as problem:  # of the help
            code = 1
            _mute(sys.stdout)
            _say_on_stderr(f"l2inv: stdout: {problem.strerror or problem}; mend that and run it again")
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.parent is not None:
            return super().invoke(ctx)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a poor terminal shows what it can
        import signal

        app = ctx.ensure_object(App)
        before = (
            {s: signal.signal(s, _terminated) for s in (signal.SIGTERM, signal.SIGHUP)}
            if _in_main_thread()
            else {}
        )
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except L2invError as problem:
            _report(app, problem.exit_code, problem.message, problem.hint)
        except (click.exceptions.Exit, click.ClickException, BrokenPipeError):
            raise
        except (KeyboardInterrupt, click.Abort, _Terminated):
            _report(app, 1, "stopped", "run it again: nothing was left half-written")
        except OSError as problem:
            where = f"{problem.filename}: " if problem.filename else ""
            _report(app, 1, f"{where}{problem.strerror or problem}", "mend that and run it again")
        except Exception as problem:
            text = " ".join(f"{type(problem).__name__}: {problem}".split())
            _report(app, 1, f"unexpected: {text}", "run again with -vv and report what it prints")
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, made to unwind like Ctrl-C, at which psycopg cancels the statement that runs."""


def _terminated(number: int, _: object) -> NoReturn:
    import signal

    raise _Terminated(f"stopped by {signal.Signals(number).name}")


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


def _report(app: App, code: int, message: str, hint: str) -> NoReturn:
    message, hint = app.unsaid(message), app.unsaid(hint)
    if app.verbosity > 1:
        import traceback

        app.warn_lines(app.unsaid(re.sub(_IN_URLS, r"\1***", traceback.format_exc())))
    try:
        if app.json:
            _say_json(code, message, hint)
        sys.stdout.flush()
    except OSError:
        _mute(sys.stdout)
        app.json = False
    if not app.json:
        app.warn(f"{message}; {hint}" if hint else message)
    raise click.exceptions.Exit(code)


def _say_on_stderr(line: str) -> None:
    """What stderr does not take, as on a full disk, nobody can be told; the exit code still says how it ended."""
    try:
        click.echo(line, err=True)
    except OSError:
        _mute(sys.stderr)


def _mute(*streams: TextIO) -> None:
    """Lets streams that take nothing more take all: tried again at exit, it would end in a traceback and in 120."""
    for stream in streams:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_what_is_closed() -> None:
    """Where l2inv was started with a standard stream closed, a connection would get its number, and what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w"))


def _say_json(code: int, message: str, hint: str) -> None:
    from l2inv.render import as_json

    click.echo(as_json({"error": {"code": code, "message": message, "hint": hint}}))


def _os_user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container may run as a number alone
        return f"uid-{os.geteuid()}"


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="l2inv")
@partial(common_options, from_environment=True)
def main() -> None:
    """From Level 1 datasets in the metadata store to published Level 2 inversions.

    scan -> qualify -> preprocess -> next, claim, mark-inverted -> publish
    """


def command(*names: str) -> Callable[[Callable[..., None]], click.Command]:
    """Makes a function a command of l2inv that takes the common options and is passed the App."""

    def make(function: Callable[..., None]) -> click.Command:
        return main.command(*names)(common_options(click.pass_obj(function)))

    return make
