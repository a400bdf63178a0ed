"""Progress of long work: one line on a terminal's stderr, removed when the work is done."""

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


FIRST_SECONDS = 0.5  # shorter work shows nothing, and does not import rich
EVERY_SECONDS = 0.1
RATE_SECONDS = 3600  # over which the rate is averaged: a single OP may take minutes


class Line:
    """The progress line: how many are done, at which rate, and the time remaining."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.next = time.monotonic() + FIRST_SECONDS
        self.shown: Progress | None = None

    def __call__(self, done: int, of: int | None = None) -> None:
        """Show that so many are done, of so many if known. Fewer than before mean that another pass began."""
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + EVERY_SECONDS
        if self.shown is None:
            self.shown = _progress(self.what)
        (task,) = self.shown.tasks
        if done < task.completed:
            self.shown.reset(task.id)
        self.shown.update(task.id, completed=done, total=of)
        self.shown.start()

    def end(self) -> None:
        """Remove the line."""
        if self.shown and not self.shown.disable:
            self.shown.stop()


def _progress(what: str) -> "Progress":
    from rich import progress
    from rich.console import Console
    from rich.table import Column
    from rich.text import Text

    class Rate(progress.ProgressColumn):
        def render(self, task: progress.Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("-/s" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s")

    console = Console(stderr=True)
    whole = Column(no_wrap=True)  # on a narrow terminal, only the bar shrinks
    shown = progress.Progress(
        progress.BarColumn(bar_width=None),
        progress.TaskProgressColumn(),
        progress.MofNCompleteColumn(" of ", whole),
        progress.TextColumn("{task.description}", markup=False),
        Rate(whole),
        progress.TimeRemainingColumn(table_column=whole),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        speed_estimate_period=RATE_SECONDS,
        disable=not console.is_interactive,
    )
    shown.add_task(what, total=None)
    return shown
