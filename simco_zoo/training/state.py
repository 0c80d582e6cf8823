"""Where a run stands, and where its random numbers come from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simco_zoo.training.optimizer import Phase

_SHARED = ("step", "seconds", "epoch_seconds", "epoch_steps", "rows", "best")  # the same on every process


@dataclass
class TrainState:
    """Where a run stands: what a checkpoint holds besides the tensors of model and optimizer.

    Attributes:
        step: Optimizer steps done.
        seconds: Seconds of training so far, without measurements and files.
        epoch_seconds: The part of them that belongs to the epoch that has begun.
        epoch_steps: Steps of that epoch that ``sums`` holds.
        sums: Sums over those steps of what each of them reported.
        rows: Rows of the log, one per finished epoch.
        best: The row with the highest accuracy so far, empty if none was measured.
        phases: The stretches of the run with a learning-rate schedule each; the last one is under way.

    Example:
        >>> state = TrainState()
        >>> state.add({"loss": torch.tensor(2.0)})
        >>> state.epoch_steps, state.sums["loss"].item()
        (1, 2.0)
    """

    step: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    epoch_steps: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    phases: list[Phase] = field(default_factory=list)

    def add(self, report: dict[str, Tensor]) -> None:
        """Adds the scalars of one step to the sums of the epoch."""
        self.epoch_steps += 1
        for name, value in report.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def add_seconds(self, seconds: float) -> None:
        """Adds seconds of training to the run and to its epoch."""
        self.seconds += seconds
        self.epoch_seconds += seconds

    def highest(self, column: str) -> float | None:
        """Returns the highest value of a column of the log, None if it was not measured."""
        return max((row[column] for row in self.rows if column in row), default=None)

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Takes the row of an epoch and begins the next one."""
        self.rows.append(row)
        self.sums, self.epoch_steps, self.epoch_seconds = {}, 0, 0.0

    def shared(self) -> dict[str, Any]:
        """Returns what a checkpoint holds of this state, the same on every process."""
        values = {name: getattr(self, name) for name in _SHARED}
        return {**values, "phases": [asdict(phase) for phase in self.phases]}

    def own(self) -> dict[str, Any]:
        """Returns what a checkpoint holds of this process alone."""
        return {"rng": rng_state(), "sums": {name: value.cpu() for name, value in self.sums.items()}}

    def restore(self, shared: dict[str, Any], own: dict[str, Any]) -> None:
        """Goes back to a checkpoint, without its phases and random numbers."""
        for name in _SHARED:
            setattr(self, name, shared[name])
        self.sums = own["sums"]


def seeded_generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """Returns a CPU generator for one purpose ("order" of an epoch, "views" of a step) of one run.

    It need not be saved: seed, purpose and index give the same draws again.
    """
    # numpy's SeedSequence mixes the three numbers, so that neighboring seeds and steps share nothing
    entropy = [seed, sum(map(ord, purpose)), index]
    return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))


def seed_all(seed: int) -> None:
    """Seeds the global generators, which drop path and mixup draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """Returns the state of the global generators as plain values and tensors."""
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(cached)],
        "random": [version, list(internal), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restores what ``rng_state`` returned."""
    torch.set_rng_state(state["torch"])
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["random"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Puts the global generators back afterwards, so that what is done meanwhile changes nothing of the training."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
