"""The console command ``simco-zoo``: list, info, verify, extract, download."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from timm.models import split_model_name_tag

import simco_zoo
from simco_zoo.evaluation.export import add_arguments, extract_by_arguments
from simco_zoo.files import atomic_write
from simco_zoo.hub import WeightsError, published, resolve
from simco_zoo.hub.folder import CONFIG_FILE
from simco_zoo.publishing.save import CARD_FILE, CURVES_FILE, LOG_FILE, REMOTE_CODE
from simco_zoo.publishing.table import as_markdown, as_text, model_rows, write_into
from simco_zoo.publishing.verify import verify


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 if a check failed, 2 for a wrong call."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except BrokenPipeError:  # whoever reads the output has seen enough
        sys.stderr.close()
        return 0
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(f"simco-zoo: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="simco-zoo", description="Self-supervised backbones that load in one line.")
    parser.add_argument("--version", action="version", version=f"simco-zoo {simco_zoo.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    listing = commands.add_parser("list", help="list the models, with what is known of their weights")
    listing.add_argument("pattern", nargs="?", default="", help="wildcard, e.g. 'simco*'")
    listing.add_argument("--pretrained", action="store_true", help="only what this installation can load")
    listing.add_argument("--markdown", action="store_true", help="as a table of Markdown")
    listing.add_argument("--into", type=Path, metavar="FILE", help="put that table between its marks in FILE")
    listing.set_defaults(run=_list)

    info = commands.add_parser("info", help="show the model card of published weights, or describe a name")
    info.add_argument("name")
    info.set_defaults(run=_info)

    check = commands.add_parser("verify", help="check hashes, keys, values and features of published weights")
    check.add_argument("names", nargs="*", metavar="NAME|PATH")
    check.add_argument("--all", action="store_true", help="everything this installation knows by name")
    check.set_defaults(run=_verify)

    extract = commands.add_parser("extract", help="write the features of images to a file")
    add_arguments(extract)
    extract.set_defaults(run=_extract)

    download = commands.add_parser("download", help="copy published weights into a folder")
    download.add_argument("name")
    download.add_argument("--to", required=True, type=Path, metavar="DIR")
    download.set_defaults(run=_download)
    return parser


def _list(args: argparse.Namespace) -> int:
    loadable = simco_zoo.list_models(args.pattern, pretrained=True, include_tags=True)
    names = loadable if args.pretrained else simco_zoo.list_models(args.pattern)
    if not names and not loadable:
        print(f"simco-zoo: no model matches {args.pattern!r}", file=sys.stderr)
        return 1
    rows = model_rows(names)
    if args.into is not None:
        changed = write_into(args.into, as_markdown(rows))
        print(f"the table in {args.into} {'is new' if changed else 'was up to date'}")
        return 0
    print(as_markdown(rows) if args.markdown else as_text(rows))
    return 0


def _info(args: argparse.Namespace) -> int:
    known = published()
    tagged = args.name in known or any(split_model_name_tag(name)[0] == args.name for name in known)
    if tagged or ":" in args.name or Path(args.name).is_dir():
        is_path = not tagged and Path(args.name).is_dir()
        found = resolve(args.name, weights=args.name if is_path else None)
        card = found.folder / "README.md" if found.folder else None
        if card is not None and card.is_file():
            print(card.read_text(encoding="utf-8").split("---\n", 2)[-1].strip())
        else:
            print(json.dumps(found.config, indent=2))
        return 0
    model = simco_zoo.create_model(args.name)
    print(f"{args.name}: {type(model).__name__}, {model.num_features} features, no weights published")
    print((type(model).__doc__ or "").split("\n\n")[0])
    print(json.dumps(model.method_config(), indent=2))
    return 0


def _verify(args: argparse.Namespace) -> int:
    names = [*args.names, *(published() if args.all else [])]
    if not names:
        raise ValueError("name what to verify (a name, a folder), or pass --all.")
    failed = False
    for name in names:
        try:
            checks = verify(name)
        except WeightsError as error:
            print(f"{name}: FAILED\n  {error}")
            failed = True
            continue
        problems = [check for check in checks if check.problem]
        print(f"{name}: {'FAILED' if problems else 'ok'} ({', '.join(check.name for check in checks)})")
        for check in problems:
            print(f"  {check.name}: {check.problem}")
        failed = failed or bool(problems)
    return int(failed)


def _extract(args: argparse.Namespace) -> int:
    print(json.dumps(extract_by_arguments(args)))
    return 0


def _download(args: argparse.Namespace) -> int:
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


if __name__ == "__main__":
    sys.exit(main())
