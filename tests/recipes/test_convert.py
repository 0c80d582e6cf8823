"""Checkpoints as other people's code writes them, converted, and compared with the networks they came from."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

import simco_zoo
from simco_zoo.cli.convert import main
from simco_zoo.publishing.verify import verify

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def shaken(module: nn.Module) -> nn.Module:
    """Gives batch norm statistics and weights of its own, so that no two layers can be taken for one another."""
    generator = torch.Generator().manual_seed(5)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module.eval()


def small_resnet18(padding: int) -> nn.Module:
    network = resnet18()
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, padding, bias=False), nn.Identity()
    network.fc = nn.Identity()
    return shaken(network)


def head(features: int = 512) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, 96), nn.ReLU(), nn.Linear(96, 48))


def prefixed(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in module.state_dict().items()}


def lightning(path: Path, state: dict[str, Tensor]) -> Path:
    """What Lightning writes, hyperparameters and optimizer included."""
    content = {"epoch": 200, "hyper_parameters": argparse.Namespace(lr=0.03), "optimizer_states": [{"state": {}}]}
    torch.save({**content, "state_dict": state}, path)
    return path


def call(*arguments: object) -> tuple[str, str]:
    """Runs the command in this process; returns what it printed, and the error that it ended in."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            assert main([str(argument) for argument in arguments]) == 0
        except ValueError as error:
            return printed.getvalue(), str(error)
    return printed.getvalue(), ""


def converted(path: Path, *arguments: object) -> tuple[dict, simco_zoo.models.ContrastiveModel]:
    printed, error = call("--checkpoint", path, "--output", path.parent / "converted", *arguments)
    assert not error, error
    result = json.loads(printed.splitlines()[-1])
    assert [check.problem for check in verify(result["folder"]) if check.problem] == []
    return result, simco_zoo.create_model(f"local-dir:{result['folder']}", pretrained=True).eval()


@pytest.mark.parametrize("body", ["encoder", "backbone"])
@pytest.mark.parametrize("encoder", ["query", "key"])
def test_lightning_of_the_official_code_and_solo_learn(body, encoder, tmp_path):
    networks = {"query": small_resnet18(2), "key": small_resnet18(2)}
    heads = {"query": head(), "key": head()}
    state = {
        **prefixed(f"{body}.", networks["query"]),
        **prefixed(f"momentum_{body}.", networks["key"]),
        **prefixed("projector.", heads["query"]),
        **prefixed("momentum_projector.", heads["key"]),
        **prefixed("classifier.", nn.Linear(512, 100)),
        "queue": torch.randn(2, 128, 16),
    }
    path = lightning(tmp_path / "last.ckpt", state)
    result, model = converted(path, "--method", "simmoco", "--encoder", encoder, "--stem-padding", 2)
    torch.testing.assert_close(model(IMAGES), networks[encoder](IMAGES))
    expected = F.normalize(heads[encoder](networks[encoder](IMAGES)), dim=1)
    torch.testing.assert_close(model.project(IMAGES), expected)
    assert result["layout"] == ("official" if body == "encoder" else "solo-learn")
    assert result["architecture"] == "simmoco_r18" and result["model_args"] == {"stem_padding": 2}
    # every key of theirs is accounted for, once
    assert sorted([*result["taken"], *result["left_out"]]) == sorted(state)
    assert {"classifier.weight", "queue"} <= set(result["left_out"])


def test_the_original_moco(tmp_path):
    network = resnet50()
    network.fc = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 128))
    shaken(network)
    state = {**prefixed("module.encoder_q.", network), **prefixed("module.encoder_k.", resnet50())}
    path = tmp_path / "moco.pth.tar"
    torch.save({"epoch": 200, "arch": "resnet50", "state_dict": {**state, "module.queue": torch.randn(128, 8)}}, path)
    result, model = converted(path, "--method", "mocov2")
    images = F.interpolate(IMAGES, size=64)
    torch.testing.assert_close(model.project(images), F.normalize(network(images), dim=1))
    assert result["architecture"] == "resnet50"


def lightly_checkpoint(path: Path, backbone: nn.Module, projector: nn.Module) -> Path:
    projection_head = nn.Sequential()
    projection_head.layers = projector
    state = {**prefixed("backbone.", backbone), **prefixed("projection_head.", projection_head)}
    return lightning(path, {**state, "criterion.memory_bank.bank": torch.randn(4, 4)})


