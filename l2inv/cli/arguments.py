"""Types of arguments, and their completion in a shell."""

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Function = TypeVar("Function", bound=Callable[..., Any])


def nearest(typed: str, known: Iterable[str]) -> str:
    """Return the known name that a mistyped one resembles most, as a clause; empty if it resembles none."""
    from difflib import get_close_matches

    near = get_close_matches(typed, list(known), n=1, cutoff=0.5)
    return f", the nearest is {near[0]}" if near else ""


# ParamType takes a type argument since click 8.4 alone: it has none here.


class OneOf(click.Choice):  # type: ignore[type-arg]
    """One of several values; an error names the nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as problem:
            self.fail(problem.message.rstrip(".") + nearest(str(value), self.choices), param, ctx)


class Actor(click.ParamType):  # type: ignore[type-arg]
    """A person's or a role's name: printable, one line."""

    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value.strip() or not value.isprintable() or len(value) > 100:
            self.fail("must be 1 to 100 printable characters", param, ctx)
        return value.strip()


class Words(click.ParamType):  # type: ignore[type-arg]
    """Nonempty UTF-8 text."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail("is not UTF-8 text", param, ctx)
        if not value.strip():
            self.fail("is empty", param, ctx)
        return value


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A length of time: a number and d, h, m or w; a bare number counts days."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([mhdw]?)", value, re.ASCII)
        if not found or float(found[1]) == 0:
            self.fail(f"{value!r} is not a length of time, such as 21d, 12h or 2w", param, ctx)
        minutes = {"m": 1, "h": 60, "d": 1440, "w": 10_080, "": 1440}[found[2]]
        length = timedelta(minutes=float(found[1]) * minutes)
        if length > timedelta(days=36_525):
            self.fail(f"{value!r} is more than a century", param, ctx)
        return length


class RankBy(Words):
    """A ranking of OPs with the same priority: a value of the setting next.rank_by, upper or lower case."""

    name = "what"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from typing import get_args

        from l2inv.config import settings

        known = get_args(settings.RankBy)
        name = value.lower().replace("-", "_")
        if name not in known:
            self.fail(f"{value!r} is none of {', '.join(known)}{nearest(name, known)}", param, ctx)
        return name

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list["CompletionItem"]:
        from typing import get_args

        from click.shell_completion import CompletionItem

        from l2inv.config import settings

        return [CompletionItem(name) for name in get_args(settings.RankBy) if name.startswith(incomplete)]


def list_option(flag: str, name: str, metavar: str, text: str) -> Callable[[Function], Function]:
    """Add an option that may be repeated, whose value is a list of words."""
    return click.option(flag, name, type=Words(), multiple=True, metavar=metavar, help=text)


class Time(click.ParamType):  # type: ignore[type-arg]
    """An ISO 8601 time; without an offset it is UTC."""

    name = "time"
    accepted = "an ISO 8601 time, such as 2026-11-23 or 2026-11-23T08:00:00Z"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            time = value if isinstance(value, datetime) else datetime.fromisoformat(value)
            return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not {self.accepted}", param, ctx)


class Since(Time):
    """A time, or a length of time before now."""

    accepted = f"a length of time before now, such as 24h, or {Time.accepted}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, str) and re.fullmatch(r"[0-9.]+[mhdw]", value, re.ASCII):
            return datetime.now(UTC) - Duration().convert(value, param, ctx)
        return super().convert(value, param, ctx)


class Stage(Words):
    """A stage that records runs."""

    name = "stage"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from l2inv.queries.metrics import STAGES

        stage: str = OneOf(STAGES).convert(value, param, ctx)
        return stage


class MaxAge(click.ParamType):  # type: ignore[type-arg]
    """A stage and the maximum age of its last good run: scan=26h."""

    name = "stage=duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, timedelta]:
        if isinstance(value, tuple):
            return value
        stage, equals, length = value.partition("=")
        if not equals:
            self.fail(f"{value!r} is not of the form scan=26h", param, ctx)
        return Stage().convert(stage, param, ctx), Duration().convert(length, param, ctx)


class Op(Words):
    """An OP's id or what else identifies it, such as a part of the id; a shell completes its beginning."""

    name = "op"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list["CompletionItem"]:
        from click.shell_completion import CompletionItem

        from l2inv.cli.completion import ops
        from l2inv.cli.context import App

        found = ops(ctx.ensure_object(App), ctx.command.name, incomplete)
        return [CompletionItem(op_id) for op_id in found]


op_argument = click.argument("op", metavar="OP", type=Op())
