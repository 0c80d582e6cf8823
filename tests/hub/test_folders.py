"""Published folders: what is written, every door that loads it, and everything that must be refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import simco_zoo
from simco_zoo.hub import WeightsError, published
from simco_zoo.publishing import save_pretrained
from simco_zoo.publishing.card import model_card
from simco_zoo.publishing.fingerprint import compare_fingerprints, fingerprint, pseudo_image
from simco_zoo.publishing.verify import verify
from tests.hub.folders import IMAGES, describe, edit, rehash, rewrite, shaken


@pytest.fixture(scope="module")
def original():
    return shaken()


@pytest.fixture(scope="module")
def published_once(original, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "model"
    return save_pretrained(original, folder, data={"name": "toy", "split": "train", "images": 10, "image_size": 32})


@pytest.fixture
def folder(published_once, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(published_once, tmp_path / "model"))


DOORS = {
    "simco_zoo": lambda f: simco_zoo.create_model(f"local-dir:{f}", pretrained=True),
    "simco_zoo, weights=": lambda f: simco_zoo.create_model("simco_r18_025", weights=f),
    "timm": lambda f: timm.create_model(f"local-dir:{f}", pretrained=True),
    "timm, num_classes": lambda f: timm.create_model(f"local-dir:{f}", pretrained=True, num_classes=10),
    "timm, features_only": lambda f: timm.create_model(f"local-dir:{f}", pretrained=True, features_only=True),
    "torch.hub": lambda f: torch.hub.load(
        str(Path(__file__).parents[2]), "simco_r18_025", source="local", weights=str(f), verbose=False
    ),
}


@pytest.mark.parametrize("door", DOORS)
def test_every_door_gives_the_same_weights(door, original, published_once):
    loaded = DOORS[door](published_once)
    backbone = getattr(loaded, "backbone", loaded)
    expected = original.backbone.state_dict()
    found = backbone.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    if hasattr(loaded, "project"):
        assert torch.equal(loaded.eval().project(IMAGES), original.project(IMAGES))


def test_transformers_reads_the_folder(original, published_once):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(published_once).eval()
    torch.testing.assert_close(model(IMAGES).pooler_output, original(IMAGES), rtol=1e-5, atol=1e-5)
    processor = transformers.AutoImageProcessor.from_pretrained(published_once)
    assert tuple(processor.data_config["mean"]) == tuple(original.pretrained_cfg["mean"])
    pipe = transformers.pipeline("image-feature-extraction", model=str(published_once))
    image = pseudo_image(48)
    transform = simco_zoo.data.resolve_transform(original)
    expected = original(transform(image)[None])
    torch.testing.assert_close(torch.tensor(pipe(image, pool=True)), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["simco_r18_025", "mocov2_r34", "simmoco_r50"])
def test_remote_code_builds_the_same_network(name, tmp_path):
    """In a process without simco_zoo; the features of a formula-made input are compared."""
    model = shaken(name)
    folder = save_pretrained(model, tmp_path / "m", remote_code=True)
    code = f"""
