"""InfoNCE and the dual temperature loss, as functions and as modules; see ``contrastive`` for the mathematics."""

from simco_zoo.losses.contrastive import (
    anchor_strength,
    dual_temperature,
    floored_share,
    info_nce,
    log_anchor_weights,
)
from simco_zoo.losses.modules import DualTemperatureLoss, InfoNCELoss

__all__ = [
    "DualTemperatureLoss",
    "InfoNCELoss",
    "anchor_strength",
    "dual_temperature",
    "floored_share",
    "info_nce",
    "log_anchor_weights",
]
