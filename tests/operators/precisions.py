"""Operators whose leaves differ in precision: float32 beside float64, whatever dtype is asked for."""

import jax.numpy as jnp
import numpy as np

import linops
from operators.entries import entry

WIDE, NARROW = np.array([1.0, 2.0]), np.array([3.0], np.float32)


def add(name, operator, dense, point=None, **traits):
    point = {"a": WIDE, "b": NARROW} if point is None else point
    entry(f"{name}_of_mixed_precision", operator, dense, lambda *_: (point,), made_for="mixed precision", **traits)


def both(x):
    return jnp.concatenate([x["a"], x["b"]])


add("diagonal", linops.Diagonal, lambda x: jnp.diag(both(x)), claims="s")
add(
    "jacobian",
    lambda x: linops.Jacobian(lambda x: {"a": x["a"] * 2.0, "b": x["b"] * 2}, x),
    lambda x: 2 * jnp.eye(3),
    square=True,
    importable=False,
)
add(
    "jacobian_to_both",
    lambda x: linops.Jacobian(lambda x: (x, x.astype(jnp.float32)), x),
    lambda x: jnp.concatenate([jnp.eye(2)] * 2),
    WIDE,
    importable=False,
)
add(
    "hessian",
    lambda x: linops.Hessian(lambda x: jnp.sum(x["a"] ** 2) + jnp.sum(x["b"] ** 2), x),
    lambda x: 2 * jnp.eye(3),
    importable=False,
    claims="sh",
)
add("gauss_newton", lambda x: linops.GaussNewton(both, x), lambda x: jnp.eye(3), claims="shp")
add(
    "sum",
    lambda x: linops.Diagonal(x) + 2 * linops.Identity(3),
    lambda x: jnp.diag(both(x)) + 2 * jnp.eye(3),
    claims="sh",
)
add(
    "product",
    lambda x: linops.Matrix(np.eye(3)) @ linops.Diagonal(x),
    lambda x: jnp.diag(both(x)),
    square=True,
)
add(
    "jacobian_recomputed",
    lambda x: linops.Jacobian(lambda x: x, x, linearize=False),
    lambda x: jnp.eye(3),
    square=True,
    importable=False,
)
