"""The recipes as a user runs them: scripts in a process of their own, on tiny inputs."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image

import simco_zoo
from simco_zoo.arguments import CONFIGS, read_settings
from simco_zoo.cli import COMMANDS, pretrain
from simco_zoo.cli.pretrain import build_model, build_parser
from simco_zoo.models.methods import METHODS
from simco_zoo.training import TrainingConfig
from simco_zoo.training.checkpoint import list_checkpoints
from tests.data.pictures import bright_and_dark

RECIPES = Path(__file__).parents[2] / "recipes"


def call(recipe: str, *arguments: object, check: bool = True, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, str(RECIPES / recipe), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    if check and done.returncode:
        pytest.fail(f"{recipe} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


def last_json(done: subprocess.CompletedProcess) -> dict:
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes of 20 images of 40 x 36 px, in folders for training and test."""
    return bright_and_dark(tmp_path_factory.mktemp("images"), 20, 6, (40, 36))


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("runs") / "r"
    done = call(
        "pretrain.py", "--model", "simco", "--backbone", "test_resnet", "--dataset", folder, "--image-size", 32,
        "--batch-size", 8, "--epochs", 2, "--max-steps", 8, "--lr", 0.1, "--output", output,
    )  # fmt: skip
    assert "test_resnet gets the small-image stem" in done.stdout
    return output, last_json(done)


def test_pretrain(run):
    output, summary = run
    assert set(summary) >= {"loss", "steps", "knn_top1", "images_per_second", "folder", "start_step"}
    assert summary["steps"] == 8 and summary["folder"] == str(output / "last")
    names = {path.name for path in output.iterdir()}
    assert names >= {"config.yaml", "log.csv", "last", "best", "checkpoints", "summary.json"}
    settings = yaml.safe_load((output / "config.yaml").read_text())
    assert settings["lr"] == 0.1 and settings["backbone"] == "test_resnet"
    x = torch.randn(1, 3, 32, 32)
    ours = simco_zoo.create_model(f"local-dir:{summary['folder']}", pretrained=True).eval()
    assert torch.equal(ours(x), timm.create_model(f"local-dir:{summary['folder']}", pretrained=True).eval()(x))
    config = json.loads((output / "last" / "config.json").read_text())
    assert "/" not in config["simco_zoo"]["data"]["name"]  # where a folder lay is nobody's business


@pytest.mark.parametrize("way", ["--model NAME.TAG", "--model local-dir:", "--weights", "--pretrained", "none"])
def test_training_starts_from_the_weights_that_were_named(way):
    shipped = simco_zoo.create_model("simco_r18_025", pretrained=True)
    folder = Path(simco_zoo.__file__).parent / "weights" / "simco_r18_025.cifar100"
    words = {
        "--model NAME.TAG": ["--model", "simco_r18_025.cifar100"],
        "--model local-dir:": ["--model", f"local-dir:{folder}"],
        "--weights": ["--model", "simco_r18_025", "--weights", str(folder)],
        "--pretrained": ["--model", "simco_r18_025", "--pretrained"],
        "none": ["--model", "simco_r18_025"],
    }[way]
    model = build_model(build_parser().parse_args([*words, "--dataset", "photos"]), 32, 64)
    assert model.loaded_from == ("" if way == "none" else "simco_r18_025.cifar100")
    assert torch.equal(model.backbone.conv1.weight, shipped.backbone.conv1.weight) == (way != "none")


def test_a_finished_run_says_so_and_prints_its_json(run):
    output, summary = run
    done = call("pretrain.py", "--config", output / "config.yaml")
    assert last_json(done) == summary
    assert "is finished" in done.stdout


