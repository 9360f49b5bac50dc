"""Random vectors in a Space, drawn from an explicit JAX key."""

import contextlib

import jax
import jax.numpy as jnp


def normal(key, space):
    """A vector of independent normal entries of mean 0 and variance 1, complex ones circular, in a Space's dtype.

    >>> from linops import Space
    >>> normal(jax.random.key(0), Space.flat(3, np.complex64)).dtype
    dtype('complex64')
    """
    with float64_enabled(space.dtype):
        return jax.random.normal(key, (space.size,), space.dtype)


def float64_enabled(dtype):
    """The context in which arrays of `dtype` can be made, where JAX has float64 switched off."""
    return jax.enable_x64(True) if jnp.finfo(dtype).bits == 64 else contextlib.nullcontext()
