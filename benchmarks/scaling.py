"""Weak and strong scaling of a Hessian product over devices and processes, and what passes between them.

    python benchmarks/scaling.py [--seconds S] [--json FILE]

The devices are parts of one CPU, as XLA makes them for tests: they share its cores, so that the times show what many
devices cost, and not what they gain. What is counted in the compiled programs is so on any mesh. From that follows the
estimate at the end, with link rates as they are published.
"""

import argparse
import itertools
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import linops

LAYERS = (64, 256, 256, 10)
EXAMPLES = 7_168  # in all, or on eight devices of weak scaling
CHUNK = 1_024  # examples at a time, on all devices together
LAYOUTS = [(1, 1), (1, 2), (1, 4), (1, 8), (2, 2), (2, 4), (2, 8)]  # processes, devices
KINDS = "all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"

# Paper: bytes a second in one direction, of each GPU. NVIDIA H100 Tensor Core GPU datasheet (SXM): NVLink 900 GB/s in
# both directions, FP32 67 Tflop/s; NVIDIA DGX H100 datasheet: 8 GPUs, eight ports of 400 Gb/s InfiniBand.
NVLINK, INFINIBAND, FLOPS = 450e9, 50e9, 67e12
PARAMETERS, GPUS, GPUS_OF_NODE, TOKENS = 1e9, 64, 8, 2**20


def loss(weights, batch):
    inputs, labels = batch
    *hidden, (W, b) = weights
    for V, c in hidden:
        inputs = jnp.tanh(inputs @ V + c)
    log_probabilities = jax.nn.log_softmax(inputs @ W + b)
    return -jnp.mean(jnp.take_along_axis(log_probabilities, labels[:, None], axis=1))


def measured(examples, seconds):
    """Seconds of a product, with residuals and in chunks without, and how often devices speak in each."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))

    def put(array, *axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(examples, LAYERS[0])).astype(np.float32), rng.integers(0, 10, examples)
    data = put(inputs, "data"), put(labels.astype(np.int32), "data")
    weights = [
        (put((rng.normal(size=(m, k)) / np.sqrt(m)).astype(np.float32)), put(np.zeros(k, np.float32)))
        for m, k in itertools.pairwise(LAYERS)
    ]
    found = {}
    for name, options in {
        "residuals": {"linearize": True},
        "chunks": {"linearize": False, "batch_size": CHUNK},
    }.items():
        H = linops.Hessian(loss, weights, data=data, **options).linearize()
        product = jax.jit(lambda A, v: A.mv(v)).lower(H, weights).compile()
        text = product.as_text()
        found[name] = {
            "seconds": timed(lambda product=product, H=H: jax.block_until_ready(product(H, weights)), seconds),
            "words": {kind: n for kind in KINDS if (n := len(re.findall(rf" {kind}(?:-start)?\(", text)))},
        }
    return found


def timed(call, seconds):
    """The median of calls, as many in each process."""
    call()
    times = []
    for _ in range(max(5, int(seconds / 0.05))):
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def launched(processes, devices, examples, seconds):
    """What the first of so many processes measured."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices // processes}"
    path = os.pathsep.join([str(Path(linops.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "--task", address, str(processes), str(i), str(examples), str(seconds)],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    outputs = [process.communicate()[0] for process in started]
    return json.loads(outputs[0].splitlines()[-1])


def task(address, processes, index, examples, seconds):
    """One process of a measurement."""
    if int(processes) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, int(processes), int(index))
    print(json.dumps(measured(int(examples), float(seconds))))


def paper():
    """Seconds of the one sum over GPUs in a product, and of its arithmetic."""
    size, nodes = 4 * PARAMETERS, GPUS / GPUS_OF_NODE
    within = 2 * size * (1 - 1 / GPUS_OF_NODE) / NVLINK  # scattered sums, and gathered in the end
    between = 2 * size / GPUS_OF_NODE * (1 - 1 / nodes) / INFINIBAND
    flat = 2 * size * (1 - 1 / GPUS) / INFINIBAND
    # Forward 2 and back 4 operations for each parameter and token, and as many for the tangents of both.
    arithmetic = 12 * PARAMETERS * TOKENS / GPUS / FLOPS
    return {"by nodes": within + between, "one ring": flat, "arithmetic": arithmetic}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2, help="about how long each product is measured")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--task", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task(*options.task)
        return
    report = {"layouts": [], "paper": paper()}
    print("| processes | devices | strong, ms | in chunks, ms | weak, ms | in chunks, ms | words in a product |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for processes, devices in LAYOUTS:
        strong = launched(processes, devices, EXAMPLES, options.seconds)
        weak = launched(processes, devices, EXAMPLES // 8 * devices, options.seconds)
        report["layouts"].append({"processes": processes, "devices": devices, "strong": strong, "weak": weak})
        times = [f"{1e3 * run[name]['seconds']:.1f}" for run in (strong, weak) for name in ("residuals", "chunks")]
        words = {json.dumps(run[name]["words"]) for run in (strong, weak) for name in run}
        said = " or ".join(", ".join(f"{n} {kind}" for kind, n in json.loads(w).items()) or "none" for w in words)
        print(f"| {processes} | {devices} | " + " | ".join(times) + f" | {said} |", flush=True)
    found = report["paper"]
    print(
        f"\nOn paper, {PARAMETERS:.0e} parameters in float32 on {GPUS} GPUs, {TOKENS:,} tokens: the sum over GPUs "
        f"{1e3 * found['by nodes']:.0f} ms by nodes, {1e3 * found['one ring']:.0f} ms as one ring; arithmetic at best "
        f"{1e3 * found['arithmetic']:.0f} ms"
    )
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
