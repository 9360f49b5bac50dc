"""What a product costs, against what is known of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linops

M = np.ones((200, 300), np.float32)


def test_a_matrix_by_hand():
    cost = linops.Matrix(M).cost()
    assert cost.flops == pytest.approx(2 * M.size, rel=0.01)
    assert M.nbytes <= cost.bytes_moved <= 1.1 * M.nbytes
    assert cost.bytes_residuals == 0
    assert 0 < cost.seconds < 1
    assert not cost.has_loops
    assert str(cost).startswith("one product: 120 k flops, 24")
    assert "of residuals kept" in str(cost)


def test_residuals_and_composites():
    A = linops.Matrix(M)
    x = np.ones(300, np.float32)
    J = linops.Jacobian(jnp.sin, x)
    assert J.cost().bytes_residuals == 4 * 300
    assert linops.Jacobian(jnp.sin, x, linearize=False).cost().bytes_residuals == 0
    both = (A.T @ A + J).cost()
    assert both.flops == pytest.approx(4 * M.size, rel=0.02)
    assert both.bytes_residuals == 4 * 300


def test_loops_are_said_to_be_counted_once():
    J = linops.Jacobian(lambda x: jax.lax.fori_loop(0, 99, lambda i, x: jnp.sin(x), x), np.ones(9, np.float32))
    cost = J.cost()
    assert cost.has_loops
    assert "at least" in str(cost)


def test_what_is_not_known():
    data = [np.ones((4, 3), np.float32)]
    cost = linops.Hessian(lambda x, b: jnp.mean((b @ x) ** 2), np.ones(3, np.float32), data=data).cost()
    assert (cost.flops, cost.bytes_moved, cost.seconds) == (None, None, None)
    assert str(cost) == "one product: a cost that XLA does not tell, 0 B of residuals kept"
    with pytest.raises(TypeError, match=r"cost\(\) was called on an operator that belongs to a jit, vmap or grad in"):
        jax.jit(lambda x: linops.Diagonal(x).cost())(jnp.ones(3))
