"""The three methods against their pseudo code, written plainly in float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import simco_zoo

METHODS = ["simco", "simmoco", "mocov1", "mocov2"]


def build(method: str, **kwargs) -> simco_zoo.models.ContrastiveModel:
    """A small model without batch norm in float64: every image is embedded independently of its batch."""
    torch.manual_seed(0)
    return simco_zoo.create_model(method, backbone="test_convnext", **kwargs).double().train()


def encode(model: nn.Module, images: Tensor) -> Tensor:
    """Backbone, pooling, projector, unit length: without the package's own code path."""
    return F.normalize(model.projector(model.backbone(images)), dim=1)


def plain_loss(query: Tensor, key: Tensor, negatives: Tensor | None, temperature: float, dt_m: float) -> Tensor:
    """The paper's formula with its softmaxes written out; ``negatives`` None: the other rows of ``key``."""
    total = query.new_zeros(())
    for i in range(len(query)):
        others = torch.cat([key[:i], key[i + 1 :]]) if negatives is None else negatives
        similarity = torch.cat([(query[i] * key[i]).sum()[None], others @ query[i]])
        p_alpha = torch.softmax(similarity / temperature, dim=0)[0]
        p_beta = torch.softmax(similarity / (dt_m * temperature), dim=0)[0]
        total = total - ((1 - p_beta) / (1 - p_alpha)).detach() * torch.log(p_alpha)
    return total / len(query)


@pytest.fixture
def doubles(views):
    return views[0].double(), views[1].double()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("joint_bn", [True, False])
def test_simco_loss_and_gradient(doubles, symmetric, joint_bn):
    view1, view2 = doubles
    model = build("simco", symmetric=symmetric, joint_bn=joint_bn)
    reference = copy.deepcopy(model)
    z1, z2 = encode(reference, view1), encode(reference, view2)
    expected = plain_loss(z1, z2, None, 0.1, 10.0)
    if symmetric:
        expected = (expected + plain_loss(z2, z1, None, 0.1, 10.0)) / 2
    expected.backward()

    report = model.contrast(view1, view2)
    report["loss"].backward()
    torch.testing.assert_close(report["loss"], expected.detach(), rtol=1e-9, atol=1e-9, check_dtype=False)
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", ["simmoco", "mocov1", "mocov2"])
def test_momentum_methods_over_three_steps(doubles, method, symmetric):
    """Key encoder before the keys, queue after the loss, gradient through the query alone: three steps of SGD."""
    view1, view2 = doubles
    queue_size = 5 if method.startswith("moco") else None  # shorter than the batch of 8: the pointer wraps
    kwargs = {"queue_size": queue_size} if queue_size else {}
    model = build(method, symmetric=symmetric, momentum=0.9, **kwargs)
    temperature = {"mocov1": 0.07}.get(method, 0.1)

    query = copy.deepcopy(model)
    key = copy.deepcopy(model)
    model.init_key_encoder()
    queue = model.queue.clone() if queue_size else None
    slot = 0
    for _ in range(3):
        with torch.no_grad():
            for k, q in zip(key.parameters(), query.parameters(), strict=True):
                k.copy_(0.9 * k + 0.1 * q)
            k1, k2 = encode(key, view1), encode(key, view2)
        dt_m = 10.0 if method == "simmoco" else 1.0
        expected = plain_loss(encode(query, view1), k2, queue, temperature, dt_m)
        if symmetric:
            expected = (expected + plain_loss(encode(query, view2), k1, queue, temperature, dt_m)) / 2
        if queue is not None:
            queue = queue.clone()
            for row in torch.cat([k1, k2]) if symmetric else k2:
                queue[slot] = row
                slot = (slot + 1) % queue_size
        report = model.contrast(view1, view2)
        torch.testing.assert_close(report["loss"].detach(), expected.detach(), rtol=1e-8, atol=1e-9)
        for network, loss in ((model, report["loss"]), (query, expected)):
            network.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in network.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.05 * parameter.grad
        if queue is not None:
            # of more keys than slots only the newest are written, so the order in the ring may differ
            torch.testing.assert_close(sorted_rows(model.queue), sorted_rows(queue), rtol=1e-8, atol=1e-9)
    for part in ("backbone", "projector"):
        ours, theirs = (dict(encoder.get_submodule(part).state_dict()) for encoder in (model.key_encoder, key))
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-8, atol=1e-10)
    assert not list(model.key_encoder.parameters())


