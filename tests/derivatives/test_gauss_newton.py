"""Gram matrices of Jacobians at one and at two points."""

import numpy as np
import problems
from problems import POINT

import linops


def test_one_point_becomes_two_and_two_become_one():
    other = problems.tree_point("dict", np.float32, seed=5)
    K = linops.JacobianGram(problems.values, POINT).at(POINT, other)
    D1, D2 = problems.jacobian(problems.values, POINT), problems.jacobian(problems.values, other)
    np.testing.assert_allclose(K.toarray(), D1 @ D2.T, rtol=1e-4, atol=1e-4)
    assert not K.hermitian
    assert K.at(other).hermitian
    np.testing.assert_allclose(K.at(other).toarray(), D2 @ D2.T, rtol=1e-4, atol=1e-4)
