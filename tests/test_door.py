"""Products of NumPy, device and traced vectors: blocks within a budget, threads, NaN that f made and NaN in vectors."""

import concurrent.futures
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import operators
import problems
import pytest
from copies import ones
from counting import forget
from problems import POINT, SIZE
from scipy.optimize import minimize

import linops
from linops import budget as budgets
from linops import compiled, door

FOUR = np.arange(1, 5, dtype=np.float32)


@pytest.mark.parametrize("make", [linops.Jacobian, lambda f, x: linops.Hessian(lambda x: jnp.sum(f(x)), x)])
def test_nan_in_a_product(make):
    x = np.float32([1, 0])
    with pytest.raises(FloatingPointError, match=r"NaN or Inf: 1 of 2 rows"):
        make(jnp.sqrt, x).toarray()
    A = make(jnp.sqrt, x)
    with pytest.raises(
        FloatingPointError,
        match=r"a product with <2x2 (Jacobian|Hessian).*has NaN or Inf: 1 of 2 rows.*check_finite=False",
    ):
        A @ np.ones(2, np.float32)
    with pytest.raises(FloatingPointError, match=r"NaN or Inf"):
        A @ np.ones((2, 3), np.float32)
    with pytest.raises(FloatingPointError, match=r"the diagonal of .* has NaN or Inf"):
        A.diagonal()


def test_nan_names_the_leaf_and_can_be_allowed():
    x = {"a": FOUR, "b": {"c": np.float32([[1, 2], [3, 0]])}}

    def f(x):
        return {"a": x["a"], "b": {"c": jnp.sqrt(x["b"]["c"])}}

    v = np.ones(8, np.float32)
    with pytest.raises(FloatingPointError, match=r"1 of 8 rows, the first at \['b'\]\['c'\]\[1, 1\]"):
        linops.Jacobian(f, x) @ v
    assert np.isinf(linops.Jacobian(f, x, check_finite=False) @ v).sum() == 1
    assert np.isnan(linops.Jacobian(jnp.sin, FOUR) @ np.float32([1, 2, np.nan, 4])).any()  # NaN in is NaN out


# NaN in, NaN out.


