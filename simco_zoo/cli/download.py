"""Copy published weights into a folder.

    simco-zoo download simco_r18_025 --to simco_weights

The folder can be read without this installation: by timm, transformers, or ``create_model("local-dir:DIR")``.
"""

from __future__ import annotations

import shutil

from simco_zoo.arguments import local_path, place
from simco_zoo.cli.run import build_command
from simco_zoo.files import atomic_write
from simco_zoo.hub import resolve
from simco_zoo.hub.folder import CONFIG_FILE
from simco_zoo.publishing.save import CARD_FILE, CURVES_FILE, LOG_FILE, REMOTE_CODE


def main(argv: list[str] | None = None) -> int:
    parser = build_command("download", __doc__, "NAME")
    parser.add_argument("name", type=place, help="a name of the zoo, local-dir:PATH or hf-hub:org/name")
    parser.add_argument("--to", required=True, type=local_path, metavar="DIR", help="the folder to write")
    args = parser.parse_args(argv)
    found = resolve(args.name)
    if found.folder is None:
        raise ValueError(f"{args.name} is a bare file; copy it yourself.")
    args.to.mkdir(parents=True, exist_ok=True)
    for path in filter(None, (found.model_file, found.projector_file)):
        content = found.verified_bytes(path)
        with atomic_write(args.to / path.name) as partial:
            partial.write_bytes(content)
    for name in (CONFIG_FILE, CARD_FILE, LOG_FILE, CURVES_FILE, REMOTE_CODE.name):
        if (found.folder / name).is_file():
            shutil.copyfile(found.folder / name, args.to / name)
    print(f"{args.name} is in {args.to}; load it: simco_zoo.create_model('local-dir:{args.to}', pretrained=True)")
    return 0
