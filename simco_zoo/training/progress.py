"""What a person sees of a run: a progress bar in a terminal, a line per epoch elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

LINE_EVERY = 300.0  # seconds between two lines within an epoch
# columns of the log in a line, with what stands before and after the number
_SHOWN = {
    "loss": "loss {:.4f}",
    "knn_top1": "kNN {:.1f} %",
    "top1": "top-1 {:.1f} %",
    "lr": "lr {:.2g}",
    "images_per_second": "{:.0f} images/s",
}


class Progress:
    """Shows how far a run is, on stderr.

    Args:
        enabled: Whether to show anything.
        bar: Whether to show a bar; None: if stderr is a terminal.
    """

    def __init__(self, enabled: bool, bar: bool | None) -> None:
        self.enabled = enabled
        self._as_bar = enabled and (sys.stderr.isatty() if bar is None else bar)
        self._bar = tqdm(disable=True)
        self._steps = self._first = self._total = 0
        self._began = self._line = time.monotonic()

    def say(self, text: str) -> None:
        """Writes a line."""
        if self.enabled:
            tqdm.write(text, file=sys.stderr)
            sys.stderr.flush()

    @contextlib.contextmanager
    def shown(self, description: str, first: int, total: int) -> Iterator[None]:
        """Shows the progress of a run that begins after ``first`` of ``total`` steps."""
        self._steps = self._first = first
        self._total = total
        self._began = self._line = time.monotonic()
        hidden = not self._as_bar
        with tqdm(
            total=total, initial=first, desc=description, unit="step", disable=hidden, dynamic_ncols=True
        ) as self._bar:
            yield

    def step(self) -> None:
        """Counts a step."""
        self._steps += 1
        self._bar.update()

    def show(self, values: dict[str, float]) -> None:
        """Shows the figures of a step: in the bar, or in a line if the last one was long ago."""
        self._bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()})
        if not self._as_bar and time.monotonic() - self._line > LINE_EVERY:
            self._write_line(f"step {self._steps}/{self._total}", values)

    def epoch(self, row: dict[str, Any]) -> None:
        """Shows the figures of an epoch that has ended."""
        if not self._as_bar:
            self._write_line(f"epoch {row['epoch']}, step {row['step']}/{self._total}", row)

    def _write_line(self, head: str, values: dict[str, Any]) -> None:
        now = time.monotonic()
        self._line = now
        shown = [text.format(values[name]) for name, text in _SHOWN.items() if name in values]
        done = self._steps - self._first
        left = (now - self._began) / done * (self._total - self._steps) if done else 0.0
        self.say(f"{head}: {', '.join(shown)}; about {_duration(left)} left")


def _duration(seconds: float) -> str:
    """Returns seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
