"""Restarted Golub-Kahan bidiagonalization of a tall operator: the largest singular triplets, one or more of a value."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from linops import krylov
from linops.iterate import compute, iterate, maybe
from linops.linalg.records import CONVERGED, LIMIT, NOT_FINITE, ROUNDING, STOPPED, Record

STRIDE = 5  # expansions between two looks at the singular values of B
PROBE = 10  # expansions at least from a random start, before nothing new is believed to be there


def rounding(A):
    """What rounding in products with A comes to, relative to the norm of A: of sums of random sign."""
    return float(jnp.finfo(A.dtype).eps) * (8 + math.sqrt(max(A.shape)) / 4)


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
    cycles: jax.Array
    matvecs: jax.Array
    tol: jax.Array
    maxiter: jax.Array


@dataclasses.dataclass(frozen=True)
class Search:
    """Restarted Golub-Kahan for the `found` largest singular triplets of a tall operator."""

    wanted: int  # the last ones of those found
    found: int
    capacity: int
    in_place: bool

    def begin(self, A, v, key, tol, maxiter):
        start, key = jax.random.split(key)
        v = A.domain.draw(start) if v is None else v
        spaces = krylov.begin_golub_kahan(A.domain, A.codomain, self.capacity, v, key)
        small = jnp.zeros((self.capacity, self.capacity), spaces.matrix.dtype)
        values, zero = jnp.zeros(self.capacity, tol.dtype), jnp.zeros((), jnp.int32)
        phase = jnp.full((), SEARCHING, jnp.int32)
        return _State(spaces, small, values, small, values + jnp.inf, phase, values[0], zero, zero, tol, maxiter)

    def step(self, A, state):
        spaces = self._with_room(A, state)
        until = jnp.minimum(self.capacity, spaces.size + max(STRIDE, self.capacity // 16))
        grown = jax.lax.while_loop(
            lambda spaces: spaces.size < until,
            lambda spaces: krylov.expand_golub_kahan(A._mv, A.H._mv, A.domain, A.codomain, spaces),
            spaces,
        )
        matvecs = state.matvecs + 2 * (grown.size - spaces.size)
        state = state._replace(spaces=grown, matvecs=matvecs, cycles=state.cycles + (grown.size == self.capacity))
        return self._judged(A, self._looked_at(state))

    def done(self, A, state):
        return (state.phase == FOUND) | (state.cycles >= state.maxiter) | ~_is_finite(state)

    def tolerance(self, A, state):
        """What residual norms may be, of each value."""
        return jnp.maximum(state.tol * state.values, rounding(A) * state.values[0])

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


def _is_finite(state):
    return jnp.all(jnp.isfinite(state.spaces.matrix)) & jnp.isfinite(state.spaces.residual)


# What it comes to.


@dataclasses.dataclass(frozen=True)
class Result:
    """Triplets of the last state, as they are returned, and the record."""

    search: Search
    wide: bool
    trees: bool
    marked: bool  # what is not converged as NaN

    def __call__(self, A, state):
        search, spaces = self.search, state.spaces
        chosen = slice(search.found - search.wanted, search.found)
        values, tolerance = (a[chosen][::-1] for a in (state.values, search.tolerance(A, state)))
        left = krylov.rotated(spaces.left, state.left[:, chosen][:, ::-1].T, in_place=False)
        right = krylov.rotated(spaces.right, _padded(state.right[:, chosen][:, ::-1].T), in_place=False)

        def residual(triplet):
            u, s, v = triplet
            forward = jax.tree.map(lambda a, b: a - s.astype(b.dtype) * b, A._mv(v), u)
            backward = jax.tree.map(lambda a, b: a - s.astype(b.dtype) * b, A.H._mv(u), v)
            return jnp.maximum(A.codomain.norm(forward), A.domain.norm(backward))

        residuals = jax.lax.map(residual, (left, values, right)).astype(values.dtype)
        record = self._record(state, residuals, tolerance)
        if self.marked:
            left, values, right = (_marked(rows, record.converged) for rows in (left, values, right))
        u, v = (right, left) if self.wide else (left, right)
        return (u, values, v, record) if self.trees else (_rows(u, A.dtype).T, values, _rows(v, A.dtype).conj(), record)

    def _record(self, state, residuals, tolerance):
        converged = residuals <= tolerance
        ends = [
            (~_is_finite(state) | ~jnp.all(jnp.isfinite(residuals)), NOT_FINITE),
            (jnp.all(converged), CONVERGED),
            (state.phase == FOUND, ROUNDING),
            (state.cycles >= state.maxiter, LIMIT),
        ]
        code = jnp.select([is_so for is_so, _ in ends], [code for _, code in ends], STOPPED).astype(jnp.int32)
        return Record(converged, code, state.cycles, state.matvecs + 2 * len(residuals), residuals, tolerance)


def _padded(rows):
    """Coefficients for a basis of one vector more."""
    return jnp.pad(rows, ((0, 0), (0, 1)))


def _marked(rows, known):
    """Rows that are NaN where nothing is known."""
    return jax.tree.map(lambda leaf: jnp.where(known.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, jnp.nan), rows)


def _rows(basis, dtype):
    """The rows as an array of shape (rows, size)."""
    leaves = [leaf.reshape(leaf.shape[0], -1).astype(dtype) for leaf in jax.tree.leaves(basis)]
    return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves, axis=1)


def run(result, A, operands, watch=None):
    return compute(result, A, iterate(result.search, A, *operands, watch=watch))


@dataclasses.dataclass(frozen=True)
class Glance:
    """The estimates of a state as a record."""

    search: Search

    def __call__(self, A, state):
        search = self.search
        chosen = slice(search.found - search.wanted, search.found)
        residuals, tolerance = (a[chosen][::-1] for a in (state.residuals, search.tolerance(A, state)))
        converged = residuals <= tolerance
        code = jnp.where(jnp.all(converged), CONVERGED, STOPPED)
        return Record(converged, code, state.cycles, state.matvecs, residuals, tolerance)
