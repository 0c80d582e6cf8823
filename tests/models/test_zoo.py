"""The zoo's names: structure, timm's interface, equality of the two views of one name."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn

import simco_zoo

NAMES = [f"{m}_{s}" for m in ("mocov1", "mocov2", "simco", "simmoco") for s in ("r18", "r18_025", "r34", "r50")]
NAMES += [f"{m}_{s}" for m in ("simclr", "dcl", "simsiam") for s in ("r18", "r18_025")]
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def shake(model: nn.Module) -> nn.Module:
    """Gives batch norm uneven weights and statistics, so that no layer's damage stays hidden."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def test_registered_names():
    assert sorted(simco_zoo.list_models()) == sorted(NAMES)
    assert simco_zoo.list_models("simco*") == ["simco_r18", "simco_r18_025", "simco_r34", "simco_r50"]
    assert set(NAMES) <= set(timm.list_models())
    assert simco_zoo.list_models("resnet18") == []
    assert all("." in name for name in simco_zoo.list_models(pretrained=True))


def test_a_name_without_a_tag_means_the_same_weights_here_and_in_timm():
    tags = [name for name in simco_zoo.list_models(pretrained=True) if name.startswith("simco_r18_025.")]
    assert {"simco_r18_025.cifar10", "simco_r18_025.cifar100"} <= set(tags)
    ours = simco_zoo.create_model("simco_r18_025", pretrained=True)
    assert ours.pretrained_cfg["tag"] == "cifar100"
    assert timm.models.get_arch_pretrained_cfgs("simco_r18_025").keys() >= set(tags)
    bare = timm.create_model("simco_r18_025", pretrained=True)
    assert bare.pretrained_cfg["tag"] == "cifar100" and torch.equal(bare.conv1.weight, ours.backbone.conv1.weight)


@pytest.mark.parametrize("name", NAMES)
def test_two_views_of_one_name(name):
    torch.manual_seed(3)
    bare = shake(timm.create_model(name)).eval()
    model = simco_zoo.create_model(name).eval()
    model.backbone.load_state_dict(bare.state_dict())
    with torch.inference_mode():
        features = model(IMAGES)
        assert torch.equal(features, bare(IMAGES))
        assert torch.equal(features, model.backbone(IMAGES))
        assert features.shape == (2, model.num_features)
        unpooled = model.forward_features(IMAGES)
        assert unpooled.shape[-2:] == (4, 4)
        assert torch.equal(model.forward_head(unpooled, pre_logits=True), features)
        projection = model.project(IMAGES)
    torch.testing.assert_close(projection.norm(dim=1), torch.ones(2))
    assert model.method == name.split("_")[0]
    assert model.pretrained_cfg["input_size"] == (3, 32, 32) and model.pretrained_cfg["pool_size"] == (4, 4)


def test_resnet18_is_torchvisions_with_a_small_stem():
    """The independent formulation: torchvision's network, altered by hand, with the same weights."""
    from torchvision.models import resnet18

    model = shake(timm.create_model("simco_r18")).eval()
    reference = resnet18()
    reference.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    reference.maxpool, reference.fc = nn.Identity(), nn.Identity()
    reference.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(IMAGES), reference.eval()(IMAGES))


def test_compact_model_has_a_quarter_of_the_width():
    model = timm.create_model("simco_r18_025")
    assert sum(p.numel() for p in model.parameters()) == 700_176
    assert [type(model.conv1), model.conv1.kernel_size, model.conv1.stride] == [nn.Conv2d, (3, 3), (1, 1)]
    full = timm.create_model("simco_r18")
    for (name, small), (_, large) in zip(model.named_parameters(), full.named_parameters(), strict=True):
        assert small.shape[0] * 4 == large.shape[0], name


def test_residual_branches_start_alive():
    """zero_init_last is off, as in the paper's code: the last norm of a block starts with weight one."""
    assert torch.equal(timm.create_model("simco_r18").layer1[0].bn2.weight, torch.ones(64))
    assert torch.equal(timm.create_model("simco_r18", zero_init_last=True).layer1[0].bn2.weight, torch.zeros(64))


def test_official_padding_is_an_option():
    model = timm.create_model("simco_r18_025", stem_padding=2, features_only=True)
    assert [tuple(x.shape[-2:]) for x in model(IMAGES)] == [(34, 34), (34, 34), (17, 17), (9, 9), (5, 5)]


