"""A JAX function from trees to trees, as SciPy's least squares and root finders take functions: of vectors."""

import numpy as np

from linops.derivatives.jacobian import Jacobian
from linops.derivatives.map import Map
from linops.optimize.points import Evaluated, Moving, first_order, values, values_and_matrix
from linops.optimize.vectors import Vectors, require_outside
from linops.processes import gathered


class Residuals:
    """The values of a function at a vector, and its Jacobian there, dense or as an operator; NumPy's, in float64."""

    def __init__(self, fun, x0, args, what):
        traced = Map.trace(fun, x0, args, realify=True, what="fun")
        require_outside(what, "levenberg_marquardt", traced)
        self.vectors = Vectors.like(x0, traced.points)
        self.x0 = self.vectors.vector(traced.x)
        if not np.isfinite(self.x0).all():
            wrong = int(np.argmin(np.isfinite(self.x0)))
            where = f"x0{self.vectors.space.locate(wrong)}"
            raise ValueError(f"{what} got {where} = {self.x0[wrong]}, expected finite numbers to start from")
        self.of_values = Vectors(traced.values, (True,) * len((traced.values.paired or traced.values).shapes))
        self.jacobian = Jacobian._make(map=traced, extended=False, keep=None, check_finite=True)
        self.what = what
        size = (traced.points.size, traced.points.dtype)
        self._values = Evaluated(values, self.jacobian, size)
        self._matrix = Evaluated(values_and_matrix, self.jacobian, size)
        self._size = size
        self._moving = self._last = None

    def fun(self, x):
        """The values, a vector."""
        found = np.array(gathered(self._values(self._vector(x))[0]), float)
        self.require_finite(x, found)
        return found

    def jac(self, x):
        """The Jacobian, an operator."""
        return self._moved(x).operator

    def matrix(self, x):
        """The dense Jacobian."""
        return np.array(gathered(self._matrix(self._vector(x))[1]), float)

    def pull(self, x, w):
        """The product of the transpose of the Jacobian with a vector."""
        return self.jac(x).rmatvec(np.asarray(w, self.jacobian.dtype)).astype(float)

    def _moved(self, x):
        """The Jacobian of the last point; other ones are computed anew."""
        key = self.vectors.narrowed(x)
        if self._last is None or self._last[0] != key:
            self._moving = self._moving or Moving(first_order, self.jacobian, self._size)
            self._last = key, self._moving(self._vector(x))[1]
        return self._last[1]

    def _vector(self, x):
        return np.frombuffer(self.vectors.narrowed(x), self.vectors.space.dtype)

    def require_finite(self, x, found):
        """Refuse to start where values are not finite."""
        wrong = np.flatnonzero(~np.isfinite(found))
        if wrong.size and np.array_equal(x, self.x0):
            where = self.of_values.space.locate(int(wrong[0])) or "the value"
            raise ValueError(
                f"{self.what} got fun with {wrong.size} of {found.size} values not finite at x0, the first at {where}; "
                "expected finite numbers to start from: choose another x0, or look at args, and at fun near it "
                "(jax.config.jax_debug_nans shows where)"
            )
