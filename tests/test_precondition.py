"""`linops.precondition`: definite by construction, close to the inverse, and bounds on condition numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linops
from linops import precondition
from linops.linalg import cg, eigsh

N = 200
RNG = np.random.default_rng(0)
Q = np.linalg.qr(RNG.normal(size=(N, N)))[0]
DECAYING = (Q * 0.7 ** np.arange(N)) @ Q.T
pytestmark = pytest.mark.usefixtures("x64")


def condition(M, A):
    """Of the preconditioned matrix; M has to be symmetric and positive definite."""
    dense = M.toarray().astype(float)
    np.testing.assert_allclose(dense, dense.T, atol=1e-5 * abs(dense).max())
    assert np.linalg.eigvalsh(dense).min() > 0
    values = np.linalg.eigvals(dense @ A).real
    return values.max() / values.min()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nystrom_adapts_its_rank_to_the_shift(dtype):
    A = linops.Matrix(DECAYING.astype(dtype))
    for shift in (1e-1, 1e-3):
        M = precondition.nystrom(A, shift)
        # The paper's bound for an effective dimension.
        assert condition(M, DECAYING + shift * np.eye(N)) <= 28
        shifted, b = A + shift * linops.Identity(N), np.ones(N, dtype)
        with_M, without = (cg(shifted, b, M=M, rtol=1e-4, full_output=True)[2] for M in (M, None))
        assert with_M.converged
        assert with_M.iterations <= without.iterations


def test_nystrom_is_not_misled_by_its_own_eigenvalues():
    # The last of a sketch is a third of the one that it stands for, where the spectrum decays slowly.
    spectrum = 70 * 0.93 ** np.arange(N)
    A, b = linops.Matrix((Q * spectrum) @ Q.T), RNG.normal(size=N)
    for shift, fewer in ((1.0, 1.5), (0.1, 3)):
        M = precondition.nystrom(A, shift)
        rank = len(M.terms[-1].values)
        assert spectrum[rank - 1] <= 10 * shift
        shifted = A + shift * linops.Identity(N)
        with_M, without = (cg(shifted, b, M=M, full_output=True)[2].iterations for M in (M, None))
        assert with_M <= min(rank, without / fewer)


def test_nystrom_in_a_jit_and_of_nothing():
    A, b = linops.Matrix(DECAYING), np.ones(N)
    solve = jax.jit(lambda A, b: cg(A + 1e-3 * linops.Identity(N), b, M=precondition.nystrom(A, 1e-3, rank=20))[0])
    np.testing.assert_allclose(solve(A, b), np.linalg.solve(DECAYING + 1e-3 * np.eye(N), b), rtol=1e-2)
    nothing = precondition.nystrom(linops.Matrix(np.zeros((N, N))), 1.0)
    np.testing.assert_allclose(nothing @ b, b)


def test_jacobi_and_its_estimate():
    d = np.geomspace(1, 1e6, N)
    A = linops.Diagonal(d)
    np.testing.assert_allclose(precondition.jacobi(A).toarray().diagonal(), 1 / d)
    estimated = precondition.jacobi(A, key=jax.random.key(0), num_matvecs=10)
    assert condition(estimated, np.diag(d)) < 2
    assert condition(precondition.jacobi(linops.Diagonal(np.r_[-1.0, 0, 4])), np.diag([1.0, 1.0, 1.0])) > 0
    of_a_matrix = linops.Hessian(lambda x: jnp.sum(x**4), np.array([[1.0, 2.0], [3.0, 4.0]]))
    np.testing.assert_allclose(precondition.jacobi(of_a_matrix).diagonal(), 1 / (12 * np.array([1.0, 4, 9, 16])))


def test_block_jacobi_of_leaves():
    def f(x):
        return (
            jnp.sum(jnp.cosh(x["a"] @ x["a"].T))
            + x["b"] @ jnp.diag(jnp.arange(1.0, 4)) @ x["b"]
            + x["a"].sum() * x["b"].sum()
        )

    H = linops.Hessian(f, {"a": jnp.ones((2, 2)), "b": jnp.ones(3)})
    dense = H.toarray()
    M = precondition.block_jacobi(H).toarray()
    w, V = np.linalg.eigh(dense[:4, :4])
    np.testing.assert_allclose(
        M[:4, :4], (V / np.maximum(abs(w), np.finfo(w.dtype).eps * abs(w).max())) @ V.T, rtol=1e-6
    )
    np.testing.assert_allclose(M[4:, 4:], np.linalg.inv(dense[4:, 4:]), rtol=1e-6)
    assert not M[:4, 4:].any()
    Z = np.exp(1j * np.arange(36).reshape(6, 6) ** 2)
    hermitian = Z @ Z.conj().T + np.eye(6)
    np.testing.assert_allclose(
        precondition.block_jacobi(linops.Matrix(hermitian)).toarray(), np.linalg.inv(hermitian), rtol=1e-6, atol=1e-9
    )


def test_leaves_of_size_zero():
    x = {"a": jnp.arange(1.0, 4), "none": jnp.zeros((0, 2))}
    H = linops.Hessian(lambda x: jnp.sum(x["a"] ** 3) + jnp.sum(x["none"]), x)
    v = jax.tree.map(jnp.ones_like, x)
    estimated = precondition.jacobi(H, key=jax.random.key(0), num_matvecs=2)
    for M in precondition.block_jacobi(H), precondition.jacobi(H), estimated:
        np.testing.assert_allclose(M.mv(v)["a"], 1 / (6 * x["a"]), rtol=1e-3)
    np.testing.assert_allclose(eigsh(H, k=2, return_eigenvectors=False), [12, 18], rtol=1e-5)


def test_deflation_leaves_the_rest():
    d = np.r_[np.linspace(1, 2, N - 5), 10.0 ** np.arange(2, 7)]
    A = linops.Diagonal(d)
    assert condition(precondition.deflation(*eigsh(A, k=5)), np.diag(d)) < 101


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda A: precondition.nystrom(A, -1.0), "got shift=-1.0, expected a number that is not negative"),
        (lambda A: precondition.nystrom(A, 1.0, rank=0), "expected 1 <= rank <= n"),
        (lambda A: precondition.nystrom(-1 * A, 1e-3), "is not positive definite: a Ritz value of the first is -"),
        (lambda A: jax.jit(lambda A: precondition.nystrom(A, 1.0))(A), "got no rank= within jit, vmap or grad"),
        (lambda A: precondition.jacobi(A, num_matvecs=3), "expected both, for an estimate, or none"),
        (lambda A: precondition.deflation(np.array([-1.0]), np.ones((N, 1))), "expected positive ones"),
        (lambda A: precondition.deflation(np.arange(1.0, 3), np.ones((N, 2))), "with which it has an eigenvalue of -"),
        (lambda A: precondition.block_jacobi(linops.Diagonal(np.ones(5000))), "with a leaf of 5000 entries"),
        (lambda A: linops.LowRank(np.ones(2), np.ones(3)), "or a tree of k elements"),
        (lambda A: linops.LowRank(np.ones(2), np.ones((3, 4))), "expected one number for each vector"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(ValueError, match=words):
        make(linops.Matrix(DECAYING))


def test_half_precision_is_refused():
    with pytest.raises(TypeError, match=r"block_jacobi got an operator in float16, .* which LAPACK has"):
        precondition.block_jacobi(linops.Diagonal(np.ones(3, np.float16)))


def test_low_rank_is_real_in_its_values():
    with pytest.raises(TypeError, match="expected real numbers, as eigenvalues are"):
        linops.LowRank(np.ones(1) * 1j, np.ones((3, 1)))
