"""Least-squares problems of one right-hand side and many damps, from the Krylov space of A, which they share."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from linops.krylov import empty, laid, with_row, zeros_like
from linops.linalg.gradients import orthogonalized, unit
from linops.linalg.records import CONVERGED, STOPPED, Record
from linops.linalg.rotations import CONDITION, GOES_ON, TIME, Rotations, Tolerances
from linops.linalg.solves import combined, either, nonzero
from linops.linalg.systems import Right
from linops.watching import watched


def from_one_space(A, window, right, damps, bounds, rules):
    """Right-hand sides, one for each damp, guesses that should be the solutions, the rules, iterations and products."""
    given = jax.lax.stop_gradient((right.rows, damps, bounds, rules))
    state, _ = watched(_OneSpace(window), jax.lax.stop_gradient(A), given, _Glance(), A._listeners(), with_adjoint=True)
    count = len(damps)
    rows = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape[1:])), right.rows)
    guesses = jax.vmap(lambda x: A.domain.scale(state.size, x))(state.x)
    rules = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count,)), rules)._replace(scale=state.rotations.scale)
    return Right(rows, True, right.as_array), guesses, rules, (state.iterations, state.matvecs)


class _State(NamedTuple):
    """u, v and alpha are those of A; x, h, hbar and rotations have rows, one for each damp."""

    x: Any
    h: Any
    hbar: Any
    rotations: Rotations
    istop: jax.Array
    u: Any
    v: Any
    alpha: jax.Array
    recent: Any
    iterations: jax.Array
    matvecs: jax.Array
    size: jax.Array
    damps: jax.Array
    tolerances: Tolerances


@dataclasses.dataclass(frozen=True)
class _OneSpace:
    """LSMR, of which the rotations alone know the damp."""

    window: int

    def begin(self, A, rows, damps, bounds, rules):
        b = laid(A @ A.H, jax.tree.map(lambda leaf: leaf[0], rows))
        u, size = unit(A.codomain, b)
        v, alpha = unit(A.domain, A.H._mv(u))
        one, none = jnp.ones_like(damps), jnp.zeros((), jnp.int32)
        reference = one[0] if rules.reference is None else rules.reference[0] / nonzero(size)
        tolerances = Tolerances(bounds.rtol, rules.atol[0], rules.conlim[0], reference, bounds.iterations)
        h = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(damps), *leaf.shape)), v)
        zero = zeros_like(h)
        istop = jnp.where(size * alpha > 0, GOES_ON, TIME).astype(jnp.int32) + 0 * none
        return _State(
            zero, h, zero, Rotations.begin(alpha * one, one), jnp.full(len(damps), istop), u, v, alpha,
            with_row(empty(v, self.window), 0, v) if self.window else None, none, none + 1, size, damps, tolerances,
        )  # fmt: skip

    def step(self, A, s):
        u, beta = unit(A.codomain, combined(A.codomain, -s.alpha, s.u, A._mv(s.v)))
        v = combined(A.domain, -beta, s.v, A.H._mv(u))
        v = orthogonalized(A.domain, s.recent, v)
        v, alpha = unit(A.domain, v)
        iterations = s.iterations + 1

        def of_damp(x, h, hbar, rotations, damp):
            rotations, step = rotations.after(alpha, beta, damp)
            hbar = combined(A.domain, step.on_bar, hbar, h)
            x = combined(A.domain, step.on_x, hbar, x)
            istop, _, _ = rotations.ends(A, x, iterations, s.tolerances)
            return x, combined(A.domain, step.on_h, h, v), hbar, rotations, istop

        before = s.x, s.h, s.hbar, s.rotations, s.istop
        after = jax.vmap(of_damp)(*before[:4], s.damps)
        x, h, hbar, rotations, istop = either(s.istop == GOES_ON, after, before)
        # A condition number is looked at when the solution is: these are of spaces that end where b has no more.
        recent = with_row(s.recent, iterations % self.window, v) if self.window else None
        return s._replace(
            x=x, h=h, hbar=hbar, rotations=rotations, istop=istop, u=u, v=v, alpha=alpha, recent=recent,
            iterations=iterations, matvecs=s.matvecs + 2,
        )  # fmt: skip

    def done(self, A, s):
        return jnp.all(s.istop != GOES_ON)


@dataclasses.dataclass(frozen=True)
class _Glance:
    def __call__(self, A, s):
        converged = (s.istop != GOES_ON) & (s.istop != TIME) & (s.istop != CONDITION)
        code = jnp.where(converged, CONVERGED, STOPPED).astype(jnp.int32)
        norms = s.size * s.rotations.gradient
        return Record(converged, code, s.iterations, s.matvecs, norms, jnp.zeros_like(norms))