def sorted_rows(rows: Tensor) -> Tensor:
    return rows[rows[:, 0].argsort()]


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_the_papers(method):
    config = simco_zoo.create_model(method, backbone="test_convnext").method_config()
    assert config["temperature"] == (0.07 if method == "mocov1" else 0.1)
    assert config["proj_hidden_dim"] == (None if method == "mocov1" else 128)
    assert config["proj_dim"] == 128
    assert config["symmetric"] == (method == "simco")
    assert config.get("dt_m") == (10.0 if method in ("simco", "simmoco") else None)
    assert config.get("momentum") == (None if method == "simco" else 0.99)
    assert config.get("queue_size") == (4096 if method.startswith("moco") else None)


@pytest.mark.parametrize(("method", "symmetric", "expected"), [
    ("simco", True, {"query": [16]}),
    ("simmoco", False, {"query": [8], "key": [8]}),
    ("mocov2", False, {"query": [8], "key": [8]}),
    ("mocov2", True, {"query": [16], "key": [16]}),
])  # fmt: skip
def test_only_the_forwards_that_the_method_needs(views, method, symmetric, expected):
    model = simco_zoo.create_model(method, backbone="test_convnext", symmetric=symmetric).train()
    seen: dict[str, list[int]] = {}
    model.backbone.register_forward_hook(lambda *_: pytest.fail("the classifier's forward is not needed"))
    model.backbone.stem.register_forward_hook(lambda m, x, y: seen.setdefault("query", []).append(len(x[0])))
    if hasattr(model, "init_key_encoder"):
        model.init_key_encoder()
        # the copy carries the query's hooks along; it gets one of its own
        model.key_encoder.backbone.stem._forward_hooks.clear()
        model.key_encoder.backbone.stem.register_forward_hook(
            lambda m, x, y: seen.setdefault("key", []).append(len(x[0]))
        )
    model.contrast(*views)
    assert seen == expected


def test_features_cost_no_key_encoder():
    model = simco_zoo.create_model("mocov2", backbone="test_convnext")
    assert model.key_encoder is None and model.queue is None
    assert not any("key_encoder" in name or "queue" in name for name in model.state_dict())


def test_checkpoint_with_key_encoder_round_trips(views):
    model = simco_zoo.create_model("mocov2", backbone="test_resnet", queue_size=12).train()
    for _ in range(2):
        model.contrast(*views)
    torch.manual_seed(7)
    other = simco_zoo.create_model("mocov2", backbone="test_resnet", queue_size=12).train()
    other.init_key_encoder()
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.contrast(*views)["loss"], other.contrast(*views)["loss"])
    assert torch.equal(model.queue, other.queue)


