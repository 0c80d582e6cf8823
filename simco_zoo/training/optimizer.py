"""Optimizer and learning-rate schedule, both timm's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from simco_zoo.training.config import TrainingConfig
from simco_zoo.training.finetune_config import FinetuneConfig

_FUSED = {"sgd", "momentum", "adam", "adamw"}  # timm's names of those that torch has
_GROUP_SETTINGS = {"weight_decay", "momentum", "initial_lr", "lr_scale"}


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


@dataclass(frozen=True)
class Phase:
    """A stretch of a run with its own learning-rate schedule; a run that was extended may have several.

    Attributes:
        start: Steps of the run before it.
        end: Steps of the run when it is over.
        warmup: Steps of linear warm-up, from a tenth of the rate.
        decay: Steps of the cosine to 0, the last ones; in between the rate is constant.
    """

    start: int
    end: int
    warmup: int
    decay: int


def plan(config: TrainingConfig | FinetuneConfig, steps_per_epoch: int, start: int, end: int) -> Phase:
    """Plans a stretch of a run.

    The warm-up lasts the smaller of ``warmup_epochs`` and a tenth of the stretch. The cosine takes the last
    ``decay_share`` of the steps (all that follow the warm-up where that is 1).
    """
    steps = end - start
    warmup = min(round(config.warmup_epochs * steps_per_epoch), steps // 10)
    decay = min(round(getattr(config, "decay_share", 1.0) * steps), steps - warmup)
    return Phase(start, end, warmup, decay)


def extend(
    phases: list[Phase], config: TrainingConfig | FinetuneConfig, steps_per_epoch: int, step: int, end: int
) -> list[Phase]:
    """Plans how a run goes on to more steps than it was started for.

    Where the learning rate has not begun to decay after ``step`` steps, the constant part grows and the warm-up stays
    as it was. Otherwise a new phase follows: warm-up, constant part and decay, as at the start, over the steps that are
    left.
    """
    last = phases[-1]
    if step > last.end - last.decay:
        return [*phases, plan(config, steps_per_epoch, step, end)]
    grown = plan(config, steps_per_epoch, last.start, end)
    return [*phases[:-1], replace(grown, warmup=last.warmup, decay=min(grown.decay, end - last.start - last.warmup))]


class ConstantThenCosine(CosineLRScheduler):
    """timm's warm-up and cosine with a constant part between them.

    Args:
        optimizer: The optimizer whose rates are set.
        phase: Which steps.
        **kwargs: See timm's ``CosineLRScheduler``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, phase: Phase, **kwargs: Any) -> None:
        self.start = phase.start
        self.constant_t = phase.end - phase.start - phase.warmup - phase.decay
        super().__init__(optimizer, t_initial=max(phase.decay, 1), warmup_t=phase.warmup, **kwargs)

    def _get_lr(self, t: int) -> list[float]:
        return super()._get_lr(t if t < self.warmup_t else max(t - self.constant_t, self.warmup_t))

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        super().step_update(num_updates - self.start, metric)


def build_schedule(
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig | FinetuneConfig,
    phase: Phase,
    peak_lr: float | None = None,
) -> ConstantThenCosine:
    """Builds a phase's schedule, which is stepped once per step of the optimizer.

    ``peak_lr`` is the rate after the warm-up where that is not the config's.
    """
    for group in optimizer.param_groups:  # where another schedule was there before
        group["lr"] = group.get("initial_lr", group["lr"])
    return ConstantThenCosine(
        optimizer,
        phase,
        warmup_lr_init=(config.peak_lr if peak_lr is None else peak_lr) / 10,
        warmup_prefix=True,
        t_in_epochs=False,
    )


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restores an optimizer's state; the settings of its parameter groups stay those that it was built with."""
    own = [{key: group[key] for key in _GROUP_SETTINGS & group.keys()} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)
