"""The benchmark's rows at a small scale; no test looks at a time."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import simco_zoo
from tests.recipes.test_recipes import RECIPES

COLUMNS = {"what", "ratio", "lowest", "highest", "aim", "met"}


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The recipe's own modules, as its script finds them."""
    monkeypatch.syspath_prepend(str(RECIPES))
    import benchmark
    import benchmarks.compare
    import benchmarks.evaluation
    import benchmarks.floor
    import benchmarks.gpu
    import benchmarks.processes
    import benchmarks.step

    threads = torch.get_num_threads()
    yield SimpleNamespace(main=benchmark.main, **vars(benchmarks))
    torch.set_num_threads(threads)


@pytest.fixture
def without_lightly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "lightly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightly", None)


def rows_of(recipes: Any, capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert recipes.main([*map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def find(rows: list[dict[str, Any]], text: str) -> dict[str, Any]:
    (row,) = [row for row in rows if text in row["what"]]
    return row


def test_benchmark_reports_every_row(recipes, capsys):
    assert recipes.main(["loss", "extract", "--runs", "1", "--n", "32", "--batch-size", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = json.loads(lines[-1])["rows"]
    assert [set(row) for row in rows] == [COLUMNS] * 7
    assert len([line for line in lines if line.startswith("| ")]) == 2 + len(rows)
    assert find(rows, "float64 gradient")["met"]
    assert find(rows, "aligned pairs")["met"]


def test_views_loader_step_and_knn(recipes, capsys, without_lightly):
    pytest.importorskip("sklearn")
    parts = ["views", "loader", "step", "knn"]
    found = rows_of(recipes, capsys, *parts, "--runs", 1, "--n", 32, "--batch-size", 4, "--workers", 0)
    rows = found["rows"]
    assert [set(row) for row in rows] == [COLUMNS] * 9
    assert [row["what"].split(":")[0] for row in rows[4:7]] == ["simco", "simmoco", "mocov2"]
    for side, preset, aim in ((32, "cifar", 8.0), (96, "cifar", 4.0), (224, "imagenet", 2.0)):
        row = find(rows, f"images of {side} px ({preset})")
        cost, theirs = map(float, re.search(r", (\S+) ms .* takes (\S+):", row["what"]).groups())
        assert row["aim"] == f">= {aim}" and row["ratio"] == pytest.approx(theirs / cost, rel=0.02)
    assert find(rows, "16 JPEGs")["ratio"] > 0
    agreement = find(rows, "scikit-learn's top-1")
    assert agreement["met"] and 5 < float(agreement["what"].split("(")[1].split()[0]) < 99
    assert found["notes"] == ["kNN against lightly: not measured, lightly is not installed."]


def test_both_sides_of_the_loader_make_the_same_batches(recipes, monkeypatch):
    from benchmarks import data

    made: list[list[Any]] = []

    def compare(what: str, *sides: Any, **options: Any) -> str:
        made.extend(drain(side, monkeypatch) for side in sides[:2])
        return what

    def drain(side: Any, patch: pytest.MonkeyPatch) -> list[Any]:
        batches: list[Any] = []
        with patch.context() as inner:
            inner.setattr("torch.utils.data._utils.fetch._MapDatasetFetcher.fetch", recording(batches))
            side()
        return batches

    def recording(batches: list[Any]) -> Any:
        fetch = torch.utils.data._utils.fetch._MapDatasetFetcher.fetch

        def record(self: Any, index: Any) -> Any:
            batch = fetch(self, index)
            images = batch[0] if isinstance(batch, list | tuple) else batch
            batches.append(torch.stack(images) if isinstance(images, list) else images)
            return batch

        return record

    monkeypatch.setattr(data, "compare", compare)
    list(data.benchmark_loader(SimpleNamespace(batch_size=4, workers=0, runs=1)))
    ours, theirs = made
    assert len(ours) == len(theirs) == 4
    assert all(torch.equal(a, b) and a.dtype == torch.uint8 for a, b in zip(ours, theirs, strict=True))


def test_two_processes_share_a_step(recipes):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = recipes.processes.measure(torchrun, 4)
    assert set(found) == {"seconds", "cpu_seconds"} and min(found.values()) > 0


def test_the_sides_take_turns_at_going_first(recipes, monkeypatch):
    order: list[str] = []

    def time(call: Any, device: Any) -> str:
        order.append(call)
        return call

    monkeypatch.setattr(recipes.compare, "seconds_of", time)
    assert recipes.compare.in_turns("a", "b", 3) == [("a", "b")] * 3
    assert order == [*"ab", *"ab", *"ba", *"ab"]


def test_judge_and_report(recipes):
    judge, report = recipes.compare.judge, recipes.compare.report
    assert judge("x", [3.0, 1.0, 2.0], 2) == {
        "what": "x", "ratio": 2.0, "lowest": 1.0, "highest": 3.0, "aim": "<= 2", "met": True
    }  # fmt: skip
    assert not judge("x", [2.1], 2)["met"] and judge("x", [2.1], 2, at_least=True)["met"]
    assert report("x", [1.23456])["ratio"] == 1.23 and report("x", [1.0])["met"] is None


# The floor


@pytest.mark.parametrize("name", ["simco_r18", "simco_r50", "simco_r18_025"])
def test_operations_are_those_that_torch_counts(name, recipes):
    floor = recipes.floor
    model = simco_zoo.create_model(name).to("meta").train()
    layers = floor.layers_of(model, 32)
    with FlopCounterMode(display=False) as forward:
        model.project(torch.zeros(1, 3, 32, 32, device="meta"))
    assert 2 * sum(layer.macs for layer in layers) == forward.get_total_flops()
    assert model.training  # the model is left alone
    with FlopCounterMode(display=False) as both:
        model.project(torch.zeros(2, 3, 32, 32, device="meta")).sum().backward()
    assert sum(kernel.operations for kernel in floor.forward_and_backward(layers, 2)) == both.get_total_flops()


def test_bytes_are_those_of_the_stages(recipes):
    """ResNet-18 by hand: a stem and four stages of two blocks, two batch norms each, and one in three shortcuts."""
    floor = recipes.floor
    stages = [64 * 32 * 32, 128 * 16 * 16, 256 * 8 * 8, 512 * 4 * 4]
    normalized = stages[0] + sum(4 * stage for stage in stages) + sum(stages[1:])
    kernels = floor.forward_and_backward(floor.layers_of(simco_zoo.create_model("simco_r18"), 32), 3)
    norms = sum(kernel.bytes for kernel in kernels if kernel.part == floor.NORMS)
    assert norms == 2 * 3 * (8 * normalized + 2 * 2 * sum(stages))
    images, pooled, dim = 3 * 32 * 32, 512, 128
    read = images + 4 * stages[0]  # stem and the four convolutions of the first stage
    read += sum(2 * before + 3 * own for before, own in itertools.pairwise(stages))  # with their shortcuts
    written, head = normalized, pooled + 3 * dim
    weights = sum(p.numel() for p in simco_zoo.create_model("simco_r18").parameters() if p.ndim > 1)
    products = sum(kernel.bytes for kernel in kernels if kernel.part == floor.PRODUCTS)
    first = 3 * (images + stages[0]) + 3 * 3 * 3 * 64  # has no gradient of its input
    assert products == 2 * (3 * (3 * (read + written + head) + weights) - first)


def test_floor_is_the_sum_of_its_parts(recipes, capsys):
    rows = rows_of(recipes, capsys, "floor")["rows"]
    assert find(rows, "multiply-adds")["ratio"] == pytest.approx(555.4, rel=0.01)  # counted by others, too
    step = find(rows, "the whole step")["ratio"]
    parts = [row["ratio"] for row in rows if " GFLOP, " in row["what"]]
    assert len(parts) == 5 and sum(parts) == pytest.approx(step, rel=0.01)
    assert find(rows, "200 epochs")["ratio"] == pytest.approx(200 * 195 * step / 6e4, rel=0.01)
    # no part can beat its bytes: 3.35 TB/s is 0.3 ms per GB
    assert find(rows, "batch norm")["ratio"] == pytest.approx(1e3 * 5.54 / 3350, rel=0.01)


# The GPU's table, rehearsed


def test_gpu_rehearsal(recipes, capsys, without_lightly):
    found = rows_of(recipes, capsys, "gpu", "--device", "cpu", "--batch-size", 8, "--runs", 1)
    rows = found["rows"]
    assert all(set(row) == COLUMNS for row in rows)
    for method in ("simco", "simmoco", "mocov2"):
        assert find(rows, f"{method}: largest difference of a normalized pixel")["met"]
        assert find(rows, f"{method}: relative error of the loss")["met"]
        assert find(rows, f"{method}: the same / that of bf16")["met"]
        assert find(rows, f"{method}: whole step (views")["aim"] == "<= 1.1"
    assert find(rows, "fast path in fp32 / plain fp32")["met"]
    rate, knn, between, minutes = (
        find(rows, text)["ratio"]
        for text in ("images/s over", "simco: kNN of", "diagnostics and checkpoint", "projected")
    )
    assert minutes == pytest.approx(recipes.gpu.projected_minutes(8, 8 / rate, between, knn), rel=0.03)
    notes = " ".join(found["notes"])
    assert "a rehearsal" in notes and "Host synchronizations: not measured" in notes
    assert "lightly's recipe: not measured, lightly cannot be imported" in notes


def test_projection_counts_steps_epochs_and_evaluations(recipes):
    """200 epochs of 195 steps, each with what follows it, and 20 evaluations."""
    minutes = recipes.gpu.projected_minutes(256, step=0.006, between=0.3, knn=3.0)
    assert minutes * 60 == pytest.approx(39_000 * 0.006 + 200 * 0.3 + 20 * 3.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_is_asked_for_and_absent(recipes, capsys):
    from simco_zoo.cli.run import run

    with pytest.raises(SystemExit) as error:
        run(lambda: recipes.main(["gpu"]))
    assert error.value.code == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: device 'cuda' cannot be used here .*; pass --device cpu.*\n", said)


@pytest.fixture
def scale(recipes, tmp_path: Path) -> Any:
    images = recipes.step.random_images(16)
    return recipes.gpu.Scale(
        device=torch.device("cpu"),
        name="cpu",
        fast={"amp": "bf16", "channels_last": True, "compile": False, "compile_mode": "default"},
        images=images,
        test_images=images,
        batch_size=8,
        runs=2,
        repeats=1,
        backbone_kwargs=recipes.step.COMPACT,
        folder=tmp_path,
    )


def double_the_gradient(trainer: Any) -> None:
    trainer.model.backbone.layer4.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * 2,))


def blur_the_views(trainer: Any) -> None:
    trainer.views.by_side[32] = simco_zoo.data.TwoViews("cifar", interpolation="bilinear", channels_last=True)


def double_the_loss(trainer: Any) -> None:
    contrast = trainer.contrast
    trainer.contrast = lambda *views, **kwargs: {k: 2 * v for k, v in contrast(*views, **kwargs).items()}


@pytest.mark.parametrize(("fault", "missed"), [
    (lambda trainer: None, ""),
    (double_the_gradient, "the same / that of bf16"),
    (blur_the_views, "largest difference of a normalized pixel"),
    (double_the_loss, "relative error of the loss"),
])  # fmt: skip
def test_correctness_sees_what_is_wrong(fault, missed, recipes, scale):
    trainer = scale.trainer("simmoco_r18", scale.fast)
    fault(trainer)
    rows = list(recipes.gpu.correctness(scale, "simmoco_r18", trainer, scale.images.images[:8]))
    assert {row["met"] for row in rows} == {None, True} if not missed else not find(rows, missed)["met"]


def test_waits_are_counted_by_line(recipes, monkeypatch):
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def call() -> None:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    ((place, count),) = recipes.gpu.waits(call).items()
    assert count == 3 and Path(place.rsplit(":", 1)[0]) == Path(__file__)
    assert modes == ["warn", "default"]


@pytest.mark.skipif(importlib.util.find_spec("lightly") is None, reason="lightly is not installed")
def test_lightlys_recipe_trains(recipes, scale):
    rows = list(recipes.gpu.against_lightly(scale, 1e6, [1]))
    theirs, ratio = find(rows, "lightly's SimCLR"), find(rows, "lightly's with 1 workers")
    assert ratio["ratio"] * theirs["ratio"] == pytest.approx(1e6, rel=0.5)  # medians of two
    assert ratio["aim"] == ">= 8"
