"""Functions traced in float32, computed again in double precision: as where they are traced in it, or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linops.program.jaxpr.double import evaluate

x = np.linspace(0.1, 0.9, 4, dtype=np.float32)
W = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)


@jax.custom_vjp
def reverse_only(x):
    return jnp.exp(x)


reverse_only.defvjp(lambda x: (jnp.exp(x), x), lambda x, w: (w * jnp.exp(x),))


SAME = {
    "arithmetic": lambda x: jnp.tanh(W @ x) / 3 + 0.1,
    "complex": lambda x: jnp.fft.fft(x) * 1j,
    "dtypes named": lambda x: jnp.dot(W, x, preferred_element_type=x.dtype) + jnp.arange(4).astype(x.dtype),
    "random numbers": lambda x: x * jax.random.uniform(jax.random.key(0), (4,), np.float32),
    "jit, checkpoint": jax.checkpoint(jax.jit(lambda x: jnp.sin(W @ x))),
    "custom rules": lambda x: reverse_only(jax.nn.relu(x)),
    "scan": lambda x: jax.lax.scan(lambda c, w: (jnp.tanh(w * c), jnp.sum(c)), x, W),
    "a reversed scan": lambda x: jax.lax.scan(lambda c, w: (jnp.tanh(w * c), jnp.sum(c)), x, W, reverse=True),
    "cond": lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),
    "a solve": lambda x: jnp.linalg.solve(W + jnp.diag(x), x),
    "a scatter": lambda x: jnp.ones(6, x.dtype).at[jnp.array([1, 1, 3, 4])].multiply(x),
    "a reduction": lambda x: jax.lax.reduce(x, x.dtype.type(1), lambda a, b: a * b, (0,)),
    "a gradient": jax.grad(lambda x: jnp.max(jax.nn.softmax(W @ x))),
    "random integers": lambda x: x[jnp.argsort(x)] * jax.random.permutation(jax.random.key(0), 4),
}


REFUSED = {
    "a loop that ends on a condition": lambda x: jax.lax.while_loop(lambda x: x[0] < 1, jnp.exp, x),
    "half precision": lambda x: x.astype(jnp.bfloat16) * 2,
    "a callback": lambda x: jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct((4,), np.float32), x),
    "bits": lambda x: jax.lax.bitcast_convert_type(x, np.int32),
}


def doubled(f):
    closed = jax.make_jaxpr(f)(x)
    with jax.enable_x64(True):
        return jax.jit(lambda x: evaluate(closed, x))(x.astype(float))


@pytest.mark.parametrize("name", SAME)
def test_in_double_precision(name):
    """As traced in float64, up to numbers in f that stay rounded to float32; random numbers are others there."""
    random = "random" in name
    with jax.enable_x64(not random):
        expected = jax.tree.leaves(jax.jit(SAME[name])(x if random else x.astype(float)))
    with jax.enable_x64(True):
        for value, reference in zip(doubled(SAME[name]), expected, strict=True):
            assert value.dtype == (np.complex128 if jnp.iscomplexobj(value) else np.float64)
            np.testing.assert_allclose(value, reference, rtol=1e-6 if random else 3e-8)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    with pytest.raises(NotImplementedError):
        doubled(REFUSED[name])
