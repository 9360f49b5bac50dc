"""`linops.linalg.gmres`: restarted minimal residuals of any square system, on the device."""

import dataclasses
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from linops.krylov import (
    BREAKDOWN,
    empty,
    next_vector,
    product,
    with_row,
    zeros_like,
)
from linops.linalg.records import CONVERGED, LIMIT, NOT_FINITE, ROUNDING, STAGNATED
from linops.linalg.solves import (
    NONE,
    RUNNING,
    Certainty,
    Solver,
    Told,
    answered,
    either,
    nonzero,
    preconditioned,
    solve,
)
from linops.linalg.systems import Right, limits, square_system
from linops.processes import gathered
from linops.space import combination

RESTART = 20  # vectors of the Krylov space, by default, as in SciPy
SLACK = 10  # times eps: a space that makes the residual smaller by less makes no progress


def gmres(
    A,
    b,
    x0=None,
    *,
    rtol=1e-5,
    atol=0.0,
    restart=None,
    maxiter=None,
    M=None,
    callback=None,
    callback_type=None,
    space=None,
    full_output=False,
):
    """Solve A x = b with any square A, on the device.

    SciPy's `gmres`, jittable and differentiable, for one right-hand side or many in one loop. M is applied on the
    right, A M y = b with x = M y, so that the residual that becomes minimal is that of A x = b.

    Parameters
    ----------
    A : Operator, array of shape (n, n), or callable
        A callable is linear on `space`, in JAX.
    b : array or pytree
        A vector of shape (n,), a block (n, k), an element of the domain, or a tree of k of them on a leading axis.
    x0 : like b, optional
        Where to begin; zero by default.
    rtol, atol : float
        Converged is what has ‖b - A x‖ <= max(rtol ‖b‖, atol).
    restart : int, optional
        How many vectors the Krylov space has before it is begun anew; min(20, n) by default. They are held in memory.
    maxiter : int, optional
        How many spaces of so many vectors; 10 n by default.
    M : Operator, optional
        A preconditioner, close to the inverse of A; any operator.
    callback : callable, optional
        As `callback_type` says.
    callback_type : {"x", "pr_norm", "legacy"}, optional
        "x": `callback(xk)` with what will be returned, after each space. "pr_norm": with ‖b - A x‖ / ‖b‖, after each
        product; of a block with as many numbers. "legacy", as in SciPy the default: the same, and `maxiter` counts
        products.
    space : Space, optional
        The Space of a callable A.
    full_output : bool
        Return a `Record` as well.

    Returns
    -------
    x : jax.Array or pytree
        Like b.
    info : int, or array of shape (k,)
        0: converged. A positive number: so many iterations were not enough, or, one above the limit of them, rounding
        keeps the residual above the tolerance. -7: no progress is made any more, and none would be: A is singular, or
        `restart` too small.
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
    Each vector is orthogonalized twice. Before x is called converged its residual is computed anew, with one more
    product, as it is after each space; an x whose residual is larger than that of the one before is not taken. Within
    `jit` what did not converge is NaN, unless the record is asked for. x is differentiable in b and in A, by another
    solve, with the transposes of A and M for reverse mode.

    Source: Saad and Schultz, SIAM J. Sci. Stat. Comput. 7 (1986).

    Examples
    --------
    >>> from linops.linalg import gmres
    >>> A = linops.Matrix(np.array([[1.0, 2.0], [0.0, 4.0]], np.float32))
    >>> x, info = gmres(A, np.ones(2, np.float32))
    >>> np.round(x, 5).tolist(), info
    ([0.5, 0.25], 0)
    """
    A, M = operators = square_system("gmres", A, M, space)
    restart = _restart(A, restart)
    kind = _kind(callback, callback_type)
    bounds = limits("gmres", A, rtol, atol, maxiter, 10 * A.shape[0])
    if kind != "legacy":
        bounds = bounds._replace(iterations=restart * bounds.iterations)
    right = Right.of(A.domain, b, "gmres")
    guesses = right.beginning(A.domain, x0, "gmres")
    told = (_ToldOfSpaces if kind == "x" else _ToldOfNorms).of(callback, right, A)
    solver = GeneralResiduals(restart)
    x, record, _ = solve("gmres", solver, operators, right, guesses, bounds, told=told, marked=not full_output)
    return answered(A, right, x, record, bounds, full_output)