import json, sys, torch, transformers
model = transformers.AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True).eval()
assert "simco_zoo" not in sys.modules
print(json.dumps(model(torch.linspace(-1, 1, 3072).view(1, 3, 32, 32)).pooler_output[0].tolist()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "HF_HOME": str(tmp_path / "h")}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    features = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    torch.testing.assert_close(features, model(torch.linspace(-1, 1, 3072).view(1, 3, 32, 32))[0], rtol=1e-4, atol=1e-4)


def test_remote_code_only_where_there_is_some(tmp_path):
    model = simco_zoo.create_model("simco", backbone="test_resnet", small_stem=True)
    with pytest.raises(ValueError, match="no remote code for small_stem"):
        save_pretrained(model, tmp_path / "m", remote_code=True)
    assert list(tmp_path.iterdir()) == []


def test_plain_torchvision_reads_a_resnet18(tmp_path):
    """The three lines in the card, without this package."""
    from torchvision.models import resnet18

    model = shaken("simmoco_r18")
    folder = save_pretrained(model, tmp_path / "m")
    plain = resnet18()
    plain.conv1, plain.maxpool, plain.fc = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity(), nn.Identity()
    plain.load_state_dict(load_file(folder / "model.safetensors"))
    torch.testing.assert_close(plain.eval()(IMAGES), model(IMAGES))


@pytest.mark.parametrize(("name", "kwargs"), [
    ("simco_r18_025", {}),
    ("mocov2_r34", {}),
    ("simco_r50", {"stem_padding": 2}),
])  # fmt: skip
def test_the_lines_in_the_card_work_without_this_package(name, kwargs, tmp_path, monkeypatch):
    model = shaken(name, **kwargs)
    monkeypatch.chdir(save_pretrained(model, tmp_path / "m"))
    lines = Path("README.md").read_text().split("Without this package")[1].split("```python\n")[1].split("```")[0]
    assert "simco" not in lines
    known: dict = {}
    exec(lines, known)
    torch.testing.assert_close(known["resnet"].eval()(IMAGES), model(IMAGES))


@pytest.mark.parametrize("changed", [{"num_classes": 5}, {"global_pool": "max"}])
def test_a_changed_network_has_no_such_lines(changed, tmp_path):
    folder = save_pretrained(shaken("simco_r18", **changed), tmp_path / "m")
    assert "Without this package" not in (folder / "README.md").read_text()


PAIRS = {(32, 64): (32, 64), 64: (64, 64)}


@pytest.mark.parametrize(("name", "kwargs"), [
    ("simco", {"backbone": "test_convnext", "backbone_kwargs": {"drop_path_rate": 0.1}}),
    ("mocov1", {"backbone": "test_resnet", "small_stem": True}),
    ("mocov2", {"backbone": "test_vit", "proj_hidden_dim": 32, "proj_dim": 16, "queue_size": 64}),
    ("simco", {"backbone": "test_vit", "backbone_kwargs": {"img_size": (32, 64)}}),
    ("simco", {"backbone": "vit_tiny_patch16_224", "small_stem": True, "img_size": 64, "depth": 1}),
    ("simco", {"backbone": "test_resnet", "in_chans": 4}),
    ("simmoco_r18", {"in_chans": 1, "num_classes": 5, "dt_m": 4.0}),
    ("simco_r18_025", {"global_pool": "max", "temperature": 0.2}),
])  # fmt: skip
def test_other_models_come_back_whole(name, kwargs, tmp_path):
    model = shaken(name, **kwargs)
    folder = save_pretrained(model, tmp_path / "m")
    loaded = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True).eval()
    size = model.pretrained_cfg["input_size"]
    asked = {**kwargs, **kwargs.get("backbone_kwargs", {})}
    assert size[0] == asked.get("in_chans", 3) and size[1:] == PAIRS.get(asked.get("img_size"), size[1:])
    x = torch.randn(2, *size)
    assert torch.equal(loaded(x), model(x)) and torch.equal(loaded.project(x), model.project(x))
    assert loaded.method == model.method and loaded.method_config() == model.method_config()
    # timm before 1.0.30 cannot choose between two .safetensors files; our own names do not go that way
    if tuple(map(int, timm.__version__.split(".")[:3])) >= (1, 0, 30) or model.architecture in timm.list_models(
        "*moco*"
    ):
        assert torch.equal(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(x), model(x))
    assert all(check.problem is None for check in verify(folder))
    again = save_pretrained(loaded, tmp_path / "n")
    for file in ("model.safetensors", "projector.safetensors", "config.json", "README.md"):
        assert (again / file).read_bytes() == (folder / file).read_bytes(), file


@pytest.mark.parametrize("published", [1, 3, 4])
@pytest.mark.parametrize("asked", [1, 2, 3])
def test_other_channels_are_adapted_as_timm_does(published, asked, tmp_path):
    first = simco_zoo.create_model("simco", backbone="test_resnet", in_chans=published)
    folder = save_pretrained(first, tmp_path / "m")
    model = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True, in_chans=asked).eval()
    timms = timm.create_model(f"local-dir:{folder}", pretrained=True, in_chans=asked).eval()
    assert model.pretrained_cfg["input_size"][0] == asked
    images = torch.randn(2, asked, 32, 32)
    assert torch.equal(model(images), timms(images))
    if asked == 1:
        weight = first.backbone.conv1[0].weight.data.sum(dim=1, keepdim=True)
        torch.testing.assert_close(model.backbone.conv1[0].weight.data, weight)


def test_a_stem_that_cannot_be_adapted_is_an_error(tmp_path):
    model = simco_zoo.create_model("simco", backbone="tresnet_m").eval()  # its first convolution sees 4 x 4 pixels
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2048)
    folder = save_pretrained(model, tmp_path / "m")
    gray = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True, in_chans=1)
    assert gray(torch.zeros(2, 1, 32, 32)).shape == (2, 2048)
    with pytest.raises(WeightsError, match=r"do not fit tresnet_m: body\.conv1\.conv\.weight is"):
        simco_zoo.create_model(f"local-dir:{folder}", pretrained=True, in_chans=4)


@pytest.mark.parametrize("stated", [{}, {"img_size": 96}])
def test_position_embeddings_are_interpolated_as_timm_does(stated, tmp_path):
    folder = save_pretrained(simco_zoo.create_model("simco", backbone="test_vit", **stated), tmp_path / "m")
    model = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True, img_size=(48, 64)).eval()
    timms = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=(48, 64)).eval()
    images = torch.randn(2, 3, 48, 64)
    assert model.pretrained_cfg["input_size"] == (3, 48, 64) and torch.equal(model(images), timms(images))
    again = simco_zoo.create_model(f"local-dir:{save_pretrained(model, tmp_path / 'n')}", pretrained=True).eval()
    assert torch.equal(again(images), model(images))


