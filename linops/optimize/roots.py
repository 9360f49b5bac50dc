"""SciPy's root finders on trees, Newton-Krylov with exact Jacobian products."""

import inspect
import math

import numpy as np
import scipy.optimize
import scipy.sparse.linalg

from linops.arrays import brief
from linops.blas import one_blas_thread
from linops.optimize.limits import eps, is_rounding
from linops.optimize.residuals import Residuals

WITH_MATRIX = ("hybr", "lm")
INNER = ("lgmres", "gmres", "bicgstab", "cgs", "minres", "tfqmr")
SOLVERS = {name: getattr(scipy.sparse.linalg, name) for name in INNER}
FATOL = 6e-6  # SciPy's
PATIENCE = 20  # steps
FAR = 1e3  # times the norm of x0
STOPPED = 99  # the status, as SciPy's minimize has it, where a callback has stopped a run


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
        As SciPy has them; `options["jac_options"]` of "krylov" too: `method`, "gmres" by default, `inner_maxiter`,
        `inner_M`, `outer_k`. Without a tolerance the largest entry of fun(x) has to be at most 6e-6, as SciPy has it,
        and 3e-4 in float32, and the same share of the largest entry of fun(x0) where that is below one; or what
        rounding makes of zero.
    callback : callable
        `callback(x, f)` with trees ("krylov"); StopIteration ends the run.

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
    if not columns:
        raise ValueError(f"root got x0={brief(x0)}, expected one number at least")
    options, start = dict(options or {}), residuals.x0.astype(float)
    before = float(np.abs(residuals.fun(start)).max(initial=0))
    unit = eps(residuals.jacobian.dtype)
    asked = options.get("fatol", tol)
    tolerance = max(FATOL, math.sqrt(unit)) * min(1.0, before) if asked is None else asked
    with one_blas_thread():
        if method == "krylov":
            found = _krylov(residuals, start, callback, {**options, "fatol": tolerance})
        else:
            given = {"jac": residuals.matrix, "method": method, "tol": tol, "options": options}
            found = scipy.optimize.root(residuals.fun, start, **given)
    x, values = found.x, residuals.fun(found.x)
    size = float(np.abs(values).max(initial=0))
    note = f"the largest entry of fun is {size:.3g}, of at most {tolerance:.3g}"
    success = size <= tolerance
    is_near = np.linalg.norm(x) <= FAR * max(1.0, np.linalg.norm(start))  # far away rounding is as large as fun
    if not success and is_near and asked is None and is_rounding(values, lambda v: residuals.jac(x) @ v, x, unit):
        success, note = True, f"the largest entry of fun is {size:.3g}, limited by precision"
    found.update(
        x=residuals.vectors.tree(found.x),
        fun=residuals.of_values.tree(values),
        optimality=size,
        success=bool(success) and found.status != STOPPED,
        message=f"{found.message.rstrip('.')}; {note}",
    )
    return found


def _krylov(residuals, start, callback, options):
    """SciPy's Newton-Krylov method, with the products of its inner solver exact."""
    solver = _Inner(residuals, start, **options.pop("jac_options", None) or {})

    def follow(x, values):
        if callback is not None:
            callback(residuals.vectors.tree(x), residuals.of_values.tree(values))
        solver.step_to(x, values)

    options["jac_options"] = {"method": solver, "inner_maxiter": solver.maxiter, "inner_M": solver.preconditioner}
    try:
        with np.errstate(invalid="ignore"):  # SciPy divides by what may be zero, where its line search has failed
            return scipy.optimize.root(solver.values, start, method="krylov", callback=follow, options=options)
    except StopIteration:
        status, message = STOPPED, "`callback` raised `StopIteration`."
    except _InVainError:
        status, message = 3, f"{PATIENCE} steps have made nothing smaller."
    except ZeroDivisionError:
        status = 3
        message = "SciPy divides by the square of fun, which is 0 in double precision: multiply fun by a factor."
    except ValueError as error:
        if "zero vector" not in str(error):
            raise
        status, message = 4, "The linear solver found no step: the Jacobian may be singular."
    found = {"status": status, "message": message, "nit": solver.steps, "nfev": solver.evaluations}
    return scipy.optimize.OptimizeResult(x=solver.best, **found)


class _InVainError(Exception):
    """Nothing has become smaller for many steps."""


class _Inner:
    """What SciPy's Newton-Krylov method takes for its linear solver: of the exact Jacobian at its point."""

    def __init__(self, residuals, start, method="gmres", inner_maxiter=20, inner_M=None, outer_k=10, **options):
        if method not in SOLVERS:
            raise ValueError(f"root got the inner method {method!r}, expected one of {', '.join(SOLVERS)}")
        self.residuals, self.point, self.best = residuals, start, start
        self.evaluations = 0
        self.smallest, self.steps, self.last = math.inf, 0, 0  # the last step that has made something smaller
        self.solve, self.maxiter, self.preconditioner = SOLVERS[method], inner_maxiter, inner_M
        self.options = {name.removeprefix("inner_"): value for name, value in options.items()}
        if method == "gmres":
            self.options = {"restart": inner_maxiter, "maxiter": 1, **self.options}
        elif method == "lgmres":  # one cycle for each step, its vectors kept for the next one
            kept = {"outer_v": [], "prepend_outer_v": False, "store_outer_Av": False}
            self.options = {"inner_m": inner_maxiter, "outer_k": outer_k, "maxiter": 1, **kept, **self.options}
        else:
            self.options = {"maxiter": inner_maxiter, **self.options}
        taken = inspect.signature(self.solve).parameters
        if unknown := [name for name in self.options if name not in taken]:
            raise ValueError(f"root got options for {method} that it does not take: {', '.join(unknown)}")

    def values(self, x):
        self.evaluations += 1
        return self.residuals.fun(x)

    def step_to(self, x, values):
        """Follow to the next point, unless nothing has become smaller for long."""
        self.point, size = x.copy(), np.abs(values).max(initial=0)
        self.steps += 1
        if size < self.smallest:
            self.smallest, self.best, self.last = size, self.point, self.steps
        if self.steps - self.last >= PATIENCE:
            raise _InVainError

    def __call__(self, A, b, *, rtol, maxiter=None, M=None):
        options = {"rtol": rtol, "M": M, **self.options}
        return self.solve(self.residuals.jac(self.point), b, **options)
