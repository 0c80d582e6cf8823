"""InfoNCE and the dual temperature loss, as functions.

Rows of query and key have unit length. With s_ij = q_i . k_j, d_i(t) = logsumexp over the negatives of s_ij / t minus
s_i,pos / t, the probability of the positive obeys 1 - p_i(t) = sigmoid(d_i(t)), and

    InfoNCE:           L = mean_i softplus(d_i(alpha))
    dual temperature:  L = mean_i sg[w_i] softplus(d_i(alpha)),  w_i = (1 - p_i(beta)) / (1 - p_i(alpha)),

where beta = dt_m * alpha and sg stops the gradient ("Dual Temperature Helps Contrastive Learning Without Many Negative
Samples", CVPR 2022, section 4). The gradient is closed, and in it 1 - p_i(alpha) cancels:

    dL/ds_i,pos = -(1 - p_i(beta)) / (N alpha)
    dL/ds_ij    =  (1 - p_i(beta)) / (N alpha) * softmax over the negatives of s_ij / alpha.

So 1 - p_i(beta) is how strongly an anchor is moved (the scalar part), and the softmax says where to (the vector part).
Written this way nothing is divided by a number that underflows, so that value and gradient stay finite where the plain
formula gives NaN, and the similarities need not be kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simco_zoo.losses.closed_gradient import ClosedGradientLoss, plain_odds
from simco_zoo.losses.inputs import InBatch, prepare


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    *,
    in_batch: InBatch = None,
    scalar_negatives: Tensor | None = None,
    hardness: float = 0.0,
    class_prior: float = 0.0,
    detach_importance: bool = False,
    all_queries: Tensor | None = None,
    positive_offset: int | None = None,
    check: bool | None = None,
) -> Tensor:
    """Computes InfoNCE, -log softmax of the positive among positive and negatives, averaged over the queries.

    >>> import torch, simco_zoo
    >>> z1, z2 = torch.eye(3), torch.eye(3)  # three aligned pairs, orthogonal to each other
    >>> simco_zoo.losses.info_nce(z1, z2, temperature=1.0)  # log(1 + 2 / e)
    tensor(0.5514)
    >>> queue = torch.nn.functional.normalize(torch.ones(8, 3), dim=1)
    >>> simco_zoo.losses.info_nce(z1, z2, queue, temperature=1.0) < 2
    tensor(True)

    NT-Xent (SimCLR) is the mean of both directions with the other rows of both views as negatives::

        (info_nce(z1, z2, in_batch="both") + info_nce(z2, z1, in_batch="both")) / 2

    Args:
        query: Unit rows (N, D) of a real floating type; computed in fp32 (fp64 stays), also under autocast.
        key: Unit rows (N, D); row i is the positive of query i.
        negatives: Unit rows (K, D) that are negatives of every query, e.g. a queue; or (N, S, D), S negatives of each
            query, e.g. synthetic negatives, or hard captions of an image. None: the other rows of ``key``.
        temperature: tau, at least 1e-6; a tensor with one number gets its gradient.
        in_batch: Which rows of the batch are negatives: True the other rows of ``key``, ``"both"`` those and the other
            rows of ``query``, False none. None: True if ``negatives`` is None, otherwise False.
        scalar_negatives: Unit rows (K, D) from which alone the strength 1 - p_i of each anchor is computed, while
            ``negatives`` and ``in_batch`` give the direction of its gradient (the paper's two dictionaries). It gets no
            gradient. None: one dictionary for both.
        hardness: beta >= 0, in the weight exp(beta s_ij / tau) of a negative ("Contrastive Learning with Hard Negative
            Samples", Robinson et al., ICLR 2021); 0 weights all alike.
        class_prior: tau+ in [0, 1), the share of the negatives that belong to the class of the query, which is taken
            out ("Debiased Contrastive Learning", Chuang et al., NeurIPS 2020). At a low temperature most anchors reach
            the floor of that correction and are not repelled at all: use 0.5, and see ``floored_share``.
        detach_importance: Whether the weights of ``hardness`` are constants for the gradient; the authors' code
            differentiates them.
        all_queries: Rows (M, D) for ``in_batch="both"`` with ``positive_offset``: the queries of all processes.
        positive_offset: ``key`` then has M >= N rows (e.g. gathered from several processes), and the positive of
            query i is row ``positive_offset + i``.
        check: Whether to raise on rows that are not of unit length. None: on CPU tensors, where it costs no
            synchronization, unless compiling.

    Returns:
        A scalar, differentiable in query, key, negatives and temperature.

    Raises:
        ValueError: If shapes or devices differ, there is no negative, a setting is out of its range, or (see ``check``)
            a row's length is off 1 by more than 1e-2.
        TypeError: If rows are not a tensor of a real floating type, or a setting is not a number.
    """
    return _loss(
        query,
        key,
        negatives,
        temperature,
        in_batch=in_batch,
        scalar_negatives=scalar_negatives,
        hardness=hardness,
        class_prior=class_prior,
        detach_importance=detach_importance,
        all_queries=all_queries,
        positive_offset=positive_offset,
        check=check,
    )


def dual_temperature(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    dt_m: float = 10.0,
    *,
    in_batch: InBatch = None,
    scalar_negatives: Tensor | None = None,
    hardness: float = 0.0,
    class_prior: float = 0.0,
    detach_importance: bool = False,
    all_queries: Tensor | None = None,
    positive_offset: int | None = None,
    check: bool | None = None,
) -> Tensor:
    """Computes the dual temperature loss: InfoNCE with each query weighted by (1 - p(tau_beta)) / (1 - p(tau_alpha)).

    ``dt_m=1`` is InfoNCE. ``dt_m=math.inf`` moves all anchors equally: its gradient is (n - 1) / n times that of DCL
    ("Decoupled Contrastive Learning", ECCV 2022), n the number of logits.

    >>> import torch, simco_zoo
    >>> z1 = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2], [0.1, 1.0], [-1.0, 0.3]]), dim=1)
    >>> z2 = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.6, 1.0], [-1.0, 0.9]]), dim=1)
    >>> loss = simco_zoo.losses.dual_temperature(z1, z2, temperature=0.1, dt_m=10.0)
    >>> simco_zoo.losses.dual_temperature(z1, z2, dt_m=1.0) == simco_zoo.losses.info_nce(z1, z2)
    tensor(True)

    The weight is a constant for the gradient, in higher derivatives too. With ``hardness`` or ``class_prior`` the
    direction of the gradient changes, but 1 - p(tau_beta) stays that of the plain negatives (unless ``dt_m=1``).

    Args:
        query: Unit rows (N, D) of a real floating type; computed in fp32 (fp64 stays), also under autocast.
        key: Unit rows (N, D); row i is the positive of query i.
        negatives: Unit rows (K, D) or (N, S, D), as in ``info_nce``. None: the other rows of ``key``.
        temperature: tau_alpha, at least 1e-6; a tensor with one number gets its gradient.
        dt_m: tau_beta / tau_alpha, > 0.
        in_batch: As in ``info_nce``.
        scalar_negatives: As in ``info_nce``; 1 - p(tau_beta) is computed from them.
        hardness: As in ``info_nce``.
        class_prior: As in ``info_nce``.
        detach_importance: As in ``info_nce``.
        all_queries: As in ``info_nce``.
        positive_offset: As in ``info_nce``.
        check: As in ``info_nce``.

    Returns:
        A scalar, differentiable in query, key, negatives and temperature.

    Raises:
        ValueError: For the same reasons as ``info_nce``, or if ``dt_m`` is not positive.
        TypeError: For the same reasons as ``info_nce``.
    """
    return _loss(
        query,
        key,
        negatives,
        temperature,
        dt_m,
        in_batch=in_batch,
        scalar_negatives=scalar_negatives,
        hardness=hardness,
        class_prior=class_prior,
        detach_importance=detach_importance,
        all_queries=all_queries,
        positive_offset=positive_offset,
        check=check,
    )


def _loss(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    tensors, settings = prepare(query, key, *args, **kwargs)
    with torch.autocast(tensors.query.device.type, enabled=False):
        # torch.compile does not trace a function that is given one tensor twice, e.g. keys that are negatives, too
        distinct = [
            x.view_as(x) if isinstance(x, Tensor) and any(x is other for other in tensors[:i]) else x
            for i, x in enumerate(tensors)
        ]
        return ClosedGradientLoss.apply(*distinct, settings)


@torch.no_grad()
def log_anchor_weights(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    dt_m: float = 10.0,
    **kwargs: Any,
) -> Tensor:
    """Returns log w_i (N,), how much the dual temperature weights each query; w_i itself overflows at small tau.

    The arguments are those of ``dual_temperature``.

    Example:
        >>> import torch, simco_zoo
        >>> key = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), dim=1)
        >>> weights = simco_zoo.losses.log_anchor_weights(torch.eye(2), key, temperature=0.1, dt_m=10.0)
        >>> bool(weights[1] > weights[0])  # the anchor that InfoNCE moves less has the larger weight
        True
    """
    tensors, settings = prepare(query, key, negatives, temperature, dt_m, **kwargs)
    with torch.autocast(tensors.query.device.type, enabled=False):
        vector, scalar, _ = plain_odds(tensors, settings)
    return F.logsigmoid(vector if scalar is None else scalar) - F.logsigmoid(vector)


@torch.no_grad()
def anchor_strength(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    dt_m: float = 1.0,
    **kwargs: Any,
) -> Tensor:
    """Returns the strength 1 - p_i (N,) with which a loss moves each query, 0 to 1.

    The paper calls its inequality over the queries inter-anchor hardness. The arguments are those of
    ``dual_temperature``, with ``dt_m=1`` (InfoNCE) as the default.

    >>> import torch, simco_zoo
    >>> simco_zoo.losses.anchor_strength(torch.eye(2), torch.eye(2), temperature=1.0)  # 1 / (1 + e)
    tensor([0.2689, 0.2689])
    """
    tensors, settings = prepare(query, key, negatives, temperature, dt_m, **kwargs)
    with torch.autocast(tensors.query.device.type, enabled=False):
        vector, scalar, _ = plain_odds(tensors, settings)
    return torch.sigmoid(vector if scalar is None else scalar)


@torch.no_grad()
def floored_share(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    temperature: float | Tensor = 0.5,
    *,
    class_prior: float = 0.1,
    **kwargs: Any,
) -> Tensor:
    """Returns the share of anchors, 0 to 1, that ``class_prior`` leaves without repulsion.

    The correction for false negatives may take out more than there is; the sum over the negatives then is set to its
    floor, n exp(-1 / tau), and the gradient only pulls the anchor toward its positive.

    >>> import torch, simco_zoo
    >>> simco_zoo.losses.floored_share(torch.eye(9), torch.eye(9), temperature=0.5, class_prior=0.1)
    tensor(0.)

    The arguments are those of ``info_nce``.
    """
    tensors, settings = prepare(query, key, negatives, temperature, class_prior=class_prior, **kwargs)
    with torch.autocast(tensors.query.device.type, enabled=False):
        _, _, floored = plain_odds(tensors, settings)
    share = tensors.query.new_zeros(len(tensors.query)) if floored is None else floored.to(tensors.query.dtype)
    return share.mean()
