"""The losses' options against a formula written query by query with plain exponentials, and against peers' code."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from simco_zoo.losses import (
    DualTemperatureLoss,
    InfoNCELoss,
    anchor_strength,
    dual_temperature,
    floored_share,
    info_nce,
    log_anchor_weights,
)


def unit(*shape: int, seed: int = 0) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=-1)


def pair(n: int, d: int, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    query = unit(n, d)
    return query.requires_grad_(), F.normalize(query.detach() + noise * unit(n, d, seed=1), dim=1).requires_grad_()


def plain(
    query,
    key,
    negatives=None,
    temperature=0.1,
    dt_m=1.0,
    *,
    in_batch=None,
    scalar_negatives=None,
    hardness=0.0,
    class_prior=0.0,
    detach_importance=False,
) -> Tensor:
    """The losses as the papers write them, one query after the other."""
    in_batch = negatives is None if in_batch is None else in_batch
    losses = []
    for i in range(len(query)):
        others = [j for j in range(len(query)) if j != i]
        rows = []
        if in_batch:
            rows.append(key[others])
        if in_batch == "both":
            rows.append(query[others])
        if negatives is not None:
            rows.append(negatives[i] if negatives.ndim == 3 else negatives)
        similarity, positive = torch.cat(rows) @ query[i], query[i] @ key[i]
        n = len(similarity)
        # Robinson et al., section 4.1, with the estimators of its appendix
        importance = torch.exp(hardness * similarity / temperature)
        if detach_importance:
            importance = importance.detach()
        reweighted = (importance * torch.exp(similarity / temperature)).sum() / importance.mean()
        total = (reweighted - class_prior * n * torch.exp(positive / temperature)) / (1 - class_prior)
        if class_prior > 0:
            total = torch.maximum(total, n * torch.exp(-1 / torch.as_tensor(temperature, dtype=torch.float64)))
        p = torch.exp(positive / temperature) / (torch.exp(positive / temperature) + total)
        loss = -torch.log(p)
        if dt_m != 1 or scalar_negatives is not None:
            dictionary = similarity if scalar_negatives is None else scalar_negatives @ query[i]
            p_beta = 1 / (1 + torch.exp((dictionary - positive) / (temperature * dt_m)).sum())
            loss = loss * ((1 - p_beta) / (1 - p)).detach()
        losses.append(loss)
    return torch.stack(losses).mean()


OPTIONS = [
    {},
    {"dt_m": 10.0},
    {"hardness": 1.0},
    {"hardness": 1.0, "detach_importance": True},
    {"class_prior": 0.05},
    {"hardness": 1.5, "class_prior": 0.1, "dt_m": 5.0},
    {"hardness": 1.5, "class_prior": 0.1, "detach_importance": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("given", ["none", "shared", "own"])
@pytest.mark.parametrize("in_batch", [None, True, "both"])
@pytest.mark.parametrize("two_dictionaries", [False, True])
def test_value_and_two_derivatives(options, given, in_batch, two_dictionaries):
    """Also of the temperature; anchors at the floor are among them (noise 0.5)."""
    query, key = pair(6, 5, noise=0.5)
    negatives = {"none": None, "shared": unit(4, 5, seed=2), "own": unit(6, 3, 5, seed=3)}[given]
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    inputs = [t for t in (query, key, negatives, temperature) if t is not None]
    for tensor in inputs:
        tensor.requires_grad_()
    settings = {"in_batch": in_batch, "scalar_negatives": unit(7, 5, seed=4) if two_dictionaries else None}
    settings = {"dt_m": 1.0, **settings, **options}

    expected = plain(query, key, negatives, temperature, **settings)
    ours = dual_temperature(query, key, negatives, temperature, **settings)
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    gradients = torch.autograd.grad(ours, inputs)
    again = dual_temperature(query, key, negatives, temperature, **settings)
    first = torch.autograd.grad(again, inputs, create_graph=True)
    reference = torch.autograd.grad(expected, inputs, create_graph=True)
    for closed, differentiable, theirs in zip(gradients, first, reference, strict=True):
        torch.testing.assert_close(closed, theirs, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(differentiable, theirs, rtol=1e-9, atol=1e-11)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    reference = torch.autograd.grad(sum(g.square().sum() for g in reference), inputs)
    for mine, theirs in zip(second, reference, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("hardness", [0.0, 2.0])
@pytest.mark.parametrize("class_prior", [0.0, 0.02])
def test_several_blocks(hardness, class_prior):
    """900 queries with 2,003 columns are four blocks; the same loss over four parts of the queries is one each."""
    query, key = (t.detach().float() for t in pair(900, 8))
    own = unit(900, 203, 8, seed=3).float()
    settings = {"in_batch": "both", "temperature": 0.5, "hardness": hardness, "class_prior": class_prior}
    query.requires_grad_()
    whole = info_nce(query, key, own, **settings)
    gradient = torch.autograd.grad(whole, query)[0]
    parts = [
        info_nce(query[i : i + 225], key, own[i : i + 225], all_queries=query, positive_offset=i, **settings)
        for i in range(0, 900, 225)
    ]
    torch.testing.assert_close(sum(parts) / 4, whole)
    torch.testing.assert_close(torch.autograd.grad(sum(parts) / 4, query)[0], gradient, rtol=1e-4, atol=1e-8)


def test_both_views_are_nt_xent():
    """Written as the paper of SimCLR does: cross-entropy over 2N rows, the own row left out."""
    views = pair(9, 8)
    rows = torch.cat(views)
    logits = (rows @ rows.T / 0.2).masked_fill(torch.eye(18, dtype=torch.bool), -torch.inf)
    expected = F.cross_entropy(logits, torch.arange(18).roll(9))
    z1, z2 = views
    ours = (info_nce(z1, z2, temperature=0.2, in_batch="both") + info_nce(z2, z1, temperature=0.2, in_batch="both")) / 2
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(torch.autograd.grad(ours, views), torch.autograd.grad(expected, views), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def both_directions(loss, z1: Tensor, z2: Tensor, **settings) -> Tensor:
    z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    return (loss(z1, z2, in_batch="both", **settings) + loss(z2, z1, in_batch="both", **settings)) / 2


def test_nt_xent_and_dcl_are_those_of_lightly():
    peers = pytest.importorskip("lightly.loss")
    views = pair(12, 8)
    expected = peers.NTXentLoss(0.1)(*views)
    ours = both_directions(info_nce, *views, temperature=0.1)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)
    for mine, theirs in zip(torch.autograd.grad(ours, views), torch.autograd.grad(expected, views), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)

    expected = peers.DCLLoss(0.1)(*views)
    ours = both_directions(dual_temperature, *views, temperature=0.1, dt_m=math.inf)
    for mine, theirs in zip(torch.autograd.grad(ours, views), torch.autograd.grad(expected, views), strict=True):
        torch.testing.assert_close(mine, 22 / 23 * theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("in_batch", [True, "both"])
def test_infinite_dt_m_is_dcl(in_batch):
    """Its gradient is (n - 1) / n times that of logsumexp over the negatives minus the positive."""
    query, key = pair(7, 5)
    ours = torch.autograd.grad(dual_temperature(query, key, dt_m=math.inf, in_batch=in_batch), (query, key))
    own = torch.eye(7, dtype=torch.bool)
    logits = [(query @ key.T / 0.1).masked_fill(own, -torch.inf)]
    if in_batch == "both":
        logits.append((query @ query.T / 0.1).masked_fill(own, -torch.inf))
    dcl = (torch.cat(logits, dim=1).logsumexp(dim=1) - (query * key).sum(dim=1) / 0.1).mean()
    n = 7 if in_batch is True else 13
    for mine, theirs in zip(ours, torch.autograd.grad(dcl, (query, key)), strict=True):
        torch.testing.assert_close(mine, (n - 1) / n * theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dt_m", [1e29, 1e45, 1e300])
def test_huge_dt_m_is_infinite(dt_m):
    query, key = (t.detach().float() for t in pair(7, 5))
    torch.testing.assert_close(dual_temperature(query, key, dt_m=dt_m), dual_temperature(query, key, dt_m=math.inf))


def test_dt_m_of_one_is_info_nce_with_every_option():
    query, key = pair(7, 5)
    settings = {"temperature": 0.5, "hardness": 1.0, "class_prior": 0.05, "in_batch": "both"}
    assert torch.equal(dual_temperature(query, key, dt_m=1.0, **settings), info_nce(query, key, **settings))


@pytest.mark.parametrize("hardness", [0.0, 2.0])
@pytest.mark.parametrize("class_prior", [0.0, 0.1])
@pytest.mark.parametrize("tau", [1e-6, 0.01, 0.05, 0.5])
@pytest.mark.parametrize("alignment", [1.0, -1.0])
@pytest.mark.filterwarnings("ignore:with temperature")
def test_finite_in_fp32(hardness, class_prior, tau, alignment):
    """Value, gradient and second derivatives, for aligned and for opposed pairs."""
    inputs = (torch.eye(8, 16), alignment * torch.eye(8, 16), torch.tensor(tau))
    for tensor in inputs:
        tensor.requires_grad_()

    def loss() -> Tensor:
        return dual_temperature(
            inputs[0], inputs[1], temperature=inputs[2], hardness=hardness, class_prior=class_prior, in_batch="both"
        )

    closed = torch.autograd.grad(loss(), inputs)
    first = torch.autograd.grad(loss(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    assert torch.isfinite(loss())
    assert all(torch.isfinite(tensor).all() for tensor in (*closed, *first, *second))
    for one, other in zip(closed, first, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-4, atol=1e-5 * (1 + one.abs().max().item()))


def test_hessian():
    """torch's own function, which once gave zeros, against one through the formula."""
    queue, rows = unit(5, 4, seed=2), unit(3, 4)

    def ours(x: Tensor) -> Tensor:
        return info_nce(F.normalize(x, dim=1), queue[:3], queue)

    def theirs(x: Tensor) -> Tensor:
        return plain(F.normalize(x, dim=1), queue[:3], queue)

    expected = torch.autograd.functional.hessian(theirs, rows)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(torch.autograd.functional.hessian(ours, rows), expected, rtol=1e-9, atol=1e-10)


