"""The algorithm of `linops.linalg.lsmr`, and the operator [A; damp I] of which it solves least-squares problems."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from linops.algebra.operator import Conjugate, Operator
from linops.krylov import empty, with_row, zeros_like
from linops.linalg.operands import with_nan
from linops.linalg.records import CONVERGED, ILL_CONDITIONED, LIMIT, NOT_FINITE, ROUNDING
from linops.linalg.rotations import (
    BEGINNING,
    CONDITION,
    CONDITION_AT_WORST,
    GOES_ON,
    LEAST,
    LEAST_AT_BEST,
    NO_BETTER,
    SOLVED,
    SOLVED_AT_BEST,
    TIME,
    Rotations,
    Tolerances,
)
from linops.linalg.solves import (
    RENEWED,
    RUNNING,
    Columns,
    Solver,
    combined,
    either,
    linear_solution,
    nonzero,
    solutions,
)
from linops.space import combination, inner_products, space_of

CODES = {
    **dict.fromkeys((BEGINNING, SOLVED, LEAST, SOLVED_AT_BEST, LEAST_AT_BEST), CONVERGED),
    CONDITION: ILL_CONDITIONED,
    CONDITION_AT_WORST: ILL_CONDITIONED,
    TIME: LIMIT,
    NO_BETTER: ROUNDING,
    GOES_ON: RUNNING,
}


class Damped(Operator):
    """[A; damp I], from the domain of A to pairs of its codomain and of its domain."""

    operator: Operator
    damp: jax.Array

    domain = property(lambda self: self.operator.domain)
    codomain = property(lambda self: space_of((self.operator.codomain.struct, self.domain.struct), "a pair"))

    def _mv(self, v):
        return self.operator._mv(v), self.domain.scale(self.damp, v)

    def _mv_transposed(self, pair):
        w, v = pair
        return self.domain.add(self.operator._mv_transposed(w), self.domain.scale(self.damp, v))


class Rules(NamedTuple):
    """Of each right-hand side: SciPy's `atol` and `conlim`.

    `reference` is the norm that `btol` is relative to, None for its own, and `scale` what is known of the norm of A.
    """

    atol: jax.Array
    conlim: jax.Array
    reference: Any = None
    scale: Any = None


class Found(NamedTuple):
    """What SciPy returns beside x and the number of iterations."""

    istop: jax.Array
    normr: jax.Array
    normar: jax.Array
    norma: jax.Array
    conda: jax.Array


@dataclasses.dataclass(frozen=True)
class MinimalGradients(Solver):
    """A step multiplies v and u, or, to compute the residual and Aᴴ times it, x and that: one product of each kind.

    It begins with that, of a guess or of zero, and goes on with the residual whenever it is not what it was taken for.
    """

    window: int = 0  # how many vectors v each new one is orthogonalized against
    adjoint: bool = False  # solve the system of the adjoint

    def system(self, A, damp=None, rules=None):
        A = A if damp is None else Damped(A, damp)
        return A.H if self.adjoint else A

    def details(self, size, s):
        r = s.rotations
        return Found(s.istop, size * r.norm, size * r.gradient, r.frobenius, r.condition)

    def begin(self, operators, given, damp=None, rules=None):
        A, b, zero = self.system(operators[0], damp), given.b, jnp.zeros((), jnp.int32)
        number = jnp.zeros_like(given.tolerance)
        x = zeros_like(A.H._mv(b)) if given.x is None else given.x
        reference = number + 1 if rules.reference is None else rules.reference / given.size
        tolerances = Tolerances(given.tolerance, rules.atol, rules.conlim, reference, given.limit)
        rotations = Rotations.begin(number, number + 1)
        if rules.scale is not None:
            rotations = rotations._replace(scale=rules.scale)
        always = jnp.ones((), bool)
        return State(
            b, x, b, x, x, x, empty(x, self.window) if self.window else None, rotations, number + jnp.inf, always,
            always, zero, zero, zero, zero + GOES_ON, zero + RUNNING, number, number, tolerances, damp,
        )  # fmt: skip

    def step(self, operators, s):
        A = self.system(operators[0], s.damp)
        forward = A._mv(either(s.checks, s.x, s.v))
        residual = jax.tree.map(jnp.subtract, s.b, forward)
        u, beta = unit(A.codomain, either(s.checks, residual, combined(A.codomain, -s.rotations.alpha, s.u, forward)))
        back = A.H._mv(u)
        v = combined(A.domain, -beta, s.v, back)
        v = orthogonalized(A.domain, s.recent, v)
        v, alpha = unit(A.domain, either(s.checks, back, v))
        after = either(s.checks, self._checked(A, s, u, v, alpha, beta), self._stepped(A, s, u, v, alpha, beta))
        return after._replace(matvecs=s.matvecs + 2)

    def _stepped(self, A, s, u, v, alpha, beta):
        rotations, step = s.rotations.after(alpha, beta)
        hbar = combined(A.domain, step.on_bar, s.hbar, s.h)
        x = combined(A.domain, step.on_x, hbar, s.x)
        iterations, since = s.iterations + 1, s.since + 1
        istop, _, _ = rotations.ends(A, x, iterations, s.tolerances)
        due = (istop != GOES_ON) | ~(jnp.isfinite(rotations.norm) & jnp.isfinite(rotations.gradient))
        recent = with_row(s.recent, iterations % self.window, v) if self.window else None
        return s._replace(
            x=x, u=u, v=v, h=combined(A.domain, step.on_h, s.h, v), hbar=hbar, recent=recent, rotations=rotations,
            due=due, checks=due | (since >= RENEWED), since=since, iterations=iterations,
        )  # fmt: skip

    def _checked(self, A, s, u, v, alpha, beta):
        """The residual and Aᴴ times it computed anew: the end, or a new beginning with them."""
        before, gradient = s.rotations, alpha * beta
        known = before._replace(norm=beta, gradient=gradient, scale=jnp.maximum(before.scale, alpha))
        istop, residual, tolerance = known.ends(A, s.x, s.iterations, s.tolerances)
        renews = s.due | (beta > 2 * before.norm) | (gradient > 2 * before.gradient)
        istop = jnp.where((istop == GOES_ON) & renews & (gradient > s.checked / 2), NO_BETTER, istop)
        is_solution = (istop == SOLVED) | (istop == LEAST)
        is_zero = A.domain.norm(s.x) == 0  # and not a guess from the space of many damps
        istop = jnp.where((s.iterations == 0) & is_zero & is_solution, BEGINNING, istop).astype(jnp.int32)
        code = jnp.select([istop == case for case in CODES], list(CODES.values()))
        code = jnp.where(jnp.isfinite(beta) & jnp.isfinite(alpha), code, NOT_FINITE).astype(jnp.int32)
        fresh = Rotations.begin(alpha, beta).with_norms(known)
        u, v, h, hbar, rotations = either(renews, (u, v, v, zeros_like(s.hbar), fresh), (s.u, s.v, s.h, s.hbar, before))
        recent = either(renews, with_row(empty(v, self.window), 0, v), s.recent) if self.window else None
        never = jnp.zeros_like(s.due)
        return s._replace(
            u=u, v=v, h=h, hbar=hbar, recent=recent, rotations=either(code == RUNNING, rotations, known),
            checked=jnp.where(renews, gradient, s.checked), checks=never, due=never, since=jnp.zeros_like(s.since),
            istop=istop, code=code, norm=residual, tolerance=tolerance,
        )  # fmt: skip

    # Derivatives, by the system (r + A x, Aᴴ r) = (b, 0): where A, of any damping a part, has as many rows as columns,
    # r is the residual; else x is in the place of r, of the system of Aᴴ. Its condition number is that of A.

    def change(self, algorithm, x, record, details, primals, tangents):
        (operators, (rows, _, bounds, damp, rules)), (changes, (change, _, _, damps, _)) = primals, tangents
        A, dA = operators[0], changes[0]
        more = 10 * min(A.shape)
        bounds = bounds._replace(iterations=jnp.maximum(bounds.iterations, more))
        rules = Rules(rules.atol, rules.conlim)
        solve = functools.partial(_saddle, self, bounds=bounds, rules=rules)
        if damp is not None or A.shape[0] >= A.shape[1]:
            r = jax.tree.map(jnp.subtract, rows, jax.vmap(functools.partial(self.product, A))(x, damp))
            _, forward, backward = self._moved((A, damp), (dA, damps), x, r)
            return solve(A, damp, jax.tree.map(jnp.subtract, change, forward), jax.tree.map(jnp.negative, backward))[1]
        # x = Aᴴ z, and A x = b.
        operands = x, None, bounds, None, rules
        z, _, found = solutions(Columns(MinimalGradients(self.window)), (A.H, None), operands)
        z = with_nan(z, _is_solved(found.istop) & _is_solved(details.istop))
        _, forward, backward = self._moved((A, damp), (dA, damps), x, z)
        return solve(A.H, None, backward, jax.tree.map(jnp.subtract, change, forward))[0]

    def _moved(self, given, changes, x, r):
        """DA x and dAᴴ r."""

        def products(given):
            A, damps = given

            def of_row(x, r, damp):
                S = self.system(A, damp)
                return S._mv(x), S.H._mv(r)

            return jax.vmap(of_row)(x, r, damps)

        return None, *jax.jvp(products, (given,), (changes,))[1]


def _saddle(solver, A, damp, f, g, *, bounds, rules):
    """(r, x) with r + A x = f and Aᴴ r = g, as a function that is linear in f and g."""

    def products(pair):
        def of_row(r, x, damp):
            S = solver.system(A, damp)
            return jax.tree.map(jnp.add, r, S._mv(x)), S.H._mv(r)

        return jax.vmap(of_row)(*pair, damp)

    def solution(A):
        def solve(_, pair):
            f, g = pair
            operators = A, None
            adjoint = Columns(MinimalGradients(solver.window, adjoint=True))
            w, _, found = solutions(adjoint, operators, (g, None, bounds, damp, rules))
            w = with_nan(w, _is_solved(found.istop))
            right = jax.tree.map(jnp.subtract, f, w)
            x, record, _ = solutions(
                Columns(MinimalGradients(solver.window)), operators, (right, None, bounds, damp, rules)
            )
            x = with_nan(x, record.converged)
            images = jax.vmap(lambda x, damp: solver.system(A, damp)._mv(x))(x, damp)
            return jax.tree.map(jnp.subtract, f, images), x

        return solve

    return linear_solution(products, (f, g), solution(A), solution(Conjugate.of(A)))


def _is_solved(istop):
    return (istop == BEGINNING) | (istop == SOLVED) | (istop == SOLVED_AT_BEST)


def orthogonalized(space, recent, v):
    """What v has beyond the span of recent vectors, rows of a basis; v where none are kept."""
    if recent is None:
        return v
    return jax.tree.map(jnp.subtract, v, combination(recent, inner_products(space, recent, v)))


def unit(space, v):
    """A vector of length 1, or zero, and the length."""
    norm = space.norm(v)
    return space.scale(1 / nonzero(norm), v), norm


class State(NamedTuple):
    """Of a system with one right-hand side of length 1."""

    b: Any
    x: Any
    u: Any
    v: Any
    h: Any
    hbar: Any
    recent: Any
    rotations: Rotations
    checked: jax.Array  # the gradient with which the iteration began, as it was computed
    checks: jax.Array
    due: jax.Array  # the check was asked for, not only due by time
    since: jax.Array
    iterations: jax.Array
    matvecs: jax.Array
    istop: jax.Array
    code: jax.Array
    norm: jax.Array
    tolerance: jax.Array
    tolerances: Tolerances
    damp: Any