def test_features_only_and_true_reductions():
    model = timm.create_model("simco_r18_025", features_only=True)
    assert model.feature_info.reduction() == [1, 1, 2, 4, 8]
    for feature, reduction, channels in zip(
        model(IMAGES), model.feature_info.reduction(), model.feature_info.channels(), strict=True
    ):
        assert feature.shape == (2, channels, 32 // reduction, 32 // reduction)
    assert [tuple(f.shape) for f in simco_zoo.create_model("simco_r18_025", features_only=True)(IMAGES)] == [
        tuple(f.shape) for f in model(IMAGES)
    ]


def test_arguments_of_the_backbone_and_its_classifier():
    model = simco_zoo.create_model("simco_r18_025", in_chans=1, num_classes=7)
    assert model(IMAGES[:, :1]).shape == (2, 7)
    assert model.num_classes == 7 and isinstance(model.get_classifier(), nn.Linear)
    model.reset_classifier(10)
    assert model(IMAGES[:, :1]).shape == (2, 10)
    model.reset_classifier(0)
    assert model(IMAGES[:, :1]).shape == (2, 128)
    assert simco_zoo.create_model("simco_r18_025", global_pool="catavgmax").num_features == 256
    assert timm.create_model("simco_r18_025", global_pool="")(IMAGES).shape == (2, 128, 4, 4)


def test_intermediates():
    model = simco_zoo.create_model("simco_r18_025").eval()
    last, stages = model.forward_intermediates(IMAGES)
    assert torch.equal(last, model.forward_features(IMAGES))
    assert [s.shape[-1] for s in stages] == [32, 32, 16, 8, 4]


def test_layer_wise_learning_rates_group_as_on_the_bare_backbone():
    """timm's optimizer factory reads group_matcher: the backbone's groups must be the same within the model."""
    model, bare = simco_zoo.create_model("simco_r18_025"), timm.create_model("simco_r18_025")

    def scales(network: nn.Module) -> dict[torch.Size, list[float]]:
        names = {id(p): n.removeprefix("backbone.") for n, p in network.named_parameters()}
        optimizer = create_optimizer_v2(network, opt="adamw", lr=1.0, layer_decay=0.5, weight_decay=0.1)
        return {names[id(p)]: g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}

    inside, outside = scales(model), scales(bare)
    # the projector comes after the backbone, so every layer of the backbone is one step further from the end
    ratios = {inside[name] / outside[name] for name in outside}
    assert len(ratios) == 1
    assert inside["projector.2.weight"] == 1.0
    assert inside["conv1.weight"] < inside["layer4.1.conv2.weight"]


def test_no_weight_decay_names_parameters_of_the_model():
    model = simco_zoo.create_model("simco", backbone="vit_tiny_patch16_224", small_stem=True)
    names = dict(model.named_parameters())
    assert "backbone.pos_embed" in model.no_weight_decay()
    assert {name for name in model.no_weight_decay() if name in names} >= {"backbone.pos_embed", "backbone.cls_token"}


@pytest.mark.parametrize(("backbone", "size", "maps"), [
    ("resnet10t", 32, (4, 4)),
    ("test_resnet", 32, (4, 4)),
    ("convnext_atto", 32, (4, 4)),
    ("swin_tiny_patch4_window7_224", 32, (2, 2)),
])  # fmt: skip
def test_small_stem_on_timm_families(backbone, size, maps):
    model = simco_zoo.create_model("simco", backbone=backbone, small_stem=True).eval()
    images = torch.randn(2, 3, size, size)
    stages = model.forward_intermediates(images, intermediates_only=True)
    assert stages[-1].shape[-2:] == maps
    reductions = [info["reduction"] for info in model.feature_info]
    assert [size // stage.shape[-1] for stage in stages] == reductions[-len(stages) :]
    assert model(images).shape == (2, model.num_features)
    assert model.architecture == "small_stem" and model.model_args == {"backbone": backbone}
    network = timm.create_model("small_stem", backbone=backbone, features_only=True)
    assert network(images)[-1].shape[-2:] == maps


def test_small_stem_on_a_vit():
    model = simco_zoo.create_model("simco", backbone="vit_tiny_patch16_224", small_stem=True).eval()
    assert model.forward_features(torch.randn(1, 3, 32, 32)).shape == (1, 65, 192)


def test_free_backbone_is_built_as_timm_does():
    torch.manual_seed(0)
    model = simco_zoo.create_model("simco", backbone="convnext_atto", backbone_kwargs={"drop_path_rate": 0.1})
    torch.manual_seed(0)
    bare = timm.create_model("convnext_atto", num_classes=0, drop_path_rate=0.1)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.eval()(images), bare.eval()(images))
    assert model.architecture == "convnext_atto" and model.model_args == {"drop_path_rate": 0.1}


@pytest.mark.parametrize(("call", "message"), [
    (lambda: simco_zoo.create_model("simco"), "needs a backbone"),
    (lambda: simco_zoo.create_model("simco", backbone="resnet_18"), "timm has no backbone 'resnet_18'; did you mean"),
    (lambda: simco_zoo.create_model("simco_r19"), "no model 'simco_r19'"),
    (lambda: simco_zoo.create_model("simco_r18", backbone="resnet18"), "has its backbone already"),
    (lambda: simco_zoo.create_model("simco", backbone="efficientnet_b0", small_stem=True), "no small-image stem"),
    (lambda: simco_zoo.create_model("simco", backbone="resnet18", backbone_kwargs={"num_classes": 3}), "num_classes"),
    (lambda: simco_zoo.create_model("simco", backbone="resnet18", small_stem=True, pretrained=True), "do not fit"),
    (lambda: simco_zoo.create_model("simco_r18", global_pool="").project(IMAGES), "one vector per image"),
])  # fmt: skip
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
