"""The linear probe: logistic regression on frozen features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from simco_zoo.evaluation.metrics import accuracy, topk_correct
from simco_zoo.evaluation.neighbors import check_features

WEIGHT_DECAYS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def linear_probe(
    train_feats: Tensor,
    train_labels: Tensor,
    test_feats: Tensor,
    test_labels: Tensor,
    *,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    max_iter: int = 100,
    held_out: float = 0.1,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> dict[str, float]:
    """Fits multinomial logistic regression to standardized features by full-batch L-BFGS.

    The weight decay is the one that does best on a held-out part of the training features; the test set plays no part
    in it. The final classifier is fitted to all of them.

    Args:
        train_feats: Features (N, D).
        train_labels: Class numbers (N,), from 0.
        test_feats: Features (M, D).
        test_labels: Class numbers (M,).
        weight_decays: Candidates for l in mean cross-entropy + l / 2 * squared norm of the weights (not the bias), at
            least 0; around the best of several, the geometric means with its neighbors are tried too.
        max_iter: Iterations of L-BFGS for each fit.
        held_out: Share of the training features that choose the weight decay, in (0, 1).
        seed: Seed of that choice.
        device: Device to compute on; default: that of the features.

    Returns:
        ``top1`` and ``top5`` accuracy in percent (with fewer than 5 classes top5 counts them all), the 95 % interval
        ``top1_low`` to ``top1_high``, and the ``weight_decay`` chosen.

    Raises:
        ValueError: If shapes do not match or an argument is out of range.

    Example:
        >>> features, labels = torch.eye(2).repeat(20, 1), torch.tensor([0, 1]).repeat(20)
        >>> linear_probe(features, labels, features, labels)["top1"]
        100.0
    """
    check_features(train_feats, train_labels, test_feats, test_labels)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    scores, decay = linear_scores(
        train_feats,
        train_labels,
        test_feats,
        classes,
        weight_decays=weight_decays,
        max_iter=max_iter,
        held_out=held_out,
        seed=seed,
        device=device,
    )
    return {**accuracy(scores, test_labels.to(scores.device, torch.long)), "weight_decay": decay}


def linear_scores(
    train_feats: Tensor,
    train_labels: Tensor,
    test_feats: Tensor,
    classes: int,
    *,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    max_iter: int = 100,
    held_out: float = 0.1,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> tuple[Tensor, float]:
    """Fits the probe as ``linear_probe`` does and returns the test features' scores, (M, classes), and the decay."""
    if not weight_decays or not 0 < held_out < 1:
        raise ValueError("weight_decays needs at least one value, and held_out has to lie between 0 and 1.")
    target = torch.device(device) if device is not None else train_feats.device
    dtype = torch.promote_types(train_feats.dtype, torch.float32)
    x, y = train_feats.to(target, dtype), train_labels.to(target, torch.long)
    std, mean = torch.std_mean(x, dim=0, correction=0)
    scale = torch.where(std > 1e-12, 1 / std, 0.0)  # a feature that never varies says nothing
    x, test_x = (x - mean) * scale, (test_feats.to(target, dtype) - mean) * scale
    decay = choose_weight_decay(x, y, classes, weight_decays, max_iter, held_out, seed)
    return _scores(test_x, fit_logistic(x, y, classes, decay, max_iter)), decay


def choose_weight_decay(
    x: Tensor, y: Tensor, classes: int, candidates: Sequence[float], max_iter: int, held_out: float, seed: int
) -> float:
    """Returns the weight decay with the best accuracy on held-out rows; of equal ones that with the lowest loss.

    The fits start from each other, from the strongest decay to the weakest, which takes a fraction of the iterations.
    """
    if len(candidates) == 1:
        return candidates[0]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    cut = max(1, int(len(x) * held_out))
    out, kept = order[:cut], order[cut:]
    found: dict[float, tuple[float, float]] = {}
    weight = None
    coarse = sorted({*candidates}, reverse=True)
    for decay in coarse:
        weight = fit_logistic(x[kept], y[kept], classes, decay, max_iter, start=weight)
        found[decay] = _quality(x[out], y[out], weight)
    best = coarse.index(max(found, key=lambda decay: found[decay]))
    for neighbor in coarse[max(0, best - 1) : best + 2]:
        between = math.sqrt(neighbor * coarse[best])
        if between not in found and between > 0:
            weight = fit_logistic(x[kept], y[kept], classes, between, max_iter, start=weight)
            found[between] = _quality(x[out], y[out], weight)
    return max(found, key=lambda decay: found[decay])


def _quality(x: Tensor, y: Tensor, weight: Tensor) -> tuple[float, float]:
    """Returns the number of rows that are right, and the negative loss."""
    scores = _scores(x, weight)
    return topk_correct(scores, y)[0].item(), -F.cross_entropy(scores, y).item()


def fit_logistic(
    x: Tensor, y: Tensor, classes: int, weight_decay: float, max_iter: int = 100, start: Tensor | None = None
) -> Tensor:
    """Returns the weights (classes, D + 1; the last column is the bias) that minimize the regularized cross-entropy.

    Args:
        x: Features (N, D).
        y: Class numbers (N,).
        classes: Number of classes.
        weight_decay: l in mean cross-entropy + l / 2 * squared norm of the weights (not the bias).
        max_iter: Iterations of L-BFGS.
        start: Weights to start from; None: zeros.
    """
    weight = torch.zeros(classes, x.shape[1] + 1, dtype=x.dtype, device=x.device) if start is None else start.clone()
    weight.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=max_iter, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(_scores(x, weight), y) + weight_decay / 2 * weight[:, :-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach()


def _scores(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight[:, :-1], weight[:, -1])