def test_gradient_penalty_where_the_key_comes_from_the_query():
    """The arguments may depend on each other; each derivative is that of its own argument."""

    def penalty(loss) -> Tensor:
        x = unit(6, 5).requires_grad_()
        query = F.normalize(x, dim=1)
        gradient = torch.autograd.grad(loss(query, F.normalize(query.roll(1, dims=1) + x, dim=1)), x, create_graph=True)
        return torch.autograd.grad(gradient[0].square().sum(), x)[0]

    torch.testing.assert_close(penalty(info_nce), penalty(plain), rtol=1e-8, atol=1e-10)


def test_second_derivatives_after_a_change_in_place_are_an_error():
    query, key = pair(6, 5)
    queue = unit(4, 5, seed=2)
    loss = info_nce(query, key, queue)
    queue.zero_()
    with pytest.raises(RuntimeError, match="negatives was changed in place"):
        torch.autograd.grad(loss, query, create_graph=True)
    assert torch.isfinite(torch.autograd.grad(info_nce(query, key, unit(4, 5)), query)[0]).all()


@pytest.mark.parametrize("module", [InfoNCELoss, DualTemperatureLoss])
def test_learned_temperature_of_a_module(module):
    loss = module(temperature=torch.nn.Parameter(torch.tensor(0.2)), in_batch="both", hardness=0.5)
    assert [name for name, _ in loss.named_parameters()] == ["temperature"]
    query, key = pair(6, 5)
    loss(query, key).backward()
    step = 1e-6
    with torch.no_grad():
        ends = [module(0.2 + s, in_batch="both", hardness=0.5)(query, key) for s in (step, -step)]
    if module is InfoNCELoss:  # the weights of the other carry no gradient
        assert loss.temperature.grad.item() == pytest.approx(((ends[0] - ends[1]) / (2 * step)).item(), rel=1e-4)
    assert "temperature=0.2" in repr(loss) and "in_batch='both'" in repr(loss)


