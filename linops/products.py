"""Products in traceable JAX: the functions of an operator and arrays that are compiled, or run where it is traced."""

import functools

import jax
import jax.numpy as jnp

from linops.precision import is_complex
from linops.space import as_whole


def concrete(compute):
    """The arrays of a computation that no jit, vmap or grad in progress has to do with.

    The context that sees to it is entered only where it is needed: what is traced in it runs constants one by one, and
    compiles each.
    """
    result = compute()
    if not is_traced(result):
        return result
    with jax.ensure_compile_time_eval():
        return compute()


def is_traced(tree):
    """Whether `tree` belongs to a jit, vmap or grad in progress."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def tree_product(A, *leaves):
    """The product with an element of the domain, given by its leaves."""
    product = A._mv(A.domain.treedef.unflatten(leaves))
    given, treedef = jax.tree.flatten(jax.tree.map(jax.typeof, product))
    expected = jax.tree.leaves(A.codomain.struct)
    if treedef != A.codomain.treedef or not all(map(_is_like, given, expected)):
        given, expected = ([f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves] for leaves in (given, expected))
        raise ValueError(
            f"the product that _mv of {A!r} gave, or of its transpose _mv_transposed, is a tree of structure {treedef} "
            f"and arrays {given}, expected an element of its codomain, {A.codomain.treedef} and {expected}; if it "
            "comes from jax.vmap it is many operators, to be multiplied inside of jax.vmap"
        )
    return product


def _is_like(given, expected):
    """Whether an array has the shape of a leaf, is of floating point, and not complex where that is real."""
    is_inexact = jnp.issubdtype(given.dtype, jnp.inexact)
    return given.shape == expected.shape and is_inexact and (is_complex(expected.dtype) or not is_complex(given.dtype))


def array_product(A, v):
    """The product with a vector; one leaf keeps its shape: a loop of XLA that ends in a reshape divides each index."""
    product = tree_product(A, *jax.tree.leaves(A.domain.unravel(v)))
    leaf = jax.tree.leaves(product)[0] if len(A.codomain.shapes) == 1 else A.codomain.ravel(product)
    return leaf.astype(A.dtype)


def vector_product(A, v):
    """The product with a vector, a vector."""
    return jnp.ravel(as_whole(array_product(A, v)))


def block_product(A, block):
    """A V, of columns that lead inside: a vmap over another axis fails for some operations, sparse ones say.

    Of operations that no vmap knows, as jax.lax.ragged_dot, there is a loop over columns.
    """
    product = functools.partial(vector_product, A)
    try:
        return jax.vmap(product)(block.T).T
    except NotImplementedError:  # all that JAX says where a rule is missing; of another kind the loop raises it again
        return jax.lax.map(product, block.T).T


def diagonal_of_block(A, block, start):
    """The entries (start + i, i) of A V: a sum and no gather, for rows may lie on several devices."""
    rows, columns = (jnp.arange(count, dtype=start.dtype) for count in (A.shape[0], block.shape[1]))
    return jnp.sum(jnp.where(rows[:, None] == start + columns[None, :], block_product(A, block), 0), axis=0)


def dense_matrix(A):
    """The matrix, linearization and products in one."""
    return block_product(A.linearize(), jnp.eye(A.shape[1], dtype=A.dtype))


def shorter_dense_matrix(A):
    """The same, by columns or rows, whichever are fewer."""
    return dense_matrix(A.T).T if A.shape[0] < A.shape[1] else dense_matrix(A)
