"""timm's interface, for a model that holds a backbone of timm."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from simco_zoo.models.inputs import check_images


class TimmInterface(nn.Module):
    """A module with timm's methods and attributes, which pass on to its ``backbone``.

    A subclass sets both attributes.

    Attributes:
        backbone: A timm model.
        in_chans: Number of channels of its images, None where timm does not tell.
    """

    backbone: Any  # timm's models share an interface, but no class
    in_chans: int | None

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, C, H, W) to pooled features (B, num_features); to scores after ``reset_classifier``."""
        return self.backbone(check_images(x, self.in_chans))

    def forward_features(self, x: Tensor) -> Tensor:
        """Returns the backbone's last feature map or tokens, before pooling."""
        return self.backbone.forward_features(check_images(x, self.in_chans))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools the output of ``forward_features`` and, unless ``pre_logits``, applies the classifier."""
        return self.backbone.forward_head(x, pre_logits=pre_logits)

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Returns the last feature map and those of the stages, as timm's method of that name."""
        return self.backbone.forward_intermediates(x, *args, **kwargs)

    @property
    def num_features(self) -> int:
        """Length of the feature vector that the model gives for an image."""
        # older timm leaves pools that concatenate, e.g. "catavgmax", out of head_hidden_size
        width = getattr(getattr(self.backbone, "global_pool", None), "feat_mult", lambda: 1)()
        return self.backbone.num_features * width if width > 1 else self.backbone.head_hidden_size

    @property
    def num_classes(self) -> int:
        """Number of classes of the classifier, 0 for a feature extractor."""
        return self.backbone.num_classes

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's description of the weights and of the input that they expect."""
        return self.backbone.pretrained_cfg

    @property
    def default_cfg(self) -> dict[str, Any]:
        """timm's older name of ``pretrained_cfg``."""
        return self.backbone.pretrained_cfg

    @property
    def feature_info(self) -> Any:
        """Channels, reduction and module of each stage, as timm gives them."""
        return self.backbone.feature_info

    def get_classifier(self) -> nn.Module:
        """Returns the classifier, an identity for a feature extractor."""
        return self.backbone.get_classifier()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a fresh classifier with ``num_classes`` outputs on the backbone; 0 removes it."""
        self.backbone.reset_classifier(num_classes, *(() if global_pool is None else (global_pool,)))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in the backbone's backward."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Returns the names of parameters that timm leaves out of weight decay."""
        names: set[str] = getattr(self.backbone, "no_weight_decay", set)()
        return {f"backbone.{name}" for name in names}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns timm's parameter groups (for layer-wise learning rates), with the names they have in this model."""

        def within_backbone(pattern: str) -> str:
            return rf"^backbone\.(?:{pattern.replace('^', '')})"

        def rename(spec: Any) -> Any:
            if spec is None:
                return None
            if isinstance(spec, str):
                return within_backbone(spec)
            return [(within_backbone(pattern), order) for pattern, order in spec]

        return {name: rename(spec) for name, spec in self.backbone.group_matcher(coarse=coarse).items()}

    def set_pretrained_cfg(self, cfg: dict[str, Any]) -> None:
        """Sets timm's description of the weights and of the input that they expect."""
        self.backbone.pretrained_cfg = self.backbone.default_cfg = cfg


def pooled_features(backbone: Any, x: Tensor) -> Tensor:
    """Maps images (B, C, H, W) to features (B, D), the classifier left out.

    Raises:
        ValueError: If the backbone's features are not one vector per image.
    """
    features = backbone.forward_head(backbone.forward_features(x), pre_logits=True)
    if features.ndim != 2:
        raise ValueError(
            f"the backbone gives features of shape {tuple(features.shape)} where one vector per image is needed; "
            "build it with a pooling, e.g. global_pool='avg'."
        )
    return features
