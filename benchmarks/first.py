"""Seconds to the first product of a hundred functions, tracing and compilation included, beside those by hand.

By hand is what one would write: `jax.jit` of a `jax.jvp`, of f for its Jacobian and of its gradient for its Hessian.
All caches are emptied before each. Of each function the fastest of some runs in turn: a compilation is seldom faster
by chance.
"""

import functools
import time

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
from problems import KINDS, SHARING, normal

import linops
from linops.program.staged import clear_caches

_X = jnp.asarray(np.linspace(0.1, 0.9, 36, dtype=np.float32))
_M = jnp.asarray(normal(36 * 36).reshape(36, 36) / 6)
_PLACES = jnp.asarray(np.random.default_rng(0).integers(0, 36, 100))

_ELEMENTWISE = [
    jnp.sin, jnp.tanh, jnp.exp, jnp.log, jnp.sqrt, jnp.arctan, jnp.expm1, jnp.log1p, jnp.cbrt, jnp.square, jnp.sinc,
    jax.nn.relu, jax.nn.gelu, jax.nn.silu, jax.nn.softplus, jax.nn.sigmoid, jax.nn.elu, jax.nn.selu, jax.nn.swish,
    jax.nn.softmax, jax.nn.log_softmax, jax.nn.standardize, jsp.special.erf, jsp.special.gammaln, jsp.special.expit,
    jsp.special.logit, jsp.special.ndtri, jsp.special.i0, jsp.special.entr,
]  # fmt: skip


def _square(x):
    return x.reshape(6, 6)


def _definite(x):
    return _square(x) @ _square(x).T + jnp.diag(jnp.arange(1.0, 7))


def _unrolled(step, count):
    return lambda x: functools.reduce(lambda x, _: step(x), range(count), x)


def _scatters(count, size=300):
    places = [jnp.array([3 * i % size, (3 * i + 1) % size, (3 * i + 2) % size]) for i in range(count)]
    values = [jnp.array([1.0, 2.0, 3.0 + i]) for i in range(count)]

    def f(x):
        table = jnp.zeros(size)
        for place, value in zip(places, values, strict=True):
            table = table.at[place].set(value)
        return jnp.sin(x[0] * table)

    return f


def _network(activation, depth):
    def f(x):
        h = jnp.outer(jnp.linspace(-1, 1, 20), x)
        for _ in range(depth):
            h = activation(h @ _M)
        return h.mean(1)

    return f


