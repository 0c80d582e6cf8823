"""Opening images and bringing them to size: every format that Pillow reads, in bounded memory."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from PIL import ExifTags, Image
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision.transforms import functional as TF

from simco_zoo.data.transforms import EvalTransform, to_rgb

Made = TypeVar("Made")

MAX_DECODED_BYTES = 2**30  # of one image and the copies that its conversion makes
MAX_RATIO = 4  # long to short side of an image that is kept whole
MAX_RESIZED_PIXELS = 2**26  # of an image whose short side was resized: long, thin ones grow without bound
_LARGE = 2**26  # bytes; of larger images one at a time is decoded
_one_large_image = threading.BoundedSemaphore(1)

# formats that are not pictures, or that Pillow hands to another program
_LEFT_OUT = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IPTC", "MCIDAS"}
# pictures that Pillow cannot read: they are named when they are left out
UNREADABLE_SUFFIXES = {
    ".heic", ".heif", ".jxl", ".svg", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2",
    ".raw", ".dcm", ".nii", ".eps", ".ps", ".wmf", ".emf", ".pdf", ".ai", ".xcf", ".jxr",
}  # fmt: skip


@lru_cache(maxsize=1)
def readable_formats() -> tuple[list[str], frozenset[str]]:
    """Returns the formats that Pillow reads here, and the suffixes of their files.

    If pillow-heif is installed, the photos of iPhones are among them.
    """
    try:
        import pillow_heif  # type: ignore[import-not-found]
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    Image.init()
    formats = sorted(set(Image.OPEN) - _LEFT_OUT)
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in formats}
    return formats, frozenset(suffixes)


def open_image(file: Any) -> Image.Image:
    """Opens a file, or the bytes of one; pixels are decoded when they are asked for."""
    if isinstance(file, bytes | bytearray | memoryview):
        file = io.BytesIO(file)
    with warnings.catch_warnings():
        # Pillow warns of large images: here they are counted against a limit of memory instead
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file, formats=readable_formats()[0])


def image_size(image: Image.Image) -> tuple[int, int]:
    """Returns width and height of an image as a viewer shows it, from its header."""
    width, height = image.size
    if width == height or (image.format == "PNG" and "exif" not in image.info):
        return width, height  # Pillow would decode a PNG in full to look for EXIF data behind the pixels
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except Exception:  # damaged EXIF data, as in make_upright
        turned = False
    return (height, width) if turned else (width, height)


def describe_error(error: Exception) -> str:
    """Returns a short reason for an image that cannot be read."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow can read"
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, ValueError | OSError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@dataclass(frozen=True)
class ImageReader:
    """Brings an image to size, as uint8 (3, H, W); it can be pickled, so that workers can have it.

    A large JPEG is decoded at a half, a quarter or an eighth of its size where the result stays at least twice as large
    as what it is resized to.

    Attributes:
        transform: What crops and resizes.
        whole_side: Shorter side in pixels of what ``whole`` returns.
    """

    transform: EvalTransform
    whole_side: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result."""
        return self.transform.input_size[1:]

    def __call__(self, image: Image.Image) -> Tensor:
        return self._decode(image, self.transform.to_uint8)

    def whole(self, image: Image.Image) -> Tensor:
        """Returns the image resized and not cropped, uint8 (3, h, w); a panorama is cropped to 4 : 1."""
        return self._decode(image, self._whole)

    def both(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Returns the image brought to size, and resized and not cropped."""
        return self._decode(image, lambda rgb: (self.transform.to_uint8(rgb), self._whole(rgb)))

    def _whole(self, image: Image.Image) -> Tensor:
        assert self.whole_side is not None
        resized = TF.resize(to_rgb(image), self.whole_side, str_to_interp_mode(self.transform.interpolation))
        longest = MAX_RATIO * self.whole_side
        return TF.pil_to_tensor(TF.center_crop(resized, [min(resized.height, longest), min(resized.width, longest)]))

    def _decode(self, image: Image.Image, make: Callable[[Image.Image], Made]) -> Made:
        short, ratio = self._resized(image)
        if self.whole_side is not None:
            short, ratio = max(short, self.whole_side), max(image.size) / max(min(image.size), 1)
        if image.format in ("JPEG", "MPO"):
            scale = 2 * short / min(image.size)
            if scale < 1:
                image.draft(None, (int(image.width * scale + 1), int(image.height * scale + 1)))
        cost = image.width * image.height * _bytes_per_pixel(image.mode)
        if cost > MAX_DECODED_BYTES or short * short * ratio > MAX_RESIZED_PIXELS:
            raise ValueError(f"{image.width} x {image.height} px of mode {image.mode} would take too much memory")
        with nullcontext() if cost <= _LARGE else _one_large_image:
            return make(to_rgb(image))

    def _resized(self, image: Image.Image) -> tuple[float, float]:
        """Returns the short side after the resize, and how many times longer the long side is."""
        short, long = sorted(image.size)
        side = max(self.size) / self.transform.crop_pct
        if self.transform.crop_mode == "center":
            return side, long / max(short, 1)
        return side, 1.0


def _bytes_per_pixel(mode: str) -> int:
    """Returns what decoding and converting to RGB takes, all copies together."""
    if mode in ("I", "F") or mode.startswith("I;16"):
        return 12
    return 16 if mode in ("RGBA", "LA", "PA", "P", "RGBa", "La") else 8


def read_image(reader: Callable[[Image.Image], Made], image: Any) -> Made | str:
    """Returns what a reader makes of an image, or the reason why it cannot be read."""
    try:
        return reader(image() if callable(image) else image)
    # Pillow's plugins raise nearly anything on damaged files, and one such file must not end a run
    except Exception as error:
        return describe_error(error)
