"""Derivative rules that a function lacks, or that fail, are said where they are needed."""

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from custom_rules import RULE_OF_FIRST, RULES
from operators.derivatives import only_reverse

import linops

FOUR = np.arange(1, 5, dtype=np.float32)


def test_no_forward_rule():
    callback = lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((4,), np.float32), x)  # noqa: E731
    with pytest.raises(TypeError, match=r"needs forward-mode differentiation.*expected jax.custom_jvp rules"):
        linops.Jacobian(callback, FOUR) @ FOUR
    with pytest.raises(TypeError, match=r"needs forward-mode differentiation"):
        linops.Jacobian(callback, FOUR, linearize=False) @ FOUR

    @jax.custom_vjp
    def clipped(x):
        return x

    clipped.defvjp(lambda x: (x, None), lambda _, w: (jnp.clip(w, -1, 1),))
    J = linops.Jacobian(clipped, FOUR)  # a backward pass that is not linear, which check finds, has a slope at 0
    np.testing.assert_array_equal(J @ FOUR, FOUR)
    np.testing.assert_array_equal(J.T @ FOUR, np.clip(FOUR, -1, 1))
    assert not linops.check(J)
    assert np.allclose(linops.Jacobian(only_reverse, FOUR) @ FOUR, np.cos(FOUR) * FOUR)


def test_no_reverse_rule():
    def f(x):
        return jax.lax.while_loop(lambda x: x[0] < 100, lambda x: x * x[0] + 1, x)

    J = linops.Jacobian(f, FOUR)
    np.testing.assert_allclose(J.toarray(), jax.jit(jax.jacfwd(f))(FOUR), rtol=1e-5)
    message = (
        r"a product with a derivative needs reverse-mode .*lax.scan or fori_loop with fixed bounds rather than while"
    )
    with pytest.raises(TypeError, match=message):
        J.T @ FOUR
    with pytest.raises(TypeError, match=r"needs reverse-mode differentiation"):
        linops.Hessian(lambda x: jnp.sum(f(x)), FOUR) @ FOUR


def test_errors_within_a_custom_rule_are_its_own():
    @jax.custom_jvp
    def f(x):
        return x

    f.defjvp(lambda primals, tangents: (primals[0], tangents[0] @ jnp.ones((3, 3))))
    with pytest.raises(TypeError, match=r"^(?!a product with a derivative).*contracting dimensions"):
        linops.Jacobian(f, FOUR) @ FOUR


N = 6


# What has no derivative is refused with the reason.


SIX = problems.normal(N, np.float32, 42)


def host(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")


def io_host(x):
    return jax.experimental.io_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@pytest.mark.parametrize("callback", [host, io_host])
@pytest.mark.parametrize("linearize", [True, False])
def test_host_callbacks_are_refused(callback, linearize):
    message = r"a product with a derivative needs {}-mode differentiation.*no callbacks.*JAX said: .*callback"
    J = linops.Jacobian(callback, SIX, linearize=linearize)
    for A in (J, linops.GaussNewton(callback, SIX, linearize=linearize)):
        with pytest.raises(TypeError, match=message.format("forward")):
            A @ SIX
    with pytest.raises(TypeError, match=message.format("(reverse|forward)")):
        J.T @ SIX
    with pytest.raises(TypeError, match=message.format("(reverse|forward)")):
        linops.Hessian(lambda x: jnp.sum(callback(x)), SIX, linearize=linearize) @ SIX


Z = problems.complex_normal(3, np.float32)


def test_missing_rules_of_complex_functions_are_said_at_the_product():
    def host_z(z):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(z.shape, z.dtype), z)

    J = linops.Jacobian(host_z, Z)
    assert J.shape == (6, 6)  # who knows whether it is holomorphic
    with pytest.raises(TypeError, match="a product with a derivative needs forward-mode differentiation"):
        J @ np.ones(J.shape[1], J.dtype)


X = np.array([0.1, 0.2, 0.3], np.float32)
V = np.array([1, -2, 0.5], np.float32)


def test_a_rule_that_fails_says_so_at_once():
    for make in RULES.values():
        f = make(jnp.sin, lambda x: jnp.ones((2, 2)) @ x)
        with pytest.raises(linops.MissingRule, match="a custom derivative rule in f could not be traced, which raised"):
            linops.Jacobian(f, X)
        assert linops.Jacobian(lambda x, f=f: x * f(jnp.ones(3)), X).shape == (3, 3)  # not in the way of x


@RULE_OF_FIRST
def test_a_rule_that_is_not_there_is_said_where_it_is_needed(make):
    f = make()
    with pytest.raises(linops.MissingRule):
        linops.Jacobian(lambda x: f(x, x), X).T @ V
    with pytest.raises(linops.MissingRule, match=r"no tangents of y|expected those in the point too"):
        jax.grad(lambda y: jnp.sum(linops.Jacobian(f, X, args=(y,)).T @ V))(X)
