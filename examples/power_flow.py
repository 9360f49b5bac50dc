"""The voltages of a power grid: Newton's method on complex numbers.

In a grid of alternating current the voltages V_k at the buses are complex numbers, and with its admittance matrix Y

    S_k = V_k conj(sum_l Y_kl V_l)

is the power that bus k feeds in: active power in the real part, reactive power in the imaginary one. The loads are
given; at a generator active power and |V_k| are given; and at one bus, the slack, V itself. Wanted are all V.

S is not holomorphic, it has a conjugation inside. No complex matrix is its Jacobian, though
`jax.jacfwd(S, holomorphic=True)` gives one without a word. `linops.Jacobian` sees that, and is the real operator on
[Re V, Im V]; `linops.check` compares its products with differences of S. GMRES finds each step, and `J.at(V)` moves to
the next point without a compilation.

The grid is the IEEE 14-bus test case, a part of the American Midwest as of 1962, with its published solution.
Source: Power Systems Test Case Archive, University of Washington; R. D. Zimmerman et al., MATPOWER, case14.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import gmres

import linops

BASE = 100  # MVA; impedances below are per unit of it

# from, to, resistance, reactance, charging susceptance, tap ratio of the transformer
BRANCHES = np.array(
    [
        (1, 2, 0.01938, 0.05917, 0.0528, 1),
        (1, 5, 0.05403, 0.22304, 0.0492, 1),
        (2, 3, 0.04699, 0.19797, 0.0438, 1),
        (2, 4, 0.05811, 0.17632, 0.0340, 1),
        (2, 5, 0.05695, 0.17388, 0.0346, 1),
        (3, 4, 0.06701, 0.17103, 0.0128, 1),
        (4, 5, 0.01335, 0.04211, 0, 1),
        (4, 7, 0, 0.20912, 0, 0.978),
        (4, 9, 0, 0.55618, 0, 0.969),
        (5, 6, 0, 0.25202, 0, 0.932),
        (6, 11, 0.09498, 0.19890, 0, 1),
        (6, 12, 0.12291, 0.25581, 0, 1),
        (6, 13, 0.06615, 0.13027, 0, 1),
        (7, 8, 0, 0.17615, 0, 1),
        (7, 9, 0, 0.11001, 0, 1),
        (9, 10, 0.03181, 0.08450, 0, 1),
        (9, 14, 0.12711, 0.27038, 0, 1),
        (10, 11, 0.08205, 0.19207, 0, 1),
        (12, 13, 0.22092, 0.19988, 0, 1),
        (13, 14, 0.17093, 0.34802, 0, 1),
    ]
)
CAPACITOR = {9: 0.19}  # susceptance
LOADS = {  # MW + j Mvar
    2: 21.7 + 12.7j,
    3: 94.2 + 19j,
    4: 47.8 - 3.9j,
    5: 7.6 + 1.6j,
    6: 11.2 + 7.5j,
    9: 29.5 + 16.6j,
    10: 9 + 5.8j,
    11: 3.5 + 1.8j,
    12: 6.1 + 1.6j,
    13: 13.5 + 5.8j,
    14: 14.9 + 5j,
}
GENERATORS = {2: (40, 1.045), 3: (0, 1.010), 6: (0, 1.070), 8: (0, 1.090)}  # MW, |V|
SLACK = 1.06

# The published solution: |V|, and its angle in degrees.
MAGNITUDES = [1.060, 1.045, 1.010, 1.018, 1.020, 1.070, 1.062, 1.090, 1.056, 1.051, 1.057, 1.055, 1.050, 1.036]
ANGLES = [0, -4.98, -12.73, -10.31, -8.77, -14.22, -13.36, -13.36, -14.94, -15.10, -14.79, -15.08, -15.16, -16.03]


def admittances():
    """The matrix Y of the grid, per unit."""
    Y = np.zeros((14, 14), complex)
    for start, end, resistance, reactance, charging, tap in BRANCHES:
        k, m, y = int(start) - 1, int(end) - 1, 1 / (resistance + 1j * reactance)
        Y[k, k] += (y + 0.5j * charging) / tap**2
        Y[m, m] += y + 0.5j * charging
        Y[k, m] -= y / tap
        Y[m, k] -= y / tap
    for bus, susceptance in CAPACITOR.items():
        Y[bus - 1, bus - 1] += 1j * susceptance
    return Y


def mismatch(V, Y, fed, magnitudes, generators, loads):
    """How far voltages V at buses 2 to 14 are from what is given: complex where there are only loads, else real."""
    voltages = jnp.concatenate([jnp.full(1, SLACK, V.dtype), V])
    S = (voltages * jnp.conj(Y @ voltages))[1:] - fed
    return {
        "load": S[loads],
        "generator": S[generators].real,
        "magnitude": jnp.abs(V[generators]) ** 2 - magnitudes**2,
    }


def main(plot=None):
    with jax.enable_x64(True):
        fed = np.zeros(13, complex)
        for bus, load in LOADS.items():
            fed[bus - 2] -= load / BASE
        for bus, (power, _) in GENERATORS.items():
            fed[bus - 2] += power / BASE
        generators = np.array(list(GENERATORS)) - 2
        loads = np.setdiff1d(np.arange(13), generators)
        magnitudes = np.array([magnitude for _, magnitude in GENERATORS.values()])

        V = np.ones(13, complex)
        given = admittances(), fed, magnitudes, generators, loads
        J = linops.Jacobian(mismatch, V, args=given)
        print(J)
        linops.check(J).raise_if_failed()

        errors = []
        for _ in range(6):
            residual = np.asarray(J.codomain.ravel(mismatch(V, *given)))
            errors.append(np.max(np.abs(residual)))
            print(f"largest mismatch {BASE * errors[-1]:.2e} MVA")
            step, _ = gmres(J, -residual, rtol=1e-12, restart=26)
            re, im = J.domain.unravel(step)
            V = V + np.asarray(re + 1j * im)
            J = J.at(V)

        V = np.concatenate([[SLACK], V])
        angles = np.degrees(np.angle(V))
        print("bus   |V|   published   angle   published")
        for bus, row in enumerate(zip(abs(V), MAGNITUDES, angles, ANGLES, strict=True), 1):
            print("{:3d}  {:6.3f}  {:6.3f}    {:7.2f}  {:7.2f}".format(bus, *row))
        if plot:
            draw(plot, errors, V)
    return errors, abs(V), angles


def draw(path, errors, V):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogy(BASE * np.array(errors), "o-")
    left.set(xlabel="Newton step", ylabel="largest mismatch, MVA")
    right.plot(V.real, V.imag, "o")
    for bus, v in enumerate(V, 1):
        right.annotate(str(bus), (v.real, v.imag), xytext=(3, 3), textcoords="offset points")
    right.set(xlabel="Re V", ylabel="Im V")
    figure.savefig(path)


def check(result):
    errors, magnitudes, angles = result
    assert errors[-1] < 1e-12
    assert errors[3] < errors[2] ** 1.5, "quadratic convergence"
    np.testing.assert_allclose(magnitudes, MAGNITUDES, atol=0.002)  # of the table: it has three digits
    np.testing.assert_allclose(angles, ANGLES, atol=0.02)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", metavar="PATH", help="save a picture there")
    main(**vars(parser.parse_args()))
