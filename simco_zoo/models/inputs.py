"""What a model is given: images of the right kind, or one sentence about what is wrong with them."""

from __future__ import annotations

from torch import Tensor


def check_images(x: Tensor, in_chans: int | None = None) -> Tensor:
    """Returns the images.

    Raises:
        ValueError: Unless they are a floating-point batch (N, C, H, W) with the channels of the model.
    """
    if x.ndim != 4:
        raise ValueError(f"the images have shape {tuple(x.shape)}; a batch is (N, C, H, W), one image is image[None].")
    if in_chans is not None and x.shape[1] != in_chans:
        gray = "a gray model takes simco_zoo.extract_features or x.mean(dim=1, keepdim=True)"
        if in_chans != 1:
            gray = f"gray images x.expand(-1, {in_chans}, -1, -1)"
        raise ValueError(
            f"the images have shape {tuple(x.shape)}, but the model takes {in_chans} channel{'s' * (in_chans > 1)}: "
            f"(N, {in_chans}, H, W); channels last need x.permute(0, 3, 1, 2), {gray}."
        )
    if not x.is_floating_point():
        raise ValueError(
            f"the images are {x.dtype}, but the model takes normalized floating-point images; use "
            "simco_zoo.extract_features, simco_zoo.data.TwoViews or resolve_transform, which normalize them."
        )
    return x


def check_views(*views: Tensor, in_chans: int | None = None) -> tuple[Tensor, ...]:
    """Returns the views.

    Raises:
        ValueError: Unless all are floating-point batches (N, C, H, W) of the same shape.
    """
    if any(view.shape != views[0].shape for view in views):
        raise ValueError(
            f"the views have shapes {' and '.join(str(tuple(view.shape)) for view in views)}; "
            "contrast needs views (N, C, H, W) of the same images, in the same order."
        )
    return tuple(check_images(view, in_chans) for view in views)
