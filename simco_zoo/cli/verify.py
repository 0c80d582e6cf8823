"""Check hashes, keys, values and features of published weights.

    simco-zoo verify runs/NAME/last
    simco-zoo verify --all

Exit status: 0 if everything is as published, 1 if a check failed.
"""

from __future__ import annotations

from simco_zoo.arguments import place
from simco_zoo.cli.run import build_command
from simco_zoo.hub import WeightsError, published
from simco_zoo.publishing.verify import verify


def main(argv: list[str] | None = None) -> int:
    parser = build_command("verify", __doc__, "[NAME|PATH ...]")
    parser.add_argument("names", nargs="*", type=place, metavar="NAME|PATH", help="what to check")
    parser.add_argument("--all", action="store_true", help="everything this installation knows by name")
    args = parser.parse_args(argv)
    names = [*args.names, *(published() if args.all else [])]
    if not names:
        raise ValueError("name what to verify (a name or a folder), or pass --all.")
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
