"""Copies and pickles of an operator, fresh or used, are the same operator."""

import numpy as np
import operators
import pytest
from copies import WAYS


@pytest.mark.parametrize("name", operators.where(made_for="laws", importable=True), indirect=True)
def test_copies(name, dtype, pair, vectors):
    used, (v, _, w) = pair[0], vectors
    forward, reverse = used @ v, used.T @ w
    for state, A in (("used", used), ("fresh", operators.make(name, *operators.arguments(name, dtype)))):
        for way, move in WAYS.items():
            B = move(A)
            assert type(B) is type(A)
            assert (B.shape, B.dtype, repr(B)) == (A.shape, A.dtype, repr(A))
            assert (B.domain, B.codomain) == (A.domain, A.codomain)
            assert (B.symmetric, B.hermitian) == (A.symmetric, A.hermitian)
            np.testing.assert_array_equal(B @ v, forward, err_msg=f"{way}, {state}")
            np.testing.assert_array_equal(B.T @ w, reverse, err_msg=f"{way}, {state}")
