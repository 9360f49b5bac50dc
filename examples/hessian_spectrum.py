"""The spectrum of a network's Hessian: a few outliers, a bulk near zero, a few negative eigenvalues.

A 64-32-10 tanh network learns scikit-learn's handwritten digits. Its loss L, the mean softmax cross-entropy, has a
Hessian of 2,410 by 2,410 at the weights w. One product with it,

    H(w) v = d/dt grad L(w + t v)  at t = 0,

costs about as much as two gradients, and products are all that is asked for here: SciPy's Newton-CG trains the network
a little with them, and `eigsh`, ARPACK's Lanczos method, finds both ends of the spectrum.

What one sees is the picture of Sagun, Bottou and LeCun, *Eigenvalues of the Hessian in deep learning* (2016): about as
many outliers as there are classes, here exactly one fewer, since the logits of an image can move by a common shift that
the softmax does not see. A gap parts them from a bulk near zero. Some eigenvalues are slightly negative.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from scipy.sparse.linalg import eigsh
from sklearn.datasets import load_digits

import linops


def loss(params, images, labels):
    hidden = jnp.tanh(images @ params["W1"] + params["b1"])
    log_probabilities = jax.nn.log_softmax(hidden @ params["W2"] + params["b2"])
    return -jnp.mean(jnp.take_along_axis(log_probabilities, labels[:, None], axis=1))


def main(plot=None):
    with jax.enable_x64(True):
        images, labels = load_digits(return_X_y=True)
        data = (jnp.asarray(images / 16), jnp.asarray(labels))
        key1, key2 = jax.random.split(jax.random.key(1))
        params = {
            "W1": jax.random.normal(key1, (64, 32)) / np.sqrt(64),
            "b1": jnp.zeros(32),
            "W2": jax.random.normal(key2, (32, 10)) / np.sqrt(32),
            "b2": jnp.zeros(10),
        }
        H = linops.Hessian(loss, params, args=data)

        # SciPy sees the weights as one vector, the loss as a pytree; the operator's domain goes between the two.
        space = H.domain
        value_and_grad = jax.jit(jax.value_and_grad(lambda w: loss(space.unravel(w), *data)))
        trained = minimize(
            value_and_grad,
            space.ravel(params),
            jac=True,
            hess=lambda w: H.at(space.unravel(w)),
            method="Newton-CG",
            options={"maxiter": 8},
        )
        H = H.at(space.unravel(trained.x))

        v0 = np.ones(space.size)  # ARPACK's own start is random
        top, Q = eigsh(H, k=15, which="LA", v0=v0)
        top, Q = top[::-1], Q[:, ::-1]
        bottom, P = eigsh(H, k=5, which="SA", v0=v0, tol=1e-4)  # they lie close together, which takes long to resolve
        residuals = np.linalg.norm(H @ Q - Q * top, axis=0)
        bottom_residual = np.linalg.norm(H @ P - P * bottom, axis=0).max()
        outliers = 1 + int(np.argmax(top[:-1] / top[1:]))  # what stands before the widest gap

        # For random signs v, E |R v|^2 is the squared Frobenius norm of R: the sum of its squared eigenvalues.
        V = np.random.default_rng(0).choice([-1.0, 1.0], (space.size, 30))
        rest = H @ V - Q * top @ (Q.T @ V)
        bulk = np.sqrt(np.mean(np.sum(rest**2, axis=0)) / (space.size - len(top)))

        print(f"loss after {trained.nit} Newton steps: {trained.fun:.3f}\n\n  top eigenvalues   residual")
        for i, (eigenvalue, residual) in enumerate(zip(top, residuals, strict=True)):
            print(f"{i + 1:4} {eigenvalue:12.4f}   {residual:8.0e}" + "   <- the widest gap" * (i + 1 == outliers))
        print(f"\nbottom eigenvalues: {np.array2string(bottom, precision=4)}, residuals up to {bottom_residual:.0e}")
        print(f"root mean square of the other {space.size - len(top)}: {bulk:.4f}")
        if plot:
            draw(plot, top, bottom, bulk)
    return {
        "top": top,
        "residual": residuals.max(),
        "bottom": bottom,
        "bottom_residual": bottom_residual,
        "outliers": outliers,
        "bulk": bulk,
    }


def draw(path, top, bottom, bulk):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(-bulk, bulk, color="lightgray", label="bulk: root mean square")
    axes.vlines(top, 0, 1, color="C3", label=f"top {len(top)}")
    axes.vlines(bottom, 0, 1, color="C0", label=f"bottom {len(bottom)}")
    axes.set(xlabel="eigenvalue", yticks=[], title="Hessian of a network on digits")
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path)


def check(result):
    largest = result["top"][0]
    assert result["outliers"] == 9, "one outlier fewer than classes"
    assert result["residual"] < 1e-10 * largest
    assert result["bulk"] < 0.02 * largest, "the bulk is near zero"
    # A residual bounds the distance to an eigenvalue, so that this one is negative without doubt.
    assert -0.02 * largest < min(result["bottom"]) < -result["bottom_residual"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", metavar="PATH", help="save a picture there")
    main(**vars(parser.parse_args()))
