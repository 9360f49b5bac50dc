"""Random pytrees, functions and compositions of operators agree with dense algebra made without linops, in float64.

Points, matrices and vectors have few digits, so that they are exact in every dtype and only the arithmetic rounds.
"""

import contextlib
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import real_view

import linops

DTYPES = {False: ["float16", "bfloat16", "float32", "complex64"], True: ["float16", "float32", "float64", "complex128"]}
HALVES = {"float16", "bfloat16"}  # neither holds the numbers of the other: one operator with both is refused
SHAPES = [(), (0,), (1,), (4,), (2, 3)]


def bounded(examples):
    """So many examples, the same in each run: each may compile half a dozen programs."""
    return settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )


# Points: trees of leaves, and the functions of them.


def few_digits(rng, shape, dtype, low=4, high=20):
    """Multiples of 1/16, in [1/4, 5/4) by default, complex where the dtype is."""
    real = rng.integers(low, high, shape) / 16
    return (real + 1j * rng.integers(low, high, shape) / 16 if is_complex(dtype) else real).astype(dtype)


def is_complex(dtype):
    return jnp.issubdtype(dtype, jnp.complexfloating)


@st.composite
def points(draw, only=None):
    """A tree of up to four leaves, whether float64 is on for it, and a source of numbers."""
    x64 = draw(st.booleans())
    dtypes = [dtype for dtype in DTYPES[x64] if only is None or is_complex(dtype) == (only == "complex")]
    if draw(st.booleans()):
        dtypes = [draw(st.sampled_from(dtypes))]
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    leaf = st.builds(
        lambda shape, dtype: few_digits(rng, shape, jnp.dtype(dtype)), st.sampled_from(SHAPES), st.sampled_from(dtypes)
    )
    branches = lambda children: st.one_of(  # noqa: E731
        st.dictionaries(st.sampled_from("abc"), children, min_size=1, max_size=2),
        st.lists(children, min_size=1, max_size=2),
        st.tuples(children, children),
    )
    tree = st.recursive(leaf, branches, max_leaves=4)
    return draw(tree.filter(lambda x: not {str(leaf.dtype) for leaf in jax.tree.leaves(x)} >= HALVES)), x64, rng


def compute_dtype(x):
    return functools.reduce(jnp.promote_types, [jnp.dtype(leaf.dtype) for leaf in jax.tree.leaves(x)])


STEPS = {  # those that keep f holomorphic, then the others
    "square": lambda v, M: v**2 + 3 * v,
    "sine": lambda v, M: jnp.sin(v) / 2,
    "matrix": lambda v, M: M @ v,
    "product": lambda v, M: v * jnp.roll(v, 1),
    "conj": lambda v, M: jnp.conj(v) * v / 2 + v,
    "abs": lambda v, M: jnp.abs(v) * v / 2,
    "real": lambda v, M: v + 2 * jnp.real(v),
}


HOLOMORPHIC = list(STEPS)[:4]
steps = st.lists(st.sampled_from(list(STEPS)), min_size=1, max_size=2)
holomorphic_steps = st.lists(st.sampled_from(HOLOMORPHIC), min_size=1, max_size=2)


def function(names, dtype, rng_seed=3, *, flat=False):
    """A function of trees, computed in `dtype`, with a tree of two leaves (one where `flat`) for its value."""

    def f(x):
        v = jnp.concatenate([jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(x)])
        M = few_digits(np.random.default_rng(rng_seed), (v.size, v.size), np.dtype(np.float32), -8, 9)
        for name in names:
            v = STEPS[name](v, jnp.asarray(M).astype(dtype))
        return v if flat else {"head": v[:2], "tail": (v[2:],)}

    return f


# The reference: the same function in double precision, of a vector; and of [Re, Im] where linops realifies.


def double(dtype):
    return np.dtype(np.complex128 if is_complex(dtype) else np.float64)


def dense_jacobian(names, x):
    """The dense Jacobian in double precision, and whether linops has to give it as a complex matrix."""
    leaves, treedef = jax.tree.flatten(x)
    wide = [np.asarray(leaf, double(leaf.dtype)) for leaf in leaves]
    f = function(names, double(compute_dtype(x)), flat=True)
    if any(is_complex(leaf.dtype) for leaf in leaves):
        if all(is_complex(leaf.dtype) for leaf in leaves) and set(names) <= set(HOLOMORPHIC):
            v = np.concatenate([leaf.ravel() for leaf in wide])
            return np.asarray(jax.jit(jax.jacfwd(f, holomorphic=True))(v))
        view, v = real_view(f, treedef.unflatten(wide))
    else:
        view, v = f, jnp.asarray(np.concatenate([leaf.ravel() for leaf in wide]))
    return np.asarray(jax.jit(jax.jacfwd(view))(v))


