"""Jacobians and Hessians of batches of examples."""

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

import linops
from linops import budget as budgets


def test_complex_examples_in_batches():
    for batched in (linops.batch_jacobian, linops.batch_hessian):
        with pytest.raises(TypeError, match="X holds complex numbers, expected real ones; give f the pair of real and"):
            batched(jnp.sum, np.ones((3, 2), np.complex64))


def test_batches_without_a_common_axis():
    for batch in (np.float32(1), {"a": np.ones((3, 2), np.float32), "b": np.ones(2, np.float32)}, {}):
        with pytest.raises(ValueError, match=r"X has leaves of shapes .*, expected arrays with a common leading axis"):
            linops.batch_jacobian(lambda x: x, batch)


@pytest.mark.parametrize("kind", ["numpy", "jax"])
def test_batches(kind, monkeypatch):
    X = {"a": problems.normal((7, 3), np.float32), "s": problems.normal(7, np.float32, 1)}
    X = X if kind == "numpy" else jax.tree.map(jnp.asarray, X)

    def flat(f):
        return lambda v: jax.flatten_util.ravel_pytree(f({"a": v[:3], "s": v[3]}, 2.0))[0]

    def wide(x, c):
        return {"y": jnp.sin(x["a"]) * x["s"] * c, "z": x["a"] ** 2}

    def narrow(x, c):
        return c * jnp.prod(x["a"]) * x["s"] ** 2

    rows = np.concatenate([np.asarray(X["a"]), np.asarray(X["s"])[:, None]], axis=1)
    for f, size in ((wide, 6), (narrow, 1)):
        first, second = (jax.jit(jax.vmap(d(flat(f))))(rows) for d in (jax.jacobian, jax.hessian))
        for budget in (2**20, 300):
            monkeypatch.setattr(budgets, "CACHE_BYTES", budget)
            blocks = linops.batch_jacobian(f, X, args=(2.0,))
            assert blocks.shape == (7, size, 4)
            assert isinstance(blocks, np.ndarray if kind == "numpy" else jax.Array)
            np.testing.assert_allclose(blocks, first, rtol=1e-5, atol=1e-6)
            assert kind == "jax" or blocks.flags.writeable
            blocks = linops.batch_hessian(f, X, args=(2.0,))
            assert blocks.shape == ((7, 6, 4, 4) if f is wide else (7, 4, 4))
            np.testing.assert_allclose(blocks, second if f is wide else second[:, 0], rtol=1e-5, atol=1e-5)


def test_batches_inside_jit_and_empty():
    f = lambda x: jnp.sin(x)[:2] * x[2]  # noqa: E731
    X = problems.normal((4, 3), np.float32)
    np.testing.assert_allclose(
        jax.jit(lambda X: linops.batch_jacobian(f, X))(X), jax.jit(jax.vmap(jax.jacobian(f)))(X), rtol=1e-5
    )
    assert linops.batch_hessian(f, X[:0]).shape == (0, 2, 3, 3)
