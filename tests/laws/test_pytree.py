"""An operator is a JAX pytree: it survives a round trip, and is an argument of jit, vmap and grad."""

import jax
import jax.numpy as jnp
import operators
import pytest


def test_round_trip(pair, vectors, close):
    (A, D), (v, _, _) = pair, vectors
    leaves, treedef = jax.tree.flatten(A)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    B = treedef.unflatten(leaves)
    assert type(B) is type(A)
    assert B.shape == A.shape
    assert B.dtype == A.dtype
    close(B @ v, D @ v)
    hash(treedef)


def test_argument_of_jit(pair, vectors, close):
    (A, D), (v, V, w) = pair, vectors

    @jax.jit
    def products(A, v, V, w):
        return A @ v, A @ V, A.T @ w, A.linearize() @ v

    for got, expected in zip(products(A, v, V, w), (D @ v, D @ V, D.T @ w, D @ v), strict=True):
        close(got, expected)


def test_argument_of_vmap(pair, vectors, close):
    (A, D), (_, V, _) = pair, vectors
    close(jax.jit(jax.vmap(lambda v: A @ v))(jnp.asarray(V.T)), (D @ V).T)


@pytest.mark.parametrize("name", operators.where(made_for="laws", complex=False), indirect=True)
def test_argument_of_grad(pair, vectors, close):
    (A, D), (v, _, w) = pair, vectors
    close(jax.jit(jax.grad(lambda v: jnp.vdot(jnp.asarray(w), A @ v)))(jnp.asarray(v)), D.T @ w)
