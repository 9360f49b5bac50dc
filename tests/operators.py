"""The zoo: every operator with its dense reference. A new operator is one entry here, and all laws run over it."""

import functools

import jax
import numpy as np
import problems

import linops


def zoo_entry(make):
    ZOO[make.__name__] = make
    return make


ZOO = {}


def _at_each(kinds):
    """Register one entry for each kind of pytree."""

    def register(make):
        for kind in kinds:
            ZOO[f"{make.__name__}_{kind}"] = functools.partial(make, kind)
        return make

    return register


@_at_each(problems.TREES)
def jacobian(kind, dtype):
    x = problems.tree_point(kind, dtype)
    return linops.Jacobian(problems.values, x), problems.jacobian(problems.values, x)


@_at_each(["vector", "dict", "scalars", "mixed"])
def hessian(kind, dtype):
    x = problems.tree_point(kind, dtype)
    return linops.Hessian(problems.scalar, x), problems.hessian(problems.scalar, x)


@_at_each(["nested", "empty", "mixed"])
def gauss_newton(kind, dtype):
    x = problems.tree_point(kind, dtype)
    J, H = problems.jacobian(problems.values, x), problems.hessian(problems.loss, problems.values(x))
    return linops.GaussNewton(problems.values, x, problems.loss), J.T @ H @ J


@zoo_entry
def jacobian_recomputed(dtype):
    x = problems.tree_point("dict", dtype)
    return linops.Jacobian(problems.values, x, linearize=False), problems.jacobian(problems.values, x)


@zoo_entry
def jacobian_transposed(dtype):
    x = problems.tree_point("tuple", dtype)
    return linops.Jacobian(problems.values, x).T, problems.jacobian(problems.values, x).T


@zoo_entry
def jacobian_with_args(dtype):
    x, scale = problems.tree_point("vector", dtype), problems.normal(7, dtype, 3)

    def f(x, scale, power, mode):
        return problems.values(x)["products"] * scale[:5] ** power if mode == "on" else x

    return linops.Jacobian(f, x, args=(scale, 2, "on")), problems.jacobian(lambda x: f(x, scale, 2, "on"), x)


@zoo_entry
def jacobian_custom_vjp(dtype):
    x = problems.tree_point("vector", dtype)
    J = problems.jacobian(lambda x: jax.numpy.sin(x) * x, x)
    return linops.Jacobian(lambda x: only_reverse(x) * x, x), J


@zoo_entry
def hessian_custom_vjp(dtype):
    x = problems.tree_point("dict", dtype)
    H = problems.hessian(lambda x: jax.numpy.sum(jax.numpy.sin(x["w"]) ** 2) * x["b"][0], x)
    return linops.Hessian(lambda x: jax.numpy.sum(only_reverse(x["w"]) ** 2) * x["b"][0], x), H


@zoo_entry
def hessian_weighted(dtype):
    x, w = problems.tree_point("nested", dtype), problems.normal(7, dtype, 5)
    weights = {"products": w[:5], "sums": (w[5], w[6])}

    def weighted(x):
        return jax.flatten_util.ravel_pytree(problems.values(x))[0] @ w

    return linops.Hessian(problems.values, x, weights=weights), problems.hessian(weighted, x)


@zoo_entry
def hessian_recomputed(dtype):
    x = problems.tree_point("tuple", dtype)
    return linops.Hessian(problems.scalar, x, linearize=False), problems.hessian(problems.scalar, x)


@zoo_entry
def gauss_newton_squared(dtype):
    x = problems.tree_point("nested", dtype)
    J = problems.jacobian(problems.values, x)
    return linops.GaussNewton(problems.values, x), J.T @ J


@zoo_entry
def gauss_newton_recomputed(dtype):
    x = problems.tree_point("nested", dtype)
    J, H = problems.jacobian(problems.values, x), problems.hessian(problems.loss, problems.values(x))
    return linops.GaussNewton(problems.values, x, problems.loss, linearize=False), J.T @ H @ J


@zoo_entry
def gram(dtype):
    x = problems.tree_point("dict", dtype)
    J = problems.jacobian(problems.values, x)
    return linops.JacobianGram(problems.values, x), J @ J.T


