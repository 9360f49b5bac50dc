"""Levenberg-Marquardt in a few lines, checked against certified values.

Nonlinear least squares minimizes |r(b)|^2 over parameters b. Linearized at b, with the Jacobian J of r, its minimum is
one Gauss-Newton step away; Levenberg and Marquardt damp the step with lam > 0, the more the less the last one gained:

    (J^T J + lam I) step = -J^T r.

The operator on the left is written as it is on paper, and is one compiled program for SciPy's `cg`. A new lam and a new
point are data to it: after the first step, nothing is compiled, which we count.

The data are Thurber's measurements of electron mobility in semiconductors, with a cubic-over-cubic rational model of 7
parameters, "higher level of difficulty" among NIST's Statistical Reference Datasets, which certify 11 digits of each
parameter (https://www.itl.nist.gov/div898/strd/nls/data/thurber.shtml). One sees the damping find its
level, the residual sum of squares settle at the certified 5642.7082397, and seven digits of each parameter come out.
"""

import argparse

import jax
import numpy as np
from scipy.sparse.linalg import cg

import linops

LOG_DENSITY = """
-3.067 -2.981 -2.921 -2.912 -2.840 -2.797 -2.702 -2.699 -2.633 -2.481 -2.363 -2.322 -1.501 -1.460 -1.274 -1.212 -1.100
-1.046 -0.915 -0.714 -0.566 -0.545 -0.400 -0.309 -0.109 -0.103 0.010 0.119 0.377 0.790 0.963 1.006 1.115 1.572 1.841
2.047 2.200"""
MOBILITY = """
80.574 84.248 87.264 87.195 89.076 89.608 89.868 90.101 92.405 95.854 100.696 101.060 401.672 390.724 567.534 635.316
733.054 759.087 894.206 990.785 1090.109 1080.914 1122.643 1178.351 1260.531 1273.514 1288.339 1327.543 1353.863
1414.509 1425.208 1421.384 1442.962 1464.350 1468.705 1447.894 1457.628"""
START = np.array([1000, 1000, 400, 40, 0.7, 0.3, 0.03])  # NIST's first start, the farther one
CERTIFIED = [1.2881396800e3, 1.4910792535e3, 5.8323836877e2, 7.5416644291e1]
CERTIFIED += [9.6629502864e-1, 3.9797285797e-1, 4.9727297349e-2]


def model(b, x):
    return (b[0] + b[1] * x + b[2] * x**2 + b[3] * x**3) / (1 + b[4] * x + b[5] * x**2 + b[6] * x**3)


def residuals(scaled, x, y):
    """Parameters come in units of their start, so that one lam damps them all alike."""
    return model(scaled * START, x) - y


def main(plot=None):
    compilations = []

    def listener(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listener)
    with jax.enable_x64(True):
        data = tuple(np.array(column.split(), float) for column in (LOG_DENSITY, MOBILITY))
        evaluate = jax.jit(residuals)
        b, lam = np.ones(7), 1e5
        r = np.asarray(evaluate(b, *data))
        J = linops.Jacobian(residuals, b, args=data)

        print("step       lam   residual sum of squares   compilations so far")
        for step_number in range(60):
            gradient = J.T @ r
            step, _ = cg(J.T @ J + lam * linops.Identity(7), -gradient, rtol=1e-10)
            r_new = np.asarray(evaluate(b + step, *data))
            gain = float((r @ r - r_new @ r_new) / (step @ (lam * step - gradient)))  # decrease over its prediction
            if step_number % 4 == 0:
                print(f"{step_number:4} {lam:9.0e} {r_new @ r_new:25.7f} {len(compilations):21}")
            if step_number == 0:
                compiled_first = len(compilations)
            lam *= max(1 / 3, 1 - (2 * gain - 1) ** 3) if gain > 0 else 4  # after Nielsen (1999)
            if gain > 0:
                b, r = b + step, r_new
                J = J.at(b)
            elif np.linalg.norm(step) < 1e-6 * np.linalg.norm(b):
                break  # the sum of squares, to its last digit, no longer tells better from worse
    jax.monitoring.unregister_event_duration_listener(listener)

    fitted = b * START
    errors = np.abs(fitted / CERTIFIED - 1)
    print("\n            fitted         certified   relative error")
    for row in zip(fitted, CERTIFIED, errors, strict=True):
        print("{:18.10e}{:18.10e}{:17.0e}".format(*row))
    if plot:
        draw(plot, fitted, *data)
    return {"errors": errors, "sum_of_squares": r @ r, "later_compilations": len(compilations) - compiled_first}


def draw(path, b, x, y):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    grid = np.linspace(x.min(), x.max(), 300)
    axes.plot(x, y, "o", color="gray", label="measured")
    axes.plot(grid, model(b, grid), color="C3", label="fitted")
    axes.set(xlabel="log of density", ylabel="electron mobility", title="Thurber (NIST StRD)")
    axes.legend()
    figure.savefig(path)


def check(result):
    assert max(result["errors"]) < 1e-7, "seven digits"
    assert abs(result["sum_of_squares"] / 5.6427082397e3 - 1) < 1e-10
    assert result["later_compilations"] == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", metavar="PATH", help="save a picture there")
    main(**vars(parser.parse_args()))
