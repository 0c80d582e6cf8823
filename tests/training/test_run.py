"""A run's folder: nothing is mistaken for something else, nothing is lost."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from simco_zoo.data import ImageData, load_images
from simco_zoo.lock import FolderInUseError, FolderLock
from simco_zoo.training import (
    FinetuneConfig,
    Interrupted,
    Pretraining,
    TrainingConfig,
    TrainingError,
    finetune,
    pretrain,
)
from simco_zoo.training.checkpoint import list_checkpoints, load_checkpoint
from simco_zoo.training.optimizer import build_optimizer, build_schedule, extend, plan
from tests.training.test_pretrain import assert_equal, images, model, weights

SETTINGS = {"epochs": 2, "batch_size": 8, "linear": False, "progress_bar": False, "device": "cpu", "knn_k": 5}


def run(folder: Path, *, start: object = None, data: ImageData | None = None, **settings) -> Path:
    data = images(24) if data is None else data
    settings = {"test_images": images(10), **SETTINGS, **settings}
    return pretrain(start or model(), data, output=folder, **settings)


def last_state(folder: Path) -> dict:
    return load_checkpoint(list_checkpoints(folder / "checkpoints")[-1])


def rows(folder: Path) -> list[dict[str, str]]:
    """The log without what the clock wrote."""
    found = list(csv.DictReader((folder / "log.csv").open()))
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in found]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch) -> None:
    """Drawing takes most of the seconds of a run this short; test_pretrain.py looks at the curves."""
    monkeypatch.setattr("simco_zoo.training.log.draw_curves", lambda *_: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(folder)
    return folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def stop_at(monkeypatch, step: int, what=lambda: signal.raise_signal(signal.SIGTERM)) -> None:
    """Calls ``what`` when a run has made that many steps."""
    train_step = Pretraining.train_step

    def watched(self, batch):
        report = train_step(self, batch)
        if self.state.step == step:
            what()
        return report

    monkeypatch.setattr(Pretraining, "train_step", watched)


# One identity


def other(data: ImageData, **changes) -> ImageData:
    return type(data)(**{**vars(data), **changes})


def test_the_folder_says_what_the_run_is(finished):
    entry = json.loads((finished / "run.json").read_text())
    assert entry["total_steps"] == 6 and len(entry["run"]) == 32
    assert entry["identity"]["lr"] == 0.03 and entry["identity"]["model.method"] == "simco"
    assert entry["identity"]["data.images"] == 24 and entry["identity"]["test.images"] == 10
    assert last_state(finished)["run"] == entry["run"]


@pytest.mark.parametrize(("change", "message"), [
    ({"data": "pixels"}, "other pixels in the training images"),
    ({"data": "one pixel"}, "other pixels in the training images"),
    ({"data": "names"}, "other file names of the training images"),
    ({"data": "labels"}, "other labels of the training images"),
    ({"data": "classes"}, r"data.classes: None then, \['a', 'b'\] now"),
    ({"data": "count"}, "data.images: 24 then, 23 now"),
    ({"start": 7}, "other starting weights"),
    ({"knn_k": 4}, "knn_k: 5 then, 4 now"),
    ({"clip_grad": 1.0}, "clip_grad: None then, 1.0 now"),
    ({"epochs": 1}, "started for 6 steps and is at step 6, but now has 3"),
])  # fmt: skip
def test_what_decides_the_result_is_compared(change, message, copy):
    data, changed = images(24), dict(change)
    pixels = data.images.clone()
    pixels[0] ^= 1
    one = data.images.clone()
    one[2, 0, 5, 5] ^= 1  # not of the sample
    variants = {
        "pixels": other(data, images=pixels),
        "one pixel": other(data, images=one),
        "names": other(data, names=[f"other/{i}" for i in range(24)]),
        "labels": other(data, labels=data.labels.flip(0)),
        "classes": other(data, class_names=["a", "b"]),
        "count": data.subset(range(23)),
    }
    if "data" in changed:
        changed["data"] = variants[changed["data"]]
    if "start" in changed:
        changed["start"] = model(seed=changed["start"])
    before = {path: path.stat().st_mtime_ns for path in sorted(copy.rglob("*")) if path.is_file()}
    if change == {"data": "classes"}:
        changed["test_images"] = other(images(10), class_names=["a", "b"])
    with pytest.raises(ValueError, match=message):
        run(copy, **changed)
    assert {path: path.stat().st_mtime_ns for path in sorted(copy.rglob("*")) if path.is_file()} == before


def test_test_images_are_compared_too(copy):
    with pytest.raises(ValueError, match=r"test.images: 10 then, 8 now"):
        pretrain(model(), images(24), test_images=images(8), output=copy, **SETTINGS)


def test_what_decides_nothing_is_free(copy):
    settings = {
        "knn_every": 1,
        "linear": True,
        "workers": 1,
        "log_every": 1,
        "keep_checkpoints": 5,
        "tensorboard": False,
    }
    data = other(images(24), source="the same images, elsewhere")
    assert run(copy, data=data, **settings) == copy / "last"


def test_a_setting_that_an_older_version_did_not_know_has_its_default(copy):
    entry = json.loads((copy / "run.json").read_text())
    for key in ("decay_share", "freeze_patch_embed", "model.dt_m", "data.pixels"):
        del entry["identity"][key]
    (copy / "run.json").write_text(json.dumps(entry))
    assert run(copy) == copy / "last"
    with pytest.raises(ValueError, match=r"decay_share: 1.0 then, 0.5 now"):
        run(copy, decay_share=0.5)


def test_a_checkpoint_of_the_first_version_goes_on(copy):
    state = last_state(copy)
    old = {key: state[key] for key in ("model", "optimizer", "scaler", "online_probe", "step", "seconds", "rows")}
    old["rng"] = [own["rng"] for own in state["processes"]]
    old["settings"] = {**state["identity"], "epochs": 2, "max_steps": None, "data.source": "elsewhere", "knn_every": 3}
    old["best_knn"] = state["best"]["knn_top1"]
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints").mkdir()
    torch.save(old, copy / "checkpoints" / "step-00000006.pt")
    for name in ("run.json", "summary.json"):
        (copy / name).unlink()
    assert run(copy) == copy / "last"
    assert json.loads((copy / "summary.json").read_text())["start_step"] == 6
    with pytest.raises(ValueError, match=r"lr: 0.03 then, 0.1 now"):
        run(copy, lr=0.1)


def test_fine_tuning_from_other_weights_or_a_pretraining_is_another_run(copy, tmp_path):
    settings = {"epochs": 1, "batch_size": 8, "progress_bar": False, "device": "cpu"}
    finetune(model(), images(24), images(10), output=tmp_path / "tuned", **settings)
    with pytest.raises(ValueError, match="other starting weights"):
        finetune(model(seed=3), images(24), images(10), output=tmp_path / "tuned", **settings)
    with pytest.raises(ValueError, match="kind: pretraining then, fine-tuning now"):
        finetune(model(), images(24), images(10), output=copy, **settings)


def test_a_model_that_was_interrupted_goes_on_as_it_is(tmp_path, monkeypatch):
    """As in a notebook: the cell that trains is run again, the one that made the model is not."""
    network = model()
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 4)
        run(tmp_path / "a", start=network)
    run(tmp_path / "a", start=network)
    run(tmp_path / "b")
    assert_equal(weights(tmp_path / "a" / "last"), weights(tmp_path / "b" / "last"))


# A fresh start does not mix


def test_a_fresh_start_moves_the_old_run_aside(copy, monkeypatch):
    old = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 2)
        run(copy, resume="never", lr=0.1)
    aside = copy.with_name("run.old-1")
    assert {path.relative_to(aside): path.read_bytes() for path in aside.rglob("*") if path.is_file()} == old
    assert [path.name for path in list_checkpoints(copy / "checkpoints")] == ["step-00000002.pt"]
    assert not (copy / "summary.json").exists() and not (copy / "best").exists()
    run(copy, lr=0.1)  # goes on from step 2
    assert json.loads((copy / "summary.json").read_text())["start_step"] == 2
    run(copy, resume="never", max_steps=1)
    assert {path.name for path in copy.parent.iterdir()} == {"run", "run.old-1", "run.old-2"}


def test_what_was_never_saved_is_no_obstacle(tmp_path, monkeypatch):
    def crash():
        raise RuntimeError("crash")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="crash"):
        stop_at(patch, 2, crash)
        run(tmp_path / "run")
    run(tmp_path / "run", lr=0.1)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["identity"]["lr"] == 0.1


@pytest.mark.parametrize("name", ["log.csv", "config.yaml", "last"])
def test_a_persons_own_files_are_left_alone(name, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    path = folder / name
    path.mkdir() if name == "last" else path.write_text("mine")
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=f"holds {name}, but no run of simco-zoo"):
        patch.setattr(Pretraining, "step", lambda *_: pytest.fail("training began"))
        run(folder, on_start=lambda: pytest.fail("files were written"))
    assert {path.name for path in folder.iterdir()} == {name, "notes.txt"}
    path.rmdir() if name == "last" else path.unlink()
    run(folder, max_steps=1)  # other files of theirs are no obstacle
    assert (folder / "notes.txt").read_text() == "mine"


# One process at a time

HOLDER = """
import sys, time
from pathlib import Path
from simco_zoo.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_two_processes_do_not_share_a_folder(copy):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLDER, str(copy)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(FolderInUseError, match=f"written to by process {holder.pid} on {socket.gethostname()}"):
                run(copy)
            assert (copy / ".lock").is_file()
        finally:
            holder.kill()
    assert run(copy) == copy / "last"  # the lock of a process that was killed is taken over
    assert not (copy / ".lock").exists()


