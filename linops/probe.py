"""Random vectors in a Space, drawn from an explicit JAX key."""

import jax


def normal(key, space):
    """A vector of independent normal entries of mean 0 and variance 1, complex ones circular, in a Space's dtype.

    >>> from linops import Space
    >>> normal(jax.random.key(0), Space.flat(3, np.complex64)).dtype
    dtype('complex64')
    """
    with space.scope():
        return jax.random.normal(key, (space.size,), space.dtype)
