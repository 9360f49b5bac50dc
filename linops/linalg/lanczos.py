"""Thick-restart Lanczos: extreme eigenpairs of a Hermitian operator, as an algorithm for the driver.

Wu and Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems", SIAM J. Matrix Anal. 22 (2000).

It goes in rounds. The first ends when the wanted pairs have converged, and locks them: all that comes is orthogonal to
them. Each further round begins with random vectors and looks for what was missed, copies of a multiple eigenvalue
above all, of which a Krylov space has but one; the last round is the one that finds nothing.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from linops.iterate import maybe
from linops.krylov import (
    SYMMETRIC,
    Krylov,
    after,
    appended,
    asymmetry,
    begin,
    couplings,
    expand,
    noise,
    projected,
    rotated,
    row,
    shrink,
    with_row,
    zeros_like,
)
from linops.linalg.operands import rounding
from linops.precision import real_dtype

STRIDE = 5  # expansions between two looks at the projected matrix, at least; its cost grows faster than theirs
RESTARTED = 32  # times what products are off by: what restarts add to the rounding of products
SHORTEST_ROUND = 10  # products of a round that looks for what was missed, and at least
ROUND_SHARE = 5  # one such part of all those before
FLOOR = 2  # times what products are off by: less a bound of a residual is not asked to be
MARGIN = 0.8  # of a tolerance, for bounds: rounding makes residuals of products a little larger
APART = 16  # times what products are off by: what eigenvalues differ by that are told from each other
PATIENCE = 50  # restarts without progress, after which noise hides what is left
FALL = 0.9  # a part of the largest bound, to which it falls where there is progress


class Look(NamedTuple):
    """The eigenpairs of the projected matrix: of the first `count` values, ascending, the others are of no meaning."""

    values: jax.Array
    vectors: jax.Array
    bounds: jax.Array  # of residuals
    count: jax.Array
    order: jax.Array  # from the most wanted one on
    wanted: jax.Array
    converged: jax.Array


class State(NamedTuple):
    """The Krylov space, of which the first `locked` rows are held, and how far it is."""

    krylov: Krylov
    locked: jax.Array
    values: jax.Array  # of the rows that are locked
    tol: jax.Array
    norm: jax.Array  # the largest Ritz value seen, in modulus
    asymmetry: jax.Array  # the largest |Vᴴ A V - (Vᴴ A V)ᴴ| seen
    round: jax.Array
    before: jax.Array  # products before this round
    matvecs: jax.Array
    restarts: jax.Array
    bound: jax.Array  # the largest of a wanted pair at the last progress in this round
    outward: jax.Array  # how far out the wanted values have been in it
    progress: jax.Array  # restarts before that
    finished: jax.Array

    def is_symmetric(self, A):
        """Whether the matrix may be Hermitian."""
        return ~(self.asymmetry > A._unit**SYMMETRIC * self.norm)

    def is_suspect(self, A):
        """Whether it is less Hermitian than rounding explains: the reason, where nothing converges."""
        return self.asymmetry > math.sqrt(A._unit) * self.norm

    def is_noisy(self, A):
        """Whether products are seen to be off by more than they are known to."""
        return self.asymmetry > rounding(A, RESTARTED) * self.norm


@dataclasses.dataclass(frozen=True)
class ThickRestart:
    """k eigenpairs, `which` as SciPy names them, in bases of at most `ncv` vectors, of which `held` are given."""

    k: int
    which: str
    ncv: int
    held: int
    maxiter: int
    in_place: bool

    def begin(self, A, block, held, tol, seed):
        """From a block of vectors, and some to be held or None: trees with one more leading axis."""
        krylov = begin(A, self.ncv, block, seed, held)
        real = real_dtype(A.domain.dtype)
        none, zero = jnp.zeros((), jnp.int32), jnp.zeros((), real)
        return State(
            krylov=krylov,
            locked=krylov.size,
            values=jnp.zeros(self.ncv, real),
            tol=tol.astype(real),
            norm=zero,
            asymmetry=zero,
            round=none,
            before=none,
            matvecs=none,
            restarts=none,
            bound=zero + jnp.inf,
            outward=zero - jnp.inf,
            progress=none,
            finished=jnp.zeros((), bool),
        )

    def done(self, A, state):
        """Whether a round has found nothing more, no restart is left, or it is no Hermitian problem."""
        return state.finished | ~state.is_symmetric(A) | (state.restarts >= self.maxiter)

    def step(self, A, state):
        """Some expansions and a look; where a round is over, or the basis is full, the next start."""
        state = self._expanded(A, state)
        look, state = self.look(A, state)
        state = self._progressed(A, state, look)
        complete = state.krylov.size >= A.domain.size
        enough = jnp.where(state.round == 0, look.count >= self.k, state.matvecs - state.before >= _round_length(state))
        is_wanted, is_open = jnp.any(look.wanted), jnp.any(look.wanted & ~look.converged)
        over = ~is_open & (complete | enough | ((state.round > 0) & is_wanted))
        finished = over & (complete | ((state.round > 0) & ~is_wanted)) | ~jnp.isfinite(state.norm)
        finished |= state.is_noisy(A) & (state.restarts - state.progress >= PATIENCE)
        full = state.krylov.size + state.krylov.width > self.ncv
        state = state._replace(finished=finished)
        return maybe(~finished & (over | full), lambda state: self._restarted(A, state, look, over), state)

    def _expanded(self, A, state):
        """The state after as many expansions as come between two looks, and fit."""
        width, start = state.krylov.width, state.krylov.size
        first = state.locked + jnp.where(state.round == 0, self.k, _round_length(state))
        stride = jnp.clip(start - state.locked, 1, max(STRIDE, self.ncv // 16))  # of a start that is nearly there
        until = jnp.maximum(start + stride, first)

        def goes_on(krylov):
            return (krylov.size < until) & (krylov.size + width <= self.ncv)

        krylov = jax.lax.while_loop(goes_on, lambda krylov: expand(A._mv, A.domain, krylov), state.krylov)
        return state._replace(krylov=krylov, matvecs=state.matvecs + krylov.size - start)

    def look(self, A, state):
        """The eigenpairs of the projected matrix, without what is locked, and the state that knows of them."""
        krylov = state.krylov
        places = jnp.arange(self.ncv)
        active = (places >= state.locked) & (places < krylov.size)
        count = krylov.size - state.locked
        square = jnp.where(active[:, None] & active[None, :], projected(krylov), 0)
        T = (square + square.conj().T) / 2
        # What is not active gets eigenvalues beyond all others, so that they come last.
        reach = jnp.max(jnp.sum(jnp.abs(T), axis=0))
        values, vectors = jnp.linalg.eigh(T + jnp.diag(jnp.where(active, 0, jnp.where(reach > 0, 2 * reach, 1))))
        bounds = jnp.where(krylov.size >= A.domain.size, 0, couplings(krylov, vectors))
        valid = places < count
        norm = jnp.maximum(state.norm, jnp.max(jnp.where(valid, jnp.abs(values), 0)))
        tolerance = tolerances(A, state.tol, values, norm)
        converged = valid & (bounds <= MARGIN * tolerance)
        margin = jnp.maximum(APART * A._unit * norm, tolerance)  # of what is locked
        priority = _priority(self.which, values, count)
        first = priority < self.k
        wanted = valid & jnp.where(state.round == 0, first, self._beats(state, values, margin))
        order = jnp.argsort(jnp.where(wanted, priority, priority + 4 * self.ncv))
        state = state._replace(norm=norm, asymmetry=jnp.maximum(state.asymmetry, asymmetry(square)))
        return Look(values, vectors, bounds, count, order, wanted, converged), state

    def _progressed(self, A, state, look):
        """The state that knows whether bounds fall, or values go outward, by more than noise carries them.

        Where a pair emerges that was not seen before, bounds rise and values go outward.
        """
        bound = jnp.max(jnp.where(look.wanted, look.bounds, 0))
        outward = jnp.sum(jnp.where(look.wanted, _outward(self.which, look.values, look.count), 0))
        moves = outward > state.outward + self.k * state.asymmetry
        progresses = moves | (bound < FALL * state.bound) | (look.count < self.k)
        return state._replace(
            bound=jnp.where(progresses, bound, state.bound),
            outward=jnp.where(progresses, jnp.maximum(outward, state.outward), state.outward),
            progress=jnp.where(progresses, state.restarts, state.progress),
        )

    def _beats(self, state, values, margin):
        """Which values are more wanted than the worst of those that are locked."""
        places = jnp.arange(self.ncv)
        locked = (places >= self.held) & (places < state.locked)
        count = state.locked - self.held
        if self.which == "LM":
            size = jnp.sort(jnp.where(locked, -jnp.abs(state.values), jnp.inf))
            return jnp.abs(values) > -size[self.k - 1] + margin
        ascending = jnp.sort(jnp.where(locked, state.values, jnp.inf))
        high, low = of_each_end(self.which, self.k)
        beats = jnp.zeros(self.ncv, bool)
        if high:
            beats |= values > ascending[jnp.maximum(count - high, 0)] + margin
        if low:
            beats |= values < ascending[low - 1] - margin
        return beats

    def _restarted(self, A, state, look, over):
        """The state at a new round, with what has converged locked, or after a thick restart."""
        width, room = state.krylov.width, self.ncv - state.locked
        # As many as KrylovKit keeps, 3/5 of the basis and more when some have converged, and all that are wanted.
        kept = (3 * room + 2 * jnp.sum(look.converged, dtype=jnp.int32)) // 5
        kept = jnp.minimum(jnp.maximum(kept, self.k + 1), room - width)
        kept = jnp.where(over, jnp.sum(look.wanted, dtype=jnp.int32), kept)
        size = state.locked + kept
        places = jnp.arange(self.ncv)
        chosen = look.order[jnp.clip(places - state.locked, 0)]
        fresh = (places >= state.locked) & (places < size)
        vectors = jnp.where(fresh[None, :], look.vectors[:, chosen], jnp.diag(places < state.locked))
        krylov = shrink(state.krylov, vectors.astype(state.krylov.matrix.dtype), size, self.in_place)

        def anew(krylov):
            """The same with random vectors for its last block, and nothing that couples to it."""
            seed = after(krylov.seed, width)
            block = jax.vmap(lambda i: noise(A.domain, after(krylov.seed, i)))(jnp.arange(width))
            nothing = zeros_like(row(krylov.basis, 0))
            basis = jax.lax.fori_loop(size, size + width, lambda i, b: with_row(b, i, nothing), krylov.basis)
            basis = appended(A.domain, basis, size, block, seed)
            rows = jnp.arange(self.ncv + width)[:, None]
            return Krylov(basis, jnp.where(rows < size, krylov.matrix, 0), size, after(seed, width))

        return state._replace(
            krylov=maybe(over, anew, krylov),
            locked=jnp.where(over, size, state.locked),
            values=jnp.where(fresh & over, look.values[chosen], state.values),
            round=state.round + over,
            before=jnp.where(over, state.matvecs, state.before),
            restarts=state.restarts + ~over,
            bound=jnp.where(over, jnp.inf, state.bound),
            outward=jnp.where(over, -jnp.inf, state.outward),
            progress=jnp.where(over, state.restarts, state.progress),
        )

    def estimates(self, A, state):
        """Bounds of the residuals of the k most wanted pairs, and what these are compared with."""
        values, bounds, _ = self._best(A, state)
        return bounds, tolerances(A, state.tol, values, state.norm)

    def finish(self, A, state):
        """The same pairs, with values and residual norms of real products, one for each.

        Returns values, vectors as rows, residual norms, and how small these were to be.
        """
        _, _, coefficients = self._best(A, state)
        coefficients = jnp.pad(coefficients.T, ((0, 0), (0, state.krylov.width)))
        rows = rotated(state.krylov.basis, coefficients, in_place=False)
        values, rows, residuals = _mapped(lambda v: _pair(A, v), rows, _divisor(self.k))
        reached = rounding(A, RESTARTED) * jnp.maximum(state.norm, jnp.max(jnp.abs(values)))
        return values, rows, residuals, jnp.maximum(tolerances(A, state.tol, values, state.norm), reached)

    def _best(self, A, state):
        """Values, bounds and coefficients of the most wanted pairs."""
        look, _ = self.look(A, state)
        places = jnp.arange(self.ncv)
        locked = (places >= self.held) & (places < state.locked)
        # Of what is not locked, in a later round, what is seen to be more wanted: not a copy of the last one.
        others = (places < look.count) & ((state.round == 0) | look.wanted)
        known = jnp.concatenate([locked, others])
        values = jnp.where(known, jnp.concatenate([state.values, look.values]), jnp.inf)
        bounds = jnp.where(known, jnp.concatenate([jnp.zeros_like(look.bounds), look.bounds]), jnp.inf)
        ranks = jnp.argsort(jnp.argsort(values))
        priority = _priority(self.which, jnp.sort(values), jnp.sum(known))[ranks]
        chosen = jnp.argsort(priority)[: self.k]
        chosen = chosen[jnp.argsort(values[chosen])]
        coefficients = jnp.concatenate([jnp.eye(self.ncv), look.vectors], axis=1)
        return values[chosen], bounds[chosen], coefficients[:, chosen]


def _round_length(state):
    return jnp.maximum(SHORTEST_ROUND, state.before // ROUND_SHARE)


def tolerances(A, tol, values, norm):
    """How small residuals are to be: relative to the eigenvalue as in ARPACK, and not below what products allow."""
    eps = jnp.finfo(values.dtype).eps
    return jnp.maximum(tol * jnp.maximum(jnp.abs(values), eps ** (2 / 3) * norm), FLOOR * A._unit * norm)


def of_each_end(which, k):
    """How many values are wanted of the largest, and of the smallest."""
    return {"LA": (k, 0), "SA": (0, k), "BE": (k - k // 2, k // 2)}[which]


def _priority(which, values, count):
    """The place of each of the first `count` values, which ascend, in the order in which they are wanted."""
    low = jnp.arange(len(values))
    high = count - 1 - low
    if which == "LM":
        order = jnp.argsort(-jnp.abs(_or(0, values, count)))
        priority = jnp.argsort(order)
    else:
        priority = {"LA": high, "SA": low, "BE": jnp.minimum(2 * high, 2 * low + 1)}[which]
    return jnp.where(low < count, priority, 2 * len(values))


def _outward(which, values, count):
    """How far out each of the first `count` values, which ascend, is on the side on which it is wanted."""
    low = jnp.arange(len(values))
    sides = {"LA": values, "SA": -values, "LM": jnp.abs(values), "BE": jnp.where(2 * low < count, -values, values)}
    return sides[which]


def _or(other, values, count):
    """The first `count` values, and another number in place of the rest."""
    return jnp.where(jnp.arange(len(values)) < count, values, other)


def _pair(A, v):
    """The Rayleigh quotient of a vector, the vector at unit length, and its residual norm."""
    v = A.domain.scale(1 / A.domain.norm(v), v)
    product = A._mv(v)
    value = A.domain.inner(v, product).real
    return value, v, A.domain.norm(jax.tree.map(lambda p, u: p - (value * u).astype(p.dtype), product, v))


def _mapped(function, rows, size):
    """`function` of each row, so many at once: `jax.lax.map` with a batch_size takes no leaf of size zero."""
    blocks = jax.tree.map(lambda leaf: leaf.reshape(len(leaf) // size, size, *leaf.shape[1:]), rows)
    found = jax.lax.map(jax.vmap(function), blocks)
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0] * size, *leaf.shape[2:]), found)


def _divisor(k, most=8):
    """The largest number up to `most` that divides k."""
    return max(d for d in range(1, most + 1) if k % d == 0)
