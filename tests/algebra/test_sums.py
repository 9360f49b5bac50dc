"""Sums of operators, also of many."""

import jax.numpy as jnp
import numpy as np
import pytest
from counting import compilations

import linops


def test_sums_of_operators():
    x = np.array([0.1, 0.2, 0.3], np.float32)
    terms = [linops.Jacobian(lambda x, a: jnp.sin(a * x), x, args=(np.float32(a),)) for a in (1, 2, 3)]
    expected = sum(a * np.cos(a * x) for a in (1, 2, 3))
    np.testing.assert_allclose(sum(terms).diagonal(), expected, rtol=1e-5)
    assert sum(terms[:1]) is terms[0]
    for zero in (0.0, False, np.int64(0), np.zeros(())):
        with pytest.raises(TypeError, match="to add to an operator, expected an operator: write"):
            zero + terms[0]


X = np.array([0.1, 0.2, 0.3], np.float32)
V = np.array([1, -2, 0.5], np.float32)


def test_a_sum_of_many_operators_over_few_arrays():
    """Of which any two terms may share one."""
    a, b = (jnp.asarray(c * np.diag(X)) for c in (1, 10))
    for shared in ("aaaa", "aaab", "aaba", "abaa", "baaa", "aabb", "abab"):
        A = sum(k * linops.Matrix({"a": a, "b": b}[name]) for k, name in enumerate(shared, start=1))
        factor = sum(k * {"a": 1, "b": 10}[name] for k, name in enumerate(shared, start=1))
        np.testing.assert_allclose(A @ V, factor * X * V, rtol=1e-5, err_msg=shared)


def test_a_sum_of_many_operators_compiles_one_program():
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(5, 3)).astype(np.float32) for _ in range(60)]

    def loss(x, batch):
        return jnp.sum(jnp.log1p(jnp.exp(batch @ x)))

    made = {
        "Hessian": [linops.Hessian(loss, X, args=(batch,)) for batch in batches],
        "GaussNewton": [linops.GaussNewton(lambda x, b: jnp.tanh(b @ x), X, args=(batch,)) for batch in batches],
        "recomputed": [linops.Hessian(loss, X, args=(batch,), linearize=False) for batch in batches],
    }
    for kind, operators in made.items():
        expected = sum(A.toarray() for A in operators)
        few, many = sum(operators[:8]), sum(operators)
        few @ V
        with compilations() as count:
            np.testing.assert_allclose(many @ V, expected @ V, rtol=1e-4, atol=1e-4, err_msg=kind)
            assert count() <= 4, kind  # stacking, and a loop of another length
        np.testing.assert_allclose(many.toarray(), expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(many.T @ V, expected.T @ V, rtol=1e-4, atol=1e-4)
