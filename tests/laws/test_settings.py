"""Under whatever settings of JAX an operator is made and multiplied, the products are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import operators
import pytest

SETTINGS = {
    "debug_nans": lambda: jax.debug_nans(True),
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "enable_checks": lambda: jax.enable_checks(True),
    "checking_leaks": jax.checking_leaks,
    "disable_jit": jax.disable_jit,
    "matmul precision": lambda: jax.default_matmul_precision("float32"),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
}
PAIRS = ["jacobian_adjoint gauss_newton_nested", "jacobian_realified normal_equations"]  # of which each has one


@pytest.fixture
def dtype():
    return np.float32


@pytest.mark.covering("names")
@pytest.mark.parametrize("names", PAIRS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(setting, names, dtype):
    for name in names.split()[: 1 if setting == "disable_jit" else 2]:  # without which all is slow
        D, arguments = operators.dense(name, dtype), operators.arguments(name, dtype)
        with SETTINGS[setting]():
            A = operators.make(name, *arguments)
            v = np.linspace(1, 2, D.shape[1]).astype(A.dtype)
            for w in (A @ v, A @ jnp.asarray(v), A @ np.stack([v, v], 1)):
                np.testing.assert_allclose(w.T, np.broadcast_to(D @ v, w.T.shape), rtol=1e-3, atol=1e-3)
            w = np.ones(len(D), A.dtype)
            np.testing.assert_allclose(A.rmatvec(w), D.conj().T @ w, rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(jax.jit(lambda A, v: A.T @ v)(A, w), D.T @ w, rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(A.toarray(), D, rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(A.diagonal(), np.diag(D), rtol=1e-3, atol=1e-3)
