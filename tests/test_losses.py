"""The losses against the official formula written plainly, torch's own cross-entropy, and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from simco_zoo.losses import DualTemperatureLoss, InfoNCELoss, dual_temperature, info_nce, log_anchor_weights


def unit(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=1).to(dtype)


def pair(n: int, d: int, noise: float = 0.5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    query = unit(n, d)
    key = F.normalize(query + noise * unit(n, d, seed=1), dim=1)
    return query.to(dtype, copy=True).requires_grad_(), key.to(dtype).requires_grad_()


def official_logits(query: Tensor, key: Tensor, negatives: Tensor | None, in_batch: bool) -> Tensor:
    """[positive, negatives] for each query, as the official code lays them out."""
    n = len(query)
    columns = [(query * key).sum(dim=1, keepdim=True)]
    if in_batch:
        columns.append((query @ key.T)[~torch.eye(n, dtype=torch.bool)].view(n, n - 1))
    if negatives is not None:
        columns.append(query @ negatives.T)
    return torch.cat(columns, dim=1)


def official(query, key, negatives=None, temperature=0.1, dt_m=10.0, in_batch=True) -> Tensor:
    """The paper's formula with both softmaxes written out; the weight is detached."""
    logits = official_logits(query, key, negatives, in_batch)
    p_alpha = torch.softmax(logits / temperature, dim=1)[:, 0]
    p_beta = torch.softmax(logits / (temperature * dt_m), dim=1)[:, 0]
    return (((1 - p_beta) / (1 - p_alpha)).detach() * -torch.log(p_alpha)).mean()


@pytest.mark.parametrize("case", ["in_batch", "given", "both"])
@pytest.mark.parametrize(("temperature", "dt_m"), [(0.1, 10.0), (0.2, 3.0), (0.07, 1.0), (0.5, 0.5), (0.1, 1000.0)])
@pytest.mark.parametrize("n", [2, 5, 70])
def test_equals_the_official_formula(n, temperature, dt_m, case):
    query, key = pair(n, 16, noise=3.0)
    negatives = None if case == "in_batch" else unit(9, 16, seed=2).requires_grad_()
    in_batch = case != "given"
    inputs = [t for t in (query, key, negatives) if t is not None]
    logits = official_logits(query, key, negatives, in_batch)
    assert (1 - torch.softmax(logits / temperature, dim=1)[:, 0]).min() > 1e-4  # where the official formula has digits

    expected = official(query, key, negatives, temperature, dt_m, in_batch)
    ours = dual_temperature(query, key, negatives, temperature, dt_m, in_batch=in_batch)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n", [2, 33, 700])  # 700 x 700 is more than one block
