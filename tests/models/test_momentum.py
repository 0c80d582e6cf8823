"""The key encoder and the queue: checkpoints that hold them, half precision, classifiers, split batch norm."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from timm.utils import ModelEmaV2
from torch import nn

import simco_zoo
from simco_zoo.models.split_batch_norm import SplitBatchNorm2d, SplitBatchNormAct2d, split_batch_norm


def build(method: str, **kwargs) -> simco_zoo.models.ContrastiveModel:
    queue = {"queue_size": 12} if method.startswith("moco") else {}
    return simco_zoo.create_model(method, backbone="test_resnet", **queue, **kwargs).train()


@pytest.fixture
def half_views(views):
    return [view.bfloat16() for view in views]


@pytest.mark.parametrize("method", ["mocov2", "simmoco"])
def test_a_fresh_model_loads_the_state_of_a_trained_one(method, views):
    trained = build(method)
    for _ in range(2):
        trained.contrast(*views)
    fresh = build(method)
    assert fresh.key_encoder is None
    fresh.load_state_dict(trained.state_dict())
    assert fresh.state_dict().keys() == trained.state_dict().keys()
    assert torch.equal(fresh.contrast(*views)["loss"], trained.contrast(*views)["loss"])

    # inside another module, as Lightning and DistributedDataParallel hold it
    outer, other = nn.ModuleDict({"model": trained}), nn.ModuleDict({"model": build(method)})
    other.load_state_dict(outer.state_dict())
    for (name, ours), theirs in zip(other.state_dict().items(), outer.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_state_without_key_encoder_still_loads_and_a_damaged_one_does_not():
    model = build("mocov2")
    model.load_state_dict(build("mocov2").state_dict())
    assert model.key_encoder is None and model.queue is None
    full = build("mocov2")
    full.init_key_encoder()
    state = full.state_dict()
    del state["key_encoder.projector.0.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*key_encoder\.projector\.0\.weight"):
        model.load_state_dict(state)


@pytest.mark.parametrize("method", ["mocov2", "simmoco", "simco"])
def test_timms_average_of_weights_follows_a_model_whose_key_encoder_comes_later(method, views):
    model = build(method)
    average = ModelEmaV2(model, decay=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    before = {name: value.clone() for name, value in average.module.state_dict().items()}
    model.contrast(*views)
    average.update(model)
    for name, value in average.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.5 * before[name] + 0.5 * model.state_dict()[name], msg=name)


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_average_of_a_bfloat16_model_moves(when, half_views):
    """A step of 0.001 of the way is below the spacing of bfloat16, in which the average would stand still."""
    model = build("simmoco", momentum=0.999)
    if when == "after":
        model.init_key_encoder()
    model.bfloat16()
    if when == "before":
        model.init_key_encoder()
    reference = {name: p.detach().double() for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in (*model.backbone.parameters(), *model.projector.parameters()):
            parameter.add_(0.25)
    target = {name: p.detach().double() for name, p in model.named_parameters()}
    for _ in range(20):
        report = model.contrast(*half_views)
        reference = {name: 0.999 * key + 0.001 * target[name] for name, key in reference.items()}
    keys = model.key_encoder.state_dict()
    assert report["loss"].isfinite()
    for name, expected in reference.items():
        torch.testing.assert_close(keys[name].double(), expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(("first", "then"), [(0, 10), (10, 0), (10, 5)])
def test_the_classifier_may_change_after_the_key_encoder_was_made(first, then, views):
    model = build("mocov2", num_classes=first, global_pool="max", momentum=0.5)
    model.contrast(*views)
    assert model.key_encoder.backbone.get_submodule("global_pool").pool_type == "max"
    model.reset_classifier(then, "max")
    before = model.key_encoder.projector[0].weight.clone()
    with torch.no_grad():
        model.projector[0].weight.add_(1.0)
    assert model.contrast(*views)["loss"].isfinite()
    torch.testing.assert_close(model.key_encoder.projector[0].weight, before + 0.5)
    fresh = build("mocov2", num_classes=then, global_pool="max")
    fresh.load_state_dict(model.state_dict())


@pytest.mark.parametrize(("backbone", "size"), [
    ("test_vit", 160), ("test_convnext", 32), ("test_efficientnet", 32), ("vit_tiny_patch16_224", 224),
])  # fmt: skip
def test_the_key_encoder_of_other_families_equals_its_query_encoder(backbone, size):
    images = torch.randn(2, 3, size, size)
    model = simco_zoo.create_model("simmoco", backbone=backbone, num_classes=3).eval()
    parameters = len(list(model.parameters()))
    model.init_key_encoder()
    with torch.no_grad():
        ours, theirs = (model.embed(encoder, images)[0][0] for encoder in (model.key_encoder, model))
    assert torch.equal(ours, theirs)
    assert len(list(model.parameters())) == parameters


@pytest.mark.parametrize("method", ["simco", "simmoco", "mocov2", "simclr", "dcl", "simsiam"])
def test_contrast_compiles_into_one_graph(method, views):
    model = build(method)
    if hasattr(model, "init_key_encoder"):
        model.init_key_encoder()
    plain = copy.deepcopy(model)
    compiled = torch.compile(model.contrast, backend="eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(*views)["loss"], plain.contrast(*views)["loss"])


def test_split_batch_norm_with_an_activation_equals_separate_batches():
    torch.manual_seed(0)
    plain = BatchNormAct2d(6)
    split = nn.Sequential(copy.deepcopy(plain))
    split_batch_norm(split, 2)
    assert isinstance(split[0], SplitBatchNormAct2d)
    x = torch.randn(8, 6, 5, 5) * 3 + 2
    parts = [copy.deepcopy(plain) for _ in range(2)]
    expected = torch.empty_like(x)
    for i, part in enumerate(parts):
        expected[i::2] = part(x[i::2])
    assert expected.min() == 0  # the activation takes part
    torch.testing.assert_close(split(x), expected)
    torch.testing.assert_close(split[0].running_var, torch.stack([p.running_var for p in parts]).mean(0))


def test_every_batch_norm_of_a_backbone_is_split():
    model = simco_zoo.create_model("mocov2", backbone="skresnet18", bn_splits=2, queue_size=8)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 36
    assert all(isinstance(m, SplitBatchNorm2d | SplitBatchNormAct2d) and m.splits == 2 for m in norms)


def test_batch_norm_that_cannot_be_split_is_an_error():
    class Unusual(nn.BatchNorm2d):
        pass

    backbone = timm.create_model("test_resnet", num_classes=0)
    backbone.bn1 = Unusual(backbone.bn1.num_features)
    with pytest.raises(ValueError, match="cannot split the backbone's Unusual; it knows BatchNorm2d and"):
        simco_zoo.models.MoCo(backbone, bn_splits=2)
