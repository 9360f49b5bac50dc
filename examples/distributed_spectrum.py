"""The largest eigenvalues of a network's Hessian on many devices, in one process or in several, and on one device.

A 64-32-10 tanh network on scikit-learn's handwritten digits. The images are spread over the devices of a mesh, so that
each computes its part of a product with the Hessian and one sum over devices gives the whole. `linops.linalg.eigsh`
runs on the mesh; SciPy's `eigsh` runs on the host, where each process has all of its vectors, the same to the last bit:
it is given the vector to start from, for it would draw another one in each process.

    python examples/distributed_spectrum.py                  one process, eight devices of the CPU that are not real
    python examples/distributed_spectrum.py --processes 2    two processes by four devices, which find one another
    python examples/distributed_spectrum.py --devices 1      the same numbers on one device

On a cluster, `jax.distributed.initialize()` finds the processes by itself and the rest is the same. A process that dies
ends the others: at once where it is the first, and after `heartbeat_timeout_seconds`, 100 by default, otherwise.
"""

import argparse
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

import linops
from linops.linalg import eigsh

K = 5
EXAMPLES = 1_792  # of 1,797: as many on each of eight devices


def loss(weights, batch):
    images, labels = batch
    hidden = jnp.tanh(images @ weights["in"] + weights["bias"])
    log_probabilities = jax.nn.log_softmax(hidden @ weights["out"])
    return -jnp.mean(jnp.take_along_axis(log_probabilities, labels[:, None], axis=1))


def main(devices=None, batch_size=None):
    """The eigenvalues by the solver on the mesh and by SciPy's, on so many devices, or all."""
    mesh = jax.make_mesh((devices or jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    by_example = NamedSharding(mesh, PartitionSpec("data"))

    def spread(array):
        """Each process makes the parts that its devices hold; here all have read all, to begin with."""
        return jax.make_array_from_callback(array.shape, by_example, lambda index: array[index])

    images, labels = load_digits(return_X_y=True)
    data = spread(images[:EXAMPLES].astype(np.float32) / 16), spread(labels[:EXAMPLES].astype(np.int32))
    rng = np.random.default_rng(0)
    weights = {
        "in": (rng.normal(size=(64, 32)) / 8).astype(np.float32),
        "bias": np.zeros(32, np.float32),
        "out": (rng.normal(size=(32, 10)) / np.sqrt(32)).astype(np.float32),
    }
    H = linops.Hessian(loss, weights, data=data, batch_size=batch_size)
    on_mesh = np.asarray(eigsh(H, k=K, which="LA", tol=1e-5, return_eigenvectors=False))
    start = np.ones(H.shape[0], np.float32)
    by_scipy = scipy.sparse.linalg.eigsh(H, k=K, which="LA", tol=1e-5, v0=start, return_eigenvectors=False)
    if jax.process_index() == 0:
        print(f"{mesh.size} devices of {jax.process_count()} processes, Hessian of {H.shape[0]:,} parameters")
        print(f"  on the mesh  {np.array2string(np.sort(on_mesh), precision=4)}")
        print(f"  by SciPy     {np.array2string(np.sort(by_scipy), precision=4)}")
    return {"on mesh": np.sort(on_mesh), "by SciPy": np.sort(by_scipy)}


def check(result):
    for values in result.values():
        np.testing.assert_allclose(values, EXPECTED, rtol=1e-4)


EXPECTED = [1.0727, 1.2458, 1.3502, 1.6839, 2.1427]  # on any number of devices


def launch(processes, arguments):
    """Start this script once for each process, and wait for all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, __file__, *arguments, "--address", address, "--processes", str(processes), "--index"]
    started = [subprocess.Popen([*command, str(i)]) for i in range(processes)]
    return max(abs(process.wait()) for process in started)


def join(address, processes, index):
    """Become one process of several, before JAX computes anything."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, processes, index, shutdown_timeout_seconds=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=8, help="of all processes together (default: 8)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--batch-size", type=int, help="how many examples are worked on at once")
    parser.add_argument("--address", help=argparse.SUPPRESS)  # of the process that leads
    parser.add_argument("--index", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.processes > 1 and options.index is None:
        sys.exit(launch(options.processes, sys.argv[1:]))
    # JAX reads these when it first computes something.
    flag = f"--xla_force_host_platform_device_count={options.devices // options.processes}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    if options.index is not None:
        join(options.address, options.processes, options.index)
    main(batch_size=options.batch_size)