_STRUCTURED = {
    "matrix-vector product": lambda x: _M @ x,
    "bilinear": lambda x: x * (_M @ x),
    "softmax of a product": lambda x: jax.nn.softmax(_M @ x),
    "logsumexp": lambda x: jax.nn.logsumexp(_M * x, axis=1),
    "norms": lambda x: jnp.linalg.norm(_M * x, axis=1),
    "variance": lambda x: jnp.var(_M * x, axis=1),
    "determinant": lambda x: jnp.linalg.slogdet(_definite(x))[1][None],
    "inverse": lambda x: jnp.linalg.inv(_definite(x)),
    "solve": lambda x: jnp.linalg.solve(_definite(x), x[:6]),
    "Cholesky": lambda x: jnp.linalg.cholesky(_definite(x)),
    "eigenvalues": lambda x: jnp.linalg.eigvalsh(_definite(x)),
    "singular values": lambda x: jnp.linalg.svd(_square(x), compute_uv=False),
    "QR": lambda x: jnp.linalg.qr(_definite(x))[1],
    "exponential of a matrix": lambda x: jsp.linalg.expm(_square(x)),
    "triangular solve": lambda x: jsp.linalg.solve_triangular(_definite(x), x[:6]),
    "sort": jnp.sort,
    "cumulative sum": jnp.cumsum,
    "cumulative product": jnp.cumprod,
    "maximum": lambda x: jnp.max(_M * x, axis=0),
    "median": lambda x: jnp.median(_M * x, axis=0),
    "gather": lambda x: jnp.sin(x[_PLACES]),
    "segment sum": lambda x: jax.ops.segment_sum(jnp.sin(x), _PLACES[:36] % 5, 5),
    "scatter of values": lambda x: jnp.zeros(100).at[_PLACES[:36]].add(x**2),
    "FFT": lambda x: jnp.abs(jnp.fft.rfft(x)) ** 2,
    "convolution": lambda x: jnp.convolve(jnp.sin(x), x[:5]),
    "interpolation": lambda x: jnp.interp(x, jnp.linspace(0, 1, 36), x),
    "five-point stencil": lambda x: (u := jnp.pad(_square(x), 1))[1:, 1:] * u[:-1, :-1] + jnp.roll(u, 1, 0)[1:, 1:],
    "where": lambda x: jnp.where(x > 0.5, jnp.sin(x), x**2),
    "cond": lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),
    "scan": lambda x: jax.lax.scan(lambda c, _: (jnp.tanh(_M @ c), c[0]), x, None, length=10),
    "while": lambda x: jax.lax.fori_loop(0, 10, lambda _, c: jnp.sin(c) + x, x),
    "checkpoint": jax.checkpoint(lambda x: jnp.tanh(_M @ jnp.tanh(_M @ x))),
    "vmap": jax.vmap(lambda a: jnp.sin(a) * a**2),
    "random numbers": lambda x: x * jax.random.normal(jax.random.key(0), (36,)),
    "associative scan": lambda x: jax.lax.associative_scan(jnp.multiply, x),
    "polynomial": lambda x: jnp.polyval(jnp.arange(6.0), x),
    "Gram matrix of distances": lambda x: jnp.exp(-((x[:, None] - x) ** 2)),
    "custom_jvp": jax.nn.relu6,
    "network, tanh": _network(jnp.tanh, 3),
    "network, relu": _network(jax.nn.relu, 3),
    "network, gelu, 8 layers": _network(jax.nn.gelu, 8),
    "100 scatters": _scatters(100),
    "chain of 100 sin": _unrolled(lambda x: jnp.sin(x) + 0.1 * x, 100),
    "chain of 50 products": _unrolled(lambda x: jnp.tanh(_M @ x), 50),
    "chain of 30 rotations": _unrolled(lambda x: jnp.roll(x, 1) * jnp.cos(x), 30),
}


def report(runs=3):
    """Print the table; by function the seconds of linops and by hand, and the median and the worst of their ratios."""
    found = {}
    for name, make_ours, by_hand in _tasks():
        samples = [(_fresh(by_hand), _fresh(make_ours)) for _ in range(runs)]
        hand, ours = (min(times) for times in zip(*samples, strict=True))
        found[name] = {"linops": ours, "by hand": hand}
        print(f"    {name:45} {1e3 * ours:7.0f} ms, by hand {1e3 * hand:7.0f} ms  {ours / hand:5.2f}", flush=True)
    ratios = {name: times["linops"] / times["by hand"] for name, times in found.items()}
    worst = max(ratios, key=ratios.get)
    low, high = np.percentile([*ratios.values()], [50, 90])
    print(f"first products of {len(ratios)} functions: {low:.2f} of by hand in the median, ", end="")
    print(f"{high:.2f} in nine of ten, {ratios[worst]:.2f} at worst ({worst})\n")
    return {"first products": {"functions": found, "median": float(low), "worst": ratios[worst]}}


def _tasks():
    functions = {f.__name__: (f, _X) for f in _ELEMENTWISE} | {name: (f, _X) for name, f in _STRUCTURED.items()}
    for name, (f, x) in functions.items():
        yield f"Jacobian, {name}", *_both(linops.Jacobian, f, f, x)
    scalars = {name: (_summed(f), x) for name, (f, x) in functions.items() if f not in _ELEMENTWISE[10:]}
    scalars |= {kind.__name__: kind() for kind in KINDS + SHARING}
    for name, (f, x) in scalars.items():
        yield f"Hessian, {name}", *_both(linops.Hessian, f, jax.grad(f), x)


def _summed(f):
    return lambda x: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(f(x)))


def _both(operator, f, differentiated, x):
    v, flat = jax.tree.map(jnp.ones_like, x), np.ones(sum(leaf.size for leaf in jax.tree.leaves(x)), np.float32)

    def by_hand():
        return jax.jit(lambda x, v: jax.jvp(differentiated, (x,), (v,))[1])(x, v)

    return lambda: operator(f, x) @ flat, by_hand


def _fresh(call):
    jax.clear_caches()
    clear_caches()
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start
