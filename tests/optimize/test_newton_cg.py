"""`newton_cg` against published minima, from saddles, and what it says where it ends otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import compilations
from published import mgh

import linops
from linops.optimize import newton_cg


def valley(x, height=100.0):
    """Rosenbrock's function, of a tree, with a term by which its least value is not 0."""
    a, b = x["a"], x["b"]
    return height * jnp.sum((b - a**2) ** 2) + jnp.sum((1 - a) ** 2) + jnp.sum(jnp.cosh(a))


START = {"a": np.full(3, -1.2, np.float32), "b": np.ones(3, np.float32)}


def test_a_published_minimum_is_reached_though_variables_differ_by_1e5(x64):
    problem = mgh.PROBLEMS["powell_badly_scaled, n = 2"]
    result = newton_cg(problem.f, problem.start)
    assert result.success
    assert result.status == 0
    assert problem.reached(result.fun)
    assert result.fun == pytest.approx(float(problem.f(result.x)))
    gradient = jax.grad(problem.f)(result.x)
    np.testing.assert_allclose(result.jac, gradient, atol=1e-9)
    assert np.linalg.norm(gradient) <= 4e-11
    assert result.nit + 1 == result.njev <= result.nfev
    assert result.nit <= result.nhev


def test_a_saddle_is_left_by_negative_curvature(x64):
    result = newton_cg(lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4, np.array([0.0, 1e-12]))
    assert result.success
    assert result.fun == pytest.approx(-0.25)
    np.testing.assert_allclose(result.x, [0, 0.5**0.5], atol=1e-8)


def test_x_is_like_x0_and_a_second_point_compiles_nothing():
    result = newton_cg(valley, START, (100.0,), gtol=1e-3)
    assert result.success
    assert result.message == "The gradient is as small as gtol asks for."
    assert type(result.x) is type(result.jac) is dict
    assert result.x["a"].dtype == np.float32
    np.testing.assert_allclose(jnp.concatenate(list(jax.grad(valley)(result.x, 100.0).values())), 0, atol=1e-3)
    with compilations() as count:
        other = newton_cg(valley, {"a": np.zeros(3, np.float32), "b": START["b"]}, (50.0,), gtol=1e-3, maxiter=200)
    assert count() == 0
    assert other.success


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"maxiter": 3}, 1, "maxiter, was reached"),
        ({"max_matvecs": 5}, 4, "max_matvecs, was reached"),
        ({"radius": 1e-3, "maxiter": 2}, 1, "maxiter, was reached"),
        ({"gtol": 0.0}, 2, "Limited by precision"),
    ],
)
def test_why_it_stopped_is_said(options, status, message):
    result = newton_cg(valley, START, (100.0,), **options)
    assert result.status == status
    assert message in result.message
    assert result.success == (status == 2)
    assert result.nit == options.get("maxiter", result.nit)
    if "radius" in options:
        step = [result.x[name] - START[name] for name in START]
        assert np.linalg.norm(step) <= 3.1e-3  # at most doubled once


def test_a_hessian_that_is_not_finite_is_said():
    result = newton_cg(lambda x: jnp.sum(jnp.abs(x) ** 1.5), np.arange(3, dtype=np.float32))
    assert (result.status, result.success) == (3, False)
    np.testing.assert_array_equal(result.x, [0, 1, 2])


def test_what_a_wrong_gradient_ends_is_no_success():
    @jax.custom_jvp
    def f(x):
        return jnp.sum(x**2)

    @f.defjvp
    def _(primals, tangents):
        return f(*primals), -2 * primals[0] @ tangents[0]

    result = newton_cg(f, np.ones(2, np.float32))
    assert result.status == 2
    assert not result.success
    np.testing.assert_array_equal(result.x, [1, 1])


