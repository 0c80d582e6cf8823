"""What a step cannot be faster than: operations and bytes counted from the layers' shapes, and what a GPU can do.

A kernel takes at least its operations over the peak rate, and at least its bytes over the memory's bandwidth; kernels
run one after the other. Activations are bf16. Assumed is the best that eager or compiled code does today: a convolution
reads its input once and writes its output once; batch norm in training mode reads what it normalizes twice (the
statistics come first), forward and backward; ReLU, residual addition and the cast of the weights are fused into it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

import simco_zoo
from benchmarks.compare import Row, report

BF16, FP32 = 2, 4  # bytes
IMAGES, TEST_IMAGES, EPOCHS = 50_000, 10_000, 200  # CIFAR, and the paper's run


@dataclass(frozen=True)
class Peak:
    """What a GPU does at best, by its data sheet (SXM, dense): operations/s per type, bytes/s of the memory."""

    name: str
    rates: dict[str, float]
    bandwidth: float


_HOPPER = {"bf16": 989e12, "tf32": 494e12, "fp32": 67e12}
PEAKS = (Peak("H200", _HOPPER, 4.8e12), Peak("H100", _HOPPER, 3.35e12))


@dataclass(frozen=True)
class Kernel:
    """One pass over memory: operations (2 per multiply-add) of a type, and bytes."""

    part: str
    operations: float
    bytes: float
    rate: str = "fp32"

    def seconds(self, peak: Peak) -> float:
        return max(self.operations / peak.rates[self.rate], self.bytes / peak.bandwidth)


@dataclass(frozen=True)
class Layer:
    """A module's shapes for one image: multiply-adds, elements read and written, and weights."""

    module: nn.Module
    macs: int
    read: int
    written: int
    weights: int


def layers_of(model: Any, size: int) -> list[Layer]:
    """Returns the convolutions, linear layers, batch norms and residual blocks that ``project`` passes, in order."""
    model = copy.deepcopy(model).to("meta").eval()
    found = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = getattr(module, "weight", None)
        multiplies = isinstance(module, nn.Conv2d | nn.Linear)
        macs = output.numel() * weight[0].numel() if multiplies and weight is not None else 0
        found.append(Layer(module, macs, inputs[0].numel(), output.numel(), weight.numel() if multiplies else 0))

    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, BasicBlock, Bottleneck)
    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, kinds)]
    model.project(torch.zeros(1, 3, size, size, device="meta"))
    for handle in handles:
        handle.remove()
    return found


PRODUCTS, NORMS = "convolutions, linear layers", "batch norm, ReLU, residuals"


def forward_and_backward(layers: list[Layer], images: int) -> list[Kernel]:
    """Returns the kernels of a training-mode forward and backward of a batch through an encoder."""
    kernels = []
    for index, layer in enumerate(layers):
        read, written = (BF16 * images * elements for elements in (layer.read, layer.written))
        if layer.macs:
            product = 2.0 * images * layer.macs, read + written + BF16 * layer.weights, "bf16"
            # forward and gradient of the weights; the images themselves need no gradient
            kernels += [Kernel(PRODUCTS, *product)] * (2 if index == 0 else 3)
        elif isinstance(layer.module, nn.BatchNorm2d):
            # statistics; normalization; sums of gradient and gradient times input; gradient of the input
            kernels += [Kernel(NORMS, 0, written * passes) for passes in (1, 2, 2, 3)]
        else:  # the shortcut is read when it is added, and so is its gradient
            kernels += [Kernel(NORMS, 0, written)] * 2
    return kernels


def parts_of_step(model: Any, n: int, size: int) -> list[Kernel]:
    """Returns the kernels of a SimCo step: views of n images, forward and backward of 2N, loss, optimizer."""
    pixels, dim = 3 * size * size, model.proj_dim
    parameters = sum(p.numel() for p in model.parameters())
    products = 2 * 3 * 2.0 * n * n * dim  # both directions: similarities, gradients of query and key
    return [
        # two matrix products an image and view resize its rows and columns; read as bytes, written as floats
        Kernel("views", 2 * 2 * 2.0 * n * pixels * size, 2 * n * pixels * (1 + FP32)),
        *forward_and_backward(layers_of(model, size), 2 * n),
        Kernel("loss", products, 2 * 3 * FP32 * n * n),
        # weights cast to bf16; gradients cast back; SGD reads weight, gradient and momentum, writes weight and momentum
        Kernel("weights: casts, SGD", 0, parameters * (2 * (FP32 + BF16) + 5 * FP32)),
    ]


def ema(model: Any) -> Kernel:
    """The key encoder's moving average: reads both encoders, writes one."""
    return Kernel("EMA of the key encoder", 0, 3 * FP32 * sum(p.numel() for p in model.parameters()))


def knn_evaluation(model: Any, size: int) -> list[Kernel]:
    """Returns the kernels of a kNN evaluation in fp32 (convolutions in tf32, torch's default), features included."""
    count, dim = IMAGES + TEST_IMAGES, model.num_features
    kernels = [
        Kernel("features", 2.0 * count * layer.macs, FP32 * count * (layer.read + layer.written), "tf32")
        for layer in layers_of(model, size)
        if not isinstance(layer.module, nn.Linear)  # the projector's
    ]
    similarities = FP32 * TEST_IMAGES * IMAGES
    kernels.append(Kernel("similarities", 2.0 * TEST_IMAGES * IMAGES * dim, similarities))
    return [*kernels, Kernel("the nearest", 0, similarities)]


def milliseconds(kernels: list[Kernel], peak: Peak) -> float:
    return 1e3 * sum(kernel.seconds(peak) for kernel in kernels)


def peak_of(device_name: str) -> Peak | None:
    """Returns the peaks of a GPU by the name that torch gives it, or None for one that is not listed."""
    return next((peak for peak in PEAKS if peak.name in device_name), None)


def floor_rows(peak: Peak, n: int) -> Iterator[Row]:
    """Yields the floor of simco_r18's step at 32 px, part by part, and of a run of 200 epochs."""
    model, size = simco_zoo.create_model("simco_r18"), 32
    kernels = parts_of_step(model, n, size)
    macs = sum(layer.macs for layer in layers_of(model, size))
    yield report("simco_r18 at 32 px: multiply-adds of one forward of one image, millions", [macs / 1e6])
    where = f"floor on one {peak.name}, simco_r18, N = {n}"
    for part in dict.fromkeys(kernel.part for kernel in kernels):
        own = [kernel for kernel in kernels if kernel.part == part]
        work = f"{sum(k.operations for k in own) / 1e9:.4g} GFLOP, {sum(k.bytes for k in own) / 1e9:.3g} GB"
        yield report(f"{where}: {part} ({work}), ms", [milliseconds(own, peak)])
    step = milliseconds(kernels, peak)
    yield report(f"{where}: the whole step, ms", [step])
    yield report(f"{where}: {EPOCHS} epochs of {IMAGES} images, minutes", [EPOCHS * (IMAGES // n) * step / 6e4])
    yield report(f"floor on one {peak.name}: {ema(model).part}, ms", [milliseconds([ema(model)], peak)])
    evaluation = knn_evaluation(model, size)
    what = f"kNN of {TEST_IMAGES} images against {IMAGES} in fp32, features included, ms"
    yield report(f"floor on one {peak.name}: {what}", [milliseconds(evaluation, peak)])


def benchmark_floor(args: argparse.Namespace) -> Iterator[Row]:
    yield from floor_rows(PEAKS[-1], args.batch_size)