@pytest.mark.parametrize("with_pooling", [True, False])
def test_lightly_with_torchvisions_resnet(with_pooling, tmp_path):
    network, projector = small_resnet18(1), head()
    children = [
        child for name, child in network.named_children() if name != "fc" and (with_pooling or name != "maxpool")
    ]
    path = lightly_checkpoint(tmp_path / "l.ckpt", nn.Sequential(*children), projector)
    result, model = converted(path, "--method", "mocov2", "--stem-padding", 1)
    torch.testing.assert_close(model(IMAGES), network(IMAGES))
    torch.testing.assert_close(model.project(IMAGES), F.normalize(projector(network(IMAGES)), dim=1))
    assert result["layout"] == "lightly" and result["left_out"] == ["criterion.memory_bank.bank"]


def test_lightlys_own_resnet_as_its_documentation_cuts_it_up_is_another_network(tmp_path):
    """Against lightly itself: the ReLU after the stem is a function in its forward, so the children alone lack it."""
    models = pytest.importorskip("lightly.models")
    resnet = shaken(models.ResNetGenerator("resnet-18"))
    cut = nn.Sequential(*list(resnet.children())[:-1], nn.AdaptiveAvgPool2d(1))
    path = lightly_checkpoint(tmp_path / "l.ckpt", cut, head())
    arguments = ["--checkpoint", path, "--output", tmp_path / "o", "--method", "mocov2", "--stem-padding", 1]
    assert "has lost the ReLU" in call(*arguments)[1] and not (tmp_path / "o").exists()
    # with the flag it is the network with the ReLU, which is not what was cut up
    result, model = converted(path, "--method", "mocov2", "--stem-padding", 1, "--stem-relu")
    features = model(IMAGES)
    assert not torch.allclose(features, cut(IMAGES).flatten(1), rtol=0.1)
    expected = F.relu(resnet.bn1(resnet.conv1(IMAGES)))
    for layer in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        expected = layer(expected)
    torch.testing.assert_close(features, expected.mean((2, 3)), rtol=1e-4, atol=1e-4)
    assert result["layout"] == "lightly"


@pytest.mark.parametrize(("name", "size"), [("resnet-18", "18"), ("resnet-34", "34"), ("resnet-50", "50")])
def test_lightlys_own_resnet_as_a_whole(name, size, tmp_path):
    models = pytest.importorskip("lightly.models")
    resnet = shaken(models.ResNetGenerator(name))
    path = lightning(tmp_path / "l.ckpt", prefixed("backbone.", resnet))
    result, model = converted(path, "--method", "simco", "--stem-padding", 1)
    resnet.linear = nn.Identity()
    torch.testing.assert_close(model(IMAGES), resnet(IMAGES), rtol=1e-4, atol=1e-4)
    assert result["architecture"] == f"simco_r{size}" and not result["projector"]


@pytest.mark.parametrize("case", ["torchvision", "timm", "timm vit", "safetensors"])
def test_plain_weights_claim_nothing(case, tmp_path):
    if case == "timm vit":
        network, arguments, size = timm.create_model("test_vit"), ["--backbone", "test_vit"], 160
    else:
        network, arguments, size = (
            shaken(resnet18() if case == "torchvision" else timm.create_model("resnet18")),
            [],
            64,
        )
    path = tmp_path / f"plain.{'safetensors' if case == 'safetensors' else 'pth'}"
    (save_file if case == "safetensors" else torch.save)(network.state_dict(), path)
    result, model = converted(path, *arguments, "--license", "mit")
    network = network.eval()
    setattr(network, "head" if case == "timm vit" else "fc", nn.Identity())
    images = torch.randn(1, 3, size, size)
    torch.testing.assert_close(model(images), network(images))
    assert result["layout"] == "timm or torchvision" and result["left_out"] == [
        f"{'head' if case == 'timm vit' else 'fc'}.{part}" for part in ("bias", "weight")]  # fmt: skip
    config = json.loads((Path(result["folder"]) / "config.json").read_text())
    assert config["simco_zoo"]["loss"] == {} and "tag" not in config["pretrained_cfg"]
    assert config["pretrained_cfg"]["license"] == "mit"
    card = (Path(result["folder"]) / "README.md").read_text()
    assert "license: mit" in card and "InfoNCE" not in card and "tau_alpha" not in card and "by SimCo" not in card


