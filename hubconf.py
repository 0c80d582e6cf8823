"""Entry points for torch.hub: ``torch.hub.load("OWNER/REPOSITORY", "simco_r18", pretrained=True)``.

Every name of ``simco_zoo.list_models()`` is an entry point; ``torch.hub.help`` describes each.
"""

# import names, which torch.hub checks; the package's other requirements are dependencies of these
dependencies = ["torch", "timm", "huggingface_hub", "safetensors"]

import simco_zoo as _simco_zoo  # noqa: E402
from simco_zoo.models.methods import method_of as _method_of  # noqa: E402


def _entry_point(name):
    def load(pretrained=False, **kwargs):
        return _simco_zoo.create_model(name, pretrained=pretrained, **kwargs)

    method = _method_of(name).title
    tags = [n.split(".", 1)[1] for n in _simco_zoo.list_models(f"{name}.*", pretrained=True)]
    load.__name__ = load.__qualname__ = name
    load.__doc__ = f"""{name}: a ResNet with the small-image stem, with the head and loss of {method}.

    Called on normalized images (B, 3, H, W), best of 32 px, it gives pooled features (B, num_features).

    Args:
        pretrained: Load published weights, verified by sha256; this name has: {", ".join(tags) or "none yet"}.
        **kwargs: Arguments of simco_zoo.create_model: num_classes, in_chans, weights=PATH, temperature...
    """
    return load


globals().update({_name: _entry_point(_name) for _name in _simco_zoo.list_models()})
