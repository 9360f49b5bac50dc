"""Whether a solver of SciPy's is done: tolerances by dtype, and what of a gradient may be rounding."""

import jax.numpy as jnp
import numpy as np
from scipy.optimize import LinearConstraint, lsq_linear

ROUNDINGS = 10  # of one unit in the last place: what is computed may be off by that
MOST_PRODUCTS = 200  # with which a model is minimized


def eps(dtype):
    """The distance of 1 to the next number."""
    return float(jnp.finfo(dtype).eps)


def projected(gradient, x, bounds):
    """The part of a gradient along which bounds allow a step."""
    if bounds is None:
        return gradient
    return np.clip(gradient, x - bounds.ub, x - bounds.lb)  # x - clip(x - gradient), that does not cancel far away


def norms(J):
    """The norms of the columns of a matrix, or of a vector; in a unit, for squares leave the range of a dtype early."""
    _, exponent = np.frexp(np.abs(J).max(axis=0, initial=0))
    unit = np.ldexp(1.0, exponent - 1)
    return unit * np.linalg.norm(J / unit, axis=0)


def is_rounding(values, product, x, unit):
    """Whether values are what rounding in x makes of zeros, of products with the matrix of their derivative.

    That is their change along one unit in the last place of each entry of x, with signs at random.
    """
    signs = np.random.default_rng(0).choice([-1.0, 1.0], x.shape)
    size = norms(values)
    return bool(np.isfinite(size) and size <= ROUNDINGS * unit * norms(product(signs * abs(x))))


def is_at_rest(gradient, product, x, unit, limit, step, blocked, scale=None):
    """Whether a quadratic model, of a gradient and of products with a matrix, promises no more than `limit`.

    It does not either where the gradient is what rounding in x makes of one. The `blocked` entries move to bounds
    alone, by the `step` that these leave of the gradient. A `scale` makes the entries of x alike. Without it all of the
    gradient is followed, to rounding: what is stiff in it hides what the rest promises.
    """
    if not gradient[blocked] @ step[blocked] <= limit:
        return False
    free = ~blocked
    gradient = gradient * free
    if is_rounding(gradient, lambda v: product(v * free) * free, x * free, unit):
        return True
    rest, scale = (unit**2, 1.0) if scale is None else (1e-2, scale)
    gradient = scale * gradient
    promised, residual = 0.0, -gradient
    direction, square = residual, residual @ residual
    for _ in range(min(MOST_PRODUCTS, 10 * x.size)):
        image = scale * free * product(scale * free * direction)
        curvature = direction @ image
        if curvature <= 0:
            return False
        step = square / curvature
        promised += step * square / 2
        if not promised <= limit:
            return False
        residual = residual - step * image
        before, square = square, residual @ residual
        if square <= rest * (gradient @ gradient):
            break
        direction = residual + square / before * direction
    return True


def stationarity(gradient, x, bounds, constraints, near):
    """How far x is from a point of Karush, Kuhn and Tucker: what is left of the gradient, and the violation.

    Multipliers, of the constraints as SciPy takes them and of bounds that are met up to `near`, are those of least
    squares with the signs that they have to have: the solver's own are not asked.
    """
    rows, lower, upper, violation = [], [], [], 0.0
    for values, matrix, lb, ub in _with_bounds(x, bounds, constraints):
        lb, ub = (np.broadcast_to(np.asarray(bound, float), values.shape) for bound in (lb, ub))
        violation = max(violation, *np.maximum(lb - values, values - ub), 0.0)
        at_lower, at_upper = values - lb <= near * (1 + abs(lb)), ub - values <= near * (1 + abs(ub))
        active = at_lower | at_upper
        rows.append(matrix[active])
        lower.append(np.where(at_upper, -np.inf, 0.0)[active])
        upper.append(np.where(at_lower, np.inf, 0.0)[active])
    rows = np.concatenate(rows) if rows else np.zeros((0, x.size))
    if len(rows):
        found = lsq_linear(rows.T, gradient, (np.concatenate(lower), np.concatenate(upper)), method="bvls")
        gradient = gradient - rows.T @ found.x
    return float(np.abs(gradient).max(initial=0)), float(violation)


def _with_bounds(x, bounds, constraints):
    """The values, Jacobian and bounds of each constraint; bounds of x are one."""
    for constraint in constraints:
        if isinstance(constraint, LinearConstraint):
            matrix = constraint.A.toarray() if hasattr(constraint.A, "toarray") else np.atleast_2d(constraint.A)
            yield matrix @ x, matrix, constraint.lb, constraint.ub
        else:
            yield constraint.fun(x), constraint.jac(x), constraint.lb, constraint.ub
    if bounds is not None:
        finite = np.isfinite(bounds.lb) | np.isfinite(bounds.ub)
        yield x[finite], np.eye(x.size)[finite], bounds.lb[finite], bounds.ub[finite]
