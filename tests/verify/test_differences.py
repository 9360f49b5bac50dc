"""Derivatives against differences: what is hard to compute passes, what is wrong by few digits is found."""

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from faults import BESIDE, DIGITS, M, X, off_by
from scipy.sparse.linalg import LinearOperator

import linops
from linops import check
from linops.program.function import Function
from linops.verify.differences import slopes
from linops.verify.values import Values


def test_cancellation_is_no_fault():
    J = linops.Jacobian(problems.square, X)
    check(J + 1e6 * linops.Identity(11) - 1e6 * linops.Identity(11)).raise_if_failed()


BAD = problems.normal((6, 6), np.float64, 3)


BAD[:, 0] = BAD[:, 1] + 1e-5 * BAD[:, 2]  # ill-conditioned


P = np.outer(np.ones(6), np.ones(6)) / 6  # a projector
FAR = np.array([2.0, -5.0, 3.0, 1.0])


RIGHT = {
    "softmax": lambda d, seed: linops.Jacobian(jax.nn.softmax, 3 * problems.normal(30, d, seed)),
    "0 but for rounding": lambda d, seed: linops.Jacobian(
        lambda x: jnp.sum(x - jnp.mean(x))[None], problems.normal(7, d, seed)
    ),
    "1 but for rounding": lambda d, seed: linops.Jacobian(
        lambda x: jnp.sum(x / jnp.sum(x))[None], problems.normal(7, d, seed)
    ),
    "projectors with product 0": lambda d, seed: linops.Matrix(P.astype(d)) @ linops.Matrix((np.eye(6) - P).astype(d)),
    "an ill-conditioned matrix and its inverse": lambda d, seed: (
        linops.Matrix(BAD.astype(d)) @ linops.Matrix(np.linalg.inv(BAD).astype(d))
    ),
    "a point of size 1e-9": lambda d, seed: linops.Jacobian(lambda x: jnp.sin(x / 1e-9), (1e-9 * FAR).astype(d)),
    "a Hessian at a point of size 1e-8": lambda d, seed: linops.Hessian(
        lambda x: jnp.sum(jnp.sin(x / 1e-8)), (1e-8 * FAR).astype(d)
    ),
    "leaves of sizes 1e-6 and 1e6": lambda d, seed: linops.Jacobian(
        lambda x: jnp.sin(x["a"] * 1e6) * x["b"], {"a": (1e-6 * FAR).astype(d), "b": (1e6 * FAR).astype(d)}
    ),
    "a quick wave": lambda d, seed: linops.Jacobian(lambda x: jnp.sin(1e4 * x), FAR.astype(d)),
    "an ill-conditioned solve": lambda d, seed: linops.Jacobian(
        lambda x: jnp.linalg.solve(BAD.astype(d) + 1e-3 * jnp.diag(x), x), problems.normal(6, d, seed)
    ),
    "a point of zeros": lambda d, seed: linops.Hessian(lambda x: jnp.sum(jnp.cos(x) ** 2), np.zeros(4, d)),
}


@pytest.mark.filterwarnings("ignore:BAD, which f closes over:linops.PrecisionWarning")
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", RIGHT)
def test_what_is_hard_to_compute_passes(name, dtype):
    with jax.enable_x64(dtype == np.float64):
        for seed in range(4):
            check(RIGHT[name](dtype, seed), key=seed).raise_if_failed()


@pytest.mark.parametrize("beside", BESIDE)
def test_a_wrong_sign_is_found_at_any_scale(beside):
    """Scales and signs are arrays that functions close over, so that all have one program."""
    for scale in (1e6, 1e-6):
        assert check(BESIDE[beside](off_by(jnp.float32(1)), jnp.float32(scale)))
        failed = check(BESIDE[beside](off_by(jnp.float32(-1)), jnp.float32(scale))).failed
        assert {finding.name for finding in failed} == {"derivative"}, scale


SMOOTH = {
    "sin": jnp.sin,
    "exp": jnp.exp,
    "tanh": jnp.tanh,
    "a polynomial": lambda x: x**3 - 2 * x,
    "softplus": jax.nn.softplus,
}


INSIDE = {
    "a Jacobian": lambda f: linops.Jacobian(f, DIGITS),
    "a Hessian": lambda f: linops.Hessian(lambda x: jnp.sum(f(x) ** 2), DIGITS),
    "a network": lambda f: linops.Jacobian(lambda W: M[:3] @ f(W @ M[:, :2]), M),
}


@pytest.mark.covering("inside")
@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("name", SMOOTH)
def test_a_derivative_off_by_few_digits_is_found(name, inside):
    assert not check(INSIDE[inside](off_by(1 + 3e-5, SMOOTH[name])))


KINKED = {
    "relu": jax.nn.relu,
    "abs": jnp.abs,
    "leaky relu": jax.nn.leaky_relu,
    "maximum": lambda x: jnp.maximum(x, 2 * x),
    "where": lambda x: jnp.where(x > 0, 3 * x, x**2),
}


@pytest.mark.covering("dtype")
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", KINKED)
def test_at_a_kink_any_slope_between_passes(name, dtype):
    f = KINKED[name]
    with jax.enable_x64(dtype == np.float64):
        report = check(linops.Jacobian(lambda x: f(x) + x / 3, np.array([0.7, 0.0, -0.4], dtype)))
        assert report
        noted = "f has a kink near x, where a product between its slopes to the two sides passes: at entry [1]"
        assert noted in str(report) or name == "maximum"  # of which JAX takes the mean, which is the central difference
        assert check(linops.Hessian(lambda x: jnp.sum(f(x)), np.zeros(3, dtype)))


def test_no_row_is_held_to_more_than_the_median_of_its_leaf():
    """Where by chance it moves less between two steps than its error is."""
    J = linops.Jacobian(lambda x: {"a": (jnp.sin(x) * x)[:5], "b": jnp.tanh(M @ x)[:3]}, M[0])
    vectors = [problems.normal(6, np.float64, seed) for seed in range(3)]
    values = Values(Function.__call__, J.function, J.domain)
    found = list(slopes(values, np.float64(M[0]), vectors, np.finfo(np.float32).eps, J.codomain))
    ratios = np.empty(8)
    for seen in found:
        ratios[seen.rows] = seen.bounds / abs(seen.slopes).max(axis=0)
    for leaf in (ratios[:5], ratios[5:]):
        assert leaf.min() >= 0.999 * np.median(leaf)
        assert leaf.max() < 0.1


def test_function_that_ends_near_the_point():
    x = np.array([1.0, 0.0], np.float32)
    A = linops.Jacobian(lambda x: jnp.where(jnp.all(x == jnp.array([1, 0])), 1, jnp.nan) * x, x)
    report = check(A)
    assert report
    assert "f is not finite near x, so it has no differences" in str(report)


def test_missing_rules_are_no_fault():
    def loop(x):
        return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.sin(s[1])), (0, x))[1]

    report = check(linops.Jacobian(loop, X["b"]))
    assert report
    assert "a product with a derivative needs reverse-mode differentiation" in str(report)
    report = check(LinearOperator((6, 6), matvec=lambda v: M @ v, dtype=np.float32))
    assert report
    for reason in ("not implemented", "a SciPy operator takes NumPy arrays", "not made of a function", "A is real"):
        assert reason in str(report)
