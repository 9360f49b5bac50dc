"""Gram matrices: read in every way to write one, linearized once wherever they go, and never claiming what has gone."""

import functools
import pickle
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import operators
import problems
import pytest
from problems import POINT

import linops
from linops.algebra.operator import Gram


def test_symmetry_is_known_inside_jit():
    J = linops.Jacobian(problems.values, POINT)
    seen = []
    jax.jit(lambda A: seen.append(A.symmetric))(J.T @ J)
    assert seen == [True]


Y = jax.tree.map(np.asarray, problems.values(POINT))
Z = {"a": problems.complex_normal(3, np.float32), "b": problems.complex_normal((), np.float32, 1)}


class Dense(np.ndarray):
    """A matrix that takes the expressions of operators."""

    H = property(lambda self: self.conj().T)
    __pow__ = np.linalg.matrix_power


@functools.cache
def _factors():
    """Operators and matrices under the names that the expressions below give them."""
    real, cplx = problems.normal, problems.complex_normal
    given = {
        "D": real(7, np.float32), "E": real(7, np.float32, 1), "C": real(4, np.float32),
        "M": real((7, 7), np.float32), "N": cplx((3, 7), np.float32), "Q": cplx((4, 4), np.float32),
    }  # fmt: skip
    pairs = {
        name: (linops.Diagonal(a), np.diag(a)) if a.ndim == 1 else (linops.Matrix(a), a) for name, a in given.items()
    }
    zoo = {"J": "jacobian_dict", "P": "jacobian_holomorphic", "R": "jacobian_to_complex"}
    pairs |= {name: operators.build(entry, np.float32) for name, entry in zoo.items()}
    pairs |= {
        "K": (linops.Jacobian(problems.square, Y), problems.jacobian(problems.square, Y)),
        "S": (linops.Hessian(problems.loss, Y), problems.hessian(problems.loss, Y)),
        "I": (linops.Identity(11), np.eye(11)),
    }
    return (
        SimpleNamespace(**{name: A for name, (A, _) in pairs.items()}),
        SimpleNamespace(**{name: D.view(Dense) for name, (_, D) in pairs.items()}),
    )


# Each expression, with what is claimed of it: s(ymmetric), h(ermitian), p(ositive semidefinite).
EXPRESSIONS = {
    "J.T @ J": "shp",
    "J.H @ J": "shp",
    "J @ J.T": "shp",
    "J.T.T.T @ J.T.T": "shp",
    "(J.T @ D) @ J": "sh",
    "J.T @ (D @ J)": "sh",
    "J.T @ (D @ E) @ J": "",
    "J.T @ (D @ (E @ J))": "",
    "(J.T @ D) @ (D @ J)": "shp",
    "((J.T @ D) @ S) @ (D @ J)": "sh",
    "J.T @ (S + 2 * D) @ J": "sh",
    "J.T @ M @ J": "",
    "(M @ J).T @ (M @ J)": "shp",
    "J.T @ (K.T @ K) @ J": "shp",
    "(J.T @ K.T) @ (K @ J)": "shp",
    "((J.T @ K.T) @ K) @ J": "shp",
    "J.T @ (K.T @ (K @ J))": "shp",
    "(K @ J).T @ D @ (K @ J)": "sh",
    "M.T @ J @ J.T @ M": "shp",
    "D @ J @ J.T": "",
    "J.T @ J / 3 + 0.1 * I": "sh",
    "J @ J.T + K.T @ D @ K": "sh",
    "J @ J.T + K.T @ K": "shp",
    "(J.T @ J) ** 2": "shp",
    "M ** 2": "",
    "Q ** 2": "",
    "(M @ M.T) ** 3": "shp",
    "S ** 2": "shp",
    "S ** 3": "sh",
    "S @ S": "shp",
    "(J.T @ J) @ (J.T @ J)": "shp",
    "(2 * J.T) @ J": "sh",
    "(2 * J).T @ (2 * J)": "sh",  # the scalars are two arrays
    "(2 * J).T @ D @ (-J)": "sh",
    "(2 * (J.T @ D)) @ J": "sh",
    "J.T @ (2 * (D @ J))": "sh",
    "P.H @ P": "hp",
    "P.T @ P": "s",
    "P @ P.H": "hp",
    "R.H @ R": "hp",
    "P.H @ C @ P": "h",
    "P.T @ (C @ P)": "s",
    "(P.H @ C) @ (C @ P)": "hp",
    "P.H @ (Q.H @ Q) @ P": "hp",
    "P.H @ (Q.H @ (Q @ P))": "hp",
    "(P.T @ Q.T) @ (Q @ P)": "s",
    "P.H @ Q @ P": "",
    "(2 * P).H @ P": "h",
    "(2j * P).H @ P": "",
    "(P.H @ P) / 2 + 0.5 * (Q @ Q.H)": "h",
    "2j * (P.T @ P)": "s",
    "J.T @ (N.H @ N) @ J": "hp",
    "(J.T @ N.H) @ (N @ J)": "hp",
    "J.T @ (N.T @ N) @ J": "s",
    "1j * (J.T @ D @ J)": "s",
    "J.T @ D @ (1j * J)": "s",
    "(J.T @ D) @ (N.H @ (N @ (D @ J)))": "hp",
}