def test_learned_logit_scale():
    """The gradient goes on through what the temperature is made of, also where the rows need none."""
    query, key = (t.detach() for t in pair(6, 5))
    logit_scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    ours = torch.autograd.grad(info_nce(query, key, temperature=1 / logit_scale.exp()), logit_scale)
    expected = torch.autograd.grad(F.cross_entropy(logit_scale.exp() * query @ key.T, torch.arange(6)), logit_scale)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_compiled_with_options():
    query, key = (t.detach().float().requires_grad_() for t in pair(6, 5))
    temperature = torch.tensor(0.3, requires_grad=True)
    own = unit(6, 3, 5, seed=3).float()

    def loss() -> Tensor:
        return dual_temperature(query, key, own, temperature, in_batch="both", hardness=1.0, class_prior=0.01)

    expected = torch.autograd.grad(loss(), (query, key, temperature))
    found = torch.autograd.grad(torch.compile(loss, backend="aot_eager")(), (query, key, temperature))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_hard_captions_in_one_direction():
    """A hard negative of its own raises a query's loss, and only its own."""
    image, text = (t.detach() for t in pair(4, 8))
    hard = unit(4, 1, 8, seed=5)
    hard[2, 0] = F.normalize(text[2] + 0.1 * unit(8, seed=6), dim=0)
    strength = anchor_strength(image, text, hard, in_batch=True) - anchor_strength(image, text)
    assert strength.argmax() == 2 and strength[2] > 0.1


