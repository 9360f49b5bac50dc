"""Sums, scalings, products and powers are those of the dense matrices, stay linops operators and keep the dtype."""

import numpy as np
import operators
import pytest

import linops

# Of both each operator takes one.
SUMS = {
    "multiples": (lambda A: -A * 3 + A / 4 - 0.5 * A, lambda D: -3.25 * D),
    "transposed": (lambda A: (A.T + 2 * A.T).T, lambda D: 3 * D),
}
PRODUCTS = {
    "shifted": (
        lambda A: A.H @ A + 0.25 * linops.Identity(A.shape[1]),
        lambda D: D.conj().T @ D + 0.25 * np.eye(D.shape[1]),
    ),
    "with the transpose": (lambda A: A @ A.T, lambda D: D @ D.T),
}


@pytest.mark.covering("sum_", "product")
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("sum_", SUMS)
def test_combinations(pair, vectors, close, sum_, product):
    (A, D), (v, _, w) = pair, vectors
    for of_operator, of_matrix in (SUMS[sum_], PRODUCTS[product]):
        B, E = of_operator(A), of_matrix(D)
        u = v if E.shape[1] == len(v) else w
        assert isinstance(B, linops.Operator)
        assert B.dtype == A.dtype
        close((B @ u) / max(1, abs(D).max()), (E @ u) / max(1, abs(D).max()))


@pytest.mark.parametrize("name", operators.where(made_for="laws", square=True), indirect=True)
def test_power(pair, vectors, close):
    (A, D), (v, _, _) = pair, vectors
    scale = max(1, abs(D).max())
    close(((A**2 + A**0) @ v) / scale, (D @ (D @ v) + v) / scale)
