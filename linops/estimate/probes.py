"""Random probes and blocks of vectors: trees whose leaves have one more axis in front. Nothing is flattened."""

import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np

from linops.krylov import appended, rows_of, zeros_like
from linops.precision import real_dtype
from linops.space import contracted


def rademacher(space, key):
    """An element of independent entries 1 and -1."""
    keys = jax.random.split(key, len(space.shapes))
    draw = [
        jax.random.rademacher(k, shape, real_dtype(dtype)).astype(dtype)
        for k, shape, dtype in zip(keys, space.shapes, space.dtypes, strict=True)
    ]
    return space.treedef.unflatten(draw)


def spherical(space, key):
    """An element uniform on the sphere whose radius is the root of the dimension."""
    v = space.draw(key)
    return space.scale(jnp.sqrt(space.size).astype(real_dtype(space.dtype)) / space.norm(v), v)


def unit(space, index):
    """Column `index` of the identity; 0 for an index beyond the last."""
    ends = np.cumsum([0, *map(math.prod, space.shapes)])
    leaves = [
        jax.nn.one_hot(index - start, math.prod(shape), dtype=dtype).reshape(shape)
        for start, shape, dtype in zip(ends[:-1].tolist(), space.shapes, space.dtypes, strict=True)
    ]
    return space.treedef.unflatten(leaves)


def of_field(A, value):
    """A number in the field of the trace: real where A is Hermitian by what it claims."""
    return jnp.real(value) if A._equals_adjoint else value


def form(A, w):
    """The number wᴴ A w."""
    return of_field(A, A.domain.inner(w, A._mv(w)))


def diagonal_entry(A, index):
    """The diagonal entry of an operator at an index, as `of_field`."""
    return form(A, unit(A.domain, index))


def keys_of(key, start, count):
    """The keys of probes `start`, ..., `start + count - 1`: a probe does not depend on how many there are."""
    return jax.vmap(functools.partial(jax.random.fold_in, key))(start + jnp.arange(count))


def in_blocks(function, items, width):
    """`function` of each item along the first axis, `width` at a time."""
    count = columns(items)
    blocks = -(-count // width)
    if blocks <= 1:
        return jax.vmap(function)(items)
    size = -(-count // blocks)
    if size == 1:
        return jax.lax.map(function, items)

    def split(leaf):  # the last block is filled up with the first items: one program for all blocks
        return jnp.concatenate([leaf, leaf[: blocks * size - count]]).reshape(blocks, size, *leaf.shape[1:])

    results = jax.lax.map(jax.vmap(function), jax.tree.map(split, items))
    return jax.tree.map(lambda leaf: leaf.reshape(blocks * size, *leaf.shape[2:])[:count], results)


def columns(V):
    """How many columns a block has; None has none."""
    return 0 if V is None else rows_of(V)


def gram(space, U, V):
    """The matrix Uᴴ V of two blocks, or the vector Uᴴ v of a block and an element."""
    wide = jnp.promote_types(space.dtype, jnp.float32)  # in which LAPACK has its functions

    leaves = zip(jax.tree.leaves(U), jax.tree.leaves(V), space.shapes, strict=True)
    return functools.reduce(operator.add, (contracted(u, v, len(shape), wide) for u, v, shape in leaves))


def joined(first, second):
    """The columns of two blocks; `first` may be None."""
    return second if first is None else jax.tree.map(lambda u, v: jnp.concatenate([u, v]), first, second)


def orthonormal(space, V, basis=None):
    """An orthonormal basis of a block of independent columns, of which `basis` is that of the first ones."""
    done = columns(basis)
    rows = joined(basis, jax.tree.map(lambda leaf: zeros_like(leaf[done:]), V))
    return appended(space, rows, done, jax.tree.map(lambda leaf: leaf[done:], V), jnp.zeros(2, jnp.uint32))


def shifted(space, V, W):
    """A block V with a little of W in each column, by which its columns are independent in the precision at hand."""
    share = SHIFT * jnp.finfo(space.dtype).eps

    def shift(v, w):
        norm = space.norm(v)
        return space.add(v, space.scale(jnp.where(norm == 0, 1, share * norm / space.norm(w)), w))

    return jax.vmap(shift)(V, W)


SHIFT = 32  # roundings
