"""Solving A x = b: what the solvers of `linops.linalg` share: what they are given, columns, derivatives, and the end.

A `Solver` is an algorithm of `linops.iterate` for one right-hand side of length 1, whose operators are the pair (A, M),
M None where there is no preconditioner. Its states are named tuples that have

- `x`: the solution so far,
- `norm`, `tolerance`: the norm of the residual b - A x, and what it is to come down to,
- `code`: why it ended, or `RUNNING`. That it converged is said of a residual that was just computed anew,
- `iterations`, `matvecs`.
"""

import dataclasses
import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from linops.iterate import compute, differentiated, finished
from linops.krylov import laid
from linops.linalg.operands import with_nan
from linops.linalg.records import (
    BOUNDARY,
    CONVERGED,
    INCONSISTENT,
    NO_PRECONDITIONER,
    NOT_DEFINITE,
    NOT_FINITE,
    NOT_SYMMETRIC,
    ROUNDING,
    STAGNATED,
    STOPPED,
    Record,
    no_tangent,
)
from linops.products import is_traced
from linops.program.settings import full_precision
from linops.space import placed
from linops.watching import refuse_in_jit, watched

RUNNING = -1
NONE = 0  # no fault
RENEWED = 50  # steps after which a residual is computed anew
INFO = {
    NOT_DEFINITE: -1,
    NO_PRECONDITIONER: -2,
    NOT_FINITE: -3,
    BOUNDARY: -4,
    INCONSISTENT: -5,
    NOT_SYMMETRIC: -6,
    STAGNATED: -7,
}  # as breakdowns are in SciPy


class Given(NamedTuple):
    """What a solver is given: b of length 1, or zero, once `size` times that, and a guess scaled alike, or None."""

    b: Any
    x: Any
    size: jax.Array
    tolerance: jax.Array
    limit: jax.Array


# Solvers of one system, and of columns.


class Solver:
    """What a solver is, beside its steps: a frozen dataclass.

    `more` is what it takes beside b and a guess, such as a shift.
    """

    def system(self, A, *more):
        """The operator of the system."""
        return A

    def product(self, A, x, *more):
        """What b is compared with."""
        return self.system(A, *more)._mv(x)

    def done(self, operators, state):
        return state.code != RUNNING

    def details(self, size, state):
        """What there is to be said beside the record, of a state and the length of b; it has no derivative."""
        return ()

    def change(self, algorithm, x, record, details, primals, tangents):
        """The tangent of x. A dx = db - dA x, solved to the same tolerance, relative to its own right-hand side."""
        (operators, (rows, _, bounds, *more)), (changes, (change, _, _, *more_changes)) = primals, tangents

        def products(A, more):
            return jax.vmap(functools.partial(self.product, A))(x, *more)

        _, moved = jax.jvp(products, (operators[0], more), (changes[0], more_changes))
        sizes = jax.vmap(operators[0].codomain.norm)(rows)
        # Where all b are zero there is no other tolerance than rtol.
        relative = jnp.where(
            jnp.any(sizes > 0), jnp.min(record.tolerance / nonzero(sizes), where=sizes > 0, initial=1), 0
        )
        bounds = bounds._replace(rtol=jnp.maximum(bounds.rtol, relative), atol=jnp.zeros_like(bounds.atol))
        return _linear_solutions(algorithm, operators, jax.tree.map(jnp.subtract, change, moved), bounds, more)


@dataclasses.dataclass(frozen=True)
class Columns:
    """A solver of right-hand sides in one loop, each of which is scaled to norm 1, and rests when it is done."""

    solver: Any

    def begin(self, operators, rows, guesses, limits, *more):
        begin = functools.partial(self._begin, operators, limits)
        return jax.vmap(begin)(rows, guesses, *more)

    def _begin(self, operators, limits, b, guess, *more):
        A = self.solver.system(operators[0], *more)
        b, guess = _laid(A, b, guess)
        size = A.codomain.norm(b)
        scale = jnp.where(size > 0, size, 1)
        unit = A.codomain.scale(1 / scale, b)
        guess = None if guess is None else A.domain.scale(jnp.where(size > 0, 1 / scale, 0), guess)
        tolerance = jnp.where(size > 0, jnp.maximum(limits.rtol, limits.atol / scale), 1)
        return size, self.solver.begin(operators, Given(unit, guess, scale, tolerance, limits.iterations), *more)

    def step(self, operators, state):
        size, inner = state
        after = jax.vmap(functools.partial(self.solver.step, operators))(inner)
        return size, either(inner.code == RUNNING, after, inner)

    def done(self, operators, state):
        return jnp.all(state[1].code != RUNNING)


