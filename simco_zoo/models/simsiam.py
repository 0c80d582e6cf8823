"""SimSiam: neither negatives nor momentum encoder, but a predictor and a stop-gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from simco_zoo.models.contrastive import ContrastiveModel, contrast_report, mean_over_pairs
from simco_zoo.models.inputs import check_views
from simco_zoo.models.projector import PredictorKind, build_norm_projector, build_predictor, unit_rows


class SimSiam(ContrastiveModel):
    """SimSiam of "Exploring Simple Siamese Representation Learning" (CVPR 2021).

    The prediction from one view is pulled towards the projection of the other one, which carries no gradient. Defaults
    are the authors' for CIFAR: a projector of two layers with batch norm, each view in a forward of its own.

    ``predictor`` takes the method apart, after "How Does SimSiam Avoid Collapse Without Negative Samples?" (ICLR 2022).
    With z the projection, p = h(z) the prediction and sg the stop-gradient, the loss of a query and its target is

    - "mlp": -cos(p1, sg(z2)) with an MLP as h: SimSiam;
    - "linear", "bias": the same with a matrix, or with only a vector that is added, on unit z;
    - "none": -cos(z1, sg(z2)), the naive Siamese network, which collapses;
    - "mirror": -cos(p1, sg(p2)), the predictor on both sides, which collapses;
    - "inverse": -cos(p1, sg(g(p2))), the predictor on both sides, but undone on the target's side by an MLP g, which
      is trained by -cos(g(sg(p2)), sg(z2)).

    Args:
        backbone: A timm model.
        predictor: What predicts one view from the other: "mlp", "bias", "linear", "mirror", "inverse" or "none".
        pred_hidden_dim: Width of the predictor's hidden layer, where it is an MLP.
        proj_layers: Number of the projector's linear layers, each with batch norm; the authors take 3 on ImageNet.
        last_norm: Whether batch norm follows the projector's last layer. It keeps the projections of a batch from
            becoming a single point, so that a broken variant shows its collapse by correlated coordinates instead; the
            study of the collapse leaves it out.
        symmetric: Average both directions; otherwise view 1 is the query.
        joint_bn: One forward for all views, batch norm spanning them; False runs one for each, as the authors do.
        proj_hidden_dim: Width of the projector's hidden layers.
        proj_dim: Length of the projection.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import simco_zoo
        >>> model = simco_zoo.create_model("simsiam", backbone="test_resnet")
        >>> report = model.contrast(torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32))
        >>> report["loss"].backward()
    """

    method = "simsiam"

    def __init__(
        self,
        backbone: nn.Module,
        *,
        predictor: PredictorKind = "mlp",
        pred_hidden_dim: int = 512,
        proj_layers: int = 2,
        last_norm: bool = True,
        symmetric: bool = True,
        joint_bn: bool = False,
        proj_hidden_dim: int = 2048,
        proj_dim: int = 2048,
    ) -> None:
        super().__init__(
            backbone, symmetric=symmetric, joint_bn=joint_bn, proj_hidden_dim=proj_hidden_dim, proj_dim=proj_dim
        )
        self.projector = build_norm_projector(self.num_features, proj_hidden_dim, proj_dim, proj_layers, last_norm)
        self.predictor = build_predictor(predictor, proj_dim, pred_hidden_dim)
        if predictor == "inverse":
            self.inverse_predictor = build_predictor("mlp", proj_dim, pred_hidden_dim)
        self.predictor_kind = predictor
        self.pred_hidden_dim = pred_hidden_dim
        self.proj_layers = proj_layers
        self.last_norm = last_norm

    def method_config(self) -> dict[str, Any]:
        # the attribute ``predictor`` is the module
        return {**super().method_config(), "predictor": self.predictor_kind}

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
        """Computes the negative cosine of predictions and projections.

        Args:
            view1: Images (N, C, H, W), N >= 2.
            view2: The same images in another view.
            *more: Further views; the loss is the mean over all ordered pairs of views, or over those with view 1 as
                query where ``symmetric`` is off.
            generator: Not used; nothing is drawn.
            across_processes: Not used; there are no negatives.
            hold_key_encoder: Not used; there is no key encoder.
            report_features: Report the features of all views.

        Returns:
            ``loss`` (differentiable scalar, in [-1, 1]; with the inverse predictor in [-2, 2]) and the detached scalars
            of ``contrast_report``, those of the projections.

        Raises:
            ValueError: If the views' shapes differ.
        """
        views = check_views(view1, view2, *more, in_chans=self.in_chans)
        projections, features = self.embed(self, *views, normalize=False)  # (N, D) and (N, num_features) per view
        z = [unit_rows(rows) for rows in projections]
        predictions = self._apply_head(self.predictor, *projections)  # (N, D) per view
        p = [unit_rows(rows) for rows in predictions]
        targets, inverse_loss = z, None
        if self.predictor_kind == "mirror":
            targets = p
        if self.predictor_kind == "inverse":
            undone = self._apply_head(self.inverse_predictor, *(rows.detach() for rows in predictions))
            targets = [unit_rows(rows) for rows in undone]
            inverse_loss = torch.stack([_negative_cosine(t, rows) for t, rows in zip(targets, z, strict=True)]).mean()
        total = mean_over_pairs(_negative_cosine, p if self.symmetric else p[:1], targets)
        if inverse_loss is not None:
            total = total + inverse_loss
        return contrast_report(total, z[0], z[1], features if report_features else None)

    def _apply_head(self, head: nn.Module, *rows: Tensor) -> tuple[Tensor, ...]:
        """Maps rows (N, D) of each view, in one forward with ``joint_bn``, otherwise in one for each view."""
        batches = (torch.cat(rows),) if self.joint_bn else rows
        return torch.cat([head(batch) for batch in batches]).chunk(len(rows))

    def loss_config(self) -> dict[str, float | str]:
        return {"name": "negative cosine similarity"}


def _negative_cosine(query: Tensor, target: Tensor) -> Tensor:
    """Returns the mean of -cos of unit rows (N, D); the target carries no gradient."""
    return -(query * target.detach()).sum(dim=1).mean()
