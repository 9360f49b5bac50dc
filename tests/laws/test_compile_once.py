"""After the first product at one point, another point compiles nothing, and neither does another scalar."""

import jax
from counting import compilations


def test_another_point(pair, vectors):
    (A, _), (v, V, w) = pair, vectors
    other = jax.tree.map(lambda leaf: leaf + 0.125, A)  # all arrays of the operator are data: points, entries, scalars
    third = jax.tree.map(lambda leaf: leaf - 0.25, A)
    for B in (A, other):
        B @ v, B @ V, B.rmatvec(w), 2 * B @ v
    with compilations() as count:
        third @ v, third @ V, third.rmatvec(w), 0.3 * third @ v
    assert count() == 0
