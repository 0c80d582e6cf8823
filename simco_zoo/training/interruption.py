"""Ctrl-C and preemption (SIGTERM): a run ends between two steps, never within one."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from simco_zoo.distributed import all_reduce_max

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal ended the run; ``signal`` says which, and ``exit_code`` is what a shell would report: 128 + signal.

    Example:
        >>> Interrupted(signal.SIGTERM).exit_code
        143
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number
        self.exit_code = 128 + number


class Interruption:
    """While entered, holds SIGINT and SIGTERM back until ``check`` is called; a second signal is not held back.

    An exception out of a signal handler can come between the optimizer's step and the counter of steps, and what is
    saved then belongs to no step at all. Outside the main thread Python delivers no signals, and nothing is changed.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            # a job in the background of a script ignores SIGINT, and goes on doing so
            heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._receive) for number in heard}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt(f"a second {signal.Signals(number).name}; nothing was saved since the last epoch")
        self.received = number

    def check(self, flag: bool = False) -> bool:
        """Raises Interrupted if a signal came, on every process if it came to one.

        Returns:
            Whether the flag is set on any process; it travels with the question about signals.
        """
        urgency = all_reduce_max(2 if self.received is not None else int(flag))
        if urgency == 2:
            raise Interrupted(self.received or signal.SIGTERM)
        return urgency == 1
