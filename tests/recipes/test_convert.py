"""Checkpoints as other people's code writes them, converted, and compared with the networks they came from."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

import simco_zoo
from simco_zoo.publishing.verify import verify
from tests.recipes.test_recipes import call, last_json

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


def converted(path: Path, *arguments: object) -> tuple[dict, simco_zoo.models.ContrastiveModel]:
    result = last_json(call("convert.py", "--checkpoint", path, "--output", path.parent / "converted", *arguments))
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


@pytest.mark.parametrize("own_resnet", [True, False])
def test_lightly(own_resnet, tmp_path):
    network, projector = small_resnet18(1), head()
    children = list(network.children())[:-1]
    if own_resnet:  # lightly's ResNet has neither ReLU nor max-pooling as children, and calls its downsampling shortcut
        children = [network.conv1, network.bn1, network.layer1, network.layer2, network.layer3, network.layer4]
    body = prefixed("backbone.", nn.Sequential(*children))
    if own_resnet:
        body = {key.replace(".downsample.", ".shortcut."): value for key, value in body.items()}
    projection_head = nn.Sequential()
    projection_head.layers = projector
    state = {**body, **prefixed("projection_head.", projection_head), "criterion.memory_bank.bank": torch.randn(4, 4)}
    result, model = converted(lightning(tmp_path / "l.ckpt", state), "--method", "mocov2", "--stem-padding", 1)
    torch.testing.assert_close(model(IMAGES), network(IMAGES))
    torch.testing.assert_close(model.project(IMAGES), F.normalize(projector(network(IMAGES)), dim=1))
    assert result["layout"] == "lightly" and result["left_out"] == ["criterion.memory_bank.bank"]


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
])  # fmt: skip
def test_what_cannot_be_converted_says_why(case, message, tmp_path):
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
    if case != "missing file":
        lightning(path, state)
    done = call("convert.py", "--checkpoint", path, "--output", tmp_path / "o", *arguments, check=False, cwd=tmp_path)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "o").exists() and not (tmp_path / "evil.txt").exists()
