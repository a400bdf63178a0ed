"""The options that every command takes."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from l2inv.cli.arguments import Actor
from l2inv.cli.context import App

F = TypeVar("F", bound=Callable[..., Any])


def _common(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value not in (None, 0, False):
            app = ctx.ensure_object(App)
            setattr(app, name, getattr(app, name) + value if name == "verbosity" else value)

    return keep


def _less(ctx: click.Context, param: click.Parameter, value: int) -> None:
    _common("verbosity")(ctx, param, -value)


def common_options(command: F, *, from_environment: bool = False) -> F:
    """Add the options that every command takes, before or after its name; a command's own option of the same name wins.

    They are last in its help. Only those before the command's name are read from the environment, so that what was typed
    takes precedence.
    """
    own: list[click.Parameter] = getattr(command, "__click_params__", [])
    vars(command)["__click_params__"] = []
    config = click.Path(readable=False)  # loading reports what is wrong with a file
    env = {"actor": "L2INV_ACTOR", "config": "L2INV_CONFIG"} if from_environment else {}
    for option in (
        click.option("-q", "quiet", count=True, expose_value=False, callback=_less, help="Show only warnings and errors."),
        click.option("-v", "verbose", count=True, expose_value=False, callback=_common("verbosity"), help="Print more; -vv adds tracebacks."),
        click.option("--actor", type=Actor(), envvar=env.get("actor"), expose_value=False, callback=_common("given_actor"), help="The actor to record (L2INV_ACTOR; default: the OS user)."),
        click.option("--config", type=config, envvar=env.get("config"), expose_value=False, callback=_common("config"), help="The settings file (L2INV_CONFIG)."),
    ):  # fmt: skip
        command = option(command)
    taken = {name for parameter in own for name in parameter.opts}
    common: list[click.Parameter] = vars(command)["__click_params__"]
    # Click shows the last of the list first.
    vars(command)["__click_params__"] = [c for c in common if not taken & set(c.opts)] + own
    return command


def json_option(command: F) -> F:
    """Add --json to a command."""
    return click.option(
        "--json", "as_json", is_flag=True, expose_value=False, callback=_common("json"), help="Print one JSON document on stdout."
    )(command)  # fmt: skip
