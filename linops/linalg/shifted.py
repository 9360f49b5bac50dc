"""All of (A + s) x = b, for some shifts s, from the Krylov space of one of them, which they share."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from linops.krylov import laid, zeros_like
from linops.linalg.records import CONVERGED, LIMIT, STOPPED, Record
from linops.linalg.solves import RUNNING, combined, either
from linops.linalg.systems import Right
from linops.watching import watched


def from_one_space(operators, right, shifts, bounds):
    """Right-hand sides, one for each shift, guesses that should be the solutions, and iterations and products."""
    operators, rows, shifts = jax.lax.stop_gradient((operators, right.rows, shifts))
    A = operators[0]
    state, _ = watched(_Shifted(), operators, (rows, shifts, bounds), _Glance(), A._listeners())
    count = len(shifts)
    rows = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape[1:])), right.rows)
    return Right(rows, True, right.as_array), state.x, (state.iterations, state.iterations)


class _State(NamedTuple):
    """r and p are those of the smallest shift; x has rows, and directions, one for each."""

    x: Any
    directions: Any
    r: Any
    p: Any
    rho: jax.Array
    length: jax.Array
    beta: jax.Array
    ratios: jax.Array  # of the residual of each, a multiple of r, now and before
    factors: jax.Array  # the multiples
    iterations: jax.Array
    code: jax.Array
    smallest: jax.Array
    shifts: jax.Array  # above the smallest
    tolerance: jax.Array
    limit: jax.Array


@dataclasses.dataclass(frozen=True)
class _Shifted:
    """Conjugate gradients for the smallest shift; the residuals of the others are multiples of its own.

    Jegerlehner, "Krylov space solvers for shifted linear systems", hep-lat/9612014 (1996).
    """

    def begin(self, operators, rows, shifts, bounds):
        space = operators[0].domain
        b = laid(operators[0], jax.tree.map(lambda leaf: leaf[0], rows))
        size = space.norm(b)
        tolerance = jnp.maximum(bounds.rtol * size, bounds.atol)
        one, none = jnp.ones((), shifts.dtype), jnp.zeros((), jnp.int32)
        directions = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(shifts), *leaf.shape)), b)
        return _State(
            zeros_like(directions), directions, b, b, space.inner(b, b).real, one, 0 * one, jnp.ones_like(shifts),
            jnp.ones_like(shifts), none, jnp.where(size > tolerance, RUNNING, CONVERGED).astype(jnp.int32),
            jnp.min(shifts), shifts - jnp.min(shifts), tolerance, bounds.iterations,
        )  # fmt: skip

    def step(self, operators, s):
        space = operators[0].domain
        product = combined(space, s.smallest, s.p, operators[0]._mv(s.p))
        curvature = space.inner(s.p, product).real
        length = s.rho / curvature
        ratios = 1 / (1 + length * s.shifts + length * s.beta / s.length * (1 - s.ratios))
        r = combined(space, -length, product, s.r)
        rho = space.inner(r, r).real
        beta, factors = rho / s.rho, s.factors * ratios
        x = jax.vmap(functools.partial(combined, space))(length * ratios, s.directions, s.x)
        directions = jax.vmap(lambda a, b, p: combined(space, a, r, space.scale(b, p)))(
            factors, beta * ratios**2, s.directions
        )
        p = combined(space, beta, s.p, r)
        ends = [
            (~(curvature > 0), STOPPED),  # what it is will be seen when the residuals are computed
            (space.norm(r) <= s.tolerance, CONVERGED),
            (s.iterations + 1 >= s.limit, LIMIT),
        ]
        code = jnp.select(*zip(*ends, strict=True), RUNNING).astype(jnp.int32)
        return s._replace(
            x=either(curvature > 0, x, s.x), directions=directions, r=r, p=p, rho=rho, length=length, beta=beta,
            ratios=ratios, factors=factors, iterations=s.iterations + 1, code=code,
        )  # fmt: skip

    def done(self, operators, state):
        return state.code != RUNNING


@dataclasses.dataclass(frozen=True)
class _Glance:
    def __call__(self, operators, state):
        norm = operators[0].domain.norm(state.r)
        return Record(norm <= state.tolerance, state.code, state.iterations, state.iterations, norm, state.tolerance)
