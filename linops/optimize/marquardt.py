"""`linops.optimize.levenberg_marquardt`: nonlinear least squares on the device."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from linops.arrays import brief
from linops.derivatives.jacobian import Jacobian
from linops.iterate import scope_of
from linops.linalg.operands import require_dtype
from linops.linalg.solves import either
from linops.linalg.systems import require_counts, require_not_negative
from linops.optimize.limits import norms
from linops.optimize.points import matrix, values
from linops.optimize.results import CONVERGED, LIMIT, NOT_FINITE, PRECISION, RUNNING, STEP, Result, optimized
from linops.optimize.uncertainty import Fit, errors_of_residuals
from linops.optimize.vectors import Vectors
from linops.precision import real_dtype
from linops.processes import gathered
from linops.products import is_traced
from linops.realify import any_complex
from linops.space import length

FIRST = 1  # times the scaled norm of x0: the first radius; MINPACK's 100 leads off, where exponentials die out
ACCEPTED = 1e-3  # of the decrease that the model has
WIDER = 4  # times as wide is the next one, where nothing is seen of the residuals in the first
TRIES = 20  # radii, each a fourth of the one before, in one iteration
LEAST = 1e-15  # residuals, in shares of the Jacobian, of which squares are taken
NEWTON_STEPS = 100  # on the secular equation, at most
CLOSE = 0.1  # to the radius, relative
STALLS = 20  # steps that rounding may hide from the cost, in which the cosines do not fall by a tenth
SEEN = 10  # times eps of the cost: a decrease as large is one, where residuals are exact to their last digit
ROUNDING = 0.75  # the power of eps that is not seen of the cost: residuals are differences, of numbers often larger


def levenberg_marquardt(
    fun,
    x0,
    args=(),
    *,
    gtol=None,
    xtol=None,
    maxiter=None,
    callback=None,
    save=None,
    progress=False,
    absolute_sigma=False,
):
    """Minimize the sum of squares of residuals, ‖f(x)‖² / 2, by Levenberg and Marquardt's method on the device.

    Parameters
    ----------
    fun : callable
        `fun(x, *args)`, a JAX function from a pytree of n real numbers to a pytree of m residuals.
    x0 : pytree
        Where to begin.
    args : tuple
        Further arguments; arrays in it are data.
    gtol : float, optional
        Converged is where the residuals are orthogonal to all columns of the Jacobian: cosines are at most gtol, by
        default eps^(2/3), 3.7e-11 in float64 and 2.4e-5 in float32.
    xtol : float, optional
        Converged is, too, what a whole Gauss-Newton step changes by xtol ‖D x‖ at most, D the norms of columns; the
        same by default.
    maxiter : int, optional
        How many iterations, 1000 (n + 1) by default.
    callback : callable, optional
        `callback(intermediate_result)` is called after each iteration, an OptimizeResult; True, or StopIteration,
        stops.
    save : path, or (path, seconds), optional
        A file in which the state is kept, and from which a run that was stopped goes on.
    progress : bool
        Whether to show a bar of products on a terminal.
    absolute_sigma : bool
        Whether residuals are in units of their standard deviations, as in `scipy.optimize.curve_fit`.

    Returns
    -------
    linops.optimize.Fit
        SciPy's `OptimizeResult`, of `least_squares`, with `covariance` and `standard_errors` of the parameters; `x` and
        the gradient `grad` like x0, `cost`, `fun`, the residuals, `optimality`,
        the largest cosine, `status`, `success`, `message`, `nit`, `nfev`, `njev`. Status 0: the cosines are below gtol.
        6: the step is below xtol. 1: maxiter. 2: limited by precision: no step decreases the cost by more than
        rounding, or the cosines; a success where these, or the step of Gauss and Newton relative to x, are below the
        square root of eps, or the residuals below eps times the first. 3: residuals or Jacobian are not finite at x.
        5: stopped by the callback.

    Raises
    ------
    TypeError, ValueError
        Where an argument is none of these, or f is not finite at x0.

    Notes
    -----
    Steps minimize ‖f + J s‖ within ‖D s‖ <= radius, from the singular values of J D^-1, D the largest norms of columns
    so far; after one that is rejected shorter ones come from the same. Source: More, "The Levenberg-Marquardt
    algorithm: implementation and theory", Lecture Notes in Math. 630 (1978).

    Examples
    --------
    >>> from linops.optimize import levenberg_marquardt
    >>> t = jnp.arange(4.0)
    >>> fit = levenberg_marquardt(lambda p: p["a"] * jnp.exp(-p["b"] * t) - 2 * jnp.exp(-t), {"a": 1.0, "b": 0.5})
    >>> {name: round(float(value), 4) for name, value in fit.x.items()}
    {'a': 2.0, 'b': 1.0}
    """
    require_not_negative("levenberg_marquardt", gtol=gtol, xtol=xtol)
    require_counts("levenberg_marquardt", maxiter=maxiter)
    J = Jacobian(fun, x0, args=args)
    if any_complex(J.domain) or any_complex(J.codomain):
        raise TypeError("levenberg_marquardt got complex residuals, expected real ones: stack real and imaginary parts")
    _require_some(J, x0)
    require_dtype("levenberg_marquardt", J, "residuals", "x0, or the data of fun")
    real = real_dtype(J.dtype)
    smallest = float(jnp.finfo(real).eps) ** (2 / 3)
    with scope_of(J).entered():
        bounds = Bounds(
            jnp.asarray(smallest if gtol is None else gtol, real),
            jnp.asarray(smallest if xtol is None else xtol, real),
            jnp.int32(min(1000 * (J.shape[1] + 1), 2**31 - 1) if maxiter is None else maxiter),
        )

    def to_user(result):
        return Result(result | {name: J.map.given(result[name]) for name in ("x", "grad")})

    result = optimized("levenberg_marquardt", LevenbergMarquardt(), (J,), (bounds,), to_user, callback, save, progress)
    if is_traced(result):
        return result
    # Anew, in double precision: squares of small residuals are 0 in the dtype of the fit.
    residuals = np.concatenate([np.ravel(np.asarray(gathered(leaf), float)) for leaf in jax.tree.leaves(result.fun)])
    errors = errors_of_residuals(J.at(result.x), norms(residuals), absolute_sigma)
    return Fit.of(result, Vectors.like(x0, J.domain), errors)


def _require_some(J, x0):
    """Refuse to fit nothing, or to nothing."""
    if not J.shape[1]:
        raise ValueError(f"levenberg_marquardt got x0={brief(x0)}, expected one number at least")
    if not J.shape[0]:
        raise ValueError(
            f"levenberg_marquardt got fun with no residuals, of shapes {list(J.codomain.shapes)}, expected one at "
            "least: look at the shapes of the data"
        )


class Bounds(NamedTuple):
    """When to stop."""

    gtol: jax.Array
    xtol: jax.Array
    iterations: jax.Array


class State(NamedTuple):
    """A point, as a vector, the residuals there, and the trust region.

    Residuals and Jacobian are in a `unit`, a power of two near the largest of them at x0: squares leave the range of a
    dtype early.
    """

    x: jax.Array
    unit: jax.Array
    residuals: jax.Array
    jacobian: jax.Array
    scale: jax.Array
    radius: jax.Array
    ahead: jax.Array  # how long the last step of Gauss and Newton was, relative to x; infinite where it is not unique
    lowest: jax.Array  # the cosine below nine tenths of which the next has to come
    stalls: jax.Array  # steps since then
    iterations: jax.Array
    evaluations: jax.Array
    jacobians: jax.Array
    code: jax.Array
    first: jax.Array  # the norm of the residuals at x0
    bounds: Bounds


@dataclasses.dataclass(frozen=True)
class LevenbergMarquardt:
    """A step is one of the method's: the Jacobian, its singular values, and radii until one is accepted."""

    def begin(self, operators, bounds):
        (J,) = operators
        x = J.domain.ravel(J.x)
        residuals, jacobian = values(J, x), matrix(J, x)
        unit = _unit(residuals, jacobian)
        residuals, jacobian = residuals / unit, jacobian / unit
        norms = length(jacobian, axis=0)
        scale = jnp.where(norms > 0, norms, 1)
        size = jnp.linalg.norm(scale * x)
        radius = FIRST * jnp.where(size > 0, size, 1)
        one = jnp.ones((), jnp.int32)
        state = State(
            x, unit, residuals, jacobian, scale, radius, jnp.inf * radius, jnp.inf * radius, 0 * one, 0 * one, one, one,
            one, jnp.linalg.norm(residuals), bounds,
        )  # fmt: skip
        finite = jnp.isfinite(jnp.sum(residuals**2)) & jnp.all(jnp.isfinite(norms))
        ends = [(~finite, NOT_FINITE), (_optimality(state) <= bounds.gtol, CONVERGED)]
        return state._replace(code=jnp.select(*zip(*ends, strict=True), RUNNING).astype(jnp.int32))

    def done(self, operators, state):
        return state.code != RUNNING

    def step(self, operators, s):
        (J,) = operators
        trial, ahead = _tried(J, s)
        x, residuals = either(trial.accepted, (trial.x, trial.residuals), (s.x, s.residuals))
        jacobian = matrix(J, x) / s.unit
        scale = jnp.maximum(s.scale, length(jacobian, axis=0))
        after = s._replace(x=x, residuals=residuals, jacobian=jacobian)
        # Where rounding may hide a decrease of the cost, the cosines have to fall: if not, a shorter step from there.
        hidden = trial.gain <= trial.rounding
        still = hidden & ~trial.seen & ~(_optimality(after) < _optimality(s))
        after = either(still & jnp.isfinite(_optimality(after)), s, after)
        optimality = _optimality(after)
        lower = ~hidden | (optimality < 0.9 * s.lowest)
        after = after._replace(
            scale=scale, radius=jnp.where(still, trial.length / 4, trial.radius), ahead=ahead,
            lowest=jnp.where(lower, optimality, s.lowest), stalls=jnp.where(lower, 0, s.stalls + 1),
            iterations=s.iterations + 1, evaluations=s.evaluations + trial.count, jacobians=s.jacobians + 1,
        )  # fmt: skip
        small = trial.whole & trial.accepted & (ahead <= s.bounds.xtol)
        ends = [
            (~jnp.isfinite(optimality), NOT_FINITE),
            (optimality <= s.bounds.gtol, CONVERGED),
            (small, STEP),
            (~trial.accepted | (after.stalls >= STALLS), PRECISION),
            (after.iterations >= s.bounds.iterations, LIMIT),
        ]
        return after._replace(code=jnp.select(*zip(*ends, strict=True), RUNNING).astype(jnp.int32))

    def result(self, operators, s):
        """What is handed back of a state."""
        (J,) = operators
        return Result(
            x=J.domain.unravel(s.x), cost=_cost(s.unit * s.residuals), fun=J.codomain.unravel(s.unit * s.residuals),
            grad=J.domain.unravel(s.unit * (s.unit * (s.residuals @ s.jacobian))), optimality=_optimality(s),
            status=s.code, success=_is_success(s), nit=s.iterations, nfev=s.evaluations, njev=s.jacobians,
        )  # fmt: skip


