"""Programs are shared by what they compute: counted compilations, bounded caches, large closed-over arrays."""

import contextlib
import gc
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from counting import compilations, forget, text

import linops
from linops.door import array_product
from linops.program import program, staged

SHAPES = (64, 32, 10)


def network(activation, seed, args=False):
    """The loss of a small network on data of its own, as a fresh function that closes over them, and its weights."""
    inputs, targets = jnp.asarray(problems.normal((200, 64), np.float32, seed)), jnp.arange(200) % 10
    targets = jnp.roll(targets, seed)
    weights = [jnp.asarray(problems.normal(s, np.float32, seed) / 8) for s in itertools.pairwise(SHAPES)]

    def loss(weights, inputs, targets):
        outputs = activation(inputs @ weights[0]) @ weights[1]
        return jnp.mean(jax.nn.logsumexp(outputs, axis=1) - jnp.take_along_axis(outputs, targets[:, None], 1)[:, 0])

    if args:
        return loss, weights, (inputs, targets)
    return lambda weights: loss(weights, inputs, targets), weights


def operators(f, x, **options):
    """One of each kind, with a composite."""
    H = linops.Hessian(f, x, **options)
    J = linops.Jacobian(f, x, **options)
    K = linops.JacobianGram(f, x, x, **options)
    G = linops.GaussNewton(f, x, lambda z: z**2, **options)
    return [H, J, K, G, J.T @ J + 0.5 * linops.Identity(J.shape[1])]


def products(operators):
    return [A @ np.ones(A.shape[1], np.float32) for A in operators]


def test_a_point_of_weak_type_traces_nothing():
    H = linops.Hessian(lambda x: jnp.sum(x**3), np.float32(2))
    H @ np.ones(1, np.float32)
    before = len(staged._staged.found)
    assert H.at(jnp.asarray(3.0)) @ np.ones(1, np.float32) == 18
    assert len(staged._staged.found) == before


@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.relu], ids=["tanh", "relu (custom_jvp)"])
@pytest.mark.parametrize("linearize", [True, False])
def test_fresh_lambdas_compile_nothing(activation, linearize):
    results = [products(operators(*network(activation, 0), linearize=linearize))]
    points = [network(activation, seed) for seed in range(1, 6)]
    with compilations() as count:
        for f, x in points:
            results.append(products(operators(f, x, linearize=linearize)))
        assert count() == 0
    f, x = points[-1]
    v, unravel = jax.flatten_util.ravel_pytree(x)
    expected = jax.hessian(lambda v: f(unravel(v)))(v) @ np.ones(len(v), np.float32)
    np.testing.assert_allclose(results[-1][0], expected, rtol=1e-3, atol=1e-5)
    assert not np.allclose(results[-1][0], results[-2][0])


def test_same_function_at_another_point_compiles_nothing():
    f, x = network(jnp.tanh, 0)
    first = operators(f, x)
    products(first)
    x = jax.tree.map(lambda leaf: 1.5 * leaf, x)
    with compilations() as count:
        again = products(operators(f, x))
        moved = [A.at(x) for A in first[:2]] + [first[2].at(x, x), first[3].at(x)]
        products(moved)
        assert count() == 0
    np.testing.assert_array_equal(products(moved)[0], again[0])


def test_new_args_compile_nothing():
    f, x, args = network(jnp.tanh, 0, args=True)
    first = products(operators(f, x, args=args))
    _, _, other = network(jnp.tanh, 3, args=True)
    with compilations() as count:
        second = products(operators(f, x, args=other))
        assert count() == 0
    assert not np.allclose(first[0], second[0])


def test_new_scalar_compiles_nothing():
    x = problems.normal(30, np.float32)
    J = linops.Jacobian(lambda x: jnp.sin(x)[1:] * x[:-1], x)
    v = np.ones(30, np.float32)
    expected = J.rmatvec(J @ v)
    (J.T @ J + 0.1 * linops.Identity(30)) @ v
    scalars = 0.2, np.float64(0.3), np.float32(0.4), 1, jnp.float32(0.5)
    with compilations() as count:
        for scalar in scalars:
            A = J.T @ J + scalar * linops.Identity(30)
            np.testing.assert_allclose(A @ v, expected + float(scalar) * v, rtol=1e-5, atol=1e-5)
        assert count() == 0


