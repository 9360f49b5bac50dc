"""A diffusion coefficient in the plane, from measurements: Gauss-Newton, with a preconditioner and without.

The temperature u of a plate with conductivity exp(m), heated by f, obeys -div(exp(m) grad u) = f, and u = 0 at the
boundary. Four heatings are tried, u is measured at 100 points with 0.1 % noise, and m is sought in 400 cells. A priori
m = L z, with independent standard normal amplitudes z of waves, and the most probable z minimizes

    |r(z)|^2 / 2 + |z|^2 / 2,    r = (u(L z) - data) / sigma.

A Gauss-Newton step solves (J^T J + I) s = -(J^T r + z), J the Jacobian of r, the derivative of a solution of a linear
system. What the data determine are eigenvalues of J^T J that stand out, up to 10^8; most of the others are below the 1
that is added. `linops.precondition.nystrom` finds the large ones from 100 products with random vectors, once: what it
makes for the first step serves the later ones.

One sees conjugate gradients take hundreds of iterations, and a tenth of them with the large eigenvalues out of the way;
the misfit falls from thousands to nearly 1, which is the noise.

Frangella, Tropp and Udell, *Randomized Nystroem preconditioning* (2023).
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import linops
from linops.linalg import cg
from linops.precondition import nystrom

CELLS, STEPS, RANK = 20, 4, 100


def temperatures(m, heatings):
    """By finite volumes; the conductivity of a face is the harmonic mean of those of its two cells."""
    n = m.shape[0]
    resistance = jnp.pad(jnp.exp(-m), 1, mode="edge")
    across, down = (
        2 / (resistance[1:, 1:-1] + resistance[:-1, 1:-1]),
        2 / (resistance[1:-1, 1:] + resistance[1:-1, :-1]),
    )
    places = np.arange(n * n).reshape(n, n)
    A = jnp.diag((across[1:] + across[:-1] + down[:, 1:] + down[:, :-1]).ravel())
    for one, other, faces in ((places[1:], places[:-1], across[1:-1]), (places[:, 1:], places[:, :-1], down[:, 1:-1])):
        A = A.at[one, other].add(-faces).at[other, one].add(-faces)
    return jnp.linalg.solve(A, heatings.reshape(-1, n * n).T / n**2).T.reshape(-1, n, n)


def field(z):
    """Waves cos(j pi x) cos(k pi y), with amplitudes that decay as 1 / (1 + j^2 + k^2)."""
    n = z.shape[0]
    waves = np.cos(np.pi * np.outer(np.arange(n), np.arange(n) + 0.5) / n)
    j = np.arange(n)
    return waves.T @ (z / (1 + j[:, None] ** 2 + j**2)) @ waves


def measured(m, heatings):
    return temperatures(m, heatings)[:, 1::2, 1::2]


def residuals(z, heatings, data, sigma):
    return (measured(field(z), heatings) - data) / sigma


def main(plot=None):
    with jax.enable_x64(True):
        x = (np.arange(CELLS) + 0.5) / CELLS
        waves = np.sin(np.pi * x), np.sin(2 * np.pi * x)
        heatings = np.array([np.outer(a, b) for a in waves for b in waves])
        truth = np.log(1 + 2 * ((x[:, None] - 0.35) ** 2 + (x - 0.6) ** 2 < 0.06))  # a disk that conducts better
        exact = np.asarray(jax.jit(measured)(truth, heatings))  # on the same grid: it is the solver that is looked at
        sigma = 0.001 * np.abs(exact).max()
        args = heatings, exact + sigma * np.random.default_rng(0).standard_normal(exact.shape), sigma

        evaluate = jax.jit(residuals)

        def said(z):
            error = np.linalg.norm(field(np.asarray(z)) - truth) / np.linalg.norm(truth)
            return float(np.mean(np.asarray(evaluate(z, *args)) ** 2)), error

        z = jnp.zeros((CELLS, CELLS))
        J = linops.Jacobian(residuals, z, args=args)
        eye = linops.Identity(J.domain)
        M = nystrom(J.T @ J, 1.0, rank=RANK)
        table, products, converged = [], np.array([0, RANK]), True
        print("step    misfit   error of m   iterations: plain   preconditioned")
        for step in range(STEPS):
            J = J.at(z)
            b = J.domain.add(J.T.mv(evaluate(z, *args)), z)
            records = []
            for preconditioner in (None, M):
                change, _, record = cg(J.T @ J + eye, b, M=preconditioner, rtol=1e-6, full_output=True)
                records.append(record)
            table.append((*said(z), *(int(record.iterations) for record in records)))
            products += [int(record.matvecs) for record in records]
            converged &= all(bool(record.converged) for record in records)
            print("{:4} {:9.2f} {:12.2f} {:19} {:16}".format(step, *table[-1]))
            z = z - change
        misfit, error = said(z)
        found = field(np.asarray(z))
    print("{:4} {:9.2f} {:12.2f}   products {:8} {:16}".format(STEPS, misfit, error, *products))
    table = np.array(table)
    if plot:
        draw(plot, truth, found, table)
    return {"table": table, "misfit": misfit, "error": error, "products": products, "converged": converged}


def draw(path, truth, found, table):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axes, values, title in ((left, truth, "conductivity"), (middle, found, "as it was found")):
        image = axes.imshow(np.exp(values), vmin=0.5, vmax=3.5)
        axes.set(xticks=[], yticks=[], title=title)
    figure.colorbar(image, ax=[left, middle])
    for name, iterations in zip(("plain", "preconditioned"), table[:, 2:].T, strict=True):
        right.plot(iterations, "o-", label=name)
    right.set(yscale="log", xlabel="Gauss-Newton step", ylabel="iterations of cg", xticks=range(STEPS))
    right.legend(fontsize=8, loc="center right")
    figure.savefig(path, dpi=150)


def check(result):
    table = result["table"]
    assert result["converged"]
    assert result["misfit"] < 2 < 1000 < table[0, 0]
    assert result["error"] < 0.25 < table[0, 1]
    plain, preconditioned = table[:, 2:].T
    assert (plain > 10 * preconditioned).all()
    assert result["products"][0] > 5 * result["products"][1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", metavar="PATH", help="save a picture there")
    main(**vars(parser.parse_args()))
