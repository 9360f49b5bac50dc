"""The spectrum of a network before and after training: the bulk falls to zero, one outlier a class but one stays.

A 64-32-10 tanh network learns scikit-learn's handwritten digits. The Hessian of its loss has 2,410 eigenvalues:
`linops.linalg.eigsh` finds both ends in one run, and `linops.estimate.spectral_density` the density of all, smoothed,
with a band from the scatter of its probes. Neither sees more of the Hessian than products. Training moves the weights,
which are data to both: `H.at(trained)` compiles nothing.

At the start the bulk is wide and nearly symmetric about zero; some eigenvalues stick out at the right, and no gap says
how many. At the end the negative side is gone, next to all eigenvalues are at zero, and a gap stands behind the ninth:
one outlier a class but one, for the logits of an image can move by a common shift that the softmax does not see.

Sagun, Bottou and LeCun, *Eigenvalues of the Hessian in deep learning* (2016); Papyan, *The full spectrum of deepnet
Hessians at scale* (2018); Ghorbani, Krishnan and Xiao, *An investigation into neural net optimization via Hessian
eigenvalue density* (2019).
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import linops
from linops.estimate import spectral_density
from linops.linalg import eigsh

EACH_END = 12
GAPS_WITHIN = 11  # of the largest: farther in is the edge of the bulk


def loss(weights, images, labels):
    """All weights are one vector: what is compiled once for each array in a tree is compiled once."""
    first, second = weights[: 65 * 32].reshape(65, 32), weights[65 * 32 :].reshape(33, 10)
    hidden = jnp.tanh(images @ first[1:] + first[0])
    log_probabilities = jax.nn.log_softmax(hidden @ second[1:] + second[0])
    return -jnp.mean(jnp.take_along_axis(log_probabilities, labels[:, None], axis=1))


@jax.jit
def train(weights, *data):
    """Gradient descent with momentum."""

    def step(state, _):
        weights, velocity = state
        velocity = 0.9 * velocity - 0.05 * jax.grad(loss)(weights, *data)
        return (weights + velocity, velocity), None

    return jax.lax.scan(step, (weights, jnp.zeros_like(weights)), length=500)[0][0]


def spectrum(H):
    values, record = eigsh(H, k=2 * EACH_END, which="BE", tol=1e-3, return_eigenvectors=False, full_output=True)
    density = spectral_density(H, jax.random.key(0), num_matvecs=512)
    top, bottom = np.asarray(values[EACH_END:][::-1]), np.asarray(values[:EACH_END])
    ratios = top[: GAPS_WITHIN - 1] / top[1:GAPS_WITHIN]
    far = jnp.abs(density.grid) > 0.1 * top[0]
    return {
        "top": top,
        "bottom": bottom,
        "residual": float(record.residual_norms.max()),
        "products": int(record.matvecs),
        "gap": float(ratios.max()),
        "outliers": 1 + int(ratios.argmax()),
        "far": float(jnp.trapezoid(jnp.where(far, density.density, 0), density.grid)),
        "density": density,
    }


def main(plot=None):
    images, labels = load_digits(return_X_y=True)
    data = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
    key1, key2 = jax.random.split(jax.random.key(1))
    first = jnp.zeros((65, 32)).at[1:].set(jax.random.normal(key1, (64, 32)) / np.sqrt(64))  # the first row: biases
    second = jnp.zeros((33, 10)).at[1:].set(jax.random.normal(key2, (32, 10)) / np.sqrt(32))
    weights = jnp.concatenate([first.ravel(), second.ravel()])
    trained = train(weights, *data)
    H = linops.Hessian(loss, weights, args=data)
    spectra = {"start": spectrum(H), "end": spectrum(H.at(trained))}

    for name, point in (("start", weights), ("end", trained)):
        found = spectra[name]
        print(f"{name} of training: loss {loss(point, *data):.3f}, {found['products']} products for both ends")
        print(f"  largest   {np.array2string(found['top'], precision=2, max_line_width=100)}")
        print(f"  smallest  {found['bottom'][0]:.4f}")
        print(f"  widest gap behind the largest {found['outliers']}, by a factor of {found['gap']:.2f}")
        print(f"  beyond a tenth of the largest, of either sign: {100 * found['far']:.1f} % of all\n")
    if plot:
        draw(plot, spectra)
    return spectra


def draw(path, spectra):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 5), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    for axes, (name, found) in zip(panels, spectra.items(), strict=True):
        density = found["density"]
        low, high = density.density - density.band, density.density + density.band
        axes.fill_between(density.grid, np.maximum(low, 1e-9), high, color="C0", alpha=0.35, linewidth=0, label="band")
        axes.semilogy(density.grid, density.density, color="C0", linewidth=1.2, label="density")
        for values, marker, label in ((found["top"], "v", "largest"), (found["bottom"], "^", "smallest")):
            heights = np.full(len(values), 2e-4)
            axes.plot(values, heights, marker, color="k", markersize=5, fillstyle="none", label=f"{EACH_END} {label}")
        axes.set(ylabel="density", ylim=(1e-4, 100), title=f"{name} of training")
    panels[0].legend(fontsize=8, ncols=2)
    panels[1].set(xlabel="eigenvalue of the Hessian of a network on digits")
    figure.savefig(path, dpi=150)


def check(result):
    start, end = result["start"], result["end"]
    for found in (start, end):
        assert found["residual"] < 1e-2 * found["top"][0]
    assert end["outliers"] == 9, "one outlier a class but one"
    assert start["gap"] < 1.4, "no gap at the start"
    assert end["gap"] > 1.6
    assert end["far"] < 0.02 < start["far"], "the bulk falls to zero"
    assert start["bottom"][0] < -0.1 * start["top"][0], "and so does what is negative"
    assert end["residual"] < -end["bottom"][0] < 0.02 * end["top"][0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", metavar="PATH", help="save a picture there")
    main(**vars(parser.parse_args()))
