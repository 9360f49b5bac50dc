"""What a linearization keeps: dear results, once, and with it the same numbers as without."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

import linops
from linops.program import residuals
from linops.program.jaxpr.graph import nbytes
from linops.program.jaxpr.rules import read

N = 6


def _printing(x):
    jax.debug.print("{x}", x=x[0])
    return jnp.sin(x)


# What has no derivative is refused with the reason.


SIX = problems.normal(N, np.float32, 42)


def test_printing_goes_on(capfd):
    """jax.debug.print is part of f; it prints when f is computed."""
    J = linops.Jacobian(_printing, SIX, linearize=False)
    J @ SIX
    jax.effects_barrier()
    assert f"{SIX[0]:.4f}"[:5] in capfd.readouterr().out


pytestmark = pytest.mark.usefixtures("optimized")
x = np.linspace(0.5, 1.5, 1_000, dtype=np.float32)


def kept(operator):
    """Bytes of the residuals, without the point, which is there anyway."""
    arrays = {id(leaf): leaf for leaf in jax.tree.leaves(operator.linearize())}
    return sum(leaf.nbytes for leaf in arrays.values()) - x.nbytes


@pytest.mark.parametrize(
    ("f", "vectors"),
    [
        (lambda x: jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2), 1),
        (lambda x: jnp.sum((x / (1 + x**2)) * jnp.sqrt(x)), 0),
        (lambda x: jnp.sum(jnp.tanh(x) ** 4), 1),
        (lambda x: jnp.sum(jnp.sin(x) * x**2), 2),  # sin and cos
        (lambda x: jnp.sum(jax.jit(jnp.tanh)(x) ** 4), 1),
        (lambda x: jnp.sum(jnp.sin(x) * (jnp.sin(x) + jnp.exp(x) + jnp.tanh(x)) * jnp.float32(2)), 4),
    ],
    ids=["polynomial", "rational", "tanh", "sin", "nested jit", "sums"],
)
def test_what_is_cheap_is_not_kept(f, vectors):
    assert kept(linops.Hessian(f, x)) <= vectors * x.nbytes + 100


@pytest.mark.parametrize("seed", range(12))
def test_no_other_choice_costs_less(seed):
    rng = np.random.default_rng(seed)

    def f(x):
        values = [x, jnp.sin(x), jnp.exp(x)]
        for _ in range(6):
            a, b = (values[i] for i in rng.integers(len(values), size=2))
            size = min(a.size, b.size)
            values.append([a[:size] * b[:size], a[: size // 2 + 1], jnp.concatenate([a, b])][rng.integers(3)])
        return [values[i] for i in rng.integers(3, len(values), size=3)]

    graph, _ = read(jax.make_jaxpr(f)(jnp.ones(2_000)), rules=True)
    cheap = residuals._cheap(graph)
    variables = list(residuals._ancestors(graph.outputs, cheap))

    def size(variables):
        return sum(nbytes(var.aval) for var in variables)

    def cost(kept):
        again = (
            residuals._ancestors(graph.outputs, {var: e for var, e in cheap.items() if var not in kept}).keys() - kept
        )
        return size(kept) + residuals.OPERATION * size(again) if again <= cheap.keys() else np.inf

    choices = itertools.chain.from_iterable(itertools.combinations(variables, k) for k in range(len(variables) + 1))
    kept = residuals._minimum_cut(graph.outputs, cheap)
    assert cost({*kept}) == min(cost({*choice}) for choice in choices)


@pytest.mark.parametrize("make", [linops.Hessian, linops.Jacobian, linops.JacobianGram], ids=lambda make: make.__name__)
def test_a_linearized_product_is_that_of_a_recomputed_one(make):
    def f(x):
        y = jnp.tanh(jnp.outer(x[:10], x[10:20])) @ jnp.sin(x[20:30])
        return jnp.sum(y**3) if make is linops.Hessian else jnp.concatenate([y, x[:990] / x[10:]])

    v = np.cos(np.arange(make(f, x).shape[1], dtype=np.float32))
    np.testing.assert_allclose(make(f, x) @ v, make(f, x, linearize=False) @ v, rtol=2e-5, atol=1e-5)


A = np.cos(np.arange(300 * 300, dtype=np.float32).reshape(300, 300))


@pytest.mark.parametrize(
    "f", [lambda x: jnp.exp(A)[:10] @ x, lambda x: (A + A.T)[:10] @ x, lambda x: ((A - A.mean(0)) / A.std(0))[:10] @ x]
)
def test_what_does_not_depend_on_the_point_is_computed_once(f):
    J = linops.Jacobian(f, np.ones(300, np.float32))
    J @ np.ones(300, np.float32)
    (matrix,) = jax.tree.leaves(J.linearize())
    assert matrix.shape == (10, 300)
    work = [equation for equation in J._door.staged.graph.equations if equation.name != "transpose"]
    assert len(work) == 1


def test_what_does_not_depend_on_the_vector_does_not_make_blocks_narrow():
    H = linops.Hessian(lambda x: x @ (A + A.T) @ x, np.ones(300, np.float32), linearize=False)
    assert H._door.block_width >= 256


@pytest.mark.parametrize(
    ("step", "count"),
    [(lambda y, x: y * x + jnp.float32(0.1), 1), (lambda y, x: jnp.sin(y) * x, 201)],
    ids=["cheap", "dear"],
)
def test_of_chains_what_is_dear_is_kept(step, count):
    def f(x):
        return functools.reduce(lambda y, _: step(y, x), range(100), x)

    J = linops.Jacobian(f, x / 2)
    assert len(jax.tree.leaves(J.linearize())) <= count
    np.testing.assert_allclose(J @ x, linops.Jacobian(f, x / 2, linearize=False) @ x, rtol=1e-5)


@pytest.mark.parametrize("f", [functools.partial(jnp.polyval, jnp.arange(9.0)), jax.scipy.special.ndtri])
def test_a_scan_that_is_written_out_keeps_no_more_than_its_steps_do(f):
    assert kept(linops.Jacobian(f, x / 2)) <= 4 * x.nbytes
    np.testing.assert_allclose(
        linops.Jacobian(f, x / 2).diagonal(), jax.vmap(jax.grad(f))(jnp.asarray(x / 2)), rtol=1e-5
    )


def test_a_stencil_is_kept_and_not_computed_again_for_each_of_its_neighbors():
    """Arakawa's Jacobian of u and its Laplacian has many operations for a number."""

    def f(u):
        def at(i, j):
            return u[2 + i : 62 + i, 2 + j : 62 + j]

        def across(i, j):
            near = at(-1, -1) - at(1, -1) + at(-1, 1) - at(1, 1)
            return near + 4 * (at(i, j) - at(-i, -j)) + at(-2 * i, -2 * j) - at(2 * i, 2 * j)

        first, second = (at(0, 1) - at(0, -1)) * across(1, 0), (at(1, 0) - at(-1, 0)) * across(0, 1)
        return jnp.sum((at(0, 0) + first - second) ** 2)

    u = np.cos(np.arange(64 * 64, dtype=np.float32)).reshape(64, 64)
    assert 60 * 60 in [leaf.size for leaf in jax.tree.leaves(linops.Hessian(f, u).linearize())]


