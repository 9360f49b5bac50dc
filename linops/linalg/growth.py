"""f(t A) b from f of the small matrix of a Krylov space, which grows until the result stands still."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap

from linops import krylov
from linops.iterate import compute, maybe, scope_of
from linops.linalg.operands import are_zero, instantiated, rounding, with_nan
from linops.linalg.records import (
    CONVERGED,
    LIMIT,
    NO_FUNCTION,
    NOT_FINITE,
    NOT_SYMMETRIC,
    ROUNDING,
    STOPPED,
    Record,
    no_tangent,
)
from linops.precision import is_complex
from linops.program.settings import full_precision
from linops.space import Space, length
from linops.watching import watched

STRIDE = 5  # products between two looks, at least
COMMUTING = 1e-3  # relative to ‖F‖ ‖X‖, by which X F and F X differ at most
FLOOR = 16  # times eps of the norm of the result, beside sums of random sign: less is rounding


class Problem(NamedTuple):
    """An operator, and a function of small matrices of JAX, a tree of code and the arrays that it closes over."""

    A: Any
    f: Any


class _State(NamedTuple):
    """A Krylov space of each column, the small matrix of all of its spaces so far, and what the result is in them.

    `y` is the part in the spaces before this one, `result` has the coefficients in all of them. Of all arrays the first
    axis is that of columns, which grow together: only sizes are the same for all.
    """

    space: krylov.Krylov
    small: jax.Array
    before: jax.Array  # the size of the spaces before this one
    y: Any
    result: jax.Array
    moved: jax.Array
    error: jax.Array
    tolerance: jax.Array
    norm: jax.Array
    numbers: tuple


AXES = _State(krylov.Krylov(0, 0, None, 0), 0, None, *[0] * 6, None)


def _of_columns(function, x, axes, out=0):
    """What a function makes of each column; of one alone without vmap, in which both branches are computed."""
    if krylov.rows_of(x) > 1:
        return jax.vmap(function, in_axes=(axes,), out_axes=out)(x)
    alone = _along(lambda leaf: leaf[0], axes, x)
    return _along(lambda leaf: leaf[None], out, function(alone))


def _along(change, axes, x):
    """What has an axis of columns changed, the rest as it is."""
    return jax.tree.map(
        lambda axis, part: part if axis is None else jax.tree.map(change, part), axes, x, is_leaf=lambda a: a is None
    )


@dataclasses.dataclass(frozen=True)
class Growth:
    """The Krylov spaces of rows b, grown until f of their small matrices, times e1, stands still."""

    hermitian: bool
    capacity: int
    most: int

    def begin(self, problem, rows, numbers):
        return _of_columns(lambda b: self._begun(problem.A, b, numbers), rows, 0, AXES)

    def step(self, problem, state):
        return _of_columns(lambda state: self._grown(*problem, state), state, AXES, AXES)

    def done(self, problem, state):
        return jnp.all(_is_done(state)) | (self.total(state) >= self.most)

    def _begun(self, A, b, numbers):
        norm = A.domain.norm(b)
        small = jnp.zeros((self.most, self.most), A.dtype)
        seed = jnp.zeros(2, jnp.uint32)
        grown = krylov.begin(A, self.capacity, jax.tree.map(lambda leaf: leaf[None], b), seed)
        inf = jnp.full((), jnp.inf, norm.dtype)
        error = jnp.where(norm == 0, 0, inf)
        y = krylov.zeros_like(b)
        return _State(grown, small, jnp.zeros((), jnp.int32), y, small[:, 0], inf, error, 0 * norm, norm, numbers)

    def _grown(self, A, f, state):
        if self.capacity < self.most:
            state = maybe(state.space.size == self.capacity, lambda state: self._restarted(A, state), state)
        until = jnp.minimum(self.capacity, state.space.size + jnp.maximum(STRIDE, self.total(state) // 8))
        grown = jax.lax.while_loop(
            lambda space: space.size < until, lambda space: krylov.expand(A._mv, A.domain, space), state.space
        )
        return self._judged(A, f, state._replace(space=grown))

    def product(self, A, state):
        """What the coefficients stand for."""
        here = jax.lax.dynamic_slice_in_dim(state.result, state.before, self.capacity)
        here = krylov.combination(state.space.basis, jnp.pad(here, (0, 1)))
        return A.domain.add(state.y, here)

    def total(self, state):
        return state.before + state.space.size

    def record(self, state, converged, code, error, tolerance):
        """How far a state is: a number for each column."""
        restarts, matvecs = state.before // self.capacity, self.total(state) * len(error)
        return Record(converged, code, restarts, matvecs, error, tolerance)

    def _restarted(self, A, state):
        """With the space of the vector that comes next, and how the one before leads to it in the small matrix."""
        space, last = state.space, self.capacity - 1
        after = state.before + self.capacity
        small = state.small.at[after, after - 1].set(space.matrix[last + 1, last])
        b = jax.tree.map(lambda leaf: leaf[self.capacity :], space.basis)
        return state._replace(
            space=krylov.begin(A, self.capacity, b, space.seed),
            small=small,
            before=after,
            y=self.product(A, state),
        )

    def _judged(self, A, f, state):
        """With the result of now, and what its error is likely to be.

        That is believed where the result has settled to a half at least, or the space is invariant: of a steep f, as
        exp, what the space has not seen yet may be all there is, and the result small, or zero by underflow.
        """
        _, atol, rtol = state.numbers
        block = krylov.projected(state.space)
        if self.hermitian:
            block = (block + block.conj().T) / 2
        small = jax.lax.dynamic_update_slice(state.small, block, (state.before, state.before))
        state = state._replace(small=small)
        used, _, F = self._of_small(f, state)
        result = self._coefficients(A, state, used, F)
        moved, size = length(result - state.result), length(result)
        floor = rounding(A, FLOOR) * jnp.where(jnp.isfinite(size), size, 0)
        ratio = moved / state.moved  # of a geometric series
        still = jnp.where(ratio < 1, moved * jnp.maximum(1, ratio / (1 - ratio)), jnp.inf)
        error = jnp.where((moved <= floor) | (moved == 0), moved, still)
        couplings = jnp.diagonal(state.space.matrix, -1)
        is_invariant = jnp.any((couplings == 0) & (jnp.arange(couplings.size) < state.space.size))
        error = jnp.where((moved < size / 2) | is_invariant, error, jnp.inf)
        error = jnp.where(state.space.size == A.shape[0], 0, error)
        # An f that is not finite on a space may be so on a larger one, as of a nilpotent matrix.
        is_last = (state.space.size == A.shape[0]) | (self.total(state) >= self.most)
        is_lost = ~jnp.isfinite(size) & (is_last | ~jnp.all(jnp.isfinite(state.small)))
        error = jnp.where(is_lost | ~self.is_as_assumed(A, state), jnp.nan, error)
        tolerance = jnp.maximum(jnp.maximum(rtol * state.norm, atol), floor)
        found = result, moved, jnp.maximum(error, floor), tolerance
        before = state.result, state.moved, state.error, state.tolerance
        result, moved, error, tolerance = (
            jnp.where(_is_done(state), *pair) for pair in zip(before, found, strict=True)
        )
        return state._replace(result=result, moved=moved, error=error, tolerance=tolerance)

    def is_as_assumed(self, A, state):
        """Whether A is Hermitian where the small matrices are taken to be."""
        return krylov.is_hermitian(A, krylov.projected(state.space)) if self.hermitian else jnp.bool_(True)

    def noise(self, A, f, state):
        """How far the result moves when the small matrix does in its last digits, and whether f is of matrices."""
        small = state.small
        noise = krylov.noise(Space.of(small.real), state.space.seed)
        noise = math.sqrt(3) * jnp.finfo(small.dtype).eps * jnp.max(abs(small)) * (noise + noise.T)  # of variance 1
        used, X, F = self._of_small(f, state._replace(small=small + noise))
        return length(self._coefficients(A, state, used, F) - state.result), _commute(X, F)

    def _of_small(self, f, state):
        """Which places of the small matrix are in use, the matrix X, and F, f of t X.

        Where the matrix is not in use it has a number of the field of values of A, for which f is made.
        """
        used = jnp.arange(self.most) < self.total(state)
        filled = jnp.diag(jnp.where(used, 0, state.small[0, 0]))
        X = jnp.where(used[:, None] & used, state.small, filled)
        # Column after column, for of branches of f, as in expm, vmap takes all.
        return used, X, sequential_vmap(lambda f, t, X: f(t * X))(f, state.numbers[0], X)

    def _coefficients(self, A, state, used, F):
        """Of the result in the bases: F times e1 and the norm of b."""
        column = F[:, 0]
        if is_complex(column.dtype) and not is_complex(A.dtype):
            raise TypeError(
                f"f(t A) b of {A!r} has complex numbers, expected real ones of a real operator: take the real part in "
                "f where that is meant, or make the operator complex, 1j * A for t = -1j"
            )
        return jnp.where(used, state.norm.astype(A.dtype) * column, 0).astype(A.dtype)


@full_precision()
def _commute(X, F):
    """Whether X F is F X, as for functions of matrices; for functions of their entries it mostly is not."""
    return ~(length((F @ X - X @ F).ravel()) > COMMUTING * length(F.ravel()) * length(X.ravel()))


def _is_done(state):
    """Whether a column stands still; what is not a number stays so."""
    return ~(state.error > state.tolerance)


# What it comes to.


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """The products of the last state, and the record, with what they are likely to be off by for residual norms."""

    growth: Growth
    marked: bool  # what is not converged as NaN

    def __call__(self, problem, state):
        y, (noise, is_function), is_as_assumed = _of_columns(functools.partial(self._found, *problem), state, AXES)
        size = length(state.result, axis=1)
        is_allowed = noise <= jnp.sqrt(jnp.finfo(size.dtype).eps) * size
        error, tolerance = state.error + noise, state.tolerance + jnp.where(is_allowed, noise, 0)
        # Not of the sums, which XLA may round in two ways.
        converged = jnp.where(is_allowed, state.error <= state.tolerance, error <= tolerance) & is_function
        if self.marked:
            y = with_nan(y, converged)
        ends = [(~jnp.all(is_as_assumed), NOT_SYMMETRIC), (~jnp.all(is_function), NO_FUNCTION)]
        ends += [(jnp.any(jnp.isnan(error)), NOT_FINITE), (jnp.all(converged), CONVERGED)]
        ends += [(jnp.all(_is_done(state)), ROUNDING), (self.growth.total(state) >= self.growth.most, LIMIT)]
        code = jnp.select([is_so for is_so, _ in ends], [code for _, code in ends], STOPPED).astype(jnp.int32)
        return y, self.growth.record(state, converged, code, error, tolerance)

    def _found(self, A, f, state):
        growth = self.growth
        return growth.product(A, state), growth.noise(A, f, state), growth.is_as_assumed(A, state)


@dataclasses.dataclass(frozen=True)
class _Glance:
    """The record of a state that is not the last one."""

    growth: Growth

    def __call__(self, problem, state):
        return self.growth.record(state, _is_done(state), jnp.int32(STOPPED), state.error, state.tolerance)


@dataclasses.dataclass(frozen=True)
class Products:
    """f(t A) b for each of the rows b of a tree, some at once; of those after one that fails there is nothing."""

    growth: Growth
    marked: bool
    at_once: int

    def __call__(self, problem, rows, numbers):
        parts = []
        for start in range(0, krylov.rows_of(rows), self.at_once):
            part = jax.tree.map(lambda leaf, start=start: leaf[start : start + self.at_once], rows)
            heard = [] if self.marked else problem.A._listeners()
            state, watch = watched(self.growth, problem, (part, numbers), _Glance(self.growth), heard)
            parts.append(compute(_Outcome(self.growth, self.marked), problem, state))
            if self.marked:
                continue
            watch.report(parts[-1][1])
            if watch.interrupted:
                raise KeyboardInterrupt
            if not np.all(parts[-1][1].converged):
                break
        with scope_of(problem.A).entered():
            return parts[0] if len(parts) == 1 else together(parts, jnp.concatenate)


def together(parts, join):
    """Products and records of several runs as one: the worst code, and all products."""
    codes, iterations, matvecs = (
        jnp.stack([getattr(record, name) for _, record in parts]) for name in ("code", "iterations", "matvecs")
    )
    y, record = jax.tree.map(lambda *leaves: join([jnp.atleast_1d(leaf) for leaf in leaves]), *parts)
    return y, dataclasses.replace(
        record, code=jnp.max(codes), iterations=jnp.max(iterations), matvecs=jnp.sum(matvecs, dtype=jnp.int32)
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def differentiable(product, problem, rows, numbers):
    """The products, which are linear in the rows."""
    return product(problem, rows, numbers)


@full_precision()
def _derivative(product, primals, tangents):
    problem, rows, numbers = primals
    if not are_zero((tangents[0], tangents[2])):
        raise TypeError(
            "a function of an operator times a vector was differentiated in the operator, in t or in what the function "
            "closes over, where it has no derivative here; expected the vector alone to depend on what is "
            "differentiated: jax.lax.stop_gradient"
        )
    change = jax.lax.custom_linear_solve(  # whose solution has a transpose: the only part of it that is asked for
        lambda rows: rows,
        jax.tree.map(instantiated, tangents[1]),
        solve=lambda _, rows: product(problem, rows, numbers)[0],
        transpose_solve=lambda _, rows: product(problem._replace(A=problem.A.T), rows, numbers)[0],
    )
    y, record = product(problem, rows, numbers)
    return (y, record), (change, jax.tree.map(no_tangent, record))


differentiable.defjvp(_derivative, symbolic_zeros=True)
