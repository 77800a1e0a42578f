"""How far runs have come, for people: a bar on a terminal, a line every few seconds in a log."""

import sys
import threading
import time
from contextlib import AbstractContextManager

from tqdm import tqdm

LOG_EVERY_SECONDS = 10


class ProgressBar(AbstractContextManager):
    """Steps done, of cells, runs or notebooks; `show` may be called from several threads."""

    def __init__(self, name: str, unit: str) -> None:
        self.name, self.unit = name, unit
        self.bar = tqdm(desc=name, unit=unit, leave=False, disable=not sys.stderr.isatty())
        self.last_line = time.monotonic()
        self.one_at_a_time = threading.Lock()

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, done: int, total: int, now: str = "") -> None:
        now = now or f"{self.unit} {done + 1} of {total}"
        with self.one_at_a_time:
            self.bar.n, self.bar.total = done, total
            self.bar.set_postfix_str(now)
            if self.bar.disable and time.monotonic() - self.last_line > LOG_EVERY_SECONDS:
                self.last_line = time.monotonic()
                print(f"{self.name}  {now}", file=sys.stderr, flush=True)

    @staticmethod
    def write(line: str) -> None:
        """Print a line that stays, above the bar if there is one."""
        tqdm.write(line)
        sys.stdout.flush()
