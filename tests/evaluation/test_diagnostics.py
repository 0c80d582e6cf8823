"""Diagnostics against their formulas written out in numpy, and on cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import simco_zoo
from simco_zoo.data import load_images
from simco_zoo.evaluation import (
    alignment,
    center_and_residual,
    diagnose,
    effective_rank,
    off_diagonal_covariance,
    uniformity,
)


@pytest.fixture
def z() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z1 = F.normalize(torch.randn(40, 8, generator=generator), dim=1)
    return z1, F.normalize(z1 + 0.3 * torch.randn(40, 8, generator=generator), dim=1)


def test_alignment_and_uniformity_as_written_in_the_paper(z):
    a, b = (part.double().numpy() for part in z)
    assert alignment(*z) == pytest.approx(np.mean([np.dot(x - y, x - y) for x, y in zip(a, b, strict=True)]))
    pairs = [np.exp(-2 * np.dot(a[i] - a[j], a[i] - a[j])) for i in range(40) for j in range(i)]
    assert uniformity(z[0]) == pytest.approx(math.log(np.mean(pairs)))
    assert alignment(z[0], z[0]) == 0 and uniformity(z[0][:1].expand(5, 8)) == pytest.approx(0)


def test_effective_rank_of_known_matrices(z):
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(z[0][:, :1] @ z[0][:1]) == pytest.approx(1)
    values = np.linalg.svd(z[0].double().numpy(), compute_uv=False)
    shares = values / values.sum()
    assert effective_rank(z[0]) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_center_residual_and_covariance_are_those_of_the_formulas(z):
    rows = torch.cat(z).double().numpy()
    center = rows.mean(axis=0)
    found = center_and_residual(*z)
    assert found == pytest.approx((np.linalg.norm(center), np.mean([np.linalg.norm(row - center) for row in rows])))
    point = z[0][:1].expand(20, 8)
    assert center_and_residual(point, point) == pytest.approx((1, 0), abs=1e-6)

    covariance = np.cov((z[0].double() * math.sqrt(8)).numpy(), rowvar=False)
    expected = sum(covariance[i, j] ** 2 for i in range(8) for j in range(8) if i != j) / 8
    assert off_diagonal_covariance(z[0]) == pytest.approx(expected)
    assert off_diagonal_covariance(point) == pytest.approx(0, abs=1e-9)
    line = torch.tensor([1.0, -1.0]).repeat(500)[:, None] * F.normalize(torch.ones(1, 8), dim=1)
    assert off_diagonal_covariance(line) == pytest.approx(7, rel=0.01)  # all of 8 coordinates are one


def test_diagnose_tells_trained_from_untrained_and_leaves_the_model_alone():
    images = load_images("photos", split="test")
    found = {}
    for pretrained in (False, True):
        model = simco_zoo.create_model("simco_r18_025", pretrained=pretrained).train()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        rng = torch.get_rng_state()
        found[pretrained] = diagnose(model, images, limit=128)
        assert model.training and model.backbone.bn1.training
        assert torch.equal(rng, torch.get_rng_state())
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert diagnose(model, images, limit=128) == found[pretrained]
    assert found[True]["uniformity"] < found[False]["uniformity"] - 1
    assert found[True]["effective_rank"] > 1.5 * found[False]["effective_rank"]
    assert found[True]["strength_cv"] > 5 * found[False]["strength_cv"]
    assert found[True]["center_norm"] < 0.5 < found[False]["center_norm"]
    assert found[True]["residual_norm"] > 0.8
    spread = {key: value["log_w_q95"] - value["log_w_q05"] for key, value in found.items()}
    assert spread[True] > 5 * spread[False] > 0  # a trained network finds some anchors easy, others hard


def test_log_w_quantiles_are_those_of_the_formula(monkeypatch):
    """Against the paper's formula in float64, for the very projections."""
    images = load_images("photos", split="test")
    model = simco_zoo.create_model("simco_r18_025", pretrained=True).double().eval()
    seen = []
    project = model.project
    monkeypatch.setattr(model, "project", lambda x: seen.append(project(x.double())) or seen[-1])
    monkeypatch.setattr(model, "forward", lambda x: seen[0])
    found = diagnose(model, images, limit=64)
    similarity = seen[0] @ seen[1].T
    p = [torch.softmax(similarity / tau, dim=1).diagonal() for tau in (0.1, 1.0)]
    expected = torch.log((1 - p[1]) / (1 - p[0]))
    assert found["log_w_q50"] == pytest.approx(expected.quantile(0.5).item(), rel=1e-6)
    assert found["log_w_q95"] == pytest.approx(expected.quantile(0.95).item(), rel=1e-6)
    strength = (1 - p[0]).detach().numpy()
    assert found["strength_mean"] == pytest.approx(strength.mean(), rel=1e-6)
    assert found["strength_cv"] == pytest.approx(np.std(strength) / strength.mean(), rel=1e-6)
    assert found["off_diagonal_covariance"] == pytest.approx(off_diagonal_covariance(seen[0].detach()))