@zoo_entry
def gram_two_points(dtype):
    x1, x2 = problems.tree_point("dict", dtype), problems.tree_point("dict", dtype, seed=7)
    J1, J2 = problems.jacobian(problems.values, x1), problems.jacobian(problems.values, x2)
    return linops.JacobianGram(problems.values, x1, x2), J1 @ J2.T


@zoo_entry
def matrix(dtype):
    M = problems.normal((4, 6), dtype)
    return linops.Matrix(M), M.astype(np.float64)


@zoo_entry
def matrix_complex(dtype):
    M = problems.normal((4, 6), dtype) + 1j * problems.normal((4, 6), dtype, 1)
    return linops.Matrix(M), M.astype(np.complex128)


@zoo_entry
def diagonal(dtype):
    d = problems.normal(6, dtype)
    return linops.Diagonal(d), np.diag(d.astype(np.float64))


@zoo_entry
def diagonal_tree(dtype):
    d = problems.tree_point("nested", dtype)
    return linops.Diagonal(d), np.diag(np.asarray(jax.flatten_util.ravel_pytree(d)[0], np.float64))


@zoo_entry
def identity(dtype):
    return linops.Identity(linops.Space.flat(5, dtype)), np.eye(5)


def _complex_point(dtype, seed=0):
    return {"a": problems.complex_normal(3, dtype, seed), "b": problems.complex_normal((), dtype, seed + 1)}


@zoo_entry
def jacobian_holomorphic(dtype):
    z = _complex_point(dtype)
    return linops.Jacobian(problems.holomorphic, z), problems.jacobian(problems.holomorphic, z)


@zoo_entry
def jacobian_to_complex(dtype):
    x = problems.normal(5, dtype)
    return linops.Jacobian(problems.phases, x), problems.jacobian(problems.phases, x)


@zoo_entry
def jacobian_to_complex_recomputed(dtype):
    x = problems.normal(5, dtype)
    return linops.Jacobian(problems.phases, x, linearize=False), problems.jacobian(problems.phases, x)


@zoo_entry
def jacobian_realified(dtype):
    view, v = problems.real_view(problems.conjugating, _complex_point(dtype))
    return linops.Jacobian(problems.conjugating, _complex_point(dtype)), problems.jacobian(view, v)


@zoo_entry
def jacobian_realified_mixed(dtype):
    x = {**_complex_point(dtype), "b": problems.normal((), dtype)}
    view, v = problems.real_view(problems.holomorphic, x)
    return linops.Jacobian(problems.holomorphic, x), problems.jacobian(view, v)


@zoo_entry
def gram_hermitian(dtype):
    z = _complex_point(dtype)
    J = problems.jacobian(problems.holomorphic, z)
    return linops.JacobianGram(problems.holomorphic, z), J @ J.conj().T


@zoo_entry
def gram_complex_two_points(dtype):
    x1, x2 = problems.normal(5, dtype), problems.normal(5, dtype, 1)
    J1, J2 = problems.jacobian(problems.phases, x1), problems.jacobian(problems.phases, x2)
    return linops.JacobianGram(problems.phases, x1, x2), J1 @ J2.conj().T


@zoo_entry
def gauss_newton_hermitian(dtype):
    x = problems.normal(5, dtype)
    J = problems.jacobian(problems.phases, x)
    return linops.GaussNewton(problems.phases, x), J.conj().T @ J


@zoo_entry
def gauss_newton_real_loss(dtype):
    z = _complex_point(dtype)
    view, v = problems.real_view(problems.holomorphic, z)
    J = problems.jacobian(view, v)
    outer, u = problems.real_view(problems.energy, problems.holomorphic(z))
    return linops.GaussNewton(problems.holomorphic, z, problems.energy), J.T @ problems.hessian(
        lambda u: outer(u)[0], u
    ) @ J


@zoo_entry
def hessian_real_loss(dtype):
    z = _complex_point(dtype)
    view, v = problems.real_view(lambda z: problems.energy(problems.conjugating(z)), z)
    H = problems.hessian(lambda v: view(v)[0], v)
    return linops.Hessian(lambda z: problems.energy(problems.conjugating(z)), z), H


