"""Weighted nearest-neighbor classification, the field's first look at features."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def knn(
    train_feats: Tensor,
    train_labels: Tensor,
    test_feats: Tensor,
    test_labels: Tensor,
    k: int = 200,
    temperature: float = 0.1,
    *,
    chunk_size: int | None = None,
    device: str | torch.device | None = None,
) -> dict[str, float]:
    """Classifies by the k most similar training features: each votes with exp(cosine / temperature).

    The protocol of "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (CVPR 2018, section 3.4),
    exact, on clean images, with the customary k = 200 and temperature 0.1. Of classes with equal votes, none included,
    the one with the lower number ranks first.

    Args:
        train_feats: Features (N, D), of any length per row.
        train_labels: Class numbers (N,), from 0.
        test_feats: Features (M, D).
        test_labels: Class numbers (M,).
        k: Neighbors that vote, from 1 to N.
        temperature: Of the votes, > 0.
        chunk_size: Test rows compared at once; None: as many as keep their similarities within 256 MiB.
        device: Where to compute; None: where the features are.

    Returns:
        ``top1`` and ``top5`` accuracy in percent (with fewer than 5 classes top5 counts them all), and ``top1_low`` to
        ``top1_high``, the 95 % interval of the former for that many test images.

    Raises:
        ValueError: If shapes do not match, features are not finite or an argument is out of range.
    """
    check_features(train_feats, train_labels, test_feats, test_labels)
    if not 1 <= k <= len(train_feats):
        raise ValueError(f"k is {k}, but there are {len(train_feats)} training features; choose k from 1 to that.")
    if chunk_size is None:
        chunk_size = max(1, 2**26 // len(train_feats))
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}, but has to be at least 1.")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, but has to be positive.")
    target = torch.device(device) if device is not None else train_feats.device
    dtype = torch.promote_types(train_feats.dtype, torch.float32)
    bank = F.normalize(train_feats.to(target, dtype), dim=1)
    labels = train_labels.to(target, torch.long)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    hits = torch.zeros(2, dtype=torch.long, device=target)
    for rows, truth in zip(test_feats.split(chunk_size), test_labels.split(chunk_size), strict=True):
        similarity = F.normalize(rows.to(target, dtype), dim=1) @ bank.T
        nearest, index = similarity.topk(k, dim=1)
        # relative to the nearest, so that a small temperature does not overflow
        votes = ((nearest - nearest[:, :1]) / temperature).exp()
        scores = torch.zeros(len(rows), classes, dtype=dtype, device=target).scatter_add_(1, labels[index], votes)
        hits += topk_correct(scores, truth.to(target))
    return accuracy_with_interval(hits, len(test_feats))


def check_features(train_feats: Tensor, train_labels: Tensor, test_feats: Tensor, test_labels: Tensor) -> None:
    """Raises ValueError unless features are (N, D) and (M, D) with a label each."""
    for name, feats, labels in (("train", train_feats, train_labels), ("test", test_feats, test_labels)):
        if feats.ndim != 2 or labels is None or labels.shape != feats.shape[:1] or len(feats) == 0:
            shape = None if labels is None else tuple(labels.shape)
            raise ValueError(
                f"{name}_feats is {tuple(feats.shape)} and {name}_labels {shape}, but has to be (N, D) and (N,)."
            )
        if not torch.isfinite(feats).all():
            raise ValueError(f"{name}_feats holds values that are not finite; the model has diverged, or overflowed.")
        if labels.is_floating_point() or labels.min() < 0:
            raise ValueError(f"{name}_labels has to hold class numbers, integers from 0.")
    if train_feats.shape[1] != test_feats.shape[1]:
        raise ValueError(
            f"train_feats has {train_feats.shape[1]} columns and test_feats {test_feats.shape[1]}; "
            "both have to come from the same model."
        )


def topk_correct(scores: Tensor, truth: Tensor) -> Tensor:
    """Returns how many rows have the truth first, and among the first five, of scores (N, C).

    Of equal scores the lower class number ranks first, on every device.
    """
    own = scores.gather(1, truth.unsqueeze(1))
    before = torch.arange(scores.shape[1], device=scores.device) < truth.unsqueeze(1)
    rank = ((scores > own) | ((scores == own) & before)).sum(dim=1)
    return torch.stack([(rank < 1).sum(), (rank < 5).sum()])


def accuracy_with_interval(hits: Tensor, total: int) -> dict[str, float]:
    """Returns hits as ``top1`` and ``top5`` in percent, and ``top1_low`` to ``top1_high``, a 95 % interval.

    The interval is Wilson's: how far ``top1`` may be off for the test images being a sample. It says nothing of seeds.
    """
    share, z = hits[0].item() / total, 1.959964
    center = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return {
        "top1": 100 * share,
        "top5": 100 * hits[1].item() / total,
        "top1_low": 100 * max(0.0, center - half),
        "top1_high": 100 * min(1.0, center + half),
    }
