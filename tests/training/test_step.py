"""The step as an accelerator runs it: nothing waits for the device, nothing breaks the compiled graph."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext

import pytest
import torch

import simco_zoo
from simco_zoo.data import TwoViews, load_images
from simco_zoo.training import TrainingConfig
from simco_zoo.training.config import parse_sizes
from simco_zoo.training.online_probe import OnlineProbe
from simco_zoo.training.optimizer import build_optimizer, build_schedule, plan

METHODS = ("simco", "simmoco", "mocov2")


def build(method: str, seed: int = 0, **kwargs):
    torch.manual_seed(seed)
    return simco_zoo.create_model(method, backbone="test_resnet", small_stem=True, **kwargs).train()


@pytest.fixture
def no_autocast(monkeypatch):
    """The meta device has no autocast to switch off."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_asks_the_device_for_no_value(method, symmetric):
    """Tensors on the meta device have no values: .item(), nonzero and masks as indices fail there."""
    model = build(method, symmetric=symmetric, **({"bn_splits": 2} if method == "mocov2" else {})).to("meta")
    if method != "simco":
        model.init_key_encoder()
    config = TrainingConfig()
    optimizer, probe = build_optimizer(model, config), OnlineProbe(model, 10, config, plan(config, 5, 0, 100))
    generator = torch.Generator().manual_seed(0)
    images = torch.empty(8, 3, 40, 40, dtype=torch.uint8, device="meta")
    for step in (1, 2):
        report = model.contrast(*TwoViews("imagenet", size=32)(images, generator=generator), generator=generator)
        optimizer.zero_grad(set_to_none=True)
        report["loss"].backward()
        probe.step(report.pop("features"), torch.empty(8, dtype=torch.long, device="meta"), step)
        optimizer.step()
    assert all(value.device.type == "meta" for value in report.values())
    with pytest.raises((RuntimeError, NotImplementedError)):
        report["loss"].item()


@pytest.mark.usefixtures("no_autocast")
def test_views_compile_into_one_graph(monkeypatch):
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, mode: compiled(f, backend="eager", fullgraph=True))
    views = TwoViews("imagenet", size=32, compile_mode="default")
    images = torch.empty(8, 3, 40, 40, dtype=torch.uint8, device="meta")
    assert [view.shape for view in views(images)] == [(8, 3, 32, 32)] * 2


@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_contrast_is_the_same(method):
    """As one graph through AOTAutograd: loss, gradients, key encoder, queue and the probe's features."""
    generator = torch.Generator().manual_seed(1)
    view1, view2 = torch.randn(2, 6, 3, 16, 16, generator=generator)
    results = []
    for compile in (False, True):
        model = build(method, **({"queue_size": 10} if method == "mocov2" else {}))
        if method != "simco":
            model.init_key_encoder()
        probe = OnlineProbe(model, 3, TrainingConfig(), plan(TrainingConfig(), 5, 0, 100))
        contrast = torch.compile(model.contrast, backend="aot_eager") if compile else model.contrast
        losses = []
        for step in (1, 2):
            report = contrast(view1, view2)
            report["loss"].backward()
            losses.append(report["loss"].detach())
            losses.append(probe.step(report["features"], torch.tensor([0, 1, 2, 0, 1, 2]), step))
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append(
            {**model.state_dict(), **{f"{n} grad": g for n, g in gradients.items()}, "loss": torch.stack(losses)}
        )
    assert results[0].keys() == results[1].keys() and len(results[0]) > 50
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


# Several views, the resolution ramp, the constant part


@pytest.mark.parametrize("method", ["simco", "simmoco", "mocov2"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_loss_of_several_views_is_the_mean_over_the_ordered_pairs(method, symmetric):
    model = build(method, symmetric=symmetric, joint_bn=False)
    if method != "simco":
        model.init_key_encoder()
        model.momentum = 1.0  # the key encoder stays where it is
    views = torch.randn(4, 6, 3, 16, 16)
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j and (symmetric or i == 0)]
    with torch.no_grad():
        expected = []
        for i, j in pairs:
            model.symmetric = False  # one direction: view i is the query
            fresh = copy.deepcopy(model)  # the queue of each pair is that of the start
            expected.append(fresh.contrast(views[i], views[j])["loss"])
        model.symmetric = symmetric
        found = model.contrast(*views)["loss"]
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_parse_sizes():
    assert parse_sizes("16:0.5, 24:0.25,32:0.25") == [(16, 0.5), (24, 0.75), (32, 1.0)]
    for wrong in ("16", "16:0.5", "16:0.5,32:0.6", "0:1", "16:-1,32:2", "a:1", "", "16:nan,32:1"):
        with pytest.raises(ValueError, match="sizes"):
            TrainingConfig(sizes=wrong)


def test_the_ramp_makes_views_of_each_side_for_its_share_of_the_steps(tmp_path, monkeypatch):
    sides = []
    contrast = simco_zoo.models.SimCo.contrast
    monkeypatch.setattr(
        simco_zoo.models.SimCo,
        "contrast",
        lambda self, *views, **kwargs: sides.append([v.shape[-1] for v in views]) or contrast(self, *views, **kwargs),
    )
    images = load_images(torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8))
    model = simco_zoo.create_model("simco_r18_025")
    folder = simco_zoo.training.pretrain(
        model,
        images,
        output=tmp_path / "run",
        epochs=2,
        batch_size=8,
        sizes="16:0.5,24:0.25,32:0.25",
        views_per_image=3,
        device="cpu",
    )
    assert sides == [[16] * 3] * 4 + [[24] * 3] * 2 + [[32] * 3] * 2
    assert simco_zoo.create_model(f"local-dir:{folder}", pretrained=True).pretrained_cfg["input_size"] == (3, 32, 32)


def test_the_rate_is_constant_until_the_last_decay_share_of_the_steps():
    parameter = torch.nn.Linear(1, 1)
    config = TrainingConfig(epochs=10, warmup_epochs=1, decay_share=0.3, lr=0.1, batch_size=256)
    optimizer = build_optimizer(parameter, config)
    schedule = build_schedule(optimizer, config, plan(config, steps_per_epoch=10, start=0, end=100))
    rates = []
    for step in range(101):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[10:71] == pytest.approx([0.1] * 61)
    cosine = [0.05 * (1 + math.cos(math.pi * i / 30)) for i in range(31)]
    assert rates[70:] == pytest.approx(cosine, abs=1e-12)
    assert rates[:10] == pytest.approx([0.01 + 0.009 * i for i in range(10)])
