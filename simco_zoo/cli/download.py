"""Copy published weights into a folder.

    simco-zoo download simco_r18_025 --to simco_weights

The folder can be read without this installation: by timm, transformers, or ``create_model("local-dir:DIR")``. It has to
be new or empty, or hold an older copy, which is replaced.
"""

from __future__ import annotations

from simco_zoo.arguments import local_path, place
from simco_zoo.cli.run import build_command
from simco_zoo.publishing import copy_published


def main(argv: list[str] | None = None) -> int:
    parser = build_command("download", __doc__, "NAME")
    parser.add_argument("name", type=place, help="a registered name, local-dir:PATH or hf-hub:org/name")
    parser.add_argument("--to", required=True, type=local_path, metavar="DIR", help="the folder to write")
    args = parser.parse_args(argv)
    copy_published(args.name, args.to)
    print(f"{args.name} is in {args.to}; load it: simco_zoo.create_model('local-dir:{args.to}', pretrained=True)")
    return 0
