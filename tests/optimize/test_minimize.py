"""SciPy's minimizers on trees, and that no success is reported where there is none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import compilations
from scipy.optimize import NonlinearConstraint

import linops
from linops.optimize import minimize

FIRST = ["L-BFGS-B", "BFGS", "CG", "SLSQP", "TNC"]
SECOND = ["Newton-CG", "trust-ncg", "trust-krylov", "trust-exact", "dogleg", "trust-constr"]
BEALE = {"x": 1.0, "y": 1.0}


def beale(p):
    """Problem 5 of More, Garbow and Hillstrom (1981): the minimum is 0 at (3, 0.5)."""
    powers = p["y"] ** jnp.arange(1, 4)
    return jnp.sum((jnp.array([1.5, 2.25, 2.625]) - p["x"] * (1 - powers)) ** 2)


@pytest.mark.parametrize("method", FIRST + SECOND)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_methods(method, dtype):
    with jax.enable_x64(dtype == np.float64):
        x0 = {"x": jnp.asarray(1.0, dtype), "y": np.array(0.2, dtype)}
        found = minimize(beale, x0, method=method)
        assert found.success, found.message
        assert isinstance(found.x["x"], jax.Array)
        assert isinstance(found.x["y"], np.ndarray)
        assert found.x["x"].dtype == found.jac["x"].dtype == dtype
        np.testing.assert_allclose([found.x["x"], found.x["y"]], [3, 0.5], rtol=1e-3)
        gradient = jax.grad(beale)(found.x)
        assert max(abs(gradient["x"]), abs(gradient["y"])) < (4e-4 if dtype == np.float32 else 2e-4)


def test_nothing_is_compiled_for_a_second_problem():
    minimize(lambda p: beale(p), BEALE)
    with compilations() as count:
        assert minimize(lambda p: beale(p), {"x": 2.0, "y": 0.3}).success
    assert count() == 0


def saddle(x):
    return x[0] ** 2 - x[1] ** 2 + x[1] ** 4


def test_success_is_what_the_gradient_says():
    """What SciPy calls one, by steps and values, and what it does not, by lines that it searched in vain."""
    early = minimize(beale, BEALE, method="L-BFGS-B", options={"ftol": 0.5})
    assert early.status == 0
    assert not early.success
    assert "optimality is" in early.message
    limited = minimize(beale, BEALE, options={"maxiter": 7})
    assert not limited.success
    asked = minimize(lambda p: beale(p) + p["x"] / 3, BEALE, method="BFGS", options={"gtol": 1e-12})
    assert not asked.success
    # The stiff part of the gradient promises nothing, and the other one, a tenth of it, all of the value.
    stiff = jnp.array([1.0, 1e6])
    stuck = minimize(
        lambda x: jnp.sum((stiff * x - jnp.array([1.0, 1e-5])) ** 2) / 2, np.zeros(2, np.float32), method="BFGS"
    )
    assert stuck.success == (stuck.fun < 1e-3)
    at_saddle = minimize(saddle, np.array([0.0, 1e-3], np.float32), method="trust-krylov")
    assert at_saddle.success
    np.testing.assert_allclose(abs(at_saddle.x[1]), np.sqrt(0.5), rtol=1e-3)


@pytest.mark.parametrize("method", ["trust-krylov", "BFGS", "L-BFGS-B"])
def test_limited_by_precision(method):
    """In float32 differences of a value near 1000 are lost, where the gradient is far from the tolerance."""
    found = minimize(lambda p: 1000 + beale(p), BEALE, method=method)
    assert found.success
    assert "limited by precision" in found.message
    np.testing.assert_allclose(found.x["x"], 3, rtol=0.05)
    assert not minimize(lambda p: 1000 + beale(p), BEALE, method=method, tol=1e-6).success


@pytest.mark.parametrize(
    ("method", "fun", "options"),
    [
        ("SLSQP", lambda x: -jnp.sum(x**2), {}),
        ("SLSQP", lambda x: -jnp.sum(x), {"bounds": (0, None)}),
        ("trust-exact", lambda x: -jnp.sum(x**3), {}),
        ("trust-constr", lambda x: -jnp.sum(x**4), {"constraints": {"type": "ineq", "fun": lambda x: x[0] + 1}}),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of SciPy, about numbers that leave the range
def test_there_is_no_success_without_a_least_value(x64, method, fun, options):
    found = minimize(fun, np.ones(2), method=method, **options)
    assert not found.success
    assert found.fun < -1e6


def test_products_are_of_two_kinds():
    with pytest.raises(ValueError, match='Objective got products=\'exct\', expected "exact" or "difference"'):
        minimize(beale, BEALE, products="exct")


def test_nan_is_no_place_to_step_to():
    found = minimize(lambda x: jnp.sum(x - jnp.log(x)), np.full(3, 0.01, np.float32))
    assert found.success
    np.testing.assert_allclose(found.x, 1, rtol=1e-3)


@pytest.mark.parametrize("method", ["L-BFGS-B", "trust-constr", "SLSQP"])
def test_bounds(method):
    found = minimize(beale, BEALE, method=method, bounds=({"x": 0.0, "y": -np.inf}, {"x": 2.0, "y": np.inf}))
    assert found.success, found.message
    np.testing.assert_allclose(found.x["x"], 2, rtol=1e-6)
    if method == "trust-constr":  # whose barrier keeps x from the bound, which is no rounding
        early = minimize(
            lambda x: jnp.sum((x - 3) ** 2), np.zeros(2, np.float32), method=method, bounds=(None, 1.0),
            options={"maxiter": 7},
        )  # fmt: skip
        assert 1e-4 < early.fun - 8 < 0.5
        assert not early.success


def test_bounds_of_two_parameters_are_those_that_are_meant():
    """A pair of arrays is (lower, upper), pairs are SciPy's, and lists could be either."""
    lower, upper = np.array([0.0, 1.0], np.float32), np.array([2.0, 3.0], np.float32)
    run = functools.partial(minimize, lambda x: jnp.sum((x - 5) ** 2), lower + 0.5, method="L-BFGS-B")
    for bounds in (
        (lower, upper),
        (jnp.asarray(lower), jnp.asarray(upper)),
        ((0, 2), (1, 3)),
        zip(lower, upper, strict=True),
    ):
        np.testing.assert_array_equal(run(bounds=bounds).x, upper)
    np.testing.assert_allclose(run(bounds=(lower, None)).x, 5, rtol=1e-5)
    with pytest.raises(ValueError, match="lower and upper as arrays, pairs as tuples"):
        run(bounds=([0, 1], [2, 3]))
    partly = minimize(
        lambda p: (p["a"] + 1) ** 2 + (p["b"] + 1) ** 2,
        {"a": 1.0, "b": 0.0},
        method="L-BFGS-B",
        bounds=({"a": 0.0, "b": None}, None),
    )
    np.testing.assert_allclose([partly.x["a"], partly.x["b"]], [0, -1], atol=1e-6)


