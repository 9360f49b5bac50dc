"""Long functions are compiled in pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linops

X = np.array([0.1, 0.2, 0.3], np.float32)
V = np.array([1, -2, 0.5], np.float32)


@pytest.mark.parametrize("step", [jnp.sin, jnp.tanh])
def test_long_chains_compiled_in_pieces_are_right(step):
    def f(x):
        y = x
        for _ in range(60):
            y = step(y) + 0.1 * y * x
        return y

    def looped(x):
        return jax.lax.fori_loop(0, 60, lambda _, y: step(y) + 0.1 * y * x, x)

    D = np.asarray(jax.jit(jax.jacfwd(looped))(X))
    for J in (linops.Jacobian(f, X), linops.Jacobian(f, X, linearize=False)):
        np.testing.assert_allclose(J @ V, D @ V, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(J.T @ V, D.T @ V, rtol=1e-4, atol=1e-5)
    H = linops.Hessian(lambda x: jnp.sum(f(x) ** 2), X)
    expected = jax.jit(jax.jacfwd(jax.jacfwd(lambda x: jnp.sum(looped(x) ** 2))))(X)
    np.testing.assert_allclose(H.toarray(), expected, rtol=1e-3, atol=1e-3)
