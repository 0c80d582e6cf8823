"""Value and closed gradient of the losses, in blocks of queries; and the same loss, written plainly, for autograd.

With alpha the temperature, d the log odds of the negatives, 1 - p = sigmoid(d), and V the negatives:

    d       = log Ng - s_pos / alpha,  Ng = sum over V of exp(s_j / alpha) unless the negatives are reweighted
    L       = mean of W * softplus(d) / sigmoid(d),  W without gradient
    dL/ds_j = W / (N alpha) * c * omega_j,  dL/ds_pos = -W / (N alpha) * a

where omega is the gradient of log R (below) with respect to s / alpha, a softmax over V in the plain case, and
c = a = 1. Hard negatives after Robinson et al. (ICLR 2021) have importance weights exp(b s_j / alpha), and the
correction for false negatives of Chuang et al. (NeurIPS 2020) has the class prior t; with n = |V|:

    log R = lse((1 + b) s / alpha) - lse(b s / alpha) + log n
    Ng    = max((R - t n exp(s_pos / alpha)) / (1 - t), n exp(-1 / alpha)).

An anchor where the maximum is its second argument, the floor, is not repelled by its negatives: c = 0 and a = 1;
elsewhere c = a = R / (R - t n exp(s_pos / alpha)).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from simco_zoo.losses.inputs import Pool, Settings, Tensors, count, negative_pools

Temperature = float | Tensor


class ClosedGradientLoss(torch.autograd.Function):
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
        all_queries: Tensor | None,
        scalar_negatives: Tensor | None,
        temperature: Temperature,
        settings: Settings,
    ) -> Tensor:
        tensors = Tensors(query, key, negatives, all_queries, scalar_negatives, temperature)
        needs = dict(zip(Tensors._fields, ctx.needs_input_grad, strict=False))
        n, alpha = len(query), temperature
        pools = negative_pools(tensors, settings)
        scalar_pool = None if scalar_negatives is None else Pool("scalar_negatives", scalar_negatives)
        positives = key[settings.offset : settings.offset + n]  # (N, D)
        similarity = (query * positives).sum(dim=1)  # (N,)
        losses = torch.empty_like(similarity)
        # the factor W / (N alpha) of each query's gradient, and the same for its positive
        grad_scale = torch.empty_like(similarity)
        corrected = settings.class_prior > 0
        pull = torch.empty_like(similarity) if corrected else grad_scale
        floored = torch.empty_like(similarity, dtype=torch.bool) if corrected else None
        grad_query = torch.zeros_like(query) if needs["query"] or needs["temperature"] else None
        grads = {pool.name: torch.zeros_like(pool.rows) for pool in pools if needs[pool.name]}

        for rows in _blocks(query, sum(pool.columns for pool in pools)):
            block_query, positive = query[rows], similarity[rows]
            logits = [pool.similarities(block_query, rows.start) for pool in pools]  # (B, K) each
            odds = block_odds(logits, positive, alpha, settings, count(pools), scalar_pool, block_query)
            weight = torch.sigmoid(odds.scalar)
            losses[rows] = weight * softplus_over_sigmoid(odds.vector)
            grad_scale[rows] = weight / (n * alpha)
            scale = grad_scale[rows] if odds.divisor is None else grad_scale[rows] / odds.divisor
            if odds.reduced is not None and odds.floored is not None and floored is not None:
                floored[rows], scale = odds.floored, scale * odds.reduced
                pull[rows] = torch.where(odds.floored, grad_scale[rows], scale)
            for pool, weights in zip(pools, logits, strict=True):
                weights.mul_(scale.unsqueeze(1))
                _add_gradients(pool, weights, block_query, rows, grad_query, grads.get(pool.name))

        if grad_query is not None:
            grad_query.addcmul_(pull[:, None], positives, value=-1)
        if needs["key"]:
            if "key" not in grads:
                grads["key"] = torch.zeros_like(key)
            grads["key"][settings.offset : settings.offset + n].addcmul_(pull[:, None], query, value=-1)
        if needs["temperature"]:
            assert grad_query is not None
            grads["temperature"] = _temperature_gradient(query, grad_query, grad_scale, floored) / alpha
        if needs["query"] and grad_query is not None:
            grads["query"] = grad_query + grads["query"] if "query" in grads else grad_query
        ctx.save_for_backward(*(grads.get(name) for name in Tensors._fields))
        # for second derivatives; not saved for backward, because a queue is overwritten before the backward pass
        ctx.inputs, ctx.settings = tensors, settings
        ctx.versions = [_version(tensor) for tensor in tensors]
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return (*(None if own is None else grad * own for own in saved), None)
        # create_graph=True: the saved gradients are constants, so they are made again by differentiable operations
        for name, tensor, version in zip(Tensors._fields, ctx.inputs, ctx.versions, strict=True):
            if _version(tensor) != version:
                raise RuntimeError(
                    f"{name} was changed in place after the loss was computed, so that second derivatives "
                    "(create_graph=True) would be wrong; pass a clone of it to the loss."
                )
        # views part the arguments: what one of them owes to another is not its own derivative
        inputs = Tensors(*(t.view_as(t) if isinstance(t, Tensor) else t for t in ctx.inputs))
        wanted = [t for t, own in zip(inputs, saved, strict=True) if own is not None and isinstance(t, Tensor)]
        with torch.autocast(inputs.query.device.type, enabled=False):
            found = iter(torch.autograd.grad(plain_loss(inputs, ctx.settings), wanted, grad, create_graph=True))
        return (*(None if own is None else next(found) for own in saved), None)


def _blocks(query: Tensor, columns: int) -> Iterator[slice]:
    """Yields the rows of each block of queries: on a CPU a block fits the cache, an accelerator wants large kernels."""
    size = max(1, (2**19 if query.device.type == "cpu" else 2**26) // columns)
    for start in range(0, len(query), size):
        yield slice(start, min(start + size, len(query)))


def _temperature_gradient(query: Tensor, grad_query: Tensor, grad_scale: Tensor, floored: Tensor | None) -> Tensor:
    """Returns alpha times the loss's derivative by alpha: the loss depends on s / alpha alone, except for the floor."""
    total = -(query * grad_query).sum()
    return total if floored is None else total + (grad_scale * floored).sum()


