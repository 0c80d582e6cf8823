"""simco-zoo: contrastive backbones (SimCo, SimMoCo, MoCo) that train, publish and load in timm's manner."""

from simco_zoo.version import __version__

__all__ = ["__version__"]
