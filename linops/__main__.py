"""`python -m linops` is the console script."""

from linops.cli import script

if __name__ == "__main__":
    script()
