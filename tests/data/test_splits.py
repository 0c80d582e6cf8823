"""Two parts of a data set: their classes, the stratified hold-out, hidden and missing labels."""

from __future__ import annotations

import pytest
import torch

from simco_zoo.data import from_tensor, load_images, load_splits
from tests.data.pictures import classes, picture, write

datasets = pytest.importorskip("datasets")


def table(labels: list, names: list[str] | None = None):
    """A data set with these labels, ClassLabel if there are names."""
    columns = {"image": datasets.Image()}
    if names:
        columns["label"] = datasets.ClassLabel(names=names)
    data = datasets.Dataset.from_dict({"image": [picture(i, (8, 8)) for i in range(len(labels))]})
    data = data.cast_column("image", columns["image"]).add_column("label", labels)
    return data.cast_column("label", columns["label"]) if names else data


def test_holdout_of_class_folders(tmp_path, caplog):
    classes(tmp_path, cat=10, dog=5, owl=1)
    train, test = load_splits(tmp_path, val_fraction=0.2)
    assert test.labels.bincount().tolist() == [2, 1] and train.labels.bincount().tolist() == [8, 4, 1]
    assert not set(train.names) & set(test.names) and len(train) + len(test) == 16
    assert train.class_names == test.class_names == ["cat", "dog", "owl"]
    assert "has no test split: 3 of its 16 images" in caplog.text
    again, other = load_splits(tmp_path, val_fraction=0.2)[1], load_splits(tmp_path, val_fraction=0.2, seed=1)[1]
    assert again.names == test.names != other.names
    # load_images divides alike
    for split, part in (("train", train), ("test", test)):
        assert load_images(tmp_path, split, val_fraction=0.2).names == part.names


def test_without_val_fraction_everything_is_train(tmp_path):
    classes(tmp_path, cat=3, dog=3)
    assert len(load_images(tmp_path)) == len(load_images(tmp_path, "all")) == 6
    with pytest.raises(ValueError, match=r"not divided into splits.*val_fraction=0.2"):
        load_images(tmp_path, "test")
    for fraction in (0, 1, -0.5):
        with pytest.raises(ValueError, match="val_fraction is"):
            load_images(tmp_path, "test", val_fraction=fraction)


def test_a_test_split_goes_before_the_holdout(tmp_path):
    classes(tmp_path / "train", cat=5, dog=5)
    classes(tmp_path / "val", cat=2, dog=1)
    train, test = load_splits(tmp_path, val_fraction=0.5)
    assert len(train) == 10 and len(test) == 3


def test_images_without_labels_are_not_divided(tmp_path):
    write(tmp_path, ["0.png", "1.png", "2.png"])
    train, test = load_splits(tmp_path)
    assert len(train) == 3 and test is None
    with pytest.raises(ValueError, match="have no labels"):
        load_splits(tmp_path, require_labels=True)


def test_no_test_part_wanted(tmp_path):
    classes(tmp_path, cat=3, dog=3)
    for none in (None, "none"):
        train, test = load_splits(tmp_path, test_split=none)
        assert len(train) == 6 and test is None


def test_holdout_of_data_in_memory(caplog):
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    data = from_tensor(images, torch.arange(20) % 4)
    train, test = load_splits(data, val_fraction=0.25)
    assert test.labels.bincount().tolist() == [1] * 4 and len(train) == 16
    assert load_splits(images)[1] is None
    train, test = load_splits(table([0, 1] * 5), val_fraction=0.4)
    assert train.labels.bincount().tolist() == [3, 3] and test.labels.bincount().tolist() == [2, 2]
    caplog.clear()
    load_splits(train, test)  # nothing is said twice
    assert not caplog.text
    with pytest.raises(ValueError, match="20 images, but 3 labels"):
        from_tensor(images, torch.arange(3))


def test_two_sources_share_their_classes_by_name(tmp_path, caplog):
    classes(tmp_path / "a", cat=2, dog=2, owl=2)
    classes(tmp_path / "b", dog=1, owl=1, yak=1)
    train, test = load_splits(tmp_path / "a", tmp_path / "b")
    assert train.class_names == test.class_names == ["cat", "dog", "owl", "yak"]
    assert len(train) == 6 and test.labels.tolist() == [1, 2, 3]
    assert "the class yak has no training image" in caplog.text
    # numbers without names are names of their own
    train, test = load_splits(table([0, 1, 2]), table(["2", "0"]))
    assert test.labels.tolist() == [2, 0] and train.class_names == ["0", "1", "2"]


