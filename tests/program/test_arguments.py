"""Arguments of functions: what is data, what is code, and what may be others at a new point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import compilations

import linops


class Column:
    """Of a package of tables, as pandas has them."""

    def __array__(self, dtype=None, copy=None):
        return np.ones(2, dtype)


def test_args_that_are_equal_and_of_another_type_are_others():
    def f(x, n):
        return x**2 if n is True else x

    J = linops.Jacobian(f, np.ones(2, np.float32), args=(1,))
    with pytest.raises(ValueError, match="expected args like those that f was traced"):
        J.at(np.ones(2, np.float32), args=(True,))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (([1.0, 2.0],), r"args\[0\] is a list, a tree of 2 numbers: for a vector pass np.array\(args\[0\]\)"),
        ((Column(),), r"args\[0\] is of type Column, which is code: for an array pass np.asarray\(args\[0\]\)"),
    ],
)
def test_what_is_no_array_is_said_where_f_fails(given, words):
    with pytest.raises(TypeError, match=words):
        linops.Jacobian(lambda x, a: x * a, np.ones(2, np.float32), args=given)


def _scaled(x, a, *_):
    return a * x**2


@pytest.mark.parametrize("given", [0.2, np.float32(0.2), np.array(0.2, np.float32), jnp.float32(0.2), 2])
@pytest.mark.parametrize("first", [0.1, np.float32(0.1), jnp.float32(0.1)])
def test_a_number_for_a_number_in_args(first, given):
    x, v = np.ones(3, np.float32), np.ones(3, np.float32)
    J = linops.Jacobian(_scaled, x, args=(first,))
    J @ v
    at = J.at(x, args=(given,))
    with compilations() as count:
        np.testing.assert_allclose(at @ v, 2 * float(given) * v, rtol=1e-6)
    assert count() == 0


def test_weakly_typed_arrays_in_args():
    x = np.ones(3, np.float32)
    J = linops.Jacobian(_scaled, x, args=(jnp.ones(3),))
    np.testing.assert_array_equal(J.at(x, args=(jnp.full(3, 2.0),)) @ x, 4 * x)
    J = linops.Jacobian(_scaled, x, args=(jnp.full(3, 2.0),))
    np.testing.assert_array_equal(J.at(x, args=(jnp.ones(3),)) @ x, 2 * x)


@pytest.mark.parametrize("make", [lambda: slice(0, 2), lambda: range(2), lambda: frozenset("ab"), lambda: np.str_("q")])
def test_equal_code_in_args(make):
    x = np.ones(3, np.float32)
    J = linops.Jacobian(_scaled, x, args=(1.0, make()))
    assert J.at(x, args=(2.0, make())) @ x is not None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((np.ones(3, np.float32),), r"at got args\[0\] of type float32\[3\] for float32\[\]"),
        ((np.float16(1),), r"at got args\[0\] of type float16\[\] for float32\[\]"),
        ((1.0, 2), "at got args of structure"),
        (("q",), r"at got args\[0\] = 'q', expected"),
    ],
)
def test_what_differs_in_args_is_named(given, words):
    J = linops.Jacobian(_scaled, np.ones(3, np.float32), args=(1.0,))
    with pytest.raises(ValueError, match=words):
        J.at(np.ones(3, np.float32), args=given)


@pytest.mark.parametrize("first", [0.1, np.float32(0.1)])
def test_a_number_of_a_jit_in_args(first):
    x = np.ones(3, np.float32)
    J = linops.Jacobian(_scaled, x, args=(first,))
    product = jax.jit(lambda a: J.at(x, args=(a,)) @ jnp.ones(3))
    np.testing.assert_allclose(product(jnp.float32(3)), 6 * x, rtol=1e-6)
    np.testing.assert_allclose(product(3.0), 6 * x, rtol=1e-6)
