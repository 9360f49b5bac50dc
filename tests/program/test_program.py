"""Programs are shared by what they compute: counted compilations of fresh closures, points, args and scalars."""

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from counting import compilations
from models import network

import linops


def operators(f, x, **options):
    """One of each kind, with a composite."""
    H = linops.Hessian(f, x, **options)
    J = linops.Jacobian(f, x, **options)
    K = linops.JacobianGram(f, x, x, **options)
    G = linops.GaussNewton(f, x, lambda z: z**2, **options)
    return [H, J, K, G, J.T @ J + 0.5 * linops.Identity(J.shape[1])]


def products(operators):
    return [A @ np.ones(A.shape[1], np.float32) for A in operators]


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
    gradient = jax.grad(lambda v: f(unravel(v)))
    expected = jax.jit(lambda v: jax.jvp(gradient, (v,), (jnp.ones(len(v)),))[1])(v)
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
        lambda f: lambda x: jax.lax.while_loop(lambda x: jax.jit(f)(x)[0] > 1e3, lambda x: jax.jit(f)(x), x),
    ],
    ids=["plain", "while_loop"],
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


def test_views_of_one_array_are_other_constants():
    """Arrays of NumPy that start at one place in memory and are of one shape and dtype."""
    data = problems.normal((6, 6), np.float32)
    M = data[:3, :3]
    others = [M.T, data[:3, ::2], data[::2, :3], data.ravel()[:9].reshape(3, 3), data.view(np.int32)[:3, :3]]
    x, v = problems.normal(3, np.float32, 1), problems.normal(3, np.float32, 2)
    for other in others:
        J = linops.Jacobian(lambda x, other=other: jnp.dot(M, x) + jnp.dot(other, x**2), x)
        np.testing.assert_allclose(J @ v, M @ v + other @ (2 * x * v), rtol=1e-5)
