"""Fine-tuning and the linear probe by SGD."""

from __future__ import annotations

import csv
import importlib.util
import json
import signal

import pytest
import timm
import torch

import simco_zoo
from simco_zoo.data import load_images
from simco_zoo.training import LINEAR_SGD, FinetuneConfig, Finetuning, Interrupted, finetune
from simco_zoo.training.checkpoint import list_checkpoints, load_checkpoint
from simco_zoo.training.finetune_config import fitting_config
from simco_zoo.training.optimizer import build_optimizer

SETTINGS = {"epochs": 3, "batch_size": 16, "progress_bar": False, "device": "cpu", "lr": 0.02}


def model(seed: int = 0, **kwargs) -> simco_zoo.models.ContrastiveModel:
    torch.manual_seed(seed)
    return simco_zoo.create_model("simco", backbone="test_resnet", small_stem=True, **kwargs)


def images(n: int = 64, seed: int = 0):
    """Three classes of noise, told apart by the brightness of a channel."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    pixels = torch.randint(0, 128, (n, 3, 16, 16), generator=generator)
    pixels[torch.arange(n), labels] += 20
    data = load_images(pixels.to(torch.uint8))
    return type(data)(**{**vars(data), "labels": labels, "class_names": ["red", "green", "blue"]})


def run(folder, seed: int = 0, **settings):
    return finetune(model(seed), images(), images(30, 1), output=folder, tag="toy", **{**SETTINGS, **settings})


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune") / "run"
    return run(folder, epochs=5), folder


def test_the_published_folder_is_the_measured_classifier(done):
    result, folder = done
    assert result["top1"] > 60  # a third by chance
    loaded = simco_zoo.create_model(f"local-dir:{folder / 'best'}", pretrained=True).eval()
    bare = timm.create_model(f"local-dir:{folder / 'best'}", pretrained=True).eval()
    assert loaded.pretrained_cfg["label_names"] == ("red", "green", "blue")
    test = images(30, 1)
    cfg = loaded.pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        scores = torch.stack([loaded(((x / 255 - mean) / std)[None])[0] for x in test.images])
        assert torch.allclose(bare(((test.images / 255) - mean) / std), scores, atol=1e-5)
    assert 100 * (scores.argmax(1) == test.labels).double().mean().item() == pytest.approx(result["top1"], abs=1e-3)


def test_what_a_run_leaves(done):
    result, folder = done
    rows = (folder / "log.csv").read_text().splitlines()
    assert rows[0].split(",")[:5] == ["epoch", "step", "loss", "val_top1", "val_top5"]
    assert len(rows) == 6
    best = max(rows[1:], key=lambda row: float(row.split(",")[3]))
    assert float(best.split(",")[3]) == result["val_top1"] and int(best.split(",")[0]) == result["epoch"]
    assert json.loads((folder / "summary.json").read_text()) == result
    card = (folder / "best" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert "trained with the labels of tensor from random weights" in card
    assert f"{result['top1']:.2f}" in card


def test_the_test_images_are_measured_once_with_the_weights_that_the_held_out_images_chose(tmp_path, monkeypatch):
    """Independent: the accuracy of the returned model, and of the epochs' weights on images nobody trained on."""
    measured = []
    scores = Finetuning._scores

    def watched(self, network, data):
        measured.append((len(data), data.names))
        return scores(self, network, data)

    monkeypatch.setattr(Finetuning, "_scores", watched)
    network = model()
    test = images(30, 1)
    result = finetune(network, images(), test, output=tmp_path, holdout=0.25, **SETTINGS)
    assert [count for count, _ in measured] == [16, 16, 16, 30]  # three epochs, then once
    assert (result["train"], result["val"], result["test"]) == (48, 16, 30)
    held_out = [int(name.split("/")[1]) for name in measured[0][1]]
    assert torch.bincount(images().labels[held_out]).tolist() == [6, 5, 5]
    cfg = network.pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))

    def accuracy(data):
        with torch.no_grad():
            predicted = network.eval()((data.images / 255 - mean) / std).argmax(1)
        return 100 * (predicted == data.labels).double().mean().item()

    assert accuracy(test) == pytest.approx(result["top1"], abs=1e-3)
    assert accuracy(images().subset(held_out)) == pytest.approx(result["val_top1"], abs=1e-3)
    best = max(csv.DictReader((tmp_path / "log.csv").open()), key=lambda row: float(row["val_top1"]))
    assert result["val_top1"] == float(best["val_top1"]) and result["epoch"] == int(best["epoch"])


