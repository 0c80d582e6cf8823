"""extract_features: images in, one feature vector for each out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from simco_zoo.data import ImageData, load_images
from simco_zoo.data.transforms import Size, image_side, input_config, pair, unwrap
from simco_zoo.distributed import gather_objects, gather_rows, is_main, rank, world_size
from simco_zoo.evaluation.forward import build_forward, evaluating
from simco_zoo.evaluation.neighbors import search


@dataclass(frozen=True)
class Features:
    """What ``extract_features`` returns.

    Attributes:
        features: fp32 (N, D) on the CPU.
        labels: int64 (N,), -1 where an image has no label; None if none has.
        names: Name of each image, or None for tensors.
        skipped: (name, reason) of each image that could not be read.
        class_names: Names of the labels, or None.
        splits: The split of each image, where images of several were taken; otherwise None.
        info: How the features were made (``model``, ``image_size``, ``flip``...), as far as it is known.

    Example:
        >>> features = Features(torch.eye(2), names=["a.jpg", "b.jpg"])
        >>> len(features)
        2
    """

    features: Tensor
    labels: Tensor | None = None
    names: list[str] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    class_names: list[str] | None = None
    splits: list[str] | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.features)

    def search(self, query_features: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
        """Finds the most similar images by cosine similarity; of equally similar ones those with the lower row number.

        Args:
            query_features: Features (Q, D) of the queries by the same model, or (D,) of a single one.
            k: Number of images to find for each query; at most N are found.

        Returns:
            Row numbers, int64 (Q, k), and similarities in [-1, 1], fp32 (Q, k), the most similar first.

        Raises:
            ValueError: If the shapes do not match or k is below 1.

        Example:
            >>> bank = Features(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]))
            >>> indices, similarities = bank.search(torch.tensor([[0.0, 2.0]]), k=2)
            >>> indices.tolist()
            [[2, 1]]
        """
        return search(self.features, query_features, k)


def extract_features(
    model: nn.Module,
    images: ImageData | Tensor | str | Path | Any,
    batch_size: int = 256,
    *,
    split: str = "train",
    image_size: Size | None = None,
    flip: bool = False,
    device: str | torch.device | None = None,
    num_workers: int = 0,
    amp: torch.dtype | None = None,
    progress_bar: bool = False,
    across_processes: bool = False,
    **load: Any,
) -> Features:
    """Extracts pooled features with a model from ``create_model`` or from timm, in evaluation mode.

    The model's modes and weights are afterwards as they were before, bit by bit.

    Args:
        model: Called on a normalized batch (B, C, H, W), it gives (B, D). If it is timm's or the zoo's and has a
            classifier, the features are what enters that. DataParallel, torch.compile and the like around it are looked
            through.
        images: A folder, a data set of the Hub, ``"photos"`` or an ``ImageData`` (brought to the size that the model
            wants, unless it has been loaded already); a ``datasets.Dataset`` or a torch data set of PIL images; a
            uint8 tensor (N, 3, H, W), normalized as the model wants; or a float tensor (N, C, H, W), taken as ready.
        batch_size: Images per forward.
        split: Which part of a folder or data set, e.g. "train", "test" or "all".
        image_size: Side in pixels, or (height, width), to which images are brought; None: the model's own.
        flip: Return the mean of the features of each image and of its mirror image, which takes twice the time.
        device: Device to compute on; the model is moved there and stays there. Default: that of the model.
        num_workers: Processes that decode images which are not in memory.
        amp: Type for autocast, e.g. ``torch.bfloat16``; None: none.
        progress_bar: Show a progress bar on stderr, if that is a terminal.
        across_processes: Share the images among the processes of torch.distributed, all of which have to call this with
            the same arguments; each gets all features.
        **load: Further arguments of ``load_images``.

    Returns:
        Features with labels, names and what was skipped.

    Raises:
        ValueError: If the batch size is below 1, the images cannot be read or are a tensor of another shape or type,
            the model does not say what images it expects, or it gives no vector per image.

    Example:
        >>> import simco_zoo
        >>> model = simco_zoo.create_model("simco_r18_025")
        >>> features = simco_zoo.extract_features(model, "photos", limit=32)
        >>> features.features.shape, features.class_names[0]
        (torch.Size([32, 128]), 'astronaut')
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but has to be at least 1.")
    loaded, config = prepare_images(model, images, split=split, image_size=image_size, **load)
    batches = iterate_features(
        model,
        loaded,
        batch_size,
        config=config,
        flip=flip,
        device=device,
        num_workers=num_workers,
        amp=amp,
        progress_bar=progress_bar,
        across_processes=across_processes,
    )
    rows, features = zip(*batches, strict=True)
    return collect(loaded, torch.cat(rows), torch.cat(features), {"flip": flip})


def prepare_images(
    model: nn.Module, images: Any, *, split: str = "train", image_size: Size | None = None, **load: Any
) -> tuple[ImageData | Tensor, dict[str, Any]]:
    """Loads images as a model wants them, and checks those that are loaded already.

    Args:
        model: A model from ``create_model`` or from timm.
        images: What ``extract_features`` takes.
        split: Which part of a folder or data set.
        image_size: Side in pixels, or (height, width); None: the model's own.
        **load: Further arguments of ``load_images``.

    Returns:
        The images, and timm's data config of the model (empty for float tensors, which are taken as ready).

    Raises:
        ValueError: For the same reasons as ``extract_features``.
    """
    if isinstance(images, Tensor):
        _check_tensor(images)
        # taken as ready, so a model that does not say what it expects can take them
        config = {} if images.is_floating_point() else input_config(model)
        side, channels = image_side(images.shape), images.shape[1]
    else:
        config, channels = input_config(model), 3
        _check_side(model, config, image_size)
        if not isinstance(images, ImageData):
            for name in ("crop_pct", "crop_mode", "interpolation", "mean"):
                load.setdefault(name, config[name])
            images = load_images(images, split=split, image_size=image_size or image_side(config["input_size"]), **load)
        side = images.image_size
    if image_size is not None and side != image_side(pair(image_size)):
        raise ValueError(
            f"the images are loaded already, at {side} px; load them with image_size={image_size} or leave it out."
        )
    if config and channels != config["input_size"][0] and (channels, config["input_size"][0]) != (3, 1):
        raise ValueError(
            f"the images have {channels} channels (N, C, H, W), but the model takes "
            f"{config['input_size'][0]}; convert them to a tensor of that many channels."
        )
    return images, config


