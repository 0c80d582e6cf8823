"""Optimizer and learning-rate schedule, both timm's."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from simco_zoo.training.config import TrainingConfig
from simco_zoo.training.finetune_config import FinetuneConfig

_FUSED = {"sgd", "momentum", "adam", "adamw"}  # timm's names of those that torch has


def build_optimizer(model: nn.Module, config: TrainingConfig | FinetuneConfig) -> torch.optim.Optimizer:
    """Builds timm's optimizer over the parameters that are trained (a key encoder's are not).

    On a GPU torch's own optimizers run fused, one kernel for all parameters.
    """
    on_gpu = next(model.parameters()).device.type == "cuda"
    fused: dict[str, Any] = {"fused": True} if on_gpu and config.opt in _FUSED else {}
    return create_optimizer_v2(
        model,
        opt=config.opt,
        lr=config.peak_lr,
        weight_decay=config.weight_decay,
        momentum=config.opt_momentum,
        filter_bias_and_bn=config.filter_bias_and_norm,
        layer_decay=getattr(config, "layer_decay", None),
        **fused,
    )


def build_schedule(
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig | FinetuneConfig,
    steps_per_epoch: int,
    total_steps: int,
    peak_lr: float | None = None,
) -> CosineLRScheduler:
    """Builds linear warm-up, then cosine to 0 at the last of ``total_steps``; stepped once per optimizer step.

    The warm-up starts at a tenth of the rate and lasts the smaller of ``warmup_epochs`` and a tenth of the run.
    ``peak_lr`` is the rate after it where that is not the config's.
    """
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total_steps // 10)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(total_steps - warmup, 1),
        warmup_t=warmup,
        warmup_lr_init=(config.peak_lr if peak_lr is None else peak_lr) / 10,
        warmup_prefix=True,
        t_in_epochs=False,
    )
