"""An Objective beside dense derivatives and in SciPy's own minimizers; what it computes, and how often."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from copies import WAYS
from counting import compilations
from custom_rules import of_callback
from problems import hess, hess_of_pairs, normal, tree_point
from scipy.optimize import Bounds, LinearConstraint, NonlinearConstraint

import linops
from linops.optimize import Objective
from linops.optimize.points import Evaluated

POINT = tree_point("dict", np.float32)


def quartic(x):
    return jnp.sum((x["w"] - 1) ** 4) + jnp.sum(x["w"] ** 2) + 3 * jnp.sum((x["b"] - 2) ** 2) + jnp.sum(x["b"]) ** 2


def of_sum(x):
    return jnp.sum(x["w"]) - 1


@pytest.fixture
def computed(monkeypatch):
    """The functions that are computed, by name."""
    names, call = [], Evaluated.__call__

    def counted(self, *vectors):
        names.append(self.function.__name__)
        return call(self, *vectors)

    monkeypatch.setattr(Evaluated, "__call__", counted)
    return names


def test_derivatives():
    f = Objective(quartic, POINT)
    x, v = f.x0 + np.float32(0.1), normal(11, np.float32, 5)
    tree = f.tree(x)
    H = np.asarray(hess(quartic, tree))
    assert type(f.fun(x)) is float
    np.testing.assert_allclose(f.fun(x), quartic(tree), rtol=1e-6)
    np.testing.assert_allclose(f.jac(x), linops.Jacobian(quartic, tree).toarray()[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(f.hessp(x.astype(float), v.astype(float)), H @ v, rtol=1e-4, atol=1e-5)
    A = f.hess(x)
    assert isinstance(A, linops.Hessian)
    np.testing.assert_allclose(A.toarray(), H, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.dot(A, v), H @ v, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(A.at(tree) @ v, A @ v, rtol=1e-6)
    assert f.jac(x).flags.writeable


def test_what_is_asked_again_is_not_computed_again(computed):
    f = Objective(quartic, POINT)
    x = f.x0.copy()
    f.fun(x), f.jac(x), f.fun(x.astype(float))
    assert computed == ["value_and_gradient"]
    f.hessp(x, x), f.hess(x), f.hessp(x, f.jac(x))
    assert computed == ["value_and_gradient", "product", "second_order"]
    x[0] += 1  # as solvers do
    value = f.fun(x)
    f.jac(x), f.hessp(x, x)
    assert computed[3:] == ["second_order"]
    f.fun(f.x0), f.hessp(f.x0, x), f.hessp(x, x)  # a step that is not accepted, and the point before
    assert len(computed) == 4
    assert value == Objective(quartic, POINT).fun(x)


def test_what_raised_leaves_nothing_behind():
    fails = [False]

    def said(x):
        if fails[0]:
            raise RuntimeError("not now")
        return np.sin(x)

    @jax.custom_vjp
    def f(x):
        return jnp.sum(jax.pure_callback(said, x, x))

    f.defvjp(lambda x: (f(x), x), lambda x, w: (w * jax.pure_callback(np.cos, x, x),))
    objective, p = Objective(f, np.ones(2, np.float32)), np.full(2, 0.5, np.float32)
    fails[0] = True
    with pytest.raises(Exception, match="not now"):
        objective.fun(p)
    fails[0] = False
    with pytest.raises(linops.MissingRule):
        objective.hess(p)
    assert objective.fun(p) == pytest.approx(2 * np.sin(0.5))
    np.testing.assert_allclose(objective.jac(p), np.cos(p), rtol=1e-6)
    assert objective.fun(2 * p) == pytest.approx(2 * np.sin(1.0))


def test_what_is_worth_it_is_linearized_for_products(computed):
    f = Objective(lambda x: jnp.sum(jnp.tanh(jnp.ones((4, 11)) @ x) ** 2), normal(11, np.float32))
    f.fun(f.x0), f.hessp(f.x0, f.x0), f.hessp(f.x0, f.x0)
    f.fun(2 * f.x0), f.hessp(2 * f.x0, f.x0)
    assert computed == ["value_and_gradient", "second_order", "second_order"]


def test_compile_once():
    f = Objective(lambda x: quartic(x), POINT)
    f.fun(f.x0), f.jac(f.x0), f.hessp(f.x0, f.x0)
    f.hess(f.x0) @ f.x0
    with compilations() as count:
        other = Objective(lambda x: quartic(x), tree_point("dict", np.float32, 3))
        for g in (f, other):
            for step in (0.1, 0.2):
                x = g.x0 + np.float32(step)
                g.fun(x), g.jac(x), g.hess(x) @ x, g.hessp(x, x)
    assert count() == 0


def test_copies_are_the_same_objective():
    f = Objective(quartic, POINT, constraints={"type": "eq", "fun": of_sum}, bounds=(0, 1))
    for x in (f.x0, 2 * f.x0):
        f.fun(x), f.hess(x), f.hessp(x, x)
    for move in WAYS.values():
        g = move(f)
        assert (g.fun(f.x0), g.constraints[0].fun(f.x0)) == (f.fun(f.x0), f.constraints[0].fun(f.x0))
        np.testing.assert_array_equal(g.hessp(f.x0, f.x0), f.hessp(f.x0, f.x0))
        np.testing.assert_array_equal(g.hess(f.x0) @ f.x0, f.hess(f.x0) @ f.x0)
        np.testing.assert_array_equal(g.jac(f.x0), f.jac(f.x0))
    with pytest.raises(TypeError, match="was pickled whose fun cannot be imported by its name"):
        pickle.dumps(Objective(lambda x: quartic(x), POINT))


def test_without_a_second_derivative(x64):
    x0 = np.linspace(0.1, 0.7, 5)
    for minimized in (
        linops.optimize.minimize(of_callback, x0, method="trust-ncg", products="difference"),
        linops.optimize.newton_cg(of_callback, x0, products="difference", gtol=1e-10),
        linops.optimize.minimize(
            lambda x: jnp.sum(x**2), x0, method="trust-constr", constraints={"type": "eq", "fun": of_callback},
            products="difference", tol=1e-8,
        ),
    ):  # fmt: skip
        assert minimized.success
        np.testing.assert_allclose(minimized.x, 0, atol=1e-4)
    f = Objective(of_callback, x0, products="difference")
    np.testing.assert_allclose(f.hess(x0).diagonal(), 2 * np.cos(2 * x0), rtol=1e-8)
    for missing in (linops.optimize.minimize, linops.optimize.newton_cg):
        with pytest.raises(linops.MissingRule, match="optimizers of scalar functions take products= as well"):
            missing(of_callback, x0)


@pytest.mark.parametrize("method", ["Newton-CG", "trust-ncg", "trust-krylov", "trust-constr"])
def test_operators_in_scipy(method):
    """SciPy's trust-ncg and trust-krylov call np.dot with what hess returns."""
    f = Objective(quartic, POINT)
    found = scipy.optimize.minimize(f.fun, f.x0.astype(float), jac=f.jac, hess=f.hess, method=method, tol=1e-3)
    assert np.abs(f.jac(found.x)).max() < 1e-2
    assert isinstance(f.tree(found.x)["w"], np.ndarray)


