"""The training loop: determinism, resume, schedule, and what it leaves behind."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import simco_zoo
from simco_zoo.data import load_images, stream_images
from simco_zoo.distributed import pick_device
from simco_zoo.evaluation import diagnose
from simco_zoo.training import Interrupted, Pretraining, TrainingConfig, TrainingError, pretrain
from simco_zoo.training.checkpoint import list_checkpoints, load_checkpoint
from simco_zoo.training.optimizer import build_optimizer, build_schedule, plan
from simco_zoo.training.state import seeded_generator

SETTINGS = {"epochs": 3, "batch_size": 8, "knn_every": 2, "linear": False, "progress_bar": False, "device": "cpu"}


def model(method: str = "simco", seed: int = 0, **kwargs) -> simco_zoo.models.ContrastiveModel:
    torch.manual_seed(seed)
    return simco_zoo.create_model(method, backbone="test_resnet", small_stem=True, **kwargs)


def images(n: int = 40, labeled: bool = True):
    """Two classes, bright and dark noise, so that kNN has something to find."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    pixels = torch.randint(0, 128, (n, 3, 16, 16), generator=generator) + 127 * labels.view(-1, 1, 1, 1)
    data = load_images(pixels.to(torch.uint8))
    return data if not labeled else type(data)(**{**vars(data), "labels": labels})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return simco_zoo.create_model(f"local-dir:{folder}", pretrained=True).state_dict()


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A whole run, its folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run") / "a"
    last = pretrain(model(), images(), test_images=images(20), output=folder, tag="toy", **SETTINGS)
    assert last == folder / "last"
    return folder


@pytest.mark.parametrize("how", ["in memory", "on the fly", "streamed"])
def test_random_crops_come_from_whole_photographs(how, tmp_path, monkeypatch):
    """What lies left and right of the central square is seen, too."""
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, :16, 0] = pixels[:, 32:, 1] = 255
    for i in range(8):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    if how == "streamed":
        data = stream_images(tmp_path, image_size=16, length=8, whole=True)
    elif how == "on the fly":
        data = load_images(tmp_path, image_size=16, in_memory=False, whole=True)
    else:
        data = tmp_path  # of two sizes, so that the model's own side counts
        Image.fromarray(pixels[:, :40]).save(tmp_path / "7.png")
    network, seen = model(), []
    network.set_pretrained_cfg({**network.pretrained_cfg, "input_size": (3, 16, 16)})
    contrast = network.contrast
    monkeypatch.setattr(
        network, "contrast", lambda *views, **options: seen.extend(views) or contrast(*views, **options)
    )
    still = {"jitter": 0.0, "grayscale": 0.0}
    pretrain(network, data, output=tmp_path / "run", **{**SETTINGS, **still, "epochs": 2})
    colors = torch.cat(seen).amax(dim=(2, 3))
    assert len(colors) == 32 and all(view.shape[2:] == (16, 16) for view in seen)
    assert (colors[:, 0] > 1).any() and (colors[:, 1] > 1).any()


def test_what_a_run_leaves(run):
    names = {path.name for path in run.iterdir()}
    assert {"last", "best", "checkpoints", "log.csv", "summary.json"} <= names
    rows = list(csv.DictReader((run / "log.csv").open()))
    # measured on the weights that are published, with the run's views and seed
    found = diagnose(
        simco_zoo.create_model(f"local-dir:{run / 'last'}", pretrained=True), images(), limit=SETTINGS["batch_size"]
    )
    for name, value in found.items():
        assert float(rows[-1][name]) == pytest.approx(value, abs=1e-3), name
    assert [int(row["step"]) for row in rows] == [5, 10, 15]
    assert [row["knn_top1"] != "" for row in rows] == [False, True, True]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 15 and summary["start_step"] == 0 and summary["folder"] == str(run / "last")
    assert summary["loss"] == float(rows[-1]["loss"]) and summary["knn_top1"] == float(rows[-1]["knn_top1"])
    config = json.loads((run / "last" / "config.json").read_text())
    section = config["simco_zoo"]
    assert config["architecture"] == "small_stem" and config["model_args"] == {"backbone": "test_resnet"}
    assert config["pretrained_cfg"]["input_size"] == [3, 16, 16] and config["pretrained_cfg"]["tag"] == "toy"
    assert section["metrics"]["knn_top1"] == float(rows[-1]["knn_top1"]) and section["recipe"]["seed"] == 0
    assert len(list_checkpoints(run / "checkpoints")) == 2


