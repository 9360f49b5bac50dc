"""Measuring: rivals in turn, medians with quartiles; what the machine does at best; programs in fresh processes."""

import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

PAUSE = 0.05  # seconds between rivals: threads of OpenBLAS and OpenMP go on spinning for as long after a call
BATCH = 2e-3  # seconds that the calls of one sample take together, at least


def interleaved(calls, seconds=4.0, least=5, most=60):
    """Seconds of a call of each rival, as the quartiles of samples that are taken in turn."""
    batches = {name: _batch(call) for name, call in calls.items()}
    samples = {name: [] for name in calls}
    order, start = np.random.default_rng(0), time.perf_counter()
    for round_ in range(most):
        if round_ >= least and time.perf_counter() - start > seconds * len(calls):
            break
        for name in order.permutation(list(calls)):  # so that no rival always follows the same other one
            call = calls[name]
            time.sleep(PAUSE)
            before = time.perf_counter()
            for _ in range(batches[name]):
                call()
            samples[name].append((time.perf_counter() - before) / batches[name])
    return {name: quartiles(times) for name, times in samples.items()}


def _batch(call):
    call()
    before = time.perf_counter()
    call()
    return max(1, int(BATCH / (time.perf_counter() - before)))


def quartiles(times):
    return [float(q) for q in np.percentile(times, [25, 50, 75])]


def fresh(task, *arguments, runs=3):
    """Quartiles of the numbers that `task` of fresh.py prints, each in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("fresh.py")), task, *map(str, arguments)]
    outputs = [subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(runs)]
    failed = [output.stderr for output in outputs if output.returncode]
    if failed:
        raise RuntimeError(failed[0])
    return quartiles([float(output.stdout.split()[-1]) for output in outputs])


def best(call, runs=9):
    """Seconds of the fastest of some runs."""
    call()
    times = []
    for _ in range(runs):
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return min(times)


def machine():
    """What computes here, and how fast at best: float32 multiply-adds in a matrix product, bytes read and written."""
    n, size = 2048, 2**26
    A, x = jnp.ones((n, n), jnp.float32), jnp.ones(size, jnp.float32)
    matmul, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "scipy", "numpy", "torch", "curvlinops-for-pytorch", "matfree", "lineax")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": f"{device.platform}: {device.device_kind}",
        "cores": len(_cores()),
        "versions": {name: metadata.version(name) for name in packages if _is_installed(name)},
        "flops_per_second": 2 * n**3 / best(lambda: matmul(A, A).block_until_ready()),
        "bytes_per_second": 8 * size / best(lambda: copy(x).block_until_ready()),
    }


def _cores():
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())


def _is_installed(name):
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def cost(compiled):
    """The operations and bytes that XLA counts in a compiled program."""
    analysis = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return {"flops": analysis.get("flops", 0.0), "bytes": analysis.get("bytes accessed", 0.0)}


def exponent(sizes, seconds):
    """The slope of a straight line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def save(report, path):
    Path(path).write_text(json.dumps(report, indent=1) + "\n")