def test_complex_parameters():
    def distance(z):
        return jnp.sum(jnp.abs(z * z - jnp.array([1j, 4.0])) ** 2)

    z = np.array([1 + 1j, 1 - 0.5j], np.complex64)
    f = Objective(distance, z)
    np.testing.assert_allclose(f.x0, [1, 1, 1, -0.5])
    np.testing.assert_allclose(f.hess(f.x0).toarray(), hess_of_pairs(distance, z), rtol=1e-5, atol=1e-5)
    found = linops.optimize.minimize(distance, z)
    assert found.success
    np.testing.assert_allclose(found.x, [np.sqrt(1j), 2], atol=1e-3)


def test_constraints():
    def mixed(x):
        return {"a": x["w"][0] ** 2, "s": jnp.sum(x["b"]) * x["w"][1, 1]}

    c = NonlinearConstraint(mixed, {"a": np.zeros(3), "s": 1.0}, np.inf)
    fixed = {"type": "eq", "fun": lambda x, k: x["b"][0] - k, "args": (2.0,)}
    f = Objective(quartic, POINT, constraints=[c, fixed])
    made, equal = f.constraints

    def values(x):
        return jnp.concatenate([x["w"][0] ** 2, jnp.array([jnp.sum(x["b"]) * x["w"][1, 1]])])

    tree, v = f.tree(f.x0), np.array([1.0, -2.0, 0.5, 3.0])
    np.testing.assert_allclose(made.fun(f.x0), values(tree), rtol=1e-6)
    np.testing.assert_allclose(made.jac(f.x0), linops.Jacobian(values, tree).toarray(), rtol=1e-6)
    expected = hess(lambda x: jnp.float32(v) @ values(x), tree)
    np.testing.assert_allclose(made.hess(f.x0, v).toarray(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made.lb, [0, 0, 0, 1])
    assert (equal.lb, equal.ub) == (0, 0)
    np.testing.assert_allclose(equal.fun(f.x0), [POINT["b"][0] - 2], rtol=1e-5)


def test_bounds_of_each_kind():
    pair = Objective(quartic, POINT, bounds=({"w": 0.0, "b": np.array([1.0, 2.0])}, None)).bounds
    np.testing.assert_array_equal(pair.lb, [1, 2, *np.zeros(9)])
    np.testing.assert_array_equal(pair.ub, np.full(11, np.inf))

    def square(x):
        return jnp.sum(x**2)

    for bounds in [[(0, None), (None, 2)], Bounds([0, -np.inf], [np.inf, 2]), np.array([[0, np.inf], [-np.inf, 2]])]:
        made = Objective(square, np.ones(2, np.float32), bounds=bounds).bounds
        np.testing.assert_array_equal([made.lb, made.ub], [[0, -np.inf], [np.inf, 2]])
    made = Objective(square, np.ones(3, np.float32), bounds=(np.zeros(3), 2.0)).bounds
    np.testing.assert_array_equal([made.lb, made.ub], [np.zeros(3), np.full(3, 2.0)])


X = np.ones(2, np.float32)
ERRORS = [
    (lambda: Objective(lambda x: x, X), TypeError, r"for residuals use linops.optimize.least_squares"),
    (
        lambda: Objective(lambda x: jnp.sum(x) + 1j, X),
        TypeError,
        "Objective got fun with complex values, expected a real",
    ),
    (lambda: Objective(jnp.sum, np.ones(2, int)), TypeError, "has dtype int.*expected floating point"),
    (
        lambda: Objective(jnp.sum, X).fun(np.ones(3)),
        ValueError,
        "got a point of shape .3,., expected a vector of shape",
    ),
    (lambda: Objective(jnp.sum, X, products="exactly"), ValueError, "Objective got products='exactly', expected"),
    (lambda: Objective(jnp.sum, X, bounds=3), ValueError, "or for a vector x0 a pair for each entry"),
    (
        lambda: Objective(quartic, POINT, bounds=({"w": 0.0}, 1)),
        ValueError,
        "got lower bounds that are not like x0, a tree",
    ),
    (
        lambda: Objective(quartic, POINT, bounds=({"w": X, "b": 0.0}, 1)),
        ValueError,
        r'with leaves that broadcast to shapes .*; None stands for what has no bound, as \{"a": None, "b": 0.0\}',
    ),
    (lambda: Objective(jnp.sum, X, bounds=Bounds([0, 0, 0], 1)), ValueError, "got scipy.optimize.Bounds of shape .3,."),
    (
        lambda: Objective(lambda z: jnp.sum(abs(z)), X + 0j, bounds=(X, 1)),
        TypeError,
        "bounds as a tree for complex parameters",
    ),
    (
        lambda: Objective(jnp.sum, X, constraints=LinearConstraint(np.eye(3))),
        ValueError,
        "got a LinearConstraint with 3 columns",
    ),
    (
        lambda: Objective(jnp.sum, X, constraints={"type": "le", "fun": jnp.sum}),
        ValueError,
        "expected a dict with 'fun' and",
    ),
    (lambda: Objective(jnp.sum, np.zeros(0, np.float32)), ValueError, r"got x0=array\(\[\].*expected one number"),
    (lambda: Objective(jnp.sum, X, constraints=[jnp.sum]), TypeError, "expected scipy.optimize's LinearConstraint or"),
    (
        lambda: (f := Objective(lambda x: jnp.log(x[0] - 1), X)).fun(f.x0),
        ValueError,
        "fun is -inf at x0 and its gradient at",
    ),
    (
        lambda: (f := Objective(lambda x: jnp.sqrt(x[1] - 1), X)).jac(f.x0),
        ValueError,
        "is not finite, expected finite numbers to start from: .* look at args and data",
    ),
]


@pytest.mark.parametrize(("call", "error", "words"), ERRORS, ids=range(len(ERRORS)))
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()
