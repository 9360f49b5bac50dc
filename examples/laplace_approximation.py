"""How strong a prior should be: the evidence of a network, and how many of its weights the data determine.

A 64-10-10 tanh network learns 600 handwritten digits; its n = 760 weights w have a normal prior of precision alpha.
Around the fit the Laplace approximation of the posterior is a normal distribution of precision G + alpha I, with G the
Gauss-Newton matrix of the loss, summed over all images, and for each alpha there are two numbers:

    log evidence            -loss(w) - alpha |w|^2 / 2 + (n log alpha - log det(G + alpha I)) / 2
    determined weights      gamma = tr G (G + alpha I)^-1

The largest evidence says how strong a prior the data want. In gamma, the effective number of parameters, an eigenvalue
g of G counts g / (g + alpha): 1 where the data say more of its direction than the prior.

`linops.estimate.logdet` has the determinant from 16 random vectors, with a standard error in which the error by
truncation is contained, for alpha bounds the spectrum from below. gamma is Hutchinson's mean of b^T f(G / alpha) b with
f(t) = t / (t + 1) over random signs b, each from `linops.estimate.quadratic_form`. G is multiplied by vectors and not
formed, but for a comparison with its eigenvalues: 760 products, fewer than here, but with more weights far too many.
Each fit and each alpha are data to the same programs, and have the same probes, so that neighboring errors are alike.

MacKay, *Bayesian interpolation* (1992); Immer, Bauer, Fortuin, Ratsch and Khan, *Scalable marginal likelihood
estimation for model selection in deep learning* (2021).
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import linops
from linops.estimate import logdet, quadratic_form

ALPHAS = 10.0 ** np.arange(-1, 1.6, 0.5)
PROBES = 16


def model(weights, images):
    first, second = weights[: 65 * 10].reshape(65, 10), weights[65 * 10 :].reshape(11, 10)
    return jnp.tanh(images @ first[1:] + first[0]) @ second[1:] + second[0]


def negative_log(outputs, labels):
    return -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(outputs), labels[:, None], axis=1))


@jax.jit
def fit(weights, alpha, images, labels):
    """Gradient descent with momentum to the weights of highest posterior density."""

    def posterior(weights):
        return negative_log(model(weights, images), labels) + alpha * jnp.sum(weights**2) / 2

    def step(state, _):
        weights, velocity = state
        velocity = 0.95 * velocity - 0.05 / len(labels) * jax.grad(posterior)(weights)
        return (weights + velocity, velocity), None

    (weights, _), _ = jax.lax.scan(step, (weights, jnp.zeros_like(weights)), length=600)
    return weights, negative_log(model(weights, images), labels) + alpha * jnp.sum(weights**2) / 2


def share(t):
    return t / (t + 1)


def determined(G, alpha, key):
    """The mean over probes and its standard error: the scatter of the probes, and how far apart the brackets are."""
    signs = jax.random.rademacher(key, (PROBES, G.shape[0]), G.dtype)
    forms = [quadratic_form(share, G / alpha, b, bounds=(0, None), rtol=1e-3) for b in signs]
    values = np.array([form.value for form in forms])
    truncation = np.mean([form.standard_error for form in forms])
    return values.mean(), values.std(ddof=1) / np.sqrt(PROBES) + truncation, sum(int(form.matvecs) for form in forms)


def main(plot=None):
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images[:600] / 16, jnp.float32), jnp.asarray(labels[:600])
    key1, key2, key3 = jax.random.split(jax.random.key(0), 3)
    first = jnp.zeros((65, 10)).at[1:].set(jax.random.normal(key1, (64, 10)) / 8)  # the first row: biases
    second = jnp.zeros((11, 10)).at[1:].set(jax.random.normal(key2, (10, 10)) / 3)
    weights = jnp.concatenate([first.ravel(), second.ravel()])
    G = linops.GaussNewton(model, weights, lambda outputs: negative_log(outputs, labels), args=(images,))
    n = weights.size

    rows = []
    print("            log det(G + alpha I)            determined weights              log evidence")
    print("  alpha     estimate           exact        estimate         exact")
    for alpha in np.float32(ALPHAS):
        weights, misfit = fit(weights, alpha, images, labels)
        G = G.at(weights)
        found = logdet(G + alpha * linops.Identity(n), key3, bounds=(alpha, None))
        gamma, gamma_error, products = determined(G, alpha, key3)
        eigenvalues = np.maximum(np.linalg.eigvalsh(G.toarray().astype(float)), 0)

        def evidence(log_determinant, misfit=float(misfit), alpha=alpha):
            return -misfit + (n * np.log(alpha) - log_determinant) / 2

        exact, exact_gamma = np.sum(np.log(eigenvalues + alpha)), np.sum(eigenvalues / (eigenvalues + alpha))
        row = {
            "alpha": float(alpha),
            "logdet": (float(found.value), float(found.standard_error), exact),
            "gamma": (gamma, gamma_error, exact_gamma),
            "evidence": (evidence(float(found.value)), float(found.standard_error) / 2, evidence(exact)),
            "products": int(found.matvecs) + products,
        }
        rows.append(row)
        text = "{:10.1f} +- {:5.1f} {:10.1f}".format(*row["logdet"])
        text += "   {:10.1f} +- {:4.1f} {:8.1f}".format(*row["gamma"])
        print(f"{alpha:7.2f}{text}   {row['evidence'][0]:12.0f}")
    best = max(rows, key=lambda row: row["evidence"][0])
    print(f"\nThe evidence is largest for alpha = {best['alpha']:.2f}: the data determine")
    print(f"{best['gamma'][0]:.0f} of {n} weights. {best['products']} products at this point.")
    if plot:
        draw(plot, rows, n)
    return rows


def draw(path, rows, n):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    alphas = [row["alpha"] for row in rows]
    titles = {"evidence": "log evidence", "gamma": f"determined weights, of {n}"}
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        value, error, exact = np.array([row[name] for row in rows]).T
        axes.errorbar(
            alphas,
            value,
            2 * error,
            fmt="o",
            color="C0",
            markersize=4,
            capsize=4,
            label="estimate, two standard errors",
        )
        axes.plot(alphas, exact, "k--", linewidth=1, label="exact")
        axes.set(xscale="log", xlabel="precision alpha of the prior", ylabel=title)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def check(rows):
    for row in rows:
        for name in ("logdet", "gamma"):
            value, error, exact = row[name]
            assert abs(value - exact) < 4 * error, name
        value, error, exact = row["gamma"]
        assert error < 0.1 * exact
    largest = [int(np.argmax([row["evidence"][i] for row in rows])) for i in (0, 2)]
    assert abs(largest[0] - largest[1]) <= 1, "the estimates choose as the exact values do"
    assert 0 < largest[1] < len(rows) - 1, "a prior that is too weak and one that is too strong"
    gammas = [row["gamma"][2] for row in rows]
    assert gammas == sorted(gammas, reverse=True), "a stronger prior leaves less to the data"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", metavar="PATH", help="save a picture there")
    main(**vars(parser.parse_args()))
