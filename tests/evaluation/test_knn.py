"""kNN against a plain float64 formulation, scikit-learn and lightly."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simco_zoo.evaluation import knn
from simco_zoo.evaluation.metrics import accuracy_with_interval, confusion_matrix, per_class_accuracy, topk_correct
from simco_zoo.evaluation.neighbors import search


def blobs(n: int, seed: int, classes: int = 7, dim: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    centers = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    return centers[labels] + 1.5 * torch.randn(n, dim, generator=generator), labels


def plain(train, labels, test, truth, k, temperature):
    """One test row at a time, in float64, with a dictionary of votes; ties share the places that are left."""
    train, test = F.normalize(train.double(), dim=1), F.normalize(test.double(), dim=1)
    hits = [0, 0]
    for row, label in zip(test, truth.tolist(), strict=True):
        similarity = train @ row
        votes = dict.fromkeys(range(int(max(labels.max(), truth.max())) + 1), 0.0)
        for index in similarity.argsort(descending=True)[:k].tolist():
            vote = torch.exp(similarity[index] / temperature).item()
            votes[int(labels[index])] = votes[int(labels[index])] + vote
        above = sum(vote > votes[label] for vote in votes.values())
        tied = sum(vote == votes[label] for vote in votes.values())
        for place, first in enumerate((1, 5)):
            hits[place] += min(max(first - above, 0), tied) / tied
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


def test_ties_favor_no_class():
    train = torch.eye(6)
    test = train.sum(dim=0, keepdim=True)  # equally far from all
    for k in (1, 3, 6):
        found = [knn(train, torch.arange(6), test, torch.tensor([c]), k=k) for c in range(6)]
        assert [f["top1"] for f in found] == pytest.approx([100 / 6] * 6)
        assert [f["top5"] for f in found] == pytest.approx([500 / 6] * 6)


@pytest.mark.parametrize("k", [1, 2, 7, 50])
def test_the_names_of_the_classes_do_not_matter(k):
    """With few neighbors most classes have no vote at all; which number they have is chance."""
    train, labels = blobs(60, 0, classes=20)
    train[10:20] = train[:10]  # equally similar neighbors of other classes
    test, truth = blobs(40, 1, classes=20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    found, renamed = knn(train, labels, test, truth, k=k), knn(train, order[labels], test, order[truth], k=k)
    assert found == pytest.approx(renamed)
    rows = torch.randperm(60, generator=torch.Generator().manual_seed(4))
    assert found == pytest.approx(knn(train[rows], labels[rows], test, truth, k=k))


def test_top5_of_one_neighbor_is_chance_for_the_classes_without_a_vote():
    train, labels = blobs(60, 0, classes=20)
    found = knn(train, labels, *blobs(40, 1, classes=20), k=1)
    assert found["top5"] == pytest.approx(found["top1"] + (100 - found["top1"]) * 4 / 19)


def test_ties_are_the_mean_over_the_orders():
    """Against drawing an order of the equal scores, many times."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (30, 9), generator=generator).float()
    truth = torch.randint(0, 9, (30,), generator=generator)
    drawn = torch.zeros(2)
    for _ in range(2000):
        ranked = (scores + 0.5 * torch.rand(30, 9, generator=generator)).argsort(dim=1, descending=True)
        drawn += torch.tensor([(ranked[:, :n] == truth[:, None]).any(dim=1).sum() for n in (1, 5)])
    torch.testing.assert_close(topk_correct(scores, truth).float(), drawn / 2000, rtol=0, atol=0.15)


def test_more_neighbors_than_there_are():
    train, labels = blobs(50, 0)
    test, truth = blobs(20, 1)
    with pytest.warns(UserWarning, match="k is 200, but there are 50 training features; all of them vote"):
        found = knn(train, labels, test, truth)
    assert found == knn(train, labels, test, truth, k=50)


def test_confusion():
    predicted, truth = torch.tensor([0, 2, 2, 1, 0]), torch.tensor([0, 2, 1, 1, 1])
    matrix = confusion_matrix(predicted, truth, 4)
    expected = torch.zeros(4, 4, dtype=torch.long)
    for row, column in zip(truth, predicted, strict=True):
        expected[row, column] += 1
    assert torch.equal(matrix, expected)
    found = per_class_accuracy(matrix)
    assert found[:3].tolist() == pytest.approx([100, 100 / 3, 100]) and found[3].isnan()


@pytest.mark.parametrize("k", [1, 4, 90])
def test_search_against_numpy(k):
    bank, _ = blobs(60, 0)
    bank[7] = 2 * bank[2]  # equally similar: the lower row number first
    queries, _ = blobs(11, 1)
    indices, similarities = search(bank, queries, k)
    unit, wanted = (x.double().numpy() for x in (bank, queries))
    cosine = (wanted @ unit.T) / np.outer(np.linalg.norm(wanted, axis=1), np.linalg.norm(unit, axis=1))
    expected = np.argsort(-cosine.round(6), axis=1, kind="stable")[:, :k]
    assert indices.tolist() == expected.tolist()
    np.testing.assert_allclose(similarities.numpy(), np.take_along_axis(cosine, expected, 1), atol=1e-6)
    assert search(bank, bank[2], 2)[0].tolist() == [[2, 7]] and search(bank, bank[2])[1].max() <= 1


def test_search_errors():
    bank, _ = blobs(60, 0)
    with pytest.raises(ValueError, match=r"are \(2, 3\), but have to be \(Q, 12\)"):
        search(bank, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="k is 0"):
        search(bank, bank, 0)
    assert search(bank, bank[:0])[0].shape == (0, 5)


def test_fewer_than_five_classes():
    train, labels = blobs(50, 0, classes=3)
    assert knn(train, labels, *blobs(20, 1, classes=3), k=10)["top5"] == 100.0


@pytest.mark.parametrize(("change", "message"), [
    ({"k": 0}, "k is 0"),
    ({"k": 2.5}, "k is 2.5, but has to be a whole number"),
    ({"test_feats": np.zeros((20, 12))}, "test_feats is a ndarray, but has to be a tensor"),
    ({"temperature": 0.0}, "temperature is 0.0"),
    ({"train_labels": torch.zeros(3)}, "train_labels"),
    ({"test_feats": torch.zeros(20, 3)}, "the same model"),
    ({"test_labels": None}, "test_labels None"),
    ({"train_labels": torch.full((50,), -1)}, "train_labels has to hold class numbers"),
    ({"test_labels": torch.arange(20) * 10**9}, "test_labels goes up to 19000000000, which is no class number"),
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