def test_in_vmap_and_jit_over_args_and_starts():
    def ridge(x, strength):
        return jnp.sum((x - 1) ** 2 * (1 + x**2)) + strength * jnp.sum(x**2)

    strengths, starts = jnp.array([0.0, 1.0, jnp.inf]), jnp.zeros((3, 2))
    results = jax.jit(jax.vmap(lambda strength, x: newton_cg(ridge, x, (strength,))))(strengths, starts)
    assert results.status.tolist() == [0, 0, 3]
    assert results.success.tolist() == [True, True, False]
    with pytest.raises(AttributeError, match=r"in jit or vmap has no standard_errors; outside of it, at each x"):
        _ = results.standard_errors
    slopes = jax.vmap(jax.grad(ridge))(results.x[:2], strengths[:2])
    np.testing.assert_allclose(slopes, 0, atol=1e-4)
    np.testing.assert_allclose(results.x[0], 1, atol=1e-4)
    with pytest.raises(TypeError, match="within jit, vmap or grad, expected none"):
        jax.jit(lambda x: newton_cg(ridge, x, (0.0,), callback=print))(starts[0])


def test_a_callback_stops_it_and_a_file_goes_on(tmp_path):
    seen = []

    def callback(intermediate_result):
        seen.append(intermediate_result)
        if len(seen) == 3:
            raise StopIteration

    whole = newton_cg(valley, START, (100.0,), save=tmp_path / "whole")
    part = newton_cg(valley, START, (100.0,), callback=callback, save=tmp_path / "run")
    assert part.status == 5
    assert part.message == "The callback stopped it."
    assert not part.success
    assert [result.nit for result in seen] == [1, 2, 3]
    assert "status" not in seen[0]
    assert seen[0].fun > seen[2].fun == part.fun
    rest = newton_cg(valley, START, (100.0,), save=tmp_path / "run")
    assert rest.success
    assert rest.nit == whole.nit
    assert rest.nhev == whole.nhev
    np.testing.assert_allclose(rest.x["a"], whole.x["a"], rtol=1e-5)
    with pytest.raises(ValueError, match="begin anew"):
        newton_cg(valley, START, (50.0,), save=tmp_path / "run")


def test_a_preconditioner_makes_products_fewer(x64):
    scales = np.geomspace(1, 1e6, 50)

    def f(x):
        return jnp.sum(scales * (jnp.cosh(x - 1) - 1)) + jnp.sum(x[1:] * x[:-1]) / 10

    plain = newton_cg(f, np.zeros(50), gtol=1e-2, M=linops.Diagonal(np.ones(50)))
    with_it = newton_cg(f, np.zeros(50), gtol=1e-2, M=linops.Diagonal(1 / scales))
    assert plain.success
    assert with_it.success
    assert with_it.nhev < plain.nhev / 3
    np.testing.assert_allclose(plain.x, with_it.x, atol=1e-2)


@pytest.mark.parametrize(
    ("fun", "x0", "options", "error", "words"),
    [
        (lambda x: jnp.sum(jnp.log(x)), [-1.0], {}, ValueError, "not finite at x0, .* or look at args and data"),
        (lambda x: jnp.sum(x**2), [1j], {}, TypeError, "expected real ones, of which one is the least"),
        (lambda x: jnp.sum(x**2), [1.0], {"gtol": -1.0}, ValueError, "expected a number that is not negative"),
        (lambda x: jnp.sum(x**2), [1.0], {"maxiter": 0}, ValueError, "maxiter=0, expected at least 1"),
        (lambda x: jnp.sum(x**2), [1.0], {"radius": 0.0}, ValueError, "expected a positive number"),
        (lambda x: jnp.sum(x**2), [1.0], {"M": linops.Identity(2)}, ValueError, "newton_cg got M of shape"),
        (lambda x: x**2, [1.0, 2.0], {}, TypeError, "newton_cg got fun .* or for residuals use linops.optimize.lev"),
        (lambda x: (jnp.sum(x), x), [1.0, 2.0], {}, TypeError, r"newton_cg got fun .*\(value, aux\), pass lambda x: f"),
    ],
)
def test_what_is_refused(fun, x0, options, error, words):
    with pytest.raises(error, match=words):
        newton_cg(fun, np.array(x0, np.complex64 if x0 == [1j] else np.float32), **options)
