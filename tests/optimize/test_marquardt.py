"""`levenberg_marquardt` against certified fits and published minima, and what it says where it ends otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import compilations
from published import mgh, nist

from linops.optimize import levenberg_marquardt

T = np.linspace(0, 3, 12, dtype=np.float32)


def decay(p, y):
    return p["height"] * jnp.exp(-p["rate"] * T) - y


DATA = np.float32(2) * np.exp(-T) + np.float32(0.01) * np.cos(7 * T)
START = {"height": np.float32(1), "rate": np.float32(0.3)}


def test_certified_parameters_are_found(x64):
    problem = nist.PROBLEMS["Thurber"]
    fit = levenberg_marquardt(problem.residuals, problem.starts[0])
    assert fit.success
    np.testing.assert_allclose(fit.x, problem.parameters, rtol=1e-8)
    assert 2 * fit.cost == pytest.approx(problem.sum_of_squares, rel=1e-8)


# Of large residuals, where the last steps are hidden from the cost by rounding; of a Jacobian that is nearly singular.
@pytest.mark.parametrize("name", ["brown_and_dennis, n = 4", "chebyquad, n = 10"])
def test_published_minima_are_reached(name, x64):
    problem = mgh.PROBLEMS[name]
    fit = levenberg_marquardt(problem.residuals, problem.start)
    assert fit.success
    assert problem.reached(2 * fit.cost)
    np.testing.assert_allclose(fit.fun, problem.residuals(fit.x), atol=1e-12)
    jacobian = jax.jacobian(problem.residuals)(fit.x)
    np.testing.assert_allclose(fit.grad, fit.fun @ jacobian, atol=1e-6)
    assert fit.cost == pytest.approx(np.sum(np.asarray(fit.fun) ** 2) / 2)
    assert fit.nit + 1 == fit.njev <= fit.nfev


def test_x_is_like_x0_and_other_data_compile_nothing():
    fit = levenberg_marquardt(decay, START, (DATA,))
    assert fit.success
    assert fit.status in (0, 2, 6)
    assert fit.x.keys() == START.keys()
    cosines = fit.optimality
    jacobian = np.stack([np.exp(-fit.x["rate"] * T), -fit.x["height"] * T * np.exp(-fit.x["rate"] * T)])
    found = abs(jacobian @ fit.fun) / np.linalg.norm(jacobian, axis=1) / np.linalg.norm(fit.fun)
    assert max(found) == pytest.approx(cosines, abs=1e-4)
    assert cosines < 4e-4
    with compilations() as count:
        other = levenberg_marquardt(decay, {"height": np.float32(3), "rate": np.float32(2)}, (DATA,), gtol=1e-3)
    assert count() == 0
    assert other.status == 0
    np.testing.assert_allclose(other.x["rate"], fit.x["rate"], rtol=1e-2)


@pytest.mark.parametrize("scale", [1e-20, 1e-12, 1e19])
def test_residuals_of_any_scale(scale):
    def scaled(p, data):
        return np.float32(scale) * decay(p, data)

    expected, fit = (levenberg_marquardt(f, START, (DATA,)) for f in (decay, scaled))
    assert fit.success
    for name in START:
        np.testing.assert_allclose(fit.x[name], expected.x[name], rtol=1e-4)
        np.testing.assert_allclose(fit.standard_errors[name], expected.standard_errors[name], rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-200, 1e160])
def test_squares_beyond_the_range_have_errors(scale, x64):
    expected, fit = (levenberg_marquardt(lambda p, s=s: s * (p * T - 2), 1.0) for s in (1.0, scale))
    assert fit.success
    np.testing.assert_allclose(fit.standard_errors, expected.standard_errors)


def test_a_first_region_in_which_nothing_is_seen_widens():
    fit = levenberg_marquardt(lambda p: p - jnp.array([2460000.0, 2460000.25, 2460000.0]), np.float32(1))
    assert fit.success
    assert fit.x == pytest.approx(2460000, abs=0.5)


def test_why_it_stopped_is_said():
    short = levenberg_marquardt(decay, START, (DATA,), maxiter=2)
    assert (short.status, short.nit, short.success) == (1, 2, False)
    assert "maxiter, was reached" in short.message
    best = levenberg_marquardt(decay, START, (DATA,), gtol=0.0, xtol=0.0)
    assert best.status == 2
    assert best.success
    assert "Limited by precision" in best.message
    exact = levenberg_marquardt(decay, START, (np.float32(2) * np.exp(-T),), gtol=0.0)
    assert exact.success
    assert exact.cost < 1e-10


def test_of_fewer_residuals_than_parameters_the_nearest_zero_is_found(x64):
    fit = levenberg_marquardt(lambda x: jnp.sum(x, keepdims=True) - 3, np.array([1.0, 0.0, 0.0]))
    assert fit.success
    assert fit.cost < 1e-28
    np.testing.assert_allclose(fit.x, [1 + 2 / 3, 2 / 3, 2 / 3])


def test_in_vmap_and_jit_over_data():
    heights = jnp.array([1.0, 3.0, jnp.nan])
    fits = jax.jit(jax.vmap(lambda y: levenberg_marquardt(decay, START, (y,))))(heights[:, None] * np.exp(-T))
    np.testing.assert_allclose(fits.x["height"][:2], heights[:2], rtol=1e-4)
    assert fits.status[2] == 3
    assert fits.success.tolist() == [True, True, False]


def test_a_callback_stops_it_and_a_file_goes_on(tmp_path):
    seen = []
    whole = levenberg_marquardt(decay, START, (DATA,))
    part = levenberg_marquardt(
        decay, START, (DATA,), callback=lambda result: seen.append(result) or len(seen) == 2, save=tmp_path / "run"
    )
    assert part.status == 5
    assert part.nit == 2
    assert not part.success
    assert seen[1].cost == part.cost
    rest = levenberg_marquardt(decay, START, (DATA,), save=tmp_path / "run")
    assert rest.nit == whole.nit
    assert rest.success == whole.success
    np.testing.assert_allclose(rest.x["rate"], whole.x["rate"], rtol=1e-5)


@pytest.mark.parametrize(
    ("fun", "x0", "options", "error", "words"),
    [
        (jnp.log, [-1.0], {}, ValueError, "not finite at x0, .* begin at another point, or look at args and data"),
        (lambda x: x[:0], [1.0], {}, ValueError, r"got fun with no residuals, of shapes \[\(0,\)\], expected one at"),
        (lambda x: jnp.ones(3), [], {}, ValueError, r"marquardt got x0=array\(\[\].*expected one number at least"),
        (lambda x: jnp.bfloat16(x), [1.0], {}, TypeError, "got residuals in bfloat16, .* convert x0, or the data of f"),
        (lambda x: 1j * x, [1.0], {}, TypeError, "expected real ones: stack real and imaginary parts"),
        (jnp.sin, [1.0], {"xtol": -1.0}, ValueError, "expected a number that is not negative"),
        (jnp.sin, [1.0], {"maxiter": 0}, ValueError, "maxiter=0, expected at least 1"),
    ],
)
def test_what_is_refused(fun, x0, options, error, words):
    with pytest.raises(error, match=words):
        levenberg_marquardt(fun, np.array(x0, np.float32), **options)
