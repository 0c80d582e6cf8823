"""Optimizer and learning-rate schedule, both timm's."""

from __future__ import annotations

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from simco_zoo.training.config import TrainingConfig
from simco_zoo.training.finetune_config import FinetuneConfig


def build_optimizer(model: nn.Module, config: TrainingConfig | FinetuneConfig) -> torch.optim.Optimizer:
    """Builds timm's optimizer over the parameters that are trained (a key encoder's are not)."""
    return create_optimizer_v2(
        model,
        opt=config.opt,
        lr=config.peak_lr,
        weight_decay=config.weight_decay,
        momentum=config.opt_momentum,
        filter_bias_and_bn=config.filter_bias_and_norm,
        layer_decay=getattr(config, "layer_decay", None),
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, config: TrainingConfig | FinetuneConfig, steps_per_epoch: int, total_steps: int
) -> CosineLRScheduler:
    """Builds linear warm-up, then cosine to 0 at the last of ``total_steps``; stepped once per optimizer step.

    The warm-up starts at a tenth of the rate and lasts the smaller of ``warmup_epochs`` and a tenth of the run.
    """
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total_steps // 10)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(total_steps - warmup, 1),
        warmup_t=warmup,
        warmup_lr_init=config.peak_lr / 10,
        warmup_prefix=True,
        t_in_epochs=False,
    )
