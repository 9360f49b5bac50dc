"""`linops.linalg.minres`: minimal residuals of a Hermitian system that may be indefinite or singular, on the device."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from linops.krylov import BREAKDOWN, rows_of, zeros_like
from linops.linalg.operands import rounding
from linops.linalg.records import (
    CONVERGED,
    INCONSISTENT,
    LIMIT,
    NO_PRECONDITIONER,
    NOT_FINITE,
    NOT_SYMMETRIC,
    ROUNDING,
)
from linops.linalg.solves import (
    NONE,
    RENEWED,
    RUNNING,
    Certainty,
    Solver,
    Told,
    answered,
    combined,
    either,
    nonzero,
    preconditioned,
    shifted,
    solve,
)
from linops.linalg.systems import Right, limits, refuse_show, square_system
from linops.precision import real_dtype
from linops.products import is_traced

DIGITS = 10  # of rounding, below which A r is nothing
EARLY = 5  # steps in which a matrix that is not Hermitian shows it


def minres(
    A,
    b,
    x0=None,
    *,
    rtol=1e-5,
    atol=0.0,
    shift=0.0,
    maxiter=None,
    M=None,
    callback=None,
    show=False,
    check=False,
    space=None,
    full_output=False,
):
    """Solve (A - shift) x = b with a Hermitian A, definite or not, singular or not, on the device.

    SciPy's `minres`, jittable and differentiable, for one right-hand side or many in one loop; but an x that is called
    converged solves the system: SciPy's rule, by the norms of A and x, lets ill-conditioned ones pass.

    Parameters
    ----------
    A : Operator, array of shape (n, n), or callable
        Hermitian; a callable is linear on `space`, in JAX.
    b : array or pytree
        A vector of shape (n,), a block (n, k), an element of the domain, or a tree of k of them on a leading axis.
    x0 : like b, optional
        Where to begin; zero by default.
    rtol, atol : float
        Converged is what has ‖b - (A - shift) x‖ <= max(rtol ‖b‖, atol).
    shift : float
        A real number.
    maxiter : int, optional
        How many iterations; 5 n by default.
    M : Operator, optional
        A preconditioner, Hermitian and positive definite, close to the inverse of A or of its absolute value.
    callback : callable, optional
        `callback(xk)` is called after each iteration, as in SciPy, with what will be returned.
    show : False
        Refused otherwise: `linops.monitor(A)` shows how far a solver is.
    check : bool
        Raise a ValueError where A shows itself not Hermitian, or M not positive definite; that is looked at in any
        case, as A is multiplied.
    space : Space, optional
        The Space of a callable A.
    full_output : bool
        Return a `Record` as well.

    Returns
    -------
    x : jax.Array or pytree
        Like b. Of a singular A, x0 apart, the solution of minimum norm.
    info : int, or array of shape (k,)
        0: converged. From 1 to maxiter: so many iterations were not enough. maxiter + 1: rounding keeps the residual
        above the tolerance. -2: M is not positive definite. -5: A is singular and b not in its range; x is the
        least-squares solution of minimum norm. -6: A is not Hermitian.
    record : Record
        With `full_output`: `converged`, `reason`, `iterations`, `matvecs`, `residual_norms`, `tolerance`.

    Raises
    ------
    FloatingPointError
        Where b, a product, or the solution has NaN or infinite numbers. Within `jit` info is -3.
    TypeError, ValueError
        Where an argument is none of these.

    Notes
    -----
    Before x is called converged its residual is computed anew, with one more product, as it is every 50 iterations;
    where that is not what it was taken for, the iteration begins again with it. With M the norms that are minimal, of
    residuals and of x, are those of M and of its inverse. Within `jit` what did not converge is NaN, unless the record
    is asked for. x is differentiable in b, A and shift, by another solve with a relative tolerance as large; of a
    singular A in directions that stay in its range.

    Sources: Paige and Saunders, SIAM J. Numer. Anal. 12 (1975); Liu, Milzarek and Roosta, arXiv:2309.17096 (2023), for
    minimum norms.

    Examples
    --------
    >>> from linops.linalg import minres
    >>> x, info = minres(linops.Diagonal(np.array([1.0, -2.0, 4.0], np.float32)), np.ones(3, np.float32))
    >>> np.round(x, 5).tolist(), info
    ([1.0, -0.5, 0.25], 0)
    """
    refuse_show("minres", show)
    A, M = operators = square_system("minres", A, M, space)
    bounds = limits("minres", A, rtol, atol, maxiter, 5 * A.shape[0])
    right = Right.of(A.domain, b, "minres")
    guesses = right.beginning(A.domain, x0, "minres")
    shifts, told = _shifts(A, right, shift), Told.of(callback, right, A)
    x, record, _ = solve(
        "minres", MinimalResiduals(), operators, right, guesses, bounds, shifts, told=told, marked=not full_output
    )
    if check and not is_traced(record) and np.isin(record.code, (NOT_SYMMETRIC, NO_PRECONDITIONER)).any():
        raise ValueError(f"minres got {A!r} with check=True, expected a Hermitian A and a definite M: {record.reason}")
    return answered(A, right, x, record, bounds, full_output)


def _shifts(A, right, shift):
    """What is added to A, for each right-hand side; None for nothing."""
    if is_traced(shift) or np.ndim(shift) or np.iscomplexobj(shift) or shift != 0:
        if np.ndim(shift) or jnp.iscomplexobj(shift):
            raise ValueError(f"minres got shift={shift!r}, expected a real number")
        with A.domain.scope():
            return jnp.full(rows_of(right.rows), -jnp.asarray(shift, real_dtype(A.dtype)))
    return None


# The algorithm.

# What a step multiplies: a Lanczos vector, x, x in the end, or M r.
EXPANDS, CHECKS, ENDS, CERTIFIES = range(4)


@dataclasses.dataclass(frozen=True)
class MinimalResiduals(Solver):
    """There is one product in a step: with a Lanczos vector; with x, to compute the residual; or with that."""

    def product(self, A, x, shift=None):
        """(A + shift) x."""
        return shifted(A, x, shift)

    def begin(self, operators, given, shift=None):
        A, M = operators
        space, b, real = A.domain, given.b, given.tolerance.dtype
        zero, none, inf = zeros_like(b), jnp.zeros((), jnp.int32), jnp.full((), jnp.inf, real)
        if given.x is None:
            x, r, y, norm, phase = zero, b, preconditioned(M, b), space.norm(b), EXPANDS
        else:  # the first step computes the residual
            x, r, y, norm, phase = given.x, zero, zero, inf, CHECKS
        best = Best(x, norm, inf)
        run, is_definite = Run.begin(space, M, r, y)
        fault = jnp.where(is_definite, NONE, NO_PRECONDITIONER).astype(jnp.int32)
        phase = jnp.where(fault == NONE, phase, CHECKS).astype(jnp.int32)
        code = jnp.where(norm <= given.tolerance, CONVERGED, RUNNING).astype(jnp.int32)
        return State(
            b, x, r, run, zero, best, norm, norm, jnp.zeros((), real), phase, fault, phase != EXPANDS, none + RUNNING,
            none, none, none, code, given.tolerance, given.limit, shift, Certainty.begin(given.tolerance),
        )  # fmt: skip

    def step(self, operators, s):
        A, M = operators
        space, run = A.domain, s.run
        checks, certifies = (s.phase == CHECKS) | (s.phase == ENDS), s.phase == CERTIFIES
        v = space.scale(1 / nonzero(run.beta), run.y)
        multiplied = either(checks, s.x, either(certifies, run.y, v))
        product = self.product(A, multiplied, s.shift)
        s = s._replace(certainty=s.certainty.seen(space.norm(product) / nonzero(space.norm(multiplied))))
        ahead, alpha, asymmetry = run.orthogonalized(space, v, product)
        anew = space.add(s.b, space.scale(-1, product))
        dual = either(checks, anew, either(certifies, product, ahead))
        image = preconditioned(M, dual)
        expanded = self._expanded(A, M, s, v, ahead, image, alpha, asymmetry)
        checked = self._checked(space, M, s, product, anew, image)
        certified = self._certified(A, M, s, product, image)
        after = either(checks, checked, either(certifies, certified, expanded))
        return after._replace(matvecs=s.matvecs + 1, product=either(s.phase == EXPANDS, product, s.product))

    def _expanded(self, A, M, s, v, ahead, image, alpha, asymmetry):
        """One more Lanczos vector, and a step of x where that has a direction left."""
        space, eps = A.domain, jnp.finfo(s.norm.dtype).eps
        beta, is_definite = size(space, M, ahead, image)
        run, phi = s.run.turned(alpha, beta)
        coupling = jnp.where(s.run.beta_before > 0, s.run.beta, 0)
        scale = jnp.maximum(s.scale, functools.reduce(jnp.hypot, (coupling, alpha, beta)))
        noise = eps * scale * space.norm(s.x) / nonzero(s.norm)  # of r: a product with x, in shares
        best = s.best.or_of(s.x, s.norm, run.root / nonzero(scale) + noise)
        # A times the residual, which this step would make smaller, is nothing: so is the denominator of the step.
        ends = run.root <= rounding(A, DIGITS) * scale
        w = combined(space, -run.epsilon / run.gamma, s.run.w_before, space.scale(1 / run.gamma, v))
        w = combined(space, -run.delta / run.gamma, s.run.w, w)
        x = combined(space, phi, w, s.x)
        r = combined(space, -run.cs * run.residual / nonzero(beta), ahead, space.scale(run.sn**2, s.r))
        x, r = either(ends, s.x, x), either(ends, s.r, r)
        run = run._replace(
            before=s.run.current, current=ahead, y=image, v=v, w_before=s.run.w, w=w, beta_before=s.run.beta, beta=beta
        )
        norm, since, iterations = space.norm(r), s.since + 1, s.iterations + 1
        # Later a Krylov space that is used up looks as one of a matrix that is not Hermitian: then checks tell.
        told = (s.iterations < EARLY) & (jnp.minimum(s.run.beta, asymmetry) > jnp.sqrt(eps) * scale)
        faults = [
            (~(jnp.isfinite(norm) & jnp.isfinite(alpha) & jnp.isfinite(beta)), NOT_FINITE),
            (told, NOT_SYMMETRIC),
            (~is_definite, NO_PRECONDITIONER),
        ]
        fault = jnp.select(*zip(*faults, strict=True), NONE).astype(jnp.int32)
        due = ends | (norm <= s.certainty.aim) | (iterations >= s.limit) | (fault != NONE)
        due = due | (beta <= BREAKDOWN * eps * scale)
        phase = jnp.where(due | (since >= RENEWED), CHECKS, EXPANDS)
        phase = jnp.where(ends & (fault == NONE), ENDS, phase).astype(jnp.int32)
        return s._replace(
            x=x, r=r, run=run, best=best, norm=norm, scale=scale, phase=phase, fault=fault, due=due, since=since,
            iterations=iterations, verdict=jnp.full_like(s.verdict, RUNNING),
        )  # fmt: skip

    def _checked(self, space, M, s, product, anew, image):
        """The residual computed anew: the end, or a new beginning where it is not what it was taken for."""
        norm = space.norm(anew)
        fresh, is_definite = Run.begin(space, M, anew, image)
        drift = space.norm(space.add(anew, space.scale(-1, s.r)))
        renews = s.due | (drift > norm / 2)
        fault = jnp.where(is_definite, s.fault, NO_PRECONDITIONER)
        fault = jnp.where((fault == NONE) & s.tells_asymmetry(space, product), NOT_SYMMETRIC, fault)
        fault = jnp.where(jnp.isfinite(norm), fault, NOT_FINITE).astype(jnp.int32)
        verdict = jnp.where(s.iterations >= s.limit, LIMIT, RUNNING)
        certainty = s.certainty.at(space, s.x, s.tolerance)
        stuck = (drift > norm / 2) & (norm > s.checked / 2) | certainty.is_too_small(norm, s.tolerance)
        verdict = jnp.where(stuck, ROUNDING, verdict)
        verdict = jnp.where(s.phase == ENDS, s.verdict, verdict).astype(jnp.int32)
        returns = (s.phase == CHECKS) & (verdict != RUNNING) & s.best.is_solution(norm)
        asks = returns | (s.phase == ENDS)
        ends = [(certainty.is_met(norm), CONVERGED), (fault != NONE, fault), (asks, RUNNING)]
        code = jnp.select(*zip(*ends, strict=True), verdict).astype(jnp.int32)
        phase = jnp.select([s.phase == ENDS, returns], [CERTIFIES, ENDS], EXPANDS).astype(jnp.int32)
        renews = renews | asks
        return s._replace(
            x=either(returns & (code == RUNNING), s.best.x, s.x), r=either(renews, anew, s.r),
            run=either(renews, fresh, s.run), norm=norm, checked=jnp.where(renews, norm, s.checked), code=code,
            fault=fault, phase=phase, verdict=verdict, due=jnp.zeros_like(s.due), since=jnp.zeros_like(s.since),
            certainty=certainty,
        )  # fmt: skip

    def _certified(self, A, M, s, product, image):
        """Whether A M r is nothing. Then r has all that x has outside of the range, which goes (Liu et al., 2023)."""
        space = A.domain
        gradient, _ = size(space, M, product, image)
        outside = space.inner(s.r, s.x) / nonzero(s.run.beta) ** 2
        x = combined(space, -outside, s.run.y, s.x)
        norm = space.norm(combined(space, outside, product, s.r))
        is_solution = (gradient <= nothing(norm) * s.scale * s.run.beta) & (norm <= (1 + nothing(norm)) * s.norm)
        return s._replace(
            x=either(is_solution, x, s.x), norm=jnp.where(is_solution, norm, s.norm),
            code=jnp.where(is_solution, INCONSISTENT, s.verdict).astype(jnp.int32),
            phase=jnp.full_like(s.phase, EXPANDS),
        )  # fmt: skip


def nothing(norm):
    """What A r comes down to at a least-squares solution, in shares: then a step along r, by rounding, is too long."""
    return 10 * jnp.sqrt(jnp.finfo(norm.dtype).eps)


class Best(NamedTuple):
    """Where A r, in shares of A and r, with what rounding adds, was least: without a solution x goes astray later."""

    x: Any
    norm: jax.Array
    root: jax.Array

    def or_of(self, x, norm, root):
        return either(root < self.root, Best(x, norm, root), self)

    def is_solution(self, norm):
        """Whether it may be a least-squares solution, of a residual no larger than one of a later x."""
        return (self.root <= nothing(norm)) & (self.norm <= 2 * norm)


class Run(NamedTuple):
    """Lanczos vectors since the residual was computed, and the rotations that make their matrix triangular.

    Vectors without M are `before`, `current` and the next one; y is M times the current one, v the one before of length
    1. Names of numbers are those of Paige and Saunders; `residual` is the norm of the residual in M, and `root` that
    of A times the one before, in shares of it.
    """

    before: Any
    current: Any
    y: Any
    v: Any
    w_before: Any
    w: Any
    beta_before: jax.Array
    beta: jax.Array
    cs: jax.Array
    sn: jax.Array
    dbar: jax.Array
    delta: jax.Array
    epsilon: jax.Array
    epsilon_ahead: jax.Array
    gamma: jax.Array
    residual: jax.Array
    root: jax.Array

    @classmethod
    def begin(cls, space, M, r, y):
        """Of a residual and M times it; and whether that is as of a definite M."""
        beta, is_definite = size(space, M, r, y)
        zero, none, one = zeros_like(r), jnp.zeros_like(beta), jnp.ones_like(beta)
        run = cls(zero, r, y, zero, zero, zero, none, beta, -one, none, none, none, none, none, one, beta, none)
        return run, is_definite

    def orthogonalized(self, space, v, product):
        """The next vector, the diagonal entry, and by how much products differ from those of a Hermitian A."""
        first = self.beta_before <= 0
        overlap = space.inner(self.v, product)
        ahead = combined(space, -self.beta / nonzero(self.beta_before), self.before, product)
        ahead = either(first, product, ahead)
        alpha = space.inner(v, ahead)
        asymmetry = jnp.maximum(jnp.where(first, 0, abs(overlap - self.beta)), abs(alpha.imag))
        return combined(space, -alpha.real / nonzero(self.beta), self.current, ahead), alpha.real, asymmetry

    def turned(self, alpha, beta):
        """With one more rotation; and how far to go along the next direction."""
        delta = self.cs * self.dbar + self.sn * alpha
        gbar = self.sn * self.dbar - self.cs * alpha
        dbar = -self.cs * beta
        gamma = nonzero(jnp.hypot(gbar, beta))
        cs, sn = gbar / gamma, beta / gamma
        run = self._replace(
            cs=cs, sn=sn, dbar=dbar, delta=delta, epsilon=self.epsilon_ahead, epsilon_ahead=self.sn * beta, gamma=gamma,
            residual=sn * self.residual, root=jnp.hypot(gbar, dbar),
        )  # fmt: skip
        return run, cs * self.residual


def size(space, M, r, image):
    """The norm of r in M, and whether it is one of a definite M."""
    norm = space.norm(r)
    if M is None:
        return norm, jnp.ones((), bool)
    square = space.inner(r, image).real
    return jnp.sqrt(jnp.maximum(square, 0)), (square > 0) | ~(norm > 0)


class State(NamedTuple):
    """Of a system with one right-hand side of length 1."""

    b: Any
    x: Any
    r: Any
    run: Run
    product: Any  # of A with run.v
    best: Best
    norm: jax.Array
    checked: jax.Array  # the norm with which the run began, as it was computed
    scale: jax.Array  # the norm of A, as far as it was seen
    phase: jax.Array
    fault: jax.Array
    due: jax.Array  # the check was asked for, not only due by time
    verdict: jax.Array  # what it will be called where x is no least-squares solution
    since: jax.Array
    iterations: jax.Array
    matvecs: jax.Array
    code: jax.Array
    tolerance: jax.Array
    limit: jax.Array
    shift: Any
    certainty: Certainty

    def tells_asymmetry(self, space, product):
        """Whether vᴴ (A x) and (A v)ᴴ x, of the last Lanczos vector, differ by more than rounding makes them."""
        v, x = self.run.v, self.x
        apart = abs(space.inner(v, product) - space.inner(self.product, x))
        share = jnp.sqrt(jnp.finfo(self.norm.dtype).eps) * self.certainty.scale
        return (self.run.beta_before > 0) & (apart > share * space.norm(v) * space.norm(x))
