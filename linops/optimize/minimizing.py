"""SciPy's minimizers on trees."""

import math

import numpy as np
import scipy.optimize
from scipy.optimize import BFGS, NonlinearConstraint

from linops.blas import one_blas_thread
from linops.optimize.limits import ROUNDINGS, eps, is_at_rest, projected, stationarity
from linops.optimize.objective import Objective
from linops.optimize.uncertainty import Fit, errors_of_minimum
from linops.program.missing import MissingRule

TRUST_REGION = ("trust-ncg", "trust-krylov", "trust-exact", "dogleg")
DENSE = ("trust-exact", "dogleg")
WITH_PRODUCTS = ("newton-cg", "trust-ncg", "trust-krylov")
WITH_BOUNDS = ("l-bfgs-b", "tnc", "slsqp", "trust-constr")
WITH_CONSTRAINTS = ("slsqp", "trust-constr")
METHODS = (*WITH_PRODUCTS, *DENSE, "trust-constr", "l-bfgs-b", "bfgs", "cg", "tnc", "slsqp")
STOPPED = 99  # SciPy's status where a callback has stopped it


def minimize(
    fun, x0, args=(), method="trust-krylov", *, data=None, batch_size=None, reduction="mean", bounds=None,
    constraints=(), products="exact", tol=None, callback=None, options=None,
):  # fmt: skip
    """Minimize a JAX function of a tree by `scipy.optimize.minimize`, with exact gradients and Hessian products.

    SciPy computes in double precision, with vectors; fun and its derivatives are those of an `Objective`.

    Parameters
    ----------
    fun, x0, args, data, batch_size, reduction, bounds, constraints, products
        As for `Objective`.
    method : str
        "trust-krylov", "trust-ncg" and "Newton-CG" take products with the Hessian, "trust-constr" (with bounds and
        constraints) the Hessian as an operator, "trust-exact" and "dogleg" the dense matrix; "L-BFGS-B" and "TNC" (with
        bounds), "BFGS", "CG" and "SLSQP" (with bounds and constraints) gradients alone.
    tol, options
        As SciPy has them. Tolerances that are not given follow the dtype of x0, and are such that the gradient decides:
        "L-BFGS-B", "SLSQP" and "Newton-CG" stop later than by SciPy's own, which look at steps and values.
    callback : callable
        `callback(x)`, or `callback(intermediate_result)`, with a tree x; StopIteration ends the run, as in SciPy.

    Returns
    -------
    linops.optimize.Fit
        SciPy's `OptimizeResult`. `x` and `jac`, the gradient there, are trees like x0. `optimality` is its norm, as the
        method measures it: the largest entry, or the Euclidean norm with trust regions, of what bounds and constraints,
        with multipliers of least squares, leave of it; `constr_violation` is the largest violation of these.
        `success` is decided anew from both, whatever SciPy says: `optimality` is at most `gtol`, or, where no
        tolerance was asked for, what is left is rounding, of which `message` tells. `covariance` and `standard_errors`
        are those of the inverse of the Hessian, if fun is the negative logarithm of a likelihood, or over data the mean
        of those of examples.

    Raises
    ------
    TypeError, ValueError
        As `Objective` does, and where a method does not take bounds or constraints, which SciPy would leave out.

    Examples
    --------
    >>> rosenbrock = lambda x: (1 - x["a"]) ** 2 + 100.0 * jnp.sum((x["b"] - x["a"] ** 2) ** 2)
    >>> found = minimize(rosenbrock, {"a": jnp.float32(-1), "b": jnp.ones(2)})
    >>> found.success, found.x["b"].round(2).tolist()
    (True, [1.0, 1.0])
    """
    name = _method(method)
    given = {"data": data, "batch_size": batch_size, "reduction": reduction, "products": products}
    objective = Objective(fun, x0, args, constraints, bounds, **given)
    _require_taken(method, name, objective)
    objective._linearizes = name in WITH_PRODUCTS and objective._product is None
    unit = eps(objective._hessian.dtype)
    options = dict(options or {})
    asked = options.get("gtol", tol) if name != "newton-cg" else None
    gtol = _gtol(name, unit) if asked is None else asked
    is_within = objective.bounds is not None or bool(objective.constraints)
    options = {**_defaults(name, unit, gtol, tol, is_within), **options}
    watch = _Watch(objective.vectors.callback(callback), name in TRUST_REGION, unit)
    with one_blas_thread():
        found = scipy.optimize.minimize(
            objective.fun,
            objective.x0.astype(float),
            method=method,
            bounds=objective.bounds,
            constraints=_constraints(name, objective),
            tol=tol,
            callback=watch,
            options=options,
            **_derivatives(name, objective),
        )
    return _judged(found, objective, name, gtol, asked is not None, unit, watch)


