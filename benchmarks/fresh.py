"""Tasks for a process of their own: each prints one number.

python fresh.py first_product linops 85002
"""

import argparse
import ctypes
import gc
import time
from pathlib import Path

import numpy as np


def first_product(rival, n):
    """Seconds from construction to the first product, compilation included."""
    import jax
    import problems

    import linops

    model, loss, weights = problems.digits(problems.LAYERS[int(n)])
    scalar, _, point = problems.flat(model, loss, weights)
    v = np.ones(point.size, np.float32)
    np.array(jax.jit(lambda v: 2 * v)(v))  # JAX itself is awake
    start = time.perf_counter()
    if rival.startswith("linops"):
        linops.Hessian(lambda weights: loss(model(weights)), weights, linearize=_linearize(rival)) @ v
    else:
        np.array(jax.jit(problems.hessian_vector(scalar))(point, v))
    return time.perf_counter() - start


def _linearize(rival):
    return False if rival.endswith("linearize=False") else None


def closed_over(kind):
    """Seconds from construction to the first product over 400 MB, closed over or in args."""
    import jax
    import jax.numpy as jnp

    import linops

    A, x = jnp.ones((10_000, 10_000)).block_until_ready(), np.ones(10_000, np.float32)
    jax.jit(jnp.tanh)(x).block_until_ready()
    start = time.perf_counter()
    if kind == "closure":
        J = linops.Jacobian(lambda x: jnp.tanh(A @ x), x)
    else:
        J = linops.Jacobian(lambda x, A: jnp.tanh(A @ x), x, args=(A,))
    J @ x
    return time.perf_counter() - start


def import_linops():
    """Seconds that linops adds to importing JAX and SciPy's solvers."""
    import jax.numpy  # noqa: F401
    import scipy.sparse.linalg  # noqa: F401

    start = time.perf_counter()
    import linops  # noqa: F401

    return time.perf_counter() - start


def peak_memory(rival, n, columns="1"):
    """Bytes at the peak of an operator at a new point and its product, with what they keep and give."""
    import jax
    import problems

    import linops

    n, columns = int(n), int(columns)
    H, scalar, point, weights = problems.hessian(n)
    V = np.ones((n, columns), np.float32) if columns > 1 else np.ones(n, np.float32)
    product = problems.hessian_vector(scalar)
    by_hand, vmapped = jax.jit(product), jax.jit(jax.vmap(product, in_axes=(None, 1), out_axes=1))
    direct = linops.Hessian(scalar, point, linearize=False)
    work = {
        "linops": lambda: H.at(point) @ V,
        "linops, linearize=False": lambda: direct.at(point) @ V,
        "by hand": lambda: problems.handwritten(n, lambda v: by_hand(point, v)) @ V,
        "by hand, vmapped": lambda: np.array(vmapped(point, V)),
        "curvlinops": lambda: problems.curvlinops("Hessian", problems.LAYERS[n], weights).to_scipy() @ V,
    }[rival]
    work()  # compiled
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what malloc keeps would hide as much of the peak
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    work()
    return _memory("VmHWM") - before


def _memory(name):
    """Bytes of this process, as Linux counts them."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


TASKS = [first_product, closed_over, import_linops, peak_memory]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=[task.__name__ for task in TASKS])
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    print(globals()[options.task](*options.arguments))
