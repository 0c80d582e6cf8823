"""The studies that train: their cells, their tables, going on, figures and captions."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

import simco_zoo
from simco_zoo.analysis import cells
from simco_zoo.analysis.methods import BATCH, COLLAPSE
from simco_zoo.analysis.negatives import DICTIONARIES, STALENESS, TEMPERATURE
from simco_zoo.analysis.study import Settings, run_study
from simco_zoo.cli.analyze import QUICK, main
from simco_zoo.training import TrainingError, pretraining

STUDIES = [DICTIONARIES, TEMPERATURE, STALENESS, BATCH, COLLAPSE]
TINY = Settings(backbone="test_resnet", steps=3, batch_size=16, image_size=16, limit=32)


def table(path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def trained(monkeypatch):
    """Replaces the training by numbers; a list of the cells that were run."""
    ran = []

    def run(cell):
        ran.append(cell)
        number = len(ran)
        measured = dict.fromkeys(cells.MEASURED, number / 10) | {"collapsed": 0, "step": 4}
        row = {**cell.labels, "seed": cell.training["seed"], **measured}
        return row, [{**row, "step": 0}, row]

    monkeypatch.setattr(cells, "run_cell", run)
    return ran


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_row_per_cell_and_no_cell_twice(study, tmp_path, trained):
    settings = Settings(**{**QUICK, "steps": 128, "batch_size": 256})
    said = []
    run_study(study, settings, tmp_path, max_cells=3, say=said.append)
    assert len(trained) == 3
    caption, _ = run_study(study, settings, tmp_path, max_cells=0)  # draws what is there
    assert len(trained) == 3 and "3 of " in caption and "nan" not in caption
    caption, failed = run_study(study, settings, tmp_path, say=said.append)
    rows = table(tmp_path / f"{study.name}.csv")
    assert len(rows) == len(trained) == len({tuple(row[name] for name in study.labels) for row in rows}) > 5
    assert len(table(tmp_path / f"{study.name}_epochs.csv")) == 2 * len(rows) and not failed
    assert (tmp_path / f"{study.name}.png").stat().st_size > 10_000
    assert (tmp_path / f"{study.name}.txt").read_text().strip() == caption
    assert study.expected in caption and "Found: " in caption and "nan" not in caption and "None" not in caption

    more = Settings(**{**QUICK, "steps": 128, "batch_size": 256, "seeds": (0, 1)})
    again, _ = run_study(study, more, tmp_path, say=said.append)
    assert len(trained) == 2 * len(rows) and f"{len(rows)} of them done before" in said[-len(rows) - 1]
    knn: dict[tuple[str, ...], list[float]] = {}
    for row in table(tmp_path / f"{study.name}.csv"):
        knn.setdefault(tuple(row[name] for name in study.labels), []).append(float(row["knn_top1"]))
    noise = np.sqrt(np.mean([np.var(pair, ddof=1) for pair in knn.values()]))
    assert "2 seeds" in again and f"differ by a standard deviation of {noise:.2f} ({len(rows)} cells)" in again
    assert "differ by" not in caption
    with pytest.raises(ValueError, match="results with another steps, lr; pass the same"):
        run_study(study, Settings(**{**QUICK, "batch_size": 256, "lr": 1.0}), tmp_path)


def test_cells_of_every_study():
    found = {study.name: list(study.make_cells(TINY)) for study in STUDIES}
    sizes = {(c.labels["vector"], c.labels["scalar"]) for c in DICTIONARIES.make_cells(Settings(steps=512))}
    assert sizes == {(v, s) for v in (256, 1024, 4096, 16384) for s in (256, 1024, 4096, 16384)}
    assert {c.labels["strength"] for c in found["dictionaries"]} == {"own", "mean", "scaled"}
    steps = {c.labels["batch"]: c.training["max_steps"] for c in BATCH.make_cells(Settings(steps=100))}
    assert steps == {1024: 25, 256: 100, 64: 400, 16: 1600}  # the same number of images
    skipped = {c.labels["value"]: c.arguments.get("skip") for c in STALENESS.make_cells(Settings(steps=128))}
    assert skipped[1.0] == 0 and skipped[4.0] == 3 * 256 and skipped[16.0] == 15 * 256 and 64.0 not in skipped
    assert {c.arguments["dt_m"] for c in found["temperature"]} >= {1.0, 10.0, float("inf")}


def test_a_cell_trains_and_is_measured(tmp_path):
    cell = next(iter(TEMPERATURE.make_cells(TINY)))
    row, curve = cells.run_cell(cells.Cell(**{**cell.__dict__, "folder": tmp_path}))
    assert row["tau_beta"] == cell.labels["tau_beta"]
    assert row["step"] == 3 and row["collapsed"] == 0 and 0 <= row["knn_top1"] <= 100
    assert [point["step"] for point in curve] == [0, 2, 3]
    assert 0 < row["train_strength_mean"] <= 1 and row["train_strength_cv"] >= 0
    assert not (tmp_path / "checkpoints").exists() and (tmp_path / "last" / "model.safetensors").is_file()


def test_a_cell_continues_published_weights(tmp_path):
    settings = Settings(**{**TINY.__dict__, "start": "simco_r18_025"})
    published = simco_zoo.create_model("simco_r18_025", pretrained=True).state_dict()
    for study in (TEMPERATURE, BATCH):
        started = cells._build(next(iter(study.make_cells(settings))))
        assert started.method == {"temperature": "dictionaries", "batch": "simco"}[study.name]
        assert all(torch.equal(started.state_dict()[name], value) for name, value in published.items())
        assert getattr(started, "dt_m", None) in (0.5, 1.0)  # of the study, not of the weights
    with pytest.raises(ValueError, match="weights of simco, but this cell trains mocov2"):
        run_study(COLLAPSE, settings, tmp_path / "collapse")
    assert not (tmp_path / "collapse").exists()  # no training has begun
    caption, _ = run_study(TEMPERATURE, settings, tmp_path, max_cells=1)
    assert caption.startswith("from the weights of simco_r18_025 on photos at 16 px")
    assert 0 < float(table(tmp_path / "temperature_epochs.csv")[0]["strength_cv"]) < 2


def test_a_collapse_is_a_result(tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "COLLAPSED_STD", 100.0)
    cell = list(COLLAPSE.make_cells(TINY))[-1]
    row, curve = cells.run_cell(cells.Cell(**{**cell.__dict__, "folder": tmp_path}))
    assert row["variant"] == "SimSiam, none" and row["collapsed"] == 1 and row["knn_top1"] is None
    assert len(curve) == 2 and row["center_norm"] == curve[-1]["center_norm"] != curve[0]["center_norm"]


def test_a_training_that_fails_leaves_the_others(tmp_path, monkeypatch, trained, capsys):
    run = cells.run_cell

    def fails_once(cell):
        if cell.labels == {"kind": "age", "value": 1.0}:
            raise TrainingError("the loss is nan")
        return run(cell)

    monkeypatch.setattr(cells, "run_cell", fails_once)
    assert main(["staleness", "--quick", "--output", str(tmp_path)]) == 1
    out, error = capsys.readouterr()
    assert "failed: kind=age-value=1-seed=0: the loss is nan" in error
    assert json.loads(out.splitlines()[-1])["failed"] == 1 and len(table(tmp_path / "staleness.csv")) == 5


def test_processes(tmp_path, capsys):
    flags = ["--backbone", "test_resnet", "--steps", "1", "--batch-size", "15", "--limit", "16", "--image-size", "16"]
    assert main(["batch", *flags, "--processes", "2", "--output", str(tmp_path)]) == 0
    rows = table(tmp_path / "batch.csv")
    assert sorted(float(row["dt_m"]) for row in rows) == [1.0, 2.0, 10.0, float("inf")]
    assert len({row["loss"] for row in rows}) == 4
    assert "one seed" in capsys.readouterr().out
