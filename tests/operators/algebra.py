"""Explicit operators, and what algebra makes of operators."""

import jax
import jax.numpy as jnp
import numpy as np
from problems import holomorphic, jac, square, values

import linops
from operators.entries import beside, complex_normal, complex_point, entry, moved, normal, tree

entry("matrix", linops.Matrix, lambda M: M, normal((4, 6)))
entry("matrix_complex", linops.Matrix, lambda M: M, complex_normal((4, 6)), complex=True)
entry("diagonal", linops.Diagonal, jnp.diag, normal(6), claims="s")
entry(
    "diagonal_tree",
    linops.Diagonal,
    lambda d: jnp.diag(jax.flatten_util.ravel_pytree(d)[0]),
    tree("nested"),
    claims="s",
)
entry(
    "identity",
    lambda v: linops.Identity(linops.Space.flat(5, v.dtype)),
    lambda v: jnp.eye(5, dtype=v.dtype),
    normal(5),
    claims="sp",
)


# Of Jacobians: the expressions are written once, of operators and of matrices.


def of_jacobian(expression, f=values):
    """The expression of the Jacobian of f and of other arguments, as an operator and as a matrix."""

    def operator(x, *others):
        given = (linops.Diagonal(a) if a.ndim == 1 else linops.Matrix(a) for a in others)
        J = linops.Jacobian(f, x)
        return expression(J, linops.Identity(J.shape[1]), *given)

    def dense(x, *others):
        J = jac(f, x)
        return expression(J, jnp.eye(J.shape[1], dtype=J.dtype), *(jnp.diag(a) if a.ndim == 1 else a for a in others))

    return operator, dense


def adjoint(A):
    return A.H if isinstance(A, linops.Operator) else A.conj().T


def algebraic(name, f, expression, arguments, **traits):
    entry(name, *of_jacobian(expression, f), arguments, **traits)


X = tree("dict")
algebraic("normal_equations", values, lambda J, eye: J.T @ J + 0.5 * eye, X, at=moved, claims="sh")
algebraic("gram_weighted", values, lambda J, eye, D: (J.T @ D) @ J, beside(X, normal(7)), claims="sh")
algebraic(
    "gram_of_any_weight",
    values,
    lambda J, eye, M: J.T @ (M @ J),
    beside(tree("nested"), normal((7, 7))),
    square=True,
)
algebraic(
    "gram_hermitian_weighted",
    holomorphic,
    lambda P, eye, M: adjoint(P) @ (adjoint(M) @ M) @ P,
    beside(complex_point, complex_normal((3, 4))),
    complex=True,
    claims="hp",
)
algebraic(
    "gram_complex_symmetric",
    values,
    lambda J, eye, D: J.T @ D @ J + 0.5 * eye,
    beside(X, complex_normal(7)),
    complex=True,
    claims="s",
)
algebraic("product_with_matrix", square, lambda A, eye, M: -A.T @ M, beside(X, normal((11, 3))))
algebraic("sum_with_diagonal", square, lambda A, eye, D: D + A, beside(X, normal(11)), square=True)
algebraic(
    "complex_combination",
    square,
    lambda A, eye, M: (A + M) * 1j,
    beside(X, complex_normal((11, 11))),
    complex=True,
    square=True,
)
entry(
    "polynomial",
    lambda x: (lambda A: A**3 / 4 - 2 * A + linops.Identity(11))(linops.Jacobian(square, x)),
    lambda x: (lambda A: A @ A @ A / 4 - 2 * A + jnp.eye(11))(jac(square, x)),
    X,
    moved,
    square=True,
)


def chain(J, K):
    return (J.T @ K.T) @ (0.1 * K) @ J


entry(
    "gram_of_a_chain",
    lambda x: chain(linops.Jacobian(values, x), linops.Jacobian(square, jax.tree.map(np.asarray, values(x)))),
    lambda x: chain(jac(values, x), jac(square, values(x))),
    X,
    claims="sh",
)


# Monitored operators: the same matrices.


def monitored(A):
    return linops.monitor(A) if isinstance(A, linops.Operator) else A


entry("monitored", lambda x: linops.monitor(linops.Jacobian(values, x)), lambda x: jac(values, x), X, moved)
algebraic(
    "monitored_hermitian",
    holomorphic,
    lambda P, eye: monitored(adjoint(P) @ P),
    complex_point,
    at=moved,
    complex=True,
    claims="hp",
)
