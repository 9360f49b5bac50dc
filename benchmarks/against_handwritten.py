"""linops beside the LinearOperator that one writes by hand over jitted functions, interleaved in one process.

    python benchmarks/against_handwritten.py [--json FILE]

Each row runs the two in turn and gives the medians with quartiles, and the ratio of the medians: how many times
faster linops is. The row of closed-over data compares linops with itself, data closed over and data in `args`, each
construction and first product in a fresh process.
"""

import argparse
import itertools
import json
import platform
import subprocess
import sys
import time

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import scipy
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh
from threadpoolctl import threadpool_limits

import linops

COMPILATIONS = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: COMPILATIONS.append(seconds) if "backend_compile_duration" in event else None
)


def handwritten(shape, matvec, rmatvec=None):
    """What a careful user writes: data as arguments, float32 said, products made writable."""

    class Handwritten(LinearOperator):
        def __init__(self):
            super().__init__(np.float32, shape)

        def _matvec(self, v):
            return np.array(matvec(v))

        def _rmatvec(self, w):
            return np.array(rmatvec(w))

    return Handwritten()


def interleaved(ours, theirs, runs):
    """Seconds of each, called in turn, after one call of each."""
    seconds = ([], [])
    for i in range(runs + 1):
        for function, times in zip((ours, theirs), seconds, strict=True):
            start = time.perf_counter()
            function()
            if i:
                times.append(time.perf_counter() - start)
    return seconds


def tiny():
    """A @ v at n = 1,000, f = sum(x ** 4)."""
    f = lambda x: jnp.sum(x**4)  # noqa: E731
    x = np.linspace(-1, 1, 1000, dtype=np.float32)
    hvp, point = jax.jit(lambda x, v: jax.jvp(jax.grad(f), (x,), (v,))[1]), jnp.asarray(x)
    A, B = linops.Hessian(f, x), handwritten((1000, 1000), lambda v: hvp(point, v))
    return interleaved(lambda: A @ x, lambda: B @ x, 5000)


def normal_equations():
    """(J.T @ J + lam I) @ v at n = 100,000, beside SciPy's algebra over two jitted operators."""
    n, lam = 100_000, np.float32(0.1)
    f = lambda x: jnp.tanh(x[:-1]) * x[1:] + jnp.sin(x[:-1])  # noqa: E731
    x = np.random.default_rng(0).normal(size=n).astype(np.float32)
    jvp = jax.jit(lambda x, v: jax.jvp(f, (x,), (v,))[1])
    vjp = jax.jit(lambda x, w: jax.vjp(f, x)[1](w)[0])
    point = jnp.asarray(x)
    J = linops.Jacobian(f, x)
    A = J.T @ J + lam * linops.Identity(n)
    hand = handwritten((n - 1, n), lambda v: jvp(point, v), lambda w: vjp(point, w))
    B = hand.H @ hand + lam * handwritten((n, n), lambda v: v)
    np.testing.assert_allclose(A @ x, B @ x, rtol=1e-4, atol=1e-4)
    assert (A @ x).dtype == np.float32
    return interleaved(lambda: A @ x, lambda: B @ x, 500)


def digits_network(sizes, seed=0):
    """The mean cross-entropy of a tanh network on scikit-learn's digits, and its weights."""
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    inputs, labels = jnp.asarray(inputs / 16, jnp.float32), jnp.asarray(labels)
    rng = np.random.default_rng(seed)
    shapes = itertools.pairwise(sizes)
    weights = [(jnp.asarray(rng.normal(size=s) / np.sqrt(s[0]), jnp.float32), jnp.zeros(s[1])) for s in shapes]

    def loss(weights):
        *hidden, (W, b) = weights
        h = inputs
        for V, c in hidden:
            h = jnp.tanh(h @ V + c)
        outputs = h @ W + b
        return jnp.mean(jax.nn.logsumexp(outputs, axis=1) - jnp.take_along_axis(outputs, labels[:, None], 1)[:, 0])

    return loss, weights


def digits_operators():
    loss, weights = digits_network((64, 256, 256, 10))
    point, unravel = ravel_pytree(weights)
    hvp = jax.jit(lambda x, v: jax.jvp(jax.grad(lambda x: loss(unravel(x))), (x,), (v,))[1])
    n = point.size
    v = np.random.default_rng(1).normal(size=n).astype(np.float32)
    return linops.Hessian(loss, weights), handwritten((n, n), lambda v: hvp(point, v)), v