def test_a_rule_with_complex_numbers():
    @jax.custom_jvp
    def convolved(x):
        return x[(jnp.arange(48)[:, None] - jnp.arange(48)[None]) % 48] @ x

    @convolved.defjvp
    def _(primals, tangents):
        (x,), (v,) = primals, tangents
        return convolved(x), 2 * jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(v), n=48)

    y = x[:48]
    H, recomputed = (linops.Hessian(lambda x: jnp.sum(convolved(x) ** 2), y, linearize=keep) for keep in (None, False))
    np.testing.assert_allclose(H @ y, recomputed @ y, rtol=1e-4)


def test_a_rule_with_effects(capfd):
    f = jax.custom_jvp(jnp.sin)

    @f.defjvp
    def _(primals, tangents):
        jax.debug.print("rule")
        return jnp.sin(primals[0]), jnp.cos(primals[0]) * tangents[0]

    J = linops.Jacobian(f, x)
    for _ in range(3):
        np.testing.assert_allclose(J @ x, np.cos(x) * x, rtol=1e-6)
    jax.effects_barrier()
    assert capfd.readouterr().out.count("rule") == 1


def test_a_product_that_is_an_array_of_the_operator():
    zeros = jnp.zeros((2, 3))
    f = jax.custom_jvp(lambda x: jnp.sign(x).reshape(2, 3))
    f.defjvp(lambda primals, tangents: (f(primals[0]), zeros))
    J = linops.Jacobian(f, x[:6], linearize=False)
    for v in (x[:6], jnp.asarray(x[:6])) * 2:
        assert np.array_equal(J @ v, np.zeros(6))
    assert np.array_equal(zeros, np.zeros((2, 3)))


def test_effects_happen_at_the_linearization_only(capfd):
    def f(x):
        jax.debug.print("here")
        return jnp.tanh(x)

    J = linops.Jacobian(f, x)
    for _ in range(3):
        J @ x
    jax.effects_barrier()
    assert capfd.readouterr().out.count("here") == 1


def test_complex_numbers_inside_of_a_real_function():
    def f(x):
        return jnp.sum(jnp.abs(jnp.fft.fft(jnp.tanh(x[:16]))) ** 4)

    H, recomputed = linops.Hessian(f, x[:20]), linops.Hessian(f, x[:20], linearize=False)
    np.testing.assert_allclose(H.toarray(), recomputed.toarray(), rtol=1e-4, atol=1e-4 * abs(H.toarray()).max())
