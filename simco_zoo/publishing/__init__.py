"""Publishing: a model becomes a folder, the folder a repository of the Hugging Face Hub."""

from simco_zoo.publishing.push import push_to_hub, register_publication
from simco_zoo.publishing.save import save_pretrained

__all__ = ["push_to_hub", "register_publication", "save_pretrained"]
