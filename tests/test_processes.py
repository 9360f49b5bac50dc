"""Two processes by four devices on loopback: the numbers of one device, the same bits in both, and an end for all."""

import hashlib
import itertools
import os
import signal
import socket
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from processes import started

import linops
from linops.linalg import eigsh

X = np.random.default_rng(0).normal(size=(88, 3)).astype(np.float32)
SCALE = 1 / np.arange(1, 17, dtype=np.float32).reshape(8, 2)
POINT = {"b": np.float32(0.5), "w": np.array([0.3, -0.5, 0.8], np.float32)}
VECTOR = np.array([1, -1, 2, 0.5], np.float32)


def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=4"
    both = [started(__file__, address, str(i), str(tmp_path), XLA_FLAGS=flags) for i in range(2)]
    try:
        ended = [process.communicate(timeout=240) for process in both]
    finally:
        for process in both:
            process.kill()
    printed, said = zip(*ended, strict=True)
    lines = [[line for line in text.splitlines() if line.startswith("=")] for text in printed]
    assert lines[1][-1:] == ["= all done"], said[1][-4000:]
    assert lines[0] == lines[1], (lines, said[0][-4000:])
    # The first one, which leads, was killed then. The second one waits for it in a product, but not for ever: of one
    # that leads it is told at once, of another one after `heartbeat_timeout_seconds`.
    assert both[0].returncode == -signal.SIGKILL
    assert both[1].returncode != 0
    assert "another task died" in said[1]


def energy(x, batch):
    return jnp.mean(jnp.cosh(batch @ x["w"] + x["b"])) + 0.1 * jnp.sum(x["w"] ** 2)


def quadratic(x, scale):
    return jnp.sum(scale * x["w"] ** 2) / 2


def main(address, index, folder):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, index)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P("d"))
    data, scale = (jax.make_array_from_callback(a.shape, rows, lambda i, a=a: a[i]) for a in (X, SCALE))
    tell(products(data))
    tell(solvers(data, scale))
    tell(streams(rows, index))
    tell(saved(scale, os.path.join(folder, "run.npz")))
    print("= all done", flush=True)
    H = linops.Hessian(energy, POINT, data=data)
    H @ VECTOR
    if index == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        H @ VECTOR


def tell(arrays):
    """Print what tells the bits of arrays, for the test to compare between processes."""
    print("=", *(hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()[:8] for a in arrays), flush=True)


def near(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    return np.asarray(found)


def products(data):
    """Of data on all devices; and of a vector that lies on them."""
    D = linops.Hessian(energy, POINT, data=X).toarray()
    for options in {"linearize": True}, {"batch_size": 24, "linearize": False}:
        H = linops.Hessian(energy, POINT, data=data, **options)
        yield near(H @ VECTOR, D @ VECTOR)
    yield near(H @ np.eye(4, 3, dtype=np.float32), D[:, :3])
    J = linops.Jacobian(lambda x: jnp.sin(data @ x["w"]) + x["b"], POINT)
    yield near(J @ VECTOR, np.cos(X @ POINT["w"]) * (X @ VECTOR[1:]) + VECTOR[0])  # a value for each example


def solvers(data, scale):
    H = linops.Hessian(energy, POINT, data=data, batch_size=24, linearize=False)
    D = linops.Hessian(energy, POINT, data=X).toarray()
    yield near(scipy.sparse.linalg.eigsh(H, k=2, which="LA", v0=VECTOR)[0], np.linalg.eigvalsh(D)[2:])
    yield near(scipy.sparse.linalg.cg(H, VECTOR, rtol=1e-6)[0], np.linalg.solve(D, VECTOR))
    with pytest.raises(ValueError, match="with other numbers in one process than in another"):
        H @ np.random.default_rng().normal(size=4).astype(np.float32)
    w, v = eigsh(linops.Hessian(quadratic, {"w": scale}, args=(scale,)), k=2, trees=True)
    assert v["w"].sharding.spec[:2] == (None, "d")
    yield near(w, [1 / 2, 1])


def streams(rows, index):
    """The same batches in each process; or arrays on all devices, to which each brings its part; not its own."""
    D = linops.Hessian(energy, POINT, data=X).toarray()
    replicated = NamedSharding(rows.mesh, P())
    x = jax.tree.map(lambda a: jax.make_array_from_callback(a.shape, replicated, lambda i: np.asarray(a)[i]), POINT)
    batches = np.split(X, [40, 80])
    yield near(linops.Hessian(energy, x, data=batches) @ VECTOR, D @ VECTOR)
    parts = [np.split(batch, 2)[index] for batch in batches]
    with pytest.raises(ValueError, match="of batches of which each process has its own"):
        linops.Hessian(energy, x, data=parts) @ VECTOR
    with pytest.raises(ValueError, match="of batches of which each process has its own"):
        linops.Hessian(energy, x, data=batches[: 2 + index]) @ VECTOR
    together = [jax.make_array_from_process_local_data(rows, part) for part in parts]
    yield near(linops.Hessian(energy, x, data=together) @ VECTOR, D @ VECTOR)


def saved(scale, path):
    """A run that is stopped and goes on: the first process has the file, and the same bits come of it."""
    H = linops.Hessian(quadratic, {"w": scale}, args=(scale,))
    options = {"k": 2, "ncv": 5, "tol": 1e-6, "return_eigenvectors": False}
    whole = eigsh(H, **options)
    looks = itertools.count()
    with pytest.raises(linops.linalg.NoConvergence):
        eigsh(H, save=path, callback=lambda record: next(looks) == 1, **options)
    assert Path(path).stat().st_size > 0
    again = eigsh(H, save=path, **options)
    yield near(again, whole)
    with pytest.raises(OSError, match="cannot be written"):
        eigsh(H, save=os.path.join(os.path.dirname(path), "none", "run.npz"), **options)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
