"""Functions whose derivatives have known spectra, so that solvers find what they are asked for; and their operators."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

import linops
from operators.entries import entry

# Functions, of a vector v of n numbers. Their constants have float32 values, so that both dtypes have one reference.

N, M_TALL, M_WIDE, RANK = 20, 28, 16, 5
RNG = np.random.default_rng(20)


def rounded(array):
    return array.astype(np.float32).astype(np.float64)


def orthonormal(m, n):
    return np.linalg.qr(RNG.normal(size=(m, n)))[0]


def with_spectrum(values, m=None, n=None):
    """A matrix with these singular values; with these eigenvalues where m and n are left out."""
    left = orthonormal(m or N, len(values))
    return rounded(left * values @ (left if n is None else orthonormal(n, len(values))).T)


POINT, SOLUTION = rounded(RNG.uniform(-0.5, 0.5, size=(2, N)))
SPD = with_spectrum(np.geomspace(9, 1, N))
INDEFINITE = with_spectrum(np.geomspace(9, 1, N) * (-1.0) ** np.arange(N))
SKEW = rounded(np.triu(RNG.normal(size=(N, N)) / 4, 1))
SQUARE = with_spectrum(np.geomspace(4, 1, N)) + SKEW - SKEW.T
TALL = with_spectrum(np.geomspace(3, 1, N), M_TALL, N)
WIDE = with_spectrum(np.geomspace(3, 1, M_WIDE), M_WIDE, N)
# Its exact rank is 5: rounding comes before the product.
LOW = rounded(orthonormal(M_TALL, RANK) * np.geomspace(3, 1, RANK)) @ rounded(orthonormal(N, RANK)).T
TARGET, WEIGHTS = rounded(RNG.uniform(0.5, 1.5, size=(2, M_TALL)))


def as_(constant, v):
    return jnp.asarray(constant, v.dtype)


def bend(matrix, v):
    """A nonlinear map whose Jacobian is close to `matrix`."""
    return as_(matrix, v) @ (v + jnp.sin(v) / 10)


def curve(matrix, v):
    """A scalar whose Hessian is close to `matrix`."""
    return v @ as_(matrix, v) @ v / 2 + jnp.sum(jnp.cos(v)) / 10 - jnp.sum(v)


square, tall, wide, low = (functools.partial(bend, matrix) for matrix in (SQUARE, TALL, WIDE, LOW))
convex, saddle = (functools.partial(curve, matrix) for matrix in (SPD, INDEFINITE))


def squares(v):
    return tall(v) ** 2 / 2


def half_square(y):
    return y @ y / 2


def soft(y):
    """A convex loss, zero at zero: the sum of sqrt(1 + y^2) - 1, without cancellation."""
    return jnp.sum(y**2 / (1 + jnp.sqrt(1 + y**2)))


# The same functions of trees, for the operators.


def tree(v):
    return {"a": v[: N - 8].reshape(4, 3), "b": (v[N - 8 :],)}


def flat(x):
    return jnp.concatenate([x["a"].ravel(), x["b"][0]])


def of_tree(f, *, tree_out=False):
    """The function f of trees, with values in trees where asked for."""
    return lambda x: (lambda y: {"u": y[:4].reshape(2, 2), "w": y[4:]} if tree_out else y)(f(flat(x)))


def loss_of_tree(loss):
    return lambda y: loss(jnp.concatenate([y["u"].ravel(), y["w"]]))


def jacobian(f, x, *, transposed=False):
    J = linops.Jacobian(of_tree(f, tree_out=True), tree(x))
    return J.T if transposed else J


def shifted_gram(f, x, shift):
    J = linops.Jacobian(of_tree(f, tree_out=True), tree(x))
    return J.T @ J + shift * linops.Identity(N)


# The operators, by the kind of solver that they suit.

D, J_, H_ = jnp.diag, jax.jacobian, jax.hessian
TREE = {"tree_out": True}


def arguments(dtype, seed=0):
    return (jnp.asarray(POINT if seed == 0 else POINT[::-1], dtype),)


def add(kind, name, operator, dense, *, claims="", importable=False):
    traits = {"made_for": "solvers", "solver": kind, "claims": claims, "importable": importable}
    entry(name, operator, dense, arguments, square=kind not in ("rectangular", "low rank"), **traits)


add(
    "definite",
    "Hessian",
    lambda x: linops.Hessian(of_tree(convex), tree(x)),
    lambda x: H_(convex)(x),
    claims="sh",
)
add(
    "definite",
    "Hessian(weights)",
    lambda x: linops.Hessian(squares, x, weights=as_(WEIGHTS, x)),
    lambda x: H_(lambda v: as_(WEIGHTS, x) @ squares(v))(x),
    claims="sh",
    importable=True,
)
add(
    "definite",
    "GaussNewton",
    lambda x: linops.GaussNewton(of_tree(tall, **TREE), tree(x)),
    lambda x: J_(tall)(x).T @ J_(tall)(x),
    claims="shp",
)
add(
    "definite",
    "GaussNewton(loss)",
    lambda x: linops.GaussNewton(of_tree(tall, **TREE), tree(x), loss_of_tree(soft)),
    lambda x: J_(tall)(x).T @ H_(soft)(tall(x)) @ J_(tall)(x),
    claims="sh",
)
add(
    "definite",
    "JacobianGram",
    lambda x: linops.JacobianGram(of_tree(wide, **TREE), tree(x)),
    lambda x: J_(wide)(x) @ J_(wide)(x).T,
    claims="shp",
)
add(
    "definite",
    "J.T @ J + lam * I",
    lambda x: shifted_gram(tall, x, 0.5),
    lambda x: J_(tall)(x).T @ J_(tall)(x) + 0.5 * jnp.eye(N),
    claims="sh",
)
add(
    "definite",
    "H + scipy.sparse",
    lambda x: linops.Hessian(of_tree(convex), tree(x)) + scipy.sparse.diags_array(np.ones(N, x.dtype)),
    lambda x: H_(convex)(x) + jnp.eye(N),
)
add(
    "definite",
    "Diagonal",
    lambda x: linops.Diagonal(tree(1 + 2 * jnp.arange(N) / N + x**2)),
    lambda x: D(1 + 2 * jnp.arange(N) / N + x**2),
    claims="s",
    importable=True,
)
add(
    "indefinite",
    "Hessian, indefinite",
    lambda x: linops.Hessian(of_tree(saddle), tree(x)),
    lambda x: H_(saddle)(x),
    claims="sh",
)
add(
    "indefinite",
    "-H / 2",
    lambda x: -linops.Hessian(of_tree(saddle), tree(x)) / 2,
    lambda x: -H_(saddle)(x) / 2,
    claims="sh",
)
add(
    "square",
    "Jacobian, square",
    lambda x: jacobian(square, x),
    lambda x: J_(square)(x),
)
add(
    "square",
    "Jacobian.T, square",
    lambda x: jacobian(square, x, transposed=True),
    lambda x: J_(square)(x).T,
)
add(
    "square",
    "JacobianGram(x1, x2)",
    lambda x: linops.JacobianGram(lambda v: wide(v**2 / 4 + v), x, x / 2),
    lambda x: J_(lambda v: wide(v**2 / 4 + v))(x) @ J_(lambda v: wide(v**2 / 4 + v))(x / 2).T,
)
add(
    "square",
    "A ** 2 / 8 + A",
    lambda x: (lambda A: A**2 / 8 + A)(linops.Jacobian(square, x)),
    lambda x: J_(square)(x) @ J_(square)(x) / 8 + J_(square)(x),
)
add(
    "square",
    "Matrix",
    lambda x: linops.Matrix(as_(SQUARE, x)),
    lambda x: as_(SQUARE, x),
    importable=True,
)
add(
    "rectangular",
    "Jacobian, tall",
    lambda x: jacobian(tall, x),
    lambda x: J_(tall)(x),
)
add(
    "rectangular",
    "Jacobian.T, wide",
    lambda x: jacobian(tall, x, transposed=True),
    lambda x: J_(tall)(x).T,
)
add(
    "rectangular",
    "Diagonal @ Jacobian",
    lambda x: linops.Diagonal(as_(WEIGHTS, x)) @ linops.Jacobian(tall, x),
    lambda x: D(as_(WEIGHTS, x)) @ J_(tall)(x),
)
add(
    "rectangular",
    "Matrix, wide",
    lambda x: linops.Matrix(as_(WIDE, x)),
    lambda x: as_(WIDE, x),
    importable=True,
)
add(
    "low rank",
    "Jacobian, rank 5",
    lambda x: jacobian(low, x),
    lambda x: J_(low)(x),
)
add(
    "low rank",
    "Jacobian.T, rank 5",
    lambda x: jacobian(low, x, transposed=True),
    lambda x: J_(low)(x).T,
)
add(
    "low rank",
    "Matrix, rank 5",
    lambda x: linops.Matrix(as_(LOW, x)),
    lambda x: as_(LOW, x),
    importable=True,
)
add(
    "low rank, square",
    "GaussNewton, rank 5",
    lambda x: linops.GaussNewton(of_tree(low, **TREE), tree(x)),
    lambda x: J_(low)(x).T @ J_(low)(x),
    claims="shp",
)
add(
    "low rank, square",
    "JacobianGram, rank 5",
    lambda x: linops.JacobianGram(of_tree(low, **TREE), tree(x)),
    lambda x: J_(low)(x) @ J_(low)(x).T,
    claims="shp",
)
add(
    "low rank, square",
    "Hessian, rank 5",
    lambda x: linops.Hessian(of_tree(lambda v: half_square(as_(LOW, v) @ v)), tree(x)),
    lambda x: H_(lambda v: half_square(as_(LOW, v) @ v))(x),
    claims="sh",
)
