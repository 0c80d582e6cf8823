"""SimCo: no queue, no momentum encoder, the dual temperature instead."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from simco_zoo.losses import dual_temperature
from simco_zoo.models.contrastive import ContrastiveModel, check_views, contrast_report


class SimCo(ContrastiveModel):
    """SimCo of "Dual Temperature Helps Contrastive Learning Without Many Negative Samples" (CVPR 2022).

    Both views pass the same encoder and carry gradient; the negatives of a query are the other images' projections in
    the other view. Defaults are the paper's: tau_alpha 0.1, tau_beta = dt_m * tau_alpha = 1, both directions averaged.

    Args:
        backbone: A timm model.
        temperature: tau_alpha, > 0.
        dt_m: Ratio tau_beta / tau_alpha, > 0; 1 gives InfoNCE.
        symmetric: Average both directions; otherwise view 1 is the query.
        joint_bn: One forward of 2N, batch norm spanning both views; False runs two of N, as the official code does.
        proj_hidden_dim: Width of the projector's hidden layer.
        proj_dim: Length of the projection.
    """

    method = "simco"

    def __init__(
        self,
        backbone: nn.Module,
        *,
        temperature: float = 0.1,
        dt_m: float = 10.0,
        symmetric: bool = True,
        joint_bn: bool = True,
        proj_hidden_dim: int | None = 128,
        proj_dim: int = 128,
    ) -> None:
        super().__init__(
            backbone,
            temperature=temperature,
            symmetric=symmetric,
            joint_bn=joint_bn,
            proj_hidden_dim=proj_hidden_dim,
            proj_dim=proj_dim,
        )
        if not dt_m > 0:
            raise ValueError(f"dt_m is {dt_m}, but has to be positive.")
        self.dt_m = dt_m

    def contrast(self, view1: Tensor, view2: Tensor, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Computes the dual temperature loss of two views.

        Args:
            view1: Images (N, C, H, W), N >= 2; of this process.
            view2: The same images in another view.
            generator: Not used; taken so that all methods are called alike.

        Returns:
            ``loss`` (differentiable scalar) and the detached scalars of ``contrast_report``.

        Raises:
            ValueError: If the views' shapes differ or N < 2.
        """
        check_views(view1, view2)
        features: list[Tensor] | None = [] if self.report_features else None
        z1, z2 = self.embed_views(self, view1, view2, features=features)
        if not self.symmetric:
            (k2,), own = self.gather_keys(z2)
            return contrast_report(self._loss(z1, k2, own), z1, z2, features)
        (k1, k2), own = self.gather_keys(z1, z2)
        return contrast_report((self._loss(z1, k2, own) + self._loss(z2, k1, own)) / 2, z1, z2, features)

    def _loss(self, query: Tensor, key: Tensor, own: int) -> Tensor:
        return dual_temperature(
            query, key, temperature=self.temperature, dt_m=self.dt_m, positive_offset=own, check=False
        )

    def method_config(self) -> dict[str, Any]:
        return {**super().method_config(), "dt_m": self.dt_m}
