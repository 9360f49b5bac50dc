"""What cannot be linearized, or not be transposed then; and what is kept where a linearization does not fit."""

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


def test_a_reference_inside_of_f_that_starts_from_constants():
    def f(x):
        r = jax.new_ref(jnp.zeros_like(x))
        r[...] = jnp.sin(x)
        r[1] = x[0] * x[2]
        return r[...]

    x = np.array([1, 2, 3], np.float32)
    J = linops.Jacobian(f, x)
    expected = np.array([[np.cos(1), 0, 0], [3, 0, 1], [0, 0, np.cos(3)]])
    np.testing.assert_allclose(J.toarray(), expected, rtol=1e-5)
    np.testing.assert_allclose(J.T @ np.ones(3, np.float32), expected.sum(0), rtol=1e-5)


def test_what_is_not_checked_is_not_when_linearized():
    x = np.array([0, 1, 2], np.float32)
    J = linops.Jacobian(lambda x: jnp.sqrt(x), x, check_finite=False).linearize()
    for A in (J, J.T, 2 * J):
        assert np.isinf(A @ np.ones(3, np.float32)).tolist() == [True, False, False]


@pytest.mark.parametrize("linearize", [True, False])
def test_what_is_computed_inside_in_double_precision_is_so_for_good(linearize):
    """A function between float32 arrays that takes its differences in float64."""

    def f(x):
        x = x.astype(np.float64)
        return ((x + 1e-9 * x) ** 2 - x**2).astype(np.float32)

    x = np.float32([1, 2, 3])
    expected = 4e-9 * x**2
    with jax.enable_x64(True):
        J = linops.Jacobian(f, x, linearize=linearize)
        J @ x
    fresh = J.at(x)
    for A in (J, fresh, J.linearize(), fresh.linearize(), 1 * fresh):
        for w in (A @ x, A @ jnp.asarray(x), A.T @ x, A.mv(x), (A @ np.stack([x, x], axis=1))[:, 1], A.toarray() @ x):
            np.testing.assert_allclose(w, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_loops_hand_on_states_alone_where_residuals_do_not_fit(dtype, caplog):
    """Of each step one array of a dozen is kept on the way back, in a fourth of the memory at most."""
    rng = np.random.default_rng(0)
    W, x = (rng.normal(size=shape).astype(dtype) / 3 for shape in [(8, 8), (10, 8)])
    v = rng.normal(size=x.size).astype(np.float32)

    @jax.jit
    def f(x, W):
        def step(h, _):
            a = jnp.tanh(h @ W)
            return jnp.sin(a) * jnp.cos(h) + jnp.exp(-(a**2)), jnp.sum(h)

        h, sums = jax.lax.scan(step, x, length=100)
        return jnp.sum(jnp.abs(h) ** 2) + jnp.real(sums[3])

    anew = linops.Hessian(f, x, args=(W,), linearize=False)
    v = np.resize(v, anew.shape[1])
    with linops.memory_limit(2**16), caplog.at_level("DEBUG", "linops"):
        frugal = linops.Hessian(f, x, args=(W,))
        product = frugal @ v
    np.testing.assert_allclose(product, anew @ v, rtol=1e-2, atol=1e-4 * np.abs(product).max())
    assert "computes the steps of its loops anew on the way back" in caplog.text
    assert frugal._door.staged.bytes_live < anew._door.staged.bytes_live / 4
    assert linops.check(frugal.at(x / 2))
