"""The table of models: what the cards say, and what stands in the README."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import simco_zoo
from simco_zoo.cli import main
from simco_zoo.hub import published
from simco_zoo.publishing.table import BEGIN, END, HEADER, as_markdown, model_rows, write_into

ROOT = Path(__file__).parents[2]


def test_rows_are_those_of_the_cards():
    rows = {row[0]: dict(zip(HEADER, row, strict=True)) for row in model_rows(simco_zoo.list_models())}
    assert set(rows) == set(simco_zoo.list_models())
    assert rows["simmoco_r50"] | {"params": ""} == dict.fromkeys(HEADER, "-") | {
        "name": "simmoco_r50", "method": "SimMoCo", "params": "", "where": "not published",
    }  # fmt: skip
    for name, entry in published().items():
        row = dict(zip(HEADER, model_rows([name])[0], strict=True))
        config = json.loads((entry.folder / "config.json").read_text())["simco_zoo"]
        size = sum((entry.folder / file).stat().st_size for file in config["files"])
        parameters = sum(p.numel() for p in simco_zoo.create_model(name).backbone.parameters())
        assert row["params"] == f"{parameters / 1e6:.2f} M" and row["size"] == f"{size / 1e6:.1f} MB"
        assert float(row["kNN"]) == pytest.approx(config["metrics"]["knn_top1"], abs=0.005)
        assert f"| {row['kNN']} |" in (entry.folder / "README.md").read_text()


def test_models_with_weights_have_rows_and_the_others_are_named_below():
    rows = model_rows(simco_zoo.list_models())
    table, names = as_markdown(rows).split("\n\n")
    assert [line.split("`")[1] for line in table.splitlines()[2:]] == [row[0] for row in rows if row[-1] == "ships"]
    assert set(names.split("`")[1::2]) == {row[0] for row in rows if row[-1] == "not published"}
    assert max(len(line) for line in names.splitlines()) <= 121


def test_the_readme_is_up_to_date(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text())
    stale = write_into(copy, as_markdown(model_rows(simco_zoo.list_models())))
    assert not stale, "the README's table of models is stale; run: simco-zoo list --into README.md"


def test_every_promise_names_a_test_that_exists():
    tests = Path(__file__).parents[1]
    section = (tests.parent / "README.md").read_text(encoding="utf-8").split("| fault | outcome | tests |")[1]
    rows = [line for line in section.split("\n\n")[0].splitlines() if line.startswith("| ")]
    files = {row: re.findall(r"`([\w/]+\.py)`", row.split("|")[-2]) for row in rows if "---" not in row}
    assert len(files) > 5 and all(files.values()), files
    assert [name for names in files.values() for name in names if not (tests / name).is_file()] == []


def test_a_stale_table_is_replaced_and_the_rest_stays(tmp_path, capsys):
    file = tmp_path / "x.md"
    file.write_text(f"before\n{BEGIN}\n| old |\n{END}\nafter\n")
    assert main(["list", "simco_r5*", "--into", str(file)]) == 0 and "is new" in capsys.readouterr().out
    lines = file.read_text().splitlines()
    assert lines[:2] == ["before", BEGIN] and lines[-2:] == [END, "after"] and "| old |" not in lines
    assert lines[2:4] == ["Without published weights so far:", "`simco_r50`."]
    assert main(["list", "simco_r5*", "--into", str(file)]) == 0 and "up to date" in capsys.readouterr().out
    file.write_text("no marks")
    assert main(["list", "--into", str(file)]) == 2 and "needs one line" in capsys.readouterr().err
    assert file.read_text() == "no marks"


COMPACT = [name for name in published() if name.endswith("_025.cifar100")]


@pytest.mark.parametrize("name", COMPACT)
def test_the_shipped_models_are_as_accurate_as_their_cards_say(name, cifar100, fuzz_count):
    """kNN to 0.2 points, where the data are; of the compact models, for a CPU's sake."""
    if fuzz_count and name != "simco_r18_025.cifar100":
        pytest.skip("takes a minute; --fuzz 0 measures every compact model")
    model = simco_zoo.create_model(name, pretrained=True)
    bank, test = (simco_zoo.extract_features(model, cifar100, split=split) for split in ("train", "test"))
    found = simco_zoo.evaluation.knn(bank.features, bank.labels, test.features, test.labels)
    metrics = published()[name].config["simco_zoo"]["metrics"]
    assert found["top1"] == pytest.approx(metrics["knn_top1"], abs=0.2)
    assert torch.isfinite(bank.features).all()
