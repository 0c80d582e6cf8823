"""Diagnostics without labels: how close positives are, how the sphere is filled, how unevenly anchors are weighted."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from simco_zoo.data import ImageData, TwoViews, ViewPreset
from simco_zoo.data.streaming import StreamedImages
from simco_zoo.evaluation.forward import evaluating
from simco_zoo.losses import anchor_strength, log_anchor_weights

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def alignment(z1: Tensor, z2: Tensor) -> float:
    """Returns the mean squared distance of positive pairs (Wang & Isola 2020, equation 2 with alpha = 2); 0 to 4.

    Args:
        z1: Unit rows (N, D).
        z2: Unit rows (N, D), row i the positive of row i of ``z1``.

    Example:
        >>> alignment(torch.eye(2), -torch.eye(2))
        4.0
    """
    return (z1.double() - z2.double()).square().sum(dim=1).mean().item()


def uniformity(z: Tensor, t: float = 2.0) -> float:
    """Returns log mean exp(-t |z_i - z_j|^2) over pairs i < j (Wang & Isola 2020, section 4.1.2); 0 for a collapse.

    Args:
        z: Unit rows (N, D), N >= 2.
        t: Scale of the kernel.

    Example:
        >>> round(uniformity(torch.eye(2)), 6)  # one pair, at a squared distance of 2
        -4.0
    """
    distances = torch.pdist(z.double()).square()
    return torch.logsumexp(-t * distances, dim=0).item() - math.log(len(distances))


def effective_rank(features: Tensor) -> float:
    """Returns RankMe (Garrido et al. 2023): exp of the entropy of the normalized singular values; 1 to min(N, D).

    Args:
        features: Rows (N, D), not centered.

    Example:
        >>> round(effective_rank(torch.eye(3)), 3)
        3.0
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp().item()


def center_and_residual(*z: Tensor) -> tuple[float, float]:
    """Returns the length of the projections' mean and the mean length of what is left of each without it.

    Of "How Does SimSiam Avoid Collapse Without Negative Samples?" (Zhang et al., ICLR 2022), where they are called m_o
    and m_r. A collapse to one point gives (1, 0), a uniform sphere about (0, 1).

    >>> import torch
    >>> center_and_residual(torch.eye(2), -torch.eye(2))
    (0.0, 1.0)

    Args:
        *z: Unit rows (N, D), one tensor per view.
    """
    rows = torch.cat(z).double()
    center = rows.mean(dim=0)
    return center.norm().item(), (rows - center).norm(dim=1).mean().item()


def off_diagonal_covariance(z: Tensor) -> float:
    """Returns VICReg's covariance term, sum over i != j of C_ij^2 / D, of the projections times sqrt(D).

    That factor gives the coordinates of a uniform sphere a variance of 1. The term is 0 for uncorrelated coordinates
    and for a collapse to one point, about D for a collapse to a line, and about D / N for N random rows.

    >>> import torch
    >>> off_diagonal_covariance(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]))
    0.0

    Args:
        z: Unit rows (N, D), N >= 2.
    """
    rows = z.double() * math.sqrt(z.shape[1])
    covariance = torch.cov(rows.T)
    return ((covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]).item()


@torch.no_grad()
def diagnose(
    model: Any,
    images: ImageData | StreamedImages,
    *,
    views: str | ViewPreset = "cifar",
    limit: int = 512,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures a model on two views of some images, in evaluation mode; the model stays as it was.

    Args:
        model: A ``ContrastiveModel``.
        images: ``limit`` of them, evenly spaced, are looked at; the first ones of a stream.
        views: Preset of the views, or its name.
        limit: Number of images; the negatives of each are the others.
        seed: Seed of the views.

    Returns:
        ``alignment``, ``uniformity``, ``center_norm``, ``residual_norm`` and ``off_diagonal_covariance`` of the
        projections; ``effective_rank`` of the features; and, for the paper's inter-anchor hardness (section 4),
        ``strength_mean`` and ``strength_cv``: mean and coefficient of variation over the anchors of 1 - p_i(tau_alpha),
        the strength with which InfoNCE moves them (0: all alike), and ``log_w_q05`` to ``log_w_q95``: quantiles of
        log w_i, w_i = (1 - p_i(tau_beta)) / (1 - p_i(tau_alpha)), the factor of the dual temperature.

    Example:
        >>> import simco_zoo
        >>> images = simco_zoo.data.load_images("photos", limit=16)
        >>> report = diagnose(simco_zoo.create_model("simco_r18_025"), images)
        >>> 0 <= report["alignment"] <= 4
        True
    """
    parameter = next(model.parameters())
    batch = images.sample(limit).to(parameter.device)
    generator = torch.Generator().manual_seed(seed)
    with evaluating(model):
        view1, view2 = TwoViews(views, size=images.image_size, dtype=parameter.dtype)(batch, generator=generator)
        z1, z2, features = model.project(view1), model.project(view2), model(view1)
    dt_m = getattr(model, "dt_m", 10.0)
    log_w = log_anchor_weights(z1, z2, temperature=model.temperature, dt_m=dt_m, check=False).double().cpu()
    strength = anchor_strength(z1, z2, temperature=model.temperature, check=False).double()
    center, residual = center_and_residual(z1, z2)
    quantiles = torch.quantile(log_w, torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    return {
        "alignment": alignment(z1, z2),
        "uniformity": uniformity(z1),
        "effective_rank": effective_rank(features),
        "center_norm": center,
        "residual_norm": residual,
        "off_diagonal_covariance": off_diagonal_covariance(z1),
        "strength_mean": strength.mean().item(),
        "strength_cv": (strength.std(correction=0) / strength.mean()).item(),
        **{f"log_w_q{round(100 * q):02d}": value for q, value in zip(QUANTILES, quantiles, strict=True)},
    }
