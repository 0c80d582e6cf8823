"""The hub: published folders, where they are found and how they are verified. It only reads."""

from simco_zoo.hub.download import WeightsError
from simco_zoo.hub.folder import WeightsFolder
from simco_zoo.hub.registry import published, resolve

__all__ = ["WeightsError", "WeightsFolder", "published", "resolve"]
