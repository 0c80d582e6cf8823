"""The arguments of the losses: checked, converted to one floating type, and laid out as pools of negatives."""

from __future__ import annotations

import math
import warnings
from numbers import Real
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

InBatch: TypeAlias = bool | Literal["both"] | None

MIN_TEMPERATURE = 1e-6  # below it the quotient of a similarity and the temperature leaves the range of fp32
INFINITE_TEMPERATURE = 1e30  # from here on the softmax is uniform to the last digit of fp64
FLOORED_COSINE = 0.5  # class_prior warns if positives with this cosine reach the floor


class Settings(NamedTuple):
    """What a loss computes, in plain values."""

    dt_m: float
    in_batch: bool | Literal["both"]
    offset: int
    hardness: float
    class_prior: float
    detach_importance: bool
    two_dictionaries: bool

    @property
    def two_temperatures(self) -> bool:
        """Whether an anchor's weight comes from another softmax than the direction of its gradient."""
        return self.dt_m != 1 or self.two_dictionaries

    @property
    def reweighted(self) -> bool:
        """Whether the negatives have importance weights or are corrected for false negatives."""
        return self.hardness > 0 or self.class_prior > 0

    def beta(self, alpha: float | Tensor) -> float | Tensor:
        """Returns the second temperature, ``math.inf`` if it gives equal weights."""
        if self.dt_m > INFINITE_TEMPERATURE:
            return math.inf
        beta = alpha * self.dt_m
        return math.inf if isinstance(beta, float) and beta > INFINITE_TEMPERATURE else beta


class Tensors(NamedTuple):
    """The tensors of a loss, all of one floating type."""

    query: Tensor  # (N, D)
    key: Tensor  # (M, D)
    negatives: Tensor | None  # (K, D) or (N, S, D)
    all_queries: Tensor | None  # (M, D)
    scalar_negatives: Tensor | None  # (K, D)
    temperature: float | Tensor


class Pool(NamedTuple):
    """Rows that are negatives.

    Args:
        name: Which of the ``Tensors`` it is.
        rows: Rows (K, D) that every query has, or (N, S, D), those of each query.
        own: Row ``own + i`` belongs to query i and is not one of its negatives; None if no row is excluded.
    """

    name: str
    rows: Tensor
    own: int | None = None

    @property
    def columns(self) -> int:
        """Number of columns of its similarities."""
        return self.rows.shape[-2]

    def similarities(self, query: Tensor, start: int = 0) -> Tensor:
        """Returns the similarities (B, K) of queries ``start`` to ``start + B`` with the rows; -inf for the own row."""
        if self.rows.ndim == 3:
            return torch.bmm(self.rows[start : start + len(query)], query.unsqueeze(2)).squeeze(2)
        similarities = query @ self.rows.T
        if self.own is not None:
            similarities.diagonal(self.own + start).fill_(-torch.inf)
        return similarities


def negative_pools(tensors: Tensors, settings: Settings) -> list[Pool]:
    """Returns the pools of negatives that give the gradient its direction."""
    pools = []
    if settings.in_batch:
        pools.append(Pool("key", tensors.key, settings.offset))
    if settings.in_batch == "both":
        if tensors.all_queries is None:
            pools.append(Pool("query", tensors.query, 0))
        else:
            pools.append(Pool("all_queries", tensors.all_queries, settings.offset))
    if tensors.negatives is not None:
        pools.append(Pool("negatives", tensors.negatives))
    return pools


def count(pools: list[Pool]) -> int:
    """Returns the number of negatives of one query."""
    return sum(pool.columns - (pool.own is not None) for pool in pools)


