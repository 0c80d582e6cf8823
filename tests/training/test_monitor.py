"""What is measured during a run: the online linear probe, the accuracies, TensorBoard's copy of the log."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import simco_zoo
from simco_zoo.evaluation import extract_features, knn
from simco_zoo.training import Pretraining, TrainingConfig, pretrain
from simco_zoo.training.checkpoint import list_checkpoints, load_checkpoint
from simco_zoo.training.interruption import Interrupted
from simco_zoo.training.online_probe import LR, OnlineProbe
from simco_zoo.training.optimizer import plan
from tests.training.test_pretrain import images, model

SETTINGS = {"epochs": 3, "batch_size": 8, "knn_every": 2, "linear": False, "progress_bar": False, "device": "cpu"}


def run(folder: Path, method: str = "simco", seed: int = 0, **settings) -> dict:
    pretrain(model(method, seed), images(), test_images=images(20), output=folder, **{**SETTINGS, **settings})
    return load_checkpoint(list_checkpoints(folder / "checkpoints")[-1])


@pytest.fixture(scope="module")
def probed(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("probed") / "run"
    return folder, run(folder, online_linear=True, seed=0)


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "log.csv").open()))


def test_it_changes_nothing_of_the_model(probed, tmp_path):
    plain = run(tmp_path / "plain")
    assert all(torch.equal(plain["model"][name], tensor) for name, tensor in probed[1]["model"].items())
    assert "online_top1" not in rows(tmp_path / "plain")[-1] or rows(tmp_path / "plain")[-1]["online_top1"] == ""


def test_its_accuracy_is_that_of_the_classifier_on_clean_images(probed):
    folder, state = probed
    weights = state["online_probe"]["classifier"]
    trained = simco_zoo.create_model(f"local-dir:{folder / 'last'}", pretrained=True)
    test = images(20)
    features = extract_features(trained, test).features
    scores = features.double() @ weights["weight"].double().T + weights["bias"].double()
    expected = 100 * (scores.argmax(dim=1) == test.labels).double().mean().item()
    assert [row["online_top1"] != "" for row in rows(folder)] == [False, True, True]
    assert float(rows(folder)[-1]["online_top1"]) == pytest.approx(expected)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["online_top1"] == pytest.approx(expected)
    assert summary["best_online_top1"] == max(float(row["online_top1"]) for row in rows(folder)[1:])
    assert summary["best_knn_top1"] == max(float(row["knn_top1"]) for row in rows(folder)[1:])
    assert summary["peak_memory_mb"] > 50  # torch alone takes more
    config = json.loads((folder / "last" / "config.json").read_text())
    assert config["simco_zoo"]["metrics"]["online_top1"] == pytest.approx(expected)
    assert "a linear classifier trained during the run" in (folder / "last" / "README.md").read_text()


@pytest.mark.parametrize("joint_bn", [True, False])
@pytest.mark.parametrize("method", ["simco", "simmoco"])
def test_a_step_is_sgd_on_the_features_of_the_query_views(method, joint_bn):
    network = model(method, joint_bn=joint_bn).train()
    config = TrainingConfig(warmup_epochs=0)
    probe = OnlineProbe(network, 2, config, plan(config, steps_per_epoch=5, start=0, end=100))
    before = {name: tensor.clone() for name, tensor in probe.classifier.state_dict().items()}
    generator = torch.Generator().manual_seed(3)
    view1, view2 = torch.randn(2, 8, 3, 16, 16, generator=generator)
    labels = torch.arange(8) % 2
    expected_of = model(method, joint_bn=joint_bn).train().backbone
    with torch.no_grad():
        if method == "simmoco":  # one-sided: view 2 passes the key encoder
            features, truth = expected_of(view1), labels
        elif joint_bn:
            features, truth = expected_of(torch.cat([view1, view2])), torch.cat([labels, labels])
        else:
            features = torch.cat([expected_of(view1), expected_of(view2)])
            truth = torch.cat([labels, labels])
    weight, bias = (before[name].double().requires_grad_() for name in ("weight", "bias"))
    loss = F.cross_entropy(features.double() @ weight.T + bias, truth)
    loss.backward()
    report = network.contrast(view1, view2, report_features=True)
    assert probe.step(report["features"], labels, 1).item() == pytest.approx(loss.item(), rel=1e-5)
    moved = probe.classifier.state_dict()
    for name, parameter in (("weight", weight), ("bias", bias)):
        torch.testing.assert_close(moved[name].double(), parameter.detach() - LR * parameter.grad, rtol=1e-4, atol=1e-6)


def test_interrupted_and_resumed_it_is_the_same(probed, tmp_path, monkeypatch):
    step = Pretraining.step

    def interrupted(self, *inputs):
        report = step(self, *inputs)
        if self.state.step == 7:
            signal.raise_signal(signal.SIGTERM)
        return report

    monkeypatch.setattr(Pretraining, "step", interrupted)
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", online_linear=True)
    monkeypatch.undo()
    resumed = run(tmp_path / "cut", online_linear=True, seed=0)
    for name, tensor in probed[1]["online_probe"]["classifier"].items():
        assert torch.equal(resumed["online_probe"]["classifier"][name], tensor), name


def test_gradients_accumulate_beside_it(tmp_path):
    state = run(tmp_path / "a", online_linear=True, accumulate=2)
    assert state["step"] == 6
    assert float(rows(tmp_path / "a")[-1]["online_top1"]) > 50


def test_without_labels_it_says_so(tmp_path):
    with pytest.raises(ValueError, match="online_linear needs labels"):
        pretrain(model(), images(labeled=False), output=tmp_path / "a", **SETTINGS, online_linear=True)


def test_the_knn_is_that_of_the_published_model(probed):
    trained = simco_zoo.create_model(f"local-dir:{probed[0] / 'last'}", pretrained=True)
    bank, test = images(), images(20)
    features = [extract_features(trained, part).features for part in (bank, test)]
    expected = knn(features[0], bank.labels, features[1], test.labels, k=40)["top1"]
    assert float(rows(probed[0])[-1]["knn_top1"]) == pytest.approx(expected)


def test_tensorboard_shows_the_log(probed, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = accumulator.EventAccumulator(str(probed[0] / "tensorboard"))
    shown.Reload()
    log = rows(probed[0])
    assert set(shown.Tags()["scalars"]) >= {"loss", "knn_top1", "online_top1", "effective_rank"}
    for name in shown.Tags()["scalars"]:
        expected = [(int(row["epoch"]), float(row[name])) for row in log if row[name] != ""]
        found = [(event.step, event.value) for event in shown.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in expected], name
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6), name
    run(tmp_path / "none", tensorboard=False, epochs=1)
    assert not (tmp_path / "none" / "tensorboard").exists()


def test_a_frozen_patch_embedding_stays_and_the_rest_moves(tmp_path):
    torch.manual_seed(0)
    vit = simco_zoo.create_model("simmoco", backbone="test_vit", small_stem=True, backbone_kwargs={"img_size": 16})
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    pretrain(vit, images(), output=tmp_path / "vit", **{**SETTINGS, "epochs": 1}, freeze_patch_embed=True)
    after = vit.state_dict()
    frozen = [name for name in before if "patch_embed." in name]
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(before["backbone.blocks.0.attn.qkv.weight"], after["backbone.blocks.0.attn.qkv.weight"])
    with pytest.raises(ValueError, match="no patch embedding"):
        pretrain(model(), images(), output=tmp_path / "resnet", **SETTINGS, freeze_patch_embed=True)
