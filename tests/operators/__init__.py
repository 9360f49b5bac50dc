"""The zoo: every operator with its dense reference and its traits.

A new operator is one entry, and all laws run over it. Every other table of operators in the tests is a selection from
the zoo by traits, as in `where(importable=True)`.
"""

from operators import (  # noqa: F401
    algebra,
    data,
    derivatives,
    devices,
    inverses,
    parts,
    precisions,
    solvers,
    transformations,
)
from operators.entries import ZOO, arguments, build, dense, kind, make, where

__all__ = ["ZOO", "arguments", "build", "dense", "kind", "make", "where"]
