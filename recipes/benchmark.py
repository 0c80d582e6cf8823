"""Measure the speed of each part against a plain baseline, side by side in one process.

    python recipes/benchmark.py loss views step extract load import

Baseline and ours take turns, and the median of the ratios pair by pair is reported: machines drift, ratios hardly do.
Prints a table, and one line of JSON with every row. An aim that is missed is reported, not an error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import simco_zoo
from simco_zoo.data import PRESETS, TwoViews, normalize
from simco_zoo.losses import dual_temperature
from simco_zoo.training import TrainingConfig
from simco_zoo.training.optimizer import build_optimizer

Row = dict[str, Any]


def compare(
    what: str, ours: Callable[[], Any], baseline: Callable[[], Any], runs: int, aim: float, inverse: bool = False
) -> Row:
    """Times both in turns. The ratio is ours / baseline in time, or with ``inverse`` in throughput."""
    ours(), baseline()
    ratios = []
    for _ in range(runs):
        spent = []
        for call in (ours, baseline):
            began = time.perf_counter()
            call()
            spent.append(time.perf_counter() - began)
        ratios.append(spent[1] / spent[0] if inverse else spent[0] / spent[1])
    return judge(what, ratios, aim, inverse)


def judge(what: str, ratios: list[float], aim: float, at_least: bool) -> Row:
    ratio = statistics.median(ratios)
    return {
        "what": what,
        "ratio": float(f"{ratio:.3g}"),
        "lowest": float(f"{min(ratios):.3g}"),
        "highest": float(f"{max(ratios):.3g}"),
        "aim": f"{'>=' if at_least else '<='} {aim}",
        "met": ratio >= aim if at_least else ratio <= aim,
    }


# The loss


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
        yield judge(f"the same, N = {n}: bytes kept for backward / official formula's", [kept[0] / kept[1]], 0.2, False)

    query, key = (F.normalize(torch.randn(64, 16, dtype=torch.float64), dim=1).requires_grad_() for _ in range(2))
    grads = [torch.autograd.grad(loss(query, key), query)[0] for loss in (dual_temperature, official_dual_temperature)]
    off = (grads[0] - grads[1]).abs().max().item()
    yield judge("float64 gradient: largest difference from autograd of the official formula", [off], 1e-10, False)
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


# The views


def benchmark_views(args: argparse.Namespace) -> Iterator[Row]:
    from PIL import Image
    from torchvision import transforms

    preset = PRESETS["cifar"]
    images = torch.randint(0, 256, (args.batch_size, 3, 32, 32), dtype=torch.uint8)
    pils = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    pipeline = transforms.Compose(
        [
            transforms.RandomResizedCrop(32, preset.scale, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(preset.mean, preset.std),
        ]
    )
    views, generator = TwoViews("cifar"), torch.Generator().manual_seed(0)
    what = f"two views of {args.batch_size} images of 32 px, {args.threads} thread(s): images/s / torchvision's"
    yield compare(
        what,
        lambda: views(images, generator=generator),
        lambda: [torch.stack([pipeline(pil) for pil in pils]) for _ in range(2)],
        args.runs,
        4.0,
        inverse=True,
    )


# The step


def benchmark_step(args: argparse.Namespace) -> Iterator[Row]:
    n = args.batch_size
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)
    views, generator = TwoViews("cifar", channels_last=True), torch.Generator().manual_seed(0)

    def training_step(model: Any) -> Callable[[], None]:
        model.train().to(memory_format=torch.channels_last)
        optimizer = build_optimizer(model, TrainingConfig())

        def step() -> None:
            view1, view2 = views(images, generator=generator)
            optimizer.zero_grad(set_to_none=True)
            model.contrast(view1, view2, generator=generator)["loss"].backward()
            optimizer.step()

        return step

    def bare(backbone: nn.Module, graded: Tensor, ungraded: Tensor | None) -> Callable[[], None]:
        backbone.train().to(memory_format=torch.channels_last)

        def step() -> None:
            for parameter in backbone.parameters():
                parameter.grad = None
            if ungraded is not None:
                with torch.no_grad():
                    backbone(ungraded)
            backbone(graded).sum().backward()

        return step

    both = torch.randn(2 * n, 3, 32, 32).to(memory_format=torch.channels_last)
    for name, aim_of in (
        ("simco_r18_025", "forward + backward of 2N"),
        ("simmoco_r18", "forward + backward of N, forward of N"),
        ("mocov2_r18", "forward + backward of N, forward of N"),
    ):
        kwargs = {"channels": (16, 32, 64, 128)} if name != "simco_r18_025" else {}  # the compact width for all three
        model = simco_zoo.create_model(name, backbone_kwargs=kwargs)
        backbone = simco_zoo.create_model(name, backbone_kwargs=kwargs).backbone
        one_sided = name != "simco_r18_025"
        baseline = bare(backbone, both[:n] if one_sided else both, both[n:] if one_sided else None)
        what = f"{name.split('_')[0]}: whole step (views, forward, backward, optimizer), N = {n} / bare {aim_of}"
        yield compare(what, training_step(model), baseline, args.runs, 1.10)


# Extraction, import


def benchmark_extract(args: argparse.Namespace) -> Iterator[Row]:
    model = simco_zoo.create_model("simco_r18_025").eval()
    images = torch.randint(0, 256, (8 * args.batch_size, 3, 32, 32), dtype=torch.uint8)
    backbone = simco_zoo.create_model("simco_r18_025").backbone.eval()

    def plain() -> Tensor:
        found = []
        with torch.inference_mode():
            for batch in images.split(args.batch_size):
                found.append(backbone(normalize(batch, backbone.pretrained_cfg)))
        return torch.cat(found)

    what = f"extract_features on {len(images)} images in memory: images/s / the plain loop's"
    yield compare(
        what,
        lambda: simco_zoo.extract_features(model, images, args.batch_size),
        plain,
        args.runs,
        0.97,
        inverse=True,
    )


def benchmark_load(args: argparse.Namespace) -> Iterator[Row]:
    """Weights of R18 size from a folder: hashed, parsed and checked, against timm and safetensors as they are."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = simco_zoo.save_pretrained(simco_zoo.create_model("simco_r18"), Path(temporary) / "model")

        def plain() -> None:
            timm.create_model("simco_r18").load_state_dict(load_file(folder / "model.safetensors"))

        def ours() -> None:
            simco_zoo.create_model("simco_r18", weights=folder)

        what = "create_model with simco_r18's weights: time / timm.create_model + load_file's"
        yield compare(what, ours, plain, args.runs, 1.25)


def benchmark_import(args: argparse.Namespace) -> Iterator[Row]:
    def run(module: str) -> None:
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    yield compare(
        "import simco_zoo: time / import timm", lambda: run("simco_zoo"), lambda: run("timm"), args.runs, 1.10
    )


BENCHMARKS = {
    "loss": benchmark_loss,
    "views": benchmark_views,
    "step": benchmark_step,
    "extract": benchmark_extract,
    "load": benchmark_load,
    "import": benchmark_import,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=BENCHMARKS, help="which parts")
    parser.add_argument("--runs", type=int, default=11, help="pairs of runs of each row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--n", type=int, default=1024, help="rows of the smaller loss")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows: list[Row] = []
    print("| what | median ratio | lowest-highest | aim | met |\n| --- | --- | --- | --- | --- |")
    for name in args.what:
        for row in BENCHMARKS[name](args):
            rows.append(row)
            spread = f"{row['lowest']:.3g}-{row['highest']:.3g}"
            met = "yes" if row["met"] else "no"
            print(f"| {row['what']} | {row['ratio']:.3g} | {spread} | {row['aim']} | {met} |", flush=True)
    print(json.dumps({"threads": args.threads, "torch": torch.__version__, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
