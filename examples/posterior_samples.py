"""Samples of a Gaussian posterior, without a factorization of anything.

A small network g(w, x) learns how scikit-learn's diabetes data progress. Around the fit w, with noise of variance s2
and a normal prior of variance 1 on each weight, the Laplace approximation of the posterior is a Gaussian with

    precision  P = J^T J / s2 + I,    J the Jacobian of all predictions,

a Gauss-Newton matrix, of which products are all that is made here. If z is a standard normal vector, then

    P^(-1/2) z  ~  N(0, P^-1)

is a sample of it. `linops.linalg.funm_multiply_krylov` finds it from Lanczos' method: the inverse square root is taken
of a matrix of a hundred rows. Draws of the weights, pushed through J, give bands around the predictions.

The bands are compared with those of the dense covariance. Data: Efron, Hastie, Johnstone and Tibshirani, *Least angle
regression* (2004). Method: Chow and Saad, *Preconditioned Krylov subspace methods for sampling multivariate Gaussian
distributions* (2014).
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_diabetes

import linops
from linops.linalg import funm_multiply_krylov

DRAWS = 40


def model(params, inputs):
    return jnp.tanh(inputs @ params["W"] + params["b"]) @ params["v"]


def inverse_sqrt(X):
    values, Q = jnp.linalg.eigh(X)
    return (Q / jnp.sqrt(values)) @ Q.T


def fit(params, inputs, targets, noise):
    """Damped Gauss-Newton steps to the weights of highest posterior density."""

    def negative_log(params):
        prior = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return jnp.sum((model(params, inputs) - targets) ** 2) / (2 * noise) + prior / 2

    step = jax.jit(jax.value_and_grad(negative_log))
    G = linops.GaussNewton(model, params, args=(inputs,))
    for _ in range(60):
        _, gradient = step(params)
        P = G.at(params).toarray() / noise + 10 * np.eye(G.shape[0])
        change = G.domain.unravel(np.linalg.solve(P, G.domain.ravel(gradient)))
        params = jax.tree.map(jnp.subtract, params, change)
    return params


def main(plot=None):
    with jax.enable_x64(True):
        inputs, targets = load_diabetes(return_X_y=True)
        inputs, targets = inputs / inputs.std(0), (targets - targets.mean()) / targets.std()
        noise = 0.5
        keys = jax.random.split(jax.random.key(0), 3)
        params = {
            "W": jax.random.normal(keys[0], (10, 16)) / np.sqrt(10),
            "b": jnp.zeros(16),
            "v": jax.random.normal(keys[1], (16,)) / 4,
        }
        params = fit(params, jnp.asarray(inputs), jnp.asarray(targets), noise)

        J = linops.Jacobian(model, params, args=(inputs,))
        P = J.T @ J / noise + linops.Identity(J.shape[1])
        Z = jax.random.normal(keys[2], (J.shape[1], DRAWS))
        samples = funm_multiply_krylov(inverse_sqrt, P, Z, assume_a="her", restart_every_m=110, max_restarts=1)
        spread = np.asarray(J @ samples).std(1)

        covariance = np.linalg.inv(P.toarray())
        exact = np.sqrt(np.einsum("ij,jk,ik->i", J.toarray(), covariance, J.toarray()))
        values, Q = np.linalg.eigh(P.toarray())
        dense = (Q / np.sqrt(values)) @ Q.T @ np.asarray(Z)
        error = np.abs(samples - dense).max()

        predictions = np.asarray(model(params, inputs))
        print(f"{J.shape[1]} weights, {len(targets)} patients, condition of P {values[-1] / values[0]:.0f}")
        print(f"{DRAWS} samples, largest difference from the dense square root {error:.0e}")
        print(f"explained variance {1 - np.var(targets - predictions):.2f}")
        print("\npatient   progression   prediction   standard deviation: sampled    exact")
        for i in range(0, 50, 10):
            print(f"{i:7d} {targets[i]:13.2f} {predictions[i]:12.2f} {spread[i]:29.3f} {exact[i]:8.3f}")
        if plot:
            draw(plot, predictions, targets, spread, exact)
    return {"error": error, "spread": spread, "exact": exact, "predictions": predictions, "targets": targets}


def draw(path, predictions, targets, spread, exact):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    order = np.argsort(predictions)
    ranks = np.arange(len(order))
    middle, width = predictions[order], 2 * spread[order]
    left.plot(ranks, targets[order], ".", color="0.6", markersize=3, label="measured")
    left.fill_between(ranks, middle - width, middle + width, color="C0", alpha=0.4, label="two standard deviations")
    left.plot(ranks, middle, color="C0", linewidth=1, label="prediction")
    left.set(xlabel="patients, by prediction", ylabel="progression, standardized")
    left.legend(fontsize=8)
    right.plot(exact, spread, ".", color="C1", markersize=4)
    right.plot([0, exact.max()], [0, exact.max()], color="0.3", linewidth=1)
    right.set(xlabel="standard deviation, exact", ylabel=f"of {DRAWS} samples")
    figure.savefig(path, dpi=150)


def check(result):
    assert result["error"] < 1e-5
    # The standard deviation of 40 draws is off by 11 % (one sigma).
    ratio = result["spread"] / result["exact"]
    assert 0.5 < ratio.min() < ratio.max() < 1.5
    assert abs(ratio.mean() - 1) < 0.12


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", metavar="PATH", help="save a picture there")
    main(**vars(parser.parse_args()))
