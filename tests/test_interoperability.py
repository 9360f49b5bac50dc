"""Operators in other libraries, where they are installed."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import linops


def test_lineax_and_scipy_in_jax():
    J = linops.Jacobian(
        lambda x: jnp.sin(x["a"][:, None] * x["b"]).ravel(), {"a": jnp.arange(1.0, 4), "b": jnp.ones(4)}
    )
    A = J.T @ J + 0.5 * linops.Identity(7)
    b = jax.tree.map(jnp.ones_like, J.x)
    expected = np.linalg.solve(A.toarray(), np.ones(7))
    found, _ = jax.scipy.sparse.linalg.cg(A.mv, b, tol=1e-6)
    np.testing.assert_allclose(A.domain.ravel(found), expected, rtol=1e-3)
    lineax = pytest.importorskip("lineax")
    operator = A.to_lineax()
    assert lineax.is_symmetric(operator)
    assert not lineax.is_positive_semidefinite(operator)
    assert lineax.is_positive_semidefinite((J.T @ J).to_lineax())
    solution = lineax.linear_solve(operator, b, lineax.GMRES(rtol=1e-5, atol=1e-5)).value
    np.testing.assert_allclose(A.domain.ravel(solution), expected, rtol=1e-3)


INPUTS = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
LABELS = np.arange(20) % 2


def dense(loss, params):
    vector, unravel = jax.flatten_util.ravel_pytree(params)
    return jax.hessian(lambda vector: loss(unravel(vector)))(vector)


def test_models_of_equinox():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))  # among its leaves are functions
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def loss(model):
        return jnp.mean(jax.vmap(model)(INPUTS) ** 2) + jnp.sum(model.layers[0].bias ** 2)

    def of_params(params):
        return loss(eqx.combine(params, rest))

    expected = dense(of_params, params)
    H = linops.Hessian(of_params, params)
    np.testing.assert_allclose(H.toarray(), expected, atol=1e-5)
    part = linops.Hessian(loss, model, wrt=lambda path, leaf: eqx.is_inexact_array(leaf))
    np.testing.assert_allclose(part @ H.domain.ravel(params), expected @ H.domain.ravel(params), atol=1e-5)
    found = linops.optimize.newton_cg(of_params, params, maxiter=20, gtol=1e-3)
    assert found.success
    assert loss(eqx.combine(found.x, rest)) < loss(model) / 10
    with pytest.raises(TypeError, match=r"x.activation is .* eqx.partition\(model, eqx.is_inexact_array\)"):
        linops.Hessian(loss, model)


def test_models_of_flax_and_losses_of_optax():
    linen, nnx, optax = map(pytest.importorskip, ("flax.linen", "flax.nnx", "optax"))
    model = linen.Dense(2)
    params = model.init(jax.random.key(0), INPUTS)

    def loss(outputs, labels):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, labels))

    expected = dense(lambda params: loss(model.apply(params, INPUTS), LABELS), params)
    for likelihood in (loss, linops.losses.CrossEntropy()):  # of a linear model the Hessian
        G = linops.GaussNewton(model.apply, params, likelihood, data=(INPUTS, LABELS))
        np.testing.assert_allclose(G.toarray(), expected, atol=1e-6)
    graph, state = nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))

    def of_state(state):
        return loss(nnx.merge(graph, state)(INPUTS), LABELS) + 0.1 * optax.tree.norm(state, squared=True)

    np.testing.assert_allclose(linops.Hessian(of_state, state).toarray(), dense(of_state, state), atol=1e-6)
    assert linops.optimize.minimize(of_state, state).success
