"""Operators of a part of the point, and of blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import problems
from problems import hess, jac, scalar, values

import linops
from operators.entries import beside, complex_point, entry, normal, tree

# Functions of a tree with what is held fixed: numbers, an integer, and code.


def whole(x, scale):
    return {"held": scale, "moves": x, "power": np.int32(2), "act": "sin"}


def of_whole(p):
    act = getattr(jnp, p["act"])
    return jax.tree.map(lambda y: act(y) ** p["power"] * p["held"][0], values(p["moves"]))


def sum_of_whole(p):
    return p["held"][1] * scalar(p["moves"]) ** p["power"]


def energy_of_pair(z):
    return {"p": z["a"] * z["b"], "q": jnp.conj(z["a"][:2]) * z["b"]}


def coupled(p, scale):
    return jnp.sum(jnp.sin(p["x"][:3]) * p["y"] ** 2) * scale[0] + jnp.prod(p["y"]) * jnp.sum(p["x"] ** 2)


def moves(path, leaf):
    return path.startswith("moves") and leaf.ndim > 0


POINT = beside(tree("vector"), normal(2))

entry(
    "jacobian_of_part",
    lambda x, scale: linops.Jacobian(of_whole, whole(x, scale), wrt="moves"),
    lambda x, scale: jac(lambda x: of_whole(whole(x, scale)), x),
    POINT,
    lambda A, x, scale: A.at(whole(x, scale)),
)
entry(
    "hessian_of_part",
    lambda x, scale: linops.Hessian(sum_of_whole, whole(x, scale), wrt=moves),
    lambda x, scale: hess(lambda x: sum_of_whole(whole(x, scale)), x),
    POINT,
    lambda A, x, scale: A.at(whole(x, scale)),
    claims="sh",
)
entry(
    "gram_of_part_two_points",
    lambda x, y, scale: linops.JacobianGram(of_whole, whole(x, scale), whole(y, 2 * scale), wrt="moves"),
    lambda x, y, scale: jac(lambda x: of_whole(whole(x, scale)), x) @ jac(lambda x: of_whole(whole(x, 2 * scale)), y).T,
    beside(tree("vector"), tree("vector"), normal(2)),
    lambda A, x, y, scale: A.at(whole(x, scale), whole(y, 2 * scale)),
    square=True,
)
entry(
    "gauss_newton_of_part_of_pairs",
    lambda z: linops.GaussNewton(energy_of_pair, z, problems.energy, wrt="a"),
    lambda z: _gauss_newton_of_pairs(z["a"], z["b"]),
    complex_point,
    claims="sh",
)
entry(
    "mixed_of_parts",
    lambda x, y, scale: linops.MixedDerivative(coupled, {"x": x, "y": y}, args=scale, wrt=("y", "x")),
    lambda x, y, scale: jax.jacfwd(
        lambda x: jax.grad(lambda y: coupled({"x": x, "y": y}, scale))(y),
    )(x),
    normal(5, 3, 2),
    lambda A, x, y, scale: A.at({"x": x, "y": y}, args=scale),
)


def _gauss_newton_of_pairs(a, b):
    J = problems.jac_of_pairs(lambda a: energy_of_pair({"a": a, "b": b}), a)
    return J.T @ problems.hess_of_pairs(problems.energy, energy_of_pair({"a": a, "b": b})) @ J


# Blocks.


def block_diag(*blocks):
    return jax.scipy.linalg.block_diag(*blocks)


def gram(A):
    return A @ A.T


def blocks(x, scale, *M):
    return linops.BlockDiagonal(
        {
            "f": (linops.Jacobian(problems.square, x), linops.Matrix(M[0])) if M else linops.Hessian(scalar, x),
            "g": [linops.Diagonal(scale), linops.Identity(2)],
        }
    )


entry(
    "block_diagonal",
    blocks,
    lambda x, scale, M: block_diag(jac(problems.square, x), M, jnp.diag(scale), jnp.eye(2)),
    beside(tree("dict"), normal(2, (2, 3))),
)
entry(
    "block_diagonal_symmetric",
    blocks,
    lambda x, scale: block_diag(hess(scalar, x), jnp.diag(scale), jnp.eye(2)),
    beside(tree("dict"), normal(2)),
    claims="sh",
)
entry(
    "block_diagonal_complex",
    lambda z, M: linops.BlockDiagonal((linops.JacobianGram(problems.holomorphic, z), gram(linops.Matrix(M)))),
    lambda z, M: block_diag(jac(problems.holomorphic, z) @ jac(problems.holomorphic, z).conj().T, M @ M.T),
    beside(complex_point, normal((2, 3))),
    complex=True,
    claims="hp",
)
entry(
    "block_diagonal_of_hessian",
    lambda x, y: linops.BlockDiagonal({name: linops.Hessian(plain, {"x": x, "y": y}, wrt=name) for name in "xy"}),
    lambda x, y: block_diag(hess(lambda x: plain({"x": x, "y": y}), x), hess(lambda y: plain({"x": x, "y": y}), y)),
    normal(5, 3),
    lambda A, x, y: A.at({name: {"x": x, "y": y} for name in "xy"}),
    claims="sh",
)


def plain(p):
    return coupled(p, jnp.ones(1, p["x"].dtype))


# Products by differences: of a function whose gradient has no derivative, and of one that has, at leaves of two sizes.


@jax.custom_vjp
def only_gradient(v):
    return jnp.sum(jnp.sin(v) * jnp.cos(v))


def _gradient(v, w):
    """By a loop that has no derivative in reverse."""
    _, slopes = jax.lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, s[1] + jnp.cos(2 * v) / 2), (0, 0 * v))
    return (w * slopes,)


only_gradient.defvjp(lambda v: (only_gradient(v), v), _gradient)


def fused(x, scale):
    return only_gradient(jax.flatten_util.ravel_pytree(x)[0]) * scale[0]


entry(
    "hessian_by_differences",
    lambda x, scale: linops.Hessian(fused, x, args=scale, products="difference"),
    lambda x, scale: jnp.diag(-2 * jnp.sin(2 * jax.flatten_util.ravel_pytree(x)[0])) * scale[0],
    beside(tree("dict"), normal(1)),
    lambda A, x, scale: A.at(x, args=scale),
    claims="sh",
)
entry(
    "hessian_by_differences_weighted",
    lambda x, w: (
        linops.Hessian(values, x, products="difference", weights={"products": w[:5], "sums": (w[5], w[6])})
        + linops.Diagonal(x)
    ),
    lambda x, w: hess(lambda x: jax.flatten_util.ravel_pytree(values(x))[0] @ w, x) + jnp.diag(x),
    beside(tree("vector"), normal(7)),
    claims="sh",
)
entry(
    "hessian_by_differences_of_pairs",
    lambda z: linops.Hessian(energy_of_point, z, products="difference", wrt="a"),
    lambda z: problems.hess_of_pairs(lambda a: energy_of_point({"a": a, "b": z["b"]}), z["a"]),
    complex_point,
    claims="sh",
)


def energy_of_point(z):
    return problems.energy(energy_of_pair(z))
