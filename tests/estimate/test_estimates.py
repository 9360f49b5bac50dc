"""Estimates: exact where products suffice, covering as they say, the same under jit, with derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.stats import binomtest

import linops
from linops import estimate
from linops.estimate.probes import rademacher

N = 60
KEY = jax.random.key(0)
LEVELS = 0.6827, 0.9545


class Claiming(linops.Operator):
    """A matrix that claims to be positive semidefinite, on trees of two leaves."""

    array: jax.Array

    symmetric = hermitian = positive_semidefinite = True
    domain = codomain = property(
        lambda self: linops.Space.of(
            {"a": jnp.zeros((5, 4), self.array.dtype), "b": jnp.zeros(N - 20, self.array.dtype)}
        )
    )

    def _mv(self, v):
        vector = jnp.concatenate([v["a"].reshape(-1), v["b"]])
        product = self.array @ vector
        return {"a": product[:20].reshape(5, 4), "b": product[20:]}


def matrices():
    rng = np.random.default_rng(0)
    G = rng.normal(size=(N, N))
    Q = np.linalg.qr(G)[0]
    C = G + 1j * rng.normal(size=(N, N))
    return {"definite": Q / np.arange(1, N + 1) ** 1.5 @ Q.T, "general": G, "complex": C}


MATRICES = matrices()
DIRECTION = np.diag(np.linspace(1, 2, N)) + np.ones((N, N)) / N  # of derivatives
TRACES = ("definite", "hutchinson"), ("definite", "xnystrace"), ("general", "hutch++"), ("complex", "xtrace")
DIAGONALS = ("definite", "hutchinson"), ("complex", "xdiag")


def operator(name, matrix=None):
    """The operator of a matrix, or of another one, or in a dtype."""
    M = MATRICES[name] if matrix is None else matrix
    M = jnp.asarray(MATRICES[name], M) if isinstance(M, type) else jnp.asarray(M)
    return Claiming(M) if name == "definite" else linops.Matrix(M)


def norm_of(A, key, method, **options):
    return estimate.frobenius_norm(A, key, **options)


CASES = [
    *((estimate.trace, np.trace, *case) for case in TRACES),
    *((estimate.diagonal, np.diag, *case) for case in DIAGONALS),
    (norm_of, np.linalg.norm, "general", None),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("function", "dense", "name", "method"), CASES)
def test_estimates_and_derivatives(function, dense, name, method):
    """Of 200 keys: errors within one and two standard errors, and no bias, of the value and of its derivative."""
    M, keys = MATRICES[name], jax.random.split(KEY, 200)
    true = dense(M)
    slope = {np.linalg.norm: lambda M: np.vdot(M, DIRECTION).real / np.linalg.norm(M)}.get(
        dense, lambda M: np.trace(DIRECTION)
    )

    def estimated(t, key):
        A = operator(name, M + t * DIRECTION)
        found = function(A, key, method=method, num_matvecs=24)
        return jnp.sum(jnp.real(found.value)), found

    derivatives, found = jax.jit(jax.vmap(jax.grad(estimated, has_aux=True), (None, 0)))(0.0, keys)
    assert set(np.asarray(found.matvecs)) == {24}
    error = np.abs(found.value - true)
    for times, level in enumerate(LEVELS, start=1):
        inside = error <= times * found.standard_error
        for entry in inside.reshape(200, -1).T[::20]:
            assert binomtest(int(entry.sum()), 200, level, alternative="less").pvalue > 1e-3
    assert _is_mean(found.value, true)
    assert _is_mean(derivatives, slope(M))


def _is_mean(samples, true):
    """Whether their mean is what is expected, by its own standard deviation."""
    return np.all(np.abs(np.mean(samples, axis=0) - true) < 5 * np.std(samples, axis=0) / np.sqrt(len(samples)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("function", "dense", "name"), [case[:3] for case in CASES[::2]])
def test_exact_where_products_suffice(function, dense, name):
    """As values and, of real ones, as derivatives; after a tolerance that was not met as well."""
    M = MATRICES[name]
    for options, matvecs in ({"num_matvecs": N}, N), ({"rtol": 1e-9}, N + 8), ({}, N):
        found = function(operator(name), KEY, method=None if function is norm_of else "hutchinson", **options)
        np.testing.assert_allclose(found.value, dense(M), rtol=1e-12)
        assert int(found.matvecs) == matvecs
        assert not np.any(found.standard_error)

    def value(t):
        options = {} if function is norm_of else {"method": "auto"}
        return jnp.sum(jnp.real(function(operator(name, M + t * DIRECTION), KEY, **{"method": None} | options).value))

    h = 1e-5
    expected = [np.sum(dense(M + t * DIRECTION).real) for t in (h, -h)]
    np.testing.assert_allclose(jax.grad(value)(0.0), (expected[0] - expected[1]) / (2 * h), rtol=1e-6)


def test_the_trace_of_a_hessian_as_a_loss():
    """By x and args, in trees: the derivative is that of the same probes' forms, and of the dense trace where exact."""

    def f(p, c):
        return c * jnp.sum(jnp.sin(p["a"]) ** 3) + jnp.sum(jnp.cos(p["b"] @ p["b"].T) * c**2)

    p = {"a": jnp.linspace(0, 1, 4), "b": jnp.full((3, 2), 0.3)}

    def loss(p, c):
        return estimate.trace(linops.Hessian(f, p, args=(c,)), KEY).value

    def dense(p, c):
        flat, unravel = ravel_pytree(p)
        return jnp.trace(jax.hessian(lambda v: f(unravel(v), c))(flat))

    for found, expected in zip(
        jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1)))(p, 1.3)),
        jax.tree.leaves(jax.jit(jax.value_and_grad(dense, (0, 1)))(p, 1.3)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_to_a_tolerance():
    """The same within a jit and outside; as many products as double; of a budget no more."""
    A = operator("definite", np.float32)
    found = estimate.trace(A, KEY, rtol=0.3)
    assert float(found.standard_error) <= 0.3 * float(found.value)
    assert int(found.matvecs) in (8, 16, 32)
    within = jax.jit(lambda A, key, rtol: estimate.trace(A, key, rtol=rtol))(A, KEY, 0.3)
    np.testing.assert_allclose(jax.tree.leaves(within), jax.tree.leaves(found), rtol=1e-5)
    assert int(estimate.trace(A, KEY, rtol=1e-6, num_matvecs=21).matvecs) == 21
    found = estimate.trace(A, KEY, rtol=0.1, method="xtrace")
    assert float(found.standard_error) <= 0.1 * float(found.value)
    assert int(found.matvecs) in (16, 32)
    assert int(estimate.trace(A, KEY, rtol=1e-9, method="xtrace", num_matvecs=30).matvecs) == 30
    assert int(estimate.trace(A, KEY, rtol=1e-9, method="xtrace").matvecs) == 32 + N
    found = estimate.diagonal(A, KEY, rtol=0.2, method="xdiag")
    assert np.linalg.norm(found.standard_error) <= 0.2 * np.linalg.norm(found.value)


def test_the_numbers_of_a_probe_do_not_depend_on_blocks(monkeypatch):
    """Widths of blocks follow from memory; what is estimated does not."""
    found = []
    for width in 3, 64:
        monkeypatch.setattr(linops.compiled.Compiled, "block_width", width)
        A = operator("general", np.float32)
        found.append([estimate.trace(A, KEY, method=m, num_matvecs=20).value for m in ("hutchinson", "xtrace")])
        found[-1].append(estimate.frobenius_norm(A, KEY, num_matvecs=59).value)
    np.testing.assert_allclose(found, [found[0]] * 2, rtol=1e-3)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace", "xnystrace"])
def test_of_low_rank_and_extreme_scale(method):
    """Nothing is NaN where products depend on each other; a rank below the number of probes is found exactly."""
    e = np.zeros(N)
    e[3] = 1
    for M in 0 * np.eye(N), np.ones((N, N)), 1e30 * np.eye(N), 1e-30 * np.eye(N), np.outer(e, e):
        found = estimate.trace(operator_of(M), KEY, method=method, num_matvecs=30)
        error = abs(float(found.value) - np.trace(M))
        assert error <= 4 * float(found.standard_error)
        if method != "hutchinson" and np.linalg.matrix_rank(M) < 5:
            assert error <= 1e-4 * np.trace(M)
    norm = estimate.frobenius_norm(operator_of(1e-30 * np.eye(N)), KEY, num_matvecs=30)
    np.testing.assert_allclose(norm.value, 1e-30 * N**0.5, rtol=1e-5)


def operator_of(M):
    return Claiming(jnp.asarray(M, jnp.float32))


def test_a_false_claim_is_no_number():
    """It is refused; within a jit, where nothing can be raised, it is NaN."""

    def found(A):
        return estimate.trace(A, KEY, method="xnystrace", num_matvecs=20).value

    assert np.isnan(jax.jit(found)(operator_of(-np.eye(N))))
    with pytest.raises(FloatingPointError, match="has NaN or Inf: expected finite products, and an operator"):
        found(operator_of(-np.eye(N)))


def test_of_nothing_the_value_is_known():
    empty = linops.Diagonal(np.zeros(0, np.float32))
    assert estimate.trace(empty, KEY).value == estimate.frobenius_norm(empty, KEY).value == 0
    assert repr(estimate.diagonal(empty, KEY)).startswith("<estimates, (0,), standard errors 0 at most")


def test_of_one_probe_no_error_is_known():
    A = operator("general", np.float32)
    found = estimate.trace(A, KEY, num_matvecs=1)
    w = np.asarray(rademacher(A.domain, jax.random.fold_in(KEY, 0)))
    assert (found.value, found.standard_error, found.matvecs) == (pytest.approx(w @ (A @ w), rel=1e-5), np.inf, 1)


def test_the_method_that_is_chosen():
    """Of what is claimed, and the budget."""
    for name, options, method in (
        ("definite", {"num_matvecs": 20}, "xnystrace"),
        ("general", {"num_matvecs": 20}, "xtrace"),
        ("general", {"num_matvecs": 15}, "hutchinson"),
        ("definite", {"rtol": 0.1}, "hutchinson"),
    ):
        A = operator(name, np.float32)
        found, expected = (estimate.trace(A, KEY, method=m, **options) for m in ("auto", method))
        assert found.value == expected.value


def test_signs_are_read_where_they_are_known():
    """And not kept: what changes an array changes what is known."""
    J = linops.Matrix(np.random.default_rng(0).normal(size=(40, 60)).astype(np.float32))
    weight = linops.Diagonal(np.arange(40, dtype=np.float32))
    damped = J.T @ weight @ J + 0.5 * linops.Identity(60)
    nystrom, xtrace = (functools.partial(estimate.trace, method=m, num_matvecs=20) for m in ("xnystrace", "xtrace"))
    auto = functools.partial(estimate.trace, num_matvecs=20)
    shown = repr(estimate.diagonal(damped, KEY, num_matvecs=20))
    assert shown.startswith("<estimates, (60,), standard errors ")
    assert shown.endswith(" at most, of 20 products>")
    assert repr(jax.eval_shape(auto, damped, KEY)).startswith("Estimate(value=ShapeDtypeStruct(")
    assert auto(damped, KEY).value == auto(linops.monitor(damped), KEY).value == nystrom(damped, KEY).value
    assert not damped.positive_semidefinite  # what is claimed is so for all arrays
    for other in (jax.tree.map(jnp.negative, damped), J.T @ J - 0.5 * linops.Identity(60), 1j * (J.T @ J)):
        with pytest.raises(ValueError, match="a sum of such with factors that are not negative, known and not traced"):
            nystrom(other, KEY)
    np.testing.assert_allclose(jax.jit(auto)(damped, KEY).value, xtrace(damped, KEY).value, rtol=1e-4)


def test_error_bars_know_what_products_are_off_by():
    """Where all samples are equal, and forms cancel; and in half precision."""
    d = np.random.default_rng(0).normal(size=2000)
    A = linops.Diagonal(np.float32(1e6 * (d - d.mean())))
    found = estimate.trace(A, KEY, num_matvecs=8)
    assert abs(found.value - np.sum(np.asarray(A.entries, float))) <= 2 * found.standard_error
    half = jnp.asarray(np.random.default_rng(0).uniform(1, 3, 1000), jnp.bfloat16)
    entries = np.asarray(half, float)
    for method, true in (estimate.trace, entries.sum()), (estimate.frobenius_norm, np.linalg.norm(entries)):
        found = method(linops.Diagonal(half), KEY, num_matvecs=30)
        assert abs(float(found.value) - true) <= 2 * found.standard_error
    held = 2 * linops.Identity(20)  # and not an argument
    assert jax.jit(lambda key: estimate.trace(held, key).value)(KEY) == 40


def test_what_is_refused():
    A, J = operator("general", np.float32), linops.Matrix(np.ones((3, 2), np.float32))
    for call, error, words in (
        (lambda: estimate.trace(np.eye(3), KEY), TypeError, "expected a linops operator"),
        (lambda: estimate.trace(J, KEY), ValueError, "expected a square operator"),
        (lambda: estimate.diagonal(J, KEY), ValueError, "expected a square operator"),
        (lambda: estimate.trace(A, 0), TypeError, "expected one of JAX, such as jax.random.key"),
        (
            lambda: estimate.trace(A, KEY, method="best"),
            ValueError,
            "trace got method='best', expected 'auto' or one of",
        ),
        (
            lambda: estimate.diagonal(A, KEY, method="a"),
            ValueError,
            "diagonal got method='a', expected 'auto' or one of",
        ),
        (lambda: estimate.trace(A, KEY, method="xnystrace"), ValueError, "does not claim to be positive semidefinite"),
        (
            lambda: estimate.trace(A, KEY, num_matvecs=0),
            ValueError,
            "trace got num_matvecs=0, expected a whole number",
        ),
        (
            lambda: estimate.trace(A, KEY, method="xtrace", num_matvecs=3),
            ValueError,
            "expected at least 4 products, which its probes",
        ),
        (lambda: estimate.trace(A, KEY, rtol=0.1, num_matvecs=7), ValueError, "expected at least 8 products, which"),
        (
            lambda: estimate.trace(A, KEY, rtol=-1),
            ValueError,
            "expected the share of the value that its standard error",
        ),
        (
            lambda: jax.jit(lambda A: estimate.trace(A, KEY, rtol=0.1, method="xtrace"))(A),
            TypeError,
            "inside of a jit, vmap or grad, where the number of probes",
        ),
    ):
        with pytest.raises(error, match=words):
            call()


def test_keys_of_both_kinds():
    A = operator("general", np.float32)
    found = [estimate.trace(A, key, num_matvecs=20).value for key in (jax.random.PRNGKey(3), jax.random.key(3))]
    assert found[0] == found[1]