def _laid(A, b, guess):
    """A right-hand side and a guess, or None, where products are."""
    if A.domain == A.codomain:
        b = laid(A, b)
        return b, None if guess is None else placed(guess, b)
    return laid(A @ A.H, b), None if guess is None else laid(A.H @ A, guess)


def either(condition, one, other):
    """Leaf by leaf of two trees, by a condition on what leads: of a vector, or of each of some rows."""

    def of_leaf(a, b):
        return jnp.where(condition.reshape(condition.shape + (1,) * (jnp.ndim(a) - condition.ndim)), a, b)

    return jax.tree.map(of_leaf, one, other)


def combined(space, a, x, y):
    """The sum a x + y, of a real number and two elements."""
    return space.add(space.scale(a, x), y)


def nonzero(number):
    """A number to divide by."""
    return jnp.where(number == 0, 1, number)


def shifted(A, x, shift):
    """(A + shift) x, or A x."""
    product = A._mv(x)
    return product if shift is None else combined(A.domain, shift, x, product)


def preconditioned(M, r):
    """M r, laid as r is, or r."""
    return r if M is None else placed(M._mv(r), r)


class Certainty(NamedTuple):
    """How sure a residual is that was computed: rounding in the product with x adds about eps ‖A‖ ‖x‖ / 2 to it.

    `scale` is the norm of A, as far as it was seen, and `aim` what the norm of a residual is to come down to, for it to
    be below the tolerance with what is added: with all of that across, and twice what a residual of n numbers has of it
    along, by chance. `told` is whether there is such a norm; where there is none, a smaller one cannot be told.
    """

    scale: jax.Array
    told: jax.Array
    aim: jax.Array

    @classmethod
    def begin(cls, tolerance):
        return cls(jnp.zeros_like(tolerance), jnp.ones_like(tolerance, bool), tolerance)

    def seen(self, ratio):
        """With the ratio of norms of a product and of what was multiplied."""
        return self._replace(scale=jnp.fmax(self.scale, ratio))

    def at(self, space, x, tolerance):
        """With what is added at x."""
        noise = jnp.finfo(tolerance.dtype).eps / 2 * self.scale * space.norm(x)
        share = noise / jnp.where(tolerance > 0, tolerance, 1)
        aim = tolerance * jnp.sqrt(jnp.maximum(1 - share**2, 0)) - 2 * noise / math.sqrt(max(space.size, 1))
        told = (aim > 0) | (noise == 0)
        return self._replace(told=told, aim=jnp.where(told, aim, tolerance))

    def is_met(self, norm):
        """Whether a residual of this norm is surely below the tolerance."""
        return (norm <= self.aim) & self.told

    def is_too_small(self, norm, tolerance):
        """Whether the tolerance is below what can be told from rounding."""
        return (norm <= tolerance) & ~self.told


# What it comes to.


@dataclasses.dataclass(frozen=True)
class _End:
    """The solutions of the last state, and the record; of one that was stopped residuals are computed anew.

    These are of right-hand sides, `rows`, which are given there, and of what the solver takes beside.
    """

    solver: Solver

    def __call__(self, operators, state, rows=None, *more):
        size, inner = state
        x, record = _known(operators, state)
        norms, matvecs = record.residual_norms, record.matvecs
        if rows is not None:
            norms = jax.vmap(functools.partial(self._norm, operators[0]))(rows, x, *more)
            matvecs = matvecs + len(size)
        finite = functools.reduce(operator.and_, [jnp.isfinite(jnp.sum(abs(leaf))) for leaf in jax.tree.leaves(x)])
        code = jnp.where(record.converged & ~(finite & jnp.isfinite(norms)), NOT_FINITE, record.code)
        ended = {"converged": code == CONVERGED, "code": code, "residual_norms": norms, "matvecs": matvecs}
        return x, dataclasses.replace(record, **ended), self.solver.details(size, inner)

    def _norm(self, A, b, x, *more):
        residual = jax.tree.map(jnp.subtract, b, self.solver.product(A, x, *more))
        return self.solver.system(A, *more).codomain.norm(residual)


@dataclasses.dataclass(frozen=True)
class _Glance:
    """The state on the way: the solutions, and the record of them."""

    def __call__(self, operators, state):
        x, record = _known(operators, state)
        return Glimpse(x, state[0], record)


def _known(operators, state):
    """The solutions of a state as it is, and the record."""
    size, inner = state
    x = jax.vmap(operators[0].domain.scale)(size, inner.x)
    code = jnp.where(inner.code == RUNNING, STOPPED, inner.code)
    matvecs, norms = jnp.sum(inner.matvecs), size * inner.norm
    return x, Record(code == CONVERGED, code, inner.iterations, matvecs, norms, size * inner.tolerance)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Glimpse:
    """What a watch is shown."""

    x: Any
    sizes: jax.Array  # the lengths of the right-hand sides
    record: Record

    matvecs = property(lambda self: self.record.matvecs)
    text = property(lambda self: self.record.text)


