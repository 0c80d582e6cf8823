"""The log as TensorBoard shows it, where that is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoard:
    """Writes the rows of ``log.csv`` as scalars into ``RUN/tensorboard``; nothing if tensorboard is not installed.

    Args:
        run: The run's folder.
        done: Epochs of the run that are in its log already; later ones of an earlier attempt are dropped.
        enabled: Whether to write at all.
    """

    def __init__(self, run: Path, done: int, enabled: bool) -> None:
        self._writer: Any = None
        if enabled and importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=done + 1)

    def on_epoch(self, row: Mapping[str, float]) -> None:
        """Writes the numbers of an epoch, each under its column's name, at that epoch."""
        if self._writer is None:
            return
        for name, value in row.items():
            if name not in ("epoch", "step"):
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
