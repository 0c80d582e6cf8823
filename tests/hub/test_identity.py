"""One identity for a folder: its config.json decides what is built, is verified itself, and what a call adds agrees."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import simco_zoo
from simco_zoo.hub import WeightsError, registry
from simco_zoo.hub import weights as hub_weights
from simco_zoo.publishing import renew_folder, save_pretrained
from simco_zoo.publishing.verify import verify
from tests.hub.folders import IMAGES, edit, make_old, read_config, rehash, rewrite, shaken


@pytest.fixture(scope="module")
def original():
    return shaken()


@pytest.fixture(scope="module")
def published_once(original, tmp_path_factory) -> Path:
    return save_pretrained(original, tmp_path_factory.mktemp("published") / "model", tag="toy")


@pytest.fixture
def folder(published_once, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(published_once, tmp_path / "model"))


@pytest.fixture(scope="module")
def free(tmp_path_factory) -> dict[str, Path]:
    """Folders of free backbones whose tensors fit several networks."""
    root = tmp_path_factory.mktemp("free")
    models = {
        "small": shaken("mocov2", backbone="resnet18d", small_stem=True, temperature=0.2, queue_size=64),
        "padded": shaken("simco", backbone="test_resnet", small_stem=True, stem_padding=2),
        "max": shaken("simco", backbone="test_resnet", global_pool="max", dt_m=4.0),
    }
    return {name: save_pretrained(model, root / name) for name, model in models.items()}


# The description decides


@pytest.mark.parametrize(("name", "call"), [
    ("small", {"name": "mocov2", "backbone": "resnet18d"}),
    ("small", {"name": "mocov2"}),
    ("padded", {"name": "simco", "backbone": "test_resnet"}),
    ("max", {"name": "simco", "backbone": "test_resnet"}),
])  # fmt: skip
def test_weights_are_loaded_into_the_network_they_were_published_as(name, call, free):
    expected = simco_zoo.create_model(f"local-dir:{free[name]}", pretrained=True).eval()
    found = simco_zoo.create_model(**call, weights=free[name]).eval()
    assert torch.equal(found(IMAGES), expected(IMAGES)) and torch.equal(found.project(IMAGES), expected.project(IMAGES))
    assert found.method_config() == expected.method_config() and found.model_args == expected.model_args


@pytest.mark.parametrize(("name", "call", "named"), [
    ("small", {"name": "simco", "backbone": "resnet18d"}, "the method is mocov2, not simco"),
    ("small", {"name": "mocov2", "backbone": "resnet18d", "small_stem": False}, "with the small-image stem"),
    ("small", {"name": "mocov2", "backbone": "resnet18"}, "the backbone is resnet18d, not resnet18"),
    ("padded", {"name": "simco", "backbone": "test_resnet", "stem_padding": 1}, "stem_padding is 2 as published, 1"),
    ("max", {"name": "simco", "backbone": "test_resnet", "global_pool": "avg"}, "global_pool is 'max' as published"),
    ("max", {"name": "simco", "backbone": "test_resnet", "small_stem": True}, "without the small-image stem"),
    ("max", {"name": "simco_r18"}, "architecture is test_resnet as published, simco_r18 as asked"),
    ("max", {"name": "simco", "backbone": "test_resnet", "act_layer": "gelu"}, "act_layer is None as published"),
    ("max", {"name": "simco", "proj_dim": 64}, "proj_dim is 128, not 64"),
])  # fmt: skip
def test_a_call_that_contradicts_the_folder_is_refused(name, call, named, free):
    with pytest.raises(WeightsError) as error:
        simco_zoo.create_model(**call, weights=free[name])
    assert named in str(error.value) and "local-dir:" in str(error.value)
    assert isinstance(error.value, ValueError) and len(str(error.value)) < 800


def test_the_folder_of_another_tag_is_refused(folder):
    with pytest.raises(WeightsError, match="the tag is toy, not cifar100"):
        simco_zoo.create_model("simco_r18_025.cifar100", weights=folder)


@pytest.mark.parametrize("call", [
    {"temperature": 0.5, "symmetric": False},
    {"num_classes": 4},
    {"in_chans": 1},
    {"drop_path_rate": 0.1},
    {"stem_padding": 1},
])  # fmt: skip
def test_settings_to_come_and_adaptations_may_differ(call, folder):
    model = simco_zoo.create_model("simco_r18_025", weights=folder, **call)
    assert all(model.method_config().get(key, value) == value for key, value in call.items())
    assert torch.equal(model.backbone.layer1[0].conv1.weight, load_file(folder / "model.safetensors")[
        "layer1.0.conv1.weight"])  # fmt: skip


def test_timm_refuses_another_network_too(folder, free):
    with pytest.raises(WeightsError, match="stem_padding is 1 as published, 2 as asked"):
        timm.create_model(f"local-dir:{folder}", pretrained=True, stem_padding=2)
    with pytest.raises(WeightsError, match="stem_padding is 2 as published, 1 as asked"):
        timm.create_model(f"local-dir:{free['padded']}", pretrained=True, stem_padding=1)
    overlay = {"file": str(folder / "model.safetensors"), "source": ""}
    with pytest.raises(WeightsError, match="architecture is simco_r18_025 as published, simco_r34 as asked"):
        timm.create_model("simco_r34", pretrained=True, pretrained_cfg_overlay=overlay)


def test_other_shapes_are_a_sentence_with_the_name_that_fits(folder, tmp_path):
    with pytest.raises(WeightsError) as error:
        simco_zoo.create_model("simco_r18", weights=folder)
    for part in ("simco_r18_025 as published", "conv1.weight is (16, 3, 3, 3) in the file and (64, 3, 3, 3)"):
        assert part in str(error.value)
    assert len(str(error.value)) < 700
    bare = shutil.copy(folder / "model.safetensors", tmp_path / "bare.safetensors")
    with pytest.raises(WeightsError) as error:
        simco_zoo.create_model("simco_r18", weights=bare)
    assert "(64, 3, 3, 3) in the model" in str(error.value) and "They fit simco_r18_025." in str(error.value)
    assert len(str(error.value)) < 700


# The bytes that are verified are the bytes that are loaded


@pytest.mark.parametrize("way", ["simco_zoo", "timm", "timm features_only", "simco_zoo features_only"])
@pytest.mark.parametrize("name", ["zoo", "free"])
def test_a_file_swapped_after_it_was_hashed_is_not_loaded(way, name, folder, free, tmp_path, monkeypatch):
    if name == "free":
        folder = Path(shutil.copytree(free["padded"], tmp_path / "free"))
    expected = load_file(folder / "model.safetensors")
    evil = tmp_path / "evil.safetensors"
    save_file({key: tensor + 1 for key, tensor in expected.items()}, evil)
    read = simco_zoo.hub.WeightsFolder.verified_bytes

    def swap(self, name="model.safetensors"):
        data = read(self, name)
        shutil.copy(evil, tmp_path / "next")
        os.replace(tmp_path / "next", folder / "model.safetensors")
        return data

    monkeypatch.setattr(simco_zoo.hub.WeightsFolder, "verified_bytes", swap)
    create = timm.create_model if way.startswith("timm") else simco_zoo.create_model
    loaded = create(f"local-dir:{folder}", pretrained=True, **({"features_only": True} if "features" in way else {}))
    found = getattr(loaded, "backbone", loaded).state_dict()
    key = "conv1.weight" if "conv1.weight" in found else "conv1.0.weight"
    assert torch.equal(found.get(key, found.get("conv1_0.weight")), expected[key])
    assert not torch.equal(load_file(folder / "model.safetensors")[key], expected[key])
    assert "state_dict" not in loaded.pretrained_cfg and not loaded.pretrained_cfg.get("file")


@pytest.mark.parametrize("name", ["small", "max"])
def test_feature_maps_are_verified(name, free, tmp_path):
    folder = Path(shutil.copytree(free[name], tmp_path / name))
    maps = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True, features_only=True).eval()
    expected = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True).eval().forward_intermediates(IMAGES)[1]
    torch.testing.assert_close(maps(IMAGES)[-1], expected[-1])
    rewrite(folder, lambda t: next(iter(t.values())).add_(1), honest=False)
    with pytest.raises(WeightsError, match="is damaged: its sha256 is"):
        simco_zoo.create_model(f"local-dir:{folder}", pretrained=True, features_only=True)


def test_a_folder_that_is_replaced_while_it_is_read_loads_whole(folder, original, monkeypatch):
    """Its config.json was read, then a run published again: the new config belongs to the new file."""
    other = shaken(seed=1)
    resolve, calls = hub_weights.resolve, []

    def replace_once(*args, **kwargs):
        found = resolve(*args, **kwargs)
        if not calls:
            save_pretrained(other, folder, tag="toy")
        calls.append(found)
        return found

    monkeypatch.setattr(hub_weights, "resolve", replace_once)
    model = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert len(calls) == 2 and torch.equal(model(IMAGES), other(IMAGES)) and not torch.equal(
        model(IMAGES), original(IMAGES))  # fmt: skip


# config.json


def test_any_edit_of_the_config_is_noticed(folder):
    for change in (
        lambda c: c["pretrained_cfg"].update(mean=[0.5, 0.5, 0.5]),
        lambda c: c["simco_zoo"]["method_config"].update(temperature=0.2),
        lambda c: c["simco_zoo"]["files"].update(projektor=c["simco_zoo"]["files"].pop("projector.safetensors")),
        lambda c: c.update(num_classes=1),
        lambda c: c["simco_zoo"].pop("config_sha256"),
        lambda c: c["simco_zoo"].update(config_sha256=None),
    ):
        edit(folder, change, honest=False)
        for create in (simco_zoo.create_model, timm.create_model):
            with pytest.raises(WeightsError, match=r"config\.json is damaged|is malformed|contradicts itself"):
                create(f"local-dir:{folder}", pretrained=True)
        with pytest.raises(WeightsError):
            verify(folder)
        shutil.rmtree(folder)
        save_pretrained(shaken(), folder)
    assert [check.problem for check in verify(folder) if check.problem] == []


def test_other_spellings_of_the_same_config_are_the_same(folder):
    config = read_config(folder)
    (folder / "config.json").write_text(json.dumps(dict(reversed(config.items())), indent=7))
    assert [check.problem for check in verify(folder) if check.problem] == []


def test_folders_of_an_earlier_version_load_with_a_warning_and_can_be_renewed(folder, original):
    make_old(folder)
    with pytest.warns(UserWarning, match=r"earlier version .*renew_folder\(") as warned:
        model = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(model(IMAGES), original(IMAGES)) and warned[0].filename == __file__
    weights = (folder / "model.safetensors").read_bytes()
    assert renew_folder(folder) == folder and (folder / "model.safetensors").read_bytes() == weights
    assert read_config(folder)["dtype"] == "float32" and "config_sha256" in read_config(folder)["simco_zoo"]
    assert {check.name for check in verify(folder)} >= {"config.json", "README.md"}
    again = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(again.project(IMAGES), original.project(IMAGES))


def test_a_folder_that_does_not_verify_is_not_renewed(folder):
    make_old(folder)
    edit(folder, lambda c: c["pretrained_cfg"].update(mean=[0.1, 0.1, 0.1]), honest=False)
    before = (folder / "config.json").read_bytes()
    with pytest.warns(UserWarning), pytest.raises(WeightsError, match=r"cannot be renewed.*of the features is off by"):
        renew_folder(folder)
    assert (folder / "config.json").read_bytes() == before


MALFORMED = {
    "model_args with features_only": (lambda c: c.update(model_args={"features_only": True}), "does not describe"),
    "model_args that load": (lambda c: c.update(model_args={"checkpoint_path": "/x"}), "does not describe"),
    "model_args that no network has": (lambda c: c.update(model_args={"no_such": 1}), "cannot be built"),
    "method is a list": (lambda c: c["simco_zoo"].update(method=[]), "method is .*has to be a text"),
    "unknown method": (lambda c: c["simco_zoo"].update(method="byol"), "method 'byol', which is not known"),
    "unknown setting": (lambda c: c["simco_zoo"]["method_config"].update(dtm=1), "dtm of the method simco is unknown"),
    "text for a number": (lambda c: c["simco_zoo"]["method_config"].update(temperature="0.1"), "another type"),
    "text for a bool": (lambda c: c["simco_zoo"]["method_config"].update(symmetric="false"), "another type"),
    "mean is a number": (lambda c: c["pretrained_cfg"].update(mean=0.5), "mean is 0.5, but has to be a list"),
    "std of zero": (lambda c: c["pretrained_cfg"].update(std=[0, 1, 1]), "positive numbers"),
    "unknown interpolation": (lambda c: c["pretrained_cfg"].update(interpolation="best"), "interpolation modes"),
    "another format": (lambda c: c["simco_zoo"].update(format=3), "needs a newer simco-zoo"),
    "unknown architecture": (lambda c: c.update(architecture="resnet18_99"), "cannot be built|Unknown model"),
    "classes that disagree": (lambda c: c.update(num_classes=3), "contradicts itself about its classes"),
    "a classifier that is not there": (
        lambda c: (c.update(num_classes=3), c["pretrained_cfg"].update(num_classes=3)), "has 0 classes, but its"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_config_is_named_even_with_the_right_hash(case, folder):
    change, message = MALFORMED[case]
    edit(folder, change)
    if case == "another format":  # seal writes its own
        config = read_config(folder)
        config["simco_zoo"]["format"] = 3
        config["simco_zoo"]["config_sha256"] = simco_zoo.hub.config.config_hash(config)
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=message) as error:
        simco_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    assert str(folder) in str(error.value)


LARGE = [f'{{"architecture": "simco_r18_025", "pretrained_cfg": {{"crop_pct": {n}}}}}' for n in ("9" * 400, "1e400")]


def test_hostile_json_is_named(folder):
    for text in ("[" * 100_000, '{"a":' * 50_000, "{}", "[]", "\x00", '{"architecture": NaN}', "9" * 5000, *LARGE):
        (folder / "config.json").write_text(text)
        with pytest.raises(WeightsError, match=r"config\.json"):
            simco_zoo.create_model(f"local-dir:{folder}", pretrained=True)


def test_a_folder_without_permission_is_named(folder, monkeypatch):
    def refuse(self, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(WeightsError, match="cannot be read"):
        simco_zoo.create_model(f"local-dir:{folder}", pretrained=True)


def test_the_home_folder_may_be_written_as_a_tilde(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert simco_zoo.create_model("local-dir:~/model", pretrained=True).num_features == 128
    assert simco_zoo.create_model("simco_r18_025", weights="~/model").num_features == 128


# Tensors


@pytest.mark.parametrize("bare", [False, True], ids=["folder", "bare file"])
@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.update({"conv1.weight": t["conv1.weight"].long()}), "conv1.weight as int64"),
    (lambda t: t.update({"conv1.weight": t["conv1.weight"] > 0}), "conv1.weight as bool"),
    (lambda t: t.update({"conv1.weight": t["conv1.weight"].to(torch.float8_e4m3fn)}), "conv1.weight as float8_e4m3fn"),
    (lambda t: t.update({"bn1.num_batches_tracked": torch.tensor(1.0)}), "bn1.num_batches_tracked as float32"),
    (lambda t: t["bn1.running_var"].neg_(), "negative variances in bn1.running_var"),
    (lambda t: t["bn1.weight"].fill_(float("inf")), "not finite numbers in bn1.weight"),
    (lambda t: t.update({"conv1.weight": t["conv1.weight"].double() * 1e300}), "not finite numbers in conv1.weight"),
    (lambda t: t.update({"conv1.weight": torch.zeros(16, 4, 3, 3)}), r"conv1.weight is \(16, 4, 3, 3\) in the file"),
    (lambda t: t.clear(), "holds no tensors"),
])  # fmt: skip
def test_values_that_no_network_has_are_named(change, message, bare, folder):
    rewrite(folder, change)
    ways = [lambda: timm.create_model(f"local-dir:{folder}", pretrained=True)]
    for more in ({}, {"num_classes": 3}, {"features_only": True}):
        ways += [lambda more=more: simco_zoo.create_model(f"local-dir:{folder}", pretrained=True, **more)]
    if bare:
        file = (folder / "model.safetensors").rename(folder.parent / "bare.safetensors")
        ways = [lambda: simco_zoo.create_model("simco_r18_025", weights=file)]
    for way in ways:
        with pytest.raises(WeightsError, match=message) as error:
            way()
        assert str(folder.parent) in str(error.value)


def test_half_precision_and_bfloat16_are_welcome(folder, original):
    rewrite(folder, lambda t: t.update({"conv1.weight": t["conv1.weight"].bfloat16()}))
    model = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert model.backbone.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(model(IMAGES), original(IMAGES), rtol=0.05, atol=0.05)


def test_a_projector_of_other_values_is_refused_too(folder):
    rewrite(folder, lambda t: t.update({"0.weight": t["0.weight"].long()}), "projector.safetensors")
    with pytest.raises(WeightsError, match=r"projector\.safetensors .*0\.weight as int64"):
        simco_zoo.create_model(f"local-dir:{folder}", pretrained=True)


# The projector


def test_projector_and_config_belong_together(folder, tmp_path):
    projector = (folder / "projector.safetensors").rename(tmp_path / "projector.safetensors")
    with pytest.raises(WeightsError, match=r"has no projector\.safetensors, but its config\.json names one"):
        simco_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    without = save_pretrained(shaken(), tmp_path / "without", projector=False)
    shutil.copy(projector, without)
    with pytest.raises(WeightsError, match=r"has a projector\.safetensors that its config\.json does not name"):
        simco_zoo.create_model(f"local-dir:{without}", pretrained=True)


@pytest.mark.parametrize("source", ["bare file", "folder without projector"])
def test_without_a_projector_there_are_features_but_no_projections(source, folder, original, tmp_path):
    if source == "bare file":
        path = shutil.copy(folder / "model.safetensors", tmp_path / "bare.safetensors")
    else:
        path = save_pretrained(original, tmp_path / "without", projector=False)
    model = simco_zoo.create_model("simco_r18_025", weights=path).eval()
    assert torch.equal(model(IMAGES), original(IMAGES))
    with pytest.raises(RuntimeError, match="has no projector"):
        model.project(IMAGES)
    loaded = simco_zoo.create_model("simco_r18_025", weights=path).eval()
    loaded.load_state_dict(original.state_dict())
    assert torch.equal(loaded.project(IMAGES), original.project(IMAGES))
    model.train().contrast(IMAGES, IMAGES)  # it is being trained
    assert model.eval().project(IMAGES).shape == (2, 128)


def test_a_bare_file_is_described_by_the_architecture(original, folder, tmp_path):
    """It says nothing of its input, which is not a reason to take it for 224 px and ImageNet's mean."""
    file = tmp_path / "bare.safetensors"
    save_file(load_file(folder / "model.safetensors"), file)
    fresh = simco_zoo.create_model("simco_r18_025")
    model = simco_zoo.create_model("simco_r18_025", weights=file)
    assert model.pretrained_cfg == fresh.pretrained_cfg and model.pretrained_cfg["input_size"] == (3, 32, 32)
    assert simco_zoo.create_model("simco_r18_025", weights=file, in_chans=1).pretrained_cfg["input_size"] == (1, 32, 32)
    free = simco_zoo.create_model("simco", backbone="test_resnet", num_classes=3)
    save_file(free.backbone.state_dict(), file)
    for count in (0, 3, 5):
        loaded = simco_zoo.create_model("simco", backbone="test_resnet", weights=file, num_classes=count)
        assert loaded.pretrained_cfg["input_size"] == free.pretrained_cfg["input_size"] and loaded.num_classes == count
        assert torch.equal(loaded.backbone.layer1[0].conv1.weight, free.backbone.layer1[0].conv1.weight)
        if count:
            assert torch.equal(loaded.get_classifier().weight[:3], free.get_classifier().weight) == (count == 3)
    zoo = shaken(num_classes=3)
    save_file(zoo.backbone.state_dict(), file)
    overlay = {"file": str(file)}
    timms = timm.create_model("simco_r18_025", pretrained=True, num_classes=3, pretrained_cfg_overlay=overlay)
    assert torch.equal(timms.fc.weight, zoo.backbone.fc.weight)


