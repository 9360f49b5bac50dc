"""Functions of operators times vectors against dense SciPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
from problems import POINT, hessian, normal, scalar

import linops
from linops.linalg import expm_multiply, funm_multiply_krylov

RNG = np.random.default_rng(0)
N = 40


def orthonormal(n=N):
    return np.linalg.qr(RNG.normal(size=(n, n)))[0]


def of_values(function, X):
    w, Q = jnp.linalg.eigh(X)
    return (Q * function(w)) @ Q.conj().T


def inverse_sqrt_of_values(w):
    return 1 / jnp.sqrt(w)


sqrt = functools.partial(of_values, jnp.sqrt)
inverse_sqrt = functools.partial(of_values, inverse_sqrt_of_values)
expm = jax.scipy.linalg.expm


def phi(X):
    return jnp.linalg.solve(X, expm(X) - jnp.eye(len(X), dtype=X.dtype))


Q = orthonormal()
POSITIVE = (Q * np.geomspace(0.02, 1, N)) @ Q.T
COMPLEX = (lambda Z: Z @ np.diag(np.linspace(0.5, 2, N)) @ Z.conj().T)(np.linalg.qr(Q + 1j * orthonormal())[0])
GENERAL = RNG.normal(size=(N, N)) / 4
CASES = {
    "inverse square root": (inverse_sqrt, POSITIVE, {"assume_a": "her"}),
    "complex square root": (sqrt, COMPLEX, {"assume_a": "hermitian", "t": 2.0}),
    "exponential": (expm, GENERAL, {"t": 0.5}),
    "complex exponential": (expm, 1j * COMPLEX + GENERAL, {}),
    "restarts": (expm, GENERAL, {"restart_every_m": 7}),
    "Hermitian restarts": (expm, POSITIVE, {"restart_every_m": 4, "assume_a": "her", "t": -3.0}),
    "phi": (phi, GENERAL, {"assume_a": "gen"}),
}


@pytest.mark.covering("dtype")
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", CASES)
def test_functions(name, dtype, x64):
    f, dense, options = CASES[name]
    dense = dense.astype(np.result_type(dtype, np.complex64) if np.iscomplexobj(dense) else dtype)
    b = RNG.normal(size=N).astype(dtype)
    rtol = 1e-9 if dtype == np.float64 else 1e-5
    y = funm_multiply_krylov(f, linops.Matrix(dense), b, rtol=rtol, **options)
    wide = jnp.asarray(dense, np.result_type(dense, np.float64))
    expected = np.asarray(f(options.get("t", 1.0) * wide)) @ b
    assert (y.shape, y.dtype) == ((N,), dense.dtype)
    assert np.linalg.norm(y - expected) <= rtol * np.linalg.norm(b)


def test_blocks_trees_and_one_step_of_scipy():
    H = linops.Hessian(scalar, POINT)
    dense = hessian(scalar, POINT) * 0.1
    B = normal((H.shape[0], 2), np.float32)
    A = 0.1 * H
    expected = scipy.linalg.expm(dense) @ B
    result, record = expm_multiply(A, B, full_output=True)
    np.testing.assert_allclose(result, expected, rtol=2e-4, atol=1e-5)
    assert np.all(np.linalg.norm(result - expected, axis=0) <= record.residual_norms)
    assert record.converged.tolist() == [True, True]
    tree = expm_multiply(A, H.domain.unravel(B[:, 0]))
    np.testing.assert_allclose(H.domain.ravel(tree), expected[:, 0], rtol=2e-4, atol=1e-5)
    times = {"start": 0.5, "stop": 1.5, "num": 3, "endpoint": False}
    reference = scipy.sparse.linalg.expm_multiply(dense, B, traceA=np.trace(dense), **times)
    result = expm_multiply(A, B, **times)
    assert result.shape == reference.shape
    np.testing.assert_allclose(result, reference, rtol=5e-4, atol=1e-4)


def test_zero_and_eigenvectors():
    A = linops.Diagonal(np.arange(1, 6, dtype=np.float32))
    assert not np.any(expm_multiply(A, np.zeros(5, np.float32)))
    e = np.eye(5, dtype=np.float32)[2]
    np.testing.assert_allclose(funm_multiply_krylov(sqrt, A, e, assume_a="her"), np.sqrt(3) * e, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("t", [100.0, 400.0, 4000.0])
def test_what_the_first_spaces_have_not_seen(t, x64):
    """Of exp of a diffusion what is smooth is all that is left: of the first spaces it is next to nothing, or zero."""
    n = 150
    L = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    b = np.random.default_rng(0).normal(size=n)
    expected = scipy.linalg.expm(-t * L) @ b
    for f in (lambda A: expm_multiply(A, b), lambda A: funm_multiply_krylov(jax.scipy.linalg.expm, A, b)):
        np.testing.assert_allclose(f(linops.Matrix(-t * L)), expected, atol=1e-5 * np.linalg.norm(b))
    steep = expm_multiply(-linops.Diagonal(np.arange(1, 1001, dtype=np.float32)), np.ones(1000, np.float32))
    np.testing.assert_allclose(steep, np.exp(-np.arange(1.0, 1001)), atol=1e-4)


def test_what_did_not_converge():
    A = linops.Matrix(POSITIVE.astype(np.float32))
    b = np.ones(N, np.float32)
    few = functools.partial(funm_multiply_krylov, inverse_sqrt, assume_a="her", restart_every_m=6, max_restarts=1)
    with pytest.raises(RuntimeError, match="did not converge: the limit of iterations was reached; the error is about"):
        few(A, b)
    assert np.all(np.isnan(jax.jit(few)(A, b)))
    singular = linops.Diagonal(np.r_[np.zeros(20), np.ones(20)].astype(np.float32))
    with pytest.raises(RuntimeError, match="or f on the spectrum of t A, may not be finite"):
        funm_multiply_krylov(inverse_sqrt, singular, b, assume_a="her")
    with pytest.raises(RuntimeError, match=r"the matrix is not Hermitian; .* of any matrix is assume_a='gen'"):
        funm_multiply_krylov(expm, linops.Matrix(GENERAL.astype(np.float32)), b, assume_a="her")
    # Functions of the entries of a matrix, and one by `eigh` of a matrix that restarts make another kind of.
    for f, options in (jnp.exp, {}), (jnp.sinh, {}), (sqrt, {"assume_a": "her", "restart_every_m": 6}):
        with pytest.raises(RuntimeError, match=r"f\(X\) and X do not commute.*Hermitian without restart_every_m"):
            funm_multiply_krylov(f, A, b, **options)


def test_it_is_linear_in_b_and_refused_in_the_operator():
    M = GENERAL[:12, :12].astype(np.float32)
    b = normal(12, np.float32)
    A = linops.Matrix(M)

    def total(M, b):
        return jnp.sum(jnp.sin(expm_multiply(linops.Matrix(M), b)))

    def derivatives(M, b):
        return jax.grad(total, argnums=1)(M, b), jax.jvp(lambda b: expm_multiply(A, b), (b,), (b,))[1]

    expected = jax.grad(lambda b: jnp.sum(jnp.sin(expm(jnp.asarray(M)) @ b)))(b)
    gradient, change = jax.jit(derivatives)(M, b)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)
    np.testing.assert_allclose(change, scipy.linalg.expm(M) @ b, rtol=1e-4, atol=1e-5)
    many = jax.vmap(lambda s: funm_multiply_krylov(lambda X: s * X, A, b))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(many, np.outer([1, 2], M @ b), rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match="in the operator, in t or in what the function closes over"):
        jax.grad(total)(M, b)


def refused():
    A = linops.Matrix(np.eye(3, dtype=np.float32))
    b = np.ones(3, np.float32)
    yield TypeError, "expected an operator of linops", lambda: expm_multiply("A", b)
    yield ValueError, "expected a square one", lambda: expm_multiply(linops.Matrix(np.ones((2, 3), "f")), b)
    half, empty = (linops.Matrix(np.eye(n, dtype=d)) for n, d in ((3, jnp.bfloat16), (0, np.float32)))
    for f in functools.partial(funm_multiply_krylov, expm), expm_multiply:
        yield TypeError, "multiply.* got an operator in bfloat16, .*, which LAPACK has", functools.partial(f, half, b)
        yield ValueError, "which is empty, expected an operator of at least", functools.partial(f, empty, b[:0])
    yield ValueError, "got assume_a='sym'", lambda: funm_multiply_krylov(expm, A, b, assume_a="sym")
    yield TypeError, "expected a function of matrices", lambda: funm_multiply_krylov("exp", A, b)
    yield TypeError, "as SciPy's functions of matrices do", lambda: funm_multiply_krylov(scipy.linalg.sqrtm, A, b)
    yield ValueError, "got max_restarts=0", lambda: funm_multiply_krylov(expm, A, b, max_restarts=0)
    yield ValueError, "got restart_every_m=0", lambda: funm_multiply_krylov(expm, A, b, restart_every_m=0)
    root = jax.scipy.linalg.sqrtm
    yield TypeError, "has complex numbers, expected real ones", lambda: funm_multiply_krylov(root, A, b)


@pytest.mark.parametrize(("error", "match", "call"), list(refused()))
def test_refused(error, match, call):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize("scale", [1e20, 1e-25])
def test_squares_beyond_the_range(scale):
    b, d = np.float32(scale) * np.ones(N, np.float32), np.linspace(-9, 0, N, dtype=np.float32)
    np.testing.assert_allclose(expm_multiply(linops.Diagonal(d), b) / b, np.exp(d), rtol=1e-4, atol=1e-6)


def test_a_list_is_a_vector():
    np.testing.assert_allclose(
        expm_multiply(np.eye(3, dtype=np.float32), [1.0, 2, 3]), np.e * np.arange(1, 4), rtol=1e-5
    )


def test_exponentials_of_any_norm_are_as_right_as_they_say(x64):
    """JAX's own is off by 2e-8 just below a norm of 5.4 times a power of two, and by 4e-11 of one of 60 that grows."""
    w, b = np.linspace(0, 60, N), normal(N, np.float64)
    for A in linops.LowRank(w, Q), linops.Matrix((Q * w) @ Q.T):  # which claims to be Hermitian, and which does not
        y, record = expm_multiply(A, b, full_output=True)
        expected = Q @ (np.exp(w) * (Q.T @ b))
        assert np.linalg.norm(y - expected) <= record.residual_norms
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12 * np.linalg.norm(expected))
    for dtype, norms in (np.float64, (5.3, 10.7, 21.4)), (np.float32, (3.9, 7.8, 15.6)):
        for norm in norms:
            turned = linops.Matrix(np.array([[0, norm], [-norm, 0]], dtype))
            y, record = expm_multiply(turned, np.array([1, 0], dtype), full_output=True)
            error = np.linalg.norm(np.asarray(y) - [np.cos(norm), -np.sin(norm)])
            assert error <= record.residual_norms < 100 * np.finfo(dtype).eps
    with pytest.raises(RuntimeError, match="a product was NaN or infinite"):
        expm_multiply(turned, np.ones(2, dtype), start=0, stop=1e38, num=2)
