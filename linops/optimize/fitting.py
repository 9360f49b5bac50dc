"""SciPy's nonlinear least squares on trees, with errors of the parameters."""

import numbers
import warnings

import numpy as np
import scipy.optimize

from linops.blas import one_blas_thread
from linops.budget import memory_budget
from linops.optimize.limits import ROUNDINGS, eps, is_at_rest, norms, projected
from linops.optimize.residuals import Residuals
from linops.optimize.uncertainty import (
    MOST_PARAMETERS,
    Errors,
    Fit,
    inverse_of,
    root_of_jacobian,
    variance_of_residuals,
    variance_of_robust,
)

DENSE_OPERATIONS = 1e9  # of a factorization, up to which the dense Jacobian is taken
DENSE_SHARE = 1 / 16  # of memory, for a dense Jacobian
SMALLEST = 1e-150  # residual at x0, with digits in its square
COLUMNS = 64  # of a block of the identity
PROBES = 16  # of the norms of columns


def least_squares(
    fun,
    x0,
    args=(),
    *,
    bounds=None,
    method="trf",
    ftol="auto",
    xtol="auto",
    gtol="auto",
    x_scale=None,
    loss="linear",
    f_scale=1.0,
    max_nfev=None,
    tr_solver=None,
    tr_options=None,
    verbose=0,
    callback=None,
    absolute_sigma=False,
):
    """Minimize half the sum of squares of fun(x) by `scipy.optimize.least_squares`, with exact Jacobian products.

    Parameters
    ----------
    fun : callable
        `fun(x, *args)`, a JAX function from a tree to a tree of residuals; of complex ones the squared absolute values
        are summed.
    x0, args
        As for `Objective`.
    bounds : optional
        A pair (lower, upper), each a number, None or a tree like x0; or SciPy's `Bounds` for the vector.
    method : str
        "trf", "dogbox" or "lm", as SciPy has them.
    ftol, xtol, gtol : float or None
        As SciPy has them. "auto" is SciPy's 1e-8, and what the dtype resolves in less than double precision; of gtol,
        which is absolute and knows nothing of units, that the gradient is zero, but the 1e-8 of a cosine with "lm".
    x_scale : optional
        The sizes of parameters: a number, like x0 (a vector of a vector, else a tree), or "jac" as SciPy has it. Where
        the Jacobian is not formed that is the inverse of the exact norms of its columns at x0, and stays that.
    tr_solver : {"exact", "lsmr"}, optional
        "exact" forms the Jacobian, "lsmr" multiplies by it. By default it is formed where it is small enough for its
        factorization to take no more than some 1e9 operations.
    loss, f_scale, max_nfev, tr_options, verbose
        As SciPy has them.
    callback : callable
        `callback(x)` or `callback(intermediate_result)`, with a tree x.
    absolute_sigma : bool
        Whether residuals are in units of their standard deviations, as in `scipy.optimize.curve_fit`. Otherwise their
        variance is estimated, from the sum of squares and the degrees of freedom.

    Returns
    -------
    linops.optimize.Fit
        SciPy's `OptimizeResult`: `x`, `grad` and `active_mask` trees like x0, `fun` one like fun(x), `jac` the
        `linops.Jacobian` at x. `success` asks, beyond SciPy's rule that made it stop, that the linear model at x
        promises no decrease beyond the tolerance, or beyond rounding, where no gtol was given that is met. `covariance`
        and `standard_errors` are those of the parameters, s² (JᵀJ)⁻¹, by QR of the dense Jacobian. For a robust loss s²
        is that of an M-estimator, for residuals that are alike, whatever `absolute_sigma` says. (`curve_fit` takes the
        cost for a sum of squares and the weighted Jacobian, with which "arctan" covers .87 where .95 is right.)

    Raises
    ------
    TypeError, ValueError
        As `Objective` does, for residuals.

    Notes
    -----
    Source: Bates and Watts, Nonlinear Regression Analysis and Its Applications (1988), for errors and the last check;
    Huber, Robust Statistics (1981), section 7.6, for errors with a robust loss.

    Examples
    --------
    >>> t = jnp.linspace(0.0, 3.0, 20)
    >>> y = 2 * jnp.exp(-0.7 * t) + 0.01 * jnp.cos(9 * t)
    >>> fit = least_squares(lambda p: p["a"] * jnp.exp(-p["k"] * t) - y, {"a": 1.0, "k": 1.0})
    >>> fit.success, round(float(fit.x["k"]), 2), bool(fit.standard_errors["k"] < 0.01)
    (True, 0.7, True)
    """
    residuals = Residuals(fun, x0, args, "least_squares")
    vectors, unit = residuals.vectors, eps(residuals.jacobian.dtype)
    bounds = vectors.bounds((-np.inf, np.inf) if bounds is None else bounds, pairs=False)
    is_dense = _is_dense(residuals, method, tr_solver)
    start = residuals.x0.astype(float)
    _require_within(start, bounds, vectors.space)
    values = residuals.fun(start)
    largest = np.abs(values).max(initial=0)
    if 0 < largest < SMALLEST:
        raise ValueError(
            f"least_squares got residuals of {largest:.3g} at most at x0, whose squares double precision does not "
            f"hold, expected {SMALLEST:.0e} at least: multiply them by a factor"
        )
    tolerances = _tolerances({"ftol": ftol, "xtol": xtol, "gtol": gtol}, unit, method)
    with one_blas_thread(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting `gtol` below the machine epsilon")
        found = scipy.optimize.least_squares(
            residuals.fun,
            start,
            jac=residuals.matrix if is_dense else residuals.jac,
            bounds=bounds,
            method=method,
            x_scale=_scale(x_scale, residuals, is_dense, start),
            loss=loss,
            f_scale=f_scale,
            max_nfev=max_nfev,
            tr_solver=tr_solver,
            tr_options=tr_options,
            verbose=verbose,
            callback=vectors.callback(callback),
            **tolerances,
        )
    robust = None if loss == "linear" else (loss, f_scale)
    enough = 0 if method == "lm" else tolerances["gtol"] or 0  # of a gradient
    # Of a cost of zero there is no share: what is left of that at x0 by rounding counts as zero.
    limit = ROUNDINGS * max(tolerances["ftol"] or 0, unit) * max(found.cost, unit * float(values @ values) / 2)
    if robust:  # whose cost is rounded as 1 is, in units of f_scale
        limit += ROUNDINGS * unit * f_scale**2 * len(values)
    return _judged(found, residuals, bounds, enough, limit, unit, robust, absolute_sigma)


def _require_within(start, bounds, space):
    outside = np.flatnonzero((start < bounds.lb) | (start > bounds.ub))
    if outside.size:
        i = int(outside[0])
        raise ValueError(
            f"least_squares got x0{space.locate(i)} = {start[i]:.6g}, expected a number between its bounds "
            f"{bounds.lb[i]:.6g} and {bounds.ub[i]:.6g}"
        )


def _tolerances(given, unit, method):
    fine = max(1e-8, ROUNDINGS * unit)
    auto = {"ftol": fine, "xtol": fine, "gtol": 1e-8 if method == "lm" else np.finfo(float).tiny}
    return {name: auto[name] if value == "auto" else value for name, value in given.items()}


def _is_dense(residuals, method, tr_solver):
    """Whether SciPy gets the dense Jacobian."""
    if method == "lm" or tr_solver is not None:
        return tr_solver != "lsmr"
    rows, columns = residuals.jacobian.shape
    fits = 8 * rows * columns <= memory_budget(DENSE_SHARE)
    return fits and rows * columns * min(rows, columns) <= DENSE_OPERATIONS


def _scale(scale, residuals, is_dense, start):
    """The scale of parameters, as SciPy takes it."""
    if scale is None or (isinstance(scale, str) and (scale != "jac" or is_dense)):
        return scale
    if isinstance(scale, str):
        return _inverse_of(_column_norms(residuals.jac(start)))
    return scale if isinstance(scale, numbers.Real) else residuals.vectors.bound(scale, "x_scale", None)


def _column_norms(J):
    """The exact norms of the columns, from products with the identity of the shorter side, in blocks."""
    rows, columns = J.shape
    squares = np.zeros(columns)
    for start in range(0, min(rows, columns), COLUMNS):
        count = min(COLUMNS, min(rows, columns) - start)
        block = np.eye(min(rows, columns), count, -start, dtype=J.dtype)
        if rows < columns:
            squares += np.sum(J.T.matmat(block).astype(float) ** 2, axis=1)
        else:
            squares[start : start + count] = np.sum(J.matmat(block).astype(float) ** 2, axis=0)
    return np.sqrt(squares)


def _about_the_scale(jacobian):
    """The inverse of the norms of the columns, of a Jacobian that is not formed as a few random vectors see them."""
    if isinstance(jacobian, np.ndarray):
        return _inverse_of(norms(jacobian))
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (jacobian.shape[0], PROBES)).astype(jacobian.dtype)
    return _inverse_of(norms(jacobian.rmatmat(signs).T.astype(float)))


