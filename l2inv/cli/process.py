"""The process: find and run commands, turn signals into exceptions, print every error on one line, set the exit code."""

import io
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import click

from l2inv.cli.arguments import nearest
from l2inv.cli.context import App
from l2inv.cli.sections import COMMANDS, SECTIONS
from l2inv.cli.streams import mute, open_what_is_closed, print_on_stderr
from l2inv.errors import Busy, L2invError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# Where a URL in a traceback may have secrets: user and password, and the values of its query.
_IN_URLS = r"(://(?=[^/@\s]*@)|[?&]\w+=)[^@&\s'\"]+"

LASTING = (1, 10)  # exit codes of failures that last until somebody fixes them
DID_ITS_WORK = (0, 4, 5)  # exit codes by which such a failure is over

STOPPED = "stopped", "run it again: nothing was left half-written"

# A group without a command: since click 8.2, its help is the message of an error.
_HELP = getattr(click.exceptions, "NoArgsIsHelpError", ())


class Subcommands(click.Group):
    """A group of commands; an error names the command nearest to a mistyped one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchOption:
            raise
        except click.UsageError as problem:  # since click 8.4, NoSuchCommand
            near = nearest(args[0], self.list_commands(ctx))
            raise click.UsageError(problem.message.rstrip(".") + near, ctx) from None


class Group(Subcommands):
    """The commands of l2inv in their sections, each imported when it is needed.

    Errors are printed as one line, or as JSON, and determine the exit code.
    """

    group_class = Subcommands

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
        """Run a command line; print a usage error as one line, or with --json as a JSON document."""
        open_what_is_closed()
        given = sys.argv[1:] if args is None else list(args)
        try:
            code = super().main(given, *more, **(how | {"standalone_mode": False}))
        except _HELP as problem:
            code = problem.exit_code
            try:
                problem.show()
            except OSError:
                mute(sys.stdout, sys.stderr)
        except click.ClickException as problem:
            code = problem.exit_code
            message, hint = _usage(problem)
            try:
                if "--json" in given:
                    _print_json(code, message, hint)
                else:
                    print_on_stderr(f"l2inv: {message}; {hint}")
            except OSError:
                mute(sys.stdout)
        except click.Abort:  # Ctrl-C before a command was found: a traceback, if left to Python
            code = 1
            print_on_stderr("l2inv: {}; {}".format(*STOPPED))
        except OSError as problem:  # while printing help
            code = 1
            mute(sys.stdout)
            print_on_stderr(f"l2inv: stdout: {problem.strerror or problem}; fix that and run it again")
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.parent is not None:
            return super().invoke(ctx)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # for terminals that are not UTF-8
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
            _print_what_is_over(app, ctx)
            return result
        except Busy as problem:
            if app.by_the_clock and _is_within_limit(app, problem):
                raise click.exceptions.Exit(problem.exit_code) from None
            _report(app, problem.exit_code, problem.message, problem.hint)
        except L2invError as problem:
            _report(app, problem.exit_code, problem.message, problem.hint, key=problem.key)
        except click.exceptions.Exit as end:
            if end.exit_code in DID_ITS_WORK:
                _print_what_is_over(app, ctx)
            raise
        except click.ClickException:
            raise
        except BrokenPipeError as problem:
            if not _reader_is_gone():
                _report(app, 1, f"unexpected: {problem}", "run again with -vv and report what it prints")
        except (KeyboardInterrupt, click.Abort, _Terminated):
            _report(app, 1, *STOPPED)
        except OSError as problem:
            where = f"{problem.filename}: " if problem.filename else ""
            text = f"{where}{problem.strerror or problem}"
            _report(app, 1, text, "fix that and run it again", key=text)
        except Exception as problem:
            text = " ".join(f"{type(problem).__name__}: {problem}".split())
            key = f"unexpected: {type(problem).__name__}"
            _report(app, 1, f"unexpected: {text}", "run again with -vv and report what it prints", key=key)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _usage(problem: click.ClickException) -> tuple[str, str]:
    """Return what is wrong with a command line, and the help to read."""
    from l2inv.wording import clean

    ctx = getattr(problem, "ctx", None)
    text = clean(" ".join(problem.message.split())).rstrip(".")  # may repeat what was typed
    if isinstance(problem, click.BadParameter):
        vars(problem)["message"] = text
        text = problem.format_message().rstrip(".")
    if isinstance(problem, click.NoSuchOption) and ctx:
        text += nearest(problem.option_name, [name for p in ctx.command.params for name in p.opts])
    command = ctx.command_path if ctx else "l2inv"
    return text[:1].lower() + text[1:], f"see: {re.sub(r'^main', 'l2inv', command)} --help"


class _Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, handled like Ctrl-C: psycopg then cancels the running statement."""


def _terminated(number: int, _: object) -> NoReturn:
    import signal

    raise _Terminated(f"stopped by {signal.Signals(number).name}")


def _reader_is_gone() -> bool:
    """Return whether the reader of stdout has closed it, as `head -1` does; from then on, stdout is discarded."""
    import select

    out = select.poll()
    out.register(sys.stdout.fileno(), 0)  # what is wrong with it is reported in any case
    if out.poll(0):
        mute(sys.stdout)
        return True
    return False


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


def _report(app: App, code: int, message: str, hint: str, key: str = "") -> NoReturn:
    """Print an error and exit. Without a key, it is printed each time, also under cron."""
    message, hint = app.redacted(message), app.redacted(hint)
    if app.verbosity > 1:
        import traceback

        app.warn_lines(app.redacted(re.sub(_IN_URLS, r"\1***", traceback.format_exc())))
    try:
        if app.json:
            _print_json(code, message, hint)
        sys.stdout.flush()
    except OSError:
        mute(sys.stdout)
        app.json = False
    line = f"{message}; {hint}" if hint else message
    if not app.json and (to_print := _to_print(app, code, app.redacted(key), line)):
        app.warn(to_print)
    raise click.exceptions.Exit(code)


def _to_print(app: App, code: int, key: str, line: str) -> str | None:
    """Return the line to print; None for a lasting failure that was already printed within a day."""
    if not app.by_the_clock or code not in LASTING or not key:
        return line
    from datetime import UTC, datetime

    from l2inv.cli import failures

    command = _command(click.get_current_context())
    return failures.to_print(app.settings_file, command, key, line, datetime.now(UTC))


def _print_what_is_over(app: App, ctx: click.Context) -> None:
    if app.by_the_clock:
        from l2inv.cli import failures

        for line in failures.over(app.settings_file, _command(ctx)):
            app.warn(line)


def _is_within_limit(app: App, busy: Busy) -> bool:
    """Return whether the running run began less than monitoring.run_limit_hours ago."""
    from datetime import UTC, datetime, timedelta

    limit = timedelta(hours=app.settings.monitoring.run_limit_hours)
    return busy.since is not None and datetime.now(UTC) - busy.since <= limit


def _command(ctx: click.Context) -> str:
    return ctx.find_root().invoked_subcommand or ""


def _print_json(code: int, message: str, hint: str) -> None:
    from l2inv.wording import as_json

    click.echo(as_json({"error": {"code": code, "message": message, "hint": hint}}))
