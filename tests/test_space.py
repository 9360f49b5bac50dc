"""A Space as a vector space of trees: the same as of their vectors; where leaves lie, and digits that are lost."""

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from models import Module, Moments
from problems import POINT, SIZE

import linops

FOUR = np.arange(1, 5, dtype=np.float32)


def test_wrong_tree():
    J = linops.Jacobian(lambda x: x["a"] * x["b"], {"a": FOUR, "b": np.float32(2)})
    for tree in ({"a": FOUR}, {"a": FOUR, "b": FOUR}, FOUR):
        with pytest.raises(
            ValueError, match=r"got a pytree of structure .* and shapes .*, expected one like the point's"
        ):
            J.mv(tree)
    with pytest.raises(ValueError, match=r"expected one like the point's"):
        J.at({"a": FOUR[:2], "b": 1.0})
    with pytest.raises(TypeError, match=r"the tree\['b'\] has dtype complex64, expected float32"):
        J.mv({"a": FOUR, "b": np.complex64(2)})
    with pytest.raises(ValueError, match=r"got an array of shape \(3,\), expected a vector of shape \(5,\)"):
        J.domain.unravel(jnp.ones(3))


THREE = np.arange(1, 4, dtype=np.float32)


# Where leaves lie.


LAYOUTS = {
    "dict": {"w": np.zeros((2, 3)), "b": np.zeros(2), "a": np.zeros(())},
    "layers": {
        "layers": [{"w": np.zeros((2, 3)), "b": np.zeros(2)}, {"w": np.zeros(4), "b": np.zeros(0)}],
        "z": np.zeros(1),
    },
    "haiku": {"linear/~/w": {"w": np.zeros(2), "b": np.zeros(1)}, "linear": {"w": np.zeros(3)}},
    "module": Module(np.zeros(2), (np.zeros(3), None)),
    "optimizer": [Moments(np.zeros(()), {"w": np.zeros(2)})],
    "array": np.zeros((2, 2)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_slices(name):
    """The slice of each node takes from the vector what the vector of the node alone is."""
    tree = jax.tree.map(jnp.asarray, LAYOUTS[name])
    space = linops.Space.of(tree)
    numbered = space.unravel(np.arange(space.size, dtype=np.float32))
    vector, seen = np.asarray(space.ravel(numbered)), []
    for keys, _ in jax.tree_util.tree_flatten_with_path(tree)[0]:
        for k in range(len(keys) + 1):
            path = jax.tree_util.keystr(keys[:k], simple=True, separator="/")
            inside = [leaf for p, leaf in jax.tree_util.tree_flatten_with_path(numbered)[0] if p[:k] == keys[:k]]
            got = space.slice(path)
            seen.append(path)
            assert type(got) is slice
            np.testing.assert_array_equal(vector[got], np.concatenate([np.ravel(leaf) for leaf in inside]))
    assert space.slice("") == slice(0, space.size)
    for unknown in ("nowhere", seen[-1] + "/more", "/"):
        with pytest.raises(
            ValueError, match=r"got the path '.*', which 0 parts of the tree have; expected that of one"
        ) as e:
            space.slice(unknown)
        assert repr(seen[-1]) in str(e.value)


def test_slices_of_vectors_of_an_operator():
    J = linops.Jacobian(lambda p: p["w"] * 2 + p["b"], {"w": THREE, "b": np.float32(1)})
    D = J.toarray()
    np.testing.assert_array_equal(D[:, J.domain.slice("w")], 2 * np.eye(3))
    np.testing.assert_array_equal(D[:, J.domain.slice("b")], np.ones((3, 1)))
    ambiguous = linops.Space.of({"a/b": jnp.zeros(1), "a": {"b": jnp.zeros(2)}})
    with pytest.raises(ValueError, match="which 2 parts of the tree have; expected that of one leaf"):
        ambiguous.slice("a/b")
    many = linops.Space.of({f"{i:02}": jnp.zeros(1) for i in range(30)})
    with pytest.raises(ValueError, match=r"'19', \.\.\.$"):
        many.slice("x")


def test_spaces_of_mixed_precision(x64):
    """A vector of a Space holds all digits of its elements, and a leaf says which of a vector it does not hold."""
    x = {"a": np.array([1 / 3, 2.0]), "b": np.array([3.5], np.float32)}
    space = linops.Space.of(x)
    assert space.dtype == np.float64
    vector = np.asarray(space.ravel(x))
    np.testing.assert_array_equal(vector, [1 / 3, 2, 3.5])
    np.testing.assert_array_equal(space.unravel(vector)["a"], x["a"])
    D = linops.Jacobian(lambda x: x, x)
    with jax.enable_x64(False):
        np.testing.assert_array_equal(space.ravel(x), vector)
        np.testing.assert_array_equal(space.unravel(vector)["a"], x["a"])
        assert space.zeros()["a"].dtype == space.inner(x, x).dtype == np.float64
    for use in (space.unravel, D.at):
        use(vector)
        for lossy in (vector + 1e-12, jnp.asarray(vector) + 1e-12):
            with pytest.warns(linops.PrecisionWarning, match="the vector is float64 and is narrowed to float32"):
                use(lossy)
    space.leaves({"a": [0.1, 0.2], "b": [0.3]}) if space.treedef == jax.tree.structure(
        {"a": [0, 0], "b": [0]}
    ) else None


def test_trees_and_vectors_that_lose_digits():
    space = linops.Space.of({"a": jnp.zeros(2)})
    wide = {"a": np.full(2, 1 / 3)}
    with pytest.warns(linops.PrecisionWarning, match=r"the tree\['a'\] is float64 and is narrowed to float32"):
        space.ravel(wide)
    with pytest.warns(linops.PrecisionWarning, match="the vector is float64 and is narrowed to float32"):
        space.unravel(wide["a"])
    space.unravel(np.ones(2))  # of which nothing is lost
    with jax.enable_x64(True):
        A = linops.Matrix(np.eye(2, dtype=np.float32))
        with pytest.warns(linops.PrecisionWarning, match="the vector multiplied by .* is float64 and is narrowed"):
            jax.jit(lambda v: A @ v)(np.ones(2))


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


def test_inner_products_are_in_all_digits_whatever_a_user_has_set():
    space = linops.Space.flat(3, np.float32)
    with jax.default_matmul_precision("bfloat16"):
        text = jax.jit(space.inner).lower(jnp.ones(3), jnp.ones(3)).as_text()
    assert "HIGHEST" in text


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


def test_space():
    space = linops.Space.of(POINT)
    assert (space.size, space.dtype, space.is_flat) == (SIZE, np.float32, False)
    vector = space.ravel(POINT)
    np.testing.assert_array_equal(vector, jax.flatten_util.ravel_pytree(POINT)[0])
    jax.tree.map(np.testing.assert_array_equal, space.unravel(vector), POINT)
    assert hash(space) == hash(linops.Space.of(jax.tree.map(jnp.asarray, POINT)))
    assert [space.locate(i) for i in (0, 2, 10)] == ["['b'][0]", "['w'][0, 0]", "['w'][2, 2]"]
    mixed = linops.Space.of(problems.tree_point("mixed", np.float32))
    assert mixed.dtype == np.float32
    assert [leaf.dtype for leaf in mixed.unravel(np.ones(11))] == [np.float16, np.float32]


def test_ravel_takes_elements_only():
    space = linops.Space.of(np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"shapes \[\(3, 2\)\], expected one like the point's"):
        space.ravel(np.ones((3, 2)))
    with pytest.raises(TypeError, match=r"the tree has dtype complex64, expected float32"):
        space.ravel(np.ones((2, 3), np.complex64))
