"""A bar of products on a terminal: tqdm's, or a line of text where that is not installed."""

import shutil
import sys
import time


def shown_bar(total, initial):
    """A bar at so many of `total` products, or of unknown many; None where stderr is no terminal.

    It has three of tqdm's methods: `update(count)`, `set_postfix_str(text, refresh)` and `close()`.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return Line(total, initial)
    # Its own guess of how many updates to skip is of a steady rate, and the first product compiles.
    return tqdm(total=total, initial=initial, unit=" products", miniters=1, dynamic_ncols=True)


class Line:
    """A line of text that is written over itself: the count, the rate and a text."""

    def __init__(self, total, initial):
        self._file = sys.stderr
        self._goal = "" if total is None else f" of {total}"
        self._count = self._initial = initial
        self._text = ""
        self._start = time.perf_counter()
        self._write(self._start)

    def set_postfix_str(self, text, refresh):
        """The text from the next update on; as of tqdm, which may refresh at once."""
        self._text = f", {text}" if text else ""

    def update(self, count):
        """So many products more."""
        self._count += count
        now = time.perf_counter()
        if now >= self._written + WRITE_SECONDS:
            self._write(now)

    def close(self):
        """The last count, and the end of the line."""
        if self._file is not None:
            self._write(time.perf_counter())
            self._file.write("\n")
            self._file.flush()
            self._file = None

    __del__ = close

    def _write(self, now):
        self._written = now
        seconds = now - self._start
        rate = (self._count - self._initial) / seconds if seconds > 0 else 0
        line = f"{self._count}{self._goal} products, {seconds:.1f} s, {rate:.3g} per second{self._text}"
        width = shutil.get_terminal_size().columns - 1  # a line that wraps is not written over
        self._file.write("\r" + line[:width].ljust(width))
        self._file.flush()


WRITE_SECONDS = 0.1