def test_strength_weights_and_floor_are_those_of_the_formula():
    query, key = (t.detach() for t in pair(40, 8, noise=0.6))
    similarity = query @ key.T
    probability = torch.softmax(similarity / 0.2, dim=1).diagonal()
    torch.testing.assert_close(anchor_strength(query, key, temperature=0.2), 1 - probability)
    dictionary = unit(9, 8, seed=3)
    logits = torch.cat([similarity.diagonal()[:, None], query @ dictionary.T], dim=1)
    strength = 1 - torch.softmax(logits / 2, dim=1)[:, 0]
    settings = {"temperature": 0.2, "scalar_negatives": dictionary}
    torch.testing.assert_close(anchor_strength(query, key, dt_m=10.0, **settings), strength)
    weights = log_anchor_weights(query, key, dt_m=10.0, **settings)
    torch.testing.assert_close(weights, (strength / (1 - probability)).log())

    own = torch.eye(40, dtype=torch.bool)
    total = (similarity / 0.3).exp().masked_fill(own, 0).sum(dim=1)
    rest = (total - 0.1 * 39 * (similarity.diagonal() / 0.3).exp()) / 0.9
    expected = (rest < 39 * math.exp(-1 / 0.3)).double().mean()
    assert 0 < expected < 1
    with pytest.warns(UserWarning, match="loses its negatives"):
        assert floored_share(query, key, temperature=0.3, class_prior=0.2) > expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert floored_share(query, key, temperature=0.3, class_prior=0.1) == expected
        assert floored_share(query, key, temperature=0.3, class_prior=0.0) == 0