def solve(name, solver, operators, right, guesses, limits, *more, told=None, with_adjoint=False, marked=True):
    """The solutions, rows of a tree, and the record, with one number for each, and the solver's details.

    In a jit they are NaN where they did not converge and are `marked`. `more` has leading axes as the rows have.
    `told(glimpse)` is called after each step.
    """
    algorithm = Columns(solver)
    operands = right.rows, guesses, limits, *more
    if is_traced((operators, operands)):
        refuse_in_jit(name, callback=told)
        x, record, details = differentiated(solutions, algorithm, operators, operands)
        return (with_nan(x, record.converged) if marked else x), record, details
    A = operators[0]
    if told is None and not A._listeners():
        x, record, details = finished(algorithm, _End(solver), operators, *operands)
    else:
        state, watch = watched(
            algorithm, operators, operands, _Glance(), A._listeners(), told, with_adjoint=with_adjoint,
            every=None if told is None else 1,
        )  # fmt: skip
        stopped = bool(jnp.any(state[1].code == RUNNING))
        x, record, details = compute(_End(solver), operators, state, *(right.rows, *more) * stopped)
        watch.report(record)
    if np.any(np.asarray(record.code) == NOT_FINITE):
        raise FloatingPointError(
            f"{name} came upon NaN or infinite numbers with {A!r}, expected finite ones in b and x0, in products with "
            "A and M, and in the solution: multiply by a vector, A @ b, to see where they come from"
        )
    return x, record, details


class Told:
    """SciPy's `callback(xk)`, called after each iteration, with what `shown` makes of a glimpse."""

    def __init__(self, callback, shown):
        self.callback, self.shown, self.seen = callback, shown, 0

    @classmethod
    def of(cls, callback, right, A):
        """Of solutions as they will be returned; None without a callback."""
        return None if callback is None else cls(callback, lambda glimpse: right.shaped(A.domain, glimpse.x))

    def is_news(self, glimpse):
        before, self.seen = self.seen, int(np.max(glimpse.record.iterations))
        return self.seen > before

    def __call__(self, glimpse):
        if self.is_news(glimpse):
            self.callback(self.shown(glimpse))


def info_of(record, limit):
    """SciPy's `info`: 0, or how many iterations were too few; one more than `maxiter` where rounding was in the way."""
    cases = {CONVERGED: 0, ROUNDING: limit + 1, **INFO}
    code = record.code
    info = jnp.select([code == case for case in cases], list(cases.values()), jnp.maximum(record.iterations, 1))
    return info if is_traced(info) or np.ndim(info) else int(info)


def answered(A, right, x, record, bounds, full_output):
    """What a solver of square systems returns."""
    record = right.counted(record)
    results = right.shaped(A.domain, x), info_of(record, bounds.iterations)
    return (*results, record) if full_output else results


# Derivatives.


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def solutions(algorithm, operators, operands):
    """What `solve` gives, in traceable JAX."""
    return finished(algorithm, _End(algorithm.solver), operators, *operands)


@solutions.defjvp
@full_precision()
def _derivative(algorithm, primals, tangents):
    x, record, details = solutions(algorithm, *primals)
    change = algorithm.solver.change(algorithm, x, record, details, primals, tangents)
    return (x, record, details), (change, *jax.tree.map(no_tangent, (record, details)))


def linear_solution(products, rows, solve, transposed):
    """What solves products(x) = rows, of which JAX knows that it is linear, and how to transpose that.

    JAX transposes it where all leaves, of rows and of what is asked for, have a tangent, or none: each depends on all.
    """
    return _linked(jax.lax.custom_linear_solve(products, _linked(rows), solve=solve, transpose_solve=transposed))


def _linked(rows):
    total = sum(jnp.sum(leaf, axis=range(1, jnp.ndim(leaf))) for leaf in jax.tree.leaves(rows))
    return jax.tree.map(lambda leaf: leaf + 0 * total.astype(leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1)), rows)


def _linear_solutions(algorithm, operators, rows, bounds, more):
    """The solutions, as a function that is linear in b."""

    def solver_with(operators):
        def solve(_, rows):
            x, record, _ = solutions(algorithm, operators, (rows, None, bounds, *more))
            return with_nan(x, record.converged)

        return solve

    A, M = operators
    transposed = A.T, None if M is None else M.T
    return linear_solution(
        lambda x: jax.vmap(functools.partial(algorithm.solver.product, A))(x, *more),
        rows,
        solver_with(operators),
        solver_with(transposed),
    )
