"""A function at a point: its args, other points, its residuals, and the memory that a thousand points take."""

import dataclasses
import gc
import os

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from counting import collect, compilations
from jax.flatten_util import ravel_pytree
from models import Layer, Model, layers
from problems import POINT, SIZE

import linops
from linops.derivatives import map as maps

FOUR = np.arange(1, 5, dtype=np.float32)


def test_functions_that_are_not_callable():
    with pytest.raises(TypeError, match=r"f is 2.0, expected a callable"):
        linops.Jacobian(2.0, FOUR)
    with pytest.raises(TypeError, match=r"loss is 2.0, expected a callable"):
        linops.GaussNewton(jnp.sin, FOUR, 2.0)


def test_args_that_are_no_tuple_are_one_argument():
    f = lambda x, a: jnp.sum(a * x**2)  # noqa: E731
    v = np.ones(3, np.float32)
    np.testing.assert_array_equal(linops.Hessian(f, v, args=2.0) @ v, [4, 4, 4])
    np.testing.assert_array_equal(linops.Hessian(f, v, args=np.float32([1, 2, 3])) @ v, [2, 4, 6])


def test_residuals_beyond_the_budget_are_recomputed(monkeypatch):
    v = np.ones(SIZE, np.float32)
    J = linops.Jacobian(problems.values, POINT)
    assert J.linearize() is not J
    expected = J @ v
    monkeypatch.setattr(maps, "RESIDUAL_SHARE", 0)
    monkeypatch.setattr("linops.derivatives.map.RESIDUAL_SHARE", 0)
    lean = linops.Jacobian(problems.values, POINT)
    assert lean.linearize() is lean
    np.testing.assert_allclose(lean @ v, expected, rtol=1e-6)
    forced = linops.Jacobian(problems.values, POINT, linearize=True)
    assert forced.linearize() is not forced


def test_traced_keys_in_args():
    def f(x, key):
        return x * jax.random.normal(key, (3,))

    key, x = jax.random.key(0), np.ones(3, np.float32)
    np.testing.assert_allclose(jax.jit(lambda key: linops.Jacobian(f, x, args=(key,)) @ x)(key), f(x, key))


def test_a_batch_of_keys_in_a_closure():
    keys, x = jax.random.split(jax.random.key(0), 3), np.ones(3, np.float32)

    def f(x):
        return jax.vmap(lambda a, key: a * jax.random.normal(key))(x, keys)

    np.testing.assert_allclose(linops.Jacobian(f, x) @ x, f(x))


# Memory.


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the memory of a process where Linux says it")
@pytest.mark.parametrize("way", ["at", "fresh lambdas", "importable"])
def test_a_thousand_points_hold_memory_flat(way):
    """400 kB of data and residuals at each point; kept for all points, they would make 400 MB."""
    n = 50_000
    H = linops.Hessian(lambda x: jnp.sum(x**4), np.ones(n, np.float32))
    v = np.ones(n, np.float32)

    def make(i):
        x = np.full(n, 1 + i % 7, np.float32)
        if way == "at":
            return H.at(x), 12 * (1 + i % 7) ** 2
        if way == "importable":
            return linops.Hessian(scaled_cubes, x, args=(np.full(n, 1 + i % 5, np.float32),)), 6 * (1 + i % 7) * (
                1 + i % 5
            )
        c = jnp.asarray(np.full(n, 1 + i % 5, np.float32))
        return linops.Hessian(lambda x: jnp.sum(c * x**3), x), 6 * (1 + i % 7) * (1 + i % 5)

    def after(points):
        for i in range(points):
            A, expected = make(i)
            assert (A @ v)[0] == pytest.approx(expected)
            (A + linops.Identity(n)) @ v
        del A
        return sum(array.nbytes for array in jax.live_arrays()), resident_bytes()

    collect()
    gc.disable()  # freed at once, not at some later collection
    try:
        live, resident = after(30)
        live_later, resident_later = after(1000)
    finally:
        gc.enable()
    assert live_later <= live
    assert resident_later - resident < 30e6


def scaled_cubes(x, c):
    return jnp.sum(c * x**3)


N = 6


# What has no derivative is refused with the reason.


SIX = problems.normal(N, np.float32, 42)


def test_keys_in_args():
    def f(x, key, old):
        return x**2 * jax.random.normal(key, (N,)) + jax.random.uniform(old, (N,)) * x

    for seed in range(3):
        args = (jax.random.key(seed), jax.random.PRNGKey(seed + 1))
        J = linops.Jacobian(f, SIX, args=args)
        with compilations() as count:
            w = J @ SIX
            compiled = count()
        assert seed == 0 or compiled == 0
        np.testing.assert_allclose(w, jax.jvp(lambda x, args=args: f(x, *args), (SIX,), (SIX,))[1], rtol=1e-5)