# The same with a factor that is one array and one scalar in both places.
NAMED = {
    "A.T @ A": (lambda F: F.J * 2, "shp"),
    "A.T @ D @ A": (lambda F: 2 * F.J, "sh"),
    "A.H @ (D @ A)": (lambda F: 2j * F.J, "h"),
    "A.H @ A": (lambda F: (1 - 2j) * F.P, "hp"),
    "A.T @ (A)": (lambda F: 3 * (F.K @ F.J), "shp"),
    "A.H @ C @ A": (lambda F: 3j * (F.Q @ F.P), "h"),
}


def evaluated(name):
    """The operator and its matrix."""
    pair = []
    for factors in _factors():
        names = dict(vars(factors))
        if name in NAMED:
            names["A"] = NAMED[name][0](factors)
        pair.append(eval(name, names))
    return pair


def claims(A):
    return "".join(name[0] for name in ("symmetric", "hermitian", "positive_semidefinite") if getattr(A, name))


def residuals(A):
    """Bytes of the distinct arrays that products of A with vectors are computed from."""
    return sum(leaf.nbytes for leaf in {id(leaf): leaf for leaf in jax.tree.leaves(A.linearize())}.values())


def inside(A):
    """The same, and the claims, of an argument of jit: what of the residuals is two arrays in it is counted twice."""
    seen = []
    linear = jax.eval_shape(lambda A: seen.append(claims(A)) or A.linearize(), A)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(linear)), seen[-1]


ROUND_TRIPS = {
    "tree.map": lambda A: jax.tree.map(lambda leaf: leaf + 0, A),
    "device_put": jax.device_put,
    "pickle": lambda A: pickle.loads(pickle.dumps(A)),
}


@jax.jit
def through(A, w):
    """A as it comes out of jit and of scan, and what it multiplies there."""
    scanned = jax.lax.scan(lambda A, _: (A, A @ jnp.ones(A.shape[1], A.dtype)), A, length=2)[0]
    return {"jit": A, "scan": scanned}, (A.T @ w, A.H @ w)