def prepare(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    temperature: float | Tensor,
    dt_m: float = 1.0,
    *,
    in_batch: InBatch = None,
    scalar_negatives: Tensor | None = None,
    hardness: float = 0.0,
    class_prior: float = 0.0,
    detach_importance: bool = False,
    all_queries: Tensor | None = None,
    positive_offset: int | None = None,
    check: bool | None = None,
) -> tuple[Tensors, Settings]:
    """Checks the arguments of a loss and brings the tensors to the type of the computation."""
    tensors = {"query": query, "key": key}
    optional = {"negatives": negatives, "all_queries": all_queries, "scalar_negatives": scalar_negatives}
    tensors.update({name: tensor for name, tensor in optional.items() if tensor is not None})
    for name, tensor in tensors.items():
        _check_rows(name, tensor)
    check_settings(temperature, dt_m, in_batch, hardness, class_prior)
    settings = Settings(
        dt_m=float(dt_m),
        in_batch=negatives is None if in_batch is None else in_batch,
        offset=positive_offset or 0,
        hardness=float(hardness),
        class_prior=float(class_prior),
        detach_importance=detach_importance,
        two_dictionaries=scalar_negatives is not None,
    )
    _check_shapes(tensors, settings, positive_offset)
    if check is None:
        check = all(t.device.type == "cpu" for t in tensors.values()) and not torch.compiler.is_compiling()
    if check:
        for name, tensor in tensors.items():
            _check_unit_rows(name, tensor)
        if isinstance(temperature, Tensor):
            _check_temperature(temperature.item())
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors.values()) else torch.float32
    if isinstance(temperature, Tensor):
        temperature = temperature.reshape(()).to(query.device, dtype)
    else:
        temperature = float(temperature)
    converted = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    rows = {**dict.fromkeys(optional), **converted}
    return Tensors(**rows, temperature=temperature), settings  # type: ignore[arg-type]


def check_settings(
    temperature: float | Tensor,
    dt_m: float = 1.0,
    in_batch: InBatch = None,
    hardness: float = 0.0,
    class_prior: float = 0.0,
) -> None:
    """Raises TypeError or ValueError for settings that no loss can have; warns if most anchors would be floored."""
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1 or not temperature.is_floating_point():
            raise ValueError(
                f"temperature is a tensor of shape {tuple(temperature.shape)} and type {temperature.dtype}, "
                "but has to hold one floating-point number."
            )
    else:
        _check_number("temperature", temperature)
        _check_temperature(temperature)
    _check_number("dt_m", dt_m)
    if not dt_m > 0:
        raise ValueError(f"dt_m is {dt_m}, but has to be positive (1 gives InfoNCE).")
    if not isinstance(temperature, Tensor) and dt_m < MIN_TEMPERATURE / temperature:  # compiles for any dt_m
        raise ValueError(
            f"dt_m is {dt_m}, which gives a second temperature of {temperature * dt_m:.3g}, "
            f"but that has to be at least {MIN_TEMPERATURE:g}."
        )
    if not (in_batch is None or isinstance(in_batch, bool) or in_batch == "both"):
        raise ValueError(f"in_batch is {in_batch!r}, but has to be None, True, False or 'both'.")
    _check_number("hardness", hardness)
    if not 0 <= hardness < math.inf:
        raise ValueError(f"hardness is {hardness}, but has to be a finite number of at least 0.")
    _check_number("class_prior", class_prior)
    if not 0 <= class_prior < 1:
        raise ValueError(f"class_prior is {class_prior}, but has to lie in [0, 1).")
    if class_prior > 0 and not isinstance(temperature, Tensor) and not torch.compiler.is_compiling():
        _warn_of_the_floor(float(temperature), class_prior)


def _warn_of_the_floor(temperature: float, class_prior: float) -> None:
    # an anchor is floored if class_prior * exp(s_pos / t) exceeds the mean of exp(s_neg / t), which is about 1
    cosine = temperature * math.log(1 / class_prior)
    if cosine < FLOORED_COSINE:
        warnings.warn(
            f"with temperature {temperature:g} and class_prior {class_prior:g} an anchor loses its negatives once the "
            f"cosine with its positive exceeds about {cosine:.2f}, as it does for most anchors of a trained model; "
            "take temperature 0.5 or a smaller class_prior, and see simco_zoo.losses.floored_share.",
            stacklevel=2,
        )


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is a {type(value).__name__}, but has to be a number.")


