"""SimCLR and DCL against formulas written query by query, and against lightly's losses."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import simco_zoo


def build(method: str, **kwargs) -> simco_zoo.models.ContrastiveModel:
    """A small model without batch norm in float64: every image is embedded independently of its batch."""
    torch.manual_seed(0)
    return simco_zoo.create_model(method, backbone="test_convnext", **kwargs).double().train()


def encode(model: nn.Module, images: Tensor) -> Tensor:
    return F.normalize(model.projector(model.backbone(images)), dim=1)


def parts(z1: Tensor, z2: Tensor, i: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Scaled similarities of query z1[i] to its positive, and to the 2N - 2 other projections of both views."""
    others = torch.cat([z1[:i], z1[i + 1 :], z2[:i], z2[i + 1 :]])
    return z1[i] @ z2[i] / temperature, others @ z1[i] / temperature


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    losses = []
    for a, b in ((z1, z2), (z2, z1)):
        for i in range(len(a)):
            positive, negatives = parts(a, b, i, temperature)
            losses.append(torch.log(positive.exp() + negatives.exp().sum()) - positive)
    return torch.stack(losses).mean()


def dcl(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    losses = []
    for a, b in ((z1, z2), (z2, z1)):
        for i in range(len(a)):
            positive, negatives = parts(a, b, i, temperature)
            losses.append(torch.log(negatives.exp().sum()) - positive)
    return torch.stack(losses).mean()


def hard_negatives(z1: Tensor, z2: Tensor, temperature: float, beta: float, prior: float) -> Tensor:
    """The loss of Robinson et al. as their code computes it."""
    losses = []
    for a, b in ((z1, z2), (z2, z1)):
        for i in range(len(a)):
            positive, negatives = parts(a, b, i, temperature)
            importance = (beta * negatives).exp()
            n = len(negatives)
            reweighted = (importance * negatives.exp()).sum() / importance.mean()
            corrected = (reweighted - prior * n * positive.exp()) / (1 - prior)
            corrected = torch.clamp(corrected, min=n * torch.exp(torch.tensor(-1 / temperature)).item())
            losses.append(-torch.log(positive.exp() / (positive.exp() + corrected)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("method", "kwargs", "formula"), [
    ("simclr", {}, lambda a, b: nt_xent(a, b, 0.5)),
    ("simclr", {"temperature": 0.1}, lambda a, b: nt_xent(a, b, 0.1)),
    ("simclr", {"hardness": 1.0, "class_prior": 0.1}, lambda a, b: hard_negatives(a, b, 0.5, 1.0, 0.1)),
    ("simclr", {"hardness": 0.5}, lambda a, b: hard_negatives(a, b, 0.5, 0.5, 0.0)),
])  # fmt: skip
def test_loss_and_gradient(views, method, kwargs, formula):
    view1, view2 = (view.double() for view in views)
    model = build(method, **kwargs)
    reference = copy.deepcopy(model)
    expected = formula(encode(reference, view1), encode(reference, view2))
    expected.backward()
    report = model.contrast(view1, view2)
    report["loss"].backward()
    torch.testing.assert_close(report["loss"].detach(), expected.detach(), rtol=1e-9, atol=1e-9)
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("method", "kwargs"), [("dcl", {}), ("simclr", {"decoupled": True, "temperature": 0.1})])
def test_the_gradient_of_dcl(views, method, kwargs):
    view1, view2 = (view.double() for view in views)
    model = build(method, **kwargs)
    reference = copy.deepcopy(model)
    dcl(encode(reference, view1), encode(reference, view2), 0.1).backward()
    model.contrast(view1, view2)["loss"].backward()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("method", "loss"), [("simclr", "NTXentLoss"), ("dcl", "DCLLoss")])
def test_equals_lightly(views, method, loss):
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    model = simco_zoo.create_model(method, backbone="test_convnext", temperature=0.3).train()
    reference = copy.deepcopy(model)
    theirs = getattr(lightly, loss)(temperature=0.3)(encode(reference, views[0]), encode(reference, views[1]))
    theirs.backward()
    ours = model.contrast(*views)["loss"]
    ours.backward()
    if method == "simclr":  # of DCL only the gradient is the same
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)


def test_one_side_and_more_views(views):
    view1, view2 = (view.double() for view in views)
    view3 = view1.flip(-1)
    model = build("simclr", symmetric=False)
    one_sided = [model.contrast(view1, view)["loss"] for view in (view2, view3)]
    torch.testing.assert_close(model.contrast(view1, view2, view3)["loss"], torch.stack(one_sided).mean())
    model = build("simclr")
    pairs = [model.contrast(a, b)["loss"] for a, b in ((view1, view2), (view1, view3), (view2, view3))]
    torch.testing.assert_close(model.contrast(view1, view2, view3)["loss"], torch.stack(pairs).mean())


@pytest.mark.parametrize(("kwargs", "message"), [
    ({"hardness": -1.0}, "hardness is -1.0"), ({"class_prior": 1.0}, "class_prior is 1.0"),
])  # fmt: skip
def test_arguments_out_of_range(kwargs, message):
    with pytest.raises(ValueError, match=message):
        simco_zoo.create_model("simclr", backbone="test_convnext", **kwargs)


def test_the_share_of_anchors_without_repulsion_is_reported(views):
    assert "floored_share" not in build("simclr").contrast(*(view.double() for view in views))
    model = build("simclr", class_prior=0.9)
    image = views[0].double()
    assert model.contrast(image, image)["floored_share"] == 1.0  # all positives are at cosine 1
