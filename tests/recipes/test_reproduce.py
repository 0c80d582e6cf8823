"""The paper's table as a command: its cells' settings, their running and resuming, its csv file and summary."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

import simco_zoo
from simco_zoo.arguments import read_settings
from simco_zoo.data import PRESETS, load_images
from simco_zoo.training.checkpoint import list_checkpoints

RECIPES = Path(__file__).parents[2] / "recipes"
sys.path.insert(0, str(RECIPES))
try:
    import reproduce
    from paper import cell as paper_cell
    from paper import cells, scheduler
    from paper import table as paper_table

    from simco_zoo.cli import pretrain as pretrain_recipe
finally:
    sys.path.remove(str(RECIPES))


def read_rows(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# What a cell passes to pretrain


def build(method: str, batch_size: int = 256, **options):
    """The model and the settings that pretrain.py makes of a cell's command."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    args = reproduce.build_parser().parse_args(["--methods", method, "--batch-sizes", str(batch_size), *words])
    (cell,) = reproduce.list_cells(args)
    python, script, *flags = scheduler.command(cell, args, "pretrain.py")
    assert python == sys.executable and Path(script) == RECIPES / "pretrain.py"
    settings, config = read_settings(pretrain_recipe.build_parser(), pretrain_recipe.TrainingConfig, flags)
    return settings, config, pretrain_recipe.build_model(settings, 32, 50_000)


@pytest.mark.parametrize(("method", "expected"), [
    ("mocov2", {"method": "mocov2", "queue_size": 65536, "momentum": 0.99, "symmetric": False, "bn_splits": 1}),
    ("simmoco", {"method": "simmoco", "dt_m": 10, "momentum": 0.99, "symmetric": False}),
    ("simco", {"method": "simco", "dt_m": 10, "symmetric": True}),
    ("mocov2-symmetric", {"method": "mocov2", "queue_size": 65536, "momentum": 0.99, "symmetric": True,
                          "bn_splits": 1}),
    ("simmoco-symmetric", {"method": "simmoco", "dt_m": 10, "momentum": 0.99, "symmetric": True}),
    ("mocov2-q4096", {"method": "mocov2", "queue_size": 4096, "momentum": 0.99, "symmetric": False, "bn_splits": 1}),
    ("mocov2-q4096-split", {"method": "mocov2", "queue_size": 4096, "momentum": 0.99, "symmetric": False,
                            "bn_splits": 8}),
    ("simco-infonce", {"method": "simco", "dt_m": 1, "symmetric": True}),
    ("simco-onesided", {"method": "simco", "dt_m": 10, "symmetric": False}),
])  # fmt: skip
def test_each_cell_trains_in_the_papers_settings(method, expected):
    settings, config, model = build(method)
    assert {name: getattr(model, name) for name in expected} == expected
    assert model.temperature == 0.1 and not model.joint_bn
    assert [type(layer) for layer in model.projector] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [(layer.in_features, layer.out_features) for layer in model.projector[::2]] == [(512, 128), (128, 128)]
    stem = model.backbone.conv1
    assert (stem.kernel_size, stem.stride, stem.padding, stem.bias) == ((3, 3), (1, 1), (1, 1), None)
    assert isinstance(model.backbone.maxpool, nn.Identity)
    assert sum(p.numel() for p in model.backbone.parameters()) == pytest.approx(11.2e6, rel=0.01)  # ResNet-18
    assert (config.epochs, config.max_steps, config.batch_size, config.accumulate) == (200, None, 256, 1)
    assert (config.opt, config.opt_momentum, config.weight_decay) == ("momentum", 0.9, 5e-4)
    assert (config.filter_bias_and_norm, config.clip_grad, config.warmup_epochs) == (False, None, 10)
    assert config.linear and config.online_linear and config.seed == 0
    views = PRESETS[config.views]
    assert views.scale == (0.08, 1.0) and views.interpolation == "bicubic" and views.size is None
    assert (views.jitter, views.brightness, views.contrast, views.saturation, views.hue) == (0.8, 0.4, 0.4, 0.4, 0.1)
    assert (views.grayscale, views.flip, views.blur, views.solarize) == (0.2, 0.5, 0, 0)
    assert (views.mean, views.std) == ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
    assert settings.dataset == "uoft-cs/cifar100" and settings.tag == "cifar100" and settings.limit is None