def test_a_floored_anchor_is_only_attracted():
    """Two aligned pairs among orthogonal negatives: the negatives get no gradient at temperature 0.1."""
    query, key = torch.eye(3, 8).requires_grad_(), torch.eye(3, 8).requires_grad_()
    with pytest.warns(UserWarning, match=r"temperature 0.1 and class_prior 0.1 .* exceeds about 0.23"):
        loss = info_nce(query, key, temperature=0.1, class_prior=0.1)
    gradient = torch.autograd.grad(loss, key)[0]
    assert torch.equal(gradient != 0, torch.eye(3, 8).bool())


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda q, k: info_nce(q, k, temperature=math.inf), ValueError, "temperature is inf"),
    (lambda q, k: info_nce(q, k, temperature=1e-40), ValueError, "temperature is 1e-40"),
    (lambda q, k: info_nce(q, k, temperature="0.1"), TypeError, "temperature is a str"),
    (lambda q, k: info_nce(q, k, temperature=True), TypeError, "temperature is a bool"),
    (lambda q, k: info_nce(q, k, temperature=torch.tensor(-1.0)), ValueError, "temperature is -1.0"),
    (lambda q, k: info_nce(q, k, temperature=torch.ones(4)), ValueError, r"temperature is a tensor of shape \(4,\)"),
    (lambda q, k: info_nce(q, k, temperature=torch.tensor(1)), ValueError, "one floating-point number"),
    (lambda q, k: dual_temperature(q, k, 0.1, 10), TypeError, "negatives is a float.*temperature=0.1"),
    (lambda q, k: dual_temperature(q, k, None, q), ValueError, r"temperature is a tensor of shape \(4, 8\)"),
    (lambda q, k: dual_temperature(q, k, dt_m=1e-40), ValueError, "second temperature"),
    (lambda q, k: dual_temperature(q, k, dt_m=float("nan")), ValueError, "dt_m is nan"),
    (lambda q, k: dual_temperature(q, k, dt_m="10"), TypeError, "dt_m is a str"),
    (lambda q, k: info_nce(q, k, q[:0]), ValueError, "negatives .* has no rows"),
    (lambda q, k: info_nce(q, k, q[:0], in_batch=True), ValueError, "negatives .* has no rows"),
    (lambda q, k: info_nce(q, k, q[:, None][:, :0]), ValueError, "negatives .* has no rows"),
    (lambda q, k: info_nce(q, k, scalar_negatives=q[:0]), ValueError, "scalar_negatives .* has no rows"),
    (lambda q, k: info_nce(q, k, q[:2, None]), ValueError, r"negatives is \(2, 1, 8\)"),
    (lambda q, k: info_nce(q, k, scalar_negatives=q[:, None]), ValueError, r"scalar_negatives is \(4, 1, 8\)"),
    (lambda q, k: info_nce(q, k, q[None] * 2), ValueError, r"negatives is \(1, 4, 8\)"),
    (lambda q, k: info_nce(q, k, q[:, None] * 2), ValueError, "a row of negatives has a length"),
    (lambda q, k: info_nce(q.long(), k), TypeError, "query has the type torch.int64"),
    (lambda q, k: info_nce(q, k.to(torch.complex64)), TypeError, "key has the type torch.complex64"),
    (lambda q, k: info_nce(q, k, q.bool()), TypeError, "negatives has the type torch.bool"),
    (lambda q, k: info_nce(q.tolist(), k), TypeError, "query is a list"),
    (lambda q, k: info_nce(q, None), TypeError, "key is a NoneType"),
    (lambda q, k: info_nce(q, k, in_batch="all"), ValueError, "in_batch is 'all'"),
    (lambda q, k: info_nce(q, k, in_batch=1), ValueError, "in_batch is 1"),
    (lambda q, k: info_nce(q, k, hardness=-1.0), ValueError, "hardness is -1.0"),
    (lambda q, k: info_nce(q, k, class_prior=1.0), ValueError, "class_prior is 1.0"),
    (lambda q, k: info_nce(q, k, all_queries=q), ValueError, "no use without in_batch='both'"),
    (lambda q, k: info_nce(q, k, in_batch="both", all_queries=q[:2]), ValueError, "all_queries is"),
    (lambda q, k: info_nce(q[:2], k, in_batch="both", positive_offset=1), ValueError, "as all_queries"),
    (lambda q, k: info_nce(q[:1], k[:1], in_batch="both"), ValueError, "at least 2 rows, or negatives"),
    (lambda q, k: info_nce(q, k.to("meta"), check=False), ValueError, "on several devices: query on cpu, key on meta"),
    (lambda q, k: InfoNCELoss(in_batch="queue"), ValueError, "in_batch is 'queue'"),
    (lambda q, k: DualTemperatureLoss(math.inf), ValueError, "temperature is inf"),
])  # fmt: skip
def test_errors(call, error, message):
    query, key = (t.detach() for t in pair(4, 8))
    with pytest.raises(error, match=message) as raised:
        call(query, key)
    assert "\n" not in str(raised.value)
