"""Images from every kind of source, in every mode that PIL knows."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import simco_zoo
from simco_zoo.data import ImageData, from_tensor, load_images, resolve_transform
from simco_zoo.data.decoding import ImageReader
from simco_zoo.data.transforms import EvalTransform, to_rgb


def picture(seed: int = 0, size: tuple[int, int] = (32, 32)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    for label, name in enumerate(["apple", "pear"]):
        for i in range(3):
            (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
            picture(10 * label + i).save(tmp_path / "set" / name / f"{i}.png")
    return tmp_path / "set"


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def test_class_folders(class_folders):
    data = load_images(class_folders)
    assert data.names == [f"{c}/{i}.png" for c in ("apple", "pear") for i in range(3)]
    assert data.class_names == ["apple", "pear"] and data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.image_size == 32 and data.images.dtype == torch.uint8
    assert torch.equal(data.images[4], pixels(picture(11)))


def test_flat_folder_has_no_labels(tmp_path):
    picture().save(tmp_path / "a.png")
    picture(1).save(tmp_path / "b.png")
    data = load_images(tmp_path)
    assert data.labels is None and data.names == ["a.png", "b.png"]


def test_split_folders(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "x").mkdir(parents=True)
        picture(len(split)).save(tmp_path / split / "x" / "0.png")
    assert torch.equal(load_images(tmp_path).images[0], pixels(picture(5)))
    assert torch.equal(load_images(tmp_path, split="test").images[0], pixels(picture(3)))
    with pytest.raises(ValueError, match="no split 'extra'; it has train, val"):
        load_images(tmp_path, split="extra")


@pytest.fixture
def table():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine_label": datasets.ClassLabel(names=["a", "b"]),
            "coarse_label": datasets.ClassLabel(names=["c"]),
        }
    )
    rows = {"img": [picture(0), picture(1)], "fine_label": [1, 0], "coarse_label": [0, 0]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_table_finds_its_columns(table):
    data = load_images(table)
    assert data.labels.tolist() == [1, 0] and data.class_names == ["a", "b"]
    assert torch.equal(data.images[1], pixels(picture(1)))
    assert load_images(table, label_column="coarse_label").labels.tolist() == [0, 0]


def test_parquet_folder_in_the_hubs_layout(table, tmp_path):
    (tmp_path / "data").mkdir()
    table.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    table.select([1]).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    assert len(load_images(tmp_path)) == 2
    test = load_images(tmp_path, split="test")
    assert test.labels.tolist() == [0] and torch.equal(test.images[0], pixels(picture(1)))


def test_several_columns_are_an_error_that_lists_them(table):
    renamed = table.rename_column("fine_label", "shape_label")
    with pytest.raises(ValueError, match="several label columns \\(shape_label, coarse_label\\)"):
        load_images(renamed)
    doubled = table.add_column("photo", [0, 1]).cast_column("photo", table.features["coarse_label"])
    with pytest.raises(ValueError, match="has no column 'nothing'; its columns are img"):
        load_images(doubled, image_column="nothing")
    with pytest.raises(ValueError, match="holds no images; image columns: \\['img'\\]"):
        load_images(table, image_column="fine_label")
    with pytest.raises(ValueError, match="no image column among fine_label, coarse_label"):
        load_images(table.remove_columns("img"))


def test_torch_data_set():
    class Pairs(torch.utils.data.Dataset):
        classes = ("no", "yes")

        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int):
            return picture(i), i % 2

    data = load_images(Pairs())
    assert data.labels.tolist() == [0, 1, 0] and data.class_names == ["no", "yes"]
    assert torch.equal(data.images[2], pixels(picture(2)))


def test_uint8_tensor():
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(load_images(images).images, images)
    with pytest.raises(ValueError, match="has to be uint8"):
        load_images(images.float())


def colors() -> np.ndarray:
    return np.array(picture(7))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "1", "I;16", "I", "F", "YCbCr", "HSV"])
def test_every_mode_becomes_rgb(mode):
    rgb = picture(7)
    if mode == "I;16":
        gray = np.array(rgb.convert("L")).astype(np.uint16) * 257
        image, expected = Image.fromarray(gray), np.repeat((gray // 257)[:, :, None], 3, axis=2)
    elif mode == "I":
        gray = np.array(rgb.convert("L")).astype(np.int32) * 257
        image, expected = Image.fromarray(gray), np.repeat((gray // 257)[:, :, None], 3, axis=2)
    elif mode == "F":
        gray = np.array(rgb.convert("L")).astype(np.float32) / 255
        image, expected = Image.fromarray(gray), np.repeat(np.array(rgb.convert("L"))[:, :, None], 3, axis=2)
    elif mode == "PA":
        image = rgb.convert("P").convert("PA")
        expected = np.array(rgb.convert("P").convert("RGB"))
    else:
        image = rgb.convert(mode)
        expected = np.array(image.convert("RGB"))
    assert image.mode == mode
    converted = to_rgb(image)
    assert converted.mode == "RGB"
    np.testing.assert_allclose(np.array(converted).astype(int), expected, atol=1)


def test_transparency_is_laid_on_white():
    clear = Image.new("RGBA", (4, 4), (200, 10, 10, 0))
    assert np.array(to_rgb(clear)).min() == 255
    palette = picture(7).convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (31, 90), (8, 8), (1, 5)])
def test_fit_resizes_the_short_side_and_crops_the_center(size):
    reader = ImageReader(EvalTransform((3, 32, 32), (0.5,) * 3, (0.5,) * 3))
    fitted = reader(picture(0, size))
    assert fitted.shape == (3, 32, 32)
    if size == (64, 48):
        resized = picture(0, size).resize((42, 32), Image.Resampling.BICUBIC)
        expected = resized.crop((5, 0, 37, 32))
        assert (fitted.int() - pixels(expected).int()).abs().max() <= 1


def test_unreadable_images_are_listed(tmp_path):
    picture().save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no picture")
    content = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    data = load_images(tmp_path, image_size=32)
    assert data.names == ["good.png"] and sorted(name for name, _ in data.skipped) == ["cut.png", "text.png"]
    assert len(data) == len(data.images) == 1
    (tmp_path / "good.png").unlink()
    with pytest.raises(ValueError, match="none of the 2 images"):
        load_images(tmp_path, image_size=32)


def test_images_of_several_sizes_need_a_size(tmp_path):
    picture(0, (32, 32)).save(tmp_path / "a.png")
    picture(1, (40, 30)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="pass image_size"):
        load_images(tmp_path)
    assert load_images(tmp_path, image_size=16).images.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_equal_those_in_memory(class_folders, workers):
    kept, streamed = load_images(class_folders), load_images(class_folders, in_memory=False)
    assert streamed.images is None and streamed.names == kept.names
    order = [torch.tensor([5, 0, 3]), torch.tensor([1])]
    for a, b in zip(kept.batches(order), streamed.batches(order, num_workers=workers), strict=True):
        assert torch.equal(a, b)
    part = streamed.subset([4, 2])
    assert torch.equal(next(part.batches([torch.tensor([0, 1])])), kept.images[[4, 2]])
    assert pickle.loads(pickle.dumps(streamed)).names == kept.names


def test_a_torch_data_set_that_keeps_its_images():
    kept = [(Image.new("RGB", (8, 8), (10 * i, 0, 0)), i % 2) for i in range(4)]
    for in_memory in (False, True):
        data = load_images(kept, in_memory=in_memory)
        for _ in range(2):
            assert next(data.batches([torch.arange(4)]))[:, 0, 0, 0].tolist() == [0, 10, 20, 30]


@pytest.mark.parametrize(("settings", "message"), [
    ({"image_size": 0}, "image_size is 0, but has to be at least 1"),
    ({"image_size": -3}, "image_size is -3"),
    ({"crop_pct": 0.0}, "crop_pct is 0.0, but has to be positive"),
    ({"interpolation": "cubic"}, "interpolation is 'cubic', but has to be one of bicubic, bilinear"),
    ({"crop_mode": "centre"}, "crop_mode is 'centre', but has to be one of center, squash, border"),
])  # fmt: skip
def test_settings_that_bring_no_image_to_size(class_folders, settings, message):
    with pytest.raises(ValueError, match=message):
        load_images(class_folders, **settings)


@pytest.mark.parametrize("in_memory", [True, False])
def test_limit_takes_evenly_spaced_images(class_folders, in_memory):
    every, data = load_images(class_folders), load_images(class_folders, limit=4, in_memory=in_memory)
    rows = [i * len(every) // 4 for i in range(4)]
    assert data.names == [every.names[i] for i in rows] and data.labels.tolist() == every.labels[rows].tolist()
    assert len(data.labels.unique()) > 1  # the folder is in the order of its classes
    assert torch.equal(next(data.batches([torch.arange(4)])), every.images[rows])
    assert len(load_images(class_folders, limit=10**6)) == len(every)
    with pytest.raises(ValueError, match="limit is 0, but has to be at least 1"):
        load_images(class_folders, limit=0)


def test_limit_of_images_in_memory():
    data = load_images("photos", limit=160)
    assert torch.bincount(data.labels).tolist() == [10] * 16
    assert torch.equal(data.images, load_images("photos").images[::25])


@pytest.mark.parametrize("in_memory", [True, False])
def test_whole_images_for_random_crops(in_memory, tmp_path):
    for i, size in enumerate([(64, 32), (30, 60), (16, 16), (400, 20)]):
        picture(i, size).save(tmp_path / f"{i}.png")
    plain = load_images(tmp_path, image_size=16, in_memory=in_memory)
    data = load_images(tmp_path, image_size=16, in_memory=in_memory, whole=True)
    rows = [torch.arange(4)]
    assert plain.whole is None and torch.equal(next(data.batches(rows)), next(plain.batches(rows)))
    batch = next(data.whole_batches(rows))
    assert batch.sizes.tolist() == [[16, 32], [32, 16], [16, 16], [16, 64]]  # of a panorama the middle, 4 : 1
    images = list(batch)
    for row, left in ((0, 8), (3, 24)):  # the crop that other uses see
        assert torch.equal(images[row][:, :, left : left + 16], next(data.batches(rows))[row])
    assert torch.equal(next(iter(next(data.subset([3]).whole_batches([torch.tensor([0])])))), images[3])
    larger = load_images(tmp_path, image_size=16, in_memory=in_memory, whole=24)
    assert next(larger.whole_batches(rows)).sizes.amin(dim=1).tolist() == [24] * 4
    (tmp_path / "square").mkdir()
    picture(5, (20, 20)).save(tmp_path / "square" / "5.png")
    square = load_images(tmp_path / "square", image_size=16, in_memory=in_memory, whole=True)
    assert square.whole is None
    with pytest.raises(ValueError, match="were loaded cropped"):
        next(square.whole_batches(rows))


def test_a_sample_holds_every_class():
    """A data set in the order of its classes: its first images are one class."""
    data = from_tensor(torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1).expand(60, 3, 4, 4).contiguous())
    assert data.sample(6)[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert len(data.sample(100)) == 60


def test_subset(class_folders):
    data = load_images(class_folders)
    part = data.subset([3, 0])
    assert isinstance(part, ImageData) and part.labels.tolist() == data.labels[[3, 0]].tolist()
    assert torch.equal(part.images, data.images[[3, 0]])


def test_photos_do_not_overlap():
    pytest.importorskip("skimage")
    train, test = load_images("photos"), load_images("photos", split="test")
    assert train.images.shape == (4000, 3, 32, 32) and test.images.shape == (1600, 3, 32, 32)
    assert len(train.class_names) == 16 and torch.bincount(train.labels).tolist() == [250] * 16
    assert torch.equal(load_images("photos").images, train.images)
    # a test patch differs from every training patch of its photograph
    for label in (0, 5, 15):
        a, b = train.images[train.labels == label].flatten(1).int(), test.images[test.labels == label].flatten(1).int()
        assert all((row - a).abs().sum(dim=1).min() > 0 for row in b)


def test_cifar100(cifar100):
    data = load_images(cifar100, split="test", limit=100)
    assert data.images.shape == (100, 3, 32, 32) and len(data.class_names) == 100


def test_missing_source_says_so(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        load_images(str(tmp_path / "a" / "b" / "c"))
    with pytest.raises(ValueError, match="holds no images"):
        load_images(tmp_path)
    with pytest.raises(ValueError, match="cannot be read as a zip file"):
        (tmp_path / "x.zip").write_text("")
        load_images(tmp_path / "x.zip")


def test_resolve_transform():
    model = simco_zoo.create_model("simco_r18_025")
    tensor = resolve_transform(model)(picture(0))
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(tensor, (pixels(picture(0)).float() / 255 - mean) / std)
    assert resolve_transform(model)(picture(0, (50, 70)).convert("LA")).shape == (3, 32, 32)