def test_the_published_folder_is_the_trained_model(run):
    x = torch.randn(2, 3, 16, 16)
    ours = simco_zoo.create_model(f"local-dir:{run / 'last'}", pretrained=True).eval()
    checkpoint = load_checkpoint(list_checkpoints(run / "checkpoints")[-1])
    trained = model(seed=9)
    trained.load_state_dict(checkpoint["model"])
    assert torch.equal(ours(x), trained.eval()(x)) and torch.equal(ours.project(x), trained.project(x))
    assert torch.equal(ours(x), timm.create_model(f"local-dir:{run / 'last'}", pretrained=True).eval()(x))


def test_the_same_seed_gives_the_same_weights_and_another_does_not(run, tmp_path):
    again = pretrain(model(), images(), output=tmp_path / "b", **SETTINGS)
    assert_equal(weights(again), weights(run / "last"))
    other = pretrain(model(), images(), output=tmp_path / "c", seed=1, **SETTINGS)
    assert any(not torch.equal(a, b) for a, b in zip(weights(other).values(), weights(again).values(), strict=True))


@pytest.fixture
def heard():
    """Ctrl-C is heard, even where the tests themselves run in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("method", ["simco", "simmoco", "mocov2"])
@pytest.mark.parametrize("stop", [5, 7])  # at the end of an epoch, and within one
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_bit_identically(number, method, stop, tmp_path, monkeypatch):
    kwargs = {"queue_size": 12, "bn_splits": 2} if method == "mocov2" else {}
    whole = pretrain(model(method, **kwargs), images(), output=tmp_path / "whole", **SETTINGS)

    step = Pretraining.step

    def interrupted(self, *inputs):
        if self.state.step == stop - 1:
            # it comes between the optimizer's step and the counter of steps
            monkeypatch.setattr(self.scaler, "update", lambda: signal.raise_signal(number))
        return step(self, *inputs)

    monkeypatch.setattr(Pretraining, "step", interrupted)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted) as caught:
        pretrain(model(method, **kwargs), images(), output=tmp_path / "cut", **SETTINGS)
    assert caught.value.exit_code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    monkeypatch.undo()
    assert simco_zoo.create_model(f"local-dir:{tmp_path / 'cut' / 'last'}", pretrained=True)
    torch.manual_seed(123)  # what a new process starts with must not matter
    resumed = pretrain(model(method, **kwargs), images(), output=tmp_path / "cut", **SETTINGS)
    assert_equal(weights(resumed), weights(whole))
    assert json.loads((tmp_path / "cut" / "summary.json").read_text())["start_step"] == stop
    states = [load_checkpoint(list_checkpoints(tmp_path / name / "checkpoints")[-1]) for name in ("cut", "whole")]
    assert_equal(states[0]["model"], states[1]["model"])
    assert torch.equal(states[0]["processes"][0]["rng"]["torch"], states[1]["processes"][0]["rng"]["torch"])


def test_a_finished_run_is_not_run_again(run):
    before = (run / "last" / "model.safetensors").stat().st_mtime_ns
    assert pretrain(model(), images(), test_images=images(20), output=run, tag="toy", **SETTINGS) == run / "last"
    assert (run / "last" / "model.safetensors").stat().st_mtime_ns == before


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    settings = {**SETTINGS, "epochs": 2}
    pretrain(model(), images(), output=tmp_path, **settings)
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    (tmp_path / "summary.json").unlink()
    expected = weights(tmp_path / "last")
    with pytest.warns(UserWarning, match="cannot be read as a checkpoint"):
        pretrain(model(), images(), output=tmp_path, **settings)
    assert json.loads((tmp_path / "summary.json").read_text())["start_step"] == 5
    assert_equal(weights(tmp_path / "last"), expected)
    for path in list_checkpoints(tmp_path / "checkpoints"):
        path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="none of the checkpoints"), pytest.warns(UserWarning):
        pretrain(model(), images(), output=tmp_path, **settings)


def test_a_folder_that_cannot_hold_the_run_is_noticed_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(Pretraining, "step", lambda *_: pytest.fail("training began"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"nothing can be written to .*file.*choose another output"):
        pretrain(model(), images(), output=tmp_path / "file" / "run", **SETTINGS)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(OSError, match="has 1 MB left, but"):
        pretrain(model(), images(), output=tmp_path / "run", **SETTINGS)


def test_a_disk_that_fills_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    save = torch.save

    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    def full(state, file):
        if state["step"] > 5:
            file.file = Full()  # torch's writer puts an error of its own in the place of this one
        save(state, file)

    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match=r"there is no space left to write .*step-00000010"),
    ):
        patch.setattr(torch, "save", full)
        pretrain(model(), images(), output=tmp_path / "full", **SETTINGS)
    assert [path.name for path in sorted((tmp_path / "full" / "checkpoints").iterdir())] == ["step-00000005.pt"]
    resumed = pretrain(model(), images(), output=tmp_path / "full", **SETTINGS)
    whole = pretrain(model(), images(), output=tmp_path / "whole", **SETTINGS)
    assert_equal(weights(resumed), weights(whole))


def test_a_pickle_is_no_checkpoint(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "step-00000001.pt").write_bytes(pickle.dumps({"step": Evil()}))
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load_checkpoint(tmp_path / "step-00000001.pt")
    assert not (tmp_path / "ran").exists()


def test_resuming_with_other_settings_lists_the_differences(tmp_path):
    pretrain(model(), images(), output=tmp_path, **{**SETTINGS, "epochs": 1})
    with pytest.raises(ValueError, match=r"lr: 0.03 then, 0.5 now; seed: 0 then, 1 now"):
        pretrain(model(), images(), output=tmp_path, **{**SETTINGS, "epochs": 2, "lr": 0.5, "seed": 1})
    with pytest.raises(FileNotFoundError, match="there is no checkpoint nowhere"):
        pretrain(model(), images(), output=tmp_path, resume="nowhere.pt", **SETTINGS)


def test_an_image_size_that_the_backbone_cannot_take(tmp_path):
    convnext = simco_zoo.create_model("simco", backbone="test_convnext", backbone_kwargs={"patch_size": 16})
    modes = [module.training for module in convnext.modules()]
    with pytest.raises(ValueError, match="the backbone test_convnext cannot take images of 16 px"):
        pretrain(convnext, images(), output=tmp_path / "a", **SETTINGS)
    assert not (tmp_path / "a").exists() and [module.training for module in convnext.modules()] == modes


def test_on_start_comes_after_the_checks_and_before_the_first_step(tmp_path, monkeypatch):
    calls: list[str] = []
    with pytest.raises(ValueError, match="batch_size"):
        pretrain(model(), images(), output=tmp_path / "a", on_start=lambda: calls.append("start"), batch_size=99)
    assert calls == []
    step = Pretraining.step
    monkeypatch.setattr(Pretraining, "step", lambda *inputs: (calls.append("step"), step(*inputs))[1])
    pretrain(
        model(), images(), output=tmp_path / "a", on_start=lambda: calls.append("start"), **{**SETTINGS, "max_steps": 2}
    )
    assert calls == ["start", "step", "step"]
    with pytest.raises(ValueError, match="was started with other settings"):  # and then nothing is written
        pretrain(model(), images(), output=tmp_path / "a", on_start=lambda: calls.append("start"), lr=1.0, **SETTINGS)
    assert calls.count("start") == 1


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    broken = model()
    with torch.no_grad():
        broken.projector[0].weight.fill_(math.nan)
    with pytest.raises(TrainingError, match="the loss is nan at step 5; no checkpoint was written yet; start again"):
        pretrain(broken, images(), output=tmp_path, **SETTINGS)


def test_a_collapse_stops_the_run(tmp_path):
    collapsed = model()
    with torch.no_grad():
        collapsed.projector[2].weight.zero_()  # only the bias is left: all projections alike
    with pytest.raises(TrainingError, match="the projections collapsed in epoch 1"):
        pretrain(collapsed, images(), output=tmp_path, **{**SETTINGS, "lr": 1e-9})


@pytest.mark.parametrize(("settings", "message"), [
    ({"batch_size": 50}, "only 40 images"),
    ({"epochs": 0}, "epochs is 0"),
    ({"max_steps": 0}, "max_steps is 0"),
    ({"lr": -1.0}, "lr is -1.0"),
    ({"amp": "fp8"}, "amp is 'fp8'"),
    ({"views": "cifr"}, "views is 'cifr'"),
    ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
])  # fmt: skip
def test_settings_out_of_range(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        pretrain(model(), images(), output=tmp_path / "run", **{**SETTINGS, **settings})
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_queue_as_long_as_the_data_warns(tmp_path):
    with pytest.warns(UserWarning, match="older keys of the query's own image"):
        pretrain(model("mocov2", queue_size=64), images(), output=tmp_path, **{**SETTINGS, "max_steps": 1})


@pytest.mark.parametrize("amp", ["bf16", "none"])
def test_max_steps_and_precision(amp, tmp_path):
    pretrain(model(), images(), output=tmp_path, amp=amp, **{**SETTINGS, "max_steps": 7})
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 7


def test_unlabeled_images_train_without_knn(tmp_path):
    pretrain(model(), images(labeled=False), test_images=None, output=tmp_path, **{**SETTINGS, "epochs": 1})
    assert json.loads((tmp_path / "summary.json").read_text())["knn_top1"] is None
    assert weights(tmp_path / "best").keys() == weights(tmp_path / "last").keys()


def test_schedule_is_warmup_then_cosine_over_the_steps_that_are_run():
    config = TrainingConfig(epochs=200, batch_size=512, lr=0.03)
    optimizer = build_optimizer(model(), config)
    total, per_epoch = 1000, 5
    schedule = build_schedule(optimizer, config, plan(config, per_epoch, 0, total))
    rates = []
    for step in range(total):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    peak, warmup = 0.06, 50  # 10 epochs of 5 steps, and less than a tenth of the run
    for step in (0, 1, 25, 49):
        assert rates[step] == pytest.approx(peak / 10 + (peak - peak / 10) * step / warmup)
    for step in (50, 51, 500, 999):
        assert rates[step] == pytest.approx(peak * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2)
    schedule.step_update(total)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_optimizer_is_the_papers():
    config = TrainingConfig()
    network = model("mocov2")
    network.init_key_encoder()
    optimizer = build_optimizer(network, config)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert isinstance(optimizer, torch.optim.SGD)
    assert all(g["momentum"] == 0.9 and not g["nesterov"] for g in optimizer.param_groups)
    assert all(g["weight_decay"] == 5e-4 for g in optimizer.param_groups)  # batch norm and biases, too
    expected = [*network.backbone.parameters(), *network.projector.parameters()]
    assert {id(p) for p in trained} == {id(p) for p in expected}


def test_seeded_generators_differ_by_seed_purpose_and_index():
    draws = {
        torch.rand(1, generator=seeded_generator(seed, purpose, index)).item()
        for seed in (0, 1)
        for purpose in ("order", "views")
        for index in range(5)
    }
    assert len(draws) == 20
    assert seeded_generator(3, "views", 7).initial_seed() == seeded_generator(3, "views", 7).initial_seed()


def test_device_auto_is_an_accelerator_or_the_cpu():
    expected = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert pick_device("auto") == expected


def test_learning_lifts_knn_above_the_untrained_network(tmp_path):
    """A real lesson in miniature: the built-in photographs, half a minute at most."""
    pytest.importorskip("skimage")
    data, test = load_images("photos"), load_images("photos", split="test")
    torch.manual_seed(0)
    network = simco_zoo.create_model("simco_r18_025")
    extract, knn = simco_zoo.extract_features, simco_zoo.evaluation.knn
    bank, probe = extract(network, data), extract(network, test)
    untrained = knn(bank.features, bank.labels, probe.features, probe.labels)["top1"]
    pretrain(
        network,
        data,
        test_images=test,
        output=tmp_path,
        **{**SETTINGS, "batch_size": 128, "epochs": 2, "max_steps": 40, "lr": 0.12},
    )
    assert json.loads((tmp_path / "summary.json").read_text())["knn_top1"] > untrained + 10
