"""Large, hostile and damaged images: bounded memory, a reason for each that is left out."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

import simco_zoo
from simco_zoo.data import EvalTransform, load_images
from simco_zoo.data.decoding import ImageReader, open_image, read_image
from tests.data.pictures import classes, picture, write


def reader(size: int, **kwargs) -> ImageReader:
    return ImageReader(EvalTransform((3, size, size), (0.5,) * 3, (0.5,) * 3, **kwargs))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header says that it has a given number of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("in_memory", [True, False])
def test_images_that_would_fill_the_memory_are_named(tmp_path, in_memory):
    picture(0).save(tmp_path / "a.png")
    picture(1).save(tmp_path / "b.png")
    (tmp_path / "bomb.png").write_bytes(bomb(20_000, 20_000))
    Image.new("L", (1, 400_000)).save(tmp_path / "thin.png")
    data = load_images(tmp_path, image_size=224, in_memory=in_memory)
    batches = list(data.batches([torch.arange(len(data))]))  # on the fly an image is decoded only now
    assert sorted(name for name, _ in data.skipped) == ["bomb.png", "thin.png"]
    assert "would take too much memory" in dict(data.skipped)["thin.png"]
    assert batches[0].shape[1:] == (3, 224, 224)


def test_the_size_is_looked_up_in_spite_of_a_bomb(tmp_path):
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "bomb.png").write_bytes(bomb(20_000, 20_000))
    assert len(load_images(tmp_path)) == 1


def test_wide_types_count_more(monkeypatch):
    monkeypatch.setattr("simco_zoo.data.decoding.MAX_DECODED_BYTES", 10 * 1000 * 1000)
    assert isinstance(read_image(reader(8), picture(0, (1000, 1000))), torch.Tensor)
    reason = read_image(reader(8), Image.fromarray(np.zeros((1000, 1000), np.float32)))
    assert reason == "1000 x 1000 px of mode F would take too much memory"


def test_damaged_images_found_late_are_left_out_of_the_features(tmp_path, caplog):
    """Their headers are whole, so that they are noticed only when their pixels are needed."""
    classes(tmp_path, cat=3, dog=3)
    content = (tmp_path / "cat" / "1.png").read_bytes()
    (tmp_path / "cat" / "1.png").write_bytes(content[: len(content) // 2])
    data = load_images(tmp_path, in_memory=False, image_size=8)
    assert len(data) == 6
    batch = next(data.batches([torch.arange(6)]))
    assert torch.equal(batch[1], batch[2])  # the next one takes its place
    assert [name for name, _ in data.skipped] == ["cat/1.png"] and caplog.text.count("cat/1.png is left out") == 1
    model = simco_zoo.create_model("simco_r18_025")
    for workers in (0, 1):
        fresh = load_images(tmp_path, in_memory=False, image_size=32)
        found = simco_zoo.extract_features(model, fresh, batch_size=4, num_workers=workers)
        assert found.names == ["cat/0.png", "cat/2.png", "dog/0.png", "dog/1.png", "dog/2.png"]
        assert found.labels.tolist() == [0, 0, 1, 1, 1] and [name for name, _ in found.skipped] == ["cat/1.png"]
        whole = simco_zoo.extract_features(model, tmp_path)
        torch.testing.assert_close(found.features, whole.features)


def test_nothing_but_damaged_images(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for in_memory in (True, False):
        with pytest.raises(ValueError, match=r"none of the 3 images in .* can be read, e.g. 0.png"):
            load_images(tmp_path, image_size=8, in_memory=in_memory)


def test_large_jpegs_are_decoded_small(tmp_path, monkeypatch):
    smooth = picture(0, (40, 30)).resize((1600, 1200), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "large.jpg", quality=95)
    drafts = []
    draft = Image.Image.draft
    from PIL import JpegImagePlugin

    own = JpegImagePlugin.JpegImageFile.draft
    monkeypatch.setattr(
        JpegImagePlugin.JpegImageFile, "draft", lambda self, *a: drafts.append(own(self, *a)) or drafts[-1]
    )
    assert draft is not own
    found = reader(64)(open_image(tmp_path / "large.jpg"))
    exact = EvalTransform((3, 64, 64), (0.5,) * 3, (0.5,) * 3).to_uint8(Image.open(tmp_path / "large.jpg"))
    assert len(drafts) == 1
    assert (found.int() - exact.int()).abs().float().mean() < 1 and (found.int() - exact.int()).abs().max() <= 8
    # where less than a half would do, nothing changes
    assert torch.equal(
        reader(400)(open_image(tmp_path / "large.jpg")),
        EvalTransform((3, 400, 400), (0.5,) * 3, (0.5,) * 3).to_uint8(Image.open(tmp_path / "large.jpg")),
    )


@pytest.mark.parametrize(("suffix", "size"), [("png", (8, 8)), ("png", (9, 8)), ("jpg", (9, 8)), ("webp", (9, 8))])
def test_headers_tell_the_size_without_pixels(tmp_path, monkeypatch, suffix, size):
    for i in range(3):
        picture(i, size).save(tmp_path / f"{i}.{suffix}")
    decoded, load = [], ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(1) or load(self))
    load_images(tmp_path, image_size=8, in_memory=False)
    assert not decoded


@pytest.mark.parametrize("in_memory", [True, False])
def test_no_image_is_decoded_before_it_is_needed(tmp_path, monkeypatch, in_memory):
    classes(tmp_path, cat=3, dog=3)
    decoded = []
    to_uint8 = EvalTransform.to_uint8
    monkeypatch.setattr(EvalTransform, "to_uint8", lambda self, image: decoded.append(1) or to_uint8(self, image))
    data = load_images(tmp_path, in_memory=in_memory)
    assert len(decoded) == (6 if in_memory else 0)
    next(data.batches([torch.tensor([0, 4])]))
    assert len(decoded) == (6 if in_memory else 2)


def test_sizes_are_remembered_until_a_file_changes(tmp_path, monkeypatch):
    from simco_zoo.data import headers

    monkeypatch.setenv("SIMCO_ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(headers, "REMEMBERED_FROM", 2)
    opened = []
    read = headers._read_header
    monkeypatch.setattr(headers, "_read_header", lambda rows, i: opened.append(i) or read(rows, i))
    folder = write(tmp_path / "images", ["0.png", "1.png", "2.png"])
    (folder / "2.png").write_bytes(b"no image")

    def load():
        opened.clear()
        data = load_images(folder, image_size=4, in_memory=False)
        return data.names, data.skipped, sorted(opened)

    names, skipped, first = load()
    assert names == ["0.png", "1.png"] and skipped[0][0] == "2.png" and first == [0, 1, 2]
    assert load() == (names, skipped, [])
    picture(9, (8, 6)).save(folder / "2.png")
    assert load() == (["0.png", "1.png", "2.png"], [], [0, 1, 2])


def test_phone_photos_are_upright(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "phone.jpg", exif=exif.tobytes(), quality=95)
    image = load_images(tmp_path, image_size=32).images[0]
    assert image[0, :10].float().mean() > 240 and image[0, 22:].float().mean() < 15
