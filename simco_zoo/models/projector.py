"""The projector: the head between pooled features and the unit sphere on which views are compared."""

from __future__ import annotations

from torch import nn


def build_projector(in_dim: int, hidden_dim: int | None = 128, out_dim: int = 128) -> nn.Sequential:
    """Builds the projection head: a two-layer MLP without batch norm, or one linear layer.

    The MLP is Linear, ReLU, Linear, as in the official code of the paper (and MoCo v2); without a hidden layer it is
    the linear head of MoCo v1. Weights and biases start with torch's default for ``nn.Linear``: uniform in
    +-1/sqrt(fan-in).

    Args:
        in_dim: Length of the pooled features.
        hidden_dim: Width of the hidden layer; ``None`` or 0 leaves it out.
        out_dim: Length of the projection.

    Returns:
        A module that maps (B, in_dim) to (B, out_dim), not normalized.

    Raises:
        ValueError: If a width is below 1.
    """
    for label, width in (("in_dim", in_dim), ("proj_hidden_dim", hidden_dim or 1), ("proj_dim", out_dim)):
        if width < 1:
            raise ValueError(f"{label} is {width}, but a layer's width is at least 1.")
    if not hidden_dim:
        return nn.Sequential(nn.Linear(in_dim, out_dim))
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, out_dim))