# What is asked for.


def _restart(A, restart):
    n = A.shape[0]
    try:
        restart = min(RESTART if restart is None else operator.index(restart), max(1, n))
    except TypeError:
        raise TypeError(f"gmres got restart={restart!r}, expected an integer, static in jit") from None
    if restart < 1:
        raise ValueError(f"gmres got restart={restart}, expected at least 1, the vectors of a Krylov space")
    return restart


def _kind(callback, callback_type):
    if callback_type not in (None, "x", "pr_norm", "legacy"):
        raise ValueError(f"gmres got callback_type={callback_type!r}, expected 'x', 'pr_norm' or 'legacy'")
    return None if callback is None else callback_type or "legacy"


class _ToldOfSpaces(Told):
    """Called where x is another one, after each space."""

    def is_news(self, glimpse):
        before, self.seen = self.seen, [np.asarray(gathered(leaf)) for leaf in jax.tree.leaves(glimpse.x)]
        return not all(map(np.array_equal, self.seen, before)) if before else any(map(np.any, self.seen))


class _ToldOfNorms(Told):
    """Called with relative residual norms."""

    @classmethod
    def of(cls, callback, right, A):
        def shown(glimpse):
            norms = np.asarray(glimpse.record.residual_norms) / np.where(glimpse.sizes > 0, glimpse.sizes, 1)
            return norms if right.is_block else float(norms[0])

        return None if callback is None else cls(callback, shown)


# The algorithm.


@dataclasses.dataclass(frozen=True)
class GeneralResiduals(Solver):
    """A step multiplies M times a vector of the space, or x, to compute the residual: there is one product in it."""

    restart: int

    def begin(self, operators, given):
        space, b, real = operators[0].domain, given.b, given.tolerance.dtype
        if given.x is None:
            x, r, norm = zeros_like(b), b, space.norm(b)
        else:  # the first step computes the residual
            x, r, norm = given.x, zeros_like(b), jnp.full((), jnp.inf, real)
        none = jnp.zeros((), jnp.int32)
        code = jnp.where(norm <= given.tolerance, CONVERGED, RUNNING).astype(jnp.int32)
        return State(
            b, x, r, Spanned.begin(space, r, norm, self.restart), norm, norm, jnp.full((), given.x is not None), none,
            none, none, code, given.tolerance, given.limit, Certainty.begin(given.tolerance),
        )  # fmt: skip

    def step(self, operators, s):
        A, M = operators
        space, spanned = A.domain, s.spanned
        places = jnp.arange(self.restart + 1)
        ahead = jnp.where(places == spanned.size, 1, 0)
        coefficients = jnp.where(s.checks, spanned.solution(s.begun), ahead.astype(spanned.turns.dtype))
        direction = preconditioned(M, combination(spanned.basis, coefficients))
        x = space.add(s.x, direction)
        multiplied = either(s.checks, x, direction)
        image = A._mv(multiplied)
        s = s._replace(certainty=s.certainty.seen(space.norm(image) / nonzero(space.norm(multiplied))))
        after = either(s.checks, self._checked(space, s, x, image), self._expanded(space, s, image))
        return after._replace(matvecs=s.matvecs + 1)

    def _expanded(self, space, s, image):
        """One more vector in the space; it is due to be looked at where it is full, or has, or will have, no more."""
        spanned, ends = s.spanned.expanded(space, image)
        norm = s.begun * spanned.share()
        iterations = s.iterations + 1
        is_finite = jnp.isfinite(norm) & jnp.all(jnp.isfinite(spanned.triangle))
        fault = jnp.where(is_finite, NONE, NOT_FINITE).astype(jnp.int32)
        checks = (norm <= s.certainty.aim) | ends | (spanned.size >= self.restart) | (iterations >= s.limit)
        return s._replace(
            spanned=spanned, norm=norm, checks=checks | (fault != NONE), fault=fault, iterations=iterations
        )

    def _checked(self, space, s, x, image):
        """The residual computed anew, and the next space, of it; of an x that is worse nothing is taken."""
        anew = space.add(s.b, space.scale(-1, image))
        norm = space.norm(anew)
        is_better = norm < s.begun
        stands = norm > (1 - SLACK * jnp.finfo(norm.dtype).eps) * s.begun
        # What the space promised, rounding did not let happen; or it promised nothing.
        misled = (s.norm < s.begun / 2) & (norm > s.begun / 2)
        certainty = s.certainty.at(space, x, s.tolerance)
        ends = [
            (certainty.is_met(norm), CONVERGED),
            (s.fault != NONE, s.fault),
            (~jnp.isfinite(norm), NOT_FINITE),
            (misled | certainty.is_too_small(norm, s.tolerance), ROUNDING),
            (stands, STAGNATED),
            (s.iterations >= s.limit, LIMIT),
        ]
        code = jnp.select(*zip(*ends, strict=True), RUNNING).astype(jnp.int32)
        x, r, norm = either(is_better, (x, anew, norm), (s.x, s.r, s.begun))
        return s._replace(
            x=x, r=r, spanned=Spanned.begin(space, r, norm, self.restart), norm=norm, begun=norm,
            checks=jnp.zeros_like(s.checks), code=code, certainty=certainty,
        )  # fmt: skip


