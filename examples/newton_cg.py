"""Newton's method on logistic regression, with the Hessian as an operator, against L-BFGS and scikit-learn.

Logistic regression on scikit-learn's breast cancer data minimizes, over 30 weights w and an intercept c,

    f(w, c) = sum_i log(1 + exp(-s_i (x_i . w + c))) + |w|^2 / 2,   s_i = -1 or 1,

which is what `sklearn.linear_model.LogisticRegression(C=1)` minimizes too. Truncated Newton methods solve H step = -g
by conjugate gradients or Lanczos, from products H v alone. SciPy's `minimize` takes such a Hessian as an operator,

    minimize(f, x0, jac=True, hess=H.at, method="Newton-CG").

One sees the methods meet in the same minimum, scikit-learn's, to many digits; and Newton's get there in a quarter of
the iterations of L-BFGS-B, which has to build its picture of the curvature from gradients. An iteration of theirs costs
more, since it makes several products, each worth about two gradients.

SciPy's "trust-ncg" and "trust-krylov", which call `np.dot(H, v)`, fail with an ordinary LinearOperator, as is shown at
the end. A linops operator answers `np.dot`, and is the Hessian of all of these methods as it stands.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import scale

import linops

METHODS = {
    "L-BFGS-B": {"ftol": 0, "gtol": 1e-6, "maxiter": 1000},
    "Newton-CG": {"xtol": 1e-8},
    "trust-ncg": {"gtol": 1e-6},
    "trust-krylov": {"gtol": 1e-6},
}


def f(wc, X, signs):
    w, c = wc[:-1], wc[-1]
    return jnp.sum(jnp.logaddexp(0, -signs * (X @ w + c))) + w @ w / 2


def main():
    results = {}
    with jax.enable_x64(True):
        X, y = load_breast_cancer(return_X_y=True)
        X, signs = scale(X), 2.0 * y - 1
        sklearn = LogisticRegression(C=1, solver="newton-cholesky", tol=1e-12).fit(X, y)
        optimum = np.append(sklearn.coef_, sklearn.intercept_)

        def ordinary(x):
            return LinearOperator(H.shape, matvec=H.at(x).matvec, dtype=H.dtype)

        x0 = np.zeros(X.shape[1] + 1)
        H = linops.Hessian(f, x0, args=(X, signs))
        value_and_grad = jax.jit(jax.value_and_grad(lambda wc: f(wc, X, signs)))
        value_and_grad(x0), H @ x0  # compile, so that the times below are of the methods

        print("method         iterations   evaluations   milliseconds   |gradient|   distance to scikit-learn")
        for method, options in METHODS.items():
            start = time.perf_counter()
            hess = None if method == "L-BFGS-B" else H.at
            found = minimize(value_and_grad, x0, jac=True, hess=hess, method=method, options=options)
            elapsed = 1e3 * (time.perf_counter() - start)
            gradient, distance = np.linalg.norm(found.jac), np.linalg.norm(found.x - optimum)
            print(f"{method:14} {found.nit:10} {found.nfev:13} {elapsed:14.1f} {gradient:12.0e} {distance:26.0e}")
            results[method] = {"iterations": found.nit, "distance": distance, "success": found.success}

        print("\nwith an ordinary LinearOperator:")
        for method in list(METHODS)[1:]:
            try:
                minimize(value_and_grad, x0, jac=True, hess=ordinary, method=method)
            except TypeError as error:
                print(f"{method:14} TypeError: {error}")
            else:
                print(f"{method:14} works")
    return results


def check(result):
    lbfgs = result["L-BFGS-B"]["iterations"]
    for method, found in result.items():
        assert found["success"], method
        assert found["distance"] < 1e-5, method
        assert method == "L-BFGS-B" or found["iterations"] < lbfgs / 2, method


if __name__ == "__main__":
    main()
