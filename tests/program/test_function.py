"""Functions from the wild against dense derivatives by JAX; fresh closures compile nothing; what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from counting import compilations
from jax.experimental import sparse
from jax.flatten_util import ravel_pytree
from models import Layer, Model, layers

import linops

FOUR = np.arange(1, 5, dtype=np.float32)


def test_integer_values():
    with pytest.raises(TypeError, match=r"the value of f\[1\] has dtype int32, expected floating point"):
        linops.Jacobian(lambda x: (x, jnp.argmax(x)), FOUR)


@pytest.mark.parametrize("value", [np.ones(3), 1.5, [1, 2]])
def test_values_that_are_not_jax(value):
    with pytest.raises(
        TypeError, match=r"f returned (ndarray|float|int).*, expected jax.Array: compute it with jax.numpy"
    ):
        linops.Jacobian(lambda x: value, FOUR)


@pytest.mark.parametrize(
    "f", [lambda x: np.sin(x), lambda x: x if x[0] > 0 else -x, lambda x: x * float(x[0]), lambda x: x[: int(x[0])]]
)
def test_functions_that_leave_jax(f):
    with pytest.raises(
        TypeError, match=r"f could not be traced.*expected a function of jax.numpy operations: use jax.numpy"
    ):
        linops.Jacobian(f, FOUR)


N = 6


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Data:
    """What the functions close over: arrays that differ from closure to closure, of one shape."""

    A: jax.Array
    b: jax.Array
    spd: jax.Array
    index: jax.Array
    key: jax.Array
    sparse: sparse.BCOO


@functools.cache
def data(seed):
    A, b = problems.normal((N, N), np.float32, seed) / 3, problems.normal(N, np.float32, seed + 1)
    entries = np.stack([np.arange(N), (np.arange(N) * 5 + seed) % N], 1)
    index = np.random.default_rng(seed).permutation(N)
    arrays = map(jnp.asarray, (A, b, A @ A.T + 2 * np.eye(N, dtype=np.float32), index.astype(np.int32)))
    return Data(*arrays, jax.random.key(seed), sparse.BCOO((jnp.asarray(b), jnp.asarray(entries)), shape=(N, N)))


@jax.custom_jvp
def softplus(x):
    return jnp.log1p(jnp.exp(x))


softplus.defjvp(lambda primals, tangents: (softplus(*primals), tangents[0] * jax.nn.sigmoid(primals[0])))


@jax.custom_vjp
def scaled_sin(x, c):
    return c * jnp.sin(x)


scaled_sin.defvjp(
    lambda x, c: (scaled_sin(x, c), (x, c)),
    lambda kept, w: (kept[1] * w * jnp.cos(kept[0]), jnp.sum(w * jnp.sin(kept[0]))),
)


@jax.custom_jvp
def host_sin(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")


host_sin.defjvp(lambda primals, tangents: (host_sin(*primals), tangents[0] * jnp.cos(primals[0])))


def local_custom_jvp(c):
    """A custom rule that is defined anew for each closure."""

    @jax.custom_jvp
    def f(x):
        return c * jnp.sin(x)

    f.defjvp(lambda primals, tangents: (f(*primals), c * jnp.cos(primals[0]) * tangents[0]))
    return f


def newton_root(A, b, x):
    """The solution y of y + 0.1 tanh(A y) = b * x by a fixed number of steps."""
    return jax.lax.fori_loop(0, 8, lambda _, y: b * x - 0.1 * jnp.tanh(A @ y), x)


def backward(A, b, x, unroll=1):
    """A loop that starts at the last number; what it calls is jitted, so that JAX leaves the array in the loop."""
    step = jax.jit(lambda y, b: jnp.tanh(A @ y + b))
    return jax.lax.scan(lambda y, b: (step(y, b), y[0]), x, b, reverse=True, unroll=unroll)


def solved(A, b, x):
    """The solution y of 3 y + x * (A y) = b * x; the product with A is jitted, so that JAX leaves the array in it."""
    times = jax.jit(lambda y: A @ y)

    def dense(product, b):
        return jnp.linalg.solve(jax.vmap(product, 1, 1)(jnp.eye(N)), b)

    return jax.lax.custom_linear_solve(lambda y: 3 * y + x * times(y), b * x, dense, dense)


def rotated(A, x):
    """A symmetric matrix that depends on x, with separate eigenvalues."""
    return jnp.diag(jnp.arange(1.0, N + 1)) + 0.1 * jnp.outer(x, x) + 0.1 * (A + A.T)


# Models as they are written with equinox, flax and haiku.


def apply(variables, x, train=False):
    """As flax has it: nested dicts, with what is not trained beside what is."""
    for name in sorted(variables["params"]):
        layer = variables["params"][name]
        x = jax.nn.gelu(x @ layer["kernel"] + layer["bias"])
        if train:
            x = x / variables["statistics"][name]
    return x


def variables():
    weights = {"dense_0": problems.normal((N, 4), np.float32) / 3, "dense_1": problems.normal((4, 2), np.float32) / 3}
    return {name: {"kernel": w, "bias": 0.2 * w[0]} for name, w in weights.items()}


def vector():
    return jnp.asarray(problems.normal(N, np.float32, 42))


# Each entry makes from Data a function, of a point that is named beside it, to any pytree.
FUNCTIONS = {
    "relu": (lambda d: lambda x: jax.nn.relu(d.A @ x) * x, vector),
    "softmax": (lambda d: lambda x: jax.nn.softmax(d.A @ x), vector),
    "log_softmax": (lambda d: lambda x: jax.nn.log_softmax(d.b * x)[:3], vector),
    "logsumexp": (lambda d: lambda x: jax.nn.logsumexp(d.A * x, axis=1), vector),
    "logsumexp with weights": (lambda d: lambda x: jax.scipy.special.logsumexp(x, b=d.b**2), vector),
    "gelu": (lambda d: lambda x: jax.nn.gelu(d.A @ x), vector),
    "silu, elu, softplus": (lambda d: lambda x: jax.nn.silu(d.b * x) + jax.nn.elu(x) * jax.nn.softplus(x), vector),
    "where": (lambda d: lambda x: jnp.where(x > d.b, x**2, jnp.abs(x)), vector),
    "custom_jvp": (lambda d: lambda x: softplus(d.A @ x), vector),
    "custom_jvp of its own": (lambda d: lambda x: local_custom_jvp(2.0)(d.A @ x), vector),
    "custom_vjp": (lambda d: lambda x: scaled_sin(d.A @ x, d.b[0]) * x, vector),
    "scan": (lambda d: lambda x: jax.lax.scan(lambda c, b: (jnp.tanh(d.A @ c + b), c[0]), x, d.b), vector),
    "jit in a reversed scan": (lambda d: lambda x: backward(d.A, d.b, x), vector),
    "a reversed scan written out": (lambda d: lambda x: backward(d.A, d.b, x, unroll=True), vector),
    "associative_scan": (lambda d: lambda x: jax.lax.associative_scan(jnp.multiply, d.b * x), vector),
    "map": (lambda d: lambda x: jax.lax.map(lambda row: jnp.sin(row @ x), d.A), vector),
    "fori_loop": (lambda d: lambda x: newton_root(d.A, d.b, x), vector),
    "cond": (lambda d: lambda x: jax.lax.cond(x[0] > 0, lambda x: d.A @ x, lambda x: x**2 * d.b, x), vector),
    "switch": (
        lambda d: lambda x: jax.lax.switch(d.index[0] % 3, [jnp.sin, lambda x: d.A @ x * x, jnp.exp], x),
        vector,
    ),
    "solve": (lambda d: lambda x: jnp.linalg.solve(d.spd + jnp.diag(x**2), d.b * x), vector),
    "inv, det": (lambda d: lambda x: (jnp.linalg.inv(d.spd + jnp.diag(x)), jnp.linalg.slogdet(d.spd * x)[1]), vector),
    "cholesky": (lambda d: lambda x: jnp.linalg.cholesky(d.spd + jnp.outer(x, x)), vector),
    "eigh": (lambda d: lambda x: jnp.linalg.eigh(rotated(d.A, x))[0], vector),
    "svd": (lambda d: lambda x: jnp.linalg.svd(rotated(d.A, x)[:4], compute_uv=False), vector),
    "qr": (lambda d: lambda x: jnp.linalg.qr(rotated(d.A, x))[1], vector),
    "triangular solve": (
        lambda d: lambda x: jax.scipy.linalg.solve_triangular(d.spd + jnp.diag(x), x, lower=True),
        vector,
    ),
    "linear solve": (lambda d: lambda x: solved(d.A, d.b, x), vector),
    "cg": (lambda d: lambda x: jax.scipy.sparse.linalg.cg(lambda y: d.spd @ y, x**2, maxiter=N)[0], vector),
    "fft": (lambda d: lambda x: jnp.abs(jnp.fft.fft(d.A @ x)) ** 2, vector),
    "rfft, irfft": (lambda d: lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(d.b), N) ** 2, vector),
    "convolution": (lambda d: lambda x: jnp.convolve(x, d.b[:3], mode="same") * x, vector),
    "BCOO": (lambda d: lambda x: jnp.sin(d.sparse @ x), vector),
    "random, key closed over": (
        lambda d: lambda x: x * jax.random.normal(d.key, (N,)) + jax.random.uniform(d.key),
        vector,
    ),
    "dropout": (lambda d: lambda x: jnp.where(jax.random.bernoulli(d.key, 0.5, (N,)), d.b * x**2, 0), vector),
    "gather": (lambda d: lambda x: x[d.index] * x[:1], vector),
    "scatter": (lambda d: lambda x: d.b.at[d.index[:3]].add(x[:3] ** 2).at[0].mul(x[1]), vector),
    "segment_sum": (lambda d: lambda x: jax.ops.segment_sum(x**2, d.index // 2, num_segments=3), vector),
    "dynamic slice": (lambda d: lambda x: jax.lax.dynamic_slice(x**3, (d.index[0] // 2,), (2,)), vector),
    "sort": (lambda d: lambda x: jnp.sort(d.b * x) ** 2, vector),
    "argsort, take": (lambda d: lambda x: jnp.take(x**2, jnp.argsort(x))[:4], vector),
    "top_k": (lambda d: lambda x: jax.lax.top_k(x * d.b, 2)[0] ** 2, vector),
    "cumsum, cumprod": (lambda d: lambda x: jnp.cumsum(d.b * x**2) + jnp.cumprod(x), vector),
    "cumlogsumexp": (lambda d: lambda x: jax.lax.cumlogsumexp(d.b * x), vector),
    "max, median": (lambda d: lambda x: jnp.stack([jnp.max(d.b * x**2), jnp.median(x) ** 2]), vector),
    "interp": (lambda d: lambda x: jnp.interp(x, jnp.linspace(-3, 3, N), d.b) * x, vector),
    "special functions": (
        lambda d: lambda x: jax.scipy.special.erf(d.b * x) + jax.scipy.special.gammaln(1 + x**2),
        vector,
    ),
    "norm": (lambda d: lambda x: jnp.linalg.norm(d.A @ x) * x, vector),
    "einsum": (lambda d: lambda x: jnp.einsum("i,ij,j,k->k", x, d.A, x, d.b), vector),
    "checkpoint": (lambda d: jax.checkpoint(lambda x: jnp.sin(d.A @ jnp.sin(d.A @ x))), vector),
    "checkpoint with policy": (
        lambda d: jax.checkpoint(lambda x: jnp.sin(d.A @ x), policy=jax.checkpoint_policies.dots_saveable),
        vector,
    ),
    "vmap inside": (lambda d: lambda x: jax.vmap(lambda row: jnp.tanh(row @ x))(d.A), vector),
    "jit inside": (lambda d: jax.jit(lambda x: jax.jit(jnp.sin)(d.A @ x)), vector),
    "grad inside": (lambda d: jax.grad(lambda x: jnp.sum(jnp.tanh(d.A @ x) ** 3)), vector),
    "jvp inside": (lambda d: lambda x: jax.jvp(lambda x: jnp.tanh(d.A @ x), (x,), (d.b,))[1], vector),
    "hvp inside": (lambda d: lambda x: jax.jvp(jax.grad(lambda x: jnp.sum((d.A @ x) ** 4)), (x,), (d.b,))[1], vector),
    "debug.print": (lambda d: lambda x: _printing(d.A @ x), vector),
    "callback within custom_jvp": (lambda d: lambda x: host_sin(d.b * x), vector),
    "stop_gradient": (lambda d: lambda x: jax.lax.stop_gradient(x**2) * d.b * x**2, vector),
    "bfloat16 inside": (lambda d: lambda x: (d.b * x).astype(jnp.bfloat16).astype(jnp.float32), vector),
    "named_scope": (lambda d: lambda x: _named(d.A @ x), vector),
    "donated": (lambda d: jax.jit(lambda x: d.b * x**2, donate_argnums=0), vector),
    "odeint": (lambda d: lambda x: _runge_kutta(lambda y: jnp.sin(d.A @ y), x), vector),
    "equinox": (lambda d: lambda model: model(d.b), lambda: Layer(vector() * jnp.ones((3, 1)), jnp.ones(3))),
    "equinox, nested": (lambda d: lambda model: model(d.b), lambda: Model(layers(), "two layers")),
    "flax": (lambda d: lambda params: apply({"params": params}, d.A), variables),
    "flax, with statistics": (
        lambda d: (
            lambda params: apply({"params": params, "statistics": {"dense_0": d.b[0], "dense_1": 2.0}}, d.A, True)
        ),
        variables,
    ),
    "haiku": (
        lambda d: lambda params: jnp.tanh(d.b @ params["linear/~/w"]["w"]) + params["linear/~/w"]["b"],
        lambda: {"linear/~/w": {"w": problems.normal((N, 3), np.float32), "b": np.ones(3, np.float32)}},
    ),
}


# Where fresh closures compile anew, and why.
COMPILES_ANEW = {}


def _printing(x):
    jax.debug.print("{x}", x=x[0])
    return jnp.sin(x)


@jax.named_call
def _named(x):
    with jax.named_scope("inner"):
        return jnp.sin(x)


def _runge_kutta(field, y, steps=4, h=0.1):
    def step(y, _):
        k1 = field(y)
        return y + h * field(y + h / 2 * k1), None

    return jax.lax.scan(step, y, None, length=steps)[0]


def scalar_of(f):
    return lambda x: sum(jnp.sum(jnp.sin(leaf) * leaf) for leaf in jax.tree.leaves(f(x)))


def build(f, x):
    """Together they take every derivative."""
    return [linops.Jacobian(f, x), linops.Hessian(scalar_of(f), x)]


def dense(make, x):
    """The same by JAX alone, as a function of the data."""
    v, unravel = ravel_pytree(x)

    def reference(hessian, d):
        f = make(d)
        J = jax.jacrev(lambda v: ravel_pytree(f(unravel(v)))[0])(v)
        return J, hessian(lambda v: scalar_of(f)(unravel(v)))(v)

    forward = jax.jit(functools.partial(reference, jax.hessian))
    reverse = jax.jit(functools.partial(reference, lambda f: jax.jacrev(jax.jacrev(f))))

    def matrices(d):
        try:
            J, H = forward(d)
        except TypeError:  # custom_vjp
            J, H = reverse(d)
        J, H = np.asarray(J, np.float64), np.asarray(H, np.float64)
        return [J, H]

    return matrices


def products(operators):
    return [A @ np.cos(np.arange(A.shape[1], dtype=np.float32)) for A in operators]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives(name, capfd):
    make, point = FUNCTIONS[name]
    x, reference = point(), dense(FUNCTIONS[name][0], point())
    first = build(make(data(0)), x)
    tolerance = 1e-2 if name == "bfloat16 inside" else 1e-4  # its products are rounded, and not those of its matrix
    assert_right(first, products(first), reference(data(0)), tolerance)
    fresh = [make(data(seed)) for seed in (1, 2, 5)]
    with compilations() as count:
        for f in fresh[:-1]:
            products([linops.Jacobian(f, x)])
        last = build(fresh[-1], x)
        results = products(last)
        compiled = count()
    assert (compiled > 0) == (name in COMPILES_ANEW), f"{compiled} compilations"
    assert_right(last, results, reference(data(5)), tolerance)


def assert_right(operators, results, matrices, tolerance):
    for A, w, D in zip(operators, results, matrices, strict=True):
        expected = D @ np.cos(np.arange(A.shape[1]))
        np.testing.assert_allclose(w, expected, rtol=1e-3, atol=tolerance * (1 + np.abs(D).max()), err_msg=repr(A))


X = np.array([0.1, 0.2, 0.3], np.float32)


def test_a_loop_whose_condition_and_body_depend_on_the_point():
    """And whose body is jitted, so that JAX leaves the array in it."""
    A = data(0).A
    step = jax.jit(lambda y: y + jnp.abs(A @ y) / 8)

    def f(x):
        bound, rate = 20 + jnp.sin(x[0]), 1 + x[1] ** 2 / 8
        return jax.lax.while_loop(lambda y: jnp.sum(y) < bound, lambda y: rate * step(y) + 1, x)

    np.testing.assert_allclose(linops.Jacobian(f, vector()).toarray(), jax.jit(jax.jacfwd(f))(vector()), rtol=1e-4)

    def many(x):  # each of which goes on by itself
        return jax.vmap(lambda scale: f(scale * x))(jnp.array([0.1, 1.0, 5.0]))

    expected = jax.jit(jax.jacfwd(many))(vector()).reshape(-1, len(vector()))
    np.testing.assert_allclose(linops.Jacobian(many, vector()).toarray(), expected, rtol=1e-4)


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


def test_mutable_references_are_refused():
    ref = jax.new_ref(jnp.full(3, 2.0))
    with pytest.raises(TypeError, match=r"f reads a mutable reference .* expected arrays: pass ref"):
        linops.Jacobian(lambda x: x * ref[...], X)
