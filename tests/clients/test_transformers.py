"""transformers reads our folders, fine-tunes them with its Trainer, and what it saves loads here again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import simco_zoo
from simco_zoo.hub import WeightsError
from simco_zoo.hub.registry import published
from simco_zoo.publishing import save_pretrained
from simco_zoo.publishing.verify import verify
from tests.hub.folders import IMAGES, rewrite, shaken

transformers = pytest.importorskip("transformers")
SHIPPED = published()["simco_r18_025.cifar100"].folder


def colors(count: int, seed: int) -> list[dict[str, torch.Tensor | int]]:
    """Noisy images of four colors; few steps are enough to tell them apart."""
    generator = torch.Generator().manual_seed(seed)
    hues = torch.tensor([[1.5, -1.5, -1.5], [-1.5, 1.5, -1.5], [-1.5, -1.5, 1.5], [1.5, 1.5, -1.5]])
    labels = torch.arange(count) % 4
    images = hues[labels][:, :, None, None] + torch.randn(count, 3, 32, 32, generator=generator)
    return [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]


def finetune(output: Path, **keywords: object) -> tuple[nn.Module, float, float]:
    """Fine-tunes the shipped model for 40 steps; returns it, its last loss and its accuracy in percent."""
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    torch.manual_seed(0)
    model = transformers.AutoModelForImageClassification.from_pretrained(SHIPPED, num_labels=4, **keywords)
    settings = transformers.TrainingArguments(
        output_dir=str(output), max_steps=40, per_device_train_batch_size=16, learning_rate=1e-3, report_to=[],
        save_strategy="no", logging_steps=1, disable_tqdm=True, use_cpu=True, seed=0,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=settings, train_dataset=colors(160, 0), eval_dataset=colors(80, 1))
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    predictions = trainer.predict(colors(80, 1)).predictions.argmax(axis=1)
    right = sum(int(p) == image["labels"] for p, image in zip(predictions, colors(80, 1), strict=True))
    return model, losses[-1], 100 * right / 80


def test_forty_steps_of_the_trainer(tmp_path):
    """The shipped weights are stored in half precision; they are trained in single precision all the same."""
    model, loss, accuracy = finetune(tmp_path)
    assert next(model.parameters()).dtype == torch.float32
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters()) and loss < 0.7
    explicit, _, expected = finetune(tmp_path, dtype=torch.float32)
    assert accuracy == expected and accuracy > 90
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, explicit.state_dict()[name]), name


def test_a_folder_in_half_precision_gives_the_same_features_everywhere():
    ours = simco_zoo.create_model("simco_r18_025", pretrained=True).eval()
    theirs = transformers.AutoModel.from_pretrained(SHIPPED).eval()
    timms = timm.create_model("simco_r18_025", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(theirs(IMAGES).pooler_output, ours(IMAGES)) and torch.equal(timms(IMAGES), ours(IMAGES))


def finetuned_by_transformers(folder: Path) -> nn.Module:
    model = transformers.AutoModelForImageClassification.from_pretrained(SHIPPED, num_labels=3)
    model.config.id2label = {0: "ant", 1: "bee", 2: "cat"}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save_pretrained(folder)
    return model.eval()


def test_what_transformers_saved_loads_here_with_its_classifier(tmp_path):
    theirs = finetuned_by_transformers(tmp_path / "tf")
    expected = theirs(IMAGES).logits
    with pytest.warns(UserWarning, match="was saved by transformers"):
        ours = simco_zoo.create_model(f"local-dir:{tmp_path / 'tf'}", pretrained=True).eval()
    torch.testing.assert_close(ours(IMAGES), expected)
    assert ours.method == "simco" and list(ours.pretrained_cfg["label_names"]) == ["ant", "bee", "cat"]
    with pytest.raises(RuntimeError, match="has no projector"):
        ours.project(IMAGES)
    with pytest.warns(UserWarning):
        timms = timm.create_model(f"local-dir:{tmp_path / 'tf'}", pretrained=True).eval()
    torch.testing.assert_close(timms(IMAGES), expected)
    with pytest.warns(UserWarning):
        checks = verify(tmp_path / "tf")
    assert [check.problem for check in checks if check.problem] == []
    assert any("transformers saved this folder" in (check.note or "") for check in checks)


def test_a_folder_that_was_ours_before_transformers_saved_into_it(tmp_path):
    """The old projector still lies there; it belongs to other weights and is not loaded."""
    folder = save_pretrained(shaken(), tmp_path / "m")
    model = transformers.AutoModelForImageClassification.from_pretrained(folder, num_labels=3)
    model.save_pretrained(folder)
    with pytest.warns(UserWarning, match="was saved by transformers"):
        ours = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    assert (folder / "projector.safetensors").is_file() and ours.missing_projector and ours.num_classes == 3


def test_half_a_model_of_transformers_is_refused(tmp_path):
    finetuned_by_transformers(tmp_path / "tf")
    rewrite(tmp_path / "tf", lambda t: t.pop("layer3.0.conv1.weight"), honest=False)
    with pytest.warns(UserWarning), pytest.raises(WeightsError, match=r"missing layer3\.0\.conv1\.weight"):
        simco_zoo.create_model(f"local-dir:{tmp_path / 'tf'}", pretrained=True)


def test_class_names_reach_transformers_and_back(tmp_path):
    model = shaken(num_classes=3)
    model.backbone.pretrained_cfg = {**model.pretrained_cfg, "label_names": ["ant", "bee", "cat"]}
    folder = save_pretrained(model, tmp_path / "m", projector=False)
    theirs = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    assert theirs.config.id2label == {0: "ant", 1: "bee", 2: "cat"} and theirs.config.label2id["cat"] == 2
    torch.testing.assert_close(theirs(IMAGES).logits, model(IMAGES))
    theirs.save_pretrained(tmp_path / "again")
    names = json.loads((tmp_path / "again" / "config.json").read_text())["label_names"]
    assert names == ["ant", "bee", "cat"]