def test_composite_is_one_program():
    """J.T @ J + lam I: one linearization, then one compiled call for each product."""
    J = linops.Jacobian(lambda x: jnp.sin(x)[1:] * x[:-1], problems.normal(40, np.float32))
    A = J.T @ J + 0.1 * linops.Identity(40)
    with compilations() as count:
        A @ np.ones(40, np.float32)
        assert count() == 2
    product = A._door._flat.stage(array_product, jax.ShapeDtypeStruct((40,), np.float32))
    assert len(A._door._flat.leaves) == len(jax.tree.leaves(J.linearize())) + 1  # residuals once, and the scalar
    assert product.graph.outputs[0].aval.dtype == np.float32


def test_construction_costs_little_of_a_compilation():
    """Measured in CPU time of this process, so that a busy machine does not decide."""
    f, x = network(jax.nn.relu, 0)
    forget()
    with compilations() as count:
        linops.Hessian(f, x) @ np.ones(64 * 32 + 320, np.float32)
        compile_time = count(seconds=True)
    times = []
    for seed in range(1, 6):
        f, x = network(jax.nn.relu, seed)
        start = time.process_time()
        linops.Hessian(f, x)
        times.append(time.process_time() - start)
    assert min(times) < compile_time / 4


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


def test_changed_closure_is_seen():
    """jax.jit would keep the first trace of a function that it knows; a construction here always reads it anew."""
    scale = np.ones(3, np.float32)

    def f(x):
        return jnp.sum(scale * x**2)

    v = np.ones(3, np.float32)
    before = linops.Hessian(f, v) @ v
    scale[:] = 3
    np.testing.assert_allclose(linops.Hessian(f, v) @ v, 3 * before)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: f,
        jax.jit,
        lambda f: lambda x: jax.lax.scan(lambda c, _: (jax.jit(f)(c), None), x, None, length=2)[0],
        lambda f: lambda x: jax.lax.cond(x[0] > 0, jax.jit(f), lambda x: 2 * f(x), x),
        lambda f: lambda x: jax.lax.fori_loop(0, 2, lambda _, x: jax.jit(f)(x), x),
        lambda f: lambda x: jax.lax.while_loop(lambda x: jax.jit(f)(x)[0] > 1e3, lambda x: jax.jit(f)(x), x),
        lambda f: jax.checkpoint(f),
    ],
    ids=["plain", "jit", "scan", "cond", "fori_loop", "while_loop", "checkpoint"],
)
def test_closed_over_arrays_are_hoisted(wrap):
    def make(seed):
        A = jnp.asarray(problems.normal((5, 5), np.float32, seed))
        return wrap(lambda x: jnp.tanh(A @ x))

    x = np.linspace(0.1, 1, 5, dtype=np.float32)
    J = linops.Jacobian(make(0), x)
    assert any(leaf.shape == (5, 5) for leaf in jax.tree.leaves(J))
    J @ x
    with compilations() as count:
        product = linops.Jacobian(make(1), x) @ x
        assert count() == 0
    np.testing.assert_allclose(product, jax.jvp(make(1), (x,), (x,))[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside of jit"])
def test_what_repeats_itself_and_depends_on_no_argument_is_computed_at_once(inside):
    """A table filled by scatters: compiled once for all of them, and not again for other numbers."""
    v = np.ones(2, np.float32)

    def product(numbers, v):
        def f(x):
            table = jnp.zeros(10)
            for i, number in enumerate(numbers):
                table = table.at[jnp.array([i % 10, (i + 1) % 10, (i + 2) % 10])].set(number)
            return jnp.sin(x[0] * table)

        J = linops.Jacobian(f, jnp.ones(2))
        assert not any(equation.name == "scatter" for equation in J.function.program.graph.walk())
        return J @ v, jax.jvp(f, (jnp.ones(2),), (v,))[1]

    wrap = jax.jit if inside else lambda f: f
    for seed in (0, 1):
        numbers = list(jnp.asarray(problems.normal(20, np.float32, seed)))
        with compilations() as count:
            found, expected = wrap(lambda v, numbers=numbers: product(numbers, v))(v)
            assert count() == 0 or inside or seed == 0
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_does_not_repeat_itself_is_compiled_with_the_rest():
    """Nine operations, each once; a large table; a table that nothing uses."""
    table, large = jnp.linspace(0.1, 0.9, 5), jnp.ones((1000, 1000))

    def once(x):
        t = jnp.log(jnp.tanh(jnp.exp(jnp.cos(jnp.sin(table)))))
        return x * jnp.expm1(jnp.log1p(jax.lax.logistic(t)))

    def of_large(x):
        return x * sum(jnp.sum(jnp.sin(large + i)) for i in range(10))

    def unused(x):
        [jnp.linalg.cholesky(jnp.eye(3) + table[i] * jnp.eye(3)) for i in range(10)]
        return 2 * x

    x = jnp.ones(5)
    for f in (once, of_large, unused):
        with compilations() as count:
            linops.Jacobian(f, x)
            assert count() == 0


@pytest.mark.parametrize(
    "product",
    [
        lambda J, v: J @ v,
        lambda J, v: J.T @ v,
        lambda J, v: J.rmatvec(v),
        lambda J, v: J @ np.stack([v, v], axis=1),
        lambda J, v: J.T @ np.stack([v, v], axis=1),
        lambda J, v: J.mv(v),
        lambda J, v: J.diagonal(),
        lambda J, v: (J.T @ J + linops.Identity(5)) @ v,
    ],
    ids=["v", "transposed", "rmatvec", "block", "transposed block", "tree", "diagonal", "normal equations"],
)
@pytest.mark.parametrize(
    "context", [contextlib.nullcontext, lambda: jax.enable_x64(True), lambda: jax.default_matmul_precision("highest")]
)
def test_a_first_product_compiles_two_programs(product, context):
    """The linearization and the product, the second while the first is, in whatever context."""
    v = np.ones(5, np.float32)
    J = linops.Jacobian(lambda x: jnp.sin(x) * x[::-1], v)
    forget()
    with context(), compilations() as count:
        product(J, v)
        assert count() == 2


def test_an_operator_that_is_in_another_twice_is_compiled_once():
    v = np.ones(5, np.float32)
    J = linops.Jacobian(lambda x: jnp.cos(x) * x[::-1], v)
    forget()
    with compilations() as count:
        (J @ J) @ v
        assert count() == 2


def test_no_second_copy_of_a_large_array():
    """The residuals of A x are A itself: passed through, not copied by XLA."""
    A = jnp.ones((400, 300))
    J = linops.Jacobian(lambda x: jnp.tanh(A @ x), np.ones(300, np.float32))
    J @ np.ones(300, np.float32)
    copies = [leaf for leaf in jax.tree.leaves(J.linearize()) if leaf.shape == A.shape]
    assert [leaf.unsafe_buffer_pointer() for leaf in copies] == [A.unsafe_buffer_pointer()]
    assert sum(array.nbytes == A.nbytes for array in jax.live_arrays()) == 1


def test_what_differs_in_bits_is_another_program():
    x = np.ones(3, np.float32)
    for first, second in ((0.0, -0.0), (2.0, 2.0000002), (1, 1.0), (np.float32(0), np.float32(-0.0))):
        for constant in (first, second):
            product = linops.Jacobian(lambda x, c=constant: jnp.copysign(x, c) * (c + 1), x) @ x
            np.testing.assert_array_equal(
                product, jax.jvp(lambda x, c=constant: jnp.copysign(x, c) * (c + 1), (x,), (x,))[1]
            )


def test_nan_in_the_code_is_the_same_program():
    x = np.ones(3, np.float32)
    for i in range(3):
        with compilations() as count:
            linops.Jacobian(lambda x: jnp.where(x > 0, 3 * x, jnp.nan), x) @ x
            assert count() == 0 or i == 0


def test_matmul_precision_is_part_of_the_key():
    M = np.ones((3, 3), np.float32)
    x = np.ones(3, np.float32)
    found = []
    for precision in ("highest", "default"):
        with jax.default_matmul_precision(precision):
            found.append(text(linops.Matrix(M)))
    linops.Matrix(M) @ x
    assert "HIGHEST" in found[0]
    assert "HIGHEST" not in found[1]


def test_caches_hold_no_data():
    """Programs of fresh lambdas over fresh arrays are kept, their arrays are not."""

    def construct(seed):
        A = jnp.full((123, 77), float(seed))
        linops.Jacobian(lambda x: jnp.tanh(A @ x), np.ones(77, np.float32)) @ np.ones(77, np.float32)

    for seed in range(10):
        construct(seed)
    assert not [array for array in jax.live_arrays() if array.shape == (123, 77)]
