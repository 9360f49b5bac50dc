"""The trace of a Hessian as a term of a loss: a density is learned from points, without its integral.

A network E(w, x) is to be the energy of two-dimensional points x, such that they have the density exp(-E(w, x)) / Z(w).
The likelihood needs Z, an integral. The score, the gradient of log p in x, does not, and Hyvarinen's score matching
fits it to points: the weights make the mean over them of

    |grad E|^2 / 2 - tr(Hessian of E),   derivatives in x,

as small as can be. The points of a batch go into one operator, the Hessian of the sum of their energies. Its trace is
the sum that is needed, and `linops.estimate.trace` estimates it from two products, with random signs of their own at
each point: sliced score matching. It stands in the loss, inside of `jax.grad`, `jax.lax.scan` and `jax.jit`.

In two dimensions one can look at what was learned, and sum exp(-E) over a grid for Z. The likelihood of points that
were not learned from is compared with those of one normal distribution, and of a kernel density estimate.

The data are scikit-learn's two moons. Sources: Hyvarinen, *Estimation of non-normalized statistical models by score
matching* (2005); Song, Garg, Shi and Ermon, *Sliced score matching* (2019).
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import gaussian_kde, multivariate_normal
from sklearn.datasets import make_moons

import linops
from linops.estimate import trace

WIDTH = 64
BATCH = 256
STEPS = 1200
RATE = 3e-3


def energy(x, weights):
    """The sum of the energies of points; the square keeps exp(-E) integrable."""
    hidden = jnp.tanh(x @ weights["W1"] + weights["b1"])
    hidden = jnp.tanh(hidden @ weights["W2"] + weights["b2"])
    return jnp.sum(hidden @ weights["v"]) + 0.1 * jnp.sum(x**2)


def loss(weights, x, key):
    scores = jax.grad(energy)(x, weights)
    H = linops.Hessian(energy, x, args=(weights,))
    curvature = trace(H, key, method="hutchinson", num_matvecs=2)
    return (jnp.sum(scores**2) / 2 - curvature.value) / len(x)


@jax.jit
def fit(weights, points, key):
    """Adam, with a rate that falls to zero."""

    def step(state, i):
        weights, mean, square = state
        drawn, signs = jax.random.split(jax.random.fold_in(key, i))
        value, g = jax.value_and_grad(loss)(weights, jax.random.choice(drawn, points, (BATCH,)), signs)
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, g)
        square = jax.tree.map(lambda s, g: 0.99 * s + 0.01 * g**2, square, g)
        rate = RATE * (1 - i / STEPS) * jnp.sqrt(1 - 0.99 ** (i + 1)) / (1 - 0.9 ** (i + 1))
        weights = jax.tree.map(lambda w, m, s: w - rate * m / (jnp.sqrt(s) + 1e-8), weights, mean, square)
        return (weights, mean, square), value

    zeros = jax.tree.map(jnp.zeros_like, weights)
    (weights, _, _), values = jax.lax.scan(step, (weights, zeros, zeros), jnp.arange(STEPS))
    return weights, values


def main(plot=None):
    points, _ = make_moons(3000, noise=0.1, random_state=0)
    points = ((points - points.mean(0)) / points.std(0)).astype(np.float32)
    seen, unseen = jnp.asarray(points[:2000]), points[2000:]
    keys = jax.random.split(jax.random.key(0), 5)
    weights = {
        "W1": jax.random.normal(keys[0], (2, WIDTH)),
        "b1": jax.random.normal(keys[1], (WIDTH,)),
        "W2": jax.random.normal(keys[2], (WIDTH, WIDTH)) / np.sqrt(WIDTH),
        "b2": jnp.zeros(WIDTH),
        "v": jax.random.normal(keys[3], (WIDTH,)) / np.sqrt(WIDTH),
    }
    weights, values = fit(weights, seen, keys[4])

    # exp(-E) on a grid, and its sum
    ticks = np.linspace(-3, 3, 241, dtype=np.float32)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1)
    energies = jax.jit(jax.vmap(energy, (0, None)))
    E = np.asarray(energies(grid.reshape(-1, 2), weights)).reshape(241, 241)
    log_Z = np.log(np.sum(np.exp(E.min() - E)) * (ticks[1] - ticks[0]) ** 2) - E.min()
    likelihood = {
        "score matching": np.mean(-energies(unseen, weights)) - log_Z,
        "kernel density": np.mean(gaussian_kde(points[:2000].T).logpdf(unseen.T)),
        "one normal": np.mean(multivariate_normal(points[:2000].mean(0), np.cov(points[:2000].T)).logpdf(unseen)),
    }

    # The estimate in the loss beside the trace itself, which takes a product with each column of the identity.
    some = unseen[:250]
    H = linops.Hessian(energy, some, args=(weights,))
    estimated = trace(H, jax.random.key(1), method="hutchinson", num_matvecs=32)
    exact = trace(H, jax.random.key(1), num_matvecs=H.shape[1])

    print(f"loss {np.mean(values[:50]):.2f} in the first steps, {np.mean(values[-50:]):.2f} in the last of {STEPS}")
    print(f"trace of the Hessian at {len(some)} points: {exact.value:.0f}")
    print(f"from {int(estimated.matvecs)} products: {estimated.value:.0f} +- {estimated.standard_error:.0f}\n")
    print("mean log-likelihood of points not seen")
    for name, value in likelihood.items():
        print(f"  {name:16} {value:6.2f}")
    if plot:
        draw(plot, ticks, -E - log_Z, unseen)
    return {"values": values, "likelihood": likelihood, "estimated": estimated, "exact": exact}


def draw(path, ticks, log_density, points):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    left.plot(*points.T, ".", color="k", markersize=2, rasterized=True)
    left.set(title="points that were not learned from", aspect="equal", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))
    levels = np.arange(-12, 1)
    filled = right.contourf(ticks, ticks, log_density, levels=levels, cmap="viridis", extend="both")
    right.set(title="learned log-density", aspect="equal")
    figure.colorbar(filled, ax=right)
    figure.savefig(path, dpi=150)


def check(result):
    likelihood, estimated, exact = result["likelihood"], result["estimated"], result["exact"]
    assert np.mean(result["values"][-50:]) < np.mean(result["values"][:50]) - 5
    assert exact.standard_error == 0
    assert abs(estimated.value - exact.value) < 4 * estimated.standard_error
    assert likelihood["score matching"] > likelihood["one normal"] + 0.7
    assert likelihood["score matching"] > likelihood["kernel density"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", metavar="PATH", help="save a picture there")
    main(**vars(parser.parse_args()))