@pytest.mark.parametrize(("call", "message"), [
    ({"pretrained": "folder"}, "pass a path as weights="),
    ({"name": None}, "name is None, but has to be a text"),
    ({"name": Path("simco_r18")}, "but has to be a text"),
    ({"weights": 3}, "weights is 3, but has to be a path"),
    ({"name": "simco", "backbone": ["resnet18"]}, "has to be timm's name of a backbone"),
    ({"name": "simco", "backbone": "test_resnet", "small_stem": "yes"}, "has to be True or False"),
    ({"backbone_kwargs": ["act_layer"]}, "has to be a dict"),
    ({"features_only": "yes"}, "has to be True or False"),
    ({"features_only": True, "out_indices": (9,)}, r"no feature maps \(9,\)"),
])  # fmt: skip
def test_arguments_of_another_type_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        simco_zoo.create_model(**{"name": "simco_r18_025", **call})


def test_an_activation_may_be_given_as_a_class(tmp_path):
    model = simco_zoo.create_model("simco", backbone="test_vit", act_layer=torch.nn.GELU)
    folder = save_pretrained(model, tmp_path / "m")
    assert read_config(folder)["model_args"] == {"act_layer": "gelu"}
    for asked in ("gelu", torch.nn.GELU):
        simco_zoo.create_model("simco", backbone="test_vit", weights=folder, act_layer=asked)
    with pytest.raises(WeightsError, match="'gelu' as published, 'relu' as asked"):
        simco_zoo.create_model("simco", backbone="test_vit", weights=folder, act_layer=torch.nn.ReLU)
    model = simco_zoo.create_model("simco", backbone="test_vit", norm_layer=torch.nn.LayerNorm)
    with pytest.raises(ValueError, match=r"config\.json cannot hold"):
        save_pretrained(model, tmp_path / "n")