@pytest.mark.parametrize("method", ["L-BFGS-B", "trust-constr"])
def test_a_parameter_at_its_bound_has_no_error(x64, method):
    """Where the method stops close to it, too."""
    X = np.random.default_rng(0).normal(size=(30, 2)) @ np.array([[1.0, 1.0], [0.0, 0.3]])
    y = X @ [1.0, -2.0] + 0.1
    least = np.linalg.lstsq(X, y, rcond=None)[0]
    fit = minimize(
        lambda p: jnp.sum((X @ p - y) ** 2) / 2, np.array([least[0] + 2, 0]), method=method,
        bounds=((least[0] + 0.5, None), (None, None)),
    )  # fmt: skip
    np.testing.assert_allclose(fit.standard_errors, [np.nan, 1 / np.linalg.norm(X[:, 1])], rtol=1e-6)


def test_within_jit_it_is_refused():
    with pytest.raises(TypeError, match=r"algorithms do not run; .* linops.optimize.newton_cg runs there"):
        jax.jit(lambda x: minimize(lambda p: jnp.sum((p - x) ** 2), np.ones(2, np.float32)).x)(1.0)


@pytest.mark.parametrize("method", ["trust-constr", "SLSQP"])
def test_constraints(x64, method):
    """Problem 71 of Hock and Schittkowski (1981)."""
    product = NonlinearConstraint(lambda p: p["u"][0] * p["u"][1] * p["v"][0] * p["v"][1], 25.0, np.inf)
    squares = {"type": "eq", "fun": lambda p: jnp.sum(p["u"] ** 2) + jnp.sum(p["v"] ** 2) - 40}
    found = minimize(
        lambda p: p["u"][0] * p["v"][1] * (p["u"][0] + p["u"][1] + p["v"][0]) + p["v"][0],
        {"u": np.array([1.0, 5.0]), "v": np.array([5.0, 1.0])},
        method=method,
        bounds=(1.0, 5.0),
        constraints=[product, squares],
    )
    assert found.success, found.message
    np.testing.assert_allclose(found.fun, 17.0140173, rtol=1e-6)
    np.testing.assert_allclose([*found.x["u"], *found.x["v"]], [1, 4.7429994, 3.8211503, 1.3794082], rtol=1e-4)
    with pytest.raises(ValueError, match="covariance of a minimum with constraints"):
        _ = found.covariance


