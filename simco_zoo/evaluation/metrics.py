"""Accuracy, overall and per class, from the scores of a classifier."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def topk_correct(scores: Tensor, truth: Tensor) -> Tensor:
    """Returns how many rows have their class first, and among the first five.

    Where classes have equal scores, a row counts with the share of their possible orders in which it is right, so that
    ties favor no class.

    Args:
        scores: Scores (N, C), higher is better.
        truth: Class numbers (N,).

    Returns:
        float64 (2,): the sums over the rows for the first place and for the first five.

    Example:
        >>> topk_correct(torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.5, 0.0]]), torch.tensor([0, 1])).tolist()
        [1.5, 2.0]
    """
    own = scores.gather(1, truth.unsqueeze(1))  # (N, 1)
    above = (scores > own).sum(dim=1)
    tied = (scores == own).sum(dim=1)  # at least 1, the class itself
    found = [((places - above) / tied).clamp(0, 1).cpu().double().sum() for places in (1, 5)]
    return torch.stack(found)


def accuracy_with_interval(correct: Tensor, total: int) -> dict[str, float]:
    """Returns ``top1`` and ``top5`` in percent, and ``top1_low`` to ``top1_high``, the 95 % interval of ``top1``.

    The interval is Wilson's: how far ``top1`` may be off because the test images are a sample. It says nothing about
    other seeds.

    Args:
        correct: What ``topk_correct`` returned.
        total: Number of rows.
    """
    share, z = correct[0].item() / total, 1.959964
    center = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return {
        "top1": 100 * share,
        "top5": 100 * correct[1].item() / total,
        "top1_low": 100 * max(0.0, center - half),
        "top1_high": 100 * min(1.0, center + half),
    }


def accuracy(scores: Tensor, truth: Tensor) -> dict[str, float]:
    """Returns ``top1``, ``top5`` and the interval of ``top1``, in percent, of scores (N, C) and class numbers (N,)."""
    return accuracy_with_interval(topk_correct(scores, truth), len(truth))


def confusion_matrix(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Counts how often each class was taken for each.

    Args:
        predicted: Class numbers (N,).
        truth: Class numbers (N,).
        classes: Number of classes C.

    Returns:
        int64 (C, C): row is the true class, column the predicted one.

    Example:
        >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    return torch.bincount(truth.cpu() * classes + predicted.cpu(), minlength=classes**2).view(classes, classes)


def per_class_accuracy(confusion: Tensor) -> Tensor:
    """Returns the accuracy of each class in percent, float64 (C,); NaN for a class without images."""
    return 100 * confusion.diag().double() / confusion.sum(dim=1)
