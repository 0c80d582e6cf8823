"""Nearest neighbors by cosine similarity: search, and weighted classification, the field's first look at features."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from simco_zoo.data.labels import LARGEST_CLASS_NUMBER
from simco_zoo.evaluation.metrics import accuracy

_SIMILARITIES = 2**26  # of one chunk: 256 MiB in fp32


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
    exact, on clean images, with the customary k = 200 and temperature 0.1. Ties favor no class: equally similar
    neighbors share the places that are left, and classes with equal votes, none included, count with the share of their
    possible orders in which the right one is among the first.

    Args:
        train_feats: Features (N, D); the length of a row does not matter.
        train_labels: Class numbers (N,), from 0.
        test_feats: Features (M, D).
        test_labels: Class numbers (M,).
        k: Neighbors that vote, at least 1; with more than N, all vote, and a warning says so.
        temperature: Temperature of the votes, > 0.
        chunk_size: Test rows compared at once; None: as many as keep their similarities within 256 MiB.
        device: Device to compute on; default: that of the features.

    Returns:
        ``top1`` and ``top5`` accuracy in percent (with fewer than 5 classes top5 counts them all), and the 95 %
        interval ``top1_low`` to ``top1_high`` for that many test images.

    Raises:
        ValueError: If shapes do not match, features are not finite or an argument is out of range.

    Example:
        >>> train, test = torch.eye(3), torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.2, 0.8]])
        >>> knn(train, torch.tensor([0, 1, 2]), test, torch.tensor([0, 1]), k=1)["top1"]
        50.0
    """
    check_features(train_feats, train_labels, test_feats, test_labels)
    if k > len(train_feats):
        warnings.warn(f"k is {k}, but there are {len(train_feats)} training features; all of them vote.", stacklevel=2)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    options = {"chunk_size": chunk_size, "device": device}
    scores = knn_scores(train_feats, train_labels, test_feats, classes, k, temperature, **options)  # type: ignore[arg-type]
    return accuracy(scores, test_labels.to(scores.device, torch.long))