def test_gradients_are_enough_for_methods_of_gradients():
    """A function with a reverse rule that has no derivative: what needs a Hessian says so, when it is asked for."""

    @jax.custom_vjp
    def f(x):
        return jnp.sum((x - 1) ** 2)

    def backward(x, w):
        return (jax.pure_callback(lambda x, w: 2 * (x - 1) * w, x, x, w, vmap_method="sequential"),)

    f.defvjp(lambda x: (f(x), x), backward)
    found = minimize(f, np.zeros(3, np.float32), method="L-BFGS-B")
    assert found.success
    np.testing.assert_allclose(found.x, 1, rtol=1e-4)
    for second in (lambda: minimize(f, np.zeros(3, np.float32)), lambda: found.standard_errors):
        with pytest.raises(linops.MissingRule, match="an operation without a reverse rule"):
            second()


def test_callbacks():
    seen = []
    minimize(beale, BEALE, callback=seen.append, options={"maxiter": 2, "return_all": True})
    assert len(seen) == 2
    assert set(seen[0]) == {"x", "y"}

    def stop(intermediate_result):
        seen.append(intermediate_result.x["x"])
        raise StopIteration

    stopped = minimize(beale, BEALE, callback=stop)
    assert not stopped.success
    assert stopped.nit == 1


def test_errors_of_likelihoods():
    """The mean and the logarithm of the standard deviation of a normal sample: s / sqrt(n) and 1 / sqrt(2 n)."""
    sample = jnp.asarray(np.random.default_rng(0).normal(3, 2, 400), jnp.float32)

    def negative_log(p):
        return jnp.sum(0.5 * ((sample - p["mean"]) / jnp.exp(p["log"])) ** 2 + p["log"])

    found = minimize(negative_log, {"mean": 0.0, "log": 0.0})
    assert found.success
    deviation = np.exp(found.x["log"])
    np.testing.assert_allclose(deviation, np.std(sample), rtol=3e-3)
    np.testing.assert_allclose(found.standard_errors["mean"], deviation / 20, rtol=1e-3)
    np.testing.assert_allclose(found.standard_errors["log"], 1 / np.sqrt(800), rtol=3e-3)
    variance = linops.Jacobian(lambda p: jnp.exp(p["log"]), found.x)
    np.testing.assert_allclose((variance @ found.covariance @ variance.T).toarray(), [[deviation**2 / 800]], rtol=6e-3)
    held = minimize(
        negative_log, {"mean": 0.0, "log": 0.0}, method="L-BFGS-B", bounds=(-9.0, {"mean": 9.0, "log": 0.0})
    )
    assert np.isnan(held.standard_errors["log"])
    np.testing.assert_allclose(held.standard_errors["mean"], 1 / 20, rtol=1e-3)


@pytest.mark.parametrize(
    ("fun", "words"), [(saddle, "the Hessian is indefinite"), (lambda x: x[0] ** 2, "is singular")]
)
def test_no_errors_where_there_are_none(fun, words):
    found = minimize(fun, np.zeros(2, np.float32))
    with pytest.raises(np.linalg.LinAlgError, match=words + r".*x\[1\]: its inverse is no covariance"):
        _ = found.standard_errors


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"others go by linops\.optimize\.Objective"):
        minimize(beale, BEALE, method="simplex")
    with pytest.raises(ValueError, match="method='trust-krylov' of minimize does not take bounds"):
        minimize(beale, BEALE, bounds=(0, 1))
    with pytest.raises(ValueError, match="does not take constraints"):
        minimize(beale, BEALE, method="L-BFGS-B", constraints={"type": "eq", "fun": lambda p: p["x"]})


def test_covariances_of_many_parameters_are_solves():
    scales = np.linspace(1, 3, 5_001).astype(np.float32)
    found = minimize(lambda x: jnp.sum(scales * x**2), np.ones(5_001, np.float32), method="Newton-CG")
    assert found.success
    np.testing.assert_allclose(found.covariance @ np.ones(5_001, np.float32), 0.5 / scales, rtol=1e-3)
    with pytest.raises(MemoryError, match="for standard errors by a dense factorization"):
        _ = found.standard_errors
