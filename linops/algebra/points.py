"""Operators at another point: which parts of a composite have one, and that it is the same."""

import jax
import numpy as np

from linops.algebra.arithmetic import Arithmetic
from linops.products import is_traced


class AtPoint(Arithmetic):
    """An operator that is made of others, at points of theirs."""

    def at(self, *point, **options):
        """The same operator with each part that has a point at another one: `(J.T @ J + c * I).at(x)`.

        Points and options, such as `args`, are those that `at` of these parts takes. What has no point, explicit
        matrices and scalars, stays as it is; nothing is traced or compiled.

        Raises
        ------
        TypeError
            Where no part has a point.
        ValueError
            Where parts are at different points, as in a chain rule: which of them would be meant is not known.
        """
        first, *others = self._points() or [None]
        if first is None:
            raise TypeError(
                f"{self!r} has no point to be moved from, nor has any part of it; expected an operator of derivatives, "
                "such as linops.Hessian(f, x), or a sum, product or inverse of some"
            )
        if not all(_are_one(first, other) for other in others):
            raise ValueError(
                f"{self!r}.at: its parts are at different points, expected all of them at one: move each of them by "
                "its own at, and combine them anew"
            )
        factors = self._factors().items()
        return self._with_factors({name: A.at(*point, **options) if A._points() else A for name, A in factors})

    def _points(self):
        """The points of its parts, each a tuple of trees; an empty one for an operator that only has its own `at`."""
        if type(self).at is not AtPoint.at and type(self)._points is AtPoint._points:
            return [()]
        return [point for factor in self._factors().values() for point in factor._points()]


def _are_one(point, other):
    """Whether points are the same, as far as they are known: in a jit by their structure only."""
    if not point or not other:
        return True
    (leaves, treedef), (others, structure) = map(jax.tree.flatten, (point, other))
    return treedef == structure and all(map(_is_same, leaves, others))


def _is_same(a, b):
    if a is b:
        return True
    if np.shape(a) != np.shape(b):
        return False
    return is_traced((a, b)) or np.array_equal(a, b, equal_nan=True)  # of the host: nothing is compiled
