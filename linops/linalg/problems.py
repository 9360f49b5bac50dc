"""The eigenproblems that `eigsh` takes, as standard ones: A v = w M v with a diagonal M, and shift-invert mode."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from linops.algebra.operator import Operator
from linops.linalg.operands import as_square
from linops.matrix import Diagonal, Identity
from linops.products import is_traced


class Problem(NamedTuple):
    """A standard problem, and how its pairs become those that are asked for."""

    A: Operator
    inverse: Operator | None = None  # of A - sigma
    sigma: jax.Array | None = None
    scale: Operator | None = None  # M^-1/2, by which A was multiplied on both sides
    root: Operator | None = None  # M^1/2

    @property
    def operator(self):
        """The one of which extreme pairs are sought."""
        return self.A if self.inverse is None else self.inverse


def standard_problem(A, M, sigma, OPinv):
    """The standard problem that it is: operators, and how its pairs become those that are asked for."""
    if (sigma is None) != (OPinv is None):
        raise ValueError(
            f"eigsh got sigma={sigma!r} and OPinv={OPinv!r}, expected both or none of them: OPinv is the operator "
            "(A - sigma M)^-1"
        )
    inverse = None if OPinv is None else as_square(OPinv, A.domain, "eigsh")
    scale = root = None
    if M is not None and not isinstance(M, Identity):
        entries = _positive_entries(A, M)
        root, scale = (
            Diagonal(jax.tree.map(power, entries))._on(A.domain, A.domain) for power in (jnp.sqrt, jax.lax.rsqrt)
        )
        A = scale @ A @ scale
        inverse = None if inverse is None else root @ inverse @ root
    return Problem(A.linearize(), None if inverse is None else inverse.linearize(), sigma, scale, root)


def _positive_entries(A, M):
    """The diagonal of M, as an element of the domain of A."""
    if not isinstance(M, Diagonal) or M.shape != A.shape:
        raise TypeError(
            f"eigsh got M={M!r} for {A!r}, expected a linops.Diagonal of its size, whose inverse is known; another one "
            "takes scipy.sparse.linalg.eigsh, with sigma=0 and OPinv=linops.inverse(A) for the smallest eigenvalues, "
            "or Minv=linops.inverse(M)"
        )
    entries = A.domain.unravel(M.domain.ravel(M.entries).astype(A.domain.dtype))
    if not is_traced(entries) and not all(bool(jnp.all(leaf.real > 0)) for leaf in jax.tree.leaves(entries)):
        raise ValueError("eigsh got an M with entries that are not positive, expected a positive definite one")
    return entries


def inverse_errors(A, sigma, values, rows):
    """How far OPinv is from (A - sigma)^-1, on each eigenvector: |w (A - sigma) v - v| for OPinv v = w v."""

    def error(pair):
        w, v = pair
        back = jax.tree.map(lambda p, u: (w * (p - sigma * u)).astype(u.dtype) - u, A._mv(v), v)
        return A.domain.norm(back)

    return jax.lax.map(error, (values, rows))
