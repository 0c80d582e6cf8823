"""``python -m simco_zoo.cli``, e.g. under torchrun."""

import sys

from simco_zoo.cli import main

sys.exit(main())
