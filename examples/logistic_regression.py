"""Logistic regression, all penalties at once, with standard errors.

On scikit-learn's breast cancer data, half for training, half held out, the 30 weights w and the intercept c minimize

    f(w, c) = sum_i log(1 + exp(-s_i (x_i . w + c))) + alpha |w|^2 / 2,   s_i = -1 or 1.

`linops.optimize.newton_cg` runs whole on the device, so that `jax.vmap` takes it to all alphas: nine problems, one
compiled program. The held-out data choose alpha. At its minimum the inverse of the Hessian is the covariance of the
parameters, given a normal prior of precision alpha; `linops.inverse` is that as an operator, and the roots of its
diagonal are the standard errors.

One sees minima that are scikit-learn's to many digits, and standard errors that are those of the dense inverse.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import scale

import linops
from linops.optimize import newton_cg

ALPHAS = 10.0 ** np.arange(-3, 5.1)


def misfit(params, X, signs):
    return jnp.sum(jnp.logaddexp(0, -signs * (X @ params["w"] + params["c"])))


def f(params, alpha, X, signs):
    return misfit(params, X, signs) + alpha * jnp.sum(params["w"] ** 2) / 2


@jax.jit
def fit(alphas, *data):
    start = {"w": jnp.zeros(data[0].shape[1]), "c": 0.0}
    return jax.vmap(lambda alpha: newton_cg(f, start, args=(alpha, *data)))(alphas)


def main():
    with jax.enable_x64(True):
        bunch = load_breast_cancer()
        X, signs = scale(bunch.data), 2.0 * bunch.target - 1
        train, test = (X[::2], signs[::2]), (X[1::2], signs[1::2])
        fits = fit(ALPHAS, *train)
        losses = jax.vmap(lambda params: misfit(params, *test))(fits.x) / len(test[1])

        print("  alpha   steps   products   converged   held-out loss   distance to scikit-learn")
        distances = []
        for i, alpha in enumerate(ALPHAS):
            sklearn = LogisticRegression(C=1 / alpha, solver="newton-cholesky", tol=1e-10, max_iter=1000).fit(*train)
            distances.append(np.linalg.norm(fits.x["w"][i] - sklearn.coef_[0]) / np.linalg.norm(sklearn.coef_))
            line = f"{alpha:7.0e} {fits.nit[i]:7} {fits.nhev[i]:10} {bool(fits.success[i])!s:>11}"
            print(f"{line} {losses[i]:15.4f} {distances[-1]:26.0e}")
        best = int(np.argmin(losses))
        params = jax.tree.map(lambda leaf: leaf[best], fits.x)

        H = linops.Hessian(f, params, args=(ALPHAS[best], *train))
        covariance = linops.inverse(H, method="cg")  # at a minimum H is positive definite
        errors = np.sqrt(covariance.diagonal())
        exact = np.sqrt(np.diag(np.linalg.inv(H.toarray())))

        weights, place = np.asarray(params["w"]), H.domain.slice("w")
        print(f"\nalpha = {ALPHAS[best]:.0e}                 weight   standard error   of the dense inverse")
        for j in np.argsort(-abs(weights) / errors[place])[:8]:
            print(f"{bunch.feature_names[j]:22} {weights[j]:8.3f} {errors[place][j]:16.4f} {exact[place][j]:22.4f}")
    return {"fits": fits, "losses": losses, "distances": distances, "errors": errors, "exact": exact, "best": best}


def check(result):
    assert result["fits"].success.all()
    assert max(result["distances"]) < 1e-6
    np.testing.assert_allclose(result["errors"], result["exact"], rtol=1e-9)
    assert 0 < result["best"] < len(ALPHAS) - 1, "a penalty that is too weak and one that is too strong"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
