"""Check a published model as a whole: hashes, values, projector, classifier, class names, features, card and log.

    simco-zoo verify runs/NAME/last
    simco-zoo verify --all
    simco-zoo verify runs/NAME/last --renew    # of a folder that an earlier version wrote: adds the hashes it lacks

Exit status: 0 if everything is as published, 1 if a check failed.
"""

from __future__ import annotations

from simco_zoo.arguments import place
from simco_zoo.cli.run import build_command
from simco_zoo.hub import WeightsError, published
from simco_zoo.hub.registry import damaged
from simco_zoo.publishing import renew_folder
from simco_zoo.publishing.verify import verify


def main(argv: list[str] | None = None) -> int:
    parser = build_command("verify", __doc__, "[NAME|PATH ...]")
    parser.add_argument("names", nargs="*", type=place, metavar="NAME|PATH", help="what to check")
    parser.add_argument("--all", action="store_true", help="everything this installation knows by name")
    parser.add_argument("--renew", action="store_true", help="give folders of an earlier version today's hashes")
    args = parser.parse_args(argv)
    names = [*args.names, *([*published(), *damaged()] if args.all else [])]
    if not names:
        raise ValueError("name what to verify (a name or a folder), or pass --all.")
    failed = False
    for name in names:
        try:
            if args.renew:
                renew_folder(str(name).removeprefix("local-dir:"))
            checks = verify(name)
        except WeightsError as error:
            print(f"{name}: FAILED\n  {error}")
            failed = True
            continue
        problems = [check for check in checks if check.problem]
        print(f"{name}: {'FAILED' if problems else 'ok'} ({', '.join(check.name for check in checks)})")
        for check in checks:
            if check.problem or check.note:
                print(f"  {check.name}: {check.problem or check.note}")
        failed = failed or bool(problems)
    return int(failed)
