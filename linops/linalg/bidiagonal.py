"""Restarted Golub-Kahan bidiagonalization of a tall operator: the largest singular triplets, one or more of a value."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from linops import krylov
from linops.iterate import maybe
from linops.linalg.operands import rounding

STRIDE = 5  # expansions between two looks at the singular values of B
PROBE = 10  # expansions at least from a random start, before nothing new is believed to be there
DIGITS = 8  # times eps of the norm, beside sums of random sign: less is rounding


# The algorithm.

SEARCHING, CLAIMING, PROBING, FOUND = range(4)


class _State(NamedTuple):
    """Golub-Kahan spaces, the singular vectors and values of B, and estimates of their residuals.

    What is searched for converges (claiming), and the search goes on from a random start (probing), until the next
    value is seen to lie below. Where one turns up, that is more than `before` in sum, it is probed again.
    """

    spaces: krylov.GolubKahan
    left: jax.Array
    values: jax.Array
    right: jax.Array
    residuals: jax.Array
    phase: jax.Array
    before: jax.Array
    restarts: jax.Array
    matvecs: jax.Array
    tol: jax.Array

    @property
    def norm(self):
        """The largest singular value seen, NaN where a product was not finite."""
        finite = jnp.all(jnp.isfinite(self.spaces.matrix)) & jnp.isfinite(self.spaces.residual)
        return jnp.where(finite, self.values[0], jnp.nan)

    @property
    def finished(self):
        """Whether all that is searched for was found, and a random start found no more."""
        return self.phase == FOUND


@dataclasses.dataclass(frozen=True)
class Search:
    """Restarted Golub-Kahan for the `found` largest singular triplets of a tall operator."""

    wanted: int  # the last ones of those found
    found: int
    capacity: int
    maxiter: int
    in_place: bool

    def begin(self, A, v, seed, tol):
        v = krylov.laid(A.H @ A, v)
        spaces = krylov.begin_golub_kahan(A._mv, A.domain, A.codomain, self.capacity, v, seed)
        small = jnp.zeros((self.capacity, self.capacity), spaces.matrix.dtype)
        values, zero = jnp.zeros(self.capacity, tol.dtype), jnp.zeros((), jnp.int32)
        phase = jnp.full((), SEARCHING, jnp.int32)
        return _State(spaces, small, values, small, values + jnp.inf, phase, values[0], zero, zero, tol)

    def step(self, A, state):
        spaces = self._with_room(A, state)
        until = jnp.minimum(self.capacity, spaces.size + max(STRIDE, self.capacity // 16))
        grown = jax.lax.while_loop(
            lambda spaces: spaces.size < until,
            lambda spaces: krylov.expand_golub_kahan(A._mv, A.H._mv, A.domain, A.codomain, spaces),
            spaces,
        )
        matvecs = state.matvecs + 2 * (grown.size - spaces.size)
        state = state._replace(spaces=grown, matvecs=matvecs, restarts=state.restarts + (grown.size == self.capacity))
        return self._judged(A, self._looked_at(state))

    def done(self, A, state):
        return state.finished | (state.restarts >= self.maxiter) | ~jnp.isfinite(state.norm)

    def tolerance(self, A, state):
        """What residual norms may be, of each value."""
        return jnp.maximum(state.tol * state.values, rounding(A, DIGITS) * state.values[0])

    def _with_room(self, A, state):
        """The spaces, restarted where they are full, or with a random start where all seems found."""
        claiming = state.phase == CLAIMING
        converged = jnp.sum(state.residuals <= self.tolerance(A, state) / 2)
        kept = jnp.clip((3 * self.capacity + 2 * converged) // 5, self.found, self.capacity - 1)  # KrylovKit's rule
        kept = jnp.where(claiming, self.found, kept).astype(jnp.int32)
        used = jnp.arange(self.capacity) < kept
        left, right = (jnp.where(used, vectors, 0) for vectors in (state.left, state.right))

        def shrunk(spaces):
            return krylov.shrink_golub_kahan(spaces, left, right, kept, self.in_place)

        spaces = maybe(claiming | (state.spaces.size == self.capacity), shrunk, state.spaces)
        return maybe(claiming, functools.partial(krylov.restart_golub_kahan, A.domain), spaces)

    def _looked_at(self, state):
        """With the singular vectors of B, once it is large enough to have all that is searched for."""

        def look():
            left, values, right = krylov.singular_vectors(state.spaces)
            residuals = krylov.couplings_golub_kahan(state.spaces, left)
            beyond = jnp.arange(self.capacity) >= state.spaces.size
            return left, values, right, jnp.where(beyond, jnp.inf, residuals)

        known = state.left, state.values, state.right, state.residuals
        left, values, right, residuals = jax.lax.cond(state.spaces.size >= self.found, look, lambda: known)
        return state._replace(left=left, values=values, right=right, residuals=residuals)

    def _judged(self, A, state):
        """With the phase that is next. Half of the tolerance is for what a random start leaves out."""
        size, values, residuals = state.spaces.size, state.values, state.residuals
        tolerance, full = self.tolerance(A, state), size == self.capacity
        converged = jnp.all((residuals <= tolerance / 2)[: self.found])
        after, last = min(self.found, self.capacity - 1), self.found - 1
        below = (size >= self.found + PROBE) & (values[after] + 2 * residuals[after] < values[last])
        total = jnp.sum(values[: self.found])
        new = total > state.before + jnp.sum(tolerance[: self.found])
        probing = (state.phase == CLAIMING) | (state.phase == PROBING)
        probed = probing & converged & (below | full)
        claims = converged & ~probing | probed & new
        exhausted = size == A.shape[1]
        phase = jnp.select(
            [exhausted | (probed & ~new), claims, probing & ~full],
            [FOUND, CLAIMING, PROBING],
            SEARCHING,
        )
        return state._replace(phase=phase.astype(jnp.int32), before=jnp.where(claims, total, state.before))

    def estimates(self, A, state):
        """Bounds of the residuals of the wanted triplets, and what these are compared with."""
        return self._wanted(state.residuals), self._wanted(self.tolerance(A, state))

    def finish(self, A, state):
        """The wanted values, ascending, left and right vectors as rows, residual norms of real products, tolerances."""
        values, left, right = (self._wanted(a) for a in (state.values, state.left.T, state.right.T))
        left = krylov.rotated(state.spaces.left, left, in_place=False)
        right = krylov.rotated(state.spaces.right, jnp.pad(right, ((0, 0), (0, 1))), in_place=False)

        def residual(triplet):
            u, s, v = triplet
            forward = jax.tree.map(lambda a, b: a - s.astype(b.dtype) * b, A._mv(v), u)
            backward = jax.tree.map(lambda a, b: a - s.astype(b.dtype) * b, A.H._mv(u), v)
            return jnp.maximum(A.codomain.norm(forward), A.domain.norm(backward))

        residuals = jax.lax.map(residual, (left, values, right)).astype(values.dtype)
        return values, (left, right), residuals, self._wanted(self.tolerance(A, state))

    def _wanted(self, rows):
        """Of rows that descend the wanted ones, ascending."""
        return rows[self.found - self.wanted : self.found][::-1]
