"""What a law over the zoo cannot say: points, Spaces, dense forms, batches, settings, pieces of structure."""

import concurrent.futures
import decimal
import fractions
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from counting import compilations
from scipy.optimize import minimize

import linops
from linops import door

X = problems.tree_point("dict", np.float32)
SIZE = 11


def test_one_point_becomes_two():
    other = problems.tree_point("dict", np.float32, seed=5)
    K = linops.JacobianGram(problems.values, X).at(X, other)
    D1, D2 = problems.jacobian(problems.values, X), problems.jacobian(problems.values, other)
    np.testing.assert_allclose(K.toarray(), D1 @ D2.T, rtol=1e-4, atol=1e-4)


def test_args_that_are_no_tuple_are_one_argument():
    f = lambda x, a: jnp.sum(a * x**2)  # noqa: E731
    v = np.ones(3, np.float32)
    np.testing.assert_array_equal(linops.Hessian(f, v, args=2.0) @ v, [4, 4, 4])
    np.testing.assert_array_equal(linops.Hessian(f, v, args=np.float32([1, 2, 3])) @ v, [2, 4, 6])


def test_space():
    space = linops.Space.of(X)
    assert (space.size, space.dtype, space.is_flat) == (SIZE, np.float32, False)
    vector = space.ravel(X)
    np.testing.assert_array_equal(vector, jax.flatten_util.ravel_pytree(X)[0])
    jax.tree.map(np.testing.assert_array_equal, space.unravel(vector), X)
    assert hash(space) == hash(linops.Space.of(jax.tree.map(jnp.asarray, X)))
    assert [space.locate(i) for i in (0, 2, 10)] == ["['b'][0]", "['w'][0, 0]", "['w'][2, 2]"]
    mixed = linops.Space.of(problems.tree_point("mixed", np.float32))
    assert mixed.dtype == np.float32
    assert [leaf.dtype for leaf in mixed.unravel(np.ones(11))] == [np.float16, np.float32]


def test_points_are_copied():
    x = np.ones(3, np.float32)
    H = linops.Hessian(lambda x: jnp.sum(x**3), x)
    x[:] = 5
    np.testing.assert_array_equal(H @ np.ones(3, np.float32), [6, 6, 6])


def test_float64_operators_keep_float64_where_it_is_off():
    with jax.enable_x64(True):
        x = {"a": np.linspace(0, 1, 4), "b": np.ones(2)}
        J = linops.Jacobian(lambda x: jnp.tanh(x["a"]) @ jnp.ones((4, 3)) + jnp.exp(x["b"][0]), x)
        fresh = J.at(x)
        D = J.toarray()
    assert D.dtype == np.float64
    v = np.linspace(1, 2, 6)
    np.testing.assert_allclose(J @ v, D @ v, rtol=1e-14)
    np.testing.assert_allclose(J.at(x).at(J.domain.ravel(x)) @ v, D @ v, rtol=1e-14)
    np.testing.assert_allclose(fresh.T @ np.ones(3), D.T @ np.ones(3), rtol=1e-14)
    np.testing.assert_allclose((fresh.T @ fresh) @ np.ones((6, 2)), D.T @ D @ np.ones((6, 2)), rtol=1e-13)