def test_a_process_does_not_lock_a_folder_twice(tmp_path, monkeypatch):
    lock = FolderLock(tmp_path)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(FolderInUseError, match=f"process {os.getpid()} .*srun started several processes"):
        FolderLock(tmp_path)
    lock.release()
    FolderLock(tmp_path).release()


def test_without_system_locks_the_process_in_the_file_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("simco_zoo.lock.fcntl", None)
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    for pid, host, free in (
        (int(ended.stdout), socket.gethostname(), True),
        (os.getppid(), socket.gethostname(), False),
        (int(ended.stdout), "elsewhere", False),
    ):
        (tmp_path / ".lock").write_text(json.dumps({"pid": pid, "host": host}))
        if free:
            FolderLock(tmp_path).release()
        else:
            with pytest.raises(FolderInUseError, match=f"process {pid} on {host}"):
                FolderLock(tmp_path)


# Going on elsewhere, going on for longer


def test_the_advice_after_a_loss_that_is_not_finite_works(tmp_path, monkeypatch):
    network = model()

    def poison():
        with torch.no_grad():
            network.projector[0].weight.fill_(float("nan"))

    with (
        monkeypatch.context() as patch,
        pytest.raises(TrainingError, match="is nan at step 6; go on") as caught,
    ):
        stop_at(patch, 5, poison)
        run(tmp_path / "run", start=network)
    found = re.search(r"--resume (\S+) --lr (\S+) --output (\S+)", str(caught.value))
    assert found is not None
    run(Path(found[3]), resume=found[1], lr=float(found[2]))
    summary = json.loads((Path(found[3]) / "summary.json").read_text())
    assert (summary["start_step"], summary["steps"]) == (3, 6)