def test_without_pretrained_only_the_architecture_is_built(published_once, original):
    torch.manual_seed(1)
    fresh = simco_zoo.create_model(f"local-dir:{published_once}")
    assert not torch.equal(fresh.backbone.conv1.weight, original.backbone.conv1.weight)


def test_a_fresh_classifier_on_the_whole_backbone(published_once, original):
    model = simco_zoo.create_model(f"local-dir:{published_once}", pretrained=True, num_classes=4).eval()
    assert model(IMAGES).shape == (2, 4)
    assert torch.equal(model.forward_head(model.forward_features(IMAGES), pre_logits=True), original(IMAGES))


def test_half_precision_keeps_statistics(original, tmp_path):
    folder = save_pretrained(original, tmp_path / "half", half=True)
    tensors = load_file(folder / "model.safetensors")
    assert tensors["conv1.weight"].dtype == torch.float16 and tensors["bn1.running_var"].dtype == torch.float32
    loaded = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert loaded.backbone.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(loaded(IMAGES), original(IMAGES), rtol=2e-2, atol=2e-2)
    assert all(check.problem is None for check in verify(folder))


def test_config_and_card(published_once):
    from huggingface_hub import ModelCard

    config = json.loads((published_once / "config.json").read_text())
    assert config["architecture"] == "simco_r18_025" and "num_classes" not in config.get("model_args", {})
    assert set(config["pretrained_cfg"]) <= set(timm.models.PretrainedCfg.__dataclass_fields__)
    for name in ("model.safetensors", "projector.safetensors"):
        assert config["simco_zoo"]["files"][name] == describe((published_once / name).read_bytes())
    card = ModelCard.load(published_once / "README.md")
    assert card.data.license is None and card.data.pipeline_tag == "image-feature-extraction"
    assert "tau_alpha 0.1, tau_beta 1" in card.text
    keys = set(load_file(published_once / "model.safetensors"))
    assert not any(key.startswith(("backbone.", "projector.", "key_encoder.", "fc.")) for key in keys)


def test_a_folder_of_something_else_is_not_overwritten(original, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not a published folder"):
        save_pretrained(original, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_a_failed_save_leaves_the_old_folder_whole(folder, original, monkeypatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"there is no space left to write .*model; make room there"):
        save_pretrained(shaken(seed=1), folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


# Damage: for each kind, the sentence that names it, by every door


def flip_bytes(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-100:-84] = bytes(b ^ 0x40 for b in content[-100:-84])
    (folder / "model.safetensors").write_bytes(content)


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def absurd_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    rehash(folder)


def broken_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 8) + b"nojson!!")
    rehash(folder)


def disguised_pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"conv1.weight": [1.0]}))
    rehash(folder)


def missing_key(folder: Path) -> None:
    rewrite(folder, lambda t: t.pop("layer3.0.conv1.weight"))


def renamed_keys(folder: Path) -> None:
    def rename(tensors):
        for name in list(tensors):
            tensors[f"backbone.{name}"] = tensors.pop(name)

    rewrite(folder, rename)


def extra_key(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"projector.0.weight": torch.zeros(3)}))


def wrong_shape(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"layer2.0.bn1.weight": torch.ones(7)}))


def missing_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_hash(folder: Path) -> None:
    edit(folder, lambda c: c["simco_zoo"]["files"]["model.safetensors"].pop("sha256"))


def outside(folder: Path) -> None:
    edit(folder, lambda c: c["simco_zoo"]["files"].update({"../other.safetensors": {"sha256": "", "size": 1}}))


def link_outside(folder: Path) -> None:
    target = folder.parent / "elsewhere.safetensors"
    (folder / "model.safetensors").rename(target)
    (folder / "model.safetensors").symlink_to(target)


def other_architecture(folder: Path) -> None:
    edit(folder, lambda c: c.update(architecture="simmoco_r34"))


DAMAGE = {
    flip_bytes: "is damaged: its sha256 is",
    cut: "is damaged: its sha256 is",
    absurd_header: "is not a readable safetensors file",
    broken_header: "is not a readable safetensors file",
    disguised_pickle: "is not a readable safetensors file",
    missing_key: r"missing layer3\.0\.conv1\.weight",
    renamed_keys: r"missing bn1\.bias.*left over backbone\.bn1\.bias",
    extra_key: r"left over projector\.0\.weight",
    wrong_shape: r"layer2.0.bn1.weight is \(7,\) in the file and \(32,\) in the model",
    missing_file: "has no model.safetensors",
    no_hash: "gives no sha256",
    outside: "points to '../other.safetensors' outside its folder",
    link_outside: "leads out of its folder",
    other_architecture: "do not fit simmoco_r34|architecture is simmoco_r34 as published, simco_r18_025 as asked",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda d: d.__name__)
