"""Explicit operators: Matrix, Diagonal, Identity."""

import jax
import numpy as np
import problems
import pytest
import scipy.sparse
from problems import POINT, SIZE

import linops

FOUR = np.arange(1, 5, dtype=np.float32)


def test_explicit_operators():
    with pytest.raises(ValueError, match=r"Matrix got an array of shape \(4,\), expected \(m, n\)"):
        linops.Matrix(FOUR)
    with pytest.raises(TypeError, match=r"Matrix got a sparse csr_array, expected a dense array: combine the sparse"):
        linops.Matrix(scipy.sparse.csr_array(np.eye(3)))
    with pytest.raises(
        ValueError, match=r"Diagonal got an array of shape \(2, 2\), expected a vector.*Matrix takes a matrix"
    ):
        linops.Diagonal(np.eye(2))
    for n in (2.5, -1, True, "a"):
        with pytest.raises(TypeError, match=r"Identity got .*, expected a number of rows >= 0 or a linops.Space"):
            linops.Identity(n)


def test_identity_takes_the_space_of_its_partner():
    H = linops.Hessian(problems.scalar, POINT)
    for A in (
        H + linops.Identity(SIZE),
        linops.Identity(SIZE) * 2 - H,
        linops.Identity(SIZE) @ H @ linops.Identity(SIZE),
    ):
        assert A.domain == A.codomain == H.domain
        assert A.mv(POINT)["w"].shape == (3, 3)
        assert A.dtype == np.float32
    with jax.enable_x64(True):
        assert (H + linops.Identity(SIZE)).dtype == np.float32
        assert linops.Identity(3).dtype == np.float64


def test_an_identity_is_hermitian_over_any_field():
    J = linops.Jacobian(lambda z: z**2, np.complex64([1 + 1j, 2]))
    for identity in (linops.Identity(2), linops.Identity(J.domain)):
        assert identity.H is identity
        assert (J.H @ J + 0.1 * identity).hermitian
        assert (J.H @ identity @ J).hermitian


def test_diagonal_of_real_and_complex_leaves():
    A = linops.Diagonal({"a": np.complex64(1j), "b": np.float32(2)})
    np.testing.assert_array_equal(A @ np.complex64([1 + 1j, 1 + 1j]), [-1 + 1j, 2 + 2j])
