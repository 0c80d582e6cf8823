"""InfoNCE and the dual temperature loss, as functions and as modules.

Rows of query and key have unit length. With s_ij = q_i . k_j, d_i(t) = logsumexp over the negatives of s_ij / t minus
s_i,pos / t, the probability of the positive obeys 1 - p_i(t) = sigmoid(d_i(t)), and

    InfoNCE:           L = mean_i softplus(d_i(alpha))
    dual temperature:  L = mean_i sg[w_i] softplus(d_i(alpha)),  w_i = (1 - p_i(beta)) / (1 - p_i(alpha)),

where beta = dt_m * alpha and sg stops the gradient ("Dual Temperature Helps Contrastive Learning Without Many Negative
Samples", CVPR 2022, section 4). The gradient is closed, and in it 1 - p_i(alpha) cancels:

    dL/ds_i,pos = -(1 - p_i(beta)) / (N alpha)
    dL/ds_ij    =  (1 - p_i(beta)) / (N alpha) * softmax over the negatives of s_ij / alpha.

Written this way nothing is divided by a number that underflows, so that value and gradient stay finite where the plain
formula gives NaN, and the similarities need not be kept for the backward pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["DualTemperatureLoss", "InfoNCELoss", "dual_temperature", "info_nce", "log_anchor_weights"]


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    temperature: float = 0.1,
    *,
    in_batch: bool | None = None,
    positive_offset: int | None = None,
    check: bool | None = None,
) -> Tensor:
    """InfoNCE, -log softmax of the positive among positive and negatives, averaged over the queries.

    Args:
        query: Unit rows (N, D), any floating type; computed in fp32 (fp64 stays), also under autocast.
        key: Unit rows (N, D); row i is the positive of query i.
        negatives: Unit rows (K, D) that are negatives of every query, e.g. a queue. None: the other rows of ``key``.
        temperature: tau, > 0.
        in_batch: Whether the other rows of ``key`` are negatives; None: only if ``negatives`` is None.
        positive_offset: ``key`` then has M >= N rows (e.g. gathered from several processes), and the positive of
            query i is row ``positive_offset + i``.
        check: Whether to raise on rows that are not of unit length. None: on CPU tensors, where it costs no
            synchronization, unless compiling.

    Returns:
        A scalar. It can be differentiated once, with respect to query, key and negatives.

    Raises:
        ValueError: If shapes differ, there is no negative, the temperature is not positive, or (see ``check``) a row's
            length is off 1 by more than 1e-2.
    """
    return _loss(query, key, negatives, temperature, 1.0, in_batch, positive_offset, check)


def dual_temperature(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    temperature: float = 0.1,
    dt_m: float = 10.0,
    *,
    in_batch: bool | None = None,
    positive_offset: int | None = None,
    check: bool | None = None,
) -> Tensor:
    """The dual temperature loss: InfoNCE at tau_alpha, each query weighted by (1 - p(tau_beta)) / (1 - p(tau_alpha)).

    ``dt_m=1`` is InfoNCE; ``dt_m=math.inf`` weights by (1 - 1/n) / (1 - p(tau_alpha)), n the number of logits.

    Args:
        query: Unit rows (N, D), any floating type; computed in fp32 (fp64 stays), also under autocast.
        key: Unit rows (N, D); row i is the positive of query i.
        negatives: Unit rows (K, D) that are negatives of every query. None: the other rows of ``key``.
        temperature: tau_alpha, > 0.
        dt_m: tau_beta / tau_alpha, > 0.
        in_batch: As in ``info_nce``.
        positive_offset: As in ``info_nce``.
        check: As in ``info_nce``.

    Returns:
        A scalar. It can be differentiated once; the weights carry no gradient.

    Raises:
        ValueError: As ``info_nce``, and if ``dt_m`` is not positive.
    """
    return _loss(query, key, negatives, temperature, dt_m, in_batch, positive_offset, check)


@torch.no_grad()
def log_anchor_weights(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    temperature: float = 0.1,
    dt_m: float = 10.0,
    *,
    in_batch: bool | None = None,
    positive_offset: int | None = None,
    check: bool | None = None,
) -> Tensor:
    """Returns log w_i (N,), how much the dual temperature weights each query; w_i itself overflows at small tau.

    The arguments are those of ``dual_temperature``.
    """
    query, key, negatives, in_batch, offset = _prepare(
        query, key, negatives, temperature, dt_m, in_batch, positive_offset, check
    )
    with torch.autocast(query.device.type, enabled=False):
        positive = (query * key[offset : offset + len(query)]).sum(dim=1)
        logits = [query @ pool.T for pool in _pools(key, negatives, in_batch)]
        own = offset if in_batch else None
        d_alpha, d_beta, _ = _log_odds(logits, positive, temperature, temperature * dt_m, own)
    return F.logsigmoid(d_beta) - F.logsigmoid(d_alpha)


class InfoNCELoss(nn.Module):
    """``info_nce`` as a module.

    Args:
        temperature: tau, > 0.
        **kwargs: ``in_batch``, ``positive_offset``, ``check`` of ``info_nce``.
    """

    def __init__(self, temperature: float = 0.1, **kwargs: Any) -> None:
        super().__init__()
        _check_temperatures(temperature, 1.0)
        self.temperature, self.kwargs = temperature, kwargs

    def forward(self, query: Tensor, key: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Returns the loss of query (N, D), key (N, D) and negatives (K, D) or None."""
        return info_nce(query, key, negatives, self.temperature, **self.kwargs)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class DualTemperatureLoss(nn.Module):
    """``dual_temperature`` as a module.

    Args:
        temperature: tau_alpha, > 0.
        dt_m: tau_beta / tau_alpha, > 0.
        **kwargs: ``in_batch``, ``positive_offset``, ``check`` of ``dual_temperature``.
    """

    def __init__(self, temperature: float = 0.1, dt_m: float = 10.0, **kwargs: Any) -> None:
        super().__init__()
        _check_temperatures(temperature, dt_m)
        self.temperature, self.dt_m, self.kwargs = temperature, dt_m, kwargs

    def forward(self, query: Tensor, key: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Returns the loss of query (N, D), key (N, D) and negatives (K, D) or None."""
        return dual_temperature(query, key, negatives, self.temperature, self.dt_m, **self.kwargs)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, dt_m={self.dt_m}"


def _loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    temperature: float,
    dt_m: float,
    in_batch: bool | None,
    positive_offset: int | None,
    check: bool | None,
) -> Tensor:
    query, key, negatives, in_batch, offset = _prepare(
        query, key, negatives, temperature, dt_m, in_batch, positive_offset, check
    )
    with torch.autocast(query.device.type, enabled=False):
        return _ClosedGradientLoss.apply(query, key, negatives, temperature, temperature * dt_m, in_batch, offset)


class _ClosedGradientLoss(torch.autograd.Function):
    """Value and gradient in one pass over blocks of queries.

    The loss is a mean with a closed gradient, so the gradient is made along with the value, while a block's
    similarities are still in the cache; only tensors of the inputs' size are kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None,
        alpha: float,
        beta: float,
        in_batch: bool,
        offset: int,
    ) -> Tensor:
        n = len(query)
        pools = _pools(key, negatives, in_batch)
        positives = key[offset : offset + n]
        similarity = (query * positives).sum(dim=1)
        query_needs, key_needs, negatives_need = ctx.needs_input_grad[:3]
        pools_need = ([key_needs] if in_batch else []) + ([negatives_need] if negatives is not None else [])
        losses = torch.empty_like(similarity)
        # the factor (1 - p(beta)) / (N alpha) of each query's gradient
        strength = torch.empty_like(similarity)
        grad_query = torch.zeros_like(query) if query_needs else None
        grad_pools = [torch.zeros_like(pool) if need else None for pool, need in zip(pools, pools_need, strict=True)]

        # on a CPU a block fits the cache; on an accelerator few large kernels serve better
        block = max(1, (2**19 if query.device.type == "cpu" else 2**26) // sum(map(len, pools)))
        for start in range(0, n, block):
            rows = slice(start, min(start + block, n))
            positive = similarity[rows]
            logits = [query[rows] @ pool.T for pool in pools]
            d_alpha, d_beta, total = _log_odds(logits, positive, alpha, beta, offset + start if in_batch else None)
            weight = torch.sigmoid(d_beta)
            losses[rows] = weight * _softplus_over_sigmoid(d_alpha)
            strength[rows] = weight / (n * alpha)
            for pool, weights, grad_pool in zip(pools, logits, grad_pools, strict=True):
                weights.mul_((strength[rows] / total).unsqueeze(1))
                if grad_query is not None:
                    grad_query[rows].addmm_(weights, pool)
                if grad_pool is not None:
                    grad_pool.addmm_(weights.T, query[rows])

        if grad_query is not None:
            grad_query.addcmul_(strength[:, None], positives, value=-1)
        grad_key = grad_pools[0] if in_batch else (torch.zeros_like(key) if key_needs else None)
        if grad_key is not None:
            grad_key[offset : offset + n].addcmul_(strength[:, None], query, value=-1)
        ctx.save_for_backward(grad_query, grad_key, grad_pools[-1] if negatives_need else None)
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = (None if saved is None else grad * saved for saved in ctx.saved_tensors)
        return (*grads, None, None, None, None)


def _pools(key: Tensor, negatives: Tensor | None, in_batch: bool) -> list[Tensor]:
    """Returns the tensors whose rows are negatives; those of ``key`` first."""
    return ([key] if in_batch else []) + ([] if negatives is None else [negatives])


def _log_odds(
    similarities: list[Tensor], positive: Tensor, alpha: float, beta: float, own: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the log odds d of the negatives at both temperatures, for which 1 - p = sigmoid(d).

    Args:
        similarities: Queries against each pool of negatives, (N, K) each. Overwritten by exp((s - max) / alpha), the
            softmax over the negatives but for its divisor.
        positive: Similarity to the positive (N,).
        alpha: First temperature.
        beta: Second temperature, infinite for equal weights.
        own: Row i's positive is row ``own`` + i of the first pool, and no negative; None: there is no such row.

    Returns:
        d at alpha (N,), d at beta (N,), and the divisor (N,).
    """
    if own is not None:
        similarities[0].diagonal(own).fill_(-torch.inf)
    top = similarities[0].amax(dim=1, keepdim=True)
    for similarity in similarities[1:]:
        top = torch.maximum(top, similarity.amax(dim=1, keepdim=True))
    at_alpha, at_beta = torch.zeros_like(positive), torch.zeros_like(positive)
    for similarity in similarities:
        similarity.sub_(top)
        if beta not in (alpha, math.inf):
            at_beta += (similarity * (1 / beta)).exp_().sum(dim=1)
        at_alpha += similarity.mul_(1 / alpha).exp_().sum(dim=1)
    margin = top.squeeze(1) - positive
    d_alpha = at_alpha.log() + margin / alpha
    if beta == alpha:
        return d_alpha, d_alpha, at_alpha
    if beta == math.inf:
        at_beta += sum(similarity.shape[1] for similarity in similarities) - (own is not None)
    return d_alpha, at_beta.log() + margin / beta, at_alpha


def _softplus_over_sigmoid(d: Tensor) -> Tensor:
    """Returns -log(p) / (1 - p), finite for every d: 1 + e^d / 2 for d below -15, where both vanish."""
    return torch.where(d < -15, 1 + d.clamp(max=0).exp() / 2, F.softplus(d) / torch.sigmoid(d.clamp(min=-15)))


def _prepare(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    temperature: float,
    dt_m: float,
    in_batch: bool | None,
    positive_offset: int | None,
    check: bool | None,
) -> tuple[Tensor, Tensor, Tensor | None, bool, int]:
    """Validates the arguments and brings the tensors to the type of the computation."""
    _check_temperatures(temperature, dt_m)
    in_batch = negatives is None if in_batch is None else in_batch
    offset = positive_offset or 0
    if query.ndim != 2 or key.ndim != 2:
        raise ValueError(f"query and key have shapes {tuple(query.shape)} and {tuple(key.shape)}; both are (N, D).")
    if positive_offset is None and query.shape != key.shape:
        raise ValueError(
            f"query is {tuple(query.shape)}, key is {tuple(key.shape)}, but row i of key is the positive of query i; "
            "pass equal shapes, or positive_offset with keys gathered from several processes."
        )
    if query.shape[1] != key.shape[1] or offset < 0 or offset + len(query) > len(key):
        raise ValueError(
            f"query {tuple(query.shape)} with positive_offset={offset} does not lie within key {tuple(key.shape)}; "
            "the positives are the rows positive_offset to positive_offset + N of key."
        )
    if negatives is not None and (negatives.ndim != 2 or negatives.shape[1] != query.shape[1]):
        raise ValueError(f"negatives is {tuple(negatives.shape)}, but has to be (K, {query.shape[1]}) as the queries.")
    if len(query) < 1:
        raise ValueError("query has no rows; the mean over the queries needs at least one.")
    if (len(key) - 1 if in_batch else 0) + (0 if negatives is None else len(negatives)) < 1:
        raise ValueError(
            f"there is no negative for {len(query)} quer{'y' if len(query) == 1 else 'ies'}: "
            "pass at least 2 rows, or negatives."
        )
    tensors = [query, key] + ([] if negatives is None else [negatives])
    if check is None:
        check = all(t.device.type == "cpu" for t in tensors) and not torch.compiler.is_compiling()
    if check:
        for name, tensor in zip(("query", "key", "negatives"), tensors, strict=False):
            _check_unit_rows(name, tensor)
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    converted = [t.to(dtype) for t in tensors]
    return converted[0], converted[1], converted[2] if negatives is not None else None, in_batch, offset


def _check_temperatures(temperature: float, dt_m: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, but has to be positive.")
    if not dt_m > 0:
        raise ValueError(f"dt_m is {dt_m}, but has to be positive (1 gives InfoNCE).")


def _check_unit_rows(name: str, tensor: Tensor) -> None:
    # NaN passes: the loss is then NaN, which says more than a complaint about lengths
    off = (tensor.detach().float().norm(dim=1) - 1).abs().max()
    if off > 1e-2:
        raise ValueError(
            f"a row of {name} has a length that is off 1 by {off:.3g}; normalize it with "
            "torch.nn.functional.normalize(x, dim=1), or pass check=False if that is meant."
        )