@pytest.mark.parametrize("door", [door for door in DOORS if door != "torch.hub"])
def test_damage_is_refused(damage, door, folder):
    damage(folder)
    with pytest.raises(WeightsError, match=DAMAGE[damage]) as error:
        DOORS[door](folder)
    assert len(str(error.value)) < 700 and "\n" not in str(error.value)


def test_a_damaged_projector_is_refused(folder):
    rewrite(folder, lambda t: t["0.weight"].add_(1), "projector.safetensors", honest=False)
    with pytest.raises(WeightsError, match=r"projector\.safetensors.* is damaged"):
        simco_zoo.create_model(f"local-dir:{folder}", pretrained=True)


def test_another_projector_is_refused(folder):
    with pytest.raises(WeightsError, match="leave proj_hidden_dim and proj_dim"):
        simco_zoo.create_model(f"local-dir:{folder}", pretrained=True, proj_dim=64)


@pytest.mark.parametrize(("damage", "named"), [
    (lambda t: t["layer1.0.conv1.weight"].view(-1)[:3].fill_(float("nan")), "not finite: layer1.0.conv1.weight"),
    (lambda t: t["layer4.1.conv2.weight"].mul_(1.1), "of the features is off by"),
    (lambda t: t["bn1.running_mean"].zero_(), "of the features is off by"),
])  # fmt: skip
def test_verify_sees_what_hashes_cannot(folder, damage, named):
    import re

    assert [check.problem for check in verify(folder) if check.problem] == []
    rewrite(folder, damage)
    problems = [check.problem for check in verify(folder) if check.problem]
    assert len(problems) == 1 and re.search(named, problems[0])


@pytest.mark.parametrize("path", [Path("nowhere/last"), "./nowhere", "/nowhere", "~/nowhere"])
def test_verify_names_a_folder_that_is_not_there(path):
    with pytest.raises(WeightsError, match=r"there is no file or folder .*nowhere"):
        verify(path)


@pytest.mark.parametrize("change", [
    {"interpolation": "nearest"},
    {"mean": [0.5, 0.5, 0.5]},
    {"crop_pct": 0.8},
])  # fmt: skip
def test_verify_sees_a_wrong_transform(folder, change):
    edit(folder, lambda c: c["pretrained_cfg"].update(change))
    assert any(check.name == "fingerprint" and check.problem for check in verify(folder))


def test_fingerprint_of_a_wrong_stem(original):
    other = simco_zoo.create_model("simco_r18_025", stem_padding=2).eval()
    other.backbone.load_state_dict(original.backbone.state_dict())
    assert compare_fingerprints(fingerprint(original), fingerprint(original)) is None
    assert compare_fingerprints(fingerprint(original), fingerprint(other)) is not None


def test_missing_paths_and_wrong_files(tmp_path):
    with pytest.raises(WeightsError, match="there is no file or folder"):
        simco_zoo.create_model("simco_r18", weights=tmp_path / "nothing")
    (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"not a \.safetensors file"):
        simco_zoo.create_model("simco_r18", weights=tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"has no config\.json"):
        simco_zoo.create_model(f"local-dir:{tmp_path}", pretrained=True)
    with pytest.raises(WeightsError, match="simmoco_r50 has no published weights yet"):
        simco_zoo.create_model("simmoco_r50", pretrained=True)
    with pytest.raises((WeightsError, RuntimeError), match=r"no published weights|No pretrained"):
        timm.create_model("simmoco_r50", pretrained=True)


def test_a_bare_file_loads_strictly(published_once, original, tmp_path):
    bare = shutil.copy(published_once / "model.safetensors", tmp_path / "bare.safetensors")
    model = simco_zoo.create_model("simco_r18_025", weights=bare).eval()
    assert torch.equal(model(IMAGES), original(IMAGES))
    with pytest.raises(WeightsError, match="do not fit simco_r34"):
        simco_zoo.create_model("simco_r34", weights=bare)


def test_a_folder_of_timm_is_named_as_such(tmp_path):
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("test_resnet"), tmp_path, safe_serialization=True)
    with (
        pytest.raises(ValueError, match="was not published by simco-zoo"),
        pytest.warns(UserWarning, match="unverified"),
    ):
        simco_zoo.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_the_shipped_cards_are_those_of_their_configs():
    """A stale one is made again with simco_zoo.publishing.card.model_card(config)."""
    shipped = [entry for entry in published().values() if entry.folder]
    assert shipped
    for entry in shipped:
        assert (entry.folder / "README.md").read_text(encoding="utf-8") == model_card(entry.config)
