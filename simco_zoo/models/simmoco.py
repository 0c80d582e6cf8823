"""SimMoCo: MoCo without the queue; the dual temperature loss makes up for it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from simco_zoo.losses import dual_temperature
from simco_zoo.losses.inputs import check_settings
from simco_zoo.models.contrastive import contrast_report, gather_keys, mean_over_pairs
from simco_zoo.models.inputs import check_views
from simco_zoo.models.momentum import MomentumModel
from simco_zoo.models.simco import dual_temperature_config


class SimMoCo(MomentumModel):
    """SimMoCo of "Dual Temperature Helps Contrastive Learning Without Many Negative Samples" (CVPR 2022).

    The negatives of a query are the other images' keys in the other view. Defaults are the paper's: tau_alpha 0.1,
    tau_beta = dt_m * tau_alpha = 1, momentum 0.99, one-sided.

    Args:
        backbone: A timm model.
        temperature: Temperature of the loss (tau_alpha), > 0.
        dt_m: Ratio tau_beta / tau_alpha, > 0; 1 gives InfoNCE.
        momentum: Momentum of the key encoder, in [0, 1].
        symmetric: Average both directions (the official code's "plus version").
        joint_bn: Where several views go through an encoder, one forward for all rather than one for each.
        proj_hidden_dim: Width of the projector's hidden layer; 0 for a linear projector.
        proj_dim: Length of the projection.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import simco_zoo
        >>> model = simco_zoo.create_model("simmoco", backbone="test_resnet", momentum=0.999)
        >>> report = model.contrast(torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32))
        >>> report["loss"].backward()
    """

    method = "simmoco"

    def __init__(
        self,
        backbone: nn.Module,
        *,
        temperature: float = 0.1,
        dt_m: float = 10.0,
        momentum: float = 0.99,
        symmetric: bool = False,
        joint_bn: bool = True,
        proj_hidden_dim: int | None = 128,
        proj_dim: int = 128,
    ) -> None:
        super().__init__(
            backbone,
            momentum=momentum,
            temperature=temperature,
            symmetric=symmetric,
            joint_bn=joint_bn,
            proj_hidden_dim=proj_hidden_dim,
            proj_dim=proj_dim,
        )
        check_settings(temperature, dt_m)
        self.dt_m = dt_m

    def contrast(
        self,
        view1: Tensor,
        view2: Tensor,
        *more: Tensor,
        generator: torch.Generator | None = None,
        across_processes: bool = False,
        hold_key_encoder: bool = False,
        report_features: bool = False,
    ) -> dict[str, Tensor]:
        """Computes the dual temperature loss; in training mode the key encoder is updated first.

        Args:
            view1: Images (N, C, H, W), N >= 2, of this process; the queries.
            view2: The same images in another view; the keys.
            *more: Further views of the same images; more keys, and with ``symmetric`` more queries too.
            generator: Not used; nothing is drawn.
            across_processes: Take the keys of all processes as negatives.
            hold_key_encoder: Do not update the key encoder.
            report_features: Report the features of the query views.

        Returns:
            ``loss`` (differentiable scalar) and the detached scalars of ``contrast_report``.

        Raises:
            ValueError: If the views' shapes differ or N < 2.
        """
        views = check_views(view1, view2, *more, in_chans=self.in_chans)
        query_views, key_views = (views, views) if self.symmetric else (views[:1], views[1:])
        key_encoder = self.update_key_encoder(hold=hold_key_encoder)
        with torch.no_grad():
            keys, _ = self.embed(key_encoder, *key_encoder.cast(*key_views))  # (N, D) per key view
        queries, features = self.embed(self, *query_views)  # (N, D) and (N, num_features) per query view
        all_keys, offset = gather_keys(*keys) if across_processes else (keys, 0)  # (M, D), M = N x processes
        loss = partial(
            dual_temperature, temperature=self.temperature, dt_m=self.dt_m, positive_offset=offset, check=False
        )
        total = mean_over_pairs(loss, queries, all_keys, same_views=self.symmetric)
        positives = keys[1] if self.symmetric else keys[0]  # view 2's
        return contrast_report(total, queries[0], positives, features if report_features else None)

    def loss_config(self) -> dict[str, float | str]:
        return dual_temperature_config(self.temperature, self.dt_m)
