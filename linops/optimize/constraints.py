"""Constraints whose functions are JAX functions of a tree, as SciPy takes them: of vectors, with exact derivatives."""

import numbers

import numpy as np
import scipy.sparse
from scipy.optimize import LinearConstraint, NonlinearConstraint

from linops.arrays import brief
from linops.derivatives.hessian import Hessian
from linops.derivatives.jacobian import Jacobian
from linops.derivatives.map import Map
from linops.optimize.points import Evaluated, Moving, values, values_and_matrix, weighted
from linops.optimize.vectors import Vectors
from linops.processes import gathered


def for_vectors(constraints, x0, vectors, products):
    """The list of constraints as SciPy takes them, of those that a user gives for trees like x0."""
    if isinstance(constraints, LinearConstraint | NonlinearConstraint | dict):
        constraints = [constraints]
    return [_for_vectors(constraint, x0, vectors, products) for constraint in constraints]


def _for_vectors(constraint, x0, vectors, products):
    if isinstance(constraint, LinearConstraint):
        columns = (constraint.A if scipy.sparse.issparse(constraint.A) else np.atleast_2d(constraint.A)).shape[-1]
        if columns != vectors.space.size:
            raise ValueError(
                f"got a LinearConstraint with {columns} columns, expected {vectors.space.size}, one for each entry of "
                "the vector of x0"
            )
        return constraint
    if isinstance(constraint, dict):
        kind = constraint.get("type")
        if kind not in ("eq", "ineq") or "fun" not in constraint:
            raise ValueError(
                f"got a constraint {brief(constraint)}, expected a dict with 'fun' and 'type', which is 'eq' or 'ineq'"
            )
        upper = 0.0 if kind == "eq" else np.inf
        return _Constraint(constraint["fun"], x0, constraint.get("args", ()), products).between(0.0, upper, False)
    if isinstance(constraint, NonlinearConstraint):
        made = _Constraint(constraint.fun, x0, (), products)
        return made.between(constraint.lb, constraint.ub, constraint.keep_feasible)
    raise TypeError(
        f"got a constraint {brief(constraint)}, expected scipy.optimize's LinearConstraint or NonlinearConstraint, or "
        "a dict with 'type' and 'fun'"
    )


class _Constraint:
    """A function of a tree: its values at a vector, its dense Jacobian, and the Hessian of their weighted sum."""

    def __init__(self, fun, x0, args, products):
        traced = Map.trace(fun, x0, args, realify=True, what="the function of a constraint")
        self.points = Vectors.like(x0, traced.points)
        self.values = Vectors(traced.values, ())
        size, count = ((space.size, space.dtype) for space in (traced.points, traced.values))
        jacobian = Jacobian._make(map=traced, extended=False, keep=None, check_finite=True)
        self._values = Evaluated(values, jacobian, size)
        self._matrix = Evaluated(values_and_matrix, jacobian, size)
        hessian = Hessian._of_map(traced, products, "Objective", traced.values.zeros())
        self._hessian = Moving(weighted, hessian, size, count)

    def between(self, lower, upper, keep_feasible):
        """The constraint that the values are between these bounds, which may be trees like the values."""
        lower, upper = (
            bound if isinstance(bound, numbers.Real) else self.values.bound(bound, what, None)
            for bound, what in [(lower, "lower"), (upper, "upper")]
        )
        return NonlinearConstraint(self.fun, lower, upper, jac=self.jac, hess=self.hess, keep_feasible=keep_feasible)

    def fun(self, x):
        return np.array(gathered(self._values(self._point(x))[0]), float)

    def jac(self, x):
        return np.array(gathered(self._matrix(self._point(x))[1]), float)

    def hess(self, x, v):
        weights = np.frombuffer(self.values.narrowed(v), self.values.space.dtype)
        return self._hessian(self._point(x), weights)[1].operator

    def _point(self, x):
        return np.frombuffer(self.points.narrowed(x), self.points.space.dtype)
