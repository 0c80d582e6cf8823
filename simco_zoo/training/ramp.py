"""The random views of pretraining, at the resolutions of the ramp."""

from __future__ import annotations

import copy

import torch

from simco_zoo.data import TwoViews
from simco_zoo.training.config import TrainingConfig, parse_sizes
from simco_zoo.training.state import TrainState


class RampedViews:
    """The views of each side that ``config.sizes`` names, e.g. 16 px first and 32 px at the end.

    Args:
        config: Settings.
        image_size: Side in pixels of the training images, and of the views without a ramp.
        dtype: Type of the views.
        device: Device to compute on.
    """

    def __init__(self, config: TrainingConfig, image_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.stages = parse_sizes(config.sizes or f"{image_size}:1")
        self.by_side = {
            side: TwoViews(
                config.view_preset,
                size=side,
                count=config.views_per_image,
                dtype=dtype,
                channels_last=config.channels_last,
                # on a CPU only the chosen images' colors are computed, and how many differs from step to step
                compile_mode=config.compile_mode if config.compile and device.type != "cpu" else None,
            )
            for side, _ in self.stages
        }

    def at(self, state: TrainState) -> TwoViews:
        """Returns the views of the next step."""
        phase = state.phases[-1]
        done = (state.step - phase.start) / (phase.end - phase.start)
        return self.by_side[next(side for side, end in self.stages if done < end)]

    def only(self, side: int) -> RampedViews:
        """Returns these views with one side for all steps."""
        views = copy.copy(self)
        views.stages = [(side, 1.0)]
        return views