def test_killed_and_resumed_is_bit_identical(run, folder, tmp_path):
    """SIGKILL, at whatever step it hits; then the same command once more."""
    output, _ = run
    command = [sys.executable, str(RECIPES / "pretrain.py"), "--config", str(output / "config.yaml")]
    command += ["--output", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list_checkpoints(tmp_path / "killed" / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = last_json(call("pretrain.py", "--config", output / "config.yaml", "--output", tmp_path / "killed"))
    assert again["start_step"] in (5, 8)
    for file in ("model.safetensors", "projector.safetensors"):
        assert (tmp_path / "killed" / "last" / file).read_bytes() == (output / "last" / file).read_bytes()


def test_other_settings_leave_the_runs_settings_alone(run):
    before = (run[0] / "config.yaml").read_text()
    done = call("pretrain.py", "--config", run[0] / "config.yaml", "--lr", 0.2, check=False)
    assert done.returncode == 1 and "lr: 0.1 then, 0.2 now" in done.stderr
    assert (run[0] / "config.yaml").read_text() == before


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to a process of its own there")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_loadable_checkpoint(number, status, folder, tmp_path):
    command = [sys.executable, str(RECIPES / "pretrain.py"), "--model", "simco", "--backbone", "test_resnet"]
    command += ["--dataset", str(folder), "--image-size", "32", "--batch-size", "8", "--epochs", "5000"]
    command += ["--output", str(tmp_path / "run"), "--knn-every", "0"]
    # whoever runs the tests in the background of a script lets its children ignore SIGINT
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not list_checkpoints(tmp_path / "run" / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status and "interrupted" in err
    assert simco_zoo.create_model(f"local-dir:{tmp_path / 'run' / 'last'}", pretrained=True)


def test_evaluations(run, folder):
    model = f"local-dir:{run[1]['folder']}"
    knn = last_json(call("knn.py", "--model", model, "--dataset", folder, "--k", 5))
    assert knn["top1"] == pytest.approx(100, abs=20) and knn["train"] == 40 and knn["test"] == 12
    probe = last_json(call("linear_probe.py", "--model", model, "--dataset", folder))
    assert probe["top1"] > 75 and set(probe) >= {"top1", "top5"}
    untrained = last_json(
        call("knn.py", "--model", "simco_r18_025", "--weights", "none", "--dataset", folder, "--k", 5)
    )
    assert untrained["model"] == "simco_r18_025"


def test_extract(run, folder, tmp_path):
    model = f"local-dir:{run[1]['folder']}"
    (tmp_path / "mixed").mkdir()
    for i, size in enumerate([(10, 80), (300, 200)]):
        Image.new("CMYK", size).save(tmp_path / "mixed" / f"{i}.jpg")
    (tmp_path / "mixed" / "x.png").write_text("no image")
    done = call("extract.py", "--model", model, "--images", tmp_path / "mixed", "--output", tmp_path / "f.parquet")
    assert last_json(done)["count"] == 2 and "skipped x.png" in done.stderr
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x.png").write_text("no image")
    failed = call(
        "extract.py", "--model", model, "--images", tmp_path / "none", "--output", tmp_path / "g.npz", check=False
    )
    assert failed.returncode != 0 and "none of the 1 images" in failed.stderr
    assert not (tmp_path / "g.npz").exists()


def test_publish_dry_run(run):
    done = last_json(call("publish.py", "--folder", run[0] / "best", "--repo", "a/b", "--dry-run"))
    assert done["dry_run"] and "model.safetensors" in done["files"]


@pytest.mark.parametrize(("recipe", "arguments", "message"), [
    ("pretrain.py", ["--model", "simco"], "needs a backbone"),
    ("pretrain.py", ["--dataset", "/no/such/folder"], "there is no folder"),
    ("pretrain.py", ["--epochs", "0"], "epochs is 0"),
    ("pretrain.py", ["--dataset", "/no/such", "--streaming"], "say what size they get with --image-size"),
    ("knn.py", ["--model", "simco_r99"], "simco_r99"),
    ("extract.py", ["--images", "photos", "--output", "x.txt"], "has to end in one of"),
    ("publish.py", ["--folder", "/no/such", "--repo", "a/b"], "/no/such"),
])  # fmt: skip
def test_errors_are_one_sentence(recipe, arguments, message):
    done = call(recipe, *arguments, check=False)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_the_tour_runs(tmp_path, monkeypatch):
    """The cells of the notebook, with fewer images and a shorter training."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads((RECIPES / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in code[1:]), "the notebook is kept executed"
    assert sum("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"]) == 3
    scope: dict = {}
    for cell in code:
        exec("".join(cell["source"]), scope)
        if cell["metadata"].get("tags") == ["parameters"]:
            scope.update(PATCHES=96, EPOCHS=1)
    assert {path.name for path in (tmp_path / "runs/tour").glob("*.png")} == {"neighbors.png", "map.png", "knn.png"}
    assert scope["top1"]["shipped weights"] > scope["top1"]["raw pixels"]
    assert simco_zoo.create_model(f"local-dir:{scope['folder']}", pretrained=True).num_features == 128


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_configs_name_real_settings(file):
    args, config = read_settings(pretrain.build_parser(), TrainingConfig, ["--config", str(file)])
    if args.model in METHODS:
        assert timm.is_model(args.backbone)
    else:
        assert args.model in simco_zoo.list_models()
    assert config.peak_lr > 0
    by_name = read_settings(pretrain.build_parser(), TrainingConfig, ["--config", f"{file.parent.name}/{file.stem}"])
    assert by_name[1] == config and (RECIPES / "configs" / file.relative_to(CONFIGS)).samefile(file)


@pytest.mark.parametrize("script", sorted(RECIPES.glob("*.py")), ids=lambda path: path.stem)
def test_a_recipe_that_is_a_command_has_its_first_sentence(script):
    """And its example: the script and the command are documented in one voice."""
    text = ast.get_docstring(ast.parse(script.read_text())) or ""
    command = re.search(r"simco_zoo/cli/(\w+)\.py", text)
    if command is None:
        assert script.stem in ("benchmark", "reproduce", "ship", "analyze")  # of this checkout only
        return
    described = importlib.import_module(f"simco_zoo.cli.{command[1]}").__doc__ or ""
    assert text.splitlines()[0] == described.splitlines()[0]
    assert f"    python recipes/{script.name}" in text
    assert any(command[1] in group for group in COMMANDS.values())
