"""What an operator multiplies, and what SciPy does with it: shapes, kinds of numbers, calls, bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import in_subprocess
from scipy.optimize import least_squares, minimize
from scipy.sparse.linalg import cg, eigs, eigsh, expm_multiply, funm_multiply_krylov, lobpcg, svds

import linops

FOUR = np.arange(1, 5, dtype=np.float32)


def test_wrong_vector_length():
    J = linops.Jacobian(jnp.sin, FOUR)
    for v in (
        np.ones(5, np.float32),
        jnp.ones(5),
        np.ones((3, 2), np.float32),
        jnp.ones((3, 2)),
        np.float32([[1] * 4]),
    ):
        with pytest.raises(ValueError, match=r"got an array of shape \(.*\), expected"):
            J @ v
    with pytest.raises(ValueError, match=r"Jacobian.* got an array of shape \(5,\), expected \(4,\)"):
        jax.jit(lambda v: J @ v)(np.ones(5, np.float32))
    with pytest.raises(ValueError, match=r"got an array of shape \(2, 5\), expected \(4,\), \(4, 1\) or \(\.\.\., 4\)"):
        J.matvec(np.ones((2, 5)))
    with pytest.raises(ValueError, match=r"got an array of shape \(4,\), expected a block \(4, k\)"):
        J.matmat(FOUR)


def test_vectors_that_are_not_numbers():
    J = linops.Jacobian(jnp.sin, FOUR)
    with pytest.raises(TypeError, match=r"got an array of dtype object, expected numbers"):
        J @ np.array([1, None, 2, 3], object)
    with pytest.raises(TypeError, match=r"got an array of dtype <U1, expected numbers"):
        J @ np.array(list("abcd"))


# What SciPy is handed.


def cosh(n=40):
    return linops.Hessian(lambda x: jnp.sum(jnp.cosh(x) * jnp.arange(1.0, n + 1)), np.zeros(n, np.float32))


def test_calling_an_operator():
    H = cosh()
    for given in (np.ones(40, np.float32), jnp.ones(40), np.ones((2, 2, 40)), [1.0] * 40, H, 2.0, None):
        with pytest.raises(
            TypeError, match=r"(?s)was called with .*, expected a block of columns \(40, k\).*A\.at\(x\)"
        ):
            H(given)
    V = np.ones((40, 2), np.float32)
    np.testing.assert_array_equal(H(V), H @ V)
    assert isinstance(H(jnp.asarray(V)), jax.Array)
    with pytest.raises(TypeError, match=r"a product is A @ v.*hess=A\.at"):
        minimize(lambda x: float(np.sum(x**2)), np.ones(40), jac=lambda x: 2 * x, hess=H, method="trust-constr")
    with pytest.raises(TypeError, match=r"A\.at\(x\)"):
        least_squares(lambda x: x, np.ones(40), jac=linops.Jacobian(lambda x: x, np.ones(40, np.float32)))
    rng = np.random.default_rng(0)
    largest = lobpcg(H, rng.normal(size=(40, 2)).astype(np.float32), largest=True, maxiter=200, tol=1e-3)[0]
    np.testing.assert_allclose(largest, [40, 39], rtol=1e-3)


@pytest.mark.filterwarnings("ignore::linops.PrecisionWarning")
@pytest.mark.parametrize(
    "solve",
    [
        lambda H: eigs(H, k=2),
        lambda H: eigsh(H, k=2),
        lambda H: eigsh(H, k=2, sigma=1.0),
        lambda H: eigsh(H + 2 * H, k=2),
        lambda H: svds(H, k=2),
        lambda H: svds(H, k=2, solver="lobpcg"),
        lambda H: svds(H, k=2, solver="propack"),
        lambda H: funm_multiply_krylov(lambda A: A, H, np.ones(8)),
    ],
)
def test_bfloat16_where_scipy_needs_float32(solve):
    H = linops.Hessian(lambda w: jnp.sum(jnp.tanh(w) ** 2), jnp.full(8, 0.1, jnp.bfloat16))
    with pytest.raises(
        TypeError, match=r"got an operator with dtype=bfloat16, expected one in float32 or float64.*convert"
    ):
        solve(H)


@pytest.mark.filterwarnings("ignore::linops.PrecisionWarning")
def test_bfloat16_where_scipy_takes_it():
    H = linops.Hessian(lambda w: jnp.sum(jnp.cosh(w)), jnp.zeros(8, jnp.bfloat16))
    np.testing.assert_allclose(cg(H, np.ones(8))[0], np.ones(8), rtol=1e-2)
    np.testing.assert_allclose(expm_multiply(H, np.ones(8), traceA=8.0), np.full(8, np.e), rtol=2e-2)
    assert H.dtype == jnp.bfloat16


def test_one_field():
    mixed = linops.Space.of({"a": jnp.zeros(1, jnp.complex64), "b": jnp.zeros(1)})
    identity = linops.Identity(mixed)
    v = np.array([1j, 1j], np.complex64)
    np.testing.assert_array_equal(identity @ v, v)
    np.testing.assert_array_equal((1j * identity).toarray(), 1j * np.eye(2))
    M = np.array([[1, 2j], [3, 4j]], np.complex64)
    np.testing.assert_array_equal((linops.Matrix(M) + identity).toarray(), M + np.eye(2))
    with jax.enable_x64(True):
        J = linops.Jacobian(jnp.sin, np.ones(2))
        assert (J + 1j * linops.Identity(2)).dtype == np.complex128
        np.testing.assert_allclose((J - 1j * linops.Identity(2)).toarray(), J.toarray() - 1j * np.eye(2), rtol=1e-15)

    class Mixed(linops.Operator):
        domain = property(lambda self: linops.Space.flat(2, np.float32))
        codomain = property(lambda self: linops.Space.flat(2, np.complex64))

        def _mv(self, v):
            return 1j * v

    with pytest.raises(TypeError, match="Mixed has real and complex leaves in its domain and codomain, expected one"):
        Mixed() @ np.ones(2, np.float32)


def test_scipy_with_the_array_api():
    in_subprocess(
        "-c",
        """