def knn_scores(
    train_feats: Tensor,
    train_labels: Tensor,
    test_feats: Tensor,
    classes: int,
    k: int = 200,
    temperature: float = 0.1,
    *,
    chunk_size: int | None = None,
    device: str | torch.device | None = None,
) -> Tensor:
    """Returns the votes for each class, (M, classes), relative to the vote of each row's nearest neighbor.

    Args:
        train_feats: Features (N, D).
        train_labels: Class numbers (N,), from 0.
        test_feats: Features (M, D).
        classes: Number of classes.
        k: Neighbors that vote, at least 1; at most N do.
        temperature: Temperature of the votes, > 0.
        chunk_size: Test rows compared at once.
        device: Device to compute on; default: that of the features.
    """
    check_count("k", k)
    if chunk_size is None:
        chunk_size = max(1, _SIMILARITIES // len(train_feats))
    check_count("chunk_size", chunk_size)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, but has to be positive.")
    k = min(k, len(train_feats))
    target = torch.device(device) if device is not None else train_feats.device
    dtype = torch.promote_types(train_feats.dtype, torch.float32)
    bank = F.normalize(train_feats.to(target, dtype), dim=1)
    labels = train_labels.to(target, torch.long)
    scores = torch.zeros(len(test_feats), classes, dtype=dtype, device=target)
    for rows, out in zip(test_feats.split(chunk_size), scores.split(chunk_size), strict=True):
        similarity = F.normalize(rows.to(target, dtype), dim=1) @ bank.T  # (n, N)
        nearest, index = similarity.topk(min(k + 1, len(bank)), dim=1)
        # relative to the nearest, so that a small temperature does not overflow
        votes = ((nearest[:, :k] - nearest[:, :1]) / temperature).exp()
        out.scatter_add_(1, labels[index[:, :k]], votes)
        if len(bank) > k:
            # places for which equally similar neighbors compete, one of them at least in vain
            tied = torch.nonzero(nearest[:, k - 1] == nearest[:, k]).squeeze(1)
            if len(tied):
                out[tied] = _votes_with_ties(similarity[tied], labels, k, temperature, classes)
    return scores


def _votes_with_ties(similarity: Tensor, labels: Tensor, k: int, temperature: float, classes: int) -> Tensor:
    """Returns the votes of rows (n, N) with ties at place k: equally similar neighbors share the places."""
    last = similarity.topk(k, dim=1).values[:, -1:]
    nearer, equal = similarity > last, similarity == last
    share = (k - nearer.sum(dim=1, keepdim=True)) / equal.sum(dim=1, keepdim=True)
    votes = ((similarity - similarity.amax(dim=1, keepdim=True)) / temperature).exp() * (nearer + equal * share)
    return torch.zeros(len(votes), classes, dtype=votes.dtype, device=votes.device).index_add_(1, labels, votes)


def search(bank: Tensor, queries: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
    """Finds the most similar rows by cosine similarity; of equally similar ones, those with the lower row number.

    Args:
        bank: Features (N, D) among which to look.
        queries: Features (Q, D), or (D,) of a single one.
        k: Number of images to find for each query, at least 1; at most N are found.

    Returns:
        Row numbers, int64 (Q, k), and similarities in [-1, 1], fp32 (Q, k), the most similar first.

    Raises:
        ValueError: If the shapes do not match or k is below 1.
    """
    queries = queries.unsqueeze(0) if queries.ndim == 1 else queries
    if queries.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ValueError(
            f"the query features are {tuple(queries.shape)}, but have to be (Q, {bank.shape[1]}); both have to come "
            "from the same model."
        )
    check_count("k", k)
    k = min(k, len(bank))
    unit = F.normalize(bank.float(), dim=1)
    found: list[tuple[Tensor, Tensor]] = []
    for rows in queries.split(max(1, _SIMILARITIES // len(bank))):
        similarity = F.normalize(rows.to(unit), dim=1) @ unit.T
        ordered = similarity.sort(dim=1, descending=True, stable=True)
        found.append((ordered.indices[:, :k], ordered.values[:, :k].clamp(-1, 1)))
    if not found:
        return torch.empty(0, k, dtype=torch.long), torch.empty(0, k)
    indices, similarities = (torch.cat(parts) for parts in zip(*found, strict=True))
    return indices, similarities


@dataclass(frozen=True)
class Duplicates:
    """Images that look alike.

    Attributes:
        rows: Row numbers, ascending, at least two.
        similarity: The smallest cosine similarity that connects two of them, at least the threshold.
    """

    rows: list[int]
    similarity: float


def find_duplicates(features: Tensor, threshold: float = 0.98) -> list[Duplicates]:
    """Groups rows that are connected by cosine similarities of at least a threshold.

    Args:
        features: Features (N, D).
        threshold: Smallest similarity, above 0 and at most 1.

    Returns:
        The groups, the most similar first. Every row is in at most one.

    Raises:
        ValueError: If the threshold is out of range.

    Example:
        >>> [group.rows for group in find_duplicates(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.1]]), 0.99)]
        [[0, 2]]
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}, but has to be above 0 and at most 1.")
    unit = F.normalize(features.float(), dim=1)
    parent = list(range(len(unit)))
    lowest: dict[int, float] = {}

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    pairs: list[tuple[float, int, int]] = []
    size = max(1, _SIMILARITIES // max(1, len(unit)))
    for start in range(0, len(unit), size):
        similarity = unit[start : start + size] @ unit.T
        # each pair once, and a rounding error is not a difference
        close = torch.nonzero(similarity >= threshold - 1e-6)
        close = close[close[:, 1] > close[:, 0] + start]
        values = similarity[close[:, 0], close[:, 1]].clamp(max=1).tolist()
        pairs += [(value, row + start, other) for value, (row, other) in zip(values, close.tolist(), strict=True)]
    # the closest first, so that the one which joins two groups is the weakest link between them
    for value, row, other in sorted(pairs, key=lambda pair: -pair[0]):
        first, second = root(row), root(other)
        if first != second:
            parent[second] = first
            lowest[first] = value
    members: dict[int, list[int]] = {}
    for row in range(len(unit)):
        members.setdefault(root(row), []).append(row)
    groups = [Duplicates(rows, lowest[first]) for first, rows in members.items() if len(rows) > 1]
    return sorted(groups, key=lambda group: (-group.similarity, group.rows))


def check_count(name: str, value: int) -> None:
    """Raises ValueError unless a value is a whole number from 1."""
    if not float(value).is_integer() or value < 1:
        raise ValueError(f"{name} is {value}, but has to be {'at least 1' if value < 1 else 'a whole number'}.")


def check_features(train_feats: Tensor, train_labels: Tensor, test_feats: Tensor, test_labels: Tensor) -> None:
    """Raises ValueError unless features are (N, D) and (M, D) with a label each."""
    for name, feats, labels in (("train", train_feats, train_labels), ("test", test_feats, test_labels)):
        for what, value in (("feats", feats), ("labels", labels)):
            if not isinstance(value, Tensor | None):
                raise ValueError(
                    f"{name}_{what} is a {type(value).__name__}, but has to be a tensor (torch.as_tensor)."
                )
        if feats.ndim != 2 or labels is None or labels.shape != feats.shape[:1] or len(feats) == 0:
            shape = None if labels is None else tuple(labels.shape)
            raise ValueError(
                f"{name}_feats is {tuple(feats.shape)} and {name}_labels {shape}, but has to be (N, D) and (N,)."
            )
        if not torch.isfinite(feats).all():
            raise ValueError(f"{name}_feats holds values that are not finite; the model has diverged, or overflowed.")
        if labels.is_floating_point() or labels.min() < 0:
            raise ValueError(f"{name}_labels has to hold class numbers, integers from 0.")
        if labels.max() > LARGEST_CLASS_NUMBER:
            raise ValueError(
                f"{name}_labels goes up to {int(labels.max())}, which is no class number; number the classes from 0."
            )
    if train_feats.shape[1] != test_feats.shape[1]:
        raise ValueError(
            f"train_feats has {train_feats.shape[1]} columns and test_feats {test_feats.shape[1]}; "
            "both have to come from the same model."
        )
