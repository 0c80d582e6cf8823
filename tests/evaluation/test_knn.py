"""kNN against a plain float64 formulation, scikit-learn and lightly."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simco_zoo.evaluation import knn
from simco_zoo.evaluation.neighbors import accuracy_with_interval


def blobs(n: int, seed: int, classes: int = 7, dim: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    centers = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    return centers[labels] + 1.5 * torch.randn(n, dim, generator=generator), labels


def plain(train, labels, test, truth, k, temperature):
    """One test row at a time, in float64, with a dictionary of votes; ties go to the lower class number."""
    train, test = F.normalize(train.double(), dim=1), F.normalize(test.double(), dim=1)
    hits = [0, 0]
    for row, label in zip(test, truth.tolist(), strict=True):
        similarity = train @ row
        votes = dict.fromkeys(range(int(max(labels.max(), truth.max())) + 1), 0.0)
        for index in similarity.argsort(descending=True)[:k].tolist():
            vote = torch.exp(similarity[index] / temperature).item()
            votes[int(labels[index])] = votes[int(labels[index])] + vote
        ranked = sorted(votes, key=lambda c: (-votes[c], c))
        hits[0] += ranked[0] == label
        hits[1] += label in ranked[:5]
    return {"top1": 100 * hits[0] / len(test), "top5": 100 * hits[1] / len(test)}


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (20, 0.1), (200, 0.1), (20, 0.01), (300, 1.0)])
def test_equals_the_plain_formulation(k, temperature):
    train, labels = blobs(300, 0)
    test, truth = blobs(97, 1)
    expected = plain(train, labels, test, truth, k, temperature)
    assert 20 < expected["top1"] < 99
    found = knn(train, labels, test, truth, k, temperature, chunk_size=20)
    assert found["top1"] == pytest.approx(expected["top1"])
    assert found["top5"] == pytest.approx(expected["top5"])
    assert found == knn(train, labels, test, truth, k, temperature, chunk_size=1000)
    assert found == knn(3 * train, labels, 0.1 * test, truth, k, temperature)  # length says nothing


def test_agrees_with_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors")
    train, labels = blobs(300, 2)
    test, truth = blobs(120, 3)
    votes = {"weights": lambda distance: np.exp((1 - distance) / 0.1)}
    reference = neighbors.KNeighborsClassifier(30, metric="cosine", algorithm="brute", **votes)
    reference.fit(train.double().numpy(), labels.numpy())
    expected = 100 * reference.score(test.double().numpy(), truth.numpy())
    assert knn(train, labels, test, truth, k=30)["top1"] == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 20, 200])
def test_agrees_with_lightly(k):
    package = importlib.util.find_spec("lightly")
    if package is None or not package.submodule_search_locations:
        pytest.skip("lightly is not installed")
    # the file alone: the package would want Lightning, too
    file = Path(package.submodule_search_locations[0], "utils", "benchmarking", "knn.py")
    spec = importlib.util.spec_from_file_location("lightly_knn", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    train, labels = blobs(300, 2)
    test, truth = blobs(120, 3)
    bank, queries = (F.normalize(x, dim=1) for x in (train, test))
    ranked = module.knn_predict(queries, bank.T, labels, num_classes=7, knn_k=k, knn_t=0.1)
    found = knn(train, labels, test, truth, k=k)
    assert found["top1"] == pytest.approx(100 * (ranked[:, 0] == truth).double().mean().item())
    if k > 1:  # with one vote the others are all equal, and lightly orders those by chance
        top5 = 100 * (ranked[:, :5] == truth[:, None]).any(dim=1).double().mean().item()
        assert found["top5"] == pytest.approx(top5, abs=1.0)


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (7, 10), (421, 1000), (1000, 1000)])
def test_the_interval_is_wilsons(hits, total):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(hits, total).proportion_ci(0.95, method="wilson")
    found = accuracy_with_interval(torch.tensor([hits, total]), total)
    assert found["top1_low"] == pytest.approx(100 * expected.low, abs=1e-5)
    assert found["top1_high"] == pytest.approx(100 * expected.high, abs=1e-5)


def test_equal_votes_go_to_the_lower_class():
    train = torch.eye(6)
    test = train.sum(dim=0, keepdim=True)  # equally far from all
    found = [knn(train, torch.tensor([5, 4, 3, 2, 1, 0]), test, torch.tensor([c]), k=6) for c in range(6)]
    assert [f["top1"] for f in found] == [100, 0, 0, 0, 0, 0]
    assert [f["top5"] for f in found] == [100, 100, 100, 100, 100, 0]


def test_fewer_than_five_classes():
    train, labels = blobs(50, 0, classes=3)
    assert knn(train, labels, *blobs(20, 1, classes=3), k=10)["top5"] == 100.0


@pytest.mark.parametrize(("change", "message"), [
    ({"k": 0}, "k is 0"),
    ({"k": 51}, "there are 50 training features"),
    ({"temperature": 0.0}, "temperature is 0.0"),
    ({"train_labels": torch.zeros(3)}, "train_labels"),
    ({"test_feats": torch.zeros(20, 3)}, "the same model"),
    ({"test_labels": None}, "test_labels None"),
    ({"train_labels": torch.full((50,), -1)}, "train_labels has to hold class numbers"),
    ({"test_labels": torch.zeros(20)}, "test_labels has to hold class numbers"),
    ({"test_feats": torch.full((20, 12), torch.nan)}, "test_feats holds values that are not finite"),
    ({"chunk_size": 0}, "chunk_size is 0"),
])  # fmt: skip
def test_errors(change, message):
    train, labels = blobs(50, 0)
    test, truth = blobs(20, 1)
    arguments = {"train_feats": train, "train_labels": labels, "test_feats": test, "test_labels": truth, "k": 5}
    with pytest.raises(ValueError, match=message):
        knn(**{**arguments, **change})
