"""Low rank, second derivatives in two arguments, and operators that solve."""

import jax
import jax.numpy as jnp
from problems import jac, values

import linops
from operators.entries import beside, entry, moved, normal, tree


def shifted(x):
    J = linops.Jacobian(values, x)
    return linops.inverse(J.T @ J + 2.0 * linops.Identity(J.shape[1]), "cg", rtol=32 * jnp.finfo(J.dtype).eps)


def inverse_of_shifted(x):
    J = jac(values, x)
    return jnp.linalg.inv(J.T @ J + 2 * jnp.eye(J.shape[1], dtype=J.dtype))


def coupled(x, y):
    """A scalar with both mixed and own second derivatives; in x it is convex."""
    return jnp.sum(jnp.sin(x["a"]) * y[:2]) + jnp.sum((x["b"] * y[2:]) ** 2) + jnp.sum(x["a"]) * jnp.sum(x["b"])


def hessian_in_both(x, y):
    """The second derivatives of `coupled`, in x and x, and in x and y."""
    flat, unravel = jax.flatten_util.ravel_pytree(x)

    def f(v, y):
        return coupled(unravel(v), y)

    return jax.hessian(f)(flat, y), jax.jacobian(jax.grad(f), 1)(flat, y)


def convex(x, y):
    return coupled(x, y) + 3 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(x))


def sensitivity(x, y):
    in_both, mixed = hessian_in_both(x, y)
    return -jnp.linalg.solve(in_both + 6 * jnp.eye(len(in_both), dtype=in_both.dtype), mixed)


def pair(dtype, seed):
    x = {"a": normal(2)(dtype, seed)[0], "b": normal(3)(dtype, seed + 1)[0]}
    return x, normal(5)(dtype, seed + 2)[0]


entry("low_rank", linops.LowRank, lambda w, V: (V * w) @ V.T, beside(normal(3), normal((6, 3))), claims="sh")
entry("inverse", shifted, inverse_of_shifted, tree("dict"), moved, claims="sh")
entry(
    "mixed",
    lambda x, y: linops.MixedDerivative(coupled, x, y),
    lambda x, y: hessian_in_both(x, y)[1],
    pair,
    moved,
    square=True,
)
entry(
    "sensitivity",
    lambda x, y: linops.Sensitivity(convex, x, y, minimizer=True, method="cg", rtol=32 * jnp.finfo(y.dtype).eps),
    sensitivity,
    pair,
    moved,
    importable=False,
    square=True,
)
