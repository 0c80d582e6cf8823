"""Data: images and labels, random views, and the transform that a model was evaluated with."""

from simco_zoo.data.datasets import from_tensor, load_images, load_splits
from simco_zoo.data.images import ImageData
from simco_zoo.data.presets import PRESETS, ViewPreset
from simco_zoo.data.streaming import StreamedImages, stream_images
from simco_zoo.data.transforms import EvalTransform, normalize, resolve_transform
from simco_zoo.data.views import TwoViews

__all__ = [
    "PRESETS",
    "EvalTransform",
    "ImageData",
    "StreamedImages",
    "TwoViews",
    "ViewPreset",
    "from_tensor",
    "load_images",
    "load_splits",
    "normalize",
    "resolve_transform",
    "stream_images",
]
