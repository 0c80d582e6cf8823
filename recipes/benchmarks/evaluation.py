"""Extraction against the loop that a timm user writes; kNN against scikit-learn's and lightly's."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import simco_zoo
from benchmarks.compare import Row, compare, judge
from simco_zoo.data import normalize
from simco_zoo.evaluation import knn

TEMPERATURE = 0.1


def benchmark_extract(args: argparse.Namespace) -> Iterator[Row]:
    model = simco_zoo.create_model("simco_r18_025").eval()
    images = torch.randint(0, 256, (8 * args.batch_size, 3, 32, 32), dtype=torch.uint8)
    backbone = simco_zoo.create_model("simco_r18_025").backbone.eval()

    def plain() -> Tensor:
        found = []
        with torch.inference_mode():
            for batch in images.split(args.batch_size):
                found.append(backbone(normalize(batch, backbone.pretrained_cfg)))
        return torch.cat(found)

    what = f"extract_features on {len(images)} images in memory: images/s / the plain loop's"
    yield compare(
        what,
        lambda: simco_zoo.extract_features(model, images, args.batch_size),
        plain,
        args.runs,
        0.97,
        inverse=True,
    )


def benchmark_knn(args: argparse.Namespace) -> Iterator[Row | str]:
    classes, dim = 100, 128
    centers = torch.randn(classes, dim)
    bank_labels, labels = torch.randint(classes, (10 * args.n,)), torch.randint(classes, (2 * args.n,))
    bank, queries = (centers[y] + 3 * torch.randn(len(y), dim) for y in (bank_labels, labels))
    k = min(200, len(bank))
    sizes = f"kNN of {len(queries)} queries, bank {len(bank)} x {dim}, {classes} classes, k = {k}"

    def ours() -> float:
        return knn(bank, bank_labels, queries, labels, k=k, temperature=TEMPERATURE)["top1"]

    try:
        from sklearn.neighbors import KNeighborsClassifier
    except ImportError:
        yield "kNN against scikit-learn: not measured, scikit-learn is not installed."
    else:
        reference = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=votes_of_distances)
        reference.fit(bank.numpy(), bank_labels.numpy())

        def sklearns() -> float:
            return 100 * float(reference.score(queries.numpy(), labels.numpy()))

        yield from against("scikit-learn", sizes, ours, sklearns, args.runs)

    try:
        from lightly.utils.benchmarking import knn_predict
    except ImportError:
        yield "kNN against lightly: not measured, lightly is not installed."
    else:

        def lightlys() -> float:
            pool = F.normalize(bank, dim=1).T
            hits = 0
            for rows, truth in zip(queries.split(args.batch_size), labels.split(args.batch_size), strict=True):
                rows = F.normalize(rows, dim=1)
                ranked = knn_predict(rows, pool, bank_labels, classes, knn_k=k, knn_t=TEMPERATURE)
                hits += int((ranked[:, 0] == truth).sum())
            return 100 * hits / len(queries)

        yield from against("lightly", sizes, ours, lightlys, args.runs)


def votes_of_distances(distances: Any) -> Any:
    """Returns exp(cosine / temperature) of cosine distances, as scikit-learn wants its weights."""
    return np.exp((1 - distances) / TEMPERATURE)


def against(name: str, sizes: str, ours: Callable[[], float], theirs: Callable[[], float], runs: int) -> Iterator[Row]:
    """Compares the time of two kNN classifiers (the aim is ours: no slower), and their top-1 accuracies."""
    yield compare(f"{sizes}: time / {name}'s", ours, theirs, runs, 1.0)
    off = abs(ours() - theirs())
    yield judge(f"the same: difference from {name}'s top-1 ({theirs():.2f} %), in points", [off], 0.1)