class BlockOdds(NamedTuple):
    """Log odds of a block of queries, and what their gradient needs."""

    vector: Tensor  # (B,), d at alpha
    scalar: Tensor  # (B,), the log odds whose sigmoid is W
    divisor: Tensor | None = None  # (B,), what the overwritten similarities are to be divided by to give omega
    reduced: Tensor | None = None  # (B,), the factor c
    floored: Tensor | None = None  # (B,)


def block_odds(
    similarities: list[Tensor],
    positive: Tensor,
    alpha: Temperature,
    settings: Settings,
    negatives: int,
    scalar_pool: Pool | None,
    query: Tensor,
) -> BlockOdds:
    """Computes the log odds of a block of queries.

    Args:
        similarities: Queries against each pool of negatives, (B, K) each. Overwritten by omega times the divisor.
        positive: Similarity to the positive (B,).
        alpha: Temperature.
        settings: Settings of the loss.
        negatives: Number of negatives of a query.
        scalar_pool: The dictionary of the weight, if it has one of its own.
        query: Queries (B, D).
    """
    beta = settings.beta(alpha)
    if not settings.reweighted:
        together = settings.two_temperatures and scalar_pool is None
        d, d_beta, divisor = _plain_odds(similarities, positive, alpha, beta if together else None, negatives)
        if scalar_pool is not None:
            d_beta = log_odds(scalar_pool.similarities(query), positive, beta, scalar_pool.columns)
        return BlockOdds(d, d_beta, divisor)
    scalar = None
    if scalar_pool is not None:
        scalar = log_odds(scalar_pool.similarities(query), positive, beta, scalar_pool.columns)
    elif settings.two_temperatures:
        scalar = log_odds(torch.cat(similarities, dim=1), positive, beta, negatives)
    log_r = _reweight(similarities, alpha, settings, negatives)
    d, reduced, floored = correct(log_r, positive, alpha, settings.class_prior, negatives)
    return BlockOdds(d, d if scalar is None else scalar, None, reduced, floored)


