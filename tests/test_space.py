"""A Space as a vector space of trees: the same as of their vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

import linops

TREES = {
    "dict": {"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.float32)},
    "complex": {"a": np.ones(3, np.complex64), "b": np.ones(2, np.complex64)},
    "both": [np.ones(3, np.complex64), np.ones(2, np.float32)],
    "half": (np.ones(3, np.float16), np.ones(2, np.float32)),
    "empty": [np.ones(0, np.float32), np.ones(2, np.float32)],
    "double": {"a": np.ones(3), "b": np.ones(2)},
}


@pytest.mark.parametrize("kind", TREES)
def test_a_space_is_a_vector_space(kind):
    with jax.enable_x64(kind == "double"):
        space = linops.Space.of(TREES[kind])
    with jax.enable_x64(False):
        u, v = (space.draw(key) for key in jax.random.split(jax.random.key(0)))
        a, b = (np.asarray(space.ravel(tree), np.result_type(space.dtype, np.float64)) for tree in (u, v))
        rtol = 8 * float(jnp.finfo(np.float16 if kind == "half" else space.dtype).eps)
        results = [
            (space.ravel(space.add(u, v)), a + b),
            (space.ravel(space.scale(2, u)), 2 * a),
            (space.ravel(space.zeros()), 0 * a),
            (space.inner(u, v), np.vdot(a, b)),
            (jax.jit(space.inner)(u, v), np.vdot(a, b)),
            (space.norm(u), np.linalg.norm(a)),
            (space.norm(space.zeros()), 0),
        ]
        for got, expected in results:
            np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol)
        for tree in (u, space.add(u, v), space.scale(2, u), space.zeros()):
            assert linops.Space.of(tree) == space
        assert space.inner(u, v).dtype == space.dtype
        assert space.norm(u).dtype == np.zeros(0, space.dtype).real.dtype
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(space.ravel(u), space.ravel(v))


def test_a_norm_neither_overflows_nor_underflows():
    space = linops.Space.flat(4, np.float32)
    for scale in (1e30, 1e-30):
        np.testing.assert_allclose(space.norm(jnp.full(4, scale)), 2 * scale, rtol=1e-6)
    mixed = linops.Space.of({"a": np.zeros(1, np.float16), "b": np.zeros(4, np.float32)})
    for small in (0.0, 1e-7):
        v = {"a": jnp.full(1, small, jnp.float16), "b": jnp.full(4, 1e-10)}
        np.testing.assert_allclose(mixed.norm(v), np.hypot(float(v["a"][0]), 2e-10), rtol=1e-2)
    np.testing.assert_allclose(
        linops.Space.flat(100_000, np.float16).norm(jnp.ones(100_000, jnp.float16)), 316.2, rtol=1e-2
    )
    assert np.isnan(space.norm(jnp.full(4, jnp.nan)))
    assert np.isinf(space.norm(jnp.full(4, jnp.inf)))


def test_what_is_no_element_has_no_inner_product():
    space = linops.Space.of({"a": np.ones((2, 3), np.float32), "b": np.ones(2, np.float32)})
    u = space.draw(jax.random.key(0))
    for wrong in ({"a": u["a"]}, {**u, "a": u["a"].T}):
        with pytest.raises(ValueError, match="expected one like the point's"):
            space.inner(u, wrong)
    with pytest.raises(TypeError, match="scale got a complex number and an element with real leaves: 1j, expected a"):
        space.scale(1j, u)


def test_drawn_numbers_are_normal():
    for dtype in (np.float32, np.complex64):
        v = np.asarray(linops.Space.flat(20_000, dtype).draw(jax.random.key(1)))
        assert abs(v.mean()) < 0.03
        assert abs(np.mean(abs(v) ** 2) - 1) < 0.03


def test_elements_on_trees_keep_their_structure():
    x = problems.tree_point("nested", np.float32)
    space = linops.Space.of(x)
    assert jax.tree.structure(space.draw(jax.random.key(0))) == jax.tree.structure(x)
