"""What is staged: caches are bounded and hold no data, and large arrays have no second copy."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import forget

import linops
from linops.program import program, staged


def test_a_point_of_weak_type_traces_nothing():
    H = linops.Hessian(lambda x: jnp.sum(x**3), np.float32(2))
    H @ np.ones(1, np.float32)
    before = len(staged._staged.found)
    assert H.at(jnp.asarray(3.0)) @ np.ones(1, np.float32) == 18
    assert len(staged._staged.found) == before


def test_caches_are_bounded(monkeypatch):
    forget()
    before = len(program._programs)
    monkeypatch.setattr(staged._staged, "size", 4)
    monkeypatch.setattr(program, "_KEPT", 4)
    for power in range(2, 8):
        linops.Hessian(lambda x, p=power: jnp.sum(x**p), np.ones(2, np.float32)) @ np.ones(2, np.float32)
    gc.collect()
    assert len(staged._staged.found) == len(program._recent) == 4
    assert len(program._programs) <= before + 4 + 2 * 4  # those in use by what is staged


def test_no_second_copy_of_a_large_array():
    """The residuals of A x are A itself: passed through, not copied by XLA."""
    A = jnp.ones((400, 300))
    J = linops.Jacobian(lambda x: jnp.tanh(A @ x), np.ones(300, np.float32))
    J @ np.ones(300, np.float32)
    copies = [leaf for leaf in jax.tree.leaves(J.linearize()) if leaf.shape == A.shape]
    assert [leaf.unsafe_buffer_pointer() for leaf in copies] == [A.unsafe_buffer_pointer()]
    assert sum(array.nbytes == A.nbytes for array in jax.live_arrays()) == 1


def test_caches_hold_no_data():
    """Programs of fresh lambdas over fresh arrays are kept, their arrays are not."""

    def construct(seed):
        A = jnp.full((123, 77), float(seed))
        J = linops.Jacobian(lambda x: jnp.tanh(A @ x), np.ones(77, np.float32))
        J.T @ np.ones(123, np.float32)
        (J.T @ J) @ np.ones(77, np.float32)

    for seed in range(10):
        construct(seed)
    assert not [array for array in jax.live_arrays() if array.shape == (123, 77)]


@pytest.mark.parametrize("known", [True, False])
def test_a_linearization_is_compiled_alone_and_within(known, monkeypatch):
    """By options of its own where no jit is in progress, as far as JAX tells; a part of a program cannot have them."""
    if not known:
        monkeypatch.setattr(staged, "is_outermost", lambda: False)
    x = np.linspace(0.5, 1, 7, dtype=np.float32)
    outside, inside = (linops.Jacobian(lambda x: jnp.sin(x) * jnp.exp(x), x) for _ in range(2))
    expected = np.exp(x) * (np.sin(x) + np.cos(x)) * x
    np.testing.assert_allclose(outside @ x, expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda v: inside @ v)(x), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(lambda v: inside @ v)(x[None])[0], expected, rtol=1e-5)
