"""Runs of `eigsh` and `svds`: what both ask for, find, differentiate, and say outside of jit."""

import dataclasses
import functools
import math
import operator
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from linops.iterate import compute, differentiated, iterate, scope_of
from linops.linalg.operands import require_matrix, with_nan
from linops.linalg.records import (
    CONVERGED,
    LIMIT,
    NO_INVERSE,
    NOT_FINITE,
    NOT_SYMMETRIC,
    ROUNDING,
    STOPPED,
    Interrupted,
    NoConvergence,
    Record,
    no_tangent,
)
from linops.precision import real_dtype
from linops.products import is_traced
from linops.program.settings import full_precision
from linops.watching import refuse_in_jit, watched

MOST_RESTARTS = 10  # times n, as in ARPACK


class Kind(NamedTuple):
    """What is found, in words, and by what products."""

    name: str
    value: str
    without: str  # the option without which there are no vectors
    with_adjoint: bool  # as many products are with the adjoint as with A


def counts(A, k, ncv, maxiter, tol, kind):
    """The integers, by which shapes are made, and the tolerance as an array."""
    try:
        k, ncv, maxiter = (None if count is None else operator.index(count) for count in (k, ncv, maxiter))
    except TypeError:
        raise TypeError(
            f"{kind.name} got k={k!r}, ncv={ncv!r} and maxiter={maxiter!r}, expected integers, static in jit"
        ) from None
    require_matrix(kind.name, A)
    n = min(A.shape)
    if not 1 <= k <= n:
        raise ValueError(f"{kind.name} got k={k} for {A!r}, expected 1 <= k <= min(A.shape) = {n}")
    if ncv is not None and not min(k + 1, n) <= ncv <= n:
        raise ValueError(f"{kind.name} got ncv={ncv} with k={k} for {A!r}, expected {min(k + 1, n)} <= ncv <= {n}")
    maxiter = MOST_RESTARTS * n if maxiter is None else maxiter
    if maxiter < 1:
        raise ValueError(f"{kind.name} got maxiter={maxiter}, expected at least 1, how often the basis is filled")
    if not is_traced(tol) and not 0 <= tol < 1:
        raise ValueError(f"{kind.name} got tol={tol}, expected 0 <= tol < 1, relative to each {kind.value}")
    with A.domain.scope():
        return k, ncv, maxiter, jnp.asarray(tol, real_dtype(A.dtype))


def found(outcome, A, problem, operands, with_vectors, shape, callback, save):
    """Values, vectors as they are returned, and the record; what did not converge is an error, and in jit NaN."""
    if is_traced((problem, operands)):
        refuse_in_jit(outcome.kind.name, callback=callback, save=save)
        outcome = dataclasses.replace(outcome, marked=True)
        if with_vectors:
            values, vectors, record = differentiated(_all, outcome, problem, operands)
            return values, shape(vectors), record
        values, record = differentiated(_values, outcome, problem._replace(scale=None), operands)
        return values, None, record
    glance, both = _Glance(outcome.algorithm), outcome.kind.with_adjoint
    state, watch = watched(
        outcome.algorithm, problem.operator, operands, glance, A._listeners(), callback, save, with_adjoint=both
    )
    values, vectors, record = compute(outcome, problem, state)
    watch.report(record)
    _require_finite(outcome.kind, A, problem.inverse, record)
    _require_converged(outcome.kind, A, problem.inverse, values, vectors, record, shape, watch.interrupted)
    return values, shape(vectors), record