def iterate_features(
    model: nn.Module,
    images: ImageData | Tensor,
    batch_size: int = 256,
    *,
    config: dict[str, Any],
    start: int = 0,
    classify: bool = False,
    flip: bool = False,
    device: str | torch.device | None = None,
    num_workers: int = 0,
    amp: torch.dtype | None = None,
    progress_bar: bool = False,
    across_processes: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields row numbers (n,) and features (n, D), batch by batch, without the images that cannot be read.

    Args:
        model: As in ``extract_features``.
        images: What ``prepare_images`` returned.
        batch_size: Images per forward, of each process.
        config: What ``prepare_images`` returned.
        start: Row to start with.
        classify: Yield the scores of the classifier instead of what enters it.
        flip: As in ``extract_features``, like the following arguments.
        device: Device to compute on.
        num_workers: Processes that decode images which are not in memory.
        amp: Type for autocast.
        progress_bar: Show a progress bar.
        across_processes: Share the images among the processes; every process gets all features.
    """
    forward = build_forward(model, config, device=device, classify=classify, flip=flip, amp=amp)
    processes = world_size() if across_processes else 1
    wanted = torch.arange(start, len(images)).split(batch_size * processes)
    batches = tqdm(
        _batches(images, [_share(rows, batch_size) for rows in wanted] if processes > 1 else wanted, num_workers),
        total=len(wanted),
        desc="features",
        unit="batch",
        disable=None if progress_bar and is_main() else True,
    )
    pending: tuple[Tensor, Tensor] | None = None
    with evaluating(model):
        for rows, batch in zip(wanted, batches, strict=True):
            features = forward(batch)
            features = gather_rows(features)[: len(rows)] if processes > 1 else features
            kept = _readable(images, rows, processes > 1)
            if pending is not None:  # one batch late, so that the device has the next one to work on meanwhile
                yield pending[0], pending[1].cpu()
            pending = (rows, features) if kept.all() else (rows[kept], features[kept.to(features.device)])
        if pending is not None:
            yield pending[0], pending[1].cpu()


def collect(images: ImageData | Tensor, rows: Tensor, features: Tensor, info: dict[str, Any]) -> Features:
    """Returns features with what is known about their images.

    Args:
        images: What ``prepare_images`` returned.
        rows: The row of each feature, ascending.
        features: Features (N, D).
        info: How they were made.
    """
    if isinstance(images, Tensor):
        return Features(features, info={"image_size": image_side(images.shape), **info})
    kept = rows.tolist()
    return Features(
        features,
        None if images.labels is None else images.labels[rows],
        [images.names[row] for row in kept],
        images.skipped,
        images.class_names,
        None if images.splits is None else [images.splits[row] for row in kept],
        {"image_size": images.image_size, **info},
    )


def _share(rows: Tensor, batch_size: int) -> Tensor:
    """Returns this process's part of some rows; every part has the same length, so the last one starts anew."""
    own = torch.arange(rank() * batch_size, (rank() + 1) * batch_size)
    return rows[own % len(rows)]


def _readable(images: ImageData | Tensor, rows: Tensor, across_processes: bool) -> Tensor:
    """Returns which of some rows could be decoded, on whichever process, bool (n,)."""
    if isinstance(images, Tensor) or images.images is not None:
        return torch.ones(len(rows), dtype=torch.bool)
    if across_processes:
        images.skipped[:] = dict(entry for part in gather_objects(images.skipped) for entry in part).items()
    skipped = {name for name, _ in images.skipped}
    return torch.tensor([images.names[row] not in skipped for row in rows.tolist()])


def _check_side(model: nn.Module, config: dict[str, Any], image_size: Size | None) -> None:
    if image_size is None:
        return
    if min(pair(image_size)) < 1:
        raise ValueError(f"image_size is {image_size}, but an image has at least 1 pixel.")
    own = image_side(config["input_size"])
    cfg = getattr(unwrap(model), "pretrained_cfg", None)
    if image_side(pair(image_size)) != own and isinstance(cfg, dict) and cfg.get("fixed_input_size"):
        raise ValueError(f"the model takes images of {own} px only, so leave out image_size={image_size}.")


def _check_tensor(images: Tensor) -> None:
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images has shape {tuple(images.shape)}, but has to be (N, C, H, W), each at least 1.")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images is {images.dtype}; pass uint8 (0-255), or floats that are normalized already.")


def _batches(images: ImageData | Tensor, rows: Sequence[Tensor], num_workers: int) -> Iterator[Tensor]:
    if isinstance(images, Tensor):
        for index in rows:
            yield _rows_of(images, index)
    elif images.images is not None:
        for index in rows:
            yield _rows_of(images.images, index)
    else:
        yield from images.batches(rows, num_workers=num_workers)


def _rows_of(images: Tensor, index: Tensor) -> Tensor:
    """Returns rows without a copy where they follow each other."""
    first, last = int(index[0]), int(index[-1])
    return images[first : last + 1] if last - first + 1 == len(index) else images[index]
