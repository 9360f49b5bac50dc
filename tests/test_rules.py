"""Programs and what they hold: derivative rules, arrays, callbacks, settings; settled when an operator is made."""

import gc
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import compilations, text
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import linops

X = np.array([0.1, 0.2, 0.3], np.float32)
V = np.array([1, -2, 0.5], np.float32)


def with_jvp(f, slope):
    """F with the rule t -> slope(x) t."""
    g = jax.custom_jvp(f)
    g.defjvp(lambda p, t: (g(*p), slope(p[0]) * t[0]))
    return g


def with_vjp(f, slope):
    g = jax.custom_vjp(f)
    g.defvjp(lambda x: (g(x), x), lambda x, w: (slope(x) * w,))
    return g


RULES = {"custom_jvp": with_jvp, "custom_vjp": with_vjp}
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


@pytest.mark.parametrize("kind", [*RULES, "relu", "linear solve", "plain"])
def test_arrays_that_rules_close_over_die_with_their_operators(kind):
    def construct(seed):
        A = jnp.full((123, 77), float(seed))
        S = jnp.eye(77) * seed + 1
        functions = {
            "plain": lambda x: jnp.tanh(A @ x),
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
        gc.collect()
        return len([array for array in jax.live_arrays() if array.shape in ((123, 77), (77, 77))])

    before = alive()
    for seed in range(1, 6):
        construct(seed)
    assert alive() == before


@pytest.mark.parametrize("kind", [*RULES, "plain"])
def test_rules_are_traced_under_the_settings_of_the_construction(kind):
    W = jnp.ones((7, 7))
    f = {"custom_jvp": jax.custom_jvp, "custom_vjp": jax.custom_vjp, "plain": lambda f: f}[kind](lambda x: W @ x)
    if kind == "custom_jvp":
        f.defjvp(lambda p, t: (f(*p), W @ t[0]))
    if kind == "custom_vjp":
        f.defvjp(lambda x: (f(x), None), lambda _, w: (W.T @ w,))
    for precision, expected in (("highest", "HIGHEST"), (None, "HIGHEST"), ("default", "DEFAULT")):
        with jax.default_matmul_precision(precision):
            J = linops.Jacobian(f, np.ones(7, np.float32))
        for A in (J, J.T, J.linearize()):
            dots = [line for line in text(A).splitlines() if "dot_general" in line]
            assert dots
            assert all(("HIGHEST" in line) == (expected == "HIGHEST") for line in dots), (precision, dots)


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


def test_a_hessian_is_the_slope_of_the_gradient_also_where_that_is_none():
    f = jax.custom_vjp(lambda x: x[0] * x[1])
    f.defvjp(lambda x: (f(x), x), lambda x, g: (g * jnp.stack([x[1], 0 * x[0]]),))
    H = linops.Hessian(f, np.array([2.0, 3.0], np.float32))
    np.testing.assert_allclose(H @ np.array([1.0, 10.0], np.float32), [10, 0])


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


@pytest.mark.parametrize("holder", ["callback", "partial", "equal by name"])
def test_callbacks_over_other_data_are_other_programs(holder):
    class Table:
        def __init__(self, data):
            self.data = data

        def __call__(self, i):
            return self.data[np.asarray(i)]

        def __eq__(self, other):
            return isinstance(other, Table)

        def __hash__(self):
            return 0

    def make(k):
        table = Table(np.full(3, k, np.float32))
        call = {"callback": lambda i: table(i), "partial": table.__call__, "equal by name": table}[holder]
        struct = jax.ShapeDtypeStruct((3,), np.float32)
        return linops.Jacobian(lambda x, i: x * jax.pure_callback(call, struct, i), X, args=(np.arange(3),))

    operators = [make(k) for k in (1, 5)]
    assert [float((J @ np.ones(3, np.float32))[0]) for J in operators] == [1, 5]


def test_what_is_not_known_is_the_careful_case():
    flip = Primitive("flip_imaginary")
    flip.def_impl(jnp.conj)
    flip.def_abstract_eval(lambda aval: aval)
    mlir.register_lowering(flip, mlir.lower_fun(jnp.conj, multiple_results=False))
    ad.primitive_jvps[flip] = lambda p, t: (flip.bind(*p), flip.bind(*t))
    batching.primitive_batchers[flip] = lambda a, d: (flip.bind(*a), d[0])
    J = linops.Jacobian(lambda z: flip.bind(z), np.array([1 + 2j, 3 - 1j], np.complex64))
    assert J.shape == (4, 4)

    def draws(x):
        a, b = (jax.lax.rng_uniform(jnp.float32(0), jnp.float32(1), (3,)) for _ in range(2))
        return jnp.sum(x**2 * (a - b))

    assert (linops.Hessian(draws, np.ones(3, np.float32)) @ np.ones(3, np.float32)).any()


MODULE = """
import jax, jax.numpy as jnp
f = jax.custom_{kind}(lambda x: jnp.sin(x))
{rule}
def F(x): return f(x)
"""
DEFINE = {
    "jvp": "f.defjvp(lambda p, t: (f(*p), {C} * jnp.cos(p[0]) * t[0]))",
    "vjp": "f.defvjp(lambda x: (f(x), x), lambda x, w: ({C} * jnp.cos(x) * w,))",
}
DUMP = (
    "import rules, linops, numpy as np, pickle as p; p.dump(linops.Jacobian(rules.F, np.ones(3, 'f')), open('p', 'wb'))"
)
LOAD = "import pickle as p, numpy as np; print((p.load(open('p', 'rb')).T @ np.ones(3, 'f'))[0])"


@pytest.mark.parametrize("kind", DEFINE)
def test_a_pickle_knows_the_rules_of_its_function(kind, tmp_path):
    def run(factor, code):
        module = MODULE.format(kind=kind, rule=DEFINE[kind].format(C=factor))
        pathlib.Path(tmp_path, "rules.py").write_text(module)
        command = [sys.executable, "-B", "-c", code]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert run(1.0, DUMP).returncode == 0
    assert float(run(1.0, LOAD).stdout) == pytest.approx(np.cos(1), rel=1e-6)
    assert "is not the function that it was when its operator was pickled" in run(3.0, LOAD).stderr


def test_mutable_references_are_refused():
    ref = jax.new_ref(jnp.full(3, 2.0))
    with pytest.raises(TypeError, match=r"f reads a mutable reference .* expected arrays: pass ref"):
        linops.Jacobian(lambda x: x * ref[...], X)


def test_a_rule_that_fails_says_so_at_once():
    for make in RULES.values():
        f = make(jnp.sin, lambda x: jnp.ones((2, 2)) @ x)
        with pytest.raises(linops.MissingRule, match="a custom derivative rule in f could not be traced, which raised"):
            linops.Jacobian(f, X)
        assert linops.Jacobian(lambda x, f=f: x * f(jnp.ones(3)), X).shape == (3, 3)  # not in the way of x


def _first_alone():
    """A custom_jvp function x, y -> sin(x) y whose rule refuses tangents of y."""

    @jax.custom_jvp
    def f(x, y):
        return jnp.sin(x) * y

    def rule(primals, tangents):
        if type(tangents[1]) is not jax.custom_derivatives.SymbolicZero:
            raise RuntimeError("no tangents of y, please")
        return f(*primals), jnp.cos(primals[0]) * primals[1] * tangents[0]

    f.defjvp(rule, symbolic_zeros=True)
    return f


def _first_in_reverse():
    """The same as a custom_vjp function, whose residuals have another structure where y has a tangent."""

    @jax.custom_vjp
    def f(x, y):
        return jnp.sin(x) * y

    def forward(x, y):
        kept = x.value, (y.value if y.perturbed else None), y.value
        return f(x.value, y.value), kept

    def backward(kept, w):
        assert kept[1] is None
        return jnp.cos(kept[0]) * kept[2] * w, None

    f.defvjp(forward, backward, symbolic_zeros=True)
    return f


RULE_OF_FIRST = pytest.mark.parametrize("make", [_first_alone, _first_in_reverse])
REST = {  # of x, what has no tangent whatever x is
    "an argument": lambda f: lambda x, y: f(x, y),
    "stopped": lambda f: lambda x, y: f(x, y + 0 * jax.lax.stop_gradient(x)),
    "in a loop": lambda f: lambda x, y: jax.lax.scan(lambda c, _: (f(c, y), None), x, None, length=2)[0],
    "beside a step": lambda f: (
        lambda x, y: jax.lax.scan(lambda c, _: ((f(c[0], c[1]), c[1] + 1), None), (x, y), None, length=2)[0][0]
    ),
    "an integer": lambda f: lambda x, y: f(x, y + 0 * jnp.argmax(x)),
    "in jit": lambda f: jax.jit(f),
}


@RULE_OF_FIRST
@pytest.mark.parametrize("rest", REST)
def test_a_rule_is_asked_for_what_has_tangents(make, rest):
    def plain(x, y):
        return jnp.sin(x) * y

    D = jax.jacfwd(REST[rest](plain))(X, 2 * X)
    f = REST[rest](make())
    for x in (X, 3 * X):  # whatever is cached of the first
        J = linops.Jacobian(f, x, args=(2 * X,))
        np.testing.assert_allclose(J.at(X).toarray(), D, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(J.at(X).T @ V, D.T @ V, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jacrev(f)(X, 2 * X), D, rtol=1e-5, atol=1e-6)  # nothing is left behind


@RULE_OF_FIRST
def test_a_rule_that_is_not_there_is_said_where_it_is_needed(make):
    f = make()
    with pytest.raises(linops.MissingRule):
        linops.Jacobian(lambda x: f(x, x), X).T @ V
    with pytest.raises(linops.MissingRule, match=r"no tangents of y|expected those in the point too"):
        jax.grad(lambda y: jnp.sum(linops.Jacobian(f, X, args=(y,)).T @ V))(X)


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


def test_dense_forms_where_one_mode_has_rules():
    def newton(x):
        return jax.lax.while_loop(lambda y: jnp.any(abs(y * y - x) > 1e-3), lambda y: (y + x / y) / 2, x)

    @jax.custom_vjp
    def rounded(x):
        return jnp.sin(x)

    def backward(x, w):  # which forward mode does not differentiate
        return (jax.lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, c[1] * jnp.cos(x)), (0, w))[1],)

    rounded.defvjp(lambda x: (jnp.sin(x), x), backward)
    J, R = linops.Jacobian(newton, 1 + X), linops.Jacobian(rounded, X)
    np.testing.assert_allclose(J.T.toarray(), jax.jacfwd(newton)(1 + X).T, rtol=1e-5, atol=1e-6)
    with pytest.raises(linops.MissingRule, match="forward-mode differentiation"):
        R @ V
    np.testing.assert_allclose(R.toarray(), np.diag(np.cos(X)), rtol=1e-5, atol=1e-6)
    assert R.toarray().flags.c_contiguous
    np.testing.assert_allclose(R.diagonal(), np.cos(X), rtol=1e-5)
    np.testing.assert_allclose(J.T.diagonal(), np.diagonal(J.toarray()), rtol=1e-6)


