"""Settings of the views, and a run planned by the clock."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import torch

import simco_zoo
from simco_zoo.arguments import read_settings, write_settings
from simco_zoo.cli.pretrain import build_parser
from simco_zoo.data import PRESETS, TwoViews, ViewPreset
from simco_zoo.training import Pretraining, TrainingConfig, pretrain
from tests.training.test_pretrain import assert_equal, images, model, weights
from tests.training.test_run import SETTINGS, last_state, run, stop_at

GRAY = ViewPreset(scale=(0.5, 1.0), mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2), jitter=0.0, grayscale=0.0)


def test_settings_change_the_preset():
    config = TrainingConfig(views="imagenet", crop_scale="0.5,1", mean=(0.4, 0.4, 0.4), std="0.2, 0.2,0.2", jitter=0.0)
    expected = replace(PRESETS["imagenet"], scale=(0.5, 1.0), mean=(0.4,) * 3, std=(0.2,) * 3, jitter=0.0)
    assert config.view_preset == expected
    assert TrainingConfig().view_preset == PRESETS["cifar"]
    assert replace(config, views=GRAY).view_preset == replace(GRAY)


@pytest.mark.parametrize(("settings", "message"), [
    ({"views": "cifr"}, "views is 'cifr', but has to be one of cifar, imagenet"),
    ({"crop_scale": "0.2"}, "crop_scale is '0.2', but has the form LOW,HIGH"),
    ({"crop_scale": "1,0.2"}, r"scale is \(1.0, 0.2\)"),
    ({"mean": "0.5,0.5"}, "mean is '0.5,0.5', but has the form R,G,B"),
    ({"std": "0,1,1"}, "deviation has to be positive"),
    ({"grayscale": 1.5}, "grayscale is 1.5"),
    ({"hue": -0.1}, "hue is -0.1"),
    ({"max_hours": 0.0}, "max_hours is 0.0"),
])  # fmt: skip
def test_settings_that_describe_no_view(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**settings)


def test_a_small_set_fills_the_default_batch_and_a_chosen_one_is_kept(tmp_path):
    assert [TrainingConfig().fitting(n).batch_size for n in (1, 3, 4, 60, 255, 256, 5000)] == [
        2,
        2,
        2,
        16,
        64,
        256,
        256,
    ]
    assert TrainingConfig(accumulate=4).fitting(1000).batch_size == 64
    settings = {key: value for key, value in SETTINGS.items() if key != "batch_size"} | {"epochs": 1}
    folder = pretrain(model(), images(24), output=tmp_path / "run", **settings)
    assert json.loads((folder / "config.json").read_text())["simco_zoo"]["recipe"]["batch_size"] == 8
    with pytest.raises(ValueError, match="batch_size is 64, but there are only 24 images"):
        pretrain(model(), images(24), output=tmp_path / "other", **settings, batch_size=64)


def test_the_views_are_made_and_described_as_set(tmp_path):
    """The published model says how images are normalized, and the recipe every value that was used."""
    settings = {"jitter": 0.0, "grayscale": 0.0, "mean": "0.4,0.4,0.4", "std": "0.2,0.2,0.2"}
    folder = run(tmp_path / "a", epochs=1, crop_scale="0.5,1", **settings)
    config = json.loads((folder / "config.json").read_text())
    assert config["pretrained_cfg"]["mean"] == [0.4] * 3 and config["pretrained_cfg"]["std"] == [0.2] * 3
    recipe = config["simco_zoo"]["recipe"]
    assert recipe["views"] == "cifar" and "crop scale 0.5 to 1" in recipe["augmentations"]
    assert ViewPreset(**{k: tuple(v) if isinstance(v, list) else v for k, v in recipe["view_preset"].items()}) == GRAY
    assert "crop scale 0.5 to 1" in (folder / "README.md").read_text()
    custom = pretrain(
        model(), images(24), test_images=images(10), output=tmp_path / "b", **{**SETTINGS, "epochs": 1, "views": GRAY}
    )
    assert_equal(weights(custom), weights(folder))
    assert json.loads((custom / "config.json").read_text())["simco_zoo"]["recipe"]["views"] == "custom"


def test_other_views_are_another_run(tmp_path):
    run(tmp_path / "a", epochs=1)
    message = r"views.grayscale: 0.2 then, 0.1 now; views.scale: \[0.08, 1.0\] then, \[0.2, 1.0\]"
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "a", epochs=1, crop_scale="0.2,1", grayscale=0.1)
    run(tmp_path / "a", epochs=1, crop_scale="0.08,1")  # the preset's own
    entry = json.loads((tmp_path / "a" / "run.json").read_text())
    entry["identity"] = {k: v for k, v in entry["identity"].items() if not k.startswith("views.")}
    (tmp_path / "a" / "run.json").write_text(json.dumps(entry))  # of a version that had presets alone
    run(tmp_path / "a", epochs=1)


def test_flags_and_files_set_the_views(tmp_path):
    parser = build_parser()
    args, config = read_settings(parser, TrainingConfig, ["--crop-scale", "0.2,1", "--grayscale", "0.1"])
    assert (config.view_preset.scale, config.view_preset.grayscale) == ((0.2, 1.0), 0.1)
    write_settings(tmp_path / "config.yaml", args)
    again = read_settings(build_parser(), TrainingConfig, ["--config", str(tmp_path / "config.yaml")])[1]
    assert again == config
    assert "Range of the crop's share" in " ".join(parser.format_help().split())


# By the clock


def test_a_run_of_so_many_hours_ends_on_time_with_the_rate_at_zero(tmp_path, monkeypatch):
    """Each step takes 20 ms, each measurement 100 ms."""
    step = Pretraining.step
    monkeypatch.setattr(Pretraining, "step", lambda *inputs: (time.sleep(0.02), step(*inputs))[1])
    rates = []
    monkeypatch.setattr(Pretraining, "check_means", lambda self, *_: rates.append(self.optimizer.param_groups[0]["lr"]))
    began = time.monotonic()
    run(tmp_path / "a", epochs=1000, max_hours=4 / 3600, tensorboard=False, knn_every=0, checkpoint_every=1000)
    assert time.monotonic() - began < 20  # files and drawing come on top
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert 10 < summary["steps"] < 4 / 0.02
    assert rates[-1] == pytest.approx(0, abs=1e-9)
    assert last_state(tmp_path / "a")["phases"][-1]["end"] == summary["steps"]


def test_a_planned_run_is_the_run_of_that_many_steps_also_when_it_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr("simco_zoo.training.budget.TRIAL_STEPS", 2)
    settings = {
        "epochs": 1000,
        "max_hours": 3 / 3600,
        "sizes": "8:0.5,16:0.5",
        "checkpoint_every": 1000,
        "knn_every": 0,
    }
    network = {"method": "mocov2", "queue_size": 12, "backbone_kwargs": {"drop_path_rate": 0.2}}
    with monkeypatch.context() as patch, pytest.raises(simco_zoo.training.Interrupted):
        stop_at(patch, 10)  # later than the steps that are timed
        run(tmp_path / "a", start=model(**network), **settings)
    planned = json.loads((tmp_path / "a" / "run.json").read_text())["total_steps"]
    assert planned > 10
    run(tmp_path / "a", start=model(**network), **settings)
    run(tmp_path / "b", start=model(**network), **{**settings, "max_hours": None, "max_steps": planned})
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["steps"] == planned
    assert_equal(last_state(tmp_path / "a")["model"], last_state(tmp_path / "b")["model"])
    assert run(tmp_path / "a", start=model(**network), **settings) == tmp_path / "a" / "last"  # finished


def test_the_trial_counts_all_sides_of_the_ramp(tmp_path, monkeypatch):
    seen = []
    call = TwoViews.__call__

    def watched(self, *inputs, **kwargs):
        seen.append(self.size)
        return call(self, *inputs, **kwargs)

    monkeypatch.setattr(TwoViews, "__call__", watched)
    monkeypatch.setattr(Pretraining, "fitting_steps", Pretraining.fitting_steps)
    config = TrainingConfig(batch_size=8, sizes="8:0.5,16:0.5", device="cpu", linear=False)
    trainer = Pretraining(model(), images(24), None, config, torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    steps = trainer.fitting_steps(5.0, 10**6)
    assert {8, 16} <= set(seen) and steps > 1 and trainer.state.step == 0
    assert_equal(trainer.model.state_dict(), before)
    assert trainer.fitting_steps(5.0, 3) <= 3
