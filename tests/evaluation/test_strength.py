"""The anchors' strength and the gradients' cosines against formulas written out group by group."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import simco_zoo
from simco_zoo.data import load_images
from simco_zoo.evaluation.strength import gradient_cosines, project_views, strengths


@pytest.fixture
def views() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z1 = F.normalize(torch.randn(40, 8, generator=generator), dim=1)
    return z1, F.normalize(z1 + 0.5 * torch.randn(40, 8, generator=generator), dim=1)


def test_strengths_are_those_of_a_softmax_in_each_group(views):
    z1, z2 = (z.double() for z in views)
    found = strengths(*views, sizes=[7, 39, 40], temperatures=[0.1, 0.5])
    assert [(row["negatives"], row["temperature"], row["anchors"]) for row in found] == [
        (7, 0.1, 40), (7, 0.5, 40), (39, 0.1, 40), (39, 0.5, 40)  # 40 negatives would need 41 rows
    ]  # fmt: skip
    for row in found:
        size = row["negatives"] + 1
        p = [
            torch.softmax(z1[i : i + size] @ z2[i : i + size].T / row["temperature"], dim=1).diagonal()
            for i in range(0, 40, size)
        ]
        w = 1 - torch.cat(p)
        assert row["strength_mean"] == pytest.approx(w.mean().item(), abs=1e-4)
        assert row["strength_cv"] == pytest.approx((w.std(correction=0) / w.mean()).item(), abs=2e-4)


def test_cosines_are_those_with_the_gradient_of_dcl(views):
    z1, z2 = (z.double().requires_grad_() for z in views)
    logits = z1 @ z2.T / 0.2
    own = torch.eye(40, dtype=torch.bool)
    dcl = (logits.masked_fill(own, -torch.inf).logsumexp(dim=1) - logits.diagonal()).mean()
    info_nce = F.cross_entropy(logits, torch.arange(40))
    gradients = [
        torch.cat(torch.autograd.grad(loss, (z1, z2), retain_graph=True)).flatten() for loss in (dcl, info_nce)
    ]
    expected = torch.cosine_similarity(*gradients, dim=0).item()
    found = gradient_cosines(*views, batches=[40, 41], ratios=[1.0, 1e6], temperature=0.2)
    assert [row["batches"] for row in found] == [1, 1]
    assert found[0]["cosine"] == pytest.approx(expected, abs=2e-5) and expected < 0.999
    assert found[1]["cosine"] == 1


def test_projected_views_are_unit_rows_of_the_same_images():
    model = simco_zoo.create_model("simco", backbone="test_resnet").train()
    images = load_images(torch.randint(256, (12, 3, 32, 32), dtype=torch.uint8))
    z1, z2 = project_views(model, images, limit=9, batch_size=4)
    assert z1.shape == z2.shape == (9, model.proj_dim) and model.training
    torch.testing.assert_close(z1.norm(dim=1), torch.ones(9))
    again = project_views(model, images, limit=9, batch_size=4)
    assert torch.equal(z1, again[0]) and torch.equal(z2, again[1]) and not torch.equal(z1, z2)
