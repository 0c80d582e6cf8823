"""The dual temperature loss against the paper's formula written plainly."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.compare import Row, compare, judge
from simco_zoo.losses import dual_temperature


def official_dual_temperature(query: Tensor, key: Tensor, temperature: float = 0.1, dt_m: float = 10.0) -> Tensor:
    """The paper's formula written plainly: logits with the positive first, two softmaxes, a detached weight."""
    n = len(query)
    similarity = query @ key.T
    positive = similarity.diagonal().unsqueeze(1)
    negatives = similarity[~torch.eye(n, dtype=torch.bool)].view(n, n - 1)
    logits = torch.cat([positive, negatives], dim=1)
    p_alpha = F.softmax(logits / temperature, dim=1)[:, 0]
    p_beta = F.softmax(logits / (temperature * dt_m), dim=1)[:, 0]
    return (((1 - p_beta) / (1 - p_alpha)).detach() * -torch.log(p_alpha)).mean()


def benchmark_loss(args: argparse.Namespace) -> Iterator[Row]:
    for n, aim in ((args.n, 0.30), (4 * args.n, 0.20)):
        query = F.normalize(torch.randn(n, 128), dim=1).requires_grad_()
        key = F.normalize(query.detach() + 0.05 * torch.randn(n, 128), dim=1).requires_grad_()

        def run(loss: Callable[..., Tensor], query: Tensor = query, key: Tensor = key) -> None:
            query.grad = key.grad = None
            loss(query, key).backward()

        what = f"dual temperature, forward + backward, fp32, N = {n}, D = 128: time / official formula's"
        yield compare(
            what, lambda r=run: r(dual_temperature), lambda r=run: r(official_dual_temperature), args.runs, aim
        )
        kept = [bytes_kept(loss, query, key) for loss in (dual_temperature, official_dual_temperature)]
        yield judge(f"the same, N = {n}: bytes kept for backward / official formula's", [kept[0] / kept[1]], 0.2)

    query, key = (F.normalize(torch.randn(64, 16, dtype=torch.float64), dim=1).requires_grad_() for _ in range(2))
    grads = [torch.autograd.grad(loss(query, key), query)[0] for loss in (dual_temperature, official_dual_temperature)]
    off = (grads[0] - grads[1]).abs().max().item()
    yield judge("float64 gradient: largest difference from autograd of the official formula", [off], 1e-10)
    aligned = torch.eye(16, 32).requires_grad_()
    values = [loss(aligned, aligned, temperature=0.05) for loss in (dual_temperature, official_dual_temperature)]
    works = float(bool(torch.isfinite(values[0]) and torch.isnan(values[1])))
    yield judge("aligned pairs at tau 0.05, fp32: finite where the official formula is NaN (1 = yes)", [works], 1, True)


def bytes_kept(loss: Callable[[Tensor, Tensor], Tensor], query: Tensor, key: Tensor) -> int:
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(query, key)
    return sum(sizes.values())