def test_a_branch_has_settings_of_its_own(finished, tmp_path):
    file = list_checkpoints(finished / "checkpoints")[0]
    assert file.name == "step-00000003.pt"
    run(tmp_path / "b", resume=str(file), lr=0.01, epochs=3, start=model(seed=9))
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert (summary["start_step"], summary["steps"]) == (3, 9)
    log = rows(tmp_path / "b")
    assert log[0] == rows(finished)[0] and log[1]["loss"] != rows(finished)[1]["loss"]
    assert last_state(tmp_path / "b")["optimizer"]["param_groups"][0]["initial_lr"] == pytest.approx(0.01 * 8 / 256)
    # the same command again goes on in the branch
    assert run(tmp_path / "b", resume=str(file), lr=0.01, epochs=3, start=model(seed=9)) == tmp_path / "b" / "last"
    run(tmp_path / "short", resume=str(file), epochs=1)  # nothing is left to do but to publish
    assert rows(tmp_path / "short") == rows(finished)[:1]
    run(tmp_path / "long", resume=str(list_checkpoints(finished / "checkpoints")[-1]), epochs=3)
    assert rows(tmp_path / "long")[:2] == rows(finished)
    run(tmp_path / "half", resume=str(file), amp="fp16", max_steps=4)
    with pytest.raises(ValueError, match="batch_size: 8 then, 4 now"):
        run(tmp_path / "c", resume=str(file), batch_size=4)
    assert not (tmp_path / "c").exists()
    with pytest.raises(ValueError, match="is a checkpoint of another run than the one in"):
        run(tmp_path / "b", resume=str(list_checkpoints(finished / "checkpoints")[-1]))


def test_going_back_to_an_earlier_checkpoint_of_the_same_run(copy):
    expected = weights(copy / "last")
    run(copy, resume=str(list_checkpoints(copy / "checkpoints")[0]), start=model(seed=9))
    assert json.loads((copy / "summary.json").read_text())["start_step"] == 3
    assert_equal(weights(copy / "last"), expected)


