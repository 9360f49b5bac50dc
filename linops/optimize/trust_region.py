"""`linops.optimize.newton_cg`: a trust-region Newton method on the device, its steps by conjugate gradients."""

import dataclasses
import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from linops.derivatives.batches import read
from linops.derivatives.hessian import Hessian, require_scalar
from linops.derivatives.map import Map
from linops.iterate import iterate, scope_of
from linops.krylov import row
from linops.linalg import records
from linops.linalg.definite import ConjugateGradients, Path
from linops.linalg.solves import Given, combined, either
from linops.linalg.systems import preconditioner, require_counts, require_not_negative
from linops.optimize.results import (
    CONVERGED,
    LIMIT,
    NOT_FINITE,
    PRECISION,
    PRODUCTS,
    RUNNING,
    Result,
    optimized,
)
from linops.optimize.uncertainty import Fit, errors_of_minimum
from linops.optimize.vectors import Vectors
from linops.precision import real_dtype
from linops.products import is_traced
from linops.realify import any_complex

SHARES = tuple(4.0**-i for i in range(1, 6))  # of the radius, that are tried after a step that is rejected
ACCEPTED = 0.1  # of the decrease that the model has
ROUNDING = 10  # times eps of f: a decrease that is smaller is not seen in it


def newton_cg(
    fun,
    x0,
    args=(),
    *,
    data=None,
    batch_size=None,
    reduction="mean",
    products="exact",
    gtol=None,
    maxiter=None,
    max_matvecs=None,
    radius=None,
    M=None,
    callback=None,
    save=None,
    progress=False,
):
    """Minimize a function by a trust-region Newton method, its whole loop on the device.

    Steps are those of Steihaug and Toint: conjugate gradients on H s = -g, which end at the boundary of the trust
    region, or follow negative curvature to it. It is jittable, and vmappable over x0 and args.

    Parameters
    ----------
    fun : callable
        `fun(x, *args)`, a JAX function from a pytree of real numbers to a scalar, twice differentiable.
    x0 : pytree
        Where to begin.
    args : tuple
        Further arguments; arrays in it are data.
    data, batch_size, reduction
        As for `linops.Jacobian`: fun is `fun(x, batch, *args)`, and its mean or sum over all examples is minimized.
    products : {"exact", "difference"}
        As for `linops.Hessian`: "difference" where fun has a gradient and no second derivative.
    gtol : float, optional
        Converged is what has a gradient of Euclidean norm gtol at most; by default eps^(2/3), 3.7e-11 in float64 and
        2.4e-5 in float32.
    maxiter : int, optional
        How many iterations, 200 n by default.
    max_matvecs : int, optional
        How many products with Hessians. The iteration in which they are reached is the last.
    radius : float, optional
        Of the first trust region; by default ten steps of steepest descent to its minimum along the gradient.
    M : Operator, optional
        A preconditioner, symmetric positive definite, close to the inverse of the Hessian. The trust region is a ball
        in the norm of its inverse.
    callback : callable, optional
        `callback(intermediate_result)` is called after each iteration, an OptimizeResult; True, or StopIteration,
        stops.
    save : path, or (path, seconds), optional
        A file in which the state is kept, and from which a run that was stopped goes on.
    progress : bool
        Whether to show a bar of products on a terminal.

    Returns
    -------
    linops.optimize.Fit
        SciPy's `OptimizeResult`, with `covariance` and `standard_errors` by the inverse of the Hessian, for a fun that
        is the negative logarithm of a likelihood, or over data the mean of those of examples; `x` and the gradient
        `jac` like x0, `fun`, `status`, `success`, `message`, `nit`, `nfev`, `njev` and `nhev`, the number of
        products with Hessians. Status 0: converged. 1: maxiter. 2: limited by precision: no
        step decreases the gradient, or f by more than rounding; a success where the gradient is below the square root
        of eps, or where all of a step of Newton, at positive curvature, would not be seen in f. 3: f or its gradient is
        not finite at x. 4: max_matvecs. 5: stopped by the callback. Within `jit`
        and `vmap` it is a pytree, without message, covariance and standard errors.

    Raises
    ------
    TypeError, ValueError
        Where an argument is none of these, or f is not finite at x0.

    Notes
    -----
    Conjugate gradients run until the residual is min(1/2, sqrt(‖g‖ / ‖g0‖)) ‖g‖. A step is accepted by the decrease of
    f, as far as rounding lets it be seen: ``(f - f+ + 10 eps abs(f)) / (p + 10 eps abs(f))`` with the decrease p of
    the model. After one that is rejected shorter ones are tried of the path that conjugate gradients took, without
    another product. The first gradient is not taken for convergence: at a saddle a small one still finds negative
    curvature.

    Sources: Steihaug, SIAM J. Numer. Anal. 20 (1983); Conn, Gould and Toint, "Trust Region Methods" (2000), 17.4 for
    rounding; Dembo, Eisenstat and Steihaug, SIAM J. Numer. Anal. 19 (1982) for the residual.

    Examples
    --------
    >>> from linops.optimize import newton_cg
    >>> result = newton_cg(lambda x: jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2), jnp.zeros(4))
    >>> result.x.round(3).tolist(), result.success
    ([1.0, 1.0, 1.0, 1.0], True)
    """
    require_not_negative("newton_cg", gtol=gtol)
    require_counts("newton_cg", maxiter=maxiter, max_matvecs=max_matvecs)
    if radius is not None and not is_traced(radius) and not (np.ndim(radius) == 0 and radius > 0):
        raise ValueError(f"newton_cg got radius={radius!r}, expected a positive number")
    traced = Map.trace(fun, x0, args, what="fun", data=read(data, batch_size, reduction), operator="newton_cg")
    if any_complex(traced.points) or any_complex(traced.values) or traced.values.paired is not None:
        raise TypeError("newton_cg got a function with complex values, expected real ones, of which one is the least")
    require_scalar(traced.function, "fun", "newton_cg", "for residuals use linops.optimize.levenberg_marquardt")
    H = Hessian._of_map(traced, products, "newton_cg")
    M = preconditioner("newton_cg", H, M)
    bounds = _bounds(H, gtol, maxiter, max_matvecs, radius)

    def to_user(result):
        return Result(result | {name: H.map.given(result[name]) for name in ("x", "jac")})

    result = optimized("newton_cg", NewtonCG(), (H, M), (bounds,), to_user, callback, save, progress)
    if is_traced(result):
        return result
    errors = errors_of_minimum(lambda: H.at(result.x), np.zeros(H.shape[1], bool), H._unit, H.domain)
    return Fit.of(result, Vectors.like(x0, H.domain), errors)


