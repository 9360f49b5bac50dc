"""A block is as good as its columns, whatever the function is made of, and however many columns are taken at once."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse
from problems import normal

import linops
from linops import budget as budgets

pytestmark = pytest.mark.usefixtures("optimized")
N = 12
PLACES = np.random.default_rng(0).integers(0, 4, (N, 2))
MATRIX = normal((N, N), np.float32, 1) / 8 + 2 * np.eye(N, dtype=np.float32)


@jax.custom_batching.custom_vmap
def doubled(x):
    return 2 * jnp.sin(x)


@doubled.def_vmap
def _(axis_size, in_batched, x):
    del axis_size
    return 2 * jnp.sin(x), in_batched[0]


@jax.custom_jvp
def clipped(x):
    return jnp.clip(x, -1, 1) ** 2


clipped.defjvp(lambda primals, tangents: (clipped(*primals), 3 * primals[0] * tangents[0]))


@jax.custom_jvp
def linear_rule(x):
    return jnp.sin(x)


@linear_rule.defjvp
def _(primals, tangents):
    times = jax.custom_derivatives.linear_call(operator.mul, operator.mul, jnp.cos(primals[0]), tangents[0])
    return linear_rule(*primals), times


def ragged(x):
    return jnp.tanh(jax.lax.ragged_dot(x.reshape(6, 2), jnp.asarray(MATRIX[:2].reshape(3, 2, 4)), jnp.array([2, 1, 3])))


def pooled(operation, start):
    def f(x):
        return jnp.sin(jax.lax.reduce_window(x.reshape(3, 4), start, operation, (2, 2), (1, 2), "SAME"))

    return f


def recurrent(x):
    return jax.lax.scan(lambda h, u: (jnp.tanh(h * u + x[:3]), h), x[:3], x.reshape(4, 3))


def convolution(x):
    return jnp.tanh(jax.lax.conv(x.reshape(1, 1, 3, 4), x[:4].reshape(1, 1, 2, 2), (1, 1), "SAME"))


FUNCTIONS = {
    "sparse array, its data from x": lambda x: sparse.BCOO((x, PLACES), shape=(4, 4)) @ x[:4],
    "sparse array times sparse data": lambda x: sparse.BCOO((x, PLACES), shape=(4, 4)).T @ jnp.sin(x[:8]).reshape(4, 2),
    "saturated tanh": lambda x: jnp.tanh(1e5 * x) * x,
    "saturated sigmoid": lambda x: jax.nn.sigmoid(1e4 * x) * x**2,
    "max-pooling": pooled(jax.lax.max, -np.inf),
    "average pooling": pooled(jax.lax.add, 0.0),
    "convolution": convolution,
    "fft": lambda x: jnp.abs(jnp.fft.fft(jnp.sin(x))),
    "triangular solve": lambda x: jax.scipy.linalg.solve_triangular(jnp.tril(MATRIX) + jnp.diag(x**2), jnp.sin(x)),
    "Cholesky": lambda x: jnp.linalg.cholesky(MATRIX @ MATRIX.T + jnp.diag(x**2)),
    "scan": recurrent,
    "cond": lambda x: jax.lax.cond(x[0] > 0, jnp.sin, lambda x: x**2, x),
    "gather": lambda x: jnp.sin(x[PLACES] * x[::-1][PLACES]),
    "scatter": lambda x: jnp.zeros(5).at[PLACES[:, 0]].add(x**2),
    "sort": lambda x: jnp.sort(jnp.sin(3 * x)) * x,
    "custom derivative": lambda x: clipped(x) * x,
    "no rule for vmap": linear_rule,
    "no rule for vmap over columns": ragged,
    "checkpoint": jax.checkpoint(lambda x: jnp.sin(x) * jnp.roll(x, 1)),
    "linear": lambda x: MATRIX[:5] @ x,
    "constant": lambda x: jnp.ones(3),
}


OPERATORS = {
    "Jacobian, recomputed": lambda f, x: linops.Jacobian(f, x, linearize=False),
    "its transpose": lambda f, x: linops.Jacobian(f, x).T,
    "Hessian": lambda f, x: linops.Hessian(lambda x: sum(jnp.sum(y**2) for y in jax.tree.leaves(f(x))), x),
    "GaussNewton": linops.GaussNewton,
}


@pytest.mark.covering("kind", "budget")
@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("budget", [1, budgets.CACHE_BYTES])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_block_is_as_good_as_its_columns(name, budget, kind, monkeypatch):
    """Of each function the Jacobian, and one of the other operators in turn."""
    monkeypatch.setattr(budgets, "CACHE_BYTES", budget)
    x = normal(N, np.float32)
    makers = {"Jacobian": linops.Jacobian} | ({kind: OPERATORS[kind]} if budget > 1 else {})
    for made, make in makers.items():
        A = make(FUNCTIONS[name], x)
        V = normal((A.shape[1], 6), np.float32, 2)
        columns, dense = (np.stack([A @ v for v in W.T], axis=1) for W in (V, np.eye(len(V), dtype=np.float32)))
        assert (A._door.block_width == 1) == (budget == 1)
        results = {
            "NumPy": (A @ V, columns),
            "device": (A @ jnp.asarray(V), columns),
            "dense": (A.toarray(), dense),
            "diagonal": (A.diagonal(), np.diagonal(dense)),
        }
        if budget > 1:
            results["traced"] = jax.jit(lambda A, V: A @ V)(A, V), columns
            results["dense, in one program"] = make(FUNCTIONS[name], x).toarray(), dense
        scale = max(1.0, np.abs(dense).max())
        for what, (got, want) in results.items():
            np.testing.assert_allclose(got / scale, want / scale, atol=3e-6, err_msg=f"{made}, {what}")


def test_a_rule_for_vmap():
    x, V = normal(N, np.float32), normal((N, 6), np.float32)
    J = linops.Jacobian(doubled, x, linearize=False)
    np.testing.assert_allclose(J @ V, 2 * np.cos(x)[:, None] * V, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(J.toarray(), np.diag(2 * np.cos(x)), rtol=1e-5, atol=1e-6)


def test_a_block_of_any_number_of_columns(monkeypatch):
    """Whatever is left for the last of the blocks that are taken at once."""
    A = linops.Matrix(MATRIX[:5])
    monkeypatch.setitem(vars(A._door), "block_width", 4)
    for count in range(11):
        V = normal((N, count), np.float32, count)
        for product in (A @ V, A @ jnp.asarray(V), A.T.T @ V):
            np.testing.assert_allclose(product, MATRIX[:5] @ V, rtol=1e-5, atol=1e-5)
    square = linops.Matrix(MATRIX)
    monkeypatch.setitem(vars(square._door), "block_width", 4)
    np.testing.assert_array_equal(square.diagonal(), np.diag(MATRIX))