def test_an_open_jaxpr_in_the_parameters_of_a_primitive():
    """As lineax has it: a function as a jaxpr, whose constants are inputs of the equation."""
    apply = Primitive("apply_open")
    apply.def_impl(lambda c, x, *, jaxpr: jax.extend.core.jaxpr_as_fun(_closed(jaxpr, c))(x)[0])
    apply.def_abstract_eval(lambda c, x, *, jaxpr: x)
    mlir.register_lowering(apply, mlir.lower_fun(apply.impl, multiple_results=False))
    ad.primitive_jvps[apply] = lambda p, t, **kw: (
        apply.bind(*p, **kw),
        jax.jvp(lambda x: apply.impl(p[0], x, **kw), p[1:], t[1:])[1],
    )

    def f(scale):
        jaxpr = jax.make_jaxpr(lambda c, x: jnp.sin(c * x))(X, X).jaxpr
        opened = jaxpr.replace(constvars=jaxpr.invars[:1], invars=jaxpr.invars[1:])
        return lambda x: apply.bind(scale, x, jaxpr=opened)

    for scale in (2 + X, 3 + X):
        J = linops.Jacobian(f(jnp.asarray(scale)), X)
        np.testing.assert_allclose(J @ V, scale * np.cos(scale * X) * V, rtol=1e-5)


