"""`python -m linops` is the console script."""

import sys

from linops.cli import main

if __name__ == "__main__":
    sys.exit(main())
