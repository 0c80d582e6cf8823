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


class ConstantThenCosine(CosineLRScheduler):
    """timm's warm-up and cosine with a constant part of ``constant_t`` steps between them.

    Args:
        optimizer: The optimizer whose rates are set.
        constant_t: Steps at the full rate between warm-up and cosine, >= 0.
        **kwargs: See timm's ``CosineLRScheduler``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, constant_t: int, **kwargs: Any) -> None:
        self.constant_t = constant_t
        super().__init__(optimizer, **kwargs)

    def _get_lr(self, t: int) -> list[float]:
        return super()._get_lr(t if t < self.warmup_t else max(t - self.constant_t, self.warmup_t))


def build_schedule(
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig | FinetuneConfig,
    steps_per_epoch: int,
    total_steps: int,
    peak_lr: float | None = None,
) -> ConstantThenCosine:
    """Builds linear warm-up, a constant part, then a cosine to 0 at the last of ``total_steps``.

    The warm-up starts at a tenth of the rate and lasts the smaller of ``warmup_epochs`` and a tenth of the run. The
    cosine takes the last ``decay_share`` of the steps (all that follow the warm-up where that is 1). ``peak_lr`` is the
    rate after the warm-up where that is not the config's. The schedule is stepped once per optimizer step.
    """
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total_steps // 10)
    decay = min(round(getattr(config, "decay_share", 1.0) * total_steps), total_steps - warmup)
    return ConstantThenCosine(
        optimizer,
        constant_t=total_steps - warmup - decay,
        t_initial=max(decay, 1),
        warmup_t=warmup,
        warmup_lr_init=(config.peak_lr if peak_lr is None else peak_lr) / 10,
        warmup_prefix=True,
        t_in_epochs=False,
    )
