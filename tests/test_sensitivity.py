"""`linops.Sensitivity` beside finite differences of solutions, as an operator and under `jax.grad`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linops
from linops.optimize import newton_cg

P = {"a": np.array([0.5, 0.2, 1.0]), "b": np.array(2.0)}
pytestmark = pytest.mark.usefixtures("x64")


def energy(x, p):
    return jnp.sum(jnp.cosh(x - p["a"])) + p["b"] * jnp.sum(x**2) + x[0] * x[1]


def solved(p):
    return newton_cg(energy, jnp.zeros(3), (p,), gtol=1e-12).x


def test_of_a_minimizer():
    S = linops.Sensitivity(energy, solved(P), P, minimizer=True)
    step = 1e-5
    columns = [solved({**P, "b": P["b"] + sign * step}) for sign in (1, -1)]
    np.testing.assert_allclose(S.toarray()[:, 3], (columns[0] - columns[1]) / (2 * step), atol=1e-8)
    np.testing.assert_allclose(S.T @ np.ones(3), S.toarray().T @ np.ones(3), atol=1e-10)


def test_of_a_root_with_other_arguments():
    S = linops.Sensitivity(lambda x, p, c: x**2 - c * p, jnp.array([2.0, 3.0]), jnp.array([2.0, 4.5]), args=(2.0,))
    np.testing.assert_allclose(S.toarray(), np.diag([0.5, 1 / 3]), atol=1e-12)
    # Of x a tree, and values that are none.
    tree = linops.Sensitivity(lambda x, p: x["u"] ** 2 - p, {"u": np.ones(2)}, np.ones(2))
    np.testing.assert_allclose(tree.mv(jnp.array([2.0, 4.0]))["u"], [1, 2], atol=1e-12)


def test_under_grad():
    def total(p):
        fixed = jax.lax.stop_gradient(p)
        S = linops.Sensitivity(energy, solved(fixed), fixed, minimizer=True)
        return jnp.sum(S.solution(p))

    S = linops.Sensitivity(energy, solved(P), P, minimizer=True)
    gradient = jax.jit(jax.grad(total))(P)
    np.testing.assert_allclose(np.r_[gradient["a"], gradient["b"]], S.toarray().sum(axis=0), atol=1e-9)


def test_one_derivative_at_one_point():
    p = jnp.array([4.0, 9.0])
    S = linops.Sensitivity(lambda x, p: x**2 - p, jnp.sqrt(p), p)

    def cubes(p):
        return jnp.sum(S.solution(p) ** 3)

    np.testing.assert_allclose(jax.grad(cubes)(p), 1.5 * jnp.sqrt(p))
    forward, reverse = jax.jit(lambda p: (jax.jacfwd(S.solution)(p), jax.jacrev(S.solution)(p)))(p)
    np.testing.assert_allclose(reverse, forward, atol=1e-15)
    for twice in jax.jacfwd(jax.grad(cubes)), jax.jacrev(jax.grad(cubes)):
        with pytest.raises(TypeError, match="solution was differentiated twice"):
            jax.jit(twice)(p)
    with pytest.raises(ValueError, match=r"got another p than its own, expected that, or S.at\(x, p\) there"):
        S.solution(p + 1)
    assert np.isnan(jax.jit(jax.grad(cubes))(p + 1)).all()


def test_refusals():
    with pytest.raises(TypeError, match="MixedDerivative got f with complex values, expected a real scalar"):
        linops.MixedDerivative(lambda x, y: jnp.exp(1j * (x @ y)), jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match="got F with 1 values for x with 3 entries, expected as many"):
        linops.Sensitivity(energy, jnp.zeros(3), P)
    with pytest.raises(TypeError, match="got complex x or y, expected real ones"):
        linops.MixedDerivative(lambda x, y: jnp.real(x @ y), jnp.ones(2) * 1j, jnp.ones(2))
