"""Sums, scalings, products and powers are those of the dense matrices, stay linops operators and keep the dtype."""

import linops


def test_combinations(pair, vectors, close):
    (A, D), (v, _, w) = pair, vectors
    for B, E, u in [
        (A + A, D + D, v),
        (A - 0.5 * A, 0.5 * D, v),
        (-A, -D, v),
        (A * 3, 3 * D, v),
        (A / 4, D / 4, v),
        (A.H @ A, D.conj().T @ D, v),
        (A @ A.T, D @ D.T, w),
        ((A.T + 2 * A.T).T, 3 * D, v),
    ]:
        assert isinstance(B, linops.Operator)
        assert B.dtype == A.dtype
        close((B @ u) / max(1, abs(D).max()), (E @ u) / max(1, abs(D).max()))


def test_shift(pair, vectors, close):
    (A, D), (v, _, _) = pair, vectors
    G = A.H @ A + 0.25 * linops.Identity(A.shape[1])
    assert G.dtype == A.dtype
    close((G @ v) / max(1, abs(D).max()), (D.conj().T @ (D @ v) + 0.25 * v) / max(1, abs(D).max()))


def test_power(pair, vectors, close):
    (A, D), (v, _, _) = pair, vectors
    if D.shape[0] == D.shape[1]:
        scale = max(1, abs(D).max())
        close((A**2 @ v) / scale, D @ (D @ v) / scale)
        close(A**0 @ v, v)
