"""``python -m kt``: the same command line as ``kt``."""

import sys

from kt.cli import main

sys.exit(main())