def digits_product():
    """Hessian of the digits MLP at n = 85,002: H @ v."""
    A, B, v = digits_operators()
    return interleaved(lambda: A @ v, lambda: B @ v, 60)


def digits_eigsh():
    """Hessian of the digits MLP at n = 85,002: eigsh(k=10)."""
    A, B, v = digits_operators()
    return interleaved(lambda: eigsh(A, k=10, v0=v), lambda: eigsh(B, k=10, v0=v), 11)


def digits_eigsh_one_blas_thread():
    """The same, linops as its docs advise with BLAS held to one thread (threadpoolctl), the other as it is."""
    A, B, v = digits_operators()

    def held():
        with threadpool_limits(1, "blas"):
            eigsh(A, k=10, v0=v)

    return interleaved(held, lambda: eigsh(B, k=10, v0=v), 11)


def digits_eigsh_both_one_blas_thread():
    """The same, both with BLAS held to one thread."""
    with threadpool_limits(1, "blas"):
        return digits_eigsh()


def closed_over():
    """400 MB of data: construction and first product with the array closed over, beside the array in args."""
    command = [sys.executable, __file__, "--first-product"]
    seconds = ([], [])
    for _ in range(5):
        for kind, times in zip(("closure", "args"), seconds, strict=True):
            times.append(float(subprocess.run([*command, kind], capture_output=True, text=True, check=True).stdout))
    return seconds


def first_product(kind):
    """Seconds from construction to the first product, over a 400 MB array."""
    A, x = jnp.ones((10_000, 10_000)).block_until_ready(), np.ones(10_000, np.float32)
    jax.jit(jnp.tanh)(x).block_until_ready()
    start = time.perf_counter()
    if kind == "closure":
        J = linops.Jacobian(lambda x: jnp.tanh(A @ x), x)
    else:
        J = linops.Jacobian(lambda x, A: jnp.tanh(A @ x), x, args=(A,))
    J @ x
    seconds = time.perf_counter() - start
    assert sum(array.nbytes == A.nbytes for array in jax.live_arrays()) == 1
    return seconds


def fresh_lambdas():
    """A Hessian from a fresh lambda with its first product, beside the first compilation (n = 85,002)."""

    def construct(seed):
        loss, weights = digits_network((64, 256, 256, 10), seed)
        before, start = len(COMPILATIONS), time.perf_counter()
        linops.Hessian(lambda x: loss(x), weights) @ np.ones(85_002, np.float32)
        return time.perf_counter() - start, COMPILATIONS[before:]

    compilation = sum(construct(0)[1])
    again = [construct(seed) for seed in range(1, 21)]
    assert not any(compilations for _, compilations in again)
    return [seconds for seconds, _ in again], [compilation]


ROWS = [
    fresh_lambdas,
    tiny,
    normal_equations,
    digits_product,
    digits_eigsh,
    digits_eigsh_one_blas_thread,
    digits_eigsh_both_one_blas_thread,
    closed_over,
]


def main():
    """Run all rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--first-product", choices=["closure", "args"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first_product:
        print(first_product(options.first_product))
        return
    versions = f"Python {platform.python_version()}, JAX {jax.__version__}, SciPy {scipy.__version__}"
    print(f"{versions}, {jax.devices()[0].device_kind}, {jax.default_backend()}\n")
    report = {"versions": versions, "device": str(jax.devices()[0]), "rows": []}
    for row in ROWS:
        ours, theirs = (np.percentile(times, [25, 50, 75]) for times in row())
        ratio = theirs[1] / ours[1]
        print(f"{row.__doc__}\n    linops {_show(ours)}   beside {_show(theirs)}   {ratio:.2f} times", flush=True)
        report["rows"].append({"row": row.__doc__, "linops": list(ours), "beside": list(theirs), "ratio": ratio})
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=2)


def _show(quartiles):
    low, median, high = 1e3 * quartiles
    return f"{median:.4g} ms ({low:.4g} to {high:.4g})"


if __name__ == "__main__":
    main()
