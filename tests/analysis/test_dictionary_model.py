"""The model of the studies of negatives, against MoCo, SimMoCo and the closed gradient written plainly."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

import simco_zoo
from simco_zoo.analysis.dictionary_model import DictionaryModel


def build(**kwargs) -> DictionaryModel:
    """A small model without batch norm in float64, with a key encoder that differs from the query encoder."""
    torch.manual_seed(0)
    backbone = simco_zoo.create_model("simmoco", backbone="test_convnext").backbone
    model = DictionaryModel(backbone, proj_dim=16, momentum=1.0, **kwargs).double()
    model.init_key_encoder()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.train()


def encode(encoder, images):
    return F.normalize(encoder.projector(encoder.backbone(images)), dim=1)


@pytest.fixture
def doubles(views):
    return views[0].double(), views[1].double()


def gradient(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("strength", ["own", "mean", "scaled"])
@pytest.mark.parametrize(("vector_size", "scalar_size"), [(8, 24), (0, 24), (24, None)])
def test_gradient_is_strength_times_direction(doubles, vector_size, scalar_size, strength):
    model = build(vector_size=vector_size, scalar_size=scalar_size, strength=strength, dt_m=2.0)
    queue = model.queue.clone()
    q, k = encode(model, doubles[0]), encode(model.key_encoder, doubles[1]).detach()
    odds, weights = [], []
    for i in range(len(q)):
        others = torch.cat([k[:i], k[i + 1 :]])
        vector = queue[-vector_size:] if vector_size else others  # nothing was written yet, so the end is the newest
        scalar = vector if scalar_size is None else queue[-scalar_size:]
        odds.append(torch.logsumexp(vector @ q[i] / 0.1, dim=0) - q[i] @ k[i] / 0.1)
        e = torch.exp(scalar @ q[i] / 0.2).sum()
        weights.append((e / (e + torch.exp(q[i] @ k[i] / 0.2))).detach())
    w = torch.stack(weights)
    used = {"own": w, "mean": w.mean().expand_as(w), "scaled": w / w.mean()}[strength]
    expected = gradient(model, (used * torch.stack(odds)).mean())

    report = model.contrast(*doubles)
    torch.testing.assert_close(gradient(model, report["loss"]), expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(report["train_strength_mean"], w.mean())
    torch.testing.assert_close(report["train_strength_cv"], w.std(correction=0) / w.mean())


@pytest.mark.parametrize(("method", "size", "dt_m"), [("mocov2", 24, 1.0), ("simmoco", 0, 10.0)])
def test_its_ends_are_moco_and_simmoco(doubles, method, size, dt_m):
    ours = build(vector_size=size, dt_m=dt_m)
    extra = {"queue_size": 24} if method == "mocov2" else {}
    theirs = simco_zoo.create_model(method, backbone="test_convnext", momentum=1.0, proj_dim=16, **extra).double()
    theirs.init_key_encoder()
    theirs.load_state_dict({n: t for n, t in ours.state_dict().items() if n in theirs.state_dict()}, strict=False)
    for _ in range(2):  # the second step sees the keys of the first one in the queue
        expected = theirs.train().contrast(*doubles)["loss"]
        torch.testing.assert_close(ours.contrast(*doubles)["loss"], expected, rtol=1e-9, atol=1e-9)


def test_older_negatives(doubles):
    n = len(doubles[0])
    model = build(vector_size=n, skip=2 * n)
    keys = []
    for shift in range(4):
        view2 = doubles[1].roll(shift, dims=3)
        keys.append(encode(model.key_encoder, view2).detach())
        model.contrast(doubles[0], view2)
    torch.testing.assert_close(model.newest(n), keys[1])  # of the keys 0 to 3, those of 3 and 2 are skipped
    torch.testing.assert_close(model.eval().newest(n), keys[1])
    model.contrast(*doubles)
    torch.testing.assert_close(model.newest(n), keys[1])  # in evaluation mode nothing is written


def test_negatives_of_another_momentum(doubles):
    same, other = (build(negative_momentum=momentum, dt_m=10.0) for momentum in (1.0, 0.0))
    torch.testing.assert_close(same.contrast(*doubles)["loss"], build(dt_m=10.0).contrast(*doubles)["loss"])
    q, k = encode(other, doubles[0]), encode(other.key_encoder, doubles[1])
    negatives = encode(other, doubles[1])
    expected = simco_zoo.losses.dual_temperature(
        q, k, torch.stack([torch.cat([negatives[:i], negatives[i + 1 :]]) for i in range(len(q))])
    )
    torch.testing.assert_close(other.contrast(*doubles)["loss"], expected)
    restored = build(negative_momentum=0.5)
    restored.negative_encoder = None
    restored.load_state_dict(copy.deepcopy(other.state_dict()))
    torch.testing.assert_close(encode(restored.negative_encoder, doubles[1]), negatives)
    with pytest.raises(ValueError, match="leave vector_size at 0"):
        build(negative_momentum=0.5, vector_size=8)


def test_all_anchors_alike_with_an_infinite_ratio(doubles):
    report = build(dt_m=math.inf).contrast(*doubles)
    assert report["train_strength_cv"] < 1e-12
