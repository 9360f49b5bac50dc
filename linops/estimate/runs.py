"""How an estimator is run: to a budget of products, to a tolerance, or on the whole identity, which is exact.

There are two kinds of estimators, frozen dataclasses that are code. A `Mean` is one of independent samples, of which
only the sums are kept. A `Basis` keeps its probes and their products, out of which it reads more than a mean.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from linops.arrays import as_key, brief
from linops.budget import BASIS_SHARE, memory_budget
from linops.counted import allowed, told
from linops.estimate.probes import columns, in_blocks, keys_of
from linops.estimate.result import Estimate, standard_error, with_rounding
from linops.iterate import compute, differentiated, iterate
from linops.linear_map import LinearMap
from linops.products import concrete, is_traced
from linops.space import Space

DEFAULT_MATVECS = 100
FEWEST = 8  # probes before a standard error is believed, and looked at


def operand(A, what):
    """The operator of an estimator, on one Space and linearized once; and how many columns to multiply at a time."""
    require_operator(A, what)
    if A.shape[0] == A.shape[1]:
        A = A._on(A.domain, A.domain)
    A.linearize()  # before its door is made, which is for blocks: no program for vectors is compiled meanwhile
    return A.linearize(), A._door.block_width


def require_operator(A, what):
    if not isinstance(A, LinearMap):
        raise TypeError(f"{what} got {brief(A)}, expected a linops operator: linops.Matrix makes one of an array")


def require_square(A, what):
    if isinstance(A, LinearMap) and A.shape[0] != A.shape[1]:
        raise ValueError(f"{what} got {A!r}, expected a square operator")


def require_hermitian(A, what):
    """Refuse an operator that does not claim to be Hermitian."""
    if isinstance(A, LinearMap) and not A._equals_adjoint:
        raise ValueError(
            f"{what} got {A!r}, which does not claim to be Hermitian; expected one that does, as a Hessian, J.T @ J or "
            "a class with symmetric = True or hermitian = True: class Covariance(linops.Matrix): symmetric = True"
        )


def require_whole(what, count, name="num_matvecs"):
    """A number of products, steps or other things as an int."""
    if count != int(count) or count < 1:
        raise ValueError(f"{what} got {name}={count!r}, expected a whole number, at least 1")
    return int(count)


def fits(A, vectors):
    """Whether the memory budget holds so many vectors."""
    return vectors * A.shape[1] * A.dtype.itemsize <= memory_budget(BASIS_SHARE)


def run(estimator, A, key, rtol, num_matvecs, *data):
    """The Estimate of an estimator: exact where the products suffice for the whole identity, random otherwise.

    `data` are what samples take beside the operator and a key.
    """
    key = as_key(key, estimator.name)
    estimate = _run(estimator, A, key, rtol, num_matvecs, *data)
    told(A._listeners(), estimate.matvecs)
    if A._checks_finite and not is_traced(estimate) and not concrete(lambda: _is_number(estimate)):
        raise FloatingPointError(
            f"{estimator.name} of {A!r} has NaN or Inf{estimator.seen(A, key)}: expected finite products, and an "
            "operator that is Hermitian, as linops.check(A) tells, and positive (semi)definite where the method asks "
            "for it, with bounds, if any, that are true; linops.linalg.eigsh(A, k=1, which='SA') finds its smallest "
            "eigenvalue, and A + c * I has one that is larger by c"
        )
    return estimate


def _is_number(estimate):
    return jnp.all(jnp.isfinite(estimate.value) & ~jnp.isnan(estimate.standard_error))


def _run(estimator, A, key, rtol, num_matvecs, *data):
    fewest = estimator.fewest if rtol is None else estimator.matvecs * FEWEST
    most, whole = _plan(estimator, A.shape[1], rtol, _within_limits(estimator, A, rtol, num_matvecs))
    if most < fewest and not whole:
        raise ValueError(
            f"{estimator.name} got {_budget_of(A, num_matvecs)}, expected at least {fewest} products, which its probes "
            f"take, or all {A.shape[1]} columns"
        )
    if most < fewest:
        return differentiated(compute, Whole(estimator), A)
    if rtol is None:
        return differentiated(compute, ToBudget(estimator, most), A, key, *data)
    return estimator.to_tolerance(A, key, rtol, most, whole, *data)


def _within_limits(estimator, A, rtol, num_matvecs):
    """So many products as were asked for, or None, and no more than the monitors of A still allow."""
    if num_matvecs is not None:
        num_matvecs = require_whole(estimator.name, num_matvecs)
    limit = allowed(A._listeners(), math.inf)
    if limit == math.inf:
        return num_matvecs
    return min(limit, num_matvecs or (estimator.default if rtol is None else limit))


def _budget_of(A, num_matvecs):
    limit = allowed(A._listeners(), math.inf)
    return f"num_matvecs={num_matvecs}" + (f" and a monitor that allows {limit}" if limit < math.inf else "")


def _plan(estimator, columns, rtol, num_matvecs):
    """How many products probes may take, and whether those with the whole identity may be made afterwards."""
    if rtol is None:
        budget = estimator.default if num_matvecs is None else num_matvecs
        return (0, True) if columns <= budget else (budget, False)
    if not is_traced(rtol) and not rtol > 0:
        raise ValueError(
            f"{estimator.name} got rtol={rtol!r}, expected the share of the value that its standard error may be"
        )
    if num_matvecs is None:
        return columns, True
    room = num_matvecs - columns
    return (min(room, columns), True) if room >= 0 else (num_matvecs, False)


# The programs: functions of an operator, a key and a tolerance.


@dataclasses.dataclass(frozen=True)
class Whole:
    """The exact value, from a product with each column of the identity."""

    estimator: "Mean | Basis"

    def __call__(self, A):
        column = functools.partial(self.estimator.column, A)
        value = self.estimator.whole(A, in_blocks(column, jnp.arange(A.shape[1]), self.estimator.width))
        return Estimate(value, jnp.zeros_like(jnp.real(value)), jnp.int32(A.shape[1]))


@dataclasses.dataclass(frozen=True)
class ToBudget:
    """The estimate from so many products."""

    estimator: "Mean | Basis"
    num_matvecs: int

    def __call__(self, A, key, *data):
        return self.estimator.to_budget(A, key, self.num_matvecs, *data)


@dataclasses.dataclass(frozen=True)
class Mean:
    """The mean of independent samples, trees of arrays: `finish` makes values of their mean and its standard error."""

    name: str
    width: int
    sample: Callable  # of an operator and a key
    finish: Callable  # of the operator, a mean and its standard error: those of the value; homogeneous
    column: Callable  # what a column of the identity gives, of the operator and its index
    whole: Callable  # the value, of the operator and what all columns give
    power: int = 1  # of the samples, whose mean is taken
    matvecs: int = 1  # of a sample
    default: int = DEFAULT_MATVECS

    def seen(self, A, key):
        """What explains a value that is not finite, if anything does."""
        return ""

    @property
    def fewest(self):
        """The products of one sample, of which no standard error is known: it is infinite."""
        return self.matvecs

    def to_budget(self, A, key, num_matvecs, *data):
        count = num_matvecs // self.matvecs
        blocks = -(-count // self.width)
        batch = _Batch(self, -(-count // blocks))
        sums = batch.begin(A, key, 0, count, *data)
        if blocks == 1:
            sums = batch.step(A, sums)
        else:  # for a derivative, each batch is computed again, and not kept
            sums = jax.lax.scan(jax.checkpoint(lambda s, _: (batch.step(A, s), None)), sums, length=blocks)[0]
        return batch.estimate(A, sums)

    def to_tolerance(self, A, key, rtol, most, whole, *data):
        algorithm = _ToTolerance(_Batch(self, FEWEST, whole), most // self.matvecs)
        return differentiated(compute, algorithm, A, key, rtol, *data)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("key", "data", "rtol", "most", "count", "scale", "mean", "squares"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Sums:
    """What is kept of samples: how many, their mean, and the sum of the squares of their deviations from it.

    They are in units of the largest of the first of them, since squares leave the range of float32 early.
    """

    key: jax.Array
    data: tuple
    rtol: jax.Array
    most: jax.Array
    count: jax.Array
    scale: jax.Array
    mean: object
    squares: object

    def with_more(self, samples, power):
        """These sums with the powers of more samples, of which those count that are not beyond `most`."""
        counts = self.count + jnp.arange(columns(samples)) < self.most
        added = jnp.sum(counts, dtype=jnp.int32)
        total = self.count + added
        share = added / jnp.maximum(total, 1)
        sizes = [jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(samples)]
        largest = functools.reduce(jnp.maximum, sizes)
        scale = jnp.where(self.count > 0, self.scale, jnp.where(largest > 0, jax.lax.stop_gradient(largest), 1))

        def merged(mean, squares, new):
            new = (new / scale) ** power
            counted = counts.reshape(-1, *[1] * mean.ndim)
            center = jnp.sum(jnp.where(counted, new, 0), axis=0) / jnp.maximum(added, 1)
            apart, within = map(_square, (center - mean, new - center))
            squares += jnp.sum(jnp.where(counted, within, 0), axis=0) + apart * (self.count * share)
            return mean + (center - mean) * share, squares

        treedef = jax.tree.structure(self.mean)
        pairs = list(map(merged, *map(jax.tree.leaves, (self.mean, self.squares, samples))))
        mean, squares = (treedef.unflatten([pair[i] for pair in pairs]) for i in (0, 1))
        return dataclasses.replace(self, count=total, scale=scale, mean=mean, squares=squares)


def _square(x):
    return jnp.abs(jax.lax.stop_gradient(x)) ** 2


@dataclasses.dataclass(frozen=True)
class _Batch:
    """An algorithm for `iterate`: so many samples a step, until the tolerance is met, looked at when they doubled."""

    mean: Mean
    size: int
    whole: bool = False  # whether products with the identity follow where the tolerance is not met

    def begin(self, A, key, rtol, most, *data):
        sample = jax.eval_shape(self.mean.sample, A, key, *data)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), sample)
        squares = jax.tree.map(jnp.real, zeros)
        scale = jnp.ones((), jnp.result_type(*jax.tree.leaves(squares)))
        return Sums(key, data, jnp.asarray(rtol), jnp.int32(most), jnp.int32(0), scale, zeros, squares)

    def step(self, A, sums):
        keys = keys_of(sums.key, sums.count, self.size)
        samples = in_blocks(lambda key: self.mean.sample(A, key, *sums.data), keys, self.mean.width)
        return sums.with_more(samples, self.mean.power)

    def done(self, A, sums):
        # A look at each batch would stop where the error happens to seem small.
        has_doubled = (sums.count >= self.size) & (sums.count & (sums.count - 1) == 0)
        error, allowed = self._error(A, sums)
        stops = error <= allowed
        if self.whole:  # the error falls as the root of the number of samples
            stops |= error * jnp.sqrt(sums.count / sums.most) > allowed
        return (sums.count >= sums.most) | (has_doubled & stops)

    def is_met(self, A, sums):
        error, allowed = self._error(A, sums)
        return error <= allowed

    def _error(self, A, sums):
        """The norm of the standard error, and what the tolerance allows."""
        estimate = self.estimate(A, sums)
        return norm(estimate.standard_error), sums.rtol * norm(estimate.value)

    def estimate(self, A, sums):
        errors = jax.tree.map(lambda squares: standard_error(squares, sums.count), sums.squares)
        value, error = self.mean.finish(A, sums.mean, errors)
        error = with_rounding(A, error, jnp.abs(value))
        return Estimate(sums.scale * value, sums.scale * error, sums.count * self.mean.matvecs)


def norm(value):
    """The Euclidean norm of a number or a vector."""
    return Space.of(value).norm(value)


@dataclasses.dataclass(frozen=True)
class _ToTolerance:
    batch: _Batch
    most: int

    def __call__(self, A, key, rtol, *data):
        sums = iterate(self.batch, A, key, rtol, self.most, *data)
        estimate = self.batch.estimate(A, sums)
        if not self.batch.whole:
            return estimate
        exact = Whole(self.batch.mean)
        found = jax.lax.cond(self.batch.is_met(A, sums), lambda: estimate, lambda: exact(A))
        spent = jnp.where(self.batch.is_met(A, sums), 0, estimate.matvecs)
        return dataclasses.replace(found, matvecs=found.matvecs + spent)


class Basis:
    """An estimator that keeps `probes` and products, a state that grows by so many probes.

    A subclass is a frozen dataclass with what `Whole` asks for, `name`, `width`, `column` and `whole`, and with

    - `grown(A, key, state, count)`: the state of `count` probes; the first is None.
    - `read(A, state)`: a value and its standard error.
    - `matvecs`, of a probe, and `fewest`.
    """

    default = DEFAULT_MATVECS
    seen = Mean.seen

    def to_budget(self, A, key, num_matvecs):
        count = num_matvecs // self.matvecs
        return self._estimate(A, self.grown(A, key, None, count), count)

    def to_tolerance(self, A, key, rtol, most, whole):
        if is_traced((A, key, rtol)):
            raise TypeError(
                f"{self.name} got rtol={rtol!r} inside of a jit, vmap or grad, where the number of probes that it "
                'keeps has to be known; expected num_matvecs=, or method="hutchinson"'
            )
        count, state = FEWEST, None
        while True:
            state, estimate = compute(_Growth(self, count), A, key, state)
            if norm(estimate.standard_error) <= rtol * norm(estimate.value):
                return estimate
            if 2 * count * self.matvecs > most and whole:
                exact = compute(Whole(self), A)
                return dataclasses.replace(exact, matvecs=exact.matvecs + estimate.matvecs)
            if count == most // self.matvecs:
                return estimate
            count = min(2 * count, most // self.matvecs)

    def _estimate(self, A, state, count):
        return Estimate(*self.read(A, state), jnp.int32(count * self.matvecs))


@dataclasses.dataclass(frozen=True)
class _Growth:
    """A state grown to so many probes, and its estimate."""

    estimator: Basis
    count: int

    def __call__(self, A, key, state):
        state = self.estimator.grown(A, key, state, self.count)
        return state, self.estimator._estimate(A, state, self.count)