def _inverse_of(lengths):
    """The inverse of the norms of columns, of which some may be zero."""
    return 1 / np.where(lengths > 0, lengths, 1)


def _judged(found, residuals, bounds, enough, limit, unit, robust, absolute_sigma):
    """SciPy's result as trees; whether it is a success follows from what is computed at x."""
    vectors, x = residuals.vectors, np.asarray(found.x, float)
    jacobian, gradient, held = found.jac, np.asarray(found.grad, float), found.active_mask != 0
    step = projected(gradient, x, bounds)
    optimality = float(np.abs(step).max(initial=0))
    if found.success and optimality > enough:
        blocked = held & (step != gradient)  # and not only close to a bound
        scale = _about_the_scale(jacobian)
        found.success = is_at_rest(
            gradient, lambda v: jacobian.T @ (jacobian @ v), x, unit, limit, step, blocked, scale
        )
        if not found.success:
            found.message += (
                f" But the linear model promises to reduce the cost by more than {limit:.3g} at x, which is no "
                "minimum: of parameters in units far apart x_scale takes the sizes, a tree like x0, or 'jac'; "
                "levenberg_marquardt needs none."
            )
    found.update(
        x=vectors.tree(x),
        grad=vectors.tree(gradient),
        fun=residuals.of_values.tree(found.fun),
        jac=residuals.jac(x),
        active_mask=vectors.tree(found.active_mask, found.active_mask.dtype),
        optimality=optimality,
    )
    errors = _errors(residuals, x, jacobian, found.cost, held, unit, robust, absolute_sigma)
    return Fit.of(found, vectors, errors)


def _errors(residuals, x, jacobian, cost, held, unit, robust, absolute_sigma):
    """Errors by the inverse of JᵀJ; SciPy's Jacobian is another one where a robust loss has weighted it."""
    rows, columns = jacobian.shape
    space = residuals.vectors.space

    def variance():
        if robust:
            return variance_of_robust(residuals.fun(x), np.sum(~held), *robust)
        return variance_of_residuals(cost, rows, np.sum(~held), absolute_sigma)

    def root():
        scale = variance()
        J = residuals.matrix(x) if robust or not isinstance(jacobian, np.ndarray) else jacobian
        return root_of_jacobian(J, scale, held, unit, space)

    def whole():
        J = residuals.jac(x)
        return variance() * inverse_of(J.T @ J, held)

    is_small = columns <= MOST_PARAMETERS and 8 * rows * columns <= memory_budget(DENSE_SHARE)
    return Errors(held, is_small, root, whole)
