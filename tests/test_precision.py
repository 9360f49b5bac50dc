"""The precision that is computed in: of mixed leaves, of half precisions, of float64 where it is off."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import operators
import problems
import pytest
from problems import POINT, SIZE

import linops

FOUR = np.arange(1, 5, dtype=np.float32)


def test_float64_vector_with_x64(x64):
    J = linops.Jacobian(jnp.sin, FOUR)
    with pytest.warns(linops.PrecisionWarning, match=r"build the operator at a float64 point"):
        assert (J @ np.ones(4)).dtype == np.float32


def test_a_traced_vector_that_is_narrowed_is_said(x64):
    A = linops.Matrix(np.eye(4, dtype=np.float32))
    for product in (lambda v: A @ v, A.matvec, lambda v: A @ jnp.stack([v, v], axis=1), A.rmatvec):
        with pytest.warns(linops.PrecisionWarning, match=r"the vector multiplied by .* is float64 and is narrowed to"):
            assert jax.eval_shape(product, jnp.ones(4)).dtype == np.float32


def eye(dtype):
    with jax.enable_x64(dtype in ("float64", "complex128")):
        return linops.Matrix(jnp.eye(2, dtype=dtype))


# Leaves of mixed precision.


@pytest.mark.parametrize("name", operators.where(made_for="mixed precision"))
def test_the_dtype_is_the_least_precise_that_is_computed_in(x64, name):
    A, D = operators.build(name, np.float32)
    assert A.dtype == A.linearize().dtype == A.T.dtype == np.float32
    v = np.ones(A.shape[1]) + 1e-12
    with pytest.warns(linops.PrecisionWarning, match="is float64 and is narrowed to float32; build the operator at a"):
        assert (A @ v).dtype == np.float32
    np.testing.assert_allclose(A.toarray(), D, rtol=1e-6)
    assert A.toarray().dtype == (A @ v.astype(np.float32)).dtype == np.float32
    assert linops.check(A)


@pytest.mark.parametrize(("left", "right"), [("float16", "bfloat16"), ("bfloat16", "float16")])
def test_half_precisions_do_not_hold_each_other(left, right):
    words = "got bfloat16 and float16 in one operator, none of which holds the numbers of the others; expected dtypes"
    A, B = eye(left), eye(right)
    for combine in (
        lambda: A + B,
        lambda: A @ B,
        lambda: linops.Diagonal({"a": jnp.ones(1, left), "b": jnp.ones(1, right)}),
    ):
        with pytest.raises(TypeError, match=words):
            combine().dtype  # noqa: B018
    with pytest.warns(linops.PrecisionWarning, match=f"is {right} and is narrowed to {left}; build the operator at a"):
        A @ np.ones(2, right)


def test_float64_operators_keep_float64_where_it_is_off():
    with jax.enable_x64(True):
        x = {"a": np.linspace(0, 1, 4), "b": np.ones(2)}
        J = linops.Jacobian(lambda x: jnp.tanh(x["a"]) @ jnp.ones((4, 3)) + jnp.exp(x["b"][0]), x)
        fresh = J.at(x)
        D = J.toarray()
    assert D.dtype == np.float64
    v = np.linspace(1, 2, 6)
    np.testing.assert_allclose(J @ v, D @ v, rtol=1e-14)
    np.testing.assert_allclose(J.at(x).at(J.domain.ravel(x)) @ v, D @ v, rtol=1e-14)
    np.testing.assert_allclose(fresh.T @ np.ones(3), D.T @ np.ones(3), rtol=1e-14)
    np.testing.assert_allclose((fresh.T @ fresh) @ np.ones((6, 2)), D.T @ D @ np.ones((6, 2)), rtol=1e-13)


def test_dtype_is_the_one_computed_in(x64):
    H = linops.Hessian(problems.scalar, POINT)
    assert (H + linops.Diagonal(np.ones(SIZE))).dtype == np.float32
    assert (H @ linops.Matrix(np.ones((SIZE, 2)))).dtype == np.float32
    wider = lambda x: x["w"].astype(jnp.float64) ** 2  # noqa: E731
    for A in (
        linops.Jacobian(wider, POINT),
        linops.JacobianGram(wider, POINT),
        linops.GaussNewton(wider, POINT, problems.loss),
    ):
        assert A.dtype == np.float32
        assert (A @ np.ones(A.shape[1], np.float32)).dtype == np.float32


def test_float64_without_x64_everywhere():
    with jax.enable_x64(True):
        x = jnp.linspace(0, 1, 3)
        H = linops.Hessian(lambda x: jnp.sum(jnp.cosh(x)), x)
        D = np.diag(np.cosh(np.linspace(0, 1, 3)))
    v = np.array([1.0, 2, 3])
    for A, E in ((0.1 * H, 0.1 * D), (H / 3, D / 3), (linops.Hessian(lambda x: jnp.sum(jnp.cosh(x)), x), D)):
        np.testing.assert_allclose(A @ v, E @ v, rtol=1e-15)
    np.testing.assert_allclose(H @ jnp.ones(3), D @ np.ones(3), rtol=1e-15)
    shift = 0.1 * linops.Identity(3)
    for A in (H + shift, H + (shift + shift) / 2, H + shift @ linops.Identity(3), H + 0.1 * linops.Identity(3) ** 2):
        assert A.dtype == np.float64
        np.testing.assert_allclose(A @ v, D @ v + 0.1 * v, rtol=1e-15)
    np.testing.assert_allclose(linops.batch_hessian(lambda x: jnp.sum(jnp.cosh(x)), x[None])[0], D, rtol=1e-15)
    with jax.enable_x64(True):
        C = linops.Matrix(D + 1j)
    np.testing.assert_allclose(C @ v, (D + 1j) @ v, rtol=1e-15)


def test_tree_products_are_of_the_dtype_that_is_claimed(x64):
    B = linops.Hessian(lambda x: jnp.sum(x["a"] ** 4), {"a": np.ones(3)}) + linops.Matrix(np.ones((3, 3), np.float32))
    assert B.dtype == B.domain.dtype == B.mv({"a": np.ones(3, np.float32)})["a"].dtype == np.float32


def test_double_precision_complex_points_keep_it_where_it_is_off():
    with jax.enable_x64(True):
        z = jnp.array([1 + 2j, 3 - 1j])
    assert linops.Jacobian(lambda z: jnp.conj(z) * z, z).dtype == np.float64
    assert linops.Jacobian(lambda z: jnp.sin(z) * np.pi, z).dtype == np.complex128
    G = linops.GaussNewton(lambda z: z**2, z, lambda y: jnp.sum(jnp.abs(y) ** 2))
    assert G.dtype == np.float64
    np.testing.assert_allclose(G.diagonal(), 8 * np.tile(np.abs(z) ** 2, 2), rtol=1e-14)


Z = {"a": problems.complex_normal(3, np.float32), "b": problems.complex_normal((), np.float32, 1)}


def test_toggling_x64():
    D = problems.hessian(problems.scalar, POINT)
    H32 = linops.Hessian(problems.scalar, POINT)
    with jax.enable_x64(True):
        H64 = linops.Hessian(problems.scalar, problems.tree_point("dict", np.float64))
        inside = H32 @ np.ones(SIZE, np.float32)  # the first product elsewhere than the construction
    results = [H64 @ np.ones(SIZE), H32 @ np.ones(SIZE, np.float32)]
    assert [result.dtype for result in [inside, *results]] == [np.float32, np.float64, np.float32]
    for result in [inside, *results]:
        np.testing.assert_allclose(result, D @ np.ones(SIZE), rtol=1e-4, atol=1e-4)
    with jax.enable_x64(True):
        assert (H32 @ jnp.ones(SIZE, jnp.float32)).dtype == np.float32
        assert (H64 @ jnp.ones(SIZE)).dtype == np.float64
        assert H32.at(POINT).dtype == np.float32


def test_toggling_x64_with_complex_numbers():
    with jax.enable_x64(True):
        z = jax.tree.map(lambda leaf: leaf.astype(np.complex128), Z)
        J = linops.Jacobian(problems.holomorphic, z)
        D = J.toarray()
        fresh = J.at(z)
    assert D.dtype == np.complex128
    v = np.linspace(1, 2, 4) * (1 + 1j)
    np.testing.assert_allclose(fresh @ v, D @ v, rtol=1e-13)


def test_double_precision_outlives_its_context():
    """complex64 has the bytes of float64, but needs no float64; complex128 does."""
    with jax.enable_x64(True):
        A = linops.Matrix(np.eye(3) * (1 + 1j))
    v = np.array([1, 2, 1 / 3]) * (1 + 0.5j)
    np.testing.assert_allclose(A @ v, v * (1 + 1j), rtol=1e-15)
    np.testing.assert_allclose((A @ np.stack([v, v], axis=1))[:, 1], v * (1 + 1j), rtol=1e-15)


WIDE = np.array([0.1, 0.2])  # more digits than float32 has


def of_module(x):
    return x * WIDE


def test_arrays_that_a_function_closes_over_are_narrowed_with_a_warning(x64):
    wide, held = WIDE.copy(), np.arange(2.0)

    class Model:
        def value(self, x):
            return x * wide

    functions = (
        (lambda x: x * wide),
        of_module,
        Model().value,
        jax.jit(of_module),
        functools.partial(lambda a, x: x * wide, 1),
    )
    for f in functions:
        linops.Jacobian(f, np.ones(2))  # in float64
        with (
            jax.enable_x64(False),
            pytest.warns(linops.PrecisionWarning, match=r"closes over.* is float64 and is"),
        ):
            linops.Jacobian(f, np.ones(2, np.float32))
    with jax.enable_x64(False):
        linops.Jacobian(lambda x: x * held, np.ones(2, np.float32))  # which loses nothing
