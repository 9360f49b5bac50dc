"""The logarithm of a determinant, by stochastic Lanczos quadrature."""

import dataclasses

import jax
import jax.numpy as jnp

from linops.estimate.probes import rademacher, unit
from linops.estimate.quadratic import require_bounds
from linops.estimate.quadrature import (
    bracket,
    differentiable,
    expanded,
    gauss,
    integral,
    krylov_space,
    off_by,
    rule_and_changes,
    truncation,
)
from linops.estimate.runs import Mean, fits, operand, require_hermitian, require_whole, run
from linops.iterate import compute
from linops.krylov import is_hermitian, seed_of
from linops.linalg.operands import require_dtype

STEPS = 32
PROBES = 16


def logdet(A, key, *, steps=STEPS, bounds=(None, None), rtol=None, num_matvecs=None):
    """The logarithm of det A for a positive definite A: the mean of wᴴ log(A) w over vectors w of entries 1 and -1.

    Each is a Gauss rule from `steps` products of Lanczos (Ubaru, Chen, Saad 2017). The standard error is the scatter of
    the probes, with Student's t where there are few, and added to it the error by truncation, the mean distance of the
    rules from those of Gauss and Radau at the `bounds` of the spectrum: with a true lower bound, as s of K + s I, it is
    rigorous. Without one it is estimated, from Ritz values and from how the last steps have changed the value (see
    `quadratic_form`), and infinite where these changes grow: eigenvalues that are spread over many orders need many
    steps, or a bound.

    It takes `num_matvecs` products, by default those of 16 probes, or with `rtol` as many as it takes until the
    standard error is at most that share of the value; where they suffice for all columns of the identity, the value is
    exact, with a standard error of 0. It can be a part of a jitted function, and of one that is differentiated, where
    `rtol` has no derivative in reverse: the derivative is that with the probes and their Krylov spaces held fixed. An A
    that does not claim to be Hermitian is a `ValueError`; one that is not positive definite gives NaN in a jit, and a
    `FloatingPointError` outside.

    >>> J = linops.Matrix(np.random.default_rng(0).normal(size=(40, 1000)).astype(np.float32) / 30)
    >>> found = linops.estimate.logdet(J.T @ J + linops.Identity(1000), jax.random.key(0), bounds=(1, None))
    >>> true = np.linalg.slogdet(J.toarray() @ J.toarray().T + np.eye(40))[1]
    >>> bool(abs(found.value - true) < 3 * found.standard_error), int(found.matvecs)
    (True, 512)
    """
    require_hermitian(A, "logdet")
    A, width = operand(A, "logdet")
    require_dtype("logdet", A)
    steps = min(require_whole("logdet", steps, "steps"), max(1, A.shape[1]))
    estimator = _LogDeterminant(
        "logdet",
        probes_at_once(A, width, steps),
        _Sample(steps),
        _finish,
        _column,
        _whole,
        matvecs=steps,
        default=PROBES * steps,
    )
    return run(estimator, A, key, rtol, num_matvecs, require_bounds(bounds))


def probes_at_once(A, width, steps):
    """How many Krylov spaces to make at a time, as memory allows."""
    while width > 1 and not fits(A, width * (steps + 1)):
        width //= 2
    return width


@dataclasses.dataclass(frozen=True)
class _LogDeterminant(Mean):
    """Says by what Ritz value an operator is seen not to be positive definite."""

    def seen(self, A, key):
        lowest, least = compute(_Lowest(self.matvecs), A, key)
        if not lowest <= least:
            return ""
        return (
            f", because A has a Ritz value of {lowest:.3g}, and so is not positive definite to the digits of {A.dtype}"
        )


@dataclasses.dataclass(frozen=True)
class _Lowest:
    """The smallest Ritz value of a probe, and what rounding makes of zero."""

    steps: int

    def __call__(self, A, key):
        krylov = krylov_space(A, rademacher(A.domain, key), self.steps, seed_of(key))
        nodes = gauss(A, expanded(A, krylov, self.steps)).nodes
        return nodes[0], off_by(A, nodes)


@dataclasses.dataclass(frozen=True)
class _Sample:
    """The Gauss rule of a probe, the largest distance of the rules from it, and how the steps have changed it."""

    steps: int

    def __call__(self, A, key, bounds):
        start, more = jax.random.split(key)
        w = rademacher(A.domain, start)
        fixed = jax.lax.stop_gradient(A)
        krylov = expanded(fixed, krylov_space(fixed, w, self.steps, seed_of(more)), self.steps)
        rule, changes = rule_and_changes(fixed, jnp.log, krylov, bounds[0] is not None)
        distance = jnp.abs(bracket(fixed, jnp.log, rule, bounds) - integral(jnp.log, rule.nodes, rule.weights))
        value = differentiable(jax.tree_util.Partial(jnp.log), A, w, krylov.basis, rule, 1)
        value = jnp.where(rule.nodes[0] > off_by(A, rule.nodes), value, jnp.nan)
        return value, *jax.lax.stop_gradient((A.shape[0] * jnp.max(distance), A.shape[0] * changes))


def _finish(A, mean, error):
    value, distance, changes = mean
    return value, error[0] + jnp.maximum(distance, truncation(changes))


def _column(A, index):
    return A._mv(unit(A.domain, index))


def _whole(A, columns):
    """By Cholesky, which gives NaN for what is not positive definite."""
    matrix = jax.vmap(A.domain.ravel)(columns).T
    L = jnp.linalg.cholesky(jnp.where(is_hermitian(A, matrix), matrix, jnp.nan))
    return 2 * jnp.sum(jnp.log(jnp.real(jnp.diagonal(L))))
