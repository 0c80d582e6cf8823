"""How unequally a contrastive loss moves its anchors, against dictionary size and temperature; without training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from simco_zoo.data import ImageData, TwoViews
from simco_zoo.evaluation.forward import evaluating
from simco_zoo.losses import anchor_strength, dual_temperature

SIZES = (15, 63, 255, 1023, 4095)
TEMPERATURES = (0.05, 0.07, 0.1, 0.2, 0.5, 1.0)
BATCHES = (16, 64, 256, 1024)
RATIOS = (1.0, 2.0, 5.0, 10.0)
MOST_GROUPS = 32  # groups of anchors over which a cosine is averaged


@torch.no_grad()
def project_views(
    model: Any, images: ImageData, *, views: str = "cifar", limit: int = 8192, batch_size: int = 256, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Projects two random views of images, in evaluation mode.

    Args:
        model: A ``ContrastiveModel``.
        images: ``limit`` of them, evenly spaced, are used.
        views: Name of the views' preset.
        limit: Number of images, at most.
        batch_size: Images per forward.
        seed: Seed of the views.

    Returns:
        Unit rows (N, D) on the CPU, of each view.
    """
    parameter = next(model.parameters())
    make_views = TwoViews(views, size=images.image_size, dtype=parameter.dtype)
    generator = torch.Generator().manual_seed(seed)
    found: tuple[list[Tensor], list[Tensor]] = [], []
    with evaluating(model):
        for batch in images.sample(limit).split(batch_size):
            for rows, view in zip(found, make_views(batch.to(parameter.device), generator=generator), strict=True):
                rows.append(model.project(view).float().cpu())
    return torch.cat(found[0]), torch.cat(found[1])


def strengths(
    z1: Tensor, z2: Tensor, sizes: Sequence[int] = SIZES, temperatures: Sequence[float] = TEMPERATURES
) -> list[dict[str, float]]:
    """Measures how strongly InfoNCE moves its anchors, 1 - p, for dictionaries of several sizes and for temperatures.

    The anchors are parted into groups of K + 1; the negatives of an anchor are the K other rows of ``z2`` in its group.

    >>> import torch
    >>> strengths(torch.eye(4), torch.eye(4), sizes=[3], temperatures=[1.0])  # 3 / (3 + e)
    [{'negatives': 3, 'temperature': 1.0, 'anchors': 4, 'strength_mean': 0.5246, 'strength_cv': 0.0}]

    Args:
        z1: Unit rows (N, D), the queries.
        z2: Unit rows (N, D), row i the positive of row i of ``z1``.
        sizes: Numbers of negatives K; those of at least N are left out.
        temperatures: Temperatures.

    Returns:
        A dict per size and temperature: ``strength_mean`` and ``strength_cv``, the mean over the anchors of 1 - p and
        its standard deviation over its mean (0: all anchors are moved alike).
    """
    rows = []
    for size in sizes:
        groups = list(_groups(z1, z2, size + 1))
        for temperature in temperatures if groups else ():
            found = torch.cat([anchor_strength(a, b, temperature=temperature, check=False) for a, b in groups]).double()
            mean, spread = found.mean().item(), found.std(correction=0).item()
            rows.append(
                {
                    "negatives": size,
                    "temperature": temperature,
                    "anchors": len(found),
                    "strength_mean": round(mean, 4),
                    "strength_cv": round(spread / mean, 4),
                }
            )
    return rows


def gradient_cosines(
    z1: Tensor,
    z2: Tensor,
    batches: Sequence[int] = BATCHES,
    ratios: Sequence[float] = RATIOS,
    temperature: float = 0.1,
) -> list[dict[str, float]]:
    """Compares the gradients of the dual temperature loss for several dt_m with that of an infinite dt_m, which is DCL.

    Args:
        z1: Unit rows (N, D), the queries.
        z2: Unit rows (N, D), row i the positive of row i of ``z1``.
        batches: Batch sizes; those above N are left out.
        ratios: Values of dt_m; 1 is InfoNCE.
        temperature: tau_alpha.

    Returns:
        A dict per batch size and ratio: ``cosine`` between both gradients with respect to all rows of both views, the
        mean over at most 32 batches.
    """
    rows = []
    for size in batches:
        groups = list(_groups(z1, z2, size))[:MOST_GROUPS]
        limits = [_gradient(a, b, temperature, math.inf) for a, b in groups]
        for ratio in ratios if groups else ():
            cosines = [
                torch.cosine_similarity(_gradient(a, b, temperature, ratio), limit, dim=0)
                for (a, b), limit in zip(groups, limits, strict=True)
            ]
            cosine = torch.stack(cosines).mean().item()
            rows.append({"batch_size": size, "dt_m": ratio, "batches": len(groups), "cosine": round(cosine, 5)})
    return rows


def _groups(z1: Tensor, z2: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the whole groups of ``size`` pairs."""
    for start in range(0, len(z1) - size + 1, size):
        yield z1[start : start + size], z2[start : start + size]


def _gradient(z1: Tensor, z2: Tensor, temperature: float, dt_m: float) -> Tensor:
    """Returns the gradient of the loss with respect to both views, as one vector."""
    with torch.enable_grad():
        query, key = (z.detach().double().requires_grad_() for z in (z1, z2))
        loss = dual_temperature(query, key, temperature=temperature, dt_m=dt_m, check=False)
        return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, (query, key))])
