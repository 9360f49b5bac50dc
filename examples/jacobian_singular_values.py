"""How much of the past can be known: the singular values of the Jacobian of a heat flow.

A rod that conducts the better the hotter it is, isolated at both ends, forgets how it was heated:

    du/dt = d/dx (a(u) du/dx),   a(u) = 1 + u.

Its temperatures u(T) are measured, each with noise of standard deviation 0.01, and u(0) is wanted. A change of u(0)
along the right singular vector v_i of the Jacobian of u(0) -> u(T) changes u(T) by s_i along u_i. Where s_i is far
below the noise, nothing that is measured tells of it. How many are not is the effective rank, and s_1 / s_i says by how
much an inversion that goes on to the i-th blows up the noise.

`linops.linalg.svds` finds the largest 16 of 64 with their vectors, from products. They fall like exp(-c i^2 T), so that
the effective rank goes with 1 / sqrt(T). A Gauss-Newton method that moves along these directions alone finds of u(0)
what is left in u(T): three hot spots, then lower ones, then two. T is data to one compiled program, as is the point.

Hansen, *Rank-deficient and discrete ill-posed problems* (1998).
"""

import argparse
import itertools

import jax
import jax.numpy as jnp
import numpy as np

import linops
from linops.linalg import svds

CELLS, STEPS, COUNT = 64, 1600, 16
TIMES = (0.001, 0.003, 0.009)
NOISE = 0.01
LEAST = 0.1  # of a singular value: with such noise the coefficient is known to 0.1


def flow(u, time):
    """Temperatures after a time, by finite volumes and explicit steps."""

    def step(u, _):
        current = (1 + (u[1:] + u[:-1]) / 2) * jnp.diff(u) * CELLS**2
        return u + time / STEPS * jnp.diff(jnp.pad(current, 1)), None

    return jax.lax.scan(step, u, length=STEPS)[0]


def reconstruct(J, time, measured, evaluate):
    """Gauss-Newton steps along the directions that the data know."""
    u = np.full(CELLS, measured.mean())
    for _ in range(4):
        J = J.at(u, args=(time,))
        left, s, right = map(np.asarray, svds(J, k=COUNT, tol=1e-8))
        known = s > LEAST
        u = u + right[known].T @ (left[:, known].T @ (measured - evaluate(u, time)) / s[known])
    return u, s[::-1], J


def main(plot=None):
    with jax.enable_x64(True):
        x = (np.arange(CELLS) + 0.5) / CELLS
        truth = 0.2 + sum(h * np.exp(-(((x - c) / 0.06) ** 2)) for h, c in ((0.8, 0.2), (0.5, 0.45), (0.7, 0.8)))
        noise = NOISE * np.random.default_rng(0).standard_normal(CELLS)
        evaluate = jax.jit(flow)
        J = linops.Jacobian(flow, truth, args=(TIMES[0],))

        rows = []
        print(f"   time   effective rank   s_1 / s_{COUNT}   error of u(0)")
        for time in TIMES:
            u, s, J = reconstruct(J, time, np.asarray(evaluate(truth, time)) + noise, evaluate)
            exact = np.linalg.svd(J.toarray(), compute_uv=False)
            error = np.linalg.norm(u - truth) / np.linalg.norm(truth - truth.mean())
            rank = int(np.sum(s > LEAST))
            rows.append({"time": time, "u": u, "s": s, "exact": exact, "error": error, "rank": rank})
            print(f"{time:7} {rank:16} {s[0] / s[-1]:12.1e} {error:15.2f}")
        if plot:
            draw(plot, x, truth, rows)
    return rows


def draw(path, x, truth, rows):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.axhline(LEAST, color="0.5", linestyle=":", linewidth=1)
    left.annotate("known to 0.1", (CELLS, LEAST), xytext=(0, 3), textcoords="offset points", ha="right", fontsize=8)
    right.plot(x, truth, "k", linewidth=1, label="truth")
    for row, color, marker, line in zip(rows, ("C0", "C1", "C2"), "os^", ("-", "--", "-."), strict=True):
        label = f"T = {row['time']}"
        left.semilogy(np.arange(1, CELLS + 1), row["exact"], color=color, linewidth=0.8)
        left.semilogy(np.arange(1, COUNT + 1), row["s"], marker, color=color, markersize=3.5, label=label)
        right.plot(x, row["u"], line, color=color, label=label)
    left.set(xlabel="number", ylabel="singular value (lines: dense)", ylim=(1e-10, 3))
    right.set(xlabel="x", ylabel="u(0), from u(T)")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def check(rows):
    for row in rows:
        np.testing.assert_allclose(row["s"], row["exact"][:COUNT], rtol=1e-6, atol=1e-12)
    ranks, errors = [row["rank"] for row in rows], [row["error"] for row in rows]
    assert ranks[0] > ranks[1] > ranks[2] > 1
    for earlier, later in itertools.pairwise(ranks):  # three times as late
        assert 1.3 < earlier / later < 2.4, "the rank goes with 1 / sqrt(T)"
    assert errors[0] < 0.25 < errors[1] < errors[2]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", metavar="PATH", help="save a picture there")
    main(**vars(parser.parse_args()))
