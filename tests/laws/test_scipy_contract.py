"""What SciPy asks of a LinearOperator: shapes, kinds of input, fresh and writable arrays, lazy algebra with others."""

import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import linops


def test_is_linear_operator(pair):
    A, _ = pair
    assert isinstance(A, LinearOperator)
    assert aslinearoperator(A) is A
    assert isinstance(A.dtype, np.dtype)
    assert A.ndim == 2
    assert type(A).__name__ in repr(A)


def test_products_are_fresh_and_writable(pair, vectors):
    (A, _), (v, V, w) = pair, vectors
    for product in (A @ v, A @ V, A.rmatvec(w), A.T @ w):
        assert type(product) is np.ndarray
        assert product.flags.writeable
        assert product.flags.owndata or product.base.flags.owndata
        assert not np.shares_memory(product, v)
    first = A @ v
    kept = first.copy()
    first[:] = 0
    v_before = v.copy()
    np.testing.assert_array_equal(A @ v, kept)
    np.testing.assert_array_equal(v, v_before)


def test_operator_keeps_no_view_of_the_vector(pair, vectors):
    (A, _), (v, _, _) = pair, vectors
    expected = A @ v
    reused = np.ones_like(v)
    A @ reused
    reused[:] = v
    np.testing.assert_array_equal(A @ reused, expected)


def test_shapes(pair, vectors, close):
    (A, D), (v, V, w) = pair, vectors
    m, n = D.shape
    assert (A @ v[:, None]).shape == (m, 1)
    assert A.matvec(v[:, None]).shape == (m, 1)
    assert A.rmatvec(w[:, None]).shape == (n, 1)
    close(A.matvec(V.T.copy()) if n > 1 else D @ V.T, (D @ V).T if n > 1 else D @ V.T)
    assert (A @ V[:, :0]).shape == (m, 0)
    close(A(V), D @ V)
    close(A * v, D @ v)
    close(A.dot(V), D @ V)
    close(np.dot(A, v), D @ v)


def test_kinds_of_vector(pair, close):
    A, D = pair
    n = D.shape[1]
    ints = np.arange(n) % 5 - 2
    for v in (ints, ints.astype(np.int8), ints > 0, ints.tolist(), np.ma.asarray(ints)):
        close(A @ v, D @ np.asarray(v))
        assert (A @ v).dtype == A.dtype
    base = np.repeat(ints, 2).astype(A.dtype)
    for v in (base[::2], base[::-2]):
        close(A @ v, D @ np.ascontiguousarray(v))
    frozen = ints.astype(A.dtype)
    frozen.flags.writeable = False
    close(A @ frozen, D @ frozen)


@pytest.mark.covering("kind")
@pytest.mark.parametrize("kind", ["vector", "block"])
def test_complex_vector(pair, vectors, close, kind):
    (A, D), (v, V, _) = pair, vectors
    u = v + 1j * v[::-1] if kind == "vector" else V * (1 - 2j)
    u = u.astype(np.result_type(A.dtype, np.complex64))
    close((A @ u).real, (D @ u).real)
    close((A @ u).imag, (D @ u).imag)


@pytest.mark.filterwarnings("ignore::linops.PrecisionWarning")  # a float64 S beside a float32 operator is the point
def test_foreign_operands(pair, vectors, close):
    (A, D), (v, _, w) = pair, vectors
    dtype = np.promote_types(A.dtype, np.float32)  # SciPy has no sparse arrays in half precision
    S = scipy.sparse.random_array(D.shape, density=0.5, rng=np.random.default_rng(0), dtype=np.float64).astype(dtype)
    M = S.toarray()
    for B, E, u in [
        (A + S, D + M, v),
        (S + A, D + M, v),
        (A - aslinearoperator(S), D - M, v),
        (aslinearoperator(S) - A, M - D, v),
        (S - A, M - D, v),
        (A @ S.T, D @ M.T, w),
        (aslinearoperator(S.T) @ A, M.T @ D, v),
    ]:
        assert isinstance(B, LinearOperator)
        assert not isinstance(B, linops.Operator)
        assert B.dtype == dtype
        close(B @ u, E @ u)
