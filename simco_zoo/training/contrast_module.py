"""The method's loss as a module, which torch's distributed training and compiler see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from simco_zoo.distributed import world_size
from simco_zoo.models import ContrastiveModel
from simco_zoo.models.contrastive import known_options
from simco_zoo.models.moco import MoCo
from simco_zoo.training.config import TrainingConfig


class ContrastModule(nn.Module):
    """The method's loss as a forward: DistributedDataParallel synchronizes gradients through no other."""

    def __init__(self, model: ContrastiveModel, config: TrainingConfig) -> None:
        super().__init__()
        self.model = model
        self.loss = torch.compile(model.contrast, mode=config.compile_mode) if config.compile else model.contrast
        # the queue is the same on all processes, so it takes the keys of all
        across_processes = world_size() > 1 and (config.negatives == "global" or isinstance(model, MoCo))
        self.options = {"across_processes": across_processes, "report_features": config.online_linear}

    def forward(self, *views: Tensor, **options: Any) -> dict[str, Tensor]:
        return self.loss(*views, **known_options(self.model, {**self.options, **options}))
