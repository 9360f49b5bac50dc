"""What cannot be linearized."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linops

FOUR = np.arange(1, 5, dtype=np.float32)


def test_custom_vmap_is_not_linearized():
    @jax.custom_batching.custom_vmap
    def f(x):
        return jnp.sin(x)

    f.def_vmap(lambda size, batched, x: (jnp.sin(x), True))
    J = linops.Jacobian(f, FOUR)
    for multiply in (J.matvec, J.rmatvec, lambda v: J.matmat(v[:, None]), J.mv):
        with pytest.raises(
            TypeError, match=r"one that can be linearized, as .*custom_vmap cannot; pass linearize=False"
        ):
            multiply(FOUR)
    J = linops.Jacobian(f, FOUR, linearize=False)
    np.testing.assert_allclose(J @ FOUR, np.cos(FOUR) * FOUR, rtol=1e-5)
    np.testing.assert_allclose(J.toarray(), np.diag(np.cos(FOUR)), rtol=1e-5)
    assert "pass linearize=False" in str(linops.check(linops.Jacobian(f, FOUR)))
    assert linops.check(J)
