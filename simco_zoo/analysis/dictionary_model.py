"""The model that the studies of negatives train: a momentum encoder whose negatives can be chosen freely."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from simco_zoo.losses import anchor_strength, dual_temperature
from simco_zoo.models.contrastive import contrast_report
from simco_zoo.models.inputs import check_views
from simco_zoo.models.momentum import KeyEncoder, MomentumModel
from simco_zoo.models.queue import random_keys, write_keys

Strength = Literal["own", "mean", "scaled"]


class DictionaryModel(MomentumModel):
    """A one-sided momentum model with one dictionary for the direction of the gradient and one for its strength.

    Both are taken from a queue of the keys of earlier steps, or are the other keys of the batch. With the queue for
    both and ``dt_m=1`` this is MoCo v2, with the batch for both it is SimMoCo.

    Args:
        backbone: A timm model.
        vector_size: Number of keys of the queue that give the direction; 0 for the other keys of the batch.
        scalar_size: Number of keys of the queue that give the strength 1 - p(tau_beta); None for those that give the
            direction.
        skip: Number of the newest keys of the queue that are left out: age times batch size makes the others older.
        negative_momentum: Momentum of an encoder of its own for the batch's negatives; None for the key encoder.
        strength: "own" gives each anchor its own strength; "mean" gives all of them the mean strength of the batch, so
            that anchors are moved alike, by as much as before; "scaled" divides the loss by that mean, so that
            they are moved unequally, but the mean step is not smaller.
        temperature: tau_alpha.
        dt_m: tau_beta / tau_alpha.
        momentum: Momentum of the key encoder.
        proj_hidden_dim: Width of the projector's hidden layer.
        proj_dim: Length of the projection.

    Raises:
        ValueError: If the negatives of an own encoder are to come from the queue.
    """

    method = "dictionaries"
    unpublished: ClassVar[tuple[str, ...]] = ("key_encoder", "negative_encoder")
    queue: Tensor
    pointer: Tensor
    negative_encoder: KeyEncoder | None

    def __init__(
        self,
        backbone: nn.Module,
        *,
        vector_size: int = 0,
        scalar_size: int | None = None,
        skip: int = 0,
        negative_momentum: float | None = None,
        strength: Strength = "own",
        temperature: float = 0.1,
        dt_m: float = 1.0,
        momentum: float = 0.99,
        proj_hidden_dim: int | None = 128,
        proj_dim: int = 128,
    ) -> None:
        super().__init__(
            backbone,
            temperature=temperature,
            momentum=momentum,
            proj_hidden_dim=proj_hidden_dim,
            proj_dim=proj_dim,
        )
        if negative_momentum is not None and vector_size:
            raise ValueError("negative_momentum is for the negatives of the batch; leave vector_size at 0.")
        self.vector_size, self.scalar_size, self.skip = vector_size, scalar_size, skip
        self.negative_momentum, self.strength, self.dt_m = negative_momentum, strength, dt_m
        self.register_buffer("queue", random_keys(max(vector_size, scalar_size or 1) + skip, proj_dim))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.negative_encoder = None

    def init_key_encoder(self) -> None:
        super().init_key_encoder()
        if self.negative_momentum is not None and self.negative_encoder is None:
            self.negative_encoder = KeyEncoder(self)
            self.negative_encoder.train(self.training)

    def contrast(self, view1: Tensor, view2: Tensor, *more: Tensor, **options: Any) -> dict[str, Tensor]:
        """Computes the loss with view 1 as query.

        Args:
            view1: Images (N, C, H, W), N >= 2.
            view2: The same images in another view.
            *more: Not used.
            **options: See ``ContrastiveModel.contrast``.

        Returns:
            What ``contrast_report`` collects, and mean and coefficient of variation of the strength 1 - p(tau_beta):
            ``train_strength_mean`` and ``train_strength_cv``.
        """
        check_views(view1, view2, in_chans=self.in_chans)
        key_encoder = self.update_key_encoder(hold=options.get("hold_key_encoder", False))
        with torch.no_grad():
            (key,), _ = self.embed(key_encoder, view2)  # (N, D)
            vector = self.newest(self.vector_size) if self.vector_size else self._others(key, view2)
            scalar = None if self.scalar_size is None else self.newest(self.scalar_size)  # (S, D)
        (query,), features = self.embed(self, view1)  # (N, D) and (N, num_features)
        loss, strength = self._loss_and_strength(query, key, vector, scalar)
        if self.training:
            write_keys(self.queue, self.pointer, key)
        report = contrast_report(loss, query, key, features if options.get("report_features") else None)
        spread = strength.std(correction=0) / strength.mean()
        return {**report, "train_strength_mean": strength.mean(), "train_strength_cv": spread}

    def newest(self, count: int) -> Tensor:
        """Returns a copy of the newest keys (count, D) that are not skipped, the newest one last."""
        last = self.pointer - self.skip + torch.arange(-count, 0, device=self.queue.device)
        return self.queue[last % len(self.queue)]

    def _others(self, key: Tensor, view: Tensor) -> Tensor | None:
        """Returns the batch's negatives (N, N - 1, D) from an encoder of their own; None for the keys themselves."""
        if self.negative_momentum is None:
            return None
        assert self.negative_encoder is not None
        if self.training:
            self.negative_encoder.momentum_update(self, self.negative_momentum)
        (rows,), _ = self.embed(self.negative_encoder, view)
        n = len(key)
        elsewhere = ~torch.eye(n, dtype=torch.bool, device=key.device)
        return rows.expand(n, n, -1)[elsewhere].view(n, n - 1, -1)

    def _loss_and_strength(
        self, query: Tensor, key: Tensor, vector: Tensor | None, scalar: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns the loss of queries and keys (N, D), and the strength (N,) of each query."""
        options: dict[str, Any] = {"temperature": self.temperature, "check": False}
        strength = anchor_strength(query, key, vector, dt_m=self.dt_m, scalar_negatives=scalar, **options)
        if self.strength == "mean":
            # with an infinite dt_m all anchors have the strength V / (V + 1), V the number of negatives
            negatives = len(key) - 1 if vector is None else vector.shape[-2]
            alike = dual_temperature(query, key, vector, dt_m=math.inf, **options) * (negatives + 1) / negatives
            return alike * strength.mean(), strength
        loss = dual_temperature(query, key, vector, dt_m=self.dt_m, scalar_negatives=scalar, **options)
        return loss / strength.mean() if self.strength == "scaled" else loss, strength
