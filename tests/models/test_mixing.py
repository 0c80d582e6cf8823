"""MoCo's synthetic negatives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import simco_zoo
from simco_zoo.models.hard_mixing import mix_negatives, mixed_info_nce


def rows(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def shares(vector: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The coefficients with which a vector is a mixture of two others, up to its length; and what is left over."""
    basis = torch.stack([a, b], dim=1)
    found = torch.linalg.lstsq(basis, vector[:, None]).solution[:, 0]
    return found if (basis @ found - vector).norm() < 1e-9 else torch.full((2,), torch.nan)


def test_mixtures_are_of_the_hardest_negatives_and_of_the_query():
    query, negatives = rows(3, 16), rows(30, 16)
    mixed = mix_negatives(query, negatives, hardest=4, pairs=40, query_mixes=20)
    assert mixed.shape == (3, 60, 16) and not mixed.requires_grad
    torch.testing.assert_close(mixed.norm(dim=2), torch.ones(3, 60, dtype=torch.float64))
    for i in range(3):
        hardest = negatives[(negatives @ query[i]).argsort(descending=True)[:4]]
        seen = set()
        for vector in mixed[i, :40]:
            fits = [
                (j, k) for j in range(4) for k in range(j, 4)
                if (j == k and torch.allclose(vector, hardest[j]))
                or (j < k and bool((shares(vector, hardest[j], hardest[k]) >= 0).all()))
            ]  # fmt: skip
            assert fits
            seen.update(fits[0])
        assert seen == {0, 1, 2, 3}
        for vector in mixed[i, 40:]:
            found = [shares(vector, query[i], negative) for negative in hardest]
            # the query's share is below a half, so that the mixture stays a negative
            assert any(bool((s >= 0).all()) and s[0] < s[1] for s in found)


def test_the_loss_has_the_synthetic_negatives_in_its_denominator():
    query, key, queue, mixed = rows(5, 8), rows(5, 8), rows(12, 8), rows(5, 3, 8)
    expected = []
    for i in range(5):
        positive = (query[i] @ key[i] / 0.2).exp()
        negatives = (torch.cat([queue, mixed[i]]) @ query[i] / 0.2).exp().sum()
        expected.append(-torch.log(positive / (positive + negatives)))
    torch.testing.assert_close(mixed_info_nce(query, key, queue, mixed, 0.2), torch.stack(expected).mean())


def build(**kwargs) -> simco_zoo.models.MoCo:
    torch.manual_seed(0)
    return simco_zoo.create_model("mocov2", backbone="test_resnet", queue_size=16, **kwargs).train()


def test_mixing_begins_after_the_warm_up_and_makes_the_task_harder(views):
    plain, mixing = build(), build(mix=(8, 16, 8), mix_warmup=2)
    losses = [
        [m.contrast(*views, generator=torch.Generator().manual_seed(i))["loss"] for m in (plain, mixing)]
        for i in range(4)
    ]
    assert [torch.equal(a, b) for a, b in losses] == [True, True, False, False]
    assert all(b > a for a, b in losses[2:])
    # held while gradients accumulate: such parts are no steps
    held = build(mix=(8, 16, 8), mix_warmup=2)
    for i in range(4):
        held.contrast(*views, hold_key_encoder=i > 0)
    assert held.mix_steps == 1


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_resumed_model_mixes_the_same(views, symmetric):
    model = build(mix=(8, 4, 4), mix_warmup=1, symmetric=symmetric)
    model.contrast(*views)
    other = build(mix=(8, 4, 4), mix_warmup=1, symmetric=symmetric)
    other.load_state_dict(model.state_dict())
    losses = [m.contrast(*views, generator=torch.Generator().manual_seed(5))["loss"] for m in (model, other)]
    assert torch.equal(*losses) and model.mix_steps == other.mix_steps == 2
    losses[0].backward()


def test_a_published_model_keeps_its_mixing(tmp_path):
    model = build(mix=(8, 4, 2), mix_warmup=7)
    loaded = simco_zoo.create_model(f"local-dir:{simco_zoo.save_pretrained(model, tmp_path / 'm')}", pretrained=True)
    assert loaded.mix == (8, 4, 2) and loaded.method_config() == model.method_config()


@pytest.mark.parametrize("mix", [(0, 1, 1), (17, 1, 1), (4, 0, 0), (4, -1, 4), (4, 4)])
def test_mixtures_that_cannot_be_made(mix):
    with pytest.raises(ValueError, match=r"has to be \(hardest, pairs, query_mixes\): 1 to 16"):
        build(mix=mix)
