"""Operators over data beside all data at once, and beside loops by hand; memory and time while files grow.

    python benchmarks/data.py [--only WORDS]

- chunks: a product over arrays in chunks beside that over all data at once, both with and without kept residuals.
- stream: a product over batches of the host beside a loop by hand over a jitted accumulation, which reads the same.
- loading: a loader that takes half as long as the products beside the same products with nothing to load.
- files: peak memory and seconds of products over .npy files of 1 to 64 times the examples, each in a fresh process.
- large: a product with the Jacobian of a reaction and diffusion on a grid of 10^8 points beside the bare jitted one,
  each with its peak memory, in fresh processes.
- classes: Gauss-Newton with softmax cross-entropy at 50,304 classes: peak memory of a product, in fresh processes.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import measure
import numpy as np
import problems

import linops

BATCH = 256
NAMES = {2_410: "n = 2,410", 85_002: "n = 85,002"}


def _cross_entropy(outputs, targets):
    picked = jnp.take_along_axis(jax.nn.log_softmax(outputs), targets[:, None], axis=1)
    return -jnp.mean(picked)


def _loss(weights, batch):
    return _cross_entropy(problems.tanh_network(weights, batch[0]), batch[1])


def digits(layers, copies=1, seed=0):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    weights = [
        ((rng.normal(size=(m, k)) / np.sqrt(m)).astype(np.float32), np.zeros(k, np.float32))
        for m, k in itertools.pairwise(layers)
    ]
    images, labels = np.tile(images / 16, (copies, 1)).astype(np.float32), np.tile(labels, copies).astype(np.int32)
    return images, labels, jax.tree.map(jnp.asarray, weights)


LAYERS = {2_410: (64, 32, 10), 85_002: (64, 256, 256, 10)}


def chunks(n):
    """All at once and in chunks, with residuals kept and computed anew."""
    X, y, weights = digits(LAYERS[n])
    v = problems.normal(n)
    calls = {}
    for keep in True, False:
        for size in None, BATCH:
            H = linops.Hessian(_loss, weights, data=(X, y), batch_size=size, linearize=keep)
            name = f"{'all' if size is None else size} examples, {'kept' if keep else 'anew'}"
            calls[name] = lambda H=H: H @ v
    return calls


def stream(n, copies=4):
    """Batches of the host, beside a loop by hand."""
    X, y, weights = digits(LAYERS[n], copies)
    v, batches = problems.normal(n), [(X[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(X), BATCH)]
    flat, unravel = jax.flatten_util.ravel_pytree(weights)

    @jax.jit
    def step(total, x, v, batch):
        gradient = jax.grad(lambda x: _loss(unravel(x), batch))
        return total + len(batch[1]) * jax.jvp(gradient, (x,), (v,))[1]

    def by_hand():
        total = jnp.zeros_like(flat)
        for batch in batches:
            total = step(total, flat, v, batch)
        return np.asarray(total / len(X))

    H = linops.Hessian(_loss, weights, data=batches)
    assert np.allclose(H @ v, by_hand(), atol=1e-4 * np.abs(by_hand()).max())
    return {"by hand": by_hand, "linops": lambda: H @ v}


class Slow:
    """Batches that take some seconds each to load."""

    def __init__(self, batches, seconds):
        self.batches, self.seconds = batches, seconds

    def __iter__(self):
        for batch in self.batches:
            time.sleep(self.seconds)
            yield batch


def loading(n):
    """What is loaded while the device works, where loading is the shorter."""
    X, y, weights = digits(LAYERS[n], 4)
    v, batches = problems.normal(n), [(X[i : i + 1024], y[i : i + 1024]) for i in range(0, len(X), 1024)]
    at_once = linops.Hessian(_loss, weights, data=batches)
    seconds = measure.best(lambda: at_once @ v) / len(batches)
    slow = linops.Hessian(_loss, weights, data=Slow(batches, seconds / 2))
    return {"nothing to load": lambda: at_once @ v, "loading": lambda: slow @ v}


# Memory, in processes of their own.


def peak():
    """The peak of this process, or of its GPU, in MB; that of getrusage is of the process that started it, too."""
    if memory := jax.devices()[0].memory_stats():
        return memory["peak_bytes_in_use"] / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def of_files(folder, n=2_410):
    """Peak memory in MB, and seconds of a product."""
    X, y = (np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in "Xy")
    weights = digits(LAYERS[n])[2]
    H = linops.Hessian(_loss, weights, data=(X, y), batch_size=1024)
    v = problems.normal(n)
    H @ v
    start = time.perf_counter()
    H @ v
    return peak(), time.perf_counter() - start


def files():
    print("files: examples, MB on disk, peak MB, seconds of a product")
    for factor in 1, 4, 16, 64:
        with tempfile.TemporaryDirectory() as folder:
            count, rng = 16_384 * factor, np.random.default_rng(0)
            images = np.lib.format.open_memmap(Path(folder) / "X.npy", "w+", np.float32, (count, 64))
            for start in range(0, count, 16_384):
                images[start : start + 16_384] = rng.random((16_384, 64), np.float32)
            images.flush()
            np.save(Path(folder) / "y.npy", rng.integers(0, 10, count, np.int32))
            found = _fresh("of_files", folder)
        print(f"    {count:9,} {count * 260 / 2**20:8.1f} {found[0]:8.0f} {found[1]:8.3f}", flush=True)


SIDE = 10_000


def _react_and_diffuse(u):
    """One step of u' = laplacian(u) + u - u^3 on a periodic grid."""
    around = jnp.roll(u, 1, 0) + jnp.roll(u, -1, 0) + jnp.roll(u, 1, 1) + jnp.roll(u, -1, 1)
    return u + 0.1 * (around - 4 * u + u - u**3)