def _closed(jaxpr, const):
    return jax.extend.core.ClosedJaxpr(jaxpr, [const])


def test_args_of_a_new_point():
    J = linops.Jacobian(lambda x, a, mode: jnp.sin(a * x) if mode == "on" else x, X, args=(np.float32(2), "on"))
    J @ V
    with compilations() as count:
        product = J.at(2 * X, args=(np.float32(3), "on")) @ V
        assert count() == 0
    np.testing.assert_allclose(product, 3 * np.cos(6 * X) * V, rtol=1e-5)
    for args in ((np.float32(3), "off"), (np.ones(3, np.float32), "on"), ()):
        with pytest.raises(ValueError, match=r"at got args.* expected args like those that f was traced with"):
            J.at(X, args=args)


def test_a_sum_of_many_operators_compiles_one_program():
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(5, 3)).astype(np.float32) for _ in range(60)]

    def loss(x, batch):
        return jnp.sum(jnp.log1p(jnp.exp(batch @ x)))

    made = {
        "Hessian": [linops.Hessian(loss, X, args=(batch,)) for batch in batches],
        "GaussNewton": [linops.GaussNewton(lambda x, b: jnp.tanh(b @ x), X, args=(batch,)) for batch in batches],
        "recomputed": [linops.Hessian(loss, X, args=(batch,), linearize=False) for batch in batches],
    }
    for kind, operators in made.items():
        expected = sum(A.toarray() for A in operators)
        few, many = sum(operators[:8]), sum(operators)
        few @ V
        with compilations() as count:
            np.testing.assert_allclose(many @ V, expected @ V, rtol=1e-4, atol=1e-4, err_msg=kind)
            assert count() <= 4, kind  # stacking, and a loop of another length
        np.testing.assert_allclose(many.toarray(), expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(many.T @ V, expected.T @ V, rtol=1e-4, atol=1e-4)


def test_scatters_at_constant_places_are_code():
    places, values = jnp.array([0, 2]), jnp.array([1.0, 2.0])
    J = linops.Jacobian(lambda x: jnp.zeros(3).at[places].set(values) * x, X)
    assert sorted(leaf.size for leaf in jax.tree.leaves(J)) == [2, 3]
    labels = jnp.array([0, 2, 1])
    J = linops.Jacobian(lambda x: x[labels] ** 2, X)  # labels of a batch, say
    assert sorted(leaf.size for leaf in jax.tree.leaves(J)) == [3, 3]


@pytest.mark.parametrize("step", [jnp.sin, jnp.tanh])
def test_long_chains_compiled_in_pieces_are_right(step):
    def f(x):
        y = x
        for _ in range(60):
            y = step(y) + 0.1 * y * x
        return y

    D = np.asarray(jax.jacfwd(f)(X))
    for J in (linops.Jacobian(f, X), linops.Jacobian(f, X, linearize=False)):
        np.testing.assert_allclose(J @ V, D @ V, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(J.T @ V, D.T @ V, rtol=1e-4, atol=1e-5)
    h = lambda x: jnp.sum(f(x) ** 2)  # noqa: E731
    np.testing.assert_allclose(linops.Hessian(h, X).toarray(), jax.hessian(h)(X), rtol=1e-3, atol=1e-3)


def test_the_forward_products_of_an_adjoint_that_solves_equations():
    from jax.experimental.ode import odeint

    J = linops.Jacobian(lambda x: odeint(lambda y, t: -(y**2), x, jnp.linspace(0, 1, 3))[-1], X)
    D = np.diag(1 / (1 + X) ** 2)  # y = x / (1 + x t)
    np.testing.assert_allclose(J @ V, D @ V, rtol=1e-3)
    np.testing.assert_allclose(J.T @ V, D @ V, rtol=1e-3)
    np.testing.assert_allclose(jax.jit(lambda A, v: A @ v)(J, V), D @ V, rtol=1e-3)
