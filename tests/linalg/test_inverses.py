"""`linops.inverse` beside dense inverses, as SciPy's OPinv= and M=, differentiated, and where it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg

import linops
from linops.linalg import NoConvergence

N = 40
RNG = np.random.default_rng(0)
Q = np.linalg.qr(RNG.normal(size=(N, N)))[0]
B = RNG.normal(size=(N, 3))


def with_eigenvalues(values):
    return (Q * values) @ Q.T


DEFINITE = with_eigenvalues(np.geomspace(0.1, 10, N))
INDEFINITE = with_eigenvalues(np.geomspace(0.1, 10, N) * (-1.0) ** np.arange(N))
GENERAL = DEFINITE + np.triu(RNG.normal(size=(N, N)), 1)


def symmetric(matrix):
    """An operator that claims to be symmetric."""
    half = linops.Matrix(np.triu(matrix) - np.diag(np.diag(matrix)) / 2)
    return half + half.T


def gram(matrix):
    root = linops.Matrix(np.linalg.cholesky(matrix).T)
    return root.T @ root


pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize(
    ("make", "dense", "method", "solver"),
    [
        (gram, DEFINITE, "auto", "cg"),
        (gram, DEFINITE, "cg", "cg"),
        (symmetric, INDEFINITE, "auto", "gmres"),  # whose dense factor is not definite
        (symmetric, INDEFINITE, "minres", "minres"),
        (linops.Matrix, GENERAL, "auto", "gmres"),
        (linops.Matrix, GENERAL, "gmres", "gmres"),
        (linops.Matrix, GENERAL[:, :25], "auto", "lsmr"),
        (linops.Matrix, GENERAL[:25], "lsmr", "lsmr"),
    ],
)
def test_products(make, dense, method, solver):
    A = make(dense)
    inverse, expected = linops.inverse(A, method, rtol=1e-12), np.linalg.pinv(dense)
    assert inverse.solver == solver
    assert inverse.shape == expected.shape
    m, n = A.shape
    np.testing.assert_allclose(inverse @ B[:m], expected @ B[:m], atol=1e-8)
    np.testing.assert_allclose(inverse.T @ B[:n, 0], expected.T @ B[:n, 0], atol=1e-8)


def test_an_element_that_is_a_vector_has_a_tree_for_a_solution():
    x = {"u": np.array([2.0, 4.0]), "v": np.array([1.0])}
    J = linops.Jacobian(lambda x: jnp.concatenate([x["u"] ** 2, x["v"], x["u"] * x["v"]]), x)
    expected = np.linalg.pinv(J.toarray()) @ np.arange(5.0)
    found = linops.inverse(J, "lsmr").mv(jnp.arange(5.0))
    np.testing.assert_allclose(np.r_[found["u"], found["v"]], expected, atol=1e-9)


def test_pushed_through_the_shorter_side():
    J = linops.Matrix(GENERAL[:5])
    A = J.T @ J + 0.5 * linops.Identity(N)
    inverse = linops.inverse(A)
    _, record = inverse.solve(B[:, 0])
    assert int(record.matvecs) <= 3
    np.testing.assert_allclose(inverse @ B[:, 0], np.linalg.solve(A.toarray(), B[:, 0]), atol=1e-8)


def test_a_guess_saves_products():
    inverse = linops.inverse(gram(DEFINITE), "cg")
    x, record = inverse.solve(B[:, 0])
    assert inverse.solve(B[:, 0], x0=x)[1].matvecs < record.matvecs / 10


def test_in_solvers_of_scipy_and_of_linops():
    A = symmetric(INDEFINITE)
    inverse, near = linops.inverse(A), np.sort(np.linalg.eigvalsh(INDEFINITE))
    expected = np.sort(near[np.argsort(abs(near))[:3]])
    np.testing.assert_allclose(np.sort(scipy.sparse.linalg.eigsh(A, 3, sigma=0, OPinv=inverse)[0]), expected)
    np.testing.assert_allclose(linops.linalg.eigsh(A, 3, sigma=0.0, OPinv=inverse)[0], expected, rtol=1e-10)
    _, info = scipy.sparse.linalg.cg(gram(DEFINITE), B[:, 0], M=linops.inverse(gram(DEFINITE)), maxiter=2)
    assert info == 0


def test_derivatives_in_the_operator_and_the_vector():
    def loss(a, b):
        return jnp.sum(linops.inverse(linops.Diagonal(a), "cg", rtol=1e-13).mv(b) ** 2)

    a, b = np.linspace(1.0, 3.0, 5), RNG.normal(size=5)
    in_a, in_b = jax.jit(jax.grad(lambda a, b: 1e-13 * loss(a, b), (0, 1)))(a, b)
    np.testing.assert_allclose(in_a, -2e-13 * b**2 / a**3, rtol=1e-9)
    np.testing.assert_allclose(in_b, 2e-13 * b / a**2, rtol=1e-9)


def test_second_derivatives_where_the_operator_is_constant_within_jit():
    b = RNG.normal(size=5)
    for A in (linops.Matrix(GENERAL[:5, :5]), linops.Diagonal(np.linspace(1.0, 3.0, 5))):

        def loss(b, A=A):
            return jnp.sum(jnp.sin(linops.inverse(A, rtol=1e-12).mv(b)))

        dense = np.linalg.inv(A.toarray())
        expected = -(dense.T * np.sin(dense @ b)) @ dense
        np.testing.assert_allclose(jax.jit(jax.hessian(loss))(b), expected, atol=1e-9)


def test_at_another_point():
    H = linops.Hessian(lambda x: jnp.sum(x**4), jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(linops.inverse(H).at(jnp.array([2.0, 1.0])) @ np.ones(2), [1 / 48, 1 / 12])
    M = linops.Diagonal(jnp.ones(2))
    assert linops.inverse(H, "cg", M=M).at(jnp.array([2.0, 1.0])).preconditioner is M


def test_at_a_point_that_is_a_matrix():
    H = linops.Hessian(lambda x: jnp.sum(jnp.cosh(x)) + x[0] @ x[1] / 4, jnp.arange(6.0).reshape(2, 3) / 10)
    B = np.arange(12.0).reshape(6, 2)
    for method in ("auto", "cg"):
        inverse, expected = linops.inverse(H, method, rtol=1e-12), np.linalg.solve(H.toarray(), B)
        np.testing.assert_allclose(inverse @ B, expected, atol=1e-10)
        np.testing.assert_allclose(inverse.mv(B[:, 0].reshape(2, 3)).ravel(), expected[:, 0], atol=1e-10)
        np.testing.assert_allclose(inverse.solve(B[:, 0].reshape(2, 3))[0].ravel(), expected[:, 0], atol=1e-10)


def test_products_are_counted():
    A = linops.monitor(gram(DEFINITE), progress=False)
    inverse = linops.inverse(A, "cg")
    inverse @ B[:, 0]
    counted = A.matvecs
    assert int(inverse.solve(B[:, 0])[1].matvecs) == counted > 0


def test_what_does_not_converge():
    inverse = linops.inverse(gram(DEFINITE), "cg", maxiter=3)
    with pytest.raises(NoConvergence, match="did not converge by cg: the limit of iterations was reached") as caught:
        inverse @ B[:, 0]
    assert not caught.value.record.converged
    assert np.isnan(jax.jit(lambda A, b: A.mv(b))(inverse, B[:, 0])).all()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: linops.inverse(linops.Matrix(np.ones((4, 4)))),
            np.linalg.LinAlgError,
            "of rank 1 to the precision",
        ),
        (lambda: linops.inverse(gram(DEFINITE), "lu"), ValueError, "got method='lu', expected 'auto', 'dense'"),
        (
            lambda: linops.inverse(linops.Matrix(GENERAL[:5]), "lsmr", atol=1e-3),
            ValueError,
            "expected 0: it knows rtol",
        ),
        (
            lambda: linops.inverse(linops.Matrix(GENERAL[:5]), "lsmr", gram(DEFINITE)),
            ValueError,
            "expected None: it takes",
        ),
        (lambda: linops.inverse(lambda x: x), TypeError, "expected an operator of linops"),
        (
            lambda: linops.inverse(linops.Diagonal(jnp.ones(3, jnp.bfloat16))),
            TypeError,
            "inverse got an operator in bfloat16, expected float32, .* which LAPACK has",
        ),
    ],
)
def test_refusals(make, error, words):
    with pytest.raises(error, match=words):
        make()
