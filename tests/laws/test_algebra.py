"""Sums, scalings, products and powers are those of the dense matrices, stay linops operators and keep the dtype."""

import numpy as np
import operators
import pytest

import linops


def test_combinations(pair, vectors, close):
    (A, D), (v, _, w) = pair, vectors
    for B, E, u in [
        (-A * 3 + A / 4 - 0.5 * A, -3.25 * D, v),
        ((A.T + 2 * A.T).T, 3 * D, v),
        (A.H @ A + 0.25 * linops.Identity(A.shape[1]), D.conj().T @ D + 0.25 * np.eye(A.shape[1]), v),
        (A @ A.T, D @ D.T, w),
    ]:
        assert isinstance(B, linops.Operator)
        assert B.dtype == A.dtype
        close((B @ u) / max(1, abs(D).max()), (E @ u) / max(1, abs(D).max()))


@pytest.mark.parametrize("name", operators.where(made_for="laws", square=True), indirect=True)
def test_power(pair, vectors, close):
    (A, D), (v, _, _) = pair, vectors
    scale = max(1, abs(D).max())
    close(((A**2 + A**0) @ v) / scale, (D @ (D @ v) + v) / scale)
