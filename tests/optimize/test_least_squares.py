"""SciPy's least squares on trees, and the errors of parameters, beside certified values."""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from counting import compilations
from scipy.stats import binomtest

import linops
from linops.optimize import least_squares

# Misra1a of NIST's Statistical Reference Datasets (public domain): y = b1 (1 - exp(-b2 x)), residual sum of squares,
# parameters and standard deviations as certified.
Y = np.array([10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78])
X = np.array([77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0])
B1, B2, RSS = (2.3894212918e02, 2.7070075241e00), (5.5015643181e-04, 7.2668688436e-06), 1.2455138894e-01
START = {"b1": 500.0, "b2": 0.0001}


def misra(b, x, y):
    return {"residuals": b["b1"] * (1 - jnp.exp(-b["b2"] * x)) - y}


WAYS = [
    {"x_scale": "jac"},
    {"x_scale": "jac", "tr_solver": "lsmr"},
    {"x_scale": {"b1": 100.0, "b2": 1e-4}, "method": "dogbox"},
    {"x_scale": "jac", "method": "lm"},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_certified_values(x64, way):
    fit = least_squares(misra, START, (X, Y), xtol=1e-12, ftol=1e-14, **way)
    assert fit.success, fit.message
    assert set(fit.fun) == {"residuals"}
    np.testing.assert_allclose([fit.x["b1"], fit.x["b2"]], [B1[0], B2[0]], rtol=1e-7)
    np.testing.assert_allclose([fit.standard_errors["b1"], fit.standard_errors["b2"]], [B1[1], B2[1]], rtol=1e-7)
    np.testing.assert_allclose(2 * fit.cost, RSS, rtol=1e-9)


def test_float32():
    fit = least_squares(misra, START, (X.astype(np.float32), Y.astype(np.float32)), x_scale="jac")
    assert fit.success, fit.message
    assert fit.x["b1"].dtype == np.float32
    np.testing.assert_allclose([fit.x["b1"], fit.x["b2"]], [B1[0], B2[0]], rtol=1e-3)
    np.testing.assert_allclose(fit.standard_errors["b2"], B2[1], rtol=1e-2)


def curve(p, t):
    return p["A"] * jnp.exp(-p["k"] * t) + p["c"]


T = np.linspace(0, 4, 40)
DATA = 2 * np.exp(-1.3 * T) + 0.5 + 0.05 * np.random.default_rng(1).normal(size=40)
GUESS = {"A": 1.0, "k": 1.0, "c": 0.0}


@pytest.mark.parametrize("absolute_sigma", [False, True])
@pytest.mark.parametrize("tr_solver", ["exact", "lsmr"])
def test_covariance(x64, absolute_sigma, tr_solver):
    fit = least_squares(
        lambda p: (curve(p, T) - DATA) / 0.05, GUESS, tr_solver=tr_solver, absolute_sigma=absolute_sigma
    )
    _, expected = scipy.optimize.curve_fit(
        lambda t, A, c, k: A * np.exp(-k * t) + c, T, DATA, [1, 0, 1], sigma=np.full(40, 0.05),
        absolute_sigma=absolute_sigma, method="trf",
    )  # fmt: skip
    np.testing.assert_allclose(fit.covariance.toarray(), expected, rtol=1e-4)
    assert fit.covariance.positive_semidefinite
    np.testing.assert_allclose(fit.standard_errors["c"], np.sqrt(expected[1, 1]), rtol=1e-4)
    J = linops.Jacobian(lambda p: curve(p, jnp.array([1.0, 2.0])), fit.x)
    dense = J.toarray()
    np.testing.assert_allclose((J @ fit.covariance @ J.T).toarray(), dense @ expected @ dense.T, rtol=1e-3)


def own(z):
    return np.stack([np.log1p(z), 1 / (1 + z), -1 / (1 + z) ** 2])


@pytest.mark.parametrize(
    ("loss", "f_scale"), [("cauchy", 0.7), ("arctan", 1.0), ("huber", 0.3), ("soft_l1", 0.3), (own, 1.0)]
)
def test_errors_of_robust_losses_cover(x64, loss, f_scale):
    """Of 80 fits of a line; by the cost in place of the sum of squares "arctan" covers .87 at two standard errors."""
    normal, t = np.random.default_rng(3).normal, np.linspace(-1, 1, 40)
    inside = []
    for _ in range(80):
        y = 1 + 2 * t + normal(size=40)
        fit = least_squares(lambda p, y: p[0] + p[1] * t - y, np.array([1.0, 2.0]), (y,), loss=loss, f_scale=f_scale)
        assert fit.success
        inside.append(abs(fit.x - [1, 2]) <= np.outer([1, 2], fit.standard_errors))
    for times, level in enumerate((0.6827, 0.9545)):
        for count in np.sum(inside, axis=0)[times]:
            assert binomtest(int(count), 80, level, alternative="less").pvalue > 1e-3


@pytest.mark.parametrize("method", ["trf", "dogbox", "lm"])
def test_residuals_of_any_scale(x64, method):
    """Nanoamperes: SciPy's absolute gtol is met at x0."""
    unit = least_squares(lambda p: curve(p, T) - DATA, GUESS, method=method)
    for scale in 1e-9, 1e-30:
        fit = least_squares(lambda p, scale: scale * (curve(p, T) - DATA), GUESS, (scale,), method=method)
        assert fit.success
        np.testing.assert_allclose(fit.x["k"], unit.x["k"], rtol=1e-5)
        np.testing.assert_allclose(fit.standard_errors["k"], unit.standard_errors["k"], rtol=1e-4)
    with pytest.raises(ValueError, match=r"whose squares double precision does not hold.*multiply them by a factor"):
        least_squares(lambda p: 1e-200 * (curve(p, T) - DATA), GUESS, method=method)
    exact = least_squares(lambda p: curve(p, T) - curve({"A": 2.0, "c": 0.5, "k": 0.7}, T), GUESS, method=method)
    assert exact.success


@pytest.mark.parametrize("method", ["trf", "dogbox", "lm"])
def test_parameters_of_any_scale(x64, method):
    """An optical line in Hz: the gradient is small for its units, and below SciPy's gtol at x0."""
    f = np.linspace(-10, 10, 60)
    data = 1 / (1 + ((f - 1.23) / 2) ** 2) + 0.01 * np.random.default_rng(0).normal(size=60)
    found = []
    for unit in 1.0, 1e12:
        start = {"f0": 0.0 + 500 * unit, "w": 3.0 * unit}
        fit = least_squares(
            lambda p, unit: 1 / (1 + ((f * unit - (p["f0"] - 500 * unit)) / p["w"]) ** 2) - data, start, (unit,),
            method=method,
        )  # fmt: skip
        assert fit.success
        found.append([fit.x["w"] / unit, fit.standard_errors["w"] / unit])
    np.testing.assert_allclose(*found, rtol=1e-4)
    np.testing.assert_allclose(found[0][0], 2, atol=3 * found[0][1])


def test_held_parameters_and_callbacks(x64):
    seen = []
    bounds = ({"A": 0.0, "k": 0.0, "c": 0.6}, np.inf)
    fit = least_squares(lambda p: curve(p, T) - DATA, {**GUESS, "c": 1.0}, bounds=bounds, callback=seen.append)
    assert fit.success
    assert int(fit.active_mask["c"]) == -1
    assert np.isnan(fit.standard_errors["c"])
    free = least_squares(lambda p: curve({**p, "c": 0.6}, T) - DATA, {"A": 1.0, "k": 1.0})
    np.testing.assert_allclose(fit.standard_errors["k"], free.standard_errors["k"], rtol=1e-3)
    assert set(seen[0]) == {"A", "k", "c"}
    assert float(pickle.loads(pickle.dumps(least_squares(misra, START, (X, Y)))).x["b1"]) > 0


def test_complex_residuals():
    roots = np.array([1j, 4.0], np.complex64)
    fit = least_squares(lambda z, roots: z * z - roots, np.array([1 + 1j, 1 - 0.5j], np.complex64), (roots,))
    assert fit.success
    np.testing.assert_allclose(fit.x, np.sqrt(roots), rtol=1e-4)
    assert fit.fun.dtype == np.complex64


def test_large_fits_multiply():
    """A smooth curve through 400 numbers: more than one factorization should take, and few products do."""
    target = np.sin(np.arange(1200) / 100).astype(np.float32)

    def residuals(x):
        return {"data": jnp.repeat(x, 3) - target, "bends": 0.1 * jnp.diff(x, 2)}

    fit = least_squares(residuals, np.zeros(400, np.float32), tr_solver="lsmr", x_scale="jac")
    assert fit.success, fit.message
    assert isinstance(fit.jac, linops.Jacobian)
    with compilations() as count:
        assert least_squares(residuals, np.ones(400, np.float32), tr_solver="lsmr", x_scale="jac").success
    assert count() == 0


def test_success_is_what_the_linear_model_says(x64):
    early = least_squares(misra, START, (X, Y), x_scale="jac", xtol=0.5, ftol=None)
    assert early.status == 3
    assert not early.success
    assert "linear model promises to reduce" in early.message
    assert not least_squares(misra, START, (X, Y), max_nfev=2).success
    # What is left of the gradient in the first parameter is more than all that the second, of a small unit, promises.
    for method in "trf", "dogbox":
        for tr_solver in "exact", "lsmr":
            units = least_squares(
                lambda x: jnp.array([x[0] + x[0] ** 2 / 10 - 1, 1e-12 * x[1] - 1, x[0] / 100]), np.array([3.0, 1.0]),
                method=method, tr_solver=tr_solver,
            )  # fmt: skip
            assert not units.success
            assert units.cost > 0.4
    # SciPy starts within bounds, by little, and its steps from there are short.
    for start in 0.0, 1e-9:
        near = least_squares(lambda x: x - 5, np.array([start]), bounds=(0, 10))
        assert near.success == (abs(near.x[0] - 5) < 1e-3)


def test_no_errors_where_there_are_none(x64):
    fit = least_squares(lambda p: p["a"] * p["b"] * jnp.exp(-T) - DATA + p["c"], {"a": 1.0, "b": 1.0, "c": 0.0})
    with pytest.raises(
        np.linalg.LinAlgError, match=r"has rank 2 of 3 .* do not determine x\['[ab]'\], x\['[ab]'\], which"
    ):
        _ = fit.standard_errors
    exact = least_squares(lambda p: p - jnp.arange(3.0), np.zeros(3))
    with pytest.raises(np.linalg.LinAlgError, match="expected more residuals, from which to estimate"):
        _ = exact.covariance


def test_what_is_refused():
    with pytest.raises(ValueError, match="least_squares got fun with 1 of 2 values not finite at x0, the first at "):
        least_squares(lambda x: jnp.log(x), np.array([1.0, -1.0], np.float32))
    with pytest.raises(ValueError, match=r"least_squares got x0\[1\] = nan, expected finite numbers"):
        least_squares(lambda x: x, np.array([1.0, np.nan], np.float32))
    many = least_squares(lambda x: x - 1, np.ones(5_001, np.float32), absolute_sigma=True)
    np.testing.assert_allclose(many.covariance @ many.x, many.x, rtol=1e-5)
    for loss in "cauchy", "huber":  # whose slopes are negative, and zero but for rounding
        far = least_squares(lambda x: x - jnp.array([7.0, 9, 9, 9.3]), np.ones(1, np.float32), loss=loss, max_nfev=1)
        with pytest.raises(np.linalg.LinAlgError, match="the cost is not convex at the solution, as far as"):
            _ = far.covariance
    held = least_squares(lambda x: x - 2, np.ones(5_001, np.float32), bounds=(0, 1.5), absolute_sigma=True)
    with pytest.raises(ValueError, match="are at bounds, expected none: leave these"):
        _ = held.covariance
    with pytest.raises(ValueError, match=r"got x0\['k'\] = 3, expected a number between its bounds 0 and 2"):
        least_squares(lambda p: p["k"] - jnp.ones(3), {"k": 3.0}, bounds=(0, 2))
    with pytest.raises(ValueError, match=r"expected \(lower, upper\), each a number, None or a tree"):
        least_squares(lambda x: x, np.zeros(2, np.float32), bounds=3)
