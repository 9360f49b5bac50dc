"""A JAX function of a tree, as SciPy's optimizers take functions: of vectors, with its derivatives."""

import functools
import math

import numpy as np

from linops.derivatives.batches import read
from linops.derivatives.hessian import Hessian, require_scalar
from linops.derivatives.map import Map
from linops.door import all_finite
from linops.optimize.constraints import for_vectors
from linops.optimize.points import Evaluated, Moving, is_light, product, second_order, value_and_gradient
from linops.optimize.vectors import Vectors, require_outside
from linops.processes import gathered
from linops.realify import any_complex


class Objective:
    """A scalar function of a tree for `scipy.optimize` called by hand: flat NumPy vectors outside, JAX inside.

        objective = linops.optimize.Objective(fun, x0)
        scipy.optimize.minimize(objective.fun, objective.x0, jac=objective.jac, hess=objective.hess, method="trust-ncg")

    At a new point value and gradient come from one compiled call, and from the first Hessian on its linearization too;
    but where that is less work than a call, products by `hessp` keep nothing.
    Points are compared by value, and the last two are remembered: what is asked for again is not computed again.
    Nothing is compiled at another point, or for a second objective of the same program.

    Parameters
    ----------
    fun : callable
        `fun(x, *args)`, a JAX function from a tree to a real scalar.
    x0 : pytree of arrays
        Of real or complex numbers; the vector of complex ones is [Re x, Im x].
    args : tuple
        Further arguments of fun, of which arrays and floats are data.
    data, batch_size, reduction
        As for `linops.Jacobian`: fun is `fun(x, batch, *args)`, and its mean or sum over all examples is minimized.
    constraints : LinearConstraint, NonlinearConstraint, dict, or a sequence of these
        As SciPy has them, but with JAX functions of the tree. Derivatives that they bring are not used. The matrix of a
        `LinearConstraint` multiplies the vector of x. Bounds of a `NonlinearConstraint` may be trees like its values.
    products : {"exact", "difference"}
        Products with Hessians, of constraints too: "difference", as for `linops.Hessian`, where fun has a gradient and
        no second derivative.
    bounds : optional
        A pair (lower, upper), each a number, None or a tree like x0; or SciPy's `Bounds` for the vector.

    Attributes
    ----------
    fun, jac, hess, hessp : methods
        The value, a float, NaN being read as infinity, to which no solver steps; the gradient, a vector; the Hessian, a
        `linops.Hessian` at that point; and its product with a vector.
    x0 : ndarray
        The vector of x0, in the dtype that is computed in. SciPy's own arithmetic is in that of the vector it gets.
    constraints : list
        For SciPy: each a `LinearConstraint`, or a `NonlinearConstraint` with `jac(x)`, dense, and `hess(x, v)`, the
        Hessian of v . c(x) as an operator.
    bounds : scipy.optimize.Bounds or None

    Raises
    ------
    TypeError
        Where x0 is not of floating point, or fun is not a real scalar.
    ValueError
        Where bounds are not like x0, and, when it is asked for, where fun or its gradient is not finite at x0.

    Examples
    --------
    >>> import scipy.optimize
    >>> rosenbrock = lambda x: (1 - x["a"]) ** 2 + 100.0 * (x["b"] - x["a"] ** 2) ** 2
    >>> f = Objective(rosenbrock, {"a": np.float32(-1), "b": np.float32(1)})
    >>> found = scipy.optimize.minimize(f.fun, f.x0, jac=f.jac, hess=f.hess, method="Newton-CG")
    >>> bool(np.allclose(f.tree(found.x)["b"], 1.0, atol=1e-2))
    True
    """

    def __init__(
        self, fun, x0, args=(), constraints=(), bounds=None, *, data=None, batch_size=None, reduction="mean",
        products="exact",
    ):  # fmt: skip
        data = read(data, batch_size, reduction)
        traced = Map.trace(fun, x0, args, realify=True, what="fun", data=data)
        require_outside("Objective", "newton_cg", traced)
        if any_complex(traced.function.codomain) or traced.function.codomain.paired:
            raise TypeError(
                "Objective got fun with complex values, expected a real scalar; take the real part, or the absolute "
                "value"
            )
        require_scalar(traced.function, "fun", "Objective", "for residuals use linops.optimize.least_squares")
        self._hessian = hessian = Hessian._of_map(traced, products, "Objective")
        self.vectors = Vectors.like(x0, traced.points)
        self.x0 = self.vectors.vector(traced.x)
        if not self.x0.size:
            raise ValueError(f"Objective got x0={x0!r}, expected one number at least")
        self._size = (traced.points.size, traced.points.dtype)
        self._first = Evaluated(value_and_gradient, hessian, self._size)
        self._linearizes = False  # from the first Hessian on
        self._points = []
        self.bounds = self.vectors.bounds(bounds, pairs=True)
        self.constraints = for_vectors(constraints, x0, self.vectors, products)

    def __getstate__(self):
        """All but the points, which what is compiled belongs to; that is found again."""
        return dict(vars(self), _points=[])

    # Second derivatives, which f may lack, are traced when they are asked for.

    @functools.cached_property
    def _second(self):
        return Moving(second_order, self._hessian, self._size)

    @functools.cached_property
    def _product(self):
        is_one_call = is_light(self._hessian)
        return Evaluated(product, self._hessian._replace(keep=False), self._size, self._size) if is_one_call else None

    def fun(self, x):
        """The value at a vector x, a float."""
        return self._at(x).value

    def jac(self, x):
        """The gradient at a vector x, a new vector."""
        return self._at(x).gradient.copy()

    def hess(self, x):
        """The Hessian at a vector x, an operator."""
        return self._at(x, linearizes=True).hessian.operator

    def hessp(self, x, v):
        """The product of the Hessian at a vector x with a vector v."""
        v = np.asarray(v)
        if v.dtype != self.x0.dtype:
            v = _narrowed(v, self.x0.dtype)
        if self._product is not None and v.shape == self.x0.shape:
            point = self._at(x)
            if point.hessian is None and all_finite(found := np.array(self._product(point.vector, v)[0])):
                return found
        return self._at(x, linearizes=True).hessian.door.matvec(v)

    def tree(self, vector):
        """A vector as a tree like x0."""
        return self.vectors.tree(vector)

    def _at(self, x, linearizes=False):
        """What is known at a point; what is not is computed."""
        x = np.asarray(x)
        given = x.dtype, x.shape, x.tobytes()  # compared as it is: it would take longer to narrow it, for each product
        point = self._points[-1] if self._points else None
        if point is not None and point.given == given and (point.hessian is not None or not linearizes):
            return point
        key = self.vectors.narrowed(x)
        point = self._found(key) or _Point(key, self.vectors.space)
        is_new = point.value is None
        if point.hessian is None and (linearizes or (is_new and self._linearizes)):
            (value, gradient), point.hessian = self._second(point.vector)
        elif is_new:
            value, gradient = self._first(point.vector)
        if is_new:  # of two programs that round differently, what came first
            point.value, point.gradient = _without_nan(float(value)), np.asarray(gathered(gradient))
            if key == self.x0.tobytes():
                self._require_finite(point)
            self._points = [*self._points[-1:], point]  # now that it is whole: what raises before leaves nothing
        self._linearizes = self._linearizes or linearizes
        point.given = given
        return point

    def _found(self, key):
        for i, point in enumerate(self._points):
            if point.key == key:
                self._points.append(self._points.pop(i))
                return point
        return None

    def _require_finite(self, point):
        wrong = np.flatnonzero(~np.isfinite(point.gradient))
        if np.isfinite(point.value) and not wrong.size:
            return
        where = f"its gradient at x0{self.vectors.space.locate(int(wrong[0]))}" if wrong.size else "it"
        raise ValueError(
            f"fun is {point.value} at x0 and {where} is not finite, expected finite numbers to start from: choose "
            "another x0, or look at args and data, and at fun near it (jax.config.jax_debug_nans shows where)"
        )


class _Point:
    """What is known of a point; its vector is not shared with anyone."""

    def __init__(self, key, space):
        self.key, self.vector = key, np.frombuffer(key, space.dtype)
        self.given = self.value = self.gradient = self.hessian = None


def _without_nan(value):
    return math.inf if math.isnan(value) else value


@np.errstate(over="ignore")  # which takes a part of the time of a context, and that is a tenth of a small product
def _narrowed(v, dtype):
    return v.astype(dtype)