@pytest.mark.parametrize("budget", [1, 200, 2**20])
def test_blocks_within_a_budget(monkeypatch, budget):
    monkeypatch.setattr(door, "CACHE_BYTES", budget)
    J, D = linops.Jacobian(problems.values, X), problems.jacobian(problems.values, X)
    assert J._door.block_width == (1 if budget < 2**20 else J._door.block_width)
    V = problems.normal((SIZE, 7), np.float32)
    np.testing.assert_allclose(J @ V, D @ V, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(J @ jnp.asarray(V), D @ V, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(J.toarray(), D, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(J.diagonal(), np.diagonal(D), rtol=1e-4, atol=1e-4)


def test_dense_matrix_by_the_shorter_side(monkeypatch):
    """A gradient as a Jacobian of one row is one product with the transpose, not n products."""
    widths = []
    matmat = door.Door.matmat
    monkeypatch.setattr(door.Door, "matmat", lambda self, block: widths.append(block.shape) or matmat(self, block))
    monkeypatch.setattr("linops.dense._at_once", lambda operator: widths.append(operator.shape))
    linops.Jacobian(problems.scalar, X).toarray()
    assert widths == [(SIZE, 1), (1, 1)]


def test_residuals_beyond_the_budget_are_recomputed(monkeypatch):
    v = np.ones(SIZE, np.float32)
    J = linops.Jacobian(problems.values, X)
    assert J.linearize() is not J
    expected = J @ v
    monkeypatch.setattr(door, "RESIDUAL_SHARE", 0)
    monkeypatch.setattr("linops.derivatives.map.RESIDUAL_SHARE", 0)
    lean = linops.Jacobian(problems.values, X)
    assert lean.linearize() is lean
    np.testing.assert_allclose(lean @ v, expected, rtol=1e-6)
    forced = linops.Jacobian(problems.values, X, linearize=True)
    assert forced.linearize() is not forced


def test_operators_are_freed_at_once():
    """No cycles: residuals go with their operator, not at some later collection."""
    gc.disable()
    try:
        J = linops.Jacobian(problems.values, X)
        A = J.T @ J + 0.1 * linops.Identity(SIZE)
        A @ np.ones(SIZE, np.float32)
        J.rmatvec(J @ np.ones(SIZE, np.float32))
        J @ np.ones(SIZE, np.complex64)
        dead = [weakref.ref(J), weakref.ref(A), weakref.ref(J.linearize())]
        del J, A
        assert [ref() for ref in dead] == [None] * 3
    finally:
        gc.enable()


def test_a_thousand_points_hold_memory_flat():
    H = linops.Hessian(lambda x: jnp.sum(x**4), np.ones(100, np.float32))
    v = np.ones(100, np.float32)

    def bytes_after(points):
        for i in range(points):
            H.at(np.full(100, i % 7, np.float32)) @ v
        gc.collect()
        return sum(array.nbytes for array in jax.live_arrays())

    assert bytes_after(20) >= bytes_after(1000)


def test_operators_built_inside_transformations():
    def curvature(s):
        H = linops.Hessian(lambda x: s * jnp.sum(x**3), jnp.arange(3.0))
        v = jnp.ones(3)
        return v @ (H @ v)

    assert float(jax.jit(curvature)(2.0)) == 36
    assert float(jax.grad(curvature)(2.0)) == 18
    assert jax.vmap(curvature)(jnp.array([1.0, 2.0])).tolist() == [18, 36]


def test_operator_from_outside_first_used_inside_jit():
    J = linops.Jacobian(problems.values, X)
    D = problems.jacobian(problems.values, X)
    v = np.ones(SIZE, np.float32)
    inside = []

    @jax.jit
    def f(v):
        inside.append(J @ np.ones(SIZE, np.float32))  # NumPy in, NumPy out, here too
        return J @ v + J.linearize() @ v

    np.testing.assert_allclose(f(v), 2 * D @ v, rtol=1e-5, atol=1e-5)
    assert type(inside[0]) is np.ndarray
    np.testing.assert_allclose(J @ v, D @ v, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["numpy", "jax"])
def test_batches(kind, monkeypatch):
    X = {"a": problems.normal((7, 3), np.float32), "s": problems.normal(7, np.float32, 1)}
    X = X if kind == "numpy" else jax.tree.map(jnp.asarray, X)

    def flat(f):
        return lambda v: jax.flatten_util.ravel_pytree(f({"a": v[:3], "s": v[3]}))[0]

    def wide(x, c):
        return {"y": jnp.sin(x["a"]) * x["s"] * c, "z": x["a"] ** 2}

    def narrow(x, c):
        return c * jnp.prod(x["a"]) * x["s"] ** 2

    rows = jnp.concatenate([jnp.asarray(X["a"]), jnp.asarray(X["s"])[:, None]], axis=1)
    for budget in (2**20, 300):
        monkeypatch.setattr(door, "CACHE_BYTES", budget)
        for f, shape in ((wide, (7, 6, 4)), (narrow, (7, 1, 4))):
            blocks = linops.batch_jacobian(f, X, args=(2.0,))
            assert blocks.shape == shape
            assert isinstance(blocks, np.ndarray if kind == "numpy" else jax.Array)
            np.testing.assert_allclose(
                blocks, jax.vmap(jax.jacobian(flat(lambda x, f=f: f(x, 2.0))))(rows), rtol=1e-5, atol=1e-6
            )
        blocks = linops.batch_hessian(wide, X, args=(2.0,))
        assert blocks.shape == (7, 6, 4, 4)
        np.testing.assert_allclose(
            blocks, jax.vmap(jax.hessian(flat(lambda x: wide(x, 2.0))))(rows), rtol=1e-5, atol=1e-5
        )
        blocks = linops.batch_hessian(narrow, X, args=(2.0,))
        assert blocks.shape == (7, 4, 4)
        expected = jax.vmap(jax.hessian(lambda v: flat(lambda x: narrow(x, 2.0))(v)[0]))(rows)
        np.testing.assert_allclose(blocks, expected, rtol=1e-5, atol=1e-5)


def test_batches_inside_jit_and_empty():
    f = lambda x: jnp.sin(x)[:2] * x[2]  # noqa: E731
    X = problems.normal((4, 3), np.float32)
    np.testing.assert_allclose(
        jax.jit(lambda X: linops.batch_jacobian(f, X))(X), jax.vmap(jax.jacobian(f))(X), rtol=1e-5
    )
    assert linops.batch_hessian(f, X[:0]).shape == (0, 2, 3, 3)


def test_identity_takes_the_space_of_its_partner():
    H = linops.Hessian(problems.scalar, X)
    for A in (
        H + linops.Identity(SIZE),
        linops.Identity(SIZE) * 2 - H,
        linops.Identity(SIZE) @ H @ linops.Identity(SIZE),
    ):
        assert A.domain == A.codomain == H.domain
        assert A.mv(X)["w"].shape == (3, 3)
        assert A.dtype == np.float32
    with jax.enable_x64(True):
        assert (H + linops.Identity(SIZE)).dtype == np.float32
        assert linops.Identity(3).dtype == np.float64


def test_dtype_is_the_one_computed_in(x64):
    H = linops.Hessian(problems.scalar, X)
    assert (H + linops.Diagonal(np.ones(SIZE))).dtype == np.float32
    assert (H @ linops.Matrix(np.ones((SIZE, 2)))).dtype == np.float32
    wider = lambda x: x["w"].astype(jnp.float64) ** 2  # noqa: E731
    for A in (linops.Jacobian(wider, X), linops.JacobianGram(wider, X), linops.GaussNewton(wider, X, problems.loss)):
        assert A.dtype == np.float32
        assert (A @ np.ones(A.shape[1], np.float32)).dtype == np.float32


def test_first_product_of_a_users_operator_inside_jit():
    class Weighted(linops.Operator):
        entries: jax.Array
        domain = codomain = property(lambda self: linops.Space.flat(3, np.float32))

        def _mv(self, v):
            return self.entries * v * np.array([1, 2, 3], np.float32)

    A, v = Weighted(np.ones(3, np.float32)), jnp.ones(3)
    np.testing.assert_array_equal(jax.jit(lambda v: A @ jnp.ones(3) + v)(v), [2, 3, 4])
    np.testing.assert_array_equal(Weighted(jnp.full(3, 2.0)) @ np.ones(3, np.float32), [2, 4, 6])


def test_float64_without_x64_everywhere():
    with jax.enable_x64(True):
        x = jnp.linspace(0, 1, 3)
        H = linops.Hessian(lambda x: jnp.sum(jnp.cosh(x)), x)
        D = np.diag(np.cosh(np.linspace(0, 1, 3)))
    v = np.array([1.0, 2, 3])
    for A, E in ((0.1 * H, 0.1 * D), (H / 3, D / 3), (linops.Hessian(lambda x: jnp.sum(jnp.cosh(x)), x), D)):
        np.testing.assert_allclose(A @ v, E @ v, rtol=1e-15)
    np.testing.assert_allclose(H @ jnp.ones(3), D @ np.ones(3), rtol=1e-15)
    shift = 0.1 * linops.Identity(3)
    for A in (H + shift, H + (shift + shift) / 2, H + shift @ linops.Identity(3), H + 0.1 * linops.Identity(3) ** 2):
        assert A.dtype == np.float64
        np.testing.assert_allclose(A @ v, D @ v + 0.1 * v, rtol=1e-15)
    np.testing.assert_allclose(linops.batch_hessian(lambda x: jnp.sum(jnp.cosh(x)), x[None])[0], D, rtol=1e-15)
    with jax.enable_x64(True):
        C = linops.Matrix(D + 1j)
    np.testing.assert_allclose(C @ v, (D + 1j) @ v, rtol=1e-15)


def test_division_in_double_precision(x64):
    A = linops.Matrix(np.eye(1)) / np.float32(3)
    assert (A @ np.ones(1))[0] == 1 / 3
    assert (linops.Matrix(np.eye(1)) / 3j @ np.ones(1))[0] == 1 / 3j


def test_tree_products_are_of_the_dtype_that_is_claimed(x64):
    B = linops.Hessian(lambda x: jnp.sum(x["a"] ** 4), {"a": np.ones(3)}) + linops.Matrix(np.ones((3, 3), np.float32))
    assert B.dtype == B.domain.dtype == B.mv({"a": np.ones(3, np.float32)})["a"].dtype == np.float32


def test_diagonal_of_real_and_complex_leaves():
    A = linops.Diagonal({"a": np.complex64(1j), "b": np.float32(2)})
    np.testing.assert_array_equal(A @ np.complex64([1 + 1j, 1 + 1j]), [-1 + 1j, 2 + 2j])


def test_ravel_takes_elements_only():
    space = linops.Space.of(np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"shapes \[\(3, 2\)\], expected one like the point's"):
        space.ravel(np.ones((3, 2)))
    with pytest.raises(TypeError, match=r"the tree has dtype complex64, expected float32"):
        space.ravel(np.ones((2, 3), np.complex64))


def test_random_keys():
    def f(x, key):
        return x * jax.random.normal(key, (3,))

    key, x = jax.random.key(0), np.ones(3, np.float32)
    expected = f(x, key)
    np.testing.assert_allclose(linops.Jacobian(f, x, args=(key,)) @ x, expected)
    np.testing.assert_allclose(linops.Jacobian(lambda x: f(x, key), x) @ x, expected)
    np.testing.assert_allclose(jax.jit(lambda key: linops.Jacobian(f, x, args=(key,)) @ x)(key), expected)


def test_symmetry_is_known_inside_jit():
    J = linops.Jacobian(problems.values, X)
    seen = []
    jax.jit(lambda A: seen.append(A.symmetric))(J.T @ J)
    assert seen == [True]


def test_new_transposes_share_their_door():
    J = linops.Jacobian(problems.values, X)
    assert J.T._door is J.T._door
    with pytest.warns(linops.PrecisionWarning) as record:
        for _ in range(3):
            J.T @ np.ones(7)
    assert len(record) == 1


def test_complex_trees_stand_for_their_pairs():
    z = {"a": np.array([1 + 2j, 3 - 1j], np.complex64), "b": np.float32(0.5)}
    H = linops.Hessian(lambda z: jnp.sum(jnp.abs(z["a"]) ** 4) * z["b"], z)
    vector = np.asarray(H.domain.ravel(z))
    np.testing.assert_array_equal(vector, [1, 3, 0.5, 2, -1])
    there = H @ vector
    for point in (z, vector, H.x, H.domain.unravel(vector)):
        np.testing.assert_allclose(H.at(point) @ vector, there)
    np.testing.assert_allclose(H.domain.ravel(H.mv(z)), there, rtol=1e-6)
    re, im = H.mv(z)
    assert im["b"] is None
    np.testing.assert_allclose(H.domain.ravel({"a": re["a"] + 1j * im["a"], "b": re["b"]}), there, rtol=1e-6)
    real = {"a": np.ones(2, np.float32), "b": np.float32(1)}  # for real numbers, with imaginary parts 0
    np.testing.assert_array_equal(H.domain.ravel(real), [1, 1, 1, 0, 0])
    with pytest.raises(
        ValueError, match=r"structure PyTreeDef\({'a': \*}\).*expected one like the point's: .*'a': \*, 'b'"
    ):
        H.mv({"a": z["a"]})
    with pytest.raises(ValueError, match=r"got a vector with imaginary parts where a leaf is float32, expected real"):
        H.map.realified.unravel(np.array([1, 2, 1j], np.complex64))
    with pytest.raises(TypeError, match="the vector has dtype complex64, expected float32"):
        H.domain.unravel(vector * np.complex64(1j))
    with pytest.raises(TypeError, match=r"the tree\['b'\] has dtype complex64, expected float32"):
        linops.Jacobian(lambda x: x["b"], {"b": np.float32(1)}).mv({"b": np.complex64(1j)})


def test_points_in_lists():
    z = np.array([1 + 2j, 3 - 1j], np.complex64)
    H = linops.Hessian(lambda x: jnp.sum(jnp.abs(x[0]) ** 4) + jnp.sum(jnp.abs(x[1]) ** 4), [z, z[:1]])
    np.testing.assert_array_equal(H.at([z, z[:1]]) @ np.ones(6, np.float32), H @ np.ones(6, np.float32))
    there = jax.jit(lambda z: H.at([z, z[:1]]) @ jnp.ones(6))(z)
    np.testing.assert_allclose(there, H @ np.ones(6, np.float32), rtol=1e-6)


def test_one_field():
    mixed = linops.Space.of({"a": jnp.zeros(1, jnp.complex64), "b": jnp.zeros(1)})
    identity = linops.Identity(mixed)
    v = np.array([1j, 1j], np.complex64)
    np.testing.assert_array_equal(identity @ v, v)
    np.testing.assert_array_equal((1j * identity).toarray(), 1j * np.eye(2))
    M = np.array([[1, 2j], [3, 4j]], np.complex64)
    np.testing.assert_array_equal((linops.Matrix(M) + identity).toarray(), M + np.eye(2))
    with jax.enable_x64(True):
        J = linops.Jacobian(jnp.sin, np.ones(2))
        assert (J + 1j * linops.Identity(2)).dtype == np.complex128
        np.testing.assert_allclose((J - 1j * linops.Identity(2)).toarray(), J.toarray() - 1j * np.eye(2), rtol=1e-15)

    class Mixed(linops.Operator):
        domain = property(lambda self: linops.Space.flat(2, np.float32))
        codomain = property(lambda self: linops.Space.flat(2, np.complex64))

        def _mv(self, v):
            return 1j * v

    with pytest.raises(TypeError, match="Mixed has real and complex leaves in its domain and codomain, expected one"):
        Mixed() @ np.ones(2, np.float32)


def test_double_precision_complex_points_keep_it_where_it_is_off():
    with jax.enable_x64(True):
        z = jnp.array([1 + 2j, 3 - 1j])
    assert linops.Jacobian(lambda z: jnp.conj(z) * z, z).dtype == np.float64
    assert linops.Jacobian(lambda z: jnp.sin(z) * np.pi, z).dtype == np.complex128
    G = linops.GaussNewton(lambda z: z**2, z, lambda y: jnp.sum(jnp.abs(y) ** 2))
    assert G.dtype == np.float64
    np.testing.assert_allclose(G.diagonal(), 8 * np.tile(np.abs(z) ** 2, 2), rtol=1e-14)


def test_weights_of_complex_values():
    """The Hessian of w . f, of its real part where f is not holomorphic, by the real Hessian of that."""
    z, w = np.array([1 + 2j, 3 - 1j], np.complex64), np.array([1j, 1 - 2j], np.complex64)
    v = np.array([0.5, -1, 2, 0.3], np.float32)

    def disguised(z):
        return jnp.conj(jnp.conj(z)) ** 2

    for weights in (w, np.array([1, 2], np.float32)):
        real = linops.Hessian(lambda z, w=weights: jnp.real(jnp.sum(w * disguised(z))), z)
        np.testing.assert_allclose(linops.Hessian(disguised, z, weights=weights) @ v, real @ v, rtol=1e-5)
    np.testing.assert_allclose(linops.Hessian(lambda z: z**2, z, weights=w).diagonal(), 2 * w, rtol=1e-6)


def test_scalars_are_copied():
    scalar = np.array(2.0)
    M = linops.Matrix(np.eye(2, dtype=np.float32))
    scaled = [scalar * linops.Identity(2), scalar * M, linops.Identity(2) / scalar]
    scalar[...] = 5
    for A, expected in zip(scaled, (2, 2, 0.5), strict=True):
        np.testing.assert_array_equal(A @ np.ones(2, np.float32), [expected, expected])


def test_scalars_of_other_kinds():
    A = linops.Matrix(np.eye(1, dtype=np.float32))
    third = fractions.Fraction(1, 3)
    for B in (third * A, A * third, A / 3, decimal.Decimal("0.25") * A * third * 4, A / np.longdouble(3)):
        np.testing.assert_allclose(B.toarray(), 1 / 3, rtol=1e-6)
    assert ((2**100) * A).toarray() == 2.0**100
    with pytest.warns(linops.PrecisionWarning, match="an integer with more digits than float32"):
        assert ((10**30) * A).toarray() == np.float32(1e30)


def test_scipy_minimizes_over_complex_parameters():
    target = np.array([1 + 2j, 3 - 1j])

    def loss(z):
        return jnp.sum(jnp.abs(z - target) ** 4 + jnp.abs(z - target) ** 2)

    with jax.enable_x64(True):
        H = linops.Hessian(loss, np.zeros(2, complex))
        gradient = jax.grad(lambda v: loss(v[:2] + 1j * v[2:]))
        result = minimize(
            lambda v: float(loss(v[:2] + 1j * v[2:])),
            np.zeros(4),
            jac=gradient,
            hess=H.at,
            method="trust-ncg",
            tol=1e-9,
        )
    np.testing.assert_allclose(result.x, [1, 3, 2, -1], atol=1e-6)


def test_large_vectors_are_aligned_and_not_kept(monkeypatch):
    monkeypatch.setattr(door, "BORDER_BYTES", 0)
    J = linops.Jacobian(problems.values, X)
    D, v = J.toarray(), np.ones(SIZE, np.float32)
    strided = np.ones(2 * SIZE, np.float32)[::2]
    for given in (v, strided, v.astype(np.float16)):
        np.testing.assert_allclose(J @ given, D @ v, rtol=1e-5)
    first = J @ v
    v[:] = 7
    np.testing.assert_allclose(first, D @ np.ones(SIZE), rtol=1e-5)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda c: J @ np.full(SIZE, c, np.float32), range(40)))
    for c, result in enumerate(results):
        np.testing.assert_allclose(result, c * (D @ np.ones(SIZE)), rtol=1e-4, atol=1e-4)


def test_finite_numbers_with_an_infinite_sum_pass():
    largest = np.full(4, np.finfo(np.float32).max)
    np.testing.assert_array_equal(linops.Identity(linops.Space.flat(4, np.float32)) @ largest, largest)
    assert not door.all_finite(np.array([np.inf, -np.inf]))
    assert door.all_finite(np.zeros(0))


def test_constants_are_not_compiled_one_by_one():
    """Two programs for the first product: the linearization and the product."""
    x = np.ones(13, np.float32)
    with compilations() as count:
        linops.Hessian(lambda x: jnp.mean(jnp.tanh(x) ** 2) / 3 - jnp.sum(jnp.zeros(3)), x) @ x
        assert count() == 2
