"""`linops.linalg.cg`: conjugate gradients, on the device."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from linops.iterate import compute, maybe
from linops.krylov import empty, rows_of, zeros_like
from linops.linalg.records import (
    BOUNDARY,
    CONVERGED,
    LIMIT,
    NO_PRECONDITIONER,
    NOT_DEFINITE,
    NOT_FINITE,
    ROUNDING,
)
from linops.linalg.shifted import from_one_space
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
from linops.linalg.systems import Right, limits, square_system
from linops.precision import real_dtype
from linops.products import is_traced


def cg(
    A,
    b,
    x0=None,
    *,
    rtol=1e-5,
    atol=0.0,
    maxiter=None,
    M=None,
    callback=None,
    shifts=None,
    radius=None,
    space=None,
    full_output=False,
):
    """Solve A x = b with a Hermitian positive definite A, on the device.

    SciPy's `cg`, jittable and differentiable, for one right-hand side or many in one loop.

    Parameters
    ----------
    A : Operator, array of shape (n, n), or callable
        Hermitian and positive definite; a callable is linear on `space`, in JAX.
    b : array or pytree
        A vector of shape (n,), a block (n, k), an element of the domain, or a tree of k of them on a leading axis.
    x0 : like b, optional
        Where to begin; zero by default.
    rtol, atol : float
        Converged is what has ‖b - A x‖ <= max(rtol ‖b‖, atol).
    maxiter : int, optional
        How many iterations; 10 n by default.
    M : Operator, optional
        A preconditioner, Hermitian and positive definite, close to the inverse of A. See `linops.precondition`.
    callback : callable, optional
        `callback(xk)` is called after each iteration, as in SciPy, with what will be returned.
    shifts : array of shape (k,), optional
        Solve (A + s) x = b for each of the shifts s, from one Krylov space: as many products as for the smallest of
        them, and some to check. Without M, x0 and radius, and for one right-hand side.
    radius : float, optional
        Stay in the trust region ‖x‖ <= radius, in the norm of the inverse of M. A may be indefinite: a direction of
        negative curvature is followed to the boundary. That is the step of Steihaug and Toint.
    space : Space, optional
        The Space of a callable A.
    full_output : bool
        Return a `Record` as well.

    Returns
    -------
    x : jax.Array or pytree
        Like b; with shifts of shape (n, k), or a tree with a leading axis of k.
    info : int, or array of shape (k,)
        0: converged. From 1 to maxiter: so many iterations were not enough. maxiter + 1: rounding keeps the residual
        above the tolerance. -1: A is not positive definite, -2: M is not, and x is no worse than where it
        began. -4: x is on the boundary of the trust region.
    record : Record
        With `full_output`: `converged`, `reason`, `iterations`, `matvecs`, `residual_norms`, `tolerance`; and
        `direction`, like x: where info is -1 a d of length 1 with dᴴ A d <= 0, as it was computed, or next to none
        where A is singular; else zero.

    Raises
    ------
    FloatingPointError
        Where b, a product, or the solution has NaN or infinite numbers. Within `jit` info is -3.
    TypeError, ValueError
        Where an argument is none of these.

    Notes
    -----
    Before x is called converged its residual is computed anew, with one more product, as it is every 50 iterations:
    the one that is carried along drifts from it. Within `jit` what did not converge is NaN, unless the record is
    asked for. x is differentiable in b and in A, by another solve with a relative tolerance as large.

    Sources: Hestenes and Stiefel, J. Res. NBS 49 (1952); Jegerlehner, hep-lat/9612014 (1996), for shifts; Steihaug,
    SIAM J. Numer. Anal. 20 (1983), for trust regions; van der Vorst and Ye, SIAM J. Sci. Comput. 22 (2000), for
    residuals that are replaced.

    Examples
    --------
    >>> from linops.linalg import cg
    >>> x, info = cg(linops.Diagonal(np.array([1.0, 2.0, 4.0], np.float32)), np.ones(3, np.float32))
    >>> np.allclose(x, [1, 0.5, 0.25]), info
    (True, 0)
    """
    A, M = operators = square_system("cg", A, M, space)
    bounds = limits("cg", A, rtol, atol, maxiter, 10 * A.shape[0])
    right = Right.of(A.domain, b, "cg")
    guesses = right.beginning(A.domain, x0, "cg")
    spent = 0, 0
    if shifts is not None:
        shifts = _shifts(A, right, shifts, M, x0, radius)
        right, guesses, spent = from_one_space(operators, right, shifts, bounds)
    inside = None if radius is None else _radii(A, right, radius, x0)
    solver, marked = ConjugateGradients(), not full_output
    told = Told.of(callback, right, A)
    x, record, p = solve("cg", solver, operators, right, guesses, bounds, shifts, inside, told=told, marked=marked)
    results = answered(A, right, x, record.after(*spent), bounds, full_output)
    if not full_output:
        return results
    direction = right.shaped(A.domain, compute(_units, A, p))
    return *results[:2], dataclasses.replace(results[2], direction=direction)


def _units(A, rows):
    return jax.vmap(lambda p: A.domain.scale(1 / nonzero(A.domain.norm(p)), p))(rows)


# What is asked for.


def _shifts(A, right, shifts, M, x0, radius):
    given = {"M": M, "x0": x0, "radius": radius}
    others = [name for name, value in given.items() if value is not None]
    if others or right.is_block:
        raise ValueError(
            f"cg got shifts= with {', '.join(others) or 'a block of right-hand sides'}, expected one right-hand side, "
            "and none of M, x0 and radius: these have another Krylov space for each shift"
        )
    with A.domain.scope():
        shifts = jnp.asarray(shifts, real_dtype(A.dtype))
    if shifts.ndim != 1 or len(shifts) == 0:
        raise ValueError(f"cg got shifts of shape {shifts.shape}, expected a vector of real numbers")
    return shifts


def _radii(A, right, radius, x0):
    if x0 is not None:
        raise ValueError("cg got radius= with x0, expected one of them: a trust region is around zero")
    if not is_traced(radius) and not (np.ndim(radius) == 0 and radius > 0):
        raise ValueError(f"cg got radius={radius!r}, expected a positive number")
    with A.domain.scope():
        return jnp.full(rows_of(right.rows), radius, real_dtype(A.dtype))


# The algorithm.


@dataclasses.dataclass(frozen=True)
class ConjugateGradients(Solver):
    """A step multiplies a direction, or, to compute the residual anew, x: there is one product in it."""

    renewed: int | None = RENEWED  # None: the residual that is carried along is believed

    def product(self, A, x, shift=None, radius=None):
        """(A + shift) x."""
        return shifted(A, x, shift)

    def details(self, size, s):
        """Directions of negative curvature, or none."""
        return either(s.code == NOT_DEFINITE, s.p, zeros_like(s.p))

    def begin(self, operators, given, shift=None, radius=None, path=None):
        A, M = operators
        space, b = A.domain, given.b
        zero, real = space.scale(0, b), given.tolerance.dtype
        none, number = jnp.zeros((), jnp.int32), jnp.zeros((), real)
        if given.x is None:
            x, r, z, norm = zero, b, preconditioned(M, b), space.norm(b)
        else:  # the first step computes the residual
            x, r, z, norm = given.x, zero, zero, jnp.full((), jnp.inf, real)
        rho = space.inner(r, z).real
        fault = none + (NONE if given.x is not None else _fault(M, norm, rho, number))
        region = None if radius is None else Region.begin(radius / given.size, rho, path)
        checks = (fault != NONE) | (given.x is not None)
        best = None if M is None or radius is not None else Best(x, norm)
        code = jnp.where(norm <= given.tolerance, CONVERGED, RUNNING).astype(jnp.int32)
        return State(
            b, x, r, z, z, rho, norm, jnp.full((), jnp.inf, real), checks, fault, none, none, none, code,
            given.tolerance, given.limit, shift, region, Certainty.begin(given.tolerance), best,
        )  # fmt: skip

    def step(self, operators, s):
        A, M = operators
        space = A.domain
        multiplied = either(s.checks, s.x, s.p)
        product = self.product(A, multiplied, s.shift)
        curvature, eps = space.inner(s.p, product).real, jnp.finfo(s.norm.dtype).eps
        length, region, fault = self._length(s, curvature)
        x = combined(space, length, s.p, s.x)
        anew = space.add(s.b, space.scale(-1, product))
        r = either(s.checks, anew, combined(space, -length, product, s.r))
        z = preconditioned(M, r)
        rho, norm = space.inner(r, z).real, space.norm(r)
        # In exact arithmetic it grows by less than the root of the condition number of A, be M what it may.
        grows = eps**2 * norm > jnp.where(jnp.isfinite(s.checked), s.checked, 1)
        is_singular = ~s.checks & (fault == NONE) & (grows | jnp.isinf(length))
        x, fault = either(is_singular, s.x, x), jnp.where(is_singular, NOT_DEFINITE, fault)
        # The direction keeps what it knows when the residual is replaced.
        beta = jnp.where(s.checks, 1, rho / jnp.where(s.rho > 0, s.rho, 1))
        fresh = either(s.checks, space.add(z, space.scale(-1, s.z)), z)
        p = either(fault == NONE, combined(space, beta, s.p, fresh), s.p)
        fault = jnp.where(fault == NONE, _fault(M, norm, rho, length), fault)
        iterations = s.iterations + ~s.checks
        since = jnp.where(s.checks, 0, s.since + 1)
        ends = (iterations >= s.limit) | (fault != NONE)
        if self.renewed is None:
            certainty, is_met = s.certainty, norm <= s.tolerance
            checks, code = s.checks, jnp.where(ends | is_met, _code(is_met, fault, False), RUNNING)
        else:
            certainty = s.certainty.seen(space.norm(product) / nonzero(space.norm(multiplied)))
            certainty = either(s.checks, certainty.at(space, x, s.tolerance), certainty)
            checks = ~s.checks & (ends | (norm <= certainty.aim) | (since >= self.renewed))
            is_met = certainty.is_met(norm)
            drift = space.norm(space.add(r, space.scale(-1, s.r)))
            stuck = (drift > norm / 2) & (norm > s.checked / 2) | certainty.is_too_small(norm, s.tolerance)
            code = jnp.where(s.checks & (ends | is_met | stuck), _code(is_met, fault, stuck), RUNNING)
        best = s.best
        if best is not None:
            best = either(s.checks & (norm < best.norm), Best(x, norm), best)
            x, norm = either(code == NO_PRECONDITIONER, best, Best(x, norm))
        return State(
            s.b, x, r, z, p, rho, norm, jnp.where(s.checks, jnp.minimum(norm, s.checked), s.checked), checks, fault,
            since, iterations, s.matvecs + 1, code.astype(jnp.int32), s.tolerance, s.limit, s.shift,
            region if region is None else region.after(beta, rho, s.checks), certainty, best,
        )  # fmt: skip

    def _length(self, s, curvature):
        """How far to go along p, where that is in the trust region, and what is wrong or ends there."""
        bends = curvature > 0
        length = jnp.where(s.checks | ~bends, 0, s.rho / jnp.where(bends, curvature, 1))
        found = jnp.where(jnp.isfinite(curvature), NOT_DEFINITE, NOT_FINITE)
        fault = jnp.where(s.checks | bends | (s.fault != NONE), s.fault, found)
        if s.region is None:
            return length, None, fault
        region = s.region.sized(length, bends)
        most = region.to_boundary(region.radius)
        leaves = ~s.checks & (~bends | (length >= most))
        length = jnp.where(leaves, most, length)
        fault = jnp.where(leaves & bends, BOUNDARY, fault)
        return length, region.along(length, s.x, s.p, s.rho, curvature), fault


class State(NamedTuple):
    """Of a system with one right-hand side of length 1."""

    b: Any
    x: Any
    r: Any
    z: Any
    p: Any
    rho: jax.Array
    norm: jax.Array
    checked: jax.Array
    checks: jax.Array
    fault: jax.Array
    since: jax.Array
    iterations: jax.Array
    matvecs: jax.Array
    code: jax.Array
    tolerance: jax.Array
    limit: jax.Array
    shift: Any
    region: Any
    certainty: Certainty
    best: Any  # None where there is no preconditioner that could be at fault


class Best(NamedTuple):
    """Of the points whose residuals were computed anew that with the least, the start among them, and its norm."""

    x: Any
    norm: jax.Array


class Region(NamedTuple):
    """The trust region, and where x and p are in it: inner products in the norm of the inverse of M.

    They follow from the others (Conn, Gould and Toint, "Trust Region Methods", 2000, 7.5.1), as does by how much x has
    decreased the model xᴴ A x / 2 - bᴴ x. A negative radius is to be set by the first step,
    in units of which it is then; where the matrix does not bend along that, it is the positive number.
    """

    radius: jax.Array
    xx: jax.Array
    xp: jax.Array
    pp: jax.Array
    decrease: jax.Array
    path: Any  # None, or where x left smaller regions

    @classmethod
    def begin(cls, radius, rho, path):
        none = jnp.zeros_like(rho)
        return cls(radius, none, none, rho, none, path)

    def sized(self, length, bends):
        """With a radius, set by the first step if it has to be."""
        first = jnp.where(bends, FIRST * length * jnp.sqrt(self.pp), -self.radius)
        return self._replace(radius=jnp.where(self.radius < 0, first, self.radius))

    def to_boundary(self, radius):
        """How far it is along p, from x inside: the larger root of a quadratic, without cancellation."""
        room = jnp.maximum(radius**2 - self.xx, 0)
        root = jnp.sqrt(self.xp**2 + self.pp * room)
        apart = room / jnp.where(self.xp + root > 0, self.xp + root, 1)
        return jnp.where(self.xp > 0, apart, (root - self.xp) / jnp.where(self.pp > 0, self.pp, 1))

    def along(self, length, x, p, rho, curvature):
        """After a step of this length."""
        xx = self.xx + 2 * length * self.xp + length**2 * self.pp
        gain = self._gain(length, rho, curvature)
        path = None if self.path is None else self._passed(xx, x, p, rho, curvature)
        return self._replace(xx=xx, xp=self.xp + length * self.pp, decrease=gain, path=path)

    def _gain(self, length, rho, curvature):
        return self.decrease + length * (rho - length * curvature / 2)

    def _passed(self, xx, x, p, rho, curvature):
        """The path with the points at which a step that ends at a norm of sqrt(xx) leaves smaller regions."""
        radii = self.radius * self.path.shares
        passed = (self.xx < radii**2) & (radii**2 <= xx)

        def add(path):
            lengths = self.to_boundary(radii)

            def moved(old, x, p):
                along = jax.vmap(jnp.multiply, (0, None))(lengths, p)  # jnp.multiply.outer flattens p
                return either(passed, x + along.astype(x.dtype), old)

            points = jax.tree.map(moved, path.points, x, p)
            gains = jnp.where(passed, self._gain(lengths, rho, curvature), path.decreases)
            return path._replace(points=points, decreases=gains)

        return maybe(jnp.any(passed), add, self.path)

    def after(self, beta, rho, same):
        """With the next direction; one that was only corrected is about the same."""
        xp, pp = beta * self.xp, rho + beta**2 * self.pp
        return self._replace(xp=jnp.where(same, self.xp, xp), pp=jnp.where(same, self.pp, pp))


FIRST = 10  # steps of steepest descent: a first radius


class Path(NamedTuple):
    """Where x left the regions of these shares of the radius, rows of a tree, and by how much the model was less there.

    A method that finds the radius too large has the solutions for smaller ones at hand. 0 is said where there is none.
    """

    shares: jax.Array
    points: Any
    decreases: jax.Array

    @classmethod
    def begin(cls, x, shares):
        return cls(shares, empty(x, len(shares)), jnp.zeros_like(shares))


def _fault(M, norm, rho, length):
    """What is wrong with a residual: nothing, most often."""
    fault = jnp.where(jnp.isfinite(norm) & jnp.isfinite(length), NONE, NOT_FINITE)
    if M is None:
        return fault.astype(jnp.int32)
    return jnp.where((fault == NONE) & (norm > 0) & ~(rho > 0), NO_PRECONDITIONER, fault).astype(jnp.int32)


def _code(converged, fault, stuck):
    return jnp.select([converged, fault != NONE, stuck], [CONVERGED, fault, ROUNDING], LIMIT)
