"""Data: images and labels, random views, and the transform that a model was evaluated with."""

from simco_zoo.data.datasets import ImageData, load_images
from simco_zoo.data.presets import PRESETS, ViewPreset
from simco_zoo.data.streaming import StreamedImages, stream_images
from simco_zoo.data.transforms import normalize, resolve_transform
from simco_zoo.data.views import TwoViews

__all__ = [
    "PRESETS",
    "ImageData",
    "StreamedImages",
    "TwoViews",
    "ViewPreset",
    "load_images",
    "normalize",
    "resolve_transform",
    "stream_images",
]
