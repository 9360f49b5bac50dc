"""What a network learns of photographs that stay on disk: training and Hessian spectrum, batch by batch.

Patches of 8 by 8 pixels of scikit-learn's two sample photographs are written to a file, which `np.load` maps and
nobody holds. A 64-12-64 autoencoder with tanh in the middle learns to draw them: `linops.optimize.newton_cg` minimizes
the mean over the file, each of its products one pass, and `linops.linalg.eigsh` finds the ends of the Hessian there.
More patches take more time and no more memory: `--stride 1` writes all 535,000 of them, 130 MB.

At the start the Hessian has negative curvatures half as large as the positive ones, and none stands out. Trained, the
12 units leave little more than the best 12 linear features, the principal components, and the largest curvature has
grown fiftyfold.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_sample_images

import linops
from linops.linalg import eigsh
from linops.optimize import newton_cg

SIDE, UNITS, BATCH = 8, 12, 2_048


def write(path, stride):
    """The patches of the photographs in gray, without their means, in units of their standard deviation."""
    grays = [image.mean(axis=2) for image in load_sample_images().images]
    windows = [np.lib.stride_tricks.sliding_window_view(gray, (SIDE, SIDE))[::stride, ::stride] for gray in grays]
    patches = np.concatenate([window.reshape(-1, SIDE * SIDE) for window in windows]).astype(np.float32)
    patches -= patches.mean(axis=1, keepdims=True)
    np.save(path, patches / patches.std())


def loss(weights, patches):
    """The mean of the squares of what is missing in a drawing, for each pixel."""
    drawn = jnp.tanh(patches @ weights["in"]) @ weights["out"]
    return jnp.mean((patches - drawn) ** 2)


def best_linear(patches):
    """What the principal components leave, from the matrix of second moments: a Hessian too, of 64 numbers."""
    moments = linops.Hessian(
        lambda w, patches: jnp.mean((patches @ w) ** 2) / 2, np.zeros(64, np.float32), data=patches
    )
    values = eigsh(moments, k=UNITS, which="LA", return_eigenvectors=False)
    trace = float(np.sum(moments.diagonal()))
    return (trace - float(np.sum(values))) / 64


def largest(H):
    """The curvatures farthest from zero, the largest first, and the products that they took."""
    values, record = eigsh(H, k=16, which="LM", tol=1e-2, return_eigenvectors=False, full_output=True)
    return np.sort(np.asarray(values))[::-1], int(record.matvecs)


def main(stride=8, plot=None):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "patches.npy"
        write(path, stride)
        patches = np.load(path, mmap_mode="r")
        print(f"{len(patches):,} patches, {patches.nbytes / 2**20:.0f} MB on disk, {BATCH} at a time\n")
        keys = jax.random.split(jax.random.key(0))
        start = {
            "in": jax.random.normal(keys[0], (64, UNITS)) / 8,
            "out": jax.random.normal(keys[1], (UNITS, 64)) / np.sqrt(UNITS),
        }
        found = newton_cg(loss, start, data=patches, batch_size=BATCH, max_matvecs=300)
        H = linops.Hessian(loss, start, data=patches, batch_size=BATCH)
        spectra = {"start": largest(H), "end": largest(H.at(found.x))}
        whole = linops.Hessian(loss, found.x, args=np.asarray(patches))
        v = np.random.default_rng(0).normal(size=H.shape[0]).astype(np.float32)
        difference = np.linalg.norm(H.at(found.x) @ v - whole @ v) / np.linalg.norm(whole @ v)
        bound = best_linear(patches)
    for name, (values, products) in spectra.items():
        print(f"{name}: {products} products; {np.array2string(values, precision=3, max_line_width=100)}")
    print(f"\nloss {found.fun:.4f} after {found.nit} steps and {found.nhev} products; best linear features {bound:.4f}")
    print(f"a product beside that with all patches in memory: {difference:.1e} apart")
    if plot:
        draw(plot, spectra, found.x)
    return {"spectra": spectra, "loss": float(found.fun), "best": bound, "difference": difference}


def draw(path, spectra, weights):
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.add_gridspec(1, 2, width_ratios=[1.1, 1])
    ends_of = figure.add_subplot(axes[0])
    for (name, (values, _)), marker in zip(spectra.items(), "o^", strict=True):
        ends_of.plot(np.arange(1, 1 + len(values)), values, marker, label=name, fillstyle="none")
    ends_of.axhline(0, color="0.7", linewidth=1)
    ends_of.set(xlabel="the 16 curvatures farthest from zero", ylabel="eigenvalue of the Hessian")
    ends_of.set_yscale("symlog", linthresh=0.1)
    ends_of.set_ylim(-1, 100)
    ends_of.legend(frameon=False)
    features = axes[1].subgridspec(3, 4, wspace=0.1, hspace=0.1)
    for i, column in enumerate(np.asarray(weights["out"])):
        axis = figure.add_subplot(features[i // 4, i % 4], xticks=[], yticks=[])
        axis.imshow(column.reshape(SIDE, SIDE), cmap="gray")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def check(result):
    (start, _), (end, _) = result["spectra"]["start"], result["spectra"]["end"]
    assert -start[-1] > 0.3 * start[0]
    assert end[0] > 20 * start[0]
    assert end[-1] > 0, "trained, no curvature far from zero is negative"
    assert result["best"] < result["loss"] < 1.1 * result["best"]
    assert result["difference"] < 1e-4


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stride", type=int, default=8, help="pixels between patches; 1 takes all")
    parser.add_argument("--plot", metavar="FILE", help="draw the curvatures, and what the units draw")
    main(**vars(parser.parse_args()))
