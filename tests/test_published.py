"""What `published` has is what was published: checked with NumPy in place of JAX, so that nothing compiles."""

import jax
import numpy as np
import pytest
import scipy.optimize
from published import mgh, nist

# f at the standard start, by the Fortran of Birgin, Gardenghi, Martinez and Santos, "Third-order derivatives of the
# More, Garbow, and Hillstrom test set problems" (2018).
AT_START = {
    "rosenbrock, n = 2": 24.199999999999996,
    "freudenstein_and_roth, n = 2": 400.5,
    "powell_badly_scaled, n = 2": 1.1352617173483783,
    "brown_badly_scaled, n = 2": 999998000003.0,
    "beale, n = 2": 14.203125,
    "jennrich_and_sampson, n = 2": 4171.306161960498,
    "helical_valley, n = 3": 2500.0,
    "bard, n = 3": 41.68169586167801,
    "gaussian, n = 3": 3.888106991166885e-06,
    "meyer, n = 3": 1693607809.4361455,
    "gulf_research_and_development, n = 3": 12.11070582556949,
    "box_three_dimensional, n = 3": 1031.1538106093983,
    "powell_singular, n = 4": 215.00000000000003,
    "wood, n = 4": 19192.0,
    "kowalik_and_osborne, n = 4": 0.00531317227210854,
    "brown_and_dennis, n = 4": 7926693.336997432,
    "osborne_1, n = 5": 0.8790262935446405,
    "biggs_exp6, n = 6": 0.7790700756559702,
    "osborne_2, n = 11": 2.093419514212065,
    "watson, n = 6": 30.0,
    "watson, n = 9": 30.0,
    "watson, n = 12": 30.0,
    "extended_rosenbrock, n = 10": 121.0,
    "extended_powell_singular, n = 12": 645.0,
    "penalty_1, n = 10": 148032.56535,
    "penalty_2, n = 4": 2.3400088054630244,
    "penalty_2, n = 10": 162.65277656596712,
    "penalty_2, n = 50": 100969.43940405537,
    "variably_dimensioned, n = 10": 2198551.1625,
    "trigonometric, n = 10": 0.007075759466222607,
    "brown_almost_linear, n = 10": 273.2480478286743,
    "discrete_boundary_value, n = 10": 0.00078851910126482,
    "discrete_integral_equation, n = 10": 0.06341684157945264,
    "broyden_tridiagonal, n = 10": 21.0,
    "broyden_banded, n = 10": 360.0,
    "linear_full_rank, n = 10": 50.0,
    "linear_rank_1, n = 10": 8658670.0,
    "linear_rank_1_with_zero_columns_and_rows, n = 10": 4067996.0,
    "chebyquad, n = 7": 0.033770638463718826,
    "chebyquad, n = 8": 0.03861769828593027,
    "chebyquad, n = 9": 0.028882980288225963,
    "chebyquad, n = 10": 0.03376326546288008,
    "chebyquad, n = 50": 0.013948361599288677,
}

# The same as the authors' Algorithm 566 has it, to three digits.
ALGORITHM_566 = {
    ("variably_dimensioned", 40): 9.39e10,
    ("penalty_1", 60): 5.45e9,
    ("trigonometric", 40): 2.01e-3,
    ("extended_rosenbrock", 40): 484,
    ("extended_powell_singular", 60): 3.23e3,
}


@pytest.fixture
def numpy(monkeypatch):
    for module in (mgh, nist):
        monkeypatch.setattr(module, "jnp", np)


def by_complex_steps(f, x):
    """The Jacobian of an analytic f: f(x + ih) has its column h times over as imaginary part, to all digits."""
    steps = 1e-30 * np.abs(x)
    return np.stack([f(x + 1j * step).imag / step.sum() for step in np.diag(steps)], axis=1)


@pytest.mark.parametrize("problem", nist.PROBLEMS.values(), ids=nist.PROBLEMS)
def test_nist_certifies_what_these_models_make_of_its_data(problem, numpy):
    if problem.name != "Lanczos1":  # whose residuals of 1e-13 are below the rounding of its certified parameters
        sum_of_squares = np.sum(problem.residuals(problem.parameters) ** 2)
        np.testing.assert_allclose(sum_of_squares, problem.sum_of_squares, rtol=2e-10)
    J = by_complex_steps(problem.residuals, problem.parameters)
    scales = np.linalg.norm(J, axis=0)
    inverse = np.linalg.inv(np.linalg.qr(J / scales, mode="r"))
    variance = problem.sum_of_squares / problem.degrees_of_freedom
    deviations = np.sqrt(variance) * np.linalg.norm(inverse, axis=1) / scales
    np.testing.assert_allclose(deviations, problem.standard_deviations, rtol=2e-9)


def test_all_of_nist_and_all_of_more_garbow_and_hillstrom_are_there():
    assert len(nist.PROBLEMS) == 27
    assert {problem.number for problem in mgh.PROBLEMS.values()} == set(range(1, 36))


def test_values_at_the_start_are_the_published_ones(numpy):
    values = {name: problem.f(problem.start) for name, problem in mgh.PROBLEMS.items()}
    assert values == pytest.approx(AT_START, rel=1e-12)
    for (name, n), value in ALGORITHM_566.items():
        problem = mgh.SIZED[name](n)
        assert problem.f(problem.start) == pytest.approx(value, rel=5e-3)


@pytest.mark.parametrize("problem", mgh.PROBLEMS.values(), ids=mgh.PROBLEMS)
def test_minpack_gets_from_the_start_to_a_published_minimum(problem, numpy):
    tight = {"xtol": 1e-14, "ftol": 1e-14, "gtol": 1e-14}
    fit = scipy.optimize.least_squares(problem.residuals, problem.start, "3-point", method="lm", x_scale="jac", **tight)
    assert problem.reached(2 * fit.cost)
    assert not problem.reached(1.001 * problem.minima[-1] + 1e-7)


@pytest.mark.parametrize("name", mgh.SIZED)
def test_problems_of_any_size_are_finite_in_float32(name, numpy):
    problem = mgh.SIZED[name](10_000)
    assert np.isfinite(problem.f(problem.start.astype(np.float32)))


def test_residuals_are_traced_and_have_the_precision_of_the_parameters(x64):
    problems = [(problem.residuals, problem.start) for problem in mgh.PROBLEMS.values()]
    for residuals, start in problems + [(problem.residuals, problem.starts[0]) for problem in nist.PROBLEMS.values()]:
        for dtype in (np.float32, np.float64):
            assert jax.eval_shape(residuals, jax.ShapeDtypeStruct(start.shape, dtype)).dtype == dtype