def _method(method):
    name = method.lower() if isinstance(method, str) else None
    if name not in METHODS:
        raise ValueError(
            f"minimize got method={method!r}, expected one of {', '.join(METHODS)}; others go by "
            "linops.optimize.Objective and scipy.optimize"
        )
    return name


def _require_taken(method, name, objective):
    """Refuse what SciPy would warn of and leave out."""
    for given, what, takers in [
        (objective.bounds is not None, "bounds", WITH_BOUNDS),
        (bool(objective.constraints), "constraints", WITH_CONSTRAINTS),
    ]:
        if given and name not in takers:
            raise ValueError(f"method={method!r} of minimize does not take {what}, expected one of {', '.join(takers)}")


def _gtol(name, unit):
    """SciPy's own tolerance of a gradient, or the root of what a dtype resolves."""
    return max(1e-4 if name in TRUST_REGION else 1e-8 if name == "trust-constr" else 1e-5, math.sqrt(unit))


def _defaults(name, unit, gtol, tol, is_within):
    """Options, where a user gives none: of steps and values nothing is asked, so that the gradient decides.

    A `tol` SciPy makes others of. The gradient that trust-constr looks at is that of a problem with a barrier, which
    keeps x away from bounds and constraints: within them the barrier and the steps decide.
    """
    if name in TRUST_REGION:
        return {"gtol": gtol, "max_trust_radius": math.inf}
    if name == "trust-constr":
        found = {"xtol": max(1e-8, ROUNDINGS * unit)} | ({"gtol": np.finfo(float).tiny} if is_within else {})
        return {} if tol is not None else found
    steps = {"newton-cg": {"xtol": ROUNDINGS * unit}, "l-bfgs-b": {"ftol": 0.0}, "tnc": {"ftol": 0.0}}
    steps["slsqp"] = {"ftol": unit**2}
    found = {} if tol is not None else steps.get(name, {})
    return found if name in ("newton-cg", "slsqp") else {"gtol": gtol, **found}


def _derivatives(name, objective):
    """What SciPy takes of an Objective, in double precision."""

    def jac(x):
        return objective.jac(x).astype(float)

    def hessp(x, v):
        return objective.hessp(x, v).astype(float)

    def dense(x):
        return objective.hess(x).toarray().astype(float)

    if name in WITH_PRODUCTS:
        return {"jac": jac, "hessp": hessp}
    if name in DENSE:
        return {"jac": jac, "hess": dense}
    return {"jac": jac, "hess": objective.hess} if name == "trust-constr" else {"jac": jac}


def _constraints(name, objective):
    """The constraints; SLSQP warns of Hessians, which it does not take."""
    if name != "slsqp":
        return objective.constraints
    return [
        NonlinearConstraint(c.fun, c.lb, c.ub, c.jac, BFGS()) if isinstance(c, NonlinearConstraint) else c
        for c in objective.constraints
    ]


