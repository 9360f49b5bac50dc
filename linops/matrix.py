"""Explicit operators: those whose numbers are given."""

import numbers

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from linops.algebra.operator import Operator
from linops.arrays import as_inexact, is_at_least_zero
from linops.node import static
from linops.precision import is_complex, real_dtype
from linops.realify import one_field
from linops.space import Space, combination, inner_products, space_of


class Matrix(Operator):
    """A dense (m, n) array as an operator, real or complex.

    >>> (Matrix(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)) @ np.array([1, 1])).tolist()
    [3.0, 7.0]
    """

    array: jax.Array

    def __init__(self, array):
        if scipy.sparse.issparse(array):
            raise TypeError(
                f"Matrix got a sparse {type(array).__name__}, expected a dense array: combine the sparse matrix with "
                "operators as it is (SciPy's algebra takes it), or pass array.toarray()"
            )
        array = as_inexact(array, "the array of a Matrix")
        if array.ndim != 2:
            raise ValueError(f"Matrix got an array of shape {array.shape}, expected (m, n)")
        object.__setattr__(self, "array", array)

    domain = property(lambda self: Space.flat(self.array.shape[1], self.array.dtype))
    codomain = property(lambda self: Space.flat(self.array.shape[0], self.array.dtype))

    def _mv(self, v):
        return self.array @ v


class Diagonal(Operator):
    """The diagonal matrix of a vector, or of a pytree of arrays that is multiplied elementwise.

    >>> (Diagonal(np.array([1.0, 2.0], np.float32)) @ np.array([3, 3])).tolist()
    [3.0, 6.0]
    """

    entries: object
    space: Space = static()

    def __init__(self, d):
        if isinstance(d, np.ndarray | jax.Array) and d.ndim > 1:
            raise ValueError(
                f"Diagonal got an array of shape {d.shape}, expected a vector of diagonal entries, or a pytree of "
                "arrays: Matrix takes a matrix, np.diag(d) its diagonal, d.ravel() all of its entries"
            )
        paths, treedef = jax.tree_util.tree_flatten_with_path(d)
        leaves = [as_inexact(leaf, f"d{jax.tree_util.keystr(path)}") for path, leaf in paths]
        space = one_field(space_of(treedef.unflatten(leaves), "d"))
        with space.scope():
            entries = treedef.unflatten(leaf.astype(d) for leaf, d in zip(leaves, space.dtypes, strict=True))
        object.__setattr__(self, "entries", entries)
        object.__setattr__(self, "space", space)

    symmetric = True
    _is_semidefinite = property(lambda self: all(map(is_at_least_zero, jax.tree.leaves(self.entries))))
    domain = codomain = property(lambda self: self.space)

    def _mv(self, v):
        return jax.tree.map(jnp.multiply, self.entries, v)


class Identity(Operator):
    """The identity on a Space, or on vectors of n entries, then of the dtype of what it is combined with."""

    space: Space = static()
    adapts: bool = static(default=False)

    def __init__(self, space_or_n):
        adapts = not isinstance(space_or_n, Space)
        if adapts and (not isinstance(space_or_n, numbers.Integral) or isinstance(space_or_n, bool) or space_or_n < 0):
            raise TypeError(f"Identity got {space_or_n!r}, expected a number of rows >= 0 or a linops.Space")
        space = Space.flat(int(space_or_n), jnp.result_type(float)) if adapts else one_field(space_or_n)
        object.__setattr__(self, "space", space)
        object.__setattr__(self, "adapts", adapts)

    symmetric = positive_semidefinite = True
    domain = codomain = property(lambda self: self.space)
    _real = True
    _adapts = property(lambda self: self.adapts)

    def _mv(self, v):
        return v

    def _on(self, domain, codomain):
        return Identity(domain) if domain == codomain else super()._on(domain, codomain)


class LowRank(Operator):
    """V diag(w) Vᴴ, of k vectors of a Space and k real numbers, as those that `linops.linalg.eigsh` finds.

    V is an array of shape (n, k), or a tree of k elements along a leading axis.

    >>> A = LowRank(np.array([2.0], np.float32), np.array([[1.0], [1.0]], np.float32))
    >>> A.toarray().tolist()
    [[2.0, 2.0], [2.0, 2.0]]
    """

    values: jax.Array
    rows: object
    space: Space = static()

    def __init__(self, w, V):
        if isinstance(V, np.ndarray | jax.Array):
            if V.ndim != 2:
                raise ValueError(f"LowRank got V of shape {V.shape}, expected (n, k), or a tree of k elements")
            V = V.T
        paths, treedef = jax.tree_util.tree_flatten_with_path(V)
        leaves = [as_inexact(leaf, f"V{jax.tree_util.keystr(path)}") for path, leaf in paths]
        counts = {leaf.shape[:1] for leaf in leaves}
        if counts != {jnp.shape(w)} or jnp.ndim(w) != 1:
            raise ValueError(
                f"LowRank got w of shape {jnp.shape(w)} and V with leading axes {sorted(counts)}, expected one number "
                "for each vector: shapes (k,) and (n, k), or a tree of leaves (k, ...)"
            )
        w = as_inexact(w, "w")
        if is_complex(w.dtype):
            raise TypeError(f"LowRank got w in {w.dtype}, expected real numbers, as eigenvalues are")
        structs = [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in leaves]
        space = one_field(space_of(treedef.unflatten(structs), "V"))
        with space.scope():
            rows = treedef.unflatten(leaf.astype(d) for leaf, d in zip(leaves, space.dtypes, strict=True))
            vars(self).update(values=w.astype(real_dtype(space.dtype)), rows=rows, space=space)

    hermitian = True
    symmetric = property(lambda self: not is_complex(self.space.dtype))
    domain = codomain = property(lambda self: self.space)

    def _mv(self, v):
        return combination(self.rows, self.values * inner_products(self.space, self.rows, v))