class Bounds(NamedTuple):
    """When to stop, and the first radius."""

    gtol: jax.Array
    iterations: jax.Array
    matvecs: jax.Array
    radius: jax.Array


def _bounds(H, gtol, maxiter, max_matvecs, radius):
    real, n = real_dtype(H.dtype), H.shape[0]
    gtol = float(jnp.finfo(real).eps) ** (2 / 3) if gtol is None else gtol
    maxiter = min(200 * n, 2**31 - 1) if maxiter is None else maxiter
    max_matvecs = 2**31 - 1 if max_matvecs is None else max_matvecs
    radius = jnp.inf if radius is None else radius
    with scope_of(H).entered():
        return Bounds(jnp.asarray(gtol, real), jnp.int32(maxiter), jnp.int32(max_matvecs), jnp.asarray(radius, real))


class State(NamedTuple):
    """A point, what f is there, and the trust region."""

    x: Any
    value: jax.Array
    gradient: Any
    size: jax.Array  # of the gradient
    first: jax.Array  # that at x0
    radius: jax.Array
    iterations: jax.Array
    evaluations: jax.Array
    gradients: jax.Array
    matvecs: jax.Array
    code: jax.Array
    settled: jax.Array  # whether rounding would hide a whole step of Newton
    bounds: Bounds


