"""The linear probe: logistic regression on frozen features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from simco_zoo.evaluation.neighbors import accuracy_with_interval, check_features, topk_correct

WEIGHT_DECAYS = (1e-5, 1e-4, 1e-3, 1e-2)


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
        weight_decays: Candidates for l in mean cross-entropy + l / 2 * squared norm of the weights (not the bias).
        max_iter: Iterations of L-BFGS for each fit.
        held_out: Share of the training features that choose the weight decay, in (0, 1).
        seed: Of that choice.
        device: Where to compute; None: where the features are.

    Returns:
        ``top1`` and ``top5`` accuracy in percent (with fewer than 5 classes top5 counts them all), the 95 % interval
        ``top1_low`` to ``top1_high``, and the ``weight_decay`` chosen.

    Raises:
        ValueError: If shapes do not match or an argument is out of range.
    """
    check_features(train_feats, train_labels, test_feats, test_labels)
    if not weight_decays or not 0 < held_out < 1:
        raise ValueError("weight_decays needs at least one value, and held_out has to lie between 0 and 1.")
    target = torch.device(device) if device is not None else train_feats.device
    dtype = torch.promote_types(train_feats.dtype, torch.float32)
    x, y = train_feats.to(target, dtype), train_labels.to(target, torch.long)
    test_x, test_y = test_feats.to(target, dtype), test_labels.to(target, torch.long)
    std, mean = torch.std_mean(x, dim=0, correction=0)
    scale = torch.where(std > 1e-12, 1 / std, 0.0)  # a feature that never varies says nothing
    x, test_x = (x - mean) * scale, (test_x - mean) * scale
    classes = int(max(y.max(), test_y.max())) + 1

    chosen = weight_decays[0]
    if len(weight_decays) > 1:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(target)
        cut = max(1, int(len(x) * held_out))
        out, kept = order[:cut], order[cut:]
        scores = []
        for decay in weight_decays:
            weight = fit_logistic(x[kept], y[kept], classes, decay, max_iter)
            scores.append(topk_correct(_scores(x[out], weight), y[out])[0].item())
        chosen = weight_decays[scores.index(max(scores))]
    weight = fit_logistic(x, y, classes, chosen, max_iter)
    return {
        **accuracy_with_interval(topk_correct(_scores(test_x, weight), test_y), len(test_x)),
        "weight_decay": chosen,
    }


def fit_logistic(x: Tensor, y: Tensor, classes: int, weight_decay: float, max_iter: int = 100) -> Tensor:
    """Returns the weights (classes, D + 1; the last column is the bias) that minimize the regularized cross-entropy."""
    weight = torch.zeros(classes, x.shape[1] + 1, dtype=x.dtype, device=x.device, requires_grad=True)
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
