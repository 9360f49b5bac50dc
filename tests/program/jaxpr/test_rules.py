"""Derivative rules and what they close over: settled when an operator is made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import collect, compilations
from custom_rules import RULE_OF_FIRST, RULES

import linops

X = np.array([0.1, 0.2, 0.3], np.float32)
V = np.array([1, -2, 0.5], np.float32)
OPTIONS = pytest.mark.parametrize("linearize", [None, False])


def all_products(J):
    """J as each way to multiply shows it."""
    n = J.shape[1]
    eye = np.eye(n, dtype=J.dtype)
    return {
        "J @ v": np.stack([J @ column for column in eye], axis=1),
        "J.T @ w": np.stack([J.T @ column for column in eye]),
        "J @ V": J @ eye,
        "J.T @ J": J.T @ J,
        "toarray": J.toarray(),
        "jit": jax.jit(lambda A, V: A @ V)(J, eye),
        "at": J.at(X).toarray(),
        "linearized": J.linearize().toarray(),
    }


def assert_products(J, D):
    for name, product in all_products(J).items():
        expected = D.T @ D if name == "J.T @ J" else D
        product = product.toarray() if isinstance(product, linops.Operator) else product
        np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-6, err_msg=name)


@OPTIONS
@pytest.mark.parametrize("kind", RULES)
def test_a_rule_is_settled_when_the_operator_is_made(kind, linearize):
    A = np.ones(3, np.float32)
    f = RULES[kind](lambda x: jnp.sin(x) * A, lambda x: jnp.cos(x) * A)
    J = linops.Jacobian(f, X, linearize=linearize)
    H = linops.Hessian(lambda x: jnp.sum(f(x) ** 2), X, linearize=linearize)
    A[:] = 100
    assert_products(J, np.diag(np.cos(X)))
    np.testing.assert_allclose(H.toarray(), np.diag(2 * np.cos(2 * X)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("around", ["plain", "jit", "checkpoint", "scan", "while", "cond", "map", "vmap", "platform"])
@pytest.mark.parametrize("kind", [*RULES, "none"])
def test_jitted_functions_that_hold_arrays(kind, around):
    """Right, whatever they stand in; their arrays are leaves, once each, and other arrays compile nothing."""

    def make(seed):
        scale = jnp.array([1.0, 2.0, 3.0]) + seed
        inner = jax.jit(lambda x: jnp.sin(x) * scale)
        f = inner if kind == "none" else RULES[kind](inner, lambda x: jnp.cos(x) * scale)
        ways = {
            "plain": f,
            "jit": jax.jit(lambda x: f(x)),
            "checkpoint": jax.checkpoint(f),
            "scan": lambda x: jax.lax.scan(lambda c, _: (c, f(c)), x, None, length=2)[1][1],
            "while": lambda x: jax.lax.fori_loop(0, 1, lambda _, x: f(x), x),
            "cond": lambda x: jax.lax.cond(x[0] < 1, f, lambda x: x, x),
            "map": lambda x: jax.lax.map(lambda y: f(y * jnp.ones(3))[0], x) * scale,
            "vmap": lambda x: jax.vmap(f)(x[None])[0],
            "platform": lambda x: jax.lax.platform_dependent(x, cpu=f, default=f),
        }
        factor = scale[0] * scale if around == "map" else scale
        return linops.Jacobian(ways[around], X), np.diag(np.cos(X) * np.asarray(factor))

    assert_products(*make(0))
    with compilations() as count:
        J, D = make(1)
        np.testing.assert_allclose(J @ V, D @ V, rtol=1e-5)
        assert count() <= (around == "map")  # scale[0] * scale
    assert len([leaf for leaf in jax.tree.leaves(J) if leaf.shape == (3,)]) <= 3  # with the point, and scale[0] * scale


@pytest.mark.parametrize("kind", [*RULES, "relu", "linear solve"])
def test_arrays_that_rules_close_over_die_with_their_operators(kind):
    def construct(seed):
        A = jnp.full((123, 77), float(seed))
        S = jnp.eye(77) * seed + 1
        functions = {
            "relu": lambda x: jax.nn.relu(A @ x),
            "linear solve": lambda x: (
                A
                @ jax.lax.custom_linear_solve(lambda y: S @ y, x, lambda mv, b: jnp.linalg.solve(S, b), symmetric=True)
            ),
        }
        if kind == "custom_jvp":
            f = jax.custom_jvp(lambda x: A @ x)
            f.defjvp(lambda p, t: (f(*p), A @ t[0]))
        elif kind == "custom_vjp":
            f = jax.custom_vjp(lambda x: A @ x)
            f.defvjp(lambda x: (f(x), None), lambda _, w: (A.T @ w,))
        else:
            f = functions[kind]
        J = linops.Jacobian(f, np.ones(77, np.float32))
        J.T @ np.ones(123, np.float32)
        (J.T @ J) @ np.ones(77, np.float32)

    def alive():
        collect()
        return len([array for array in jax.live_arrays() if array.shape in ((123, 77), (77, 77))])

    before = alive()
    for seed in range(1, 6):
        construct(seed)
    assert alive() == before


@OPTIONS
def test_a_backward_pass_with_rules_of_its_own(linearize):
    times = jax.custom_vjp(lambda x, w: x * w)
    times.defvjp(lambda x, w: (times(x, w), (x, w)), lambda r, u: (u * r[1], u * r[0]))
    square = jax.custom_vjp(lambda x: x**2)
    square.defvjp(lambda x: (square(x), x), lambda x, w: (2 * times(x, w),))
    assert_products(linops.Jacobian(square, X, linearize=linearize), np.diag(2 * X))
    np.testing.assert_allclose(linops.GaussNewton(square, X, linearize=linearize) @ V, 4 * X**2 * V, rtol=1e-5)
    H = linops.Hessian(lambda x: jnp.sum(square(x)), X, linearize=linearize)
    np.testing.assert_allclose(H.toarray(), 2 * np.eye(3), atol=1e-6)


@pytest.mark.parametrize("kind", RULES)
def test_gradients_of_products(kind):
    """With respect to what a rule closes over, and to what the function itself does."""

    def product(a, b, J=None):
        f = RULES[kind](lambda x: b * jnp.sin(x), lambda x: a * b * jnp.cos(x))
        return jnp.sum(linops.Jacobian(f, X).T @ V)

    by_a, by_b = jax.grad(product, (0, 1))(2.0, 3.0)
    np.testing.assert_allclose([by_a, by_b], [3 * np.cos(X) @ V, 2 * np.cos(X) @ V], rtol=1e-5)


def test_gradients_of_values_see_what_a_function_closes_over():
    """A rule says nothing of it, and the derivative is that of what is computed."""
    for kind, make in RULES.items():

        def loss(b, make=make):
            f = make(lambda x: b * jnp.sin(x), lambda x: b * jnp.cos(x))
            G = linops.GaussNewton(f, X, lambda z: jnp.sum(z**3))
            return jnp.sum(G @ V)

        expected = np.sum(3 * 3 * 2.0**2 * 2 * np.sin(X) * np.cos(X) ** 2 * V)
        np.testing.assert_allclose(jax.grad(loss)(2.0), expected, rtol=1e-4, err_msg=kind)


REST = {  # of x, what has no tangent whatever x is
    "an argument": lambda f: lambda x, y: f(x, y),
    "stopped": lambda f: lambda x, y: f(x, y + 0 * jax.lax.stop_gradient(x)),
    "in a loop": lambda f: lambda x, y: jax.lax.scan(lambda c, _: (f(c, y), None), x, None, length=2)[0],
    "beside a step": lambda f: (
        lambda x, y: jax.lax.scan(lambda c, _: ((f(c[0], c[1]), c[1] + 1), None), (x, y), None, length=2)[0][0]
    ),
    "in a later step": lambda f: (
        lambda x, y: jax.lax.scan(lambda c, _: ((f(c[1], y), c[0]), None), (x, 0 * y), None, length=2)[0][0]
    ),
    "an integer": lambda f: lambda x, y: f(x, y + 0 * jnp.argmax(x)),
    "in jit": lambda f: jax.jit(f),
}


@RULE_OF_FIRST
@pytest.mark.parametrize("rest", REST)
def test_a_rule_is_asked_for_what_has_tangents(make, rest):
    def plain(x, y):
        return jnp.sin(x) * y

    D = jax.jit(jax.jacfwd(REST[rest](plain)))(X, 2 * X)
    f = REST[rest](make())
    for x in (X, 3 * X):  # whatever is cached of the first
        J = linops.Jacobian(f, x, args=(2 * X,))
        np.testing.assert_allclose(J.at(X).toarray(), D, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(J.at(X).T @ V, D.T @ V, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.jacrev(f))(X, 2 * X), D, rtol=1e-5, atol=1e-6)  # nothing is left behind


@pytest.mark.parametrize("around", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_a_rule_that_takes_one_tangent_of_two_is_asked_for_each(around):
    """What it computes of the first is what it computes of the second, up to where the tangent comes from."""
    f = jax.custom_jvp(lambda x, y: jnp.sin(x + y))

    def rule(primals, tangents):
        (tangent,) = (t for t in tangents if type(t) is not jax.custom_derivatives.SymbolicZero)
        return f(*primals), jnp.cos(sum(primals)) * tangent

    f.defjvp(rule, symbolic_zeros=True)
    f, a = around(f), jnp.ones(3)
    slopes = np.cos(X + 1) * np.sin(3 * X + 2) + 3 * np.sin(X + 1) * np.cos(3 * X + 2)
    assert_products(linops.Jacobian(lambda x: f(x, a) * f(2 * a, 3 * x), X), np.diag(slopes))


def test_a_rule_that_is_never_used_may_hold_a_traced_value():
    """As jax.scipy.special.expi has it: inside of a rule another function, with a nondiff argument that is traced."""
    power = jax.custom_jvp(lambda n, x: x**n, nondiff_argnums=(0,))
    power.defjvp(lambda n, p, t: (power(n, *p), n * p[0] ** (n - 1) * t[0]))

    @jax.custom_jvp
    @jax.jit
    def f(x):
        return jax.lax.fori_loop(0, 1, lambda i, y: power(i + 3, y), x)

    f.defjvp(lambda p, t: (f(*p), 3 * p[0] ** 2 * t[0]))
    for g, slope in ((f, 3 * X**2), (jax.scipy.special.expi, np.exp(X) / X)):
        np.testing.assert_allclose(linops.Jacobian(g, X).toarray(), np.diag(slope), rtol=1e-5)


def test_the_forward_products_of_an_adjoint_that_solves_equations():
    from jax.experimental.ode import odeint

    J = linops.Jacobian(lambda x: odeint(lambda y, t: -(y**2), x, jnp.linspace(0, 1, 3))[-1], X)
    D = np.diag(1 / (1 + X) ** 2)  # y = x / (1 + x t)
    np.testing.assert_allclose(J @ V, D @ V, rtol=1e-3)
    np.testing.assert_allclose(J.T @ V, D @ V, rtol=1e-3)
    np.testing.assert_allclose(jax.jit(lambda A, v: A @ v)(J, V), D @ V, rtol=1e-3)