def _check_temperature(temperature: float) -> None:
    # an fp32 tensor may hold 1e-6 rounded down
    if not MIN_TEMPERATURE * (1 - 1e-6) <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}, but has to be positive, finite and >= {MIN_TEMPERATURE:g}.")


def _check_rows(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        hint = "; pass a number by its name, e.g. temperature=0.1" if isinstance(tensor, Real) else ""
        raise TypeError(f"{name} is a {type(tensor).__name__}, but has to be a tensor of unit rows{hint}.")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} has the type {tensor.dtype}, but has to be of a real floating-point type.")


def _check_shapes(tensors: dict[str, Tensor], settings: Settings, positive_offset: int | None) -> None:
    query, key, offset = tensors["query"], tensors["key"], settings.offset
    if query.ndim != 2 or key.ndim != 2:
        raise ValueError(f"query and key have shapes {tuple(query.shape)} and {tuple(key.shape)}; both are (N, D).")
    n, width = query.shape
    if positive_offset is None and query.shape != key.shape:
        raise ValueError(
            f"query is {tuple(query.shape)}, key is {tuple(key.shape)}, but row i of key is the positive of query i; "
            "pass equal shapes, or positive_offset with keys gathered from several processes."
        )
    if width != key.shape[1] or offset < 0 or offset + n > len(key):
        raise ValueError(
            f"query {tuple(query.shape)} with positive_offset={offset} does not lie within key {tuple(key.shape)}; "
            "the positives are the rows positive_offset to positive_offset + N of key."
        )
    if n < 1:
        raise ValueError("query has no rows; the mean over the queries needs at least one.")
    for name in ("negatives", "scalar_negatives"):
        if name in tensors:
            _check_negatives(name, tensors[name], n, width)
    if "all_queries" in tensors:
        if settings.in_batch != "both":
            raise ValueError("all_queries has no use without in_batch='both'; leave it out.")
        if tensors["all_queries"].shape != key.shape:
            raise ValueError(
                f"all_queries is {tuple(tensors['all_queries'].shape)}, key is {tuple(key.shape)}, "
                "but both hold one row for every image of all processes."
            )
    elif settings.in_batch == "both" and len(key) != n:
        raise ValueError(
            f"key has {len(key)} rows and query {n}; with in_batch='both' also pass the queries of all processes "
            "as all_queries."
        )
    devices = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        raise ValueError(f"the rows are on several devices: {', '.join(f'{k} on {v}' for k, v in devices.items())}.")
    if not (settings.in_batch and len(key) > 1) and "negatives" not in tensors:
        raise ValueError(
            f"there is no negative for {n} quer{'y' if n == 1 else 'ies'}: pass at least 2 rows, or negatives."
        )


def _check_negatives(name: str, tensor: Tensor, n: int, width: int) -> None:
    shape = tuple(tensor.shape)
    own_rows = name == "negatives" and tensor.ndim == 3
    if not (own_rows or tensor.ndim == 2) or shape[-1] != width or (own_rows and len(tensor) != n):
        per_query = f" or ({n}, S, {width})" if name == "negatives" else ""
        raise ValueError(f"{name} is {shape}, but has to be (K, {width}){per_query} as the queries.")
    if shape[-2] < 1:
        raise ValueError(f"{name} is {shape}: it has no rows; pass None if there is none.")


def _check_unit_rows(name: str, tensor: Tensor) -> None:
    # NaN passes: the loss is then NaN, which says more than a complaint about lengths
    off = (tensor.detach().float().norm(dim=-1) - 1).abs().max()
    if off > 1e-2:
        raise ValueError(
            f"a row of {name} has a length that is off 1 by {off:.3g}; normalize it with "
            "torch.nn.functional.normalize(x, dim=-1), or pass check=False if that is meant."
        )
