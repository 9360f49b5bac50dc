"""The range of an operator as probes find it: an orthonormal basis of their products, and what lies beside it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from linops.estimate.probes import columns, gram, joined, keys_of, orthonormal, shifted
from linops.precision import real_dtype


def new_probes(draw, A, key, state, count):
    """The probes by which a state, a tuple of blocks with the probes first, has to grow."""
    done = columns(state and state[0])
    return jax.vmap(functools.partial(draw, A.domain))(keys_of(key, done, count - done))


def grown_range(A, state, W, times, times_basis):
    """Probes, by W more than a state has, their products, an orthonormal basis of these, and its products."""
    old = (None,) * 4 if state is None else state
    W, Y = joined(old[0], W), joined(old[1], times(W))
    # The basis is held fixed in derivatives.
    Q = orthonormal(A.domain, shifted(A.domain, *jax.lax.stop_gradient((Y, W))), old[2])
    added = jax.tree.map(lambda leaf: leaf[columns(old[2]) :], Q)
    return W, Y, Q, joined(old[3], times_basis(added))


def left_out(A, Y, W, Q):
    """For each probe the unit vector by which the basis without it is smaller, as coefficients of Q."""
    R = jnp.triu(gram(A.domain, Q, shifted(A.domain, Y, W)))
    return normalized(solve_triangular(R, jnp.eye(len(R), dtype=R.dtype)).conj().T)[0]


def forms_beside(A, W, Y, Q, Z, X):
    """The numbers vᴴ A v of v = w - Q x for the columns of W and X: of the products Y = A W and Z = A Q."""
    inner = functools.partial(gram, A.domain)
    own = jax.vmap(A.domain.inner)(W, Y)
    return _forms(own, inner(W, Z), inner(Q, Y), X, inner(Q, Z) @ X)


def _forms(own, WZ, QY, X, HX):
    return own - jnp.sum(WZ.T * X, axis=0) + jnp.sum(X.conj() * (HX - QY), axis=0)


class Others(NamedTuple):
    """Small matrices from which the estimate by each probe is read, with the basis that the others find."""

    dimension: int
    S: jax.Array  # by which direction of Q the basis is smaller without a probe
    own: jax.Array
    WZ: jax.Array
    QY: jax.Array
    QW: jax.Array
    H: jax.Array

    @classmethod
    def of(cls, A, W, Y, Q, Z):
        S = left_out(A, *jax.lax.stop_gradient((Y, W, Q)))
        inner = functools.partial(gram, A.domain)
        own = jax.vmap(A.domain.inner)(W, Y)
        return cls(A.shape[0], S, own, inner(W, Z), inner(Q, Y), inner(Q, W), inner(Q, Z))

    def samples(self):
        """Of each probe w, with Q for the basis of the others: tr(Qᴴ A Q) + vᴴ A v for v = (I - Q Qᴴ) w."""
        return self._without((self.S, self.H @ self.S))

    def samples_without(self, HS, j):
        """The same without probe j as well; HS is the product H S."""
        s, Hs = self.S[:, j, None], HS[:, j, None]
        shares = s.conj().T @ self.S
        U, lengths = normalized(self.S - s * shares)
        return self._without((s, Hs), (U, (HS - Hs * shares) / lengths))

    def _without(self, *removed):
        """The samples with a basis that is smaller by directions, columns with their products with H."""
        X, HX, inside = self.QW, self.H @ self.QW, jnp.trace(self.H)
        for D, HD in removed:
            shares = jnp.sum(D.conj() * self.QW, axis=0)
            X, HX, inside = X - D * shares, HX - HD * shares, inside - jnp.sum(D.conj() * HD, axis=0)
        # Beside the others a probe is uniform on a sphere again, of fewer dimensions, whose radius is set.
        beside = self.dimension - len(self.QW) + len(removed)
        scale = beside / (self.dimension - jnp.sum(jnp.abs(X) ** 2, axis=0))
        return inside + scale * _forms(self.own, self.WZ, self.QY, X, HX)


def normalized(D):
    """The columns by their norms, and these, 1 where a column is 0."""
    lengths = jnp.linalg.norm(D, axis=0)
    lengths = jnp.where(lengths > 0, lengths, 1)
    return D / lengths, lengths


def scaled(space, Y, *others):
    """The largest norm of a column of Y, and the blocks by it: squares ahead leave the range of float32."""
    size = jax.lax.stop_gradient(jnp.max(jax.vmap(space.norm)(Y)))
    divided = jax.tree.map(lambda leaf: (leaf / jnp.where(size > 0, size, 1)).astype(leaf.dtype), (Y, *others))
    return size, *divided


def size_of_forms(A, Y):
    """A bound of the forms of probes and products, whose parts cancel."""
    return jnp.mean(jax.vmap(A.domain.norm)(Y)) * jnp.sqrt(A.shape[0]).astype(real_dtype(A.domain.dtype))