def test_an_original_moco_of_imagenet_claims_nothing_of_timm(tmp_path):
    path = tmp_path / "moco.pth.tar"
    torch.save({"state_dict": prefixed("module.encoder_q.", shaken(resnet50()))}, path)
    result, _ = converted(path, "--method", "mocov2")
    config = json.loads((Path(result["folder"]) / "config.json").read_text())
    cfg = config["pretrained_cfg"]
    assert cfg["crop_pct"] == 0.875 and "tag" not in cfg and "license" not in cfg and config["simco_zoo"]["loss"] == {}


def test_our_own_checkpoint_points_to_what_was_published(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("epochs: 1\n")
    path = run / "checkpoints" / "step-00000010.ckpt"
    model = simco_zoo.create_model("simco_r18_025")
    torch.save({"model": model.state_dict(), "settings": {}}, path)
    elsewhere = tmp_path / "moved.pth"
    torch.save({"model": model.state_dict(), "settings": {}}, elsewhere)
    for checkpoint, named in ((path, str(run / "last")), (elsewhere, "last/")):
        error = call("--checkpoint", checkpoint, "--output", tmp_path / "o")[1]
        assert named in error and "training checkpoint of simco-zoo" in error


def test_a_projector_that_the_zoo_has_not_is_left_out(tmp_path):
    network = small_resnet18(1)
    projector = nn.Sequential(nn.Linear(512, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))
    path = lightning(tmp_path / "s.ckpt", {**prefixed("backbone.", network), **prefixed("projector.", projector)})
    result, model = converted(path, "--method", "simco", "--stem-padding", 1, "--tag", "c100")
    assert not result["projector"] and not (Path(result["folder"]) / "projector.safetensors").exists()
    assert "projector.1.running_mean" in result["left_out"]
    torch.testing.assert_close(model(IMAGES), network(IMAGES))
    config = json.loads((Path(result["folder"]) / "config.json").read_text())
    assert config["pretrained_cfg"]["tag"] == "c100" and "projector.safetensors" not in config["simco_zoo"]["files"]
    card = (Path(result["folder"]) / "README.md").read_text()
    assert "converted from" in card and "tau_alpha" not in card  # the checkpoint does not say
    with safe_open(Path(result["folder"]) / "model.safetensors", "pt") as file:
        assert not [key for key in file.keys() if key.startswith("fc.")]  # noqa: SIM118 (no dictionary)


class Evil:
    def __reduce__(self):
        return (Path("evil.txt").touch, ())


@pytest.mark.parametrize(("case", "message"), [
    ("pickle", "could run code"),
    ("no tensors", "holds no state dict"),
    ("unknown keys", "are none of those known"),
    ("padding", "pass --stem-padding 2"),
    ("no key encoder", "has no key encoder"),
    ("missing layer", "layer4.1.bn2.weight"),
    ("missing file", "there is no file"),
    ("no method", "pass --method"),
    ("another width", "the stem has 32 channels"),
    ("cut file", "cannot be read as a checkpoint|could run code"),
    ("a text", "cannot be read as a checkpoint"),
    ("not a number", r"not finite numbers in .*bn1\.weight"),
])  # fmt: skip
def test_what_cannot_be_converted_says_why(case, message, tmp_path, monkeypatch):
    state: dict = prefixed("encoder.", small_resnet18(1))
    arguments = ["--method", "simco", "--stem-padding", "1"]
    path = tmp_path / "c.ckpt"
    if case == "pickle":
        state["evil"] = Evil()
    elif case == "no tensors":
        state = {"a": 1}
    elif case == "unknown keys":
        state = {f"net.{key}": value for key, value in state.items()}
    elif case == "padding":
        arguments = arguments[:2]
    elif case == "no key encoder":
        arguments += ["--encoder", "key"]
    elif case == "missing layer":
        del state["encoder.layer4.1.bn2.weight"]
    elif case == "no method":
        arguments = arguments[2:]
    elif case == "not a number":
        state["encoder.bn1.weight"] = state["encoder.bn1.weight"] * float("nan")
    elif case == "another width":
        state = {key: value[:32] if key == "encoder.conv1.weight" else value for key, value in state.items()}
    if case != "missing file":
        lightning(path, state)
    if case == "cut file":
        path.write_bytes(path.read_bytes()[:10_000])
    if case == "a text":
        path.write_text("hello")
    monkeypatch.chdir(tmp_path)
    error = call("--checkpoint", path, "--output", tmp_path / "o", *arguments)[1]
    assert re.search(message, error) and len(error) < 1000 and "\n" not in error, error
    assert not (tmp_path / "o").exists() and not (tmp_path / "evil.txt").exists()