@zoo_entry
def hessian_holomorphic(dtype):
    z = _complex_point(dtype)
    v, unravel = jax.flatten_util.ravel_pytree(z)
    gradient = jax.grad(lambda v: problems.holomorphic(unravel(v))["p"] ** 2, holomorphic=True)
    return linops.Hessian(lambda z: problems.holomorphic(z)["p"] ** 2, z), problems.jacobian(gradient, v)


def _square(dtype):
    x = problems.tree_point("dict", dtype)
    return linops.Jacobian(problems.square, x), problems.jacobian(problems.square, x)


@zoo_entry
def normal_equations(dtype):
    x = problems.tree_point("dict", dtype)
    J, D = linops.Jacobian(problems.values, x), problems.jacobian(problems.values, x)
    return J.T @ J + 0.5 * linops.Identity(J.shape[1]), D.T @ D + 0.5 * np.eye(D.shape[1])


@zoo_entry
def gram_weighted(dtype):
    x, d = problems.tree_point("dict", dtype), problems.normal(7, dtype, 3)
    J, D = linops.Jacobian(problems.values, x), problems.jacobian(problems.values, x)
    return (J.T @ linops.Diagonal(d)) @ J, D.T * d @ D


@zoo_entry
def gram_of_any_weight(dtype):
    x, M = problems.tree_point("nested", dtype), problems.normal((7, 7), dtype, 3)
    J, D = linops.Jacobian(problems.values, x), problems.jacobian(problems.values, x)
    return J.T @ (linops.Matrix(M) @ J), D.T @ M @ D


@zoo_entry
def gram_of_a_chain(dtype):
    x = problems.tree_point("dict", dtype)
    y = jax.tree.map(np.asarray, problems.values(x))
    J, D = linops.Jacobian(problems.values, x), problems.jacobian(problems.values, x)
    K, E = linops.Jacobian(problems.square, y), problems.jacobian(problems.square, y)
    return (J.T @ K.T) @ (0.1 * K) @ J, 0.1 * D.T @ E.T @ E @ D


@zoo_entry
def gram_hermitian_weighted(dtype):
    z, M = _complex_point(dtype), problems.complex_normal((3, 4), dtype, 3)
    J, D = linops.Jacobian(problems.holomorphic, z), problems.jacobian(problems.holomorphic, z)
    return J.H @ (linops.Matrix(M).H @ linops.Matrix(M)) @ J, D.conj().T @ M.conj().T @ M @ D


@zoo_entry
def gram_complex_symmetric(dtype):
    x, d = problems.tree_point("dict", dtype), problems.complex_normal(7, dtype, 3)
    J, D = linops.Jacobian(problems.values, x), problems.jacobian(problems.values, x)
    return J.T @ linops.Diagonal(d) @ J + 0.5 * linops.Identity(11), D.T * d @ D + 0.5 * np.eye(11)


@zoo_entry
def polynomial(dtype):
    A, D = _square(dtype)
    return A**3 / 4 - 2 * A + linops.Identity(len(D)), np.linalg.matrix_power(D, 3) / 4 - 2 * D + np.eye(len(D))


@zoo_entry
def product_with_matrix(dtype):
    A, D = _square(dtype)
    M = problems.normal((len(D), 3), dtype, 2)
    return -A.T @ linops.Matrix(M), -D.T @ M


@zoo_entry
def sum_with_diagonal(dtype):
    A, D = _square(dtype)
    d = problems.normal(len(D), dtype, 4)
    return linops.Diagonal(d) + A, np.diag(d) + D


@zoo_entry
def complex_combination(dtype):
    A, D = _square(dtype)
    M = problems.normal((len(D), len(D)), dtype) * (1 + 2j)
    return (A + linops.Matrix(M.astype(np.result_type(dtype, np.complex64)))) * 1j, (D + M) * 1j


@functools.cache
def build(name, dtype):
    """The operator and its dense matrix, made once for all tests."""
    with jax.enable_x64(dtype == np.float64):
        return ZOO[name](dtype)


# custom_vjp has no forward rule; written as most are, with the function itself in its forward pass.


@jax.custom_vjp
def only_reverse(x):
    return jax.numpy.sin(x)


only_reverse.defvjp(lambda x: (only_reverse(x), x), lambda x, w: (w * jax.numpy.cos(x),))
