"""The problem of the console script without a target: a small network on real data."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize

from linops.derivatives.hessian import Hessian


def digits_problem():
    """A title, the loss and the weights of a small network, trained on scikit-learn's digits by SciPy's Newton-CG."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError(
            "the embedded problem needs scikit-learn, which is not installed; pip install 'linops[examples]', or give "
            "a target: linops spectrum MODULE:FUNCTION --at MODULE:POINT"
        ) from None
    inputs, labels = load_digits(return_X_y=True)
    inputs, labels = jnp.asarray(inputs / 16), jnp.asarray(labels)
    rng = np.random.default_rng(0)
    layers = [(rng.normal(size=size) / np.sqrt(size[0]), np.zeros(size[1])) for size in ((64, 32), (32, 10))]
    x, unravel = ravel_pytree(layers)

    def outputs(x):
        (W1, b1), (W2, b2) = unravel(x)
        return jnp.tanh(inputs @ W1 + b1) @ W2 + b2

    def loss(x):
        z = outputs(x)
        return jnp.mean(jax.nn.logsumexp(z, axis=1) - jnp.take_along_axis(z, labels[:, None], axis=1)[:, 0])

    start = time.perf_counter()
    result = minimize(
        jax.jit(jax.value_and_grad(loss)),
        np.asarray(x),
        jac=True,
        hess=Hessian(loss, x).at,
        method="Newton-CG",
        options={"maxiter": 15},
    )
    seconds = time.perf_counter() - start
    accuracy = float(jnp.mean(outputs(result.x).argmax(axis=1) == labels))
    title = (
        f"a 64-32-10 network on scikit-learn's {len(labels):,} digits\n  trained by {result.nit} steps of "
        f"scipy.optimize Newton-CG in {seconds:.1f} s to a loss of {result.fun:.4f}, accuracy {accuracy:.1%}"
    )
    return title, loss, result.x
