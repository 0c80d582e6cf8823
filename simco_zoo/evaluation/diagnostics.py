"""Diagnostics without labels: how close positives are, how the sphere is filled, how unevenly anchors are weighted."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from simco_zoo.data import ImageData, TwoViews
from simco_zoo.data.streaming import StreamedImages
from simco_zoo.evaluation.features import evaluating
from simco_zoo.losses import log_anchor_weights

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def alignment(z1: Tensor, z2: Tensor) -> float:
    """Returns the mean squared distance of positive pairs (Wang & Isola 2020, equation 2 with alpha = 2); 0 to 4.

    Args:
        z1: Unit rows (N, D).
        z2: Unit rows (N, D), row i the positive of row i of ``z1``.
    """
    return (z1.double() - z2.double()).square().sum(dim=1).mean().item()


def uniformity(z: Tensor, t: float = 2.0) -> float:
    """Returns log mean exp(-t |z_i - z_j|^2) over pairs i < j (Wang & Isola 2020, section 4.1.2); 0 for a collapse.

    Args:
        z: Unit rows (N, D), N >= 2.
        t: Scale of the kernel.
    """
    distances = torch.pdist(z.double()).square()
    return torch.logsumexp(-t * distances, dim=0).item() - math.log(len(distances))


def effective_rank(features: Tensor) -> float:
    """Returns RankMe (Garrido et al. 2023): exp of the entropy of the normalized singular values; 1 to min(N, D).

    Args:
        features: Rows (N, D), not centered.
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp().item()


@torch.no_grad()
def diagnose(
    model: Any, images: ImageData | StreamedImages, *, views: str = "cifar", limit: int = 512, seed: int = 0
) -> dict[str, Any]:
    """Measures a model on two views of some images, in evaluation mode; the model stays as it was.

    Args:
        model: A model of the zoo.
        images: The first ``limit`` of them are looked at.
        views: Name of the views' preset.
        limit: Number of images; the negatives of each are the others.
        seed: Of the views.

    Returns:
        ``alignment`` and ``uniformity`` of the projections; ``effective_rank`` of the features; and, for the paper's
        inter-anchor hardness (section 4), ``log_w_q05`` to ``log_w_q95``: quantiles over the anchors of log w_i,
        w_i = (1 - p_i(tau_beta)) / (1 - p_i(tau_alpha)). All w_i alike means that InfoNCE weights anchors evenly.
    """
    parameter = next(model.parameters())
    batch = images.first(min(limit, len(images))).to(parameter.device)
    generator = torch.Generator().manual_seed(seed)
    with evaluating(model):
        view1, view2 = TwoViews(views, size=images.image_size, dtype=parameter.dtype)(batch, generator=generator)
        z1, z2, features = model.project(view1), model.project(view2), model(view1)
    dt_m = getattr(model, "dt_m", 10.0)
    log_w = log_anchor_weights(z1, z2, temperature=model.temperature, dt_m=dt_m, check=False).double().cpu()
    quantiles = torch.quantile(log_w, torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    return {
        "alignment": alignment(z1, z2),
        "uniformity": uniformity(z1),
        "effective_rank": effective_rank(features),
        **{f"log_w_q{round(100 * q):02d}": value for q, value in zip(QUANTILES, quantiles, strict=True)},
    }
