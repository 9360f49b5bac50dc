"""An operator at another point, of which a tree or its vector is given, is the one that is made there."""

import numpy as np
import operators
import problems
import pytest
from jax.flatten_util import ravel_pytree

MOVED = [name for name, entry in operators.ZOO.items() if entry.at]


def vector_of(x, A):
    """The vector of a point: [Re x, Im x], where the operator is real."""
    of_pairs = np.iscomplexobj(ravel_pytree(x)[0]) and not np.iscomplexobj(np.zeros(0, A.dtype))
    return np.asarray(problems.real_view(lambda x: x, x)[1] if of_pairs else ravel_pytree(x)[0])


@pytest.mark.parametrize("name", MOVED, indirect=True)
def test_at(name, dtype, pair, vectors, close):
    (A, _), (v, _, w) = pair, vectors
    x, *others = operators.arguments(name, dtype, 5)
    D, at = operators.dense(name, dtype, 5), operators.ZOO[name].at
    for point in (x, vector_of(x, A)):
        B = at(A, point, *others)
        assert B.dtype == A.dtype
        close(B @ v, D @ v)
        close(B.T @ w, D.T @ w)
