"""SciPy's root finders on trees, Newton-Krylov with exact Jacobian products."""

import inspect

import numpy as np
import scipy.optimize
import scipy.sparse.linalg

from linops.optimize.limits import eps
from linops.optimize.residuals import Residuals

WITH_MATRIX = ("hybr", "lm")
SOLVERS = {name: getattr(scipy.sparse.linalg, name) for name in ("lgmres", "gmres", "bicgstab", "cgs", "minres", "tfqmr")}


def root(fun, x0, args=(), method="krylov", *, tol=None, callback=None, options=None):
    """A root of a JAX function from trees to trees of as many numbers, by `scipy.optimize.root`.

    Parameters
    ----------
    fun : callable
        `fun(x, *args)`, a JAX function; of complex numbers, one of real and imaginary parts.
    x0, args
        As for `Objective`.
    method : str
        "krylov" is SciPy's inexact Newton method with its line search, and with exact products with the Jacobian in the
        place of finite differences; "hybr" and "lm" take the dense Jacobian.
    tol, options
        As SciPy has them; `options["jac_options"]` of "krylov" too: `method`, "lgmres" by default, `inner_maxiter`,
        `inner_M`, `outer_k`. Without a tolerance the largest entry of fun(x) has to be at most the third root of
        what the dtype resolves, 6e-6 in float64, as SciPy has it.
    callback : callable
        `callback(x, f)` with trees ("krylov").

    Returns
    -------
    scipy.optimize.OptimizeResult
        `x` a tree like x0, `fun` one like fun(x). `success` is decided anew: the largest entry of fun(x), `optimality`,
        is at most the tolerance.

    Raises
    ------
    TypeError, ValueError
        As `Objective` does, for fun with as many values as x has numbers.

    Notes
    -----
    Source: Knoll and Keyes, Jacobian-free Newton-Krylov methods, Journal of Computational Physics 193 (2004).

    Examples
    --------
    >>> found = root(lambda x: {"a": x["a"] ** 2 - x["b"], "b": x["b"] - 4.0}, {"a": 1.0, "b": jnp.float32(1)})
    >>> found.success, round(float(found.x["a"]), 3)
    (True, 2.0)
    """
    if method not in ("krylov", *WITH_MATRIX):
        raise ValueError(f"root got method={method!r}, expected 'krylov', 'hybr' or 'lm', which take a Jacobian")
    residuals = Residuals(fun, x0, args, "root")
    rows, columns = residuals.jacobian.shape
    if rows != columns:
        raise ValueError(f"root got fun with {rows} values of {columns} numbers, expected as many: least_squares fits")
    options, start = dict(options or {}), residuals.x0.astype(float)
    residuals.fun(start)
    floor = eps(residuals.jacobian.dtype) ** (1 / 3)
    if method == "krylov":
        tolerance = options.get("fatol", floor if tol is None else tol)
        found = _krylov(residuals, start, callback, {**options, "fatol": tolerance})
    else:
        tolerance = floor if tol is None else tol
        found = scipy.optimize.root(residuals.fun, start, jac=residuals.matrix, method=method, tol=tol, options=options)
    values = residuals.fun(found.x)
    size = float(np.abs(values).max(initial=0))
    found.update(
        x=residuals.vectors.tree(found.x),
        fun=residuals.of_values.tree(values),
        optimality=size,
        success=bool(size <= tolerance),
        message=f"{found.message.rstrip('.')}; the largest entry of fun is {size:.3g}, of at most {tolerance:.3g}",
    )
    return found


def _krylov(residuals, start, callback, options):
    """SciPy's Newton-Krylov method, with the products of its inner solver exact."""
    solver = _Inner(residuals, start, **options.pop("jac_options", None) or {})

    def follow(x, values):
        solver.point = x.copy()
        if callback is not None:
            callback(residuals.vectors.tree(x), residuals.of_values.tree(values))

    options["jac_options"] = {"method": solver, "inner_maxiter": solver.maxiter, "inner_M": solver.preconditioner}
    try:
        return scipy.optimize.root(residuals.fun, start, method="krylov", callback=follow, options=options)
    except ValueError as error:
        if "zero vector" not in str(error):
            raise
        message = "The linear solver found no step: the Jacobian may be singular."
        return scipy.optimize.OptimizeResult(x=solver.point, status=3, message=message)


class _Inner:
    """What SciPy's Newton-Krylov method takes for its linear solver: it multiplies by the exact Jacobian at its point."""

    def __init__(self, residuals, start, method="lgmres", inner_maxiter=20, inner_M=None, outer_k=10, **options):
        if method not in SOLVERS:
            raise ValueError(f"root got the inner method {method!r}, expected one of {', '.join(SOLVERS)}")
        self.residuals, self.point = residuals, start
        self.solve, self.maxiter, self.preconditioner = SOLVERS[method], inner_maxiter, inner_M
        self.options = {name.removeprefix("inner_"): value for name, value in options.items()}
        if method == "gmres":
            self.options = {"restart": inner_maxiter, "maxiter": 1, **self.options}
        elif method == "lgmres":  # one cycle for each step, and its vectors kept for the next one
            kept = {"outer_v": [], "prepend_outer_v": True, "store_outer_Av": False}
            self.options = {"inner_m": inner_maxiter, "outer_k": outer_k, "maxiter": 1, **kept, **self.options}
        else:
            self.options = {"maxiter": inner_maxiter, **self.options}
        taken = inspect.signature(self.solve).parameters
        if unknown := [name for name in self.options if name not in taken]:
            raise ValueError(f"root got options for {method} that it does not take: {', '.join(unknown)}")

    def __call__(self, A, b, *, rtol, maxiter=None, M=None):
        options = {"rtol": rtol, "M": M, **self.options}
        return self.solve(self.residuals.jac(self.point), b, **options)