def _is_success(s):
    """Whether x is a least: where rounding ended it, half of the digits have to be settled."""
    eps = jnp.finfo(s.x.dtype).eps
    half, zero = jnp.sqrt(eps), jnp.linalg.norm(s.residuals) <= eps * s.first
    settled = (_optimality(s) <= half) | (s.ahead <= half) | zero
    return (s.code == CONVERGED) | (s.code == STEP) | (s.code == PRECISION) & settled


def _unit(residuals, jacobian):
    """A power of two near the largest residual, or near a Jacobian whose squares would leave the range beside it."""
    size = jnp.maximum(jnp.max(abs(residuals), initial=0), LEAST * jnp.max(abs(jacobian), initial=0))
    _, exponent = jnp.frexp(jnp.where(jnp.isfinite(size), size, 1))
    return jnp.where(size > 0, jnp.ldexp(jnp.ones_like(size), exponent - 1), 1)


def _cost(residuals):
    return jnp.sum(residuals**2) / 2


def _optimality(s):
    """The largest cosine of the residuals with a column."""
    norms = length(s.jacobian, axis=0) * length(s.residuals)
    return jnp.max(abs(s.residuals @ s.jacobian) / jnp.where(norms > 0, norms, 1))


class _Trial(NamedTuple):
    """A step that was tried, by how much the model was less there, and what follows."""

    x: jax.Array
    residuals: jax.Array
    gain: jax.Array
    rounding: jax.Array
    whole: jax.Array  # whether it is the step of Gauss and Newton
    length: jax.Array
    seen: jax.Array  # whether the cost is less beyond doubt
    radius: jax.Array
    accepted: jax.Array
    count: jax.Array