@pytest.mark.parametrize(("batch_size", "lr"), [(64, 0.0075), (128, 0.015), (256, 0.03), (512, 0.06), (1024, 0.12)])
def test_the_learning_rate_grows_with_the_batch(batch_size, lr):
    _, config, _ = build("simco", batch_size, backbone="r18_025")
    assert config.peak_lr == pytest.approx(lr, rel=1e-12) and config.batch_size == batch_size


def test_options_reach_the_run_and_its_folder():
    settings, config, model = build(
        "mocov2",
        stem_padding=2,
        backbone="r18_025",
        epochs=3,
        limit=512,
        seeds=4,
        amp="bf16",
        knn_every=1,
        device="cpu",
    )
    assert model.backbone.conv1.padding == (2, 2) and model.num_features == 128
    assert (config.epochs, config.seed, config.amp, config.knn_every, config.device) == (3, 4, "bf16", 1, "cpu")
    assert settings.limit == 512
    assert settings.output == Path("runs/reproduce/cifar100/r18_025/mocov2-b256-s4-e3-n512-p2-bf16").absolute()


def test_no_two_cells_share_a_folder():
    one = {"dataset": "cifar100", "method": "simco", "batch_size": 64, "seed": 0, "backbone": "r18", "epochs": 200}
    others = {
        "dataset": "cifar10",
        "method": "mocov2",
        "batch_size": 128,
        "seed": 1,
        "backbone": "r18_025",
        "epochs": 20,
    }
    others.update({"limit": 99, "stem_padding": 2, "amp": "bf16"})
    options = [one, *({**one, name: value} for name, value in others.items())]
    assert len({cells.Cell(data="x", **option).folder for option in options}) == len(options)


def test_the_headline_comes_first():
    args = ["--dataset", "cifar10", "cifar100", "--methods", *reversed(cells.METHODS), "--batch-sizes", "1024", "256"]
    folders = [cell.folder for cell in reproduce.list_cells(reproduce.build_parser().parse_args(args))]
    names = [folder.replace("/r18/", ":").removesuffix("-s0-e200") for folder in folders]
    assert names[:10] == [
        "cifar100:mocov2-b256", "cifar100:simmoco-b256", "cifar100:simco-b256",
        "cifar10:mocov2-b256", "cifar10:simmoco-b256", "cifar10:simco-b256",
        "cifar100:mocov2-symmetric-b256", "cifar100:simmoco-symmetric-b256",
        "cifar10:mocov2-symmetric-b256", "cifar10:simmoco-symmetric-b256",
    ]  # fmt: skip
    assert len(set(names)) == 36 and all(name.endswith("-b256") for name in names[:18])
    assert set(names[18:24]) == {f"{d}:{m}-b1024" for d in ("cifar100", "cifar10") for m in cells.PAPER}