def test_evaluation_mode_advances_nothing(views):
    model = simco_zoo.create_model("mocov2", backbone="test_resnet", queue_size=12).train()
    model.contrast(*views)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.1)
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.contrast(*views)
    after = model.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def test_key_encoder_statistics_and_buffers(views):
    """Batch norm's statistics come from the key's own forwards; other float buffers move, integers are copied."""
    model = simco_zoo.create_model("simmoco", backbone="test_resnet", momentum=0.5).train()
    model.backbone.register_buffer("scale", torch.tensor([4.0]))
    model.backbone.register_buffer("count", torch.tensor(3))
    model.init_key_encoder()
    key = model.key_encoder.backbone
    key.scale.fill_(0.0)
    key.count.fill_(0)
    replica = copy.deepcopy(key)
    model.contrast(*views)
    assert key.scale.item() == 2.0
    assert key.count.item() == 3
    # query and key were equal before the step, so the key's statistics are those of one forward of view 2
    replica(views[1])
    norms = [name for name, module in key.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    for name in norms:
        torch.testing.assert_close(key.get_submodule(name).running_mean, replica.get_submodule(name).running_mean)
        torch.testing.assert_close(key.get_submodule(name).running_var, replica.get_submodule(name).running_var)


@pytest.mark.parametrize("batch", [1, 3, 4, 9])
def test_queue_takes_any_batch_size(batch):
    model = simco_zoo.create_model("mocov2", backbone="test_convnext", queue_size=4).train()
    expected: list[Tensor] = []
    for _ in range(3):
        images = torch.randn(batch, 3, 32, 32)
        model.contrast(images, images)
        with torch.no_grad():
            expected += list(encode(model.key_encoder, images))
    newest = torch.stack(expected[-4:])
    if len(expected) >= 4:
        torch.testing.assert_close(sorted_rows(model.queue), sorted_rows(newest), rtol=1e-4, atol=1e-5)
    assert model.queue.shape == (4, 128)


def test_joint_batch_norm_spans_both_views(views):
    view1, view2 = views[0], views[1] * 3 + 1  # views of differing statistics
    model = simco_zoo.create_model("simco", backbone="test_resnet").train()
    joint = copy.deepcopy(model).contrast(view1, view2)["loss"]
    reference = copy.deepcopy(model)
    z1, z2 = encode(reference, torch.cat([view1, view2])).chunk(2)
    expected = (plain_loss(z1, z2, None, 0.1, 10.0) + plain_loss(z2, z1, None, 0.1, 10.0)) / 2
    torch.testing.assert_close(joint, expected, rtol=1e-4, atol=1e-5)
    model.joint_bn = False
    assert abs(model.contrast(view1, view2)["loss"] - joint) > 1e-3


def test_split_batch_norm_equals_separate_batches():
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(6)
    nn.init.uniform_(plain.weight)
    nn.init.uniform_(plain.bias)
    split = copy.deepcopy(nn.Sequential(plain))
    simco_zoo.models.split_batch_norm.split_batch_norm(split, 2)
    x = torch.randn(8, 6, 5, 5) * 3 + 2
    parts = [copy.deepcopy(plain) for _ in range(2)]
    expected = torch.empty_like(x)
    for i, part in enumerate(parts):
        expected[i::2] = part(x[i::2])
    torch.testing.assert_close(split(x), expected)
    torch.testing.assert_close(split[0].running_mean, torch.stack([p.running_mean for p in parts]).mean(0))
    torch.testing.assert_close(split[0].running_var, torch.stack([p.running_var for p in parts]).mean(0))
    split.eval()
    plain.load_state_dict(split[0].state_dict())
    torch.testing.assert_close(split(x), plain.eval()(x))
    with pytest.raises(ValueError, match="does not divide"):
        split.train()(x[:7])


def test_shuffled_keys_come_back_in_order(views):
    """Without batch norm the shuffle must not be seen at all; with split batch norm it changes the keys' statistics."""
    images = views[0]
    model = simco_zoo.create_model("mocov2", backbone="test_resnet", bn_splits=4, queue_size=16).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.splits = 1
    model.bn_splits = 4
    generator = torch.Generator().manual_seed(3)
    report = model.contrast(images, images, generator=generator)
    # query and key encoders are equal, and so are the views: every key has to stand next to its own query
    torch.testing.assert_close(report["positive_similarity"], torch.tensor(1.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kwargs", "message"), [
    ({"temperature": 0.0}, "temperature is 0.0"),
    ({"dt_m": -1.0}, "dt_m is -1.0"),
    ({"temperature": math.inf}, "temperature is inf"),
    ({"temperature": 1e-40}, "temperature is 1e-40"),
    ({"temperature": "0.1"}, "temperature is '0.1', but has to be of the type float"),
    ({"dt_m": math.nan}, "dt_m is nan"),
    ({"symmetric": "no"}, "symmetric is 'no', but has to be of the type bool"),
    ({"proj_dim": 0}, "proj_dim is 0"),
    ({"proj_dim": 8.5}, "proj_dim is 8.5, but has to be of the type int"),
    ({"num_classes": -1}, "num_classes is -1"),
    ({"num_classes": True}, "num_classes is True"),
    ({"in_chans": 0}, "in_chans is 0"),
])  # fmt: skip
def test_arguments_out_of_range(kwargs, message):
    with pytest.raises(ValueError, match=message):
        simco_zoo.create_model("simco", backbone="test_convnext", **kwargs)


@pytest.mark.parametrize(("kwargs", "message"), [
    ({"momentum": 1.5}, "momentum is 1.5"),
    ({"momentum": "0.9"}, "momentum is '0.9'"),
    ({"queue_size": 0}, "queue_size is 0"),
    ({"queue_size": 2.5}, "queue_size is 2.5, but has to be of the type int"),
    ({"bn_splits": True}, "bn_splits is True"),
    ({"bn_splits": 2}, "BatchNorm2d"),
])  # fmt: skip
def test_moco_arguments_out_of_range(kwargs, message):
    with pytest.raises(ValueError, match=message):
        simco_zoo.create_model("mocov2", backbone="test_convnext", **kwargs)


def test_views_of_differing_shapes():
    model = simco_zoo.create_model("simco", backbone="test_convnext")
    with pytest.raises(ValueError, match="views have shapes"):
        model.contrast(torch.randn(4, 3, 32, 32), torch.randn(3, 3, 32, 32))


def test_autocast_leaves_projections_in_fp32(views):
    model = simco_zoo.create_model("simco", backbone="test_resnet").train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = model.contrast(*views)
        assert model.project(views[0]).dtype == torch.float32
    assert report["loss"].dtype == torch.float32
    report["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.projector.parameters())
