"""What users hand to a solver, and how solutions are handed back: operators, limits, right-hand sides."""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from linops.iterate import scope_of
from linops.linalg.operands import as_columns, as_square, block_of, require_dtype
from linops.precision import real_dtype
from linops.products import is_traced


class Limits(NamedTuple):
    """When a solver stops: residual norms of max(rtol ‖b‖, atol), or so many iterations."""

    rtol: jax.Array
    atol: jax.Array
    iterations: jax.Array


def square_system(name, A, M, space):
    """A and its preconditioner, as operators of one Space."""
    A = as_square(A, space, name)
    require_dtype(name, A)
    return A.linearize(), preconditioner(name, A, M)


def preconditioner(name, A, M):
    """M, between elements of the domain of A; or None."""
    if M is None:
        return None
    M = as_square(M, A.domain, f"M of {name}")
    if M.shape != A.shape:
        raise ValueError(f"{name} got M of shape {M.shape} for {A!r}, expected {A.shape}")
    return M._on(A.domain, A.domain).linearize()


def require_not_negative(name, **values):
    """Numbers, by the names of arguments, where they are given and known."""
    for what, value in values.items():
        if value is not None and not is_traced(value) and not (np.ndim(value) == 0 and value >= 0):
            raise ValueError(f"{name} got {what}={value!r}, expected a number that is not negative")


def require_counts(name, **values):
    """Integers, by the names of arguments, where they are given and known."""
    for what, value in values.items():
        if value is not None and not is_traced(value) and operator.index(value) < 1:
            raise ValueError(f"{name} got {what}={value}, expected at least 1")


def refuse_show(name, show):
    """SciPy's lines of text; there is a bar in place of them."""
    if show:
        raise ValueError(f"{name} got show=True, expected False: with linops.monitor(A) in place of A a bar is shown")


def limits(name, A, rtol, atol, maxiter, default):
    """The limits as arrays; `default` iterations where none are asked for, and one of a system without rows."""
    maxiter = max(1, default) if maxiter is None else maxiter
    require_not_negative(name, rtol=rtol, atol=atol)
    require_counts(name, maxiter=maxiter)
    real = real_dtype(A.dtype)
    with scope_of(A).entered():
        return Limits(jnp.asarray(rtol, real), jnp.asarray(atol, real), jnp.asarray(maxiter, jnp.int32))


class Right(NamedTuple):
    """Right-hand sides as rows of a tree, and how solutions are handed back: like what was given."""

    rows: Any
    is_block: bool
    as_array: bool

    @classmethod
    def of(cls, space, b, name):
        """Of an array of shape (n,) or (n, k), an element, or a tree of k of them."""
        rows = block_of(space, b, f"b of {name}")
        if isinstance(b, np.ndarray | jax.Array) and b.ndim in (1, 2) and b.shape[0] == space.size:
            return cls(rows, b.ndim == 2, True)
        return cls(rows, jnp.shape(jax.tree.leaves(b)[0]) != space.shapes[0], False)

    def beginning(self, space, x0, name):
        """The guess x0, rows of as many, or None."""
        if x0 is None:
            return None
        rows = block_of(space, x0, f"x0 of {name}")
        counts = [jax.tree.leaves(tree)[0].shape[0] for tree in (rows, self.rows)]
        if counts[0] != counts[1]:
            raise ValueError(f"{name} got x0 with {counts[0]} columns for b with {counts[1]}, expected as many")
        return rows

    def shaped(self, space, rows):
        """Rows as what was given: of the domain of A, a Space that is not always that of b."""
        if self.as_array:
            columns = as_columns(space, rows)
            return columns if self.is_block else columns[:, 0]
        return rows if self.is_block else jax.tree.map(lambda leaf: leaf[0], rows)

    def counted(self, record):
        """The record of all columns, or of the only one."""
        return record if self.is_block else jax.tree.map(lambda leaf: leaf[0] if jnp.ndim(leaf) else leaf, record)