# Running, with real runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three classes of 24 and 8 noisy images of 16 px."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        for label in range(3):
            (root / split / str(label)).mkdir(parents=True)
            for i in range(count):
                values = generator.integers(0, 256, (16, 16, 3)) * 0.9 + 8 * label
                Image.fromarray(values.astype(np.uint8)).save(root / split / str(label) / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def real(folder, tmp_path_factory):
    """A cell that SIGTERM ended once it had a checkpoint (in this process), and a command that goes on with it."""
    root = tmp_path_factory.mktemp("real")
    output, table = root / "runs", root / "results" / "table.csv"
    arguments = ["--dataset", "tiny", "--data", str(folder), "--methods", "mocov2", "--batch-sizes", "8"]
    arguments += ["--backbone", "test_resnet", "--epochs", "3", "--knn-every", "1", "--checkpoint-every", "1"]
    arguments += ["--device", "cpu", "--output", str(output), "--table", str(table)]
    run = output / "tiny" / "test_resnet" / "mocov2-b8-s0-e3"

    def end_it():
        deadline = time.monotonic() + 60
        while not list_checkpoints(run / "checkpoints") and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    args = reproduce.build_parser().parse_args(arguments)
    (cell,) = reproduce.list_cells(args)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # one that comes too late shall not end the tests
    try:
        thread = threading.Thread(target=end_it)
        thread.start()
        with pytest.warns(UserWarning, match="the queue of 65536 keys is as long as"):
            first = paper_cell.main(scheduler.command(cell, args, "paper/cell.py")[2:])
        thread.join()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not (run / "measured.json").exists()
    second = reproduce.main(arguments)
    return {"run": run, "table": table, "statuses": (first, second), "arguments": arguments}


def test_an_interrupted_cell_goes_on(real):
    assert real["statuses"] == (143, 0)
    summary = json.loads((real["run"] / "summary.json").read_text())
    assert 0 < summary["start_step"] < 27 == summary["steps"]
    with (real["run"] / "log.csv").open(newline="") as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == [1, 2, 3]


def test_the_row_is_the_runs_own(real):
    (row,) = read_rows(real["table"])
    run, summary = real["run"], json.loads((real["run"] / "summary.json").read_text())
    with (run / "log.csv").open(newline="") as file:
        log = list(csv.DictReader(file))
    assert {name: row[name] for name in ("dataset", "backbone", "method", "batch_size", "seed", "epochs")} == {
        "dataset": "tiny", "backbone": "test_resnet", "method": "mocov2", "batch_size": "8", "seed": "0",
        "epochs": "3",
    }  # fmt: skip
    assert (row["images"], row["stem_padding"], row["amp"], row["compile"]) == ("72", "1", "none", "none")
    assert row["folder"] == "tiny/test_resnet/mocov2-b8-s0-e3" and row["paper"] == "" and row["jobs"] == "1"
    for ours, column in (("knn", "knn_top1"), ("online", "online_top1")):
        values = [float(line[column]) for line in log]
        assert float(row[f"{ours}_last"]) == values[-1] and float(row[f"{ours}_best"]) == max(values)
    assert float(row["linear_last"]) == summary["linear_top1"]
    assert float(row["loss"]) == float(log[-1]["loss"]) and float(row["seconds"]) == summary["seconds"]
    assert float(row["images_per_second"]) == summary["images_per_second"]
    assert float(row["peak_memory_mb"]) == summary["peak_memory_mb"] and "cpu" in row["hardware"]
    assert row["simco_zoo"] == simco_zoo.__version__


def test_the_probe_of_best_is_best_s_own(real, folder, tmp_path):
    """best/ replaced by another network: the row's linear_best is that network's, by scikit-learn as well."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    run = tmp_path / "run"
    shutil.copytree(real["run"], run)
    shutil.rmtree(run / "best")
    other = simco_zoo.create_model("simco", backbone="test_resnet", small_stem=True)
    simco_zoo.save_pretrained(other, run / "best")
    flags = ["--dataset", str(folder), "--device", "cpu", "--output", str(run)]
    args, config = read_settings(pretrain_recipe.build_parser(), pretrain_recipe.TrainingConfig, flags)
    measured = paper_cell.measure(run, args, config)
    loaded = simco_zoo.create_model(f"local-dir:{run / 'best'}", pretrained=True)
    images = (load_images(folder, split=split) for split in ("train", "test"))  # of their own size, as the run saw them
    train, test = (simco_zoo.extract_features(loaded, part) for part in images)
    scaler = StandardScaler().fit(train.features)
    accuracies = set()
    for decay in (1e-5, 1e-4, 1e-3, 1e-2):  # the weight decays that the probe chooses from
        model = LogisticRegression(C=1 / (decay * len(train)), max_iter=1000)
        model.fit(scaler.transform(train.features), train.labels)
        accuracies.add(round(100 * model.score(scaler.transform(test.features), test.labels), 3))
    assert measured["linear_best"] in accuracies


def test_best_that_is_last_is_not_probed_twice(real, monkeypatch, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(real["run"], run)
    shutil.rmtree(run / "best")
    shutil.copytree(run / "last", run / "best")
    monkeypatch.delattr(paper_cell, "probe")
    measured = paper_cell.measure(run, None, None)
    assert measured["linear_best"] == measured["linear_last"] != ""


def test_dry_run_says_what_is_done(real, capsys):
    assert reproduce.main([*real["arguments"], "--methods", "mocov2", "simco", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "mocov2-b8-s0-e3: done" in out and "simco-b8-s0-e3: to do" in out and "--model simco " in out
    assert "padding 2" in out and "Online classifier" in out  # the deviations


# Running, with a stand-in for the cell's process

STAND_IN = textwrap.dedent(
    """
    import json, pathlib, signal, sys, time
    run, what = pathlib.Path(sys.argv[1]), sys.argv[2]
    saved = run / "saved"
    with (run / "starts").open("a") as file:
        file.write("x")
    if what == "fail":
        sys.exit("Traceback of something\\nerror: it does not fit")
    if what == "crash":
        import os
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "warn":
        print("somewhere/loop.py:1: UserWarning: the queue is long", flush=True)
    if what == "wait" and not saved.exists():
        def save(*_):
            saved.touch()
            sys.exit(143)
        signal.signal(signal.SIGTERM, save)
        (run / "ready").touch()
        time.sleep(60)
    if what == "together":
        (run / "ready").touch()
        deadline = time.monotonic() + 20
        while len(list(run.parent.glob("*/ready"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
    names = ["knn_last", "knn_best", "linear_last", "linear_best", "online_last", "online_best", "loss", "seconds",
             "images_per_second", "peak_memory_mb"]
    measured = {name: 1.0 for name in names} | dict.fromkeys(["hardware", "torch", "timm", "simco_zoo"], "x")
    (run / "measured.json").write_text(json.dumps({**measured, "images": 50000}))
    """
)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Calls the command, with cells that do what their method is told; returns its status."""
    monkeypatch.setattr(scheduler, "POLL", 0.02)
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)

    def tell(told: dict[str, str]) -> None:
        def command(cell, args, recipe):
            assert recipe == "paper/cell.py"
            return [sys.executable, "-S", str(script), str(args.output / cell.folder), told.get(cell.method, "")]

        monkeypatch.setattr(scheduler, "command", command)

    def call(told: dict[str, str], *arguments: str) -> int:
        tell(told)
        places = ["--output", str(tmp_path / "runs"), "--table", str(tmp_path / "table.csv")]
        return reproduce.main(["--batch-sizes", "256", "--methods", *told, *places, *arguments])

    call.root, call.tell = tmp_path, tell
    return call


def starts(root: Path, method: str, rest: str = "b256-s0-e200") -> int:
    file = root / "runs" / "cifar100" / "r18" / f"{method}-{rest}" / "starts"
    return len(file.read_text()) if file.is_file() else 0


def test_a_failure_leaves_the_others(stand_in, capsys):
    told = {"mocov2": "fail", "simmoco": "crash", "simco": ""}
    assert stand_in(told) == 1
    out, err = capsys.readouterr()
    result = json.loads(out.strip().splitlines()[-1])
    assert (result["cells"], result["done"], result["left"], len(result["failed"])) == (3, 1, 0, 2)
    assert "mocov2-b256-s0-e200: it does not fit" in err and "simmoco-b256-s0-e200: ended by SIGKILL" in err
    assert [row["method"] for row in read_rows(stand_in.root / "table.csv")] == ["simco"]
    # once more, with the fault gone: only what is missing runs
    assert stand_in(dict.fromkeys(told, "")) == 0
    assert [starts(stand_in.root, method) for method in told] == [2, 2, 1]
    assert [row["method"] for row in read_rows(stand_in.root / "table.csv")] == ["mocov2", "simmoco", "simco"]
    assert stand_in(dict.fromkeys(told, "fail")) == 0 and starts(stand_in.root, "simco") == 1


def test_other_settings_are_other_cells(stand_in):
    told = {"simco": ""}
    assert stand_in(told) == 0
    for other in (["--seeds", "1"], ["--amp", "bf16"], ["--stem-padding", "2"], ["--epochs", "3"], ["--limit", "9"]):
        assert stand_in(told, *other) == 0
    rows = read_rows(stand_in.root / "table.csv")
    assert len(rows) == 6 and len({row["folder"] for row in rows}) == 6
    assert starts(stand_in.root, "simco") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_goes_to_every_cell(stand_in, number, capsys):
    told = {"mocov2": "wait", "simmoco": "wait", "simco": ""}

    def send():
        deadline = time.monotonic() + 30
        while len(list((stand_in.root / "runs").rglob("ready"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    signal.signal(number, signal.default_int_handler)  # who runs the tests in the background ignores SIGINT
    try:
        thread = threading.Thread(target=send)
        thread.start()
        assert stand_in(told, "--jobs", "2") == 128 + number
        thread.join()
    finally:
        signal.signal(number, before)
    assert len(list((stand_in.root / "runs").rglob("saved"))) == 2
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result["left"] == 3 and result["failed"] == [] and starts(stand_in.root, "simco") == 0
    assert stand_in(told, "--jobs", "2") == 0
    assert len(read_rows(stand_in.root / "table.csv")) == 3


def test_the_time_limit_ends_running_cells_and_starts_no_more(stand_in, capsys):
    told = {"mocov2": "wait", "simmoco": ""}
    assert stand_in(told, "--time-limit", "0.03") == 124
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["left"] == 2
    assert starts(stand_in.root, "simmoco") == 0 and len(list((stand_in.root / "runs").rglob("saved"))) == 1


def test_rows_say_how_many_ran_at_once(stand_in):
    assert stand_in({"mocov2": "together", "simmoco": "together"}, "--jobs", "2") == 0
    assert stand_in({"simco": ""}, "--jobs", "2") == 0
    jobs = {row["method"]: row["jobs"] for row in read_rows(stand_in.root / "table.csv")}
    assert jobs == {"mocov2": "2", "simmoco": "2", "simco": "1"}


def test_warnings_are_passed_on_once(stand_in, capsys):
    assert stand_in({"mocov2": "warn", "mocov2-symmetric": "warn"}) == 0
    assert capsys.readouterr().err.count("the queue is long") == 1


def test_one_command_at_a_time(stand_in):
    """Also if the first was killed and a cell of it lives on."""
    output = stand_in.root / "runs"

    def is_taken() -> bool:
        try:
            with scheduler.only_one(output):
                return False
        except ValueError as error:
            assert "another command, or a cell" in str(error)
            return True

    stand_in.tell({"mocov2": "wait"})
    args = reproduce.build_parser().parse_args(["--output", str(output)])
    with scheduler.only_one(output) as lock:
        left_behind = scheduler.Job(reproduce.list_cells(args)[0], args, lock)
        assert is_taken()
    try:
        assert is_taken()
    finally:
        left_behind.process.kill()
        left_behind.process.wait()
    assert not is_taken()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--jobs", "0"], "jobs is 0"),
    (["--dataset", "cifar100", "cifar10", "--data", "x"], "1 places for 2 data sets"),
    (["--dataset", "uoft-cs/cifar100"], "say --dataset NAME --data uoft-cs/cifar100"),
])  # fmt: skip
def test_bad_arguments(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        reproduce.main([*arguments, "--output", str(tmp_path), "--table", str(tmp_path / "t.csv"), "--dry-run"])


# The table and its summary

# the official README's table, typed from the project's fact sheet
FIGURES = """
    MoCo v2  52.58  54.40  53.28  51.47  48.90
    SimMoCo  54.02  54.93  54.11  52.45  49.70
    SimCo    58.04  58.29  58.35  57.08  55.34
"""


def make_row(method="simco", batch_size=256, seed=0, **values) -> dict:
    row = dict.fromkeys(paper_table.COLUMNS, "")
    row.update({"dataset": "cifar100", "backbone": "r18", "epochs": 200, "images": 50_000, "stem_padding": 1})
    row.update({"method": method, "batch_size": batch_size, "seed": seed, "amp": "none", "jobs": 1, **values})
    row["paper"] = cells.paper_figure(row)
    keys = ("dataset", "backbone", "method", "batch_size", "seed", "epochs", "images", "stem_padding", "amp")
    return {**row, "folder": "-".join(str(row[key]) for key in keys)}


def summarize(tmp_path: Path, rows: list[dict], capsys, metric: str = "knn_last") -> str:
    for row in rows:
        paper_table.add_row(tmp_path / "table.csv", row)
    assert reproduce.main(["--summary", "--table", str(tmp_path / "table.csv"), "--metrics", metric]) == 0
    return capsys.readouterr().out


def line(text: str, start: str, after: str = "") -> list[str]:
    """The cells of the first line of a Markdown table that starts so, after some text."""
    found = next(row for row in text[text.index(after) :].splitlines() if row.startswith(f"| {start} "))
    return [cell.strip() for cell in found.strip("|").split("|")][1:]


def test_the_papers_figures():
    for line, method in zip(FIGURES.strip().splitlines(), ("mocov2", "simmoco", "simco"), strict=True):
        figures = [float(word) for word in line.split()[-5:]]
        for batch_size, figure in zip((64, 128, 256, 512, 1024), figures, strict=True):
            assert make_row(method, batch_size)["paper"] == figure


@pytest.mark.parametrize("other", [
    {"dataset": "cifar10"}, {"backbone": "r18_025"}, {"epochs": 199}, {"images": 49_999}, {"batch_size": 96},
    {"method": "simco-onesided"}, {"dataset": "photos", "images": 4000},
])  # fmt: skip
def test_other_cells_have_no_figure(other):
    assert make_row(**other)["paper"] is None


def test_summary_of_seeds(tmp_path, capsys):
    values = np.array([57.9, 58.61, 58.2])
    rows = [make_row(seed=seed, knn_last=value) for seed, value in enumerate(values)]
    rows += [make_row("mocov2", 64, knn_last=51.5), make_row("simco-infonce", 128, knn_last=50.25)]
    # none of these may enter the mean: other precision, other stem, reduced
    rows += [make_row(knn_last=1, amp="bf16"), make_row(knn_last=2, stem_padding=2), make_row(knn_last=3, epochs=10)]
    rows += [make_row(knn_last=4, images=512), make_row(knn_last=5, backbone="r18_025"), make_row(knn_last="", seed=7)]
    text = summarize(tmp_path, rows, capsys)
    after = "200 epochs, stem padding 1, fp32"
    assert line(text, "simco", after) == ["-", "-", f"{values.mean():.2f} ± {values.std(ddof=1):.2f} (3)", "-", "-"]
    assert line(text, "(paper)", after) == ["52.58", "54.40", "53.28", "51.47", "48.90"]
    assert line(text, "mocov2", after)[0] == "51.50 (1)" and line(text, "simco-infonce", after)[1] == "50.25 (1)"
    assert line(text, "simco", "stem padding 1, bf16")[2] == "1.00 (1)"
    assert line(text, "simco", "stem padding 2, fp32")[2] == "2.00 (1)"
    assert "cifar100, the paper's methods: 2 of 15, 13 missing" in text
    assert "cifar100, the controls: 1 of 30, 29 missing" in text
    written = (tmp_path / "table.md").read_text()
    assert text.splitlines()[4] in written and "Online classifier" in written  # with the deviations


def test_reduced_runs_never_stand_beside_the_paper(tmp_path, capsys):
    rows = [make_row(knn_last=31, backbone="r18_025", epochs=5), make_row(knn_last=11, images=512)]
    text = summarize(tmp_path, rows, capsys)
    full, reduced = text.split("# Reduced runs")
    assert "31.00" not in full and "11.00" not in full and "(paper)" not in reduced.split("not to be compared")[1]
    assert line(reduced, "simco", "r18_025, 5 epochs, 50000 images") == ["31.00 (1)"]
    assert line(reduced, "simco", "r18, 200 epochs, 512 images") == ["11.00 (1)"]
    assert "0 of 15, 15 missing" in full and "no picture: there is no full-length cell" in text
    assert not (tmp_path / "table.png").exists()


def test_picture_of_full_length_cells(tmp_path, capsys):
    text = summarize(tmp_path, [make_row(knn_last=57, seed=0), make_row(knn_last=58, seed=1)], capsys)
    assert "picture: " in text
    with Image.open(tmp_path / "table.png") as image:
        assert image.width > 400


def test_the_table_is_sorted_and_replaced_whole(tmp_path):
    table = tmp_path / "table.csv"
    rows = [make_row("simco", 1024), make_row("simco", 64, seed=1), make_row("simco", 64), make_row("mocov2", 512)]
    for row in [*rows, {**rows[0], "knn_last": 9.5}]:
        paper_table.add_row(table, row)
    found = read_rows(table)
    assert [(r["method"], r["batch_size"], r["seed"]) for r in found] == [
        ("mocov2", "512", "0"), ("simco", "64", "0"), ("simco", "64", "1"), ("simco", "1024", "0"),
    ]  # fmt: skip
    assert found[-1]["knn_last"] == "9.5" and [path.name for path in tmp_path.iterdir()] == ["table.csv"]
    table.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="does not have the columns"):
        paper_table.add_row(table, rows[0])