def test_a_run_that_went_back_and_was_interrupted_is_not_finished(copy, monkeypatch):
    expected = weights(copy / "last")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 4)
        run(copy, resume=str(list_checkpoints(copy / "checkpoints")[0]))
    assert not (copy / "summary.json").exists()
    run(copy)
    assert_equal(weights(copy / "last"), expected)


def test_best_is_never_of_a_step_that_was_given_up(copy):
    """The first epoch is the best so far, best/ that of a later one; then the checkpoint's own weights are taken."""
    first = list_checkpoints(copy / "checkpoints")[0]
    shutil.copytree(copy / "last", copy / "best", dirs_exist_ok=True)
    run(copy, resume=str(first), epochs=3, knn_every=3)
    entry = json.loads((copy / "best" / "config.json").read_text())["simco_zoo"]
    summary = json.loads((copy / "summary.json").read_text())
    assert entry["metrics"]["knn_top1"] == summary["best_knn_top1"]
    assert entry["recipe"]["steps"] in (3, 9)


@pytest.mark.parametrize("what", ["last removed", "best removed", "last damaged", "config cut"])
def test_a_finished_run_whose_models_are_lost_publishes_them_again(what, copy):
    expected = weights(copy / "last")
    name, _, how = what.partition(" ")
    if how == "removed":
        shutil.rmtree(copy / name)
    else:
        file = copy / "last" / ("model.safetensors" if how == "damaged" else "config.json")
        file.write_bytes(file.read_bytes()[:-9])
    run(copy)
    assert_equal(weights(copy / "last"), expected)
    assert_equal(weights(copy / "best"), expected)


@pytest.mark.parametrize("entry", ["{", '{"run": 7}', '{"identity": "x"}', '{"schedule": [], "branched_from": 5}'])
def test_a_damaged_run_file_loses_no_run(entry, copy):
    (copy / "run.json").write_text(entry)
    (copy / "summary.json").unlink()
    run(copy)
    assert json.loads((copy / "summary.json").read_text())["start_step"] == 6


def test_a_persons_files_in_a_published_folder_are_seen_before_the_first_step(copy, monkeypatch):
    (copy / "last" / "notes.txt").write_text("mine")
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"holds files that .*notes.txt"):
        patch.setattr(Pretraining, "step", lambda *_: pytest.fail("training began"))
        run(copy, epochs=3)
    assert (copy / "last" / "notes.txt").read_text() == "mine"


def test_a_finished_run_can_be_extended(copy, capfd):
    run(copy, epochs=4, progress_bar=None)
    assert "goes on from step 6 of 12" in capfd.readouterr().err
    summary = json.loads((copy / "summary.json").read_text())
    assert (summary["start_step"], summary["steps"]) == (6, 12)
    assert [int(row["step"]) for row in rows(copy)] == [3, 6, 9, 12]
    state = last_state(copy)
    assert state["phases"] == [
        {"start": 0, "end": 6, "warmup": 0, "decay": 6},
        {"start": 6, "end": 12, "warmup": 0, "decay": 6},
    ]
    rates = [float(row["lr"]) for row in rows(copy)]
    assert rates[1] == pytest.approx(0) and rates[2] == pytest.approx(rates[0]) and rates[3] == pytest.approx(0)
    assert run(copy, epochs=4) == copy / "last"


def test_an_extended_run_that_has_not_begun_to_decay_is_the_longer_run(tmp_path, monkeypatch):
    settings = {"decay_share": 0.25, "warmup_epochs": 0}
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 4)
        run(tmp_path / "a", epochs=2, **settings)
    run(tmp_path / "a", epochs=4, **settings)
    run(tmp_path / "b", epochs=4, **settings)
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert_equal(weights(tmp_path / "a" / "last"), weights(tmp_path / "b" / "last"))


def test_the_rate_of_an_extended_run_warms_up_again_and_decays():
    config = TrainingConfig(warmup_epochs=1, lr=0.1, batch_size=256, decay_share=0.5)
    first = plan(config, 10, 0, 100)
    assert extend([first], config, 10, step=50, end=200) == [plan(config, 10, 0, 200)]
    phases = extend([first], config, 10, step=51, end=200)
    assert phases[0] == first and (phases[1].start, phases[1].warmup, phases[1].decay) == (51, 10, 74)
    optimizer = build_optimizer(torch.nn.Linear(1, 1), config)
    schedule = build_schedule(optimizer, config, phases[1])
    found = []
    for step in range(51, 201):
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    assert found[:11] == pytest.approx([0.01 + 0.009 * i for i in range(11)])
    assert found[10:76] == pytest.approx([0.1] * 66)
    assert found[-1] == pytest.approx(0, abs=1e-9)


