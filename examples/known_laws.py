"""Spectral densities beside laws that are known: how far products and steps bring one.

Three matrices of n = 1,200, the densities of whose eigenvalues have formulas:

    Wigner's semicircle   a symmetric matrix of independent entries   sqrt(4 - t^2) / (2 pi)                on [-2, 2]
    Marchenko-Pastur      J^T J / (2 n), J random of 2 n rows         sqrt((b - t)(t - a)) / (pi t)         on [a, b]
    the Laplacian         of a closed chain, -1, 2, -1                1 / (pi sqrt(t (4 - t)))              on [0, 4]

with a, b = (1 -+ sqrt(1/2))^2. `linops.estimate.spectral_density` multiplies them by random vectors, the probes, makes
some steps of Lanczos with each and smooths what that gives, by Gaussians ("slq") or as a Chebyshev series ("kpm").

One sees how far the estimate is from the law, in L1 distance, the integral of their difference. Few steps blur, which
no number of probes mends, as at the ends of the Laplacian, where its density is infinite; of many steps with few
probes the scatter is left. Both together come close, and the series, which narrows towards the ends, closer there.

Wigner, *On the distribution of the roots of certain symmetric matrices* (1958); Marchenko and Pastur, *Distribution of
eigenvalues for some sets of random matrices* (1967); Lin, Saad and Yang, *Approximating spectral densities of large
matrices* (2016).
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import linops
from linops.estimate import spectral_density

SIZE = 1200
RUNS = (("slq", 16, 16), ("slq", 64, 2), ("slq", 64, 16), ("kpm", 64, 16))
SHOWN = ("slq", 64, 16)
LOW, HIGH = (1 - np.sqrt(0.5)) ** 2, (1 + np.sqrt(0.5)) ** 2
LAWS = {
    "semicircle": (-2.0, 2.0, lambda t: np.sqrt(4 - t**2) / (2 * np.pi)),
    "Marchenko-Pastur": (LOW, HIGH, lambda t: np.sqrt((HIGH - t) * (t - LOW)) / (np.pi * t)),
    "Laplacian": (0.0, 4.0, lambda t: 1 / (np.pi * np.sqrt(t * (4 - t)))),
}


class Symmetric(linops.Matrix):
    """A matrix that says of itself that it is symmetric, which a density asks for."""

    symmetric = True


def matrices():
    """Three arrays of one shape, so that a run is compiled once for all."""
    rng = np.random.default_rng(0)
    entries, J = rng.standard_normal((SIZE, SIZE)), rng.standard_normal((2 * SIZE, SIZE))
    eye = np.eye(SIZE)
    arrays = (
        (entries + entries.T) / np.sqrt(2 * SIZE),
        J.T @ J / (2 * SIZE),
        2 * eye - np.roll(eye, 1, axis=0) - np.roll(eye, -1, axis=0),
    )
    return {name: Symmetric(array.astype(np.float32)) for name, array in zip(LAWS, arrays, strict=True)}


def main(plot=None):
    print(
        f"L1 distance from the law, n = {SIZE}\n\n{'method, steps, probes':24}" + "".join(f"{law:>18}" for law in LAWS)
    )
    operators, distances, shown = matrices(), {}, {}
    for run in RUNS:
        method, steps, probes = run
        for name, A in operators.items():
            low, high, law = LAWS[name]
            margin = 0.15 * (high - low)
            grid = np.linspace(low - margin, high + margin, 4001)  # of which no point is an end
            found = spectral_density(
                A, jax.random.key(1), method=method, grid=grid, steps=steps, num_matvecs=steps * probes
            )
            inside = (grid > low) & (grid < high)
            exact = np.where(inside, law(np.where(inside, grid, (low + high) / 2)), 0)
            distances[*run, name] = np.trapezoid(np.abs(found.density - exact), grid)
            if run == SHOWN:
                shown[name] = found, exact
        print(f"{method:8}{steps:8}{probes:8}" + "".join(f"{distances[*run, name]:18.3f}" for name in LAWS))
    if plot:
        draw(plot, shown)
    return distances


def draw(path, shown):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (name, (found, exact)) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        low, high = found.density - 2 * found.band, found.density + 2 * found.band
        axes.fill_between(found.grid, low, high, color="C1", alpha=0.5, linewidth=0, label="two standard errors")
        axes.plot(found.grid, found.density, color="C1", linewidth=1.5, label="estimate")
        axes.plot(found.grid, exact, "k--", linewidth=1, label="law")
        axes.set(title=name, xlabel="eigenvalue", ylim=(0, 1.15 * float(jnp.max(found.density))))
    figure.axes[0].set_ylabel("density")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=150)


def check(distances):
    for name in LAWS:
        few_steps, few_probes, both, series = (distances[*run, name] for run in RUNS)
        assert both < 0.7 * few_steps, "more steps see finer"
        assert name == "Laplacian" or both < 0.8 * few_probes, "and more probes mend the scatter of that"
    assert series < 0.6 * both, "of the Laplacian: the series is narrower at the ends"
    assert max(distances[*SHOWN, name] for name in ("semicircle", "Marchenko-Pastur")) < 0.1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", metavar="PATH", help="save a picture there")
    main(**vars(parser.parse_args()))
