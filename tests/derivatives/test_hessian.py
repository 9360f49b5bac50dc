"""Hessians: of scalars, of weighted values, of complex parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import linops

FOUR = np.arange(1, 5, dtype=np.float32)


def test_not_scalar():
    with pytest.raises(
        TypeError, match=r"Hessian got f with values of shapes \[\(4,\)\], expected a scalar.*weights=w"
    ):
        linops.Hessian(jnp.sin, FOUR)
    with pytest.raises(TypeError, match=r"GaussNewton got a loss with values of shapes \[\(4,\)\], expected a scalar"):
        linops.GaussNewton(jnp.sin, FOUR, lambda z: z)


def test_complex_values_where_real_ones_are_needed():
    with pytest.raises(TypeError, match="Hessian got f with complex values that is not holomorphic, expected real"):
        linops.Hessian(lambda z: jnp.vdot(z, z), FOUR * np.complex64(1j))

    @jax.custom_jvp
    def f(z):
        return jnp.sum(z**2)

    f.defjvp(lambda primals, tangents: (f(*primals), 2 * jnp.sum(jnp.conj(primals[0]) * tangents[0])))
    with pytest.raises(TypeError, match="holomorphic by its first derivative and not by its second, expected both"):
        linops.Hessian(f, FOUR * np.complex64(1j))
    with pytest.raises(
        TypeError, match=r"Hessian got f with complex values of a real point, expected real values; take"
    ):
        linops.Hessian(lambda x: jnp.sum(jnp.exp(1j * x)), FOUR)
    with pytest.raises(
        TypeError, match=r"GaussNewton got a loss with complex values, expected real ones; take the real"
    ):
        linops.GaussNewton(jnp.sin, FOUR, lambda z: jnp.sum(1j * z))


def test_weights_of_complex_values():
    """The Hessian of w . f, of its real part where f is not holomorphic, by the real Hessian of that."""
    z, w = np.array([1 + 2j, 3 - 1j], np.complex64), np.array([1j, 1 - 2j], np.complex64)
    v = np.array([0.5, -1, 2, 0.3], np.float32)

    def disguised(z):
        return jnp.conj(jnp.conj(z)) ** 2

    for weights in (w, np.array([1, 2], np.float32)):
        real = linops.Hessian(lambda z, w=weights: jnp.real(jnp.sum(w * disguised(z))), z)
        np.testing.assert_allclose(linops.Hessian(disguised, z, weights=weights) @ v, real @ v, rtol=1e-5)
    np.testing.assert_allclose(linops.Hessian(lambda z: z**2, z, weights=w).diagonal(), 2 * w, rtol=1e-6)


def test_scipy_minimizes_over_complex_parameters():
    target = np.array([1 + 2j, 3 - 1j])

    def loss(z):
        return jnp.sum(jnp.abs(z - target) ** 4 + jnp.abs(z - target) ** 2)

    with jax.enable_x64(True):
        H = linops.Hessian(loss, np.zeros(2, complex))
        gradient = jax.grad(lambda v: loss(v[:2] + 1j * v[2:]))
        result = minimize(
            lambda v: float(loss(v[:2] + 1j * v[2:])),
            np.zeros(4),
            jac=gradient,
            hess=H.at,
            method="trust-ncg",
            tol=1e-9,
        )
    np.testing.assert_allclose(result.x, [1, 3, 2, -1], atol=1e-6)


def test_a_hessian_is_the_slope_of_the_gradient_also_where_that_is_none():
    f = jax.custom_vjp(lambda x: x[0] * x[1])
    f.defvjp(lambda x: (f(x), x), lambda x, g: (g * jnp.stack([x[1], 0 * x[0]]),))
    H = linops.Hessian(f, np.array([2.0, 3.0], np.float32))
    np.testing.assert_allclose(H @ np.array([1.0, 10.0], np.float32), [10, 0])


def test_a_hessian_of_a_rule_with_optimized_rematerialization():
    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x), jnp.cos(x)), lambda c, w: (w * c,), optimize_remat=True)
    x = np.linspace(0, 1, 3, dtype=np.float32)
    H = linops.Hessian(lambda x: jnp.sum(sine(x) ** 2), x)
    np.testing.assert_allclose(H.toarray(), np.diag(2 * np.cos(2 * x)), rtol=1e-5, atol=1e-6)


class Convex(linops.Hessian):
    """One of a function that is known to be convex."""

    positive_semidefinite = True


class Scale(linops.Operator):
    scale: jax.Array

    domain = codomain = property(lambda self: linops.Space.of(self.scale))


class Shift(linops.Operator):
    shift: jax.Array


class Both(Scale, Shift):
    """The fields of two bases: no constructor of one of them makes it."""

    def _mv(self, v):
        return self.scale * v + self.shift * v


def test_a_claim_of_the_user():
    np.testing.assert_allclose(Both(scale=np.ones(2, np.float32), shift=np.ones(2, np.float32)).diagonal(), 2)
    H = Convex(lambda x, c: jnp.sum(jnp.cosh(c * x)), np.ones(3, np.float32), args=(2.0,))
    assert H.positive_semidefinite
    assert linops.inverse(H.at(np.zeros(3, np.float32)), M=linops.Identity(3)).solver == "cg"
    np.testing.assert_allclose(H.at(np.zeros(3, np.float32)).diagonal(), 4)
    linops.check(H).raise_if_failed()
