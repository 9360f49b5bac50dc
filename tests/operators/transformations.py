"""Operators that are built inside of transformations: of functions that close over a number c, which is traced too."""

import jax.numpy as jnp
import numpy as np
from problems import hess, hess_of_pairs, jac, jac_of_pairs

import linops
from operators.entries import entry


def arguments(dtype, seed=0):
    return np.array([0.5, -0.7, 1.1], dtype) * (1 + seed), dtype(1.3 / (1 + seed))


def add(name, operator, dense, **traits):
    traits = {"made_for": "transformations", "square": True, "importable": False} | traits
    entry(f"{name}_over_c", operator, dense, arguments, **traits)


def gram(J):
    return J.T @ J


def sine(c):
    return lambda x: c * jnp.sin(x) * x[0]


def quartic(c):
    return lambda x: c * jnp.sum(x**4) * x[0]


def two_values(c):
    return lambda x: c * jnp.stack([x[0] * x[1], x[2] ** 2])


def of_pairs(f):
    """The derivative by pairs of a function of complex numbers, at x (1 + i)."""
    return lambda derivative, x: derivative(f, x + 1j * x)


add("jacobian", lambda x, c: linops.Jacobian(sine(c), x), lambda x, c: jac(sine(c), x))
add(
    "jacobian_recomputed",
    lambda x, c: linops.Jacobian(sine(c), x, linearize=False),
    lambda x, c: jac(sine(c), x),
)
add(
    "jacobian_args",
    lambda x, c: linops.Jacobian(lambda x, c, p: c * x**p, x, args=(c, 3)),
    lambda x, c: jnp.diag(3 * c * x**2),
)
add("hessian", lambda x, c: linops.Hessian(quartic(c), x), lambda x, c: hess(quartic(c), x), claims="sh")
add(
    "hessian_args",
    lambda x, c: linops.Hessian(lambda x, c: quartic(c)(x), x, args=(c,)),
    lambda x, c: hess(quartic(c), x),
    claims="sh",
)
add(
    "hessian_weights",
    lambda x, c: linops.Hessian(lambda x: x**3, x, weights=c * jnp.ones(3)),
    lambda x, c: jnp.diag(6 * c * x),
    claims="sh",
)
add(
    "gauss_newton",
    lambda x, c: linops.GaussNewton(lambda x: c * x**2, x),
    lambda x, c: jnp.diag(4 * c**2 * x**2),
    claims="shp",
)
add(
    "gauss_newton_loss",
    lambda x, c: linops.GaussNewton(lambda x: x**2, x, lambda y: c * jnp.sum(y**3)),
    lambda x, c: jnp.diag(24 * c * x**4),
    claims="sh",
)
add(
    "gram",
    lambda x, c: linops.JacobianGram(two_values(c), x),
    lambda x, c: gram(jac(two_values(c), x).T),
    claims="shp",
)
add(
    "gram_two_points",
    lambda x, c: linops.JacobianGram(two_values(c), x, 2 * x),
    lambda x, c: jac(two_values(c), x) @ jac(two_values(c), 2 * x).T,
)
add(
    "jacobian_realified",
    lambda x, c: linops.Jacobian(lambda z: jnp.conj(z) * z[0] * c, x + 1j * x),
    lambda x, c: of_pairs(lambda z: jnp.conj(z) * z[0] * c)(jac_of_pairs, x),
)
add(
    "hessian_realified",
    lambda x, c: linops.Hessian(lambda z: c * jnp.sum(jnp.abs(z) ** 4), x + 1j * x),
    lambda x, c: of_pairs(lambda z: c * jnp.sum(jnp.abs(z) ** 4))(hess_of_pairs, x),
    claims="sh",
)
add(
    "gauss_newton_realified",
    lambda x, c: linops.GaussNewton(lambda z: c * z**2, x + 1j * x, lambda y: jnp.sum(jnp.abs(y) ** 2)),
    lambda x, c: 2 * gram(of_pairs(lambda z: c * z**2)(jac_of_pairs, x)),
    claims="sh",
)
add(
    "jacobian_holomorphic",
    lambda x, c: linops.Jacobian(lambda z: c * z**3, x + 1j * x),
    lambda x, c: jnp.diag(3 * c * (x + 1j * x) ** 2),
    complex=True,
)
add(
    "jacobian_to_complex",
    lambda x, c: linops.Jacobian(lambda x: jnp.exp(1j * x * c), x),
    lambda x, c: jnp.diag(1j * c * jnp.exp(1j * x * c)),
    complex=True,
)
add(
    "hessian_of_part",
    lambda x, c: linops.Hessian(lambda p: p["c"] * jnp.sum(p["x"] ** 3), {"x": x, "c": c, "n": jnp.int32(2)}, wrt="x"),
    lambda x, c: jnp.diag(6 * c * x),
    claims="sh",
)
add(
    "gram_of_part_two_points",
    lambda x, c: linops.JacobianGram(
        lambda p: two_values(p["c"])(p["x"]), {"x": x, "c": c}, {"x": 2 * x, "c": c + 1}, wrt="x"
    ),
    lambda x, c: jac(two_values(c), x) @ jac(two_values(c + 1), 2 * x).T,
)
add(
    "block_diagonal",
    lambda x, c: linops.BlockDiagonal((linops.Diagonal(c * x), linops.Jacobian(lambda x: c * x**2, x))),
    lambda x, c: jnp.diag(jnp.concatenate([c * x, 2 * c * x])),
)
add("matrix", lambda x, c: linops.Matrix(c * jnp.outer(x, x)), lambda x, c: c * jnp.outer(x, x), importable=True)
add("diagonal", lambda x, c: linops.Diagonal(c * x), lambda x, c: jnp.diag(c * x), claims="s", importable=True)


def composite(J, identity, c):
    return J.T @ J + c * identity - J @ J


add(
    "composite",
    lambda x, c: composite(linops.Jacobian(lambda x: jnp.sin(c * x), x), linops.Identity(3), c),
    lambda x, c: composite(jnp.diag(c * jnp.cos(c * x)), jnp.eye(3), c),
)
