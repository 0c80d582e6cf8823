"""The zoo's models: methods around timm backbones, and the names registered with timm."""

from simco_zoo.models.contrastive import ContrastiveModel
from simco_zoo.models.factory import create_model, list_models
from simco_zoo.models.methods import register_method
from simco_zoo.models.moco import MoCo, MoCoV1
from simco_zoo.models.simclr import DCL, SimCLR
from simco_zoo.models.simco import SimCo
from simco_zoo.models.simmoco import SimMoCo
from simco_zoo.models.simsiam import SimSiam
from simco_zoo.models.small_stem import small_stem

__all__ = [
    "DCL",
    "ContrastiveModel",
    "MoCo",
    "MoCoV1",
    "SimCLR",
    "SimCo",
    "SimMoCo",
    "SimSiam",
    "create_model",
    "list_models",
    "register_method",
    "small_stem",
]
