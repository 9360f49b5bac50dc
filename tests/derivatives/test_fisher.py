"""Losses with Hessians in closed form, and the Fisher matrix of their likelihoods."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import linops
from linops import losses

COUNT, WIDTH, OUTPUTS = 13, 4, 3
RNG = np.random.default_rng(5)
X = RNG.normal(size=(COUNT, WIDTH)).astype(np.float32)
P = {"W": RNG.normal(size=(WIDTH, OUTPUTS)).astype(np.float32), "b": np.zeros(OUTPUTS, np.float32)}
NORMAL = RNG.normal(size=(COUNT, OUTPUTS)).astype(np.float32)
TARGETS = {
    losses.SquaredError: NORMAL,
    losses.CrossEntropy: RNG.integers(0, OUTPUTS, COUNT),
    losses.BinaryCrossEntropy: (NORMAL > 0).astype(np.float32),
    losses.Poisson: np.abs(NORMAL).round(),
}


def model(p, inputs):
    return 2 * jnp.tanh(inputs @ p["W"] + p["b"])


def near(A, expected, rtol=2e-6):
    found = A if isinstance(A, np.ndarray) else A.toarray()
    return np.linalg.norm(found - expected) <= rtol * np.linalg.norm(expected)


def dense(loss, targets):
    """JᵀHJ and the sum over examples of g gᵀ, by JAX in double precision."""
    with jax.enable_x64(True):
        flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(lambda a: jnp.asarray(a, float), P))
        inputs, targets = X.astype(float), jnp.asarray(targets)

        def outputs(q):
            return model(unravel(q), inputs).ravel()

        J = jax.jit(jax.jacobian(outputs))(flat)
        H = jax.jit(jax.hessian(lambda z: loss(z.reshape(COUNT, OUTPUTS), targets)))(outputs(flat))
        each = jax.vmap(lambda x, t: jax.grad(lambda q: loss(model(unravel(q), x[None]), t[None]))(flat))
        gradients = jax.jit(each)(inputs, targets)
        return np.asarray(J.T @ H @ J), np.asarray(gradients.T @ gradients)


@pytest.mark.covering("reduction")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", TARGETS)
def test_fisher_matrices_are_those_of_the_likelihood(kind, reduction):
    loss, targets = kind(reduction), TARGETS[kind]
    curvature, outer = dense(loss, targets)
    empirical = outer / COUNT if reduction == "mean" else outer
    options = {"data": (X, targets), "reduction": reduction, "batch_size": 5}
    known = linops.GaussNewton(lambda p: model(p, X), P, loss)
    assert near(known, curvature)
    assert known.positive_semidefinite
    assert linops.Fisher(model, P, loss, **options).linearize().positive_semidefinite
    for A in (
        linops.GaussNewton(model, P, lambda outputs, targets: loss(outputs, targets), **options),
        linops.GaussNewton(model, P, loss, **options, linearize=False),
        linops.Fisher(model, P, loss, **options),
    ):
        assert near(A, curvature)
    assert near(linops.Fisher(model, P, loss, **options, kind="empirical"), empirical)
    drawn = {"kind": "sampled", "key": jax.random.key(0)}
    # Of 20 keys, each with 100 draws for an example: how far a mean of 2,000 draws is off, by the scatter of the keys.
    found = np.array([
        (linops.Fisher(model, P, loss, **options, kind="sampled", key=jax.random.key(i), num_samples=100) @ DIRECTION)
        for i in range(20)
    ])  # fmt: skip
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert np.all(np.abs(found.mean(axis=0) - curvature @ DIRECTION) <= 5 * error)
    batches = [(X[i : i + 4], targets[i : i + 4]) for i in range(0, COUNT, 4)]
    of_host = linops.Fisher(model, P, loss, data=batches, reduction=reduction, **drawn)
    assert near(of_host, linops.Fisher(model, P, loss, **options, **drawn).toarray())


DIRECTION = np.ones(WIDTH * OUTPUTS + OUTPUTS, np.float32)


def test_an_example_of_several_rows_is_one_likelihood():
    """Sequences: a mean is over all tokens, and for any kind it is the same."""
    labels = RNG.integers(0, OUTPUTS, (COUNT, 2))

    def tokens(p, inputs):
        return jnp.stack([model(p, inputs), model(p, inputs**2)], axis=1)

    flat, unravel = jax.flatten_util.ravel_pytree(P)
    loss = losses.CrossEntropy("sum")
    gradient = jax.grad(lambda q, x, label: loss(tokens(unravel(q), x[None]), label[None]))
    gradients = np.asarray(jax.vmap(gradient, (None, 0, 0))(flat, X, labels))
    options = {"data": (X, labels), "batch_size": 5}
    empirical = linops.Fisher(tokens, P, losses.CrossEntropy(), **options, kind="empirical")
    assert near(empirical, gradients.T @ gradients / labels.size)
    drawn = {"kind": "sampled", "key": jax.random.key(0), "num_samples": 400}
    exact = linops.Fisher(tokens, P, losses.CrossEntropy(), **options)
    sampled = linops.Fisher(tokens, P, losses.CrossEntropy(), **options, **drawn)
    assert np.isclose(np.trace(sampled.toarray()), np.trace(exact.toarray()), rtol=0.05)


def test_labels_that_are_no_classes_are_not_taken_for_some():
    for label in -1, -100, OUTPUTS:
        loss = losses.CrossEntropy()
        outputs, labels = jnp.ones((2, OUTPUTS)), np.array([0, label])
        assert np.isnan(loss(outputs, labels))
        assert np.isnan(jax.grad(loss)(outputs, labels)[1]).all()
        with pytest.raises(FloatingPointError, match="has NaN or Inf"):
            linops.Fisher(model, P, loss, data=(X[:2], labels), kind="empirical") @ DIRECTION
    for loss, wrong in (
        (losses.BinaryCrossEntropy(), -1.0),
        (losses.BinaryCrossEntropy(), 2.0),
        (losses.Poisson(), -1.0),
    ):
        gradient = jax.grad(loss)(jnp.ones((2, 1)), jnp.array([[1.0], [wrong]]))
        assert np.isfinite(gradient[0])
        assert np.isnan(gradient[1])


def test_what_is_no_likelihood_is_refused():
    data, loss = (X, NORMAL), losses.SquaredError()
    for options, error, words in [
        ({"loss": lambda z, t: jnp.mean(z - t)}, TypeError, "expected one of linops.losses, or"),
        ({"loss": lambda z, t: 0.0, "kind": "sampled", "key": jax.random.key(0)}, TypeError, "expected one that draws"),
        ({"kind": "sampled"}, ValueError, "expected a key where, and only where, targets are drawn"),
        ({"kind": "true"}, ValueError, "expected one of exact, sampled, empirical"),
        ({"kind": "sampled", "key": jax.random.key(0), "num_samples": 0}, ValueError, "expected a number >= 1"),
    ]:
        with pytest.raises(error, match=words):
            linops.Fisher(model, P, **{"loss": loss, "data": data, **options})
    sampled = {"kind": "sampled", "key": jax.random.key(0)}
    for data_of_host, words in (iter([data]), "used up after one pass"), ([(X, X, X)], r"expected pairs, \(inputs"):
        with pytest.raises(TypeError, match=words):
            linops.Fisher(model, P, loss, data=data_of_host, **sampled)
    pairs = r"expected pairs, \(inputs"
    for no_pairs, words in (
        ({"x": X}, "Fisher got data whose batches are .*'x'"),
        (X, pairs),
        (None, "got data=None, exp"),
    ):
        with pytest.raises(TypeError, match=words):
            linops.Fisher(model, P, loss, data=no_pairs, **sampled)
    with pytest.raises(TypeError, match=r"Fisher got data whose batches are PyTreeDef\(\(\*, None\)\), " + pairs):
        linops.Fisher(model, P, loss, data=(X, None), kind="empirical")
    for options in {}, {"kind": "empirical"}:
        with pytest.raises(ValueError, match="over data with reduction='sum', expected one for both"):
            linops.Fisher(model, P, loss, data=data, reduction="sum", **options)
    for loss in (losses.SquaredError(), losses.BinaryCrossEntropy(), losses.Poisson()):
        for outputs, targets in ((jnp.ones((4, 1)), jnp.ones(4)), (jnp.ones(4), jnp.ones((4, 1)))):
            with pytest.raises(TypeError, match="expected the same, a target for each output"):
                loss(outputs, targets)
    with pytest.raises(TypeError, match="expected integer labels of shape"):
        linops.GaussNewton(model, P, losses.CrossEntropy(), data=data)
    with pytest.raises(ValueError, match="got reduction='max', expected 'mean' or 'sum'"):
        losses.Poisson("max")
    with pytest.raises(TypeError, match=r"with a row for each example: for one example add an axis, outputs\[None\]"):
        losses.SquaredError()({"a": jnp.ones(3)}, 0)
    with pytest.raises(TypeError, match="expected real ones: the parameters of likelihoods"):
        linops.Fisher(lambda p, X: model(p, X) * 1j, P, loss, data=data, kind="empirical")