def roots(x):
    return jnp.sqrt(x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
def test_nan_in_is_nan_out(bad, dtype):
    """A product is an error where a function made NaN of finite numbers, column by column, and nowhere else."""
    J = linops.Jacobian(lambda x: x**2, np.arange(1, 4, dtype=np.float32))
    v = np.array([1, bad, 1], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", linops.PrecisionWarning)
        for A in (J, J.T, J.T @ J, linops.Hessian(lambda x: jnp.sum(x**3), np.ones(3, np.float32))):
            assert not np.isfinite(A @ v).all()
            assert not np.isfinite(A @ v[:, None]).all()
            block = A @ np.stack([np.ones(3, dtype), v], axis=1)
            assert np.isfinite(block).all(axis=0).tolist() == [True, False]
        S = linops.Jacobian(roots, np.array([1, 1, 0], np.float32))
        assert not np.isfinite(S @ v).all()
        for block in (np.ones((3, 1), dtype), np.stack([v, np.ones(3, dtype)], axis=1)):
            with pytest.raises(FloatingPointError, match="NaN or Inf: 1 of 3 rows, the first at"):
                S @ block


def test_solvers_that_make_nan_recover():
    """trust-krylov multiplies NaN below what rounding allows; it then goes on, and has the right x."""
    x0 = np.array([0.1, 0.2, 0.3], np.float32)
    f = lambda x: jnp.sum(jnp.cosh(x) * jnp.arange(1.0, 4.0))  # noqa: E731
    H = linops.Hessian(f, x0)
    fun = jax.jit(jax.value_and_grad(f))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = minimize(
            lambda x: tuple(np.asarray(part, np.float64) for part in fun(jnp.asarray(x, jnp.float32))),
            x0.astype(np.float64), jac=True, hess=H.at, method="trust-krylov", options={"gtol": 1e-15},
        )  # fmt: skip
    np.testing.assert_allclose(found.x, 0, atol=1e-3)


def test_vectors_that_overflow_are_to_blame():
    J = linops.Jacobian(lambda x: x, np.ones(3, np.float32))
    v = np.array([1, 1e300, 1])
    with pytest.warns(linops.PrecisionWarning):
        for given in (v, v[:, None], np.stack([v, v], 1)):
            with pytest.raises(
                FloatingPointError,
                match=r"the float64 array that <3x3 Jacobian.*> multiplies has entries beyond the largest",
            ):
                J @ given


@pytest.mark.parametrize("budget", [1, 200, 2**20])
def test_blocks_within_a_budget(monkeypatch, budget):
    monkeypatch.setattr(budgets, "CACHE_BYTES", budget)
    J, D = linops.Jacobian(problems.values, POINT), problems.jacobian(problems.values, POINT)
    assert J._door.block_width == (1 if budget < 2**20 else J._door.block_width)
    V = problems.normal((SIZE, 7), np.float32)
    np.testing.assert_allclose(J @ V, D @ V, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(J @ jnp.asarray(V), D @ V, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(J.toarray(), D, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(J.diagonal(), np.diagonal(D), rtol=1e-4, atol=1e-4)


def test_operator_from_outside_first_used_inside_jit():
    J = linops.Jacobian(problems.values, POINT)
    D = problems.jacobian(problems.values, POINT)
    v = np.ones(SIZE, np.float32)
    inside = []

    @jax.jit
    def f(v):
        inside.append(J @ np.ones(SIZE, np.float32))  # NumPy in, NumPy out, here too
        return J @ v + J.linearize() @ v

    np.testing.assert_allclose(f(v), 2 * D @ v, rtol=1e-5, atol=1e-5)
    assert type(inside[0]) is np.ndarray
    np.testing.assert_allclose(J @ v, D @ v, rtol=1e-5, atol=1e-5)


def test_first_product_of_a_users_operator_inside_jit():
    class Weighted(linops.Operator):
        entries: jax.Array
        domain = codomain = property(lambda self: linops.Space.flat(3, np.float32))

        def _mv(self, v):
            return self.entries * v * np.array([1, 2, 3], np.float32)

    A, v = Weighted(np.ones(3, np.float32)), jnp.ones(3)
    np.testing.assert_array_equal(jax.jit(lambda v: A @ jnp.ones(3) + v)(v), [2, 3, 4])
    np.testing.assert_array_equal(Weighted(jnp.full(3, 2.0)) @ np.ones(3, np.float32), [2, 4, 6])


def test_new_transposes_share_their_door():
    J = linops.Jacobian(problems.values, POINT)
    assert J.T._door is J.T._door
    with pytest.warns(linops.PrecisionWarning) as record:
        for _ in range(3):
            J.T @ np.ones(7)
    assert len(record) == 1


def test_large_vectors_are_aligned_and_not_kept(monkeypatch):
    monkeypatch.setattr(compiled, "BORDER_BYTES", 0)
    J = linops.Jacobian(problems.values, POINT)
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


# Threads and processes.


IN_THREADS = ["normal_equations", "jacobian_with_args", "jacobian_realified"]


def in_threads(calls):
    """The results of calls that start at one moment, each in a thread of its own."""
    barrier = threading.Barrier(len(calls))

    def run(call):
        barrier.wait()
        return call()

    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


@pytest.mark.parametrize("name", IN_THREADS)
def test_threads_share_an_operator(name):
    A, D = operators.make(name, *operators.arguments(name, np.float32)), operators.dense(name, np.float32)
    forget()
    calls = [
        lambda: A @ ones(A),
        lambda: A.rmatvec(np.ones(A.shape[0], A.dtype)),
        lambda: A @ np.ones((A.shape[1], 3), A.dtype),
        lambda: np.asarray(A @ jnp.ones(A.shape[1], A.dtype)),
    ] * 2
    expected = [D @ ones(A), D.T @ np.ones(len(D)), D @ np.ones((A.shape[1], 3)), D @ ones(A)] * 2
    for result, reference in zip(in_threads(calls), expected, strict=True):
        np.testing.assert_allclose(result, reference, rtol=1e-4, atol=1e-4)


def test_threads_with_operators_of_their_own():
    def work(seed):
        x = problems.tree_point("dict", np.float32, seed)
        c = jnp.float32(seed)
        J = linops.Jacobian(lambda x: c * x["w"] @ x["w"], x)
        return [(J @ ones(J), J.T @ ones(J.T)) for _ in range(20)][-1]

    results = in_threads([lambda seed=seed: work(seed) for seed in range(8)])
    for seed, (forward, reverse) in enumerate(results):
        x = problems.tree_point("dict", np.float32, seed)
        D = problems.jacobian(lambda x, seed=seed: seed * x["w"] @ x["w"], x)
        np.testing.assert_allclose(forward, D @ np.ones(SIZE), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(reverse, D.T @ np.ones(9), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:X, which f closes over:linops.PrecisionWarning")
def test_threads_that_make_operators_at_once_have_arrays_of_their_own():
    """JAX itself hands arrays of float32 to threads with float64, where both trace at once."""
    point = np.arange(10) / 10.0
    for trial in range(6):
        X = np.random.default_rng(trial).normal(size=(30, 10))
        start = threading.Barrier(8)

        def make(i, X=X, start=start):
            start.wait()
            with jax.enable_x64(i % 2 == 0):
                dtype = np.float64 if i % 2 == 0 else np.float32
                H = linops.Hessian(lambda x: jnp.sum(jnp.tanh(X @ x) ** 2), point.astype(dtype))
                return {leaf.dtype for leaf in jax.tree.leaves(H)} == {np.dtype(dtype)}

        assert all(in_threads([lambda i=i: make(i) for i in range(8)]))


def test_threads_with_float64_and_float32():
    """Settings of JAX belong to a thread."""

    def wide():
        with jax.enable_x64(True):
            H = linops.Hessian(problems.scalar, problems.tree_point("dict", np.float64))
            return [H @ ones(H) for _ in range(50)]

    def narrow():
        H = linops.Hessian(problems.scalar, POINT)
        return [H @ ones(H) for _ in range(50)]

    D = problems.hessian(problems.scalar, POINT)
    for results, dtype in zip(in_threads([wide, narrow] * 2), [np.float64, np.float32] * 2, strict=True):
        assert {result.dtype for result in results} == {np.dtype(dtype)}
        np.testing.assert_allclose(results[-1], D @ np.ones(SIZE), rtol=1e-4, atol=1e-4)


def test_nan_under_debug_nans():
    J = linops.Jacobian(jnp.sqrt, np.zeros(2, np.float32), check_finite=False)
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        J @ np.zeros(2, np.float32)
    assert np.isnan(J @ np.zeros(2, np.float32)).all()


MANY = {
    "matrix": lambda s: linops.Matrix(s * jnp.eye(5)),
    "Jacobian": lambda s: linops.Jacobian(jnp.sin, jnp.full(5, s)),
    "Hessian": lambda s: linops.Hessian(lambda x: jnp.sum(x) ** 3, jnp.full(5, s)),
    "GaussNewton": lambda s: linops.GaussNewton(jnp.sin, jnp.full(5, s)),
    "sum": lambda s: s * linops.Identity(5) + linops.Diagonal(jnp.ones(5)),
}


@pytest.mark.parametrize("make", MANY.values(), ids=MANY)
def test_what_vmap_returns_is_multiplied_inside_of_vmap(make):
    many = jax.vmap(make)(jnp.arange(5.0))
    with pytest.raises(ValueError, match="is many operators, to be multiplied inside of"):
        many @ np.ones(many.shape[1], np.float32)
    products = jax.vmap(lambda A: A @ jnp.ones(5))(many)
    np.testing.assert_allclose(products[3], make(3.0) @ np.ones(5, np.float32), rtol=1e-5)


class Untrue(linops.Operator):
    """Its products are not where it says."""

    product: str = linops.static()

    domain = codomain = linops.Space.flat(3, np.float32)

    def _mv(self, v):
        return {"short": v[:2], "complex": 1j * v, "integer": v.astype(jnp.int32), "tree": [v]}[self.product]


@pytest.mark.parametrize("product", ["short", "complex", "integer", "tree"])
def test_a_product_is_of_the_codomain(product):
    for multiply in (Untrue(product).matvec, Untrue(product).mv, lambda v: Untrue(product) @ np.stack([v, v], 1)):
        with pytest.raises(ValueError, match=r"that _mv of .* gave, .* expected an element of its codomain"):
            multiply(np.ones(3, np.float32))


def test_what_many_leaves_lose_is_said_once():
    x = {f"w{i}": np.ones(2) for i in range(20)}
    with pytest.warns(linops.PrecisionWarning, match=r"x\['w0'\] is float64 .*\(so also for 19 leaves more\)") as said:
        H = linops.Hessian(lambda x: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(x)), x)
        H.at(x)
    assert [w.filename for w in said] == [__file__] * 2
