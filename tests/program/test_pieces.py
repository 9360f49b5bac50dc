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

    D = np.asarray(jax.jacfwd(f)(X))
    for J in (linops.Jacobian(f, X), linops.Jacobian(f, X, linearize=False)):
        np.testing.assert_allclose(J @ V, D @ V, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(J.T @ V, D.T @ V, rtol=1e-4, atol=1e-5)
    h = lambda x: jnp.sum(f(x) ** 2)  # noqa: E731
    np.testing.assert_allclose(linops.Hessian(h, X).toarray(), jax.hessian(h)(X), rtol=1e-3, atol=1e-3)
