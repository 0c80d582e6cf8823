"""The step as an accelerator runs it: nothing waits for the device, nothing breaks the compiled graph."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

import simco_zoo
from simco_zoo.data import TwoViews
from simco_zoo.training import TrainingConfig
from simco_zoo.training.online_probe import OnlineProbe
from simco_zoo.training.optimizer import build_optimizer

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
    optimizer, probe = build_optimizer(model, config), OnlineProbe(model, 10, config, 5, 100)
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
        probe = OnlineProbe(model, 3, TrainingConfig(), 5, 100)
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
