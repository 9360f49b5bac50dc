"""Hessians by differences of the gradient: how good they are, what they say of that, and what solvers make of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from custom_rules import of_callback
from problems import POINT, normal, scalar

import linops

N = 6
X = np.linspace(0.1, 1, N, dtype=np.float32)
V = normal(N, np.float32)


EXACT = 2 * np.cos(2 * X)


def network(p):
    h = jnp.tanh(p["w"] @ normal((8, 50), np.float32, 7) + p["b"][:, None])
    return jnp.mean(jax.nn.logsumexp(p["v"] @ h, axis=0))


def weights(bias):
    return {"b": np.full(12, bias, np.float32), "v": normal((5, 12), np.float32) / 4,
            "w": normal((12, 8), np.float32, 1) / 3}  # fmt: skip


# A bias of zeros, and leaves of which some are small beside others; in float64 of the scale of rates in physics.
POINTS = {
    "network, biases 0": (network, weights(0), 3e-3),
    "network, biases 1e-3": (network, weights(1e-3), 3e-3),
    "network": (network, weights(0.1), 1e-3),
    "leaves": (scalar, POINT, 3e-4),
    "all zero": (lambda x: jnp.sum(jnp.exp(x)), np.zeros(5, np.float32), 1e-4),
    "small": (lambda x: jnp.sum(jnp.exp(1e6 * x)), np.full(5, 1e-6, np.float32), 1e-4),
    "large": (lambda x: jnp.sum(jnp.sin(1e-8 * x)), np.linspace(1, 2, 5, dtype=np.float32) * 1e8, 1e-4),
}


@pytest.mark.parametrize("name", POINTS)
def test_products_are_as_good_as_they_say(name):
    """Along vectors, and along coordinates, which `toarray` takes; it is not made symmetric."""
    f, x, good = POINTS[name]
    exact, A = linops.Hessian(f, x).toarray(), linops.Hessian(f, x, products="difference")
    v = normal(A.shape[0], np.float32, 2)
    off = np.linalg.norm(A @ v - exact @ v) / np.linalg.norm(exact @ v)
    assert off <= good
    assert off / 4 <= A.product_error() <= 4 * good
    assert np.abs(A.toarray() - exact).max() <= 4 * good * np.abs(exact).max()


@pytest.mark.parametrize("c", [1e-30, 0.3, 7.0, 1e30])
def test_they_scale_as_the_vector(c):
    A = linops.Hessian(of_callback, X, products="difference")
    np.testing.assert_allclose((A @ (np.float32(c) * V)) / np.float32(c), A @ V, rtol=1e-3, atol=1e-4)
    assert not (A @ (0 * V)).any()
    assert np.isnan(A @ np.where(V > 0, np.nan, V).astype(np.float32)).any()


def test_a_gradient_without_a_derivative():
    with pytest.raises(linops.MissingRule, match=r"f has a gradient: approximate products, by its differences, are th"):
        linops.Hessian(of_callback, X) @ V
    with pytest.raises(linops.MissingRule) as raised:  # where there is no gradient either
        linops.Hessian(lambda x: jax.pure_callback(np.sum, jax.ShapeDtypeStruct((), x.dtype), x), X) @ V
    assert "f has a gradient" not in str(raised.value)
    A = linops.Hessian(of_callback, X, products="difference")
    assert repr(A) == "<6x6 Hessian by differences, to about 2e-05, with dtype=float32>"
    np.testing.assert_allclose(A.toarray(), np.diag(EXACT), atol=1e-4)
    assert linops.Hessian(scalar, POINT).product_error() == 0.0
    report = str(linops.check(2 * A + linops.Identity(N), key=3))
    assert "0 fail" in report
    assert "approximate             holds" in report
    assert "products by differences of the gradient change as the step is doubled" in report


def test_solvers_take_them():
    A = linops.Hessian(of_callback, X, products="difference")
    shifted, values = A + 3 * linops.Identity(N), np.sort(EXACT)
    for eigsh in (linops.linalg.eigsh, scipy.sparse.linalg.eigsh):
        for which, expected in (("LA", values[-2:]), ("SA", values[:2])):
            np.testing.assert_allclose(np.sort(eigsh(A, k=2, which=which)[0]), expected, atol=2e-4)
    for solver in (linops.linalg.cg, linops.linalg.minres):
        x, info = solver(shifted, V, rtol=1e-3)
        assert info == 0
        np.testing.assert_allclose(x, V / (EXACT + 3), rtol=1e-2, atol=1e-3)


def test_derivatives_of_products():
    A = linops.Hessian(of_callback, X, products="difference")
    np.testing.assert_allclose(jax.grad(lambda v: v @ (A @ v))(jnp.asarray(V)), 2 * EXACT * V, atol=1e-3)
    with pytest.raises(
        linops.MissingRule, match=r"has no derivative with respect to the point, args or weights, which"
    ):
        jax.grad(lambda x: V @ (A.at(x) @ jnp.asarray(V)))(jnp.asarray(X))


def test_what_differences_cannot_show():
    """A gradient in steps: the estimate says so, and check fails."""

    @jax.custom_vjp
    def f(x):
        return jnp.sum(x**2) / 2

    f.defvjp(lambda x: (f(x), x), lambda x, w: (w * jnp.round(64 * x) / 64,))
    A = linops.Hessian(f, X, products="difference")
    assert A.product_error() > 0.05
    report = linops.check(A)
    assert "scale the leaves of x to like sizes, and look for kinks of f" in str(report)
    assert not report
    assert jax.jit(lambda x: A.at(x).product_error())(X) == pytest.approx(A.product_error(), rel=0.1)


def test_errors():
    for options, words in [
        ({"products": "exactly"}, "expected .exact. or .difference.$"),
        ({"products": "difference", "linearize": True}, "expected linearize=None: differences of the gradient have no"),
    ]:
        with pytest.raises(ValueError, match=rf"Hessian got products=.*{words}"):
            linops.Hessian(scalar, POINT, **options)
    with pytest.raises(TypeError, match="Hessian got a holomorphic f for differences of the gradient, expected one wi"):
        linops.Hessian(lambda z: jnp.sum(z**3), X + 1j * X, products="difference")
