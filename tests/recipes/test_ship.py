"""ship.py: into half precision only if it costs nothing."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import simco_zoo
from simco_zoo.publishing.verify import verify
from tests.recipes.test_recipes import RECIPES, call, last_json

RUN = ["--dataset", "photos", "--limit", "160"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("skimage")
    folder = tmp_path_factory.mktemp("ship") / "run"
    shipped = simco_zoo.create_model("simco_r18_025", pretrained=True)
    (folder.parent / "log.csv").write_text("epoch\n1\n")
    versions = {"simco_zoo": "0.0.1", "torch": "1.0"}
    return simco_zoo.save_pretrained(
        shipped, folder, recipe={"epochs": 3}, metrics={"loss": 1.5, "knn_top1": 1.0}, tag="toy",
        log=folder.parent / "log.csv", hardware="a toy", versions=versions,
    )  # fmt: skip


def accuracy(name: str) -> float:
    model = simco_zoo.create_model(name, pretrained=True)
    train, test = (simco_zoo.extract_features(model, "photos", split=s, limit=160) for s in ("train", "test"))
    return simco_zoo.evaluation.knn(train.features, train.labels, test.features, test.labels, k=160)["top1"]


def test_harmless_rounding_ships_half_precision(folder, tmp_path):
    stated = ["--license", "apache-2.0", "--data-id", "org/toys"]
    result = last_json(call("ship.py", "--folder", folder, "--to", tmp_path, *RUN, *stated))
    target = tmp_path / "simco_r18_025.toy"
    assert result["folder"] == str(target)
    config = json.loads((target / "config.json").read_text())["simco_zoo"]
    loss = min(result["half_knn_top1_change"], result["half_linear_top1_change"])
    stored = load_file(target / "model.safetensors")["conv1.weight"].dtype
    assert result["half"] == (loss > -0.05) == (stored == torch.float16)
    assert all(check.problem is None for check in verify(target))
    assert config["metrics"]["knn_top1"] == pytest.approx(accuracy(f"local-dir:{target}"), abs=1e-3)
    assert config["versions"] == {"simco_zoo": "0.0.1", "torch": "1.0"} and config["hardware"] == "a toy"
    assert config["recipe"] == {"epochs": 3} and config["metrics"]["loss"] == 1.5
    assert (target / "log.csv").read_text() == "epoch\n1\n"
    card = ModelCard.load(target / "README.md").data
    assert card.license == "apache-2.0" and card.datasets == ["org/toys"]
    if result["half"]:
        assert f"changes kNN top-1 by {result['half_knn_top1_change']:+.2f}" in (target / "README.md").read_text()


def test_harmful_rounding_ships_fp32(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(RECIPES))
    ship = importlib.import_module("ship")
    monkeypatch.setattr(ship, "LARGEST_LOSS", -1000.0)  # whatever it costs is too much
    assert ship.main(["--folder", str(folder), "--to", str(tmp_path), *RUN]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not result["half"] and "half_knn_top1_change" not in result
    assert result["knn_top1"] == pytest.approx(accuracy(f"local-dir:{folder}"), abs=1e-3)
    target = tmp_path / "simco_r18_025.toy"
    assert (target / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert "half precision" not in (target / "README.md").read_text()


def test_weights_beyond_half_precision_ship_in_fp32(folder, tmp_path):
    """A tiny convolution and a huge factor of the next batch norm: the same network, but not in half precision."""
    model = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    conv, norm = model.backbone.conv1, model.backbone.bn1
    with torch.no_grad():
        small, before = 1e-8, norm.running_var + norm.eps
        conv.weight *= small
        norm.running_mean *= small
        norm.running_var *= small**2
        norm.weight *= ((norm.running_var + norm.eps) / before).sqrt() / small
    assert norm.weight.max() > 65504
    with pytest.raises(ValueError, match=r"bn1.weight has values beyond half precision's range"):
        simco_zoo.save_pretrained(model, tmp_path / "half", half=True)
    assert not (tmp_path / "half").exists()
    huge = simco_zoo.save_pretrained(model, tmp_path / "run", tag="toy")
    done = call("ship.py", "--folder", huge, "--to", tmp_path / "to", *RUN)
    assert not last_json(done)["half"] and "beyond half precision's range" in done.stdout
    stored = load_file(tmp_path / "to" / "simco_r18_025.toy" / "model.safetensors")
    assert torch.equal(stored["bn1.weight"], norm.weight)


def test_what_cannot_be_shipped(folder, tmp_path):
    no_tag = simco_zoo.create_model("simco_r18_025")
    no_tag.backbone.pretrained_cfg = {k: v for k, v in no_tag.pretrained_cfg.items() if k != "tag"}
    saved = simco_zoo.save_pretrained(no_tag, tmp_path / "run")
    done = call("ship.py", "--folder", saved, "--to", tmp_path, *RUN, check=False)
    assert done.returncode == 1 and "has no tag" in done.stderr and list(tmp_path.iterdir()) == [saved]