def test_without_held_out_images_the_last_epoch_counts(tmp_path):
    result = run(tmp_path, holdout=0.0)
    assert (result["train"], result["val"], result["epoch"], result["val_top1"]) == (64, 0, 3, None)
    state = load_checkpoint(list_checkpoints(tmp_path / "checkpoints")[-1])
    published = simco_zoo.create_model(f"local-dir:{tmp_path / 'best'}", pretrained=True).backbone.state_dict()
    assert all(torch.equal(published[name], tensor) for name, tensor in state["ema"].items() if name in published)


def test_each_class_and_each_confusion_are_counted(done):
    result, folder = done
    table = list(csv.reader((folder / "confusion.csv").open()))
    assert table[0] == ["true class", "red", "green", "blue"] and [row[0] for row in table[1:]] == table[0][1:]
    counts = torch.tensor([[int(value) for value in row[1:]] for row in table[1:]])
    assert counts.sum(1).tolist() == [10, 10, 10]
    assert 100 * counts.trace().item() / 30 == pytest.approx(result["top1"], abs=1e-3)
    classes = list(csv.DictReader((folder / "per_class.csv").open()))
    assert [row["class"] for row in classes] == ["red", "green", "blue"]
    assert [row["images"] for row in classes] == ["10"] * 3
    expected = [100 * counts[i, i].item() / 10 for i in range(3)]
    assert [float(row["accuracy"]) for row in classes] == pytest.approx(expected)
    assert (folder / "confusion.png").is_file() == (importlib.util.find_spec("matplotlib") is not None)


def test_timms_policies_change_the_images_before_the_crop(tmp_path):
    config = FinetuneConfig(auto_augment="rand-m9-mstd0.5-inc1", device="cpu", batch_size=16)
    names = ["red", "green", "blue"]
    trainer = Finetuning(model(), images(), None, names, config, torch.device("cpu"), name="toy")
    batch = images().images[:8]
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    changed = trainer._augmented(batch)
    assert changed.dtype == torch.uint8 and changed.shape == batch.shape and not torch.equal(changed, batch)
    assert torch.equal(trainer._augmented(batch), changed) and torch.equal(torch.random.get_rng_state(), before)
    trainer.state.step = 1
    assert not torch.equal(trainer._augmented(batch), changed)
    with pytest.raises(ValueError, match="auto_augment is 'random', which timm does not know"):
        FinetuneConfig(auto_augment="random")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mixup": 0.5, "cutmix": 0.5},
        {"ema": 0.0, "opt": "momentum"},
        {"auto_augment": "rand-m9-mstd0.5-inc1", "holdout": 0.0},
    ],
)
def test_an_interrupted_run_ends_bit_identically(settings, tmp_path, monkeypatch):
    run(tmp_path / "whole", **settings)
    step = Finetuning.train_step

    def interrupted(self, batch):
        if self.state.step == 5:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Finetuning, "train_step", interrupted)
        run(tmp_path / "cut", **settings)
    torch.manual_seed(77)
    run(tmp_path / "cut", **settings)
    states = [load_checkpoint(list_checkpoints(tmp_path / name / "checkpoints")[-1]) for name in ("cut", "whole")]
    for part in ("network", "ema", "best_weights"):
        for name, tensor in states[1][part].items():
            assert torch.equal(states[0][part][name], tensor), name


@pytest.mark.parametrize(
    ("count", "size"), [(2, 2), (3, 2), (20, 8), (40, 8), (100, 16), (300, 64), (511, 64), (512, 128)]
)
def test_a_small_set_fills_the_default_batch_several_times(count, size):
    found = fitting_config(FinetuneConfig(), count)
    assert found.batch_size == size and found.lr == pytest.approx(0.002 * (128 / size) ** 0.5)
    assert fitting_config(FinetuneConfig(lr=0.01), count).lr == 0.01  # a chosen rate is kept