class _Watch:
    """A callback, which also ends a trust region that has shrunk by all digits without a better point."""

    def __init__(self, callback, shrinks, unit):
        self.callback = callback
        # Each failure leaves a fourth of the radius.
        self.most = math.ceil(math.log(1 / unit, 4)) if shrinks else math.inf
        self.value, self.count, self.is_stuck = math.inf, 0, False

    def __call__(self, intermediate_result):
        stops = self.callback and self.callback(intermediate_result)
        if self.most == math.inf:
            return stops
        value = intermediate_result.fun
        self.count = 0 if value < self.value else self.count + 1
        self.value = value
        if self.count > self.most:
            self.is_stuck = True
            raise StopIteration
        return stops


def _judged(found, objective, name, gtol, is_asked, unit, watch):
    """SciPy's result as trees; whether it is a success follows from what is computed at x."""
    vectors, bounds = objective.vectors, objective.bounds
    x, gradient = np.asarray(found.x, float), objective.jac(found.x).astype(float)
    violation = 0.0
    if objective.constraints:
        optimality, violation = stationarity(gradient, x, bounds, objective.constraints, unit ** (1 / 3))
        if not is_asked:  # of gradients that multipliers cancel; one that has grown since x0 tells of no least value
            largest = min(np.abs(g).max(initial=0) for g in (gradient, objective.jac(objective.x0)))
            gtol = max(gtol, unit ** (1 / 3) * max(1.0, float(largest)))
    else:
        left = projected(gradient, x, bounds)
        optimality = float(np.linalg.norm(left) if name in TRUST_REGION else np.abs(left).max(initial=0))
    is_finite = all(np.isfinite(a).all() for a in (x, gradient, objective.fun(found.x)))
    success = bool(is_finite and optimality <= gtol and violation <= max(gtol if is_asked else 0.0, math.sqrt(unit)))
    note = f"optimality is {optimality:.3g}, of at most {gtol:.3g}"
    if objective.constraints:
        note += f", constraints are violated by {violation:.3g}"
    elif is_finite and not success and not is_asked and _is_rounding(objective, x, gradient, unit):
        success, note = True, f"optimality is {optimality:.3g}, limited by precision"
    message = found.message if isinstance(found.message, str) else str(found.message)
    if watch.is_stuck:
        found.status, message = 2, "The trust region has shrunk to nothing without a better point."
    elif found.status == STOPPED or (name == "trust-constr" and found.status == 3):
        success = False
    elif success and name == "trust-constr" and found.status == 4:  # of a violation that is rounding
        found.status, message = 2, "`xtol` termination condition is satisfied"
    found.update(
        x=vectors.tree(x),
        jac=vectors.tree(gradient),
        fun=objective.fun(x),
        success=success,
        message=f"{message.rstrip('.')}; {note}",
        optimality=optimality,
        constr_violation=violation,
    )
    found.pop("grad", None)
    if "allvecs" in found:
        found.allvecs = [vectors.tree(vector) for vector in found.allvecs]
    return Fit.of(found, vectors, _errors(objective, x, _held(x, gradient, bounds), objective._hessian._unit))


def _held(x, gradient, bounds):
    """The entries at a bound, over which a step along the gradient goes: trust-constr stops close to it."""
    if bounds is None:
        return np.zeros(x.shape, bool)
    return projected(gradient, x, bounds) != gradient


def _is_rounding(objective, x, gradient, unit):
    """Whether no step within bounds makes fun smaller by more than its rounding."""
    step, limit = projected(gradient, x, objective.bounds), ROUNDINGS * unit * abs(objective.fun(x))
    blocked = _held(x, gradient, objective.bounds)
    try:
        return is_at_rest(gradient, lambda v: objective.hessp(x, v), x, unit, limit, step, blocked)
    except (MissingRule, FloatingPointError):
        return False


def _errors(objective, x, held, unit):
    """Errors by the inverse of the Hessian."""

    def hessian():
        if objective.constraints:
            raise ValueError(
                "the covariance of a minimum with constraints was asked for, expected none: the inverse of the Hessian "
                "is none there; write the constraints into the parameters"
            )
        return objective.hess(x)

    return errors_of_minimum(hessian, held, unit, objective.vectors.space)