import copy, pickle, warnings
import jax.numpy as jnp, numpy as np, problems, linops
from scipy.sparse.linalg import cg, eigsh, gmres, lsmr, svds
J = linops.Jacobian(problems.values, problems.tree_point("dict", np.float32))
A = J.T @ J + linops.Identity(11)
D, E = J.toarray(), A.toarray()
b = np.ones(11, np.float32)
np.testing.assert_allclose(cg(A, b, rtol=1e-5)[0], np.linalg.solve(E, b), rtol=1e-3, atol=1e-4)
np.testing.assert_allclose(gmres(A, b, rtol=1e-5)[0], np.linalg.solve(E, b), rtol=1e-3, atol=1e-4)
np.testing.assert_allclose(eigsh(A, k=3)[0], np.linalg.eigvalsh(E)[-3:], rtol=1e-4)
np.testing.assert_allclose(svds(J, k=2)[1], np.linalg.svd(D)[1][:2][::-1], rtol=1e-4)
warnings.simplefilter("ignore")  # lsmr warns of an overflow of its own in float32
np.testing.assert_allclose(lsmr(A, b, atol=1e-6, btol=1e-6)[0], np.linalg.solve(E, b), rtol=1e-2, atol=1e-3)
np.testing.assert_allclose(copy.deepcopy(A) @ b, E @ b, rtol=1e-4)
np.testing.assert_allclose(pickle.loads(pickle.dumps(A)) @ b, E @ b, rtol=1e-4)
np.testing.assert_allclose(pickle.loads(pickle.dumps(A))._matvec(b), E @ b, rtol=1e-4)
""",
        SCIPY_ARRAY_API="1",
    )
