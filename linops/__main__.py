"""`python -m linops` is the console script."""

import sys

from linops.cli import main

sys.exit(main())
