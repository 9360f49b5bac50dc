"""Functions and points that the tests share, and their dense derivatives, made by JAX without linops."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


def normal(shape, dtype, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def tree_point(kind, dtype, seed=0):
    """A point of each kind of pytree, with 8 to 12 numbers."""
    return {
        "vector": normal(9, dtype, seed),
        "dict": {"w": normal((3, 3), dtype, seed), "b": normal(2, dtype, seed + 1)},
        "tuple": (normal(4, dtype, seed), normal((2, 2), dtype, seed + 1)),
        "nested": {"layers": [{"w": normal((2, 3), dtype, seed)}, (normal(2, dtype, seed + 1), None)]},
        "scalars": [normal((), dtype, seed), jnp.asarray(0.7, dtype), normal(6, dtype, seed + 1)],
        "empty": {"none": np.zeros((0, 3), dtype), "some": normal(8, dtype, seed)},
        "mixed": (normal(5, np.float16, seed), normal(6, dtype, seed + 1)),
    }[kind]


TREES = ["vector", "dict", "tuple", "nested", "scalars", "empty", "mixed"]


def values(x):
    """A nonlinear map from any such point to a tree of 7 values."""
    v = ravel_pytree(x)[0]
    return {"products": v[:5] * jnp.sin(v[1:6]), "sums": (jnp.sum(v**2), jnp.tanh(v[-1] * v[0]))}


def square(x):
    """A nonlinear map from a point to one like it."""
    v, unravel = ravel_pytree(x)
    return unravel(jnp.sin(v) + 0.3 * jnp.roll(v, 1) * v)


def scalar(x):
    v = ravel_pytree(x)[0]
    return jnp.sum(jnp.cos(v[:-1]) * v[1:] ** 2) + jnp.prod(v[:3])


def loss(z):
    v = ravel_pytree(z)[0]
    return jax.nn.logsumexp(v) + 0.5 * jnp.sum(v**2)


def jacobian(f, x):
    """The dense Jacobian of f on vectors, in float64."""
    v, unravel = ravel_pytree(x)
    return np.asarray(jax.jit(jax.jacobian(lambda v: ravel_pytree(f(unravel(v)))[0]))(v), np.float64)


def hessian(f, x):
    """The dense Hessian of a scalar f on vectors, in float64."""
    v, unravel = ravel_pytree(x)
    return np.asarray(jax.jit(jax.hessian(lambda v: f(unravel(v))))(v), np.float64)
