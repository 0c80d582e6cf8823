"""Show the model card of published weights, or describe a name without weights.

    simco-zoo info simco_r18_025

A published folder that is not in the zoo can be shown, too.
"""

from __future__ import annotations

import json
from pathlib import Path

from timm.models import split_model_name_tag

import simco_zoo
from simco_zoo.arguments import place
from simco_zoo.cli.run import build_command
from simco_zoo.hub import WeightsError, published, resolve
from simco_zoo.publishing.card import CARD_FILE


def main(argv: list[str] | None = None) -> int:
    parser = build_command("info", __doc__, "NAME")
    parser.add_argument("name", type=place, help="a registered name, local-dir:PATH, hf-hub:org/name, or a folder")
    name = parser.parse_args(argv).name
    known = published()
    tagged = name in known or any(split_model_name_tag(other)[0] == name for other in known)
    if tagged or ":" in name or Path(name).is_dir():
        is_path = not tagged and Path(name).is_dir()
        found = resolve(name, weights=name if is_path else None)
        try:
            print(found.document(CARD_FILE).decode(errors="replace").split("---\n", 2)[-1].strip())
        except WeightsError:  # there is none
            print(json.dumps(found.config, indent=2))
        return 0
    model = simco_zoo.create_model(name)
    print(f"{name}: {type(model).__name__}, {model.num_features} features, no weights published")
    print((type(model).__doc__ or "").split("\n\n")[0])
    print(json.dumps(model.method_config(), indent=2))
    return 0
