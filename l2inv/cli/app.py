"""The command line: the group of commands, and the decorator that adds one."""

from collections.abc import Callable
from functools import partial

import click

from l2inv import __version__
from l2inv.cli.options import common_options
from l2inv.cli.process import Group


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="l2inv")
@partial(common_options, from_environment=True)
def main() -> None:
    """From Level 1 datasets in the metadata store to published Level 2 inversions.

    scan -> qualify -> preprocess -> next, claim, mark-inverted -> publish
    """


def command(*names: str) -> Callable[[Callable[..., None]], click.Command]:
    """Return a decorator that makes a function a command: it takes the common options, and is passed the App."""

    def make(function: Callable[..., None]) -> click.Command:
        return main.command(*names)(common_options(click.pass_obj(function)))

    return make
