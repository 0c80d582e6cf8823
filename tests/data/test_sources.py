"""Sources that are no folder of images: archives, tables, arrays, lists, torch data sets."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from simco_zoo.data import load_images, load_splits
from tests.data.pictures import classes, picture, pixels, write

datasets = pytest.importorskip("datasets")


def png(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed, (8, 8)).save(file, "PNG")
    return file.getvalue()


def pack(folder: Path, archive: Path) -> Path:
    """Packs a folder as a zip or tar file."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for path in files:
                packed.write(path, path.relative_to(folder))
    else:
        with tarfile.open(archive, "w") as packed:
            packed.add(folder, arcname=".")
    return archive


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_archive_is_read_as_its_folder(tmp_path, kind, workers):
    folder = tmp_path / "set"
    classes(folder / "train", cat=2, dog=2)
    classes(folder / "test", dog=1)
    write(folder / "train", [".hidden/0.png"])
    (folder / "train" / "broken.gif").write_bytes(b"GIF89a")
    archive = pack(folder, tmp_path / f"set.{kind}")
    for split in ("train", "test"):
        expected = load_images(folder, split, image_size=8)
        found = load_images(archive, split, image_size=8, in_memory=False)
        assert found.names == expected.names and found.skipped == expected.skipped
        assert found.labels.tolist() == expected.labels.tolist() and found.class_names == expected.class_names
        found = pickle.loads(pickle.dumps(found))
        batch = next(found.batches([torch.arange(len(found))], num_workers=workers))
        assert torch.equal(batch, expected.images)


def test_compressed_or_broken_archives_are_named(tmp_path):
    classes(tmp_path / "set", cat=1, dog=1)
    with tarfile.open(tmp_path / "a.tar", "w:gz") as packed:
        packed.add(tmp_path / "set", arcname=".")
    with pytest.raises(ValueError, match=r"a.tar cannot be read as a tar file .*has to be unpacked"):
        load_images(tmp_path / "a.tar")
    (tmp_path / "a.tar.gz").write_bytes((tmp_path / "a.tar").read_bytes())
    with pytest.raises(ValueError, match=r"neither an image nor one of .*has to be unpacked"):
        load_images(tmp_path / "a.tar.gz")


def shard(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as packed:
        for key, sample in samples.items():
            for end, content in sample.items():
                entry = tarfile.TarInfo(f"{key}.{end}")
                entry.size = len(content)
                packed.addfile(entry, io.BytesIO(content))


def test_webdataset_shards(tmp_path):
    for number in range(2):
        samples = {f"s{number}_{i}": {"png": png(10 * number + i), "cls": str(i).encode()} for i in range(3)}
        shard(tmp_path / f"train-{number:05}.tar", samples)
    shard(tmp_path / "val-00000.tar", {"v.0": {"jpg": png(7), "cls": b"2"}})
    train, test = load_splits(tmp_path)
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2] and test.labels.tolist() == [2]
    assert torch.equal(train.images[4], pixels(picture(11, (8, 8))))
    shard(tmp_path / "json" / "a.tar", {"a": {"png": png(0), "json": json.dumps({"kind": "x"}).encode()}})
    data = load_images(tmp_path / "json" / "a.tar", label_column="kind")
    assert data.class_names == ["x"] and data.labels.tolist() == [0]


def test_one_file_and_a_list_of_paths(tmp_path):
    write(tmp_path, ["a.png", "b.png"])
    data = load_images(tmp_path / "a.png")
    assert data.names == ["a.png"] and torch.equal(data.images[0], pixels(picture(0, (8, 8))))
    data = load_images([tmp_path / "b.png", str(tmp_path / "a.png"), tmp_path / "gone.png"])
    assert data.names == [str(tmp_path / "b.png"), str(tmp_path / "a.png")]
    assert torch.equal(data.images[1], pixels(picture(0, (8, 8))))
    assert data.skipped[0][0] == str(tmp_path / "gone.png")
    (tmp_path / "c.csv").write_text("a")
    with pytest.raises(ValueError, match="neither an image nor one of"):
        load_images(tmp_path / "c.csv")


