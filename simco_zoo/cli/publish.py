"""Publish a run's folder on the Hugging Face Hub, with card, config, log and checksums.

    simco-zoo publish --folder runs/NAME/best --repo ORG/NAME --dry-run
    simco-zoo publish --all ORG --register    # what ships with this checkout, each under its name

Log in first (hf auth login) or set HF_TOKEN. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from simco_zoo.arguments import local_path
from simco_zoo.cli.run import build_command
from simco_zoo.hub.registry import SHIPPED
from simco_zoo.publishing import push_to_hub
from simco_zoo.publishing.register import register_publication
from simco_zoo.publishing.verify import verify


def main(argv: list[str] | None = None) -> int:
    parser = build_command("publish", __doc__)
    parser.add_argument("--folder", type=local_path, help="a published folder, e.g. runs/NAME/best; default: see --all")
    parser.add_argument("--repo", help="ORG/NAME, made if it does not exist; default: see --all")
    parser.add_argument("--all", metavar="ORG", help="publish all that ships here, each as ORG/NAME.TAG")
    parser.add_argument("--revision", help="branch to commit to; default: the main one")
    parser.add_argument("--tag", help="git tag to put on the commit, e.g. v1.0: hf-hub:ORG/NAME@v1.0 loads it")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--overwrite-card", action="store_true", help="replace a README that was edited on the Hub")
    parser.add_argument(
        "--remote-code", action="store_true", help="add modeling_simco.py, for transformers without this package"
    )
    parser.add_argument(
        "--register", action="store_true", help="write commit and sha256 into this checkout's registry of names"
    )
    parser.add_argument("--dry-run", action="store_true", help="verify the folder and say what would be sent")
    args = parser.parse_args(argv)

    if (args.all is None) == (args.folder is None) or (args.folder is None) != (args.repo is None):
        raise ValueError("pass --folder and --repo, or --all ORG for the weights of this checkout.")
    if args.all is None:
        jobs = [(args.folder, args.repo)]
    else:
        jobs = [(folder, f"{args.all}/{folder.name}") for folder in sorted(SHIPPED.iterdir()) if folder.is_dir()]
    for folder, _ in jobs:  # all of them, before anything is sent
        problems = [check for check in verify(folder) if check.problem]
        if problems:
            raise ValueError("; ".join(f"{folder}: {check.name}: {check.problem}" for check in problems))
    results = [publish(folder, repo, args) for folder, repo in jobs]
    print(json.dumps(results[0] if args.all is None else {"published": results}))
    return 0


def publish(folder: Path, repo: str, args: argparse.Namespace) -> dict[str, object]:
    """Publishes one folder, or says what would be sent."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    print(f"{folder} -> {repo}" + (f" ({args.revision})" if args.revision else ""))
    for file in files:
        print(f"  {file.name}  {file.stat().st_size / 1e6:.2f} MB")
    result: dict[str, object] = {"repo": repo, "files": [file.name for file in files], "dry_run": args.dry_run}
    if args.dry_run:
        return result
    result["commit"] = push_to_hub(
        folder,
        repo,
        revision=args.revision,
        tag=args.tag,
        private=args.private,
        overwrite_card=args.overwrite_card,
        remote_code=args.remote_code,
    )
    if args.register:
        result["registered"] = register_publication(folder, repo, str(result["commit"]))
    return result
