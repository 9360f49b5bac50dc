"""<w, A v> = <Aᴴ w, v>, and transposes undo themselves."""

import numpy as np


def test_adjoint(pair, vectors, close):
    (A, D), (v, _, w) = pair, vectors
    close(np.vdot(w, A @ v), np.vdot(w, D @ v))
    close(np.vdot(A.H @ w, v), np.vdot(w, D @ v))


def test_involution(pair, vectors, close):
    (A, D), (v, _, _) = pair, vectors
    close(A.T.T @ v, D @ v)
    close(A.H.H @ v, D @ v)
    assert A.T.shape == A.H.shape == D.T.shape


def test_claimed_symmetry_holds(pair, close):
    A, D = pair
    if A.symmetric:
        assert A.T is A
        close(A.toarray(), A.toarray().T)
        close(D, D.T)