def _plain_odds(
    similarities: list[Tensor], positive: Tensor, alpha: Temperature, beta: Temperature | None, negatives: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns d at alpha, d at beta (at alpha if beta is None) and the divisor of the softmax, (B,) each.

    The similarities are overwritten by exp((s - max) / alpha).
    """
    top = similarities[0].amax(dim=1, keepdim=True)
    for similarity in similarities[1:]:
        top = torch.maximum(top, similarity.amax(dim=1, keepdim=True))
    at_alpha, at_beta = torch.zeros_like(positive), torch.zeros_like(positive)
    for similarity in similarities:
        similarity.sub_(top)
        if beta is not None and not _is_infinite(beta):
            at_beta += (similarity * (1 / beta)).exp_().sum(dim=1)
        at_alpha += similarity.mul_(1 / alpha).exp_().sum(dim=1)
    margin = top.squeeze(1) - positive
    d_alpha = at_alpha.log() + margin / alpha
    if beta is None:
        return d_alpha, d_alpha, at_alpha
    if _is_infinite(beta):
        return d_alpha, torch.full_like(d_alpha, math.log(negatives)), at_alpha
    return d_alpha, at_beta.log() + margin / beta, at_alpha


def _reweight(similarities: list[Tensor], alpha: Temperature, settings: Settings, negatives: int) -> Tensor:
    """Returns log R (B,); the similarities are overwritten by omega."""
    hardness = settings.hardness
    top = torch.stack([similarity.amax(dim=1) for similarity in similarities]).amax(dim=0).unsqueeze(1)
    importances = []
    total, total_importance = torch.zeros_like(top), torch.zeros_like(top)
    for similarity in similarities:
        similarity.sub_(top).mul_(1 / alpha)
        if hardness > 0:
            importances.append((similarity * hardness).exp_())
            total_importance += importances[-1].sum(dim=1, keepdim=True)
        total += similarity.mul_(1 + hardness).exp_().sum(dim=1, keepdim=True)
    log_r = (total.log() + top / alpha).squeeze(1)
    if hardness > 0:
        log_r += math.log(negatives) - total_importance.squeeze(1).log()
    for i, similarity in enumerate(similarities):
        if hardness > 0 and not settings.detach_importance:
            similarity.mul_((1 + hardness) / total).sub_(importances[i].mul_(hardness / total_importance))
        else:
            similarity.div_(total)
    return log_r


def correct(
    log_r: Tensor, positive: Tensor, alpha: Temperature, class_prior: float, negatives: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Takes the expected share of false negatives out of R.

    Returns:
        d (N,), the factor c (N,), and which anchors are floored (N,); the last two are None without a class prior.
    """
    if class_prior == 0:
        return log_r - positive / alpha, None, None
    log_n = math.log(negatives)
    # Ng (1 - t) = R (1 - exp(u)); positive only for u < 0
    u = math.log(class_prior) + log_n + positive / alpha - log_r
    remaining = -torch.expm1(torch.where(u < 0, u, -1.0))
    log_ng = log_r + remaining.log() - math.log1p(-class_prior)
    floor = torch.zeros_like(log_ng) + (log_n - 1 / alpha)
    floored = (u >= 0) | (log_ng < floor)
    d = torch.where(floored, floor, log_ng) - positive / alpha
    return d, torch.where(floored, 0.0, 1 / remaining), floored


def _add_gradients(
    pool: Pool, weights: Tensor, query: Tensor, rows: slice, grad_query: Tensor | None, grad_pool: Tensor | None
) -> None:
    """Adds the gradients that the similarities of a block have by ``weights`` (B, K) to those of both their factors."""
    if pool.rows.ndim == 3:
        if grad_query is not None:
            grad_query[rows] += torch.bmm(weights.unsqueeze(1), pool.rows[rows]).squeeze(1)
        if grad_pool is not None:
            torch.mul(weights.unsqueeze(2), query.unsqueeze(1), out=grad_pool[rows])
        return
    if grad_query is not None:
        grad_query[rows].addmm_(weights, pool.rows)
    if grad_pool is not None:
        grad_pool.addmm_(weights.T, query)


# The same, written plainly


def plain_loss(tensors: Tensors, settings: Settings) -> Tensor:
    """Returns the loss by operations that autograd can differentiate any number of times."""
    d, scalar, _ = plain_odds(tensors, settings)
    weight = torch.sigmoid(d if scalar is None else scalar).detach()
    return (weight * _softplus_over_fixed_sigmoid(d)).mean()


def plain_odds(tensors: Tensors, settings: Settings) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns d at alpha, the log odds of the weight if they are others, and which anchors are floored, (N,) each."""
    query, alpha, n = tensors.query, tensors.temperature, len(tensors.query)
    pools = negative_pools(tensors, settings)
    positive = (query * tensors.key[settings.offset : settings.offset + n]).sum(dim=1)
    logits, masks = [], []
    for pool in pools:
        if pool.rows.ndim == 3:
            logits.append(torch.bmm(pool.rows, query.unsqueeze(2)).squeeze(2))
        else:
            logits.append(query @ pool.rows.T)
        mask = torch.zeros_like(logits[-1], dtype=torch.bool)
        if pool.own is not None:
            mask.diagonal(pool.own).fill_(True)
        masks.append(mask)
    similarities, own, negatives = torch.cat(logits, dim=1), torch.cat(masks, dim=1), count(pools)
    scaled = (similarities / alpha).masked_fill(own, -torch.inf)  # (N, K)
    if settings.hardness > 0:
        importance = settings.hardness * (scaled.detach() if settings.detach_importance else scaled)
        log_r = torch.logsumexp(scaled + importance, dim=1) - torch.logsumexp(importance, dim=1) + math.log(negatives)
    else:
        log_r = torch.logsumexp(scaled, dim=1)
    d, _, floored = correct(log_r, positive, alpha, settings.class_prior, negatives)
    scalar, beta = None, settings.beta(alpha)
    with torch.no_grad():
        if tensors.scalar_negatives is not None:
            scalar = log_odds(query @ tensors.scalar_negatives.T, positive, beta, len(tensors.scalar_negatives))
        elif settings.two_temperatures:
            scalar = log_odds(similarities.masked_fill(own, -torch.inf), positive, beta, negatives)
    return d, scalar, floored


def log_odds(similarities: Tensor, positive: Tensor, temperature: Temperature, negatives: int) -> Tensor:
    """Returns the log odds d (N,) of the negatives, for which 1 - p = sigmoid(d).

    Args:
        similarities: Similarities to the negatives (N, K); those that are -inf do not count.
        positive: Similarity to the positive (N,).
        temperature: Temperature, ``math.inf`` for equal weights.
        negatives: Number of negatives that count.
    """
    if _is_infinite(temperature):
        return torch.full_like(positive, math.log(negatives))
    return torch.logsumexp(similarities / temperature, dim=1) - positive / temperature


def softplus_over_sigmoid(d: Tensor) -> Tensor:
    """Returns -log(p) / (1 - p), finite for every d: 1 + e^d / 2 for d below -15, where both vanish."""
    return torch.where(d < -15, 1 + d.clamp(max=0).exp() / 2, F.softplus(d) / torch.sigmoid(d.clamp(min=-15)))


def _softplus_over_fixed_sigmoid(d: Tensor) -> Tensor:
    """Returns softplus(d) / sigmoid(d) with a divisor that carries no gradient."""
    fixed = d.detach()
    usual = F.softplus(d) / torch.sigmoid(fixed.clamp(min=-15))
    # softplus(d) = x (1 - x / 2 + ...), 1 / sigmoid(d) = (1 + x) / x, x = e^d; the quotient of both x is 1
    x = d.clamp(max=-15).exp()
    small = (d - fixed).exp() * (1 - x / 2 + x * x / 3) * (1 + x.detach())
    return torch.where(d < -15, small, usual)


def _is_infinite(temperature: Temperature) -> bool:
    return isinstance(temperature, float) and math.isinf(temperature)


def _version(tensor: Any) -> int | None:
    """Returns how often a tensor was changed in place, None if nobody counts."""
    if torch.compiler.is_compiling():  # a graph break, and a compiled backward pass has no second derivatives
        return None
    return tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else None