@dataclasses.dataclass(frozen=True)
class NewtonCG:
    """A step is one of Newton's, with all of conjugate gradients in it, and shorter ones where it is rejected."""

    def begin(self, operators, bounds):
        H, _ = operators
        value, gradient = H.map.function(H.x), H._gradient(H.x)
        size, one = H.domain.norm(gradient), jnp.ones((), jnp.int32)
        finite = jnp.isfinite(value) & jnp.isfinite(size)
        code = jnp.select([~finite, size == 0], [NOT_FINITE, CONVERGED], RUNNING).astype(jnp.int32)
        unset = -jnp.maximum(H.domain.norm(H.x), 1)  # conjugate gradients set it
        radius = jnp.where(jnp.isinf(bounds.radius), unset, bounds.radius)
        return State(H.x, value, gradient, size, size, radius, 0 * one, one, one, 0 * one, code, size == 0, bounds)

    def done(self, operators, state):
        return state.code != RUNNING

    def step(self, operators, s):
        H, M = operators
        space = H.domain
        run = _direction((_at(H, s.x).linearize(), M), s)
        rounding = ROUNDING * jnp.finfo(s.value.dtype).eps * abs(s.value)
        settled = (run.code == records.CONVERGED) & (s.size**2 * run.region.decrease <= rounding)
        trial = _tried(H, s, run, rounding)
        x = either(trial.accepted, trial.x, s.x)
        value = jnp.where(trial.accepted, trial.value, s.value)
        gradient = H._gradient(x)
        size = space.norm(gradient)
        still = _is_still(space, s.x, trial.x) | (trial.gain <= rounding) & ~(size < s.size)
        # Where f shows no decrease any more, the gradient has to.
        back = still & trial.accepted & ~(size < s.size)
        x, value, gradient, size = either(back, (s.x, s.value, s.gradient, s.size), (x, value, gradient, size))
        iterations, matvecs = s.iterations + 1, s.matvecs + run.matvecs
        ends = [
            (~jnp.isfinite(size) | (run.code == records.NOT_FINITE) & ~trial.accepted, NOT_FINITE),
            (size <= s.bounds.gtol, CONVERGED),
            (still, PRECISION),
            (iterations >= s.bounds.iterations, LIMIT),
            (matvecs >= s.bounds.matvecs, PRODUCTS),
        ]
        code = jnp.select(*zip(*ends, strict=True), RUNNING).astype(jnp.int32)
        return s._replace(
            x=x, value=value, gradient=gradient, size=size, radius=trial.radius, iterations=iterations,
            evaluations=s.evaluations + trial.count, gradients=s.gradients + 1, matvecs=matvecs, code=code,
            settled=settled,
        )  # fmt: skip

    def result(self, operators, s):
        """What is handed back of a state."""
        return Result(
            x=s.x, fun=s.value, jac=s.gradient, status=s.code, success=_is_success(s), nit=s.iterations,
            nfev=s.evaluations, njev=s.gradients, nhev=s.matvecs,
        )  # fmt: skip


def _is_success(s):
    """Whether x is a least: where rounding ended it, of a gradient of half of the digits, or of what f can show."""
    settled = s.settled | (s.size <= jnp.sqrt(jnp.finfo(s.size.dtype).eps))
    return (s.code == CONVERGED) | (s.code == PRECISION) & settled


def _at(H, x):
    return H._replace(map=H.map._replace(x=x))


def _direction(operators, s):
    """The last state of conjugate gradients on H d = -g, for a gradient of length 1."""
    space = operators[0].domain
    forcing = jnp.minimum(0.5, jnp.sqrt(s.size / s.first))
    b = space.scale(-1 / s.size, s.gradient)
    given = Given(b, None, s.size, forcing, jnp.int32(min(2 * space.size, 2**31 - 1)))
    path = Path.begin(b, jnp.asarray(SHARES, s.size.dtype))
    return iterate(ConjugateGradients(renewed=None), operators, given, None, s.radius, path)


class _Trial(NamedTuple):
    """A step that was tried: the i-th along the path, the whole one first."""

    i: jax.Array
    x: Any
    value: jax.Array
    gain: jax.Array  # of the model
    radius: jax.Array  # of the next trust region
    accepted: jax.Array
    count: jax.Array  # of evaluations


def _tried(H, s, run, rounding):
    """The first step that is accepted, of those along the path, or the last one."""
    space, region, size = H.domain, run.region, s.size
    radius, length = size * region.radius, size * jnp.sqrt(region.xx)
    shares = jnp.concatenate([length[None] / radius, region.path.shares])
    gains = size**2 * jnp.concatenate([region.decrease[None], region.path.decreases])

    def go_on(trial):
        return ~trial.accepted & (trial.i < len(shares))

    def attempt(trial):
        i = trial.i
        known = gains[i] > 0
        direction = either(i == 0, run.x, row(region.path.points, jnp.maximum(i - 1, 0)))
        x = combined(space, size, direction, s.x)
        value = H.map.function(x)
        ratio = (s.value - value + rounding) / (gains[i] + rounding)
        accepted = known & (ratio >= ACCEPTED)
        reaches = shares[i] * radius
        grown = jnp.where((ratio > 0.75) & (i == 0) & (length > 0.99 * radius), 2 * radius, radius)
        after = jnp.where(i == 0, jnp.where(ratio < 0.25, reaches / 4, grown), reaches)
        after = jnp.where(accepted, after, jnp.minimum(radius, reaches) / 4)
        now = _Trial(i + 1, x, value, gains[i], after, accepted, trial.count + 1)
        return either(known, now, trial._replace(i=i + 1))

    none = jnp.zeros((), jnp.int32)
    first = _Trial(none, s.x, s.value, jnp.zeros_like(size), radius / 4, jnp.zeros((), bool), none)
    return jax.lax.while_loop(go_on, attempt, first)


def _is_still(space, x, y):
    """Whether two points are the same numbers."""
    same = jax.tree.map(lambda a, b: jnp.all(a == b), x, y)
    return functools.reduce(operator.and_, jax.tree.leaves(same))
