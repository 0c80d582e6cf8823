"""SimCo: neither queue nor momentum encoder; the dual temperature loss makes up for both."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from simco_zoo.losses import dual_temperature
from simco_zoo.losses.inputs import check_settings
from simco_zoo.models.contrastive import ContrastiveModel, contrast_report, gather_keys, mean_over_pairs
from simco_zoo.models.inputs import check_views


class SimCo(ContrastiveModel):
    """SimCo of "Dual Temperature Helps Contrastive Learning Without Many Negative Samples" (CVPR 2022).

    All views go through the same encoder and carry gradient; the negatives of a query are the other images' projections
    in the other view. Defaults are the paper's: tau_alpha 0.1, tau_beta = dt_m * tau_alpha = 1, both directions
    averaged.

    Args:
        backbone: A timm model.
        temperature: Temperature of the loss (tau_alpha), > 0.
        dt_m: Ratio tau_beta / tau_alpha, > 0; 1 gives InfoNCE.
        symmetric: Average both directions; otherwise view 1 is the query.
        joint_bn: One forward of 2N, batch norm spanning both views; False runs two of N, as the official code does.
        proj_hidden_dim: Width of the projector's hidden layer; 0 for a linear projector.
        proj_dim: Length of the projection.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import torch, timm
        >>> model = SimCo(timm.create_model("test_resnet", num_classes=0))
        >>> report = model.contrast(torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32))
        >>> report["loss"].backward()
        >>> sorted(report)
        ['loss', 'positive_similarity', 'proj_std']
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
        """Computes the dual temperature loss of two or more views.

        Args:
            view1: Images (N, C, H, W), N >= 2; those of this process.
            view2: The same images in another view.
            *more: Further views; the loss is the mean over all ordered pairs of views, or over those with view 1 as
                query where ``symmetric`` is off.
            generator: Not used; nothing is drawn.
            across_processes: Take the keys of all processes as negatives.
            hold_key_encoder: Not used; there is no key encoder.
            report_features: Report the features of all views.

        Returns:
            ``loss`` (differentiable scalar) and the detached scalars of ``contrast_report``.

        Raises:
            ValueError: If the views' shapes differ or N < 2.
        """
        views = check_views(view1, view2, *more, in_chans=self.in_chans)
        z, features = self.embed(self, *views)  # (N, D) and (N, num_features) per view
        keys, offset = gather_keys(*z) if across_processes else (z, 0)  # (M, D) per view, M = N x processes
        queries = z if self.symmetric else z[:1]
        loss = partial(
            dual_temperature, temperature=self.temperature, dt_m=self.dt_m, positive_offset=offset, check=False
        )
        total = mean_over_pairs(loss, queries, keys)  # each query meets the keys of the other views
        return contrast_report(total, z[0], z[1], features if report_features else None)

    def loss_config(self) -> dict[str, float | str]:
        return dual_temperature_config(self.temperature, self.dt_m)


def dual_temperature_config(temperature: float, dt_m: float) -> dict[str, float | str]:
    """Returns the loss's name and temperatures, for config.json and the model card."""
    return {"name": "dual temperature", "tau_alpha": temperature, "tau_beta": dt_m * temperature}