class Spanned(NamedTuple):
    """A Krylov space of A M with an orthonormal basis V: `turns` times its Hessenberg matrix is `triangle`, and 0."""

    basis: Any
    turns: jax.Array
    triangle: jax.Array
    size: jax.Array

    @classmethod
    def begin(cls, space, r, norm, capacity):
        unit = space.scale(1 / jnp.where(jnp.isfinite(norm), nonzero(norm), 1), r)
        basis = with_row(empty(unit, capacity + 1), 0, unit)
        turns = jnp.eye(capacity + 1, dtype=space.dtype)
        return cls(basis, turns, jnp.eye(capacity, dtype=space.dtype), jnp.zeros((), jnp.int32))

    def share(self):
        """The norm of the residual, in shares of that with which it began."""
        return abs(self.turns[self.size, 0])

    def solution(self, begun):
        """The coefficients of what makes the residual minimal."""
        capacity = len(self.triangle)
        right = jnp.where(jnp.arange(capacity) < self.size, begun * self.turns[:capacity, 0], 0)
        return jnp.pad(jax.scipy.linalg.solve_triangular(self.triangle, right.astype(self.turns.dtype)), (0, 1))

    def expanded(self, space, image):
        """With one more vector, and whether it is the last one: one that depends on the others adds nothing."""
        unit, coefficients, norm = next_vector(space, self.basis, image, jnp.zeros(2, jnp.uint32))
        least = BREAKDOWN * jnp.finfo(norm.dtype).eps * space.norm(image)
        column = product(self.turns, coefficients.at[self.size + 1].set(norm.astype(coefficients.dtype)))
        upper, lower = column[self.size], column[self.size + 1]
        length = jnp.hypot(abs(upper), abs(lower))
        is_empty = ~(length > least)
        turn = jnp.array([[jnp.conj(upper), jnp.conj(lower)], [-lower, upper]]) / nonzero(length)
        pair = jax.lax.dynamic_slice_in_dim(self.turns, self.size, 2)
        turns = jax.lax.dynamic_update_slice_in_dim(self.turns, product(turn, pair), self.size, 0)
        above = jnp.arange(len(self.triangle)) < self.size
        column = jnp.where(above, column[:-1], 0).at[self.size].set(length.astype(column.dtype))
        longer = Spanned(
            with_row(self.basis, self.size + 1, unit), turns, self.triangle.at[:, self.size].set(column), self.size + 1
        )
        return either(is_empty, self, longer), (norm == 0) | is_empty


class State(NamedTuple):
    """Of a system with one right-hand side of length 1."""

    b: Any
    x: Any
    r: Any
    spanned: Spanned
    norm: jax.Array
    begun: jax.Array  # the norm of r, with which the space began
    checks: jax.Array
    fault: jax.Array
    iterations: jax.Array
    matvecs: jax.Array
    code: jax.Array
    tolerance: jax.Array
    limit: jax.Array
    certainty: Certainty