# What it comes to.


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Values and vectors of the last state of an algorithm, and the record; what a subclass adds to it.

    An algorithm has `maxiter`, `finish` and `estimates`, and its states `norm`, `finished`, `restarts` and `matvecs`.
    """

    algorithm: Any
    marked: bool = False  # what is not converged as NaN

    kind: ClassVar[Kind]

    def finish(self, problem, state):
        """Values, vectors, residual norms, what these may be, and faults, each with its code."""
        return *self.algorithm.finish(problem.operator, state), []

    def sides(self, vectors):
        """The left and the right vector of each value."""
        return vectors

    def __call__(self, problem, state):
        values, vectors, residuals, tolerance, faults = self.finish(problem, state)
        none = jnp.zeros((), bool)
        converged = (residuals <= tolerance) & ~functools.reduce(operator.or_, [is_so for is_so, _ in faults], none)
        ends = [
            (~(jnp.isfinite(state.norm) & jnp.all(jnp.isfinite(residuals))), NOT_FINITE),
            *faults,
            (jnp.all(converged), CONVERGED),
            (state.finished, ROUNDING),
            (state.restarts >= self.algorithm.maxiter, LIMIT),
        ]
        code = jnp.select([is_so for is_so, _ in ends], [code for _, code in ends], STOPPED).astype(jnp.int32)
        matvecs = state.matvecs + (1 + self.kind.with_adjoint) * len(values)
        if self.marked:
            values, vectors = with_nan((values, vectors), converged)
        return values, vectors, Record(converged, code, state.restarts, matvecs, residuals, tolerance)


@dataclasses.dataclass(frozen=True)
class _Glance:
    """The record of a state that is not the last one: bounds in place of residuals."""

    algorithm: Any

    def __call__(self, A, state):
        bounds, tolerance = self.algorithm.estimates(A, state)
        converged = bounds <= tolerance
        code = jnp.where(jnp.all(converged), CONVERGED, STOPPED).astype(jnp.int32)
        return Record(converged, code, state.restarts, state.matvecs, bounds, tolerance)


def _run(outcome, problem, operands):
    return compute(outcome, problem, iterate(outcome.algorithm, problem.operator, *operands))


# Derivatives.


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _values(outcome, problem, operands):
    """The values, which have a derivative, and the record."""
    values, _, record = _run(outcome, problem, operands)
    return values, record


@_values.defjvp
@full_precision()
def _derivative_of_values(outcome, primals, tangents):
    """Re(uᴴ dA v) of each value; it is that of A in shift-invert mode too."""
    problem, operands = primals
    values, vectors, record = _run(outcome, problem, operands)

    def quotients(A):
        def quotient(sides):
            return A.codomain.inner(sides[0], A._mv(sides[1])).real

        return jax.lax.map(quotient, outcome.sides(vectors)).astype(values.dtype)

    _, change = jax.jvp(quotients, (problem.A,), (tangents[0].A,))
    return (values, record), (change, jax.tree.map(no_tangent, record))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _all(outcome, problem, operands):
    """All of it, which is not differentiated."""
    return _run(outcome, problem, operands)


@_all.defjvp
def _no_derivative_of_all(outcome, primals, tangents):
    kind = outcome.kind
    raise TypeError(
        f"{kind.name} was differentiated with vectors, which have no derivative here: those of close {kind.value}s "
        f"turn into one another; expected {kind.without}, with which the values have one"
    )


# What is said outside of jit.

_REMEDIES = {
    LIMIT: "a larger maxiter, ncv or tol",
    ROUNDING: "a larger tol: products, or those with OPinv, are not known to more digits, or A is not Hermitian to as "
    "many, as linops.check(A) tells; or that what is locked are eigenvectors",
    STOPPED: "a run that no callback, monitor or Ctrl-C stops; with save= the same call goes on from there",
}


def _require_finite(kind, A, inverse, record):
    if int(record.code) != NOT_FINITE:
        return
    if inverse is not None:
        raise FloatingPointError(
            f"a product with OPinv, {inverse!r}, was NaN or infinite in {kind.name}, as that of a linops.inverse is "
            "whose solve did not converge; expected finite numbers: OPinv @ v says why for a vector v. Next to an "
            "eigenvalue rounding leaves a larger residual than usual: pass linops.inverse a larger rtol, up to some "
            f"{math.sqrt(jnp.finfo(A.dtype).eps):.0e}, or maxiter, build A in float64, or take another sigma"
        )
    raise FloatingPointError(
        f"a product with {A!r} was NaN or infinite in {kind.name}, expected finite numbers: multiply by a vector, "
        "A @ v, to see where they come from"
    )


def _require_converged(kind, A, inverse, values, vectors, record, shape, interrupted):
    code = int(record.code)
    if code == NOT_SYMMETRIC and inverse is not None:
        raise ValueError(
            f"eigsh got OPinv={inverse!r}, whose matrix is not Hermitian: products with it show v^H B u and u^H B v "
            "that differ; expected the inverse of A - sigma M, a Hermitian one, solved to more digits if it is"
        )
    if code == NOT_SYMMETRIC:
        raise ValueError(
            f"eigsh got {A!r}, whose matrix is not Hermitian: products with it show v^H A u and u^H A v that differ; "
            "expected a Hermitian one: linops.linalg.svds takes any, and scipy.sparse.linalg.eigs finds eigenvalues"
        )
    if code == NO_INVERSE:
        raise ValueError(
            f"eigsh got an OPinv that is not the inverse of A - sigma M for {A!r}: OPinv (A - sigma M) v is not v; "
            "expected one that is, solved to more digits than tol asks for"
        )
    known = np.asarray(record.converged)
    if not known.all():
        places = np.flatnonzero(known)
        with scope_of(A).entered():
            values, vectors = jax.tree.map(lambda leaf: jnp.take(leaf, places, axis=0), (values, vectors))
        error = Interrupted if interrupted else NoConvergence
        raise error(
            f"{known.sum()} of {known.size} {kind.value}s of {A!r} converged: {record.reason}; they are in "
            f".eigenvalues, their vectors in .eigenvectors. Expected {_REMEDIES[code]}.\n{record!r}",
            values,
            shape(vectors),
            record,
        )
