"""The official code's own metric: a linear classifier that learns during a run and gives no gradient back."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simco_zoo.distributed import mean_over_processes
from simco_zoo.evaluation import Features
from simco_zoo.evaluation.metrics import accuracy_with_interval, topk_correct
from simco_zoo.models import ContrastiveModel
from simco_zoo.training.config import TrainingConfig
from simco_zoo.training.optimizer import Phase, build_schedule

LR = 0.3  # whatever the batch


class OnlineProbe:
    """A linear classifier on the features of the views that pass the query encoder, with the labels of their images.

    SGD, learning rate 0.3, momentum 0.9, no weight decay, the run's own schedule (official code,
    ``solo/methods/base.py``). It changes nothing of the model. Of a one-sided MoCo or SimMoCo only view 1 passes the
    query encoder, where the official code runs an extra forward of view 2 for its classifier.

    Args:
        model: The model, on its device.
        classes: Number of classes.
        config: Settings of the run.
        phase: Which steps, for the schedule.
    """

    def __init__(self, model: ContrastiveModel, classes: int, config: TrainingConfig, phase: Phase) -> None:
        device = next(model.parameters()).device
        self.classifier = nn.Linear(model.num_features, classes, device=device)
        generator = torch.Generator().manual_seed(config.seed)
        with torch.no_grad():  # torch's own initialization, but the same on every process and none of the run's draws
            for parameter in self.classifier.parameters():
                bound = model.num_features**-0.5
                parameter.copy_(torch.rand(parameter.shape, generator=generator) * 2 * bound - bound)
        self.optimizer = torch.optim.SGD(self.classifier.parameters(), lr=LR, momentum=0.9)
        self.config = config
        self.set_phase(phase, 0)

    def set_phase(self, phase: Phase, step: int) -> None:
        """Gives the probe the schedule of a phase of the run, at a step of it."""
        self.schedule = build_schedule(self.optimizer, self.config, phase, peak_lr=LR)
        self.schedule.step_update(step)

    def step(self, features: Tensor, labels: Tensor, step: int) -> Tensor:
        """Learns from the features that ``contrast`` reported.

        Args:
            features: Detached rows (V * N, D) of V views.
            labels: Class numbers (N,) of this process's images, in their order.
            step: The optimizer's steps done, this one included.

        Returns:
            The cross-entropy, detached.
        """
        # images without a label (-1) teach nothing; a batch of none but those gives a loss of 0
        targets = labels.repeat(len(features) // len(labels))
        losses = F.cross_entropy(self.classifier(features.float()), targets, ignore_index=-1, reduction="sum")
        loss = losses / (targets >= 0).sum().clamp(min=1)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for parameter in self.classifier.parameters():
            assert parameter.grad is not None
            parameter.grad = mean_over_processes(parameter.grad)
        self.optimizer.step()
        self.schedule.step_update(step)
        return loss.detach()

    @torch.no_grad()
    def accuracy(self, test: Features) -> dict[str, float]:
        """Returns ``online_top1`` and ``online_top5`` in percent on features of clean test images."""
        assert test.labels is not None
        device = self.classifier.weight.device
        scores = self.classifier(test.features.to(device))
        found = accuracy_with_interval(topk_correct(scores, test.labels.to(device)), len(test))
        return {f"online_{key}": round(found[key], 3) for key in ("top1", "top5")}

    def state_dict(self) -> dict[str, Any]:
        return {"classifier": self.classifier.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned; ``set_phase`` has to follow."""
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
