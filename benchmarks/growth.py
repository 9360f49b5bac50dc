"""Growth: time of a product against n, examples and columns, with fitted exponents, and its memory."""

import jax.numpy as jnp
import measure
import numpy as np
import problems

import linops

SIZES = tuple(4**k for k in range(9, 14))
COPIES = (1, 2, 4, 8, 16)
COLUMNS = (16, 64, 256, 1_024, 4_096)


def report():
    """By axis: sizes, seconds of a product, the fitted exponent; for columns also the peak of memory."""
    found = {"n": _against_n(), "examples": _against_examples(), "columns": _against_columns()}
    for axis, figures in found.items():
        copying = f" (of copying: {figures['of copying']:.3f})" if "of copying" in figures else ""
        print(f"time against {axis}: exponent {figures['exponent']:.3f}{copying}")
        for size, seconds in zip(figures["sizes"], figures["seconds"], strict=True):
            print(f"    {size:12,}  {1e3 * seconds:10.4g} ms")
    print("memory against columns: " + ", ".join(f"{b / 2**20:.0f} MB" for b in found["columns"]["bytes"]) + "\n")
    return found


def _timed(sizes, make):
    calls = {size: make(size) for size in sizes}
    times = measure.interleaved(calls, seconds=2)
    seconds = [times[size][1] for size in sizes]
    return {"sizes": list(sizes), "seconds": seconds, "exponent": measure.exponent(sizes, seconds)}


def _against_n():
    """The Hessian of a chain of springs, and what the machine makes of copying: from some size on, memory is new."""

    def make(n):
        H = linops.Hessian(lambda x: jnp.sum(jnp.diff(x) ** 4) + jnp.sum(jnp.cos(x)), np.ones(n, np.float32))
        v = np.ones(n, np.float32)
        return lambda: H @ v

    def copying(n):
        x = np.ones(n, np.float32)
        return lambda: x + 1

    found = _timed(SIZES, make)
    found["of copying"] = _timed(SIZES, copying)["exponent"]
    return found


def _against_examples():
    """The Hessian of the digits network, n = 2,410, its data repeated."""

    def make(examples):
        H, *_ = problems.hessian(2_410, copies=examples // 1_797)
        v = np.ones(2_410, np.float32)
        return lambda: H @ v

    return _timed([1_797 * copies for copies in COPIES], make)


def _against_columns():
    """Blocks for the Hessian of the digits network, n = 2,410."""
    H, *_ = problems.hessian(2_410)

    def make(columns):
        V = np.ones((2_410, columns), np.float32)
        return lambda: H @ V

    found = _timed(COLUMNS, make)
    # The product itself is the user's.
    peaks = [measure.fresh("peak_memory", "linops", 2_410, columns)[1] for columns in COLUMNS]
    found["bytes"] = [peak - 2_410 * columns * 4 for peak, columns in zip(peaks, COLUMNS, strict=True)]
    found["ratio"] = found["bytes"][-1] / found["bytes"][-2]
    return found
