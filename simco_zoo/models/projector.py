"""Projectors and predictors: the heads between pooled features and the unit sphere on which views are compared."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PredictorKind = Literal["mlp", "bias", "linear", "mirror", "inverse", "none"]


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
    _check_widths(in_dim=in_dim, proj_hidden_dim=hidden_dim or 1, proj_dim=out_dim)
    if not hidden_dim:
        return nn.Sequential(nn.Linear(in_dim, out_dim))
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, out_dim))


def build_norm_projector(
    in_dim: int, hidden_dim: int, out_dim: int, layers: int, last_norm: bool = True
) -> nn.Sequential:
    """Builds SimSiam's projection head: linear layers, each with batch norm, the last one without scale and shift.

    Args:
        in_dim: Length of the pooled features.
        hidden_dim: Width of the hidden layers.
        out_dim: Length of the projection.
        layers: Number of linear layers, >= 1.
        last_norm: Whether batch norm follows the last one, too.

    Returns:
        A module that maps (B, in_dim) to (B, out_dim), not normalized.

    Raises:
        ValueError: If a width or the number of layers is below 1.
    """
    _check_widths(in_dim=in_dim, proj_hidden_dim=hidden_dim, proj_dim=out_dim)
    if layers < 1:
        raise ValueError(f"proj_layers is {layers}, but has to be at least 1.")
    modules: list[nn.Module] = []
    for width in (in_dim, *[hidden_dim] * (layers - 2))[: layers - 1]:
        modules += [nn.Linear(width, hidden_dim, bias=False), nn.BatchNorm1d(hidden_dim), nn.ReLU(inplace=True)]
    last = nn.Linear(hidden_dim if layers > 1 else in_dim, out_dim, bias=False)
    return nn.Sequential(*modules, last, *([nn.BatchNorm1d(out_dim, affine=False)] if last_norm else []))


class BiasPredictor(nn.Module):
    """Adds one learned vector to unit rows: the simplest predictor with which SimSiam does not collapse."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, z: Tensor) -> Tensor:
        """Maps projections (B, dim) to predictions (B, dim)."""
        return unit_rows(z) + self.bias


class LinearPredictor(nn.Linear):
    """Multiplies unit rows by one learned matrix."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        """Maps projections (B, dim) to predictions (B, dim)."""
        return super().forward(unit_rows(z))


def build_predictor(kind: PredictorKind, dim: int, hidden_dim: int) -> nn.Module:
    """Builds SimSiam's predictor.

    Args:
        kind: "bias", "linear", "none", or one of those that are an MLP: Linear, batch norm, ReLU, Linear.
        dim: Length of projection and prediction.
        hidden_dim: Width of the MLP's hidden layer.

    Raises:
        ValueError: If the kind is unknown or a width is below 1.
    """
    if kind not in get_args(PredictorKind):
        raise ValueError(f"predictor is {kind!r}, but has to be one of {', '.join(get_args(PredictorKind))}.")
    _check_widths(proj_dim=dim, pred_hidden_dim=hidden_dim)
    if kind == "none":
        return nn.Identity()
    if kind == "bias":
        return BiasPredictor(dim)
    if kind == "linear":
        return LinearPredictor(dim)
    hidden = (nn.Linear(dim, hidden_dim, bias=False), nn.BatchNorm1d(hidden_dim), nn.ReLU(inplace=True))
    return nn.Sequential(*hidden, nn.Linear(hidden_dim, dim))


def unit_rows(projections: Tensor) -> Tensor:
    """Scales projections (B, D) to unit length, in the precision of the loss whatever autocast did in the layers."""
    if projections.dtype not in (torch.float32, torch.float64):
        projections = projections.float()
    return F.normalize(projections, dim=1)


def _check_widths(**widths: int) -> None:
    for name, width in widths.items():
        if width < 1:
            raise ValueError(f"{name} is {width}, but a layer's width is at least 1.")