def of_grid(kind, side=SIDE):
    """Peak memory in MB of one product, beside what the process had, and seconds of the median of some."""
    u = jnp.full((side, side), 0.5, jnp.float32)
    v = np.random.default_rng(0).random(side * side, np.float32)
    before = peak()
    if kind == "linops":
        multiply = linops.Jacobian(_react_and_diffuse, u).__matmul__
    else:
        product = jax.jit(lambda u, v: jax.jvp(_react_and_diffuse, (u,), (v.reshape(u.shape),))[1].ravel())

        def multiply(v):
            return np.array(product(u, v))

    multiply(v)
    after, seconds = peak(), []
    for _ in range(7):
        start = time.perf_counter()
        multiply(v)
        seconds.append(time.perf_counter() - start)
    return after - before, float(np.median(seconds))


CLASSES = 50_304


def of_classes(kind, width=64, examples=512):
    """Peak memory in MB above what the process had before, of one product; and seconds."""
    rng = np.random.default_rng(0)
    W = {"W": jnp.asarray(rng.normal(size=(width, CLASSES)) / np.sqrt(width), jnp.float32)}
    X = jnp.asarray(rng.normal(size=(examples, width)), jnp.float32)
    y = jnp.asarray(rng.integers(0, CLASSES, examples))

    def model(weights):
        return X @ weights["W"]

    multiply = {
        "by hand": lambda: _by_hand(model, W, lambda z: _cross_entropy(z, y)),
        "differentiated": lambda: linops.GaussNewton(model, W, lambda z: _cross_entropy(z, y)).__matmul__,
        "known": lambda: linops.GaussNewton(model, W, linops.losses.CrossEntropy()).__matmul__,
        "known, in chunks": lambda: (
            linops.GaussNewton(
                lambda W, X: X @ W["W"], W, linops.losses.CrossEntropy(), data=(X, y), batch_size=64, linearize=False
            ).__matmul__
        ),
    }[kind]()
    v = problems.normal(width * CLASSES)
    before = peak()
    product = multiply(v)
    after = peak()
    start = time.perf_counter()
    multiply(v)
    return after - before, time.perf_counter() - start, float(np.linalg.norm(product))


def _by_hand(model, W, loss):
    """The product as one would write it."""

    @jax.jit
    def product(W, v):
        outputs, pushed = jax.jvp(model, (W,), ({"W": v.reshape(W["W"].shape)},))
        weighted = jax.jvp(jax.grad(loss), (outputs,), (pushed,))[1]
        return jax.vjp(model, W)[1](weighted)[0]["W"].ravel()

    return lambda v: np.asarray(product(W, v))


def _fresh(task, *arguments):
    """What a task prints in a process of its own."""
    command = [sys.executable, __file__, "--task", task, *map(str, arguments)]
    output = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if output.returncode:
        raise RuntimeError(output.stderr)
    return [float(number) for number in output.stdout.split()]


def _report(title, calls):
    times = measure.interleaved(calls, seconds=5, least=9)
    first = next(iter(times.values()))[1]
    print(title)
    for rival, (low, median, high) in times.items():
        print(f"    {rival:24} {1e3 * median:9.4g} ms  ({1e3 * low:.4g} to {1e3 * high:.4g})  {median / first:.2f}")
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORDS")
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task, *arguments = options.task
        print(*globals()[task](*arguments))
        return
    for name, make in ("chunks", chunks), ("stream", stream), ("loading", loading):
        for n in LAYERS if options.only in name else ():
            _report(f"{name}, {NAMES[n]}", make(n))
    if options.only in "files":
        files()
    if options.only in "large":
        print("large: n = 10^8, a vector is 381 MB: peak MB of a product, seconds")
        for kind in "bare", "linops":
            print(f"    {kind:10} {'{:8.0f} {:8.3f}'.format(*_fresh('of_grid', kind))}", flush=True)
    if options.only in "classes":
        print("classes: peak MB of a product, its seconds, its norm; outputs are 98 MB")
        for kind in "by hand", "differentiated", "known", "known, in chunks":
            found = _fresh("of_classes", kind)
            print(f"    {kind:20} {found[0]:8.0f} {found[1]:8.3f} {found[2]:10.6f}", flush=True)


if __name__ == "__main__":
    main()
