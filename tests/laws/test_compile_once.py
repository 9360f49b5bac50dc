"""After the first product at one point, another point compiles nothing, and neither does another scalar."""

import jax
import jax.numpy as jnp
import numpy as np
from counting import compilations


def test_another_point(pair, vectors):
    (A, _), (v, V, w) = pair, vectors
    other, third = (jax.tree.map(lambda leaf, by=by: _moved(leaf, by), A) for by in (0.125, -0.25))
    for B in (A, other):
        B @ v, B @ V, B.rmatvec(w), 2 * B @ v
    with compilations() as count:
        third @ v, third @ V, third.rmatvec(w), 0.3 * third @ v
    assert count() == 0


def _moved(leaf, by):
    """All arrays of an operator are data: points, entries, scalars. Moved by NumPy, which compiles nothing."""
    return jnp.asarray(np.asarray(leaf) + np.asarray(by, leaf.dtype))