def _tried(J, s):
    """The first step that is accepted, each in a fourth of the region before; and the relative length of the whole."""
    U, singular, Vh = jnp.linalg.svd(s.jacobian / s.scale, full_matrices=False)
    tiny = singular <= max(s.jacobian.shape) * jnp.finfo(singular.dtype).eps * singular[0]
    singular, along = jnp.where(tiny, 0, singular), s.residuals @ U
    cost = _cost(s.residuals)
    eps = float(jnp.finfo(cost.dtype).eps)
    exact, rounding = SEEN * eps * cost, eps**ROUNDING * cost

    def attempt(trial):
        y, whole = _within(singular, along, trial.radius)
        length = jnp.linalg.norm(y)
        x = s.x + (y @ Vh) / s.scale
        residuals = values(J, x) / s.unit
        gain = -jnp.sum(y * singular * (along + y * singular / 2))
        decrease = cost - _cost(residuals)
        slack = jnp.where(gain <= rounding, rounding, exact)
        ratio = (decrease + slack) / (gain + slack)
        accepted = (ratio >= ACCEPTED) & ~jnp.all(x == s.x)
        grown = jnp.where((ratio > 0.75) & ~whole, 2 * trial.radius, trial.radius)
        radius = jnp.where(accepted & (ratio >= 0.25), grown, length / 4)
        # Of a first region in which nothing is seen of f, a wider one.
        unseen = (s.iterations == 0) & ~whole & (gain <= exact)
        accepted, radius = accepted & ~unseen, jnp.where(unseen, WIDER * trial.radius, radius)
        seen = decrease >= jnp.maximum(ACCEPTED * gain, exact)
        return _Trial(x, residuals, gain, rounding, whole, length, seen, radius, accepted, trial.count + 1)

    none = jnp.zeros_like(cost)
    no = jnp.zeros((), bool)
    first = _Trial(s.x, s.residuals, none, rounding, no, none, no, s.radius, no, jnp.zeros((), jnp.int32))
    newton = jnp.where(jnp.any(tiny), jnp.inf, jnp.linalg.norm(along / jnp.where(tiny, 1, singular)))
    trial = jax.lax.while_loop(lambda t: ~t.accepted & (t.count < TRIES) & (t.radius > 0), attempt, first)
    return trial, newton / jnp.linalg.norm(s.scale * s.x)


def _within(values, along, radius):
    """The y with the least ‖along + values y‖ of length `radius` at most, and whether the least of all is as short.

    Otherwise it is -values along / (values² + mu), whose length is decreasing in mu: Newton's method for one over it.
    """
    nonzero = values > 0

    def at(mu):
        below = values**2 + mu
        return jnp.where(nonzero, -values * along / jnp.where(nonzero, below, 1), 0)

    def improve(state):
        _, mu, count = state
        y, below = at(mu), jnp.where(nonzero, values**2 + mu, 1)
        length = jnp.linalg.norm(y)
        slope = jnp.sum(y**2 / below) / jnp.where(length > 0, length, 1)  # minus that of the length
        after = mu + (length - radius) / radius * length / jnp.where(slope > 0, slope, 1)
        return y, jnp.where(length > (1 + CLOSE) * radius, after, mu), count + 1

    def is_long(state):
        return (jnp.linalg.norm(state[0]) > (1 + CLOSE) * radius) & (state[2] < NEWTON_STEPS)

    y, none = at(0.0), jnp.zeros((), jnp.int32)
    whole = jnp.linalg.norm(y) <= radius
    return jax.lax.while_loop(is_long, improve, (y, jnp.zeros_like(radius), none))[0], whole
