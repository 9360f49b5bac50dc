"""Products, the dense matrix and the diagonal agree with a matrix made without linops."""

import jax
import numpy as np
import operators
import pytest


@pytest.fixture
def close(pair, close):
    """And have the dtype that the operator claims."""

    def check(got, expected):
        assert isinstance(got, jax.Array) or got.dtype == pair[0].dtype  # trees have the dtypes of their leaves
        close(got, expected)

    return check


def test_shape(name, pair):
    """And the traits by which tests choose are those of the dense matrix."""
    (A, D), traits = pair, operators.ZOO[name].traits
    assert A.shape == D.shape
    assert (D.shape[0] == D.shape[1], np.iscomplexobj(D)) == (traits.square, traits.complex)


def test_vector(pair, vectors, close):
    (A, D), (v, _, w) = pair, vectors
    close(A @ v, D @ v)
    close(A.matvec(v), D @ v)
    close(A.T @ w, D.T @ w)
    close(A.rmatvec(w), D.conj().T @ w)
    close(A.H @ w, D.conj().T @ w)
    close(A.T.T @ v, D @ v)
    close(w @ A, w @ D)


def test_claims(name, pair, close):
    """What is claimed is what follows from how the operator is written, and it is so."""
    (A, D), claims = pair, ("symmetric", "hermitian", "positive_semidefinite")
    assert "".join(claim[0] for claim in claims if getattr(A, claim)) == operators.ZOO[name].traits.claims
    if A.symmetric:
        assert A.T is A
        close(D.T.astype(A.dtype), D)
    if A.hermitian:
        assert A.H is A
        close(D.conj().T.astype(A.dtype), D)
    if A.positive_semidefinite:
        assert np.linalg.eigvalsh(D).min() >= -1e-6 * abs(D).max()


def test_block(pair, vectors, close):
    (A, D), (_, V, w) = pair, vectors
    W = np.stack([w, 2 * w], axis=1)
    close(A @ V, D @ V)
    close(A.matmat(V), D @ V)
    close(A.rmatmat(W), D.conj().T @ W)


def test_tree(pair, vectors, close):
    (A, D), (v, _, w) = pair, vectors
    close(A.codomain.ravel(A.mv(A.domain.unravel(v))), D @ np.asarray(A.domain.ravel(A.domain.unravel(v))))
    close(A.domain.ravel(A.T.mv(A.codomain.unravel(w))), D.T @ np.asarray(A.codomain.ravel(A.codomain.unravel(w))))


def test_dense(pair, close):
    A, D = pair
    close(A.toarray(), D)
    close(A.T.toarray(), D.T)
    close(A.H.toarray(), D.conj().T)


def test_diagonal(pair, close):
    A, D = pair
    close(A.diagonal(), np.diagonal(D))
