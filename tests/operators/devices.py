"""Operators over data that lie on several devices: of a point x and of rows of data."""

import jax.numpy as jnp
import numpy as np
from problems import hess, jac

import linops
from operators.entries import entry, normal


def model(x, data):
    return jnp.tanh(data @ x)


def loss(x, data):
    return jnp.sum(model(x, data) ** 2)


def add(name, operator, dense, **traits):
    entry(f"{name}_over_data", operator, dense, normal(12, (8, 12)), made_for="devices", **traits)


def hessian(x, data, **options):
    return linops.Hessian(loss, x, args=(data,), **options)


def jacobian(x, data, **options):
    return linops.Jacobian(model, x, args=(data,), **options)


def dense_gram(x, data):
    J = jac(lambda x: model(x, data), x)
    return J.T @ J


def dense_hessian(x, data):
    return hess(lambda x: loss(x, data), x)


add("hessian", hessian, dense_hessian, claims="sh")
add(
    "gauss_newton",
    lambda x, data, **options: linops.GaussNewton(model, x, args=(data,), **options),
    dense_gram,
    claims="shp",
)
add(
    "jacobian_closure",
    lambda x, data, **options: linops.Jacobian(lambda x: model(x, data), x, **options),
    lambda x, data: jac(lambda x: model(x, data), x),
    importable=False,
)
add(
    "shifted",
    lambda x, data, **options: hessian(x, data, **options) + 2 * linops.Identity(12),
    lambda x, data: dense_hessian(x, data) + 2 * jnp.eye(12),
    claims="sh",
)
add(
    "gram",
    lambda x, data, **options: (lambda J: J.T @ J)(jacobian(x, data, **options)),
    dense_gram,
    claims="shp",
)
add(
    "sum",
    lambda x, data, **options: sum(hessian(x, data, **options) for _ in range(5)),
    lambda x, data: 5 * dense_hessian(x, data),
    claims="sh",
)
add(
    "hessian_moved",
    lambda x, data, **options: hessian(x, data, **options).at(np.asarray(x)),
    dense_hessian,
    claims="sh",
)
add(
    "hessian_of_part",
    lambda x, data, **options: linops.Hessian(
        lambda p: loss(p["x"], p["data"]), {"x": x, "data": data}, wrt="x", **options
    ),
    dense_hessian,
    claims="sh",
    importable=False,
)
add(
    "block_diagonal",
    lambda x, data, **options: linops.BlockDiagonal([hessian(x, data, **options)]),
    dense_hessian,
    claims="sh",
)
add(
    "hessian_by_differences",
    lambda x, data, **options: linops.Hessian(
        lambda x, data: 0.01 * loss(x, data), x, args=(data,), products="difference", **options
    ),
    lambda x, data: 0.01 * dense_hessian(x, data),
    claims="sh",
    importable=False,
)
