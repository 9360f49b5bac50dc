"""Operators of one function at one point."""

import jax
import jax.numpy as jnp
import problems
from problems import hess, hess_of_pairs, holomorphic, jac, jac_of_pairs, phases, scalar, values

import linops
from operators.entries import beside, complex_point, entry, half_complex_point, moved, normal, tree

# Functions that are found by their names, where those in `problems` do not do. custom_vjp has no forward rule; it is
# written as most are, with the function itself in its forward pass.


@jax.custom_vjp
def only_reverse(x):
    return jnp.sin(x)


only_reverse.defvjp(lambda x: (only_reverse(x), x), lambda x, w: (w * jnp.cos(x),))


def reverse_times(x):
    return only_reverse(x) * x


def reverse_scalar(x):
    return jnp.sum(only_reverse(x["w"]) ** 2) * x["b"][0]


def with_args(x, scale, power, mode):
    return values(x)["products"] * scale[:5] ** power if mode == "on" else x


def conjugated_energy(z):
    return problems.energy(problems.conjugating(z))


def holomorphic_square(z):
    return holomorphic(z)["p"] ** 2


def gauss_newton(f, x, loss):
    """JᵀHJ by JAX."""
    J = jac(f, x)
    return J.T @ hess(loss, f(x)) @ J


# The entries.

for kind in problems.TREES:
    entry(f"jacobian_{kind}", lambda x: linops.Jacobian(values, x), lambda x: jac(values, x), tree(kind), moved)
for kind in ("vector", "dict", "scalars", "mixed"):
    entry(
        f"hessian_{kind}",
        lambda x: linops.Hessian(scalar, x),
        lambda x: hess(scalar, x),
        tree(kind),
        moved,
        claims="sh",
    )
for kind in ("nested", "empty", "mixed"):
    entry(
        f"gauss_newton_{kind}",
        lambda x: linops.GaussNewton(values, x, problems.loss),
        lambda x: gauss_newton(values, x, problems.loss),
        tree(kind),
        moved,
        claims="sh",
    )
entry(
    "jacobian_recomputed",
    lambda x: linops.Jacobian(values, x, linearize=False),
    lambda x: jac(values, x),
    tree("dict"),
    moved,
)
entry("jacobian_transposed", lambda x: linops.Jacobian(values, x).T, lambda x: jac(values, x).T, tree("tuple"))
entry(
    "jacobian_with_args",
    lambda x, scale: linops.Jacobian(with_args, x, args=(scale, 2, "on")),
    lambda x, scale: jac(lambda x: with_args(x, scale, 2, "on"), x),
    beside(tree("vector"), normal(7)),
    lambda A, x, scale: A.at(x, args=(scale, 2, "on")),
)
entry(
    "jacobian_custom_vjp",
    lambda x: linops.Jacobian(reverse_times, x),
    lambda x: jac(lambda x: jnp.sin(x) * x, x),
    tree("vector"),
    moved,
    square=True,
)
entry(
    "hessian_custom_vjp",
    lambda x: linops.Hessian(reverse_scalar, x),
    lambda x: hess(lambda x: jnp.sum(jnp.sin(x["w"]) ** 2) * x["b"][0], x),
    tree("dict"),
    moved,
    claims="sh",
)
entry(
    "hessian_weighted",
    lambda x, w: linops.Hessian(values, x, weights={"products": w[:5], "sums": (w[5], w[6])}),
    lambda x, w: hess(lambda x: jax.flatten_util.ravel_pytree(values(x))[0] @ w, x),
    beside(tree("nested"), normal(7)),
    claims="sh",
)
entry(
    "hessian_recomputed",
    lambda x: linops.Hessian(scalar, x, linearize=False),
    lambda x: hess(scalar, x),
    tree("tuple"),
    moved,
    claims="sh",
)
entry(
    "gauss_newton_squared",
    lambda x: linops.GaussNewton(values, x),
    lambda x: jac(values, x).T @ jac(values, x),
    tree("nested"),
    moved,
    claims="shp",
)
entry(
    "gauss_newton_recomputed",
    lambda x: linops.GaussNewton(values, x, problems.loss, linearize=False),
    lambda x: gauss_newton(values, x, problems.loss),
    tree("nested"),
    moved,
    claims="sh",
)
entry(
    "gram",
    lambda x: linops.JacobianGram(values, x),
    lambda x: jac(values, x) @ jac(values, x).T,
    tree("dict"),
    moved,
    claims="shp",
)
entry(
    "gram_two_points",
    lambda x1, x2: linops.JacobianGram(values, x1, x2),
    lambda x1, x2: jac(values, x1) @ jac(values, x2).T,
    beside(tree("dict"), tree("dict")),
    moved,
    square=True,
)

# Of complex numbers.

entry(
    "jacobian_holomorphic",
    lambda z: linops.Jacobian(holomorphic, z),
    lambda z: jac(holomorphic, z),
    complex_point,
    moved,
    complex=True,
    square=True,
)
entry(
    "jacobian_adjoint",
    lambda z: linops.Jacobian(holomorphic, z).H,
    lambda z: jac(holomorphic, z).conj().T,
    complex_point,
    complex=True,
    square=True,
)
for name, options in {"jacobian_to_complex": {}, "jacobian_to_complex_recomputed": {"linearize": False}}.items():
    entry(
        name,
        lambda x, options=options: linops.Jacobian(phases, x, **options),
        lambda x: jac(phases, x),
        normal(5),
        moved,
        complex=True,
    )
entry(
    "jacobian_realified",
    lambda z: linops.Jacobian(problems.conjugating, z),
    lambda z: jac_of_pairs(problems.conjugating, z),
    complex_point,
    moved,
    square=True,
)
entry(
    "jacobian_realified_mixed",
    lambda z: linops.Jacobian(holomorphic, z),
    lambda z: jac_of_pairs(holomorphic, z),
    half_complex_point,
    moved,
)
entry(
    "gram_hermitian",
    lambda z: linops.JacobianGram(holomorphic, z),
    lambda z: jac(holomorphic, z) @ jac(holomorphic, z).conj().T,
    complex_point,
    moved,
    complex=True,
    claims="hp",
)
entry(
    "gram_complex_two_points",
    lambda x1, x2: linops.JacobianGram(phases, x1, x2),
    lambda x1, x2: jac(phases, x1) @ jac(phases, x2).conj().T,
    normal(5, 5),
    moved,
    complex=True,
    square=True,
)
entry(
    "gauss_newton_hermitian",
    lambda x: linops.GaussNewton(phases, x),
    lambda x: jac(phases, x).conj().T @ jac(phases, x),
    normal(5),
    moved,
    complex=True,
    claims="hp",
)


def _gauss_newton_of_pairs(z):
    J = jac_of_pairs(holomorphic, z)
    return J.T @ hess_of_pairs(problems.energy, holomorphic(z)) @ J


entry(
    "gauss_newton_real_loss",
    lambda z: linops.GaussNewton(holomorphic, z, problems.energy),
    _gauss_newton_of_pairs,
    complex_point,
    moved,
    claims="sh",
)
entry(
    "hessian_real_loss",
    lambda z: linops.Hessian(conjugated_energy, z),
    lambda z: hess_of_pairs(conjugated_energy, z),
    complex_point,
    moved,
    claims="sh",
)
entry(
    "hessian_holomorphic",
    lambda z: linops.Hessian(holomorphic_square, z),
    lambda z: hess(holomorphic_square, z),
    complex_point,
    moved,
    complex=True,
    claims="s",
)
