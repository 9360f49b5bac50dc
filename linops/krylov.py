"""Krylov spaces as factorizations: Arnoldi and Lanczos by one struct, Golub-Kahan by another; begin, expand, shrink.

Vectors are trees of a Space. A basis is a tree of which each leaf has one more leading axis, its rows; rows that are
not in use are zero, so that they take no part in an inner product. Nothing is concatenated: a leaf that lies on a mesh
stays there.

Each new vector is orthogonalized twice against all the others: once is not enough in float32, where residual bounds
came out ten times too small (Giraud, Langou, Rozloznik, van den Eshof, 2005: twice is).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from linops.iterate import maybe
from linops.precision import real_dtype
from linops.space import combination, inner_products, length, placed

PASSES = 2  # of Gram-Schmidt
BREAKDOWN = 10  # times eps of the vector before: less is left of it by rounding alone
TOLD = 1000  # times eps of the norm: values that far apart have vectors that can be told
SYMMETRIC = 0.25  # a power of what products are off by: so far from Hermitian, in shares of the norm, is no rounding
CHUNK = 2**18  # numbers of a basis that are rotated at once, in place


# Bases: trees of rows.


def empty(like, rows):
    """A basis of rows of zeros, which lie where the leaves of a vector do."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (rows, *leaf.shape)), zeros_like(like))


def zeros_like(v):
    """The zero vector, where another one lies: `jnp.zeros_like` forgets an explicit mesh, of JAX 0.12."""
    return jax.tree.map(lambda leaf: jnp.where(False, leaf, jnp.zeros((), leaf.dtype)), v)


