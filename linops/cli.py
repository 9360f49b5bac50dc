"""The console script: `linops spectrum`."""

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import operator
import os
import sys
import time

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from linops.arrays import float64_if
from linops.blas import one_blas_thread
from linops.derivatives.hessian import Hessian


def main(arguments=None):
    """Run the console script; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="linops", description="Matrix-free operators from derivatives of JAX functions."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {importlib.metadata.version('linops')}")
    commands = parser.add_subparsers(required=True, metavar="command")
    spectrum = commands.add_parser(
        "spectrum",
        help="extreme Hessian eigenvalues of a scalar JAX function",
        description="Extreme Hessian eigenvalues of a scalar JAX function at a point, by SciPy's eigsh, with "
        "residuals. Without a target: a small network trained on scikit-learn's digits, in float64. For your own "
        "function in float64, set the environment variable JAX_ENABLE_X64=1.",
    )
    spectrum.add_argument("target", nargs="?", metavar="MODULE:FUNCTION", help="a scalar JAX function of a pytree")
    spectrum.add_argument("--at", metavar="MODULE:POINT", help="the point: a pytree, or a function that returns it")
    spectrum.add_argument("-k", type=int, default=5, help="how many eigenvalues at each end (default: %(default)s)")
    spectrum.add_argument("--json", metavar="FILE", help="write the report to a file as well")
    options = parser.parse_args(arguments)
    if options.k < 1:
        spectrum.error(f"-k is {options.k}, expected at least 1")
    if bool(options.target) != bool(options.at):
        spectrum.error("a target and --at go together: linops spectrum MODULE:FUNCTION --at MODULE:POINT")
    compilations = _listen_to_compilations()
    try:
        with _writable(options.json) as file, float64_if(not options.target), one_blas_thread():
            title, f, x = _user_problem(options) if options.target else digits_problem()
            report = {"title": title, **extreme_eigenvalues(f, x, options.k, compilations)}
            print(format_report(report))
            if file:
                file.write(json.dumps(report, indent=2) + "\n")
    except (ImportError, AttributeError, TypeError, ValueError, FloatingPointError, OSError) as error:
        print(f"linops: {error}", file=sys.stderr)
        return 1
    return 0 if report["converged"] else 1


def _writable(path):
    """A file to write, opened before any work is done, or a context without one."""
    return open(path, "w") if path else contextlib.nullcontext()


def _user_problem(options):
    """The name, the function and the point that a user gives."""
    x = _load(options.at)
    return options.target, _load(options.target), x() if callable(x) else x


def _listen_to_compilations():
    """A list to which JAX adds the seconds of each XLA compilation from now on."""
    compilations = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return compilations


def extreme_eigenvalues(f, x, k, compilations):
    """The k largest and k smallest Hessian eigenvalues with residuals, and what they cost, as a dict for JSON."""
    H = Hessian(f, x)
    n = H.shape[0]
    v0 = np.random.default_rng(0).normal(size=n).astype(H.dtype)
    H @ v0
    counted = _Counted(H)
    ends, converged = {}, True
    for name, which in (("largest", "LA"), ("smallest", "SA")):
        try:
            pairs = _eigenpairs(counted, k, which, v0)
        except ArpackNoConvergence as error:
            pairs, converged = (error.eigenvalues, error.eigenvectors), False
        ends[name] = [
            {"eigenvalue": float(value), "residual": float(np.linalg.norm(H @ vector - value * vector))}
            for value, vector in sorted(
                zip(pairs[0], pairs[1].T, strict=True), key=lambda p: p[0], reverse=which == "LA"
            )
        ]
    return {
        "n": n,
        "dtype": str(H.dtype),
        "device": str(jax.devices()[0]),
        "converged": converged,
        "products": len(counted.seconds),
        "seconds_per_product": float(np.median(counted.seconds)),
        "compilations": len(compilations),
        "seconds_compiling": sum(compilations),
        **ends,
    }


def _eigenpairs(A, k, which, v0):
    n = A.shape[0]
    if n > 3 * k:
        return eigsh(A, k=k, which=which, v0=v0)
    values, vectors = np.linalg.eigh(A @ np.eye(n, dtype=A.dtype))  # too small for Lanczos: all of them, densely
    chosen = slice(max(n - k, n // 2), None) if which == "LA" else slice(min(k, n // 2))
    return values[chosen], vectors[:, chosen]


class _Counted(LinearOperator):
    """An operator that times its products."""

    def __init__(self, operator):
        super().__init__(operator.dtype, operator.shape)
        self._operator = operator
        self.seconds = []

    def _matvec(self, v):
        start = time.perf_counter()
        product = self._operator.matvec(v)
        self.seconds.append(time.perf_counter() - start)
        return product

    _rmatvec = _matvec


def format_report(report):
    """The report as text."""
    lines = [
        f"Hessian spectrum of {report['title']}",
        f"  {report['n']:,} x {report['n']:,} {report['dtype']} on {report['device']}",
        f"  {report['products']:,} products, {1e3 * report['seconds_per_product']:.2f} ms each (median); "
        f"{report['compilations']} compilations, {report['seconds_compiling']:.2f} s in all",
    ]
    for end in ("largest", "smallest"):
        lines += ["", f"  {end + ' eigenvalues':>20}   residual |Av - lv|"]
        lines += [f"  {pair['eigenvalue']:20.6g}   {pair['residual']:.1e}" for pair in report[end]]
    if not report["converged"]:
        lines += ["", "  ARPACK did not converge on all eigenvalues asked for; those that it found are shown"]
    return "\n".join(lines)


def digits_problem():
    """A title, the loss and the weights of a small network, trained on scikit-learn's digits by SciPy's Newton-CG."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError(
            "the embedded problem needs scikit-learn, which is not installed; pip install 'linops[examples]', or give "
            "a target: linops spectrum MODULE:FUNCTION --at MODULE:POINT"
        ) from None
    inputs, labels = load_digits(return_X_y=True)
    inputs, labels = jnp.asarray(inputs / 16), jnp.asarray(labels)
    rng = np.random.default_rng(0)
    layers = [(rng.normal(size=size) / np.sqrt(size[0]), np.zeros(size[1])) for size in ((64, 32), (32, 10))]
    x, unravel = ravel_pytree(layers)

    def outputs(x):
        (W1, b1), (W2, b2) = unravel(x)
        return jnp.tanh(inputs @ W1 + b1) @ W2 + b2

    def loss(x):
        z = outputs(x)
        return jnp.mean(jax.nn.logsumexp(z, axis=1) - jnp.take_along_axis(z, labels[:, None], axis=1)[:, 0])

    start = time.perf_counter()
    result = minimize(
        jax.jit(jax.value_and_grad(loss)),
        np.asarray(x),
        jac=True,
        hess=Hessian(loss, x).at,
        method="Newton-CG",
        options={"maxiter": 15},
    )
    seconds = time.perf_counter() - start
    accuracy = float(jnp.mean(outputs(result.x).argmax(axis=1) == labels))
    title = (
        f"a 64-32-10 network on scikit-learn's {len(labels):,} digits\n  trained by {result.nit} steps of "
        f"scipy.optimize Newton-CG in {seconds:.1f} s to a loss of {result.fun:.4f}, accuracy {accuracy:.1%}"
    )
    return title, loss, result.x


def _load(name):
    """The attribute that MODULE:ATTRIBUTE names; modules of the current folder are found too."""
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(f"got {name!r}, expected MODULE:ATTRIBUTE, such as mypackage.model:loss")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return operator.attrgetter(attribute)(importlib.import_module(module))
