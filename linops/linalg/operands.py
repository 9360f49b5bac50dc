"""What the algorithms of `linops.linalg` are given, and give: operators, vectors and blocks as trees, and as arrays."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
from jax.custom_derivatives import SymbolicZero

from linops.algebra.operator import Operator
from linops.arrays import as_host, as_leaf, brief
from linops.budget import BASIS_SHARE, memory_budget
from linops.derivatives.jacobian import Jacobian
from linops.krylov import noise
from linops.matrix import Matrix
from linops.precision import real_dtype
from linops.products import is_traced
from linops.space import as_whole

DTYPES = ("float32", "float64", "complex64", "complex128")


def require_dtype(what, A, given="an operator", remedy="its point"):
    """Refuse what is not in one of the four dtypes that LAPACK computes in."""
    if str(A.dtype) not in DTYPES:
        raise TypeError(
            f"{what} got {given} in {A.dtype}, expected {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, which LAPACK has: "
            f"convert {remedy}"
        )


def require_matrix(what, A):
    """Refuse an operator that LAPACK does not compute with, or of no rows, where nothing is to be found."""
    require_dtype(what, A)
    if min(A.shape) < 1:
        raise ValueError(f"{what} got {A!r}, which is empty, expected an operator of at least one row and column")


def as_operator(A, space, what):
    """An operator, of an array of two dimensions or of a function that is linear on a Space too."""
    if isinstance(A, Operator):
        return A
    if isinstance(A, np.ndarray | jax.Array):
        return Matrix(A)
    if callable(A) and space is not None:
        return Jacobian(A, space.zeros())
    is_of_scipy = hasattr(scipy.sparse.linalg, what)
    of_function = "a function in JAX that is linear, with the Space that it takes as space=; "
    raise TypeError(
        f"{what} got {type(A).__name__}, expected an operator of linops, an array of shape (m, n), or "
        + (f"{of_function}scipy.sparse.linalg.{what} takes those of SciPy" if is_of_scipy else "a linops.Jacobian")
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _never(words, leaf):
    """0, where nothing is differentiated any more."""
    return jnp.zeros((), jnp.float32)


@_never.defjvp
def _(words, primals, tangents):
    raise TypeError(words)


def are_zero(tangents):
    """Whether JAX says of all tangents in a tree that they are zero."""
    return all(isinstance(tangent, SymbolicZero) for tangent in jax.tree.leaves(tangents))


def instantiated(tangent):
    """A tangent as an array, where JAX may say that it is zero."""
    return jnp.zeros(tangent.shape, tangent.dtype) if are_zero(tangent) else tangent


def once(words, *trees):
    """1, for a derivative that holds trees fixed: another one by these raises a TypeError of these words."""
    return 1 + sum(_never(words, leaf) for leaf in jax.tree.leaves(trees) if jnp.issubdtype(leaf.dtype, jnp.inexact))


def as_square(A, space, what):
    """The same, which maps a Space to itself."""
    A = as_operator(A, space, what)
    if A.shape[0] != A.shape[1]:
        raise ValueError(f"{what} got an operator of shape {A.shape}, expected a square one")
    return A if A.domain == A.codomain else A._on(A.domain, A.domain)


def as_given(space, vectors, what):
    """Vectors as they are given; a list of numbers is an array of a flat Space, as in SciPy."""
    if not (space.is_flat and isinstance(vectors, list | tuple)):
        return vectors
    array = as_host(vectors, what)
    return array.astype(space.dtype) if array.dtype == float else array  # Python's numbers ask for no precision


def block_of(space, vectors, what):
    """Vectors as a tree with one more leading axis: of an array (n,) or (n, p), an element, or a tree of p of them."""
    vectors = as_given(space, vectors, what)
    if isinstance(vectors, np.ndarray | jax.Array) and vectors.ndim in (1, 2) and vectors.shape[0] == space.size:
        columns = (vectors if vectors.ndim == 2 else vectors[:, None]).T
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *[space.point(column, what) for column in columns])
    leaves, treedef = jax.tree.flatten(vectors)
    shapes = [jnp.shape(leaf) for leaf in leaves]
    if treedef == space.treedef and shapes == list(space.shapes):
        return jax.tree.map(lambda leaf: leaf[None], space.point(vectors, what))
    many = {shape[0] for shape in shapes if shape}
    if treedef == space.treedef and len(many) == 1 and shapes == [(*many, *shape) for shape in space.shapes]:
        with space.scope():
            return treedef.unflatten(map(functools.partial(as_leaf, what=what), leaves, space.dtypes))
    raise ValueError(
        f"{what} is a tree of structure {brief(treedef)} and shapes {brief(shapes)}, expected an array of shape "
        f"({space.size},) or ({space.size}, p), or a tree like the operator's domain, {brief(space.treedef)} with "
        f"shapes {brief(list(space.shapes))}, or with one more leading axis"
    )


def start(A, v0, seed):
    """The block to start from, random where none is given; on devices as products of a square operator are."""
    if v0 is not None:
        return block_of(A.domain, v0, "v0")
    v = _noise(A.domain, seed)
    if not is_traced((A, v)) and not is_on_one_device(A):
        product = A.mv(v)
        v = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), v, product)
    return jax.tree.map(lambda leaf: leaf[None], v)


_noise = jax.jit(noise, static_argnums=0)


def as_columns(space, block):
    """The array of shape (n, k) of a tree of k vectors."""
    with space.scope():
        rows = [
            as_whole(leaf).reshape(len(leaf), math.prod(leaf.shape[1:])).astype(space.dtype)
            for leaf in jax.tree.leaves(block)
        ]
        return (rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=1)).T


def fitting(spaces, wanted, least):
    """How many vectors of each of the Spaces: those wanted, or as many as the memory holds, and at least so many."""
    size = sum(
        math.prod(shape) * dtype.itemsize for s in spaces for shape, dtype in zip(s.shapes, s.dtypes, strict=True)
    )
    return max(least, min(wanted, memory_budget(BASIS_SHARE) // max(1, size)))


def capacity(spaces, k, ncv, wanted, width=1, held=0):
    """How many rows bases have that find k vectors, in blocks of a width: those that are held included."""
    least = held + k + width + 1
    rows = held + ncv if ncv else fitting(spaces, held + wanted, least)
    return min(max(rows, least), *(space.size for space in spaces))


def is_on_one_device(A):
    """Whether all arrays are known to lie on one device; of arrays in a jit nothing is known."""
    leaves = [leaf for leaf in jax.tree.leaves(A) if isinstance(leaf, jax.Array)]
    return not is_traced(A) and all(len(leaf.sharding.device_set) == 1 for leaf in leaves)


def rounding(A, more):
    """What rounding in products with A comes to, relative to its norm: of sums of random sign, and some more eps."""
    return A._unit * (more + math.sqrt(max(A.shape)) / 4)


def with_nan(rows, known):
    """A tree of rows, or of one, that is NaN where nothing is known, as are derivatives: a product, and no choice."""

    def of_leaf(leaf):
        factor = jnp.where(known, 1, jnp.nan).astype(real_dtype(leaf.dtype))
        return leaf * factor.reshape(known.shape + (1,) * (leaf.ndim - known.ndim))

    return jax.tree.map(of_leaf, rows)