def row(basis, i):
    """One vector of it."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), basis)


def with_row(basis, i, v):
    """The basis with another vector at row i."""
    return jax.tree.map(lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, i, 0), basis, v)


def rotated(basis, R, in_place=True):
    """Row i of the result is the sum of R[i, j] times row j of the basis.

    In place, a piece of the leaves at a time: the memory is that of one basis. A leaf on several devices is rotated
    whole, for its pieces would be gathered.
    """

    def of_leaf(leaf):
        rows, matrix = leaf.shape[0], R.astype(leaf.dtype)
        columns, width = leaf.size // rows, max(1, CHUNK // rows)
        # In a jit it is explicit axes alone that tell of several devices; a leaf along them is not to be reshaped.
        if not in_place or columns <= 2 * width or any(jax.typeof(leaf).sharding.spec):
            return jnp.tensordot(matrix, leaf, axes=1, precision="highest")
        flat = leaf.reshape(rows, columns)

        def piece(i, flat):
            start = jnp.minimum(i * width, columns - width)
            fresh = i * width - start  # columns that the last piece, which ends at the end, has in common with another
            old = jax.lax.dynamic_slice_in_dim(flat, start, width, axis=1)
            new = jnp.where(jnp.arange(width) < fresh, old, product(matrix, old))
            return jax.lax.dynamic_update_slice_in_dim(flat, new, start, axis=1)

        return jax.lax.fori_loop(0, -(-columns // width), piece, flat).reshape(leaf.shape)

    return jax.tree.map(of_leaf, basis)


def product(A, B):
    """The product of matrices, in all digits."""
    return jnp.matmul(A, B, precision="highest")


def orthogonalized(space, basis, v):
    """What v has beyond the span of the rows, and its coefficients on them: some passes of Gram-Schmidt."""

    def a_pass(_, pair):
        v, coefficients = pair
        step = inner_products(space, basis, v)
        return jax.tree.map(jnp.subtract, v, combination(basis, step)), coefficients + step

    return jax.lax.fori_loop(0, PASSES, a_pass, (v, jnp.zeros(rows_of(basis), space.dtype)))


def next_vector(space, basis, v, seed):
    """What v adds to a basis: a unit vector orthogonal to the rows, with v's coefficients on them and on it.

    Where rounding alone is left of v, judged against v, the space is invariant: a random vector goes on, and the
    coefficient on it is zero. That one is zero, or all rounding, where the rows span the space.
    """
    v = placed(v, row(basis, 0))
    before = space.norm(v)
    # Of length one, for inner products of what is left of a small vector leave the range.
    v = space.scale(1 / jnp.where(before > 0, before, 1), v)
    rounding = BREAKDOWN * jnp.finfo(before.dtype).eps

    def a_try(state):
        # One body serves v and what is drawn in its place: XLA compiles it once.
        tries, v, coefficients, norm, _ = state
        first = tries == 0
        # No jax.lax.cond: of columns JAX makes it a choice that it does not lay along explicit axes.
        v = maybe(~first, lambda v: placed(noise(space, seed), v), v)
        v, step = orthogonalized(space, basis, v)
        size = space.norm(v)
        return tries + 1, v, jnp.where(first, step, coefficients), jnp.where(first, size, norm), size

    def goes_on(state):
        tries, _, _, norm, _ = state
        return (tries == 0) | ((tries == 1) & ~(norm > rounding))

    none = jnp.zeros(rows_of(basis), space.dtype)
    _, v, coefficients, norm, size = jax.lax.while_loop(goes_on, a_try, (jnp.int32(0), v, none, before, before))
    unit = space.scale(1 / jnp.where(size > 0, size, 1), v)
    return unit, before * coefficients, jnp.where(norm > rounding, before * norm, 0)


def seed_of(key):
    """What random vectors here are drawn by, of a key of JAX: two words, of which others follow by addition alone."""
    return jax.random.key_data(key).ravel()[-2:]


def after(seed, steps=1):
    """The seed that comes so many steps later: by multiples of the golden ratio, which do not meet."""
    return seed + jnp.uint32(0x9E3779B9) * jnp.asarray(steps).astype(jnp.uint32)


def noise(space, seed):
    """An element of entries between -1 and 1, each the hash of its place and of a seed.

    Any vector would do here, and one of `Space.draw` takes XLA a second to compile. The hash is of C. Wellons
    ("Prospecting for hash functions", 2018).
    """
    first, second = seed

    def entries(i, shape, dtype):
        place = jnp.zeros(shape, jnp.uint32)
        for axis, size in enumerate(shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        hashed = _hash(_hash(place ^ first) + second + jnp.uint32(i))
        return (hashed.astype(jnp.float32) / 2.0**31 - 1).astype(dtype)

    def leaf(i, shape, dtype):
        real = real_dtype(dtype)
        if real == dtype:
            return entries(2 * i, shape, real)
        return jax.lax.complex(entries(2 * i, shape, real), entries(2 * i + 1, shape, real))

    with space.scope():
        leaves = map(leaf, range(len(space.shapes)), space.shapes, space.dtypes)
        return space.treedef.unflatten(leaves)


def _hash(x):
    for multiplier in (0x7FEB352D, 0x846CA68B):
        x = (x ^ (x >> 16)) * jnp.uint32(multiplier)
    return x ^ (x >> 15)


def laid(A, v):
    """A vector, which may be given or drawn as a whole, where products with a square A are: along explicit axes."""
    is_explicit = any(jax.typeof(leaf).sharding.mesh.explicit_axes for leaf in jax.tree.leaves(A))
    return placed(v, jax.eval_shape(A._mv, v)) if is_explicit else v


# Arnoldi and Lanczos.


class Krylov(NamedTuple):
    """A V[:j] = V[:j+b] H[:j+b, :j], with orthonormal rows V, of size j, and blocks of b vectors.

    H, of shape (rows, columns) for a capacity of as many, has all inner products Vᴴ A V that were made. For a
    Hermitian A it is, but for rounding, banded and Hermitian (Lanczos); else it is the one of Arnoldi.
    """

    basis: Any
    matrix: jax.Array
    size: jax.Array
    seed: jax.Array

    @property
    def capacity(self):
        """The size that there is memory for."""
        return self.matrix.shape[1]

    @property
    def width(self):
        """How many vectors a block has."""
        return self.matrix.shape[0] - self.matrix.shape[1]


def begin(A, capacity, block, seed, held=None):
    """The space of a block of vectors, a tree with one more leading axis: orthonormal, and not yet multiplied by A.

    Vectors that are held are its first rows, so that all others are orthogonal to them; they count in its size.
    """
    space, block = A.domain, jax.vmap(functools.partial(laid, A))(block)
    width, before = rows_of(block), 0 if held is None else rows_of(held)
    basis = empty(row(block, 0), capacity + width)
    for vectors, start in ((held, 0), (block, before)) if before else ((block, 0),):
        basis = appended(space, basis, start, vectors, after(seed, start))
    matrix = jnp.zeros((capacity + width, capacity), space.dtype)
    return Krylov(basis, matrix, jnp.full((), before, jnp.int32), after(seed, before + width))


def rows_of(basis):
    """How many rows a basis has."""
    return jax.tree.leaves(basis)[0].shape[0]


def appended(space, basis, start, vectors, seed):
    """The basis with what vectors, rows of another, add to it, from row `start` on."""

    def add(i, basis):
        unit, _, _ = next_vector(space, basis, row(vectors, i), after(seed, i))
        return with_row(basis, start + i, unit)

    return jax.lax.fori_loop(0, rows_of(vectors), add, basis)


def expand(A, space, krylov):
    """The space with the products of its last block, which is the size of that larger: `A(v)` is one of them."""
    basis, matrix, size, seed = krylov
    width = krylov.width
    if width == 1:
        products = jax.tree.map(lambda leaf: leaf[None], A(row(basis, size)))
    else:
        block = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, size, width), basis)
        products = jax.vmap(A)(block)

    def add(i, state):
        basis, matrix = state
        unit, coefficients, norm = next_vector(space, basis, row(products, i), after(seed, i))
        column = coefficients.at[size + width + i].set(norm.astype(matrix.dtype))
        return with_row(basis, size + width + i, unit), matrix.at[:, size + i].set(column)

    basis, matrix = jax.lax.fori_loop(0, width, add, (basis, matrix))
    return Krylov(basis, matrix, size + width, after(seed, width))


def shrink(krylov, vectors, keep, in_place=True):
    """The space that the first `keep` columns of `vectors` span, with the block that comes next: a thick restart.

    `vectors`, of shape (capacity, capacity), are Ritz or Schur vectors of the projected matrix, the others zero
    (Wu and Simon, 2000; Stewart, 2002).
    """
    basis, matrix, size, seed = krylov
    rows, width = matrix.shape[0], krylov.width
    places = jnp.arange(width)
    R = jnp.zeros((rows, rows), matrix.dtype).at[: krylov.capacity, : krylov.capacity].set(vectors.T)
    R = R.at[keep + places, size + places].set(1)
    matrix = product(R.conj(), product(matrix, vectors))
    return Krylov(rotated(basis, R, in_place), matrix, keep, seed)


def projected(krylov):
    """The projected matrix Vᴴ A V as it was computed, of shape (capacity, capacity), zero beyond the size."""
    places = jnp.arange(krylov.capacity)
    within = (places[:, None] < krylov.size) & (places[None, :] < krylov.size)
    return jnp.where(within, krylov.matrix[: krylov.capacity], 0)


def asymmetry(matrix):
    """The largest |H - Hᴴ| of inner products H with an operator: of one that is Hermitian there is rounding alone."""
    return jnp.max(jnp.abs(matrix - matrix.conj().T), initial=0)


def is_hermitian(A, matrix):
    """Whether inner products with A are those of a Hermitian operator, as far as can be told from rounding."""
    return ~(asymmetry(matrix) > A._unit**SYMMETRIC * jnp.max(jnp.abs(matrix), initial=0))


def couplings(krylov, vectors):
    """The norms of the residuals A V y - V (Vᴴ A V) y of the columns y of `vectors`."""
    places = jnp.arange(krylov.matrix.shape[0])
    beyond = jnp.where((places >= krylov.size)[:, None], krylov.matrix, 0)
    return length(product(beyond, vectors), axis=0)


# Golub and Kahan.


class GolubKahan(NamedTuple):
    """A V[:j] = U[:j] B[:j, :j] and Aᴴ U[:j] = V[:j] B[:j, :j]ᴴ + residual V[j] e_jᵀ, with orthonormal rows U and V."""

    right: Any
    left: Any
    matrix: jax.Array
    residual: jax.Array
    size: jax.Array
    seed: jax.Array

    @property
    def capacity(self):
        """The size that there is memory for."""
        return self.matrix.shape[1]


def begin_golub_kahan(A, domain, codomain, capacity, v, seed):
    """The spaces of a vector of the domain: of unit length, and not yet multiplied; where A(v) lies is all of it."""
    right = empty(v, capacity + 1)
    unit, _, _ = next_vector(domain, right, v, seed)
    matrix = jnp.zeros((capacity, capacity), codomain.dtype)
    residual = jnp.zeros((), real_dtype(codomain.dtype))
    return GolubKahan(
        with_row(right, 0, unit),
        empty(A(unit), capacity),
        matrix,
        residual,
        jnp.zeros((), jnp.int32),
        after(seed),
    )


def expand_golub_kahan(A, adjoint, domain, codomain, spaces):
    """The spaces with one product with A and one with its adjoint: one larger each; what is NaN stays NaN in them."""
    right, left, matrix, _, size, seed = spaces
    u, coefficients, norm = next_vector(codomain, left, A(row(right, size)), seed)
    left = with_row(left, size, u)
    matrix = matrix.at[:, size].set(coefficients.at[size].set(norm.astype(matrix.dtype)))
    v, coefficients, residual = next_vector(domain, right, adjoint(u), after(seed))
    residual = jnp.where(jnp.all(jnp.isfinite(coefficients)), residual, jnp.nan)
    return GolubKahan(with_row(right, size + 1, v), left, matrix, residual, size + 1, after(seed, 2))


def shrink_golub_kahan(spaces, left_vectors, right_vectors, keep, in_place=True):
    """The spaces that the first `keep` columns of singular vectors of B span, the others zero; the next vector stays.

    It is to be expanded before its residual is read again. Thick restart (Baglama and Reichel, 2005).
    """
    right, left, matrix, residual, size, seed = spaces
    capacity = spaces.capacity
    R = jnp.zeros((capacity + 1, capacity + 1), matrix.dtype).at[:capacity, :capacity].set(right_vectors.T)
    R = R.at[keep, size].set(1)
    matrix = product(left_vectors.conj().T, product(matrix, right_vectors))
    return GolubKahan(
        rotated(right, R, in_place), rotated(left, left_vectors.T, in_place), matrix, residual, keep, seed
    )


def restart_golub_kahan(domain, spaces):
    """The spaces as they are, to be expanded from a random vector: what the next one would add is left out."""
    right, size = spaces.right, spaces.size
    fresh, spare, seed = (after(spaces.seed, steps) for steps in range(3))
    v = row(right, size)
    right = with_row(right, size, zeros_like(v))
    unit, _, _ = next_vector(domain, right, placed(noise(domain, fresh), v), spare)
    return spaces._replace(right=with_row(right, size, unit), seed=seed)


def singular_vectors(spaces):
    """The singular value decomposition X diag(s) Yᴴ of B, descending; beyond the size X and Y are not in use.

    There the diagonal is filled with a larger number, so that no vector of it mixes with those of zeros of B. All is
    computed of a matrix of norm one, for squares of values leave the range of a dtype early.
    """
    capacity, norm = spaces.capacity, length(spaces.matrix)
    places, scale = jnp.arange(capacity), jnp.where(norm > 0, norm, 1)
    filled = places >= spaces.size
    matrix = spaces.matrix / scale + jnp.diag(jnp.where(filled, 2, 0).astype(spaces.matrix.dtype))
    X, _, Yh = jnp.linalg.svd(matrix)
    X, s, Y = (jnp.roll(a, spaces.size - capacity, axis=-1) for a in polished(matrix, X, Yh.conj().T))
    return X, jnp.where(filled, 0, scale * jnp.maximum(s, 0)), Y


def polished(B, X, Y):
    """Singular vectors of B, and values, to nearly all digits: LAPACK's have residuals of 10 to 20 eps of the norm.

    They are made orthonormal to second order, and Xᴴ B Y diagonal to first order, but for values too close to tell
    (Ogita and Aishima, 2020).
    """
    X, Y = orthonormal(X), orthonormal(Y)
    T = product(X.conj().T, product(B, Y))
    s = jnp.diagonal(T).real
    gaps = s[None, :] - s[:, None]
    told = abs(gaps) > TOLD * jnp.finfo(s.dtype).eps * s[0]
    ratio = jnp.where(told, 1 / jnp.where(told, gaps * (s[None, :] + s[:, None]), 1), 0)
    F = ratio * (T * s[None, :] + s[:, None] * T.conj().T)
    G = ratio * (T * s[:, None] + s[None, :] * T.conj().T)
    return orthonormal(X + product(X, F)), s, orthonormal(Y + product(Y, G))


def orthonormal(Q):
    """A square matrix that is nearly orthonormal as one that is more so."""
    return Q - product(Q, product(Q.conj().T, Q) - jnp.eye(len(Q), dtype=Q.dtype)) / 2


def couplings_golub_kahan(spaces, X):
    """The norms of the residuals Aᴴ U x - V Bᴴ x of the columns x of X; those of A V y - U B y are zero."""
    last = jax.lax.dynamic_index_in_dim(X, spaces.size - 1, keepdims=False)
    return spaces.residual * abs(last)
