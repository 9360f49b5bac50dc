"""Dense forms: by the shorter side, by the mode that has rules, and not inside of jit."""

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from problems import POINT, SIZE

import linops
from linops import door

FOUR = np.arange(1, 5, dtype=np.float32)


def test_dense_forms_inside_jit():
    for method in ("toarray", "diagonal"):
        with pytest.raises(TypeError, match=rf"{method}\(\) was called on an operator that belongs to a jit"):
            jax.jit(lambda x, method=method: getattr(linops.Jacobian(jnp.sin, x), method)())(FOUR)


def test_dense_matrix_by_the_shorter_side(monkeypatch):
    """A gradient as a Jacobian of one row is one product with the transpose, not n products."""
    widths = []
    matmat = door.Door.matmat
    monkeypatch.setattr(door.Door, "matmat", lambda self, block: widths.append(block.shape) or matmat(self, block))
    monkeypatch.setattr("linops.dense._at_once", lambda operator: widths.append(operator.shape))
    linops.Jacobian(problems.scalar, POINT).toarray()
    assert widths == [(SIZE, 1), (1, 1)]


X = np.array([0.1, 0.2, 0.3], np.float32)
V = np.array([1, -2, 0.5], np.float32)


def test_dense_forms_where_one_mode_has_rules():
    def newton(x):
        return jax.lax.while_loop(lambda y: jnp.any(abs(y * y - x) > 1e-3), lambda y: (y + x / y) / 2, x)

    @jax.custom_vjp
    def rounded(x):
        return jnp.sin(x)

    def backward(x, w):  # which forward mode does not differentiate
        return (jax.lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, c[1] * jnp.cos(x)), (0, w))[1],)

    rounded.defvjp(lambda x: (jnp.sin(x), x), backward)
    J, R = linops.Jacobian(newton, 1 + X), linops.Jacobian(rounded, X)
    np.testing.assert_allclose(J.T.toarray(), jax.jit(jax.jacfwd(newton))(1 + X).T, rtol=1e-5, atol=1e-6)
    with pytest.raises(linops.MissingRule, match="forward-mode differentiation"):
        R @ V
    np.testing.assert_allclose(R.toarray(), np.diag(np.cos(X)), rtol=1e-5, atol=1e-6)
    assert R.toarray().flags.c_contiguous
    np.testing.assert_allclose(R.diagonal(), np.cos(X), rtol=1e-5)
    np.testing.assert_allclose(J.T.diagonal(), np.diagonal(J.toarray()), rtol=1e-6)
