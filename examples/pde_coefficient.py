"""An inverse problem: how well a rod conducts heat, from noisy temperatures.

The temperature u of a rod with conductivity a(x), heated by f, obeys

    -(a u')' = f  on (0, 1),   u(0) = u(1) = 0.

Three heatings are tried, u is measured with 1 % noise, and a is sought, positive, hence as a = exp(m). The data say
little about small wiggles of m, and nothing where u' = 0, so that Tikhonov's regularization is added: minimize

    mean ((u(m) - data) / sigma)^2 + alpha * integral (m')^2.

`scipy.optimize.least_squares` needs the Jacobian of these residuals, the derivative through a tridiagonal solve. As an
operator, `linops.Jacobian`, it needs neither sensitivity equations nor an adjoint derived by hand, and LSMR finds each
step from its products. `J.at(m)` moves it to a new point; alpha is among its `args`, so that a new alpha is only data.

One sees the trade: with alpha too large the reconstruction is too smooth, too small and it follows the noise. Morozov's
discrepancy principle, which does not know the truth, takes the largest alpha whose misfit is down at the noise, near 1.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import least_squares

import linops

CELLS = 128


def solve(m, heating):
    """Temperatures at the inner nodes, one row for each heating, by finite volumes; m is constant in each cell."""
    a = jnp.exp(m) * m.size**2
    diagonal, coupling = a[:-1] + a[1:], -a[1:-1]
    below, above = jnp.pad(coupling, (1, 0)), jnp.pad(coupling, (0, 1))
    return jax.lax.linalg.tridiagonal_solve(below, diagonal, above, heating.T).T


def residuals(m, alpha, heating, data, sigma):
    misfit = (solve(m, heating) - data) / sigma / np.sqrt(data.size)
    roughness = jnp.sqrt(alpha * m.size) * jnp.diff(m)
    return jnp.concatenate([misfit.ravel(), roughness])


def heatings(cells):
    x = np.arange(1, cells) / cells
    return np.stack([np.ones_like(x), np.sin(2 * np.pi * x), np.cos(3 * np.pi * x)])


def conductivity(cells):
    """The truth: a wave with a better conducting piece in it."""
    x = (np.arange(cells) + 0.5) / cells
    return 1 + 0.5 * np.sin(2 * np.pi * x) + (np.abs(x - 0.7) < 0.15)


def main(plot=None):
    with jax.enable_x64(True):
        # The data come from a grid eight times finer: on the same grid, the inverse problem would be too easy.
        fine = np.asarray(solve(jnp.log(conductivity(8 * CELLS)), heatings(8 * CELLS)))[:, 7::8]
        sigma = 0.01 * np.abs(fine).max(axis=1, keepdims=True)
        data = fine + sigma * np.random.default_rng(0).standard_normal(fine.shape)

        truth, evaluate = conductivity(CELLS), jax.jit(residuals)
        rows = []
        print("   alpha   misfit   error of a   evaluations")
        for alpha in 10.0 ** np.arange(2, -6, -1):
            args = (alpha, heatings(CELLS), data, sigma)
            J = linops.Jacobian(residuals, np.zeros(CELLS), args=args)
            fit = least_squares(
                lambda m, args=args: evaluate(m, *args),
                np.zeros(CELLS),  # a = 1 everywhere
                jac=J.at,
                method="trf",
                tr_solver="lsmr",
            )
            a = np.exp(fit.x)
            misfit = np.sum(fit.fun[: data.size] ** 2)
            error = np.linalg.norm(a - truth) / np.linalg.norm(truth)
            rows.append({"alpha": alpha, "misfit": misfit, "error": error, "a": a})
            print(f"{alpha:8.0e} {misfit:8.3f} {error:12.3f} {fit.nfev:13}")

    chosen = next(row for row in rows if row["misfit"] < 1)
    at_start = np.linalg.norm(1 - truth) / np.linalg.norm(truth)
    print(
        f"\nMorozov takes alpha = {chosen['alpha']:.0e}: error {chosen['error']:.3f}, from {at_start:.3f} at the start"
    )
    if plot:
        draw(plot, truth, chosen["a"], rows[-1]["a"])
    return {"chosen": chosen, "errors": [row["error"] for row in rows], "error_at_start": at_start}


def draw(path, truth, chosen, unregularized):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    x = (np.arange(CELLS) + 0.5) / CELLS
    axes.plot(x, unregularized, color="lightgray", label="alpha too small")
    axes.plot(x, truth, "k--", label="truth")
    axes.plot(x, chosen, color="C3", label="alpha by Morozov")
    axes.set(xlabel="x", ylabel="conductivity a(x)", ylim=(0, 2 * truth.max()))
    axes.legend()
    figure.savefig(path)


def check(result):
    errors, error = result["errors"], result["chosen"]["error"]
    assert error < 0.1 < result["error_at_start"]
    assert error < 1.5 * min(errors), "Morozov's alpha is nearly the best one"
    assert errors[0] > 2 * error, "too smooth"
    assert errors[-1] > 1.5 * error, "too noisy"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", metavar="PATH", help="save a picture there")
    main(**vars(parser.parse_args()))
