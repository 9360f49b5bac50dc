"""Operators that are built inside of transformations, of functions that close over what is traced, too."""

import jax
import jax.numpy as jnp
import numpy as np
import operators
import pytest

NAMES = operators.where(made_for="transformations")
# Of each way to hold arrays one: residuals, arguments, pairs, factors, a loss.
AS_ARGUMENTS = ["jacobian", "hessian_args", "jacobian_realified", "composite", "gauss_newton_loss"]


@pytest.fixture
def dtype():
    return np.float32


def weighed(A):
    """A number that an operator gives."""
    v = jnp.arange(1.0, A.shape[1] + 1) / A.shape[1]
    w = A @ v
    return sum(jnp.sum(jnp.abs(u) ** 2) for u in (w, A.T @ w, A @ jnp.stack([v, 2 * v], 1)))


def weighed_by_numpy(D):
    w = D @ (np.arange(1.0, D.shape[1] + 1) / D.shape[1])
    return 6 * np.sum(np.abs(w) ** 2) + np.sum(np.abs(D.T @ w) ** 2)


@pytest.mark.parametrize("name", NAMES)
def test_built_inside(name, dtype):
    def number(x, c):
        return weighed(operators.make(name, x, c))

    (x, c), (y, d) = (map(jnp.asarray, operators.arguments(name, dtype, seed)) for seed in (0, 1))
    expected = [weighed_by_numpy(operators.dense(name, dtype, seed)) for seed in (0, 1)]
    compiled = jax.jit(number)
    np.testing.assert_allclose(number(x, c), expected[0], rtol=1e-4)
    np.testing.assert_allclose([compiled(x, c), compiled(y, d)], expected, rtol=1e-4)
    many = jax.jit(jax.vmap(number))(jnp.stack([x, y]), jnp.stack([c, d]))
    np.testing.assert_allclose(many, expected, rtol=1e-4)
    gradient = jax.jit(jax.grad(number, argnums=(0, 1)))(x, c)
    step, direction = 1e-2, (jnp.array([1.0, 0.5, -0.3]), jnp.float32(0.4))
    ahead, behind = (compiled(x + s * direction[0], c + s * direction[1]) for s in (step, -step))
    slope = gradient[0] @ direction[0] + gradient[1] * direction[1]
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("name", [f"{name}_over_c" for name in AS_ARGUMENTS])
def test_arguments_and_results(name, dtype):
    (x, c), (y, _) = (map(jnp.asarray, operators.arguments(name, dtype, seed)) for seed in (0, 1))
    make = jax.tree_util.Partial(operators.make, name)
    A, B = make(x, c), make(y, c)
    v = jnp.ones(A.shape[1])
    np.testing.assert_allclose(jax.jit(lambda A, v: A @ v)(A, v), A @ v, rtol=1e-5)
    inner = jax.jit(lambda x: make(x, c))(x)  # built inside, returned, used outside
    np.testing.assert_allclose(inner @ v, A @ v, rtol=1e-5)
    np.testing.assert_allclose(inner @ np.ones(A.shape[1], np.float32), A @ v, rtol=1e-5)
    many = jax.vmap(lambda x: make(x, c))(jnp.stack([x, y]))
    np.testing.assert_allclose(jax.vmap(lambda A: A @ v)(many), [A @ v, B @ v], rtol=1e-4)
    total = jax.lax.scan(lambda t, s: (t + make(s * x, c) @ v, None), jnp.zeros(A.shape[0]), jnp.array([1.0, 2.0]))[0]
    np.testing.assert_allclose(total, A @ v + B @ v, rtol=1e-4)