def dense_hessian(g, x):
    """The dense real Hessian of a real function of trees, of [Re, Im] for complex x, in double precision."""
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, double(leaf.dtype)), x)
    view, v = real_view(g, wide)
    return np.asarray(jax.jit(jax.hessian(lambda v: view(v)[0]))(v))


# The comparison.


def coarsest(A):
    return max(float(jnp.finfo(dtype).eps) for dtype in (*A.domain.dtypes, *A.codomain.dtypes, A.dtype))


def check(A, D, scale=None, eps=None):
    """All products of A are those of the dense matrix D, within the rounding of the coarsest dtype."""
    rng = np.random.default_rng(5)
    assert A.shape == D.shape
    assert is_complex(A.dtype) == is_complex(D.dtype)
    eps = eps or coarsest(A)
    scale = max(1, np.abs(D).max(initial=0)) if scale is None else scale
    atol = 64 * eps * scale * max(1, *D.shape)

    def close(got, expected):
        assert got.dtype == A.dtype
        assert got.shape == expected.shape
        wide = double(A.dtype)
        np.testing.assert_allclose(np.asarray(got).astype(wide), expected, rtol=0, atol=atol)

    m, n = D.shape
    v, w, V = (few_digits(rng, shape, A.dtype, -16, 17) for shape in (n, m, (n, 3)))
    wide_v, wide_w, wide_V = (array.astype(double(A.dtype)) for array in (v, w, V))
    close(A @ v, D @ wide_v)
    close(A.matvec(v), D @ wide_v)
    on_device = A @ jnp.asarray(v)
    assert isinstance(on_device, jax.Array)
    close(on_device, D @ wide_v)
    close(A @ V, D @ wide_V)
    product = A.mv(unravel(A.domain, v))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), product) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), A.codomain.struct
    )
    close(np.concatenate([np.ravel(leaf).astype(A.dtype) for leaf in jax.tree.leaves(product)]), D @ wide_v)
    close(A.rmatvec(w), D.conj().T @ wide_w)
    close(A.T @ w, D.T @ wide_w)
    close(w @ A, wide_w @ D)
    close(A.toarray(), D)
    close(A.diagonal(), np.diagonal(D))


def unravel(space, v):
    """The element of a Space with a vector, by NumPy."""
    leaves, start = [], 0
    for shape, dtype in zip(space.shapes, space.dtypes, strict=True):
        size = int(np.prod(shape))
        leaves.append(v[start : start + size].reshape(shape).astype(dtype))
        start += size
    return space.treedef.unflatten(leaves)


def precision(x64):
    return jax.enable_x64(True) if x64 else contextlib.nullcontext()


def in_double(make, *arguments):
    with jax.enable_x64(True):
        return make(*arguments)


# The properties.


@bounded(14)
@given(points(), steps)
def test_jacobian(point, names):
    x, x64, _ = point
    D = in_double(dense_jacobian, names, x)
    with precision(x64):
        check(linops.Jacobian(function(names, compute_dtype(x)), x), D)


@bounded(6)
@given(points(only="complex"), holomorphic_steps)
def test_jacobian_holomorphic(point, names):
    x, x64, _ = point
    D = in_double(dense_jacobian, names, x)
    assert is_complex(D.dtype)
    with precision(x64):
        check(linops.Jacobian(function(names, compute_dtype(x)), x), D)


@bounded(6)
@given(points(), steps)
def test_hessian(point, names):
    x, x64, _ = point
    energy = lambda dtype: lambda x: jnp.sum(jnp.abs(function(names, dtype, flat=True)(x)) ** 2) / 8  # noqa: E731
    D = in_double(dense_hessian, energy(double(compute_dtype(x))), x)
    with precision(x64):
        check(linops.Hessian(energy(compute_dtype(x)), x), D)


