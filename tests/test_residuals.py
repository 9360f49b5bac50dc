"""What a linearization keeps: dear results, once, and with it the same numbers as without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linops

x = np.linspace(0.5, 1.5, 1_000, dtype=np.float32)


def kept(operator):
    """Bytes of the residuals, without the point, which is there anyway."""
    arrays = {id(leaf): leaf for leaf in jax.tree.leaves(operator.linearize())}
    return sum(leaf.nbytes for leaf in arrays.values()) - x.nbytes


@pytest.mark.parametrize(
    ("f", "vectors"),
    [
        (lambda x: jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2), 0),
        (lambda x: jnp.sum((x / (1 + x**2)) * jnp.sqrt(x)), 0),
        (lambda x: jnp.sum(jnp.tanh(x) ** 4), 1),
        (lambda x: jnp.sum(jnp.sin(x) * x**2), 2),  # sin and cos
        (lambda x: jnp.sum(jax.jit(jnp.tanh)(x) ** 4), 1),
        (lambda x: jnp.sum(jax.lax.scan(lambda h, x: (h * x, h * x), 1.0, x)[1]), 2),
    ],
    ids=["polynomial", "rational", "tanh", "sin", "nested jit", "scan"],
)
def test_what_is_cheap_is_not_kept(f, vectors):
    assert kept(linops.Hessian(f, x)) <= vectors * x.nbytes + 100


@pytest.mark.parametrize("make", [linops.Hessian, linops.Jacobian, linops.JacobianGram], ids=lambda make: make.__name__)
def test_a_linearized_product_is_that_of_a_recomputed_one(make):
    def f(x):
        y = jnp.tanh(jnp.outer(x[:10], x[10:20])) @ jnp.sin(x[20:30])
        return jnp.sum(y**3) if make is linops.Hessian else jnp.concatenate([y, x[:990] / x[10:]])

    v = np.cos(np.arange(make(f, x).shape[1], dtype=np.float32))
    np.testing.assert_allclose(make(f, x) @ v, make(f, x, linearize=False) @ v, rtol=2e-5, atol=1e-5)


def test_effects_happen_at_the_linearization_only(capfd):
    def f(x):
        jax.debug.print("here")
        return jnp.tanh(x)

    J = linops.Jacobian(f, x)
    for _ in range(3):
        J @ x
    jax.effects_barrier()
    assert capfd.readouterr().out.count("here") == 1


def test_complex_numbers_inside_of_a_real_function():
    def f(x):
        return jnp.sum(jnp.abs(jnp.fft.fft(jnp.tanh(x[:16]))) ** 4)

    H, recomputed = linops.Hessian(f, x[:20]), linops.Hessian(f, x[:20], linearize=False)
    np.testing.assert_allclose(H.toarray(), recomputed.toarray(), rtol=1e-4, atol=1e-4 * abs(H.toarray()).max())