def test_a_chosen_batch_is_kept_or_refused(tmp_path, capsys):
    assert fitting_config(FinetuneConfig(batch_size=64), 100).batch_size == 64
    with pytest.raises(ValueError, match="batch_size is 256, but there are only 58 images to train on; pass one of at"):
        run(tmp_path, batch_size=256)
    assert not list(tmp_path.iterdir())
    run(tmp_path, batch_size=128, epochs=1)
    assert json.loads((tmp_path / "run.json").read_text())["identity"]["batch_size"] == 8


def test_a_run_with_a_batch_by_the_earlier_rule_goes_on(tmp_path):
    run(tmp_path, batch_size=58, epochs=1)  # what the default became
    assert run(tmp_path, batch_size=128, epochs=2)["steps"] == 2
    checkpoint = str(list_checkpoints(tmp_path / "checkpoints")[-1])
    assert run(tmp_path, batch_size=128, epochs=3, resume=checkpoint)["steps"] == 3


def test_other_settings_are_listed(tmp_path):
    run(tmp_path, epochs=1)
    with pytest.raises(ValueError, match=r"ema: 0.99 then, 0.5 now; mixup: 0.0 then, 0.4 now"):
        run(tmp_path, epochs=2, mixup=0.4, ema=0.5)


def test_freeze_moves_the_classifier_only(tmp_path):
    before = {name: tensor.clone() for name, tensor in model().backbone.state_dict().items()}
    trained = model()
    result = finetune(
        trained, images(), images(30, 1), output=tmp_path, config=LINEAR_SGD, epochs=20, batch_size=16, device="cpu"
    )
    after = trained.backbone.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert result["top1"] > 60


def test_layers_learn_at_their_own_rates():
    optimizer = build_optimizer(simco_zoo.create_model("simco_r18_025", num_classes=5).backbone, FinetuneConfig())
    named = {group["lr_scale"] for group in optimizer.param_groups}
    assert max(named) == 1.0
    depth = len(named)
    assert sorted(named) == pytest.approx([0.75**i for i in range(depth - 1, -1, -1)])
    assert depth > 3


def test_a_share_of_the_labels(tmp_path):
    result = run(tmp_path, epochs=1, label_fraction=0.25, batch_size=8)
    assert result["train"] + result["val"] == 16


def test_labels_that_do_not_fit(tmp_path):
    unlabeled = load_images(torch.zeros(20, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"the images of tensor .* have no labels"):
        finetune(model(), unlabeled, images(), output=tmp_path)
    other = type(unlabeled)(**{**vars(images()), "class_names": ["a", "b", "c"]})
    with pytest.raises(ValueError, match="they have none in common"):
        finetune(model(), images(), other, output=tmp_path)


@pytest.mark.parametrize(("settings", "message"), [
    ({"label_fraction": 0.0}, "label_fraction is 0.0"),
    ({"ema": 1.0}, "ema is 1.0"),
    ({"layer_decay": 2.0}, "layer_decay is 2.0"),
    ({"lr": 0.0}, "lr is 0.0"),
    ({"holdout": 1.0}, "holdout is 1.0"),
    ({"amp": "fp8"}, "amp is 'fp8'"),
])  # fmt: skip
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        FinetuneConfig(**settings)


def test_tensorboard_shows_the_log(done):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = accumulator.EventAccumulator(str(done[1] / "tensorboard"))
    shown.Reload()
    rows = list(csv.DictReader((done[1] / "log.csv").open()))
    for name in ("loss", "val_top1", "val_top5", "lr"):
        found = [(event.step, event.value) for event in shown.Scalars(name)]
        assert found == [(int(row["epoch"]), pytest.approx(float(row[name]), rel=1e-6)) for row in rows], name


@pytest.mark.parametrize("name", ["per_class.csv", "confusion.csv", "confusion.png"])
def test_a_persons_tables_are_left_alone(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"holds {name}, but no run of simco-zoo"):
        finetune(model(), images(24), images(10, 1), output=tmp_path, **SETTINGS)
    assert (tmp_path / name).read_text() == "mine"