@bounded(6)
@given(points(), steps, st.sampled_from(["GaussNewton", "JacobianGram", "T @ J", "H @ J + I"]))
def test_products_of_jacobians(point, names, kind):
    x, x64, _ = point
    D = in_double(dense_jacobian, names, x)
    f = function(names, compute_dtype(x))
    scale = max(1, np.abs(D).max(initial=0)) ** 2
    with precision(x64):
        J = linops.Jacobian(f, x)
        A, E = {
            "GaussNewton": lambda: (linops.GaussNewton(f, x), D.conj().T @ D),
            "JacobianGram": lambda: (linops.JacobianGram(f, x), D @ D.conj().T),
            "T @ J": lambda: (J.T @ J, D.T @ D),
            "H @ J + I": lambda: (
                J.H @ J + 0.5 * linops.Identity(D.shape[1]),
                D.conj().T @ D + 0.5 * np.eye(D.shape[1]),
            ),
        }[kind]()
        check(A, E, scale, coarsest(J))


# Compositions: pairs of an operator and its matrix, with the matrix of magnitudes, which bounds the rounding.


N = 4
BASE = ["jacobian", "tree", "holomorphic", "real matrix", "complex matrix", "diagonal", "identity"]


@functools.cache
def base(name, dtype):
    """An operator of shape (4, 4) and its dense matrix."""
    rng = np.random.default_rng(BASE.index(name))
    real, wide = np.dtype(dtype), np.result_type(dtype, np.complex64)
    with jax.enable_x64(dtype == "float64"):
        if name in ("jacobian", "tree", "holomorphic"):
            x = few_digits(rng, N, wide if name == "holomorphic" else real)
            x = {"a": x[:1], "b": (x[1:3], x[3])} if name == "tree" else x
            names = ["product", "matrix", "sine"]
            D = in_double(dense_jacobian, names, x)
            f = function(names, compute_dtype(x), flat=True)
            return linops.Jacobian(f, x), D
        if name == "identity":
            return linops.Identity(N), np.eye(N)
        if name == "diagonal":
            d = few_digits(rng, N, real)
            return linops.Diagonal(d), np.diag(d).astype(np.float64)
        M = few_digits(rng, (N, N), wide if name == "complex matrix" else real, -8, 9)
        return linops.Matrix(M), M.astype(double(M.dtype))


scalars = st.sampled_from([2, -0.5, np.float32(4), np.float64(0.25), np.int8(-1), 1j, 0.5 - 2j, np.complex64(1 + 1j)])


expressions = st.recursive(
    st.sampled_from(BASE),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["+", "-", "@"]), inner, inner),
        st.tuples(st.sampled_from(["T", "H", "neg", "linearize"]), inner),
        st.tuples(st.sampled_from(["*", "r*", "/"]), inner, scalars),
        st.tuples(st.just("**"), inner, st.integers(0, 3)),
    ),
    max_leaves=4,
)


BINARY = {"+": operator.add, "-": operator.sub, "@": operator.matmul}


def evaluate(expression, dtype):
    """The operator, its dense matrix, and a matrix that bounds the magnitudes in between."""
    if isinstance(expression, str):
        A, D = base(expression, dtype)
        return A, D, np.abs(D) + 0.5
    name, inner, *rest = expression
    A, D, S = evaluate(inner, dtype)
    if name in BINARY:
        B, E, R = evaluate(rest[0], dtype)
        return BINARY[name](A, B), BINARY[name](D, E), S @ R if name == "@" else S + R
    if name == "**":
        return A ** rest[0], np.linalg.matrix_power(D, rest[0]), np.linalg.matrix_power(S + np.eye(N), rest[0])
    if name in ("*", "r*", "/"):
        c = rest[0]
        wide = complex(c) if isinstance(c, complex | np.complexfloating) else float(c)
        if name == "/":
            return A / c, D / wide, S / abs(wide)
        return (A * c if name == "*" else c * A), D * wide, S * abs(wide)
    one = {
        "T": lambda: (A.T, D.T, S.T),
        "H": lambda: (A.H, D.conj().T, S.T),
        "neg": lambda: (-A, -D, S),
        "linearize": lambda: (A.linearize(), D, S),
    }
    return one[name]()


@bounded(20)
@given(expressions, st.sampled_from(["float32", "float64"]))
def test_composition(expression, dtype):
    with jax.enable_x64(dtype == "float64"):
        A, D, S = evaluate(expression, dtype)
        assert isinstance(A, linops.Operator)
        check(A, D, max(1, S.max()), np.finfo(dtype).eps)
