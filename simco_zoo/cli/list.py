"""List the models, with what is known about their weights.

    simco-zoo list 'simco*' --pretrained

The table has the name, tag, method, data, parameters of the backbone in millions, kNN and linear accuracy in percent,
the size of the weights, and where they are.
"""

from __future__ import annotations

import sys

import simco_zoo
from simco_zoo.arguments import local_path
from simco_zoo.cli.run import build_command
from simco_zoo.publishing.table import as_markdown, as_text, model_rows, write_into


def main(argv: list[str] | None = None) -> int:
    parser = build_command("list", __doc__, "[PATTERN]")
    parser.add_argument("pattern", nargs="?", default="", help="wildcard, e.g. 'simco*'; default: all models")
    parser.add_argument("--pretrained", action="store_true", help="only what this installation can load")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--into", type=local_path, metavar="FILE", help="write that table between its marks in FILE")
    args = parser.parse_args(argv)
    loadable = simco_zoo.list_models(args.pattern, pretrained=True, include_tags=True)
    names = loadable if args.pretrained else simco_zoo.list_models(args.pattern)
    if not names and not loadable:
        hint = hint_for(args.pattern)
        print(f"simco-zoo: no model matches {args.pattern!r}{hint}", file=sys.stderr)
        return 1
    rows = model_rows(names)
    if args.into is not None:
        changed = write_into(args.into, as_markdown(rows))
        print(f"the table in {args.into} {'is new' if changed else 'was up to date'}")
        return 0
    print(as_markdown(rows) if args.markdown else as_text(rows))
    return 0


def hint_for(pattern: str) -> str:
    """Returns a pattern that finds something, as the end of a sentence, or nothing."""
    wider = f"*{pattern.strip('*')}*"
    return f"; try {wider!r}" if simco_zoo.list_models(wider) else "; simco-zoo list shows all names"
