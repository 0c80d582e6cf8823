"""The linear probe against scikit-learn's logistic regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from simco_zoo.evaluation import linear_probe
from simco_zoo.evaluation.linear import fit_logistic
from tests.evaluation.test_knn import blobs


@pytest.mark.parametrize("decay", [1e-3, 1e-1])
def test_agrees_with_scikit_learn(decay):
    linear_model = pytest.importorskip("sklearn.linear_model")
    train, labels = blobs(400, 0)
    test, truth = blobs(300, 1)
    mean, std = train.mean(0), train.std(0, correction=0)
    x, y = ((train - mean) / std).double(), labels
    # scikit-learn minimizes C * sum of losses + 1/2 |w|^2
    reference = linear_model.LogisticRegression(C=1 / (decay * len(x)), tol=1e-10, max_iter=2000).fit(x, y)
    weight = fit_logistic(x, y, 7, decay, max_iter=300)
    ours = weight[:, :-1] - weight[:, :-1].mean(0)
    theirs = reference.coef_ - reference.coef_.mean(0)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-4)
    found = linear_probe(train, labels, test, truth, weight_decays=(decay,), max_iter=300)
    expected = 100 * reference.score((test - mean) / std, truth)
    assert found["top1"] == pytest.approx(expected, abs=0.5)


def test_weight_decay_is_chosen_on_held_out_training_features():
    train, labels = blobs(300, 0, dim=40)
    test, truth = blobs(300, 1, dim=40)
    found = linear_probe(train, labels, test, truth, weight_decays=(1e-6, 1e-1))
    # few rows, many columns: the stronger decay generalizes better
    assert found["weight_decay"] == 1e-1
    assert found == linear_probe(train, labels, test, truth, weight_decays=(1e-6, 1e-1))
    shuffled = linear_probe(train, labels, test, truth.flip(0), weight_decays=(1e-6, 1e-1))
    assert shuffled["weight_decay"] == found["weight_decay"]  # the test labels play no part


@pytest.mark.parametrize(("n", "dim"), [(120, 60), (400, 12), (2000, 30)])
def test_as_good_as_scikit_learns_best(n, dim):
    """Its best of a grid, chosen on the test set even, up to the width of a few test images."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    train, labels = blobs(n, 0, dim=dim)
    test, truth = blobs(2000, 1, dim=dim)
    mean, std = train.mean(0), train.std(0, correction=0)
    fits = [
        linear_model.LogisticRegression(C=c, max_iter=2000).fit((train - mean) / std, labels)
        for c in np.logspace(-4, 2, 7)
    ]
    best = max(100 * fit.score((test - mean) / std, truth) for fit in fits)
    assert linear_probe(train, labels, test, truth)["top1"] > best - 1.5


def test_a_fit_that_starts_elsewhere_ends_in_the_same_place():
    train, labels = blobs(300, 0)
    far = fit_logistic(train, labels, 7, 1e-1, max_iter=300)
    found = fit_logistic(train, labels, 7, 1e-3, max_iter=300, start=far)
    torch.testing.assert_close(found, fit_logistic(train, labels, 7, 1e-3, max_iter=300), rtol=0, atol=1e-2)
    assert far.requires_grad is False


def test_a_constant_feature_does_no_harm():
    train, labels = blobs(100, 0)
    test, truth = blobs(100, 1)
    train[:, 3] = 5.0
    test[:, 3] = -1000.0
    without = [torch.cat([x[:, :3], x[:, 4:]], dim=1) for x in (train, test)]
    found = linear_probe(train, labels, test, truth, weight_decays=(1e-2,))
    assert found == linear_probe(without[0], labels, without[1], truth, weight_decays=(1e-2,))


def test_errors():
    train, labels = blobs(50, 0)
    with pytest.raises(ValueError, match="at least one value"):
        linear_probe(train, labels, train, labels, weight_decays=())
