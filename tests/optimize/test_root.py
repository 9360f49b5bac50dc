"""SciPy's root finders on trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linops.optimize import root

X0 = {"u": np.ones(5, np.float32), "w": np.zeros(2, np.float32)}
INNER = ["gmres", "lgmres", "bicgstab", "tfqmr"]
WAYS = [{}, {"method": "hybr"}, {"method": "lm"}] + [{"options": {"jac_options": {"method": name}}} for name in INNER]


def system(x, shift=1.0):
    return {"a": jnp.tanh(x["u"]) * 3 + x["u"] - shift + 0.1 * jnp.sum(x["w"]), "b": x["w"] ** 3 + x["w"] - x["u"][:2]}


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_ways(way):
    found = root(system, X0, (2.0,), **way)
    assert found.success, found.message
    assert set(found.fun) == {"a", "b"}
    assert found.x["w"].dtype == np.float32
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(system(found.x, 2.0))) < 5e-3


def test_exact_products_reach_what_finite_differences_do_not(x64):
    """The equation of Bratu, -u'' = 3 exp(u), on 199 points, to twelve digits."""
    n = 199

    def bratu(u):
        around = jnp.pad(u, 1)
        return around[2:] - 2 * u + around[:-2] + 3 * jnp.exp(u) / (n + 1) ** 2

    seen = []
    options = {"fatol": 1e-15, "jac_options": {"inner_maxiter": n}}
    found = root(bratu, np.zeros(n), callback=lambda x, f: seen.append(f), options=options)
    assert found.success
    assert found.optimality < 1e-15
    assert len(seen) >= 3
    theta = _theta(3.0)
    exact = 2 * np.log(np.cosh(theta / 4))  # in the middle
    np.testing.assert_allclose(found.x[n // 2], exact, rtol=1e-4)


def _theta(strength):
    """The smaller root of theta = sqrt(2 strength) cosh(theta / 4)."""
    theta = 1.0
    for _ in range(500):
        theta = np.sqrt(2 * strength) * np.cosh(theta / 4)
    return theta


def test_far_away_rounding_is_no_root(x64):
    """X goes along the kernel of the Jacobian until rounding is as large as what is left of an inconsistent system."""
    found = root(lambda x: jnp.stack([x[0] + x[1], 2 * (x[0] + x[1])]) - jnp.array([1, 2.1]), np.ones(2))
    assert not found.success


def test_no_root_of_small_numbers(x64):
    """SciPy's tolerance, 6e-6, is met at x0."""
    found = root(lambda x: 1e-7 * (x**2 + 1), np.array([0.5]))
    assert not found.success
    found = root(lambda x: 1e-7 * (x**2 - 2), np.array([0.5]))
    assert found.success
    np.testing.assert_allclose(found.x, np.sqrt(2), rtol=1e-6)


def test_values_whose_squares_are_zero(x64):
    found = root(lambda x: 1e-200 * (x**2 - 2), np.ones(2))
    assert not found.success
    assert "SciPy divides by the square of fun" in found.message


def test_no_root():
    found = root(lambda x: x**2 + 1.0, np.array([1.0], np.float32), options={"maxiter": 30})
    assert not found.success
    assert "the largest entry of fun is" in found.message
    assert found.nit <= 30
    assert found.nfev > found.nit

    def stop(x, f):
        raise StopIteration

    stopped = root(system, X0, callback=stop)
    assert not stopped.success
    assert stopped.nfev >= 1
    singular = root(lambda x: jnp.zeros(2) * x + 1, np.ones(2, np.float32))
    assert not singular.success
    assert singular.nfev == 1


def test_what_is_refused():
    x = np.ones(2, np.float32)
    with pytest.raises(ValueError, match="expected 'krylov', 'hybr' or 'lm', which take"):
        root(lambda x: x, x, method="broyden1")
    with pytest.raises(ValueError, match="root got fun with 1 values of 2 numbers"):
        root(jnp.sum, x)
    with pytest.raises(ValueError, match=r"root got x0=array\(\[\].*expected one number at least"):
        root(lambda x: x, x[:0])
    with pytest.raises(ValueError, match="root got fun with 2 of 2 values not finite"):
        root(lambda x: jnp.log(x - 2), x)
    with pytest.raises(ValueError, match="root got the inner method 'qmr', expected one of"):
        root(lambda x: x, x, options={"jac_options": {"method": "qmr"}})
    with pytest.raises(ValueError, match="root got options for gmres that it does not take: depth"):
        root(lambda x: x, x, options={"jac_options": {"inner_depth": 3}})