def test_info_nce_is_cross_entropy(n):
    query, key = pair(n, 8)
    expected = F.cross_entropy(query @ key.T / 0.1, torch.arange(n))
    ours = info_nce(query, key, temperature=0.1)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (query, key)), torch.autograd.grad(expected, (query, key)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_dt_m_of_one_is_info_nce():
    query, key = pair(12, 8)
    assert torch.equal(dual_temperature(query, key, dt_m=1.0), info_nce(query, key))


@pytest.mark.parametrize("dt_m", [1e9, math.inf])
def test_limit_of_large_dt_m(dt_m):
    query, key = pair(12, 8, noise=1.0)
    logits = official_logits(query, key, None, True)
    p = torch.softmax(logits / 0.1, dim=1)[:, 0]
    expected = ((1 - 1 / logits.shape[1]) / (1 - p) * -torch.log(p)).mean()
    torch.testing.assert_close(dual_temperature(query, key, dt_m=dt_m), expected, rtol=1e-7, atol=1e-9)
    weights = log_anchor_weights(query, key, dt_m=dt_m).exp()
    torch.testing.assert_close(weights, ((1 - 1 / logits.shape[1]) / (1 - p)).detach(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("loss", [info_nce, lambda *a, **k: dual_temperature(*a, dt_m=1.0, **k)])
def test_gradcheck(loss, given):
    query, key = pair(5, 4)
    inputs = [query, key] + ([unit(3, 4, seed=2).requires_grad_()] if given else [])
    assert torch.autograd.gradcheck(lambda *t: loss(*t, temperature=0.3, check=False), inputs)


@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("n", [2, 8, 256])
@pytest.mark.parametrize("alignment", [1.0, -1.0])
def test_finite_in_fp32_where_pairs_are_aligned_or_opposed(n, temperature, alignment):
    query = torch.eye(n, 256).requires_grad_()
    key = (alignment * torch.eye(n, 256)).requires_grad_()
    loss = dual_temperature(query, key, temperature=temperature)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(query.grad).all() and torch.isfinite(key.grad).all()
    assert torch.isfinite(log_anchor_weights(query, key, temperature=temperature)).all()
    reference = dual_temperature(query.detach().double(), key.detach().double(), temperature=temperature)
    torch.testing.assert_close(loss.double(), reference, rtol=1e-5, atol=1e-8)


def test_the_official_formula_is_nan_there():
    """What the closed form is for; if this ever passes in fp32, the test above proves nothing."""
    query = torch.eye(8, 256)
    assert torch.isnan(official(query, query, temperature=0.05))


@pytest.mark.parametrize("d", [-80.0, -20.0, -15.0, -14.9, -1.0, 0.0, 5.0, 80.0])
def test_weighted_loss_over_the_whole_range(d):
    """-log(p) / (1 - p) against numbers of 50 digits, for log odds d of the negatives."""
    from decimal import Decimal, getcontext

    from simco_zoo.losses.closed_gradient import softplus_over_sigmoid

    getcontext().prec = 50
    odds = Decimal(d).exp()
    expected = (1 + odds).ln() * (1 + odds) / odds
    ours = softplus_over_sigmoid(torch.tensor([d], dtype=torch.float64)).item()
    assert ours == pytest.approx(float(expected), rel=1e-12)
    assert softplus_over_sigmoid(torch.tensor([d])).item() == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_input_types(dtype):
    query, key = pair(16, 32, dtype=dtype)
    loss = dual_temperature(query, key)
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert query.grad.dtype == dtype and key.grad.dtype == dtype
    exact = dual_temperature(query.detach().double(), key.detach().double(), check=False)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-6)  # rounding of the inputs is not ours


def test_autocast_does_not_reach_inside():
    query, key = pair(16, 32, dtype=torch.float32)
    expected = dual_temperature(query, key)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = dual_temperature(query, key)
    loss.backward()
    assert torch.equal(loss, expected)


def test_log_anchor_weights():
    query, key = pair(12, 8, noise=1.0)
    logits = official_logits(query, key, None, True)
    p = [torch.softmax(logits / t, dim=1)[:, 0] for t in (0.1, 1.0)]
    torch.testing.assert_close(log_anchor_weights(query, key), ((1 - p[1]) / (1 - p[0])).log().detach())


@pytest.mark.parametrize("loss", [info_nce, dual_temperature])
def test_gathered_keys_of_two_processes(loss):
    """Half the queries against all keys, twice: the mean of the losses and its gradient are those of one process."""
    query, key = pair(10, 8)
    whole = loss(query, key)
    expected = torch.autograd.grad(whole, (query, key))
    halves = [loss(query[rank * 5 : rank * 5 + 5], key, positive_offset=rank * 5) for rank in range(2)]
    torch.testing.assert_close(sum(halves) / 2, whole, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(torch.autograd.grad(sum(halves) / 2, (query, key)), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_no_gradient_is_made_that_nobody_wants():
    query, key = pair(6, 8)
    queue = unit(7, 8, seed=3)
    loss = info_nce(query, key.detach(), queue)
    queue.zero_()  # a queue is overwritten before the backward pass
    loss.backward()
    assert key.grad is None
    expected = official(query, key.detach(), unit(7, 8, seed=3), dt_m=1.0, in_batch=False)
    torch.testing.assert_close(query.grad, torch.autograd.grad(expected, query)[0], rtol=1e-9, atol=1e-12)


def test_bytes_kept_for_backward():
    """Only tensors of the inputs' size: at most a fifth of what the plain formula keeps."""
    query, key = pair(512, 64, dtype=torch.float32)

    def kept(loss) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss(query, key)
        return sum(sizes.values())

    ours = kept(dual_temperature)
    assert 0 < ours <= 2 * query.nbytes + 64
    assert ours < 0.2 * kept(official)


@pytest.mark.parametrize("module", [InfoNCELoss(0.2), DualTemperatureLoss(0.2, 5.0)])
def test_modules(module):
    query, key = pair(6, 8)
    queue = unit(7, 8, seed=3)
    expected = (
        info_nce(query, key, queue, 0.2)
        if isinstance(module, InfoNCELoss)
        else dual_temperature(query, key, queue, 0.2, 5.0)
    )
    assert torch.equal(module(query, key, queue), expected)
    assert "temperature=0.2" in repr(module)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(backend):
    query, key = pair(6, 8, dtype=torch.float32)
    compiled = torch.compile(dual_temperature, backend=backend)
    loss = compiled(query, key)
    gradient = torch.autograd.grad(loss, query)[0]
    expected = dual_temperature(query, key)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, query)[0])


@pytest.mark.parametrize(("call", "message"), [
    (lambda q, k: info_nce(q, k[:3]), "row i of key is the positive"),
    (lambda q, k: info_nce(q, k[:, :3]), "row i of key is the positive"),
    (lambda q, k: info_nce(q[0], k[0]), r"both are \(N, D\)"),
    (lambda q, k: info_nce(q[:1], k[:1]), "at least 2 rows, or negatives"),
    (lambda q, k: info_nce(q[:0], k[:0], q), "no rows"),
    (lambda q, k: info_nce(q, k, in_batch=False), "at least 2 rows, or negatives"),
    (lambda q, k: info_nce(q, k, q[:, :3]), r"negatives is \(4, 3\)"),
    (lambda q, k: info_nce(q, k, positive_offset=1), "does not lie within key"),
    (lambda q, k: info_nce(q, k, temperature=0.0), "temperature is 0.0"),
    (lambda q, k: info_nce(q, k, temperature=float("nan")), "temperature is nan"),
    (lambda q, k: dual_temperature(q, k, dt_m=0.0), "dt_m is 0.0"),
    (lambda q, k: dual_temperature(q * 1.02, k), "a row of query has a length"),
    (lambda q, k: dual_temperature(q, k * 0.5), "a row of key has a length"),
    (lambda q, k: dual_temperature(q, k, 2 * q), "a row of negatives has a length"),
    (lambda q, k: InfoNCELoss(-1.0), "temperature is -1.0"),
    (lambda q, k: DualTemperatureLoss(0.1, -1.0), "dt_m is -1.0"),
])  # fmt: skip
def test_errors(call, message):
    query, key = pair(4, 8)
    with pytest.raises(ValueError, match=message):
        call(query.detach(), key.detach())


def test_check_can_be_left_out():
    query, key = pair(4, 8)
    assert torch.isfinite(dual_temperature(query * 1.005, key))  # within the tolerance of the check
    assert torch.isfinite(dual_temperature(query * 1.5, key, check=False))


def test_nan_stays_visible():
    query, key = pair(4, 8)
    broken = query.detach().clone()
    broken[1, 2] = float("nan")
    assert torch.isnan(dual_temperature(broken, key))
