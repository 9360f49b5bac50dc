"""A (a u + b v) = a A u + b A v, for vectors and for blocks."""


def test_linearity(pair, vectors, close):
    (A, _), (v, V, _) = pair, vectors
    u = V[:, 0]
    close(A @ (2 * u - 3 * v).astype(A.dtype), 2 * (A @ u) - 3 * (A @ v))
    close((A @ V)[:, 1], A @ V[:, 1].copy())


def test_zero(pair, vectors):
    (A, _), (v, _, _) = pair, vectors
    assert not (A @ (0 * v)).any()
