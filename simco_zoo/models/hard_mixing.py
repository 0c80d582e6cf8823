"""Synthetic hard negatives: mixtures of a query's hardest negatives, and of the query with them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def mix_negatives(
    query: Tensor,
    negatives: Tensor,
    hardest: int,
    pairs: int,
    query_mixes: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Makes synthetic negatives for each query ("Hard Negative Mixing for Contrastive Learning", NeurIPS 2020).

    From the ``hardest`` negatives n of a query q (those most similar to it), ``pairs`` vectors a n_j + (1 - a) n_k with
    a uniform in (0, 1), and ``query_mixes`` vectors b q + (1 - b) n_j with b uniform in (0, 0.5); j and k are uniform
    among the hardest, and all vectors are scaled to unit length.

    Args:
        query: Unit rows (N, D).
        negatives: Unit rows (K, D), K >= ``hardest``.
        hardest: Number of negatives to mix.
        pairs: Number S of mixtures of two negatives.
        query_mixes: Number S' of mixtures of the query with a negative.
        generator: Source of the mixtures; torch's default generator if None.

    Returns:
        Unit rows (N, S + S', D), without gradient.
    """
    n = len(query)
    device = generator.device if generator is not None else query.device

    def pick(count: int) -> Tensor:
        """Returns rows (N, count, D) of random ones among each query's hardest negatives."""
        places = torch.randint(hardest, (n, count), generator=generator, device=device).to(query.device)
        return negatives[nearest.gather(1, places)]

    def uniform(count: int, end: float) -> Tensor:
        """Returns shares (N, count, 1) in [0, end)."""
        return end * torch.rand(n, count, 1, generator=generator, device=device).to(query.device, query.dtype)

    nearest = (query @ negatives.T).topk(hardest, dim=1).indices  # (N, hardest)
    a, b = uniform(pairs, 1.0), uniform(query_mixes, 0.5)
    of_pairs = a * pick(pairs) + (1 - a) * pick(pairs)  # (N, S, D)
    with_query = b * query[:, None] + (1 - b) * pick(query_mixes)  # (N, S', D)
    return F.normalize(torch.cat([of_pairs, with_query], dim=1), dim=2)


def mixed_info_nce(query: Tensor, key: Tensor, negatives: Tensor, mixed: Tensor, temperature: float) -> Tensor:
    """Computes InfoNCE with negatives that all queries share and negatives of each query.

    Args:
        query: Unit rows (N, D).
        key: Unit rows (N, D), the positives.
        negatives: Unit rows (K, D).
        mixed: Unit rows (N, S, D).
        temperature: Temperature.

    Returns:
        The mean over the queries.
    """
    with torch.autocast(query.device.type, enabled=False):
        positive = (query * key).sum(dim=1, keepdim=True)  # (N, 1)
        own = torch.bmm(mixed, query[:, :, None]).squeeze(2)  # (N, S)
        logits = torch.cat([positive, query @ negatives.T, own], dim=1) / temperature  # (N, 1 + K + S)
        return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))
