"""The commands from a folder to answers: extract, search, predict, kNN and linear probe with their baselines."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import simco_zoo
from simco_zoo.cli import main
from simco_zoo.data import load_images
from simco_zoo.evaluation import knn, read_features
from simco_zoo.lock import locked
from tests.data.pictures import bright_and_dark

MODEL = ["--model", "simco_r18_025"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes of 10 training and 5 test images."""
    root = bright_and_dark(tmp_path_factory.mktemp("images"), 10, 5, (40, 36))
    # a copy of a training image, and nearly one
    (root / "test" / "dark" / "copy.png").write_bytes((root / "train" / "dark" / "3.png").read_bytes())
    return root


def run(capsys, *arguments: object) -> tuple[dict, str]:
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 0, capsys.readouterr().err
    printed = capsys.readouterr()
    return json.loads(printed.out.strip().splitlines()[-1]), printed.out + printed.err


def fails(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 2
    return capsys.readouterr().err


@pytest.fixture
def features(folder, tmp_path, capsys) -> Path:
    run(capsys, "extract", *MODEL, "--images", folder, "--output", tmp_path / "f.parquet")
    return tmp_path / "f.parquet"


def test_extract_takes_all_splits(features, folder):
    found = read_features(features)
    assert len(found) == 31 and found.splits.count("test") == 11 and found.class_names == ["bright", "dark"]
    assert found.info["model"] == "simco_r18_025" and found.info["image_size"] == 32
    model = simco_zoo.create_model("simco_r18_025", pretrained=True)
    expected = simco_zoo.extract_features(model, folder, split="all")
    torch.testing.assert_close(found.features, expected.features, rtol=1e-5, atol=1e-5)


def test_extract_as_asked(folder, tmp_path, capsys):
    flags = ["--image-size", 48, "--flip", "--amp", "bf16", "--split", "test"]
    _, said = run(capsys, "extract", *MODEL, "--images", folder, *flags, "--output", tmp_path / "f.csv")
    assert "images are seen at 48 px; the model was trained at 32 px" in said
    model = simco_zoo.create_model("simco_r18_025", pretrained=True)
    expected = simco_zoo.extract_features(model, folder, split="test", image_size=48, flip=True, amp=torch.bfloat16)
    torch.testing.assert_close(read_features(tmp_path / "f.csv").features, expected.features, rtol=1e-5, atol=1e-5)


def test_search(features, folder, tmp_path, capsys):
    query = tmp_path / "query.png"
    query.write_bytes((folder / "train" / "bright" / "7.png").read_bytes())
    result, said = run(capsys, "search", "--features", features, "--query", query, "-k", 3)
    ((found,),) = (result["queries"],)
    assert found["neighbors"][0] == {"name": "train/bright/7.png", "similarity": 1.0, "class": "bright"}
    assert [n["class"] for n in found["neighbors"]] == ["bright"] * 3
    assert "1  1.0000  train/bright/7.png  bright" in said
    assert Image.open(result["picture"]).size[0] > 300
    bank = read_features(features)
    indices, similarities = bank.search(bank.features[bank.names.index("train/bright/7.png")], k=3)
    assert [n["name"] for n in found["neighbors"]] == [bank.names[i] for i in indices[0]]
    assert [n["similarity"] for n in found["neighbors"]] == pytest.approx(similarities[0].tolist(), abs=1e-3)


def test_search_says_what_is_missing(features, folder, tmp_path, capsys):
    assert "pass --query PHOTO to find similar images, or --duplicates" in fails(
        capsys, "search", "--features", features
    )
    assert "no file" in fails(capsys, "search", "--features", features, "--query", tmp_path / "none.png")
    query = folder / "train" / "bright" / "7.png"
    _, said = run(capsys, "search", "--features", features, "--query", query, "--images", folder / "test")
    assert "no picture" in said
    run(capsys, "extract", *MODEL, "--images", folder, "--output", tmp_path / "f.csv")
    assert "does not say which model made it; pass --model" in fails(
        capsys, "search", "--features", tmp_path / "f.csv", "--query", query
    )
    result, _ = run(capsys, "search", *MODEL, "--features", tmp_path / "f.csv", "--query", query, "--images", folder)
    assert result["queries"][0]["neighbors"][0]["name"] == "train/bright/7.png" and result["picture"]


def test_search_by_other_weights_is_refused(features, folder, tmp_path, capsys):
    torch.manual_seed(0)
    other = simco_zoo.save_pretrained(simco_zoo.create_model("simco_r18_025"), tmp_path / "other")
    query = ["--query", folder / "train" / "bright" / "7.png", "--model", f"local-dir:{other}"]
    assert "was made by other weights than those of" in fails(capsys, "search", "--features", features, *query)


def test_duplicates(features, capsys):
    result, said = run(capsys, "search", "--features", features, "--duplicates", "--threshold", 0.99999)
    assert result["groups"] == [{"names": ["test/dark/copy.png", "train/dark/3.png"], "similarity": 1.0}]
    assert "1 group of near-duplicates" in said and Image.open(result["picture"]).size[0] > 200


@pytest.fixture(scope="module")
def classifier(folder, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("classifier") / "run"
    settings = [
        "--epochs",
        "10",
        "--batch-size",
        "8",
        "--lr",
        "0.3",
        "--freeze",
        "--ema",
        "0",
        "--min-scale",
        "0.5",
        "--no-tensorboard",
    ]
    assert main(["finetune", *MODEL, "--dataset", str(folder), *settings, "--output", str(output)]) == 0
    return output


def test_finetune_says_which_classes_it_takes_for_which(classifier):
    with (classifier / "confusion.csv").open() as file:
        header, *rows = csv.reader(file)
    matrix = np.array([[int(cell) for cell in row[1:]] for row in rows])
    summary = json.loads((classifier / "summary.json").read_text())
    assert header == ["true class", "bright", "dark"] and matrix.sum(axis=1).tolist() == [5, 6]
    assert 100 * matrix.trace() / 11 == pytest.approx(summary["top1"], abs=1e-3)
    assert (classifier / "confusion.png").is_file() and (classifier / "per_class.csv").is_file()


def test_predict(classifier, folder, tmp_path, capsys):
    model = f"local-dir:{classifier / 'best'}"
    result, said = run(capsys, "predict", "--model", model, "--images", folder, "--output", tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert result["count"] == len(rows) == 31
    assert list(rows[0]) == ["name", "split", "true_class", "class", "probability", "class2", "probability2"]
    network = simco_zoo.create_model(model, pretrained=True).eval()
    transform = simco_zoo.data.resolve_transform(network)
    row = next(row for row in rows if row["name"] == "test/dark/2.png")
    with torch.no_grad():
        scores = network(transform(Image.open(folder / row["name"]))[None]).softmax(dim=1)[0]
    assert row["class"] == ["bright", "dark"][scores.argmax()]
    assert float(row["probability"]) == pytest.approx(scores.max().item(), abs=1e-4)
    right = sum(row["class"] == row["true_class"] for row in rows)
    assert result["top1"] == pytest.approx(100 * right / 31, abs=1e-3) and right > 25
    assert f"top-1 accuracy on 31 labeled images: {100 * right / 31:.2f} %" in said
    assert "warning: the model learned from images of this name" in said
    held_out = [model, "--images", folder, "--split", "test", "--output", tmp_path / "t.csv"]
    assert "warning" not in run(capsys, "predict", "--model", *held_out)[1]


def test_predict_without_labels_or_classifier(classifier, folder, tmp_path, capsys):
    model = f"local-dir:{classifier / 'best'}"
    result, _ = run(
        capsys, "predict", "--model", model, "--images", folder / "test" / "dark", "--output", tmp_path / "p.csv"
    )
    assert "top1" not in result and (tmp_path / "p.csv").read_text().startswith("name,class,probability,class2")
    message = fails(capsys, "predict", *MODEL, "--images", folder, "--output", tmp_path / "p.csv")
    assert "simco_r18_025 has no classifier; make one with simco-zoo finetune" in message
    assert "name ends in .csv" in fails(
        capsys, "predict", "--model", model, "--images", folder, "--output", tmp_path / "p.txt"
    )


def test_knn_with_baselines_flip_and_pictures(tmp_path, capsys):
    flags = ["--limit", 64, "--k", 5, "--flip", "--baselines", "--output", tmp_path / "knn"]
    result, said = run(capsys, "knn", *MODEL, "--dataset", "photos", *flags)
    assert "images are seen at 32 px" in said
    assert set(result["baselines"]) == {"raw pixels", "untrained simco_r18_025"}
    train, test = (load_images("photos", split, limit=64) for split in ("train", "test"))
    model = simco_zoo.create_model("simco_r18_025", pretrained=True)
    for flip, found in ((False, result), (True, result["flip"])):
        parts = [simco_zoo.extract_features(model, part, flip=flip).features for part in (train, test)]
        expected = knn(parts[0], train.labels, parts[1], test.labels, k=5)
        assert found["top1"] == pytest.approx(expected["top1"])
    pixels = [simco_zoo.data.normalize(part.images, model.pretrained_cfg).flatten(1) for part in (train, test)]
    expected = knn(pixels[0], train.labels, pixels[1], test.labels, k=5)["top1"]
    assert result["baselines"]["raw pixels"] == pytest.approx(expected, abs=1e-3)

    assert {path.name for path in (tmp_path / "knn").iterdir()} == {
        "result.json", "per_class.csv", "confusion.csv", "confusion.png", "baselines.png"
    }  # fmt: skip
    assert json.loads((tmp_path / "knn" / "result.json").read_text())["top1"] == result["top1"]
    with (tmp_path / "knn" / "confusion.csv").open() as file:
        header, *rows = csv.reader(file)
    matrix = np.array([[int(cell) for cell in row[1:]] for row in rows])
    assert header[1:] == train.class_names and matrix.sum() == 64
    assert 100 * matrix.trace() / 64 == pytest.approx(result["top1"], abs=2)  # up to ties
    with (tmp_path / "knn" / "per_class.csv").open() as file:
        for row, counts in zip(csv.DictReader(file), matrix, strict=True):
            assert int(row["images"]) == counts.sum()


def test_more_neighbors_than_images(capsys):
    result, said = run(capsys, "knn", *MODEL, "--dataset", "photos", "--limit", 48)
    assert result["k"] == 48 and "k is 200, but there are 48 training images; all of them vote" in said


def test_testing_on_what_was_learned_is_said(capsys):
    _, said = run(capsys, "knn", *MODEL, "--dataset", "photos", "--limit", 32, "--k", 1, "--test-split", "train")
    assert "warning: the train images are both learned and tested" in said


def test_linear_with_baselines(tmp_path, capsys):
    flags = ["--limit", 64, "--max-iter", 20, "--weights", "none", "--baselines"]
    result, _ = run(capsys, "linear", *MODEL, "--dataset", "photos", *flags)
    assert set(result["baselines"]) == {"raw pixels", "shipped simco_r18_025"} and result["weight_decay"] > 0
    assert result["baselines"]["shipped simco_r18_025"] > result["top1"]


def test_linear_by_sgd(tmp_path, capsys):
    output = tmp_path / "linear"
    call = ["linear", *MODEL, "--dataset", "photos", "--limit", 128, "--protocol", "sgd", "--epochs", 3]
    call += ["--batch-size", 32, "--lr", 1e-6, 3, 1e9, "--output", output]
    result, said = run(capsys, *call)
    held_out = result["held_out_top1"]
    assert list(held_out) == ["1e-06", "3.0", "1000000000.0"] and min(held_out, key=held_out.get) == "1e-06"
    assert result["learning_rate"] == float(max(held_out, key=held_out.get))
    assert "epoch 3 of 3: loss" in said and result["top1"] > 20
    again, said = run(capsys, *call)
    assert again == result and "epoch" not in said.replace("epochs", "")  # nothing is trained twice
    assert (output / "confusion.csv").is_file()
    message = fails(capsys, *call, "--weights", "none")
    assert "belongs to another linear evaluation (other weights); delete it" in message
    with locked(output):
        assert f"{output} is being written to by process" in fails(capsys, *call)
    checkpoint = output / "checkpoint.pt"
    content = bytearray(checkpoint.read_bytes())
    for damaged in (b"", bytes(content[:-1]), bytes([*content[:99], content[99] ^ 1, *content[100:]])):
        checkpoint.write_bytes(damaged)
        message = fails(capsys, *call)
        assert f"{checkpoint} " in message and "delete it, or choose another --output" in message
