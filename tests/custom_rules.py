"""Functions with derivative rules of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def with_jvp(f, slope):
    """F with the rule t -> slope(x) t."""
    g = jax.custom_jvp(f)
    g.defjvp(lambda p, t: (g(*p), slope(p[0]) * t[0]))
    return g


def with_vjp(f, slope):
    g = jax.custom_vjp(f)
    g.defvjp(lambda x: (g(x), x), lambda x, w: (slope(x) * w,))
    return g


RULES = {"custom_jvp": with_jvp, "custom_vjp": with_vjp}


@jax.custom_vjp
def of_callback(x):
    """The sum of sin(x)², whose gradient is computed by NumPy."""
    return jnp.sum(jnp.sin(x) ** 2)


def _slopes(x, w):
    return (w * jax.pure_callback(lambda x: np.sin(2 * x), jax.typeof(x), x, vmap_method="expand_dims"),)


of_callback.defvjp(lambda x: (of_callback(x), x), _slopes)


def first_alone():
    """A custom_jvp function x, y -> sin(x) y whose rule refuses tangents of y."""

    @jax.custom_jvp
    def f(x, y):
        return jnp.sin(x) * y

    def rule(primals, tangents):
        if type(tangents[1]) is not jax.custom_derivatives.SymbolicZero:
            raise RuntimeError("no tangents of y, please")
        return f(*primals), jnp.cos(primals[0]) * primals[1] * tangents[0]

    f.defjvp(rule, symbolic_zeros=True)
    return f


def first_in_reverse():
    """The same as a custom_vjp function, whose residuals have another structure where y has a tangent."""

    @jax.custom_vjp
    def f(x, y):
        return jnp.sin(x) * y

    def forward(x, y):
        kept = x.value, (y.value if y.perturbed else None), y.value
        return f(x.value, y.value), kept

    def backward(kept, w):
        assert kept[1] is None
        return jnp.cos(kept[0]) * kept[2] * w, None

    f.defvjp(forward, backward, symbolic_zeros=True)
    return f


RULE_OF_FIRST = pytest.mark.parametrize("make", [first_alone, first_in_reverse])
