"""Block diagonals: what is no operator, and points."""

import numpy as np
import problems
import pytest

import linops

X = problems.POINT


@pytest.mark.parametrize("given", [(), {"a": linops.Identity(2), "b": np.eye(2)}, np.eye(3)])
def test_what_is_no_operator(given):
    with pytest.raises(
        TypeError, match=r"(?s)BlockDiagonal got .*, expected a pytree of linops operators, at least one"
    ):
        linops.BlockDiagonal(given)


def test_trees_and_claims():
    H, M = linops.Hessian(problems.scalar, X), linops.Matrix(np.ones((2, 3), np.float32))
    A = linops.BlockDiagonal([H, (M, M.T @ M)])
    assert not A.symmetric
    assert A.shape == (11 + 2 + 3, 11 + 3 + 3)
    assert A.domain.slice("0/w") == slice(2, 11)
    product = A.mv([X, (np.ones(3, np.float32), np.zeros(3, np.float32))])
    np.testing.assert_allclose(product[1][0], [3, 3])
    np.testing.assert_allclose(H.domain.ravel(product[0]), H @ np.asarray(H.domain.ravel(X)), rtol=1e-6)
    assert linops.BlockDiagonal({"a": H, "b": M.T @ M}).hermitian
    assert linops.BlockDiagonal([M.T @ M, linops.JacobianGram(problems.values, X)]).positive_semidefinite