# What ships


def test_damaged_entries_do_not_break_the_import(tmp_path):
    code = """
import pathlib, sys
plain, text = pathlib.Path.read_bytes, pathlib.Path.read_text
def read_text(self, *args, **kwargs):
    return "{" * (self.name == "registry.json") + text(self, *args, **kwargs)
def read_bytes(self):
    data = plain(self)
    return data.replace(b"0.4914", b"0.4915") if self.parent.name.endswith(".cifar100") else data
pathlib.Path.read_bytes, pathlib.Path.read_text = read_bytes, read_text
import simco_zoo
assert simco_zoo.list_models(pretrained=True) == ["simco_r18_025.cifar10"] and len(simco_zoo.list_models()) > 10
for name in ("simco_r18_025", "simco_r18_025.cifar100", "simco_r34"):
    try:
        simco_zoo.create_model(name, pretrained=True)
    except simco_zoo.hub.WeightsError as error:
        print(error)
import timm
assert "simco_r18_025.cifar100" not in timm.list_models("simco*", pretrained=True)
try:
    timm.create_model("simco_r18_025", pretrained=True)
except simco_zoo.hub.WeightsError as error:
    print(error)
assert timm.create_model("simco_r18_025.cifar10", pretrained=True).num_features == 128
assert timm.create_model("simco_r18_025").num_features == 128
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert "config.json is damaged or was edited" in lines[0] and lines[1] == lines[0]
    assert "registry.json cannot be read" in lines[2] and lines[3] == lines[0]


@pytest.mark.parametrize(("entry", "message"), [
    ({"repo_id": "org/x", "revision": "main", "config": {}}, "pins simco_r34.x to 'main', which can move"),
    ({"repo_id": "org/x", "revision": "a" * 40}, "is not a config.json"),
    ({"repo_id": 3, "revision": "a" * 40}, "is malformed"),
    ("text", "is malformed"),
])  # fmt: skip
def test_a_bad_registry_entry_is_named_when_it_is_asked_for(entry, message, tmp_path, monkeypatch):
    (tmp_path / "registry.json").write_text(json.dumps({"simco_r34.x": entry}))
    monkeypatch.setattr(registry, "REGISTRY", tmp_path / "registry.json")
    assert "simco_r34.x" not in registry.published() and message in registry.damaged()["simco_r34.x"]
    with pytest.raises(WeightsError, match=message):
        simco_zoo.create_model("simco_r34.x", pretrained=True)
    assert simco_zoo.create_model("simco_r18_025", pretrained=True).num_features == 128


def test_names_that_are_nearly_right_get_a_hint(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    for name, hint in {
        "simco_r18_O25": "did you mean simco_r18_025",
        "model": "create_model('local-dir:model'",
        "org/name": "'hf-hub:org/name'",
        "resnet18": "create_model('simco', backbone='resnet18')",
        "simc": "did you mean simco",
    }.items():
        with pytest.raises(ValueError, match=r"there is no model|has no source prefix") as error:
            simco_zoo.create_model(name)
        assert hint in str(error.value)
    with pytest.raises(WeightsError) as refused:
        simco_zoo.create_model("simco_r34", pretrained=True)
    metrics = registry.published()["simco_r18.cifar100"].config["simco_zoo"]["metrics"]
    accuracy = f"(kNN {metrics['knn_top1']:.1f} % on cifar100)"
    assert f'simco_r18 has {accuracy}: create_model("simco_r18", pretrained=True)' in str(refused.value)


# Links


def test_links_lead_out_only_within_a_cache_of_the_hub(folder, tmp_path):
    def linked(home: Path) -> Path:
        home.mkdir(parents=True)
        blobs = home.parent.parent / "blobs"
        blobs.mkdir()
        for path in folder.iterdir():
            shutil.copy(path, blobs / path.name)
            (home / path.name).symlink_to(blobs / path.name)
        return home

    cached = linked(tmp_path / "models--org--name" / "snapshots" / ("a" * 40))
    assert simco_zoo.create_model(f"local-dir:{cached}", pretrained=True).num_features == 128
    with pytest.raises(WeightsError, match="leads out of its folder"):
        simco_zoo.create_model(f"local-dir:{linked(tmp_path / 'x' / 'y' / 't')}", pretrained=True)


# verify


def finetuned(folder: Path) -> Path:
    model = shaken(num_classes=3)
    model.backbone.pretrained_cfg = {**model.pretrained_cfg, "label_names": ["ant", "bee", "cat"]}
    return save_pretrained(model, folder, log=__file__, projector=False)


def test_class_names_stand_where_transformers_looks_for_them(tmp_path):
    config = read_config(finetuned(tmp_path / "f"))
    assert config["id2label"] == {"0": "ant", "1": "bee", "2": "cat"} and config["label_names"] == ["ant", "bee", "cat"]
    assert [check.problem for check in verify(tmp_path / "f") if check.problem] == []
    model = shaken(num_classes=2)
    model.backbone.pretrained_cfg = {**model.pretrained_cfg, "label_names": ["ant"]}
    with pytest.raises(ValueError, match="label_names has 1 names, but the model has 2 classes"):
        save_pretrained(model, tmp_path / "g")


VERIFIED = {
    "too few names": lambda f: edit(f, lambda c: c["pretrained_cfg"]["label_names"].pop()),
    "permuted names": lambda f: edit(f, lambda c: c["label_names"].reverse()),
    "permuted id2label": lambda f: edit(f, lambda c: c["id2label"].update({"0": "bee", "1": "ant"})),
    "another num_features": lambda f: edit(f, lambda c: c.update(num_features=64)),
    "a permuted classifier": lambda f: rewrite(f, lambda t: t.update({"fc.weight": t["fc.weight"].flip(0)})),
    "an edited log": lambda f: (f / "log.csv").write_text("epoch\n"),
    "a missing log": lambda f: (f / "log.csv").unlink(),
    "a missing card": lambda f: (f / "README.md").unlink(),
    "other settings": lambda f: edit(f, lambda c: c["simco_zoo"]["method_config"].pop("temperature")),
}


@pytest.mark.parametrize("case", [case for case in VERIFIED if case != "other settings"])
def test_verify_sees_what_does_not_stop_a_load(case, tmp_path):
    folder = finetuned(tmp_path / "f")
    VERIFIED[case](folder)
    try:
        problems = [check.problem for check in verify(folder) if check.problem]
    except WeightsError as error:
        problems = [str(error)]
    assert len(problems) == 1, problems


def test_verify_says_that_a_card_was_edited(tmp_path):
    folder = finetuned(tmp_path / "f")
    (folder / "README.md").write_text("# My words\n")
    checks = {check.name: check for check in verify(folder)}
    assert checks["README.md"].problem is None and "was edited by hand" in checks["README.md"].note


def test_verify_builds_the_projector(folder):
    rewrite(folder, lambda t: t.update({"2.weight": torch.zeros(64, 128), "2.bias": torch.zeros(64)}), (
        "projector.safetensors"))  # fmt: skip
    rehash(folder, "projector.safetensors")
    problems = [check.problem for check in verify(folder) if check.problem]
    assert len(problems) == 1 and "the projector of" in problems[0]


def test_a_model_says_what_it_was_loaded_from(folder, free, tmp_path):
    bare = shutil.copy(folder / "model.safetensors", tmp_path / "bare.safetensors")
    for source, expected in (
        (folder, "simco_r18_025.toy"), (free["small"], "mocov2-resnet18d"), (free["max"], "simco-test_resnet"),
    ):  # fmt: skip
        assert simco_zoo.create_model(f"local-dir:{source}", pretrained=True).loaded_from == expected
        assert simco_zoo.create_model(f"local-dir:{source}").loaded_from == ""
    assert simco_zoo.create_model("simco_r18_025", weights=bare).loaded_from == "bare.safetensors"
    assert simco_zoo.create_model("simco_r18_025", pretrained=True).loaded_from == "simco_r18_025.cifar100"
