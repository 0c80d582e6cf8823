"""Folders as people have them: which files are images, which folders are splits, which are classes."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from simco_zoo.data import load_images, load_splits
from simco_zoo.data.folders import list_folder
from tests.data.pictures import classes, picture, write


def test_one_class_list_over_all_splits(tmp_path):
    classes(tmp_path / "train", bus=2, car=2, train=2)
    classes(tmp_path / "test", car=1, train=1)
    train, test = (load_images(tmp_path, split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ["bus", "car", "train"]
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2] and test.labels.tolist() == [1, 2]


def test_a_class_without_training_images_is_named(tmp_path, caplog):
    classes(tmp_path / "train", bus=2, car=2)
    classes(tmp_path / "test", car=1, ship=1)
    train, test = load_splits(tmp_path)
    assert train.class_names == test.class_names == ["bus", "car", "ship"] and test.labels.tolist() == [1, 2]
    assert "the class ship has no training image" in caplog.text


def test_a_class_that_is_called_like_a_split(tmp_path):
    data = load_images(classes(tmp_path, bus=3, car=3, train=3))
    assert data.class_names == ["bus", "car", "train"] and data.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3


@pytest.mark.parametrize("names", [
    ["train/cat/0.png", "train/dog/0.png", "extra/0.png"],
    ["train/0.png", "test/0.png", "masks/0.png"],
    ["val/cat/a/0.png", "cat/0.png", "dog/0.png"],
])  # fmt: skip
def test_splits_that_cannot_be_told_from_classes_are_an_error(tmp_path, names):
    with pytest.raises(ValueError, match=r"cannot be told apart.*pass one of them, e.g. .*/(train|test|val)"):
        load_images(write(tmp_path, names))


def test_two_folders_of_one_split_are_an_error(tmp_path):
    write(tmp_path, ["val/cat/0.png", "validation/cat/0.png"])
    with pytest.raises(ValueError, match="val and validation, which mean the same split"):
        load_images(tmp_path)


def test_split_names_in_any_case(tmp_path):
    classes(tmp_path / "Train", cat=2, dog=2)
    classes(tmp_path / "TEST", cat=1, dog=1)
    train, test = (load_images(tmp_path, split) for split in ("train", "test"))
    assert train.names == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]
    assert test.labels.tolist() == [0, 1] and len(load_images(tmp_path, "TEST")) == 2


def test_all_splits_at_once(tmp_path):
    classes(tmp_path / "train", cat=2, dog=1)
    write(tmp_path / "test", ["0.png"])
    data = load_images(tmp_path, "all")
    assert data.names == ["test/0.png", "train/cat/0.png", "train/cat/1.png", "train/dog/0.png"]
    assert data.splits == ["test", "train", "train", "train"] and data.labels.tolist() == [-1, 0, 0, 1]
    for row, name in enumerate(data.names):
        assert torch.equal(data.images[row], load_images(tmp_path / name).images[0])
    assert data.subset([0, 3]).splits == ["test", "train"]


def test_a_flat_test_split_has_no_labels_and_says_so(tmp_path, caplog):
    classes(tmp_path / "train", cat=2, dog=2)
    write(tmp_path / "test", ["0.png", "1.png"])
    assert load_images(tmp_path, "test").labels is None
    assert "the split 'test' has no labels" in caplog.text


def test_an_image_beside_class_folders_is_left_out_and_named(tmp_path, caplog):
    classes(tmp_path, cat=2, dog=2)
    picture().save(tmp_path / "cover.png")
    data = load_images(tmp_path)
    assert data.labels.tolist() == [0, 0, 1, 1] and data.skipped == [("cover.png", "lies next to the class folders")]
    assert caplog.text.count("1 image is left out: cover.png (lies next to the class folders)") == 1


def test_images_beside_split_folders_are_left_out_and_named(tmp_path):
    classes(tmp_path / "train", cat=2, dog=2)
    classes(tmp_path / "test", cat=2, dog=2)
    picture().save(tmp_path / "cover.png")
    picture().save(tmp_path / "train" / "sheet.png")
    train, test = load_splits(tmp_path)
    assert len(train) == len(test) == 4
    assert sorted(train.skipped + test.skipped) == [
        ("cover.png", "lies next to the folders test, train"),
        ("sheet.png", "lies next to the class folders"),
    ]


def test_a_collection_with_some_folders_has_no_classes_and_keeps_all_images(tmp_path, caplog):
    write(tmp_path, [*(f"{i}.png" for i in range(5)), "old/0.png", "new/0.png"])
    data = load_images(tmp_path)
    assert data.labels is None and data.class_names is None and len(data) == 7
    assert "5 images lie next to the folders and 2 in them" in caplog.text


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir"])
def test_hidden_folders_and_files_are_left_out(tmp_path, hidden):
    for split in ("train", "test"):
        classes(tmp_path / split, cat=2, dog=2)
        write(tmp_path / split, [f"{hidden}/0.png", "cat/._0.png", f"cat/{hidden}/1.png"])
    write(tmp_path, [f"{hidden}/cat/0.png"])
    train, test = load_splits(tmp_path)
    assert train.class_names == test.class_names == ["cat", "dog"]
    assert train.names == test.names == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]


def test_folders_around_the_data_are_looked_into(tmp_path):
    classes(tmp_path / "my images" / "v2", cat=1, dog=2)
    assert load_images(tmp_path).labels.tolist() == [0, 1, 1]
    classes(tmp_path / "split" / "data" / "train" / "inner", cat=1, dog=2)
    classes(tmp_path / "split" / "data" / "test" / "inner", dog=1)
    train, test = load_splits(tmp_path / "split")
    assert train.labels.tolist() == [0, 1, 1] and test.labels.tolist() == [1]
    assert train.names[0] == "inner/cat/0.png"


def test_one_folder_is_no_class(tmp_path):
    data = load_images(write(tmp_path, ["images/0.png", "images/1.png"]))
    assert data.labels is None and data.names == ["images/0.png", "images/1.png"]


def test_folders_within_classes(tmp_path):
    data = load_images(write(tmp_path, ["cat/black/0.png", "cat/0.png", "dog/a/b/0.png"]))
    assert data.names == ["cat/0.png", "cat/black/0.png", "dog/a/b/0.png"] and data.labels.tolist() == [0, 0, 1]


def test_links_are_followed(tmp_path):
    classes(tmp_path / "store", cat=2, dog=2)
    (tmp_path / "set").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "store" / name)
    (tmp_path / "set" / "cat" / "up").symlink_to(tmp_path / "set")  # enters a folder that holds the link
    (tmp_path / "set" / "dog" / "9.png").symlink_to(tmp_path / "gone.png")
    data = load_images(tmp_path / "set")
    assert data.class_names == ["cat", "dog"] and "dog/0.png" in data.names
    assert ("dog/9.png", "a link to a file that does not exist") in data.skipped


def test_every_suffix_that_pillow_reads(tmp_path, caplog):
    for name, kind in [
        ("a.JPG", "JPEG"),
        ("b.jfif", "JPEG"),
        ("c.jpe", "JPEG"),
        ("d.jp2", "JPEG2000"),
        ("e.tga", "TGA"),
    ]:
        picture(1).save(tmp_path / name, format=kind)
    picture(1).save(tmp_path / "nosuffix", format="PNG")
    (tmp_path / "f.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 64)
    (tmp_path / "g.svg").write_text("<svg/>")
    (tmp_path / "notes.txt").write_text("about")
    (tmp_path / "LICENSE").write_text("none")
    data = load_images(tmp_path)
    assert data.names == ["a.JPG", "b.jfif", "c.jpe", "d.jp2", "e.tga", "nosuffix"]
    assert [name for name, _ in data.skipped] == ["f.heic", "g.svg"]
    assert "files that are not images are left out: LICENSE, notes.txt" in caplog.text


def test_an_empty_class_folder_is_named(tmp_path, caplog):
    classes(tmp_path, cat=1, dog=1)
    (tmp_path / "bird").mkdir()
    assert load_images(tmp_path).class_names == ["cat", "dog"]
    assert "folders without images are left out: bird" in caplog.text


@pytest.mark.skipif(os.name == "nt", reason="file names are Unicode on Windows")
def test_file_names_that_are_not_unicode_can_be_written(tmp_path):
    picture().save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff.png")
    data = load_images(tmp_path)
    assert len(data) == 1 and data.names[0].encode("utf-8")


@pytest.mark.parametrize(("cells", "labels", "names"), [
    (["7", "8", "", "7"], [7, 8, -1, 7], None),
    (["pear", "apple", "apple", ""], [1, 0, 0, -1], ["apple", "pear"]),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["csv", "parquet", "zip"])
def test_metadata_gives_labels(tmp_path, caplog, cells, labels, names, kind):
    write(tmp_path, ["a.png", "b.png", "c.png", "sub/d.png", "e.png"])
    files = ["a.png", "b.png", "c.png", "sub/d.png"]
    if kind == "csv":
        with open(tmp_path / "metadata.csv", "w", newline="") as file:
            csv.writer(file).writerows([("file_name", "kind"), *zip(files, cells, strict=True)])
    else:
        values = [(int(cell) if cell.isdecimal() else cell) if cell else None for cell in cells]
        pq.write_table(pa.table({"file_name": files, "kind": values}), tmp_path / "metadata.parquet")
    if kind == "zip":
        tmp_path = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path))
    data = load_images(tmp_path, label_column="kind")
    found = dict(zip(data.names, data.labels.tolist(), strict=True))
    assert found == {**dict(zip(["a.png", "b.png", "c.png", "sub/d.png"], labels, strict=True)), "e.png": -1}
    assert data.class_names == names
    assert "2 of 5 images have no label" in caplog.text
    with pytest.raises(ValueError, match="no column 'type'; its columns are file_name, kind"):
        load_images(tmp_path, label_column="type")


@pytest.mark.parametrize(("name", "text", "message"), [
    ("metadata.csv", b"file_name,label\n0.png,caf\xe9\n", "metadata.csv of .* is not UTF-8 text"),
    ("metadata.jsonl", b"{broken", "metadata.jsonl of .* cannot be read: Expecting property name"),
    ("metadata.parquet", b"PAR1 and more", "metadata.parquet of .* cannot be read: "),
    ("metadata.jsonl", b"[1]", "metadata.jsonl of .* cannot be read: every line has to be a JSON object"),
    ("metadata.csv", b"file;label\n0.png;cat\n", "is not used: it has no column 'file_name', only file;label"),
    ("metadata.csv", b"file_name,label\n9.png,cat,7\n0.png\n", "1 file is named in its metadata, but not there: 9.png"),
])  # fmt: skip
def test_metadata_that_is_damaged_or_names_other_files_is_not_dropped_in_silence(tmp_path, caplog, name, text, message):
    picture(0).save(tmp_path / "0.png")
    (tmp_path / name).write_bytes(text)
    try:
        load_images(tmp_path)
    except ValueError as error:
        assert not isinstance(error, UnicodeError | json.JSONDecodeError) and re.search(message, str(error))
    else:
        assert re.search(message, caplog.text)


def test_metadata_parquet_of_classes_by_number(tmp_path, caplog):
    """As ``datasets`` writes a ClassLabel: its names are the classes, -1 means no label."""
    write(tmp_path, ["a.png", "b.png", "c.png"])
    features = datasets.Features(
        {"file_name": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "y"])}
    )
    rows = {"file_name": ["a.png", "b.png", "c.png"], "label": [0, 1, -1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "metadata.parquet")
    data = load_images(tmp_path)
    assert data.class_names == ["y", "z"] and data.labels.tolist() == [1, 0, -1]
    assert "not images" not in caplog.text


def test_metadata_jsonl_in_each_split(tmp_path):
    for split, label in (("train", "b"), ("test", "a")):
        write(tmp_path / split, ["0.png"])
        (tmp_path / split / "metadata.jsonl").write_text(f'{{"file_name": "0.png", "label": "{label}"}}\n')
    train, test = load_splits(tmp_path)
    assert train.class_names == ["a", "b"] and train.labels.tolist() == [1] and test.labels.tolist() == [0]


def test_a_label_column_where_there_is_none(tmp_path):
    classes(tmp_path, cat=1, dog=1)
    with pytest.raises(ValueError, match=r"has no metadata.csv, .jsonl or .parquet with a column 'kind'"):
        load_images(tmp_path, label_column="kind")
    assert load_images(tmp_path, label_column="none").labels is None


def test_a_folder_that_cannot_be_entered_is_named(tmp_path):
    classes(tmp_path, cat=1, dog=1)
    listing = list_folder(tmp_path / "gone")
    assert not listing.images and "No such file" in listing.skipped[0][1]


def test_paths_that_are_no_folder(tmp_path, monkeypatch):
    for typo in ("./photosdir", tmp_path / "gone", "~/gone/images", "a/b/c"):
        with pytest.raises(ValueError, match="there is no folder"):
            load_images(typo)
    monkeypatch.setenv("HOME", str(tmp_path))
    classes(tmp_path / "images", cat=1, dog=1)
    assert len(load_images("~/images")) == 2
    assert Path(load_images("~/images").source) == tmp_path / "images"
