"""max_hours: how many steps fit into a given time."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from simco_zoo.distributed import gather_objects
from simco_zoo.training.state import preserved_rng

if TYPE_CHECKING:
    from simco_zoo.training.pretraining import Pretraining

TRIAL_SECONDS = 5.0  # of steps that are measured, for each side of the resolution ramp
TRIAL_STEPS = 20  # at most
MARGIN = 0.03  # share of the time that is left for files and for what is slower later


def fitting_steps(trainer: Pretraining, seconds: float, most: int) -> int:
    """Returns how many more steps fit into a time, measurements included.

    Some steps of each side of the resolution ramp and every measurement are made once and timed; then the trainer is
    put back to where it was. Every process has to call this and gets the same answer.

    Args:
        trainer: The trainer, at the step from which it will go on.
        seconds: The time, from now.
        most: Upper bound of the answer.
    """
    began = time.monotonic()
    step_seconds = _seconds_per_step(trainer, seconds)
    monitor, config = trainer.monitor, trainer.config
    diagnostics = _seconds(monitor.diagnostics)
    accuracies = _seconds(lambda: monitor.accuracies(-1))  # no step has that number
    linear = _seconds(lambda: monitor.linear(-1))

    def cost(steps: int) -> float:
        epochs = math.ceil(steps / trainer.steps_per_epoch)
        measured = 1 + (epochs // config.knn_every if config.knn_every else 0)
        return steps * step_seconds + epochs * diagnostics + measured * accuracies + linear

    left = (seconds - (time.monotonic() - began)) * (1 - MARGIN)
    low, high = 1, max(1, most)
    while low < high:  # the most steps whose cost is within the time
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= left else (low, middle - 1)
    return int(gather_objects(low)[0])


def _seconds_per_step(trainer: Pretraining, seconds: float) -> float:
    """Returns the mean time of a step over the resolution ramp."""
    saved, state, views = copy.deepcopy(trainer.state_dict()), copy.copy(trainer.state), trainer.views
    limit = min(TRIAL_SECONDS, 0.02 * seconds / len(views.stages))
    trainer.begin_epoch(0, 0)
    mean = before = 0.0
    for side, end in views.stages:
        trainer.views = views.only(side)
        mean += (end - before) * _time_of_steps(trainer, limit)
        before = end
    trainer.views = views
    trainer.state.step = state.step
    trainer.load_state_dict(saved)
    trainer.set_phases(state.phases)
    return mean


def _time_of_steps(trainer: Pretraining, limit: float) -> float:
    """Returns the time of a step, of as many as fit into a limit in seconds; the trainer moves on."""
    with preserved_rng():
        batches = itertools.cycle(trainer.batches(0, 0, min(TRIAL_STEPS, trainer.steps_per_epoch)))

        def steps(count: int) -> None:
            for _ in range(count):
                trainer.train_step(next(batches))

        steps(1)  # kernels are chosen, workers start
        first = _seconds(partial(steps, 1))
        # every process makes as many
        count = int(gather_objects(min(TRIAL_STEPS, max(1, round(limit / first))))[0])
        return _seconds(partial(steps, count)) / count


def _seconds(call: Callable[[], object]) -> float:
    """Returns the time of a call, until the device has done what it began."""
    with preserved_rng():
        began = time.perf_counter()
        call()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return time.perf_counter() - began