# Within an epoch


@pytest.mark.parametrize("number", [signal.SIGTERM, None])
def test_a_resumed_runs_log_is_the_uninterrupted_ones(number, tmp_path, monkeypatch):
    """Also where the process died between two checkpoints of a long epoch: those are written by the clock."""
    settings = {"batch_size": 4, "checkpoint_minutes": 1e-9 if number is None else 0.0}
    run(tmp_path / "whole", **settings)

    def crash():
        raise RuntimeError("crash")

    what = crash if number is None else lambda: signal.raise_signal(number)
    with monkeypatch.context() as patch, pytest.raises((Interrupted, RuntimeError)):
        stop_at(patch, 9, what)
        run(tmp_path / "cut", **settings)
    run(tmp_path / "cut", **settings)
    start = json.loads((tmp_path / "cut" / "summary.json").read_text())["start_step"]
    assert start == (8 if number is None else 9)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert_equal(weights(tmp_path / "cut" / "last"), weights(tmp_path / "whole" / "last"))
    seconds = [float(row["seconds"]) for row in csv.DictReader((tmp_path / "cut" / "log.csv").open())]
    assert seconds == sorted(seconds) and seconds[-1] > 0


def test_images_that_are_decoded_on_the_way_resume_bit_identically(tmp_path, monkeypatch):
    """torch's loader draws from the generator that drop path draws from, too."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for i in range(24):
        (tmp_path / "images").mkdir(exist_ok=True)
        pixels = torch.randint(0, 256, (16, 16, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "images" / f"{i:02d}.png")

    def start(name: str, **settings) -> dict:
        data = load_images(tmp_path / "images", in_memory=False, image_size=16)
        network = model(backbone_kwargs={"drop_path_rate": 0.3})
        pretrain(network, data, output=tmp_path / name, **{**SETTINGS, "batch_size": 4, "workers": 1, **settings})
        return last_state(tmp_path / name)

    whole = start("whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 8)
        start("cut")
    resumed = start("cut")
    assert_equal(resumed["model"], whole["model"])
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    network = model()

    def poison():
        with torch.no_grad():
            network.projector[0].weight.fill_(float("nan"))
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(TrainingError, match="weights are not finite after step 5"):
        stop_at(patch, 5, poison)
        run(tmp_path / "run", start=network, log_every=100)
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000003.pt"]
    run(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["start_step"] == 3


# What is said, what is left


def test_what_a_killed_process_left_is_removed(copy):
    (copy / ".partial-log.csv").write_text("half")
    (copy / "checkpoints" / ".partial-step-00000009.pt").write_text("half")
    shutil.copytree(copy / "best", copy / ".best-k2j3")
    (copy / "best").rename(copy / ".best-old-123")  # killed between the two renames
    expected = (copy / ".best-old-123" / "model.safetensors").read_bytes()
    run(copy)
    assert not list(copy.rglob(".*"))
    assert (copy / "best" / "model.safetensors").read_bytes() == expected


def test_without_a_terminal_there_is_a_line_per_epoch(tmp_path, monkeypatch, capfd):
    run(tmp_path / "run", progress_bar=None)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2 and re.match(
        r"epoch 2, step 6/6: loss \d\.\d+, kNN \d+\.\d %, lr .*; about 0:00:00 left", lines[1]
    )
    monkeypatch.setattr("simco_zoo.training.progress.LINE_EVERY", 0.0)
    run(tmp_path / "b", progress_bar=None, log_every=1)
    assert "step 2/6: loss" in capfd.readouterr().err
    run(tmp_path / "b", progress_bar=None)
    assert "is finished" in capfd.readouterr().err


def test_a_loader_process_that_dies_is_named(tmp_path, monkeypatch):
    def died(*_):
        yield from ()
        raise RuntimeError("DataLoader worker (pid(s) 4711) exited unexpectedly")

    monkeypatch.setattr(Pretraining, "batches", died)
    with pytest.raises(
        TrainingError, match="ended by the system, most likely for lack of memory; pass fewer --workers"
    ):
        run(tmp_path / "run")


@pytest.mark.parametrize("config", [TrainingConfig, FinetuneConfig])
@pytest.mark.parametrize("value", [-1.0, 0.0, float("nan"), float("inf")])
def test_clip_grad_is_positive(config, value):
    with pytest.raises(ValueError, match="clip_grad is"):
        config(clip_grad=value)
