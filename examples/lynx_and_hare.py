"""Lynxes and hares: an ordinary differential equation fitted to counts, with standard errors.

The Hudson's Bay Company counted pelts for decades. The equations of Lotka and Volterra, u' = (a - b v) u for hares and
v' = (c u - d) v for lynxes, are solved by `jax.experimental.ode.odeint`, whose derivatives are an adjoint of its own,
and `linops.optimize.levenberg_marquardt` fits their four rates and two first counts to the logarithms of the pelts of
1900 to 1920. The standard errors of the fit come with it, and those of any function of it by one Jacobian: here of the
period of the small cycle, 2 pi / sqrt(a d), about ten years.

The numbers beside it are means and standard deviations of a Bayesian fit of the same model to the same data: Carpenter,
*Predator-prey population dynamics: the Lotka-Volterra model in Stan* (2018). Data: Howard, *Modeling basics* (2009),
after Hewitt, *The conservation of the wild life of Canada* (1921), in thousands of pelts.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.ode import odeint

import linops
from linops.optimize import levenberg_marquardt

YEARS = np.arange(1900, 1921)
HARES = [30, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22, 25.4, 27.1, 40.3, 57, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6,
         16.2, 24.7]  # fmt: skip
LYNXES = [4, 6.1, 9.8, 35.2, 59.4, 41.7, 19, 13, 8.3, 9.1, 7.4, 8, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6]
START = {"a": 0.5, "b": 0.02, "c": 0.02, "d": 0.9, "hares": 30.0, "lynxes": 4.0}
PUBLISHED = {
    "a": (0.55, 0.07),
    "b": (0.028, 0.004),
    "c": (0.024, 0.004),
    "d": (0.80, 0.10),
    "hares": (34.0, 2.9),
    "lynxes": (5.9, 0.5),
}


def populations(p, times):
    """Hares and lynxes at these times, of parameters that are logarithms."""
    rate = {name: jnp.exp(value) for name, value in p.items()}

    def slopes(y, _):
        u, v = y
        return jnp.stack([(rate["a"] - rate["b"] * v) * u, (rate["c"] * u - rate["d"]) * v])

    return odeint(slopes, jnp.stack([rate["hares"], rate["lynxes"]]), times, rtol=1e-6, atol=1e-6)


def residuals(p, times, counts):
    return jnp.log(populations(p, times)) - jnp.log(counts)


def period(p):
    return 2 * jnp.pi * jnp.exp(-(p["a"] + p["d"]) / 2)


def main(plot=None):
    with jax.enable_x64(True):
        times, counts = jnp.asarray(YEARS - 1900.0), jnp.asarray(np.stack([HARES, LYNXES], axis=1))
        start = {name: np.log(value) for name, value in START.items()}
        fit = levenberg_marquardt(residuals, start, args=(times, counts))
        J = linops.Jacobian(period, fit.x)
        period_error = float(np.sqrt((J @ fit.covariance @ J.T).toarray()[0, 0]))
        found = {
            name: (float(np.exp(value)), float(np.exp(value) * fit.standard_errors[name]))
            for name, value in fit.x.items()
        }
        years = float(period(fit.x)), period_error
        curves = populations(fit.x, jnp.linspace(0, 20, 400)) if plot else None
    print(
        f"{fit.message} {fit.nfev} evaluations; residuals of {np.sqrt(2 * fit.cost / (42 - 6)):.2f} in the logarithm\n"
    )
    print("              fit              Bayesian")
    for name, (value, error) in found.items():
        print(f"{name:8} {value:8.3f} +- {error:.3f} {'{:8.3f} +- {:.3f}'.format(*PUBLISHED[name])}")
    print(f"\nperiod of the small cycle: {years[0]:.2f} +- {years[1]:.2f} years")
    if plot:
        draw(plot, np.asarray(curves))
    return {"success": bool(fit.success), "found": found, "period": years}


def draw(path, curves):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for counts, curve, name, style in zip((HARES, LYNXES), curves.T, ("hares", "lynxes"), ("o-", "s--"), strict=True):
        (line,) = axes.plot(np.linspace(1900, 1920, 400), curve, style[1:], label=name)
        axes.plot(YEARS, counts, style[0], color=line.get_color(), fillstyle="none")
    axes.set(yscale="log", ylabel="thousands of pelts", xticks=range(1900, 1921, 5))
    axes.set_yticks([5, 10, 20, 50], [5, 10, 20, 50])
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def check(result):
    assert result["success"]
    for name, (value, deviation) in PUBLISHED.items():
        fitted, error = result["found"][name]
        assert abs(fitted - value) < deviation
        assert 0.5 * deviation < error < 2 * deviation
    assert 9 < result["period"][0] < 10


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", metavar="FILE", help="draw the counts and the fit")
    main(**vars(parser.parse_args()))