def test_arrays():
    rgb = np.stack([np.array(picture(i, (8, 8))) for i in range(3)])
    for array in (rgb, rgb.transpose(0, 3, 1, 2)):
        assert torch.equal(load_images(array).images[1], pixels(picture(1, (8, 8))))
    gray = rgb[..., 0]
    assert torch.equal(load_images(gray).images[2, 1], torch.from_numpy(gray[2]))
    assert torch.equal(load_images(list(rgb)).images, load_images(rgb).images)
    with pytest.raises(ValueError, match=r"the array is float64 \(2, 8, 8, 3\)"):
        load_images(np.zeros((2, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"uint8 \(2, 8, 8, 3\), but has to be uint8 \(N, 3, H, W\)"):
        load_images(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"has to be uint8 \(N, 3, H, W\)"):
        load_images(torch.zeros(2, 3, 0, 0, dtype=torch.uint8))


class Torchvision(torch.utils.data.Dataset):
    """A data set with torchvision's attributes."""

    classes = ("no", "yes", "maybe")
    targets = (0, 1, 2, 1)

    def __init__(self, target_transform=None) -> None:
        self.target_transform = target_transform

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int):
        label = self.targets[i]
        return picture(i, (8, 8)), label if self.target_transform is None else self.target_transform(label)


def test_torch_data_sets():
    data = load_images(Torchvision())
    assert data.labels.tolist() == [0, 1, 2, 1] and data.class_names == ["no", "yes", "maybe"]
    changed = load_images(Torchvision(lambda label: label % 2))
    assert changed.labels.tolist() == [0, 1, 0, 1] and changed.class_names is None
    part = load_images(torch.utils.data.Subset(Torchvision(), [3, 2]))
    assert part.labels.tolist() == [1, 2] and part.class_names == ["no", "yes", "maybe"]
    assert torch.equal(part.images[0], pixels(picture(3, (8, 8))))
    with pytest.raises(ValueError, match="is empty"):
        load_images([])


@pytest.fixture
def table():
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [picture(i, (8, 8)) for i in range(4)], "label": [0, 1, 0, 1]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_saved_to_disk(table, tmp_path):
    table.save_to_disk(tmp_path / "one")
    assert load_images(tmp_path / "one").labels.tolist() == [0, 1, 0, 1]
    datasets.DatasetDict(train=table, test=table.select([3])).save_to_disk(tmp_path / "both")
    train, test = load_splits(tmp_path / "both")
    assert len(train) == 4 and test.labels.tolist() == [1] and test.class_names == ["a", "b"]


def test_data_sets_in_memory(table):
    train, test = load_splits(datasets.DatasetDict(train=table, validation=table.select([2])))
    assert len(train) == 4 and torch.equal(test.images[0], pixels(picture(2, (8, 8))))
    for form in ("pandas", "numpy", "torch"):
        assert load_images(table.with_format(form)).labels.tolist() == [0, 1, 0, 1]
    chosen = table.select([3, 1, 0])  # rows are looked up by way of the selection
    assert load_images(chosen).labels.tolist() == [1, 1, 0]
    assert torch.equal(load_images(chosen).images[0], pixels(picture(3, (8, 8))))
    with pytest.raises(ValueError, match="an IterableDataset has no length"):
        load_images(table.to_iterable_dataset())


def test_a_row_without_an_image_is_left_out(table, tmp_path):
    features = datasets.Features({"image": datasets.Image()})
    holes = datasets.Dataset.from_dict({"image": [picture(0), None, picture(2)]}, features=features)
    for in_memory in (True, False):
        data = load_images(holes, in_memory=in_memory)
        assert data.names == ["train/0", "train/2"] and data.skipped == [("train/1", "the row has no image")]


@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_parquet_without_metadata_of_the_hub(tmp_path, kind):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def save(name: str, seeds: list[int]) -> None:
        encoded = [png(i) if kind == "bytes" else {"bytes": png(i), "path": None} for i in seeds]
        (tmp_path / "set").mkdir(exist_ok=True)
        pq.write_table(
            pa.table({"img": encoded, "label": ["x" if i % 2 else "y" for i in seeds]}), tmp_path / "set" / name
        )

    save("train.parquet", [0, 1, 2])
    data = load_images(tmp_path / "set")
    assert data.labels.tolist() == [1, 0, 1] and data.class_names == ["x", "y"]
    assert torch.equal(data.images[2], pixels(picture(2, (8, 8))))
    assert len(load_images(tmp_path / "set" / "train.parquet")) == 3
    save("test-00000.parquet", [5])
    train, test = load_splits(tmp_path / "set")
    assert len(train) == 3 and test.labels.tolist() == [0]


def test_images_win_over_a_table_without_images(tmp_path, caplog):
    """features.parquet, written next to the images it was made of, is not a data set."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    classes(tmp_path, cat=1, dog=1)
    for name in ("features.parquet", "b.parquet"):
        pq.write_table(pa.table({"name": ["cat/0.png"], "features": [[0.5, 0.25]]}), tmp_path / name)
    assert load_images(tmp_path).names == ["cat/0.png", "dog/0.png"]
    assert "files that are not images are left out: b.parquet, features.parquet" in caplog.text


def test_configurations(tmp_path, table):
    for name, rows in (("small", [0]), ("large", [1, 2, 3])):
        (tmp_path / name).mkdir()
        table.select(rows).to_parquet(tmp_path / name / "train-00000-of-00001.parquet")
    page = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*.parquet\n"
        for name in ("small", "large")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{page}---\n")
    assert len(load_images(tmp_path, dataset_config="large")) == 3
    with pytest.raises(ValueError, match=r"small.*dataset-config"):
        load_images(tmp_path)
