"""SimCLR and DCL: both views of a batch against each other, without queue and momentum encoder."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simco_zoo.losses import dual_temperature, floored_share, info_nce
from simco_zoo.models.contrastive import ContrastiveModel, contrast_report, gather_keys, mean_over_pairs
from simco_zoo.models.inputs import check_views


class SimCLR(ContrastiveModel):
    """SimCLR of "A Simple Framework for Contrastive Learning of Visual Representations" (ICML 2020).

    The loss is NT-Xent: the negatives of a query are the 2N - 2 projections of the other images, in both views. The
    projector and the views are the same as in the other methods, so that a comparison is one of the losses.

    ``decoupled`` takes the positive out of the denominator, which is DCL ("Decoupled Contrastive Learning", ECCV 2022).
    Its gradient is that of the dual temperature with an infinite second temperature: all anchors are moved equally. The
    reported value is softplus(d) / sigmoid(d) per anchor, d the value of DCL, which has the same gradient.

    ``hardness`` and ``class_prior`` give "Contrastive Learning with Hard Negative Samples" (ICLR 2021).

    Args:
        backbone: A timm model.
        temperature: Temperature of the loss, > 0.
        decoupled: Leave the positive out of the denominator (DCL).
        hardness: Weight negatives by exp(hardness * similarity / temperature), >= 0; 0 weights all alike.
        class_prior: Share of the negatives that belong to the query's own class and is taken out, in [0, 1). Use it at
            temperature 0.5; at 0.1 most anchors are not repelled at all.
        symmetric: Average both directions; otherwise view 1 is the query.
        joint_bn: One forward of 2N, batch norm spanning both views; False runs two of N.
        proj_hidden_dim: Width of the projector's hidden layer; 0 for a linear projector.
        proj_dim: Length of the projection.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import simco_zoo
        >>> model = simco_zoo.create_model("simclr", backbone="test_resnet", temperature=0.5)
        >>> report = model.contrast(torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32))
        >>> report["loss"].backward()
    """

    method = "simclr"

    def __init__(
        self,
        backbone: nn.Module,
        *,
        temperature: float = 0.5,
        decoupled: bool = False,
        hardness: float = 0.0,
        class_prior: float = 0.0,
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
        if not 0 <= hardness < math.inf:
            raise ValueError(f"hardness is {hardness}, but has to be a finite number of at least 0.")
        if not 0 <= class_prior < 1:
            raise ValueError(f"class_prior is {class_prior}, but has to lie in [0, 1).")
        self.decoupled = decoupled
        self.hardness = hardness
        self.class_prior = class_prior

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
        """Computes NT-Xent of two or more views.

        Args:
            view1: Images (N, C, H, W), N >= 2; those of this process.
            view2: The same images in another view.
            *more: Further views; the loss is the mean over all ordered pairs of views, or over those with view 1 as
                query where ``symmetric`` is off.
            generator: Not used; nothing is drawn.
            across_processes: Take the projections of all processes as negatives.
            hold_key_encoder: Not used; there is no key encoder.
            report_features: Report the features of all views.

        Returns:
            ``loss`` (differentiable scalar), the detached scalars of ``contrast_report``, and with ``class_prior`` the
            ``floored_share`` of the anchors that are not repelled.

        Raises:
            ValueError: If the views' shapes differ or N < 2.
        """
        views = check_views(view1, view2, *more, in_chans=self.in_chans)
        z, features = self.embed(self, *views)  # (N, D) and (N, num_features) per view
        keys, offset = gather_keys(*z) if across_processes else (z, 0)  # (M, D) per view, M = N x processes
        queries = list(zip(z, keys, strict=True))[: len(views) if self.symmetric else 1]
        total = mean_over_pairs(partial(self._nt_xent, offset=offset), queries, keys)
        report = contrast_report(total, z[0], z[1], features if report_features else None)
        if self.class_prior > 0:
            with torch.no_grad():
                report["floored_share"] = floored_share(z[0], keys[1], **self._options(keys[0], offset))
        return report

    def _nt_xent(self, queries: tuple[Tensor, Tensor], key: Tensor, offset: int) -> Tensor:
        """Returns the loss of one view's projections as queries with those of another view as keys.

        Args:
            queries: The queries (N, D) of this process, and of all processes (M, D).
            key: The keys (M, D).
            offset: Row of ``key`` that belongs to the first query.
        """
        query, all_queries = queries
        options = self._options(all_queries, offset)
        if not self.decoupled:
            return info_nce(query, key, **options)
        logits = 2 * len(key) - 1
        return dual_temperature(query, key, dt_m=math.inf, **options) * (logits / (logits - 1))

    def _options(self, all_queries: Tensor, offset: int) -> dict[str, Any]:
        """Returns the arguments of the losses that do not depend on the key."""
        return {
            "temperature": self.temperature,
            "in_batch": "both",
            "hardness": self.hardness,
            "class_prior": self.class_prior,
            "all_queries": all_queries,
            "positive_offset": offset,
            "check": False,
        }

    def loss_config(self) -> dict[str, float | str]:
        settings = {"hardness": self.hardness, "class_prior": self.class_prior}
        name = "DCL" if self.decoupled else "NT-Xent"
        return {"name": name, "temperature": self.temperature, **{k: v for k, v in settings.items() if v}}


class DCL(SimCLR):
    """DCL of "Decoupled Contrastive Learning" (ECCV 2022): ``SimCLR`` with ``decoupled`` on and temperature 0.1.

    The other arguments are those of ``SimCLR``.

    Example:
        >>> import simco_zoo
        >>> simco_zoo.create_model("dcl", backbone="test_resnet").loss_config()
        {'name': 'DCL', 'temperature': 0.1}
    """

    method = "dcl"

    def __init__(
        self,
        backbone: nn.Module,
        *,
        temperature: float = 0.1,
        decoupled: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, temperature=temperature, decoupled=decoupled, **kwargs)
