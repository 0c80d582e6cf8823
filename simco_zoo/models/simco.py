"""SimCo: no queue, no momentum encoder, the dual temperature instead."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from simco_zoo.losses import dual_temperature
from simco_zoo.models.contrastive import ContrastiveModel, check_views, contrast_report, mean_over_pairs


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

    def contrast(
        self, view1: Tensor, view2: Tensor, *more: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Computes the dual temperature loss of two or more views.

        Args:
            view1: Images (N, C, H, W), N >= 2; of this process.
            view2: The same images in another view.
            *more: Further views; the loss is the mean over all ordered pairs of views, or over those with view 1 as
                query where ``symmetric`` is off.
            generator: Not used; taken so that all methods are called alike.

        Returns:
            ``loss`` (differentiable scalar) and the detached scalars of ``contrast_report``.

        Raises:
            ValueError: If the views' shapes differ or N < 2.
        """
        views = check_views(view1, view2, *more)
        features: list[Tensor] | None = [] if self.report_features else None
        z = self.embed_views(self, *views, features=features)  # V x (N, D)
        keys, offset = self.gather_keys(*z)  # V x (M, D), M = N x processes
        loss = partial(
            dual_temperature, temperature=self.temperature, dt_m=self.dt_m, positive_offset=offset, check=False
        )
        queries = z if self.symmetric else z[:1]
        return contrast_report(mean_over_pairs(loss, queries, keys), z[0], z[1], features)