def test_models_in_args():
    """What is not differentiated may be a model too, with code beside its arrays."""

    def f(x, model):
        return model(x) * 2

    compiled = []
    for scale in (1.0, 2.0):
        model = Model([dataclasses.replace(layer, bias=scale * layer.bias) for layer in layers()], "fixed")
        J = linops.Jacobian(f, SIX, args=(model,))
        with compilations() as count:
            w = J @ SIX
            compiled.append(count())
        np.testing.assert_allclose(w, jax.jvp(lambda x, model=model: f(x, model), (SIX,), (SIX,))[1], rtol=1e-5)
    assert compiled[0] > 0
    assert compiled[1] == 0


def test_products_have_the_structure_of_the_model():
    model = Model(layers(), "two layers")
    H = linops.Hessian(lambda model: jnp.sum(model(SIX) ** 2), model)
    product = H.mv(model)
    assert isinstance(product, Model)
    assert isinstance(product.layers[0], Layer)
    assert (product.name, product.layers[0].activation) == ("two layers", "tanh")
    v, unravel = ravel_pytree(model)
    D = jax.jit(jax.hessian(lambda v: jnp.sum(unravel(v)(SIX) ** 2)))(v)
    np.testing.assert_allclose(ravel_pytree(product)[0], D @ v, rtol=1e-3, atol=1e-4)


X = np.array([0.1, 0.2, 0.3], np.float32)
V = np.array([1, -2, 0.5], np.float32)


def test_args_of_a_new_point():
    J = linops.Jacobian(lambda x, a, mode: jnp.sin(a * x) if mode == "on" else x, X, args=(np.float32(2), "on"))
    J @ V
    with compilations() as count:
        product = J.at(2 * X, args=(np.float32(3), "on")) @ V
        assert count() == 0
    np.testing.assert_allclose(product, 3 * np.cos(6 * X) * V, rtol=1e-5)
    for args in ((np.float32(3), "off"), (np.ones(3, np.float32), "on"), ()):
        with pytest.raises(ValueError, match=r"at got args.* expected args like those that f was traced with"):
            J.at(X, args=args)


def _near(x, other):
    return jnp.sum(jnp.cos(x)) + jnp.sum((x - other) ** 4)


COINCIDING = {
    "closed over": lambda x: linops.Hessian(lambda y: _near(y, x), x),
    "args": lambda x: linops.Hessian(_near, x, args=(x,)),
    "two points": lambda x: linops.JacobianGram(lambda y: jnp.sin(y) * y, x, x),
    "operator": lambda x: _multiplied(linops.Jacobian(jnp.sin, x), x),
}


def _multiplied(J, x):
    return linops.Jacobian(lambda y: J.mv(y) * y, x)


@pytest.mark.parametrize("make", COINCIDING.values(), ids=COINCIDING)
def test_another_point_compiles_nothing_where_the_first_is_data_too(make):
    x, v = jnp.linspace(0.5, 1, 5), np.ones(5, np.float32)
    A = make(x)
    points = (2 * x, 3 * x) if isinstance(A, linops.JacobianGram) else (2 * x,)
    A @ v
    with compilations() as count:
        A.at(*points) @ v
    assert count() == 0


OTHERS = {  # arrays of one content, in other types than the point before
    "NumPy": lambda: np.float32([1, 2, 3]),
    "half": lambda: jnp.array([1, 2, 3], jnp.float16),
    "bfloat16": lambda: jnp.array([1, 2, 3], jnp.bfloat16),
    "integers": lambda: jnp.array([1, 2, 3]),
    "weak": lambda: 1.0 * jnp.arange(1, 4),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_point_of_another_type_comes_to_that_of_the_first(name):
    J = linops.Jacobian(lambda x: jnp.sin(x) * x, X)
    J @ V
    x, point = np.float32([1, 2, 3]), OTHERS[name]()
    with compilations() as count:
        A = J.at(point)
        product = A @ V
        assert count() <= 1  # of the conversion
    assert jax.typeof(A.x) == jax.typeof(J.x)
    np.testing.assert_allclose(product, (np.sin(x) + x * np.cos(x)) * V, rtol=1e-5)


def test_a_numpy_point_goes_where_the_committed_one_lay():
    device = jax.devices()[0]
    x, v = np.ones(3, np.float32), np.ones(3, np.float32)
    J = linops.Jacobian(jnp.sin, jax.device_put(x, device))
    J @ v
    with compilations() as count:
        np.testing.assert_allclose(J.at(2 * x) @ v, np.cos(2 * x), rtol=1e-6)
    assert count() == 0