def test_a_folder_of_test_images_is_taken_whole(tmp_path):
    classes(tmp_path / "x" / "train", cat=2, dog=2)
    classes(tmp_path / "x" / "test", cat=1, dog=1)
    train, test = load_splits(tmp_path / "x" / "train", tmp_path / "x" / "test")
    assert len(train) == 4 and len(test) == 2
    assert len(load_splits(tmp_path / "x" / "train", tmp_path / "x")[1]) == 2  # its own test split


def test_hidden_labels(caplog):
    """The test split of many sets of the Hub has -1 for every label."""
    names = ["a", "b"]
    hidden = datasets.DatasetDict(train=table([0, 1, 0], names), test=table([-1, -1], names))
    train, test = load_splits(hidden)
    assert train.labels.tolist() == [0, 1, 0] and test.labels is None
    assert "the split 'test' has no labels, or all of them are hidden" in caplog.text
    with pytest.raises(ValueError, match="have no labels"):
        load_splits(hidden, require_labels=True)
    hidden["validation"] = table([1], names)
    train, test = load_splits(hidden)
    assert test.labels.tolist() == [1] and test.split == "validation"
    assert "the labels of test are hidden, so validation is measured on" in caplog.text
    assert load_images(hidden, "test").labels is None  # the images themselves are there
    load_images(table([-1, -1], names))
    assert "data set: all labels are hidden (-1) or missing." in caplog.text


def test_images_without_a_label_are_kept_and_counted(caplog):
    data = load_images(table([0, None, 1, -1]))
    assert data.labels.tolist() == [0, -1, 1, -1]
    assert "2 of 4 images have no label: train/1, train/3" in caplog.text
    assert data.labeled().names == ["train/0", "train/2"]
    train, test = load_splits(table([0, None, 1, 0, 1, 0]), table([1, None]), require_labels=True)
    assert len(train) == 5 and len(test) == 1


@pytest.mark.parametrize(("labels", "expected", "names"), [
    ([True, False, True], [1, 0, 1], ["False", "True"]),
    (["pear", "apple", "pear"], [1, 0, 1], ["apple", "pear"]),
    ([3, 1, 3], [3, 1, 3], None),
    ([1_000_000_000, 5, 1_000_000_000], [1, 0, 1], ["5", "1000000000"]),
])  # fmt: skip
def test_kinds_of_labels(labels, expected, names):
    for source in (table(labels), [(picture(i), label) for i, label in enumerate(labels)]):
        data = load_images(source)
        assert data.labels.tolist() == expected and data.class_names == names
        assert data.labels.dtype == torch.int64


def test_small_integers_become_int64():
    data = load_images(table([2, 0, 1]).cast_column("label", datasets.Value("uint8")))
    assert data.labels.dtype == torch.int64 and data.labels.tolist() == [2, 0, 1]


def test_names_are_numbered_over_all_splits():
    data = datasets.DatasetDict(train=table(["b", "d"]), test=table(["c", "b"]))
    train, test = load_splits(data)
    assert train.class_names == test.class_names == ["b", "c", "d"]
    assert train.labels.tolist() == [0, 2] and test.labels.tolist() == [1, 0]


@pytest.mark.parametrize(("labels", "message"), [
    ([0.7, 1.0], "hold 0.7, a float"),
    ([-3, 1], "hold -3; class numbers start at 0"),
])  # fmt: skip
def test_labels_that_cannot_be_classes(caplog, labels, message):
    with pytest.raises(ValueError, match=message):
        load_images(table(labels))
    assert load_images(table(labels), label_column="none").labels is None
    assert load_images(table([[0], [1]])).labels is None  # several classes for each image
    assert "the column 'label' holds no classes; it is not used" in caplog.text


def test_a_list_of_mixed_labels_is_an_error():
    with pytest.raises(ValueError, match="all of one kind"):
        load_images([(picture(0), 1), (picture(1), "one")])


@pytest.mark.parametrize("column", ["labels", "target", "class"])
def test_usual_names_of_the_label_column(column):
    assert load_images(table([1, 0]).rename_column("label", column)).labels.tolist() == [1, 0]