def close(got, expected):
    scale = max(1, np.abs(expected).max())
    np.testing.assert_allclose(np.asarray(got) / scale, np.asarray(expected) / scale, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", [*EXPRESSIONS, *NAMED])
def test_what_reads_as_a_gram_matrix(name):
    """Products, claims before and after its arrays change, and one linearization of each function after round trips."""
    A, D = evaluated(name)
    expected = EXPRESSIONS[name] if name in EXPRESSIONS else NAMED[name][1]
    assert claims(A) == expected
    close(A.toarray(), D)
    size = residuals(A)
    assert inside(A) == (size, expected)
    moved = {trip: move(A) for trip, move in ROUND_TRIPS.items()} | through(A, _vector_of(A))[0]
    for trip, B in moved.items():
        assert (residuals(B), claims(B)) == (size, expected), trip
    changed = _changed(A)
    agrees_with_its_matrix(changed, expected)
    assert claims(changed.T) == expected


def _changed(A):
    """A with other numbers in all of its arrays, real ones for real ones."""
    leaves, treedef = jax.tree.flatten(A)
    moves = [problems.complex_normal(leaf.shape, np.float32, i) for i, leaf in enumerate(leaves)]
    return treedef.unflatten(
        leaf + jnp.asarray(move if jnp.iscomplexobj(leaf) else move.real, leaf.dtype)
        for leaf, move in zip(leaves, moves, strict=True)
    )


def _vector_of(A):
    w = problems.complex_normal(A.shape[0], np.float32)
    return w if np.issubdtype(A.dtype, np.complexfloating) else w.real


def agrees_with_its_matrix(A, expected):
    assert claims(A) == expected
    D = A.toarray()
    w = _vector_of(A)
    close(A.rmatvec(w), D.conj().T @ w)
    for got, product in zip(through(A, w)[1], (D.T @ w, D.conj().T @ w), strict=True):
        close(got, product)
    for letter, transpose in (("s", D.T), ("h", D.conj().T)):
        if letter in expected:
            close(D, transpose)
    if "p" in expected:
        assert np.linalg.eigvalsh(D.astype(complex)).min() > -1e-4 * np.abs(D).max()


def test_residuals_are_those_of_gauss_newton():
    G = linops.GaussNewton(problems.values, POINT)
    K = linops.JacobianGram(problems.values, POINT)
    J = linops.Jacobian(problems.values, POINT)
    assert residuals(G) == residuals(K) == residuals(J) == residuals(J.T @ J) == residuals(J @ J.T)
    loss = linops.GaussNewton(problems.values, POINT, problems.loss)
    S = linops.Hessian(problems.loss, Y)
    assert residuals(loss) == residuals(J.T @ (S @ J)) == residuals(J) + residuals(S)
    for A in (G, K, loss):
        assert isinstance(A.linearize(), Gram)
        assert A is loss or claims(A.linearize()) == "shp"
        assert claims(_changed(A)) == claims(A)
        agrees_with_its_matrix(_changed(A), claims(A))


def test_two_operators_of_one_function_at_one_point_are_one():
    """What makes operators one is that they are the same code over the same arrays."""
    x = jax.tree.map(jnp.asarray, POINT)
    first, second = linops.Jacobian(problems.values, x), linops.Jacobian(problems.values, x)
    assert claims(first.T @ second) == "shp"
    other = second.at(jax.tree.map(lambda leaf: leaf + 0, x))
    A = first.T @ other
    assert claims(A) == ""
    close(A.toarray(), problems.jacobian(problems.values, POINT).T @ problems.jacobian(problems.values, POINT))
    kept = linops.Jacobian(problems.values, x, linearize=False)
    assert claims(first.T @ kept) == ""  # other code


def test_a_transpose_that_is_not_there_is_not_asked_for():
    class Forward(linops.Operator):
        entries: jax.Array
        domain = codomain = property(lambda self: linops.Space.flat(3, np.float32))

        def _mv(self, v):
            return self.entries * v

        def _transposed(self):
            raise NotImplementedError("no transpose")

    A = Forward(jnp.arange(3.0))
    np.testing.assert_array_equal((A @ A) @ np.ones(3, np.float32), [0, 1, 4])


def test_precisions_and_spaces_that_differ():
    """Of J in float64 and a weight in float32, on trees and on vectors: the dtype is that of the weight."""
    with jax.enable_x64(True):
        x = problems.tree_point("dict", np.float64)
        J, d = linops.Jacobian(problems.values, x), problems.normal(7, np.float32)
        W = linops.Diagonal(d)
        A = J.T @ W @ J
        B = (J.T @ W) @ (W @ J) + linops.Diagonal(np.ones(11, np.float32))
        D = problems.jacobian(problems.values, x)
        for one, dense, says in ((A, D.T * d @ D, "sh"), (B, D.T * d**2 @ D + np.eye(11), "sh")):
            assert one.dtype == np.float32
            assert claims(one) == says
            assert residuals(one) < 1.5 * residuals(J)
            close(one.toarray(), dense)
            v = jax.tree.map(np.float32, x)
            close(one.codomain.ravel(one.mv(v)), dense @ one.domain.ravel(v))
