"""How sure a network is: a posterior covariance from a few eigenvectors, and from solves.

A 64-10-10 tanh network learns handwritten digits; its 760 weights have a normal prior of precision alpha. Around the
fit the Laplace approximation of the posterior is a normal distribution whose covariance is

    C = (G + alpha I)^-1,    G the Gauss-Newton matrix of the loss, summed over images,

and the variances of the ten outputs of an image are the diagonal of J C J^T, J the Jacobian of the outputs. Of k
eigenpairs (g, V) of G, the largest, which `eigsh` finds, one has

    C_k = (I - V diag(g / (g + alpha)) V^T) / alpha,

an identity and a `linops.LowRank`: the prior where nothing was computed, hence too wide, and never too narrow. The same
C_k is the preconditioner of `linops.inverse(G + alpha I)`, which is C to any accuracy.

One sees what eigenvectors alone buy: standard deviations are good once g_k is below alpha, and slowly so. As a
preconditioner few of them spare most of the iterations. Images that are classified wrong are those with wide outputs.

Daxberger and others, *Laplace redux: effortless Bayesian deep learning* (2021).
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import eigsh
from sklearn.datasets import load_digits

import linops
from linops.optimize import newton_cg

ALPHA = 1.0
RANKS = 0, 20, 50, 100, 200


def model(w, images):
    first, second = w[: 65 * 10].reshape(65, 10), w[65 * 10 :].reshape(11, 10)
    return jnp.tanh(images @ first[1:] + first[0]) @ second[1:] + second[0]


def negative_log(outputs, labels):
    return -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(outputs), labels[:, None], axis=1))


def negative_log_posterior(w, images, labels):
    return negative_log(model(w, images), labels) + ALPHA * w @ w / 2


def main(plot=None):
    with jax.enable_x64(True):
        images, labels = load_digits(return_X_y=True)
        train, test = (images[::2] / 16, labels[::2]), (images[1::2] / 16, labels[1::2])
        draws = np.random.default_rng(0)
        first = np.concatenate([np.zeros((1, 10)), draws.standard_normal((64, 10)) / 8])  # the first row: biases
        second = np.concatenate([np.zeros((1, 10)), draws.standard_normal((10, 10)) / 3])
        start = jnp.array([*first.ravel(), *second.ravel()])
        w = newton_cg(negative_log_posterior, start, args=train, gtol=0.1).x

        G = linops.GaussNewton(model, w, lambda outputs: negative_log(outputs, train[1]), args=(train[0],))
        eye = linops.Identity(w.size)
        P = G + ALPHA * eye
        J = linops.Jacobian(model, w, args=(test[0],))
        rows = J.toarray()  # of each output of each image
        exact = np.sqrt(np.sum(rows.T * np.linalg.solve(P.toarray(), rows.T), axis=0))

        g, V = eigsh(G, k=max(RANKS), tol=1e-3, v0=np.ones(w.size))  # SciPy's; that of linops.linalg is for a GPU
        g, V = g[::-1], V[:, ::-1]
        table = []
        print("                standard deviations, too wide by   iterations of cg")
        print("  k   g_k / alpha        median       most         with C_k as M")
        for k in RANKS:
            kept = np.where(np.arange(g.size) < k, g / (g + ALPHA), 0)  # of one shape: compiled once
            C = (eye - linops.LowRank(kept, V)) / ALPHA
            ratio = np.sqrt(np.sum(rows.T * (C @ rows.T), axis=0)) / exact
            x, record = linops.inverse(P, method="cg", M=C, rtol=1e-8).solve(rows[0])
            row = g[k - 1] / ALPHA if k else np.inf, np.median(ratio), ratio.max(), int(record.iterations)
            print(f"{k:3} {row[0]:13.2f} {row[1] - 1:13.0%} {row[2] - 1:10.0%} {row[3]:21}")
            table.append((*row, ratio.min()))
        solved = float(np.sqrt(rows[0] @ x))
        wrong = np.asarray(model(w, test[0])).argmax(axis=1) != test[1]

    width = exact.reshape(-1, 10).mean(axis=1)
    right, others = np.median(width[~wrong]), np.median(width[wrong])
    print(f"\nby a solve {solved:.6f}, dense {exact[0]:.6f}, of the first output of the first image")
    print(f"median standard deviation {right:.2f}, of the {wrong.sum()} images that are classified wrong {others:.2f}")
    if plot:
        draw(plot, table, width, wrong)
    return {"table": table, "solved": solved, "exact": exact[0], "widths": (right, others)}


def draw(path, table, width, wrong):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _, median, most, *_ = np.array(table).T
    left.plot(RANKS, median, "o-", label="median")
    left.plot(RANKS, most, "o-", color="C0", alpha=0.4, label="most")
    left.axhline(1, color="k", linewidth=1)
    left.set(ylim=(0, None), xlabel="eigenvectors k", ylabel="standard deviation by C_k / exact")
    left.legend()
    bins = np.linspace(width.min(), width.max(), 30)
    for some, label in ((width[~wrong], "right class"), (width[wrong], "wrong class")):
        right.hist(some, bins, density=True, alpha=0.6, label=label)
    right.set(xlabel="mean standard deviation of the outputs", ylabel="density of test images")
    right.legend()
    figure.savefig(path, dpi=150)


def check(result):
    _, median, most, iterations, least = np.array(result["table"]).T
    assert least.min() > 1 - 1e-6, "never too narrow"
    assert (np.diff(median) < 0).all()
    assert median[0] > 2
    assert most[-1] < 1.2
    assert iterations[0] > 5 * iterations[-1]
    assert abs(result["solved"] / result["exact"] - 1) < 1e-8
    assert result["widths"][0] < result["widths"][1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", metavar="PATH", help="save a picture there")
    main(**vars(parser.parse_args()))
