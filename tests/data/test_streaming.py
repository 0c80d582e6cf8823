"""Streams, and images that do not fit in memory."""

from __future__ import annotations

import io
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import simco_zoo
from simco_zoo.data import stream_images
from simco_zoo.training import pretrain
from simco_zoo.training.checkpoint import list_checkpoints, load_checkpoint


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    """datasets waits five seconds for its threads at the end of each pass."""
    from datasets import config

    if hasattr(config, "SLEEP_TIME_ON_THREADS_SHUTDOWN"):
        monkeypatch.setattr(config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def encoded(color: int, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size + 3), (color, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Four parquet files of 12 images each, one of them damaged; the red of an image is its number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("shards")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for shard in range(4):
        rows = [{"bytes": encoded(12 * shard + i), "path": None} for i in range(12)]
        if shard == 3:
            rows[5]["bytes"] = rows[5]["bytes"][:40]
        features = (
            b'{"info": {"features": {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}}}'
        )
        schema = pa.schema([("image", kind), ("label", pa.int64())], metadata={b"huggingface": features})
        table = pa.table([pa.array(rows, kind), pa.array(range(12))], schema=schema)
        pq.write_table(table, folder / f"train-0000{shard}-of-00004.parquet")
    return folder


READABLE = set(range(48)) - {41}


def numbers(batches) -> list[int]:
    return [number for batch in batches for number in batch[:, 0, 0, 0].tolist()]


def take(stream, epoch: int, **kwargs) -> list[int]:
    """One epoch's images of this share; the share itself has no end."""
    batches = stream.epoch(epoch, 1, **kwargs)
    count = len(READABLE) // kwargs.get("world_size", 1)
    return [number for _, batch in zip(range(count), batches, strict=False) for number in numbers([batch])]


def test_an_epoch_has_every_image_once_in_an_order_of_its_own(shards):
    stream = stream_images(shards, image_size=6, length=47)
    assert stream.sample(5).shape == (5, 3, 6, 6)
    assert numbers([stream.sample(3)]) == [0, 1, 2]
    first, second = take(stream, 0), take(stream, 1)
    assert set(first) == set(second) == READABLE
    assert first != second
    assert take(stream, 1) == second
    assert take(stream, 1, seed=4) != second


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_images_out(shards, world_size):
    stream = stream_images(shards, image_size=6, length=47)
    parts = [set(take(stream, 0, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert sum(map(len, parts)) == len(set.union(*parts))  # nothing twice


def test_workers_share_the_images_out(shards):
    assert sorted(take(stream_images(shards, image_size=6, length=47), 0, num_workers=2)) == sorted(READABLE)


def test_a_resumed_run_reads_the_same_stream(shards, tmp_path):
    def run(name: str):
        torch.manual_seed(0)
        model = simco_zoo.create_model("simco", backbone="test_resnet", small_stem=True)
        stream = stream_images(shards, image_size=16, length=48)
        usual = {"epochs": 2, "batch_size": 8, "device": "cpu", "progress_bar": False}
        pretrain(model, stream, output=tmp_path / name, **usual)
        return load_checkpoint(list_checkpoints(tmp_path / name / "checkpoints")[-1])

    from simco_zoo.training import Interrupted, Pretraining

    whole = run("whole")
    step = Pretraining.step

    def interrupted(self, *inputs):
        report = step(self, *inputs)
        if self.state.step == 8:
            signal.raise_signal(signal.SIGTERM)
        return report

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Pretraining, "step", interrupted)
        run("cut")
    resumed = run("cut")
    assert whole["step"] == resumed["step"] == 12
    assert all(torch.equal(resumed["model"][name], tensor) for name, tensor in whole["model"].items())


def test_what_a_stream_needs_to_know(shards):
    with pytest.raises(ValueError, match=r"has no column 'picture'; its columns are image, label"):
        stream_images(shards, image_size=6, image_column="picture", length=47)
    with pytest.raises(ValueError, match=r"the column 'label' of .* holds no images"):
        stream_images(shards, image_size=6, image_column="label", length=47)
    with pytest.raises(ValueError, match="does not say how many images it has"):
        stream_images(shards, image_size=6)


LIMIT = 2_000_000_000  # bytes of memory a process may ask for; torch itself takes about half


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts what a process asks for on Linux only")
@pytest.mark.parametrize(("in_memory", "fits"), [("None", True), ("True", False)])
def test_images_larger_than_the_memory(in_memory, fits, tmp_path):
    """3 GB of decoded images pass through a process that may not have 2 GB; held in memory, they do not."""
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "one.jpg").write_bytes(b"")
    Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "one.jpg")
    for i in range(4000):
        os.link(tmp_path / "one.jpg", folder / f"{i}.jpg")
    program = f"""
import torch, simco_zoo
torch.set_num_threads(1)
images = simco_zoo.data.load_images({str(folder)!r}, image_size=512, in_memory={in_memory})
assert len(images) * 3 * 512 * 512 > 3e9
model = simco_zoo.create_model("simco", backbone="test_resnet")
settings = dict(batch_size=4, max_steps=3, epochs=1, views="cifar", device="cpu", workers=1, progress_bar=False)
simco_zoo.training.pretrain(model, images, output={str(tmp_path / "run")!r}, **settings)
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
    )
    assert (done.returncode == 0 and "done" in done.stdout) == fits, done.stderr[-2000:]
    if not fits:
        assert "memory" in done.stderr
