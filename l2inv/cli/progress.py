"""How far long work has come: one line on a terminal's stderr, written over and over, and gone when the work is done."""

import sys
import time

from l2inv.render import bar, length, terminal_columns

FIRST_SECONDS = 0.5  # work that is done by then shows nothing
EVERY_SECONDS = 0.1


class Line:
    """Shows how much of what is done, at which rate, and how long the rest will take."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.done = 0
        self.begun = time.monotonic()
        self.next = self.begun + FIRST_SECONDS
        self.written = 0  # columns of the terminal

    def __call__(self, done: int, of: int | None = None) -> None:
        """Takes note that so many are done, of so many where that is known. Fewer than before: another pass began."""
        now = time.monotonic()
        if done < self.done:
            self.begun = now
        self.done = done
        if now >= self.next:
            self.next = now + EVERY_SECONDS
            self._write(self._text(now - self.begun, of))

    def end(self) -> None:
        """Takes the line away."""
        if self.written:
            self._write("")

    def _text(self, seconds: float, of: int | None) -> str:
        rate = self.done / seconds if seconds > 0 else 0.0
        speed = f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"
        if not of:
            return f"{self.done:,} {self.what}  {speed}"
        share = min(self.done / of, 1.0)
        left = f"  {length((of - self.done) / rate)} left" if rate and self.done < of else ""
        return f"[{bar(share, 20):20}] {share:4.0%}  {self.done:,} of {of:,} {self.what}  {speed}{left}"

    def _write(self, text: str) -> None:
        # No escapes: blanks take away what was there, so that this works on any terminal.
        text = text[: terminal_columns(sys.stderr) - 1]
        sys.stderr.write("\r" + text.ljust(self.written) + "\r" * (not text))
        sys.stderr.flush()
        self.written = len(text)
