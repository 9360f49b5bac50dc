"""Operators in other libraries, where they are installed."""

import jax
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
